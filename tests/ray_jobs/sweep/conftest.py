"""A real PostgreSQL server for the tests of sweeps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import PostgresServer, postgres


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """One server for all tests; each takes a database of its own or leaves `sweeps` as it found it."""
    with postgres() as running:
        yield running
