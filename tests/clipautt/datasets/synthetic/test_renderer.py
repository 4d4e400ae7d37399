"""Every action unit shows, where it belongs, and differs from its neighbours."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from clipautt.action_units import RENDERED
from clipautt.datasets.synthetic.identity import INDEX, Identity, draw_identity
from clipautt.datasets.synthetic.renderer import render
from clipautt.datasets.synthetic.sheet import COMPOSITIONS, contact_sheet

SIZE = 96
# Rows of the frame, as fractions, inside which a unit shows.
UPPER, MIDDLE, LOWER = (0.1, 0.52), (0.28, 0.76), (0.55, 1.0)
WHERE = {
    "AU1": UPPER, "AU2": UPPER, "AU4": UPPER, "AU5": UPPER, "AU7": UPPER, "AU43": UPPER, "AU6": MIDDLE,
    "AU9": (0.25, 0.85), "AU10": LOWER, "AU12": LOWER, "AU14": LOWER, "AU15": LOWER, "AU17": LOWER, "AU18": LOWER,
    "AU20": LOWER, "AU23": LOWER, "AU25": LOWER, "AU26": LOWER, "AU61": UPPER, "AU62": UPPER,
    "AU63": UPPER, "AU64": UPPER,
}  # fmt: skip


@pytest.fixture(scope="module")
def people() -> list[Identity]:
    """Light and dark skin, with and without glasses and beard."""
    return [draw_identity(seed) for seed in (1, 4, 8, 13)]


def show(person: Identity, *codes: str, intensity: float = 1.0) -> NDArray[np.float64]:
    values = np.zeros(len(RENDERED))
    values[[INDEX[code] for code in codes]] = intensity
    return render(person, values, size=SIZE).astype(np.float64)


@pytest.mark.parametrize("code", RENDERED)
def test_every_unit_changes_the_face_noticeably(people: list[Identity], code: str) -> None:
    for person in people:
        change = np.abs(show(person, code) - show(person)).mean(axis=2)
        assert (change > 8).sum() > 20, f"{code} changes too few pixels of person {person.seed}"
        faint = np.abs(show(person, code, intensity=0.4) - show(person)).mean()
        assert 0.15 < faint / change.mean() < 0.95  # intensity is a matter of degree


@pytest.mark.parametrize("code", WHERE)
def test_units_show_in_their_region(people: list[Identity], code: str) -> None:
    first, last = (round(SIZE * fraction) for fraction in WHERE[code])
    for person in people:
        change = np.abs(show(person, code) - show(person)).sum(axis=(1, 2))
        assert change[first:last].sum() > 0.85 * change.sum()


@pytest.mark.parametrize(
    ("one", "other"),
    [("AU6", "AU7"), ("AU9", "AU10"), ("AU12", "AU20"), ("AU15", "AU17"), ("AU51", "AU61"), ("AU54", "AU64"),
     ("AU1", "AU2"), ("AU18", "AU23"), ("AU25", "AU26"), ("AU51", "AU52"), ("AU61", "AU62"),
     ("AU14", "AU12"), ("AU18", "AU20")],
)  # fmt: skip
def test_similar_units_change_the_face_differently(people: list[Identity], one: str, other: str) -> None:
    for person in people:
        first, second = (show(person, code) - show(person) for code in (one, other))
        cosine = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
        assert cosine < 0.8, f"{one} and {other} look alike on person {person.seed}"


def dark_column(frame: NDArray[np.float64], rows: slice) -> float:
    """Mean column of the darkest pixels in some rows."""
    grey = frame[rows, 20:-20].mean(axis=2)
    return 20 + float(np.argwhere(grey <= np.quantile(grey, 0.04))[:, 1].mean())


def test_left_is_the_subjects_left() -> None:
    person = draw_identity(3)
    eyes = slice(36, 48)
    for turned_left, turned_right in (("AU51", "AU52"), ("AU61", "AU62")):
        left, right = dark_column(show(person, turned_left), eyes), dark_column(show(person, turned_right), eyes)
        assert left > dark_column(show(person), eyes) > right  # the viewer sees it move to the right


def test_closed_eyes_differ_from_tightened_lids_in_degree(people: list[Identity]) -> None:
    """Both narrow the eyes, so they look alike in part; only closing hides the whites."""
    for person in people:
        first, second = (show(person, code) - show(person) for code in ("AU43", "AU7"))
        cosine = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
        assert cosine < 0.9
        assert np.linalg.norm(first) > 1.1 * np.linalg.norm(second)


def test_pose_moves_like_the_head_codes() -> None:
    person = draw_identity(3)
    turned = render(person, np.zeros(28), pose=(0.62, 0, 0)).astype(float)
    np.testing.assert_array_equal(turned, show(person, "AU51"))
    shifted = render(person, np.zeros(28), translation=(0.3, 0.0))
    assert np.abs(shifted - show(person)).mean() > 2


def test_rendering_repeats_itself_and_noise_needs_a_generator() -> None:
    person, rest = draw_identity(5), np.zeros(28)
    first, second = render(person, rest), render(draw_identity(5), rest)
    assert first.shape == (96, 96, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    noisy = [render(person, rest, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], noisy[2])
    assert 0.3 < np.abs(noisy[0].astype(float) - first).mean() < 6


def test_frames_of_other_sizes_show_the_same_scene() -> None:
    person = draw_identity(2)
    small, large = (render(person, person.bias, size=size).astype(float) for size in (48, 192))
    pooled = large.reshape(48, 4, 48, 4, 3).mean(axis=(1, 3))
    assert np.abs(pooled - small).mean() < 6


def test_extreme_faces_can_be_drawn() -> None:
    rng = np.random.default_rng(0)
    for seed in range(12):
        render(draw_identity(seed), np.ones(28), pose=(2, -2, 2), size=33, rng=rng)


@pytest.mark.parametrize(
    ("values", "size", "message"),
    [
        (np.zeros(27), 96, r"intensities has shape \(27,\); \(28,\) is needed"),
        (np.full(28, 1.2), 96, r"intensities span 1.2..1.2; 0..1 is allowed"),
        (np.full(28, np.nan), 96, r"intensities span nan..nan; 0..1 is allowed"),
        (np.zeros(28), 16, r"size=16 is too small; 32 or more"),
    ],
)
def test_wrong_arguments_are_named(values: NDArray[np.float64], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(draw_identity(0), values, size=size)


def test_contact_sheet_has_a_column_for_everything() -> None:
    sheet = contact_sheet([1, 2], size=48)
    assert sheet.shape == (32 + 2 * 48, (1 + 28 + len(COMPOSITIONS)) * 48, 3)
    faces = sheet[18:66].reshape(48, -1, 48, 3).swapaxes(0, 1).astype(float)
    assert min(np.abs(a - b).mean() for a, b in pairwise(faces)) > 0.5
    with pytest.raises(ValueError, match="seeds is empty"):
        contact_sheet([])
    with pytest.raises(ValueError, match=r"intensity=2 is not allowed; 0..1 is"):
        contact_sheet([1], intensity=2)
