"""A trial as Ray Tune runs it in a worker process.

In: number and values of a trial, and what all trials share. Out: after every fold its figures as text, and those that
are numbers for the loggers; an error of the trial's code is its last result, so that the process goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray_jobs.sweep.models import ShelvedModels
from ray_jobs.sweep.trial import SweepTrial


def make_trainable() -> Any:
    """A trial as Ray Tune's class of trainables: one step is one fold; a process runs one trial after another."""
    from ray import tune

    class Trial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], **shared: Any) -> None:
            self.job, self.data, shelf = shared["job"], shared["data"], shared["shelf"]
            self.models = ShelvedModels(shelf)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.trial: SweepTrial | None = None
            self.values = new_config["values"]
            return True

        def step(self) -> dict[str, Any]:
            self.models.holder = str(self.trial_id)
            try:
                if self.trial is None:
                    self.trial = SweepTrial(self.values, job=self.job, data=self.data, models=self.models)
                facts = self.trial.advance()
            except Exception as error:
                return {"facts": json.dumps({"failed": reason_of(error)}), "failed": 1, "done": True}
            return {**logged(facts), "facts": json.dumps(facts), "done": facts["folds"] >= self.job.steps}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: an interrupted trial is run again."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing to load."""

    return Trial


def logged(facts: Mapping[str, Any]) -> dict[str, float]:
    """The figures that are numbers, under names that every logger takes: MLflow refuses `uar_20%`."""
    return {name.replace("%", "_percent"): value for name, value in facts.items() if isinstance(value, int | float)}


def reason_of(error: BaseException) -> str:
    """The error of a trial's code in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no reason given"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
