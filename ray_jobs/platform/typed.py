"""Plain values into typed objects: calls what a `_target_` names with arguments checked against its annotations.

What this module does not know: Hydra, files, and which values make sense; a target refuses those itself.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

TARGET = "_target_"
_NEAR = 0.55
_LISTS = (list, tuple, set, frozenset, Sequence)


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `word`, or None where none is alike.

    Dotted names are compared whole and by their last part, so `steps` finds `adapt.steps`.
    """
    best, best_score = None, _NEAR
    for candidate in candidates:
        whole = difflib.SequenceMatcher(None, word, candidate).ratio()
        last = difflib.SequenceMatcher(None, word.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        score = max(whole, 0.9 * last + 0.1 * whole)
        if score > best_score:
            best, best_score = candidate, score
    return best


def build(node: Any, key: str = "") -> Any:
    """Replace every mapping with a `_target_` in a tree of plain containers by what the target returns.

    Args:
        node: Mappings, lists and values.
        key: Dotted name of `node` in the configuration, for the messages.

    Returns:
        The tree with objects in it.

    Raises:
        ValueError: A target cannot be found, or an argument is unknown, missing, of a wrong type or refused.
    """
    if isinstance(node, Mapping):
        children = {str(name): build(value, _join(key, name)) for name, value in node.items()}
        return children if TARGET not in children else _call(find(children.pop(TARGET), key), children, key)
    if isinstance(node, list | tuple):
        return [build(value, _join(key, index)) for index, value in enumerate(node)]
    return node


def find(target: str, key: str = "") -> Callable[..., Any]:
    """The class or function with the dotted name `target`.

    Raises:
        ValueError: There is none.
    """
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{_join(key, TARGET)}={target!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise ValueError(f"{_join(key, TARGET)}={target!r} is neither a class nor a function")
    return typing.cast(Callable[..., Any], found)


def _call(target: Callable[..., Any], arguments: dict[str, Any], key: str) -> Any:
    parameters = inspect.signature(target).parameters
    hints = _hints(target)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise ValueError(f"unknown key {_join(key, name)!r}{suggestion(name, parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments and not _is_variadic(parameter):
            raise ValueError(f"{_join(key, name)} has no value; set it with {_join(key, name)}=…")
    converted = {name: convert(value, hints.get(name, Any), _join(key, name)) for name, value in arguments.items()}
    try:
        return target(**converted)
    except TypeError as error:
        raise ValueError(f"{key or target.__name__}: {error}") from error


def _hints(target: Any) -> dict[str, Any]:
    return typing.get_type_hints(target if not _has_own_init(target) else target.__init__)


def suggestion(word: str, candidates: Iterable[str]) -> str:
    """The end of an error message: what the word may have meant, or what there is."""
    names = sorted(candidates)
    near = nearest(word, names)
    return f"; did you mean {near!r}?" if near else f"; there is {', '.join(names) or 'none'}"


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as the type `hint`, where nothing is lost by it: 3 as a float, a list as a tuple, 3 as text.

    Args:
        value: A plain value, or an object that is already built.
        hint: An annotation; what it cannot check (protocols, type variables) it lets pass.
        key: Dotted name for the message.

    Returns:
        The converted value.

    Raises:
        ValueError: The value does not fit.
    """
    try:
        return _converted(value, hint, key)
    except _MisfitError:
        raise ValueError(f"{key}={value!r}: expected {describe(hint)}") from None


def is_text(hint: Any, *, listed: bool) -> bool:
    """Whether an annotation asks for text or a path and takes no number in its place.

    Args:
        hint: An annotation.
        listed: Look at the items of a list, else at a single value.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    taken = {leaf for option in options if (get_origin(option) in _LISTS) == listed for leaf in _leaves(option)}
    return bool(taken & {str, Path}) and not taken & {int, float, Any}


def _leaves(hint: Any) -> Iterable[Any]:
    if get_origin(hint) is Literal:
        yield Literal
    elif get_args(hint):
        for argument in get_args(hint):
            yield from _leaves(argument)
    else:
        yield hint


def hint_of(target: str, name: str) -> Any:
    """The annotation of an argument of what a `_target_` names; `Any` where there is none.

    Raises:
        ValueError: There is no such target.
    """
    return _hints(find(target)).get(name, Any)


def describe(hint: Any) -> str:
    """An annotation in words."""
    words = {
        int: "an integer",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
        Path: "a path",
    }
    if hint in words:
        return words[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin in _LISTS:
        inner = [describe(argument) for argument in arguments if argument is not Ellipsis]
        return f"a list of ({', '.join(inner)})" if inner else "a list"
    if origin in (dict, Mapping):
        return "a mapping"
    return getattr(hint, "__name__", str(hint))


class _MisfitError(Exception):
    """A value does not fit its annotation."""


def _converted(value: Any, hint: Any, key: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _as_union(value, get_args(hint), key)
    if origin is Literal:
        return _require(value, any(value == option and type(value) is type(option) for option in get_args(hint)))
    if origin in _LISTS or hint in (list, tuple, set, frozenset):
        return _as_list(value, origin or hint, get_args(hint), key)
    if origin in (dict, Mapping):
        return _as_mapping(value, get_args(hint), key)
    return _as_scalar(value, hint, key)


def _as_scalar(value: Any, hint: Any, key: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is type(None) or hint is None:
        return _require(value, value is None)
    if hint is bool:
        return _require(value, isinstance(value, bool))
    if hint is int:
        return int(_require(value, number and float(value).is_integer()))
    if hint is float:
        return float(_require(value, number))
    if hint is str:  # 1e3 and 1.50 have lost how they were written; 71309 has not
        return str(_require(value, isinstance(value, str) or (number and isinstance(value, int))))
    if hint is Path:
        return Path(_require(value, isinstance(value, str | Path)))
    if isinstance(hint, type) and isinstance(value, Mapping) and not issubclass(hint, Mapping):
        return _call(hint, dict(value), key)
    checkable = isinstance(hint, type) and not getattr(hint, "_is_protocol", False)
    return _require(value, not checkable or isinstance(value, hint))


def _as_union(value: Any, options: tuple[Any, ...], key: str) -> Any:
    exact = [option for option in options if isinstance(option, type) and type(value) is option]
    for option in [*exact, *options]:
        try:
            return _converted(value, option, key)
        except _MisfitError:
            continue
    raise _MisfitError


def _as_list(value: Any, kind: type, inner: tuple[Any, ...], key: str) -> Any:
    _require(value, isinstance(value, list | tuple | set | frozenset))
    hints: Sequence[Any] = [inner[0] if inner else Any] * len(value)
    if kind is tuple and inner and Ellipsis not in inner:
        _require(value, len(inner) == len(value))
        hints = inner
    items = [_converted(item, item_hint, key) for item, item_hint in zip(value, hints, strict=True)]
    return items if kind in (list, Sequence) else kind(items)


def _as_mapping(value: Any, inner: tuple[Any, ...], key: str) -> dict[Any, Any]:
    _require(value, isinstance(value, Mapping))
    name_hint, value_hint = inner or (Any, Any)
    return {
        _converted(name, name_hint, key): _converted(item, value_hint, _join(key, name)) for name, item in value.items()
    }


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise _MisfitError
    return value


def _has_own_init(target: Any) -> bool:
    return isinstance(target, type) and not hasattr(target, "__dataclass_fields__")


def _is_variadic(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
