"""Rendered footage is recognized wherever it is copied to, and a model that meets footage of another kind says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from clipautt.clips import Clip
from clipautt.datasets.synthetic.generate import SyntheticConfig
from clipautt.datasets.synthetic.video import write_mp4
from clipautt.footage import (
    RENDERED_DATASET,
    Footage,
    is_rendered,
    is_rendered_clip,
    other_footage,
    rendered_only,
    truth_path,
)
from tests.support.fakes import numbered_frames, write_video

RENDERED, FILMED = Footage("rendered", ("synthetic-pain-hard-seed0",)), Footage("other", ("BioVid",))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rendered") / "clip.mp4"
    write_mp4(path, np.zeros((40, 96, 96, 3), np.uint8))
    return path


def remuxed(source: Path, target: Path, **options: Any) -> Path:
    """The same pictures and metadata in another container, as `ffmpeg -c copy` writes them."""
    with av.open(str(source)) as given, av.open(str(target), "w", container_options=options) as written:
        written.metadata.update(given.metadata)
        stream = written.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
    return target


def test_a_rendered_video_stays_one_when_it_is_copied_or_put_into_another_container(
    rendered: Path, tmp_path: Path
) -> None:
    assert is_rendered(rendered) and is_rendered(str(rendered))
    assert is_rendered(shutil.copy(rendered, tmp_path / "holiday.mp4"))
    for name in ("a.mov", "a.mkv"):
        assert is_rendered(remuxed(rendered, tmp_path / name)), name
    assert is_rendered(remuxed(rendered, tmp_path / "front.mp4", movflags="faststart"))


def test_true_intensities_beside_a_video_show_that_it_is_rendered(tmp_path: Path) -> None:
    """As with videos of the first version, which have no mark."""
    video = write_video(tmp_path / "old.mp4", numbered_frames(5))
    assert is_rendered(video) is False
    truth_path(video).touch()
    assert is_rendered(video) is True


def test_other_footage_and_what_is_no_footage(tmp_path: Path) -> None:
    assert is_rendered(write_video(tmp_path / "film.mp4", numbered_frames(60))) is False
    (tmp_path / "frames").mkdir()
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    assert is_rendered(tmp_path / "frames") is False
    assert is_rendered(".") is False
    assert is_rendered(tmp_path / "empty.mp4") is False
    assert is_rendered(tmp_path / "gone.mp4") is None
    assert is_rendered(tmp_path / "pipe.mp4") is None


def test_where_the_file_is_not_on_this_machine_the_data_set_decides(rendered: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.mp4")
    assert SyntheticConfig().name.startswith(RENDERED_DATASET)
    assert is_rendered_clip(Clip("c", "s", gone, "target", dataset=SyntheticConfig().name)) is True
    assert is_rendered_clip(Clip("c", "s", gone, "target", dataset="BioVid")) is None
    film = str(write_video(tmp_path / "film.mp4", numbered_frames(5)))
    assert is_rendered_clip(Clip("c", "s", film, "target", dataset=SyntheticConfig().name)) is False
    assert is_rendered_clip(Clip("c", "s", str(rendered), "target", dataset="mine")) is True


@pytest.mark.parametrize(
    ("rendered", "datasets", "expected", "words"),
    [
        ([True, True], ["b", "a", ""], Footage("rendered", ("a", "b")), "a, b (rendered faces)"),
        ([False], ["BioVid"], Footage("other", ("BioVid",)), "BioVid (not rendered)"),
        ([True, False], [""], Footage("mixed"), "rendered and other faces"),
        ([True, None], [], Footage(), "not recorded"),
        ([], ["BioVid"], Footage(None, ("BioVid",)), "BioVid (not recorded)"),
        ([False], list("gfedcba"), Footage("other", tuple("abcdefg")), "a, b, c, d, e and 2 more (not rendered)"),
    ],
)
def test_footage_of_clips(
    rendered: Sequence[bool | None], datasets: Sequence[str], expected: Footage, words: str
) -> None:
    assert Footage.of(rendered, datasets) == expected and str(expected) == words


REAL = "for the face of a real person the answer means nothing."


@pytest.mark.parametrize(
    ("backbone", "checkpoint", "clips", "sentence"),
    [
        (
            RENDERED,
            RENDERED,
            [False],
            "The backbone and the checkpoint were trained on rendered faces only, and this video is not marked as "
            f"rendered: {REAL}",
        ),
        (
            RENDERED,
            FILMED,
            [False, True, False, None],
            f"The backbone was trained on rendered faces only, and 2 of 3 clips are not marked as rendered: {REAL}",
        ),
        (
            Footage(),
            RENDERED,
            [False],
            f"The checkpoint was trained on rendered faces only, and this video is not marked as rendered: {REAL}",
        ),
        (
            Footage(),
            FILMED,
            [True],
            "The checkpoint was trained on footage without rendered faces, and this video is rendered: for a "
            "rendered face the answer means nothing.",
        ),
        (RENDERED, RENDERED, [True, True], None),
        (Footage(), FILMED, [False], None),
        (RENDERED, RENDERED, [None], None),
        (Footage(), Footage(), [True, False], None),
        (Footage(), Footage("mixed"), [True, False], None),
    ],
)
def test_footage_of_a_kind_that_was_not_seen(
    backbone: Footage, checkpoint: Footage, clips: Sequence[bool | None], sentence: str | None
) -> None:
    assert other_footage({"the backbone": backbone, "the checkpoint": checkpoint}, clips) == sentence


def test_a_model_of_rendered_faces_only_says_so() -> None:
    assert rendered_only({"the backbone": FILMED, "the checkpoint": Footage()}) is None
    said = "have seen rendered faces only: what is said about real people means nothing."
    assert rendered_only({"the backbone": RENDERED, "the checkpoint": RENDERED}) == (
        f"The backbone and the checkpoint {said}"
    )
    assert rendered_only({"the backbone": FILMED, "the checkpoint": RENDERED}) == (
        f"The checkpoint {said.replace('have', 'has')}"
    )
