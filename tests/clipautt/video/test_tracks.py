"""One face is followed through gaps and false alarms; the crop lies where the face is, upright, and does not shake."""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from clipautt.datasets.synthetic.generate import SyntheticConfig, plan, render_clip
from clipautt.datasets.synthetic.identity import draw_identity
from clipautt.datasets.synthetic.video import reencode
from clipautt.video.faces import Eyes, Face, FaceConfig, make_detector
from clipautt.video.preprocessing import Frames
from clipautt.video.tracks import FaceTrack, People, crop_face, follow_faces, smooth
from tests.support.photograph import PHOTO_EYES, photo_to_frame, photograph

RAW = FaceConfig(detector="cascade", smooth_seconds=0, margin=0)
SHAPE = (300, 400)


def face(x: float, y: float, side: float, eyes: Eyes | None = None, *, blind: bool = False) -> Face:
    """A square face around (x, y); by default its eyes are level."""
    level = (x - side / 4, y), (x + side / 4, y)
    return Face(x - side / 2, y - side / 2, side, side, 1.0, None if blind else eyes or level)


def people(
    detections: Sequence[tuple[Face, ...]], config: FaceConfig = RAW, *, times: npt.ArrayLike | None = None
) -> People:
    moments = np.arange(len(detections)) / 10 if times is None else times
    return follow_faces(moments, detections, [SHAPE] * len(detections), config)


def track(
    detections: Sequence[tuple[Face, ...]], config: FaceConfig = RAW, *, times: npt.ArrayLike | None = None
) -> FaceTrack | None:
    return people(detections, config, times=times).subject


def follow(*args: object, **kwargs: object) -> FaceTrack:
    followed = track(*args, **kwargs)  # type: ignore[arg-type]
    assert followed is not None
    return followed


def test_the_larger_of_two_faces_with_a_gap() -> None:
    near = [(100.0, 90.0), (110.0, 90.0), (120.0, 90.0), None, None, (150.0, 90.0), (160.0, 90.0), (170.0, 90.0)]
    detections = [(face(300, 90, 40), *([face(*place, 80)] if place else [])) for place in near]
    followed = follow(detections)
    assert followed.found.tolist() == [True, True, True, False, False, True, True, True]
    assert followed.centre[2:6].tolist() == [[120, 90], [130, 90], [140, 90], [150, 90]]
    assert followed.side.tolist() == [80] * 8 and followed.angle.tolist() == [0] * 8
    assert repr(followed) == "FaceTrack(centre [8, 2], side [8], found in 6 of 8)"


def test_a_small_false_alarm_on_the_face_does_not_catch_the_track() -> None:
    """For two frames the cascade misses the face and takes its mouth for one."""
    detections = [(face(200, 150, 100),)] * 5 + [(face(205, 180, 40),)] * 2 + [(face(200, 150, 100),)] * 5
    followed = follow(detections)
    assert followed.found.tolist() == [True] * 5 + [False] * 2 + [True] * 5
    assert followed.centre.tolist() == [[200, 150]] * 12 and followed.side.tolist() == [100] * 12


def test_a_far_false_alarm_of_the_same_size_is_another_face() -> None:
    detections = [(face(100, 150, 80),)] * 5 + [(face(320, 150, 80),)] * 3 + [(face(100, 150, 80),)] * 5
    followed = follow(detections)
    assert not followed.found[5:8].any() and followed.centre.tolist() == [[100, 150]] * 13


def test_a_face_that_lasts_outweighs_a_larger_one_that_passes() -> None:
    detections = [(face(100, 150, 60),) if i not in (8, 9, 10) else (face(250, 150, 120),) for i in range(30)]
    followed = follow(detections)
    assert followed.found.sum() == 27 and followed.centre[9].tolist() == [100, 150]


@pytest.mark.parametrize(
    ("present", "total", "is_face"),
    [((), 5, False), ((0,), 1, True), ((2,), 4, True), ((3,), 5, False), ((4, 5), 9, False), ((4, 5, 6), 900, True)],
)
def test_no_face_is_none(present: tuple[int, ...], total: int, is_face: bool) -> None:
    detections = [(face(200, 150, 80),) if i in present else () for i in range(total)]
    followed = track(detections)
    assert (followed is not None) == is_face
    if followed is not None:
        assert np.flatnonzero(followed.found).tolist() == list(present)
        assert followed.centre.tolist() == [[200, 150]] * total


def test_no_frames_have_no_face() -> None:
    assert track([]) is None


def test_far_from_any_frame_with_the_face_nothing_is_shown() -> None:
    """A face in frames 10 to 19 and 40 to 49 of ten a second, and a second is filled on each side."""
    detections = [(face(100, 150, 80),) if 10 <= i < 20 or 40 <= i < 50 else () for i in range(70)]
    followed = follow(detections, FaceConfig(detector="cascade", max_gap_seconds=1.0))
    assert np.flatnonzero(followed.shown).tolist() == [*range(30), *range(30, 60)]
    followed = follow(detections, FaceConfig(detector="cascade", max_gap_seconds=0.55))
    assert np.flatnonzero(followed.shown).tolist() == [*range(5, 25), *range(35, 55)]
    dropped = follow(detections, FaceConfig(detector="cascade", missing="drop"))
    assert (dropped.shown == dropped.found).all() and dropped.found.sum() == 20


def two_people(count: int = 20) -> list[tuple[Face, ...]]:
    """A near one on the right, one as large in the middle for half of the time, a smaller one on the left."""
    return [
        (face(330, 150, 100), face(80, 140, 60), *([face(200, 150, 100)] if i < count // 2 else []))
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("which", "x"), [("largest", 330), ("left", 80), ("right", 330), ("center", 200), (1, 330), (2, 200), (3, 80)]
)
def test_which_of_several_faces_is_followed(which: str | int, x: float) -> None:
    seen = people(two_people(), FaceConfig(detector="cascade", smooth_seconds=0, which=which))  # type: ignore[arg-type]
    assert seen.subject is not None and seen.subject.centre[0, 0] == x
    assert seen.others == 2 and len(seen.tracks) == 3 and seen.why == ""
    assert seen.counts.tolist() == [3] * 10 + [2] * 10


def test_a_number_beyond_the_faces_says_how_many_there_are() -> None:
    seen = people(two_people(), FaceConfig(detector="cascade", which=4))
    assert seen.subject is None and seen.others == 3
    assert seen.why == "face 4 was asked for, and 3 faces were found"


def test_what_shows_no_eyes_and_passes_is_no_face() -> None:
    """A cheek that is taken for a face in 12 of 75 frames; a profile, which lasts, is a face."""
    cheek = [(face(150, 200, 70, blind=True),) if 20 <= i < 32 else () for i in range(75)]
    seen = people(cheek)
    assert seen.tracks == () and seen.subject is None
    assert seen.why == "no face was found in 75 frames: what looks like one in 12 of them shows no eyes"
    profile = [(face(150, 150, 70, blind=True),) if i < 38 else () for i in range(75)]
    assert people(profile).others == 0 and people(profile).subject is not None
    beside = [(face(300, 100, 50), *faces) for faces in cheek]
    assert people(beside).others == 0, "the cheek is nobody"


def test_a_face_that_counts_is_followed_while_it_is_smaller() -> None:
    """The smallest face is 0.15 of 300 pixels, 45; as it goes away it shrinks to 35."""
    going = [(face(200, 150, side),) for side in np.linspace(50, 35, 20)]
    assert follow(going).found.all()
    small = people([(face(200, 150, 40),)] * 20)
    assert small.subject is None
    assert small.why == (
        "no face was found in 20 frames: the face is too small, 13 % of the frame's shorter side "
        "(faces.min_face=0.15); set faces.min_face=0.12, or cut the video to the face"
    )
    assert people([(face(200, 150, 40),)] * 20, FaceConfig(detector="cascade", min_face=0.12)).subject is not None


def test_score_is_that_of_the_detections() -> None:
    followed = follow([(face(200, 150, 80),), (), (face(200, 150, 80),), (face(200, 150, 80),)])
    np.testing.assert_equal(followed.score, [1.0, np.nan, 1.0, 1.0])


@pytest.mark.parametrize(("x", "same"), [(100, True), (150, True), (170, True), (300, False)])
def test_after_the_longest_gap_a_face_is_the_same_only_in_its_place(x: float, same: bool) -> None:
    detections = [(face(100, 150, 80),)] * 6 + [()] * 30 + [(face(x, 150, 80),)] * 4
    followed = follow(detections, FaceConfig(detector="cascade", smooth_seconds=0, margin=0, max_gap_seconds=1.0))
    assert followed.found[-4:].tolist() == [same] * 4
    assert followed.centre[-1].tolist() == ([x, 150] if same else [100, 150])


def test_the_longest_gap_bounds_how_far_a_face_moves_out_of_sight() -> None:
    detections = [(face(100, 150, 80),)] * 6 + [()] * 9 + [(face(200, 150, 80),)] * 4
    found = [
        follow(detections, FaceConfig(detector="cascade", max_gap_seconds=gap)).found[-1] for gap in (0.5, 1.0, 2.0)
    ]
    assert found == [False, True, True]


def test_frames_far_apart_have_no_gap_between_them() -> None:
    followed = follow([(face(100 + 20 * i, 150, 80),) for i in range(6)], times=np.arange(6) * 7.0)
    assert followed.found.all()


def test_a_clip_that_changes_its_resolution() -> None:
    detections = [(face(100, 150, 80),)] * 6 + [(face(200, 300, 160),)] * 6
    followed = follow_faces(np.arange(12) / 10, detections, [SHAPE] * 6 + [(600, 800)] * 6, RAW).subject
    assert followed is not None and followed.found.all()
    assert np.allclose(followed.centre, [[100, 150]] * 6 + [[200, 300]] * 6)
    assert np.allclose(followed.side, [80] * 6 + [160] * 6)


def test_margin_is_added_on_each_side() -> None:
    followed = follow([(face(100, 150, 80),)] * 3, FaceConfig(detector="cascade", margin=0.25))
    assert followed.side == pytest.approx([120] * 3)


def test_tilt_follows_the_eyes_that_are_seen() -> None:
    def tilted(degrees: float) -> tuple[Face, ...]:
        x, y = 20 * math.cos(math.radians(degrees)), 20 * math.sin(math.radians(degrees))
        return (face(200, 150, 80, ((200 - x, 150 - y), (200 + x, 150 + y))),)

    blind = (face(200, 150, 80, blind=True),)
    detections = [tilted(0)] * 5 + [blind] * 4 + [tilted(10)] * 5
    followed = follow(detections)
    assert np.degrees(followed.angle) == pytest.approx([0] * 5 + [2, 4, 6, 8] + [10] * 5)
    assert np.isnan(followed.eyes[5:9]).all() and np.isfinite(followed.eyes[9:]).all()
    assert followed.eyes[0].tolist() == [[180, 150], [220, 150]]
    assert not follow(detections, FaceConfig(detector="cascade", align=False)).angle.any()
    assert not follow([blind] * 5).angle.any()
    # 179 degrees and -179 degrees are neighbours.
    upside_down = follow(
        [tilted(179 if i % 2 else -179) for i in range(40)], FaceConfig(detector="yunet", model_hash="x")
    )
    assert np.cos(upside_down.angle).max() < -0.99


def test_single_outliers_leave_no_trace() -> None:
    detections = [(face(200, 150, 80),)] * 20
    detections[8] = (face(225, 165, 95),)
    detections[14] = (face(180, 140, 70),)
    followed = follow(detections, FaceConfig(detector="cascade", margin=0))
    assert np.allclose(followed.centre, [200, 150]) and np.allclose(followed.side, 80)


def test_a_still_face_does_not_shake() -> None:
    noise = np.random.default_rng(0).normal(0, [1.5, 1.5, 3.0], (100, 3))
    detections = [(face(200 + x, 150 + y, 100 + s),) for x, y, s in noise]
    followed = follow(detections, FaceConfig(detector="cascade", margin=0), times=np.arange(100) / 25)
    assert followed.centre.std(axis=0).max() < 0.6
    assert np.abs(np.diff(followed.centre, axis=0)).max() < 0.25
    assert followed.side.std() < 1.2


@pytest.mark.parametrize("frames_per_second", [12.5, 25.0, 60.0])
def test_a_moving_face_is_followed_without_lag(frames_per_second: float) -> None:
    times = np.arange(int(3 * frames_per_second)) / frames_per_second
    x, side = 80 + 60 * times, 60 + 10 * times
    followed = follow(
        [(face(*place, 1.0 * s),) for *place, s in zip(x, 0 * x + 150, side, strict=True)],
        FaceConfig(detector="cascade", margin=0),
        times=times,
    )
    assert np.abs(followed.centre[:, 0] - x).max() < 60 / frames_per_second + 1e-6
    assert np.abs(followed.centre[3:-3, 0] - x[3:-3]).max() < 1.5
    assert np.abs(followed.side - side).max() < 1.5


def test_smoothing_keeps_a_line_and_looks_both_ways() -> None:
    times = np.array([0, 0.1, 0.15, 0.4, 0.5, 0.9, 1.0, 1.05])
    line = np.stack([3 + 2 * times, 1 - times], axis=1)
    assert np.allclose(smooth(times, line, 0.2), line)
    assert smooth(times, line, 0) is line
    step = (np.arange(42) >= 20.5).astype(float)[:, None]
    smoothed = smooth(np.arange(42) / 20, step, 0.15)[:, 0]
    assert np.allclose(smoothed + smoothed[::-1], 1, atol=0.01) and 0.4 < smoothed[20] < 0.5
    assert np.allclose(smooth(np.zeros(2), np.array([[1.0], [3.0]]), 0.1), 2)


@pytest.mark.parametrize(
    ("times", "shapes", "message"),
    [
        ([0, 1], [SHAPE] * 3, r"times has the shape \[2\], and there are 3 detections and 3 frame_shapes"),
        ([0, 1, 2], [SHAPE] * 2, r"times has the shape \[3\], and there are 3 detections and 2 frame_shapes"),
        ([0, 2, 1], [SHAPE] * 3, r"times must be numbers that ascend"),
        ([0, 1, math.nan], [SHAPE] * 3, r"times must be numbers that ascend"),
    ],
)
def test_tracks_need_one_of_each_per_frame(times: list[float], shapes: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        follow_faces(times, [()] * 3, shapes, RAW)


def test_an_upright_crop_of_whole_pixels_is_the_frame_itself() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    crop = crop_face(frame, (20, 15), 10, 0.0, size=10, interpolation="bicubic")
    assert (crop == frame[10:20, 15:25]).all()


def test_a_face_lying_on_its_side_comes_out_upright() -> None:
    upright = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    clockwise = np.rot90(upright, -1).copy()
    crop = crop_face(clockwise, (10, 10), 20, math.pi / 2, size=20, interpolation="area")
    assert (crop == upright).all()


def test_borders_go_on_beyond_the_frame() -> None:
    frame = np.zeros((20, 20, 3), np.uint8)
    frame[:, :10], frame[:, 10:] = 50, 200
    crop = crop_face(frame, (0, 0), 20, 0.0, size=20, interpolation="bilinear")
    assert crop.shape == (20, 20, 3) and (crop == 50).all()
    assert (crop_face(frame, (100, -50), 20, 0.3, size=8, interpolation="area") == 200).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "area"])
def test_shrinking_averages(interpolation: str) -> None:
    lines = np.zeros((128, 128, 3), np.uint8)
    lines[:, ::4] = 255
    crop = crop_face(lines, (64, 64), 112, 0.0, size=14, interpolation=interpolation)  # type: ignore[arg-type]
    assert abs(crop[:, 1:-1].astype(int) - 64).max() <= 3


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "area"])
def test_a_very_large_crop_costs_no_more_than_it_shows(interpolation: str) -> None:
    """A square of 12,000 pixels, which would take 432 MB, turned by a quarter around a frame of four colours."""
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    frame = colours.repeat(1500, 0).repeat(2000, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    crop = crop_face(frame, (2000, 1500), 12000, math.pi / 2, size=48, interpolation=interpolation)  # type: ignore[arg-type]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    # As the picture turns clockwise, so does the square: its upper left is the frame's upper right.
    expected = np.rot90(colours).repeat(24, 0).repeat(24, 1)
    away = np.abs(crop.astype(int) - expected).max(-1)
    assert away[:22, :22].max() <= 1 and away[:22, 26:].max() <= 1
    assert away[26:, :22].max() <= 1 and away[26:, 26:].max() <= 1


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_a_crop_keeps_its_place_where_the_frame_is_reduced(angle: float) -> None:
    """The same square of a frame that is four times as large shows the same."""
    small = cv2.GaussianBlur(photograph(), (0, 0), 3)
    large = cv2.resize(small, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    one = crop_face(small, (240, 180), 300.0, angle, size=96, interpolation="bicubic")
    other = crop_face(large, (960, 720), 1200.0, angle, size=96, interpolation="bicubic")
    assert np.abs(one.astype(int) - other).mean() < 0.5 and np.abs(one.astype(int) - other).max() <= 6


def test_crops_up_to_1024_pixels_have_the_scale_of_the_frame() -> None:
    """Single pixels survive a turn by a quarter, as they would not in a frame that was reduced."""
    frame = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    crop = crop_face(frame, (512, 512), 1024, math.pi / 2, size=1024, interpolation="area")
    assert (crop == np.rot90(frame)).all()
    crop = crop_face(frame, (512, 512), 1024, math.pi / 2, size=32, interpolation="area")
    assert (crop == cv2.resize(np.rot90(frame), (32, 32), interpolation=cv2.INTER_AREA)).all()


@pytest.mark.parametrize("wrong", [{"side": 0.0}, {"side": math.nan}, {"centre": (math.inf, 0)}])
def test_a_crop_needs_a_place(wrong: dict[str, object]) -> None:
    place = {"centre": (5, 5), "side": 4.0, "angle": 0.0} | wrong
    with pytest.raises(ValueError, match=r"side=.*; finite numbers and a positive side are needed"):
        crop_face(np.zeros((9, 9, 3), np.uint8), **place, size=4, interpolation="area")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Film:
    """The photograph as a video: what was shown where, and what the detector said."""

    frames: Frames
    times: npt.NDArray[np.float64]
    matrices: npt.NDArray[np.float64]
    """Photograph to frame, [T, 2, 3]."""
    hidden: npt.NDArray[np.bool_]
    detections: list[tuple[Face, ...]]

    def point(self, place: tuple[float, float]) -> npt.NDArray[np.float64]:
        """Where a point of the photograph lies in each frame, [T, 2]."""
        return self.matrices @ np.array([*place, 1.0])


FPS = 12
SMOOTH = FaceConfig(detector="cascade", smooth_seconds=0.2)


def shoot(
    places: Sequence[tuple[float, float, float, float]], *, hidden: Sequence[int] = (), second: bool = False
) -> Film:
    """A compressed, noisy video of the photograph.

    Args:
        places: x, y of the face's middle in pixels, scale, and radians of clockwise tilt, for each frame.
        hidden: frames in which the face is covered.
        second: whether a smaller, still face stands in the corner.
    """
    rng, frames = np.random.default_rng(0), []
    for number, place in enumerate(places):
        frame = photograph(*place)
        if number in hidden:
            frame[:] = 90
        if second:
            frame[270:, :90] = photograph(45, 45, 0.6, size=(90, 90))
        frames.append((frame + rng.normal(0, 5, frame.shape)).clip(0, 255).astype(np.uint8))
    video, detect = reencode(np.stack(frames), fps=FPS), make_detector(SMOOTH)
    matrices = np.stack([photo_to_frame(*place) for place in places])
    covered = np.isin(np.arange(len(places)), hidden)
    return Film(video, np.arange(len(places)) / FPS, matrices, covered, [detect(frame) for frame in video])


def eyes_in_crop(film: Film, followed: FaceTrack) -> npt.NDArray[np.float64]:
    """Where the true eyes lie in the crops, in shares of their side: [T, eye, xy]."""
    eyes = np.stack([film.point(eye) for eye in PHOTO_EYES], axis=1) - followed.centre[:, None]
    cos, sin = np.cos(followed.angle)[:, None], np.sin(followed.angle)[:, None]
    upright = np.stack([eyes[..., 0] * cos + eyes[..., 1] * sin, eyes[..., 1] * cos - eyes[..., 0] * sin], axis=-1)
    return upright / followed.side[:, None, None] + 0.5


def film_track(film: Film) -> FaceTrack:
    followed = follow_faces(film.times, film.detections, [frame.shape[:2] for frame in film.frames], SMOOTH).subject
    assert followed is not None
    return followed


def test_a_moved_scaled_and_hidden_face_stays_in_its_crop() -> None:
    """The crop shows the eyes at the same place while the face crosses the frame, comes nearer, and is covered."""
    steps = np.linspace(0, 1, 40)
    places = [(150 + 180 * s, 150 + 40 * s, 1.0 + 0.5 * s, 0.0) for s in steps]
    film = shoot(places, hidden=range(16, 22), second=True)
    followed = film_track(film)
    assert (followed.found == ~film.hidden).all()
    seen = eyes_in_crop(film, followed)
    assert seen.std(axis=0).max() < 0.015
    assert np.abs(seen - seen.mean(axis=0)).max() < 0.035
    middle = seen.mean(axis=(0, 1))
    assert middle == pytest.approx((0.5, 0.4), abs=0.06)


def test_a_still_face_in_a_noisy_video_has_a_still_crop() -> None:
    film = shoot([(240, 180, 1.3, 0.0)] * 30)
    followed = film_track(film)
    raw = np.array([faces[0].centre for faces in film.detections])
    assert raw.std(axis=0).max() > 0.4
    assert followed.centre.std(axis=0).max() < 0.35
    assert np.abs(np.diff(followed.centre, axis=0)).max() < 0.3
    assert followed.side.std() / followed.side.mean() < 0.006
    assert np.degrees(followed.angle).std() < 0.3


def test_the_crop_levels_the_eyes_of_a_nodding_head() -> None:
    tilt = 0.16 * np.sin(2 * np.pi * 0.4 * np.arange(36) / FPS)
    film = shoot([(240, 180, 1.3, float(t)) for t in tilt])
    eyes = eyes_in_crop(film, film_track(film))
    left = np.degrees(np.arctan2(*(eyes[:, 1] - eyes[:, 0]).T[::-1]))
    assert np.abs(left).max() < 4.0 and left.std() < 2.0


def test_a_synthetic_clip_is_found_in_every_frame() -> None:
    config = SyntheticConfig(seed=3, num_frames=24, source_subjects=0, source_val_subjects=0, target_subjects=3)
    for subject in plan(config):
        movements, frames = render_clip(draw_identity(subject.identity_seed), subject.clips[1], config)
        detect = make_detector(SMOOTH)
        shapes = [frame.shape[:2] for frame in frames]
        followed = follow_faces(np.arange(24) / 25, [detect(frame) for frame in frames], shapes, SMOOTH).subject
        assert followed is not None and followed.found.mean() > 0.9
        turned = np.degrees(followed.angle - movements.pose[:, 2])
        assert turned.std() < 2.0
