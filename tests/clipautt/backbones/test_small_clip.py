"""The small CLIP's network gives the features of open_clip's, from the same weights under the same names."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from open_clip.model import CLIP

from clipautt.action_units import phrases
from clipautt.backbones.embedded import SmallClipShape, embedded_weights, load_small_clip
from clipautt.backbones.packed_tower import can_pack
from clipautt.backbones.pretraining import build_small_clip
from clipautt.backbones.small_clip import SmallClip
from clipautt.backbones.text_tower import stock_tokenizer, text_tower
from tests.support.fakes import CONTEXT


@pytest.fixture(scope="module")
def pair() -> tuple[SmallClip, CLIP]:
    """The embedded backbone's network, and open_clip's with its weights; in float64, where rounding does not show."""
    ours = load_small_clip(embedded_weights()).model.double()
    theirs = build_small_clip(SmallClipShape()).double().eval()
    theirs.load_state_dict(ours.state_dict())  # strict: names and shapes are the same
    return cast(SmallClip, ours), theirs


def test_frames_give_the_same_features(pair: tuple[SmallClip, CLIP]) -> None:
    frames = torch.randn(7, 3, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (model.encode_image(frames) for model in pair)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert theirs.norm(dim=-1).min() > 1


def test_prompts_give_the_same_features(pair: tuple[SmallClip, CLIP]) -> None:
    ours, theirs = pair
    tokens = stock_tokenizer()([f"{CONTEXT} {phrase}" for phrase in phrases()])
    tower = text_tower(ours, name="embedded")
    found = tower.read(ours.token_embedding(tokens), tokens)
    torch.testing.assert_close(found, theirs.encode_text(tokens), atol=1e-6, rtol=0)
    assert can_pack(tower) and can_pack(text_tower(theirs, name="open_clip"))


def test_packed_prompts_give_the_same_features() -> None:
    backbone = load_small_clip(embedded_weights())
    theirs = build_small_clip(SmallClipShape()).eval()
    theirs.load_state_dict(backbone.model.state_dict())
    prompts = backbone.tokenize(phrases(), context=CONTEXT)
    with torch.no_grad():
        expected = theirs.encode_text(stock_tokenizer()(list(prompts.texts)))
    torch.testing.assert_close(backbone.encode_prompts(prompts), expected, atol=1e-5, rtol=0)
