"""`clipautt predict` on a folder, on a real Ray: a row per clip whatever became of it, and nothing done twice."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.personalization import Personalization, save_personalization
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.features.clip_features import FeatureSpec, encode_clip
from clipautt.features.store import FeatureStore
from clipautt.model.checkpoint import save_checkpoint
from clipautt.predictor import Predictor
from clipautt.subjects import subject_file
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from ray_jobs import cli
from tests.support.configs import adapt_config
from tests.support.fakes import fake_checkpoint, numbered_frames, write_video
from tests.support.photograph import photograph

pytestmark = pytest.mark.usefixtures("local_ray")
BACKGROUND = np.full((360, 480, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone, folder = load_backbone(BackboneConfig()), tmp_path_factory.mktemp("checkpoint")
    made = fake_checkpoint(backbone=backbone, subject_baseline="median")
    features = FeatureSpec.of(backbone, Sampling(None), FaceConfig("cascade"))
    save_checkpoint(replace(made, spec=replace(made.spec, features=features)), folder)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people with a face, one without, one that leaves, a broken file and a link that leads nowhere."""
    root = tmp_path_factory.mktemp("study")
    for name, frames in {
        "anna/rest/1.mp4": [photograph(150 + 4 * i, 180, 0.9) for i in range(14)],
        "anna/stress/1.mp4": [photograph(170 + 6 * (i % 5), 180, 1.1) for i in range(14)],
        "bob/rest/1.mp4": [photograph(240 - 5 * i, 180, 1.0) for i in range(14)],
        "bob/stress/gone.mp4": [*[photograph(150 + 4 * i, 180, 0.9) for i in range(4)], *[BACKGROUND] * 16],
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, np.stack(frames))
    write_video(root / "anna/rest/nobody.mp4", numbered_frames(12, height=184, width=240))
    (root / "bob/rest/broken.mp4").write_bytes(b"no video")
    os.symlink("nowhere.mp4", root / "bob/rest/lost.mp4")
    return root


def predict(checkpoint: Path, store: Path, *words: object) -> int:
    return cli.main(["predict", *map(str, words), f"checkpoint={checkpoint}", f"store={store}"])


@pytest.fixture(scope="module")
def done(checkpoint: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the store and the table of a first run."""
    folder = tmp_path_factory.mktemp("done")
    assert predict(checkpoint, folder / "store", study, f"out={folder}/clips.csv") == 0
    return folder


def test_every_clip_has_a_row_with_its_status_and_the_reason(done: Path, study: Path) -> None:
    table = pd.read_csv(done / "clips.csv", keep_default_na=False)
    assert list(zip(table["clip"], table["subject"], table["condition"], table["status"], strict=True)) == [
        ("anna/rest/1", "anna", "rest", "ok"),
        ("anna/rest/nobody", "anna", "rest", "no_face"),
        ("anna/stress/1", "anna", "stress", "ok"),
        ("bob/rest/1", "bob", "rest", "ok"),
        ("bob/rest/broken", "bob", "rest", "unreadable"),
        ("bob/rest/lost", "bob", "rest", "missing"),
        ("bob/stress/gone", "bob", "stress", "no_prediction"),
    ]
    made = table["status"] == "ok"
    assert (table["reason"] == "").tolist() == made.tolist() and (table["prediction"] != "").tolist() == made.tolist()
    assert table["reason"][6].startswith("the face is found in 4 of 20 frames, and no window of 6 frames shows it")
    assert table["face_share"].tolist() == ["1", "", "1", "1", "", "", "0.2"]
    assert table["warnings"][6] == "unseen_footage;few_faces" and str(study) in table["source"][0]


def test_the_numbers_are_those_of_each_video_alone(
    done: Path, study: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through Ray, the store and in company, or in this process: the same windows, boxes and probabilities."""
    assert predict(checkpoint, done / "store", study, f"out={tmp_path}/all.parquet", "windows=true") == 0
    assert "extract:" not in capsys.readouterr().out.replace("extract: 0/3", ""), "what has features is not read again"
    assert predict(checkpoint, done / "store", study / "bob/rest/1.mp4", f"out={tmp_path}/one.parquet") == 0
    both, alone = pd.read_parquet(tmp_path / "all.parquet"), pd.read_parquet(tmp_path / "one.parquet")
    same = both[both["clip"] == "bob/rest/1"].reset_index(drop=True)
    assert len(alone) == 9 and alone["face_x"].notna().all() and set(both["condition"]) == {"rest", "stress"}
    numbers = alone.select_dtypes("number").columns
    assert same[numbers].to_numpy(float) == pytest.approx(alone[numbers].to_numpy(float), abs=1e-4, nan_ok=True)
    lost = both[both["status"].isin(["no_face", "unreadable", "missing"])]
    assert len(lost) == 3 and lost["window"].isna().all(), "a clip without windows has a row all the same"
    clips = pd.read_csv(done / "clips.csv").set_index("clip")
    assert clips.loc["bob/rest/1", "entropy"] == pytest.approx(alone["entropy"].min(), abs=1e-4)


def test_a_row_per_frame(done: Path, study: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert predict(checkpoint, done / "store", study / "bob", f"out={tmp_path}/f.csv", "frames=true") == 0
    table = pd.read_csv(tmp_path / "f.csv")
    assert table.groupby("clip").size().to_dict() == {"rest/1": 14, "rest/broken": 1, "rest/lost": 1, "stress/gone": 20}
    known = table[table["clip"] == "rest/1"]
    assert (known["face_x"].diff().iloc[3:-3] < 0).all(), "the face moves to the left"


def test_everybody_with_their_own_prompts(
    done: Path, study: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = Predictor.load(checkpoint)
    spec = predictor.source.checkpoint.spec.features
    clip = Clip("c", "anna", str(study / "anna/rest/1.mp4"), "target")
    features = encode_clip(clip, predictor.source.backbone, spec.frames)
    config = adapt_config(subject_baseline="median", protocol="per_subject")
    made = Personalization.of(adapt(predictor.source, [features], config)["anna"], config)
    fingerprint = predictor.source.checkpoint.fingerprint
    save_personalization(made, tmp_path / "prompts" / subject_file("anna"), checkpoint=fingerprint)
    words: list[Any] = [study, f"prompts={tmp_path}/prompts", "personalized=true", f"out={tmp_path}/p.csv"]
    assert predict(checkpoint, done / "store", *words) == 0
    said = capsys.readouterr().out
    assert "without adapted prompts, and predicted without: bob\n" in said and "personalized: 2\n" in said
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False).set_index("clip")
    assert (
        table.loc["anna/stress/1", "personalized_for"] == "anna" and table.loc["bob/rest/1", "personalized_for"] == ""
    )
    alone = predictor.predict(study / "anna/stress/1.mp4", subject=made)
    name = predictor.source.classes[1]
    shown = float(table.loc["anna/stress/1", f"probability_{name}"])
    assert shown == pytest.approx(alone.probabilities[name], abs=1e-4)


def test_without_a_table_the_first_are_printed_and_what_is_wrong_is_counted(
    done: Path, study: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that is printed gives the same answers."""
    assert predict(checkpoint, done / "store", study) == 0
    said = capsys.readouterr().out
    assert (
        "3 of 7 clips have a prediction" in said and "no_face: 1\n" in said and "warning few_faces for 1 clip: " in said
    )
    assert said.index("warning unseen_footage for ") < said.index("  prediction  "), "before the labels"
    chosen = f"checkpoint={checkpoint} store={done}/store"
    assert f"all of it as a table: clipautt predict {study} out=clips.csv {chosen}\n" in said


def test_the_name_of_one_video_says_who_it_is(
    study: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "p07.stress"
    frames = [photograph(150 + 4 * i, 180, 0.9) for i in range(14)]
    video.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(video / f"{number:02}.png")
    words = [video, "names='{subject}.{condition}'", f"out={tmp_path}/t.csv"]
    assert predict(checkpoint, tmp_path / "none", *words, "windows=false") == 0
    assert f"{tmp_path}/t.csv: 1 row, for 1 clip\n" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "t.csv")
    assert table.loc[0, ["clip", "subject", "condition"]].tolist() == ["p07.stress", "p07", "stress"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=t.xlsx"], "out=t.xlsx: a table is written as .csv or .parquet"),
        (["out=t.csv", "frames=true", "windows=true"], "a table has a row per frame or per window; give one of them"),
        (["out=t.csv", "windows=some"], "windows=some; allowed: true, false or null"),
        (["frames=true"], "frames=true and windows=true are for a table; name its file, for instance with out="),
        (["subject=anna", "personalized=true"], "subject=anna and personalized=true: give the subject of all clips"),
        (["names={x}"], "names={x} fits none of 7 clips; the first is 'anna/rest/1'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_read(
    done: Path, study: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    quoted = [word.replace("={x}", "='{x}'") for word in words]
    assert predict(checkpoint, done / "new", study, *quoted) == 2
    assert message in capsys.readouterr().err and not (done / "new").exists()


def test_features_in_the_store_hold_what_tables_need(done: Path, study: Path, checkpoint: Path) -> None:
    """Boxes and brightness come back from the store as they were seen."""
    predictor = Predictor.load(checkpoint)
    spec = predictor.source.checkpoint.spec.features
    clip = Clip("c", "", str(study / "anna/rest/1.mp4"), "target")
    stored = FeatureStore(done / "store", spec).load([clip])["c"]
    read = encode_clip(clip, predictor.source.backbone, spec.frames)
    for name in ("boxes", "brightness", "face_found", "times", "turned"):
        assert np.array_equal(getattr(stored, name), getattr(read, name), equal_nan=name != "face_found"), name
