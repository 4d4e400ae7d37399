"""The frozen model as methods see it: windows with their times, logits, class vectors."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clipautt.adaptation import source as source_module
from clipautt.adaptation.predictions import Prediction
from clipautt.adaptation.source import Source, Views
from clipautt.features.clip_features import ClipFeatures
from clipautt.model import network as model_module
from clipautt.model.checkpoint import Checkpoint
from clipautt.model.windows import WindowSpec
from tests.support.fakes import (
    FEATURE_DIM,
    PHRASES,
    fake_backbone,
    fake_checkpoint,
    fake_clip,
    fake_source,
    shared_backbone,
)


def test_another_backbone_is_refused_naming_both() -> None:
    other, mine = fake_backbone(seed=1), shared_backbone()
    message = rf"trained with backbone fake \({mine.fingerprint}\), not with fake \({other.fingerprint}\)"
    with pytest.raises(ValueError, match=message):
        Source(fake_checkpoint(), other)


def test_text_side_is_that_of_the_checkpoint() -> None:
    source = fake_source()
    assert source.prompts.texts == tuple(f"a human face with {phrase}" for phrase in PHRASES)
    assert source.context.shape == (6, 4, 32) and source.classes == ("neutral", "pain")
    torch.testing.assert_close(source.au_embeddings, source.model.au_embeddings(source.text_features))
    assert torch.equal(source.au_embeddings_of(source.context), source.au_embeddings)
    assert not source.au_embeddings.requires_grad


def test_logits_under_source_prompts_equal_the_training_path() -> None:
    source, clip = fake_source(), fake_clip(num_frames=9)
    views = source.views(clip)
    stacked = torch.stack([clip.features[start : start + 6] for start in views.starts])
    expected = source.model(stacked, source.text_features)
    torch.testing.assert_close(source.logits(views.embeddings), expected, atol=1e-5, rtol=1e-5)


def test_window_times_literal() -> None:
    clip = fake_clip(num_frames=20)  # 12.5 frames per second
    views = fake_source(window=WindowSpec(length=6, stride=2, hop=3)).views(clip)
    assert views.starts.tolist() == [0, 6, 8]  # ten used frames: windows begin at used frames 0, 3 and 4
    assert views.start_seconds.tolist() == pytest.approx([0.0, 0.48, 0.64])
    assert views.end_seconds.tolist() == pytest.approx([0.88, 1.36, 1.52])  # last frame 10, 16, 18 and 0.08 s on


def test_window_times_follow_the_clip_s_own_times() -> None:
    clip = replace(fake_clip(num_frames=4), times=np.array([0.5, 0.6, 0.9, 1.0]))
    views = fake_source(window=WindowSpec(length=2)).views(clip)
    assert views.start_seconds.tolist() == pytest.approx([0.5, 0.6, 0.9])
    assert views.end_seconds.tolist() == pytest.approx([0.7, 1.0, 1.1])


@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 7])
def test_short_clips_are_one_window(num_frames: int) -> None:
    views = fake_source().views(fake_clip(num_frames=num_frames))
    assert views.embeddings.shape == (max(1, num_frames - 5), FEATURE_DIM)
    assert torch.isfinite(views.embeddings).all()
    assert views.end_seconds[-1] == pytest.approx((num_frames - 1) / 12.5 + (0.08 if num_frames > 1 else 0))


@pytest.mark.parametrize("stride", [1, 3])
def test_whole_clip_is_one_window_of_all_used_frames(stride: int) -> None:
    source, clip = fake_source(window=WindowSpec(length=4, stride=stride)), fake_clip(num_frames=20)
    views = source.whole_clip(clip)
    assert views.starts.tolist() == [0]
    expected = source.model.video_embedding(clip.features[None, ::stride])
    torch.testing.assert_close(views.embeddings, expected, atol=1e-5, rtol=0)


def assert_same_views(one: Views, other: Views) -> None:
    torch.testing.assert_close(one.embeddings, other.embeddings, atol=1e-5, rtol=0)
    for name in ("starts", "start_seconds", "end_seconds"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


LENGTHS = (20, 1, 6, 33, 2, 20, 7)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("window", [WindowSpec(length=6), WindowSpec(length=4, stride=2, hop=3), WindowSpec(length=50)])
def test_views_of_many_clips_equal_those_of_each(window: WindowSpec, whole: bool) -> None:
    clips = [fake_clip(f"c{i}", num_frames=count) for i, count in enumerate(LENGTHS)]
    found = fake_source(window=window).views_of(clips, whole=whole)
    for clip, views in zip(clips, found, strict=True):
        alone = fake_source(window=window)
        assert_same_views(views, alone.whole_clip(clip) if whole else alone.views(clip))


def test_many_clips_go_in_passes_of_a_bounded_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip that is longer is cut between windows."""
    clips = [fake_clip(f"c{i}", num_frames=count) for i, count in enumerate(LENGTHS)]
    expected = fake_source().views_of(clips)
    monkeypatch.setattr(source_module, "_FRAMES_PER_PASS", 30)
    source, passes = fake_source(), embedded(monkeypatch)
    for views, other in zip(source.views_of(clips), expected, strict=True):
        assert_same_views(views, other)
    assert passes == [[20, 1, 6], [30], [8, 2, 20], [7]]


def test_passes_are_halved_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [fake_clip(f"c{i}", num_frames=count) for i, count in enumerate(LENGTHS)]
    expected = fake_source().views_of(clips)
    monkeypatch.setattr(source_module, "_FRAMES_PER_PASS", 80)
    source, passes = fake_source(), embedded(monkeypatch, most=20)
    for views, other in zip(source.views_of(clips), expected, strict=True):
        assert_same_views(views, other)
    assert [sum(own) for own in passes][:2] == [62, 27] and max(map(sum, passes[2:])) <= 20
    later = len(passes)
    source.views_of([fake_clip("c9", num_frames=50)])
    source.limited_to(frozenset({"views"})).with_window(WindowSpec(3)).views(fake_clip("c8", num_frames=50))
    assert max(map(sum, passes[later:])) <= 20, "what did not fit is not tried again, by no copy"
    with pytest.raises(MemoryError, match=r"memory of cpu is too small for a window of 21 frames of clip 'long'"):
        source.views_of([fake_clip("long", num_frames=41)], window=WindowSpec(length=21))


def embedded(monkeypatch: pytest.MonkeyPatch, *, most: int | None = None) -> list[list[int]]:
    """The frames of each video of each pass from now on; a pass of more than `most` finds no memory."""
    passes: list[list[int]] = []
    stock = model_module.embed_windows

    def counted(videos: Any, *rest: Any, **options: Any) -> Any:
        passes.append([len(own) for own in videos])
        if most is not None and sum(passes[-1]) > most:
            raise torch.OutOfMemoryError("no room")
        return stock(videos, *rest, **options)

    monkeypatch.setattr(model_module, "embed_windows", counted)
    return passes


def test_views_are_computed_once_per_clip_and_window_for_as_long_as_the_clip_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, passes = fake_source(), embedded(monkeypatch)
    one, other = fake_clip("c0", num_frames=8), fake_clip("c1", num_frames=9)
    first = source.views_of([one, other, one])
    assert first[0] is first[2] is source.views(one) and source.views(other) is first[1]
    assert source.with_window(WindowSpec(length=6)).views(one) is first[0], "the same windows"
    assert passes == [[8, 9]]
    source.with_window(WindowSpec(length=3)).views(one)
    source.views(one, window=WindowSpec(length=3))
    source.whole_clip(one)
    assert passes == [[8, 9], [8], [8]]
    twin = replace(one)
    assert_same_views(source.views(twin), first[0])
    assert passes[3:] == [[8]], "another object with the same features is another clip"
    assert len(source._views) == 3
    del one, twin
    gc.collect()
    assert len(source._views) == 1


def test_class_shares_are_those_of_the_checkpoint_s_training() -> None:
    checkpoint = fake_checkpoint()
    assert Source(checkpoint, shared_backbone()).class_shares.tolist() == [0.5, 0.5], "of one that does not know"
    spec = replace(checkpoint.spec, class_shares=(0.75, 0.25))
    assert Source(Checkpoint(checkpoint.model, spec), shared_backbone()).class_shares.tolist() == [0.75, 0.25]


def test_class_text_is_normalized_and_needs_descriptions() -> None:
    source = fake_source()
    vectors = source.class_text()
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    checkpoint = fake_checkpoint()
    without = Checkpoint(checkpoint.model, replace(checkpoint.spec, descriptions=()))
    with pytest.raises(ValueError, match="this checkpoint has no class descriptions, so zero-shot CLIP cannot run"):
        Source(without, shared_backbone()).class_text()


def test_prediction_reads_its_own_probabilities() -> None:
    prediction = Prediction("c", "s", torch.tensor([0.25, 0.75]), 0.0, 1.0)
    assert prediction.label_index == 1 and prediction.status == "ok"
    assert prediction.entropy == pytest.approx(0.5623351446)
    assert Prediction("c", "s", torch.tensor([1.0, 0.0]), 0.0, 1.0).entropy == pytest.approx(0, abs=1e-9)


def test_records_print_shapes_and_no_tensors() -> None:
    clip = ClipFeatures("c1", "s1", torch.zeros(3, 4), np.zeros(3))
    assert repr(clip) == "ClipFeatures('c1', features=(3, 4))"
    assert repr(fake_source().views(fake_clip())) == "Views((15, 16))"
    assert repr(fake_checkpoint()) == "Checkpoint(('neutral', 'pain'), K=6, d=16)"
