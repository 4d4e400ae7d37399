"""Sweeps on a real local Ray, with a small random CLIP and made-up features, so that nothing is rendered or decoded."""

from __future__ import annotations

import json
import shlex
import sqlite3
import struct
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file
from tensorboardX.proto.event_pb2 import Event

from clipautt.backbones.embedded import SmallClipShape, pack_small_clip
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.backbones.pretraining import build_small_clip
from clipautt.backbones.text_tower import stock_tokenizer
from clipautt.clips import Clip, id_number
from clipautt.evaluation.results import read_rows, subject_scores
from clipautt.features.clip_features import FeatureSpec, clip_key
from clipautt.features.store import FeatureStore
from clipautt.manifest import read_manifest, write_manifest
from clipautt.model.checkpoint import load_checkpoint
from clipautt.model.training import PHRASES
from clipautt.video.decoding import Sampling
from clipautt.video.preprocessing import Preprocessing
from ray_jobs import cli
from ray_jobs.platform.configuration import compose, flatten
from ray_jobs.sweep import results as sweep_results

SHAPE = SmallClipShape(
    image_size=32,
    layers=(1, 1, 1, 1),
    width=8,
    text_width=32,
    text_heads=2,
    text_layers=1,
    embed_dim=16,
    preprocessing=Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "area"),
)
FRAMES, CLIPS = 24, 6
SUBJECTS = {"source_train": ("a", "b", "c", "d", "e"), "source_val": ("f", "g", "h"), "target": ("x", "y")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, a manifest of videos that do not exist, and a store with features of its source clips."""
    folder = tmp_path_factory.mktemp("data")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_small_clip(SHAPE)
    words = stock_tokenizer()([f"a human face with {phrase}" for phrase in PHRASES]).unique().tolist()
    save_file(pack_small_clip(model, words), folder / "clip.safetensors", metadata={"shape": json.dumps(asdict(SHAPE))})
    clips = [
        Clip(
            f"{subject}{number}",
            subject,
            str(folder / f"{subject}{number}.mp4"),
            split,
            ("neutral", "pain")[number % 2],
        )  # type: ignore[arg-type]
        for split, subjects in SUBJECTS.items()
        for subject in subjects
        for number in range(CLIPS)
    ]
    write_manifest(clips, folder / "manifest.parquet")
    backbone = load_backbone(BackboneConfig(weights=str(folder / "clip.safetensors")))
    store = FeatureStore(folder / "features", FeatureSpec.of(backbone, Sampling(12.5)))
    # Were a target clip read, there would be nothing to read: neither features nor a video.
    store.append([row(clip) for clip in clips if clip.split != "target"])
    return folder


def row(clip: Clip) -> dict[str, Any]:
    """Features around the subject's own centre; a burst along one axis where the label says so, hidden in noise."""
    centre = np.random.default_rng([7, id_number(clip.subject_id)]).normal(size=SHAPE.embed_dim)
    rng = np.random.default_rng([8, id_number(clip.clip_id)])
    features = centre + 0.6 * rng.normal(size=(FRAMES, SHAPE.embed_dim))
    start = int(rng.integers(FRAMES - 8))
    features[start : start + 8, 0] += 1.2 * (clip.label == "pain")
    facts = {"clip_key": clip_key(clip), "clip_id": clip.clip_id, "subject_id": clip.subject_id, "source": clip.source}
    times = np.arange(FRAMES) / 12.5
    return facts | {"status": "ok", "reason": "", "decoder": "none", "times": times.tolist(), "features": features}


FOLDS = ("folds=2", "held_out=0.25", "train.epochs=2", "concurrent=1")
SPACE = (
    "space.train.window.length={low: 4, high: 12, step: 4}",
    "space.adapt.method.objective.choices=[none,infomax_kl]",
    "space.adapt.method.steps.choices=[1,3]",
    "space.adapt.subject_baseline={choices: [none, median]}",
    *(f"~space.{name}" for name in ("train.window.stride", "train.context", "adapt.protocol", "adapt.prior")),
)
TIMES = ["seconds", "seconds_per_video", "training_seconds", "adaptation_seconds"]


def words(data: Path, runs: Path, *more: str, space: Sequence[str] = SPACE) -> list[str]:
    """A command line for the made-up data."""
    paths = {"manifest": "manifest.parquet", "store": "features", "backbone.weights": "clip.safetensors"}
    given = [f"{key}={data / name}" for key, name in paths.items()]
    return ["sweep", *given, f"runs={runs}", *FOLDS, *space, *more]


def table_of(folder: Path) -> pd.DataFrame:
    """The table of trials of a run."""
    return pd.read_parquet(folder / "trials.parquet")


def rows_of(database: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(database) as connection:
        return list(connection.execute("select number, state from trials order by number"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """Folder of a sweep with four trials."""
    runs = tmp_path_factory.mktemp("runs")
    assert cli.main(words(data, runs, "trials=4", "name=one")) == 0
    return runs / "sweep" / "one"


def test_a_sweep_leaves_what_it_promises(finished: Path) -> None:
    trials = table_of(finished)
    assert trials["number"].tolist() == [0, 1, 2, 3] and set(trials["status"]) == {"ok"}
    assert rows_of(finished / "study.db") == [(number, "COMPLETE") for number in range(4)]
    settings = trials[["train.window.length", "adapt.subject_baseline"]].drop_duplicates()
    assert trials["trained"].sum() == 2 * len(settings) < 8, "equal training configurations are trained once"
    models = [*(finished / "models").iterdir()]
    assert len(models) == 2 * len(settings) + 3 + 1, "and CLIP-AU of both folds and held out, and the chosen trial's"
    assert (trials["uar_low"] <= trials["uar"]).all() and (trials["uar"] <= trials["uar_high"]).all()
    assert ((trials["uar_balanced"] + trials["uar_20%"]) / 2 - trials["uar"]).abs().max() < 1e-9
    assert (trials["folds"] == 2).all() and (trials["seconds_per_video"] > 0).all() and (trials["fallbacks"] == 0).all()
    logs = [path.parent.name for path in (finished / "tensorboard").glob("*/events.out.tfevents.*")]
    assert sorted(logs) == [f"trial-{number:05d}" for number in range(4)]
    left = {path.name for path in finished.iterdir()}
    assert left == {
        "best.yaml", "config.yaml", "folds", "models", "report", "study.db", "tensorboard", "trials.parquet",
        "versions.json",
    }  # fmt: skip
    page = (finished / "report" / "report.html").read_text(encoding="utf-8")
    assert "source subjects that no trial saw" in page and "subject baseline" in page


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag → step → value, of TensorBoard's one log in a folder: records of length, checksum, content, checksum."""
    (file,) = folder.iterdir()
    content, found, at = file.read_bytes(), dict[str, dict[int, float]](), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        at += length + 16
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_has_every_trial_fold_by_fold(finished: Path) -> None:
    trials = table_of(finished).set_index("number")
    for number, trial in trials.iterrows():
        told = scalars(finished / "tensorboard" / f"trial-{number:05d}")
        assert sorted(told["ray/tune/uar"]) == [1, 2] and told["ray/tune/folds"] == {1: 1, 2: 2}
        assert told["ray/tune/uar"][2] == pytest.approx(trial["uar"], abs=1e-6)
        assert told["ray/tune/uar_20_percent"][2] == pytest.approx(trial["uar_20%"], abs=1e-6)


def test_started_again_it_does_nothing_twice(data: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = table_of(finished)
    assert cli.main(words(data, finished.parents[1], "trials=4", "name=one")) == 0
    assert "sweep: " not in capsys.readouterr().out
    pd.testing.assert_frame_equal(table_of(finished), before)
    assert cli.main(words(data, finished.parents[1], "trials=8", "name=one", "seed=1")) == 2
    assert "exists with other settings:\n  seed: 0 → 1\n" in capsys.readouterr().err
    elsewhere = f"storage={data / 'empty.log'}"
    assert cli.main(words(data, finished.parents[1], "trials=6", "name=one", elsewhere)) == 2
    assert f"{finished} has results of trials that the study in {data / 'empty.log'}" in capsys.readouterr().err
    pd.testing.assert_frame_equal(table_of(finished), before)


def test_train_and_adapt_repeat_a_trial_s_figures(finished: Path, tmp_path: Path) -> None:
    """With `best.yaml` as it is, on the manifest of a fold: the figures of the trial's subjects."""
    best = yaml.safe_load((finished / "best.yaml").read_text())
    with sqlite3.connect(finished / "study.db") as study:
        (noted,) = study.execute(
            "select value_json from trial_user_attributes join trials using (trial_id) where number = ? and key = ?",
            (best["trial"], "facts"),
        ).fetchone()
    manifest, run = finished / "folds" / "fold-1.parquet", tmp_path / "train" / "one"
    words = [f"@{finished / 'best.yaml'}", f"manifest={manifest}", f"runs={tmp_path}", "name=one"]
    baseline = best["values"]["adapt.subject_baseline"]
    assert cli.main(["train", *words, f"baselines=[{baseline}]"]) == 0
    assert cli.main(["adapt", *words, f"checkpoint={run}", "splits=[source_val]", "compare=[]"]) == 0
    rows = read_rows((tmp_path / "adapt" / "one" / "subjects").glob("*.parquet"))
    scores = subject_scores(rows[rows["cohort"] != "every clip"], classes=("neutral", "pain"))
    found = scores.groupby("subject_id")["uar"].mean()
    assert set(scores["cohort"]) == {"balanced", "20%"} and len(found) == 3
    assert found.tolist() == pytest.approx(json.loads(noted)["subjects"][:3], abs=1e-6)
    trained = load_checkpoint(run / "checkpoints" / baseline)
    assert trained.spec.window.length == best["values"]["train.window.length"]
    model = load_checkpoint(best["models"][0])
    for name, tensor in trained.model.state_dict().items():
        torch.testing.assert_close(tensor, model.model.state_dict()[name], atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("local_ray")
def test_target_labels_change_nothing(data: Path, finished: Path, tmp_path: Path) -> None:
    """Every target label is changed, then the targets are dropped: trials, choice and held-out figure stay."""
    manifest = read_manifest(data / "manifest.parquet")
    other = {"neutral": "pain", "pain": "neutral"}
    changed = [
        replace(clip, label=other[str(clip.label)]) if clip.split == "target" else clip for clip in manifest.clips
    ]
    assert sum(clip != before for clip, before in zip(changed, manifest.clips, strict=True)) == 12
    first = table_of(finished).head(3).drop(columns=TIMES)
    runs = tmp_path / "sweep" / "targets"
    write_manifest(changed, tmp_path / "changed.parquet", classes=manifest.classes)
    given = words(data, tmp_path, f"manifest={tmp_path / 'changed.parquet'}", "trials=2", "name=targets")
    assert cli.main(given) == 0
    pd.testing.assert_frame_equal(table_of(runs).drop(columns=TIMES), first.head(2))
    # Without targets the sweep goes on as if nothing had changed.
    kept = [clip for clip in manifest.clips if clip.split != "target"]
    write_manifest(kept, tmp_path / "changed.parquet", classes=manifest.classes)
    assert cli.main([*given, "trials=3"]) == 0
    pd.testing.assert_frame_equal(table_of(runs).drop(columns=TIMES), first)
    assert yaml.safe_load((runs / "best.yaml").read_text())["held_out"]["subjects"] == 2


@pytest.mark.usefixtures("local_ray")
def test_failing_trials_end_nothing_and_a_sweep_in_which_all_fail_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zebra = "space.train.context={choices: [a human face with, a zebra with]}"  # The backbone never learned of zebras.
    alone = (*(f"~space.adapt.{name}" for name in ("method", "readout", "protocol", "prior", "subject_baseline")),)
    alone = (*alone, "~space.train.window", zebra)
    assert cli.main(words(data, tmp_path, "name=odd", "sampler=grid", "folds=source_val", "trials=9", space=alone)) == 0
    printed = capsys.readouterr().out
    assert "sweep: 2/2 trials" in printed, "a grid has no more than its combinations"
    assert yaml.safe_load((tmp_path / "sweep" / "odd" / "best.yaml").read_text())["held_out"]["subjects"] == 2
    trials = table_of(tmp_path / "sweep" / "odd").set_index("train.context")
    assert trials["status"].to_dict() == {"a human face with": "ok", "a zebra with": "failed"}
    reason = "the embedded backbone was never trained on some words of ['a zebra with"
    assert trials.loc["a zebra with", "reason"].startswith(reason)
    assert f"trial 1 failed: {reason}" in printed and "Traceback" not in printed

    zebras = [word.replace("a human face with", "two zebras with") for word in alone]
    assert cli.main(words(data, tmp_path, "name=all", "sampler=grid", "held_out=0", space=zebras)) == 1
    printed = capsys.readouterr().out
    assert "no trial succeeded" in printed and not (tmp_path / "sweep" / "all" / "best.yaml").exists()
    assert (tmp_path / "sweep" / "all" / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trials=0", "trials=0: should be greater than 0\n"),
        ("concurrent=0", "concurrent=0: should be greater than 0\n"),
        ("folds=1", "folds=1: should be greater than or equal to 2 or source_val\n"),
        ("folds=source_vall", "folds='source_vall': should be an integer or source_val\n"),
        (
            "folds=9",
            "folds=9 with 8 source subjects that have clips of two classes, 2 of them held out; set folds=8 ",
        ),
        ("held_out=1", "held_out=1: should be less than 1\n"),
        ("objectives=[uar_30%]", "objectives=uar_30%: unknown figure; did you mean 'uar_20%'?\n"),
        ("objectives=[uar,uar]", "objectives=['uar', 'uar']: give each of one or more figures once\n"),
        ("stop=hyperband", "stop='hyperband': should be asha\n"),
        (
            "stop=asha grace_folds=2",
            "stop=asha with grace_folds=2: a trial has 2 folds, so no trial can be stopped early; set more folds or ",
        ),
        ("classes=[neutral,pain,joy]", "no source clip has the label 'joy', so that nothing can be selected for it; "),
        ("sampler=tpee", "sampler='tpee': should be one of tpe, random, cmaes, gp, nsga2, grid\n"),
        ("loggers=[comet]", "loggers[0]='comet': should be one of tensorboard, mlflow, wandb\n"),
        ("space.window={low: 1, high: 2}", "unknown key 'space.window'"),
        (
            "space.adapt.method.steps.choices=[1]",
            "space.adapt.method.steps.choices=[1]: expected a list of at least two values\n",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    given = shlex.split(word) if word.startswith("stop=asha") else [word]
    assert cli.main(words(data, tmp_path, *given, space=())) == 2
    assert capsys.readouterr().err.startswith(f"clipautt sweep: {message}")
    assert not (tmp_path / "sweep").exists()


def test_words_for_a_job_survive_shell_and_hydra() -> None:
    wanted = {
        "manifest": "/data/a b/it's=1.parquet",
        "limits": {"stall_seconds": 5.0},
        "adapt": {
            "protocol": "online",
            "method": {"learning_rate": 1e-05, "per_au_context": False, "objective": "entropy", "steps": 10},
        },
        "cohorts": [{"share": 0.05, "draws": 2}],
        "name": "007",
        "work": {"actors": 3},
    }
    found = sweep_results.words_for("adapt", wanted, ["adapt=clip_au"])
    assert not any(word.startswith("adapt.method.steps") for word in found), "10 is the default"
    cfg = compose("adapt", shlex.split(shlex.join(found)))
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    given, composed = flatten(wanted), flatten(plain)
    assert {key: composed[key] for key in given} == given
