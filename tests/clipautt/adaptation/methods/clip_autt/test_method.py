"""CLIP-AUTT as a method: what it shows the objective of a clip, what it carries on, and what it can and cannot do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import (
    Approximation,
    BatchedMethod,
    Method,
    PromptMethod,
    Session,
    TuningConfig,
)
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.clip_autt.method import CLIP_AU, PromptState, _tuner
from clipautt.adaptation.methods.clip_autt.tuner import Problem, Tuned, Tuner
from clipautt.model.windows import WindowSpec, entropy
from clipautt.settings import one_line
from tests.support.configs import adapt_config, changed, own
from tests.support.fakes import FEATURE_DIM, fake_clip, fake_clips, fake_source

TUNED = adapt_config(objective="entropy", steps=3, learning_rate=0.1)
SMALL = changed(TUNED, steps=2)
PRIOR = torch.tensor([0.7, 0.3], dtype=torch.float64)


def record_problems(monkeypatch: pytest.MonkeyPatch, tuned: Any = None) -> list[Problem]:
    """The problems that come from now on; each is solved by `tuned(start)`, or by leaving the start as it is."""
    asked: list[Problem] = []

    def tune(self: Tuner, problems: Any, *_: Any) -> list[Tuned]:
        asked.extend(problems)
        starts = [p.start for p in problems]
        values = [tuned(s) if tuned else (self.source.context if s is None else s) for s in starts]
        return [Tuned(value, self.source.au_embeddings, 0) for value in values]

    monkeypatch.setattr(Tuner, "tune", tune)
    return asked


def test_the_lowest_entropy_windows_are_selected() -> None:
    session, clip = Session.open(fake_source(), TUNED), fake_clip()
    views = session.source.views(clip)
    order = entropy(session.source.logits(views.embeddings)).argsort()
    for count in (1, 3, 100):
        method = ClipAUTT("entropy", windows_per_clip=count)
        chosen = method._samples(views, session, method.start(session, None))
        assert torch.equal(torch.cat(chosen), views.embeddings[order[:count]])
        assert all(len(sample) == 1 for sample in chosen)


@pytest.mark.parametrize("protocol", ["per_video", "online", "per_subject"])
@pytest.mark.parametrize("readout", ["whole_clip", "mean_windows", "peak_window"])
def test_what_is_read_out_is_also_what_is_tuned_on(
    readout: Any, protocol: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = record_problems(monkeypatch)
    source, clip = fake_source(), fake_clip()
    adapt(source, [clip], changed(TUNED, protocol=protocol, readout=readout))
    views = source.whole_clip(clip) if readout == "whole_clip" else source.views(clip)
    (problem,) = asked
    assert len(problem.samples) == 1 and torch.equal(problem.samples[0], views.embeddings)


def test_one_window_and_two_classes_entropy_sharpens_and_never_changes_a_decision() -> None:
    """The gradient of the entropy has the sign of the margin: the margin moves away from zero."""
    source, clips = fake_source(), fake_clips(subjects=20, per_subject=2, num_frames=12)
    before = adapt(source, clips, adapt_config(protocol="per_video"))
    config = adapt_config(objective="entropy", protocol="per_video", steps=3, learning_rate=0.02)
    after = adapt(source, clips, config)
    decisions = set()
    for subject, result in before.items():
        for old, new in zip(result.predictions, after[subject].predictions, strict=True):
            assert old.clip_id == new.clip_id and new.label_index == old.label_index
            assert new.probabilities.min() < old.probabilities.min()
            decisions.add(old.label_index)
    assert decisions == {0, 1}


def test_infomax_over_several_clips_changes_decisions() -> None:
    source, clips = fake_source(), fake_clips(subjects=6, per_subject=6, num_frames=12)
    before = adapt(source, clips, adapt_config(protocol="per_subject"))
    after = adapt(source, clips, adapt_config(objective="infomax", protocol="per_subject", steps=8, learning_rate=0.3))
    moved = 0
    for subject in before:
        old = {p.clip_id: p.label_index for p in before[subject].predictions}
        moved += sum(old[p.clip_id] != p.label_index for p in after[subject].predictions)
    assert moved >= 1


def test_prompts_go_on_from_the_last_clip_online_and_from_the_source_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    source, clips = fake_source(), fake_clips(subjects=2, per_subject=3)
    asked = record_problems(monkeypatch, lambda start: (source.context if start is None else start) + 1)
    moved = {"online": [0, 0, 1, 1, 2, 2], "per_video": [0] * 6, "per_subject": [0, 0]}
    for protocol, expected in moved.items():
        asked.clear()
        adapt(source, clips, changed(TUNED, protocol=protocol))  # type: ignore[arg-type]
        starts = [source.context if problem.start is None else problem.start for problem in asked]
        assert [round(float((start - source.context).mean())) for start in starts] == expected, protocol


def test_online_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = record_problems(monkeypatch)
    config = changed(TUNED, protocol="online", memory=5, windows_per_clip=2)
    result = adapt(fake_source(), fake_clips(subjects=1, per_subject=5), config)["s0"]
    assert [len(problem.samples) for problem in asked] == [2, 4, 5, 5, 5]
    assert [sample.shape for sample in result.state.memory] == [(1, FEATURE_DIM)] * 5


def test_online_memory_holds_the_most_recent_windows() -> None:
    source = fake_source()
    config = changed(TUNED, protocol="online", memory=2, steps=1)
    result = adapt(source, fake_clips(subjects=1, per_subject=4), config)["s0"]
    clips = {clip.clip_id: clip for clip in fake_clips(subjects=1, per_subject=4)}
    last = [clips[p.clip_id] for p in result.predictions[-2:]]
    for sample, clip, prediction in zip(result.state.memory, last, result.predictions[-2:], strict=True):
        first = round(prediction.window_start_seconds * 12.5)
        assert torch.equal(sample[0], source.views(clip).embeddings[first])


@pytest.mark.parametrize("readout", ["best_window", "mean_windows", "peak_window", "whole_clip"])
@pytest.mark.parametrize("protocol", ["per_video", "online"])
def test_many_steps_at_once_equal_one_by_one(protocol: Any, readout: Any) -> None:
    """The second ones from different states."""
    config = changed(SMALL, protocol=protocol, readout=readout)
    session, clips = Session.open(fake_source(), config), fake_clips(subjects=3, per_subject=2)
    method, _ = own(config)
    states: Any = [method.start(session, PRIOR)] * 3
    for given in (clips[::2], clips[1::2]):
        outcomes = method.step_many(states, session, given)
        for outcome, begun, clip in zip(outcomes, states, given, strict=True):
            assert isinstance(outcome, tuple)
            output, state = outcome
            one, after = method.step(begun, session, clip)
            assert one.window_start_seconds == output.window_start_seconds
            torch.testing.assert_close(one.logits, output.logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(after.au_embeddings, state.au_embeddings, atol=1e-5, rtol=0)
            assert [len(sample) for sample in after.memory] == [len(sample) for sample in state.memory]
        states = [outcome[1] for outcome in outcomes if isinstance(outcome, tuple)]


@pytest.mark.parametrize("readout", ["best_window", "mean_windows", "peak_window", "whole_clip"])
def test_many_fits_and_predictions_at_once_equal_one_by_one(readout: Any) -> None:
    config = changed(SMALL, protocol="per_subject", readout=readout)
    session, clips = Session.open(fake_source(), config), fake_clips(subjects=3, per_subject=2)
    method, _ = own(config)
    start = method.start(session, PRIOR)
    sets = [clips[:2], clips[2:4], [clips[4]]]
    states = [state for state in method.fit_many([start] * 3, session, sets) if isinstance(state, PromptState)]
    for state, subject in zip(states, sets, strict=True):
        alone = method.fit(start, session, subject)
        torch.testing.assert_close(state.au_embeddings, alone.au_embeddings, atol=1e-5, rtol=0)
        assert not torch.equal(state.au_embeddings, start.au_embeddings)
    given = [clips[0], clips[2], clips[4]]
    for output, state, clip in zip(method.predict_many(states, session, given), states, given, strict=True):
        one = method.predict(state, session, clip)
        assert one.window_start_seconds == output.window_start_seconds
        torch.testing.assert_close(one.logits, output.logits, atol=1e-5, rtol=0)


def test_one_tuner_serves_all_sessions_that_compute_alike() -> None:
    """What was measured and compiled is kept, whatever the windows and the settings."""
    source = fake_source()
    one, other = (Session.open(source, changed(TUNED, window=window)) for window in (None, WindowSpec(10)))
    assert _tuner(one) is _tuner(other) is _tuner(Session.open(source, changed(TUNED, steps=1)))
    assert _tuner(Session.open(source, TUNED, TuningConfig(batch_size=2))).config == TuningConfig(batch_size=2)
    assert _tuner(Session.open(source, changed(TUNED, tune="feature"))) is not _tuner(one), "it may not use the tower"


def test_preparing_measures_the_batch_size_unless_nothing_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Tuner, "measure_batch_size", lambda self, *given: measured.append(given))
    for config in (adapt_config(), TUNED):
        config.method.prepare(Session.open(fake_source(), config))  # type: ignore[attr-defined]
    assert measured == [(TUNED.method, "best_window")]


def test_it_says_what_it_is() -> None:
    method = ClipAUTT("entropy")
    for seam in (Method, BatchedMethod, PromptMethod, Approximation):
        assert isinstance(method, seam)
    assert method.logits_from == "head" and method.fidelity == "exact" and method.deviations
    assert method.needs == {"views", "text_tower"}
    assert ClipAUTT("entropy", tune="feature").needs == ClipAUTT().needs == {"views"}
    assert adapt_config() == CLIP_AU and not CLIP_AU.method.adapts


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "CLIP-AU, best window"),
        ({"readout": "whole_clip"}, "CLIP-AU, whole clip"),
        ({"objective": "entropy", "steps": 0}, "CLIP-AU, best window"),
        ({"objective": "entropy", "protocol": "per_video"}, "CLIP-AUTT entropy, per video"),
        ({"objective": "infomax_kl", "readout": "mean_windows"}, "CLIP-AUTT infomax+KL, per subject, mean of windows"),
        ({"objective": "infomax", "subject_baseline": "median"}, "CLIP-AUTT infomax, per subject, median baseline"),
        (
            {"objective": "entropy", "learning_rate": 0.001, "learning_rate_unit": "absolute"},
            "CLIP-AUTT entropy, per subject, 10 steps of 0.001 absolute",
        ),
        ({"window": WindowSpec(24, hop=2), "steps": 3}, "CLIP-AU, best window, windows of 24, hop 2"),
        (
            {"objective": "infomax_kl", "kl_weight": 1.0, "windows_per_clip": 4, "per_au_context": False},
            "CLIP-AUTT infomax+KL, per subject, shared displacement, KL weight 1, 4 windows per clip",
        ),
        (
            {"objective": "infomax", "readout": "mean_windows", "balance_weight": 2, "windows_per_clip": 4},
            "CLIP-AUTT infomax, per subject, mean of windows, balance weight 2",
        ),
        ({"objective": "infomax", "protocol": "online", "memory": 8}, "CLIP-AUTT infomax, online, memory 8"),
        ({"objective": "entropy", "tune": "feature"}, "CLIP-AUTT entropy, per subject, feature tuning"),
        ({"objective": "entropy", "precision": "bf16"}, "CLIP-AUTT entropy, per subject, bf16"),
        (
            {"objective": "entropy", "tune": "feature", "precision": "bf16"},
            "CLIP-AUTT entropy, per subject, feature tuning",
        ),
        ({"prior": 0.2}, "CLIP-AU, best window, prior 0.2"),
        ({"prior": "estimate", "tune": "feature"}, "CLIP-AU, best window, estimated prior"),
        (
            {"objective": "infomax", "prior": 0.05, "tolerance": 0.001, "max_drift": 0.3, "collapse_share": 1.1},
            "CLIP-AUTT infomax, per subject, prior 0.05, tolerance 0.001, largest drift 0.3, collapse share 1.1",
        ),
        ({"tolerance": 0.001, "max_drift": 0.3, "collapse_share": 1.1, "precision": "bf16"}, "CLIP-AU, best window"),
    ],
)
def test_names_of_rows(options: dict[str, Any], name: str) -> None:
    assert adapt_config(**options).name == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "magic"}, "objective='magic': should be one of none, entropy, infomax, infomax_kl"),
        ({"learning_rate_unit": "rms"}, "learning_rate_unit='rms': should be one of relative, absolute"),
        ({"tune": "prompt"}, "tune='prompt': should be one of context, feature"),
        ({"precision": "fp16"}, "precision='fp16': should be one of fp32, bf16"),
        ({"steps": -1}, "steps=-1: should be greater than or equal to 0"),
        ({"steps": 2.5}, "steps=2.5: should be an integer"),
        ({"per_au_context": 1}, "per_au_context=1: should be true or false"),
        ({"windows_per_clip": 0}, "windows_per_clip=0: should be greater than 0"),
        ({"memory": 0}, "memory=0: should be greater than 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: should be greater than 0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf: should be a finite number"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0: should be greater than or equal to 0"),
        ({"balance_weight": -1.0}, "balance_weight=-1.0: should be greater than or equal to 0"),
        ({"tolerance": -0.1}, "tolerance=-0.1: should be greater than or equal to 0"),
        ({"max_drift": -0.1}, "max_drift=-0.1: should be greater than or equal to 0"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        ClipAUTT(**options)
    assert one_line(error.value, "adapt.method") == f"adapt.method.{message}"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objective": "entropy", "tune": "feature"}, True),
        ({"objective": "entropy", "tune": "context"}, False),
        ({"objective": "entropy", "tune": "context", "precision": "bf16"}, False),
        ({"objective": "none", "tune": "feature"}, False),
        ({"objective": "entropy", "tune": "feature", "steps": 0}, False),
    ],
)
def test_an_approximation_is_what_tunes_otherwise_than_exactly(options: dict[str, Any], expected: bool) -> None:
    method = ClipAUTT(**options, windows_per_clip=3)
    exact = replace(method, tune="context", precision="fp32")
    assert method.exact == (exact if expected else None)


def test_state_prints_its_shape() -> None:
    a = torch.zeros(6, 16)
    assert repr(PromptState(a)) == "PromptState(source)"
    assert repr(PromptState(a, torch.zeros(6, 4, 32))) == "PromptState((6, 4, 32))"
    assert repr(PromptState(a, offset=torch.zeros(6, 16))) == "PromptState((6, 16))"
