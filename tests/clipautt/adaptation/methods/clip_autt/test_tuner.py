"""Tuning in batches: it equals tuning one by one, equals a plain loop, fits the memory, and computes nothing twice."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipautt.adaptation.method import AdaptConfig, TuningConfig
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.clip_autt import tuner as tuner_module
from clipautt.adaptation.methods.clip_autt.objectives import objective_loss
from clipautt.adaptation.methods.clip_autt.tuner import Problem, Tuned, Tuner
from clipautt.adaptation.predictions import DegenerateError, NotFiniteError
from clipautt.adaptation.source import Source
from tests.golden import regenerate as golden
from tests.support.configs import adapt_config, changed, own
from tests.support.fakes import FEATURE_DIM, TEXT_WIDTH, fake_checkpoint, fake_source, shared_backbone
from tests.support.tuned import tune_context

STEPS = 4
EXACT = adapt_config(objective="infomax_kl", steps=STEPS, learning_rate=0.2)
ENTROPY = adapt_config(objective="entropy", steps=3, learning_rate=0.1)
TUNES = ("context", "feature")


def units(*shape: int, seed: int) -> Tensor:
    """Unit vectors, as window embeddings are."""
    return F.normalize(torch.randn(*shape, FEATURE_DIM, generator=torch.Generator().manual_seed(seed)), dim=-1)


def problem(*windows: int, seed: int = 0, start: Tensor | None = None, positives: float | None = None) -> Problem:
    """With so many windows in each sample."""
    prior = None if positives is None else torch.tensor([1 - positives, positives], dtype=torch.float64)
    return Problem([units(count, seed=seed * 100 + number) for number, count in enumerate(windows)], start, prior)


def other_start(source: Source, tune: str, *, seed: int, size: float = 0.1) -> Tensor:
    like = source.text_features if tune == "feature" else source.context
    at = torch.zeros_like(like) if tune == "feature" else like
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return at + size * float(like.square().mean().sqrt()) * noise


def various(source: Source, tune: str) -> list[Problem]:
    """Of different sizes, from different starts, under different priors."""
    return [
        problem(1, 1, 1, seed=1),
        problem(4, 2, 7, 1, 1, seed=2, start=other_start(source, tune, seed=1)),
        problem(1, 1, seed=3, positives=0.2),
        problem(9, seed=4),
        problem(3, 5, seed=5, start=other_start(source, tune, seed=2), positives=0.7),
        problem(2, 2, 2, 2, 2, 2, 2, seed=6),
    ]


def alike(source: Source, tune: str) -> list[Problem]:
    """Of different sizes that have the same room in a batch."""
    return [
        problem(3, 1, 2, seed=1),
        problem(4, 2, 1, seed=2, start=other_start(source, tune, seed=1)),
        problem(1, 3, 1, 1, seed=3, positives=0.2),
        problem(3, 3, 2, seed=4),
        problem(1, 4, 1, seed=5, start=other_start(source, tune, seed=2), positives=0.7),
        problem(2, 1, 3, 2, seed=6),
    ]


def tuned(tuner: Tuner, problems: Sequence[Problem], config: AdaptConfig) -> list[Tuned]:
    found = []
    for outcome in tuner.tune(problems, *own(config)):
        assert isinstance(outcome, Tuned), outcome
        found.append(outcome)
    return found


def assert_close(one: Tuned | DegenerateError, other: Tuned | DegenerateError, *, atol: float = 1e-5) -> None:
    assert isinstance(one, Tuned) and isinstance(other, Tuned)
    assert one.steps == other.steps
    torch.testing.assert_close(one.parameter, other.parameter, atol=atol, rtol=0)
    torch.testing.assert_close(one.au_embeddings, other.au_embeddings, atol=atol, rtol=0)


def assert_together_as_alone(source: Source, problems: Sequence[Problem], config: AdaptConfig) -> list[Tuned]:
    tuner = Tuner(source, TuningConfig(batch_size=len(problems)))
    together = tuned(tuner, problems, config)
    for outcome, one in zip(together, problems, strict=True):
        (alone,) = tuned(Tuner(source, TuningConfig(batch_size=1)), [one], config)
        assert_close(outcome, alone)
    return together


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "entropy"},
        {"objective": "infomax"},
        {"objective": "infomax_kl", "readout": "mean_windows"},
        {"objective": "infomax", "readout": "peak_window", "balance_weight": 2.0},
        {"objective": "infomax_kl", "per_au_context": False},
        {"objective": "entropy", "learning_rate": 0.002, "learning_rate_unit": "absolute"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_many_problems_at_once_equal_one_by_one(options: dict[str, Any], tune: Any) -> None:
    source = fake_source()
    config = changed(EXACT, tune=tune, **options)
    together = assert_together_as_alone(source, various(source, tune), config)
    single = 3  # the fourth problem has one sample
    assert [o.steps for o in together] == [
        0 if i == single and "infomax" in own(config)[0].objective else 4 for i in range(6)
    ]
    start = torch.zeros(6, FEATURE_DIM) if tune == "feature" else source.context
    moved = [float((o.parameter - start).abs().max()) > 1e-3 for o in together]
    assert moved == [o.steps > 0 for o in together]


def reference(source: Source, one: Problem, method: ClipAUTT) -> Tensor:
    """One problem by a plain loop: PyTorch's AdamW, the model's own functions, nothing batched."""
    start = source.context if one.start is None else one.start
    moved = torch.zeros_like(start if method.per_au_context else start[:1]).requires_grad_(True)
    rate = method.learning_rate * float(source.context.square().mean().sqrt())
    optimizer = torch.optim.AdamW([moved], lr=rate, weight_decay=0.0)
    trained = source.class_shares
    shift = torch.zeros(2) if one.prior is None else (one.prior.float() / trained).log()
    expected = torch.full((2,), 0.5) if one.prior is None else one.prior.float()

    def predictions(embeddings: Tensor) -> Tensor:
        return torch.stack([source.logits(sample, embeddings).mean(0) + shift for sample in one.samples])

    with torch.no_grad():
        before = F.softmax(predictions(source.au_embeddings), -1)
    for _ in range(method.steps):
        logits = predictions(source.au_embeddings_of(start + moved))
        p = F.softmax(logits, -1)
        loss = -(p * p.log()).sum(-1).mean()
        if method.objective != "entropy":
            mean = p.mean(0)
            loss = loss + method.balance_weight * (mean * (mean / expected).log()).sum()
        if method.objective == "infomax_kl":
            loss = loss + method.kl_weight * (before * (before / p).log()).sum(-1).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return (start + moved).detach()


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "entropy"},
        {"objective": "infomax", "balance_weight": 2.0},
        {"objective": "infomax_kl", "kl_weight": 0.7},
        {"objective": "infomax_kl", "per_au_context": False},
    ],
)
def test_tuning_is_a_plain_loop_with_adamw(options: dict[str, Any]) -> None:
    source = fake_source()
    config = changed(EXACT, readout="mean_windows", **options)
    one = problem(4, 2, 7, seed=2, start=other_start(source, "context", seed=1), positives=0.2)
    (found,) = tuned(Tuner(source), [one], config)
    torch.testing.assert_close(found.parameter, reference(source, one, own(config)[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.au_embeddings, source.au_embeddings_of(found.parameter), atol=1e-5, rtol=0)


def test_prior_counts_in_objective_and_decision() -> None:
    source = fake_source()
    with_prior, without = problem(1, 1, 1, seed=1, positives=0.2), problem(1, 1, 1, seed=1)
    one, other = tuned(Tuner(source), [with_prior, without], EXACT)
    assert (one.parameter - other.parameter).abs().max() > 1e-3


def test_feature_offset_moves_the_features() -> None:
    source = fake_source()
    (offset,) = tuned(Tuner(source), [problem(2, 3, seed=1)], changed(EXACT, tune="feature"))
    assert offset.parameter.shape == source.text_features.shape
    torch.testing.assert_close(
        offset.au_embeddings, source.model.au_embeddings(source.text_features + offset.parameter)
    )


@pytest.mark.parametrize("tune", TUNES)
def test_each_problem_stops_by_itself(tune: Any) -> None:
    source = fake_source()
    config = changed(EXACT, tune=tune, steps=30, tolerance=5e-3)
    together = assert_together_as_alone(source, various(source, tune), config)
    steps = [outcome.steps for outcome in together]
    assert len(set(steps)) > 3 and max(steps) > 5, steps


def test_tolerance_ends_before_the_step_that_would_change_too_little() -> None:
    """The second look at the objective shows the change that the first step made."""
    source, one = fake_source(), problem(2, 3, seed=1)
    huge = tuned(Tuner(source), [one], changed(EXACT, tolerance=1e9))[0]
    single = tuned(Tuner(source), [one], changed(EXACT, steps=1))[0]
    assert huge.steps == single.steps == 1
    assert_close(huge, single)
    assert tuned(Tuner(source), [one], changed(EXACT, tolerance=0.0))[0].steps == STEPS


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("broken", ["windows", "start"])
def test_problem_that_is_not_finite_fails_alone(tune: Any, broken: str) -> None:
    source = fake_source()
    config, problems = changed(EXACT, tune=tune), various(source, tune)
    expected = tuned(Tuner(source), [problems[i] for i in (0, 1, 3, 4, 5)], config)
    if broken == "windows":
        problems[2] = Problem([units(1, seed=1), torch.full((2, FEATURE_DIM), float("nan"))])
    else:
        problems[2] = replace(problems[2], start=other_start(source, tune, seed=3) + float("nan"))
    found = Tuner(source).tune(problems, *own(config))
    failed = found.pop(2)
    assert isinstance(failed, NotFiniteError) and str(failed) == "the infomax_kl loss of step 0 is nan"
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("tune", TUNES)
def test_problem_that_fails_at_a_later_step_fails_alone(tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes a few steps with the others; its loss, which is told by its prior, then stops being a number."""
    source = fake_source()
    config, problems = changed(EXACT, tune=tune), various(source, tune)
    kept = (0, 1, 3, 4, 5)
    expected = tuned(Tuner(source), [problems[i] for i in kept], config)
    stock, looks = tuner_module.objective_loss, [0]

    def loss(*given: Any, prior: Tensor, **named: Any) -> Tensor:
        looks[0] += 1
        failing = (prior[:, 1] == 0.2) & (looks[0] == 3)
        return torch.where(failing, torch.nan, 1.0) * stock(*given, prior=prior, **named)

    monkeypatch.setattr(tuner_module, "objective_loss", loss)
    found = Tuner(source, TuningConfig(batch_size=6)).tune(problems, *own(config))
    assert str(found[2]) == "the infomax_kl loss of step 2 is nan" and isinstance(found[2], NotFiniteError)
    for i, other in zip(kept, expected, strict=True):
        assert_close(found[i], other)


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("objective", ["infomax", "infomax_kl"])
@pytest.mark.parametrize("shared", [False, True])
def test_single_sample_has_no_mutual_information_and_returns_the_start(objective: Any, tune: Any, shared: bool) -> None:
    source = fake_source()
    config = changed(EXACT, objective=objective, tune=tune, per_au_context=not shared)
    start = other_start(source, tune, seed=1)
    found = tuned(Tuner(source), [problem(5, seed=1, start=start), problem(5, seed=1)], config)
    assert torch.equal(found[0].parameter, start) and found[0].steps == found[1].steps == 0
    assert torch.equal(found[1].au_embeddings, source.au_embeddings)
    assert tuned(Tuner(source), [problem(5, seed=1)], changed(config, objective="entropy"))[0].steps == STEPS


def test_no_problems_no_results() -> None:
    assert Tuner(fake_source()).tune([], *own(EXACT)) == []


def test_records_print_shapes() -> None:
    assert repr(problem(1, 2)) == "Problem(2 samples)"
    assert repr(Tuned(torch.zeros(6, 4, 32), torch.zeros(6, 16), 3)) == "Tuned((6, 4, 32), 3 steps)"


@pytest.mark.parametrize("tune", TUNES)
def test_no_weight_and_no_start_gets_a_gradient(tune: Any) -> None:
    source = fake_source()
    problems = various(source, tune)
    found = tuned(Tuner(source), problems, changed(EXACT, tune=tune))
    weights = [*source.model.parameters(), *source.backbone.model.parameters()]
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)
    given = [source.context, source.text_features, *(p.start for p in problems if p.start is not None)]
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in given)
    assert not any(one.parameter.requires_grad or one.au_embeddings.requires_grad for one in found)


def test_many_windows_go_in_parts_with_the_same_result_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    source = fake_source()
    problems = alike(source, "context")
    config = changed(EXACT, readout="mean_windows")
    expected = tuned(Tuner(source), problems, config)
    sizes: list[int] = []
    logits = source.logits

    def counted(embeddings: Tensor, au_embeddings: Tensor | None = None) -> Tensor:
        sizes.append(embeddings.shape[:-1].numel())
        return logits(embeddings, au_embeddings)

    again: list[int] = []
    stock = checkpoint

    def noted(*given: Any, **named: Any) -> Tensor:
        again.append(1)
        result: Tensor = stock(*given, **named)
        return result

    monkeypatch.setattr(source, "logits", counted)
    monkeypatch.setattr(tuner_module, "checkpoint", noted)
    tuned(Tuner(source), problems, config)
    assert not again, "few windows are kept for the backward pass"
    assert max(len(torch.cat(list(one.samples))) for one in problems) == 8
    for most in (6, 24):  # fewer than a problem has, and fewer than the batch has
        sizes.clear()
        again.clear()
        monkeypatch.setattr(tuner_module, "_WINDOWS_PER_PASS", most)
        found = tuned(Tuner(source), problems, config)
        assert max(sizes) <= most and len(again) > STEPS, "many are computed again in the backward pass"
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("objective", ["entropy", "infomax", "infomax_kl"])
def test_tuning_lowers_its_objective_and_leaves_the_start_alone(objective: Any) -> None:
    source, windows = fake_source(), units(8, seed=0)
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
    source, windows = fake_source(), units(3, seed=0)
    rms = float(source.context.square().mean().sqrt())
    assert 0.01 < rms < 0.03
    relative = tune_context(source, windows.split(1), source.context, changed(ENTROPY, steps=1, learning_rate=0.5))
    assert float((relative - source.context).abs().median()) == pytest.approx(0.5 * rms, rel=1e-2)
    absolute = changed(ENTROPY, steps=1, learning_rate=0.5, learning_rate_unit="absolute")
    moved = tune_context(source, windows.split(1), source.context, absolute) - source.context
    assert float(moved.abs().median()) == pytest.approx(0.5, rel=1e-2)


def source_with_context(phrase: str, tokens: int) -> Source:
    checkpoint = fake_checkpoint()
    spec = replace(checkpoint.spec, context=phrase, context_tokens=tokens)
    return Source(replace(checkpoint, spec=spec), shared_backbone())


def test_prompts_without_context_tokens_have_none_to_tune() -> None:
    source = source_with_context("", 0)
    with pytest.raises(
        ValueError, match=r"adapt\.method\.tune='context', but this checkpoint's prompts have no context tokens"
    ):
        tune_context(source, units(2, seed=0).split(1), None, ENTROPY)
    Tuner(source).tune([Problem(units(2, seed=0).split(1))], *own(changed(ENTROPY, tune="feature")))


@pytest.mark.parametrize("phrase", ["a human face with", ""])
def test_shared_context_is_one_displacement_for_all_prompts(phrase: str) -> None:
    """Where context stands in the AUs' own words, they keep what distinguishes them."""
    source, windows = source_with_context(phrase, 4 if phrase else 2), units(3, seed=0)
    tuned = tune_context(source, windows.split(1), source.context, changed(ENTROPY, per_au_context=False))
    moved = tuned - source.context
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-6, rtol=0)
    assert float(moved.abs().max()) > 1e-4
    still = tune_context(
        source, windows.split(1), source.context, changed(ENTROPY, per_au_context=False, learning_rate=1e-12)
    )
    torch.testing.assert_close(still, source.context, atol=1e-9, rtol=0)
    free = tune_context(source, windows.split(1), source.context, ENTROPY) - source.context
    assert not torch.allclose(free[0], free[1], atol=1e-6)


@pytest.mark.parametrize("objective", ["infomax", "infomax_kl"])
def test_mutual_information_of_one_window_moves_nothing(objective: Any) -> None:
    """It is zero whatever the prompts are; AdamW would turn rounding errors into steps of full size."""
    source = fake_source()
    config = adapt_config(objective=objective, steps=5, learning_rate=0.3)
    tuned = tune_context(source, units(1, seed=0).split(1), source.context, config)
    assert torch.equal(tuned, source.context) and tuned is not source.context
    assert not torch.equal(tune_context(source, units(2, seed=0).split(1), source.context, config), source.context)


def test_numbers_that_are_not_finite_stop_the_tuning() -> None:
    source = fake_source()
    with pytest.raises(NotFiniteError, match="the entropy loss of step 0 is nan"):
        tune_context(source, [torch.full((1, FEATURE_DIM), float("nan"))], source.context, ENTROPY)
    with pytest.raises(NotFiniteError, match=r"the entropy loss of step 1 is nan|the tuned prompts are not finite"):
        huge = changed(ENTROPY, learning_rate=1e37, learning_rate_unit="absolute")
        tune_context(source, units(2, seed=0).split(1), source.context, huge)


def test_a_sample_is_the_mean_of_the_logits_of_its_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of different length, under the tuned prompts and under the source prompts alike."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss(logits: torch.Tensor, source_logits: torch.Tensor, method: ClipAUTT, **given: Any) -> torch.Tensor:
        seen.append((logits.detach()[0, :3].float(), source_logits[0, :3].float()))  # a fourth is empty
        return objective_loss(logits, source_logits, method, **given)

    monkeypatch.setattr(tuner_module, "objective_loss", loss)
    source, windows = fake_source(), units(6, seed=0)
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
    windows = units(200, seed=0)
    margins = source.logits(windows).diff(dim=-1)[:, 0]
    samples = windows[margins.argsort(descending=True)[:12]].split(1)
    left = []
    for weight in (0.5, 1.0, 4.0):
        config = adapt_config(objective="infomax", steps=10, learning_rate=0.3, balance_weight=weight)
        tuned = source.au_embeddings_of(tune_context(source, samples, source.context, config))
        left.append(int((source.logits(torch.cat(samples), tuned).diff(dim=-1) < 0).sum()))
    assert left[0] <= left[1] <= left[2] and left[2] > left[0]


def test_golden_logits_gradient_and_tuned_context() -> None:
    source, windows, expected = golden.load()
    found = golden.compute(source, windows)
    assert set(found) == set(expected) == {"logits", "gradient", "tuned_context"}
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        assert (found[name] - value).abs().max() <= 1e-5 * scale, name
    assert (expected["tuned_context"] - source.context).abs().max() > 1e-3


def sizes_of_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many problems come in each batch from now on."""
    sizes: list[int] = []
    stock = Tuner._tune_batch

    def counted(self: Tuner, problems: Sequence[Problem], *rest: Any) -> list[Tuned | DegenerateError]:
        sizes.append(len(problems))
        return stock(self, problems, *rest)

    monkeypatch.setattr(Tuner, "_tune_batch", counted)
    return sizes


def test_batch_size_bounds_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, source = sizes_of_batches(monkeypatch), fake_source()
    problems = alike(source, "context")
    found = tuned(Tuner(source, TuningConfig(batch_size=4)), problems, EXACT)
    assert sizes == [4, 2]
    for one, other in zip(found, tuned(Tuner(source, TuningConfig(batch_size=6)), problems, EXACT), strict=True):
        assert_close(one, other)


def test_problems_of_like_size_stand_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding is least when small problems are not in a batch with large ones; the order of the results stays."""
    longest: list[int] = []
    stock = tuner_module._batch

    def counted(problems: Sequence[Problem], *rest: Any) -> Any:
        longest.append(max(sum(map(len, p.samples)) for p in problems))
        return stock(problems, *rest)

    monkeypatch.setattr(tuner_module, "_batch", counted)
    source = fake_source()
    problems = [problem(*[1] * count, seed=count) for count in (17, 2, 9, 3)]
    assert [tuner_module._shape(one) for one in problems] == [(32, 32, 1), (16, 2, 1), (16, 16, 1), (16, 4, 1)]
    found = tuned(Tuner(source, TuningConfig(batch_size=2)), problems, EXACT)
    assert longest == [2, 3, 9, 17]
    for one, alone in zip(found, problems, strict=True):
        assert_close(one, tuned(Tuner(source), [alone], EXACT)[0])


def test_memory_bounds_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, source = sizes_of_batches(monkeypatch), fake_source()
    monkeypatch.setattr(Tuner, "bytes_per_problem", lambda *_: 400 * 1024)
    problems = [problem(1, 1, seed=seed) for seed in range(7)]
    tuned(Tuner(source, TuningConfig(memory_mb=1)), problems, EXACT)
    assert sizes == [2, 2, 2, 1]
    assert Tuner(source, TuningConfig(memory_mb=1000)).batch_size(EXACT.method) == 32, "at most"
    monkeypatch.setattr(Tuner, "bytes_per_problem", lambda *_: 2**40)
    assert Tuner(source, TuningConfig(memory_mb=1)).batch_size(EXACT.method) == 1, "at least"
    monkeypatch.setattr(tuner_module, "free_bytes", lambda device: 3 * 2**40)
    assert Tuner(source).batch_size(EXACT.method) == 3, "what is free, without a setting"


def test_what_a_problem_takes_is_measured() -> None:
    """Layers, tokens and width tell the order of it; the cheap mode keeps far less."""
    tuner = Tuner(fake_source())
    tokens = sum(int(end) for end in fake_source().prompts.tokens.argmax(-1))
    exact, cheap = (tuner.bytes_per_problem(changed(EXACT, tune=tune).method) for tune in ("context", "feature"))
    layers, floats = 2, 4
    assert 8 < exact / (tokens * TEXT_WIDTH * layers * floats) < 40
    assert 0 < cheap < exact / 10


def fail_beyond(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception | None = None) -> list[int]:
    """The text side runs out of memory when it is asked about more than so many contexts; what it was asked."""
    asked: list[int] = []
    stock = Source.prompt_reader

    def prompt_reader(self: Source, precision: Any = "fp32") -> Callable[[Tensor], Tensor]:
        read = stock(self, precision)

        def limited(context: Tensor) -> Tensor:
            asked.append(len(context))
            if len(context) > most:
                raise error or torch.OutOfMemoryError(f"{len(context)} are too many")
            return read(context)

        return limited

    monkeypatch.setattr(Source, "prompt_reader", prompt_reader)
    return asked


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_batches_are_halved_where_memory_is_short(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fake_source()
    problems = alike(source, "context")
    expected = tuned(Tuner(source), problems, EXACT)
    sizes, asked = sizes_of_batches(monkeypatch), fail_beyond(monkeypatch, 1, error)
    tuner = Tuner(source, TuningConfig(batch_size=5))
    found = tuned(tuner, problems, EXACT)
    assert sizes == [5, 2, 1, 1, 1, 1, 1, 1] and max(asked[2:]) == 1
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    sizes.clear()
    tuned(tuner, problems[:2], EXACT)
    assert sizes == [1, 1], "what did not fit is not tried again"
    sizes.clear()
    small = [problem(1, seed=seed) for seed in range(2)]
    tuned(tuner, small, changed(EXACT, objective="entropy"))
    assert sizes == [2, 1, 1], "but problems of another shape are tried together"


def test_without_memory_for_two_problems_one_at_a_time_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the size of the batch is found by itself."""
    source = fake_source()
    problems = alike(source, "context")
    expected = tuned(Tuner(source), problems, EXACT)
    sizes, _ = sizes_of_batches(monkeypatch), fail_beyond(monkeypatch, 1)
    tuner = Tuner(source)
    for one, other in zip(tuned(tuner, problems, EXACT), expected, strict=True):
        assert_close(one, other)
    assert set(sizes) == {1} and tuner.measure_batch_size(*own(EXACT)) == 1


def test_too_little_memory_for_one_problem_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_beyond(monkeypatch, 0)
    message = (
        r"the memory of cpu is too small to tune a single problem \(1 are too many\); .* "
        r"or set adapt\.method\.tune=feature"
    )
    for config in (TuningConfig(batch_size=2), TuningConfig()):
        with pytest.raises(MemoryError, match=message):
            Tuner(fake_source(), config).tune([problem(1, 1), problem(1, 1)], *own(EXACT))


def test_other_errors_are_not_taken_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of_batches(monkeypatch)
    fail_beyond(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        Tuner(fake_source(), TuningConfig(batch_size=2)).tune([problem(1, 1), problem(1, 1)], *own(EXACT))
    assert sizes == [2]


def clocked(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> list[int]:
    """A step of so many problems takes so long; the sizes that were tried."""
    tried: list[int] = []

    def step(self: Tuner, method: Any, readout: Any, size: int) -> float:
        tried.append(size)
        return seconds(size)

    monkeypatch.setattr(Tuner, "_seconds_of_step", step)
    return tried


def test_the_fastest_batch_size_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = clocked(monkeypatch, lambda size: 1.0 + (0.1 if size <= 8 else 0.3) * size)
    tuner = Tuner(fake_source(), TuningConfig(memory_mb=1000))
    assert tuner.measure_batch_size(*own(EXACT)) == 8 == tuner.batch_size(EXACT.method)
    assert tried == [1, 2, 4, 8, 16, 32], "the search ends where two doublings have gained nothing"
    clocked(monkeypatch, lambda size: 1.0)
    assert tuner.measure_batch_size(*own(EXACT)) == 32, "at most"
    monkeypatch.setattr(Tuner, "bytes_per_problem", lambda *_: 2**20)
    small = Tuner(fake_source(), TuningConfig(memory_mb=5))
    assert small.measure_batch_size(*own(EXACT)) == 4, "the largest power of two that the memory holds"


def test_measuring_ends_where_memory_does_and_keeps_a_configured_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(size: int) -> float:
        if size > 4:
            raise torch.OutOfMemoryError("too many")
        return 1.0

    tried = clocked(monkeypatch, seconds)
    assert Tuner(fake_source()).measure_batch_size(*own(EXACT)) == 4
    tried.clear()
    assert Tuner(fake_source(), TuningConfig(batch_size=7)).measure_batch_size(*own(EXACT)) == 7 and tried == []

    def broken(size: int) -> float:
        raise RuntimeError("a driver is gone")

    clocked(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="a driver is gone"):
        Tuner(fake_source()).measure_batch_size(*own(EXACT))


@pytest.mark.parametrize("tune", TUNES)
def test_a_measured_size_is_within_its_limits(tune: Any) -> None:
    """The real measurement, whatever it says on this machine."""
    tuner = Tuner(fake_source(), TuningConfig(memory_mb=64))
    config = changed(EXACT, tune=tune)
    size = tuner.measure_batch_size(*own(config))
    assert size in (1, 2, 4, 8, 16, 32) and tuner.batch_size(config.method) == size


def calls_of_the_tower(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many contexts the tower is asked, each time from now on."""
    return fail_beyond(monkeypatch, sys.maxsize)


def test_exact_mode_asks_the_tower_once_per_step_and_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, source = calls_of_the_tower(monkeypatch), fake_source()
    problems = [problem(1, 2, seed=seed) for seed in range(3)]
    tuned(Tuner(source, TuningConfig(batch_size=3)), problems, EXACT)
    assert asked == [3] * (STEPS + 1)
    asked.clear()
    tuned(Tuner(source, TuningConfig(batch_size=2)), problems, EXACT)
    assert asked == [2] * (STEPS + 1) + [1] * (STEPS + 1)


def test_feature_mode_never_asks_the_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, source = calls_of_the_tower(monkeypatch), fake_source()
    tuned(Tuner(source), [problem(1, 2)], changed(EXACT, tune="feature"))
    assert asked == []


def test_stopped_problems_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    source = fake_source()
    problems = alike(source, "context")
    config = changed(EXACT, steps=30, tolerance=5e-3)
    steps = [one.steps for one in tuned(Tuner(source, TuningConfig(batch_size=6)), problems, config)]
    asked = calls_of_the_tower(monkeypatch)
    tuned(Tuner(source, TuningConfig(batch_size=6)), problems, config)
    moving = [count for count, one in zip(steps, problems, strict=True) if len(one.samples) > 1]
    looked = [sum(count >= step for count in moving) for step in range(max(moving) + 1)]
    assert asked == [*[count for count in looked if count][:30], 6]


REAL_SHORTAGE = """
import resource
import torch
from clipautt.memory import is_out_of_memory
from tests.clipautt.adaptation.methods.clip_autt.test_tuner import *

GIVEN = own(EXACT)

source = fake_source()
tuner = Tuner(source, TuningConfig(batch_size=4))
problems = [problem(*[20_000] * 8, seed=seed) for seed in range(4)]
(before,) = Tuner(source).tune([problem(1, 1)], *GIVEN)  # every library is loaded before the limit
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 48 * 2**20,) * 2)
try:
    torch.zeros(2**28)
except RuntimeError as error:
    print("recognized", is_out_of_memory(error))
try:
    tuner.tune(problems, *GIVEN)
except MemoryError as error:
    print("raised", str(error)[:62])
(after,) = tuner.tune([problem(1, 1)], *GIVEN)
print("goes on", torch.equal(before.parameter, after.parameter), tuner.batch_size(EXACT.method))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are Linux's")
def test_a_real_shortage_is_recognized() -> None:
    """A process whose address space ends; PyTorch raises a plain RuntimeError there."""
    done = subprocess.run([sys.executable, "-c", REAL_SHORTAGE], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "recognized True",
        "raised the memory of cpu is too small to tune a single problem ([enfo",
        "goes on True 4",
    ], done.stderr[-2000:]


def test_bf16_tunes_float32_contexts_near_the_exact_ones() -> None:
    """Two small steps: AdamW makes full steps of small gradients too, so that rounding adds up over many."""
    source = fake_source()
    config = changed(EXACT, steps=2, learning_rate=0.05)
    problems = various(source, "context")
    coarse = tuned(Tuner(source), problems, changed(config, precision="bf16"))
    for one, other in zip(coarse, tuned(Tuner(source), problems, config), strict=True):
        assert one.parameter.dtype == one.au_embeddings.dtype == torch.float32
        assert F.cosine_similarity(one.au_embeddings, other.au_embeddings, dim=-1).min() > 0.99
        assert not torch.equal(one.au_embeddings, other.au_embeddings)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_compiled_tower_gives_the_same() -> None:
    source = fake_source()
    problems = various(source, "context")
    expected = tuned(Tuner(source), problems, EXACT)
    compiled = Tuner(source, TuningConfig(compile="default"))
    assert compiled._reader(own(EXACT)[0]) is not source.prompt_reader()
    for one, other in zip(tuned(compiled, problems, EXACT), expected, strict=True):
        assert_close(one, other, atol=1e-4)
