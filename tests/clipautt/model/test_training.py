"""Training on features: repeatable, independent of order, and able to learn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from clipautt.clips import id_number
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.network import ClipAU, initial_model
from clipautt.model.training import (
    Example,
    TrainConfig,
    augmented_batches,
    batch_windows,
    centre_subjects,
    class_shares,
    epoch_batches,
    epoch_order,
    fit,
    make_optimizer,
    random_window,
    subject_centres,
    validate,
)
from clipautt.model.windows import WindowSpec
from clipautt.settings import one_line
from clipautt.video.augmentation import Augmentation
from tests.support.fakes import FEATURE_DIM, PHRASES, fake_clip, fake_clips, fake_label, fake_model, fake_source

WINDOW = WindowSpec(length=6)


def examples_of(**options: Any) -> list[Example]:
    clips = centre_subjects(fake_clips(**options), "median")
    return [Example(clip, fake_label(clip)) for clip in clips]


def trained(examples: Sequence[Example], *, seed: int = 0, **options: Any) -> ClipAU:
    values: dict[str, Any] = {"window": WINDOW, "seed": seed, "epochs": 2} | options
    config = TrainConfig(**values)
    model = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=seed)
    fit(model, fake_source().text_features, examples, config)
    return model


@pytest.mark.parametrize(
    ("labels", "num_classes", "shares"),
    [
        ([0, 0, 0, 1], 2, [0.75, 0.25]),
        ([1, 0], 2, [0.5, 0.5]),
        ([0, 0, 0], 2, [0.75, 0.25]),  # a class that is missing counts as one clip: its logarithm is needed
        ([2, 2, 0, 2, 0, 1, 2, 2], 3, [0.25, 0.125, 0.625]),
        ([], 2, [0.5, 0.5]),
    ],
)
def test_class_shares_literal(labels: list[int], num_classes: int, shares: list[float]) -> None:
    found = class_shares(labels, num_classes=num_classes)
    assert found == tuple(shares) and all(type(share) is float for share in found), "plain numbers, which JSON takes"


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_ten_epochs_learn_what_can_be_learned() -> None:
    examples, unseen = examples_of(subjects=8), examples_of(subjects=4, seed=1)
    config, text = TrainConfig(window=WINDOW), fake_source().text_features
    model = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=0)
    losses: list[float] = []
    fit(model, text, examples, config, on_epoch=lambda _, loss: losses.append(loss))
    assert len(losses) == 10 and losses[-1] < losses[0] / 2
    assert not model.training
    scores = validate(model, text, unseen, config)
    assert scores["war"] > 0.9 and scores["uar"] > 0.9 and 0 <= scores["entropy"] < 0.6
    assert validate(model, text, [], config) == {}


def test_order_of_the_examples_changes_nothing() -> None:
    examples = examples_of()
    shuffled = [examples[i] for i in np.random.default_rng(0).permutation(len(examples))]
    assert same(trained(examples), trained(shuffled))


@pytest.mark.parametrize("baseline", ["mean", "median"])
def test_order_of_the_clips_changes_no_centre(baseline: Any) -> None:
    clips = fake_clips(subjects=2, per_subject=9)
    forward = {clip.clip_id: clip for clip in centre_subjects(clips, baseline)}
    backward = {clip.clip_id: clip for clip in centre_subjects(clips[::-1], baseline)}
    assert all(torch.equal(forward[name].features, backward[name].features) for name in forward)


def test_another_seed_gives_another_model_and_the_same_seed_the_same() -> None:
    examples = examples_of()
    assert same(trained(examples, seed=1), trained(examples, seed=1))
    assert not same(trained(examples, seed=1), trained(examples, seed=2))


def test_global_generators_change_nothing() -> None:
    examples = examples_of()
    torch.manual_seed(1)
    np.random.seed(1)
    one = trained(examples)
    torch.manual_seed(2)
    np.random.seed(2)
    assert same(one, trained(examples))


def test_every_epoch_sees_every_clip_once_and_the_last_batch_is_kept() -> None:
    examples = examples_of(subjects=3, per_subject=7)
    config = TrainConfig(window=WINDOW, batch_size=8)
    orders = []
    for epoch in range(3):
        batches = epoch_batches(examples, config, epoch)
        assert [len(batch) for batch in batches] == [8, 8, 5]
        orders.append([example.clip.clip_id for batch in batches for example in batch])
        assert sorted(orders[-1]) == sorted(example.clip.clip_id for example in examples)
    assert orders[0] != orders[1] != orders[2]


def test_order_of_an_epoch_literal() -> None:
    """Checkpoints trained before depend on it: the sorted ids, permuted by a generator from [seed, 11, epoch]."""
    config = TrainConfig(seed=3)
    ids = ["c", "a", "e", "b", "d"]
    assert ["".join(ids[i] for i in epoch_order(ids, config, epoch)) for epoch in range(3)] == [
        "dcbae",
        "abdec",
        "aedcb",
    ]
    assert epoch_order([], config, 0) == []


def test_batches_may_be_made_as_training_goes_on() -> None:
    """Streamed batches give the very model of stored ones, and each is made when its turn has come."""
    examples = examples_of(subjects=3, per_subject=3)
    config = TrainConfig(window=WINDOW, epochs=3, batch_size=4, features="streamed")
    made: list[tuple[int, int]] = []

    def batches(epoch: int) -> Iterator[Sequence[Example]]:
        for number, batch in enumerate(epoch_batches(examples[::-1], config, epoch)):
            made.append((epoch, number))
            yield batch

    model, seen = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=0), []
    fit(model, fake_source().text_features, batches, config, on_epoch=lambda *_: seen.append(len(made)))
    assert same(model, trained(examples, epochs=3, batch_size=4))
    assert seen == [3, 6, 9] and made == [(epoch, number) for epoch in range(3) for number in range(3)]


def test_an_epoch_without_batches_is_an_error() -> None:
    config = TrainConfig(features="streamed")
    model = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=0)
    with pytest.raises(ValueError, match="no labelled source clips with features; check the extraction's failures"):
        fit(model, fake_source().text_features, lambda epoch: [], config)


@pytest.mark.parametrize("features", ["augmented", "streamed"])
def test_clean_examples_are_refused_where_augmentation_was_asked_for(features: Any) -> None:
    """A caller that knows only features would pass over the augmentation in silence."""
    with pytest.raises(ValueError, match=rf"train\.features='{features}' is not possible here, .*features=cached"):
        trained(examples_of(), features=features)


def shifted(clips: Sequence[ClipFeatures], by: float) -> dict[str, ClipFeatures]:
    return {clip.clip_id: replace(clip, features=clip.features + by) for clip in clips}


def test_epochs_take_the_passes_in_turn_in_the_order_of_streaming() -> None:
    clips = fake_clips(subjects=3)
    labels = {clip.clip_id: number % 2 for number, clip in enumerate(clips) if clip.subject_id != "s2"}
    centres = subject_centres(clips, "median")
    config = TrainConfig(window=WINDOW, batch_size=3, features="augmented")
    passes = [shifted(clips, 1.0), shifted(clips, 2.0)]
    lost = sorted(labels)[0]
    del passes[1][lost]
    batches = augmented_batches(passes, labels, centres, config)
    assert batches.omitted == {lost: (1,)}
    for epoch in range(4):
        order = [sorted(labels)[i] for i in epoch_order(sorted(labels), config, epoch)]
        examples = [example for batch in batches(epoch) for example in batch]
        assert [e.clip.clip_id for e in examples] == [name for name in order if epoch % 2 == 0 or name != lost]
        assert [len(batch) for batch in batches(epoch)][:-1] == [3] * (len(batches(epoch)) - 1)
        for example in examples:
            clean = next(clip for clip in clips if clip.clip_id == example.clip.clip_id)
            expected = clean.features - centres[clean.subject_id] + 1 + epoch % 2
            torch.testing.assert_close(example.clip.features, expected, atol=1e-6, rtol=0)
            assert example.label == labels[clean.clip_id]


def test_passes_that_change_nothing_give_the_model_of_stored_features() -> None:
    examples = examples_of(subjects=2, per_subject=3)
    clean = {example.clip.clip_id: example.clip for example in examples}
    config = TrainConfig(window=WINDOW, epochs=3, batch_size=4, features="augmented")
    labels = {example.clip.clip_id: example.label for example in examples}
    model = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=0)
    fit(model, fake_source().text_features, augmented_batches([clean, clean], labels, {}, config), config)
    assert same(model, trained(examples, epochs=3, batch_size=4))


def test_augmented_clips_without_what_they_need_are_told() -> None:
    clips, config = fake_clips(subjects=2), TrainConfig(window=WINDOW, features="augmented")
    labels = {clip.clip_id: 0 for clip in clips}
    with pytest.raises(ValueError, match="no passes of augmented features; give one or more"):
        augmented_batches([], labels, {}, config)
    centres = subject_centres([clip for clip in clips if clip.subject_id == "s0"], "mean")
    with pytest.raises(ValueError, match=r"clip 's1.*' has augmented features, but subject 's1' has no centre: its cl"):
        augmented_batches([shifted(clips, 0)], labels, centres, config)
    assert augmented_batches([{}], {"x": 1}, {}, config).omitted == {"x": (0,)}
    assert augmented_batches([{}], {"x": 1}, {}, config)(0) == []


@pytest.mark.parametrize("baseline", ["none", "mean", "median"])
def test_subject_centres_are_what_centring_removes(baseline: Any) -> None:
    clips = fake_clips(subjects=2)
    centres = subject_centres(clips, baseline)
    assert set(centres) == {"s0", "s1"}
    for before, after in zip(clips, centre_subjects(clips, baseline), strict=True):
        assert torch.equal(before.features - centres[before.subject_id], after.features)


def test_clips_of_the_last_batch_are_learned_from() -> None:
    """Were the incomplete batch dropped, its clip's label could not matter."""
    examples = examples_of(subjects=3, per_subject=3)
    last = epoch_batches(examples, TrainConfig(window=WINDOW), 0)[-1]
    assert len(last) == 1
    changed = [Example(e.clip, 1 - e.label) if e is last[0] else e for e in examples]
    assert not same(trained(examples, epochs=1), trained(changed, epochs=1))


def test_windows_lie_inside_the_clip_without_wrapping_and_follow_the_clip() -> None:
    frames = torch.arange(20.0)[:, None].expand(20, FEATURE_DIM)
    clip = fake_clip()
    counted = type(clip)("c", "s", frames, clip.times)
    config = TrainConfig(window=WINDOW)
    starts = set()
    for epoch in range(200):
        windows, lengths, labels = batch_windows([Example(counted, 1)], config, epoch)
        values = windows[0, :, 0]
        assert windows.shape == (1, 6, FEATURE_DIM) and lengths.tolist() == [6] and labels.tolist() == [1]
        assert torch.equal(values, values[0] + torch.arange(6.0)) and values[-1] <= 19
        starts.add(int(values[0]))
        again, _, _ = batch_windows([Example(fake_clip("other"), 0), Example(counted, 1)], config, epoch)
        assert torch.equal(again[1], windows[0])
    assert starts == set(range(15))


def test_strided_windows_begin_at_any_phase() -> None:
    clip = fake_clip()
    counted = type(clip)("c", "s", torch.arange(20.0)[:, None], clip.times)
    rng, phases = np.random.default_rng(0), set()
    for _ in range(50):
        window = random_window(counted, WindowSpec(length=4, stride=3), rng)[:, 0]
        assert torch.equal(window.diff(), torch.full((3,), 3.0))
        phases.add(int(window[0]) % 3)
    assert phases == {0, 1, 2}


@pytest.mark.parametrize("stride", [1, 3, 9])
def test_a_clip_shorter_than_a_window_is_trained_on_as_it_is_tested(stride: int) -> None:
    config = TrainConfig(window=WindowSpec(length=6, stride=stride))
    short, long = fake_clip("short", num_frames=4), fake_clip("long", num_frames=80)
    windows, lengths, _ = batch_windows([Example(short, 1), Example(long, 0)], config, 0)
    assert lengths[0] in {1: (4,), 3: (1, 2), 9: (1,)}[stride] and lengths[1] == 6
    model = fake_model()
    with torch.no_grad():
        trained_on = model.video_embedding(windows, lengths)
        alone = model.video_embedding(windows[:1, : lengths[0]])
        tested = model.window_embeddings(windows[0, : lengths[0]], WindowSpec(length=6))[0]
    torch.testing.assert_close(trained_on[:1], alone)
    torch.testing.assert_close(trained_on[:1], tested)


@pytest.mark.parametrize(("num_examples", "world_size"), [(9, 2), (8, 2), (3, 4), (8, 3)])
def test_shares_of_the_workers_cover_the_batch_with_equal_weight(num_examples: int, world_size: int) -> None:
    """The gradients of all workers, averaged, are the gradient of one worker with the whole batch."""
    examples = examples_of(subjects=3, per_subject=3)[:num_examples]
    config = TrainConfig(window=WINDOW, epochs=1, batch_size=num_examples)
    text = fake_source().text_features

    def gradients(rank: int, size: int) -> list[torch.Tensor]:
        model = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=0)
        kept = torch.optim.SGD(model.parameters(), lr=0.0)
        fit(model, text, examples, config, rank=rank, world_size=size, optimizer=kept)
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    shares = [gradients(rank, world_size) for rank in range(world_size)]
    for whole, *parts in zip(gradients(0, 1), *shares, strict=True):
        torch.testing.assert_close(sum(parts) / world_size, whole, atol=1e-6, rtol=1e-4)


def test_training_goes_on_where_it_stopped() -> None:
    examples, text = examples_of(), fake_source().text_features
    whole = trained(examples, epochs=4)
    model = initial_model(FEATURE_DIM, len(PHRASES), 2, seed=0)
    first, second = TrainConfig(window=WINDOW, epochs=2), TrainConfig(window=WINDOW, epochs=4)
    optimizer = make_optimizer(model, first)
    fit(model, text, examples, first, optimizer=optimizer)
    fit(model, text, examples, second, optimizer=optimizer, first_epoch=2)
    assert same(whole, model)


def test_validation_takes_the_window_of_lowest_entropy() -> None:
    source = fake_source(window=WINDOW)
    clips = fake_clips(subjects=2)
    config = TrainConfig(window=WINDOW)
    scores = validate(source.model, source.text_features, [Example(c, fake_label(c)) for c in clips], config)
    correct: dict[str, list[bool]] = {}
    lowest = []
    for clip in clips:
        probabilities = F.softmax(source.logits(source.views(clip).embeddings), -1)
        entropies = -(probabilities * probabilities.log()).sum(-1)
        lowest.append(float(entropies.min()))
        guess = int(probabilities[entropies.argmin()].argmax())
        correct.setdefault(clip.subject_id, []).append(guess == fake_label(clip))
    assert scores["war"] == pytest.approx(np.mean([np.mean(c) for c in correct.values()]))
    assert scores["entropy"] == pytest.approx(np.mean(lowest), abs=1e-5)


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no labelled source clips with features"):
        trained([])


def test_loss_that_is_not_finite_is_an_error() -> None:
    clip = fake_clip()
    broken = Example(type(clip)("c", "s", torch.full((8, FEATURE_DIM), float("nan")), clip.times[:8]), 1)
    with pytest.raises(FloatingPointError, match="the loss of epoch 0 is nan"):
        trained([broken])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"train\.epochs=0: should be greater than 0"),
        ({"batch_size": 0}, r"train\.batch_size=0: should be greater than 0"),
        ({"learning_rate": 0.0}, r"train\.learning_rate=0\.0: should be greater than 0"),
        ({"features": "live"}, r"train\.features='live': should be one of cached, augmented, streamed"),
        ({"augmented_passes": 0}, r"train\.augmented_passes=0: should be greater than 0"),
        ({"seed": -1}, r"train\.seed=-1: should be greater than or equal to 0"),
        (
            {"augmentation": Augmentation(flip=0.5)},
            r"train\.features='cached' with Augmentation\(flip=0\.5, .*: take train\.features=augmented \(.*\) or "
            r"train\.features=streamed \(.*\), or set train\.augmentation to zeros",
        ),
        ({"subject_baseline": "mode"}, r"train\.subject_baseline='mode': should be one of none, mean, median"),
    ],
)
def test_configuration_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig(**options)
    assert re.match(message, one_line(caught.value, "train"))


def test_defaults_are_the_paper_s() -> None:
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.learning_rate, config.weight_decay) == (10, 8, 1e-3, 1e-4)
    assert config.window.length == 16
    assert config.features == "cached" and config.augmentation == Augmentation()
    group = make_optimizer(initial_model(8, 2, 2, seed=0), config).param_groups[0]
    assert group["lr"] == 1e-3 and group["weight_decay"] == 1e-4


def test_id_number_literal() -> None:
    assert id_number("s1") == id_number("s1") != id_number("s10")
    assert 0 <= id_number("") < 2**63


def test_windows_are_drawn_where_the_face_is() -> None:
    """Frames 8 to 17 of 30 show it: windows of four may have one frame without it."""
    numbers = torch.arange(30.0)[:, None].expand(30, FEATURE_DIM)
    found = (np.arange(30) >= 8) & (np.arange(30) < 18)
    clip = replace(fake_clip(num_frames=30), features=numbers, face_found=found, min_share=0.75)
    rng = np.random.default_rng(0)
    drawn = [random_window(clip, WindowSpec(length=4), rng)[:, 0].tolist() for _ in range(200)]
    assert {window[0] for window in drawn} == set(range(7, 16))
    strided = [random_window(clip, WindowSpec(length=3, stride=4), rng)[:, 0].tolist() for _ in range(200)]
    assert {tuple(window) for window in strided} == {(8, 12, 16), (9, 13, 17)}


def test_where_all_frames_show_the_face_the_same_windows_are_drawn_as_without_a_detector() -> None:
    plain = fake_clip(num_frames=30)
    found = replace(plain, face_found=np.ones(30, bool), min_share=0.8)
    for spec in (WindowSpec(length=4), WindowSpec(length=4, stride=3), WindowSpec(length=40)):
        ours, theirs = (
            [random_window(clip, spec, rng) for _ in range(20)]
            for clip, rng in ((found, np.random.default_rng(1)), (plain, np.random.default_rng(1)))
        )
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_the_centre_is_that_of_frames_with_the_face() -> None:
    clip = fake_clip(num_frames=30)
    half = replace(clip, face_found=np.arange(30) < 10, min_share=0.8)
    assert torch.equal(subject_centres([half], "mean")["s0"], clip.features[:10].mean(0))
    (centred,) = centre_subjects([half], "mean")
    assert centred.face_found is half.face_found and centred.min_share == 0.8
