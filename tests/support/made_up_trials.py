"""Trials whose truth is known: a search space as a sweep has it, response functions, and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.selection.trials import Dimension

CHOICES: dict[str, tuple[object, ...]] = {
    "adapt.method.objective": ("none", "entropy", "infomax", "infomax_kl"),
    "adapt.protocol": ("per_video", "per_subject"),
    "adapt.readout": ("best_window", "mean_windows", "peak_window"),
    "adapt.subject_baseline": ("none", "mean", "median"),
    "train.context": ("a human face with", "a photo of a person who shows", "the face of someone in pain, with"),
    "train.window.length": tuple(range(4, 33, 4)),
    "train.window.stride": (1, 2, 3),
    "adapt.method.steps": (5, 10, 20),
    "adapt.method.learning_rate": (0.03, 3.0),
    "adapt.method.kl_weight": (0.1, 1.0),
    "adapt.method.balance_weight": (1.0, 2.0),
    "adapt.method.windows_per_clip": (1, 2, 3),
}
"""Dimension → its values, or the ends of its range where it is in `REAL`."""
REAL = ("adapt.method.learning_rate", "adapt.method.kl_weight")
DIMENSIONS = tuple(
    Dimension(
        key,
        key.removeprefix("train.").removeprefix("adapt.").removeprefix("method.").replace(".", " ").replace("_", " "),
        "real" if key in REAL else "category" if isinstance(values[0], str) else "whole",
        log=key == REAL[0],
    )
    for key, values in CHOICES.items()
)
_TUNING = ("adapt.method.steps", "adapt.method.learning_rate", "adapt.method.kl_weight", "adapt.method.balance_weight")
SIZES = (6.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Points by which the dimensions move the value, dealt out at random; five of twelve do nothing."""


def random_settings(rng: np.random.Generator, count: int) -> pd.DataFrame:
    """Settings drawn at random, with empty cells where a dimension cannot matter."""
    columns: dict[str, object] = {}
    for dimension in DIMENSIONS:
        values = CHOICES[dimension.key]
        if dimension.kind == "real":
            low, high = float(str(values[0])), float(str(values[1]))
            drawn = (
                np.exp(rng.uniform(np.log(low), np.log(high), count))
                if dimension.log
                else rng.uniform(low, high, count)
            )
            columns[dimension.key] = drawn
        else:
            columns[dimension.key] = pd.array([values[i] for i in rng.integers(0, len(values), count)]).astype(
                object if dimension.kind == "category" else "Float64" if isinstance(values[0], float) else "Int64"
            )
    made = pd.DataFrame(columns)
    objective = made["adapt.method.objective"]
    idle = {key: objective == "none" for key in _TUNING}
    idle["adapt.method.kl_weight"] = objective != "infomax_kl"
    idle["adapt.method.balance_weight"] = ~objective.isin(["infomax", "infomax_kl"])
    idle["adapt.method.windows_per_clip"] = (objective == "none") | (made["adapt.readout"] != "best_window")
    for key, rows in idle.items():
        made[key] = made[key].mask(rows)
    return made


@dataclass(frozen=True)
class Truth:
    """A response function: a sum of one curve per dimension and, on request, one pair that acts together."""

    sizes: Mapping[str, float]
    """Dimension → standard deviation of its curve, points."""
    shapes: Mapping[str, tuple[float, ...]]
    """Dimension → an effect per value of a category, or where a number's curve peaks, 0..1."""
    pair: tuple[str, str] | None
    """Dimensions of which the second decides the sign of an effect of the first."""

    def __call__(self, settings: pd.DataFrame) -> npt.NDArray[np.float64]:
        """True values in points, [N]."""
        parts = {dimension.key: self.part(dimension, settings[dimension.key]) for dimension in DIMENSIONS}
        total = 70 + np.sum(list(parts.values()), axis=0)
        if self.pair is not None:
            total = total + 0.8 * parts[self.pair[0]] * np.sign(parts[self.pair[1]])
        return np.asarray(total, float)

    def part(self, dimension: Dimension, column: pd.Series) -> npt.NDArray[np.float64]:
        """What one dimension contributes, [N]; 0 where it does not matter."""
        shape, size, values = self.shapes[dimension.key], self.sizes[dimension.key], CHOICES[dimension.key]
        if dimension.kind == "category":
            effects = dict(zip(values, shape, strict=True))
            return np.asarray([0.0 if pd.isna(value) else size * effects[value] for value in column])
        numbers = pd.to_numeric(column).to_numpy(float, na_value=np.nan)
        ends = np.array([float(str(values[0])), float(str(values[-1]))])
        if dimension.log:
            numbers, ends = np.log(numbers), np.log(ends)
        place = (numbers - ends[0]) / (ends[1] - ends[0])
        curve, all_places = -((place - shape[0]) ** 2), np.linspace(0, 1, 201)
        usual = -((all_places - shape[0]) ** 2)
        return np.asarray(np.where(np.isfinite(curve), size * (curve - usual.mean()) / usual.std(), 0))

    def shares(self, rng: np.random.Generator, count: int = 4000) -> dict[str, float]:
        """The true share of the variance of every dimension: half the mean squared change on exchanging its values."""
        settings = random_settings(rng, count)
        values, found = self(settings), {}
        for dimension in DIMENSIONS:
            other, column = settings.copy(), settings[dimension.key]
            used = np.flatnonzero(column.notna())
            moved = column.copy()
            moved.iloc[used] = column.iloc[rng.permutation(used)].to_numpy()
            other[dimension.key] = moved
            found[dimension.key] = float(np.mean((values - self(other)) ** 2) / 2 / values.var())
        return found


def random_truth(rng: np.random.Generator, *, together: bool = False, sizes: Sequence[float] = SIZES) -> Truth:
    """A response function drawn at random.

    Args:
        rng: random numbers.
        together: whether two dimensions act together.
        sizes: the sizes to deal out.
    """
    shapes: dict[str, tuple[float, ...]] = {}
    for dimension in DIMENSIONS:
        if dimension.kind == "category":
            drawn = rng.normal(size=len(CHOICES[dimension.key]))
            shapes[dimension.key] = tuple((drawn - drawn.mean()) / max(float(drawn.std()), 0.3))
        else:
            shapes[dimension.key] = (float(rng.uniform(0, 1)),)
    keys = [dimension.key for dimension in DIMENSIONS]
    dealt = dict(zip(keys, map(float, rng.permutation(sizes)), strict=True))
    first, second = rng.choice(keys, 2, replace=False)
    return Truth(dealt, shapes, (str(first), str(second)) if together else None)


def made_up_trials(
    truth: Truth, count: int, *, seed: int = 0, noise: float = 2.5, people: int = 24
) -> tuple[pd.DataFrame, dict[int, npt.NDArray[np.float64]]]:
    """Finished trials, and the UAR of every subject in each of them.

    Args:
        truth: the response function.
        count: number of trials.
        seed: of settings and noise.
        noise: standard deviation of a trial's value around its truth, points.
        people: number of subjects.
    """
    rng = np.random.default_rng(seed)
    settings = random_settings(rng, count)
    level = rng.normal(0, 12, people)  # people differ far more than trials do
    own = truth(settings)[:, None] + level - level.mean() + rng.normal(0, noise * np.sqrt(people), (count, people))
    values = np.clip(own / 100, 0, 1)
    table = pd.DataFrame({"number": np.arange(count), "status": "ok", "reason": "", "uar": values.mean(axis=1)})
    spread = values.std(axis=1, ddof=1) / np.sqrt(people) * 1.96
    table = table.assign(uar_low=table["uar"] - spread, uar_high=table["uar"] + spread, seconds_per_video=0.1)
    return pd.concat([table, settings], axis=1), dict(enumerate(values))
