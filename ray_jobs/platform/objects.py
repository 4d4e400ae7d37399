"""Builds objects from plain settings: calls the settings class that a `_target_` names.

In: plain containers, as a YAML file or the command line gives them. Out: the frozen objects they describe, or a
one-line `ValueError` that names key, value and what is allowed. The classes check their values themselves; what YAML
cannot express (a tuple, a path, text that looks like a number) is converted here. pydantic and the classes are imported
only when needed, so that the command line's help stays quick.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from ray_jobs.platform.nearest import suggestion
from ray_jobs.platform.schema import MISSING, TARGET


def build(node: Any, key: str = "") -> Any:
    """Replace every mapping with a `_target_` in a tree of plain containers by the object it describes.

    Args:
        node: mappings, lists and values.
        key: dotted key of `node` in the configuration, for error messages.

    Returns:
        The tree with these objects in it.

    Raises:
        ValueError: A class cannot be found, or a setting is unknown, missing or refused.
    """
    if isinstance(node, Mapping):
        children = {str(name): build(value, _join(key, name)) for name, value in node.items()}
        return children if TARGET not in children else _make(find(children.pop(TARGET), key), children, key)
    if isinstance(node, list | tuple):
        return [build(value, _join(key, index)) for index, value in enumerate(node)]
    return node


def find(target: str, key: str = "") -> type[Any]:
    """The settings class with the dotted name `target`.

    Raises:
        ValueError: There is no such class.
    """
    module_name, _, name = target.rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{_join(key, TARGET)}={target!r} cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and dataclasses.is_dataclass(loaded)):
        raise ValueError(f"{_join(key, TARGET)}={target!r} is not a settings class")
    return loaded


def field_value(settings: Any, name: str, value: Any, key: str) -> Any:
    """A plain value, converted and checked as a field of a settings class.

    Args:
        settings: an object of that class, whose other fields are kept.
        name: name of the field.
        value: the value as a YAML file or the command line gives it.
        key: dotted key of the value, for error messages.

    Raises:
        ValueError: The class refuses the value.
    """
    from pydantic import ValidationError

    from clipautt.settings import one_line

    try:
        return getattr(dataclasses.replace(settings, **_checked(type(settings), {name: value})), name)
    except ValidationError as error:
        raise ValueError(key + one_line(error).removeprefix(name)) from None
    except ValueError as error:
        raise ValueError(f"{key}={value!r}: {error}") from None


def _make(owner: type[Any], given: dict[str, Any], key: str) -> Any:
    from pydantic import ValidationError

    from clipautt.settings import one_line

    known = {field.name: field for field in dataclasses.fields(owner) if field.init}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"unknown key {_join(key, name)!r}{suggestion(name, known)}")
        if isinstance(value, str) and value == MISSING:
            raise ValueError(f"{_join(key, name)} has no value; set it with {_join(key, name)}=…")
    try:
        return owner(**_checked(owner, given))
    except ValidationError as error:
        raise ValueError(one_line(error, key)) from None
    except TypeError as error:
        raise ValueError(f"{key or owner.__name__}: {error}") from error


def _checked(owner: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their fields' types; checked here if the class does not check types itself."""
    hints = typing.get_type_hints(owner, include_extras=True)
    values = {name: _as_python(value, hints[name]) for name, value in given.items()}
    if hasattr(owner, "__pydantic_validator__"):
        return values
    model = _model(owner)(**values)
    return {name: getattr(model, name) for name in values}


def _model(owner: type[Any]) -> Any:
    """A pydantic model with the fields of a plain dataclass."""
    from pydantic import create_model

    from clipautt.settings import STRICT

    hints = typing.get_type_hints(owner, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(owner):
        required = field.default is field.default_factory is dataclasses.MISSING
        fields[field.name] = (hints[field.name], ... if required else None)
    return create_model(owner.__name__, __config__=STRICT, **fields)


def _as_python(value: Any, hint: Any) -> Any:
    """A value in its field's type where YAML has another: tuples, paths, 10.0 for 10, and 71309 for text."""
    options = tuple(_options(hint))
    if isinstance(value, list):
        items = next((get_args(option) for option in options if get_origin(option) is tuple), ())
        fixed = len(items) == len(value) and Ellipsis not in items
        return tuple(_as_python(v, items[n if fixed else 0] if items else Any) for n, v in enumerate(value))
    if isinstance(value, str) and Path in options and str not in options:
        return Path(value)
    if type(value) is int and str in options and not {int, float, Any} & {*options}:
        return str(value)
    if type(value) is float and int in options and float not in options and value.is_integer():
        return int(value)
    return value


def _options(hint: Any) -> Iterator[Any]:
    """The types of a union, without their limits."""
    if get_origin(hint) is Annotated:
        yield from _options(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            yield from _options(option)
    else:
        yield hint


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
