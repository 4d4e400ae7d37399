"""Which of the faces in a table is the subject's: chosen by position and size, as our own tracker does."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from clipautt.evaluation.au_tables.formats import Format

Which = Literal["largest", "left", "right", "center"] | int
"""Whose face, as `faces.which` says: the largest for longest, the outermost, the middle one, or the Nth largest."""


def choose_face(rows: pd.DataFrame, layout: Format, which: Which) -> tuple[pd.DataFrame, int, list[str]]:
    """The rows of one face.

    Args:
        rows: of all faces, by time.
        layout: what the columns mean.
        which: whose face.

    Returns:
        Its rows, with its name in `face`; how many rows are of other faces; and a note if there are several faces whose
        positions are not written, so that the one with the most rows is taken.

    Raises:
        ValueError: for a number larger than that of the faces.
    """
    named = rows.assign(face=_names(rows, layout))
    empty = named["face"] == ""
    counts = named.loc[~empty, "face"].value_counts()
    if len(counts) < 2:
        return named, 0, []
    if layout.sides is None or named[list(layout.sides)].isna().all(axis=None):
        face = sorted(counts[counts == counts.max()].index)[0]
        note = [f"{len(counts)} faces without positions; the one in the most frames is taken"]
    else:
        face, note = _by_position(named[~empty], layout, which), []
    chosen = named[(named["face"] == face) | empty]
    return chosen.assign(face=face), len(named) - len(chosen), note


def _by_position(named: pd.DataFrame, layout: Format, which: Which) -> str:
    """The name of the face at a position, judged by the rows in which the tool is sure of it."""
    sure = np.logical_and.reduce([named[name] >= least for name, least in layout.least.items()])
    named = named[sure] if np.any(sure) and layout.least else named
    left, second = (named[name] for name in layout.sides or ())
    right = left + second if layout.is_width else second
    places = pd.DataFrame({"face": named["face"], "centre": (left + right) / 2, "area": (right - left) ** 2})
    faces = places.groupby("face").agg(centre=("centre", "median"), area=("area", "sum"), rows=("area", "size"))
    by_area = faces.sort_values(["area", "rows"], ascending=False, kind="stable").index
    if which == "largest":
        return str(by_area[0])
    if which == "left":
        return str(faces["centre"].idxmin())
    if which == "right":
        return str(faces["centre"].idxmax())
    if which == "center":
        middle = (faces["centre"].min() + faces["centre"].max()) / 2
        return str((faces["centre"] - middle).abs().idxmin())
    if not 1 <= which <= len(by_area):
        raise ValueError(f"face {which} is asked for, and the table holds {len(by_area)}")
    return str(by_area[which - 1])


def _names(rows: pd.DataFrame, layout: Format) -> pd.Series:
    """A name for the face of every row: the tool's own, or numbers by position; empty where there is no face."""
    if layout.face:
        given = rows[layout.face].astype(str).where(lambda names: names.str.lower() != "nan", "")
        if (given != "").any():
            return given.str.replace(r"\.0+$", "", regex=True)
    if layout.sides is None or not rows["time_seconds"].duplicated().any():
        return pd.Series("0", rows.index)
    return _linked(rows, layout)


def _linked(rows: pd.DataFrame, layout: Format) -> pd.Series:
    """Faces numbered by following each from frame to frame: it is the one whose centre was nearest."""
    left, second = (rows[name].to_numpy(float) for name in layout.sides or ())
    centres = left + second / 2 if layout.is_width else (left + second) / 2
    last: list[float] = []
    numbers = [""] * len(rows)
    for places in rows.groupby("time_seconds", sort=False).indices.values():
        free = set(range(len(last)))
        for place in sorted(places, key=lambda at: centres[at]):
            if np.isnan(centres[place]):
                continue
            near = sorted(free, key=lambda face: abs(last[face] - centres[place]))
            if not near:
                last.append(centres[place])
                near = [len(last) - 1]
            free.discard(near[0])
            last[near[0]] = centres[place]
            numbers[place] = str(near[0])
    return pd.Series(numbers, rows.index)
