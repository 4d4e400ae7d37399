"""Objectives and prompt tuning: what they compute, and what they can and cannot do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipautt.adaptation.objectives import peak_window, read_out

from clipautt.adaptation import tuning
from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods import make_method
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.clip_autt.method import PromptState
from clipautt.adaptation.methods.clip_autt.objectives import objective_loss
from clipautt.adaptation.methods.clip_autt.tuner import Problem, Tuned, Tuner
from clipautt.adaptation.methods.zero_shot import ZeroShot
from clipautt.adaptation.predictions import NotFiniteError
from clipautt.adaptation.source import Source
from clipautt.model.windows import WindowSpec, entropy
from tests.golden import regenerate as golden
from tests.support.configs import ZERO_SHOT, adapt_config, changed, own
from tests.support.fakes import FEATURE_DIM, fake_checkpoint, fake_clip, fake_clips, fake_source, shared_backbone
from tests.support.tuned import tune_context

TUNED = adapt_config(objective="entropy", steps=3, learning_rate=0.1)


def windows_of(count: int, *, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(count, FEATURE_DIM, generator=torch.Generator().manual_seed(seed))
    return F.normalize(noise, dim=-1)


def record_problems(monkeypatch: pytest.MonkeyPatch, tuned: Any = None) -> list[Problem]:
    """The problems that come from now on; each is solved by `tuned(start)`, or by leaving the start as it is."""
    asked: list[Problem] = []

    def tune(self: Tuner, problems: Any, config: AdaptConfig) -> list[Tuned]:
        asked.extend(problems)
        starts = [p.start for p in problems]
        values = [tuned(s) if tuned else (self.source.context if s is None else s) for s in starts]
        return [Tuned(value, self.source.au_embeddings, 0) for value in values]

    monkeypatch.setattr(Tuner, "tune", tune)
    return asked


def test_objectives_literal() -> None:
    logits = torch.tensor([[math.log(4), 0.0], [0.0, 0.0]])  # 0.8/0.2 and 0.5/0.5, mean 0.65/0.35
    source = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    mean_entropy = (-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) + math.log(2)) / 2
    entropy_of_mean = -(0.65 * math.log(0.65) + 0.35 * math.log(0.35))
    divergence = (0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)) / 2
    expected: dict[str, float] = {
        "entropy": mean_entropy,
        "infomax": mean_entropy - entropy_of_mean,
        "infomax_kl": mean_entropy - entropy_of_mean + 0.7 * divergence,
    }
    for objective, value in expected.items():
        config = adapt_config(objective=objective, kl_weight=0.7)  # type: ignore[arg-type]
        assert float(objective_loss(logits, source, config.method)) == pytest.approx(value, abs=1e-6), objective
        doubled = value if objective == "entropy" else value - entropy_of_mean
        assert float(objective_loss(logits, source, changed(config, balance_weight=2.0).method)) == pytest.approx(
            doubled
        )


def test_infomax_of_agreeing_windows_is_zero_and_of_balanced_certain_ones_is_lowest() -> None:
    config = adapt_config(objective="infomax")
    agreeing = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    balanced = torch.tensor([[30.0, 0.0], [0.0, 30.0]])
    assert float(objective_loss(agreeing, agreeing, config.method)) == pytest.approx(0, abs=1e-6)
    assert float(objective_loss(balanced, balanced, config.method)) == pytest.approx(-math.log(2), abs=1e-6)


@pytest.mark.parametrize("objective", ["entropy", "infomax", "infomax_kl"])
def test_tuning_lowers_its_objective_and_leaves_the_start_alone(objective: Any) -> None:
    source, windows = fake_source(), windows_of(8)
    config = adapt_config(objective=objective, steps=10, learning_rate=0.1)
    start = source.context.clone()
    tuned = tune_context(source, windows.split(1), start, config)
    before = objective_loss(source.logits(windows), source.logits(windows), config.method)
    after = objective_loss(
        source.logits(windows, source.au_embeddings_of(tuned)), source.logits(windows), config.method
    )
    assert after < before - 1e-3
    assert torch.equal(start, source.context) and tuned.shape == start.shape and not tuned.requires_grad


def test_step_size_is_relative_to_the_root_mean_square_of_the_context() -> None:
    """AdamW's first step moves every coordinate by the learning rate."""
    source, windows = fake_source(), windows_of(3)
    rms = float(source.context.square().mean().sqrt())
    assert 0.01 < rms < 0.03
    relative = tune_context(source, windows.split(1), source.context, changed(TUNED, steps=1, learning_rate=0.5))
    assert float((relative - source.context).abs().median()) == pytest.approx(0.5 * rms, rel=1e-2)
    absolute = changed(TUNED, steps=1, learning_rate=0.5, learning_rate_unit="absolute")
    moved = tune_context(source, windows.split(1), source.context, absolute) - source.context
    assert float(moved.abs().median()) == pytest.approx(0.5, rel=1e-2)


def source_with_context(phrase: str, tokens: int) -> Source:
    checkpoint = fake_checkpoint()
    spec = replace(checkpoint.spec, context=phrase, context_tokens=tokens)
    return Source(replace(checkpoint, spec=spec), shared_backbone())


@pytest.mark.parametrize("tune", ["context", "first_order"])
def test_prompts_without_context_tokens_have_none_to_tune(tune: Any) -> None:
    source = source_with_context("", 0)
    with pytest.raises(
        ValueError, match=rf"adapt\.tune='{tune}', but this checkpoint's prompts have no context tokens"
    ):
        tune_context(source, windows_of(2).split(1), None, changed(TUNED, tune=tune))
    Tuner(source).tune([Problem(windows_of(2).split(1))], *own(changed(TUNED, tune="feature")))


@pytest.mark.parametrize("phrase", ["a human face with", ""])
def test_shared_context_is_one_displacement_for_all_prompts(phrase: str) -> None:
    """Where context stands in the AUs' own words, they keep what distinguishes them."""
    source, windows = source_with_context(phrase, 4 if phrase else 2), windows_of(3)
    tuned = tune_context(source, windows.split(1), source.context, changed(TUNED, per_au_context=False))
    moved = tuned - source.context
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-6, rtol=0)
    assert float(moved.abs().max()) > 1e-4
    still = tune_context(
        source, windows.split(1), source.context, changed(TUNED, per_au_context=False, learning_rate=1e-12)
    )
    torch.testing.assert_close(still, source.context, atol=1e-9, rtol=0)
    own = tune_context(source, windows.split(1), source.context, TUNED) - source.context
    assert not torch.allclose(own[0], own[1], atol=1e-6)


@pytest.mark.parametrize("objective", ["infomax", "infomax_kl"])
def test_mutual_information_of_one_window_moves_nothing(objective: Any) -> None:
    """It is zero whatever the prompts are; AdamW would turn rounding errors into steps of full size."""
    source = fake_source()
    config = adapt_config(objective=objective, steps=5, learning_rate=0.3)
    tuned = tune_context(source, windows_of(1).split(1), source.context, config)
    assert torch.equal(tuned, source.context) and tuned is not source.context
    assert not torch.equal(tune_context(source, windows_of(2).split(1), source.context, config), source.context)


def test_no_weight_gets_a_gradient() -> None:
    source = fake_source()
    tune_context(source, windows_of(2).split(1), source.context, TUNED)
    for parameter in (*source.model.parameters(), *source.backbone.model.parameters()):
        assert parameter.grad is None and not parameter.requires_grad


def test_numbers_that_are_not_finite_stop_the_tuning() -> None:
    source = fake_source()
    with pytest.raises(NotFiniteError, match="the entropy loss of step 0 is nan"):
        tune_context(source, [torch.full((1, FEATURE_DIM), float("nan"))], source.context, TUNED)
    with pytest.raises(NotFiniteError, match=r"the entropy loss of step 1 is nan|the tuned prompts are not finite"):
        huge = changed(TUNED, learning_rate=1e37, learning_rate_unit="absolute")
        tune_context(source, windows_of(2).split(1), source.context, huge)


def test_the_lowest_entropy_windows_are_selected() -> None:
    source, clip = fake_source(), fake_clip()
    views = source.views(clip)
    order = entropy(source.logits(views.embeddings)).argsort()
    for count in (1, 3, 100):
        method = ClipAUTT(changed(TUNED, windows_per_clip=count))
        chosen = method._samples(views, source, method.start(source, TUNED))
        assert torch.equal(torch.cat(chosen), views.embeddings[order[:count]])
        assert all(len(sample) == 1 for sample in chosen)


def test_readouts_literal() -> None:
    source, clip = fake_source(), fake_clip("c1")
    logits = source.logits(source.views(clip).embeddings)
    best, peak = int(entropy(logits).argmin()), int(F.softmax(logits, dim=-1)[:, 0].argmin())
    assert best != peak
    expected = {
        "best_window": logits[best],
        "mean_windows": logits.mean(0),
        "peak_window": logits[peak],
        "whole_clip": source.logits(source.whole_clip(clip).embeddings)[0],
    }
    for readout, used in expected.items():
        config = adapt_config(readout=readout)  # type: ignore[arg-type]
        prediction = adapt(source, [clip], config)["s0"].predictions[0]
        assert torch.equal(prediction.probabilities, F.softmax(used, dim=-1)), readout
        start = {"whole_clip": 0, "peak_window": peak}.get(readout, best) / 12.5
        assert prediction.window_start_seconds == pytest.approx(start)
    similarities = source.model.similarities(source.views(clip).embeddings, source.au_embeddings)[best]
    best_window = adapt(source, [clip], adapt_config())["s0"].predictions[0]
    torch.testing.assert_close(best_window.similarities, similarities)


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


def test_read_out_literal() -> None:
    logits = torch.tensor([[[2.0, 0.0], [1.0, 3.0], [0.0, 1.0], [-1.0, 0.5], [9.0, 9.0]]])
    index = torch.tensor([[[0, 1, 0], [2, 3, 4], [0, 0, 0]]])
    inside = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 0, 0]]]).bool()  # the third sample is of another problem's size
    mean = torch.tensor([[1.5, 1.5], [-0.5, 0.75]])
    assert torch.equal(read_out(logits, index, inside, "mean_windows")[0, :2], mean)
    assert torch.equal(read_out(logits, index, inside, "best_window")[0, :2], mean)
    assert torch.equal(read_out(logits, index, inside, "peak_window")[0, :2], logits[0, [1, 3]])
    three = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.5, -9.0]])  # neutral has 16% of the first and 18% of the second
    assert peak_window(three) == 0


def test_a_sample_is_the_mean_of_the_logits_of_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of different length, under the tuned prompts and under the source prompts alike."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss(logits: torch.Tensor, source_logits: torch.Tensor, config: AdaptConfig, **given: Any) -> torch.Tensor:
        seen.append((logits.detach()[0, :3].float(), source_logits[0, :3].float()))  # a fourth is empty
        return objective_loss(logits, source_logits, config.method, **given)

    monkeypatch.setattr(tuning, "objective_loss", loss)
    source, windows = fake_source(), windows_of(6)
    samples = [windows[:1], windows[1:4], windows[4:]]
    tune_context(source, samples, source.context, adapt_config(objective="infomax", steps=2, learning_rate=0.3))
    expected = torch.stack([source.logits(sample).mean(0) for sample in samples])
    torch.testing.assert_close(seen[0][0], expected)
    torch.testing.assert_close(seen[0][1], expected)
    torch.testing.assert_close(seen[1][1], expected)
    assert not torch.allclose(seen[1][0], expected)


def test_more_weight_on_balance_moves_more_decisions() -> None:
    """All clips begin in one class; the heavier the entropy of the mean prediction, the more of them leave it."""
    source = fake_source()
    windows = windows_of(200)
    margins = source.logits(windows).diff(dim=-1)[:, 0]
    samples = windows[margins.argsort(descending=True)[:12]].split(1)
    left = []
    for weight in (0.5, 1.0, 4.0):
        config = adapt_config(objective="infomax", steps=10, learning_rate=0.3, balance_weight=weight)
        tuned = source.au_embeddings_of(tune_context(source, samples, source.context, config))
        left.append(int((source.logits(torch.cat(samples), tuned).diff(dim=-1) < 0).sum()))
    assert left[0] <= left[1] <= left[2] and left[2] > left[0]


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
    changed = 0
    for subject in before:
        old = {p.clip_id: p.label_index for p in before[subject].predictions}
        changed += sum(old[p.clip_id] != p.label_index for p in after[subject].predictions)
    assert changed >= 1


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


def test_zero_shot_is_the_cosine_with_the_class_texts() -> None:
    source, clip = fake_source(), fake_clip()
    prediction = adapt(source, [clip], ZERO_SHOT)["s0"].predictions[0]
    mean = F.normalize(F.normalize(clip.features, dim=-1).mean(0), dim=0)
    logits = source.backbone.model.logit_scale.exp() * source.class_text() @ mean
    torch.testing.assert_close(prediction.probabilities, F.softmax(logits, dim=-1))
    assert prediction.similarities is None and prediction.window_end_seconds == pytest.approx(19 / 12.5)


def test_methods_say_what_they_are() -> None:
    assert isinstance(make_method(adapt_config()), ClipAUTT) and isinstance(make_method(ZERO_SHOT), ZeroShot)
    for method in (ClipAUTT, ZeroShot):
        assert method.needs <= {"views", "class_text", "text_tower", "subject_set", "pixels"}
        assert method.fidelity in ("exact", "adapted", "variant") and method.deviations


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "CLIP-AU, best window"),
        ({"readout": "whole_clip"}, "CLIP-AU, whole clip"),
        ({"objective": "entropy", "steps": 0}, "CLIP-AU, best window"),
        ({"objective": "entropy", "protocol": "per_video"}, "CLIP-AUTT entropy, per video"),
        ({"objective": "infomax_kl", "readout": "mean_windows"}, "CLIP-AUTT infomax+KL, per subject, mean of windows"),
        ({"objective": "infomax", "subject_baseline": "median"}, "CLIP-AUTT infomax, per subject, median baseline"),
        ({"method": "zero_shot", "objective": "entropy", "steps": 3}, "zero-shot"),
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
        (
            {"objective": "entropy", "tune": "first_order", "relinearise": 3, "precision": "bf16"},
            "CLIP-AUTT entropy, per subject, first-order tuning, re-linearised every 3, bf16",
        ),
        (
            {"objective": "entropy", "tune": "feature", "relinearise": 3},
            "CLIP-AUTT entropy, per subject, feature tuning",
        ),
        ({"prior": 0.2}, "CLIP-AU, best window, prior 0.2"),
        ({"prior": "estimate", "tune": "feature"}, "CLIP-AU, best window, estimated prior"),
        (
            {"objective": "infomax", "prior": 0.05, "tolerance": 0.001, "max_drift": 0.3, "collapse_share": 1.1},
            "CLIP-AUTT infomax, per subject, prior 0.05, tolerance 0.001, largest drift 0.3, collapse share 1.1",
        ),
        ({"tolerance": 0.001, "max_drift": 0.3, "collapse_share": 1.1, "precision": "bf16"}, "CLIP-AU, best window"),
        ({"method": "zero_shot", "prior": 0.2}, "zero-shot"),
    ],
)
def test_names_of_rows(options: dict[str, Any], name: str) -> None:
    assert adapt_config(**options).name == name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"protocol": "per_video", "objective": "entropy"}, False),
        ({"protocol": "per_subject"}, False),
        ({"protocol": "per_subject", "objective": "entropy"}, True),
        ({"protocol": "online", "subject_baseline": "median"}, True),
        ({"protocol": "per_subject", "prior": 0.2}, False),
        ({"protocol": "per_subject", "prior": "estimate"}, True),
    ],
)
def test_transductive_is_what_depends_on_other_clips(options: dict[str, Any], expected: bool) -> None:
    assert adapt_config(**options).transductive is expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "magic"}, r"adapt\.objective='magic'; allowed are none, entropy, infomax, infomax_kl"),
        ({"protocol": "batch"}, r"adapt\.protocol='batch'; allowed are per_video, online, per_subject"),
        ({"readout": "last"}, r"adapt\.readout='last'; allowed are best_window, mean_windows, peak_window, whole_clip"),
        ({"method": "tent"}, r"adapt\.method='tent'; allowed are clip_autt, zero_shot"),
        ({"subject_baseline": "mode"}, r"adapt\.subject_baseline='mode'; allowed are none, mean, median"),
        ({"learning_rate_unit": "rms"}, r"adapt\.learning_rate_unit='rms'; allowed are relative, absolute"),
        ({"steps": -1}, r"adapt\.steps=-1; allowed are whole numbers from 0"),
        ({"windows_per_clip": 0}, r"adapt\.windows_per_clip=0; allowed are whole numbers from 1"),
        ({"balance_weight": -1.0}, r"adapt\.balance_weight=-1\.0; allowed are numbers from 0"),
        ({"memory": 0}, r"adapt\.memory=0; allowed are whole numbers from 1"),
        ({"learning_rate": 0.0}, r"adapt\.learning_rate=0\.0; allowed are positive numbers"),
        ({"learning_rate": float("inf")}, r"adapt\.learning_rate=inf; allowed are positive numbers"),
        ({"kl_weight": -1.0}, r"adapt\.kl_weight=-1\.0; allowed are numbers from 0"),
        ({"tune": "prompt"}, r"adapt\.tune='prompt'; allowed are context, feature, first_order"),
        ({"precision": "fp16"}, r"adapt\.precision='fp16'; allowed are fp32, bf16"),
        ({"relinearise": -1}, r"adapt\.relinearise=-1; allowed are whole numbers from 0"),
        ({"tolerance": -0.1}, r"adapt\.tolerance=-0\.1; allowed are numbers from 0"),
        ({"max_drift": -0.1}, r"adapt\.max_drift=-0\.1; allowed are numbers from 0"),
        ({"collapse_share": float("nan")}, r"adapt\.collapse_share=nan; allowed are numbers from 0"),
        ({"prior": 0.0}, r"adapt\.prior=0\.0; allowed are numbers from 1e-06 to 1 - 1e-06, estimate, or null"),
        ({"prior": 1}, r"adapt\.prior=1; allowed are numbers from 1e-06 to 1 - 1e-06, estimate, or null"),
        ({"prior": "guess"}, r"adapt\.prior='guess'; allowed are numbers from 1e-06 to 1 - 1e-06, estimate, or null"),
        (
            {"prior": "estimate", "protocol": "online"},
            r"prior='estimate' with protocol='online'; the estimate needs all clips of a subject: "
            r"take protocol=per_subject, or give a number",
        ),
    ],
)
def test_configuration_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapt_config(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objective": "entropy", "tune": "feature"}, True),
        ({"objective": "entropy", "tune": "first_order"}, True),
        ({"objective": "entropy", "tune": "context"}, False),
        ({"objective": "none", "tune": "feature"}, False),
        ({"objective": "entropy", "tune": "feature", "steps": 0}, False),
    ],
)
def test_cheap_is_what_tunes_otherwise_than_exactly(options: dict[str, Any], expected: bool) -> None:
    assert adapt_config(**options).cheap is expected


def test_state_prints_its_shape() -> None:
    assert repr(PromptState()) == "PromptState(source)"
    assert repr(PromptState(torch.zeros(6, 4, 32))) == "PromptState((6, 4, 32))"
    assert repr(PromptState(offset=torch.zeros(6, 16))) == "PromptState((6, 16))"


@pytest.mark.parametrize("readout", ["best_window", "mean_windows", "peak_window", "whole_clip"])
@pytest.mark.parametrize("protocol", ["per_video", "online", "per_subject"])
def test_many_states_and_clips_at_once_equal_one_by_one(protocol: Any, readout: Any) -> None:
    source, clips = fake_source(), fake_clips(subjects=3, per_subject=2)
    config = adapt_config(
        objective="entropy", steps=2, learning_rate=0.1, protocol=protocol, readout=readout, prior=0.3
    )
    method = ClipAUTT(config)
    start = method.start(source, config)
    sets = [clips[:2], clips[2:4], [clips[4]]]
    states = [state for state in method.fit_many([start] * 3, source, sets) if isinstance(state, PromptState)]
    for state, own in zip(states, sets, strict=True):
        alone = method.fit(start, source, own)
        torch.testing.assert_close(state.au_embeddings, alone.au_embeddings, atol=1e-5, rtol=0)
    given = [clips[0], clips[2], clips[4]]
    for outcome, begun, clip in zip(method.step_many(states, source, given), states, given, strict=True):
        assert isinstance(outcome, tuple)
        prediction, state = outcome
        one, after = method.step(begun, source, clip)
        assert (one.clip_id, one.window_start_seconds) == (prediction.clip_id, prediction.window_start_seconds)
        torch.testing.assert_close(one.probabilities, prediction.probabilities, atol=1e-5, rtol=0)
        torch.testing.assert_close(after.au_embeddings, state.au_embeddings, atol=1e-5, rtol=0)
        assert [len(sample) for sample in after.memory] == [len(sample) for sample in state.memory]


def test_another_window_than_the_checkpoint_s_can_be_asked_for() -> None:
    source, clip = fake_source(), fake_clip()
    longer = adapt(source, [clip], adapt_config(window=WindowSpec(length=10)))["s0"].predictions[0]
    views = fake_source(window=WindowSpec(length=10)).views(clip)
    best = int(entropy(source.logits(views.embeddings)).argmin())
    assert longer.window_start_seconds == pytest.approx(best / 12.5)
    assert longer.window_end_seconds == pytest.approx((best + 10) / 12.5)
    assert source.window.length == 6 and np.isclose(longer.probabilities.sum(), 1)


def test_golden_logits_gradient_and_tuned_context() -> None:
    source, windows, expected = golden.load()
    found = golden.compute(source, windows)
    assert set(found) == set(expected) == {"logits", "gradient", "tuned_context"}
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        assert (found[name] - value).abs().max() <= 1e-5 * scale, name
    assert (expected["tuned_context"] - source.context).abs().max() > 1e-3
