"""Memory: what is free, which errors mean too little, what a computation keeps."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from clipautt import memory
from clipautt.memory import free_bytes, is_out_of_memory, saved_bytes

GIB = 2**30


def container(folder: Path, limit: str, used: str = "0") -> Path:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(used + "\n")
    return folder


@pytest.mark.parametrize(
    ("machine", "limit", "used", "expected"),
    [
        (8 * GIB, "max", "0", 4 * GIB),
        (8 * GIB, str(6 * GIB), str(2 * GIB), 2 * GIB),
        (2 * GIB, str(6 * GIB), str(2 * GIB), GIB),
        (8 * GIB, str(2 * GIB), str(3 * GIB), 0),
        (8 * GIB, "nonsense", "0", 4 * GIB),
    ],
    ids=["no limit", "limit of the container", "machine below the limit", "limit is passed", "unreadable"],
)
def test_half_of_what_the_machine_and_the_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: int, limit: str, used: str, expected: int
) -> None:
    monkeypatch.setattr(memory, "_machine_bytes", lambda: machine)
    monkeypatch.setattr(memory, "_CGROUP", container(tmp_path, limit, used))
    assert free_bytes(torch.device("cpu")) == expected


def test_without_control_groups_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_machine_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "none")
    assert free_bytes(torch.device("cpu")) == 4 * GIB


def test_four_fifths_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    assert free_bytes(torch.device("cuda")) == 8 * GIB


def test_this_machine_has_some_memory() -> None:
    assert 2**24 < free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: …"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), False),
        (ValueError("memory=0; allowed: whole numbers from 1"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_errors_that_mean_too_little_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_an_allocation_that_really_fails_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)


def test_saved_bytes_literal() -> None:
    x = torch.ones(10, 10, requires_grad=True)
    assert saved_bytes(lambda: x * 3.0) == 0
    assert saved_bytes(lambda: x.sin()) == 400  # the input
    assert saved_bytes(lambda: x.exp().sin()) == 400  # exp keeps its result, which sin keeps as its input: once
    assert saved_bytes(lambda: x.sin().sin()) == 800
    assert saved_bytes(lambda: x[:1].sin()) == 400  # a view keeps all of its storage alive
    assert saved_bytes(lambda: x.detach().sin()) == 0


def test_measuring_keeps_nothing() -> None:
    """A result that is saved for its own backward step refers to itself; it has to be freed all the same."""
    results = []

    def compute() -> torch.Tensor:
        result = torch.ones(3, requires_grad=True).exp()
        results.append(weakref.ref(result))
        return result.sum()

    assert saved_bytes(compute) == 12
    assert results[0]() is None
