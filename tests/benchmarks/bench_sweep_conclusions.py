"""How many trials a sweep needs before it can say which setting matters, and what a curve over one setting is worth.

    make bench-sweep-conclusions    # ARGS="trials=runs/sweep/NAME/trials.parquet" adds a long random sweep of yours

Trials with a known truth come from `tests/support/made_up_trials.py`: twelve dimensions, five of which do nothing, some
of which matter in some trials only; the values of half of the sweeps have two dimensions that act together. Their
standard deviation over trials is 6 to 8 points, and every value has a noise of 2.5 points. The importances of
`clipautt.selection` are compared with the truth, and with Optuna's default (PED-ANOVA) on the same trials; the curve
over the window length with the truth, and with the plain means of the trials at each length.

A real sweep has no known truth. There the importances of random subsets of N trials are compared with those of all
finished trials; the sampler must have been `random`, or the first trials would differ from the last ones.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clipautt.metrics import rank_correlation
from clipautt.selection.curves import curves
from clipautt.selection.importances import Importances, importances
from clipautt.selection.trials import Dimension, finished, varied
from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine
from tests.support.made_up_trials import DIMENSIONS, made_up_trials, random_truth

SIZES = (10, 20, 40, 80, 160)
NOISE = 2.5
_SWEEPS, _SUBSETS, _DRAWS = 40, 60, 200
_LENGTH = next(one for one in DIMENSIONS if one.key == "train.window.length")
_HEAD = (
    "trials",
    "right first, %",
    "rank correlation",
    "PED-ANOVA: right first, %",
    "rank correlation",
    "right one named or not told from it, %",
    "told though it does nothing, %",
    "told of those above 10 %, %",
)


def shares_of(found: Importances) -> dict[str, float]:
    """Dimension → share."""
    return {row.dimension.key: row.share for row in found.rows}


def ped_anova(trials: pd.DataFrame, dimensions: Sequence[Dimension]) -> dict[str, float]:
    """Dimension → importance by Optuna's default."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    kinds = {one.key: _distribution(trials[one.key].dropna(), one) for one in dimensions}
    for row, value in zip(trials[list(kinds)].to_dict("records"), trials["uar"], strict=True):
        own = {key: getattr(cell, "item", lambda cell=cell: cell)() for key, cell in row.items() if not pd.isna(cell)}
        used = {str(key): kinds[str(key)] for key in own}
        study.add_trial(optuna.trial.create_trial(params=own, distributions=used, value=float(value)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
    return {key: float(found.get(key, 0)) for key in kinds}


def _distribution(values: pd.Series, dimension: Dimension) -> object:
    from optuna import distributions

    if dimension.kind == "category":
        return distributions.CategoricalDistribution(sorted(values.unique(), key=str))
    if dimension.kind == "whole":
        return distributions.IntDistribution(int(values.min()), int(values.max()))
    return distributions.FloatDistribution(float(values.min()), float(values.max()), log=dimension.log)


def judged(trials: pd.DataFrame, dimensions: Sequence[Dimension], truth: Mapping[str, float]) -> list[float]:
    """The figures of one sweep, as in `_HEAD` without the first."""
    found = importances(trials, dimensions, fewest=0, draws=_DRAWS)
    if isinstance(found, str):
        return [float("nan")] * (len(_HEAD) - 1)
    own, other = shares_of(found), ped_anova(trials, varied(trials, dimensions))
    first, keys = max(truth, key=lambda key: truth[key]), sorted(own)
    idle = [row.told for row in found.rows if truth[row.dimension.key] < 1e-9]
    strong = [row.told for row in found.rows if truth[row.dimension.key] > 0.1]
    figures: list[float] = []
    for shares in (own, other):
        ranks = rank_correlation(*(np.array([of[key] for key in keys]) for of in (shares, truth)))
        figures += [100.0 * (max(shares, key=lambda key: shares[key]) == first), ranks]
    figures.append(100.0 * (first in [one.key for one in found.level]))
    return [*figures, *(100 * float(np.mean(kind)) if kind else float("nan") for kind in (idle, strong))]


def print_figures(title: str, rows: Mapping[int, list[list[float]]]) -> None:
    """One line per number of trials: means over the sweeps."""
    print(f"\n{title}")
    shown = [[count, *_rounded(np.nanmean(np.array(figures), axis=0))] for count, figures in rows.items()]
    table(shown, _HEAD)


def _rounded(figures: np.ndarray) -> list[str]:
    return [f"{figure:.2f}" if place in (1, 3) else f"{figure:.0f}" for place, figure in enumerate(figures)]


def with_known_truth() -> None:
    """Importances and curves of made-up sweeps against the truth."""
    rows: dict[int, list[list[float]]] = {count: [] for count in SIZES}
    errors: dict[int, list[list[float]]] = {count: [] for count in SIZES}
    for sweep in range(_SWEEPS):
        rng = np.random.default_rng(sweep)
        truth = random_truth(rng, together=sweep % 2 == 1)
        shares = truth.shares(rng)
        for count in SIZES:
            trials, _ = made_up_trials(truth, count, seed=sweep, noise=NOISE)
            rows[count].append(judged(trials, DIMENSIONS, shares))
            errors[count].append(_curve_errors(trials, truth.part))
    print_figures(f"{_SWEEPS} made-up sweeps against the truth", rows)
    print("\nlargest error of the curve over the window length around its mean, points")
    shown = [[count, *(f"{value:.1f}" for value in np.nanmean(np.array(own), axis=0))] for count, own in errors.items()]
    table(shown, ["trials", "curve of a model", "means at each length"])


def _curve_errors(trials: pd.DataFrame, part: object) -> list[float]:
    found = curves(trials, DIMENSIONS, draws=20)[_LENGTH.key]
    if isinstance(found, str):
        return [float("nan")] * 2
    lengths = pd.Series(list(found.at))
    true = part(_LENGTH, lengths)  # type: ignore[operator]
    plain = trials.groupby(_LENGTH.key)["uar"].mean().reindex(lengths).to_numpy(float)
    moved = [100 * (one - one.mean()) for one in (found.mean, plain)]
    return [float(np.abs(one - (true - true.mean())).max()) for one in moved]


def of_a_sweep(path: Path) -> None:
    """Importances of subsets of a real sweep against those of all its trials."""
    trials = finished(pd.read_parquet(path))
    keys = [name for name in trials if "." in name]
    dimensions = varied(trials, [_guessed(trials[key], key) for key in keys])
    whole = importances(trials, dimensions, fewest=0)
    if isinstance(whole, str):
        raise SystemExit(f"{path}: {whole}")
    spread = 100 * trials["uar"].std()
    print(f"\n{path.name}: {len(trials)} finished trials, UAR with a standard deviation of {spread:.1f} points")
    shown = [[r.dimension.label, *(f"{100 * x:.1f}" for x in (r.share, r.low, r.high)), r.told] for r in whole.rows]
    table(shown, ["setting", "share, %", "low", "high", "told"])
    truth = {row.dimension.key: max(row.share, 0.0) if row.told else 0.0 for row in whole.rows}
    rows: dict[int, list[list[float]]] = {}
    for count in [size for size in SIZES if size <= len(trials) // 2]:
        drawn = [trials.sample(count, random_state=seed) for seed in range(_SUBSETS)]
        rows[count] = [judged(one, dimensions, truth) for one in drawn]
    print_figures(f"{_SUBSETS} random subsets against all trials", rows)


def _guessed(column: pd.Series, key: str) -> Dimension:
    """A dimension as its values look."""
    values = column.dropna()
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return Dimension(key, key, "category")
    whole = bool((values.astype(float) % 1 == 0).all())
    log = not whole and values.min() > 0 and values.max() / values.min() > 20
    return Dimension(key, key, "whole" if whole else "real", log)


def main() -> None:
    """Print the tables."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    print(machine())
    if "trials" in given:
        of_a_sweep(Path(given["trials"]))
    with_known_truth()


if __name__ == "__main__":
    main()
