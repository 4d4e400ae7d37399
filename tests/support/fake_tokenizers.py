"""Tokenizers of other families than CLIP's, which come from the hub: words get ids, the layout is the family's."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


class WordTokenizer:
    """One token per word, cut to the context length with the end kept, as the hub's tokenizers do.

    Args:
        start: ids before the first word.
        end: ids after the last word.
        padding: the id that fills.
        drop_end: replaces the end by padding, after it took its place in the length.
        vocab_size: ids are below it.
    """

    def __init__(
        self,
        *,
        start: Sequence[int] = (),
        end: Sequence[int] = (),
        padding: int = 0,
        drop_end: bool = False,
        vocab_size: int = 1000,
    ) -> None:
        self.start, self.end, self.padding = list(start), list(end), padding
        self.drop_end, self.vocab_size = drop_end, vocab_size

    def word(self, word: str) -> int:
        """From 20 up; the special ids are below."""
        return 20 + zlib.crc32(word.encode()) % (self.vocab_size - 20)

    def __call__(self, texts: Sequence[str], context_length: int = 77) -> Tensor:
        result = torch.full((len(texts), context_length), self.padding)
        for row, text in zip(result, texts, strict=True):
            words = [self.word(word) for word in text.split()]
            words = words[: context_length - len(self.start) - len(self.end)]
            ids = [*self.start, *words, *([self.padding] * len(self.end) if self.drop_end else self.end)]
            row[: len(ids)] = torch.tensor(ids)
        return result


SIGLIP = WordTokenizer(end=(1,), padding=1)
GEMMA = WordTokenizer(end=(1,), padding=0)
BERT = WordTokenizer(start=(3,), end=(4,), padding=0, drop_end=True)
XLM = WordTokenizer(start=(0,), end=(2,), padding=1)
FAMILIES = {"SigLIP": SIGLIP, "Gemma": GEMMA, "BERT": BERT, "XLM": XLM}
