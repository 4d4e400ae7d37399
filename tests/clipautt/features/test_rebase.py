"""Data that was moved, copied or touched: recognized by content, taken over whole, and never by name alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipautt.clips import Clip
from clipautt.features import rebase as module
from clipautt.features.clip_features import clip_key
from clipautt.features.contents import content_of
from clipautt.features.rebase import Rebase, known_elsewhere, rebase
from clipautt.features.store import FeatureStore
from clipautt.video.augmentation import Augmentation
from tests.support.stored import SPEC, clip_at, features_of, row

OTHER = replace(SPEC, backbone="other", backbone_fingerprint="1" * 16)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features", SPEC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def recorded(clip: Clip, seed: int) -> dict[str, object]:
    """A row as extraction writes it now."""
    return row(clip, features_of(seed), content=content_of(clip.source))


def at(clip: Clip, folder: Path) -> Clip:
    return replace(clip, source=str(folder / Path(clip.source).name))


def run(store: FeatureStore, clips: list[Clip], *, apply: bool = True) -> Rebase:
    (result,) = rebase(store.path.parent, clips, apply=apply)
    return result


def test_a_moved_data_set_is_taken_over_by_content(store: FeatureStore, data: Path, tmp_path: Path) -> None:
    clips = [clip_at(data, name, content=f"video {name}") for name in "abc"]
    spans = [replace(clips[0], clip_id=f"a{n}", start_frame=n, end_frame=n + 5) for n in (0, 5)]
    store.append([recorded(clip, seed) for seed, clip in enumerate([*clips, *spans])])
    data.rename(tmp_path / "moved")
    moved = [at(clip, tmp_path / "moved") for clip in (*clips, *spans)]
    for clip in moved:
        os.utime(clip.source)  # as a copy without times
    assert known_elsewhere(store.path, store.missing(moved)) == 5 and store.load(moved) == {}
    assert run(store, moved, apply=False).by_content == ["a", "b", "c", "a0", "a5"] and store.load(moved) == {}
    assert run(store, moved).by_content == ["a", "b", "c", "a0", "a5"]
    loaded = store.load(moved)
    for seed, clip in enumerate(moved):
        np.testing.assert_array_equal(loaded[clip.clip_id].features, features_of(seed))
    assert store.missing(moved) == [] and known_elsewhere(store.path, store.missing(moved)) == 0
    again = run(store, moved)
    assert (again.present, again.by_content) == (5, []) and len(store.status()) == 10


def test_a_touched_file_is_taken_over_and_an_edited_one_is_not(store: FeatureStore, data: Path) -> None:
    touched, edited = clip_at(data, "touched", content="same"), clip_at(data, "edited", content="before")
    store.append([recorded(touched, 1), recorded(edited, 2)])
    stat = os.stat(edited.source)
    Path(edited.source).write_text("behind"[:6])  # of the same size
    for clip in (touched, edited):
        os.utime(clip.source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    result = run(store, [touched, edited])
    assert (result.by_content, result.changed) == (["touched"], ["edited"])
    assert set(store.load([touched, edited])) == {"touched"}


def test_another_span_or_another_persons_clip_of_the_same_name_is_not_taken(store: FeatureStore, data: Path) -> None:
    clip = clip_at(data, "c", content="mine", start_frame=0, end_frame=5)
    store.append([recorded(clip, 1)])
    (data / "other").mkdir()
    theirs = clip_at(data / "other", "c", content="not mine", start_frame=0, end_frame=5)
    longer = replace(clip, clip_id="longer", end_frame=6)
    result = run(store, [theirs, longer])
    assert (result.by_content, result.by_time, result.changed) == ([], [], ["c"]) and store.load([theirs, longer]) == {}


def test_a_renamed_clip_is_found_by_content_alone(store: FeatureStore, data: Path) -> None:
    clip = clip_at(data, "old", content="the same")
    store.append([recorded(clip, 3)])
    new = replace(clip_at(data, "new", content="the same"), subject_id="another id")
    assert known_elsewhere(store.path, [new]) == 0
    assert run(store, [new]).by_content == ["new"]
    assert store.load([new])["new"].subject_id == "another id"
    (stored,) = store.status().query("clip_id == 'new'")["clip_key"]
    assert stored == clip_key(new)


def test_rows_of_earlier_versions_are_compared_with_the_old_file_or_recognized_by_its_time(
    store: FeatureStore, data: Path, tmp_path: Path
) -> None:
    """Content was not recorded then."""
    names = ("copied", "moved", "gone", "edited")
    clips = {name: clip_at(data, name, content=f"video {name}") for name in names}
    store.append([row(clip, features_of(n)) for n, clip in enumerate(clips.values())])
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(clips["copied"].source, new)  # another time, the old one stays
    os.utime(new / "copied.mp4", (1, 1))
    shutil.move(clips["moved"].source, new)  # the same time
    shutil.move(clips["gone"].source, new)
    os.utime(new / "gone.mp4", (1, 1))
    (new / "edited.mp4").write_text("something else")
    result = run(store, [at(clip, new) for clip in clips.values()])
    assert (result.by_content, result.by_time, result.unknown) == (["copied"], ["moved"], ["gone"])
    assert result.changed == ["edited"]
    loaded = store.load([at(clip, new) for clip in clips.values()])
    assert set(loaded) == {"copied", "moved"}
    np.testing.assert_array_equal(loaded["moved"].features, features_of(1))


def test_final_failures_are_taken_over_and_lost_clips_are_not(store: FeatureStore, data: Path, tmp_path: Path) -> None:
    clips = [clip_at(data, name, content=name) for name in ("dark", "lost")]
    status = {"dark": "no_face", "lost": "lost"}
    store.append([row(c, None, status=status[c.clip_id], reason="why", content=content_of(c.source)) for c in clips])
    data.rename(tmp_path / "moved")
    moved = [at(clip, tmp_path / "moved") for clip in clips]
    assert run(store, moved).by_content == ["dark"]
    assert [clip.clip_id for clip in store.missing(moved)] == ["lost"]


def test_a_folder_of_frames_is_its_pictures_and_their_names(tmp_path: Path, store: FeatureStore) -> None:
    for name in ("a", "renamed", "more"):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            (tmp_path / name / f"{number}.jpg").write_text(f"picture {number}")
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "renamed" / "2.jpg").rename(tmp_path / "renamed" / "3.jpg")  # another moment
    clip = Clip("c", "s1", str(tmp_path / "a"), "target")
    store.append([recorded(clip, 1)])
    same, other = replace(clip, source=str(tmp_path / "more")), replace(clip, source=str(tmp_path / "renamed"))
    assert content_of(same.source) == content_of(clip.source) != content_of(other.source)
    assert run(store, [other]).changed == ["c"] and run(store, [same]).by_content == ["c"]


def test_an_interruption_loses_nothing_and_the_next_call_goes_on(
    store: FeatureStore, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [clip_at(data, name, content=name) for name in "abcd"]
    for number, clip in enumerate(clips):
        store.append([recorded(clip, number)])  # a file each
    data.rename(tmp_path / "moved")
    moved = [at(clip, tmp_path / "moved") for clip in clips]
    write, written = module.write_part, []

    def killed(folder: Path, table: object) -> Path:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(folder, table))
        return written[-1]

    monkeypatch.setattr(module, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        run(store, moved)
    assert len(store.load(moved)) == 2 and len(store.status()) == 6
    monkeypatch.undo()
    result = run(store, moved)
    assert (result.present, len(result.by_content)) == (2, 2)
    loaded = store.load(moved)
    for number, clip in enumerate(moved):
        np.testing.assert_array_equal(loaded[clip.clip_id].features, features_of(number))


def test_every_fingerprint_is_taken_over_and_folders_that_are_none_are_left_alone(
    store: FeatureStore, data: Path, tmp_path: Path
) -> None:
    clip, other = clip_at(data, "a"), FeatureStore(store.path.parent, OTHER)
    store.append([recorded(clip, 1)])
    other.append([recorded(clip, 2)])
    (store.path.parent / "notes").mkdir()
    data.rename(tmp_path / "moved")
    moved = at(clip, tmp_path / "moved")
    results = {result.folder.name: result for result in rebase(store.path.parent, [moved], apply=True)}
    assert results["notes"].trouble.startswith("it has no _spec.json")
    np.testing.assert_array_equal(store.load([moved])["a"].features, features_of(1))
    np.testing.assert_array_equal(other.load([moved])["a"].features, features_of(2))


def test_a_file_that_is_not_there_now_is_named(store: FeatureStore, data: Path, tmp_path: Path) -> None:
    clip = clip_at(data, "a")
    store.append([recorded(clip, 1)])
    assert run(store, [at(clip, tmp_path / "nowhere")]).unreadable == ["a"]


def test_augmented_features_are_taken_over_by_the_clip_of_the_same_id_only(data: Path, tmp_path: Path) -> None:
    """The id decides how the frames were changed; two clips of one file have different features."""
    (spec,) = SPEC.passes(Augmentation(flip=0.5), passes=1, seed=0)
    store = FeatureStore(tmp_path / "features", spec)
    clips = [clip_at(data, name, content="the same", file="video") for name in "ab"]
    store.append([recorded(clip, n) | {"clip_key": spec.key(clip)} for n, clip in enumerate(clips)])
    failed = clip_at(data, "broken")
    store.append([row(failed, None, clip_key=spec.key(failed))])
    data.rename(tmp_path / "moved")
    moved = [at(clip, tmp_path / "moved") for clip in (*clips, failed)]
    renamed = [replace(clip, clip_id=f"other {clip.clip_id}") for clip in moved]
    assert run(store, renamed).by_content == [] and len(store.missing(renamed)) == 3
    result = run(store, moved)
    assert (result.by_content, result.by_time) == (["a", "b"], ["broken"]) and store.missing(moved) == []
    for number, clip in enumerate(moved[:2]):
        np.testing.assert_array_equal(store.load(moved)[clip.clip_id].features, features_of(number))
