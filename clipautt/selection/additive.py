"""A model of trials: the value is a sum of one curve per dimension.

In: trials and their values. Out: what each dimension contributes to every trial. With tens of trials, of values with
noise, a sum of curves says more than models with interactions do (`make bench-sweep-conclusions` measures it); where
dimensions do act together, what the sum misses counts as noise and makes the intervals wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import RidgeCV

from clipautt.selection.trials import Dimension, categories, coordinates

Floats = npt.NDArray[np.float64]
_KNOTS = 5
_PENALTIES = tuple(np.logspace(-2, 2.5, 16))


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

    def rows(self, places: Floats) -> Floats:
        """Its columns, [M, k], at coordinates [M]; 0 where they are NaN, so that the dimension adds nothing there."""
        known = np.isfinite(places)
        raw = _columns(np.where(known, places, 0), self.knots, len(self.values)) - self.centre
        return np.asarray(raw * known[:, None])


@dataclass(frozen=True, eq=False)
class Design:
    """Trials as a matrix: numbers as piecewise linear curves, categories as indicators, each centred."""

    matrix: Floats
    """[N, K]."""
    blocks: tuple[Block, ...]
    """One per dimension."""


def make_design(trials: pd.DataFrame, dimensions: Sequence[Dimension]) -> Design:
    """The design of trials over the dimensions that vary in them."""
    blocks, parts, start = [], [], 0
    for dimension in dimensions:
        places = coordinates(trials, dimension)
        active = np.isfinite(places)
        values = tuple(categories(trials, dimension)) if dimension.kind == "category" else ()
        knots = np.empty(0) if values else _knots(places[active])
        width = _columns(np.zeros(1), knots, len(values)).shape[1]
        raw = _columns(places[active], knots, len(values))
        block = Block(dimension, slice(start, start + width), active, knots, values, raw.mean(axis=0))
        blocks.append(block)
        parts.append(block.rows(places))
        start += width
    return Design(np.concatenate(parts, axis=1), tuple(blocks))


def _knots(places: Floats) -> Floats:
    different = np.unique(places)
    return different if len(different) <= _KNOTS else np.unique(np.quantile(places, np.linspace(0, 1, _KNOTS)))


def _columns(places: Floats, knots: Floats, num_values: int) -> Floats:
    """Indicators of a category, or how far each straight piece has been passed, 0..1, so that weights are its rises."""
    if num_values:
        return np.asarray(places[:, None] == np.arange(num_values), float)
    rises = np.diff(knots)
    return np.asarray(np.clip((places[:, None] - knots[:-1]) / rises, 0, 1), float)


@dataclass(frozen=True, eq=False)
class Fit:
    """The model fitted to some rows of a design."""

    mean: float
    """Value where every dimension contributes nothing."""
    weights: Floats
    """[K]."""

    def contributions(self, design: Design) -> dict[str, Floats]:
        """Dimension's key → what it adds to the value of every trial, [N]."""
        return {
            block.dimension.key: design.matrix[:, block.columns] @ self.weights[block.columns]
            for block in design.blocks
        }


def choose_penalty(design: Design, values: Floats) -> float:
    """The ridge penalty with the smallest error over trials that are left out one by one."""
    return float(RidgeCV(alphas=_PENALTIES).fit(design.matrix, values).alpha_)


def fit(design: Design, values: Floats, rows: npt.NDArray[np.int64], *, penalty: float) -> Fit:
    """Ridge regression with a free mean (Hoerl and Kennard, 1970, doi:10.1080/00401706.1970.10488634).

    Args:
        design: of all trials.
        values: of all trials, [N].
        rows: the trials to fit to; one that is listed twice counts twice.
        penalty: from `choose_penalty`.
    """
    matrix, target = design.matrix[rows], values[rows]
    centre, mean = matrix.mean(axis=0), target.mean()
    moved = matrix - centre
    weights = np.linalg.solve(moved.T @ moved + penalty * np.eye(matrix.shape[1]), moved.T @ (target - mean))
    return Fit(float(mean - centre @ weights), weights)
