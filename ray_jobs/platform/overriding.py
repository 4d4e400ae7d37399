"""The words of a command line in Hydra's grammar: read, and kept as text where text is meant.

In: `key=value` words as a user types them. Out: Hydra's overrides, and words whose values have the type of the setting
that they are for, or a one-line `ValueError`.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import ListConfig

from clipautt.commands import looks_otherwise, quoted, setting
from clipautt.commands import word as shell_word
from ray_jobs.platform.schema import Field

_FROM_ELSEWHERE = ("hf-hub:", "local-dir:")
_WORD = re.compile(r"(?P<key>[+~]{0,2}[A-Za-z_][\w./@:-]*)=(?P<value>.*)", re.DOTALL)
_ITEM = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^][{},'"]+""")
"""A quoted or bare item of a list in Hydra's grammar."""


def spelled_out(word: str) -> list[str]:
    """The word, or for `backbone=NAME` with an open_clip model the two words that it is short for."""
    group, _, name = word.partition("=")
    if group != "backbone" or not (name.startswith(_FROM_ELSEWHERE) or name in open_clip_models()):
        return [word]
    return ["backbone=open_clip", f"backbone.name={quoted(name)}"]


@cache
def open_clip_models() -> frozenset[str]:
    """Names of the models that open_clip knows, found without importing it."""
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    return frozenset(path.stem for folder in folders or [] for path in Path(folder, "model_configs").glob("*.json"))


def parse(word: str) -> Override:
    """A word in Hydra's grammar; a path needs no quotes.

    Raises:
        ValueError: It cannot be read, or gives several values.
    """
    parser = OverridesParser.create()
    match = _WORD.fullmatch(word)
    if match is None and not word.startswith("~"):
        raise ValueError(f"cannot read {word!r}: a setting is written key=value")
    try:
        override = parser.parse_override(word)
    except HydraException as error:
        # A path may contain characters that Hydra's grammar reserves, but does not begin like a list, mapping or
        # quotation. Letters with accents are reserved too, also in the items of a list.
        accents = match is not None and match["value"].startswith("[") and not word.isascii()
        if match is None or (match["value"].startswith(("[", "{", "'", '"')) and not accents):
            raise ValueError(f"cannot read {word!r}: {first_line(error)}") from None
        value = _ITEM.sub(_quoted_accents, match["value"]) if accents else quoted(match["value"])
        try:
            override = parser.parse_override(f"{match['key']}={value}")
        except HydraException:
            raise ValueError(f"cannot read {word!r}: {first_line(error)}") from None
    if override.is_sweep_override():
        key = override.key_or_group
        raise ValueError(
            f"{word!r} gives {key} several values: give one; a list is written {key}=[a,b], one text with a comma "
            f"{setting(key, word.partition('=')[2])}"
        )
    return override


def _quoted_accents(item: re.Match[str]) -> str:
    return item[0] if item[0].isascii() or item[0].startswith(("'", '"')) else quoted(item[0].strip())


def text_of(word: Override) -> str:
    """The word as it was parsed."""
    assert word.input_line is not None
    return word.input_line


def kept_as_text(word: Override, field: Field) -> str:
    """The word, quoted if it looks like a number or a truth value where text is expected: 8_1 is a name and not 81."""
    is_list = isinstance(word.value(), list)
    text = field.lists_text if is_list else field.takes_text and word.value() is not None
    return _as_text(word) if text else text_of(word)


def _as_text(word: Override) -> str:
    """The word with its value, or each item of its list, as text: `[FALSE,007]` as `['FALSE','007']`."""
    key, _, value = text_of(word).partition("=")
    return f"{key}={_ITEM.sub(_quoted_item, value)}"


def _quoted_item(item: re.Match[str]) -> str:
    return quoted(item[0].strip()) if looks_otherwise(item[0].strip()) else item[0]


def _refuse_doubtful(word: Override) -> None:
    """Refuse an unusually written number where nothing tells whether text is meant."""
    key, _, written = text_of(word).partition("=")
    value = word.value()
    if isinstance(value, int | float) and not isinstance(value, bool) and str(value) != written.strip():
        ways = " or ".join(shell_word(f"{key}={way}") for way in (quoted(written), value))
        raise ValueError(f"{text_of(word)}: is it text or a number? Write {ways}")


def checked_kind(word: Override, default: Any) -> str:
    """The word, where nothing but the default says of which kind its value is.

    Raises:
        ValueError: The value is of another kind.
    """
    key, value = word.key_or_group, word.value()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if default is None:
        _refuse_doubtful(word)
    if default is None and isinstance(value, bool):  # no setting without a default is true or false
        return _as_text(word)
    if default is None or value is None or (isinstance(value, str) and "${" in value):
        return text_of(word)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"{text_of(word)}: expected true or false, as in the default {key}={str(default).lower()}")
    if isinstance(default, int | float) and not isinstance(default, bool) and not is_number:
        raise ValueError(f"{text_of(word)}: expected a number, as in the default {key}={default}")
    if isinstance(default, ListConfig) and not isinstance(value, list):
        raise ValueError(f"{text_of(word)}: expected a list, written {key}=[a,b]")
    names = isinstance(default, ListConfig) and all(isinstance(item, str) for item in default)
    if names or (isinstance(default, str) and (is_number or isinstance(value, bool | list))):
        return _as_text(word)  # A name, a subject or a class may look like a number.
    return text_of(word)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
