"""What a sweep may search: the settings of training, adaptation and method, by their words on the command line.

In: the mapping `space` of a configuration, and the class of the method. Out: one `Dimension` per setting that is
searched, or a one-line `ValueError` that names key, value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

from clipautt.adaptation.method import AdaptConfig, find_method, method_names
from clipautt.commands import word
from clipautt.model.training import TrainConfig
from clipautt.model.windows import WindowSpec
from clipautt.video.augmentation import Augmentation
from ray_jobs.platform import schema
from ray_jobs.platform.nearest import suggestion
from ray_jobs.platform.objects import field_value

if TYPE_CHECKING:
    from optuna.trial import Trial

Value = str | int | float | bool | None

GROUPS: dict[str, type] = {
    "train.window": WindowSpec,
    "train": TrainConfig,
    "train.augmentation": Augmentation,
    "adapt": AdaptConfig,
}
"""Dotted key → the class whose fields are searched there; `adapt.method` joins with the class of the method."""
METHOD = "adapt.method"
_LUCK = (
    "the best of several seeds says nothing about other data; set repeats=3 to train and adapt each trial with "
    "several of them"
)
REFUSED = {
    "train.subject_baseline": "training and adaptation share it; search space.adapt.subject_baseline, which sets both",
    "train.features": "trials take stored features, augmented ones where their augmentation is on",
    "train.augmented_passes": "every augmentation is encoded so many times before the first trial; set "
    "train.augmented_passes",
    "train.seed": _LUCK,
    "adapt.seed": _LUCK,
    "adapt.window": "trials adapt with the windows they are trained with; search space.train.window.length, which "
    "sets both",
}
"""Settings that are not searched, and why."""
_RANGE_KEYS = ("low", "high", "step", "log")
_LABELS = {"train.window": "window", "train.augmentation": "augmentation", "train": "training"}


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched: a list of choices, or a range of numbers."""

    name: str
    """Dotted key of the setting that it sets, such as `train.window.length`."""
    choices: tuple[Value, ...] = ()
    """At least two values; empty for a range."""
    low: int | float = 0
    """Smallest value of the range."""
    high: int | float = 0
    """Largest value of the range, inclusive."""
    step: int | float | None = None
    """Distance between neighbouring values; None: 1 for whole numbers, none for others."""
    log: bool = False
    """Whether to sample evenly on a logarithmic scale."""

    @property
    def label(self) -> str:
        """Short name for figures: `window length`, `training learning rate`, `steps`."""
        owner, _, field = self.name.rpartition(".")
        return " ".join(filter(None, [_LABELS.get(owner, ""), field.replace("_", " ")]))

    @property
    def dtype(self) -> str:
        """Type of its column in the table of trials; all of them allow an empty cell."""
        kinds = {type(value) for value in self.ends}
        if kinds <= {int, float}:
            return "float64" if float in kinds else "Int64"
        return "boolean" if kinds == {bool} else "object"

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that stand for all when it is asked what is allowed: the choices, or both ends of the range."""
        return self.choices or (self.low, self.high)

    @property
    def as_choices(self) -> str:
        """The word of a command line that searches the ends of a range alone, for messages."""
        return word(f"space.{self.name}={{choices: [{self.low}, {self.high}]}}")

    def cell(self, value: Value) -> Value:
        """A value as the table of trials holds it: text in a column of text, `null` among it."""
        if self.dtype != "object" or isinstance(value, str):
            return value
        return "null" if value is None else str(value)

    def suggest(self, trial: Trial) -> Value:
        """A value for this trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    @property
    def size(self) -> int | None:
        """Number of values; None if there are infinitely many."""
        if self.choices:
            return len(self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return (self.high - self.low) // int(self.step or 1) + 1
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def values(self) -> Iterator[Value]:
        """Every value of a dimension that has a `size`, in order."""
        if self.choices:
            yield from self.choices
            return
        step = self.step or 1
        for index in range(self.size or 0):
            yield self.high if index + 1 == self.size else round(self.low + index * step, 12)


def searchable(method: type) -> dict[str, type]:
    """Dotted key → the class that owns the field, for all settings that a sweep with this method may search."""
    return {
        key: owner
        for group, owner in _groups(method).items()
        for key in (f"{group}.{field.name}" for field in dataclasses.fields(owner))
        if key not in REFUSED and key not in _groups(method)
    }


def read_dimensions(space: Mapping[str, Any], method: type) -> dict[str, Dimension]:
    """The dimensions of a configuration, by dotted key.

    Args:
        space: nested mapping of settings → `{low: …, high: …}` with `step` or `log`, or `{choices: […]}`; null omits a
            dimension. Dotted keys stand for nested ones.
        method: class of the adaptation method.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    known, found = searchable(method), dict[str, Dimension]()
    leaves = list(_leaves(space, "", _groups(method)))
    strange = [key for key, given in leaves if given is not None and key not in known]
    others = [key for key in strange if _owners_of(key)]
    if others:
        omitted = " ".join(f"'~space.{key}'" for key in others)
        raise ValueError(
            f"{', '.join(f'space.{key}' for key in others)}: no setting of method {_name(method)!r}, but of "
            f"{' or '.join(_owners_of(others[0]))}; choose that with adapt=…, or omit what is searched: {omitted}"
        )
    for key in strange:
        raise ValueError(_strange(key, known, _groups(method)))
    for key, given in leaves:
        if given is None:
            if key not in known and not _owners_of(key):
                raise ValueError(_strange(key, known, _groups(method)))
            continue
        if key in found:
            raise ValueError(f"space.{key} is given twice; write it once")
        found[key] = _dimension(key, given, known[key])
    return found


def _groups(method: type) -> dict[str, type]:
    return GROUPS | {METHOD: method}


def _name(method: type) -> str:
    return str(getattr(method, "name", method.__name__))


def _leaves(node: Mapping[Any, Any], prefix: str, groups: Mapping[str, type]) -> Iterator[tuple[str, Any]]:
    """Dotted key and what is given for it, for everything that is not a group of settings."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key in groups and value is None:
            continue
        if key in groups:
            if not isinstance(value, Mapping) or set(value) & {"choices", *_RANGE_KEYS}:
                raise ValueError(_strange(key, (), groups))
            yield from _leaves(value, f"{key}.", groups)
        else:
            yield key, value


def _owners_of(key: str) -> list[str]:
    """The methods that have this setting."""
    group, _, field = key.rpartition(".")
    if group != METHOD:
        return []
    classes = {name: find_method(name) for name in method_names()}
    return [name for name, cls in classes.items() if field in {one.name for one in dataclasses.fields(cls)}]


def _strange(key: str, known: Mapping[str, type] | tuple[()], groups: Mapping[str, type]) -> str:
    """Why this key is no dimension, and what may have been meant."""
    if key == METHOD:
        return f"space.{key}: a sweep searches the settings of one method; start one per method, with adapt=…"
    if key in groups:
        inside = [f"space.{key}.{field.name}" for field in dataclasses.fields(groups[key])]
        inside = [name for name in inside if name.removeprefix("space.") not in {*REFUSED, *groups}]
        return f"space.{key} holds several settings; search one of {', '.join(inside)}"
    if key in REFUSED:
        return f"space.{key} is not searched: {REFUSED[key]}"
    same = [f"'space.{name}'" for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f"; did you mean {' or '.join(same)}?" if same else suggestion(f"space.{key}", [f"space.{k}" for k in known])
    return f"space.{key}: unknown dimension{hint}"


def _dimension(name: str, given: Any, owner: type) -> Dimension:
    key = f"space.{name}"
    if not isinstance(given, Mapping):
        raise ValueError(f"{key}={given!r}: expected {_forms(name, owner)}")
    for part in given:
        if part not in ("choices", *_RANGE_KEYS):
            raise ValueError(f"{key}.{part}: unknown key{suggestion(str(part), ('choices', *_RANGE_KEYS))}")
    parts = {part: value for part, value in given.items() if value is not None}
    if "choices" in parts and len(parts) > 1:
        extra = next(part for part in parts if part != "choices")
        raise ValueError(
            f"{key}.{extra} belongs to a range; a list of choices takes nothing else: set {key}.{extra}=null or "
            f"{key}.choices=null"
        )
    if "choices" not in parts and not {"low", "high"} & set(parts):
        raise ValueError(f"{key}={dict(given)}: expected {_forms(name, owner)}")
    return _of_choices(name, parts, owner) if "choices" in parts else _of_range(name, parts, owner)


def _of_choices(name: str, parts: dict[str, Any], owner: type) -> Dimension:
    values, key = parts["choices"], f"space.{name}.choices"
    if not isinstance(values, list | tuple) or len(values) < 2:
        raise ValueError(f"{key}={values!r}: expected a list of at least two values")
    choices = tuple(_checked(name, value, owner, key) for value in values)
    twice = [value for value in choices if choices.count(value) > 1]
    if twice:
        raise ValueError(f"{key}={list(values)}: {twice[0]!r} is listed twice")
    return Dimension(name, choices)


def _of_range(name: str, parts: dict[str, Any], owner: type) -> Dimension:
    key, number = f"space.{name}", _number(name, owner)
    if number is None:
        raise ValueError(f"{key}={parts}: expected {_forms(name, owner)}")
    for part in ("low", "high"):
        if part not in parts:
            raise ValueError(f"{key}.{part} has no value; a range is written {_forms(name, owner)}")
    low, high = (_checked(name, parts[part], owner, f"{key}.{part}") for part in ("low", "high"))
    for part, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key}.{part}={value!r}: should be a number")
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if not low < high:
        raise ValueError(f"{key}: low={low} and high={high}; expected low below high")
    log = parts.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"{key}.log={log!r}: should be true or false")
    if log and (low <= 0 or "step" in parts):
        raise ValueError(f"{key}: low={low}, step={parts.get('step')}; a logarithmic range has low above 0 and no step")
    step = parts.get("step")
    if step is not None and type(step) not in (int, number):
        raise ValueError(f"{key}.step={step!r}: should be {'an integer' if number is int else 'a number'}")
    if step is not None and not _divides(step, high - low):
        raise ValueError(f"{key}.step={step}: expected a positive number that divides {high} − {low}")
    return Dimension(name, low=low, high=high, step=step, log=log)


def _divides(step: int | float, width: int | float) -> bool:
    if not math.isfinite(step) or step <= 0:
        return False
    return abs(width / step - round(width / step)) <= 1e-9 and width / step >= 1 - 1e-9


def _checked(name: str, value: Any, owner: type, key: str) -> Value:
    """The value in its field's type, refused where the field's owner refuses it."""
    example = AdaptConfig(find_method("clip_autt")()) if owner is AdaptConfig else owner()
    return cast(Value, field_value(example, name.rpartition(".")[2], value, key))


def _kinds(name: str, owner: type) -> set[Any]:
    hint = get_type_hints(owner)[name.rpartition(".")[2]]
    return {hint} if get_origin(hint) is Literal else {hint, *get_args(hint)}


def _number(name: str, owner: type) -> type | None:
    """int or float, if the field takes numbers."""
    return next((kind for kind in (float, int) if kind in _kinds(name, owner)), None)


def _forms(name: str, owner: type) -> str:
    """How a dimension may be written."""
    if _number(name, owner) is None:
        field = schema.fields(f"{owner.__module__}.{owner.__name__}")[name.rpartition(".")[2]]
        allowed = field.allowed or ("true or false" if bool in _kinds(name, owner) else "text")
        return f"{{choices: […]}}, each {allowed}"
    return "{low: …, high: …}, optionally with step: … or log: true, or {choices: […]}"
