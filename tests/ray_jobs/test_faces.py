"""`clipautt faces`: a video to look at, a contact sheet and the numbers; and what it says where there is nothing."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ray_jobs import cli
from tests.fakes import numbered_frames, write_video
from tests.photograph import photograph


def face_video(path: Path, **options: dict[str, str]) -> Path:
    frames = [photograph(150 + 4 * i, 180, 0.9) for i in range(30)]
    for hidden in frames[10:15]:
        hidden[:] = 90
    return write_video(path, np.stack(frames), **options)  # type: ignore[arg-type]


def test_video_sheet_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, out = face_video(tmp_path / "v.mp4"), tmp_path / "look"
    assert cli.main(["faces", str(video), f"out={out}", "sampling.frames_per_second=null"]) == 0
    assert "face found in 25 of 30 frames" in capsys.readouterr().out
    table = pd.read_csv(out / "track.csv")
    assert table["found"].tolist() == [True] * 10 + [False] * 5 + [True] * 15
    np.testing.assert_allclose(table["seconds"], np.arange(30) / 25, atol=1e-3)
    np.testing.assert_allclose(np.diff(table["centre_x"]), 4, atol=1.5)  # it follows the face, hidden or not
    with av.open(str(out / "annotated.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 30
    assert Image.open(out / "contact_sheet.png").size[0] > 400


def test_folders_of_frames_are_looked_at_too(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 7):
        Image.fromarray(photograph(200 + number, 180, 0.9)).save(folder / f"f{number}.png")
    assert cli.main(["faces", str(folder), f"out={tmp_path / 'look'}"]) == 0
    assert pd.read_csv(tmp_path / "look" / "track.csv")["found"].all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody.mp4"], "nobody.mp4: no face was found in 5 frames"),
        (["text.mp4"], "text.mp4 cannot be decoded (decord: "),
        (["gone.mp4"], "video=gone.mp4: no such file or folder"),
        (["v.mp4", "faces=none"], "faces=none looks for nothing; allowed here are cascade and yunet"),
        (["v.mp4", "faces=yunet"], "faces.model"),
        (["out/annotated.mp4"], "annotated.mp4 would be written over; give another folder"),
        (["v.mp4", "max_pixels=1000"], "480 × 360 pixels; at most 1,000 pixels are decoded"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    face_video(tmp_path / "v.mp4")
    write_video(tmp_path / "nobody.mp4", numbered_frames(10, height=184, width=240))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "out").mkdir()
    face_video(tmp_path / "out" / "annotated.mp4")
    assert cli.main(["faces", *words, "out=out"]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
