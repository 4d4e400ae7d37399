"""`overlay=` and `figure=`: where the pictures of answers go, and what is refused before anything is decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipautt.clips import Clip
from ray_jobs import cli
from ray_jobs.predict.pictures import Pictures
from tests.clipautt.prediction.test_answers import answer, seen_clip
from tests.support.fakes import write_video


def clips(folder: Path, *names: str) -> list[Clip]:
    return [Clip(name, "unknown", str(folder / f"{name}.mp4"), "target") for name in names]


def test_one_video_gives_the_named_files_and_several_a_file_each(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", np.full((3, 64, 64, 3), 90, np.uint8))
    found = replace(answer(seen_clip()), video=str(video))
    one = Pictures(str(tmp_path / "o.mp4"), str(tmp_path / "f.svg"))
    assert one.write(found) == [tmp_path / "o.mp4", tmp_path / "f.svg"]
    many = Pictures(str(tmp_path / "all"), str(tmp_path / "all"), several=True)
    many.check(clips(tmp_path, "day 1/c0", "c1"))
    written = many.write(replace(found, clip=replace(found.clip, clip_id="day 1/c0")))
    assert written == [tmp_path / "all" / "day 1" / "c0.mp4", tmp_path / "all" / "day 1" / "c0.png"]
    assert all(path.stat().st_size > 1000 for path in [*written, tmp_path / "o.mp4", tmp_path / "f.svg"])
    (outside,) = Pictures(None, str(tmp_path / "all"), several=True).write(
        replace(found, clip=replace(found.clip, clip_id="../../c0"))
    )
    assert outside == tmp_path / "all" / "..%2F..%2Fc0.png"
    assert Pictures(None, None).write(found) == []


@pytest.mark.parametrize(
    ("overlay", "figure", "names", "said"),
    [
        ("o.mkv", None, "a", "overlay={}/o.mkv: an overlay is an MP4 video; allowed: names that end in .mp4"),
        (None, "f.jpg", "a", "figure={}/f.jpg: allowed for a figure: names that end in .png, .svg or .pdf"),
        ("a.mp4/o.mp4", None, "a", "overlay={0}/a.mp4/o.mp4: {0}/a.mp4 is a file, not a folder; give another name"),
        ("a.mp4", None, "a", "overlay={}/a.mp4 is the video itself, which would be overwritten; give another name"),
        (
            "o.mp4",
            None,
            "ab",
            "overlay={}/o.mp4: 2 videos are predicted; give a folder, which gets a file per video",
        ),
        (None, "f", "aba", "figure={0}/f: two videos would be written to {0}/f/a.png; predict them one by one"),
        (".", None, "ab", "overlay={}/a.mp4 is the video itself, which would be overwritten; give another name"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, overlay: str | None, figure: str | None, names: str, said: str
) -> None:
    (tmp_path / "a.mp4").touch()
    given = [None if one is None else str(tmp_path / one) for one in (overlay, figure)]
    with pytest.raises(ValueError) as caught:
        Pictures(*given, several=len(names) > 1).check(clips(tmp_path, *names))
    assert str(caught.value) == said.format(tmp_path)


def test_the_job_refuses_before_it_loads_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = tmp_path / "v.mp4"
    video.touch()
    assert cli.main(["predict", str(video), "checkpoint=none", f"overlay={video}"]) == 2
    said = f"clipautt predict: overlay={video} is the video itself, which would be overwritten; give another name\n"
    assert capsys.readouterr().err == said
