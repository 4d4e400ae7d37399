"""The packed text tower: it gives what open_clip's own tower gives, and computes less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import QuickGELU
from torch import Tensor

from clipautt.backbones import packed_tower
from clipautt.backbones.frozen_clip import Backbone, Prompts
from clipautt.backbones.frozen_linear import frozen_linear
from clipautt.backbones.packed_tower import PackedTower, can_pack, read_prompts
from clipautt.backbones.text_tower import TextTower, stock_tokenizer, text_tower
from tests.support.fake_tokenizers import WordTokenizer
from tests.support.fakes import CONTEXT, PREPROCESSING, TEXT_WIDTH, fake_clip_model

LENGTHS = ("nose", "lips part", "eyes closed", "brow lowered and cheeks raised", "jaw drops down")
"""Phrases of 1, 2, 2, 5 and 3 tokens."""
ALIKE = ("nose up", "lips part", "eyes closed")
OWN_WORDS = ("nose wrinkles", "lips part", "brow lowered and cheeks raised")
EOS = {"custom_text": True, "pool_type": "eos", "eos_id": 49407}


def shaken(model: CLIP | CustomTextCLIP) -> CLIP | CustomTextCLIP:
    """With noise on every weight of the text tower: fresh ones have biases of 0 and norms of 1, which hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    text: Any = getattr(model, "text", model)
    parts = [text.transformer, text.ln_final]
    with torch.no_grad():
        text.positional_embedding.add_(0.05 * torch.randn(text.positional_embedding.shape, generator=generator))
        for weight in (weight for part in parts for weight in part.parameters()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval().requires_grad_(False)


def fake(**options: Any) -> CLIP | CustomTextCLIP:
    return shaken(fake_clip_model(**options))


def prompts_of(model: CLIP | CustomTextCLIP, phrases: Sequence[str], num_context: int | None) -> Prompts:
    """With the leading phrase as places for context; with a number, that many of each prompt's own words instead."""
    backbone = Backbone(model, name="fake", preprocessing=PREPROCESSING)
    return backbone.tokenize(phrases, context=CONTEXT if num_context is None else "", num_context=num_context)


def contexts(prompts: Prompts, count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return prompts.context + 0.05 * torch.randn(count, *prompts.context.shape, generator=generator)


def stock(model: CLIP | CustomTextCLIP, prompts: Prompts, context: Tensor) -> Tensor:
    """open_clip's own `encode_text` on all 77 tokens, with context vectors put into its token embeddings."""
    text: Any = getattr(model, "text", model)
    ids = stock_tokenizer()(list(prompts.texts))
    embeddings = text.token_embedding(ids).expand(len(context), -1, -1, -1).clone()
    embeddings[:, :, prompts.start : prompts.start + prompts.num_context] = context
    handle = text.token_embedding.register_forward_hook(lambda *_: embeddings.flatten(0, 1))
    try:
        features: Tensor = model.encode_text(ids.repeat(len(context), 1))
    finally:
        handle.remove()
    return features.view(len(context), len(ids), -1)


def reader(model: CLIP | CustomTextCLIP, prompts: Prompts, **options: Any) -> Callable[[Tensor], Tensor]:
    tower = text_tower(model, name="fake")
    given = {"start": prompts.start, "num_context": prompts.num_context} | options
    return read_prompts(tower, prompts.embeddings, prompts.tokens, **given)


def packed_of(model: CLIP | CustomTextCLIP, prompts: Prompts, **options: Any) -> PackedTower:
    tower = text_tower(model, name="fake")
    given = {"start": prompts.start, "num_context": prompts.num_context} | options
    return PackedTower(tower, prompts.embeddings, prompts.tokens, **given)


def with_gradient(read: Callable[[Tensor], Tensor], context: Tensor) -> tuple[Tensor, Tensor]:
    """Features, and the gradient of a random sum of them."""
    context = context.clone().requires_grad_(True)
    features = read(context)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(9))
    (gradient,) = torch.autograd.grad((features * weights).sum(), context)
    return features.detach(), gradient


def assert_same_reading(model: CLIP | CustomTextCLIP, prompts: Prompts, read: Any, count: int) -> None:
    """Features to 1e-5, gradients to 1e-5 of their largest."""
    context = contexts(prompts, count)
    found, gradient = with_gradient(read, context)
    expected, theirs = with_gradient(lambda given: stock(model, prompts, given), context)
    assert found.dtype == torch.float32 and theirs.abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


def with_quick_gelu(**options: Any) -> CLIP | CustomTextCLIP:
    model = fake(**options)
    for block in model.transformer.resblocks:
        block.mlp.gelu = QuickGELU()
    return model


MODELS: dict[str, Callable[[], CLIP | CustomTextCLIP]] = {
    "CLIP": fake,
    "eos": lambda: fake(**EOS),
    "QuickGELU": with_quick_gelu,
    "QuickGELU with layer scale": lambda: with_quick_gelu(ls_init_value=0.5),
    "layer scale": lambda: fake(ls_init_value=0.5),
    "no projection": lambda: fake(proj_type="none"),
    "linear projection": lambda: fake(proj_bias=True),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("phrases", "num_context"), [(LENGTHS, None), (ALIKE, None), (OWN_WORDS, 2), (LENGTHS, 1)])
@pytest.mark.parametrize("kind", ["CLIP", "eos"])
def test_features_and_gradients_are_the_stock_tower_s(
    kind: str, phrases: Sequence[str], num_context: int | None, count: int
) -> None:
    model = MODELS[kind]()
    prompts = prompts_of(model, phrases, num_context)
    assert can_pack(text_tower(model, name="fake"))
    assert_same_reading(model, prompts, packed_of(model, prompts).read, count)


@pytest.mark.parametrize(
    "kind", ["QuickGELU", "QuickGELU with layer scale", "layer scale", "no projection", "linear projection"]
)
def test_other_parts_of_a_tower_are_the_stock_tower_s(kind: str) -> None:
    model = MODELS[kind]()
    prompts = prompts_of(model, LENGTHS, None)
    assert can_pack(text_tower(model, name="fake"))
    assert_same_reading(model, prompts, packed_of(model, prompts).read, 2)


def test_prompts_without_places_for_context_read_as_the_words_do() -> None:
    model = fake()
    prompts = prompts_of(model, LENGTHS, 0)
    assert prompts.num_context == 0
    features = packed_of(model, prompts).read(prompts.context[None])[0]
    torch.testing.assert_close(features, model.encode_text(stock_tokenizer()(list(LENGTHS))), atol=1e-5, rtol=1e-5)


def test_a_tokenizer_without_a_start_token_leaves_no_shared_start() -> None:
    """Then the first word is the first token; open_clip's function on the whole sequence is the measure."""
    model = fake(custom_text=True, pool_type="eos", eos_id=1)
    words = WordTokenizer(end=(1,), padding=0)
    backbone = Backbone(model, name="fake", preprocessing=PREPROCESSING, tokenizer=words)
    prompts = backbone.tokenize(LENGTHS, context=CONTEXT)
    packed = packed_of(model, prompts)
    assert prompts.start == 0 and packed.num_tokens == sum(4 + n + 1 for n in (1, 2, 2, 5, 3))
    expected = model.encode_text(words(list(prompts.texts)))
    torch.testing.assert_close(packed.read(prompts.context[None])[0], expected, atol=1e-5, rtol=1e-5)


def test_no_padding_and_no_shared_start_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per prompt: four tokens of the leading phrase, the words, the end."""
    model = fake()
    prompts = prompts_of(model, LENGTHS, None)
    packed = packed_of(model, prompts)
    assert packed.num_tokens == (4 + 1 + 1) + 2 * (4 + 2 + 1) + (4 + 5 + 1) + (4 + 3 + 1) == 38
    assert [tuple(bucket.embeddings.shape) for bucket in packed.buckets] == [
        (1, 6, TEXT_WIDTH),
        (2, 7, TEXT_WIDTH),
        (1, 8, TEXT_WIDTH),
        (1, 10, TEXT_WIDTH),
    ]
    rows: list[tuple[int, int]] = []
    stock_product = frozen_linear

    def counted(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows.append((inputs.shape[:-1].numel(), len(weight)))
        return stock_product(inputs, weight, bias)

    monkeypatch.setattr(packed_tower, "frozen_linear", counted)
    packed.read(contexts(prompts, 2))
    qkv, out, up, down = 3 * TEXT_WIDTH, TEXT_WIDTH, 4 * TEXT_WIDTH, TEXT_WIDTH
    first = [(76, qkv), (76, out), (76, up), (76, down)]
    last = [(76, qkv), (10, out), (10, up), (10, down)]  # behind the last attention only 2 · 5 read-out tokens go on
    assert rows == first + last


def test_read_out_sees_nothing_behind_the_end() -> None:
    model = fake(**EOS)
    prompts = prompts_of(model, LENGTHS, None)
    changed = prompts.embeddings.clone()
    ends = (prompts.tokens == 49407).int().argmax(-1)
    for row, end in enumerate(ends.tolist()):
        changed[row, end + 1 :] = float("nan")
    assert changed.isnan().any()
    tower = text_tower(model, name="fake")
    given: dict[str, Any] = {"start": prompts.start, "num_context": prompts.num_context}
    context = contexts(prompts, 1)
    expected = PackedTower(tower, prompts.embeddings, prompts.tokens, **given).read(context)
    assert torch.equal(PackedTower(tower, changed, prompts.tokens, **given).read(context), expected)


def test_tokens_see_only_what_stands_before_them() -> None:
    """Each place of the context counts for its own prompt, and for no other one."""
    model = fake()
    prompts = prompts_of(model, LENGTHS, None)
    read = packed_of(model, prompts).read
    context = contexts(prompts, 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(read(context)[0, 2].sum(), context)
    assert (gradient[0, 2] != 0).any(-1).all(), "each of the four places counts"
    assert not gradient[0, [0, 1, 3, 4]].any(), "a prompt's feature depends on its own context alone"


def test_gradients_reach_the_context_and_nothing_else() -> None:
    model = fake().requires_grad_(False)
    prompts = prompts_of(model, LENGTHS, None)
    context = contexts(prompts, 2).requires_grad_(True)
    torch.autograd.backward(packed_of(model, prompts).read(context).square().sum())
    assert context.grad is not None and (context.grad != 0).any(-1).all()
    assert all(weight.grad is None for weight in model.parameters()) and prompts.embeddings.grad is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"custom_text": True, "no_causal_mask": True}, "sees what comes after"),
        ({"custom_text": True, "no_causal_mask": True, "pool_type": "last"}, "as SigLIP's"),
        ({"custom_text": True, "block_type": "custom", "qk_norm": True}, "blocks of another kind"),
        ({"custom_text": True, "pool_type": "last"}, "reads out at the padding"),
    ],
)
@pytest.mark.parametrize("num_context", [None, 1])
def test_tower_that_cannot_be_packed_is_read_with_its_padding(
    options: dict[str, Any], why: str, num_context: int | None
) -> None:
    model = fake(**options)
    tower = text_tower(model, name="fake")
    assert not can_pack(tower), why
    prompts = prompts_of(model, LENGTHS, num_context)
    assert prompts.tokens.shape[1] == (77 if not tower.cuttable else 4 + 5 + 2 if num_context is None else 7)
    assert_same_reading(model, prompts, reader(model, prompts), 2)


def test_a_tower_that_can_be_packed_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fake()
    prompts = prompts_of(model, LENGTHS, None)
    monkeypatch.setattr(TextTower, "read", lambda *_: pytest.fail("read with padding"))
    assert reader(model, prompts)(prompts.context[None]).shape == (1, 5, 16)


@pytest.mark.parametrize("kind", ["CLIP", "QuickGELU", "read with padding"])
def test_bf16_is_near_fp32_and_gives_float32(kind: str) -> None:
    model = fake(custom_text=True, no_causal_mask=True) if kind == "read with padding" else MODELS[kind]()
    prompts = prompts_of(model, LENGTHS, None)
    context = contexts(prompts, 2)
    exact, gradient = with_gradient(reader(model, prompts), context)
    coarse, rough = with_gradient(reader(model, prompts, precision="bf16"), context)
    assert coarse.dtype == rough.dtype == torch.float32
    assert F.cosine_similarity(exact, coarse, dim=-1).min() > 0.99
    assert F.cosine_similarity(gradient.flatten(2), rough.flatten(2), dim=-1).min() > 0.99
    assert not torch.equal(exact, coarse), "bf16 rounds"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_real_text_tower_of_twelve_layers(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(name)
    model = model.eval().requires_grad_(False)
    prompts = prompts_of(model, LENGTHS, None)
    packed = packed_of(model, prompts)
    assert packed.num_tokens == 38 and prompts.context.shape == (5, 4, 512)
    context = prompts.context + 0.005 * torch.randn(2, 5, 4, 512, generator=torch.Generator().manual_seed(1))
    found, gradient = with_gradient(packed.read, context)
    expected, theirs = with_gradient(lambda given: stock(model, prompts, given), context)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    torch.testing.assert_close(gradient, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)
