"""Serve predictions on this machine: a web page for people, JSON over HTTP for programs.

Uploads are decoded in a worker, kept in a private file until they are answered, and then deleted.
With adapted prompts of `clipautt adapt`, a request may name the subject whose prompts to use. Only programs on this
machine can connect, because there is no authentication; from elsewhere, use an SSH tunnel.

Example:
    clipautt serve
    clipautt serve port=9000 checkpoint=runs/train/hard prompts=runs/adapt/hard/prompts
    curl -F video=@face.mp4 -F subject_id=target-003 http://127.0.0.1:8000/v1/predict
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from omegaconf import DictConfig
from pydantic import Field, PositiveFloat, PositiveInt

from clipautt.backbones.loading import BackboneConfig
from clipautt.predictor import Predictor
from clipautt.settings import settings
from clipautt.video.reader_process import ReadLimits
from ray_jobs.platform.cluster import ClusterConfig, connect, gpu_share, num_cpus, num_gpus
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.predictors import chosen_checkpoint, chosen_personalizations, load_predictor
from ray_jobs.serve.answers import Service
from ray_jobs.serve.ingress import ANSWER_SECONDS, WebReplica
from ray_jobs.serve.uploads import MAX_PIXELS, MAX_SECONDS, MAX_UPLOAD_MB, Limits, Refusal, RefusedError

APPLICATION = "clipautt"
"""Name of the Ray Serve application."""

_READY_SECONDS = 300.0
_CHECK_SECONDS = 10.0
_SILENCE_SECONDS = 120.0
_PREDICTIONS_AT_ONCE = 2
"""Per replica: one decodes while another encodes."""
_WAITING_REQUESTS = 16


@settings
class ServeConfig:
    """What is served, and where."""

    checkpoint: Path | None = None
    """Checkpoint folder; null: the newest below runs."""
    prompts: Path | None = None
    """Folder of adapted prompts, used by subject id; null: the newest below runs."""
    backbone: BackboneConfig | None = None
    """How the checkpoint's backbone is loaded; null: as in training."""
    host: str = "127.0.0.1"
    """Address to listen on; one of this machine's only, because there is no authentication yet."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    replicas: PositiveInt = 1
    """Copies of the model, each on its own core or its share of a GPU."""
    max_upload_mb: PositiveFloat = MAX_UPLOAD_MB
    """Largest file, MB; a larger one is refused while it arrives."""
    max_seconds: PositiveFloat = MAX_SECONDS
    """Longest video, from its first frame to the end of its last, s; a longer one is refused before it is decoded."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest frame, width × height; a larger one is refused before it is decoded."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the work runs."""

    def __post_init__(self) -> None:
        if not _is_loopback(self.host):
            raise ValueError(
                f"host={self.host!r}: should be 127.0.0.1 or localhost; other machines may not connect, because the "
                f"server has no authentication. From elsewhere: ssh -L {self.port}:127.0.0.1:{self.port} this-machine"
            )

    @property
    def limits(self) -> Limits:
        """What an upload may cost."""
        return Limits(int(self.max_upload_mb * 1e6), self.max_seconds, self.max_pixels)

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://{self.host}:{self.port}"


class ModelReplica:
    """The model as a Ray Serve deployment: decodes and encodes in threads, one core."""

    def __init__(self, config: ServeConfig, on_gpu: bool) -> None:
        torch.set_num_threads(1)
        self._service = Service(served_predictor(config, device="cuda" if on_gpu else "cpu"), config.limits)
        self._turn = asyncio.Semaphore(_PREDICTIONS_AT_ONCE)

    async def predict(self, video: bytes, subject: str | None) -> dict[str, Any] | Refusal:
        """See `Service.predict`; a refusal is a value, since what crosses Ray as an exception is logged as a bug."""
        async with self._turn:
            try:
                return await asyncio.to_thread(self._service.predict, video, subject)
            except RefusedError as error:
                return error.refusal

    async def subjects(self) -> list[str]:
        """See `Service.subjects`."""
        return await asyncio.to_thread(self._service.subjects)

    async def facts(self) -> dict[str, Any]:
        """See `Service.facts`."""
        return await asyncio.to_thread(self._service.facts)


def served_predictor(config: ServeConfig, *, device: str = "cpu") -> Predictor:
    """The predictor that is served; raises as `load_predictor` does."""
    limits = ReadLimits(total_seconds=ANSWER_SECONDS, max_pixels=config.max_pixels)
    checkpoint = chosen_checkpoint(config.checkpoint)
    return load_predictor(checkpoint, config.prompts, backbone=config.backbone, limits=limits, device=device)


def start(config: ServeConfig) -> str:
    """Start serving on the connected Ray; returns once requests are answered.

    Returns:
        The URL.

    Raises:
        ValueError: The cluster is too small for the replicas, or runs Ray Serve already.
        ConnectionError: The port is in use, or the server does not start.
    """
    from ray import serve
    from ray.exceptions import RayError

    _refuse_used_port(config)
    status = serve.status()
    if status.proxies or status.applications:
        raise ValueError("this cluster runs Ray Serve already; stop that first, or serve with cluster=local")
    if config.replicas > num_cpus():
        raise ValueError(f"replicas={config.replicas}: expected at most {num_cpus()}, the cores of the cluster")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    listen = {
        "host": "127.0.0.1" if config.host == "localhost" else config.host,
        "port": config.port,
        "request_timeout_s": ANSWER_SECONDS + 60,
    }
    try:
        serve.start(proxy_location="HeadOnly", http_options=listen, logging_config=quiet)
        target = serve.RunTarget(_application(config), APPLICATION, logging_config=quiet)
        serve.run_many([target], wait_for_applications_running=False)
        _await_running()
    except BaseException as error:
        stop()
        if isinstance(error, RayError | RuntimeError | TimeoutError):
            raise ConnectionError(f"the server does not start: {error}") from error
        raise
    return config.url


def stop() -> None:
    """Stop serving; Ray itself stays as it is."""
    from ray import serve

    with contextlib.redirect_stdout(io.StringIO()) as said:
        serve.shutdown()
    for line in said.getvalue().splitlines():
        if "ServeController.graceful_shutdown" not in line:  # Ray reports the controller's intended end as a failure.
            print(line)


@contextlib.contextmanager
def serving(config: ServeConfig) -> Iterator[str]:
    """Ray and the server run inside this block; gives the URL."""
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # Ray's 5 s are short on a busy machine.
    with connect(config.cluster):
        url = start(config)
        try:
            yield url
        finally:
            stop()


def main(cfg: DictConfig) -> int:
    """Run the job, until Ctrl-C or SIGTERM."""
    config = config_of(cfg)
    served_predictor(config)  # A mistake in the settings is reported here, in one line, rather than by a worker.
    with serving(config) as url, contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"serving on {url} — Ctrl-C stops", flush=True)
        _watch(config)
    print("stopped")
    return 0


def config_of(cfg: DictConfig) -> ServeConfig:
    """The settings, with absolute paths, and the newest checkpoint and prompts where none are named."""
    config: ServeConfig = instantiate(cfg)
    prompts = chosen_personalizations(config.prompts)
    return replace(
        config,
        checkpoint=chosen_checkpoint(config.checkpoint).absolute(),
        prompts=prompts.absolute() if prompts else None,
    )


def _application(config: ServeConfig) -> Any:
    from ray import serve

    gpus = gpu_share(config.cluster, actors_per_gpu=math.ceil(config.replicas / max(1, num_gpus())))
    model = serve.deployment(
        name="model",
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        max_ongoing_requests=_PREDICTIONS_AT_ONCE + _WAITING_REQUESTS,
        max_queued_requests=_WAITING_REQUESTS,
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
    )(ModelReplica).bind(config, gpus > 0)
    return serve.deployment(
        name="web",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_WAITING_REQUESTS * 2,
        max_queued_requests=_WAITING_REQUESTS * 4,
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
    )(serve.ingress()(WebReplica)).bind(model, config.limits, config.host)


def _await_running() -> None:
    from ray import serve

    deadline = time.monotonic() + _READY_SECONDS
    while True:
        application = serve.status().applications.get(APPLICATION)
        if application and application.status == "RUNNING":
            return
        if application and application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [found.message for found in application.deployments.values() if found.status != "HEALTHY"]
            raise ConnectionError("the server does not start: " + "\n".join([application.message, *reasons]))
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"the server is not ready after {_READY_SECONDS:g} s; does the cluster have free cores?"
            )
        time.sleep(0.5)


def _watch(config: ServeConfig) -> None:
    """Wait for a signal, and print when the server stops answering or answers again.

    It is asked over HTTP, because calls to a Ray that has died may never return.

    Raises:
        ConnectionError: The server has not answered for `_SILENCE_SECONDS`.
    """
    answered = time.monotonic()
    silent = False
    while True:
        time.sleep(_CHECK_SECONDS)
        if _answers(config):
            if silent:
                print("the server answers again", file=sys.stderr, flush=True)
            answered, silent = time.monotonic(), False
        elif time.monotonic() - answered > _SILENCE_SECONDS:
            raise ConnectionError(f"the server has not answered for {_SILENCE_SECONDS:g} s, so it stops; did Ray die?")
        elif not silent:
            silent = True
            print("the server does not answer", file=sys.stderr, flush=True)


def _answers(config: ServeConfig) -> bool:
    connection = http.client.HTTPConnection(config.host, config.port, timeout=_CHECK_SECONDS)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse()  # Any response will do; all workers may be busy.
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _refuse_used_port(config: ServeConfig) -> None:
    """Refuse a port that is in use, which Ray would share with the other process, or fail on minutes later.

    Raises:
        ConnectionError: The server cannot listen on the port.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConnectionError(
                f"port={config.port}: cannot listen on {config.host} ({reason}); choose another with port=…"
            ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False
