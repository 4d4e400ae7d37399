"""The frozen CLIP: prompts with context read exactly as the stock model reads them, and nothing else gets through."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from clipautt.action_units import content_hash, phrases
from clipautt.backbones.frozen_clip import Backbone, Precision, image_arithmetic, normalize_frames
from clipautt.backbones.text_tower import stock_tokenizer
from clipautt.video.preprocessing import Preprocessing
from tests.support.fake_tokenizers import FAMILIES, SIGLIP, XLM, WordTokenizer
from tests.support.fakes import (
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

OTHER_CONTEXT = "the old man shows"
"""As many words, and tokens, as `CONTEXT`."""


def backbone_with(*, tokenizer: Any = None, **text: Any) -> Backbone:
    return Backbone(fake_clip_model(**text), name="fake", preprocessing=PREPROCESSING, tokenizer=tokenizer)


def stock_features(backbone: Backbone, texts: tuple[str, ...], tokenizer: Any = None) -> Tensor:
    """What open_clip itself says, at the full length of its text tower."""
    ids = (tokenizer or stock_tokenizer())(list(texts), context_length=backbone.model.context_length)
    with torch.no_grad():
        return backbone.model.encode_text(ids)


READ_OUTS = [
    ("argmax", True),
    ("argmax", False),
    ("eos", True),
    ("eos", False),
    ("last", True),
    ("last", False),
    ("first", False),
]


@pytest.mark.parametrize("custom_text", [False, True], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize(("pool", "causal"), READ_OUTS)
def test_prompts_read_as_the_words_do(custom_text: bool, pool: str, causal: bool) -> None:
    backbone = backbone_with(custom_text=custom_text, pool_type=pool, no_causal_mask=not causal, eos_id=49407)
    length = 15 if causal and pool in ("argmax", "eos") else 77
    check_prompts(backbone, phrases(), stock_tokenizer())
    prompts = backbone.tokenize(phrases(), context=CONTEXT)
    assert prompts.tokens.shape == (46, length) and (prompts.start, prompts.num_context) == (1, 4)


@pytest.mark.parametrize("custom_text", [False, True], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize(("pool", "causal"), READ_OUTS[2:])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_other_tokenizers_read_as_the_words_do(
    family: str, pool: str, causal: bool, custom_text: bool
) -> None:
    """SigLIP's has no start token and pads with its end token, BERT's writes no end token, and so on."""
    tokenizer = FAMILIES[family]
    eos_id = 4 if tokenizer.drop_end else tokenizer.end[0]
    text = {"context_length": 12, "vocab_size": 1000, "eos_id": eos_id, "pool_type": pool, "no_causal_mask": not causal}
    backbone = backbone_with(tokenizer=tokenizer, custom_text=custom_text, **text)
    texts = ("smile", "eyes closed", "nose wrinkled now")
    if pool == "eos" and tokenizer.drop_end:
        with pytest.raises(ValueError, match="fake reads out at token 4, which its tokenizer does not add"):
            backbone.tokenize(texts, context=CONTEXT)
        return
    check_prompts(backbone, texts, tokenizer)
    prompts = backbone.tokenize(texts, context=CONTEXT)
    assert prompts.num_context == 4 and prompts.start == (0 if family in ("SigLIP", "Gemma") else 1)
    assert prompts.tokens.shape[1] == 12 or (causal and pool in ("argmax", "eos"))


@pytest.mark.parametrize(
    "text",
    [{"proj_bias": True}, {"proj_bias": True, "custom_text": True}, {"custom_text": True, "pad_id": 1}],
    ids=["projection with bias", "projection with bias, CustomTextCLIP", "padding id"],
)
def test_prompts_of_other_towers_read_as_the_words_do(text: dict[str, Any]) -> None:
    check_prompts(backbone_with(**text), phrases(), stock_tokenizer())


@pytest.mark.parametrize("custom_text", [False, True])
def test_prompts_of_a_tower_without_projection_read_as_the_words_do(custom_text: bool) -> None:
    backbone = backbone_with(custom_text=custom_text, proj_type="none")
    expected = stock_features(backbone, PHRASES)
    assert expected.shape == (len(PHRASES), TEXT_WIDTH) and backbone.feature_dim == TEXT_WIDTH
    torch.testing.assert_close(backbone.encode_prompts(backbone.tokenize(PHRASES)), expected, atol=1e-5, rtol=0)


def check_prompts(backbone: Backbone, texts: tuple[str, ...], tokenizer: Any) -> None:
    """Prompts read as open_clip reads their words, and with the vectors of another phrase as that phrase."""
    prompts = backbone.tokenize(texts, context=CONTEXT)
    expected = stock_features(backbone, tuple(f"{CONTEXT} {phrase}" for phrase in texts), tokenizer)
    assert expected.shape == (len(texts), FEATURE_DIM)
    torch.testing.assert_close(backbone.encode_prompts(prompts), expected, atol=1e-5, rtol=0)
    assert torch.equal(backbone.encode_prompts(prompts, prompts.context), backbone.encode_prompts(prompts))
    others = backbone.tokenize(texts, context=OTHER_CONTEXT).context
    swapped = tuple(f"{OTHER_CONTEXT} {phrase}" for phrase in texts)
    expected = stock_features(backbone, swapped, tokenizer)
    torch.testing.assert_close(backbone.encode_prompts(prompts, others), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, backbone.encode_prompts(prompts), atol=1e-4)


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


@pytest.mark.parametrize("tokenizer", [None, SIGLIP], ids=["CLIP", "SigLIP"])
def test_places_can_be_each_prompt_s_own_first_tokens(tokenizer: Any) -> None:
    backbone = backbone_with(tokenizer=tokenizer, vocab_size=49408)
    prompts = backbone.tokenize(["nose open now", "eyes closed"], num_context=2)
    assert prompts.num_context == 2 and prompts.context.shape == (2, 2, TEXT_WIDTH)
    start = 1 if tokenizer is None else 0
    assert torch.equal(prompts.context, backbone.model.token_embedding(prompts.tokens[:, start : start + 2]))
    assert not torch.allclose(prompts.context[0], prompts.context[1])
    swapped = backbone.tokenize(["eyes closed now"], num_context=2)
    context = torch.stack([swapped.context[0], prompts.context[1]])
    found = backbone.encode_prompts(prompts, context)
    if tokenizer is None:
        expected = stock_features(backbone, ("eyes closed now", "eyes closed"))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert backbone.tokenize(["lips parted"], context=CONTEXT, num_context=2).num_context == 2
    assert backbone.tokenize(["lips parted"], context=CONTEXT, num_context=0).context.shape == (1, 0, TEXT_WIDTH)


@pytest.mark.parametrize("num_context", [3, -1])
def test_prompt_with_fewer_tokens_than_places_is_refused(num_context: int) -> None:
    message = rf"num_context={num_context}; allowed: 0 to 2, the tokens of 'eyes closed'"
    with pytest.raises(ValueError, match=message):
        shared_backbone().tokenize(["lips parted now", "eyes closed"], num_context=num_context)


def test_leading_phrase_whose_tokens_run_into_the_next_word_is_refused() -> None:
    class Merging(WordTokenizer):
        """Writes "with nose" as one token."""

        def __call__(self, texts: Any, context_length: int = 77) -> Tensor:
            return super().__call__([text.replace("with nose", "with-nose") for text in texts], context_length)

    backbone = backbone_with(tokenizer=Merging(start=(1,), end=(2,)))
    assert backbone.tokenize(["eyes"], context=CONTEXT).num_context == 4
    with pytest.raises(
        ValueError, match=r"fake joins the end of the leading phrase 'a human face with' and the next word in"
    ):
        backbone.tokenize(["eyes", "nose"], context=CONTEXT)


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
    assert not torch.allclose(features.norm(dim=-1), torch.ones(5), atol=1e-2)  # not normalized


def frames_of(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def test_bf16_is_close_and_counts_as_another_backbone() -> None:
    half = Backbone(fake_clip_model(), name="fake", preprocessing=PREPROCESSING, precision="bf16")
    features = half.encode_frames(frames_of(3))
    assert features.dtype == torch.float32 and half.fingerprint != fake_backbone().fingerprint
    error = (features - shared_backbone().encode_frames(frames_of(3))).norm() / features.norm()
    assert 0 < error < 0.05
    prompts = half.tokenize(PHRASES, context=CONTEXT)
    expected = shared_backbone().encode_prompts(shared_backbone().tokenize(PHRASES, context=CONTEXT))
    assert torch.equal(half.encode_prompts(prompts), expected)  # text stays float32


def test_tf32_on_a_cpu_is_fp32_and_counts_as_another_backbone() -> None:
    fast = Backbone(fake_clip_model(), name="fake", preprocessing=PREPROCESSING, precision="tf32")
    assert torch.equal(fast.encode_frames(frames_of(3)), shared_backbone().encode_frames(frames_of(3)))
    assert fast.fingerprint != fake_backbone().fingerprint


def tf32_switches() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.fixture
def restored_switches() -> Iterator[None]:
    before = tf32_switches()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.usefixtures("restored_switches")
@pytest.mark.parametrize("before", [(False, True), (True, False)])
def test_tf32_switches_of_the_process_are_put_back(before: tuple[bool, bool]) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    for precision, inside in (("fp32", False), ("tf32", True)):
        with pytest.raises(KeyError), image_arithmetic(precision, "cuda"):  # type: ignore[arg-type]
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (inside, inside)
            raise KeyError
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    with image_arithmetic("tf32", "cpu"), image_arithmetic("bf16", "cpu"):
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.usefixtures("restored_switches")
def test_tf32_switches_of_a_program_that_uses_the_newer_ones() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with image_arithmetic("fp32", "cuda"):
        assert tf32_switches() == ("ieee", "ieee")
    with image_arithmetic("tf32", "cuda"):
        assert tf32_switches() == ("tf32", "tf32")
    assert tf32_switches() == ("tf32", "ieee")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_gpu_is_close_to_the_cpu(precision: Precision) -> None:
    backbone = Backbone(fake_clip_model(), name="fake", preprocessing=PREPROCESSING, precision=precision).to("cuda")
    before = tf32_switches()
    features = backbone.encode_frames(frames_of(8))
    expected = shared_backbone().encode_frames(frames_of(8))
    assert tf32_switches() == before and features.device.type == "cpu"
    error = float((features - expected).norm() / expected.norm())
    assert error < {"fp32": 1e-5, "tf32": 5e-3, "bf16": 5e-2}[precision]
    prompts = backbone.tokenize(PHRASES, context=CONTEXT)
    expected = shared_backbone().encode_prompts(shared_backbone().tokenize(PHRASES, context=CONTEXT))
    torch.testing.assert_close(backbone.encode_prompts(prompts, prompts.context).cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_batches_in_flight_on_a_gpu_do_not_mix() -> None:
    """Many small batches of a long call: each frame's features are its own."""
    backbone = Backbone(fake_clip_model(), name="fake", preprocessing=PREPROCESSING).to("cuda")
    found = backbone.encode_frames(frames_of(300), batch_size=7)
    torch.testing.assert_close(found, shared_backbone().encode_frames(frames_of(300)), atol=1e-4, rtol=0)


def test_batches_are_halved_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device holds three frames: batches of 8 become 4, then 2; the next call begins with 2."""
    backbone, expected = fake_backbone(), shared_backbone().encode_frames(frames_of(9))
    encode, sizes = backbone.model.encode_image, []

    def small(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("no room")
        features: torch.Tensor = encode(images)
        return features

    monkeypatch.setattr(backbone.model, "encode_image", small)
    for _ in range(2):
        torch.testing.assert_close(backbone.encode_frames(frames_of(9), batch_size=8), expected, atol=1e-5, rtol=0)
    assert sizes == [8, 4, *[2, 2, 2, 2, 1] * 2]
    monkeypatch.setattr(backbone.model, "encode_image", lambda images: small(images.repeat(4, 1, 1, 1)))
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        backbone.encode_frames(frames_of(1))


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone\.precision='fp16'; allowed: fp32, tf32, bf16"):
        Backbone(fake_clip_model(), name="fake", preprocessing=PREPROCESSING, precision="fp16")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_become_float32(dtype: torch.dtype) -> None:
    backbone = Backbone(fake_clip_model().to(dtype), name="fake", preprocessing=PREPROCESSING)
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}
    prompts = backbone.tokenize(PHRASES, context=CONTEXT)
    torch.testing.assert_close(
        backbone.encode_prompts(prompts), stock_features(backbone, prompts.texts), atol=1e-5, rtol=0
    )
    assert torch.isfinite(backbone.encode_frames(frames_of(2))).all()


@pytest.mark.parametrize("shape", [(2, 31, 32, 3), (2, 3, 32, 32), (32, 32, 3)])
def test_frames_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames have shape \(.*\); fake takes \[T, 32, 32, 3\]"):
        shared_backbone().encode_frames(np.zeros(shape, np.uint8))


def test_normalization_literal() -> None:
    frames = torch.zeros(1, 1, 2, 3, dtype=torch.uint8)
    frames[0, 0, 1] = torch.tensor([255, 51, 102])
    images = normalize_frames(frames, Preprocessing(1, (0.5, 0.2, 0.4), (0.5, 0.1, 0.2)))
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


def test_fingerprint_is_of_what_no_weight_tells_about_the_text_tower() -> None:
    def fingerprint(tokenizer: Any = None, **text: Any) -> str:
        return backbone_with(tokenizer=tokenizer, vocab_size=1000, context_length=12, **text).fingerprint

    class Stock:
        """CLIP's tokenizer, under another name and with ids that the small vocabulary would not have."""

        def __call__(self, texts: Any, context_length: int) -> Tensor:
            return stock_tokenizer()(texts, context_length=context_length)

    usual = fingerprint()
    assert fingerprint(Stock()) == usual
    others = [fingerprint(SIGLIP), fingerprint(XLM), fingerprint(no_causal_mask=True), fingerprint(pool_type="last")]
    others += [fingerprint(pool_type="eos", eos_id=2), fingerprint(pool_type="eos", eos_id=3)]
    others += [fingerprint(act_kwargs={"approximate": "tanh"})]
    assert len({usual, *others}) == 8
