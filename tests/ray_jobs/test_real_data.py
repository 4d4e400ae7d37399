"""Data sets as their owners ship them, through a real backbone: from the tree on disk to a prediction.

The trees are small and the weights random, so that no figure means anything; that every step takes what the one before
it left is what these tests show.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch

from clipautt import Predictor
from clipautt.action_units import VOCABULARY
from clipautt.backbones.loading import BackboneConfig
from clipautt.clips import Clip
from clipautt.model.checkpoint import load_checkpoint
from clipautt.video.faces import FaceConfig
from ray_jobs import cli
from ray_jobs.platform.extraction.extract import ExtractionConfig, extract
from tests.clipautt.model.test_published import Published
from tests.support import trees
from tests.support.fakes import numbered_frames, write_video
from tests.support.photograph import photograph
from tests.support.weights import write_openai_weights

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of ViT-B/32 in the format of OpenAI's release."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    return write_openai_weights(tmp_path_factory.mktemp("weights") / "ViT-B-32.pt", model)


def test_biovid_with_vit_b_32_from_the_tree_to_a_prediction(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`extract`, `train`, `adapt` and `predict`, in the words of the documentation."""
    monkeypatch.chdir(tmp_path)
    trees.biovid_videos(tmp_path / "biovid", frames=14)
    backbone = ["backbone=ViT-B-32-quickgelu", f"backbone.weights={os.path.relpath(weights)}", "pipeline.encoders=1"]
    data = ["dataset=biovid", f"root={tmp_path / 'biovid'}", "dataset.validation_subjects=1"]
    assert cli.main(["extract", *data, *backbone]) == 2
    said = capsys.readouterr().err
    assert "073114_m_25" in said and "strict=false" in said  # eight of the paper's ten targets are not in this tree
    data.append("strict=false")
    assert cli.main(["extract", *data, *backbone]) == 0
    said = capsys.readouterr().out
    assert "8 clips encoded, 0 already in the store, 0 without features" in said and "source_val" in said
    assert len(Path("data/biovid/manifest.problems.txt").read_text().splitlines()) == 8  # absent targets
    assert cli.main(["train", *data, *backbone, "train.epochs=1", "train.window.length=6"]) == 0
    spec = load_checkpoint("runs/train/default/checkpoints/none").spec
    assert spec.features.feature_dim == 512 and spec.features.frames.preprocessing.size == 224
    assert spec.backbone == BackboneConfig("ViT-B-32-quickgelu", str(weights))
    # The checkpoint knows its backbone, and the manifest was written.
    assert cli.main(["adapt", "manifest=data/biovid/manifest.parquet", "compare=[zero_shot]", "work.actors=1"]) == 0
    rows = pd.concat(pd.read_parquet(path) for path in Path("runs/adapt/default/subjects").glob("*.parquet"))
    assert set(rows["subject_id"]) == {"081014_w_27", "071309_w_21"} and set(rows["status"]) == {"ok"}
    assert rows["backbone"].str.startswith("ViT-B-32-quickgelu ").all()
    capsys.readouterr()
    video = next((tmp_path / "biovid").rglob("*-PA4-*.mp4"))
    assert cli.main(["predict", str(video), "checkpoint=runs/train/default/checkpoints/median"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("neutral", "pain", "most expressive window", "action unit"))


def test_faces_are_found_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph in a large frame, hidden for a while; a video without any face gets a row that says so."""
    monkeypatch.chdir(tmp_path)
    frames = [photograph(150 + 2 * i, 180, 0.9) for i in range(60)]
    for hidden in frames[20:30]:
        hidden[:] = 90
    write_video(tmp_path / "face.mp4", np.stack(frames))
    write_video(tmp_path / "nobody.mp4", numbered_frames(30, height=360, width=480))
    rows = [f"{name},s,{name}.mp4,neutral,source_train" for name in ("face", "nobody")]
    Path("m.csv").write_text("\n".join(["clip_id,subject_id,source,label,split", *rows]))
    assert cli.main(["extract", "manifest=m.csv", "faces=cascade", "sampling.frames_per_second=null"]) == 0
    (store,) = Path("features").iterdir()
    stored = pd.read_parquet(store).set_index("clip_id")
    assert stored.loc["face", "face_found"].tolist() == [True] * 20 + [False] * 10 + [True] * 30
    assert stored.loc["nobody", "status"] == "no_face"
    assert "no face was found in 30 frames" in stored.loc["nobody", "reason"]


def test_mistakes_in_the_settings_of_faces_are_one_error(tmp_path: Path) -> None:
    clips = [Clip("c", "s", str(tmp_path / "v.mp4"), "target")]
    (tmp_path / "other.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"faces\.model=.*other\.onnx' is not a YuNet ONNX file"):
        faces = FaceConfig("yunet", model=str(tmp_path / "other.onnx"))
        extract(clips, ExtractionConfig(BackboneConfig(), str(tmp_path / "store"), faces=faces))


@pytest.mark.slow
def test_classes_of_ones_own_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rest` is the neutral class, though `lift` comes before it: a manifest is read as the checkpoint was."""
    monkeypatch.chdir(tmp_path)
    trees.own_videos(tmp_path / "own", frames=30)
    labels = (tmp_path / "own" / "labels.csv").read_text()
    (tmp_path / "own" / "labels.csv").write_text(labels.replace("neutral", "rest").replace("pain", "lift"))
    data = ["dataset=folder", "root=own", "dataset.validation_subjects=1"]
    assert cli.main(["manifest", *data]) == 2
    assert "classes" in capsys.readouterr().err
    assert cli.main(["train", *data, "dataset.classes=[rest,lift]", "train.epochs=1"]) == 0
    table = pd.read_parquet("data/folder/manifest.parquet")
    table["source"] = [str(tmp_path / "data" / "folder" / source) for source in table["source"]]
    table.to_csv("mine.csv", index=False)
    found = []
    for name, manifest in (("a", "data/folder/manifest.parquet"), ("b", "mine.csv")):
        words = [f"manifest={manifest}", f"name={name}", "checkpoint=runs/train/default", "compare=[zero_shot,clip_au]"]
        assert cli.main(["adapt", *words, "work.actors=1"]) == 0
        assert "no row 'zero-shot'" in capsys.readouterr().out
        found.append(pd.read_parquet(f"runs/adapt/{name}/subjects/dan.parquet"))
        assert cli.main(["report", f"run=runs/adapt/{name}", "clips=1"]) == 0
    for rows in found:
        assert ((rows["probability"] > 0.5) == (rows["prediction"] == "lift")).all()
    assert found[0]["prediction"].tolist() == found[1]["prediction"].tolist()
    assert cli.main(["adapt", "dataset=folder", "root=own", "manifest=mine.csv", "checkpoint=runs/train/default"]) == 2
    assert "its name must end with .parquet" in capsys.readouterr().err
    table.assign(label="joy").to_csv("other.csv", index=False)
    assert cli.main(["adapt", "manifest=other.csv", "checkpoint=runs/train/default"]) == 2
    assert "label 'joy' is not one of rest, lift" in capsys.readouterr().err
    assert cli.main(["train", "dataset=folder"]) == 2
    assert "root" in capsys.readouterr().err


def test_a_published_checkpoint_is_imported_adapted_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = [unit.phrase for unit in VOCABULARY[:6]]
    torch.manual_seed(2)
    Published(128, len(prompts), 2).save(tmp_path / "source.pth")
    Path("prompts.txt").write_text("\n".join(prompts))
    words = ["weights=source.pth", "prompts=prompts.txt", "backbone=embedded"]
    assert cli.main(["import-checkpoint", *words, "out=published"]) == 0
    assert cli.main(["import-checkpoint", *words, "out=published"]) == 2
    assert "there is a checkpoint already" in capsys.readouterr().err
    trees.own_videos(tmp_path / "own", ("ann", "bob", "dan"), frames=40)
    data = ["dataset=folder", "root=own", "dataset.validation_subjects=1"]
    adapt = ["checkpoint=published", "adapt=infomax", "adapt.method.steps=1", "compare=[zero_shot,clip_au]"]
    assert cli.main(["adapt", *data, *adapt]) == 0
    rows = pd.read_parquet("runs/adapt/default/subjects/dan.parquet")
    assert rows["method"].nunique() == 3 and set(rows["status"]) == {"ok"}
    prediction = Predictor.load("published").predict(tmp_path / "own" / "dan" / "lift.mp4")
    assert list(prediction.action_units.columns) == [unit.code for unit in VOCABULARY[:6]]
