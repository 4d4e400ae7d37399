"""The web side as a deployment of Ray Serve: it listens itself, and asks the other deployments.

In: their handles and a `WebSetup`. Out: a server that answers until the replica ends. Separate from `application`, so
that its process starts without PyTorch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs.serve.model.check import CLIP
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.app import Parts, make_app
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.pipeline import Capacity, ServePipeline
from ray_jobs.serve.web.readiness import Readiness
from ray_jobs.serve.web.uploads import Upload


@dataclass(frozen=True)
class WebSetup:
    """What the web side needs to know, without the classes of the method, which import PyTorch."""

    application: str
    """Name of the Ray Serve application."""
    host: str
    port: int
    models: tuple[str, ...]
    """Names of the models, the first of which answers where none is named."""
    capacity: Capacity
    facts: dict[str, Any]
    """`schemas.Models` but for the models."""


class Web:
    """One replica of the web side."""

    def __init__(self, decoders: Any, encoder: Any, setup: WebSetup) -> None:
        self._setup = setup
        self._pipeline = ServePipeline(decoders, encoder, names=setup.models, capacity=setup.capacity)
        self._readiness = Readiness(self._check, self._replicas)

    async def _check(self) -> Refusal | None:
        """Predict the bundled clip with every model."""
        upload = Upload(CLIP, CLIP.stat().st_size)
        found = await self._pipeline.predict(upload, Ask(Who("local", "predict"), self._setup.models))
        # Without a face that its detector finds, the clip still went all the way that a video goes.
        return found if isinstance(found, Refusal) and found.code not in ("no_face", "no_label") else None

    async def _replicas(self) -> Mapping[str, tuple[int, int]]:
        """Deployment → replicas that run, and those that are wanted."""
        from ray import serve

        status = await asyncio.to_thread(serve.status)
        found = status.applications[self._setup.application].deployments
        return {
            name: (one.replica_states.get("RUNNING", 0), sum(one.replica_states.values()))
            for name, one in found.items()
        }

    def check_health(self) -> None:
        """Called by Ray Serve: a replica whose listener has ended is replaced."""
        if not self._listener.alive:
            raise RuntimeError("the listener has ended")
