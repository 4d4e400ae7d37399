"""The driver: step 0 is CLIP-AU, nothing leaks, nothing depends on order, nothing is changed in place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipautt.adapt_config import AdaptConfig
from clipautt.adaptation import SubjectResult, adapt, visiting_order
from clipautt.features import ClipFeatures, subject_centre
from clipautt.frozen_clip import _fingerprint
from clipautt.methods import ClipAUTT, PromptState
from clipautt.personalization import Personalization, load_personalization, save_personalization, subject_file
from clipautt.source import Prediction, Source
from clipautt.tuning import NotFiniteError
from clipautt.windows import WindowSpec, entropy
from tests.fakes import PREPROCESSING, fake_backbone, fake_clip, fake_clips, fake_source

PROTOCOLS = ("per_video", "online", "per_subject")
TUNED = AdaptConfig(objective="infomax_kl", steps=2, learning_rate=0.3, windows_per_clip=2)


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
    config = AdaptConfig(objective=objective, steps=steps, protocol=protocol, windows_per_clip=3)
    predictions = by_clip(adapt(source, clips, config))
    assert len(predictions) == len(clips)
    for clip in clips:
        assert torch.equal(predictions[clip.clip_id].probabilities, clip_au(source, clip))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_prompts_equal_to_the_source_s_predict_as_clip_au_bit_for_bit(protocol: Any) -> None:
    source, clip = fake_source(), fake_clip()
    state = PromptState(source.context.clone(), source.au_embeddings_of(source.context))
    method = ClipAUTT(AdaptConfig(protocol=protocol))
    assert torch.equal(method.step(state, source, clip)[0].probabilities, clip_au(source, clip))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tuning_does_something(protocol: Any) -> None:
    source, clips = fake_source(), fake_clips()
    predictions = by_clip(adapt(source, clips, replace(TUNED, protocol=protocol)))
    moved = [not torch.equal(predictions[c.clip_id].probabilities, clip_au(source, c)) for c in clips]
    assert all(moved)
    assert all(p.status == "ok" for p in predictions.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_order_of_the_given_clips_changes_nothing(protocol: Any) -> None:
    source, clips = fake_source(subject_baseline="mean"), fake_clips()
    config = replace(TUNED, protocol=protocol, subject_baseline="mean")
    shuffled = [clips[i] for i in np.random.default_rng(1).permutation(len(clips))]
    assert_same(adapt(source, clips, config), adapt(source, shuffled, config))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_interleaved_subjects_are_as_if_alone(protocol: Any) -> None:
    source, config = (
        fake_source(subject_baseline="median"),
        replace(TUNED, protocol=protocol, subject_baseline="median"),
    )
    clips = sorted(fake_clips(subjects=2), key=lambda clip: clip.clip_id[-1])
    assert [clip.subject_id for clip in clips[:4]] == ["s0", "s1", "s0", "s1"]
    together = adapt(source, clips, config)
    alone = {s: adapt(source, [c for c in clips if c.subject_id == s], config)[s] for s in ("s0", "s1")}
    assert_close(together, alone)


def test_per_video_uses_the_video_alone() -> None:
    source = fake_source(subject_baseline="median")
    config = replace(TUNED, protocol="per_video", subject_baseline="median")
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
        config = replace(TUNED, protocol=protocol)
        together = by_clip(adapt(source, clips, config))
        alone = [adapt(source, [clip], config)["s0"].predictions[0] for clip in clips]
        differing = [not torch.equal(p.probabilities, together[p.clip_id].probabilities) for p in alone]
        assert sum(differing) >= 3, protocol


@dataclass(frozen=True)
class Recorder:
    """Records what the driver hands to a method, and fails where told to."""

    seen: list[tuple[Any, ClipFeatures]]
    fitted: list[list[str]]
    fails_at: str = ""
    fails_to_fit: bool = False
    needs: ClassVar[frozenset[str]] = frozenset()
    fidelity: ClassVar[Any] = "exact"
    deviations: ClassVar[str] = ""

    def start(self, source: Source, config: AdaptConfig) -> tuple[str, ...]:
        return ()

    def fit(self, state: Any, source: Source, clips: Sequence[ClipFeatures]) -> Any:
        self.fitted.append([clip.clip_id for clip in clips])
        if self.fails_to_fit:
            raise NotFiniteError("the loss of fit is nan")
        return state

    def step(self, state: Any, source: Source, clip: ClipFeatures) -> tuple[Prediction, Any]:
        self.seen.append((state, clip))
        if clip.clip_id == self.fails_at:
            raise NotFiniteError(f"the loss of {clip.clip_id} is nan")
        return Prediction(clip.clip_id, clip.subject_id, torch.tensor([0.5, 0.5]), 0.0, 1.0), (*state, clip.clip_id)


def record(clips: Sequence[ClipFeatures], config: AdaptConfig, **options: Any) -> tuple[Recorder, dict[str, Any]]:
    recorder = Recorder([], [], **options)
    return recorder, adapt(fake_source(subject_baseline=config.subject_baseline), clips, config, method=recorder)


def test_state_goes_from_clip_to_clip_online_and_starts_anew_per_video_and_subject() -> None:
    clips = fake_clips(subjects=2, per_subject=3)
    online, _ = record(clips, AdaptConfig(protocol="online"))
    for subject in ("s0", "s1"):  # side by side, and nothing passes from one to the other
        own = [(state, clip.clip_id) for state, clip in online.seen if clip.subject_id == subject]
        order = [clip_id for _, clip_id in own]
        assert [state for state, _ in own] == [(), tuple(order[:1]), tuple(order[:2])]
    assert online.fitted == []
    per_video, _ = record(clips, AdaptConfig(protocol="per_video"))
    assert [state for state, _ in per_video.seen] == [()] * 6
    assert sorted(per_video.fitted) == [[clip.clip_id] for clip in clips]
    per_subject, _ = record(clips, AdaptConfig(protocol="per_subject"))
    assert per_subject.fitted == [["s0c0", "s0c1", "s0c2"], ["s1c0", "s1c1", "s1c2"]]


def test_methods_see_no_label() -> None:
    recorder, _ = record(fake_clips(subjects=1), AdaptConfig(protocol="online"))
    for _, clip in recorder.seen:
        assert sorted(vars(clip)) == ["clip_id", "face_found", "features", "subject_id", "times"]


def test_online_order_follows_the_seed_and_nothing_else() -> None:
    clips = fake_clips(subjects=1, per_subject=10)
    order = {seed: [c.clip_id for c in visiting_order(clips, AdaptConfig(seed=seed))] for seed in range(5)}
    assert all(sorted(o) == sorted(c.clip_id for c in clips) for o in order.values())
    assert len({tuple(o) for o in order.values()}) == 5
    assert [c.clip_id for c in visiting_order(clips[::-1], AdaptConfig(seed=3))] == order[3]
    seen, results = record(clips, AdaptConfig(protocol="online", seed=2))
    assert [clip.clip_id for _, clip in seen.seen] == [p.clip_id for p in results["s0"].predictions] == order[2]
    more = visiting_order([*clips, fake_clip("new", "s0")], AdaptConfig(seed=2))
    assert [c.clip_id for c in more if c.clip_id != "new"] == order[2]


def test_seed_matters_online_only() -> None:
    source, clips = fake_source(), fake_clips(subjects=1, per_subject=6)
    for protocol in PROTOCOLS:
        one, other = (by_clip(adapt(source, clips, replace(TUNED, protocol=protocol, seed=s))) for s in (1, 2))
        same = all(torch.equal(one[c].probabilities, other[c].probabilities) for c in one)
        assert same is (protocol != "online")


@pytest.mark.parametrize("baseline", ["mean", "median"])
def test_centre_is_running_online_of_all_frames_per_subject_and_of_the_clip_per_video(baseline: Any) -> None:
    clips = {clip.clip_id: clip for clip in fake_clips(subjects=1)}

    def check(protocol: Any, centre_of: Any) -> None:
        recorder, results = record(list(clips.values()), AdaptConfig(protocol=protocol, subject_baseline=baseline))
        seen = [clip.clip_id for _, clip in recorder.seen]
        for number, (_, clip) in enumerate(recorder.seen):
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
    recorder, results = record(clips, AdaptConfig(protocol="per_subject"))
    assert all(torch.equal(c.features, d.features) for c, (_, d) in zip(clips, recorder.seen, strict=True))
    assert results["s0"].centre.abs().sum() == 0


def test_clip_given_twice_is_an_error_that_names_it() -> None:
    clips = fake_clips(subjects=2)
    with pytest.raises(ValueError, match="subject 's1' has clips twice: s1c2"):
        adapt(fake_source(), [*clips, clips[6]], AdaptConfig())


@pytest.mark.parametrize(("trained", "asked"), [("none", "median"), ("median", "none"), ("mean", "median")])
def test_another_baseline_than_in_training_is_refused_naming_both(trained: Any, asked: Any) -> None:
    message = rf"adapt\.subject_baseline='{asked}', but the checkpoint was trained with '{trained}'"
    with pytest.raises(ValueError, match=message):
        adapt(fake_source(subject_baseline=trained), fake_clips(), AdaptConfig(subject_baseline=asked))


def test_zero_shot_runs_with_any_checkpoint() -> None:
    source = fake_source(subject_baseline="median")
    predictions = by_clip(adapt(source, fake_clips(), AdaptConfig(method="zero_shot")))
    plain = by_clip(adapt(fake_source(), fake_clips(), AdaptConfig(method="zero_shot")))
    assert all(torch.equal(p.probabilities, plain[c].probabilities) for c, p in predictions.items())


def test_step_that_is_not_finite_falls_back_to_the_source_prompts_and_resets() -> None:
    clips = fake_clips(subjects=1)
    order = [c.clip_id for c in visiting_order(clips, AdaptConfig())]
    recorder, results = record(clips, AdaptConfig(protocol="online"), fails_at=order[1])
    predictions = results["s0"].predictions
    assert [p.status for p in predictions] == ["ok", f"source prompts: the loss of {order[1]} is nan", "ok", "ok"]
    assert [state for state, _ in recorder.seen] == [(), (order[0],), (), (order[2],)]
    failed = next(c for c in clips if c.clip_id == order[1])
    assert torch.equal(predictions[1].probabilities, clip_au(fake_source(), failed))


@pytest.mark.parametrize("protocol", ["per_video", "per_subject"])
def test_fit_that_is_not_finite_marks_the_clips_it_was_for(protocol: Any) -> None:
    _, results = record(fake_clips(), AdaptConfig(protocol=protocol), fails_to_fit=True)
    statuses = {p.status for result in results.values() for p in result.predictions}
    assert statuses == {"source prompts: the loss of fit is nan"}


@pytest.mark.parametrize("readout", ["best_window", "mean_windows", "peak_window", "whole_clip"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_exploding_prompts_give_clip_au_s_prediction_and_say_so(protocol: Any, readout: Any) -> None:
    source, clips = fake_source(), fake_clips(subjects=1, per_subject=2)
    exploding = AdaptConfig(
        objective="entropy",
        steps=2,
        learning_rate=1e37,
        learning_rate_unit="absolute",
        protocol=protocol,
        readout=readout,
    )
    result = adapt(source, clips, exploding)["s0"]
    expected = by_clip(adapt(source, clips, AdaptConfig(protocol=protocol, readout=readout)))
    for prediction in result.predictions:
        assert prediction.status.startswith("source prompts: the ")
        assert torch.equal(prediction.probabilities, expected[prediction.clip_id].probabilities)
    assert result.state.context is None


def test_features_that_are_not_finite_are_an_error_that_names_the_clip() -> None:
    clips = fake_clips(subjects=1)
    clips[2].features[3, 1] = float("nan")
    with pytest.raises(NotFiniteError, match="subject 's0', clip 's0c2': probabilities not finite"):
        adapt(fake_source(), clips, AdaptConfig())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_in_the_source_or_the_clips_changes(protocol: Any) -> None:
    source, clips = fake_source(subject_baseline="median"), fake_clips()
    tensors = {"context": source.context, "text": source.text_features, "au": source.au_embeddings}
    before = copy.deepcopy(tensors)
    features = [clip.features.clone() for clip in clips]
    checkpoint = source.checkpoint.fingerprint
    first = adapt(source, clips, replace(TUNED, protocol=protocol, subject_baseline="median"))
    assert source.checkpoint.fingerprint == checkpoint
    assert _fingerprint(source.backbone.model, PREPROCESSING, "fp32") == source.backbone.fingerprint
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    assert all(torch.equal(clip.features, kept) for clip, kept in zip(clips, features, strict=True))
    assert_same(first, adapt(source, clips, replace(TUNED, protocol=protocol, subject_baseline="median")))


def test_states_are_values_that_no_later_step_changes() -> None:
    source = fake_source()
    method = ClipAUTT(replace(TUNED, protocol="online"))
    state = method.start(source, TUNED)
    states, copies = [], []
    for clip in fake_clips(subjects=1):
        _, state = method.step(state, source, clip)
        states.append(state)
        copies.append(copy.deepcopy(vars(state)))
    for kept, was in zip(states, copies, strict=True):
        for name, value in was.items():
            torch.testing.assert_close(getattr(kept, name), value, rtol=0, atol=0)
    assert not torch.equal(states[0].context, states[-1].context)


def test_global_generator_changes_nothing_and_is_not_touched() -> None:
    source, clips = fake_source(), fake_clips(subjects=1)
    torch.manual_seed(1)
    one = adapt(source, clips, replace(TUNED, protocol="online"))
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    assert_same(one, adapt(source, clips, replace(TUNED, protocol="online")))


def test_every_clip_gets_one_prediction_and_results_are_ordered() -> None:
    clips = fake_clips(subjects=11, per_subject=1)
    results = adapt(fake_source(), clips[::-1], AdaptConfig())
    assert list(results) == sorted(clip.subject_id for clip in clips)
    assert sorted(by_clip(results)) == sorted(clip.clip_id for clip in clips)
    assert all(result.seconds > 0 for result in results.values())
    assert adapt(fake_source(), [], AdaptConfig()) == {}


def tuned_personalization(source: Source, **options: Any) -> tuple[SubjectResult, Personalization, AdaptConfig]:
    config = replace(TUNED, subject_baseline=source.checkpoint.spec.subject_baseline, **options)
    result = adapt(source, fake_clips(subjects=1), config)["s0"]
    return result, Personalization.of(result, config), config


def test_saved_personalization_predicts_as_the_adapted_state(tmp_path: Path) -> None:
    source = fake_source(subject_baseline="median")
    result, personalization, config = tuned_personalization(source, window=WindowSpec(5, 2, 3))
    path = tmp_path / "prompts" / subject_file("s0")
    save_personalization(personalization, path, checkpoint=source.checkpoint.fingerprint)
    loaded = load_personalization(path, source)
    assert (loaded.subject_id, loaded.config, loaded.clips) == ("s0", config, ("s0c0", "s0c1", "s0c2", "s0c3"))
    assert torch.equal(loaded.centre, result.centre) and torch.equal(loaded.context, result.state.context)
    assert torch.equal(loaded.state(source).au_embeddings, result.state.au_embeddings)
    assert [p.name for p in path.parent.iterdir()] == ["s0.safetensors"]
    assert repr(loaded).startswith(
        "Personalization('s0', CLIP-AUTT infomax+KL, per subject, median baseline, windows of 5"
    )


def test_personalization_without_tuning_is_the_centre_and_the_source_prompts(tmp_path: Path) -> None:
    source = fake_source(subject_baseline="median")
    _, personalization, _ = tuned_personalization(source, steps=0)
    save_personalization(personalization, tmp_path / "p.safetensors", checkpoint=source.checkpoint.fingerprint)
    loaded = load_personalization(tmp_path / "p.safetensors", source)
    assert loaded.context is None and loaded.centre.abs().sum() > 0
    assert torch.equal(loaded.state(source).au_embeddings, source.au_embeddings)


def test_personalization_of_another_checkpoint_is_refused_naming_both(tmp_path: Path) -> None:
    source, other = fake_source(), fake_source(seed=1)
    _, personalization, _ = tuned_personalization(source)
    mine, theirs = source.checkpoint.fingerprint, other.checkpoint.fingerprint
    save_personalization(personalization, tmp_path / "p.safetensors", checkpoint=mine)
    with pytest.raises(ValueError, match=rf"was adapted from checkpoint {mine}, given is {theirs}"):
        load_personalization(tmp_path / "p.safetensors", other)
    with pytest.raises(FileNotFoundError, match=r"no adapted prompts at .*gone\.safetensors"):
        load_personalization(tmp_path / "gone.safetensors", source)


@pytest.mark.parametrize("subject", ["s0", "a b", "../../etc/passwd", "a/b", "..", ".", "ä", "a%2Fb"])
def test_every_subject_has_a_file_name_of_its_own_inside_the_folder(tmp_path: Path, subject: str) -> None:
    path = tmp_path / subject_file(subject)
    assert path.resolve().parent == tmp_path.resolve() and path.suffix == ".safetensors"
    others = {"s0", "a b", "../../etc/passwd", "a/b", "..", ".", "ä", "a%2Fb"} - {subject}
    assert subject_file(subject) not in {subject_file(other) for other in others}


def test_results_print_no_tensors() -> None:
    assert repr(adapt(fake_source(), [fake_clip()], AdaptConfig())["s0"]).startswith("SubjectResult('s0', 1 clips, 0.")


@pytest.mark.gpu
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path, protocol: Any) -> None:
    clips, config = fake_clips(), replace(TUNED, protocol=protocol, subject_baseline="median")
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
    assert load_personalization(tmp_path / "p.safetensors", on_gpu).state(on_gpu).au_embeddings.is_cuda
    assert by_clip(adapt(on_gpu, clips, AdaptConfig(method="zero_shot"))).keys() == expected.keys()
