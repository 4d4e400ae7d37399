"""The feature store: exact, appendable, resumable, whole after any interruption, and readable without this package."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch

from clipautt.backbones.loading import Backbone
from clipautt.features.clip_features import FeatureSpec, clip_key
from clipautt.features.store import TRIED_AGAIN, DamagedStoreError, FeatureStore, StoredFrames, read_parts
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from tests.support.fake_yunet import write_fake_yunet
from tests.support.fakes import PREPROCESSING, fake_clip_model
from tests.support.stored import SPEC, WIDTH, append_for_ever, append_numbers, clip_at, features_of, numbered_row, row


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features", SPEC)


def processes() -> Any:
    """Real processes that share nothing; the packages that take seconds to import are imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clipautt.features.store"])
    return context


def written(file: Path | None) -> Path:
    """The file of an append that had rows."""
    assert file is not None
    return file


def test_features_that_are_not_finite_are_refused(tmp_path: Path, store: FeatureStore) -> None:
    broken = features_of(1)
    broken[0, 0] = np.nan
    clip = clip_at(tmp_path)
    with pytest.raises(ValueError, match="clip 'c1' with status 'ok' has features that are not finite"):
        store.append([row(clip, broken)])
    assert store.status().empty


def test_stored_features_come_back_to_the_last_bit(tmp_path: Path, store: FeatureStore) -> None:
    clips = [clip_at(tmp_path, "b"), clip_at(tmp_path, "a"), clip_at(tmp_path, "gone")]
    wanted = {"a": features_of(1, 5), "b": features_of(2, 1)}
    store.append([row(clip, wanted[clip.clip_id]) for clip in clips[:2]])
    loaded = store.load(clips)
    assert list(loaded) == ["a", "b"]
    for name, features in wanted.items():
        assert loaded[name].features.dtype == torch.float32
        np.testing.assert_array_equal(loaded[name].features.numpy(), features)
        np.testing.assert_array_equal(loaded[name].times, np.arange(len(features)) / 12.5)
        assert loaded[name].subject_id == "s1"


def test_missing_are_the_clips_without_a_row(tmp_path: Path, store: FeatureStore) -> None:
    clips = [clip_at(tmp_path, name) for name in "abc"]
    assert store.missing(clips) == clips and store.load(clips) == {} and store.status().empty
    store.append([row(clips[0], features_of(1))])
    store.append([row(clips[2], None, status="unreadable", reason="broken")])
    assert store.missing(clips) == [clips[1]]
    assert store.missing(clips, retry_failed=True) == clips[1:]
    assert store.append([]) is None


def test_present_are_the_clips_with_features_by_name(tmp_path: Path, store: FeatureStore) -> None:
    clips = [clip_at(tmp_path, name) for name in "abc"]
    assert store.present(clips) == set()
    store.append([row(clips[0], features_of(1)), row(clips[1], None, status="unreadable", reason="broken")])
    twin = replace(clips[0], clip_id="twin")  # the same span of the same file
    assert store.present([*clips, twin]) == {"a", "twin"} == set(store.load([*clips, twin]))


def test_many_small_loads_read_only_the_files_that_they_need(
    tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip_at(tmp_path, name) for name in "abc"]
    for number, clip in enumerate(clips[:2]):
        store.append([row(clip, features_of(number))])
    read: list[list[str]] = []
    stock = FeatureStore._read

    def counted(self: FeatureStore, file: Path, columns: Sequence[str], *rest: Any) -> Any:
        read.append(list(columns))
        return stock(self, file, columns, *rest)

    monkeypatch.setattr(FeatureStore, "_read", counted)
    assert set(store.load(clips[:1])) == {"a"}
    assert len(read) == 3, "what each of the two files holds, and the features of one"
    read.clear()
    assert set(store.load(clips[1:2])) == {"b"} and store.load(clips[2:]) == {}
    assert len(read) == 1 and "features" in read[0]
    FeatureStore(store.path.parent, SPEC).append([row(clips[2], features_of(3))])  # by another process
    assert set(store.load(clips)) == {"a", "b", "c"}, "a file that came later is seen"


def test_a_few_clips_are_read_without_the_others_of_their_file(
    tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip_at(tmp_path, f"c{number}") for number in range(30)]
    file = store.append([row(clip, features_of(number)) for number, clip in enumerate(clips)])
    assert file is not None and pyarrow.parquet.ParquetFile(file).num_row_groups == 4
    groups: list[list[int]] = []
    stock = pyarrow.parquet.ParquetFile.read_row_groups

    def counted(self: pyarrow.parquet.ParquetFile, numbers: list[int], *rest: Any, **options: Any) -> Any:
        groups.append(numbers)
        return stock(self, numbers, *rest, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_groups", counted)
    found = store.load([clips[29], clips[9], clips[8]])
    assert groups == [[1, 3]] and set(found) == {"c8", "c9", "c29"}
    for number in (8, 9, 29):
        assert np.array_equal(found[f"c{number}"].features.numpy(), features_of(number))


def test_failure_is_kept_with_its_reason_until_a_success_replaces_it(tmp_path: Path, store: FeatureStore) -> None:
    clip = clip_at(tmp_path)
    store.append([row(clip, None, status="unreadable", reason="no frames", decoder=None)])
    status = store.status()
    assert status[["clip_id", "status", "reason"]].values.tolist() == [["c1", "unreadable", "no frames"]]
    assert store.load([clip]) == {}
    store.append([row(clip, features_of(1))])
    assert store.status()["status"].tolist() == ["ok"] and store.missing([clip], retry_failed=True) == []
    store.append([row(clip, None, status="unreadable", reason="again")])
    assert store.status()["status"].tolist() == ["ok"] and list(store.load([clip])) == ["c1"]


def test_same_clip_id_of_another_file_or_span_is_another_clip(tmp_path: Path, store: FeatureStore) -> None:
    clip = clip_at(tmp_path, "c1", file="here")
    store.append([row(clip, features_of(1))])
    others = [clip_at(tmp_path, "c1", file="there"), replace(clip, start_seconds=1.0), replace(clip, end_seconds=1.0)]
    for other in others:
        assert store.load([other]) == {} and store.missing([other]) == [other]


@pytest.mark.parametrize("change", ["content", "time"])
def test_changed_file_is_encoded_again(tmp_path: Path, store: FeatureStore, change: str) -> None:
    clip = clip_at(tmp_path)
    store.append([row(clip, features_of(1))])
    if change == "content":
        Path(clip.source).write_text("another video")
    else:
        os.utime(clip.source, ns=(1, 1))
    assert store.missing([clip]) == [clip]


def test_two_clips_of_one_file_are_both_found(tmp_path: Path, store: FeatureStore) -> None:
    clip = clip_at(tmp_path, "a", file="shared")
    again = replace(clip, clip_id="b")
    store.append([row(clip, features_of(1))])
    loaded = store.load([clip, again])
    assert list(loaded) == ["a", "b"] and torch.equal(loaded["a"].features, loaded["b"].features)


def test_specification_lies_beside_the_rows(tmp_path: Path, store: FeatureStore) -> None:
    store.append([row(clip_at(tmp_path), features_of(1))])
    facts = json.loads((store.path / "_spec.json").read_text())
    assert facts["backbone_fingerprint"] == "0" * 16 and facts["feature_dim"] == WIDTH
    assert facts["frames"]["sampling"] == {"frames_per_second": 12.5} and store.path.name == SPEC.fingerprint


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"features": np.zeros((3, 17), np.float32)},
            r"features of clip 'c1' have shape \(3, 17\); allowed: \[T, 16\]",
        ),
        ({"features": np.zeros(16, np.float32)}, r"features of clip 'c1' have shape \(16,\); allowed: \[T, 16\]"),
        ({"features": np.zeros((0, 16), np.float32)}, "clip 'c1' with status 'ok' has no frames"),
        ({"features": None}, "clip 'c1' with status 'ok' has no frames"),
        ({"times": [0.0, 1.0]}, "clip 'c1' with status 'ok' has 3 frames and 2 times"),
        ({"times": None}, "clip 'c1' with status 'ok' has no times"),
        ({"face_found": [True] * 4}, "clip 'c1' with status 'ok' has 3 frames and 4 face_found"),
    ],
)
def test_rows_that_could_not_be_read_back_are_refused(
    tmp_path: Path, store: FeatureStore, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        store.append([row(clip_at(tmp_path), features_of(1)) | facts])
    assert not store.path.exists()


def test_a_row_says_what_it_was_made_of(tmp_path: Path, store: FeatureStore) -> None:
    seconds = clip_at(tmp_path, "a", start_seconds=1.5, end_seconds=2.0)
    frames = clip_at(tmp_path, "b", start_frame=3, end_frame=9, frames_per_second=1000.0)
    store.append([row(seconds, features_of(1)), row(frames, features_of(2))])
    bare = {name: value for name, value in row(clip_at(tmp_path, "c"), None).items() if not name.endswith("_seconds")}
    store.append([bare | {"start_frame": float("nan")}])
    table: Any = pd.read_parquet(store.path).set_index("clip_id")
    assert table.loc["a", ["start_seconds", "end_seconds"]].tolist() == [1.5, 2.0]
    assert table.loc["b", ["start_frame", "end_frame", "frames_per_second"]].tolist() == [3, 9, 1000]
    assert table.loc["c", ["start_seconds", "end_seconds", "start_frame", "end_frame"]].isna().all()
    schema = pyarrow.dataset.dataset(store.path).schema
    assert [str(schema.field(name).type) for name in ("start_seconds", "end_frame")] == ["double", "int64"]
    assert pyarrow.dataset.dataset(store.path).to_table()["start_frame"].null_count == 2


def test_files_of_before_there_were_spans_are_read(tmp_path: Path, store: FeatureStore) -> None:
    clips = [clip_at(tmp_path, name) for name in "ab"]
    file = written(store.append([row(clips[0], features_of(1))]))
    later = ["start_seconds", "end_seconds", "start_frame", "end_frame", "frames_per_second", "face_found"]
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).drop_columns(later), file)
    store.append([row(clips[1], features_of(2), face_found=[True, False, True])])
    loaded = store.load(clips)
    assert store.missing(clips) == [] and loaded["a"].face_found is None
    assert loaded["b"].face_found is not None and loaded["b"].face_found.tolist() == [True, False, True]
    np.testing.assert_array_equal(loaded["a"].features.numpy(), features_of(1))
    assert len(pd.read_parquet(store.path)) == 2


def damage_file(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "text":
        file.write_text("no table")
    elif how == "table of another":
        pd.DataFrame({"x": [1]}).to_parquet(file)
    elif how == "another width":
        other = FeatureStore(file.parent / "other", replace(SPEC, feature_dim=2))
        clip = clip_at(file.parent.parent.parent)
        os.replace(written(other.append([row(clip, np.zeros((3, 2), np.float32))])), file)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut", "magic bytes"),
        ("empty", "size is 0 bytes"),
        ("text", "Parquet"),
        ("table of another", "it has no column clip_key"),
        ("another width", r"column features has type .*\[2\]>, not .*\[16\]>"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, store: FeatureStore, how: str, reason: str) -> None:
    clip = clip_at(tmp_path)
    store.append([row(clip, features_of(1))])
    file = written(store.append([row(clip_at(tmp_path, "c2"), features_of(2))]))
    damage_file(file, how)
    for read in (store.status, lambda: store.load([clip]), lambda: store.missing([clip])):
        with pytest.raises(DamagedStoreError, match=reason) as caught:
            read()
        assert str(file) in str(caught.value)
        assert f"`clipautt store gc store={tmp_path / 'features'} apply=true` sets it aside" in str(caught.value)


def test_no_flipped_bit_gives_other_features(tmp_path: Path, store: FeatureStore) -> None:
    """Wherever a bit flips, either nothing changes or the file is reported."""
    clips = [clip_at(tmp_path, name) for name in "ab"]
    file = written(store.append([row(clip, features_of(n, 2)) for n, clip in enumerate(clips)]))
    content, reported = file.read_bytes(), 0
    status = store.status()
    for place in range(0, len(content), 29):
        flipped = content[place] ^ (1 << place % 8)
        file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        try:
            pd.testing.assert_frame_equal(store.status(), status)
            loaded = store.load(clips)
        except DamagedStoreError:
            reported += 1
            continue
        for number, name in enumerate("ab"):
            np.testing.assert_array_equal(loaded[name].features.numpy(), features_of(number, 2))
            np.testing.assert_array_equal(loaded[name].times, [0, 0.08])
    assert reported > 30


def test_rows_that_contradict_themselves_are_not_handed_out(tmp_path: Path, store: FeatureStore) -> None:
    clip = clip_at(tmp_path)
    file = written(store.append([row(clip, features_of(1))]))
    table = pyarrow.parquet.read_table(file)
    short = pyarrow.array([[0.0]], pyarrow.list_(pyarrow.float64()))
    place = table.schema.names.index("times")
    pyarrow.parquet.write_table(table.set_column(place, table.schema.field(place), short), file)
    with pytest.raises(DamagedStoreError, match=r"part-.*has 3 frames and 1 times"):
        store.load([clip])


def test_stored_frames_are_shown_by_shape() -> None:
    assert repr(StoredFrames(features_of(1), None, None)) == "StoredFrames((3, 16))"


def test_a_file_that_is_rewritten_meanwhile_is_read_under_its_new_name(tmp_path: Path, store: FeatureStore) -> None:
    append_numbers(str(tmp_path / "features"), [1, 2, 3])
    done: list[Path] = []

    def read(file: Path) -> str:
        """While the first file is read, another one gets a new name."""
        content = pyarrow.parquet.read_table(file)["clip_id"].to_pylist()[0]
        if not done:
            other = sorted(set(store.path.glob("part-*")) - {file})[0]
            other.rename(store.path / "part-0.parquet")
        done.append(file)
        return str(content)

    assert sorted(read_parts(store.path, read)) == ["c1", "c2", "c3"]


def test_files_that_keep_disappearing_are_an_error(tmp_path: Path, store: FeatureStore) -> None:
    append_numbers(str(tmp_path / "features"), [1])

    def read(file: Path) -> None:
        file.rename(file.with_name(f"part-{time.perf_counter_ns()}.parquet"))
        raise FileNotFoundError

    with pytest.raises(DamagedStoreError, match="keep disappearing while they are read; try again"):
        read_parts(store.path, read)


def test_two_processes_append_at_once(tmp_path: Path, store: FeatureStore) -> None:
    context = processes()
    ranges = [range(15), range(100, 115)]
    workers = [context.Process(target=append_numbers, args=(str(store.path.parent), numbers)) for numbers in ranges]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        store.status()  # whatever is there can be read at any moment
        time.sleep(0.05)
    assert [worker.exitcode for worker in workers] == [0, 0]
    expected = {f"key-{number}": number for numbers in ranges for number in numbers}
    assert set(store.status()["clip_key"]) == set(expected)
    table: Any = pd.read_parquet(store.path).set_index("clip_key")
    for key, number in expected.items():
        np.testing.assert_array_equal(np.stack(table.loc[key, "features"]), features_of(number, 40))


def test_killed_writers_leave_whole_files_only(store: FeatureStore) -> None:
    """A real process is killed at random moments; all that it had reported as written is there, and can be read."""
    context = processes()
    moments = random.Random(0)
    reported: set[int] = set()
    for attempt in range(25):
        here, there = context.Pipe(duplex=False)
        writer = context.Process(target=append_for_ever, args=(str(store.path.parent), 1000 * attempt, there))
        writer.start()
        there.close()
        assert here.poll(60)
        time.sleep(moments.uniform(0, 0.04))
        writer.kill()
        writer.join()
        try:
            while True:
                reported.add(here.recv())
        except EOFError:
            pass
        assert set(store.status()["clip_key"]) >= {f"key-{number}" for number in reported}
    table: Any = pd.read_parquet(store.path).set_index("clip_key")
    assert len(reported) >= 25 and table.index.is_unique
    for number in sorted(reported):
        np.testing.assert_array_equal(np.stack(table.loc[f"key-{number}", "features"]), features_of(number, 40))
    assert list(store.path.glob(".part-*.tmp"))  # some were killed in the middle of a file


def spec_with(
    folder: Path,
    *,
    change_weights: bool = False,
    precision: Any = "fp32",
    preprocessing: dict[str, Any] | None = None,
    frames_per_second: float | None = 12.5,
    faces: dict[str, Any] | None = None,
    other_yunet: bool = False,
) -> FeatureSpec:
    """The specification of a real small backbone and a real detector's file."""
    model = fake_clip_model()
    if change_weights:
        with torch.no_grad():
            first = model.visual.conv1.weight.view(-1)[0:1]
            first.copy_(torch.nextafter(first, first + 1))
    prepared = replace(PREPROCESSING, **(preprocessing or {}))
    backbone = Backbone(model, name="fake", preprocessing=prepared, precision=precision)
    yunet = write_fake_yunet(folder / "yunet.onnx")
    if other_yunet:
        yunet.write_bytes(yunet.read_bytes() + b"\0")
    config = FaceConfig(**{"detector": "yunet", "model": str(yunet), **(faces or {})})
    return FeatureSpec.of(backbone, Sampling(frames_per_second), config)


@pytest.mark.parametrize(
    "change",
    [
        {"change_weights": True},
        {"precision": "tf32"},
        {"precision": "bf16"},
        {"preprocessing": {"size": 48}},
        {"preprocessing": {"mean": (0.5, 0.5, 0.51)}},
        {"preprocessing": {"std": (0.25, 0.26, 0.25)}},
        {"preprocessing": {"interpolation": "bicubic"}},
        {"preprocessing": {"crop": "squash"}},
        {"frames_per_second": 25.0},
        {"frames_per_second": None},
        {"faces": {"detector": "none"}},
        {"faces": {"detector": "cascade"}},
        {"faces": {"margin": 0.3}},
        {"faces": {"align": False}},
        {"faces": {"missing": "drop"}},
        {"faces": {"smooth_seconds": 0.2}},
        {"faces": {"detect_pixels": 320}},
        {"faces": {"max_gap_seconds": 1.0}},
        {"faces": {"min_face": 0.2}},
        {"other_yunet": True},
    ],
    ids=str,
)
def test_other_features_are_never_handed_out(tmp_path: Path, change: dict[str, Any]) -> None:
    spec, other_spec = spec_with(tmp_path), spec_with(tmp_path, **change)
    assert spec.fingerprint == spec_with(tmp_path).fingerprint != other_spec.fingerprint
    store, other = FeatureStore(tmp_path / "features", spec), FeatureStore(tmp_path / "features", other_spec)
    clip = clip_at(tmp_path)
    store.append([row(clip, features_of(1))])
    assert other.load([clip]) == {} and other.missing([clip]) == [clip] and other.status().empty
    other.append([row(clip, features_of(2))])
    np.testing.assert_array_equal(store.load([clip])["c1"].features.numpy(), features_of(1))
    np.testing.assert_array_equal(other.load([clip])["c1"].features.numpy(), features_of(2))


def read_with_pandas(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder)


def read_with_arrow(folder: Path) -> pd.DataFrame:
    table: pd.DataFrame = pyarrow.dataset.dataset(folder).to_table().to_pandas()
    return table


@pytest.mark.parametrize("read", [read_with_pandas, read_with_arrow])
def test_the_folder_opens_without_this_package(
    tmp_path: Path, store: FeatureStore, read: Callable[[Path], pd.DataFrame]
) -> None:
    """With all that lies in it: the specification, failures, and what interrupted writes and damage left."""
    store.append([row(clip_at(tmp_path), features_of(1, 4))])
    store.append([row(clip_at(tmp_path, "c2"), None, reason="broken"), numbered_row(3)])
    (store.path / ".part-interrupted.tmp").write_bytes(b"PAR1 and then the power failed")
    (store.path / "_damaged-part-1.parquet").write_bytes(b"PAR1")
    table: Any = read(store.path).set_index("clip_id").loc[["c1", "c2", "c3"]]
    assert table["status"].tolist() == ["ok", "unreadable", "ok"]
    assert table.loc["c2", "features"] is None and table.loc["c2", "reason"] == "broken"
    np.testing.assert_array_equal(np.stack(table.loc["c1", "features"]), features_of(1, 4))
    assert len(store.status()) == 3


def test_columns_have_plain_types(tmp_path: Path, store: FeatureStore) -> None:
    file = written(store.append([row(clip_at(tmp_path), features_of(1))]))
    schema = pyarrow.parquet.read_schema(file)
    assert schema.equals(store.schema)
    assert schema.field("features").type.value_type.list_size == WIDTH


@pytest.mark.parametrize("status", sorted(TRIED_AGAIN))
def test_what_was_no_fault_of_the_clip_is_tried_again(tmp_path: Path, store: FeatureStore, status: str) -> None:
    ill, bad = clip_at(tmp_path, "ill"), clip_at(tmp_path, "bad")
    store.append([row(ill, None, status=status, reason="a node died"), row(bad, None, reason="no video")])
    assert store.missing([ill, bad]) == [ill]
    assert store.status().set_index("clip_id")["reason"].to_dict() == {"ill": "a node died", "bad": "no video"}
    store.append([row(ill, features_of(1))])
    assert store.missing([ill, bad]) == [] and list(store.load([ill, bad])) == ["ill"]


def test_too_little_memory_is_no_damage(tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append([row(clip_at(tmp_path), features_of(1))])

    def no_room(*_: Any, **__: Any) -> Any:
        raise pyarrow.ArrowMemoryError("malloc of size 1 failed")

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", no_room)
    with pytest.raises(MemoryError, match="malloc"):
        store.status()


def test_faces_are_known_without_their_features(tmp_path: Path) -> None:
    """Also from a file of an earlier version, which has no number of other faces."""
    frames = replace(SPEC.frames, faces=FaceConfig("cascade", min_share=0.6))
    store = FeatureStore(tmp_path / "features", replace(SPEC, frames=frames))
    found = {"a": [True, False, True], "b": [True] * 3}
    clips = [clip_at(tmp_path, name) for name in ("a", "b", "failed", "gone")]
    boxes = np.array([[0, 0, side, 0, 1] for side in (90, np.nan, 70)], np.float32)
    seen = {"face_found": found["a"], "other_faces": 2, "boxes": boxes, "turned": [31, 90, np.nan]}
    store.append([row(clips[0], features_of(1), **seen)])
    earlier = written(store.append([row(clips[1], features_of(2), face_found=found["b"])]))
    table = pyarrow.parquet.read_table(earlier).drop_columns(["other_faces", "turned"])
    pyarrow.parquet.write_table(table, earlier, write_page_checksum=True)
    store.append([row(clips[2], None, reason="broken")])
    known = store.facts(clips)
    assert {name: one.face_found.tolist() for name, one in known.items()} == found
    assert {name: one.other_faces for name, one in known.items()} == {"a": 2, "b": 0}
    assert repr(known["a"]) == "ClipFacts(3 frames, 2 other faces)"
    assert known["a"].face_pixels == 80 and known["a"].turned_share == 0.5, "of the two frames with the face"
    assert np.isnan([known["b"].face_pixels, known["b"].turned_share]).all()
    loaded = store.load(clips)
    assert loaded["a"].face_pixels == 80 and loaded["a"].turned_share == 0.5 and loaded["b"].turned is None
    assert {name: (clip.other_faces, clip.min_share) for name, clip in loaded.items()} == {"a": (2, 0.6), "b": (0, 0.6)}
    assert loaded["a"].face_share == pytest.approx(2 / 3)
    assert FeatureStore(tmp_path / "features", SPEC).facts(clips) == {}
    assert known["a"].face_share == pytest.approx(2 / 3) and np.isnan(known["a"].mean_brightness)


def test_two_faces_of_one_video_are_two_rows(tmp_path: Path, store: FeatureStore) -> None:
    left, right = (clip_at(tmp_path, name, file="both", face=name) for name in ("left", "right"))
    plain = clip_at(tmp_path, "plain", file="both")
    assert len({clip_key(clip) for clip in (left, right, plain)}) == 3
    store.append([row(left, features_of(1)), row(right, features_of(2))])
    assert store.present([left, right, plain]) == {"left", "right"}
    np.testing.assert_array_equal(store.load([right])["right"].features.numpy(), features_of(2))
