"""Loggers: which are refused, what they are told and where. MLflow and Weights & Biases where they are installed."""

from __future__ import annotations

import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest

from ray_jobs import cli
from ray_jobs.sweep.loggers import check_loggers
from ray_jobs.sweep.trainable import logged
from tests.ray_jobs.sweep.test_job import data, table_of, words

__all__ = ["data"]  # the fixture


def test_names_that_every_logger_takes() -> None:
    facts = {"uar": 0.5, "uar_20%": 0.25, "folds": 2, "agreement": None, "subjects": [0.5, 0.25]}
    assert logged(facts) == {"uar": 0.5, "uar_20_percent": 0.25, "folds": 2}


def test_a_folder_is_not_taken_for_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)  # wandb's own folder, where it has run before
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("wandb") is not None
    with pytest.raises(ValueError, match=r"^loggers=wandb: the package is not installed; pip install wandb$"):
        check_loggers(["tensorboard", "wandb"])


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("logger", ["mlflow", "wandb"])
def test_other_loggers_write_into_the_run_folder(
    logger: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(logger)
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert cli.main(words(data, tmp_path, "trials=4", "name=told", "stop=asha", f"loggers=[{logger}]")) == 0
    folder = tmp_path / "sweep" / "told"
    if logger == "wandb":
        assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 4
        return
    with sqlite3.connect(folder / "mlflow.db") as connection:
        rows = connection.execute("select run_uuid, step, value from metrics where key = 'uar'").fetchall()
        params = connection.execute("select count(*) from params where key = 'values/train.window.length'").fetchone()
    assert len(rows) == table_of(folder)["folds"].sum() and len({row[0] for row in rows}) == 4 and params == (4,)
