"""How far a head is turned: of a head whose turn is known."""

from __future__ import annotations

import numpy as np
import pytest

from clipautt.video.head_turn import head_turn


@pytest.mark.parametrize(("turn", "nod", "tilt"), [(0, 0, 0), (20, 0, 0), (-30, 20, 25), (60, -25, -15), (90, 0, 40)])
def test_how_far_a_head_is_turned(turn: float, nod: float, tilt: float) -> None:
    """Landmarks of a head that nods, turns and tilts, seen from afar; one of another person is a few degrees off."""
    head = np.array([[-32.6, 0, 0], [32.6, 0, 0], [0, 29, 34], [-24.5, 72, 0], [24.5, 72, 0]])
    turns, nods, tilts = np.radians([turn, nod, tilt])
    about_y = np.array([[np.cos(turns), 0, np.sin(turns)], [0, 1, 0], [-np.sin(turns), 0, np.cos(turns)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(nods), -np.sin(nods)], [0, np.sin(nods), np.cos(nods)]])
    about_z = np.array([[np.cos(tilts), -np.sin(tilts), 0], [np.sin(tilts), np.cos(tilts), 0], [0, 0, 1]])
    seen = about_z @ about_y @ about_x
    assert head_turn((300 + 2 * head @ seen.T)[:, :2]) == pytest.approx(abs(turn), abs=1e-4)
    assert np.isnan(head_turn(np.full((5, 2), np.inf)))
    other = head * [0.9, 1.1, 1.15] + [[0, 0, 0], [0, 0, 0], [0, 0, -4], [2, 0, 0], [-2, 0, 0]]
    assert head_turn((other @ seen.T)[:, :2]) == pytest.approx(abs(turn), abs=5)
