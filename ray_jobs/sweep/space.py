"""The search space of a sweep: what may be searched, how a YAML file says so, and what a trial's values configure.

In: the mapping `space` of a configuration. Out: a `SearchSpace`, with which Optuna chooses a trial's values. A
dimension that cannot matter in a trial (step sizes where no prompt is tuned) is not sampled in it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_type_hints

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.model.training import TrainConfig
from clipautt.model.windows import WindowSpec
from ray_jobs.platform import schema
from ray_jobs.platform.nearest import suggestion
from ray_jobs.platform.objects import field_value

Value = str | int | float | bool

DIMENSIONS: dict[str, tuple[type, str]] = {
    "objective": (ClipAUTT, "objective"),
    "protocol": (AdaptConfig, "protocol"),
    "readout": (AdaptConfig, "readout"),
    "subject_baseline": (AdaptConfig, "subject_baseline"),
    "window_length": (WindowSpec, "length"),
    "window_stride": (WindowSpec, "stride"),
    "context": (TrainConfig, "context"),
    "steps": (ClipAUTT, "steps"),
    "learning_rate": (ClipAUTT, "learning_rate"),
    "kl_weight": (ClipAUTT, "kl_weight"),
    "balance_weight": (ClipAUTT, "balance_weight"),
    "windows_per_clip": (ClipAUTT, "windows_per_clip"),
    "memory": (ClipAUTT, "memory"),
    "per_au_context": (ClipAUTT, "per_au_context"),
}
"""What may be searched → the field that it sets; those that decide whether others matter come first."""

_OF_TUNING = ("steps", "learning_rate", "kl_weight", "balance_weight", "windows_per_clip", "memory", "per_au_context")
_RANGE_KEYS = ("low", "high", "step", "log")
_STREAM = 31  # Keeps the sampler's random numbers apart from those of training and cohorts.


@dataclass(frozen=True)
class Dimension:
    """One thing that is searched: a list of choices, or a range of numbers."""

    name: str
    """A key of `DIMENSIONS`."""
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
    def dtype(self) -> str:
        """Type of its column in the table of trials; all of them allow an empty cell."""
        return {int: "Int64", float: "float64", bool: "boolean"}.get(_hint(self.name), "object")

    def suggest(self, trial: Trial) -> Value:
        """A value for this trial."""
        if self.choices:
            return cast(Value, trial.suggest_categorical(self.name, self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class SearchSpace:
    """What the trials of a sweep choose from, over settings that all of them share."""

    dimensions: tuple[Dimension, ...]
    """In the order of `DIMENSIONS`."""
    train: TrainConfig
    """Training settings that all trials share, except what is searched."""
    adapt: AdaptConfig
    """Adaptation settings that all trials share, except what is searched; training uses the same subject baseline."""

    def __call__(self, trial: Trial) -> dict[str, Value]:
        """Choose a trial's values; what `ray.tune.search.optuna.OptunaSearch` takes as `space`.

        Returns:
            The trial's number, which joins the chosen values in the trial's configuration.
        """
        chosen: dict[str, Value] = {}
        for dimension in self.dimensions:
            if _matters(dimension.name, self.configs(chosen)[1]):
                chosen[dimension.name] = dimension.suggest(trial)
        return {"number": trial.number}

    def configs(self, values: Mapping[str, Any]) -> tuple[TrainConfig, AdaptConfig]:
        """The training and the adaptation that a trial's values describe."""
        fields: dict[type, dict[str, Any]] = {TrainConfig: {}, AdaptConfig: {}, ClipAUTT: {}, WindowSpec: {}}
        for name in DIMENSIONS:
            if name in values:
                owner, field = DIMENSIONS[name]
                fields[owner][field] = values[name]
        method = replace(cast(ClipAUTT, self.adapt.method), **fields[ClipAUTT])
        adapt = replace(self.adapt, method=method, **fields[AdaptConfig])
        window = replace(self.train.window, **fields[WindowSpec])
        own = fields[TrainConfig] | {"window": window, "subject_baseline": adapt.subject_baseline}
        return replace(self.train, **own), adapt


def _matters(name: str, adapt: AdaptConfig) -> bool:
    """Whether a dimension can change a prediction, given what was chosen before it."""
    if name not in _OF_TUNING:
        return True
    method = cast(ClipAUTT, adapt.method)
    needed = {
        "kl_weight": method.objective == "infomax_kl",
        "memory": adapt.protocol == "online",
        "balance_weight": method.objective in ("infomax", "infomax_kl"),
        "windows_per_clip": adapt.readout == "best_window",
    }
    return method.objective != "none" and needed.get(name, True)


def make_space(space: Mapping[str, Any], *, train: TrainConfig, adapt: AdaptConfig) -> SearchSpace:
    """The search space that a configuration describes.

    Args:
        space: name → `{low: …, high: …}` with `step` or `log`, or `{choices: […]}`; None omits a dimension.
        train: settings shared by all trials.
        adapt: settings shared by all trials.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    for name in space:
        if name not in DIMENSIONS:
            raise ValueError(f"space.{name}: unknown dimension{suggestion(str(name), DIMENSIONS)}")
    if not isinstance(adapt.method, ClipAUTT):
        raise ValueError(f"method {adapt.method.name!r}: a sweep searches the settings of clip_autt; set adapt=clip_au")
    if adapt.window is not None:
        raise ValueError("adapt.window: expected null, the trials use the window they train with; set train.window")
    dimensions = [_dimension(name, space[name]) for name in DIMENSIONS if space.get(name) is not None]
    if not dimensions:
        raise ValueError(f"space is empty: search at least one of {', '.join(DIMENSIONS)}")
    result = SearchSpace(tuple(dimensions), train, adapt)
    _refuse_idle(result)
    return result


def _refuse_idle(space: SearchSpace) -> None:
    """Refuse a dimension that matters in no trial."""
    searched = {dimension.name: dimension.choices for dimension in space.dimensions}
    usual = {
        "objective": cast(ClipAUTT, space.adapt.method).objective,
        "protocol": space.adapt.protocol,
        "readout": space.adapt.readout,
    }
    deciding = {name: searched.get(name) or (value,) for name, value in usual.items()}
    reachable = [
        space.configs(dict(zip(deciding, values, strict=True)))[1] for values in itertools.product(*deciding.values())
    ]
    for name in searched:
        if not any(_matters(name, config) for config in reachable):
            given = ", ".join(f"{key} {' or '.join(map(str, values))}" for key, values in deciding.items())
            raise ValueError(f"space.{name} changes nothing in any trial ({given}); search objective too, or omit it")


def _dimension(name: str, given: Any) -> Dimension:
    key = f"space.{name}"
    if not isinstance(given, Mapping):
        raise ValueError(f"{key}={given!r}: expected {_forms(name)}")
    for part in given:
        if part not in ("choices", *_RANGE_KEYS):
            raise ValueError(f"{key}.{part}: unknown key{suggestion(str(part), ('choices', *_RANGE_KEYS))}")
    parts = {part: value for part, value in given.items() if value is not None}
    if ("choices" in parts) == ("low" in parts or "high" in parts):
        raise ValueError(f"{key}={dict(given)}: expected {_forms(name)}")
    return _of_choices(name, parts, key) if "choices" in parts else _of_range(name, parts, key)


def _of_choices(name: str, parts: dict[str, Any], key: str) -> Dimension:
    extra = [part for part in parts if part != "choices"]
    if extra:
        raise ValueError(f"{key}.{extra[0]} belongs to a range; a list of choices takes nothing else")
    values = parts["choices"]
    if not isinstance(values, list | tuple) or len(values) < 2:
        raise ValueError(f"{key}.choices={values!r}: expected a list of at least two values")
    choices = tuple(_checked(name, value, f"{key}.choices") for value in values)
    twice = [value for value in choices if choices.count(value) > 1]
    if twice:
        raise ValueError(f"{key}.choices={list(values)}: {twice[0]!r} is listed twice")
    return Dimension(name, choices)


def _of_range(name: str, parts: dict[str, Any], key: str) -> Dimension:
    if not _is_number(name):
        raise ValueError(f"{key}={parts}: expected {_forms(name)}")
    for part in ("low", "high"):
        if part not in parts:
            raise ValueError(f"{key}.{part} has no value; a range is written {_forms(name)}")
    low, high = (_checked(name, parts[part], f"{key}.{part}") for part in ("low", "high"))
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if not low < high:
        raise ValueError(f"{key}: low={low} and high={high}; expected low below high")
    log = parts.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"{key}.log={log!r}: should be true or false")
    if log and (low <= 0 or "step" in parts):
        raise ValueError(f"{key}: low={low}, step={parts.get('step')}; a logarithmic range has low above 0 and no step")
    step = parts.get("step")
    if step is not None and type(step) not in (int, _hint(name)):
        raise ValueError(f"{key}.step={step!r}: should be {'an integer' if _hint(name) is int else 'a number'}")
    if step is not None and (step <= 0 or abs((high - low) / step - round((high - low) / step)) > 1e-9):
        raise ValueError(f"{key}.step={step}: expected a positive number that divides {high} − {low}")
    return Dimension(name, low=low, high=high, step=step, log=log)


def _checked(name: str, value: Any, key: str) -> Value:
    """The value in its field's type, refused where the field's owner refuses it."""
    owner, field = DIMENSIONS[name]
    return cast(Value, field_value(_example(owner), field, value, key))


def _example(owner: type) -> Any:
    return AdaptConfig(ClipAUTT()) if owner is AdaptConfig else owner()


def _hint(name: str) -> Any:
    owner, field = DIMENSIONS[name]
    return get_type_hints(owner)[field]


def _is_number(name: str) -> bool:
    return _hint(name) in (int, float)


def _forms(name: str) -> str:
    if not _is_number(name):
        owner, field = DIMENSIONS[name]
        allowed = schema.fields(f"{owner.__module__}.{owner.__name__}")[field].allowed
        return f"{{choices: […]}}, each {allowed or ('true or false' if _hint(name) is bool else 'text')}"
    return "{low: …, high: …}, optionally with step: … or log: true, or {choices: […]}"


class SeededSampler(BaseSampler):
    """Optuna's TPE with random numbers that follow from the seed and the trial's number alone.

    A sampler that is seeded once would suggest the first trials again in a resumed sweep.

    Args:
        seed: seed of the sweep.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._current: tuple[int, TPESampler] | None = None

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if self._current is None or self._current[0] != trial.number:
            numbers = np.random.SeedSequence([self.seed, _STREAM, trial.number]).generate_state(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # `group` allows trials without some dimensions.
                self._current = trial.number, TPESampler(seed=int(numbers[0]), multivariate=True, group=True)
        return self._current[1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The dimensions that are sampled jointly."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the dimensions that are sampled jointly."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of a dimension that is sampled alone."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)
