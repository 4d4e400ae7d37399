"""TDA: what enters its caches, what they do to the logits, and what is kept between clips and in a file."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.methods.tda import TDA, Cache, TDAState
from clipautt.adaptation.methods.zero_shot import ZeroShot, clip_vector
from tests.support.fakes import fake_clip, fake_source


def session(method: TDA | None = None, **shared: Any) -> Session:
    return Session.open(fake_source(), AdaptConfig(method or TDA(), **{"protocol": "online", **shared}))


def empty() -> Cache:
    return Cache(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, 2))


CLIPS = [fake_clip(f"c{i}", "s0", positive=i % 2 == 1, seed=i) for i in range(6)]


def test_a_full_class_keeps_its_most_certain_samples() -> None:
    cache = empty()
    for number, share in enumerate((0.6, 0.9, 0.7, 0.8)):
        probabilities = torch.tensor([1 - share, share])
        cache = cache.with_sample(torch.tensor([float(number), 1.0]), probabilities, torch.ones(2), 2)
    assert cache.vectors[:, 0].tolist() == [1.0, 3.0]  # of 0.9 and 0.8; 0.6 and 0.7 had to go
    assert cache.classes.tolist() == [1, 1]
    other = cache.with_sample(torch.zeros(2), torch.tensor([0.6, 0.4]), torch.ones(2), 2)
    assert other.classes.tolist() == [1, 1, 0], "another class has room of its own"


def test_affinity_is_the_published_sum() -> None:
    cache = replace(
        empty(),
        vectors=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        classes=torch.tensor([0, 1]),
        entropies=torch.zeros(2),
        masks=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    )
    expected = torch.tensor([math.exp(-5 * (1 - 0.6)), math.exp(-5 * (1 - 0.8))])
    torch.testing.assert_close(cache.affinity(torch.tensor([0.6, 0.8]), 5.0), expected)


def test_a_clip_retrieves_itself_where_it_enters_before_it_is_predicted() -> None:
    opened, clip = session(TDA(negative_capacity=0)), CLIPS[0]
    start = opened.config.method.start(opened, None)
    plain = opened.config.method.predict(start, opened, clip).logits
    output, after = opened.config.method.step(start, opened, clip)
    label = int(plain.argmax())
    expected = plain.clone()
    expected[label] += 2.0  # α · exp(−β (1 − 1))
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(after.positive.vectors, clip_vector(clip)[None])
    late = session(TDA(negative_capacity=0, update="after"))
    output, _ = late.config.method.step(start, late, clip)
    torch.testing.assert_close(output.logits, plain)


def test_without_strength_it_is_zero_shot() -> None:
    source = fake_source()
    idle = AdaptConfig(TDA(alpha=0.0, negative_alpha=0.0), protocol="online")
    assert not idle.method.adapts
    found = adapt(source, CLIPS, idle)["s0"].predictions
    expected = adapt(source, CLIPS, AdaptConfig(ZeroShot(), protocol="online"))["s0"].predictions
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.probabilities, other.probabilities)


@pytest.mark.parametrize("on", ["frames", "windows"])
def test_with_two_classes_the_negative_cache_changes_no_probability(on: Any) -> None:
    source = fake_source()
    both, positive = (
        adapt(source, CLIPS, AdaptConfig(TDA(on=on, negative_capacity=capacity), protocol="online"))["s0"].predictions
        for capacity in (2, 0)
    )
    for one, other in zip(both, positive, strict=True):
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-6, rtol=0)


def test_an_uncertain_sample_enters_the_negative_cache_and_lowers_its_classes() -> None:
    opened = session(TDA(on="windows", positive_capacity=0, negative_entropy_low=0.0, negative_entropy_high=1.0))
    method = opened.config.method
    _, after = method.step(method.start(opened, None), opened, CLIPS[0])
    assert len(after.negative.classes) == 1 and len(after.positive.classes) == 0
    before, lowered = (method.predict(state, opened, CLIPS[0]).logits for state in (method.start(opened, None), after))
    assert torch.all(lowered <= before) and torch.any(lowered < before)


def test_what_similar_clips_were_predicted_as_raises_that_class() -> None:
    opened = session(TDA(on="windows"))
    method = opened.config.method
    state = method.start(opened, None)
    for clip in CLIPS[:3]:
        _, state = method.step(state, opened, clip)
    plain = method.predict(method.start(opened, None), opened, CLIPS[3]).logits
    adapted = method.predict(state, opened, CLIPS[3]).logits
    present = set(state.positive.classes.tolist())
    assert all((adapted[label] > plain[label]) == (label in present) for label in range(2))


def test_a_state_in_a_file_is_the_state() -> None:
    opened = session()
    method = opened.config.method
    state = method.fit(method.start(opened, None), opened, CLIPS)
    again = method.restore(method.save(state), opened, None)
    assert isinstance(again, TDAState)
    for name in ("positive", "negative"):
        one, other = getattr(state, name), getattr(again, name)
        assert all(torch.equal(vars(one)[part], vars(other)[part]) for part in vars(one))
    assert repr(state.positive) == f"Cache({len(state.positive.classes)} samples)"


def test_fitting_does_not_depend_on_the_order_of_clips() -> None:
    source, config = fake_source(), AdaptConfig(TDA(on="windows"))
    forwards, backwards = (adapt(source, clips, config)["s0"] for clips in (CLIPS, CLIPS[::-1]))
    assert torch.equal(forwards.state.positive.vectors, backwards.state.positive.vectors)


def test_its_title_names_what_is_not_published() -> None:
    assert AdaptConfig(TDA(), protocol="online").name == "TDA, online"
    assert AdaptConfig(TDA(on="windows", beta=8.0), protocol="per_video").name == "TDA, per video, on windows, beta 8.0"


def test_settings_beyond_their_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        TDA(alpha=-1.0)
    with pytest.raises(ValueError, match="frames"):
        TDA(on="pixels")  # type: ignore[arg-type]
