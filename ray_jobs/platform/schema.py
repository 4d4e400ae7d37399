"""The fields of settings classes, read from their source: names, defaults, limits and docstrings.

In: the dotted name of a settings class, or a tree of plain settings with such names as `_target_`. Out: its fields, or
the tree with all defaults filled in. Nothing is imported, so that help and errors about wrong keys need no torch. A
default must be a literal, a constant of some module, or another settings class; a test compares what is read here with
the classes.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

TARGET = "_target_"
MISSING = "???"
"""OmegaConf's mark for a value that the user has to give."""

_LISTS = {"tuple", "list", "Sequence", "set", "frozenset"}
_WORDS = {"int": "an integer", "float": "a number", "str": "text", "bool": "true or false", "Path": "a path"}
_LIMITS: dict[str, tuple[str, dict[str, Any]]] = {
    "PositiveInt": ("int", {"ge": 1}),
    "NonNegativeInt": ("int", {"ge": 0}),
    "PositiveFloat": ("float", {"gt": 0}),
    "NonNegativeFloat": ("float", {"ge": 0}),
}
"""Pydantic's types → the plain type and its limits."""
_LIMIT_WORDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "multiple_of": "a multiple of"}


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class Field:
    """One field of a settings class."""

    name: str
    """Name of the field."""
    default: Any
    """The default as in a YAML file, nested settings as mappings; `MISSING` if there is no default."""
    doc: str
    """The field's docstring, in one line."""
    allowed: str
    """Options or limits in words; empty if the type says it all."""
    in_file: bool
    """Whether YAML can hold its value; false for objects that are not settings."""
    takes_text: bool
    """Whether a single value is text or a path, and never a number."""
    lists_text: bool
    """Whether the items of a list are text or paths, and never numbers."""
    target: str | None
    """Dotted name of the settings class it takes, if there is exactly one."""


@dataclass(frozen=True)
class _Option:
    """One of the types that an annotation allows."""

    kind: str
    """`int`, `float`, `str`, `bool`, `Path`, `None`, `literal`, `list`, `settings` or `other`."""
    values: tuple[Any, ...] = ()
    """The options of a `Literal`."""
    limits: tuple[tuple[str, Any], ...] = ()
    """Pairs of a limit, by pydantic's name, and its value."""
    items: tuple[_Option, ...] = ()
    """Types of a list's items."""
    target: str = ""
    """Dotted name of a settings class."""


@dataclass(frozen=True)
class _Place:
    """A syntax node, and the module in which its names are resolved."""

    node: ast.AST
    module: str


@cache
def fields(target: str) -> Mapping[str, Field]:
    """Name → field, for the class with this dotted name; empty if its source is not found.

    Raises:
        TypeError: A default cannot be read without running the code.
    """
    module, _, name = target.rpartition(".")
    place = _resolve(module, name)
    if place is None or not isinstance(place.node, ast.ClassDef):
        return {}
    result = {}
    for statement, after in pairwise([*place.node.body, ast.Pass()]):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if not ast.unparse(statement.annotation).startswith("ClassVar"):
            field = _read_field(statement, after, place.module, f"{target}.{statement.target.id}")
            result[field.name] = field
    return result


def filled(node: Any) -> Any:
    """Plain settings with the defaults of their classes filled in.

    Args:
        node: mappings, lists and values; a mapping may name a class as its `_target_`.

    Returns:
        The same settings, in which each mapping with a `_target_` has all fields of that class, in the class's order.
    """
    if isinstance(node, list):
        return [filled(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    if TARGET not in node:
        return {name: filled(value) for name, value in node.items()}
    known = {name: field for name, field in fields(str(node[TARGET])).items() if field.in_file or name in node}
    unknown = {name: value for name, value in node.items() if name not in known}
    whole = unknown | {name: _given(node, field) for name, field in known.items()}
    return {name: filled(value) for name, value in whole.items()}


def _given(node: Mapping[Any, Any], field: Field) -> Any:
    """The value of a setting: from the node, else the default; a partly given mapping is completed by the default."""
    if field.name not in node:
        return copy.deepcopy(field.default)
    value = node[field.name]
    if field.target and isinstance(value, Mapping) and TARGET not in value:
        default = field.default if isinstance(field.default, Mapping) else {TARGET: field.target}
        return {**default, **value}
    return value


def _read_field(statement: ast.AnnAssign, after: ast.stmt, module: str, where: str) -> Field:
    assert isinstance(statement.target, ast.Name)
    try:
        options = tuple(_options(_Place(statement.annotation, module)))
        default, in_file = (MISSING, True) if statement.value is None else _default(_Place(statement.value, module))
    except _UnreadableError as error:
        raise TypeError(f"{where}: defaults and limits must be literals, constants or settings, not {error}") from None
    within = tuple(item for option in options for item in option.items)
    targets = {option.target for option in options if option.target}
    text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
    return Field(
        name=statement.target.id,
        default=default,
        doc=" ".join(str(text).split()),
        allowed=_allowed(options),
        in_file=in_file,
        takes_text=_is_text(option for option in options if option.kind != "list"),
        lists_text=_is_text(within),
        target=targets.pop() if len(targets) == 1 else None,
    )


class _UnreadableError(Exception):
    """A default that cannot be read without running the code."""


def _default(place: _Place) -> tuple[Any, bool]:
    """A default as plain containers, and whether YAML can hold it."""
    node = place.node
    if not isinstance(node, ast.expr):
        raise _UnreadableError(ast.unparse(node))
    try:
        return _plain(ast.literal_eval(node)), True
    except ValueError:
        pass
    if isinstance(node, ast.Name) and (found := _resolve(place.module, node.id)) is not None:
        return _default(found)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        first, second = (_default(replace(place, node=part))[0] for part in (node.left, node.right))
        return _ARITHMETIC[type(node.op)](first, second), True
    if isinstance(node, ast.Tuple | ast.List):
        return [_default(replace(place, node=item))[0] for item in node.elts], True
    if isinstance(node, ast.Call) and _last_name(node.func) == "field":
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "default" in given:
            return _default(replace(place, node=given["default"]))
        if isinstance(given.get("default_factory"), ast.Name):
            return _default(replace(place, node=ast.Call(given["default_factory"], [], [])))
    if isinstance(node, ast.Call):
        return _default_object(place, node)
    raise _UnreadableError(ast.unparse(node))


def _default_object(place: _Place, node: ast.Call) -> tuple[Any, bool]:
    """An object of a settings class as a mapping with its `_target_`; None for any other object."""
    if _last_name(node.func) in _LISTS and not node.args:
        return [], True
    found = _resolve(place.module, _last_name(node.func))
    if found is None or not isinstance(found.node, ast.ClassDef):
        raise _UnreadableError(ast.unparse(node))
    if not _is_settings(found.node):
        return None, False
    target = f"{found.module}.{found.node.name}"
    named = dict(zip(fields(target), node.args, strict=False))
    named.update({keyword.arg: keyword.value for keyword in node.keywords if keyword.arg})
    values = {name: _default(replace(place, node=value))[0] for name, value in named.items()}
    return {TARGET: target, **values}, True


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _options(place: _Place) -> Iterator[_Option]:
    """The types that an annotation allows, with aliases resolved."""
    node, module = place.node, place.module
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield from _options(_Place(ast.parse(node.value, mode="eval").body, module))
        elif node.value is not Ellipsis:
            yield _Option("None" if node.value is None else "other")
    elif isinstance(node, ast.BinOp):
        yield from (*_options(_Place(node.left, module)), *_options(_Place(node.right, module)))
    elif isinstance(node, ast.Subscript):
        yield from _subscripted(node, module)
    else:
        yield from _named(place)


def _named(place: _Place) -> Iterator[_Option]:
    name = _last_name(place.node)
    found = _resolve(place.module, name) if isinstance(place.node, ast.Name) else None
    if found is not None and isinstance(found.node, ast.ClassDef):
        settings = _is_settings(found.node)
        yield _Option("settings", target=f"{found.module}.{name}") if settings else _Option("other")
    elif found is not None:
        yield from _options(found)
    elif name in _LIMITS:
        kind, limits = _LIMITS[name]
        yield _Option(kind, limits=tuple(limits.items()))
    else:
        yield _Option("list" if name in _LISTS else name if name in _WORDS else "other")


def _subscripted(node: ast.Subscript, module: str) -> Iterator[_Option]:
    name = _last_name(node.value)
    arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        yield _Option("literal", values=tuple(ast.literal_eval(argument) for argument in arguments))
    elif name == "Annotated":
        limits = tuple(limit for argument in arguments[1:] for limit in _limits(argument, module))
        yield from (replace(option, limits=option.limits + limits) for option in _options(_Place(arguments[0], module)))
    elif name in ("Union", "Optional"):
        yield from (option for argument in arguments for option in _options(_Place(argument, module)))
        yield from (_Option("None"),) * (name == "Optional")
    elif name in _LISTS:
        yield _Option("list", items=tuple(item for part in arguments for item in _options(_Place(part, module))))
    else:
        yield _Option("other")


def _limits(node: ast.expr, module: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Call) and _last_name(node.func) == "Field":
        for keyword in node.keywords:
            if keyword.arg in _LIMIT_WORDS:
                yield keyword.arg, _default(_Place(keyword.value, module))[0]


def _is_text(options: Iterable[_Option]) -> bool:
    kinds = {option.kind for option in options}
    return bool(kinds & {"str", "Path"}) and not kinds & {"int", "float", "other"}


def _allowed(options: tuple[_Option, ...]) -> str:
    telling = any(option.values or option.limits or any(item.values for item in option.items) for option in options)
    if not telling:
        return ""
    if len(options) == 1 and options[0].values:
        return f"one of {', '.join(map(str, options[0].values))}"
    return " or ".join(dict.fromkeys(_described(option) for option in options if option.kind != "None"))


def _described(option: _Option) -> str:
    if option.values:
        return ", ".join(map(str, option.values))
    if option.limits:
        return _limits_in_words(dict(option.limits))
    if option.kind == "list" and option.items:
        return "a list of " + " or ".join(dict.fromkeys(map(_described, option.items)))
    return {"list": "a list"}.get(option.kind, _WORDS.get(option.kind, "settings"))


def _limits_in_words(limits: dict[str, Any]) -> str:
    words = []
    if "ge" in limits and "le" in limits:
        words.append(f"{limits.pop('ge')} to {limits.pop('le')}")
    words += [f"{_LIMIT_WORDS[name]} {value}" for name, value in limits.items()]
    return " and ".join(words)


def _is_settings(node: ast.ClassDef) -> bool:
    return any(_last_name(decorator) == "settings" for decorator in node.decorator_list)


def _last_name(node: ast.AST) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _resolve(module: str, name: str) -> _Place | None:
    """The definition of a module's name, imports followed: a class, or the value of a constant."""
    found = _names(module).get(name)
    if isinstance(found, ast.ImportFrom):
        original = next(alias.name for alias in found.names if (alias.asname or alias.name) == name)
        package = module.split(".")[: -found.level] if found.level else []
        origin = ".".join([*package, *filter(None, [found.module])])
        ours = origin.partition(".")[0] in (module.partition(".")[0], "clipautt")
        return _resolve(origin, original) if ours else None
    return None if found is None else _Place(found, module)


@cache
def _names(module: str) -> dict[str, ast.AST]:
    """Name → definition at the top level of a module: classes, values of constants, and imports."""
    path = _source_of(module)
    names: dict[str, ast.AST] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path else ():
        if isinstance(node, ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: node for alias in node.names})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            names[node.target.id] = node.value
        elif isinstance(node, ast.Assign):
            names.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
    return names


def _source_of(module: str) -> Path | None:
    """The file of a dotted module, found without importing the packages around it."""
    first, *others = module.split(".")
    spec = importlib.util.find_spec(first) if first else None
    for folder in (spec.submodule_search_locations if spec else None) or []:
        path = Path(folder, *others)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None
