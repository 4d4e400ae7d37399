"""A model of trials: the value as a sum of one curve per dimension, and of one surface per pair of dimensions.

In: trials and their values. Out: what the model expects of a trial, and of one whose value of a dimension is exchanged.

It is kernel ridge regression. A dimension's kernel is that of a piecewise linear curve or of a category, 0 where the
dimension did not matter; the kernel of a pair is their product (functional ANOVA: Wahba et al., 1995,
doi:10.1214/aos/1034713638). How smooth it is and how much pairs may say is what predicts trials best that are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.selection.trials import Dimension, categories, coordinates

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
_KNOTS, _GRID = 5, 12
_MOST = 400
"""Trials that one fit rests on at most, as its cost grows with their cube."""
_LEFT = 150
"""Trials that one fit is judged on at most."""
_PENALTIES = tuple(np.logspace(-2, 2, 13))
_PAIRS = (0.0, 0.1, 0.3, 1.0)
"""Weights of pairs of dimensions relative to single ones; 0: the model is a sum."""


@dataclass(frozen=True, eq=False)
class Block:
    """The columns that stand for one dimension."""

    dimension: Dimension
    """The dimension."""
    columns: slice
    """Its columns of the design."""
    active: npt.NDArray[np.bool_]
    """In which trials it mattered, [N]."""
    knots: Floats
    """Ends of the straight pieces of a number's curve, in `coordinates`; empty for a category."""
    values: tuple[Any, ...]
    """Values of a category."""
    centre: Floats
    """Mean of the columns over the trials in which it mattered, [k]."""
    scale: float
    """Root of the mean squared length of the centred columns there, so that no dimension weighs more than another."""

    def rows(self, places: Floats) -> Floats:
        """Its columns, [M, k], at coordinates [M]; 0 where they are NaN, so that the dimension adds nothing there."""
        known = np.isfinite(places)
        raw = _columns(np.where(known, places, 0), self.knots, len(self.values)) - self.centre
        return np.asarray(raw * known[:, None] / self.scale)


@dataclass(frozen=True, eq=False)
class Design:
    """Trials as a matrix: numbers as piecewise linear curves, categories as indicators, each centred."""

    matrix: Floats
    """[N, K]."""
    blocks: tuple[Block, ...]
    """One per dimension."""
    pairs: float = 0.0
    """Weight of pairs of dimensions, one of `_PAIRS`."""
    penalty: float = 1.0
    """Ridge penalty, one of `_PENALTIES`."""

    def block(self, key: str) -> Block:
        """The block of a dimension."""
        return next(block for block in self.blocks if block.dimension.key == key)

    def kernel(self, rows: Rows, others: Rows) -> tuple[Floats, Floats]:
        """Sums of the kernels of all dimensions and of all pairs of them, each [len(rows), len(others)]."""
        single, squares = np.zeros((len(rows), len(others))), np.zeros((len(rows), len(others)))
        for block in self.blocks:
            part = self.matrix[rows][:, block.columns] @ self.matrix[others][:, block.columns].T
            single += part
            squares += part**2
        return single, (single**2 - squares) / 2


def make_design(trials: pd.DataFrame, dimensions: Sequence[Dimension], values: Floats) -> Design:
    """The design of trials, with the penalty and the weight of pairs that predict trials best that are left out.

    Args:
        trials: at least two.
        dimensions: those that vary in them.
        values: [N].
    """
    blocks, parts, start = [], [], 0
    for dimension in dimensions:
        places = coordinates(trials, dimension)
        active = np.isfinite(places)
        different = tuple(categories(trials, dimension)) if dimension.kind == "category" else ()
        knots = np.empty(0) if different else _knots(places[active])
        raw = _columns(places[active], knots, len(different))
        centre = raw.mean(axis=0)
        scale = float(np.sqrt(((raw - centre) ** 2).sum(axis=1).mean())) or 1.0
        block = Block(dimension, slice(start, start + raw.shape[1]), active, knots, different, centre, scale)
        blocks.append(block)
        parts.append(block.rows(places))
        start += raw.shape[1]
    return _tuned(Design(np.concatenate(parts, axis=1), tuple(blocks)), values)


def _knots(places: Floats) -> Floats:
    different = np.unique(places)
    return different if len(different) <= _GRID else np.unique(np.quantile(places, np.linspace(0, 1, _KNOTS)))


def _columns(places: Floats, knots: Floats, num_values: int) -> Floats:
    """Indicators of a category, or how far each straight piece has been passed, 0..1, so that weights are its rises."""
    if num_values:
        return np.asarray(places[:, None] == np.arange(num_values), float)
    return np.asarray(np.clip((places[:, None] - knots[:-1]) / np.diff(knots), 0, 1), float)


def _tuned(design: Design, values: Floats) -> Design:
    """The design with the hyperparameters that have the smallest error over trials left out one by one."""
    some = np.random.default_rng(0).permutation(len(values))[:_MOST]
    values = values[some]
    single, both = design.kernel(some, some)
    found: list[tuple[float, float, float]] = []
    for pairs in _PAIRS:
        kernel = single + pairs * both
        centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
        sizes, vectors = np.linalg.eigh(centred)
        rotated = vectors.T @ (values - values.mean())
        for penalty in _PENALTIES:
            kept = np.maximum(sizes, 0) / (np.maximum(sizes, 0) + penalty)
            errors = values - values.mean() - vectors @ (kept * rotated)
            own = 1 / len(values) + (vectors**2 @ kept)
            found.append((float(((errors / np.maximum(1 - own, 1e-9)) ** 2).mean()), pairs, penalty))
    _, pairs, penalty = min(found)
    return replace(design, pairs=pairs, penalty=penalty)


@dataclass(frozen=True, eq=False)
class Fit:
    """The model fitted to some trials of a design."""

    design: Design
    """The design."""
    rows: Rows
    """The trials it is fitted to, [n]."""
    weights: Floats
    """Of their kernels, [n]; they sum to 0."""
    mean: float
    """What is added."""

    def of(self, rows: Rows) -> Expected:
        """What it expects of trials of the design."""
        return Expected(self, rows, *self.design.kernel(rows, self.rows))


@dataclass(frozen=True, eq=False)
class Expected:
    """What a fitted model expects of some trials."""

    model: Fit
    """The model."""
    rows: Rows
    """The trials, [M]."""
    single: Floats
    """Their kernels of dimensions with the trials of the fit, [M, n]."""
    both: Floats
    """Their kernels of pairs, [M, n]."""

    def values(self) -> Floats:
        """Expected values, [M]."""
        model = self.model
        return np.asarray(model.mean + (self.single + model.design.pairs * self.both) @ model.weights)

    def exchanged(self, block: Block, which: npt.NDArray[np.bool_], basis: Floats) -> Floats:
        """Expected values of some of the trials with other values of a dimension, [sum(which), P].

        Args:
            block: the dimension.
            which: the trials, [M].
            basis: the block's columns at its other values, [P, k].
        """
        model, matrix = self.model, self.model.design.matrix[:, block.columns]
        theirs = matrix[model.rows]
        part = matrix[self.rows[which]] @ theirs.T
        single = self.single[which] - part
        rest = single + model.design.pairs * (self.both[which] - part * single)
        own = (basis @ theirs.T) * model.weights
        together = model.design.pairs * single @ own.T
        return np.asarray(model.mean + (rest @ model.weights)[:, None] + own.sum(axis=1) + together)


def fit(design: Design, values: Floats, rows: Rows) -> Fit:
    """Kernel ridge regression with a free mean.

    Args:
        design: of all trials.
        values: of all trials, [N].
        rows: the trials to fit to; one that is listed twice counts twice.
    """
    single, both = design.kernel(rows, rows)
    kernel = single + design.pairs * both
    centred = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    target = values[rows]
    weights = np.linalg.solve(centred + design.penalty * np.eye(len(rows)), target - target.mean())
    return Fit(design, rows, weights, float(target.mean() - (kernel @ weights).mean()))


def resample(rng: np.random.Generator, count: int) -> tuple[Rows, Rows]:
    """Trials drawn with replacement, and those that were not drawn; at most `_MOST` and `_LEFT`.

    Fewer than there are make intervals wider, never narrower.
    """
    rows = rng.integers(0, count, min(count, _MOST))
    left = np.setdiff1d(np.arange(count), rows)
    return rows, left if len(left) <= _LEFT else np.sort(rng.choice(left, _LEFT, replace=False))
