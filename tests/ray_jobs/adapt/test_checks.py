"""What an adaptation run refuses before it begins."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.t3a import T3A
from clipautt.adaptation.methods.tda import TDA
from clipautt.evaluation.results import Cohort, make_cohorts
from clipautt.model.checkpoint import Checkpoint, checkpoint_folder, load_checkpoint, save_checkpoint
from ray_jobs import cli
from ray_jobs.adapt.checks import (
    check_earlier_clips,
    check_same_checkpoints,
    clips_of_splits,
    load_checkpoints,
    rows_that_can_be_made,
)
from tests.support import stored
from tests.support.adapting import World, assert_same_results, features_of, make_world, run_here
from tests.support.configs import ZERO_SHOT, adapt_config
from tests.support.fakes import fake_checkpoint

pytestmark = pytest.mark.usefixtures("local_ray")
TUNED = ["adapt=infomax_kl", "adapt.method.steps=3", "adapt.method.learning_rate=0.1"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two subjects with four clips each, adapted to without actors."""
    monkeypatch.setattr("ray_jobs.adapt.job.run_pool", run_here)
    return make_world(tmp_path, subjects=2, per_subject=4)


def said_on_refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says, which must be a clear refusal."""
    capsys.readouterr()
    assert cli.main(["adapt", *words]) == 2
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    return said


def test_a_folder_without_a_table_of_any_clip_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "aus").mkdir()
    (tmp_path / "aus" / "another.csv").write_text("timestamp,AU04_r\n0,1\n")
    words = [*world.words("aus", *TUNED), "explain=true", f"aus={tmp_path}/aus"]
    told = "aus: no table there is named after a clip or its video, as s0c0.csv"
    assert told in said_on_refusal(words, capsys) and not world.run("aus").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([{"share": 0.5, "drawz": 1}], r"cohorts={'share': 0\.5, 'drawz': 1}: expected the keys share and draws"),
        (["balanced"], r"cohorts='balanced': expected the keys"),
        ([{"share": 0.5}, {"share": 0.5, "draws": 2}], "cohorts lists balanced twice"),
        ([{"share": 0.2}, {"share": 0.203}], "cohorts lists 20% twice"),
        ([{"share": 1.5}], r"cohort share=1\.5"),
    ],
)
def test_wrong_cohorts_are_refused(settings: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_cohorts(settings)
    assert make_cohorts([{"share": 0.2, "draws": 2}, {}]) == [Cohort(0.2, 2), Cohort()]


def test_splits_without_clips_are_refused(world: World) -> None:
    manifest = world.read()
    with pytest.raises(ValueError, match=r"splits='test'; allowed: source_train, source_val, target"):
        clips_of_splits(manifest, ["target", "test"])
    with pytest.raises(ValueError, match=r"splits=\[source_val\]: the manifest has no such clips, only target"):
        clips_of_splits(manifest, ["source_val"])
    assert len(clips_of_splits(manifest, ["target", "source_val"])) == 8


def test_one_checkpoint_serves_its_own_baseline_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = (adapt_config(subject_baseline="median"), ZERO_SHOT, adapt_config())
    for baseline in ("none", "median"):
        save_checkpoint(fake_checkpoint(subject_baseline=baseline), checkpoint_folder(tmp_path, baseline))  # type: ignore[arg-type]
    single = checkpoint_folder(tmp_path, "median")
    own = load_checkpoint(single)
    assert rows_that_can_be_made(methods, own, tmp_path) == methods
    assert rows_that_can_be_made(methods, own, single) == methods[:2]
    assert "no row 'CLIP-AU, best window'" in capsys.readouterr().out
    assert set(load_checkpoints(methods, tmp_path)) == {"none", "median"}
    with pytest.raises(ValueError, match="subject_baseline='mean', but the checkpoint was trained with 'median'"):
        load_checkpoints([adapt_config(subject_baseline="mean")], single)
    with pytest.raises(FileNotFoundError, match="no checkpoint for subject baseline 'mean'"):
        load_checkpoints([adapt_config(subject_baseline="mean")], tmp_path)


def without_context(folder: Path) -> Checkpoint:
    """A checkpoint whose prompts have no context tokens and whose task has no class descriptions."""
    checkpoint = fake_checkpoint()
    spec = replace(checkpoint.spec, context="", context_tokens=0, descriptions=())
    save_checkpoint(Checkpoint(checkpoint.model, spec), checkpoint_folder(folder, "none"))
    return load_checkpoint(checkpoint_folder(folder, "none"))


def test_rows_whose_needs_cannot_be_met_are_named_and_omitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = without_context(tmp_path)
    tuned = adapt_config(objective="infomax")
    feature = adapt_config(objective="infomax", tune="feature")
    on_frames, on_windows = (AdaptConfig(TDA(on=on), protocol="online") for on in ("frames", "windows"))
    prototypes = AdaptConfig(T3A(), protocol="online")
    asked = (adapt_config(), ZERO_SHOT, tuned, feature, on_frames, on_windows, prototypes)
    assert rows_that_can_be_made(asked, checkpoint, tmp_path) == (adapt_config(), feature, on_windows, prototypes)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("': ")[0] for line in lines] == [
        f"no row '{config.name}" for config in (ZERO_SHOT, tuned, on_frames)
    ]
    assert "method 'zero_shot' needs class descriptions, but this checkpoint has none for neutral" in lines[0]
    assert "take adapt.method.tune=feature" in lines[1]
    assert "method 'tda' needs class descriptions" in lines[2] and "such as adapt=clip_au" in lines[2]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            ZERO_SHOT,
            "method 'zero_shot' needs class descriptions.*; take a method that uses the trained classifier, such as",
        ),
        (AdaptConfig(TDA()), "method 'tda' needs class descriptions, .*, such as adapt=clip_au$"),
        (adapt_config(objective="entropy"), "method 'clip_autt' tunes context tokens, .*; take adapt.method.tune=feat"),
    ],
    ids=lambda one: one.method.name if isinstance(one, AdaptConfig) else "",
)
def test_an_own_method_whose_needs_cannot_be_met_is_refused(tmp_path: Path, own: AdaptConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_that_can_be_made((own, adapt_config()), without_context(tmp_path), tmp_path)


def test_what_a_method_needs_is_told_before_anything_is_computed(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command whose own method cannot work leaves no run folder; one that only compares with it does the rest."""
    folder = checkpoint_folder(world.checkpoint, "none")
    checkpoint = load_checkpoint(folder)
    shutil.rmtree(folder)
    save_checkpoint(Checkpoint(checkpoint.model, replace(checkpoint.spec, descriptions=())), folder)
    with monkeypatch.context() as patch:
        for step in ("connect", "extract", "open_run"):
            patch.setattr(f"ray_jobs.adapt.job.{step}", lambda *_, **__: pytest.fail("something is computed"))
        for option in ("zero_shot", "tda"):
            said = said_on_refusal(world.words("needs", f"adapt={option}"), capsys)
            assert f"method {option!r} needs class descriptions" in said and "such as adapt=clip_au" in said
    assert not world.run("needs").exists()
    assert cli.main(["adapt", *world.words("needs", "adapt=t3a", "compare=[zero_shot,tda,clip_au]")]) == 0
    said = capsys.readouterr().out
    assert "no row 'zero-shot': method 'zero_shot' needs" in said and "no row 'TDA, online': method 'tda' needs" in said
    assert set(world.rows("needs")["method_key"]) == {"t3a", "clip_autt"}


def test_other_checkpoints_are_refused_naming_both(tmp_path: Path) -> None:
    one: Checkpoint = fake_checkpoint()
    other = fake_checkpoint(seed=1)
    file = tmp_path / "checkpoints.json"
    check_same_checkpoints(file, {"none": one})
    check_same_checkpoints(file, {"none": one})
    message = rf"subject baseline 'none': {one.fingerprint} → {other.fingerprint}\n"
    with pytest.raises(ValueError, match=message):
        check_same_checkpoints(file, {"none": other})


def test_a_run_does_not_go_on_with_a_checkpoint_trained_anew(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    words = world.words("trained", *TUNED)
    assert cli.main(["adapt", *words]) == 0
    before = world.rows("trained")
    folder = checkpoint_folder(world.checkpoint, "none")
    spec = load_checkpoint(folder).spec
    shutil.rmtree(folder)
    anew = fake_checkpoint(backbone=world.source("median").backbone, seed=5)
    save_checkpoint(Checkpoint(anew.model, spec), folder)
    (world.run("trained") / "subjects" / "s0.parquet").unlink()
    assert "has results of checkpoints that have changed since" in said_on_refusal(words, capsys)
    assert set(world.rows("trained")["subject_id"]) == {"s1"}
    assert set(before["checkpoint"]) != {load_checkpoint(folder).fingerprint}


def test_a_video_that_was_replaced_is_refused_by_name_and_one_that_was_moved_is_not(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    words = world.words("replaced", *TUNED)
    assert cli.main(["adapt", *words]) == 0
    before = world.rows("replaced")
    clip = world.clips[2]
    file = Path(clip.source)
    kept, times = file.read_bytes(), file.stat()
    file.write_bytes(b"another video")
    world.store.append([stored.row(clip, 2 * features_of(clip))])
    said = said_on_refusal(words, capsys)
    assert re.search(rf"clip '{clip.clip_id}': the file \S+{clip.clip_id}\.mp4 has been rewritten \(5 bytes", said)
    file.write_bytes(kept)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cli.main(["adapt", *words]) == 0
    assert_same_results(world.rows("replaced"), before)


def test_a_broken_video_may_be_replaced_by_a_good_one(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no results yet; one that has some may not."""
    clip = replace(stored.clip_at(world.folder / "videos", "s0c7", content="broken"), subject_id="s0", label="pain")
    clips = [*world.clips, clip]
    words = world.words("mended", *TUNED)
    assert cli.main(["adapt", *words]) == 0
    folder, manifest = world.run("mended"), world.read(clips)
    check_earlier_clips(folder, manifest, clips)
    assert "new clips since this run was last started: 1" in capsys.readouterr().out
    Path(clip.source).write_text("a good video")
    check_earlier_clips(folder, manifest, clips)
    Path(world.clips[0].source).write_text("another video")
    with pytest.raises(ValueError, match=r"clip 's0c0': the file \S+ has been rewritten"):
        check_earlier_clips(folder, manifest, clips)


def test_run_folders_are_plain_paths(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*world.words("far", *TUNED), "runs=s3://bucket/runs"]
    assert "runs=s3://bucket/runs: URIs are not read yet; give a local path" in said_on_refusal(words, capsys)
