"""Scores settings on the cluster outside of trials: CLIP-AU, which gains refer to, and the chosen trial.

In: what trials share. Out: UAR per subject, kept with the study so that it is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clipautt.adaptation.method import AdaptConfig
from clipautt.model.training import TrainConfig
from clipautt.selection.report import HeldOut
from ray_jobs.sweep.models import ShelvedModels
from ray_jobs.sweep.results import SweepRun, held_out_record
from ray_jobs.sweep.studies.records import TrialRecord
from ray_jobs.sweep.studies.study import SweepStudy
from ray_jobs.sweep.trainable import reason_of
from ray_jobs.sweep.trial import SweepData, SweepJob, per_subject, reference, score_part


@dataclass(frozen=True, eq=False)
class Reference:
    """UAR of CLIP-AU for every subject, mean over the cohorts."""

    subjects: npt.NDArray[np.float64]
    """Of the subjects of the folds, [S]."""
    held_out: npt.NDArray[np.float64]
    """Of those held out, [number of them]."""


class Scorer:
    """Scores settings on the connected Ray, outside of trials.

    Args:
        job: what trials share.
        data: their features and labels.
        shelf: handle of the `ModelShelf`.
        gpu: share of a GPU per task; 0 without GPUs.
    """

    def __init__(self, job: SweepJob, data: SweepData, shelf: Any, gpu: float) -> None:
        import ray

        self.job, self.shelf = job, shelf
        self.shared = ray.put((job, data))
        self.options = {"num_cpus": 0, "num_gpus": gpu} if gpu else {"num_cpus": 1}

    def scores(
        self, training: TrainConfig, adaptation: AdaptConfig, folds: Sequence[int | None]
    ) -> npt.NDArray[np.float64]:
        """Mean UAR over the cohorts of every subject of these folds, [S]; None stands for the held-out subjects.

        Raises:
            ValueError: if the settings cannot be trained or adapted with, or the processes that do so die.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(_score).options(**self.options)
        tasks = [
            task.remote(self.shared, self.shelf, training, adaptation, repeat, fold)
            for repeat in range(self.job.repeats)
            for fold in folds
        ]
        try:
            parts = ray.get(tasks)
        except RayTaskError as error:
            raise ValueError(reason_of(error.cause or error)) from error
        except RayError as error:  # Ray has tried several times.
            raise ConnectionError(f"the cluster loses the processes that score: {reason_of(error)}") from error
        return per_subject([part.score for part in parts], folds=len(folds))[:, :, 0].mean(-1)

    def reference(self, study: SweepStudy) -> Reference:
        """CLIP-AU's UAR for every subject; computed once per study."""
        division = self.job.division
        noted = study.noted("reference")
        if noted is None:
            folds = [*range(len(division.folds)), *[None] * bool(division.held_out)]
            noted = [round(float(one), 6) for one in self.scores(*reference(self.job.space), folds)]
            study.note("reference", noted)
        values = np.asarray(noted, float)
        return Reference(values[: len(division.subjects)], values[len(division.subjects) :])


def _score(shared: Any, shelf: Any, training: Any, adaptation: Any, repeat: int, fold: int | None) -> Any:
    """A Ray task: one fold of one repeat."""
    import ray

    job, data = shared
    models = ShelvedModels(shelf, holder=str(ray.get_runtime_context().get_task_id()))
    return score_part(
        job, data, models, training=replace(training, seed=training.seed + repeat), adaptation=adaptation, fold=fold
    )


def judge(
    run: SweepRun, scorer: Scorer, study: SweepStudy, best: TrialRecord | None, clip_au: Reference
) -> HeldOut | None:
    """The chosen trial on the held-out subjects; every choice is noted, as each look makes the figure weaker."""
    if best is None or not run.job.division.held_out:
        return None
    noted: dict[str, list[float]] = study.noted("held_out") or {}
    key = str(best.number)
    if key not in noted:
        noted[key] = [round(float(one), 6) for one in scorer.scores(*run.job.space.configs(best.params), [None])]
        study.note("held_out", noted)
    return held_out_record(run, best, np.asarray(noted[key], float), clip_au.held_out, looks=len(noted))
