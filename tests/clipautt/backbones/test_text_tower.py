"""Text towers: which are taken, how long their sequences are, and where tokenizers of other families put words."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from clipautt.action_units import TASKS, phrases
from clipautt.backbones.text_tower import stock_tokenizer, text_tower, token_layout
from tests.support.fake_tokenizers import BERT, FAMILIES, GEMMA, SIGLIP, XLM, WordTokenizer
from tests.support.fakes import CONTEXT, FEATURE_DIM, fake_clip_model


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (stock_tokenizer(), (1, 1, 0)),
        (SIGLIP, (0, 0, 1)),  # pads with its end-of-text token, so that nothing closes a text but padding
        (GEMMA, (0, 1, 0)),
        (BERT, (1, 0, 0)),  # its separator was taken out
        (XLM, (1, 1, 1)),
        (WordTokenizer(start=(7, 8), end=(9,), padding=3), (2, 1, 3)),
    ],
    ids=["CLIP", "SigLIP", "Gemma", "BERT", "XLM", "two start tokens"],
)
def test_layout_is_found_by_asking(tokenizer: Any, expected: tuple[int, int, int]) -> None:
    layout = token_layout(tokenizer, 12)
    assert (layout.start, layout.closing, layout.padding) == expected
    ids = layout.ids(["a human face", "smile"], name="fake")
    assert ids.shape == (2, 12) and layout.num_words(ids).tolist() == [3, 1]
    assert layout.lengths(ids).tolist() == [3 + sum(expected[:2]), 1 + sum(expected[:2])]


@pytest.mark.parametrize("family", ["CLIP", *FAMILIES])
def test_longest_text_fits_and_one_word_more_does_not(family: str) -> None:
    tokenizer = FAMILIES.get(family) or stock_tokenizer()
    layout = token_layout(tokenizer, 12)
    most = 11 if family in ("SigLIP", "Gemma") else 10  # the tokenizer keeps a place for its end, even if it drops it
    longest = layout.ids([" ".join(["nose"] * most)], name="fake")
    assert layout.num_words(longest).tolist() == [most]
    with pytest.raises(ValueError, match=r"the prompt 'nose .*' has more than the 12 tokens of fake"):
        layout.ids(["lips", " ".join(["nose"] * (most + 1))], name="fake")


def test_tokenizer_without_an_end_is_no_exception() -> None:
    layout = token_layout(WordTokenizer(), 4)
    assert (layout.start, layout.closing) == (0, 0)
    assert layout.num_words(layout.ids(["a b c d"], name="fake")).tolist() == [4]
    with pytest.raises(ValueError, match="more than the 4 tokens"):
        layout.ids(["a b c d e"], name="fake")


@pytest.mark.parametrize(
    ("pool", "causal"),
    [
        ("argmax", True),
        ("argmax", False),
        ("eos", True),
        ("eos", False),
        ("last", True),
        ("last", False),
        ("first", False),
    ],
)
def test_only_a_causal_tower_that_reads_at_the_end_is_cut(pool: str, causal: bool) -> None:
    model = fake_clip_model(custom_text=True, pool_type=pool, no_causal_mask=not causal, eos_id=49407)
    tower = text_tower(model, name="fake")
    ids = stock_tokenizer()(["nose", "eyes closed"])
    cuttable = causal and pool in ("argmax", "eos")
    assert tower.cuttable == cuttable and tower.causal == causal and tower.room == 77
    assert tower.length(ids, torch.tensor([3, 4])) == (4 if cuttable else 77)


def test_read_out_behind_the_text_is_not_cut_off() -> None:
    """argmax takes the highest id, which is the padding here."""
    tower = text_tower(fake_clip_model(), name="fake")
    ids: Tensor = WordTokenizer(start=(1,), end=(2,), padding=40_000)(["nose"], context_length=77)
    assert tower.length(ids, torch.tensor([3])) == 4


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize(
    ("text", "width"),
    [({}, FEATURE_DIM), ({"proj_bias": True}, FEATURE_DIM), ({"proj_type": "none"}, 32)],
    ids=["matrix", "linear", "none"],
)
def test_width_of_the_features(custom_text: bool, text: dict[str, Any], width: int) -> None:
    assert text_tower(fake_clip_model(custom_text=custom_text, **text), name="fake").feature_dim == width


@pytest.mark.parametrize(
    ("custom_text", "text", "reason"),
    [
        (True, {"embed_cls": True}, "it adds a token of its own to every text"),
        (False, {"embed_cls": True}, "it adds a token of its own to every text"),
        (True, {"pool_type": "none"}, "its read-out is 'none'; allowed: argmax, eos, last, first"),
        (True, {"pool_type": "first"}, "it reads out at the first token, which sees no word"),
    ],
)
def test_tower_that_takes_no_context_is_refused(custom_text: bool, text: dict[str, Any], reason: str) -> None:
    with pytest.raises(
        ValueError, match=rf"backbone\.name 'fake' has a text tower that takes no context vectors: {reason}"
    ):
        text_tower(fake_clip_model(custom_text=custom_text, **text), name="fake")


def test_masked_padding_and_foreign_towers_are_refused() -> None:
    model = fake_clip_model(custom_text=True, no_causal_mask=True)
    model.text.use_pad_mask = True
    with pytest.raises(ValueError, match="takes no context vectors: it masks the padding"):
        text_tower(model, name="fake")
    model.text = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"takes no context vectors: a Linear is not a plain open_clip transformer"):
        text_tower(model, name="fake")


def test_words_are_looked_up_as_open_clip_writes_them() -> None:
    theirs = open_clip.get_tokenizer("RN50")
    table = stock_tokenizer()._words
    assert table == {word: theirs.encode(word) for word in table}
    texts = ["A human face, with  eyes closed.", "it's 2 cm &amp; naïve", "", "a, b ., c", " the face " * 50]
    for length in (5, 77):
        assert torch.equal(stock_tokenizer()(texts, context_length=length), theirs(texts, context_length=length))


def test_the_shipped_prompts_are_in_the_table() -> None:
    texts = [*phrases(), *(d for task in TASKS.values() for group in task.descriptions for d in group)]
    words = {word for text in [CONTEXT, *texts] for word in text.split()}
    assert words - set(stock_tokenizer()._words) == set()
