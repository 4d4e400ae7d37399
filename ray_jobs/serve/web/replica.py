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

from fastapi import FastAPI
from starlette.websockets import WebSocket

from ray_jobs.serve.model.check import CLIP
from ray_jobs.serve.private import private_folder
from ray_jobs.serve.refusals import Refusal, RefusedError
from ray_jobs.serve.web.access_log import AccessLog, Watch
from ray_jobs.serve.web.annotated_videos import AnnotatedVideos
from ray_jobs.serve.web.app import Parts, make_app
from ray_jobs.serve.web.asgi import ASGI
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.connections import ConnectionConfig
from ray_jobs.serve.web.door import Door, allowed_hosts
from ray_jobs.serve.web.fault_log import open_fault_log
from ray_jobs.serve.web.forms import Forms
from ray_jobs.serve.web.gate import Gate
from ray_jobs.serve.web.jobs import Jobs
from ray_jobs.serve.web.keys import LOCAL, Keys, NoKeys, Who
from ray_jobs.serve.web.live import Live, LiveLimits
from ray_jobs.serve.web.metrics import Metrics
from ray_jobs.serve.web.pipeline import Capacity, ServePipeline
from ray_jobs.serve.web.readiness import Readiness
from ray_jobs.serve.web.server import Listener
from ray_jobs.serve.web.spool import Spool, sweep_dead
from ray_jobs.serve.web.uploads import Upload

_SPOOL_VIDEOS = 40
"""Uploads of the largest size that the spool folder holds."""
_FREE_BYTES = 500_000_000
"""Bytes of the disk that uploads leave free."""
_ANNOTATED_BYTES = 2_000_000_000


@dataclass(frozen=True)
class WebSetup:
    """What the web side needs to know, without the classes of the method, which import PyTorch."""

    application: str
    """Name of the Ray Serve application."""
    host: str
    """Address to listen on."""
    port: int
    """Port to listen on."""
    hosts: tuple[str, ...]
    """Further names of the server."""
    origins: tuple[str, ...]
    """Sites whose pages may ask."""
    public_url: str | None
    """Address by which clients reach the server; None: as a request says."""
    connections: ConnectionConfig
    """Deadlines and TLS."""
    keys: Path | None
    """File of the API keys; None where none are needed."""
    requests_per_minute: int
    """Of each key."""
    folder: Path
    """What outlives the server."""
    spool: Path
    """Where uploads lie until they are answered."""
    access_log: bool
    """Whether requests are noted."""
    max_bytes: int
    """Most bytes of a video."""
    max_videos: int
    """Most videos of a request."""
    live_clients: int
    """Live sessions at once."""
    annotated_seconds: float
    """How long annotated videos are kept."""
    replicas: dict[str, int]
    """Deployment → replicas without which the server is not ready."""
    models: tuple[str, ...]
    """Names of the models, the first of which answers where none is named."""
    capacity: Capacity
    """How many videos are accepted."""
    facts: dict[str, Any]
    """`schemas.Models` but for the models."""


class Web:
    """One replica of the web side; it listens as long as it lives.

    Args:
        decoders: handle of the deployment of `Decoders`.
        encoder: handle of the deployment of `Encoder`.
        setup: everything else.

    Raises:
        ConnectionError: the port is in use.
        ValueError: the certificate, or a name or an origin of the settings, is none; or the folder for uploads is
            another user's.
    """

    def __init__(self, decoders: Any, encoder: Any, setup: WebSetup) -> None:
        self._setup = setup
        open_fault_log(setup.folder / "faults.log")
        self._metrics = Metrics()
        self._pipeline = ServePipeline(decoders, encoder, names=setup.models, capacity=setup.capacity)
        self._readiness = Readiness(self._check, self._replicas, lambda: self._pipeline.answered)
        _private_spool(setup.spool)
        sweep_dead(setup.spool)
        self._spool = Spool(setup.spool / "uploads", max_bytes=_SPOOL_VIDEOS * setup.max_bytes, free_bytes=_FREE_BYTES)
        queue = self._pipeline.queue
        self._metrics.watch_queue(lambda: queue.working, lambda: queue.waiting)
        self._metrics.watch_spool(lambda: self._spool.used)
        self._annotated = AnnotatedVideos(
            self._spool.folder / "annotated", seconds=setup.annotated_seconds, max_bytes=_ANNOTATED_BYTES
        )
        self._gate = Gate(Keys(setup.keys) if setup.keys else NoKeys(), requests_per_minute=setup.requests_per_minute)
        self._jobs = Jobs(setup.folder / "jobs", setup.spool / "jobs", self._pipeline, gone=self._gate.gone)
        self._listener = Listener(
            self._application(),
            host=setup.host,
            port=setup.port,
            config=setup.connections,
            on_refusal=lambda refusal: self._metrics.observe_refusal(refusal.code),
        )
        self._listener.start()

    def _application(self) -> ASGI:
        setup = self._setup
        gate = self._gate
        forms = Forms(self._spool, setup.max_bytes, setup.max_videos)

        async def authenticate(socket: WebSocket, key: str | None) -> Who | Refusal:
            try:
                return gate.admit_key(socket, key, "predict")
            except RefusedError as error:
                return error.refusal

        live = Live(
            self._pipeline,
            authenticate=authenticate,
            lapsed=gate.lapsed,
            limits=LiveLimits(max_clients=setup.live_clients),
            on_clients=self._metrics.set_live_clients,
            on_frame=lambda outcome, seconds: self._metrics.observe_live_frame(
                None if outcome == "dropped" else seconds
            ),
        )
        parts = Parts(
            pipeline=self._pipeline,
            gate=gate,
            forms=forms,
            jobs=self._jobs,
            annotated=self._annotated,
            live=live,
            readiness=self._readiness,
            metrics=self._metrics,
            facts=setup.facts,
            public_url=setup.public_url,
        )
        app = make_app(parts, lifespan=self._running)
        hosts = allowed_hosts(setup.host, setup.hosts)
        door = Door(app, hosts=hosts, origins=setup.origins, max_body_bytes=forms.max_body_bytes())
        return Watch(door, self._metrics, AccessLog(setup.folder / "access.log") if setup.access_log else None)

    @contextlib.asynccontextmanager
    async def _running(self, app: FastAPI) -> AsyncIterator[None]:
        """What runs besides requests, as long as the listener does."""
        tasks = [asyncio.create_task(one) for one in (self._readiness.watch(), self._annotated.sweep())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await self._jobs.close()
            self._spool.close()

    async def _check(self) -> Refusal | None:
        """Predict the bundled clip with every model."""
        upload = Upload(CLIP, CLIP.stat().st_size)
        found = await self._pipeline.predict(upload, Ask(LOCAL, self._setup.models))
        # Without a face that its detector finds, the clip still went all the way that a video goes.
        return found if isinstance(found, Refusal) and found.code not in ("no_face", "no_label") else None

    async def _replicas(self) -> Mapping[str, tuple[int, int]]:
        """Deployment → replicas that run, and those that are wanted."""
        from ray import serve

        status = await asyncio.to_thread(serve.status)
        found = status.applications[self._setup.application].deployments
        counts = {}
        for name, one in found.items():
            states: Mapping[Any, int] = one.replica_states  # its keys are texts
            wanted = self._setup.replicas[name]  # further ones come and go with the queue
            counts[name] = states.get("RUNNING", 0), wanted
        self._metrics.set_ready({name: running for name, (running, _) in counts.items()})
        return counts

    def check_health(self) -> None:
        """Called by Ray Serve: a replica whose listener has ended is replaced."""
        if not self._listener.alive:
            raise RuntimeError("the listener has ended")

    def __del__(self) -> None:
        """Called by Ray Serve when the replica is to end."""
        if hasattr(self, "_listener"):
            self._listener.stop()


def _private_spool(folder: Path) -> None:
    """Make the folder for uploads.

    Raises:
        ValueError: it is not this user's.
    """
    try:
        private_folder(folder)
    except OSError as error:
        raise ValueError(
            f"uploads cannot be kept in {folder}: {error.strerror}; remove it, or set TMPDIR to a folder of your own"
        ) from error
