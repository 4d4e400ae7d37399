"""The driver: step 0 is CLIP-AU, nothing leaks, nothing depends on order, nothing is changed in place."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipautt.adaptation.driver import (
    History,
    SubjectResult,
    Unit,
    adapt,
    adapt_units,
    collapse,
    predict_clips,
    visiting_order,
)
from clipautt.adaptation.method import AdaptConfig, BatchedMethod, Fidelity, LogitSource, Method, SavedState, Session
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.clip_autt.method import PromptState
from clipautt.adaptation.methods.clip_autt.tuner import Problem, Tuned, Tuner
from clipautt.adaptation.personalization import Personalization, load_personalization, save_personalization
from clipautt.adaptation.predictions import ClipOutput, DegenerateError, NotFiniteError, Prediction
from clipautt.adaptation.priors import estimate_prior
from clipautt.adaptation.source import Need, Source
from clipautt.backbones.frozen_clip import _fingerprint
from clipautt.features.clip_features import ClipFeatures, subject_centre
from clipautt.model.checkpoint import Checkpoint
from clipautt.model.windows import entropy
from tests.support.configs import ZERO_SHOT, adapt_config, changed, own
from tests.support.fakes import (
    PREPROCESSING,
    fake_backbone,
    fake_checkpoint,
    fake_clip,
    fake_clips,
    fake_source,
    shared_backbone,
)

PROTOCOLS = ("per_video", "online", "per_subject")
TUNED = adapt_config(objective="infomax_kl", steps=2, learning_rate=0.3, windows_per_clip=2)


def clip_au(source: Source, clip: ClipFeatures) -> torch.Tensor:
    """CLIP-AU's prediction: the window of lowest entropy under the source prompts."""
    logits = source.logits(source.views(clip).embeddings)
    return F.softmax(logits[entropy(logits).argmin()], dim=-1)


def by_clip(results: dict[str, SubjectResult]) -> dict[str, Prediction]:
    return {p.clip_id: p for result in results.values() for p in result.predictions}


def assert_close(one: dict[str, SubjectResult], other: dict[str, SubjectResult]) -> None:
    """The same decisions in the same order, and numbers to 1e-5: what batches of other clips may change."""
    assert list(one) == list(other)
    for subject, result in one.items():
        theirs = other[subject]
        for p, q in zip(result.predictions, theirs.predictions, strict=True):
            assert (p.clip_id, p.label_index, p.status) == (q.clip_id, q.label_index, q.status)
            assert p.window_start_seconds == q.window_start_seconds
            torch.testing.assert_close(p.probabilities, q.probabilities, atol=1e-5, rtol=0)
            torch.testing.assert_close(p.similarities, q.similarities, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.state.context, theirs.state.context, atol=1e-5, rtol=0)
        assert torch.equal(result.centre, theirs.centre)


def assert_same(one: dict[str, SubjectResult], other: dict[str, SubjectResult]) -> None:
    """Bit for bit: predictions, their order, states and centres."""
    assert list(one) == list(other)
    for subject, result in one.items():
        theirs = other[subject]
        for p, q in zip(result.predictions, theirs.predictions, strict=True):
            assert p.clip_id == q.clip_id and torch.equal(p.probabilities, q.probabilities)
            assert p.window_start_seconds == q.window_start_seconds and p.status == q.status
        assert torch.equal(result.centre, theirs.centre)
        if result.state.context is not None or theirs.state.context is not None:
            assert torch.equal(result.state.context, theirs.state.context)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("objective", "steps"), [("none", 20), ("entropy", 0), ("infomax", 0), ("infomax_kl", 0)])
def test_step_zero_is_clip_au_bit_for_bit(protocol: Any, objective: Any, steps: int) -> None:
    source, clips = fake_source(), fake_clips()
    config = adapt_config(objective=objective, steps=steps, protocol=protocol, windows_per_clip=3)
    predictions = by_clip(adapt(source, clips, config))
    assert len(predictions) == len(clips)
    for clip in clips:
        assert torch.equal(predictions[clip.clip_id].probabilities, clip_au(source, clip))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts_equal_to_the_source_s_predict_as_clip_au_bit_for_bit(protocol: Any) -> None:
    source, clip = fake_source(), fake_clip()
    state = PromptState(source.au_embeddings_of(source.context), source.context.clone())
    session = Session.open(source, adapt_config(protocol=protocol))
    for output in (ClipAUTT().step(state, session, clip)[0], ClipAUTT().predict(state, session, clip)):
        assert torch.equal(F.softmax(output.logits, dim=-1), clip_au(source, clip))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tuning_does_something(protocol: Any) -> None:
    source, clips = fake_source(), fake_clips()
    predictions = by_clip(adapt(source, clips, changed(TUNED, protocol=protocol)))
    moved = [not torch.equal(predictions[c.clip_id].probabilities, clip_au(source, c)) for c in clips]
    assert all(moved)
    assert all(p.status == "ok" for p in predictions.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_order_of_the_given_clips_changes_nothing(protocol: Any) -> None:
    source, clips = fake_source(subject_baseline="mean"), fake_clips()
    config = changed(TUNED, protocol=protocol, subject_baseline="mean")
    shuffled = [clips[i] for i in np.random.default_rng(1).permutation(len(clips))]
    assert_same(adapt(source, clips, config), adapt(source, shuffled, config))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_interleaved_subjects_are_as_if_alone(protocol: Any) -> None:
    source, config = (
        fake_source(subject_baseline="median"),
        changed(TUNED, protocol=protocol, subject_baseline="median"),
    )
    clips = sorted(fake_clips(subjects=2), key=lambda clip: clip.clip_id[-1])
    assert [clip.subject_id for clip in clips[:4]] == ["s0", "s1", "s0", "s1"]
    together = adapt(source, clips, config)
    alone = {s: adapt(source, [c for c in clips if c.subject_id == s], config)[s] for s in ("s0", "s1")}
    assert_close(together, alone)


def test_per_video_uses_the_video_alone() -> None:
    source = fake_source(subject_baseline="median")
    config = changed(TUNED, protocol="per_video", subject_baseline="median")
    clips = fake_clips(subjects=1)
    together = by_clip(adapt(source, clips, config))
    for clip in clips:
        alone = adapt(source, [clip], config)["s0"]
        expected = together[clip.clip_id].probabilities
        torch.testing.assert_close(alone.predictions[0].probabilities, expected, atol=1e-5, rtol=0)
        assert torch.equal(alone.centre, subject_centre(clip.features, "median"))


def test_other_protocols_use_the_other_clips() -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    for protocol in ("online", "per_subject"):
        config = changed(TUNED, protocol=protocol)
        together = by_clip(adapt(source, clips, config))
        alone = [adapt(source, [clip], config)["s0"].predictions[0] for clip in clips]
        differing = [not torch.equal(p.probabilities, together[p.clip_id].probabilities) for p in alone]
        assert sum(differing) >= 3, protocol


@dataclass(frozen=True)
class Recorder:
    """Records what the driver hands to a method, and fails where told to; a state is the clips that it has seen."""

    stepped: list[tuple[Any, ClipFeatures]] = field(default_factory=list)
    fitted: list[list[str]] = field(default_factory=list)
    predicted: list[tuple[Any, ClipFeatures]] = field(default_factory=list)
    priors: list[torch.Tensor | None] = field(default_factory=list)
    adapts: bool = True
    fails_at: str = ""
    not_finite_at: str = ""
    fails_to_fit: bool = False
    logits_from: LogitSource = "head"
    needs: ClassVar[frozenset[Need]] = frozenset()
    name: ClassVar[str] = "recorder"
    fidelity: ClassVar[Fidelity] = "exact"
    deviations: ClassVar[str] = ""

    def title(self, config: AdaptConfig) -> tuple[str, ...]:
        return ("recorder",)

    def start(self, session: Session, prior: torch.Tensor | None) -> tuple[str, ...]:
        self.priors.append(prior)
        return ()

    def fit(self, state: Any, session: Session, clips: Sequence[ClipFeatures]) -> Any:
        self.fitted.append([clip.clip_id for clip in clips])
        if self.fails_to_fit:
            raise NotFiniteError("the loss of fit is nan")
        return (*state, *self.fitted[-1])

    def step(self, state: Any, session: Session, clip: ClipFeatures) -> tuple[ClipOutput, Any]:
        self.stepped.append((state, clip))
        if clip.clip_id == self.fails_at:
            raise NotFiniteError(f"the loss of {clip.clip_id} is nan")
        after = (*state, clip.clip_id)
        return self._output(after, clip), after

    def predict(self, state: Any, session: Session, clip: ClipFeatures) -> ClipOutput:
        self.predicted.append((state, clip))
        return self._output(state, clip)

    def _output(self, state: Any, clip: ClipFeatures) -> ClipOutput:
        wrong = state and clip.clip_id == self.not_finite_at
        return ClipOutput(torch.tensor([float("nan") if wrong else len(state), 0.0]), 0.0, 1.0)

    def save(self, state: Any) -> SavedState:
        return SavedState()

    def restore(self, saved: SavedState, session: Session, prior: torch.Tensor | None) -> tuple[str, ...]:
        return ()


def record(clips: Sequence[ClipFeatures], config: AdaptConfig, **options: Any) -> tuple[Recorder, dict[str, Any]]:
    recorder = Recorder(**options)
    assert isinstance(recorder, Method) and not isinstance(recorder, BatchedMethod)
    source = fake_source(subject_baseline=config.subject_baseline)
    return recorder, adapt(source, clips, replace(config, method=recorder))


def test_state_goes_from_clip_to_clip_online_and_starts_anew_per_video_and_subject() -> None:
    clips = fake_clips(subjects=2, per_subject=3)
    online, _ = record(clips, adapt_config(protocol="online"))
    for subject in ("s0", "s1"):  # side by side, and nothing passes from one to the other
        own = [(state, clip.clip_id) for state, clip in online.stepped if clip.subject_id == subject]
        order = [clip_id for _, clip_id in own]
        assert [state for state, _ in own] == [(), tuple(order[:1]), tuple(order[:2])]
    per_video, _ = record(clips, adapt_config(protocol="per_video"))
    assert [state for state, _ in per_video.stepped] == [()] * 6
    assert sorted(clip.clip_id for _, clip in per_video.stepped) == sorted(clip.clip_id for clip in clips)
    assert online.fitted == per_video.fitted == per_video.predicted == []


def test_per_subject_fits_all_clips_once_and_then_predicts_each_without_a_step() -> None:
    clips = fake_clips(subjects=2, per_subject=3)
    recorder, results = record(clips, adapt_config(protocol="per_subject"))
    sets = [["s0c0", "s0c1", "s0c2"], ["s1c0", "s1c1", "s1c2"]]
    assert recorder.fitted == sets and recorder.stepped == []
    with_state = [(state, clip.clip_id) for state, clip in recorder.predicted[:6]]
    assert with_state == [(tuple(own), clip_id) for own in sets for clip_id in own]
    assert {state for state, _ in recorder.predicted[6:]} == {()}, "without adaptation, to notice a collapse"
    assert [result.state for result in results.values()] == [tuple(own) for own in sets]


def test_methods_see_no_label() -> None:
    recorder, _ = record(fake_clips(subjects=1), adapt_config(protocol="online"))
    for _, clip in recorder.stepped:
        assert "label" not in vars(clip) and "split" not in vars(clip)


def test_online_order_follows_the_seed_and_nothing_else() -> None:
    clips = fake_clips(subjects=1, per_subject=10)
    order = {seed: [c.clip_id for c in visiting_order(clips, adapt_config(seed=seed))] for seed in range(5)}
    assert all(sorted(o) == sorted(c.clip_id for c in clips) for o in order.values())
    assert len({tuple(o) for o in order.values()}) == 5
    assert [c.clip_id for c in visiting_order(clips[::-1], adapt_config(seed=3))] == order[3]
    seen, results = record(clips, adapt_config(protocol="online", seed=2))
    assert [clip.clip_id for _, clip in seen.stepped] == [p.clip_id for p in results["s0"].predictions] == order[2]
    more = visiting_order([*clips, fake_clip("new", "s0")], adapt_config(seed=2))
    assert [c.clip_id for c in more if c.clip_id != "new"] == order[2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_seed_matters_online_only(protocol: Any) -> None:
    source, clips = fake_source(), fake_clips(subjects=1, per_subject=6)
    one, other = (by_clip(adapt(source, clips, changed(TUNED, protocol=protocol, seed=s))) for s in (1, 2))
    same = all(torch.equal(one[c].probabilities, other[c].probabilities) for c in one)
    assert same is (protocol != "online")


@pytest.mark.parametrize("baseline", ["mean", "median"])
def test_centre_is_running_online_of_all_frames_per_subject_and_of_the_clip_per_video(baseline: Any) -> None:
    clips = {clip.clip_id: clip for clip in fake_clips(subjects=1)}

    def check(protocol: Any, centre_of: Any) -> None:
        config = adapt_config(protocol=protocol, subject_baseline=baseline)
        recorder, results = record(list(clips.values()), config, adapts=False)
        handed = [clip for _, clip in (*recorder.stepped, *recorder.predicted)]
        seen = [clip.clip_id for clip in handed]
        assert len(seen) == len(clips)
        for number, clip in enumerate(handed):
            frames = torch.cat([clips[name].features for name in centre_of(seen, number)])
            expected = clips[clip.clip_id].features - subject_centre(frames, baseline)
            torch.testing.assert_close(clip.features, expected)
        last = torch.cat([clips[name].features for name in centre_of(seen, len(seen) - 1)])
        torch.testing.assert_close(results["s0"].centre, subject_centre(last, baseline))

    check("online", lambda seen, number: seen[: number + 1])
    check("per_subject", lambda seen, number: sorted(seen))
    check("per_video", lambda seen, number: seen[number : number + 1])


def test_without_a_baseline_features_stay_as_they_are() -> None:
    clips = fake_clips(subjects=1)
    recorder, results = record(clips, adapt_config(protocol="per_subject"), adapts=False)
    assert all(torch.equal(c.features, d.features) for c, (_, d) in zip(clips, recorder.predicted, strict=True))
    assert results["s0"].centre.abs().sum() == 0


def test_clip_given_twice_is_an_error_that_names_it() -> None:
    clips = fake_clips(subjects=2)
    with pytest.raises(ValueError, match="subject 's1' has duplicate clips: s1c2"):
        adapt(fake_source(), [*clips, clips[6]], adapt_config())


@pytest.mark.parametrize(("trained", "asked"), [("none", "median"), ("median", "none"), ("mean", "median")])
def test_another_baseline_than_in_training_is_refused_naming_both(trained: Any, asked: Any) -> None:
    message = rf"adapt\.subject_baseline='{asked}', but the checkpoint was trained with '{trained}'"
    with pytest.raises(ValueError, match=message):
        adapt(fake_source(subject_baseline=trained), fake_clips(), adapt_config(subject_baseline=asked))


def test_zero_shot_runs_with_any_checkpoint() -> None:
    source = fake_source(subject_baseline="median")
    predictions = by_clip(adapt(source, fake_clips(), ZERO_SHOT))
    plain = by_clip(adapt(fake_source(), fake_clips(), ZERO_SHOT))
    assert all(torch.equal(p.probabilities, plain[c].probabilities) for c, p in predictions.items())


def test_step_that_goes_wrong_falls_back_to_the_start_and_resets() -> None:
    clips = fake_clips(subjects=1)
    order = [c.clip_id for c in visiting_order(clips, adapt_config())]
    recorder, results = record(clips, adapt_config(protocol="online"), fails_at=order[1])
    predictions = results["s0"].predictions
    assert [p.status for p in predictions] == ["ok", f"not adapted: the loss of {order[1]} is nan", "ok", "ok"]
    assert [state for state, _ in recorder.stepped] == [(), (order[0],), (), (order[2],)]
    adapted_to = [0.0, None, 0.0, 1.0]
    for p, others in zip(predictions, adapted_to, strict=True):
        logits = torch.tensor([0.0 if others is None else others + 1, 0.0])
        assert torch.equal(p.probabilities, F.softmax(logits, dim=-1))


def test_step_that_goes_wrong_marks_its_clip_alone_per_video() -> None:
    _, results = record(fake_clips(), adapt_config(protocol="per_video"), fails_at="s0c2")
    wrong = {clip_id: p.status for clip_id, p in by_clip(results).items() if p.status != "ok"}
    assert wrong == {"s0c2": "not adapted: the loss of s0c2 is nan"}


def test_fit_that_goes_wrong_marks_all_clips_of_the_subject() -> None:
    recorder, results = record(fake_clips(), adapt_config(protocol="per_subject"), fails_to_fit=True)
    assert {p.status for p in by_clip(results).values()} == {"not adapted: the loss of fit is nan"}
    assert {state for state, _ in recorder.predicted} == {()}
    assert {result.after.fallback for result in results.values()} == {"not adapted: the loss of fit is nan"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prediction_that_is_not_finite_falls_back_and_says_so(protocol: Any) -> None:
    _, results = record(fake_clips(), adapt_config(protocol=protocol), not_finite_at="s0c2")
    predictions = by_clip(results)
    wrong = {clip_id: p.status for clip_id, p in predictions.items() if p.status != "ok"}
    assert wrong == {"s0c2": "not adapted: the probabilities of clip 's0c2' are not finite"}
    assert predictions["s0c2"].probabilities.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("readout", ["best_window", "mean_windows", "peak_window", "whole_clip"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_exploding_prompts_give_clip_au_s_prediction_and_say_so(protocol: Any, readout: Any) -> None:
    source, clips = fake_source(), fake_clips(subjects=1, per_subject=2)
    exploding = adapt_config(
        objective="entropy",
        steps=2,
        learning_rate=1e300,  # more than float32 holds
        learning_rate_unit="absolute",
        protocol=protocol,
        readout=readout,
    )
    result = adapt(source, clips, exploding)["s0"]
    expected = by_clip(adapt(source, clips, adapt_config(protocol=protocol, readout=readout)))
    for prediction in result.predictions:
        assert prediction.status.startswith("not adapted: the ")
        assert torch.equal(prediction.probabilities, expected[prediction.clip_id].probabilities)
    assert result.state.context is None


@pytest.mark.parametrize("options", [{}, {"subject_baseline": "median"}, {"prior": "estimate"}], ids=str)
def test_features_that_are_not_finite_are_an_error_that_names_the_clip(options: dict[str, Any]) -> None:
    source = fake_source(subject_baseline=options.get("subject_baseline", "none"))
    clips = fake_clips(subjects=2)
    clips[2].features[3, 1] = float("nan")
    with pytest.raises(NotFiniteError, match="subject 's0', clip 's0c2': features are not finite"):
        adapt(source, clips, adapt_config(**options))
    clean = [clip for clip in clips if clip.subject_id == "s1"]
    assert all(p.status == "ok" for p in adapt(source, clean, adapt_config(**options))["s1"].predictions)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_in_the_source_or_the_clips_changes(protocol: Any) -> None:
    source, clips = fake_source(subject_baseline="median"), fake_clips()
    tensors = {"context": source.context, "text": source.text_features, "au": source.au_embeddings}
    before = copy.deepcopy(tensors)
    features = [clip.features.clone() for clip in clips]
    checkpoint = source.checkpoint.fingerprint
    first = adapt(source, clips, changed(TUNED, protocol=protocol, subject_baseline="median"))
    assert source.checkpoint.fingerprint == checkpoint
    assert _fingerprint(source.backbone.model, PREPROCESSING, "fp32") == source.backbone.fingerprint
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    assert all(torch.equal(clip.features, kept) for clip, kept in zip(clips, features, strict=True))
    assert_same(first, adapt(source, clips, changed(TUNED, protocol=protocol, subject_baseline="median")))


def test_states_are_values_that_no_later_step_changes() -> None:
    source = fake_source()
    session = Session.open(source, changed(TUNED, protocol="online"))
    method, _ = own(session.config)
    state = method.start(session, None)
    states, copies = [], []
    for clip in fake_clips(subjects=1):
        _, state = method.step(state, session, clip)
        states.append(state)
        copies.append(copy.deepcopy(vars(state)))
    for kept, was in zip(states, copies, strict=True):
        for name, value in was.items():
            torch.testing.assert_close(getattr(kept, name), value, rtol=0, atol=0)
    first, last = states[0].context, states[-1].context
    assert first is not None and last is not None and not torch.equal(first, last)


def test_global_generator_changes_nothing_and_is_not_touched() -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    torch.manual_seed(1)
    one = adapt(source, clips, changed(TUNED, protocol="online"))
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    assert_same(one, adapt(source, clips, changed(TUNED, protocol="online")))


def test_every_clip_gets_one_prediction_and_results_are_ordered() -> None:
    clips = fake_clips(subjects=11, per_subject=1)
    results = adapt(fake_source(), clips[::-1], adapt_config())
    assert list(results) == sorted(clip.subject_id for clip in clips)
    assert sorted(by_clip(results)) == sorted(clip.clip_id for clip in clips)
    assert all(result.seconds > 0 for result in results.values())
    assert adapt(fake_source(), [], adapt_config()) == {}


def one_run(source: Source, clips: Sequence[ClipFeatures], config: AdaptConfig, **options: Any) -> SubjectResult:
    session = Session.open(source, config)
    (result,) = adapt_units(session, [Unit(clips[0].subject_id, tuple(clips))], **options)
    return result


@pytest.mark.parametrize(
    ("decisions", "share", "expected"),
    [
        ([(1, 1)] * 4 + [(1, 0)] * 4, 0.2, "all 8 clips fell into 'pain', 4 of them only with adaptation"),
        ([(0, 0)] * 9 + [(0, 1)], 0.1, "all 10 clips fell into 'neutral', 1 of them only with adaptation"),
        ([(0, 0)] * 9 + [(0, 1)], 0.2, None),  # too few clips were elsewhere
        ([(1, 0)] * 7, 0.2, None),  # too few clips
        ([(1, 0)] * 8 + [(0, 0)], 0.2, None),  # two classes
        ([(1, 1)] * 8, 0.2, None),  # where the source prompts are
        ([(1, 0)] * 8, 1.0, "all 8 clips fell into 'pain', 8 of them only with adaptation"),
        ([(1, 0)] * 8, 1.1, None),  # never
        ([], 0.0, None),
    ],
)
def test_collapse_literal(decisions: list[tuple[int, int]], share: float, expected: str | None) -> None:
    assert collapse(decisions, ("neutral", "pain"), share) == expected


COLLAPSING = adapt_config(objective="entropy", learning_rate=0.1)
"""On the clips of s0, with `fake_source(seed=2)`: entropy over all clips of a subject puts them into one class."""


def test_collapsed_subject_gets_the_source_prompts_and_says_so() -> None:
    source, clips = fake_source(seed=2), fake_clips(subjects=2, per_subject=12)
    results = adapt(source, clips, COLLAPSING)
    plain = by_clip(adapt(source, clips, adapt_config()))
    left = adapt(source, clips, changed(COLLAPSING, collapse_share=1.1))
    assert {p.label_index for p in left["s0"].predictions} == {0}
    others = sum(plain[p.clip_id].label_index for p in left["s0"].predictions)
    status = f"not adapted: all 12 clips fell into 'neutral', {others} of them only with adaptation"
    assert others >= 3 and {p.status for p in results["s0"].predictions} == {status}
    for prediction in results["s0"].predictions:
        assert torch.equal(prediction.probabilities, plain[prediction.clip_id].probabilities)
    assert results["s0"].state.context is None and results["s0"].after.fallback == status
    assert {p.status for p in results["s1"].predictions} == {"ok"}, "the other subject keeps its tuned prompts"
    assert_same({"s1": results["s1"]}, {"s1": left["s1"]})


def test_collapse_online_holds_for_the_rest() -> None:
    source, clips = fake_source(seed=2), fake_clips(subjects=1, per_subject=14)
    config = changed(COLLAPSING, protocol="online")
    result = one_run(source, clips, config)
    plain = by_clip(adapt(source, clips, adapt_config(protocol="online")))
    statuses = [p.status for p in result.predictions]
    at = statuses.index(next(status for status in statuses if status != "ok"))
    assert at == 7 and set(statuses[:at]) == {"ok"} and len(set(statuses[at:])) == 1
    assert statuses[at].startswith("not adapted: all 8 clips fell into 'neutral', 3 of them only with adaptation")
    for prediction in result.predictions[at:]:
        assert torch.equal(prediction.probabilities, plain[prediction.clip_id].probabilities)
    assert result.state.context is None and result.state.memory == () and result.after.fallback == statuses[at]
    left = one_run(source, clips, changed(config, collapse_share=1.1))
    assert {p.status for p in left.predictions} == {"ok"} and {p.label_index for p in left.predictions[:8]} == {0}


def test_per_video_never_collapses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts of a collapse, given to every clip: clips that share nothing may well be of one class."""
    source, clips = fake_source(seed=2), fake_clips(subjects=1, per_subject=12)
    config = changed(COLLAPSING, readout="mean_windows")
    collapsed = one_run(source, clips, changed(config, collapse_share=1.1)).state
    given = Tuned(collapsed.context, collapsed.au_embeddings, 1)
    monkeypatch.setattr(Tuner, "tune", lambda self, problems, *_: [given] * len(problems))
    (status,) = {p.status for p in one_run(source, clips, config).predictions}
    assert status == "not adapted: all 12 clips fell into 'pain', 4 of them only with adaptation"
    result = one_run(source, clips, changed(config, protocol="per_video"))
    assert {(p.status, p.label_index) for p in result.predictions} == {("ok", 1)}


@pytest.mark.parametrize("tune", ["context", "feature"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts_that_ran_away_give_the_source_prompts_and_say_so(protocol: Any, tune: Any) -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    config = changed(TUNED, protocol=protocol, tune=tune, max_drift=1e-6)
    tuned, _ = own(config)
    result = one_run(source, clips, config)
    plain = by_clip(adapt(source, clips, adapt_config(protocol=protocol)))
    for prediction in result.predictions:
        drift = re.fullmatch(
            r"not adapted: the prompts drifted too far \(drift (0\.\d+), max_drift 1e-06\)", prediction.status
        )
        assert drift and float(drift[1]) <= tuned.steps * tuned.learning_rate, prediction.status
        assert torch.equal(prediction.probabilities, plain[prediction.clip_id].probabilities)
    assert result.state.context is None and result.state.offset is None
    assert {p.status for p in one_run(source, clips, changed(config, max_drift=30.0)).predictions} == {"ok"}


@pytest.mark.parametrize("tune", ["context", "feature"])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e10])
def test_a_step_size_that_no_prompt_survives_is_noticed(tune: Any, size: float) -> None:
    """Also where the text tower's normalization keeps the embeddings, and the loss, finite and in place."""
    source, clips = fake_source(), fake_clips(subjects=1)
    result = one_run(source, clips, changed(TUNED, tune=tune, learning_rate=size))
    assert all(p.status.startswith("not adapted: the ") for p in result.predictions)
    assert {p.status for p in one_run(source, clips, changed(TUNED, tune=tune, learning_rate=3.0)).predictions} == {
        "ok"
    }


def test_drift_literal() -> None:
    """AdamW's first step moves every coordinate by the step size."""
    source = fake_source()
    problem = Problem([v.embeddings[:1] for v in source.views_of(fake_clips(subjects=1))])
    for tune in ("context", "feature"):
        config = changed(TUNED, objective="entropy", steps=1, learning_rate=0.25, tune=tune)
        (outcome,) = Tuner(source).tune([problem], *own(config))
        assert isinstance(outcome, Tuned) and outcome.drift == pytest.approx(0.25, rel=1e-2)
    start = PromptState(source.au_embeddings)
    for limit, fell in ((0.49, True), (0.5, False)):
        tuned = Tuned(source.context, source.au_embeddings, 1, drift=0.5)
        outcome = ClipAUTT("entropy", max_drift=limit)._checked(start, tuned)
        assert isinstance(outcome, DegenerateError) is fell
        if fell:
            assert str(outcome) == "the prompts drifted too far (drift 0.5, max_drift 0.49)"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prior_shifts_the_predictions_of_step_zero(protocol: Any) -> None:
    """Trained on equal shares: at 20% positives the odds of the positive class are a quarter."""
    source, clips = fake_source(), fake_clips()
    plain = by_clip(adapt(source, clips, adapt_config(protocol=protocol)))
    shifted = by_clip(adapt(source, clips, adapt_config(protocol=protocol, prior=0.2)))
    for clip_id, prediction in shifted.items():
        negative, positive = plain[clip_id].probabilities.tolist()
        expected = 0.2 * positive / (0.2 * positive + 0.8 * negative)
        assert float(prediction.probabilities[1]) == pytest.approx(expected, abs=1e-6)
        assert prediction.prior is not None and prediction.prior.tolist() == pytest.approx([0.8, 0.2])
        assert plain[clip_id].prior is None and prediction.status == "ok"


def test_prior_is_relative_to_the_shares_of_the_training() -> None:
    checkpoint = fake_checkpoint()
    spec = replace(checkpoint.spec, class_shares=(0.8, 0.2))
    source = Source(Checkpoint(checkpoint.model, spec), shared_backbone())
    clips = fake_clips(subjects=1)
    plain, same, half = (
        by_clip(adapt(source, clips, adapt_config(prior=prior))) for prior in (None, float(source.class_shares[1]), 0.5)
    )
    for clip_id, prediction in plain.items():
        negative, positive = prediction.probabilities.tolist()
        assert torch.allclose(same[clip_id].probabilities, prediction.probabilities, atol=1e-6)
        expected = 2.5 * positive / (2.5 * positive + 0.625 * negative)
        assert float(half[clip_id].probabilities[1]) == pytest.approx(expected, abs=1e-6)


def test_prior_is_relative_to_equal_shares_where_logits_are_of_class_descriptions() -> None:
    checkpoint = fake_checkpoint()
    spec = replace(checkpoint.spec, class_shares=(0.8, 0.2))
    source = Source(Checkpoint(checkpoint.model, spec), shared_backbone())
    expected = {"head": math.e / (math.e + 1), "class_text": 0.8 * math.e / (0.8 * math.e + 0.2)}
    for logits_from, neutral in expected.items():
        recorder = Recorder(logits_from=logits_from)  # type: ignore[arg-type]
        config = AdaptConfig(recorder, protocol="per_video", prior=0.2)
        (prediction,) = adapt(source, [fake_clip()], config)["s0"].predictions
        assert float(prediction.probabilities[0]) == pytest.approx(neutral, abs=1e-6)
        (given,) = recorder.priors
        assert given is not None and given.tolist() == pytest.approx([0.8, 0.2])


def test_estimated_prior_is_of_the_subject_and_needs_all_its_clips() -> None:
    source, clips = fake_source(seed=2), fake_clips(subjects=2, per_subject=12)
    results = adapt(source, clips, adapt_config(prior="estimate"))
    plain = adapt(source, clips, adapt_config())
    found = []
    for subject, result in results.items():
        logits = torch.stack([p.probabilities.log() for p in plain[subject].predictions])
        expected = estimate_prior(logits, [0.5, 0.5])
        for p in result.predictions:
            assert p.prior is not None
            torch.testing.assert_close(p.prior.double(), expected, atol=1e-4, rtol=0)
        found.append(float(expected[1]))
    assert abs(found[0] - found[1]) > 0.05
    for protocol in ("per_video", "online"):
        with pytest.raises(ValueError, match=rf"prior='estimate' with protocol='{protocol}'; the estimate needs"):
            adapt_config(prior="estimate", protocol=protocol)


def test_infomax_with_a_prior_pulls_the_mean_prediction_towards_it() -> None:
    source, clips = fake_source(seed=2), fake_clips(subjects=1, per_subject=12)

    def mean(config: AdaptConfig) -> float:
        predictions = one_run(source, clips, changed(config, collapse_share=1.1)).predictions
        return sum(float(p.probabilities[1]) for p in predictions) / len(predictions)

    plain = adapt_config(readout="whole_clip")
    pulled = changed(plain, objective="infomax", steps=30, learning_rate=0.02, balance_weight=4.0)
    for prior in (0.15, 0.3, 0.5, 0.7, 0.85):
        before, after = mean(changed(plain, prior=prior)), mean(changed(pulled, prior=prior))
        assert abs(after - prior) < 0.07 < abs(before - prior), (prior, before, after)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fallback_keeps_the_prior(protocol: Any) -> None:
    """Both for prompts that ran away and for a collapse, which per video does not have."""
    source, clips = fake_source(seed=2), fake_clips(subjects=1, per_subject=12)
    plain = by_clip(adapt(source, clips, adapt_config(protocol=protocol, prior=0.4)))
    for config in (changed(COLLAPSING, prior=0.4), changed(TUNED, prior=0.4, max_drift=1e-6)):
        result = one_run(source, clips, changed(config, protocol=protocol))
        fallen = [p for p in result.predictions if p.status != "ok"]
        assert fallen or (protocol == "per_video" and own(config)[0].max_drift == 30)
        for p in fallen:
            assert torch.equal(p.probabilities, plain[p.clip_id].probabilities)
            assert p.prior is not None and float(p.prior[1]) == pytest.approx(0.4)
        assert result.state.prior is result.after.prior
        assert float(result.state.prior[1]) == pytest.approx(0.4)


def test_a_collapse_takes_the_estimated_prior_back_and_prompts_that_ran_away_keep_it() -> None:
    """An estimate may be what collapsed the subject; it is judged with the prompts."""
    source, clips = fake_source(seed=2), fake_clips(subjects=1, per_subject=12)
    for config, prior in ((COLLAPSING, None), (changed(TUNED, max_drift=1e-6), "estimate")):
        plain = one_run(source, clips, adapt_config(prior=prior))  # type: ignore[arg-type]
        result = one_run(source, clips, changed(config, prior="estimate"))
        assert all(p.status.startswith("not adapted: ") for p in result.predictions)
        for p, q in zip(result.predictions, plain.predictions, strict=True):
            assert torch.equal(p.probabilities, q.probabilities)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("options", [{}, {"tune": "feature"}, {"objective": "none"}])
def test_trace_reproduces_the_predictions(options: dict[str, Any], protocol: Any) -> None:
    source, clips = fake_source(subject_baseline="median"), fake_clips(subjects=1)
    config = changed(TUNED, protocol=protocol, readout="mean_windows", subject_baseline="median", **options)
    if config.method.adapts and protocol == "per_video":  # a clip is a single sample here, which only entropy tunes
        config = changed(config, objective="entropy")
    result = one_run(source, clips, config, trace=True)
    assert result.trace is not None and repr(result.trace) == "Trace(4 clips)"
    kept = zip(result.predictions, result.trace.clips, result.trace.au_embeddings, strict=True)
    for prediction, clip, embeddings in kept:
        assert clip.clip_id == prediction.clip_id
        logits = source.logits(source.views(clip).embeddings, embeddings).mean(0)
        torch.testing.assert_close(prediction.probabilities, F.softmax(logits, dim=-1), atol=1e-6, rtol=0)
    assert one_run(source, clips, config).trace is None
    different = len({tuple(a.flatten().tolist()) for a in result.trace.au_embeddings})
    assert different == (1 if not config.method.adapts or protocol == "per_subject" else 4)


@pytest.mark.parametrize("protocol", ["online", "per_subject"])
def test_trace_of_clips_that_fell_back_holds_the_source_prompts(protocol: Any) -> None:
    source, clips = fake_source(seed=2), fake_clips(subjects=1, per_subject=12)
    result = one_run(source, clips, changed(COLLAPSING, protocol=protocol), trace=True)
    assert result.trace is not None
    for prediction, embeddings in zip(result.predictions, result.trace.au_embeddings, strict=True):
        assert torch.equal(embeddings, source.au_embeddings) is (prediction.status != "ok")
    assert {p.status == "ok" for p in result.predictions} == ({True, False} if protocol == "online" else {False})


def test_units_come_back_in_their_order_and_a_subject_may_have_several() -> None:
    source = fake_source()
    clips = fake_clips(subjects=2, per_subject=4)
    parts = [clips[4:], clips[:1], clips[1:4]]
    units = [Unit(part[0].subject_id, tuple(part)) for part in parts]
    for protocol in PROTOCOLS:
        config = changed(TUNED, protocol=protocol)  # type: ignore[arg-type]
        results = adapt_units(Session.open(source, config), units)
        assert [result.subject_id for result in results] == ["s1", "s0", "s0"]
        for result, part in zip(results, parts, strict=True):
            assert_close({"s": result}, {"s": one_run(source, part, config)})
        whole = by_clip({"s0": one_run(source, clips[:4], config)})
        for p in (*results[1].predictions, *results[2].predictions):
            same = torch.allclose(p.probabilities, whole[p.clip_id].probabilities, atol=1e-5)
            assert same or protocol != "per_video", "clips that share nothing may come in any units"
    assert adapt_units(Session.open(source, TUNED), []) == []


def test_seconds_of_units_are_shared_out_by_their_clips() -> None:
    clips = fake_clips(subjects=2, per_subject=4)
    units = [Unit("s0", tuple(clips[:1])), Unit("s1", tuple(clips[4:]))]
    one, other = adapt_units(Session.open(fake_source(), TUNED), units)
    assert other.seconds == pytest.approx(4 * one.seconds)


def test_a_history_is_for_online_and_its_clips_are_not_visited_again() -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    online = changed(TUNED, protocol="online")
    history = History(one_run(source, clips[:2], online).after, tuple(clips[:2]))
    with pytest.raises(
        ValueError, match=r"subject 's0' resumes an online run, which protocol='per_subject' does not support"
    ):
        adapt_units(Session.open(source, TUNED), [Unit("s0", tuple(clips[2:]), history)])
    with pytest.raises(ValueError, match=r"subject 's0' has duplicate clips: s0c1"):
        adapt_units(Session.open(source, online), [Unit("s0", tuple(clips[1:]), history)])


def test_subjects_side_by_side_go_on_each_from_its_own_history() -> None:
    """One is new, one goes on, one has collapsed before."""
    source, clips = fake_source(seed=2), fake_clips(subjects=3, per_subject=12)
    config = changed(COLLAPSING, protocol="online")
    units = []
    for number, at in enumerate((9, 3, 0)):
        order = visiting_order(clips[12 * number : 12 * number + 12], config)
        history = History(one_run(source, order[:at], config).after, tuple(order[:at])) if at else None
        units.append(Unit(f"s{number}", tuple(order[at:]), history))
    together = adapt_units(Session.open(source, config), units)
    assert together[0].after.fallback and not together[1].after.fallback
    for unit, result in zip(units, together, strict=True):
        whole = one_run(source, [*(unit.history.clips if unit.history else ()), *unit.clips], config)
        left = len(result.predictions)
        for p, q in zip(result.predictions, whole.predictions[-left:], strict=True):
            assert (p.clip_id, p.label_index, p.status) == (q.clip_id, q.label_index, q.status)
            torch.testing.assert_close(p.probabilities, q.probabilities, atol=1e-5, rtol=0)
        assert result.after.fallback == whole.after.fallback


@pytest.mark.parametrize("prior", [None, 0.3, "estimate"])
def test_further_clips_are_predicted_as_those_that_were_adapted_to(prior: Any) -> None:
    """The same clips again: without adapting to them, under the subject's state and prior."""
    source, clips = fake_source(), fake_clips(subjects=1)
    config = changed(TUNED, prior=prior)
    result = one_run(source, clips, config)
    for p, q in zip(predict_clips(Session.open(source, config), result.after, clips), result.predictions, strict=True):
        assert p.clip_id == q.clip_id and torch.equal(p.probabilities, q.probabilities)


def test_results_print_no_tensors() -> None:
    assert repr(adapt(fake_source(), [fake_clip()], adapt_config())["s0"]).startswith("SubjectResult('s0', 1 clips, 0.")


@pytest.mark.gpu
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path, protocol: Any) -> None:
    clips, config = fake_clips(), changed(TUNED, protocol=protocol, subject_baseline="median")
    on_cpu = fake_source(subject_baseline="median")
    on_gpu = Source(on_cpu.checkpoint, fake_backbone().to("cuda"))
    assert on_gpu.au_embeddings.is_cuda and not next(on_cpu.model.parameters()).is_cuda
    results = adapt(on_gpu, clips, config)
    expected = by_clip(adapt(on_cpu, clips, config))
    for clip_id, prediction in by_clip(results).items():
        assert prediction.probabilities.device.type == "cpu"
        torch.testing.assert_close(prediction.probabilities, expected[clip_id].probabilities, atol=1e-3, rtol=0)
    personalization = Personalization.of(results["s0"], config)
    save_personalization(personalization, tmp_path / "p.safetensors", checkpoint=on_cpu.checkpoint.fingerprint)
    loaded = load_personalization(tmp_path / "p.safetensors", on_gpu)
    assert loaded.after(loaded.session(on_gpu)).state.au_embeddings.is_cuda
    assert by_clip(adapt(on_gpu, clips, ZERO_SHOT)).keys() == expected.keys()
