"""Ray for the length of a job: joins a cluster or starts Ray on this machine, and stops only what it started.

In: a `ClusterConfig`. Out: a connected Ray inside a `with` block, and what it has: cores, GPUs, nodes. How to set up a
cluster is shown in `infra/`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from clipautt.settings import settings
from ray_jobs.platform.configuration import checkout
from ray_jobs.platform.messages import kept_aside, silence, watched
from ray_jobs.platform.secrets import redacted
from ray_jobs.platform.tokens import mode_for

LogLevel = Literal["debug", "info", "warning", "error"]
START_HINT = "start one with `ray start --head`, or omit the address to run on this machine"

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Ray warns unless this is set; "0" leaves CUDA_VISIBLE_DEVICES as it is for tasks that ask for no GPU.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ANSWER_SECONDS = 10.0
_NATIVE_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # Level of Ray's C++ parts, whose "errors" mostly address Ray's developers.
_NOTICES = re.compile(r"Token authentication is|Set ray log level from|Started a local Ray|Connect(ing|ed) to .*Ray")


@settings
class ClusterConfig:
    """Where the work runs."""

    address: str | None = None
    """Where Ray runs. None: the cluster that `RAY_ADDRESS` names, else a new Ray on this machine. `auto`: the cluster
    running on this machine. `host:port` or `ray://host:port`: the cluster there. `local`: a new Ray on this machine,
    whatever `RAY_ADDRESS` says."""
    num_cpus: PositiveInt | None = None
    """Cores for a Ray started on this machine; None: all."""
    num_gpus_per_actor: NonNegativeFloat | None = None
    """Share of a GPU per actor; 0.5 puts two actors on a GPU. None: the job decides, 0 without GPUs."""
    object_store_gb: Annotated[float, Field(ge=0.08)] | None = None
    """Object-store memory for a Ray started on this machine, GB; None: Ray decides."""
    log_level: LogLevel = "warning"
    """Log level of Ray; `info` and `debug` also show the workers' output."""

    def __post_init__(self) -> None:
        share = self.num_gpus_per_actor
        if share is not None and share > 1 and share != int(share):
            raise ValueError(f"num_gpus_per_actor={share}: should be 0, a share up to 1, or a whole number of GPUs")
        if self.address is not None and not _is_address(self.address):
            raise ValueError(f"address={self.address!r}: should be null, auto, local, host:port or ray://host:port")


@contextlib.contextmanager
def connect(config: ClusterConfig | None = None) -> Iterator[None]:
    """Connect to Ray for the length of this block.

    If this process is already connected, that Ray is used as it is, so jobs can be chained inside one outer block. A
    Ray started by this block is stopped at its end; a cluster that was joined keeps running.

    Args:
        config: Where to connect; the defaults join `RAY_ADDRESS` or start Ray here.

    Raises:
        ConnectionError: The cluster at the address does not answer.
    """
    config = config or ClusterConfig()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    _make_importable()
    with contextlib.ExitStack() as around:
        with _hushed(config.log_level):
            around.enter_context(_connected(ray, config))
        if "ray.data" in sys.modules:
            ray_data()
        if config.log_level not in ("debug", "info"):
            around.enter_context(kept_aside())
        if _address(config) != "local":
            around.enter_context(watched(_described_nodes))
        yield


@dataclass(frozen=True)
class Node:
    """A machine of the connected cluster that has a core or a GPU."""

    node_id: str
    """Ray's id."""
    address: str
    """Its address in the cluster's network."""
    cpus: float
    """Cores that Ray counts there."""
    gpus: float
    """GPUs that Ray counts there."""

    def __str__(self) -> str:
        return f"node {self.address} ({self.node_id[:8]})"


def _described_nodes() -> dict[str, str]:
    """Node id → node and size, for the nodes that can work."""
    return {
        node.node_id: f"{node} with {node.cpus:g} cores" + (f" and {node.gpus:g} GPUs" if node.gpus else "")
        for node in usable_nodes()
    }


def usable_nodes(avoid: Collection[str] = ()) -> list[Node]:
    """The nodes of the connected cluster that are alive, have a core or a GPU and are not to be avoided.

    Args:
        avoid: ids of nodes.
    """
    import ray

    nodes = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        has = node["Resources"]
        if node["Alive"] and {"CPU", "GPU"} & has.keys() and node["NodeID"] not in avoid:
            nodes.append(Node(node["NodeID"], node["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0)))
    return nodes


def avoiding(nodes: Collection[str]) -> dict[str, str] | None:
    """Ray's `label_selector` for tasks and actors that are not to run on these nodes; None if they may run anywhere."""
    return {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"} if nodes else None


def num_cpus(avoid: Collection[str] = ()) -> int:
    """Cores of the connected cluster, at least 1; those of some nodes may be left out."""
    return max(1, int(sum(node.cpus for node in usable_nodes(avoid)) if avoid else _resources().get("CPU", 1)))


def num_gpus(avoid: Collection[str] = ()) -> int:
    """GPUs of the connected cluster; those of some nodes may be left out."""
    return int(sum(node.gpus for node in usable_nodes(avoid)) if avoid else _resources().get("GPU", 0))


def gpu_share(config: ClusterConfig, *, actors_per_gpu: int = 1) -> float:
    """Share of a GPU to ask for per actor: pass it to Ray as `num_gpus=`.

    Args:
        config: Its `num_gpus_per_actor` decides, if set.
        actors_per_gpu: How many actors of this kind fit on one GPU; used if the configuration does not set a share.

    Returns:
        `1 / actors_per_gpu` on a cluster with GPUs, 0 on one without.

    Raises:
        ValueError: A share is asked for and the cluster has no GPU, so the actors would wait forever.
    """
    share = config.num_gpus_per_actor
    if share is None:
        return 1.0 / actors_per_gpu if num_gpus() else 0.0
    if share > 0 and not num_gpus():
        raise ValueError(f"num_gpus_per_actor={share}: the cluster has no GPU; expected 0 or null")
    return share


def ray_data() -> ModuleType:
    """`ray.data` with its progress bars off and its errors in the file of messages; our own lines report progress."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    # Retries can be bounded only this way; the parameters that replace it do not cover them.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    silence(logging.getLogger("ray.data"))
    return ray.data


def _resources() -> dict[str, float]:
    import ray

    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _connected(ray: ModuleType, config: ClusterConfig) -> Iterator[None]:
    """Start or join Ray for the length of this block."""
    options: dict[str, Any] = {
        "logging_level": config.log_level.upper(),
        "log_to_driver": config.log_level in ("debug", "info"),
    }
    address = _address(config)
    with contextlib.ExitStack() as around:
        around.callback(ray.shutdown)
        around.enter_context(_secrets_unnoted())
        if address == "local":
            store = config.object_store_gb
            options |= {"include_dashboard": False, "num_cpus": config.num_cpus}
            ray.init(address="local", object_store_memory=None if store is None else int(store * 1e9), **options)
        else:
            _join(ray, address, options, around)
        yield


@contextlib.contextmanager
def _secrets_unnoted() -> Iterator[None]:
    """Keep passwords out of the command that Ray notes of this process, which its dashboard shows to everybody."""
    from ray._private import utils

    noted = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: redacted(noted())
    try:
        yield
    finally:
        utils.get_entrypoint_name = noted


def _join(ray: ModuleType, address: str, options: dict[str, Any], around: contextlib.ExitStack) -> None:
    """Connect to a cluster; what has to stay until the connection ends is entered into `around`."""
    try:
        address = _await_answer(address)
        around.enter_context(mode_for(address))
        ray.init(address=address, runtime_env=_joined_environment(), **options)
    except (OSError, RuntimeError) as error:
        if " token" in str(error):
            raise
        raise ConnectionError(f"no Ray cluster answers at {address!r}: {START_HINT} ({_first_line(error)})") from error


def _address(config: ClusterConfig) -> str:
    return config.address or os.environ.get("RAY_ADDRESS") or "local"


def _await_answer(address: str) -> str:
    """Check that something listens at the address; Ray itself would wait five minutes for a missing machine.

    Returns:
        The address; for `auto`, the one that `ray start` noted on this machine.

    Raises:
        ValueError: The address is that of a dashboard.
        OSError: Nothing listens there, or there is no cluster on this machine.
    """
    if address.startswith(("http://", "https://")):
        raise ValueError(f"RAY_ADDRESS={address!r} is a dashboard's address: send jobs there with `clipautt submit`")
    if address == "auto":
        from ray._private.utils import read_ray_address

        noted = read_ray_address()
        if noted is None:
            raise ConnectionError("no cluster was started on this machine")
        address = noted
    if _is_address(address):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    return address


def _joined_environment() -> dict[str, Any] | None:
    """The runtime environment with which workers of a joined cluster import this code from a shared checkout."""
    root = checkout()
    if root is None or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # A submitted job brings its own code.
        return None
    return {"env_vars": {"PYTHONPATH": str(root)}}


def _make_importable() -> None:
    """Put a checkout that is not installed on PYTHONPATH, which workers of a Ray started here inherit."""
    root = checkout()
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root is not None and str(root) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *paths])


@contextlib.contextmanager
def _hushed(level: LogLevel) -> Iterator[None]:
    """Suppress the notices that Ray prints at every start, unless the log level asks for them; pass on everything else.

    Ray's C++ parts write to the file descriptor, so the descriptor is filtered.
    """
    if level in ("debug", "info"):
        yield
        return
    chosen = _NATIVE_LOG_LEVEL in os.environ
    os.environ.setdefault(_NATIVE_LOG_LEVEL, "fatal")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile(mode="w+", errors="replace") as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            if not chosen:
                del os.environ[_NATIVE_LOG_LEVEL]
            aside.seek(0)
            sys.stderr.writelines(line for line in aside if not _NOTICES.search(line))


def _is_address(address: str) -> bool:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return address in ("auto", "local") or (bool(host) and "/" not in host and port.isdigit())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
