"""T3A: prototypes in place of the last layer, the supports that are kept, and the state in a file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.methods.t3a import T3A, Supports
from tests.support.fakes import fake_clip, fake_source

CLIPS = [fake_clip(f"c{i}", "s0", positive=i % 2 == 1, seed=i) for i in range(6)]


def session(method: T3A | None = None, **shared: Any) -> Session:
    return Session.open(fake_source(), AdaptConfig(method or T3A(), **{"protocol": "online", **shared}))


def test_prototypes_are_normalized_sums_of_normalized_supports() -> None:
    supports = Supports(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 5.0]]), torch.tensor([0, 0, 1]), torch.zeros(3))
    half = 2**-0.5
    torch.testing.assert_close(supports.prototypes(2), torch.tensor([[half, half], [0.0, 1.0]]))
    assert supports.prototypes(3)[2].tolist() == [0.0, 0.0], "a class without supports"


def test_each_class_keeps_its_most_certain_supports_in_their_order() -> None:
    supports = Supports(
        torch.arange(6.0)[:, None], torch.tensor([0, 0, 0, 1, 1, 0]), torch.tensor([0.3, 0.1, 0.2, 0.6, 0.5, 0.4])
    )
    kept = supports.most_certain(2, 2)
    assert kept.vectors[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_it_starts_from_the_rows_of_the_classifier_without_its_bias() -> None:
    opened = session()
    last = opened.source.model.classifier[-1]
    start = opened.config.method.start(opened, None)
    assert torch.equal(start.vectors, last.weight) and not start.vectors.requires_grad
    output = opened.config.method.predict(start, opened, CLIPS[0])
    (views,) = opened.source.views_of([CLIPS[0]])
    hidden = opened.source.hidden(views.embeddings)
    torch.testing.assert_close(F.linear(hidden, last.weight, last.bias), opened.source.logits(views.embeddings))
    chosen = int(abs(torch.as_tensor(views.start_seconds) - output.window_start_seconds).argmin())
    expected = hidden[chosen] @ start.prototypes(2).T
    torch.testing.assert_close(output.logits, expected)


def test_a_clip_supports_the_class_that_the_source_gives_it() -> None:
    opened = session()
    method = opened.config.method
    start = method.start(opened, None)
    output, after = method.step(start, opened, CLIPS[0])
    assert len(after.classes) == len(start.classes) + 1
    late = session(T3A(update="after"))
    before, _ = late.config.method.step(start, late, CLIPS[0])
    torch.testing.assert_close(before.logits, method.predict(start, opened, CLIPS[0]).logits)
    assert not torch.equal(before.logits, output.logits)


@pytest.mark.parametrize(("capacity", "kept"), [(1, 2), (3, 6), (0, 8)])
def test_capacity_bounds_the_supports_of_a_class(capacity: int, kept: int) -> None:
    opened = session(T3A(capacity=capacity))
    method = opened.config.method
    state = method.fit(method.start(opened, None), opened, CLIPS)
    counts = state.classes.bincount(minlength=2)
    assert len(state.classes) <= kept and (capacity == 0 or int(counts.max()) <= capacity)
    if capacity == 0:
        assert len(state.classes) == 2 + len(CLIPS)


@pytest.mark.parametrize("readout", ["best_window", "mean_windows", "peak_window", "whole_clip"])
def test_every_readout_gives_a_prediction(readout: Any) -> None:
    config = AdaptConfig(T3A(), protocol="online", readout=readout)
    predictions = adapt(fake_source(), CLIPS, config)["s0"].predictions
    assert len(predictions) == len(CLIPS)
    for one in predictions:
        assert one.status == "ok" and float(one.probabilities.sum()) == pytest.approx(1)


def test_a_state_in_a_file_is_the_state() -> None:
    opened = session()
    method = opened.config.method
    state = method.fit(method.start(opened, None), opened, CLIPS)
    again = method.restore(method.save(state), opened, None)
    assert all(torch.equal(vars(state)[name], vars(again)[name]) for name in vars(state))
    assert repr(again) == f"Supports({len(state.classes)} vectors)"


def test_fitting_does_not_depend_on_the_order_of_clips() -> None:
    source, config = fake_source(), AdaptConfig(T3A())
    forwards, backwards = (adapt(source, clips, config)["s0"] for clips in (CLIPS, CLIPS[::-1]))
    assert torch.equal(forwards.state.vectors, backwards.state.vectors)


def test_its_title_names_what_is_not_the_default() -> None:
    assert AdaptConfig(T3A(), protocol="online").name == "T3A, online"
    name = AdaptConfig(T3A(capacity=5), protocol="per_subject", readout="peak_window").name
    assert name == "T3A, per subject, peak window, capacity 5"
