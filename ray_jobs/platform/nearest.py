"""The name that a wrong word may have meant.

In: a word and the names there are. Out: the nearest of them, or the end of an error message that says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NEAR = 0.55


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `word`, or None where none is alike.

    Dotted names are compared whole and by their last part, so `steps` finds `adapt.steps`.
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
    """The end of an error message: what the word may have meant, or what there is."""
    names = sorted(candidates)
    near = nearest(word, names)
    return f"; did you mean {near!r}?" if near else f"; there is {', '.join(names) or 'none'}"
