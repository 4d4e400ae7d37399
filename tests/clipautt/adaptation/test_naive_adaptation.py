"""The naive loop of the benchmark gives what clipautt gives, so the two are compared at the same work."""

from __future__ import annotations

import pytest
import torch

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.source import Source
from clipautt.model.windows import WindowSpec, entropy
from tests.benchmarks.naive_adaptation import NaiveCLIPAUTT, NaiveResult, naive_window_entropies
from tests.support.configs import adapt_config
from tests.support.fakes import fake_clips, fake_source

LENGTH = 6


def naive_of(source: Source, *, length: int = LENGTH) -> NaiveCLIPAUTT:
    texts, count = source.prompts.texts, source.prompts.num_context
    return NaiveCLIPAUTT(source.backbone.model, source.model, texts, num_context=count, window_length=length)


@pytest.mark.parametrize("steps", [0, 4])
def test_the_naive_loop_gives_clipautts_window_and_probabilities(steps: int) -> None:
    source, clips = fake_source(window=WindowSpec(LENGTH)), fake_clips(subjects=2, per_subject=3)
    config = adapt_config(
        objective="entropy",
        protocol="per_video",
        steps=steps,
        learning_rate=0.01,
        learning_rate_unit="absolute",
    )
    loop = naive_of(source)
    found = {p.clip_id: p for result in adapt(source, clips, config).values() for p in result.predictions}
    for clip in clips:
        naive = loop.adapt(clip.features, steps=steps, learning_rate=0.01)
        torch.testing.assert_close(naive.probabilities, found[clip.clip_id].probabilities, atol=1e-5, rtol=0)
        assert float(clip.times[naive.window]) == found[clip.clip_id].window_start_seconds
        assert len(naive.step_seconds) == steps


def test_four_steps_change_the_probabilities_by_more_than_the_tolerance() -> None:
    loop, clip = naive_of(fake_source()), fake_clips(subjects=1, per_subject=1)[0]
    before, after = (loop.adapt(clip.features, steps=steps, learning_rate=0.01) for steps in (0, 4))
    assert before.window == after.window
    assert float((before.probabilities - after.probabilities).abs().max()) > 1e-3


@pytest.mark.parametrize("frames", [4, 6, 20])
def test_the_loop_over_windows_gives_the_entropies_of_the_one_pass(frames: int) -> None:
    source, clip = fake_source(), fake_clips(subjects=1, per_subject=1, num_frames=frames)[0]
    slow = naive_window_entropies(source.model, clip.features, source.au_embeddings, length=LENGTH)
    ((embeddings, _),) = source.model.window_embeddings_of([clip.features], [WindowSpec(LENGTH)])
    assert len(slow) == max(1, frames - LENGTH + 1)
    torch.testing.assert_close(slow, entropy(source.logits(embeddings)), atol=1e-5, rtol=0)


def test_the_seconds_of_a_video_grow_with_its_steps_alone() -> None:
    result = NaiveResult(torch.ones(2) / 2, 0, torch.zeros(1, 1, 1), 0.5, (2.0, 4.0), 1.0)
    assert result.seconds(10) == 31.5
    assert result.seconds(0) == 1.5
