"""Names of variables that R, SPSS and pandas all accept.

In: the names of columns, in any script. Out: for each a name of at most 64 bytes, of letters, digits and underscores,
that begins with a letter, is no word of SPSS's or R's grammar, and differs from all others also in lower case (IBM SPSS
Statistics Command Syntax Reference, "Variable Names"; R Language Definition, section 10.3.2).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

LONGEST = 64
"""Bytes, and as all characters are ASCII, characters."""
_LETTERS = {
    **{"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"},
    **{"đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "ħ": "h", "Ħ": "H"},
}
"""Letters that Unicode does not take apart into a Latin letter and a mark."""
_SPSS = {"all", "and", "by", "eq", "ge", "gt", "le", "lt", "ne", "not", "or", "to", "with"}
_R = {"if", "else", "repeat", "while", "function", "for", "next", "break", "in", "true", "false", "null", "inf", "nan"}
_RESERVED = _SPSS | _R | {"na", "na_integer_", "na_real_", "na_complex_", "na_character_"}
"""Words of either language's grammar, in lower case."""
_FRONT = "v_"
"""Begins a name that would otherwise begin with a digit, or be a reserved word."""


def portable_names(names: Iterable[str]) -> dict[str, str]:
    """Each name → its portable name; the same names in the same order give the same result.

    portable_names(["AU4_rise", "probability_Ärger", "probability_Arger", "2nd visit", "by"])
    # AU4_rise, probability_Arger, probability_Arger_2, v_2nd_visit, v_by
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        base, number = _portable(name), 1
        made = base
        while made.casefold() in taken:
            number += 1
            end = f"_{number}"
            made = f"{base[: LONGEST - len(end)].rstrip('_')}{end}"
        found[name] = made
        taken.add(made.casefold())
    return found


def _portable(name: str) -> str:
    apart = unicodedata.normalize("NFKD", "".join(_LETTERS.get(letter, letter) for letter in name))
    plain = "".join(_ascii(letter) for letter in apart if not unicodedata.combining(letter))
    joined = re.sub(r"_+", "_", plain).strip("_") or "v"
    if not joined[0].isalpha() or joined.casefold() in _RESERVED:
        joined = f"{_FRONT}{joined}"
    return joined[:LONGEST].rstrip("_")


def _ascii(letter: str) -> str:
    """A character of a name; a letter of another script as its code point, everything else as an underscore."""
    if letter.isascii():
        return letter if letter.isalnum() else "_"
    return f"u{ord(letter):04X}" if letter.isalnum() else "_"
