"""Who is told of every fold of every trial: TensorBoard, MLflow, Weights & Biases.

In: names of loggers and the run folder. Out: Ray's own callbacks. What they write themselves goes into the run folder,
unless their variables name another place: Ray Tune's own folders are temporary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Logger = Literal["tensorboard", "mlflow", "wandb"]
_WANDB = {"WANDB_MODE": "mode", "WANDB_ENTITY": "entity", "WANDB_DIR": "dir"}
"""Variables of this process → settings of `wandb.init`, which runs in a process of the cluster."""


def check_loggers(names: Sequence[Logger]) -> None:
    """Refuse loggers whose package is not installed.

    Raises:
        ValueError: naming the package.
    """
    for name in names:
        found = find_spec(name) if name != "tensorboard" else find_spec("tensorboardX")
        if found is None or found.origin is None:  # A folder of this name is no package; wandb makes one.
            package = "tensorboardX" if name == "tensorboard" else name
            raise ValueError(f"loggers={name}: the package is not installed; pip install {package}")


def make_loggers(names: Sequence[Logger], experiment: str, folder: Path) -> list[Any]:
    """Ray's callbacks that log trials.

    Args:
        names: of the loggers.
        experiment: name of the study.
        folder: the run folder; TensorBoard's logs go to `tensorboard/`, those of the others to `mlflow.db` and `wandb/`
            unless MLFLOW_TRACKING_URI and WANDB_DIR say otherwise.
    """
    make = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    return [_told_of_started_ones(make[name](experiment, folder.absolute())) for name in names]


def _tensorboard(_: str, folder: Path) -> Any:
    from ray.tune.logger import TBXLoggerCallback

    callback = TBXLoggerCallback()
    writer = callback._summary_writer_cls
    callback._summary_writer_cls = lambda path, **options: writer(
        str(folder / "tensorboard" / Path(path).name), **options
    )
    return callback


def _mlflow(experiment: str, folder: Path) -> Any:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    return MLflowLoggerCallback(tracking_uri=uri, experiment_name=experiment)


def _wandb(experiment: str, folder: Path) -> Any:
    from ray.air.integrations.wandb import WandbLoggerCallback

    options: dict[str, Any] = {"dir": str(folder), "project": os.environ.get("WANDB_PROJECT", "clipautt")}
    options |= {name: os.environ[variable] for variable, name in _WANDB.items() if variable in os.environ}
    return WandbLoggerCallback(group=experiment, **options)


def _told_of_started_ones(callback: Any) -> Any:
    """Keep a trial whose process never started from a logger: it was not told of its start, and fails at its end."""
    started: set[str] = set()
    on_start, on_error = callback.on_trial_start, callback.on_trial_error

    def start(*args: Any, trial: Any, **more: Any) -> None:
        started.add(trial.trial_id)
        on_start(*args, trial=trial, **more)

    def error(*args: Any, trial: Any, **more: Any) -> None:
        if trial.trial_id in started:
            on_error(*args, trial=trial, **more)

    callback.on_trial_start, callback.on_trial_error = start, error
    return callback
