"""Text towers that take context vectors: how they are read from token embeddings, and where a tokenizer puts words.

A causal tower that reads out at the end of the text does not see what follows it, so sequences are cut to their real
length. Every other tower sees its padding, so its sequences keep the full length: a cut would change the features.

Models of open_clip are recognized by class name, without importing it: the import takes longer than a prediction.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipautt.backbones.small_clip import SmallClip

POOLS = ("argmax", "eos", "last", "first")
"""open_clip's names of a read-out at one token: of the highest id, of the end-of-text id, the last, or the first."""
_MODELS = frozenset({"open_clip.model.CLIP", "open_clip.model.CustomTextCLIP"})
_TEXT_TOWERS = frozenset({"open_clip.model.CLIP", "open_clip.transformer.TextTransformer"})
_PLAIN = re.compile("[A-Za-z ,.]*")
"""Texts that open_clip's cleaning leaves as they are, except for capitals and spaces."""
_WORD = re.compile("[a-z]+|[,.]+")
_PROBES = ("a", "the", "with", "face")
"""Words whose tokens begin and end differently, so what their token sequences share is not part of a word."""


def class_names(thing: object) -> list[str]:
    """The full names of an object's class and of those that it inherits from, its own first."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(thing).__mro__]


@dataclass(frozen=True, eq=False)
class TextTower:
    """A text tower of open_clip, read from token embeddings."""

    module: Any
    """`CLIP` or `SmallClip`, or the `text` part of `CustomTextCLIP`."""
    pool: str
    """One of `POOLS`."""
    eos_id: int | None
    """Id of the token that is read out, if `pool` is `eos`."""
    causal: bool
    """Whether a token sees only those before it."""

    @property
    def room(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.module.positional_embedding)

    @property
    def feature_dim(self) -> int:
        """d: the width of text features and of image features."""
        projection = self.module.text_projection
        if projection is None:
            return int(self.module.positional_embedding.shape[-1])
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[-1])

    @property
    def cuttable(self) -> bool:
        """Whether features are the same without the padding."""
        return self.causal and self.pool in ("argmax", "eos")

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings, float32 [K, n, d_text], of token ids [K, n]."""
        embeddings: Tensor = self.module.token_embedding(tokens).float()
        return embeddings

    def read(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Text features [N, d] of embeddings [N, n, d_text]; see `read_text_tower`."""
        return read_text_tower(self.module, embeddings, tokens, pool=self.pool, eos_id=self.eos_id)

    def length(self, tokens: Tensor, lengths: Tensor) -> int:
        """Tokens that must be computed for exact features.

        Args:
            tokens: padded token ids, int64 [K, room].
            lengths: tokens of each sequence without its padding, int64 [K].
        """
        if not self.cuttable:
            return self.room
        ends = tokens.argmax(-1) if self.eos_id is None else (tokens == self.eos_id).int().argmax(-1)
        return int(torch.maximum(lengths, ends + 1).max())


def text_tower(model: Any, *, name: str) -> TextTower:
    """The text tower of a model.

    Raises:
        ValueError: for a tower that takes no context vectors.
    """
    text: Any = getattr(model, "text", model)
    plain = not _MODELS.isdisjoint(class_names(model)) and not _TEXT_TOWERS.isdisjoint(class_names(text))
    if not plain and not isinstance(model, SmallClip):
        refuse(name, f"a {type(text).__name__} is not a plain open_clip transformer")
    pool, eos_id = (text.text_pool_type, text.text_eos_id) if text is model else (text.pool_type, text.eos_id)
    causal = text.attn_mask is not None
    reason = why_no_context(
        pool=pool,
        causal=causal,
        adds_token=getattr(text, "cls_emb", None) is not None or len(text.positional_embedding) != model.context_length,
        masks_padding=getattr(text, "use_pad_mask", False),
    )
    if reason:
        refuse(name, reason)
    return TextTower(text, pool, eos_id if pool == "eos" else None, causal)


def why_no_context(*, pool: str, causal: bool, adds_token: bool, masks_padding: bool = False) -> str | None:
    """Why a transformer cannot be read with context vectors in place of words; None where it can."""
    if adds_token:
        return "it adds a token of its own to every text"
    if masks_padding:
        return "it masks the padding"
    if pool not in POOLS:
        return f"its read-out is {pool!r}; allowed: {', '.join(POOLS)}"
    if causal and pool == "first":
        return "it reads out at the first token, which sees no word"
    return None


def refuse(name: str, reason: str) -> None:
    """Raise the error that a text tower takes no context vectors.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"backbone.name {name!r} has a text tower that takes no context vectors: {reason}")


def read_text_tower(
    text: Any, embeddings: Tensor, tokens: Tensor, *, pool: str = "argmax", eos_id: int | None = None
) -> Tensor:
    """Run an open_clip text tower from token embeddings, at the length that is given.

    Args:
        text: `CLIP` or `SmallClip`, or the `text` part of `CustomTextCLIP`.
        embeddings: float32 [N, n, d_text].
        tokens: int64 [N, n], to find the read-out position.
        pool: open_clip's name of the read-out.
        eos_id: the end-of-text token, where the read-out needs it.

    Returns:
        float32 [N, d].
    """
    length = tokens.shape[1]
    hidden = embeddings + text.positional_embedding[:length]
    mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
    hidden = text.ln_final(text.transformer(hidden, attn_mask=mask))
    pooled: Tensor = hidden[torch.arange(len(tokens), device=tokens.device), _read_out(tokens, pool, eos_id)]
    projection = text.text_projection
    if projection is None:
        return pooled
    projected: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
    return projected


def _read_out(tokens: Tensor, pool: str, eos_id: int | None) -> Tensor:
    """Position [N] of the token that is read out, by open_clip's name of the read-out."""
    if pool in ("first", "last"):
        return torch.full_like(tokens[:, 0], 0 if pool == "first" else tokens.shape[1] - 1)
    return tokens.argmax(-1) if pool == "argmax" else torch.eq(tokens, eos_id or 0).int().argmax(-1)


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Where a tokenizer puts words between the tokens that it adds."""

    tokenizer: Any
    """Turns strings into padded ids [K, context_length]; an open_clip tokenizer."""
    room: int
    """Tokens of the longest sequence."""
    start: int
    """Tokens before the first word: one for CLIP, none for SigLIP."""
    closing: int
    """Tokens after the last word that are not padding."""
    padding: int
    """Id of the padding after the closing tokens."""

    def ids(self, texts: Sequence[str], *, name: str) -> Tensor:
        """Padded token ids, int64 [K, room].

        Raises:
            ValueError: if a text is longer than `room`; the message gives `name`, the backbone's.
        """
        ids: Tensor = self.tokenizer(list(texts), context_length=self.room)
        # A truncated text looks complete; given room for one more token, it continues instead of being padded.
        longer: Tensor = self.tokenizer(list(texts), context_length=self.room + 1)
        fits = (longer[:, :-1] == ids).all(-1) & (longer[:, -1] == self.padding)
        if not fits.all():
            text = texts[int(fits.int().argmin())]
            raise ValueError(f"the prompt {text!r} has more than the {self.room} tokens of {name}")
        return ids

    def lengths(self, ids: Tensor) -> Tensor:
        """Tokens of each sequence without its padding, int64 [K]."""
        return _lengths(ids, self.padding)

    def num_words(self, ids: Tensor) -> Tensor:
        """Tokens that belong to words, int64 [K]."""
        return self.lengths(ids) - self.start - self.closing


def token_layout(tokenizer: Any, room: int) -> TokenLayout:
    """The layout of a tokenizer, from comparing its tokens for a few words.

    Args:
        tokenizer: an open_clip tokenizer.
        room: tokens of the longest sequence.
    """
    ids: Tensor = tokenizer(list(_PROBES), context_length=room + 1)
    padding = int(ids[0, -1])
    rows = [row[:length] for row, length in zip(ids.tolist(), _lengths(ids, padding).tolist(), strict=True)]
    return TokenLayout(tokenizer, room, _shared(rows), _shared([row[::-1] for row in rows]), padding)


def _lengths(ids: Tensor, padding: int) -> Tensor:
    positions = torch.arange(1, ids.shape[1] + 1)
    return ((ids != padding) * positions).amax(-1)


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many leading items all rows share."""
    columns = [len(set(column)) == 1 for column in zip(*rows, strict=False)]
    return columns.index(False) if False in columns else len(columns)


class StockTokenizer:
    """open_clip's byte-pair tokenizer with CLIP's vocabulary of 49,408 tokens.

    A token never spans two words, so the words of the action units are looked up in a small table. Only other texts
    need open_clip's own tokenizer, which reads and sorts its whole vocabulary.
    """

    sot_token_id = 49406
    eot_token_id = 49407

    def __init__(self) -> None:
        table = resources.files("clipautt.backbones") / "weights" / "word_tokens.json"
        self._words: dict[str, list[int]] = json.loads(table.read_text(encoding="utf-8"))

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without start and end tokens."""
        plain = _PLAIN.fullmatch(text)
        words = _WORD.findall(text.lower()) if plain else []
        if plain and all(word in self._words for word in words):
            return [token for word in words for token in self._words[word]]
        ids: list[int] = _open_clip_tokenizer().encode(text)
        return ids

    def __call__(self, texts: str | Sequence[str], context_length: int = 77) -> Tensor:
        """Token ids, int64 [K, context_length], padded with 0; a longer text is truncated."""
        texts = [texts] if isinstance(texts, str) else texts
        ids = torch.zeros(len(texts), context_length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            tokens = [self.sot_token_id, *self.encode(text)[: context_length - 2], self.eot_token_id]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids


@lru_cache(maxsize=1)
def stock_tokenizer() -> StockTokenizer:
    """The one `StockTokenizer` of this process."""
    return StockTokenizer()


@lru_cache(maxsize=1)
def _open_clip_tokenizer() -> Any:
    """open_clip's stock tokenizer, which its module creates on import; the package is not imported."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.origin is not None
    spec = importlib.util.spec_from_file_location("_stock_tokenizer", Path(package.origin).with_name("tokenizer.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._tokenizer
