"""Memory of the computing device: how much is free, how much a computation saves, which errors mean too little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_SHARE_OF_FREE, _SHARE_OF_FREE_GPU = 0.5, 0.8
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that may be used: 80% of the free memory of a GPU; else half of what is available to this process."""
    if device.type == "cuda":
        return int(_SHARE_OF_FREE_GPU * torch.cuda.mem_get_info(device)[0])
    return int(_SHARE_OF_FREE * min(_machine_bytes(), _cgroup_bytes()))


def _machine_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return 4 * 2**30
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _cgroup_bytes() -> float:
    """Bytes left below the container's limit; infinite without one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        return float("inf") if limit == "max" else max(0, int(limit) - used)
    except (OSError, ValueError):
        return float("inf")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; PyTorch raises a plain RuntimeError for that on CPUs."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def saved_bytes(compute: Callable[[], Tensor]) -> int:
    """Bytes that a computation saves for its backward pass, including inputs such as weights.

    Nothing is kept: a saved result that refers to itself through its own backward step would never be freed.
    """
    seen: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor.detach())  # An address must not be used again while others are counted.

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        result = compute()
    del result
    alive.clear()
    return sum(seen.values())
