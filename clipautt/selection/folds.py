"""Divides source subjects into folds to select settings on and a held-out part to judge the choice by.

In: the source subjects. Out: a `Division`. It depends on the subjects' ids and the seed, not on their order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from clipautt.clips import id_number

FEWEST_HELD_OUT = 2
"""An interval over subjects needs two."""
Folds = int | Literal["source_val"]


@dataclass(frozen=True, repr=False)
class Division:
    """Who is trained on, selected on and held out. No subject is in two parts."""

    folds: tuple[tuple[str, ...], ...]
    """Subjects of each fold: settings are scored on them with a model that was trained on all others."""
    training: tuple[str, ...]
    """Subjects that are in no fold and always trained on."""
    held_out: tuple[str, ...]
    """Subjects that no trial sees, neither in training nor to select."""

    def __repr__(self) -> str:
        sizes = "+".join(str(len(fold)) for fold in self.folds)
        return f"Division(folds {sizes}, {len(self.training)} in training only, {len(self.held_out)} held out)"

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects of all folds, fold by fold, [S]; values per subject are in this order."""
        return tuple(subject for fold in self.folds for subject in fold)

    def trained_on(self, fold: int | None) -> tuple[str, ...]:
        """Subjects that the source model of a fold is trained on; None: that of the held-out subjects."""
        others = [subject for number, one in enumerate(self.folds) if number != fold for subject in one]
        return tuple(sorted([*self.training, *others]))


def divide(
    train: Collection[str],
    validation: Collection[str],
    *,
    scorable: Collection[str],
    folds: Folds,
    held_out: float,
    seed: int,
) -> Division:
    """Divide the source subjects.

    Args:
        train: subjects of the split source_train.
        validation: subjects of the split source_val.
        scorable: subjects with clips of every class that can be scored; the others are only trained on.
        folds: number of folds over all source subjects, or `source_val`: those of that split are the one fold.
        held_out: share of the scorable subjects to hold out, 0..1; with `source_val`, taken from source_train, as the
            fold is given.
        seed: decides who is in which part.

    Raises:
        ValueError: if there are too few subjects; the message says what to set.
    """
    everybody = {*train, *validation}
    pool = sorted(
        (everybody if folds != "source_val" else set(train)) & set(scorable), key=lambda one: _rank(one, seed)
    )
    chosen = sorted(set(validation) & set(scorable))
    total = len(pool) + (len(chosen) if folds == "source_val" else 0)
    count = max(FEWEST_HELD_OUT, round(held_out * total)) if held_out else 0
    apart, rest = tuple(sorted(pool[:count])), pool[count:]
    if folds == "source_val":
        _check_source_val(chosen, rest, total=total, count=count, scorable=bool(validation))
        parts: tuple[tuple[str, ...], ...] = (tuple(chosen),)
    else:
        _check_folds(len(rest), folds=folds, total=total, count=count)
        parts = tuple(tuple(sorted(rest[number::folds])) for number in range(folds))
    selected = {subject for part in parts for subject in part} | {*apart}
    return Division(parts, tuple(sorted(everybody - selected)), apart)


def _rank(subject: str, seed: int) -> tuple[int, str]:
    return id_number(f"{seed}/fold/{subject}"), subject


def _check_source_val(chosen: Sequence[str], rest: Sequence[str], *, total: int, count: int, scorable: bool) -> None:
    if not chosen:
        why = "none of its subjects has clips of two classes" if scorable else "the manifest has no source_val clips"
        raise ValueError(f"folds=source_val: {why}; set folds=5 to divide all source subjects")
    if not rest:
        raise ValueError(
            f"folds=source_val with {total} source subjects, {count} of them held out: nobody is left to train on; set "
            "held_out=0 or a smaller share"
        )


def _check_folds(left: int, *, folds: int, total: int, count: int) -> None:
    if left >= folds >= 2:
        return
    if folds < 2:
        raise ValueError(f"folds={folds}; allowed: 2 or more, or source_val")
    apart = f", {count} of them held out" if count else ""
    way = (
        "set held_out=0" if total >= folds else f"set folds={total} held_out=0" if total >= 2 else "bring more subjects"
    )
    raise ValueError(f"folds={folds} with {total} source subjects that have clips of two classes{apart}; {way}")
