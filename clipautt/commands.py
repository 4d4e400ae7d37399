"""Words of a command line for messages: what a user can copy into a shell, and what is read there as it was meant.

A word passes a shell and then Hydra's grammar; both have quotes of their own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_PLAIN = re.compile(r"[\w./@%+:~-]*[\w./]", re.ASCII)
"""Text that Hydra reads as it stands, unless it looks like something else."""
_OTHERWISE = re.compile(r"[+-]?(\.?[0-9][\w.+-]*|nan|inf)|true|false|null|none|~", re.IGNORECASE)
_IN_DOUBLE_QUOTES = re.compile(r"[^\"$`\\!]*")


def quoted(text: str) -> str:
    """`text` quoted for Hydra's grammar, so that it is read as exactly this text."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + (escaped + "\\" * trailing).replace("${", "\\${") + "'"


def looks_otherwise(text: str) -> bool:
    """Whether unquoted text is read as a number, true, false or null."""
    return _OTHERWISE.fullmatch(text) is not None


def value(text: str) -> str:
    """A text value in Hydra's grammar, in quotes where it needs them."""
    return text if _PLAIN.fullmatch(text) and not looks_otherwise(text) else quoted(text)


def is_utf8(name: str) -> bool:
    """Whether a name from the file system or a command line is UTF-8; Python keeps other bytes as lone surrogates."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def word(text: str) -> str:
    """A word in a shell, in quotes where it needs them; a name that is not UTF-8 as `$'…'`, which bash and zsh read."""
    if not is_utf8(text):
        raw = text.encode("utf-8", "surrogateescape")
        shown = "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\x{b:02x}" for b in raw)
        return f"$'{shown}'"
    safe = shlex.quote(text)
    return f'"{text}"' if safe != text and "'" in text and _IN_DOUBLE_QUOTES.fullmatch(text) else safe


def setting(key: str, given: str | Iterable[str]) -> str:
    """`key=value` as it is typed in a shell.

        setting("subject", "1e3")             "subject='1e3'"
        setting("classes", ["FALSE", "yes"])  "classes=['FALSE',yes]"
        setting("out", "my data")             "out='my data'"

    Args:
        key: name of the setting.
        given: text, or the items of a list of text.
    """
    items = value(given) if isinstance(given, str) else f"[{','.join(map(value, given))}]"
    return word(f"{key}={items}")
