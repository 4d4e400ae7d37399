"""Joining and starting Ray: the checks of the configuration, and one real local Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from clipautt.settings import one_line
from ray_jobs.platform.cluster import ClusterConfig, connect, gpu_share, num_cpus, num_gpus
from ray_jobs.platform.configuration import folder, instantiate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_cpus": 0}, "num_cpus=0: should be greater than 0"),
        (
            {"num_gpus_per_actor": -1.0},
            "num_gpus_per_actor=-1.0: should be greater than or equal to 0",
        ),
        (
            {"num_gpus_per_actor": 1.5},
            "num_gpus_per_actor=1.5: should be 0, a share up to 1, or a whole",
        ),
        ({"object_store_gb": 0.01}, "object_store_gb=0.01: should be greater than or equal to 0.08"),
        ({"log_level": "loud"}, "log_level='loud': should be one of debug, info, warning, error"),
        (
            {"address": "http://head:8265"},
            "address='http://head:8265': should be null, auto, local, host:port or ray://",
        ),
        ({"address": "head"}, "address='head': should be null, auto, local, host:port or ray://host:port"),
    ],
)
def test_a_wrong_setting_is_explained(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ClusterConfig(**settings)  # type: ignore[arg-type]
    assert one_line(caught.value).startswith(message)


@pytest.mark.parametrize("address", [None, "auto", "local", "head:6379", "ray://10.0.0.1:10001", "[::1]:6379"])
def test_addresses(address: str | None) -> None:
    assert ClusterConfig(address=address).address == address


@pytest.fixture
def no_address(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import ray

    assert not ray.is_initialized(), "another test left Ray running"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    yield
    ray.shutdown()


@pytest.mark.usefixtures("no_address")
def test_a_local_ray_lives_as_long_as_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.chdir(tmp_path)  # The workers must find the code from anywhere.
    config = ClusterConfig(num_cpus=2, num_gpus_per_actor=None)
    with connect(config):
        assert num_cpus() == 2
        with connect(ClusterConfig(address="nobody:1")):
            assert ray.is_initialized()
        assert ray.is_initialized(), "an inner block stopped the Ray of the outer one"

        @ray.remote
        def where() -> str:
            import ray_jobs

            return str(ray_jobs.__file__)

        assert ray.get(where.remote(), timeout=60).endswith("ray_jobs/__init__.py")
        assert gpu_share(config, actors_per_gpu=4) == (0.25 if num_gpus() else 0.0)
        if not num_gpus():
            with pytest.raises(ValueError, match=r"num_gpus_per_actor=0\.5: the cluster has no GPU"):
                gpu_share(ClusterConfig(num_gpus_per_actor=0.5))
    assert not ray.is_initialized()


@pytest.mark.slow
def test_starting_ray_and_ray_data_prints_nothing(tmp_path: Path) -> None:
    code = (
        "from ray_jobs.cluster import connect, ray_data\n"
        "with connect():\n"
        "    rows = ray_data().range(20).map_batches(lambda batch: batch, batch_size=10).take_all()\n"
        "print(len(rows))\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "20\n", "")


@pytest.mark.usefixtures("no_address")
@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_cluster_that_does_not_answer_is_named(address: str) -> None:
    with (
        pytest.raises(ConnectionError, match=rf"^no Ray cluster answers at '{address}': start one with `ray start"),
        connect(ClusterConfig(address=address)),
    ):
        pass


@pytest.mark.usefixtures("no_address")
def test_the_address_of_a_dashboard_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(ValueError, match="is a dashboard's address: send jobs there with `clipautt submit`"), connect():
        pass


def test_the_configurations_of_the_project() -> None:
    auto = instantiate(OmegaConf.load(folder() / "cluster" / "auto.yaml"))
    assert auto == ClusterConfig()


def test_ray_notes_no_password_of_the_command() -> None:
    code = (
        "from ray._private.state import jobs; from ray_jobs.platform.cluster import ClusterConfig, connect\n"
        "with connect(ClusterConfig(address='local', num_cpus=1)): print([job['Entrypoint'] for job in jobs()])"
    )
    command = [sys.executable, "-c", code, "storage=postgresql://me:Secret-7@host/sweeps"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert "storage=postgresql://me:***@host/sweeps" in done.stdout and "Secret-7" not in done.stdout
