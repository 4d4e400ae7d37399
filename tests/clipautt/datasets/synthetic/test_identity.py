"""Synthetic people follow from their seed, and their looks do not depend on the difficulty."""

from __future__ import annotations

import numpy as np
import pytest

from clipautt.action_units import RENDERED
from clipautt.datasets.synthetic.identity import INDEX, draw_identity, total_intensities


def test_same_seed_is_the_same_person() -> None:
    first, second = draw_identity(3), draw_identity(3)
    assert (first.geometry, first.look, first.scene) == (second.geometry, second.look, second.scene)
    np.testing.assert_array_equal(first.gain, second.gain)
    np.testing.assert_array_equal(first.bias, second.bias)
    assert draw_identity(4).look != first.look


def test_looks_do_not_depend_on_the_difficulty() -> None:
    easy, hard = draw_identity(3), draw_identity(3, resting_bias=1.6, expressivity_spread=1.4)
    assert (easy.geometry, easy.look, easy.scene) == (hard.geometry, hard.look, hard.scene)
    np.testing.assert_allclose(hard.bias, np.minimum(easy.bias * 1.6, 0.7))
    inside = (hard.gain > 0.3) & (hard.gain < 2.2)
    np.testing.assert_allclose(np.log(hard.gain[inside]), 1.4 * np.log(easy.gain[inside]))


def test_zero_spread_makes_everyone_alike() -> None:
    person = draw_identity(5, resting_bias=0, expressivity_spread=0)
    assert person.bias.tolist() == [0.0] * len(RENDERED)
    assert person.gain.tolist() == [1.0] * len(RENDERED)


def test_gain_and_bias_stay_in_range_and_cannot_be_written() -> None:
    people = [draw_identity(seed, resting_bias=1.6, expressivity_spread=1.4) for seed in range(50)]
    gain, bias = (np.stack([getattr(p, name) for p in people]) for name in ("gain", "bias"))
    assert gain.shape == bias.shape == (50, 28)
    assert 0.3 <= gain.min() < 0.6 < 1.6 < gain.max() <= 2.2
    assert bias.min() == 0.0 and 0.4 < bias.max() <= 0.7
    assert bias[:, INDEX["AU51"] :].max() == 0.0  # nobody's head or gaze rests turned by an action unit
    with pytest.raises(ValueError, match="read-only"):
        people[0].gain[0] = 1


def test_total_intensity_is_gain_plus_bias_clipped() -> None:
    person = draw_identity(8)
    np.testing.assert_allclose(total_intensities(person, np.zeros(28)), person.bias)
    np.testing.assert_allclose(total_intensities(person, np.full(28, 0.1)), 0.1 * person.gain + person.bias)
    assert total_intensities(person, np.full((2, 28), 5.0)).tolist() == [[1.0] * 28] * 2


def test_negative_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seed=-1 is negative; 0 or more is allowed"):
        draw_identity(-1)
    with pytest.raises(ValueError, match=r"resting_bias=-0.5 is negative"):
        draw_identity(1, resting_bias=-0.5)
