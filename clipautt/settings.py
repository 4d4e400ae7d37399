"""Validated settings: `settings` decorates their classes, `one_line` describes an invalid value in one line.

In: a class whose fields have types, defaults, limits and docstrings. Out: a frozen dataclass that checks its arguments
strictly: true is not an integer, and "3" is not a number, but an integer is accepted as a float. Imports no torch.

    @settings
    class Walk:
        steps: NonNegativeInt = 10
        "How many steps are taken."
        pace: Literal["slow", "fast"] = "slow"
        "How fast it goes."

    Walk(steps=-1)  # ValidationError, a ValueError; one_line(error, "walk"):
                    # walk.steps=-1: should be greater than or equal to 0
"""

from __future__ import annotations

import re
from typing import TypeVar, cast

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from typing_extensions import dataclass_transform

STRICT = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, use_attribute_docstrings=True
)
"""Pydantic's options for all settings."""

_Class = TypeVar("_Class")
_FIELDS: dict[str, tuple[str, ...]] = {}
"""Class name → its fields; for a positional argument, pydantic reports only the position."""
_TYPES = {
    "bool_type": "true or false",
    "dataclass_exact_type": "a group of settings",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "none_required": "null",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}
"""Pydantic's kind of error → what was expected, in the words of a YAML file."""
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'")


@dataclass_transform(frozen_default=True)
def settings(cls: type[_Class]) -> type[_Class]:
    """Class decorator: make a class of annotated fields a frozen dataclass that checks its arguments.

    Limits are pydantic's (`PositiveInt`, `Annotated[float, Field(gt=0, lt=1)]`), options are a `Literal`. A field's
    docstring is its help text on the command line. `__post_init__` is for checks across several fields.
    """
    made = dataclass(frozen=True, config=STRICT)(cls)
    _FIELDS[made.__name__] = tuple(made.__dataclass_fields__)
    return cast(type[_Class], made)


def one_line(error: ValidationError, prefix: str = "") -> str:
    """Describe the first value that pydantic refused, in one line that names key, value and what is allowed.

    Args:
        error: raised by a settings class.
        prefix: dotted key of the settings, such as `adapt`; empty if unknown.
    """
    details = error.errors(include_url=False)
    first = details[0]
    key = _key(first, prefix, error.title)
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}={first['input']!r}: {message}" if first["loc"] else message
    if first["type"] == "missing":
        return f"{key} has no value; set it with {key}=…"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {key!r}"
    allowed = [_allowed(other) for other in details if _key(other, prefix, error.title) == key]
    return f"{key}={first['input']!r}: should be {' or '.join(dict.fromkeys(allowed))}"


def _key(error: ErrorDetails, prefix: str, owner: str) -> str:
    """Dotted key of a setting, with the index of a list item; which option of a union failed is left out."""
    name, *within = error["loc"] or ("",)
    if isinstance(name, int) and name < len(_FIELDS.get(owner, ())):
        name = _FIELDS[owner][name]
    place = f"[{within[0]}]" if within and isinstance(within[0], int) else ""
    return ".".join(filter(None, (prefix, str(name)))) + place


def _allowed(error: ErrorDetails) -> str:
    """What is allowed, to follow "should be"."""
    items = "a list where each item is " if any(isinstance(part, int) for part in error["loc"][2:]) else ""
    if error["type"] in _TYPES:
        return items + _TYPES[error["type"]]
    if error["type"] == "literal_error":
        options = _QUOTED.findall(error["ctx"]["expected"])
        return items + ("one of " if len(options) > 1 else "") + ", ".join(options)
    return items + error["msg"].removeprefix("Input should be ").removeprefix("Input should ")
