"""`clipautt store`: the table, the problems, what goes; and Ray Data on a store's folder."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipautt.clips import Clip
from clipautt.features.clip_features import FeatureSpec
from clipautt.features.contents import content_of
from clipautt.features.store import FeatureStore
from clipautt.manifest import write_manifest
from clipautt.model.checkpoint import save_checkpoint
from clipautt.video.augmentation import Augmentation
from clipautt.video.decoding import Sampling
from ray_jobs import cli
from ray_jobs.platform.cluster import ray_data
from ray_jobs.store.job import size_text
from tests.support.fakes import fake_checkpoint, shared_backbone
from tests.support.stored import SPEC, clip_at, features_of, row

SPEC_OF_RUN = FeatureSpec.of(shared_backbone(), Sampling(12.5))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.chdir(tmp_path)
    return FeatureStore("features", SPEC_OF_RUN)


def fill(store: FeatureStore, folder: Path) -> list[Clip]:
    clips = [clip_at(folder, name) for name in "abc"]
    store.append([row(clips[0], features_of(1, 5)), row(clips[1], features_of(2, 7))])
    store.append([row(clips[2], None, status="no_face", reason="no face was found in 9 frames")])
    return clips


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 7200,) * 2)


def test_ls_prints_a_line_for_every_fingerprint(
    tmp_path: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, tmp_path)
    (augmented,) = SPEC_OF_RUN.passes(Augmentation(flip=0.5), passes=1, seed=7)
    clip = clip_at(tmp_path, "a")
    FeatureStore("features", augmented).append([row(clip, features_of(1), clip_key=augmented.key(clip))])
    (tmp_path / "features" / "notes").mkdir()
    assert cli.main(["store"]) == 0
    lines = capsys.readouterr().out.splitlines()
    lines.remove(f"{augmented.fingerprint}: augmented frames to train on: flip 0.5; pass 1, seed 7")
    lines.remove(next(line for line in lines if line.startswith(augmented.fingerprint)))
    cells = lines[2].split()
    assert lines[0].split()[:3] == ["fingerprint", "backbone", "px"]
    assert cells[:9] == [SPEC_OF_RUN.fingerprint, "fake", "32", "12.5", "none", "16", "2", "1", "12"]
    assert cells[10] == "kB" and cells[11] == "2"
    assert lines[3].split()[:3] == ["notes", "?", "-"]
    assert lines[4] == f"{SPEC_OF_RUN.fingerprint}: without features: 1 no_face"
    assert lines[5].startswith("notes: it has no _spec.json")


def test_verify_exits_1_where_something_is_wrong(
    tmp_path: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = fill(store, tmp_path)
    assert cli.main(["store", "verify", "store=features"]) == 0
    assert capsys.readouterr().out == "0 problems in features\n"
    Path(clips[0].source).unlink()
    for number in range(27):
        (store.path / f"part-{number}.parquet").write_bytes(b"")
    assert cli.main(["store", "verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("note: ") and lines[0].endswith(
        f"clip 'a' was made from {clips[0].source}, which is gone"
    )
    assert sum("is damaged" in line for line in lines) == 25
    assert lines[-2:] == ["… and 2 more problems", "27 problems in features"]


def test_gc_tells_first_and_removes_on_request(
    tmp_path: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = fill(store, tmp_path)
    other = FeatureStore("features", SPEC)
    other.append([row(clips[0], features_of(1))])
    (store.path / ".part-1.tmp").write_bytes(b"half")
    age(tmp_path / "features")
    write_manifest(clips[:1], tmp_path / "m.parquet")
    save_checkpoint(fake_checkpoint(), tmp_path / "runs" / "train" / "x" / "checkpoints" / "none")
    (tmp_path / "runs" / "train" / "x" / "config.yaml").write_text(yaml.safe_dump({"manifest": "m.parquet"}))
    assert cli.main(["store", "gc", f"keep=[{SPEC.fingerprint}]"]) == 0
    assert "folders that no checkpoint needs" not in capsys.readouterr().out and other.path.is_dir()
    assert cli.main(["store", "gc"]) == 0
    out = capsys.readouterr().out
    assert "nothing was changed: apply=true removes it" in out and other.path.is_dir()
    counts = {line.rsplit("  ", 2)[0].strip(): line.split()[-3] for line in out.splitlines()[-5:-1]}
    assert counts == {
        "-" * 34: "-" * 34,
        "files of interrupted writes": "1",
        "rows of clips that no manifest has": "2",
        "folders that no checkpoint needs": "1",
    }
    assert cli.main(["store", "gc", "apply=true"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" freed")
    assert [path.name for path in Path("features").iterdir()] == [SPEC_OF_RUN.fingerprint]
    assert store.status()["clip_id"].tolist() == ["a"] and set(store.load(clips)) == {"a"}
    assert cli.main(["store", "gc", "apply=true"]) == 0
    assert capsys.readouterr().out == "nothing to remove in features\n"


def test_gc_without_runs_keeps_everything_and_says_so(
    tmp_path: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = fill(store, tmp_path)
    age(tmp_path / "features")
    assert cli.main(["store", "gc", "apply=true"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "note: no checkpoint below runs and no keep=[…]: all folders are kept",
        "note: no run below runs names a manifest, and there is no manifests=[…]: all rows are kept",
        "nothing to remove in features",
    ]
    assert set(store.load(clips)) == {"a", "b"}


def test_rebase_tells_first_and_takes_over_on_request(
    tmp_path: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    clips = [clip_at(tmp_path / "data", name, content=name, label="pain") for name in "abcde"]
    store.append([row(clip, features_of(n), content=content_of(clip.source)) for n, clip in enumerate(clips)])
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "moved" / "e.mp4").write_text("other")
    moved = [replace(clip, source=str(tmp_path / "moved" / Path(clip.source).name)) for clip in clips]
    write_manifest(moved, tmp_path / "m.parquet", classes=("calm", "pain"))
    assert cli.main(["store", "rebase", "manifests=[m.parquet]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = SPEC_OF_RUN.fingerprint
    assert lines[-3:] == [
        f"{folder}: 4 clips known under another path or time, by the content of their files (a, b, c, …)",
        f"{folder}: 1 clips known by name, but made from other content: they are encoded again (e)",
        "4 clips would be taken over; nothing was changed: apply=true takes them over",
    ]
    assert store.load(moved) == {}
    assert cli.main(["store", "rebase", "manifests=[m.parquet]", "apply=true"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("4 clips taken over; their old rows stay until")
    assert set(store.load(moved)) == set("abcd")
    assert cli.main(["store", "rebase", "manifests=[m.parquet]", "apply=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{folder}: 4 clips are there already" in lines and lines[-1] == "nothing to take over in features"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vacuum"], "action='vacuum'; allowed: ls, verify, rebase, gc"),
        (["ls", "store=gone"], "no feature store at gone; `clipautt extract` makes one, or give store=FOLDER"),
        (["gc", "keep=[abc]"], "keep='abc' is not a folder of features; there are: "),
        (["gc", "keep=[1234]"], "keep='1234' is not a folder of features; there are: "),
        (["gc", "apply=no"], "apply=no: expected true or false"),
        (["gc", "manifests=[gone.parquet]"], "no manifest at gone.parquet"),
        (["rebase"], "rebase needs the manifests of the data as it is now: manifests=[PATH]"),
        (["rebase", "manifests=[gone.parquet]"], "no manifest at gone.parquet"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, store: FeatureStore, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    fill(store, tmp_path)
    assert cli.main(["store", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("action", ["ls", "verify", "gc"])
def test_a_folder_of_other_things_is_not_a_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    (tmp_path / "other" / "photos").mkdir(parents=True)
    assert cli.main(["store", action, f"store={tmp_path / 'other'}"]) == 2
    assert "other is not a feature store: none of its folders holds features" in capsys.readouterr().err


def test_sizes_literal() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 13_100_000, 2 * 10**15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "13.1 MB",
        "2000.0 TB",
    ]


def test_ray_data_opens_the_folder(local_ray: None, tmp_path: Path, store: FeatureStore) -> None:
    """With all that lies in it: the specification, failures, and what interrupted writes and damage left."""
    fill(store, tmp_path)
    (store.path / ".part-interrupted.tmp").write_bytes(b"PAR1 and then the power failed")
    (store.path / "_damaged-part-1.parquet").write_bytes(b"PAR1")
    rows = {row["clip_id"]: row for row in ray_data().read_parquet(str(store.path.absolute())).take_all()}
    assert {clip: row["status"] for clip, row in rows.items()} == {"a": "ok", "b": "ok", "c": "no_face"}
    np.testing.assert_array_equal(np.stack(rows["a"]["features"]), features_of(1, 5))
    assert rows["c"]["features"] is None and rows["c"]["reason"] == "no face was found in 9 frames"
