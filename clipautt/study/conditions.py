"""The conditions of a study: which columns may define them, their order, and their names.

In: a `ClipTable`. Out: `Conditions`, a number per clip and the cells behind these numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from clipautt.study.clip_table import ClipTable

DEFAULT = "condition"
MOST = 20
"""Conditions that a study may have."""
ALL = "all clips"
"""Name of the only condition where no column defines any."""
_BETWEEN = " / "
"""Between the values of a name."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions of a table."""

    by: tuple[str, ...]
    """Columns that define them."""
    cells: tuple[tuple[str, ...], ...]
    """Values of these columns, in order."""
    numbers: pd.Series[int]
    """Index in `cells` of every clip; -1 where a value is missing."""

    @property
    def names(self) -> tuple[str, ...]:
        """A name for every condition."""
        return tuple(map(name_of, self.cells))


def name_of(cell: Sequence[str]) -> str:
    """Name of a condition from the values that define it."""
    return _BETWEEN.join(cell) or ALL


def natural(text: str) -> tuple[tuple[str, float, str], ...]:
    """Sorts `day 2` before `day 10`, and numbers by their value: -10, 0.5, 1.25, 1.5."""
    if re.fullmatch(r"[+-]?[0-9]{1,300}(\.[0-9]*)?", text):
        return (("", float(text), text),)
    parts = re.split(r"([0-9]+)", text)
    numbered = ((part.casefold(), 0, part) if i % 2 == 0 else ("", int(part), part) for i, part in enumerate(parts))
    return tuple(numbered)


def conditions_of(
    table: ClipTable, by: Sequence[str] | str | None, *, reference: str | None = None, taken: Collection[str] = ()
) -> Conditions:
    """The conditions that some columns define.

    Args:
        table: the clips.
        by: columns; None: `condition` if there is one with values, and otherwise none.
        reference: name of the condition that comes first.
        taken: names that a column of conditions may not have.

    Raises:
        ValueError: if a column does not exist, is no condition or has too many values, or there is no such reference.
    """
    given = _default(table) if by is None else (by,) if isinstance(by, str) else tuple(by)
    for name in given:
        _check(table, name, given, taken)
    values = table.rows[list(given)]
    complete = ~(values == "").any(axis=1)
    known = set(values[complete].itertuples(index=False, name=None)) if given else {()}
    cells = sorted(known, key=lambda cell: (tuple(map(natural, cell)), cell))
    if len(cells) > MOST:
        raise ValueError(f"by={list(given)} gives {len(cells)} conditions; allowed: at most {MOST}")
    if given and not cells:
        raise ValueError(f"by={list(given)}: no clip has a value there, so that there is no condition")
    if len(set(map(name_of, cells))) < len(cells):
        raise ValueError(
            f"by={list(given)}: two conditions have the same name, as their values contain {_BETWEEN.strip()!r}; "
            "rename them"
        )
    if reference is not None:
        names = [name_of(cell) for cell in cells]
        if reference not in names:
            raise ValueError(f"reference={reference!r} is no condition; allowed: {', '.join(names)}")
        cells.insert(0, cells.pop(names.index(reference)))
    places = {cell: number for number, cell in enumerate(cells)}
    numbers = [places.get(cell, -1) for cell in values.itertuples(index=False, name=None)] if given else 0
    return Conditions(given, tuple(cells), pd.Series(numbers, index=table.rows.index, dtype=int))


def _default(table: ClipTable) -> tuple[str, ...]:
    return (DEFAULT,) if DEFAULT in table.extra and (table.rows[DEFAULT] != "").any() else ()


def _check(table: ClipTable, name: str, given: Sequence[str], taken: Collection[str]) -> None:
    free = [one for one in table.extra if one not in taken]
    fit = [one for one in free if table.rows[one].nunique() <= MOST]
    allowed = f"allowed: {', '.join(fit) or 'none in this table; by=[] reports on subjects alone'}"
    if name not in table.extra:
        kind = "describes the prediction and is no condition" if name in table.rows else "the table has no such column"
        raise ValueError(f"by={name}: {kind}; {allowed}")
    if given.count(name) > 1:
        raise ValueError(f"by={list(given)} names {name!r} more than once")
    if name in taken:
        raise ValueError(f"by={name}: a study writes columns of this name itself; rename it in the table")
    count = table.rows[name].nunique()
    if name not in fit:
        raise ValueError(
            f"by={name} has {count} values, and a condition should have few; {allowed} (at most {MOST} values)"
        )
