"""All windows in one pass must be what each window would be alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from clipautt.model.windows import (
    WindowSpec,
    clip_starts,
    counted_starts,
    embed_windows,
    entropy,
    why_no_window,
    window_runs,
    window_starts,
)
from clipautt.settings import one_line
from tests.support.fakes import FEATURE_DIM, fake_clip, fake_model


@pytest.mark.parametrize(
    ("num_frames", "length", "hop", "starts"),
    [
        (10, 4, 3, [0, 3, 6]),
        (10, 4, 4, [0, 4, 6]),
        (10, 4, 100, [0, 6]),
        (5, 4, 1, [0, 1]),
        (4, 4, 1, [0]),
        (3, 4, 1, [0]),
        (1, 1, 1, [0]),
        (3, 1, 2, [0, 2]),
        (17, 16, 5, [0, 1]),
    ],
)
def test_starts(num_frames: int, length: int, hop: int, starts: list[int]) -> None:
    assert window_starts(num_frames, WindowSpec(length=length, hop=hop)) == starts


@pytest.mark.parametrize("length", [1, 2, 6, 16])
@pytest.mark.parametrize("hop", [1, 3, 7])
def test_last_frames_are_never_dropped_and_windows_never_wrap(length: int, hop: int) -> None:
    for num_frames in range(1, 60):
        starts = window_starts(num_frames, WindowSpec(length=length, hop=hop))
        ends = [start + min(length, num_frames) for start in starts]
        assert starts[0] == 0 and ends[-1] == num_frames and max(ends) == num_frames
        assert starts == sorted(set(starts))
        if hop <= length:
            assert set().union(*(range(s, e) for s, e in zip(starts, ends, strict=True))) == set(range(num_frames))


@pytest.mark.parametrize("length", [1, 2, 3, 16])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 15, 16, 17, 48, 200])
@pytest.mark.parametrize(("hop", "stride"), [(1, 1), (4, 1), (3, 2)])
def test_one_pass_equals_window_by_window(num_frames: int, length: int, hop: int, stride: int) -> None:
    model, spec = fake_model(), WindowSpec(length=length, stride=stride, hop=hop)
    frames = 3 * torch.randn(num_frames, FEATURE_DIM, generator=torch.Generator().manual_seed(num_frames))
    together, starts = model.window_embeddings(frames, spec)
    used = frames[::stride]
    alone = torch.cat([model.video_embedding(used[None, start : start + length]) for start in starts])
    assert together.shape == (len(window_starts(len(used), spec)), FEATURE_DIM)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("trainable", [True, False])
def test_videos_of_different_length_in_one_pass_are_as_if_alone(trainable: bool) -> None:
    """Also with windows of different length, one of a single frame, and with huge neighbours."""
    model = fake_model().requires_grad_(trainable)
    lengths, counts = [4, 1, 6, 2, 9], [17, 5, 6, 2, 40]
    noise = torch.Generator().manual_seed(3)
    videos = [10.0**i * torch.randn(count, FEATURE_DIM, generator=noise) for i, count in enumerate(counts)]
    specs = [WindowSpec(length, stride=1 + i % 2) for i, length in enumerate(lengths)]
    with torch.set_grad_enabled(trainable):
        together = model.window_embeddings_of(videos, specs)
        for video, spec, (embeddings, starts) in zip(videos, specs, together, strict=True):
            used = video[:: spec.stride]
            assert starts == window_starts(len(used), spec)
            alone = torch.cat([model.video_embedding(used[None, start : start + spec.length]) for start in starts])
            torch.testing.assert_close(embeddings, alone, atol=1e-5, rtol=0)


def test_runs_of_windows_literal() -> None:
    assert list(window_runs([0, 1, 2, 3, 4], 3, 5)) == [slice(0, 3), slice(3, 5)]
    assert list(window_runs([0, 4, 8], 6, 5)) == [slice(0, 1), slice(1, 2), slice(2, 3)], "a window stays whole"
    assert list(window_runs([0], 4, 100)) == [slice(0, 1)]


@pytest.mark.parametrize("odd", [1e16, float("inf"), float("nan")])
def test_nothing_of_a_video_reaches_its_neighbours_in_a_pass(odd: float) -> None:
    model = fake_model().requires_grad_(False)
    videos = [torch.randn(12, FEATURE_DIM, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    specs = [WindowSpec(length=4)] * 3
    alone = [model.window_embeddings(video, spec)[0] for video, spec in zip(videos, specs, strict=True)]
    videos[1][::11] = odd  # its first and its last frame
    together = [embeddings for embeddings, _ in model.window_embeddings_of(videos, specs)]
    assert torch.equal(together[0], alone[0]) and torch.equal(together[2], alone[2])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_one_pass_has_the_gradients_of_window_by_window(length: int) -> None:
    model = fake_model().requires_grad_(True)
    frames = torch.randn(11, FEATURE_DIM, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(11 - length + 1, FEATURE_DIM, generator=torch.Generator().manual_seed(2))
    wanted = [frames, model.temporal.weight, model.temporal.bias]
    together, starts = model.window_embeddings(frames, WindowSpec(length=length))
    alone = torch.cat([model.video_embedding(frames[None, start : start + length]) for start in starts])
    for one, other in zip(
        torch.autograd.grad((together * weights).sum(), wanted),
        torch.autograd.grad((alone * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_long_video_keeps_its_digits() -> None:
    """Running sums over 20,000 frames with a large mean: single precision alone would be off by more than 1e-5."""
    model = fake_model()
    frames = 5 + torch.randn(20_000, FEATURE_DIM, generator=torch.Generator().manual_seed(0))
    late = model.window_embeddings(frames, WindowSpec(length=16))[0][-1]
    torch.testing.assert_close(late, model.video_embedding(frames[None, -16:])[0], atol=1e-5, rtol=0)


def test_embeddings_are_unit_vectors() -> None:
    model = fake_model()
    (vectors,) = embed_windows(
        [torch.randn(9, FEATURE_DIM)], model.temporal.weight, model.temporal.bias, lengths=[4], starts=[[0, 5]]
    )
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_entropy_literal() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [1000.0, 0.0]])
    expected = [math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0.0]
    assert entropy(logits).tolist() == pytest.approx(expected, abs=1e-6)
    assert entropy(torch.zeros(3, 2, 5)).shape == (3, 2)


@pytest.mark.parametrize("name", ["length", "stride", "hop"])
def test_specification_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WindowSpec(**{name: 0})
    assert one_line(caught.value, "window") == f"window.{name}=0: should be greater than 0"


@pytest.mark.parametrize(
    ("found", "length", "hop", "share", "starts"),
    [
        ("11110011", 4, 1, 0.75, [0, 1]),
        ("11110011", 4, 1, 0.5, [0, 1, 2, 3, 4]),
        ("11110011", 4, 3, 0.75, [0]),
        ("00111111", 4, 2, 1.0, [2, 4]),
        ("01111", 5, 1, 0.8, [0]),  # 4 of 5 are 80 %
        ("0111", 6, 1, 0.75, [0]),  # a short clip is one window
        ("0011", 6, 1, 0.75, []),
        ("000", 2, 1, 0.8, []),
        ("000", 2, 1, 0.0, [0, 1]),
    ],
)
def test_a_window_counts_where_enough_of_its_frames_show_the_face(
    found: str, length: int, hop: int, share: float, starts: list[int]
) -> None:
    shown, spec = np.array([one == "1" for one in found]), WindowSpec(length=length, hop=hop)
    assert counted_starts(shown, spec, share) == starts
    assert (why_no_window(shown, spec, share) is None) == bool(starts)


def test_why_no_window_counts() -> None:
    found = np.arange(60) < 12
    assert why_no_window(found, WindowSpec(length=16), 0.8) == (
        "the face is found in 12 of 60 frames, and no window of 16 frames shows it in 80 % of them (faces.min_share)"
    )
    assert why_no_window(None, WindowSpec(), 0.8) is None


def test_windows_of_strided_frames_are_judged_by_these() -> None:
    """Every second frame shows the face, from the first one on."""
    clip = replace(fake_clip(num_frames=12), face_found=np.arange(12) % 2 == 0, min_share=0.8)
    spec = WindowSpec(length=3, stride=2)
    assert clip_starts(clip, spec) == [0, 1, 2, 3] and clip_starts(clip, spec, offset=1) == []
    assert clip_starts(replace(clip, face_found=None), spec, offset=1) == [0, 1, 2, 3]
