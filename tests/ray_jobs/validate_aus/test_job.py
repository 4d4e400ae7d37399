"""`clipautt validate-aus` on stored features of clips: what is written, what is printed, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ray_jobs import cli
from tests.support.adapting import World, make_world

ROWS = "".join(
    f"s{subject}c{clip},{au},{start},{start + 0.6}\n"
    for subject in range(6)
    for clip in range(2)
    for au, start in (("6C", 0.1 * subject), ("4+2", 0.4), ("45", 0.2))
)
CODING = f"clip;au;onset;offset\n{ROWS}zzz,7,0,1\n".replace(",", ";")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six people with three clips each; in one clip of s5 the face is seldom found."""
    return make_world(tmp_path_factory.mktemp("world"), subjects=6, per_subject=3, faceless=["s5c1"])


def validate(world: World, coding: Path, out: Path, *words: str) -> int:
    options = [f"videos=[{world.manifest()}]", f"checkpoint={world.checkpoint}", f"store={world.folder / 'store'}"]
    return cli.main(["validate-aus", str(coding), *options, f"out={out}", *words])


@pytest.mark.usefixtures("local_ray")
def test_tables_and_what_they_say(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coding = tmp_path / "coding.csv"
    coding.write_text(CODING)
    assert validate(world, coding, tmp_path / "out") == 0
    aus, subjects, clips = (
        pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("aus", "subjects", "clips")
    )
    written = pd.read_csv(tmp_path / "out" / "aus.csv")
    assert list(written) == list(aus) and np.array_equal(written["roc_auc"], aus["roc_auc"], equal_nan=True)
    found = aus[aus["similarity"] == "model"].set_index("au")
    assert found["status"].to_dict() == {
        "AU2": "ok",
        "AU4": "ok",
        "AU6": "ok",
        "AU7": "never_present",
        "AU45": "no_prompt",
    }
    assert found.loc["AU6", ["num_subjects", "num_clips", "coded_as"]].tolist() == [6, 11, "intensity"]
    assert found.loc["AU6", "roc_auc_low"] <= found.loc["AU6", "roc_auc"] <= found.loc["AU6", "roc_auc_high"]
    assert set(aus["warnings"]) == {
        "The backbone 'embedded' was trained on rendered faces only, and 12 of 12 clips are not marked as rendered: "
        "for the face of a real person the answer means nothing."
    }
    assert len(subjects) == 5 * 2 * 6 and set(subjects["face_share"]) == {1.0}
    states = clips.set_index("clip_id")["status"].to_dict()
    assert states == {
        **{f"s{s}c{c}": "ok" for s in range(6) for c in range(2)},
        **{f"s{s}c2": "no_coding" for s in range(6)},
        "s5c1": "no_window",
        "": "no_clip",
    }
    assert clips["reason"].iloc[-1] == "'zzz' is the name of no clip or video"
    facts = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert facts["settings"]["facs"]["present_from"] == 1.0 and facts["checkpoint_fingerprint"]
    said = capsys.readouterr().out
    assert validate(world, coding, tmp_path / "out", "facs.protocol=per_video") == 0
    alone = pd.read_parquet(tmp_path / "out" / "aus.parquet")
    same = alone["roc_auc"] == aus["roc_auc"]
    assert same[aus["similarity"] == "backbone"].sum() == 3 and same[aus["similarity"] == "model"].sum() == 0
    assert "11 of 18 clips compared (6 no_coding, 1 no_window, 1 no_clip, see clips.csv)" in said
    assert "no_prompt, the checkpoint has no prompt for this action unit: AU45" in said
    assert re.search(r"coding\.csv +'zzz' is the name of no clip or video", said)
    assert "never_present, no window shows it: AU7" in said
    assert "warning: The backbone 'embedded' was trained on rendered faces only" in said
    assert "mean ROC-AUC" in said and "without interval" not in said
    nobody = tmp_path / "nobody.parquet"
    pd.read_parquet(world.manifest()).assign(subject_id="").to_parquet(nobody)
    options = [f"checkpoint={world.checkpoint}", f"store={world.folder / 'store'}", f"out={tmp_path / 'flat'}"]
    assert cli.main(["validate-aus", str(coding), str(nobody), *options]) == 1, "features are kept per subject"
    assert (
        "warning: nothing says who is in 18 of 18 videos, and each counts as a subject of its own. Where several show "
        "one person, intervals are too narrow; names= says who is in them." in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (
            "clip,au,onset,offset\nnobody,4,0,1\n",
            [],
            "nothing in it is named after a clip or its video; it names nobody",
        ),
        ("clip,au,onset,offset\ns0c0,smile,0,1\n", [], "coding.csv, line 2: 'smile' is no action unit"),
        (CODING, ["facs.present_from=7"], "facs.present_from=7: should be less than or equal to 5"),
        (CODING, ["facs.protocol=online"], "facs.protocol='online': should be one of per_subject, per_video"),
        (CODING, ["out=s3://bucket/x"], "out=s3://bucket/x: URIs are not read yet"),
        (CODING, ["out=."], "out=.: clips.csv would be overwritten; give another folder"),
        (CODING, ["out=clips.csv"], "out=clips.csv is a file; give a folder"),
        (None, [], "coding.csv: no such file or folder"),
    ],
)
def test_what_is_refused_before_anything_is_computed(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.csv").write_text("mine")
    if text is not None:
        (tmp_path / "coding.csv").write_text(text)
    assert validate(world, tmp_path / "coding.csv", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and (tmp_path / "clips.csv").read_text() == "mine"
