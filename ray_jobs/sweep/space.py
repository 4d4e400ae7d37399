"""The search space of a sweep: which dimensions matter in a trial, and what a trial's values configure.

In: the mapping `space` of a configuration. Out: a `SearchSpace`, with which Optuna chooses a trial's values, and every
combination of a finite space. A dimension that cannot matter in a trial (step sizes where no prompt is tuned), or of
which some value would not be valid there, is not sampled in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from clipautt.adaptation.method import AdaptConfig
from clipautt.model.training import TrainConfig
from clipautt.video.augmentation import Augmentation
from ray_jobs.sweep.dimensions import METHOD, REFUSED, Dimension, Value, read_dimensions, searchable

if TYPE_CHECKING:
    from optuna.trial import Trial

__all__ = ["MOST_COMBINATIONS", "Dimension", "SearchSpace", "Value", "make_space"]

MOST_COMBINATIONS = 100_000
"""Largest number of combinations of a grid; a trial takes seconds."""
_DECIDING = (
    "adapt.method.objective",
    "adapt.method.on",
    "adapt.method.positive_capacity",
    "adapt.method.negative_capacity",
    "adapt.method.steps",
    "adapt.subject_baseline",
    "adapt.protocol",
    "adapt.readout",
    "adapt.method.tune",
    "adapt.prior",
)
"""Settings on which it depends whether others matter; they are sampled first, in this order."""


@dataclass(frozen=True)
class SearchSpace:
    """What the trials of a sweep choose from, over settings that all of them share."""

    dimensions: tuple[Dimension, ...]
    """In the order in which a trial's values are chosen: those first that decide whether others matter."""
    train: TrainConfig
    """Training settings that all trials share, except what is searched."""
    adapt: AdaptConfig
    """Adaptation settings that all trials share, except what is searched; training uses the same subject baseline."""

    def __call__(self, trial: Trial) -> dict[str, Value]:
        """Choose a trial's values.

        Returns:
            Dotted key → value, of the dimensions that matter in the trial.
        """
        chosen: dict[str, Value] = {}
        for dimension in self.dimensions:
            if self.applies(dimension, chosen):
                chosen[dimension.name] = dimension.suggest(trial)
        return chosen

    def configs(self, values: Mapping[str, Any]) -> tuple[TrainConfig, AdaptConfig]:
        """The training and the adaptation that a trial's values describe; other keys are ignored.

        Raises:
            ValueError: if the values do not go together.
        """
        fields: dict[str, dict[str, Any]] = {}
        for name in searchable(type(self.adapt.method)):
            if name in values:
                group, _, field = name.rpartition(".")
                fields.setdefault(group, {})[field] = values[name]
        method: Any = self.adapt.method
        adapt = replace(self.adapt, method=replace(method, **fields.get(METHOD, {})), **fields.get("adapt", {}))
        augmentation = replace(self.train.augmentation, **fields.get("train.augmentation", {}))
        own = {
            **fields.get("train", {}),
            "window": replace(self.train.window, **fields.get("train.window", {})),
            "augmentation": augmentation,
            "features": "augmented" if augmentation.on else "cached",
            "subject_baseline": adapt.subject_baseline,
        }
        return replace(self.train, **own), adapt

    def augmentations(self) -> list[Augmentation]:
        """The augmentations that trials can have, without none at all.

        Raises:
            ValueError: if an augmentation has infinitely many values.
        """
        searched = [dimension for dimension in self.dimensions if dimension.name.startswith("train.augmentation.")]
        for dimension in searched:
            if dimension.size is None:
                raise ValueError(
                    f"space.{dimension.name}: every augmentation is encoded before the trials, so give a list, "
                    f"{dimension.as_choices}"
                )
        values = [[(dimension.name, value) for value in dimension.values()] for dimension in searched]
        found = (self.configs(dict(chosen))[0].augmentation for chosen in itertools.product(*values))
        return list(dict.fromkeys(one for one in found if one.on))

    def applies(self, dimension: Dimension, chosen: Mapping[str, Value]) -> bool:
        """Whether a dimension matters and all of its values are valid, given what was chosen before it."""
        adapt = self.configs(chosen)[1]
        return all(rule.holds(adapt) for rule in _rules(dimension.name, adapt)) and not self._invalid(dimension, chosen)

    def grid(self) -> list[dict[str, Value]]:
        """Every distinct combination of values, without the dimensions that do not matter in it.

        Raises:
            ValueError: if a dimension has infinitely many values, or there are more combinations than
                `MOST_COMBINATIONS`.
        """
        for dimension in self.dimensions:
            if dimension.size is None:
                key = f"space.{dimension.name}"
                raise ValueError(
                    f"{key} has infinitely many values between {dimension.low} and {dimension.high}, and a grid takes "
                    f"each of them: give {key}.step=… or a list, {dimension.as_choices}"
                )
        found = list(islice(self._combinations(self.dimensions, {}), MOST_COMBINATIONS + 1))
        if len(found) > MOST_COMBINATIONS:
            sizes = ", ".join(f"{dimension.name} {dimension.size}" for dimension in self.dimensions)
            raise ValueError(
                f"space has more than {MOST_COMBINATIONS} combinations ({sizes} values); take a larger step, fewer "
                "choices, or sampler=random"
            )
        return found

    def _combinations(self, dimensions: tuple[Dimension, ...], chosen: dict[str, Value]) -> Iterator[dict[str, Value]]:
        if not dimensions:
            yield chosen
            return
        first, rest = dimensions[0], dimensions[1:]
        if not self.applies(first, chosen):
            yield from self._combinations(rest, chosen)
            return
        for value in first.values():
            yield from self._combinations(rest, chosen | {first.name: value})

    def _invalid(self, dimension: Dimension, chosen: Mapping[str, Value]) -> str:
        """Why a value of a dimension is not valid with those chosen before it; empty if all are."""
        for value in dimension.ends:
            try:
                self.configs({**chosen, dimension.name: value})
            except ValueError as error:
                return _reason(error)
        return ""


def make_space(space: Mapping[str, Any], *, train: TrainConfig, adapt: AdaptConfig) -> SearchSpace:
    """The search space that a configuration describes.

    Args:
        space: nested mapping, see `dimensions.read_dimensions`.
        train: settings shared by all trials.
        adapt: settings shared by all trials.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    known = searchable(type(adapt.method))
    if not any(name.startswith(f"{METHOD}.") for name in known):
        raise ValueError(
            f"adapt.method: {adapt.method.name!r} has no settings to search; set adapt=clip_au, adapt=t3a or adapt=tda"
        )
    if adapt.window is not None:
        raise ValueError(f"adapt.window={asdict(adapt.window)}: expected null; {REFUSED['adapt.window']}")
    found = read_dimensions(space, type(adapt.method))
    if not found:
        raise ValueError(f"space is empty: search at least one of {', '.join(f'space.{name}' for name in known)}")
    order = [*_DECIDING, *(name for name in known if name not in _DECIDING)]
    result = SearchSpace(tuple(found[name] for name in order if name in found), train, adapt)
    _refuse_idle(result)
    return result


@dataclass(frozen=True)
class _Rule:
    """When a setting can change a prediction, given what was chosen before it."""

    holds: Callable[[AdaptConfig], bool]
    """Whether it can."""
    words: str
    """The same in words, to follow "only if"."""


def _settings(adapt: AdaptConfig) -> Any:
    """The method's settings, whatever its class."""
    return adapt.method


_OBJECTIVE = _Rule(lambda c: _settings(c).objective != "none", "adapt.method.objective is not none")
_TUNED = _Rule(
    lambda c: c.method.adapts, "prompts are tuned: adapt.method.objective is not none and adapt.method.steps above 0"
)
_FRAMES = _Rule(lambda c: "views" in c.method.needs, "the method uses the trained model: adapt.method.on is windows")
_CARRIED = _Rule(
    lambda c: c.method.adapts or c.subject_baseline != "none" or c.prior == "estimate",
    "something passes from clip to clip: the method adapts, or adapt.subject_baseline is not none",
)
_COLLAPSE = _Rule(
    lambda c: c.protocol != "per_video" and (c.method.adapts or c.prior == "estimate"),
    "the method adapts or adapt.prior is estimate, and adapt.protocol is not per_video",
)
_POSITIVE = _Rule(lambda c: _settings(c).positive_capacity > 0, "adapt.method.positive_capacity is above 0")
_NEGATIVE = _Rule(lambda c: _settings(c).negative_capacity > 0, "adapt.method.negative_capacity is above 0")
_OF_METHOD: dict[str, dict[str, tuple[_Rule, ...]]] = {
    "clip_autt": {
        "objective": (),
        "steps": (_OBJECTIVE,),
        "kl_weight": (_Rule(lambda c: _settings(c).objective == "infomax_kl", "adapt.method.objective is infomax_kl"),),
        "balance_weight": (
            _Rule(
                lambda c: _settings(c).objective in ("infomax", "infomax_kl"),
                "adapt.method.objective is infomax or infomax_kl",
            ),
        ),
        "precision": (_Rule(lambda c: _settings(c).tune == "context", "adapt.method.tune is context"),),
        "memory": (_Rule(lambda c: c.protocol == "online", "adapt.protocol is online"),),
        "windows_per_clip": (_Rule(lambda c: c.readout == "best_window", "adapt.readout is best_window"),),
    },
    "tda": {
        **dict.fromkeys(("alpha", "beta"), (_POSITIVE,)),
        **dict.fromkeys((f"negative_{part}" for part in ("alpha", "beta", "mask_low")), (_NEGATIVE,)),
        **dict.fromkeys(("negative_entropy_low", "negative_entropy_high"), (_NEGATIVE,)),
    },
}
"""Method → its setting → what must hold besides; of `clip_autt`, all but objective and steps need tuned prompts."""


def _rules(name: str, adapt: AdaptConfig) -> tuple[_Rule, ...]:
    """What must hold for a dimension to matter."""
    group, _, field = name.rpartition(".")
    if group == METHOD:
        own = _OF_METHOD.get(adapt.method.name, {}).get(field, ())
        return own if adapt.method.name != "clip_autt" or field in ("objective", "steps") else (_TUNED, *own)
    if group.partition(".")[0] == "train" or name == "adapt.readout":
        return (_FRAMES,)
    return {"adapt.protocol": (_CARRIED,), "adapt.collapse_share": (_COLLAPSE,)}.get(name, ())


def _refuse_idle(space: SearchSpace) -> None:
    """Refuse a dimension that is sampled in no trial."""
    reachable: list[dict[str, Value]] = [{}]
    deciding = [dimension for dimension in space.dimensions if dimension.name in _DECIDING]
    for dimension in deciding:
        _refuse_unreachable(space, dimension, reachable)
        reachable = [
            one
            for chosen in reachable
            for one in (
                [chosen | {dimension.name: value} for value in _telling(dimension)]
                if space.applies(dimension, chosen)
                else [chosen]
            )
        ]
    for dimension in space.dimensions:
        if dimension not in deciding:
            _refuse_unreachable(space, dimension, reachable)


def _telling(dimension: Dimension) -> list[Value]:
    """Values of a deciding dimension that differ in what matters with them."""
    values = list(dimension.ends)
    special = [value for value in values if value in ("none", "estimate", 0)]
    if dimension.name in ("adapt.prior", "adapt.subject_baseline") or all(isinstance(v, int) for v in values):
        return [*special, *[value for value in values if value not in special][:1]]
    return values


def _refuse_unreachable(space: SearchSpace, dimension: Dimension, reachable: list[dict[str, Value]]) -> None:
    if any(space.applies(dimension, chosen) for chosen in reachable):
        return
    key = f"space.{dimension.name}"
    rules = [_rules(dimension.name, space.configs(chosen)[1]) for chosen in reachable]
    broken = dict.fromkeys(
        rule.words
        for chosen, ones in zip(reachable, rules, strict=True)
        for rule in ones
        if not rule.holds(space.configs(chosen)[1])
    )
    if broken:
        raise ValueError(
            f"{key} changes nothing in any trial: it matters only if {', and if '.join(broken)}; search or set that, "
            f"or omit it: '~{key}'"
        )
    raise ValueError(f"{key}: some of its values are valid in no trial ({space._invalid(dimension, reachable[0])})")


def _reason(error: ValueError) -> str:
    """Why a class refuses its values, in one line."""
    from pydantic import ValidationError

    from clipautt.settings import one_line

    return one_line(error) if isinstance(error, ValidationError) else str(error)
