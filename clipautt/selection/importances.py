"""How much of the difference between trials each dimension explains, with its spread.

In: the table of trials. Out: a share of the variance per dimension, with a bootstrap interval over trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from clipautt.selection.surrogate import Block, Design, Expected, Floats, fit, make_design, resample
from clipautt.selection.trials import Dimension, finished, varied

FEWEST_TRIALS = 40
"""With so many trials the setting with the largest share is the right one in at least four of five sweeps, made-up ones
and subsets of a real one; with 80 in nine of ten, with 10 in about half (`make bench-sweep-conclusions`)."""
DRAWS = 300
_LEAST = 10
"""With fewer trials, resamples leave too few out to judge a fit."""
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Importance:
    """What one dimension explains."""

    dimension: Dimension
    """The dimension."""
    share: float
    """Share of the variance of the values over trials that it explains, at most 1; below 0: nothing but noise."""
    low: float
    """Lower end of its 95% interval."""
    high: float
    """Upper end."""
    trials: int
    """Finished trials in which it mattered."""

    @property
    def told(self) -> bool:
        """Whether its interval excludes 0: that it explains something is more than chance."""
        return self.low > 0


@dataclass(frozen=True)
class Importances:
    """What all dimensions explain."""

    rows: tuple[Importance, ...]
    """From the largest share to the smallest."""
    trials: int
    """Finished trials."""
    explained: float
    """Share of the variance over trials that all dimensions together explain in trials left out of the fit."""
    level: tuple[Dimension, ...]
    """The dimensions whose share cannot be told from the largest one, which comes first."""


def importances(
    trials: pd.DataFrame,
    dimensions: Sequence[Dimension],
    *,
    value: str = "uar",
    fewest: int = FEWEST_TRIALS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Importances | str:
    """Estimate the shares, or say why they cannot be estimated.

    The model of `surrogate` is fitted to trials drawn with replacement, and judged on those that were not drawn: by how
    much its squared error grows when a dimension's values are exchanged at random among the trials in which it
    mattered (Breiman, 2001, doi:10.1023/A:1010933404324). Half of that over the variance of the values is the
    dimension's share; all exchanges are averaged, not sampled. The share is the mean over the draws and the interval
    their percentiles. A dimension without effect gives shares around 0, on either side.

    Args:
        trials: the table; only finished trials count.
        dimensions: the search space; those that do not vary are left out.
        value: column that is explained.
        fewest: smallest number of finished trials, see `FEWEST_TRIALS`.
        draws: number of resamples.
        seed: of the resamples.

    Returns:
        The importances, or the reason why there are none, as a sentence.
    """
    done = finished(trials, value=value)
    chosen = varied(done, dimensions)
    values = done[value].to_numpy(float)
    if len(chosen) < 2:
        return "No importances: they compare settings, and the finished trials vary fewer than two."
    if len(done) < (least := max(fewest, _LEAST)):
        return (
            f"No importances: {len(done)} trial{'s' * (len(done) != 1)} finished, and with fewer than {least} the most "
            "important setting changes from one sweep to the next."
        )
    if np.ptp(values) == 0:
        return "No importances: all finished trials have the same value."
    design = make_design(done, chosen, values)
    shares, explained = _drawn_shares(design, values, draws, seed)
    return _summary(design, shares, explained)


def _summary(design: Design, shares: Floats, explained: Floats) -> Importances:
    tail = (1 - _CONFIDENCE) / 2
    lows, highs = np.quantile(shares, [tail, 1 - tail], axis=0)
    means = shares.mean(axis=0)
    rows = [
        Importance(block.dimension, float(mean), float(low), float(high), int(block.active.sum()))
        for block, mean, low, high in zip(design.blocks, means, lows, highs, strict=True)
    ]
    order = np.argsort(-means, kind="stable")
    behind = np.quantile(shares[:, order[:1]] - shares, tail, axis=0) <= 0
    level = [rows[place].dimension for place in order if behind[place]]
    return Importances(tuple(rows[place] for place in order), len(design.matrix), float(explained.mean()), tuple(level))


def _drawn_shares(design: Design, values: Floats, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Shares of every draw, [draws, dimensions], and of all dimensions together, [draws]."""
    rng, count = np.random.default_rng(seed), len(values)
    shares: list[list[float]] = []
    explained: list[float] = []
    while len(shares) < draws:
        rows, left = resample(rng, count)
        variance = values[rows].var()
        if len(left) < 2 or variance == 0:
            continue
        expected = fit(design, values, rows).of(left)
        errors = (values[left] - expected.values()) ** 2
        shares.append([_growth(expected, block, values[left], errors) / 2 / variance for block in design.blocks])
        explained.append(1 - errors.mean() / values.var())
    return np.array(shares), np.array(explained)


def _growth(expected: Expected, block: Block, values: Floats, errors: Floats) -> float:
    """Growth of the mean squared error when the trials' values of a dimension are exchanged among them."""
    used = block.active[expected.rows]
    if used.sum() < 2:
        return 0.0
    moved = expected.exchanged(block, used, expected.model.design.matrix[expected.rows[used]][:, block.columns])
    grown = ((values[used][:, None] - moved) ** 2).mean(axis=1) - errors[used]
    return float(grown.sum() / len(values))
