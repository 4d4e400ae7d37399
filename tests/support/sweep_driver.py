"""A driver of a sweep as a process of its own, which a test can kill: `python sweep_driver.py '{"where": …}'`.

The objective is cheap, and its values are conditional: `depth` matters only with `kind=deep`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from ray_jobs.sweep.studies.samplers import make_sampler
from ray_jobs.sweep.studies.storage import open_storage
from ray_jobs.sweep.studies.study import SweepStudy


def opened(where: str | None, folder: Path, *, sampler: str = "random", seed: int = 0, **options: Any) -> SweepStudy:
    """The study `demo` of one objective."""
    options = {"directions": ["maximize"], "settings": {"folds": 5}, "refresh": 0.5} | options
    options["metrics"] = [f"objective {number}" for number, _ in enumerate(options["directions"])]
    maker: Any = make_sampler
    chosen = maker(sampler, seed, objectives=len(options["directions"]))
    return SweepStudy.open(open_storage(where, folder), "demo", sampler=chosen, **options)


def choose(trial: Trial) -> float:
    """Choose a trial's values and give its result."""
    kind = trial.suggest_categorical("kind", ["flat", "deep"])
    rate = trial.suggest_float("rate", 0.01, 1.0, log=True)
    depth = trial.suggest_int("depth", 1, 8) if kind == "deep" else 3
    return 1 - abs(rate - 0.3) - 0.05 * abs(depth - 5)


def run(study: SweepStudy, total: int, *, seconds: float = 0.0, stop_after: int | None = None) -> None:
    """Run trials until so many are finished."""
    done = 0
    while not study.finished(total) and done != stop_after:
        trial = study.ask(total)
        if trial is None:
            time.sleep(0.1)
            continue
        value = choose(trial)
        study.report(trial.number, 1, value)
        print(trial.number, flush=True)
        time.sleep(seconds)
        study.complete(trial.number, [value], {"folds": 5})
        done += 1


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    with opened(given["where"], Path(given["folder"]), sampler=given.get("sampler", "random")) as joined:
        if "grid" in given:
            joined.enqueue_all(given["grid"])
        run(joined, given["total"], seconds=given.get("seconds", 0.0))
