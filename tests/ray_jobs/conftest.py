"""One real local Ray for all tests of jobs that can share it: starting one takes seconds, and its workers stay warm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ray_jobs.platform.cluster import ClusterConfig, connect


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[ExitStack]:
    """Holds the shared Ray; closing it stops that Ray, and the next test that asks for `local_ray` starts another."""
    with ExitStack() as running:
        yield running


@pytest.fixture(scope="module")
def local_ray(shared_ray: ExitStack) -> None:
    """A Ray with two cores is connected; jobs inside use it."""
    import ray

    if not ray.is_initialized():
        shared_ray.enter_context(connect(ClusterConfig(address="local", num_cpus=2)))


@pytest.fixture(scope="module")
def no_ray(shared_ray: ExitStack) -> None:
    """This process is connected to no Ray, for tests that start one of their own."""
    shared_ray.close()
