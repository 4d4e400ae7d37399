"""The tower's Jacobian: exact at the source prompts, kept beside the checkpoint, never that of other prompts."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipautt.adaptation import source as source_module
from clipautt.adaptation.linearisation import linear_reader, load_jacobian, save_jacobian, tower_jacobian
from clipautt.adaptation.source import JACOBIAN_FILE, Source
from clipautt.model.checkpoint import Checkpoint
from tests.support.fakes import FEATURE_DIM, PHRASES, TEXT_WIDTH, fake_checkpoint, fake_source, shared_backbone

NUMBERS = 4 * TEXT_WIDTH
"""Of one prompt's context."""


def source_in(folder: Path | None, **options: object) -> Source:
    """A source whose checkpoint lies in this folder."""
    checkpoint = fake_checkpoint(**options)  # type: ignore[arg-type]
    return Source(Checkpoint(checkpoint.model, checkpoint.spec, folder), shared_backbone())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a Jacobian is computed from now on."""
    calls: list[int] = []
    stock = tower_jacobian

    def compute(read: object, context: Tensor) -> Tensor:
        calls.append(1)
        return stock(read, context)  # type: ignore[arg-type]

    monkeypatch.setattr(source_module, "tower_jacobian", compute)
    return calls


def test_jacobian_is_pytorch_s() -> None:
    source = fake_source()
    read, context = source.prompt_reader(), source.context
    found = tower_jacobian(read, context)
    jacobian: Any = torch.autograd.functional.jacobian
    full = jacobian(lambda c: read(c[None])[0], context)  # [K, d, K, M, d_text]
    expected = torch.stack([full[k, :, k].flatten(1) for k in range(len(PHRASES))])
    assert found.shape == (6, FEATURE_DIM, NUMBERS) and expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    others = [full[k, :, j] for k in range(6) for j in range(6) if j != k]
    assert not torch.stack(others).any(), "a prompt's feature depends on its own context alone"


def test_jacobian_literal() -> None:
    """t = (c₀², c₀ · c₁) has the rows (2 c₀, 0) and (c₁, c₀)."""

    def read(context: Tensor) -> Tensor:
        first, second = context[:, :, 0, 0], context[:, :, 0, 1]
        return torch.stack([first.square(), first * second], dim=-1)

    context = torch.tensor([[[3.0, 5.0]], [[2.0, 7.0]]])  # two prompts, one vector of width 2
    assert tower_jacobian(read, context).tolist() == [[[6.0, 0.0], [5.0, 3.0]], [[4.0, 0.0], [7.0, 2.0]]]
    assert not context.requires_grad and context.grad is None


def test_linear_reader_literal() -> None:
    jacobian = torch.tensor([[[6.0, 0.0], [5.0, 3.0]], [[4.0, 0.0], [7.0, 2.0]]])
    context, features = torch.tensor([[[3.0, 5.0]], [[2.0, 7.0]]]), torch.tensor([[9.0, 15.0], [4.0, 14.0]])
    read = linear_reader(jacobian, context, features)
    moved = torch.stack([context, context + torch.tensor([[[1.0, 0.0]], [[0.5, 2.0]]])])
    assert read(moved).tolist() == [[[9.0, 15.0], [4.0, 14.0]], [[15.0, 20.0], [6.0, 21.5]]]
    from_each = linear_reader(jacobian, moved, features.expand(2, -1, -1))  # a point of its own for each problem
    assert from_each(moved).tolist() == [features.tolist()] * 2


def test_the_first_order_model_is_exact_at_the_source_and_its_error_shrinks_quadratically() -> None:
    source = fake_source()
    exact, linear = source.prompt_reader(), source.linearised_tower()
    torch.testing.assert_close(linear(source.context[None])[0], source.text_features, atol=1e-6, rtol=1e-6)
    direction = torch.randn(source.context.shape, generator=torch.Generator().manual_seed(0))
    sizes = (0.004, 0.002, 0.001)
    errors = []
    for size in sizes:
        moved = (source.context + size * direction)[None]
        assert (exact(moved) - source.text_features).abs().max() > 0.1 * size
        errors.append(float((linear(moved) - exact(moved)).norm()))
    ratios = [one / other for one, other in pairwise(errors)]
    assert all(3.5 < ratio < 4.5 for ratio in ratios), ratios


def test_around_another_point_the_value_is_the_tower_s_there() -> None:
    source = fake_source()
    moved = (source.context + 0.05)[None].repeat(3, 1, 1, 1)
    features = source.prompt_reader()(moved)
    torch.testing.assert_close(source.linearised_tower(moved, features)(moved), features, atol=1e-6, rtol=0)


def test_jacobian_is_kept_beside_the_checkpoint_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    first = source_in(tmp_path)
    first.linearised_tower()
    first.linearised_tower()
    assert len(calls) == 1 and [path.name for path in tmp_path.iterdir()] == [JACOBIAN_FILE]
    written = (tmp_path / JACOBIAN_FILE).stat().st_mtime_ns
    again = source_in(tmp_path)
    again.linearised_tower()
    assert torch.equal(again._kept["jacobian"], first._kept["jacobian"])
    assert len(calls) == 1 and (tmp_path / JACOBIAN_FILE).stat().st_mtime_ns == written


def test_copies_with_other_windows_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, source = counted(monkeypatch), fake_source()
    source.linearised_tower()
    source.with_window(replace(source.window, length=3)).linearised_tower()
    assert len(calls) == 1


@pytest.mark.parametrize("what", ["prompts", "damaged", "cut"])
def test_another_file_is_computed_anew_and_replaced(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / JACOBIAN_FILE
    expected = tower_jacobian(source_in(None).prompt_reader(), source_in(None).context)
    other = source_in(tmp_path, phrases=PHRASES[::-1])
    other.linearised_tower()
    assert path.is_file()
    if what == "damaged":
        path.write_bytes(b"no safetensors")
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    calls = counted(monkeypatch)
    mine = source_in(tmp_path)
    mine.linearised_tower()
    torch.testing.assert_close(mine._kept["jacobian"], expected)
    assert len(calls) == 1
    source_in(tmp_path).linearised_tower()
    assert len(calls) == 1, "the file is this one's now"


def test_a_checkpoint_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source_in(None).linearised_tower()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no folder here that nobody can write to")
def test_a_folder_that_cannot_be_written_is_no_obstacle() -> None:
    source = source_in(Path("/proc/self"))
    assert source.linearised_tower()(source.context[None]).shape == (1, 6, FEATURE_DIM)


def test_a_disk_that_is_full_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    source = source_in(tmp_path)
    assert source.linearised_tower()(source.context[None]).shape == (1, 6, FEATURE_DIM)
    assert not list(tmp_path.iterdir()), "nothing is left lying about"


def test_file_round_trip_and_errors(tmp_path: Path) -> None:
    jacobian, path = torch.randn(2, 3, 4), tmp_path / "jacobian.safetensors"
    assert load_jacobian(path, fingerprint="a") is None
    save_jacobian(jacobian.transpose(0, 1), path, fingerprint="a")
    found = load_jacobian(path, fingerprint="a")
    assert found is not None and torch.equal(found, jacobian.transpose(0, 1))
    assert load_jacobian(path, fingerprint="b") is None
    with pytest.raises(OSError, match=r"gone/jacobian\.safetensors cannot be written"):
        save_jacobian(jacobian, tmp_path / "gone" / "jacobian.safetensors", fingerprint="a")
