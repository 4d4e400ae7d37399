"""Serve predictions: a web page for people, JSON over HTTP for programs, live video over a WebSocket.

`clipautt serve` decodes uploads in their own processes, encodes those of several requests together, and deletes them
after the answer. Several models are served together, and share an encoder where they share a backbone. What `clipautt
adapt` learned about subjects is used by their ids; further ones are personalized over HTTP and kept in runs/serve/NAME.
On any address but this machine's own the server asks for API keys, which `serve keys` makes. `serve build` writes the
same application as a Serve YAML for a cluster, which `serve deploy` starts there.

Example:
    clipautt serve
    clipautt serve port=9000 'models={pain: runs/train/pain, stress: runs/train/stress}'
    curl -F video=@face.mp4 http://127.0.0.1:8000/v1/predict
    clipautt serve keys add ward7 scope=personalize
    clipautt serve host=0.0.0.0 tls_certificate=server.pem tls_key=server.key
    clipautt serve build out=serve.yaml host=0.0.0.0 decoders=8 encoders=2
    clipautt serve deploy serve.yaml
"""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import signal
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from clipautt.files import locked
from ray_jobs.platform.cluster import connect, num_cpus
from ray_jobs.platform.configuration import instantiate, resolved
from ray_jobs.platform.footage import warn
from ray_jobs.serve import cluster_command, key_command
from ray_jobs.serve.application import Plan, application, plan
from ray_jobs.serve.cluster_command import last_line
from ray_jobs.serve.model.subjects import SubjectStore
from ray_jobs.serve.served import missing_cores
from ray_jobs.serve.settings import ServeConfig
from ray_jobs.serve.web.server import bind

POSITIONAL = "action words…"
_READY_SECONDS = 300.0
_CHECK_SECONDS = 10.0
_SILENCE_SECONDS = 120.0


def start(made: Plan) -> str:
    """Start serving on the connected Ray; returns once predictions work.

    Args:
        made: what is served, and how.

    Returns:
        The URL.

    Raises:
        ValueError: The cluster is too small, or runs Ray Serve already.
        ConnectionError: The port is in use, or the server does not start.
    """
    from ray import serve
    from ray.exceptions import RayError

    config = made.config
    _refuse_used_port(config)
    if serve.status().applications:
        raise ValueError("this cluster runs Ray Serve already; stop that first, or serve with cluster=local")
    short = missing_cores(config, num_cpus())
    if short:
        raise ValueError(short)
    SubjectStore(Path(made.encoding.subjects), {}).sweep()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    try:
        serve.start(proxy_location="Disabled", logging_config=quiet)
        target = serve.RunTarget(application(made), config.application, route_prefix=None, logging_config=quiet)
        serve.run_many([target], wait_for_applications_running=False)
        _await_ready(config)
    except BaseException as error:
        stop()
        if isinstance(error, RayError | RuntimeError | TimeoutError):
            raise ConnectionError(f"the server does not start: {last_line(str(error))}") from error
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
    made = plan(config)
    for note in made.notes:
        warn(note)
    with _alone(config), connect(config.cluster):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # only now, as Ray sets its own, which aborts
        url = start(made)
        try:
            yield url
        finally:
            stop()


@contextlib.contextmanager
def _alone(config: ServeConfig) -> Iterator[None]:
    """No other `clipautt serve` of this name runs: it would remove what this one is writing.

    Raises:
        ValueError: one runs, or its folder cannot be used.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(config.folder / "server", timeout_seconds=0))
        except TimeoutError as error:
            raise ValueError(f"{config.folder}: its server runs already; stop that, or give this one name=…") from error
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"{config.folder} cannot be written ({reason}); choose another with runs=…") from error
        yield


def main(cfg: DictConfig) -> int:
    """Run the job: serve until Ctrl-C or SIGTERM, or do what `action` says."""
    given = resolved(cfg)
    config: ServeConfig = instantiate(given)
    if config.action == "keys":
        options = config.key_options
        return key_command.run(config.words, config.folder, scope=config.scope, days=config.days, options=options)
    if config.action == "deploy":
        return cluster_command.deploy(config.words)
    if config.action == "build":
        return cluster_command.build(given, config)
    with serving(config) as url, contextlib.suppress(KeyboardInterrupt):
        print(f"serving on {url} — Ctrl-C stops", flush=True)
        _watch(config)
    print("stopped")
    return 0


def _await_ready(config: ServeConfig) -> None:
    from ray import serve

    deadline = time.monotonic() + _READY_SECONDS
    while _status(config, "/readyz") != 200:
        found = serve.status().applications.get(config.application)
        if found and found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ConnectionError(f"the server does not start: {last_line(found.message)}")
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"the server is not ready after {_READY_SECONDS:g} s; does the cluster have free cores?"
            )
        time.sleep(0.2)


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
        if _status(config, "/healthz") is not None:
            if silent:
                print("the server answers again", file=sys.stderr, flush=True)
            answered, silent = time.monotonic(), False
        elif time.monotonic() - answered > _SILENCE_SECONDS:
            raise ConnectionError(f"the server has not answered for {_SILENCE_SECONDS:g} s, so it stops; did Ray die?")
        elif not silent:
            silent = True
            print("the server does not answer", file=sys.stderr, flush=True)


def _status(config: ServeConfig, path: str) -> int | None:
    """The HTTP status that the server answers, None if it does not answer."""
    host, port = _own_address(config.host), config.port
    if config.tls_certificate is None:
        connection = http.client.HTTPConnection(host, port, timeout=_CHECK_SECONDS)
    else:  # The certificate is for the names that clients use, not for this machine's own question.
        unverified = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, port, timeout=_CHECK_SECONDS, context=unverified)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _own_address(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _refuse_used_port(config: ServeConfig) -> None:
    """Refuse a port that is in use, which Ray would share with the other process, or fail on minutes later.

    Raises:
        ConnectionError: The server cannot listen on the port.
    """
    for probe in bind(config.host, config.port):
        probe.close()
