"""Care of a store: what is counted, what is found to be wrong, and that nothing goes that anyone needs."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clipautt.clips import Clip
from clipautt.features.clip_features import FeatureSpec, clip_key
from clipautt.features.maintenance import Collection, collect, inventory, verify
from clipautt.features.references import References, find_references
from clipautt.features.store import FeatureStore
from clipautt.manifest import ManifestError, write_manifest
from clipautt.model.checkpoint import save_checkpoint
from clipautt.video.augmentation import Augmentation
from clipautt.video.decoding import Sampling
from tests.support.fakes import fake_checkpoint, shared_backbone
from tests.support.stored import SPEC, clip_at, features_of, row

NOTHING_KNOWN = References(None, None)
OTHER = replace(SPEC, backbone="other", backbone_fingerprint="1" * 16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def store(root: Path) -> FeatureStore:
    return FeatureStore(root, SPEC)


def add(store: FeatureStore, *rows: dict[str, Any]) -> Path:
    file = store.append(rows)
    assert file is not None
    return file


def age(folder: Path, *, hours: float = 2) -> None:
    """Everything below was written this long ago."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 3600 * hours,) * 2)


def needed(clips: Sequence[Clip], **facts: Any) -> References:
    return References(frozenset({SPEC.fingerprint}), frozenset(map(clip_key, clips)), **facts)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kinds(collection: Collection) -> list[tuple[str, int]]:
    return [(waste.kind, waste.rows) for waste in collection.wastes]


def test_inventory_counts_what_there_is(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    a, b, c, d = (clip_at(tmp_path, name) for name in "abcd")
    add(store, row(a, features_of(1, 5)), row(b, None, status="no_face", reason="none"))
    file = add(store, row(b, None, reason="x"), row(c, features_of(2, 7)), row(d, None, status="no_face", reason="y"))
    (store.path / ".part-1.tmp").write_bytes(b"half")
    (store.path / "part-2.tmp").write_bytes(b"half, as they were once named")
    (store.path / "_damaged-part-3.parquet").write_bytes(b"PAR1")
    (store.path / "part-4.parquet").write_bytes(b"PAR1")
    (found,) = inventory(root)
    assert (found.folder, found.trouble, found.backbone) == (store.path, "", "fake")
    assert (found.backbone_fingerprint, found.frame_size, found.frames_per_second) == ("0" * 16, 32, 12.5)
    assert (found.detector, found.feature_dim, found.ok, found.frames) == ("none", 16, 2, 12)
    assert found.failed == {"no_face": 1, "unreadable": 1} and found.replaced == 1
    assert (found.files, found.damaged, found.set_aside, found.leftovers) == (3, 1, 1, 2)
    assert found.bytes == sum(path.stat().st_size for path in store.path.iterdir())
    assert found.last_written is not None and found.last_written >= file.stat().st_mtime


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        (None, "it has no _spec.json"),
        ("{", "_spec.json is not a specification (JSONDecodeError"),
        ("[]", "_spec.json is not a specification (TypeError"),
        ('{"backbone": "x"}', "_spec.json is not a specification (KeyError: 'frames')"),
        (json.dumps(SPEC.facts | {"augmented": {"flip": 1}}), "_spec.json is not a specification (KeyError: 'augm"),
        (json.dumps(OTHER.facts), f"_spec.json has fingerprint {OTHER.fingerprint}, which is not the folder's name"),
    ],
)
def test_a_folder_of_unclear_origin_is_shown_and_left_alone(
    tmp_path: Path, root: Path, store: FeatureStore, content: str | None, trouble: str
) -> None:
    add(store, row(clip_at(tmp_path), features_of(1)))
    (store.path / "part-1.parquet").write_bytes(b"PAR1")
    spec_file = store.path / "_spec.json"
    spec_file.unlink() if content is None else spec_file.write_text(content)
    age(root)
    before = names(store.path)
    (found,) = inventory(root)
    assert trouble in found.trouble and found.ok == 1 and found.damaged == 1
    assert trouble in verify(root)[0].what
    collection = collect(root, References(frozenset({"x"}), frozenset({"x"})), apply=True)
    assert collection.wastes == () and names(store.path) == before
    assert trouble in collection.notes[0] and "is left alone" in collection.notes[0]


@pytest.mark.parametrize("action", [inventory, verify, lambda root: collect(root, NOTHING_KNOWN, apply=True)])
def test_a_store_that_is_not_there_is_told(tmp_path: Path, action: Callable[[Path], Any]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no feature store at .*gone; `clipautt extract` makes one, or give s"):
        action(tmp_path / "gone")


def rewrite(file: Path, **columns: list[Any]) -> None:
    """Other values in a file, as no store would write them."""
    table = pq.read_table(file)
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.names.index(name), field, pa.array(values, field.type))
    pq.write_table(table, file)


def test_a_sound_store_has_no_findings(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    span: dict[str, Any] = {"start_seconds": 0.5, "end_seconds": 1.5}
    add(store, row(clip_at(tmp_path, "a", **span), features_of(1)), row(clip_at(tmp_path, "b"), None, reason="broken"))
    add(store, row(clip_at(tmp_path, "c", start_frame=1, end_frame=5), features_of(2)))
    assert verify(root) == []


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"times": [[0.0, 0.2, 0.1]]}, "has times that decrease"),
        ({"times": [[0.0, 0.1]]}, "has 3 frames and 2 times"),
        ({"face_found": [[True]]}, "has 3 frames and 1 face_found"),
        ({"features": [[]], "times": [[]]}, "has no frames"),
        ({"features": [[[float("nan")] * 16] * 3]}, "has features that are not finite"),
        ({"status": ["unreadable"], "reason": [""]}, "has status 'unreadable' without a reason"),
        ({"status": ["no_face"], "reason": [None], "source": [None]}, "has status 'no_face' without a reason"),
        ({"clip_key": [None]}, "has no clip_key"),
    ],
)
def test_what_is_wrong_with_a_row_is_found(
    tmp_path: Path, root: Path, store: FeatureStore, columns: dict[str, list[Any]], what: str
) -> None:
    add(store, row(clip_at(tmp_path, "good"), features_of(2)))
    file = add(store, row(clip_at(tmp_path), features_of(1)))
    rewrite(file, **columns)
    found = [finding for finding in verify(root) if finding.problem]
    assert [str(finding) for finding in found] == [f"{file}: clip 'c1' {what}"]


def test_damaged_and_foreign_files_are_found(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    file = add(store, row(clip_at(tmp_path), features_of(1, 40)))
    content = bytearray(file.read_bytes())
    place = content.index(features_of(1, 40).tobytes()[:64])  # floats are stored as they are
    content[place + 8] ^= 1
    file.write_bytes(content)
    (store.path / "part-1.parquet").write_text("no table")
    pq.write_table(pa.table({"x": [1]}), store.path / "part-2.parquet")
    found = {finding.path.name: finding.what for finding in verify(root)}
    assert "CRC checksum" in found[file.name] and "apply=true` sets it aside" in found[file.name]
    assert "Parquet" in found["part-1.parquet"] and "it has no column clip_key" in found["part-2.parquet"]


def test_sources_that_are_gone_or_changed_are_notes(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    gone, changed, same = (clip_at(tmp_path, name, start_frame=0, end_frame=9) for name in ("gone", "changed", "same"))
    add(store, *(row(clip, features_of(1)) for clip in (gone, changed, same)))
    Path(gone.source).unlink()
    Path(changed.source).write_text("another video")
    found = verify(root)
    assert [finding.problem for finding in found] == [False, False]
    assert str(found[0]).endswith(f"clip 'gone' was made from {gone.source}, which is gone")
    assert str(found[1]).endswith(f"clip 'changed' was made from {changed.source}, which has changed since")


def test_rows_of_several_people_belong_to_their_source(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    """The face is part of the key, so it is part of the row."""
    people = [clip_at(tmp_path, f"c{face}", file="both", face=face) for face in ("left", "2")]
    add(store, *(row(clip, features_of(1)) for clip in (*people, clip_at(tmp_path, "plain", file="both"))))
    assert verify(root) == []


def test_leftovers_go_after_an_hour(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    add(store, row(clip_at(tmp_path), features_of(1)))
    old, new = (".part-1.tmp", "part-2.tmp", ".spec-3.tmp", "_spec.json.4.tmp"), (".part-5.tmp", "part-6.tmp")
    for name in old:
        (store.path / name).write_bytes(b"12345")
    age(root)
    for name in new:
        (store.path / name).write_bytes(b"12345")
    told = collect(root, NOTHING_KNOWN, apply=False)
    assert [(waste.kind, waste.bytes) for waste in told.wastes] == [("leftover", 5)] * 4
    assert {waste.path.name for waste in told.wastes} == set(old) <= set(names(store.path))
    assert collect(root, NOTHING_KNOWN, apply=True) == told
    assert not set(old) & set(names(store.path)) and set(new) <= set(names(store.path))


def test_damaged_files_are_set_aside_and_their_clips_are_missing(
    tmp_path: Path, root: Path, store: FeatureStore
) -> None:
    a, b, c = (clip_at(tmp_path, name) for name in "abc")
    whole = add(store, row(a, features_of(1)))
    cut, foolish = add(store, row(b, features_of(2))), add(store, row(c, features_of(3)))
    content = cut.read_bytes()[:-20]
    cut.write_bytes(content)
    rewrite(foolish, times=[[0.0]])
    assert kinds(collect(root, NOTHING_KNOWN, apply=True)) == [("damaged", 0)] * 2
    assert (store.path / f"_damaged-{cut.name}").read_bytes() == content
    assert names(store.path) == sorted([f"_damaged-{cut.name}", f"_damaged-{foolish.name}", "_spec.json", whole.name])
    assert store.missing([a, b, c]) == [b, c] and verify(root) == []
    assert collect(root, NOTHING_KNOWN, apply=True).wastes == ()


def test_replaced_rows_go_and_what_readers_see_stays(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    a, b, c = (clip_at(tmp_path, name) for name in "abc")
    first = add(store, row(a, None, reason="first"), row(b, features_of(1)), row(c, None, reason="old"))
    second = add(store, row(a, features_of(2, 9)), row(b, None, reason="a failure replaces no success"))
    third = add(store, row(c, None, reason="new"))
    age(root)
    for number, file in enumerate((first, second, third)):
        os.utime(file, (time.time() - 9000 + number,) * 2)
    status, told = store.status(), collect(root, NOTHING_KNOWN, apply=False)
    assert kinds(told) == [("replaced", 2), ("replaced", 1)]
    sizes = first.stat().st_size, second.stat().st_size
    assert [waste.bytes for waste in told.wastes] == [round(sizes[0] * 2 / 6), round(sizes[1] * 1 / 11)]
    assert collect(root, NOTHING_KNOWN, apply=True) == told
    left = store.status()
    assert sorted(left.values.tolist()) == sorted(status.values.tolist())
    assert left.set_index("clip_id")["reason"].to_dict() == {"a": "", "b": "", "c": "new"}
    np.testing.assert_array_equal(store.load([a])["a"].features.numpy(), features_of(2, 9))
    assert not first.exists() and not second.exists() and third.exists()
    assert inventory(root)[0].replaced == 0 and verify(root) == []


@pytest.mark.parametrize("how", ["cut", "contradicts itself"])
def test_a_row_is_not_replaced_by_one_that_is_damaged(
    tmp_path: Path, root: Path, store: FeatureStore, how: str
) -> None:
    clip = clip_at(tmp_path)
    add(store, row(clip, features_of(1)))
    later = add(store, row(clip, features_of(2)))
    if how == "cut":
        later.write_bytes(later.read_bytes()[:-20])
    else:
        rewrite(later, times=[[0.0]])
    age(root)
    assert kinds(collect(root, NOTHING_KNOWN, apply=True)) == [("damaged", 0)]
    np.testing.assert_array_equal(store.load([clip])["c1"].features.numpy(), features_of(1))


def test_rows_of_the_last_hour_stay_and_count_as_replacement(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    a, b = (clip_at(tmp_path, name) for name in "ab")
    old = add(store, row(a, None, reason="first"))
    age(root)
    recent = [add(store, row(a, None, reason="second")), add(store, row(a, features_of(1)), row(b, features_of(2)))]
    assert kinds(collect(root, needed([a]), apply=True)) == [("replaced", 1)]
    assert not old.exists() and all(file.exists() for file in recent)
    assert set(store.load([a, b])) == {"a", "b"}


def test_rows_of_clips_that_no_manifest_has_go(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    kept, other, failed = (clip_at(tmp_path, name) for name in ("kept", "other", "failed"))
    mixed = add(store, row(kept, features_of(1)), row(other, features_of(2)), row(failed, None, reason="x"))
    useless = add(store, row(replace(kept, start_seconds=1.0), features_of(3)))
    age(root)
    assert collect(root, replace(needed([kept]), clip_keys=None), apply=True).wastes == ()
    told = collect(root, needed([kept]), apply=False)
    assert sorted(kinds(told)) == [("unreferred", 1), ("unreferred", 2)] and mixed.exists()
    assert collect(root, needed([kept]), apply=True) == told
    assert not mixed.exists() and not useless.exists() and len(list(store.path.glob("part-*"))) == 1
    assert store.status()["clip_id"].tolist() == ["kept"]
    np.testing.assert_array_equal(store.load([kept])["kept"].features.numpy(), features_of(1))


def test_rows_stay_where_their_source_cannot_be_looked_at(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    """A disk that is not mounted makes every clip look like another one."""
    away = tmp_path / "disk"
    away.mkdir()
    clip = clip_at(away)
    write_manifest([clip], tmp_path / "m.parquet")
    add(store, row(clip, features_of(1)))
    age(root)
    away.rename(tmp_path / "unmounted")
    references = find_references(tmp_path / "runs", manifests=[tmp_path / "m.parquet"], fingerprints=[SPEC.fingerprint])
    assert references.clip_keys is not None and collect(root, references, apply=True).wastes == ()
    (tmp_path / "unmounted").rename(away)
    assert set(store.load([clip])) == {"c1"}


def test_folders_that_nothing_refers_to_go(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    other = FeatureStore(root, OTHER)
    clip = clip_at(tmp_path)
    add(store, row(clip, features_of(1)))
    file = add(other, row(clip, features_of(2)))
    size = file.stat().st_size + (other.path / "_spec.json").stat().st_size
    fresh = collect(root, needed([clip]), apply=True)
    assert fresh.wastes == () and "it was written to in the last hour" in fresh.notes[0] and file.exists()
    age(root)
    assert collect(root, NOTHING_KNOWN, apply=True).wastes == ()
    recipe = frozenset({("other", 12.5, "none")})
    assert collect(root, needed([clip], recipes=recipe), apply=True).wastes == ()
    told = collect(root, needed([clip]), apply=False)
    assert [(w.kind, w.path, w.bytes) for w in told.wastes] == [("folder", other.path, size)] and file.exists()
    assert collect(root, needed([clip]), apply=True) == told
    assert names(root) == [SPEC.fingerprint] and set(store.load([clip])) == {"c1"}


def test_augmented_features_are_told_apart_and_kept_by_what_was_trained_on_them(tmp_path: Path, root: Path) -> None:
    """A checkpoint keeps its passes, and of those the rows of clips that a manifest names."""
    named, unnamed = clip_at(tmp_path, "named"), clip_at(tmp_path, "unnamed")
    checkpoint = fake_checkpoint()
    training = {"features": "augmented", "augmentation": {"flip": 0.5}, "augmented_passes": 2, "seed": 4}
    checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, training=training))
    run = make_run(tmp_path / "runs", "r", manifest="m.parquet")
    save_checkpoint(checkpoint, run / "checkpoints" / "none")
    write_manifest([named], tmp_path / "m.parquet")
    spec = checkpoint.spec.features
    used = spec.passes(Augmentation(flip=0.5), passes=2, seed=4)
    unused = [
        *spec.passes(Augmentation(flip=0.5), passes=1, seed=5),
        *spec.passes(Augmentation(crop=0.1), passes=1, seed=4),
    ]
    width = spec.feature_dim
    for one in (spec, *used, *unused):
        rows = [row(c, np.zeros((2, width), np.float32), clip_key=one.key(c)) for c in (named, unnamed)]
        add(FeatureStore(root, one), *rows)
    assert verify(root) == []
    shown = {found.folder.name: found.augmented for found in inventory(root)}
    assert shown[spec.fingerprint] == "" and shown[used[1].fingerprint] == "flip 0.5; pass 2, seed 4"
    age(root)
    removed = collect(root, find_references(tmp_path / "runs"), apply=True)
    assert sorted(kinds(removed)) == [("folder", 0)] * 2 + [("unreferred", 1)] * 3
    assert set(names(root)) == {spec.fingerprint, *(one.fingerprint for one in used)}
    for one in (spec, *used):
        assert set(FeatureStore(root, one).load([named, unnamed])) == {"named"}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (
            {"train": {"features": "cached"}, "space": {"train": {"augmentation": {"flip": {"choices": [0, 0.5]}}}}},
            True,
        ),
        ({"train": {"features": "augmented"}, "space": {"adapt": {"prior": {"low": 0.1, "high": 0.5}}}}, True),
        ({"train": {"features": "cached"}, "space": {"adapt": {"prior": {"low": 0.1, "high": 0.5}}}}, False),
        ({"train": {"features": "augmented"}, "space": None}, False),
    ],
)
def test_a_sweep_keeps_the_augmented_features_of_trials_to_come(
    tmp_path: Path, settings: dict[str, Any], kept: bool
) -> None:
    made = {"backbone": {"name": "ViT"}, "sampling": {"frames_per_second": 5.0}, "faces": {"detector": "none"}}
    run = make_run(tmp_path / "runs", "s", **made, **settings)
    save_checkpoint(fake_checkpoint(), run / "models" / "first")
    expected = frozenset({("ViT", 5.0, "none")}) if kept else frozenset()
    assert find_references(tmp_path / "runs").recipes == expected


def test_damaged_files_outlive_their_folder(tmp_path: Path, root: Path) -> None:
    other = FeatureStore(root, OTHER)
    add(other, row(clip_at(tmp_path), features_of(2)))
    (other.path / "_damaged-part-1.parquet").write_bytes(b"PAR1")
    age(root)
    assert kinds(collect(root, needed([]), apply=True)) == [("folder", 0)]
    assert names(other.path) == ["_damaged-part-1.parquet", "_spec.json"]
    assert collect(root, needed([]), apply=True).wastes == ()


def test_readers_miss_nothing_while_rubbish_is_collected(tmp_path: Path, root: Path, store: FeatureStore) -> None:
    clips = [clip_at(tmp_path, f"c{number}") for number in range(40)]
    for number, clip in enumerate(clips):
        add(store, row(clip, None, reason="x"), row(clip, features_of(number)))
    age(root)
    collector = threading.Thread(target=lambda: collect(root, NOTHING_KNOWN, apply=True))
    collector.start()
    reads = 0
    while collector.is_alive() or not reads:
        assert len(store.status()) == 40 and set(store.status()["status"]) == {"ok"}
        assert len(store.load(clips)) == 40
        reads += 1
    collector.join()
    assert inventory(root)[0].replaced == 0 and inventory(root)[0].ok == 40


def test_an_interrupted_rewrite_leaves_rows_twice_and_is_finished_later(
    tmp_path: Path, root: Path, store: FeatureStore
) -> None:
    """What a kill between the new file and the removal of the old one leaves."""
    a, b = clip_at(tmp_path, "a"), clip_at(tmp_path, "b")
    old = add(store, row(a, features_of(1)), row(b, features_of(2)))
    again = store.path / "part-0.parquet"
    shutil.copy(old, again)
    age(root)
    assert len(store.status()) == 2 and set(store.load([a, b])) == {"a", "b"}
    assert kinds(collect(root, needed([a, b]), apply=True)) == [("replaced", 2)]
    assert len(list(store.path.glob("part-*"))) == 1 and set(store.load([a, b])) == {"a", "b"}


def make_run(runs: Path, name: str, **settings: Any) -> Path:
    folder = runs / "train" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_references_of_runs(tmp_path: Path) -> None:
    """Checkpoints name fingerprints, settings name manifests; a relative one lies beside the folder of runs."""
    a, b = clip_at(tmp_path, "a"), clip_at(tmp_path, "b")
    (tmp_path / "data").mkdir()
    write_manifest([a], tmp_path / "data" / "m.parquet")
    write_manifest([b], tmp_path / "more.parquet")
    runs = tmp_path / "runs"
    save_checkpoint(fake_checkpoint(), make_run(runs, "done", manifest="data/m.parquet") / "checkpoints" / "none")
    made = {"backbone": {"name": "ViT"}, "sampling": {"frames_per_second": 5.0}, "faces": {"detector": "yunet"}}
    make_run(runs, "begun", manifest=str(tmp_path / "data" / "m.parquet"), **made)
    found = find_references(runs, manifests=[tmp_path / "more.parquet"], fingerprints=["f" * 16])
    expected = FeatureSpec.of(shared_backbone(), Sampling(12.5)).fingerprint
    assert found.fingerprints == frozenset({expected, "f" * 16}) and found.notes == ()
    assert found.clip_keys == frozenset({clip_key(a), clip_key(b)}) and found.absent_sources == frozenset()
    assert found.recipes == frozenset({("ViT", 5.0, "yunet")})


def test_what_is_not_known_is_told_and_kept(tmp_path: Path) -> None:
    clip, runs = clip_at(tmp_path), tmp_path / "runs"
    empty = find_references(runs)
    assert empty.fingerprints is None and empty.clip_keys is None
    assert empty.notes == (
        f"no checkpoint below {runs} and no keep=[…]: all folders are kept",
        f"no run below {runs} names a manifest, and there is no manifests=[…]: all rows are kept",
    )
    write_manifest([clip], tmp_path / "m.parquet")
    make_run(runs, "one", manifest="m.parquet")
    gone = make_run(runs, "two", manifest="gone.parquet")
    found = find_references(runs, fingerprints=["f" * 16])
    assert found.fingerprints == frozenset({"f" * 16}) and found.clip_keys is None
    assert found.notes == (
        f"manifest {tmp_path / 'gone.parquet'}, which {gone / 'config.yaml'} names, is gone: all rows are kept",
    )
    (tmp_path / "gone.parquet").write_text("no table")
    assert "cannot be read (" in find_references(runs).notes[1]
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        find_references(runs, manifests=[tmp_path / "gone.parquet"])


def test_what_cannot_be_read_keeps_everything(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folder = make_run(runs, "one")
    (folder / "config.yaml").write_text("a: [")
    facts = asdict(fake_checkpoint().spec)
    for name, content in (("good", json.dumps(facts)), ("bad", "{}")):
        (folder / name).mkdir()
        (folder / name / "checkpoint.json").write_text(content)
    found = find_references(runs)
    assert found.fingerprints is None and found.clip_keys is None
    assert any(f"{folder / 'bad' / 'checkpoint.json'} cannot be read (KeyError" in note for note in found.notes)
    assert any(f"{folder / 'config.yaml'} cannot be read" in note for note in found.notes)


def test_checkpoints_outside_the_runs_are_followed(tmp_path: Path) -> None:
    """An adaptation names one by its path; the folder of features that it was trained on is in use."""
    runs, elsewhere = tmp_path / "runs", tmp_path / "shared" / "best"
    save_checkpoint(fake_checkpoint(), elsewhere)
    make_run(runs, "personal", checkpoint="shared/best", backbone=None)
    found = find_references(runs)
    assert found.fingerprints == frozenset({fake_checkpoint().spec.features.fingerprint})
    shutil.rmtree(elsewhere)
    found = find_references(runs, fingerprints=["0" * 16])
    assert found.fingerprints is None
    assert any(f"names the checkpoint {elsewhere}, which is gone: all folders are kept" in note for note in found.notes)


def test_a_model_in_a_folder_is_known_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    facts = {"sampling": {"frames_per_second": 5.0}, "faces": {"detector": "none"}}
    make_run(tmp_path / "runs", "r", backbone={"name": "local-dir:m"}, **facts)
    assert find_references(tmp_path / "runs").recipes == frozenset({(f"local-dir:{tmp_path}/m", 5.0, "none")})
