"""The embedded CLIP's captions, losses and files; a few steps of a tiny one."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clipautt.action_units import RENDERED, RESTING_PHRASES, TASKS, VOCABULARY, phrases, unit
from clipautt.backbones import pretraining
from clipautt.backbones.embedded import SmallClipShape, load_small_clip
from clipautt.backbones.facts import BackboneFacts
from clipautt.backbones.loading import Backbone
from clipautt.backbones.pretraining import (
    LEADING_PHRASE,
    OPPOSITES,
    PretrainConfig,
    au_auc,
    au_targets,
    caption,
    draw_intensities,
    draw_people,
    draw_person,
    evaluate,
    prompt_sets,
    save_small_clip,
    shipped_tokens,
    token_ids,
    train_small_clip,
)
from clipautt.backbones.text_tower import stock_tokenizer
from clipautt.footage import Footage
from clipautt.video.preprocessing import Preprocessing
from tests.support.fakes import CONTEXT

TINY = SmallClipShape(
    image_size=32,
    layers=(1, 1, 1, 1),
    width=8,
    text_width=32,
    text_heads=2,
    text_layers=2,
    embed_dim=16,
    preprocessing=Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "area"),
)
CONFIG = PretrainConfig(steps=3, identities_per_batch=3, frames_per_batch_identity=2, shape=TINY)


def people() -> tuple[Tensor, Tensor]:
    """Noise in place of faces: five people of four frames."""
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (5, 4, 32, 32, 3), np.uint8))
    intensities = np.stack([[draw_intensities(np.zeros(28), rng) for _ in range(4)] for _ in range(5)])
    return frames, torch.from_numpy(intensities)


def drawn_captions(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [caption(draw_intensities(rng.uniform(0, 0.1, 28), rng), rng) for _ in range(count)]


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return drawn_captions(2000)


def test_token_ids_are_the_stock_tokenizer_s(captions: list[str]) -> None:
    prompts = [text for texts in prompt_sets().values() for text in texts]
    texts = [*captions[:300], *prompts, *phrases(), *(u.held_out for u in VOCABULARY if u.held_out)]
    ids = token_ids(texts)
    expected = stock_tokenizer()(texts)
    assert torch.equal(ids, expected[:, : ids.shape[1]]) and expected[:, ids.shape[1] :].sum() == 0
    assert ids[:, 0].unique().tolist() == [49406] and bool((ids == 49407).sum(1).eq(1).all())


def test_no_caption_names_a_class(captions: list[str]) -> None:
    names = {name for task in TASKS.values() for name in task.classes}
    assert not names & {word for text in captions for word in text.split()}
    assert len(set(captions)) > 900


def test_held_out_wordings_never_occur_in_captions(captions: list[str]) -> None:
    held_out = [unit(code).held_out for code in RENDERED]
    pairs = itertools.permutations([(u.code, w) for u in VOCABULARY if u.held_out for w in (u.phrase, *u.wordings)], 2)
    everything = {f"{a} and {b}" for (first, a), (second, b) in pairs if first != second}
    assert len(everything) > 5000
    joined = "\n".join([*captions, *everything])
    assert [text for text in held_out if text in joined] == []


def test_captions_name_what_is_active() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros(28, np.float32)
    values[RENDERED.index("AU4")] = 0.8
    brows = {"eyebrows lowered and pulled together", "furrowed brow", "brow lowerer"}
    found = {caption(values, rng) for _ in range(200)}
    assert all(any(text.endswith(wording) for wording in brows) for text in found) and len(found) == 12
    resting = {caption(np.zeros(28, np.float32), rng) for _ in range(100)}
    assert all(any(text.endswith(phrase) for phrase in RESTING_PHRASES) for text in resting)
    values[:] = 0.25  # nothing above 0.3: the strongest is named
    values[RENDERED.index("AU12")] = 0.28
    lips = {unit("AU12").phrase, *unit("AU12").wordings}
    assert all(any(text.endswith(wording) for wording in lips) for text in (caption(values, rng) for _ in range(20)))


def test_drawn_intensities_lie_in_range_and_opposites_exclude_each_other() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_intensities(np.zeros(28), rng) for _ in range(500)])
    assert drawn.dtype == np.float32 and drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn > 0.12).sum(1).max() <= 5 and (drawn > 0.3).any(0).all()
    for first, second in OPPOSITES:
        assert (np.minimum(drawn[:, RENDERED.index(first)], drawn[:, RENDERED.index(second)]) == 0).all()


def test_targets_of_the_sigmoid_loss_literal() -> None:
    targets = au_targets(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5, 1.0]))
    torch.testing.assert_close(targets, torch.tensor([0.0, 0.0, 0.25, 0.5, 1.0, 1.0]))


def test_three_steps_are_finite_and_follow_the_seed() -> None:
    frames, intensities = people()
    losses: list[float] = []
    one = train_small_clip(CONFIG, frames, intensities, on_step=lambda _, loss: losses.append(loss))
    same = train_small_clip(CONFIG, frames, intensities)
    other = train_small_clip(replace(CONFIG, seed=1), frames, intensities)
    assert len(losses) == 3 and np.isfinite(losses).all() and not one.training
    state = one.state_dict()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in state.items())
    assert not torch.equal(state["visual.conv1.weight"], other.state_dict()["visual.conv1.weight"])
    assert all(torch.isfinite(value).all() for value in state.values())


def test_only_shipped_tokens_are_trained() -> None:
    frames, intensities = people()
    torch.manual_seed(CONFIG.seed)
    before = pretraining.build_small_clip(TINY).token_embedding.weight.detach().clone()
    after = train_small_clip(CONFIG, frames, intensities).token_embedding.weight.detach()
    changed = set((before != after).any(1).nonzero().flatten().tolist())
    assert changed and changed <= shipped_tokens()


def test_loss_that_is_not_finite_names_the_step() -> None:
    frames, intensities = people()
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan"):
        train_small_clip(CONFIG, frames, intensities * float("nan"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Path]:
    frames, intensities = people()
    model = train_small_clip(CONFIG, frames, intensities)
    backbone = Backbone(model, name="embedded", preprocessing=TINY.preprocessing)
    path = tmp_path_factory.mktemp("weights") / "new" / "small.safetensors"
    auc = evaluate(backbone, frames, intensities)
    save_small_clip(model, path, config=CONFIG, auc=auc, command="clipautt pretrain")
    return backbone, path


def test_saved_model_gives_the_same_features(saved: tuple[Backbone, Path]) -> None:
    backbone, path = saved
    loaded = load_small_clip(path)
    assert loaded.preprocessing == TINY.preprocessing and loaded.name == "embedded"
    frames = people()[0][0]
    torch.testing.assert_close(loaded.encode_frames(frames), backbone.encode_frames(frames), atol=1e-6, rtol=0)
    texts = [*phrases(), *(d for task in TASKS.values() for group in task.descriptions for d in group)]
    ours, theirs = (b.encode_prompts(b.tokenize(texts, context=LEADING_PHRASE)) for b in (loaded, backbone))
    assert torch.equal(ours, theirs)
    assert load_small_clip(path).fingerprint == loaded.fingerprint
    assert path.stat().st_size < 2_000_000  # the whole token table alone would take 6.3 MB


def test_words_that_were_never_trained_are_refused(saved: tuple[Backbone, Path]) -> None:
    loaded = load_small_clip(saved[1])
    for texts in prompt_sets().values():
        loaded.tokenize(texts)
    for name in ("neutral", "pain", "stress", "ambivalence"):
        with pytest.raises(ValueError, match=rf"the embedded backbone was never trained on some words of .*{name}"):
            loaded.tokenize([f"a face of {name}"])


def test_file_says_how_it_was_made(saved: tuple[Backbone, Path]) -> None:
    with safe_open(saved[1], framework="pt") as file:
        facts = {name: json.loads(text) for name, text in file.metadata().items()}
    assert facts["recipe"]["steps"] == 3 and facts["shape"]["embed_dim"] == 16
    assert facts["command"] == "clipautt pretrain" and set(facts["auc"]) == set(prompt_sets())
    card = saved[1].with_name("MODEL_CARD.md").read_text()
    assert "clipautt pretrain" in card and "3 steps of 6 frames" in card
    assert sum(line.startswith("| AU") for line in card.splitlines()) == 28
    assert "Taught were 28 of the 46 action units. Never learned" in card and "AU13 Sharp lip puller" in card
    assert load_small_clip(saved[1]).facts == BackboneFacts(Footage("rendered"), RENDERED)


def test_weights_of_another_shape_are_refused(saved: tuple[Backbone, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(saved[1])
    state.pop("ln_final.weight")
    with safe_open(saved[1], framework="pt") as file:
        save_file(state, tmp_path / "cut.safetensors", metadata=file.metadata())
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a small CLIP of this version: missing \['ln_final"):
        load_small_clip(tmp_path / "cut.safetensors")


def test_shipped_tokens_cover_every_prompt() -> None:
    texts = [*phrases(), *RESTING_PHRASES, LEADING_PHRASE, *(u.held_out for u in VOCABULARY)]
    texts += [d for task in TASKS.values() for group in task.descriptions for d in group]
    assert set(token_ids(texts).flatten().tolist()) <= shipped_tokens()
    assert len(shipped_tokens()) < 250
    assert LEADING_PHRASE == CONTEXT


def test_auc_literal() -> None:
    intensities, similarities = np.full((5, 28), 0.0), np.zeros((5, 28))
    intensities[:, 0] = [0.9, 0.5, 0.05, 0.0, 0.3]  # the last is neither shown nor absent
    similarities[:, 0] = [0.9, 0.2, 0.5, 0.1, 1.0]
    found = au_auc(similarities, intensities)
    assert found["AU1"] == pytest.approx(3 / 4) and list(found) == list(RENDERED)
    assert math.isnan(found["AU2"])  # never shown


def test_prompt_sets_ask_for_the_rendered_units() -> None:
    sets = prompt_sets()
    assert {len(texts) for texts in sets.values()} == {28}
    assert sets["prompt"][0] == "a human face with inner eyebrows raised"
    assert sets["held_out_wording"][0] == "a human face with inner brows lifted"


def test_drawn_person_follows_seed_stream_and_index() -> None:
    config = PretrainConfig(
        frames_per_identity=2,
        shape=SmallClipShape(image_size=64, preprocessing=replace(TINY.preprocessing, size=64)),
    )
    frames, totals = draw_person(3, config=config, stream=1)
    assert frames.shape == (2, 64, 64, 3) and frames.dtype == np.uint8 and totals.shape == (2, 28)
    again = draw_person(3, config=config, stream=1)
    assert (again[0] == frames).all() and (again[1] == totals).all()
    for index, stream in ((4, 1), (3, 2)):
        assert (draw_person(index, config=config, stream=stream)[1] != totals).any()


@pytest.mark.slow
def test_people_drawn_by_workers_are_the_same() -> None:
    config = PretrainConfig(
        frames_per_identity=2,
        shape=SmallClipShape(image_size=64, preprocessing=replace(TINY.preprocessing, size=64)),
    )
    counted: list[int] = []
    frames, totals = draw_people(config, stream=1, count=3, workers=2, progress=counted.append)
    assert frames.shape == (3, 2, 64, 64, 3) and counted == [1, 2, 3]
    alone = draw_person(2, config=config, stream=1)
    assert (frames[2].numpy() == alone[0]).all() and (totals[2].numpy() == alone[1]).all()
