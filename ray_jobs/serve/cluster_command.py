"""`clipautt serve build` and `clipautt serve deploy FILE`: the server as a Serve YAML, and that YAML on a cluster.

In: the settings. Out: a file for `serve deploy` of Ray or for a RayService of KubeRay, or a server that a cluster keeps
running.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipautt.commands import word
from clipautt.files import write_text
from ray_jobs.serve.application import plan
from ray_jobs.serve.settings import COMMAND, ServeConfig
from ray_jobs.serve.web.keys import is_loopback

_BUILDER = "ray_jobs.serve.application:build"
_ADDRESS_VARIABLES = ("RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS")
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_START_SECONDS = 300.0
_HEAD = """\
# Made by `clipautt serve build`. Start it on a cluster: `clipautt serve deploy {file}`, or Ray's `serve deploy {file}`.
# Every node needs clipautt, the folders named below, and port {port} where the web side runs.
"""


def build(given: Mapping[str, Any], config: ServeConfig) -> int:
    """Write the YAML; returns 0.

    Args:
        given: the settings as plain containers.
        config: the same.

    Raises:
        FileNotFoundError, ValueError: as `plan`.
    """
    served = plan(config).decoding.served
    out = Path(config.out)
    settings = {name: copy.deepcopy(value) for name, value in given.items() if name not in COMMAND}
    settings |= {"models": {one.name: one.checkpoint for one in served}, "checkpoint": None}
    settings |= {"runs": str(Path(config.runs).absolute()), "prompts": _absolute(config.prompts)}
    settings |= {"tls_certificate": _absolute(config.tls_certificate), "tls_key": _absolute(config.tls_key)}
    settings["cluster"] = {key: settings["cluster"][key] for key in ("_target_", "num_gpus_per_actor")}
    application = {
        "name": config.application,
        "route_prefix": None,
        "import_path": _BUILDER,
        "args": {"settings": settings},
    }
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    content = {"proxy_location": "Disabled", "logging_config": quiet, "applications": [application]}
    head = _HEAD.format(file=word(str(out)), port=config.port)
    write_text(out, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    print(f"written: {out}")
    if is_loopback(config.host):
        print("note: it will answer programs on its own node only; host=0.0.0.0 lets others ask, with an API key")
    print(f"next: clipautt serve deploy {word(str(out))}")
    return 0


def deploy(words: Sequence[str]) -> int:
    """Start what a YAML says on the cluster, and wait until it runs; returns 0.

    A server of the same name is replaced; other applications of the cluster stay.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no Serve YAML.
        ConnectionError: no cluster answers, or the application does not start.
    """
    if len(words) != 1:
        raise ValueError("serve deploy: expected the file of `clipautt serve build`, as in `serve deploy serve.yaml`")
    path = Path(words[0])
    if not path.is_file():
        raise FileNotFoundError(f"serve deploy {path}: no such file; `clipautt serve build out={path}` writes one")
    client = _client()
    content = _content(path)
    names = [one["name"] for one in content["applications"]]
    running = client.get_serve_details()["applications"]
    others = [one["deployed_app_config"] for name, one in running.items() if name not in names]
    content["applications"] += [one for one in others if one]  # Ray stops what it is not told of
    client.deploy_applications(content)
    for name in names:
        _await_running(client, name)
    print(f"{', '.join(names)} runs; `serve status` shows its state, `serve shutdown` stops all of Ray Serve")
    return 0


def _await_running(client: Any, name: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        found = client.get_serve_details()["applications"].get(name, {})
        if found.get("status") == "RUNNING":
            return
        message = last_line(found.get("message") or "")
        if found.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ConnectionError(f"{name} does not start: {message}")
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"{name} is not ready after {_START_SECONDS:g} s; has the cluster free cores for it? ({message})"
            )
        time.sleep(1.0)


def last_line(message: str) -> str:
    """What went wrong, from a message of Ray that ends with a worker's traceback; the whole is in Ray's messages."""
    return next((line.strip() for line in reversed(message.splitlines()) if line.strip()), "Ray says no reason")


def _content(path: Path) -> dict[str, Any]:
    from ray.serve.schema import ServeDeploySchema

    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ServeDeploySchema.model_validate(read).model_dump(exclude_unset=True)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no Serve YAML ({reason}); `clipautt serve build out={path}` writes one") from None


def _client() -> Any:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    named = (os.environ.get(name) for name in _ADDRESS_VARIABLES)
    address = next((one for one in named if one and "://" in one), _DEFAULT_ADDRESS)
    try:
        return ServeSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise ConnectionError(
            f"no Ray dashboard answers at {address}; set RAY_DASHBOARD_ADDRESS=http://HEAD:8265 ({error})"
        ) from error


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
