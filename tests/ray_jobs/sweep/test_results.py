"""What `best.yaml` holds: words from which `train` and `adapt` make the trial's own settings again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.t3a import T3A
from clipautt.adaptation.methods.tda import TDA
from clipautt.evaluation.results import Cohort
from clipautt.model.training import TrainConfig
from clipautt.model.windows import WindowSpec
from clipautt.video.augmentation import Augmentation
from ray_jobs.platform.configuration import compose, instantiate, resolved
from ray_jobs.sweep.results import SweepRun, settings_of
from ray_jobs.sweep.space import make_space
from ray_jobs.sweep.studies.records import TrialRecord
from ray_jobs.sweep.table import trial_table
from tests.ray_jobs.sweep.test_search import COHORTS, job

FLIPPED = TrainConfig(
    window=WindowSpec(12, 2), epochs=3, features="augmented", augmentation=Augmentation(flip=0.5), seed=4
)


@pytest.mark.parametrize(
    ("train", "adapt", "name", "values"),
    [
        (TrainConfig(), AdaptConfig(ClipAUTT(objective="infomax")), "method.steps", (5, 0)),
        (FLIPPED, AdaptConfig(ClipAUTT(), subject_baseline="median"), "prior", (0.2, "estimate")),
        (TrainConfig(), AdaptConfig(ClipAUTT(), readout="whole_clip"), "subject_baseline", ("none", "mean")),
        (TrainConfig(), AdaptConfig(T3A(update="after"), protocol="online"), "method.capacity", (20, 0)),
        (
            TrainConfig(),
            AdaptConfig(TDA(positive_capacity=0), protocol="per_video"),
            "method.negative_capacity",
            (1, 0),
        ),
    ],
)
def test_settings_are_those_of_the_trial(
    train: TrainConfig, adapt: AdaptConfig, name: str, values: tuple[Any, ...], tmp_path: Path
) -> None:
    own = {"adapt": {name: {"choices": list(values)}}}
    space = make_space(own, train=train, adapt=adapt)
    given = ["manifest=my data/é.csv", "classes=[no,yes]", "runs=my runs", "store=s", "name=1e3", "seed=2"]
    settings = resolved(compose("sweep", given))
    cohorts, found_shares = (Cohort(0.2, 2),), (0.21,)
    made_job, half = replace(job(), space=space), np.full(4, 0.5)
    run = SweepRun(made_job, tmp_path, settings, cohorts, ("uar",), half, (0.1, 0.2), found_shares, 8)
    facts = {"subjects": [0.5, 0.5, 1.0, 1.0], "uar": 0.75, **dict.fromkeys(("uar_balanced", "uar_20%"), 0.75)}
    record = TrialRecord(0, 0, "ok", "", {f"adapt.{name}": values[1]}, (0.75,), {}, facts, 1.0)
    trials = trial_table([record], space, cohorts=COHORTS, num_subjects=4, reference=run.reference)
    found = settings_of(run, record, trials)
    made = {one: compose(one, found[one]) for one in ("train", "adapt")}
    training, adaptation = space.configs(record.params)
    assert instantiate(made["adapt"].adapt) == adaptation
    assert replace(instantiate(made["train"].train), subject_baseline=adaptation.subject_baseline) == training
    for cfg in made.values():
        assert (cfg.manifest, list(cfg.classes), cfg.runs, cfg.name) == (
            "my data/é.csv", ["no", "yes"], "my runs", "1e3-best",
        )  # fmt: skip
    assert made["adapt"].cohorts == [{"share": 0.2, "draws": 2}] and made["adapt"].seed == 2
    assert made["adapt"].checkpoint == "my runs/train/1e3-best"
