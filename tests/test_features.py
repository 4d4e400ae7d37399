"""The feature store: exact, appendable, resumable, and readable without this package."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch

from clipautt.clips import Clip
from clipautt.decoding import DecodeError, Sampling
from clipautt.faces import FaceConfig
from clipautt.features import ClipFeatures, FeatureSpec, FeatureStore, clip_key, encode_clip, subject_centre
from clipautt.reader import FrameSpec
from tests.fakes import FEATURE_DIM, numbered_frames, shared_backbone, write_video

SPEC = FrameSpec(shared_backbone().preprocessing)


@pytest.fixture
def spec() -> FeatureSpec:
    return FeatureSpec.of(shared_backbone(), Sampling(12.5))


@pytest.fixture
def store(tmp_path: Path, spec: FeatureSpec) -> FeatureStore:
    return FeatureStore(tmp_path / "features", spec)


def clip_at(folder: Path, clip_id: str = "c1", *, content: str = "video", **fields: Any) -> Clip:
    path = folder / f"{fields.pop('file', clip_id)}.mp4"
    if not path.exists():
        path.write_text(content)
    return Clip(clip_id, "s1", str(path), "target", **fields)


def features_of(seed: int, num_frames: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(num_frames, FEATURE_DIM)).astype(np.float32)
    values[0, 0] = np.float32(1) / 3
    return values


def row(clip: Clip, features: np.ndarray | None, **facts: Any) -> dict[str, Any]:
    times = None if features is None else np.arange(len(features)) / 12.5
    basis = {"clip_key": clip_key(clip), "clip_id": clip.clip_id, "subject_id": clip.subject_id, "source": clip.source}
    status = {"status": "ok" if features is not None else "unreadable", "reason": "", "decoder": "decord"}
    return basis | status | {"times": times, "features": features} | facts


def test_features_that_are_not_finite_are_refused(tmp_path: Path, store: FeatureStore) -> None:
    broken = features_of(1)
    broken[0, 0] = np.nan
    clip = clip_at(tmp_path)
    with pytest.raises(ValueError, match="features of clip 'c1' are not finite"):
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


def test_half_written_file_is_never_read(tmp_path: Path, store: FeatureStore) -> None:
    clips = [clip_at(tmp_path, name) for name in "ab"]
    file = store.append([row(clips[0], features_of(1))])
    assert file is not None
    half = file.read_bytes()[: file.stat().st_size // 2]
    (store.path / "part-interrupted.tmp").write_bytes(half)
    assert list(store.load(clips)) == ["a"] and store.missing(clips) == [clips[1]]
    assert sorted(p.suffix for p in store.path.iterdir()) == [".json", ".parquet", ".tmp"]


def test_interrupted_append_leaves_the_store_as_it_was(
    tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip_at(tmp_path, name) for name in "ab"]
    store.append([row(clips[0], features_of(1))])

    def stop_half_way(table: Any, path: Path) -> None:
        Path(path).write_bytes(b"PAR1 and then the power failed")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("clipautt.features.pq.write_table", stop_half_way)
        store.append([row(clips[1], features_of(2))])
    assert list(store.load(clips)) == ["a"] and store.missing(clips) == [clips[1]]


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


@pytest.mark.parametrize(
    "change",
    [
        {"frames": replace(SPEC, sampling=Sampling(25.0))},
        {"frames": replace(SPEC, faces=FaceConfig("cascade"))},
        {"frames": replace(SPEC, faces=FaceConfig("cascade", margin=0.5))},
        {"frames": replace(SPEC, preprocessing=replace(SPEC.preprocessing, interpolation="bicubic"))},
        {"backbone_fingerprint": "0" * 16},
        {"backbone": "other"},
    ],
)
def test_other_features_live_in_another_folder(
    tmp_path: Path, store: FeatureStore, spec: FeatureSpec, change: dict[str, Any]
) -> None:
    clip = clip_at(tmp_path)
    store.append([row(clip, features_of(1))])
    other = FeatureStore(tmp_path / "features", replace(spec, **change))
    assert other.path != store.path and other.load([clip]) == {} and other.missing([clip]) == [clip]
    other.append([row(clip, features_of(2))])
    assert len(list((tmp_path / "features").iterdir())) == 2
    np.testing.assert_array_equal(store.load([clip])["c1"].features.numpy(), features_of(1))


def test_files_open_without_this_package(tmp_path: Path, store: FeatureStore) -> None:
    clip = clip_at(tmp_path)
    file = store.append([row(clip, features_of(1, 4))])
    assert file is not None
    table = pd.read_parquet(file)
    assert table["clip_id"].tolist() == ["c1"] and table["status"].tolist() == ["ok"]
    np.testing.assert_array_equal(np.stack(table["features"][0]), features_of(1, 4))
    arrow = pyarrow.dataset.dataset(store.path, format="parquet", exclude_invalid_files=True).to_table()
    assert arrow.num_rows == 1 and arrow.schema.equals(store.schema)
    assert pyarrow.parquet.read_schema(file).field("features").type.value_type.list_size == FEATURE_DIM


def test_specification_lies_beside_the_rows(tmp_path: Path, store: FeatureStore, spec: FeatureSpec) -> None:
    store.append([row(clip_at(tmp_path), features_of(1))])
    facts = json.loads((store.path / "_spec.json").read_text())
    assert facts["backbone_fingerprint"] == shared_backbone().fingerprint and facts["feature_dim"] == FEATURE_DIM
    assert facts["frames"]["sampling"] == {"frames_per_second": 12.5} and store.path.name == spec.fingerprint


def test_features_of_another_width_are_refused(tmp_path: Path, store: FeatureStore) -> None:
    with pytest.raises(ValueError, match=str(FEATURE_DIM)):
        store.append([row(clip_at(tmp_path), np.zeros((2, FEATURE_DIM + 1), np.float32))])
    assert not list(store.path.glob("part-*"))


def test_encode_clip_is_decoding_and_the_image_tower(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", numbered_frames(26))
    features = encode_clip(Clip("c1", "s1", str(path), "target", end_seconds=1.0), shared_backbone(), SPEC)
    assert (features.clip_id, features.subject_id) == ("c1", "s1")
    assert features.features.shape == (13, FEATURE_DIM) and features.times.shape == (13,)
    assert features.face_found is not None and features.face_found.tolist() == [True] * 13
    assert not features.features.requires_grad and (features.features - features.features[0]).abs().max() > 0.01
    assert features.features.is_inference() is False
    with pytest.raises(DecodeError, match="clip 'c1'"):
        broken = tmp_path / "broken.mp4"
        broken.write_text("x")
        encode_clip(Clip("c1", "s1", str(broken), "target"), shared_backbone(), SPEC)


def test_clip_features_have_no_label() -> None:
    assert set(ClipFeatures.__dataclass_fields__) == {"clip_id", "subject_id", "features", "times", "face_found"}


def test_subject_centres_literal() -> None:
    frames = torch.tensor([[0.0, 1.0], [1.0, 1.0], [8.0, 4.0]])
    assert subject_centre(frames, "none").tolist() == [0, 0]
    assert subject_centre(frames, "mean").tolist() == [3, 2]
    assert subject_centre(frames, "median").tolist() == [1, 1]
    with pytest.raises(ValueError, match="subject_baseline='mode'; allowed are none, mean, median"):
        subject_centre(frames, "mode")  # type: ignore[arg-type]


def test_median_stays_at_the_resting_face_where_the_mean_moves_away() -> None:
    rest = torch.randn(80, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    frames = torch.cat([rest, rest[:30] + 10])
    assert subject_centre(frames, "median").abs().max() < 0.15
    assert subject_centre(frames, "mean").abs().min() > 2
