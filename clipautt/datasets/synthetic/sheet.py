"""A contact sheet: people by action units, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from clipautt.action_units import RENDERED, unit
from clipautt.datasets.synthetic.identity import INDEX, draw_identity
from clipautt.datasets.synthetic.renderer import render

_HEADER = 32
COMPOSITIONS: Mapping[str, tuple[str, ...]] = {
    "PAIN": ("AU4", "AU6", "AU7", "AU9", "AU10", "AU43"),
    "smile": ("AU6", "AU12", "AU25"),
}
"""Expressions shown after the single units."""


def contact_sheet(seeds: Sequence[int], *, size: int = 112, intensity: float = 1.0) -> NDArray[np.uint8]:
    """One row per person; columns are the neutral face, every rendered unit and the `COMPOSITIONS`.

    Args:
        seeds: identity seeds, at least one.
        size: height and width of each face, pixels.
        intensity: intensity 0..1 of what a column shows, without gain or resting face.

    Returns:
        uint8 [32 + len(seeds) * size, 31 * size, 3], RGB, with the names of the columns in a header.

    Raises:
        ValueError: when `seeds` is empty or `intensity` leaves 0..1.
    """
    if not seeds:
        raise ValueError("seeds is empty; at least one is needed")
    if not 0 <= intensity <= 1:
        raise ValueError(f"intensity={intensity} is not allowed; 0..1 is")
    columns: dict[str, tuple[str, ...]] = {"neutral": ()} | {code: (code,) for code in RENDERED} | dict(COMPOSITIONS)
    rows = []
    for seed in seeds:
        person, rng = draw_identity(seed), np.random.default_rng([seed, 9])
        faces = []
        for codes in columns.values():
            values = np.zeros(len(RENDERED))
            values[[INDEX[code] for code in codes]] = intensity
            faces.append(render(person, values, size=size, rng=rng))
        rows.append(np.concatenate(faces, axis=1))
    header = np.full((_HEADER, len(columns) * size, 3), 255, np.uint8)
    for position, title in enumerate(columns):
        names = (title, unit(title).name) if title in RENDERED else (title,)
        for line, name in enumerate(names):
            where = position * size + 4, 13 + 14 * line
            cv2.putText(header, name, where, cv2.FONT_HERSHEY_SIMPLEX, 0.4 - 0.08 * line, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([header, *rows])
