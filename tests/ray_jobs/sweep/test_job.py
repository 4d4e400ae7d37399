"""Sweeps on a real local Ray, with a small random CLIP and made-up features, so that nothing is rendered or decoded."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.source import Source
from clipautt.backbones.embedded import SmallClipShape, pack_small_clip
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.backbones.pretraining import build_small_clip
from clipautt.backbones.text_tower import stock_tokenizer
from clipautt.clips import Clip, id_number
from clipautt.features.clip_features import FeatureSpec, clip_key
from clipautt.features.store import FeatureStore
from clipautt.manifest import Manifest, read_manifest, write_manifest
from clipautt.metrics import score
from clipautt.model.checkpoint import load_checkpoint
from clipautt.model.training import PHRASES
from clipautt.video.decoding import Sampling
from clipautt.video.preprocessing import Preprocessing
from ray_jobs import cli
from ray_jobs.platform.configuration import complete, compose, flatten, instantiate, resolved
from ray_jobs.sweep import job as sweep
from ray_jobs.sweep import results as sweep_results
from ray_jobs.sweep.space import make_space
from ray_jobs.sweep.trial import SweepJob, load_data, run_trial

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
SUBJECTS = {"source_train": ("a", "b", "c", "d"), "source_val": ("e", "f", "g"), "target": ("x", "y")}


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


SPACE = (
    "space.window_length={low: 4, high: 12, step: 4}",
    "space.objective.choices=[none,infomax_kl]",
    "space.steps.choices=[1,3]",
    "space.subject_baseline={choices: [none, median]}",
)
NO_TUNING = ("~space.objective", "~space.steps", "~space.learning_rate", "~space.balance_weight")


def words(data: Path, runs: Path, *more: str, space: Sequence[str] = SPACE) -> list[str]:
    """A command line for the made-up data."""
    paths = {"manifest": "manifest.parquet", "store": "features", "backbone.weights": "clip.safetensors"}
    given = [f"{key}={data / name}" for key, name in paths.items()]
    return ["sweep", *given, f"runs={runs}", "train.epochs=3", "concurrent=1", *space, *more]


def make_job(data: Path, folder: Path) -> tuple[SweepJob, Manifest, FeatureStore]:
    """What `sweep.main` makes of `words`."""
    cfg = complete("sweep", words(data, folder)[1:])
    manifest = read_manifest(cfg.manifest)
    backbone = instantiate(cfg.backbone)
    features = FeatureSpec.of(load_backbone(backbone), instantiate(cfg.sampling))
    space = make_space(resolved(cfg)["space"], train=instantiate(cfg.train), adapt=instantiate(cfg.adapt))
    job = SweepJob(backbone, features, space, manifest.classes, manifest.fingerprint, str(folder))
    return job, manifest, FeatureStore(cfg.store, features)


def rows_of(database: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(database) as connection:
        return list(connection.execute("select number, state from trials order by number"))


@pytest.mark.usefixtures("local_ray")
def test_a_sweep_runs_resumes_and_leaves_what_it_promises(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(data, tmp_path, "trials=4", "name=one")) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "sweep" / "one"
    before = pd.read_parquet(folder / "trials.parquet")
    assert before["number"].tolist() == [0, 1, 2, 3] and set(before["status"]) == {"ok"}
    lines = [line for line in printed.splitlines() if line.startswith("sweep: ")]
    assert [line.split(" trials, ")[0] for line in lines] == [f"sweep: {n}/4" for n in (1, 2, 3, 4)]
    assert all("UAR" in line and "best" in line for line in lines) and all(line.endswith(" left") for line in lines[:3])

    assert cli.main(words(data, tmp_path, "trials=6", "name=one", "concurrent=2")) == 0
    printed = capsys.readouterr().out
    trials = pd.read_parquet(folder / "trials.parquet")
    assert [line.split(" trials, ")[0] for line in printed.splitlines() if line.startswith("sweep: ")] == [
        "sweep: 5/6",
        "sweep: 6/6",
    ]
    pd.testing.assert_frame_equal(trials.head(4), before)
    assert rows_of(folder / "study.db") == [(number, "COMPLETE") for number in range(6)]
    distinct = before[["window_length", "subject_baseline"]].drop_duplicates()
    assert before["trained"].sum() == len(distinct) < 4, "equal training configurations were trained again, or none are"
    assert not list(folder.glob(".ray_tune*")) and not list(folder.rglob("*.pkl"))
    assert (folder / "figures" / "history.png").stat().st_size > 5_000
    assert "No importances: 6 trials finished" in printed

    assert cli.main(words(data, tmp_path, "trials=6", "name=one")) == 0, "nothing is left to do"
    assert "sweep: " not in capsys.readouterr().out
    check_objective(data, trials)
    check_best(folder, trials)
    assert cli.main(words(data, tmp_path, "trials=8", "name=one", "seed=1")) == 2
    assert "exists with other settings:\n  seed: 0 → 1\n" in capsys.readouterr().err


def check_objective(data: Path, trials: pd.DataFrame) -> None:
    """The best trial's figures from its settings alone, step by step, with a model trained anew."""
    best = trials.loc[trials["uar"].idxmax()]
    job, manifest, store = make_job(data, data / "again")
    sweep_data = load_data(manifest, store)
    values = sweep_results.values_of(best, job.space)
    figures = run_trial({**values, "number": 99}, job=job, data=sweep_data)
    training, adaptation = job.space.configs(values)
    assert figures["trained"]
    folder = next((data / "again" / "models").iterdir())
    source = Source(load_checkpoint(folder), load_backbone(job.backbone))
    assert source.window == training.window and source.checkpoint.spec.training["epochs"] == 3
    clips = manifest.of_split("source_val")
    results = adapt(source, store.load(clips).values(), adaptation)
    assert list(results) == list(SUBJECTS["source_val"])
    true = {clip.clip_id: manifest.label_index(clip) for clip in clips}
    scores = [
        score([p.label_index for p in r.predictions], [true[p.clip_id] for p in r.predictions], num_classes=2)
        for r in results.values()
    ]
    for name in ("uar", "war", "f1"):
        assert best[name] == pytest.approx(np.mean([getattr(one, name) for one in scores]), abs=1e-6)
        assert best[name] == pytest.approx(figures[name], abs=1e-6)


def check_best(folder: Path, trials: pd.DataFrame) -> None:
    """`best.yaml`: its words compose into the very settings of the best trial."""
    best = yaml.safe_load((folder / "best.yaml").read_text())
    trial = trials.loc[trials["uar"].idxmax()]
    assert best["trial"] == trial["number"] and best["validation"]["uar"] == pytest.approx(trial["uar"], abs=1e-6)
    assert load_checkpoint(best["model"]).spec.window.length == trial["window_length"]
    train_words, adapt_words = (shlex.split(command) for command in best["commands"])
    assert train_words == ["clipautt", "train", *best["train"]]
    training = complete("train", train_words[2:])
    adaptation = complete("adapt", adapt_words[2:])
    assert training.train.window.length == trial["window_length"] and training.train.epochs == 3
    assert trial["subject_baseline"] in training.baselines and "none" in training.baselines
    config = instantiate(adaptation.adapt)
    assert config.method.objective == trial["objective"] and config.subject_baseline == trial["subject_baseline"]
    if config.method.adapts:
        assert (config.method.steps, config.method.learning_rate) == (trial["steps"], trial["learning_rate"])
    assert adaptation.checkpoint == str(Path(training.runs) / "train" / training.name)
    assert adaptation.backbone is None and training.backbone.weights.endswith("clip.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_failed_and_interrupted_trials_stay_visible(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zebra = "space.context={choices: [a human face with, a zebra with]}"  # The backbone never learned of zebras.
    given = words(data, tmp_path, "name=odd", "trials=5", space=(zebra, *NO_TUNING))
    folder = tmp_path / "sweep" / "odd"
    folder.mkdir(parents=True)
    sweep.open_study(folder, "odd").ask()  # As a killed run leaves it.
    assert cli.main(given) == 0
    printed = capsys.readouterr().out
    trials = pd.read_parquet(folder / "trials.parquet").set_index("number")
    assert trials["status"][0] == "interrupted" and len(trials) == 6
    failed = trials[trials["status"] == "failed"]
    assert len(failed) and set(failed["context"]) == {"a zebra with"} and failed["uar"].isna().all()
    assert set(trials[trials["status"] == "ok"]["context"]) == {"a human face with"}
    for reason in failed["reason"]:
        assert reason.startswith("the embedded backbone was never trained on some words of ['a zebra with")
    assert f"trial {failed.index[0]} failed: the embedded backbone was never" in printed
    assert f"trials: {6 - 1 - len(failed)} ok, {len(failed)} failed, 1 interrupted; " in printed
    assert "Traceback" not in printed + capsys.readouterr().err


def test_targets_are_never_asked_for(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Clip] = []
    load = FeatureStore.load

    def spy(self: FeatureStore, clips: Sequence[Clip]) -> Any:
        asked.extend(clips)
        return load(self, clips)

    monkeypatch.setattr(FeatureStore, "load", spy)
    _, manifest, store = make_job(data, tmp_path)
    found = load_data(manifest, store)
    assert {clip.split for clip in asked} == {"source_train", "source_val"}
    assert {example.clip.subject_id for example in found.train} == set(SUBJECTS["source_train"])
    assert {clip.subject_id for clip in found.unseen} == set(SUBJECTS["source_val"])
    assert set(found.answers) == {clip.clip_id for clip in found.unseen}
    assert not store.load(manifest.of_split("target")), "the fixture stores no target features, so none can be used"


def test_validation_labels_only_score(data: Path, tmp_path: Path) -> None:
    """With every answer turned round, each subject's accuracy becomes its complement: no prediction saw a label."""
    job, manifest, store = make_job(data, tmp_path)
    found = load_data(manifest, store)
    values = {"window_length": 8, "objective": "infomax_kl", "steps": 2, "learning_rate": 0.3}
    figures = run_trial(values, job=job, data=found)
    turned = type(found)(found.train, found.unseen, {clip_id: 1 - label for clip_id, label in found.answers.items()})
    assert run_trial(values, job=job, data=turned)["war"] == pytest.approx(1 - figures["war"])


def test_manifests_without_a_source_split_are_refused(data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(data / "manifest.parquet")
    kept = Manifest(tuple(clip for clip in manifest.clips if clip.split != "source_val"), manifest.classes)
    with pytest.raises(ValueError, match=r"^the manifest has no source_val clips; a sweep trains on source_train"):
        sweep.check_splits(kept)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trials=0", "trials=0: expected a whole number, at least 1\n"),
        ("concurrent=0", "concurrent=0: expected a whole number, at least 1, or null\n"),
        ("+space.window={low: 1, high: 2}", "unknown key 'space.window'; did you mean 'adapt.window'?\n"),
        ("space.steps.choices=[1]", "space.steps.choices=[1]: expected a list of at least two values\n"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert cli.main(words(data, tmp_path, word, space=())) == 2
    assert capsys.readouterr().err == f"clipautt sweep: {message}"
    assert not (tmp_path / "sweep").exists()


def test_words_for_a_job_survive_shell_and_hydra() -> None:
    wanted = {
        "manifest": "/data/a b/it's=1.parquet",
        "limits": {"stall_seconds": 5.0},
        "adapt": {
            "protocol": "online",
            "method": {"learning_rate": 1e-05, "per_au_context": False, "objective": "entropy", "steps": 10},
        },
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
