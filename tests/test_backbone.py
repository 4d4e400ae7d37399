"""The frozen CLIP: prompts with context read exactly as the stock model reads them, and nothing else gets through."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipautt.action_units import TASKS, content_hash, phrases
from clipautt.backbone import (
    Backbone,
    BackboneConfig,
    Preprocessing,
    SmallClipShape,
    load_backbone,
    normalise_frames,
    stock_tokenizer,
)
from tests.fakes import (
    CONTEXT,
    FEATURE_DIM,
    IMAGE_SIZE,
    PHRASES,
    PREPROCESSING,
    TEXT_WIDTH,
    fake_backbone,
    fake_clip_model,
    shared_backbone,
)


def backbone_with(**text: object) -> Backbone:
    return Backbone(fake_clip_model(**text), name="fake", preprocessing=PREPROCESSING)  # type: ignore[arg-type]


def stock_features(backbone: Backbone, texts: tuple[str, ...]) -> Tensor:
    """What open_clip itself says, at the full 77 tokens."""
    with torch.no_grad():
        return backbone.model.encode_text(stock_tokenizer()(list(texts)))


@pytest.mark.parametrize(
    "text",
    [{}, {"custom_text": True}, {"custom_text": True, "pool_type": "eos", "eos_id": 49407}, {"proj_bias": True}],
    ids=["CLIP", "CustomTextCLIP", "eos read-out", "projection with bias"],
)
def test_source_context_reads_as_the_words_do(text: dict[str, object]) -> None:
    backbone = backbone_with(**text)
    prompts = backbone.tokenize(phrases(), context=CONTEXT)
    expected = stock_features(backbone, tuple(f"{CONTEXT} {phrase}" for phrase in phrases()))
    assert expected.shape == (46, FEATURE_DIM) and backbone.feature_dim == FEATURE_DIM
    torch.testing.assert_close(backbone.encode_prompts(prompts, prompts.context), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.encode_prompts(prompts), expected, atol=1e-5, rtol=0)
    assert torch.equal(backbone.encode_prompts(prompts, prompts.context), backbone.encode_prompts(prompts))


def test_prompts_are_cut_to_their_real_length() -> None:
    prompts = shared_backbone().tokenize(["eyes closed", "nose wrinkled"], context=CONTEXT)
    assert prompts.texts == ("a human face with eyes closed", "a human face with nose wrinkled")
    assert prompts.tokens.shape == (2, 9) and prompts.num_context == 4  # start, 4 + 3 pieces of words, end
    assert prompts.tokens[:, 0].tolist() == [49406, 49406]
    assert prompts.tokens[:, -2:].tolist() == [[49407, 0], [prompts.tokens[1, -2], 49407]]
    assert prompts.embeddings.shape == (2, 9, TEXT_WIDTH) and prompts.context.shape == (2, 4, TEXT_WIDTH)
    assert prompts.content_hash == content_hash(prompts.texts)
    assert shared_backbone().tokenize(phrases(), context=CONTEXT).tokens.shape == (46, 15)


def test_without_a_leading_phrase_there_is_no_context() -> None:
    prompts = shared_backbone().tokenize(["lips parted"])
    assert prompts.num_context == 0 and prompts.context.shape == (1, 0, TEXT_WIDTH)
    expected = stock_features(shared_backbone(), ("lips parted",))
    torch.testing.assert_close(shared_backbone().encode_prompts(prompts, prompts.context), expected, atol=1e-5, rtol=0)


def test_context_of_the_paper_has_94208_numbers() -> None:
    width = open_clip.get_model_config("ViT-B-32")["text_cfg"]["width"]
    prompts = shared_backbone().tokenize(phrases(), context=CONTEXT)
    assert prompts.context.numel() // TEXT_WIDTH * width == 46 * 4 * 512 == 94_208


def test_many_contexts_at_once_equal_one_by_one() -> None:
    backbone = shared_backbone()
    prompts = backbone.tokenize(PHRASES, context=CONTEXT)
    noise = 0.02 * torch.randn(3, 2, *prompts.context.shape, generator=torch.Generator().manual_seed(0))
    contexts = prompts.context + noise
    together = backbone.encode_prompts(prompts, contexts)
    assert together.shape == (3, 2, len(PHRASES), FEATURE_DIM)
    for i in range(3):
        for j in range(2):
            alone = backbone.encode_prompts(prompts, contexts[i, j])
            torch.testing.assert_close(together[i, j], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together[0, 0], together[1, 1], atol=1e-3)


def test_gradients_reach_the_context_of_each_prompt_and_no_weight() -> None:
    backbone = shared_backbone()
    prompts = backbone.tokenize(PHRASES, context=CONTEXT)
    context = prompts.context.requires_grad_(True)
    features = backbone.encode_prompts(prompts, context)
    (gradient,) = torch.autograd.grad(features[2].square().sum(), context)
    moved = gradient.abs().amax((1, 2)) > 0
    assert moved.tolist() == [False, False, True, False, False, False]
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not prompts.embeddings.requires_grad and not backbone.model.training


def test_source_context_is_a_copy() -> None:
    prompts = shared_backbone().tokenize(PHRASES, context=CONTEXT)
    before = prompts.embeddings.clone()
    prompts.context.zero_()
    assert torch.equal(prompts.embeddings, before)


@pytest.mark.parametrize(
    "shape", [(6, 3, TEXT_WIDTH), (5, 4, TEXT_WIDTH), (6, 4, TEXT_WIDTH + 1), (2, 1, 4, TEXT_WIDTH)]
)
def test_context_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    prompts = shared_backbone().tokenize(PHRASES, context=CONTEXT)
    with pytest.raises(ValueError, match=r"context has shape .*; these prompts take \[\.\.\., \(6, 4, 32\)\]"):
        shared_backbone().encode_prompts(prompts, torch.zeros(shape))


def test_unknown_words_are_refused() -> None:
    known = frozenset(stock_tokenizer()([f"{CONTEXT} lips parted nose"]).flatten().tolist())
    backbone = fake_backbone(known_tokens=known)
    assert backbone.tokenize(["nose parted"], context=CONTEXT).num_context == 4
    with pytest.raises(ValueError, match=r"the fake backbone was never trained on some words of \['lips wrinkled'\]"):
        backbone.tokenize(["lips parted", "lips wrinkled"])
    with pytest.raises(ValueError, match="never trained on some words"):
        backbone.tokenize(["lips parted"], context="a photo of")


def test_prompt_beyond_the_context_length_is_refused_and_one_that_just_fits_is_not() -> None:
    fits = " ".join(["nose"] * 75)
    assert shared_backbone().tokenize([fits]).tokens.shape == (1, 77)
    with pytest.raises(ValueError, match=r"the prompt 'nose nose .*' has more than the 77 tokens of fake"):
        shared_backbone().tokenize(["lips parted", f"{fits} nose"])


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}])
def test_text_tower_that_takes_no_context_is_refused(text: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"backbone\.name 'fake' has a text tower that takes no context vectors"):
        backbone_with(custom_text=True, **text)


def test_frames_equal_the_stock_image_tower() -> None:
    backbone = shared_backbone()
    frames = np.random.default_rng(0).integers(0, 256, (5, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    images = torch.from_numpy((frames / 255.0 - 0.5) / 0.25).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = backbone.model.encode_image(images)
    features = backbone.encode_frames(frames)
    assert features.shape == (5, FEATURE_DIM) and features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.encode_frames(frames, batch_size=2), features, atol=1e-5, rtol=0)
    assert backbone.encode_frames(frames[:0]).shape == (0, FEATURE_DIM)
    assert not torch.allclose(features.norm(dim=-1), torch.ones(5), atol=1e-2)  # not normalised


def test_bf16_is_close_and_counts_as_another_backbone() -> None:
    model = fake_clip_model()
    half = Backbone(model, name="fake", preprocessing=PREPROCESSING, precision="bf16")
    frames = np.random.default_rng(0).integers(0, 256, (3, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    features = half.encode_frames(frames)
    assert features.dtype == torch.float32 and half.fingerprint != fake_backbone().fingerprint
    error = (features - shared_backbone().encode_frames(frames)).norm() / features.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize("shape", [(2, 31, 32, 3), (2, 3, 32, 32), (32, 32, 3)])
def test_frames_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames have shape \(.*\); fake takes \[T, 32, 32, 3\]"):
        shared_backbone().encode_frames(np.zeros(shape, np.uint8))


def test_normalisation_literal() -> None:
    frames = torch.zeros(1, 1, 2, 3, dtype=torch.uint8)
    frames[0, 0, 1] = torch.tensor([255, 51, 102])
    images = normalise_frames(frames, Preprocessing(1, (0.5, 0.2, 0.4), (0.5, 0.1, 0.2)))
    assert images.shape == (1, 3, 1, 2) and images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images[0, :, 0], torch.tensor([[-1.0, 1.0], [-2.0, 0.0], [-2.0, 0.0]]))


def test_fingerprint_is_of_weights_preprocessing_and_activation() -> None:
    original = fake_backbone()
    assert original.fingerprint == shared_backbone().fingerprint and len(original.fingerprint) == 16
    changed = copy.deepcopy(original.model)
    changed.visual.conv1.weight[0, 0, 0, 0] += 1e-6
    others = [
        Backbone(changed, name="fake", preprocessing=PREPROCESSING),
        Backbone(original.model, name="fake", preprocessing=replace(PREPROCESSING, interpolation="bicubic")),
        Backbone(original.model, name="fake", preprocessing=replace(PREPROCESSING, mean=(0.5, 0.5, 0.51))),
        fake_backbone(custom_text=True),
        fake_backbone(seed=1),
    ]
    quick = copy.deepcopy(original.model)
    for block in quick.visual.transformer.resblocks:
        block.mlp.gelu = open_clip.transformer.QuickGELU()
    others.append(Backbone(quick, name="fake", preprocessing=PREPROCESSING))
    assert len({original.fingerprint, *(b.fingerprint for b in others)}) == 7


def test_fingerprint_is_not_of_name_or_memory_layout() -> None:
    model = fake_clip_model().to(memory_format=torch.channels_last)
    assert Backbone(model, name="other", preprocessing=PREPROCESSING).fingerprint == shared_backbone().fingerprint


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig("ViT-Z-1"), r"backbone\.name 'ViT-Z-1' is neither 'embedded' nor an open_clip model"),
        (BackboneConfig("ViT-B-32"), r"backbone\.weights is empty: give ViT-B-32 a local file or a pretrained tag"),
        (BackboneConfig("ViT-B-32", "/no/file.pt"), r"backbone\.weights '/no/file\.pt' could not be loaded into ViT-B"),
    ],
)
def test_configuration_that_names_no_backbone_is_refused(config: BackboneConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(config)


def test_embedded_backbone_reads_every_prompt_and_nothing_else() -> None:
    backbone = load_backbone(BackboneConfig())
    assert backbone.name == "embedded" and backbone.feature_dim == 128 and backbone.preprocessing.size == 96
    descriptions = [text for task in TASKS.values() for group in task.descriptions for text in group]
    for texts in (phrases(), descriptions):
        prompts = backbone.tokenize(texts, context=CONTEXT)
        features = backbone.encode_prompts(prompts)
        assert prompts.num_context == 4 and torch.isfinite(features).all()
    with pytest.raises(ValueError, match=r"the embedded backbone was never trained on some words of \['a happy dog'\]"):
        backbone.tokenize(["a happy dog"])


def test_missing_weights_of_the_embedded_backbone_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights of a small CLIP at .*gone\.safetensors"):
        load_backbone(BackboneConfig(weights=str(tmp_path / "gone.safetensors")))


@pytest.fixture(scope="module")
def tiny_architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An open_clip model name whose configuration is the fake's."""
    config = {
        "embed_dim": FEATURE_DIM,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 1, "width": 8, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": TEXT_WIDTH, "heads": 2, "layers": 2},
    }
    path = tmp_path_factory.mktemp("configs") / "clipautt-tiny.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return "clipautt-tiny"


def test_open_clip_weights_are_loaded_from_a_file(tmp_path: Path, tiny_architecture: str) -> None:
    state = {name: value.contiguous() for name, value in fake_clip_model().state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    backbone = load_backbone(BackboneConfig(tiny_architecture, str(tmp_path / "weights.safetensors")))
    assert backbone.preprocessing.size == IMAGE_SIZE and backbone.preprocessing.interpolation == "bicubic"
    prompts = backbone.tokenize(PHRASES, context=CONTEXT)
    torch.testing.assert_close(
        backbone.encode_prompts(prompts),
        stock_features(shared_backbone(), prompts.texts),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_broken_weight_files_are_named(tmp_path: Path, tiny_architecture: str, content: bytes) -> None:
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"backbone\.weights '.*{name}' could not be loaded into clipautt-tiny"):
            load_backbone(BackboneConfig(tiny_architecture, str(tmp_path / name)))


def test_weights_with_another_activation_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's weights under `ViT-B-32` would run with the wrong activation; open_clip only warns."""
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: "unused")
    with pytest.raises(ValueError, match=r"'openai' could not be loaded into ViT-B-32: QuickGELU mismatch"):
        load_backbone(BackboneConfig("ViT-B-32", "openai"))


def test_small_clip_shape_and_preprocessing_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shape\.image_size=64; its preprocessing has 96"):
        SmallClipShape(image_size=64)
