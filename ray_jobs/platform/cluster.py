"""Ray for the length of a job: joins a cluster or starts one on this machine, quietly, and stops only what it started.

What this module does not know: what a job does with the cluster, and how clusters are made; see `infra/` for those.
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
from collections.abc import Iterator
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from clipautt.settings import settings
from ray_jobs.platform.configuration import checkout

LogLevel = Literal["debug", "info", "warning", "error"]
START_HINT = "start one with `ray start --head`, or leave the address away to run on this machine"

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Ray warns until one of the two is chosen; "0" leaves CUDA_VISIBLE_DEVICES alone where a task asks for no GPU.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ANSWER_SECONDS = 10.0
_NATIVE_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # Of Ray's C++ parts: their "errors" are mostly advice to Ray's developers.
_NOTICES = re.compile(r"Token authentication is|Set ray log level from|Started a local Ray|Connect(ing|ed) to .*Ray")


@settings
class ClusterConfig:
    """Where the work runs."""

    address: str | None = None
    """None: the cluster in `RAY_ADDRESS`, else a new Ray on this machine. `auto`: the cluster that runs on this
    machine. `host:port` or `ray://host:port`: that one. `local`: a new Ray here, whatever `RAY_ADDRESS` says."""
    num_cpus: PositiveInt | None = None
    """Cores that a Ray started here may use; None: all."""
    num_gpus_per_actor: NonNegativeFloat | None = None
    """Share of a GPU per actor; 0.5 packs two on one. None: the job decides, 0 where there are none."""
    object_store_gb: Annotated[float, Field(ge=0.08)] | None = None
    """Memory for the object store of a Ray started here, GB; None: Ray decides."""
    log_level: LogLevel = "warning"
    """How much Ray itself says; from `info` down the workers' own output is shown too."""

    def __post_init__(self) -> None:
        share = self.num_gpus_per_actor
        if share is not None and share > 1 and share != int(share):
            raise ValueError(f"num_gpus_per_actor={share}: should be 0, a share up to 1, or a whole number of GPUs")
        if self.address is not None and not _is_address(self.address):
            raise ValueError(f"address={self.address!r}: should be null, auto, local, host:port or ray://host:port")


@contextlib.contextmanager
def connect(config: ClusterConfig | None = None) -> Iterator[None]:
    """Ray is initialised inside this block.

    A Ray that this process is already connected to is used as it is, so jobs can be chained inside one outer block. A
    Ray started by this block is stopped at its end; a cluster that was joined is left, not stopped.

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
    with _hushed(config.log_level):
        _initialise(ray, config)
    if "ray.data" in sys.modules:
        ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def num_cpus() -> int:
    """Cores of the connected cluster, at least 1."""
    return max(1, int(_resources().get("CPU", 1)))


def num_gpus() -> int:
    """GPUs of the connected cluster."""
    return int(_resources().get("GPU", 0))


def num_nodes() -> int:
    """Nodes of the connected cluster that have a core or a GPU."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(node["Alive"] and bool({"CPU", "GPU"} & node["Resources"].keys()) for node in nodes)


def gpu_share(config: ClusterConfig, *, actors_per_gpu: int = 1) -> float:
    """Share of a GPU to ask for per actor: pass it to Ray as `num_gpus=`.

    Args:
        config: Its `num_gpus_per_actor` decides where it is set.
        actors_per_gpu: How many actors of this kind one GPU holds; used where the configuration leaves it open.

    Returns:
        `1 / actors_per_gpu` on a cluster with GPUs, 0 on one without.

    Raises:
        ValueError: A share is asked for and the cluster has no GPU: the actors would wait for ever.
    """
    share = config.num_gpus_per_actor
    if share is None:
        return 1.0 / actors_per_gpu if num_gpus() else 0.0
    if share > 0 and not num_gpus():
        raise ValueError(f"num_gpus_per_actor={share}: the cluster has no GPU; expected 0 or null")
    return share


def ray_data() -> ModuleType:
    """`ray.data` with its progress bars off and only its errors on the console; our own lines report progress."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    # Retries can be bounded in this way only; the named parameters that are to take its place have none.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if "File" not in type(handler).__name__:  # The log file in Ray's session folder stays complete.
            handler.setLevel(logging.ERROR)
    return ray.data


def _resources() -> dict[str, float]:
    import ray

    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _initialise(ray: ModuleType, config: ClusterConfig) -> None:
    options: dict[str, Any] = {
        "logging_level": config.log_level.upper(),
        "log_to_driver": config.log_level in ("debug", "info"),
    }
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        store = config.object_store_gb
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=config.num_cpus,
            object_store_memory=None if store is None else int(store * 1e9),
            **options,
        )
        return
    try:
        _await_answer(address)
        ray.init(address=address, runtime_env=_joined_environment(), **options)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address!r}: {START_HINT} ({_first_line(error)})") from error


def _await_answer(address: str) -> None:
    """Ray itself waits five minutes for a machine that is not there.

    Raises:
        ValueError: The address is that of a dashboard.
        OSError: Nobody listens at it.
    """
    if address.startswith(("http://", "https://")):
        raise ValueError(f"RAY_ADDRESS={address!r} is a dashboard's: send jobs there with `clipautt submit`")
    if address != "auto" and _is_address(address):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


def _joined_environment() -> dict[str, Any] | None:
    """What the workers of a cluster that already runs need to import this code, from a checkout they can see too."""
    root = checkout()
    if root is None or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # A submitted job brings its code along.
        return None
    return {"env_vars": {"PYTHONPATH": str(root)}}


def _make_importable() -> None:
    """Workers of a Ray started here inherit the environment, so a checkout that is not installed goes into it."""
    root = checkout()
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root is not None and str(root) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *paths])


@contextlib.contextmanager
def _hushed(level: LogLevel) -> Iterator[None]:
    """Keep away the notices that Ray prints at every start, unless asked for; whatever else it says is passed on.

    Ray's C++ parts write to the file descriptor, so that is what is filtered.
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
