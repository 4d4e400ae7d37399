"""Suggestions for mistyped names.

In: a word and the valid names. Out: the nearest name, or the end of an error message that suggests it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NEAR = 0.55


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate most similar to `word`, or None if none is similar.

    Dotted names are compared whole and by their last part, so `steps` finds `adapt.method.steps`.
    """
    best, best_score = None, _NEAR
    for candidate in candidates:
        whole = difflib.SequenceMatcher(None, word, candidate).ratio()
        last = difflib.SequenceMatcher(None, word.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        score = max(whole, 0.9 * last + 0.1 * whole)
        if score > best_score:
            best, best_score = candidate, score
    return best


def suggestion(word: str, candidates: Iterable[str]) -> str:
    """The end of an error message: the name that may have been meant, or all valid names."""
    names = sorted(candidates)
    near = nearest(word, names)
    return f"; did you mean {near!r}?" if near else f"; allowed: {', '.join(names)}" if names else "; none is allowed"
