"""How rows of frames become clips, in whatever order they arrive, and what is tried again; no Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipautt.clips import Clip
from clipautt.video.faces import FaceConfig
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import ReadLimits
from ray_jobs.platform.cluster import Node
from ray_jobs.platform.extraction.decode_stage import Batch, DecodeStage
from ray_jobs.platform.extraction.pipeline import BackboneError, EncodedClip, Pipeline, PipelineConfig

CLIPS = [Clip(f"c{i}", "s", f"{i}.mp4", "target") for i in range(4)]


def rows(
    index: int,
    numbers: Iterable[int],
    *,
    total: int = -1,
    attempt: int = 0,
    status: str = "ok",
    reason: str = "",
    value: float | None = None,
    node: str = "",
) -> Batch:
    """Rows as encoders give them; the feature of frame n of clip i is [i, n]; the last row knows the content."""
    number = np.array(list(numbers))
    totals = np.full(len(number), -1)
    totals[-1] = total
    feature = np.stack([np.full(len(number), index if value is None else value), number], 1).astype(np.float32)
    constant = {"index": index, "attempt": attempt, "status": status, "reason": reason, "decoder": f"d{attempt}"}
    constant |= {"node": node, "content": "", "face_sides": "", "other_faces": 2, "brightness": 0.5, "turned": 9.0}
    facts = {name: np.full(len(number), what) for name, what in constant.items()}
    if total > 0:
        facts["content"] = np.full(len(number), f"content {index}")
        facts["face_sides"] = np.full(len(number), "[0.5]")
    facts["box"] = np.full((len(number), 5), 7.0, np.float32)
    return facts | {"number": number, "total": totals, "time": number / 25, "found": number >= 0, "feature": feature}


def joined(*parts: Batch) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Scripted(Pipeline):
    """A pipeline whose encoders give what they are told, pass by pass."""

    def __init__(self, *passes: list[Batch]) -> None:
        self.config = PipelineConfig()
        self.avoid = frozenset()
        self.passes = list(passes)
        self.asked: list[list[str]] = []

    def _batches(self, clips: dict[int, Clip], clips_per_task: int, in_order: bool) -> Iterator[Batch]:
        self.asked.append([f"{clip.clip_id} ×{clips_per_task}" for clip in clips.values()])
        yield from self.passes.pop(0) if self.passes else []


def results(pipeline: Pipeline, clips: list[Clip]) -> dict[str, Any]:
    found: list[EncodedClip] = list(pipeline.run(clips))
    assert len(found) == len(clips) == len({encoded.clip.clip_id for encoded in found})
    return {encoded.clip.clip_id: encoded for encoded in found}


def test_frames_may_arrive_in_any_order_and_mixed() -> None:
    pipeline = Scripted(
        [
            rows(0, [4, 5], total=6),
            joined(rows(1, [0], total=1), rows(0, [0, 1]), rows(2, [2, 3])),
            rows(2, [0, 1]),
            rows(0, [2, 3]),
            rows(2, [4], total=5),
        ]
    )
    found = results(pipeline, CLIPS[:3])
    for index, length in enumerate((6, 1, 5)):
        encoded = found[f"c{index}"]
        assert encoded.status == "ok" and encoded.num_frames == length
        np.testing.assert_array_equal(encoded.features, [[index, n] for n in range(length)])
        np.testing.assert_array_equal(encoded.times, np.arange(length) / 25)
        assert encoded.content == f"content {index}"
    assert pipeline.asked == [["c0 ×4", "c1 ×4", "c2 ×4"]]


def test_frames_of_a_decoder_that_failed_midway_are_left_out() -> None:
    """Some come before the second decoder's, some behind its last one."""
    late = rows(0, [0, 1], attempt=0, value=99)
    first = rows(0, [2, 3], attempt=0, value=99)
    found = results(Scripted([first, rows(0, [0, 1, 2], attempt=1, total=3), late]), CLIPS[:1])
    assert found["c0"].decoder == "d1"
    np.testing.assert_array_equal(found["c0"].features, [[0, 0], [0, 1], [0, 2]])


def test_a_failure_behind_some_frames_is_a_failure() -> None:
    failure = rows(0, [0], total=0, status="unreadable", reason="damaged at frame 70")
    found = results(Scripted([rows(0, range(64)), failure]), CLIPS[:1])["c0"]
    assert (found.status, found.reason, found.features) == ("unreadable", "damaged at frame 70", None)


def test_features_that_are_not_finite_are_no_features() -> None:
    found = results(Scripted([rows(0, [0, 1], total=2, value=np.inf)]), CLIPS[:1])["c0"]
    assert (found.status, found.features) == ("not_finite", None) and "not finite" in found.reason


def test_clips_that_did_not_come_back_are_tried_once_more_and_alone() -> None:
    pipeline = Scripted([rows(1, [0], total=1), rows(2, [0])], [rows(2, [0, 1], total=2), rows(3, [0], total=1)])
    found = results(pipeline, CLIPS)
    assert pipeline.asked == [["c0 ×4", "c1 ×4", "c2 ×4", "c3 ×4"], ["c0 ×1", "c2 ×1", "c3 ×1"]]
    assert {name: encoded.status for name, encoded in found.items()} == {
        "c0": "lost",
        "c1": "ok",
        "c2": "ok",
        "c3": "ok",
    }
    assert found["c2"].num_frames == 2 and "died 6 times: 3 with other clips, 3 with it alone" in found["c0"].reason


def test_what_the_backbone_fails_on_is_tried_again_before_it_is_blamed() -> None:
    ill = rows(0, [0], total=1, status="not_encoded", reason="RuntimeError: ill")
    found = results(Scripted([ill, rows(1, [0], total=1)], [rows(0, [0], total=1)]), CLIPS[:2])
    assert [encoded.status for encoded in found.values()] == ["ok", "ok"]
    found = results(Scripted([ill, rows(1, [0], total=1)], [ill]), CLIPS[:2])
    assert (found["c0"].status, found["c0"].reason) == ("not_encoded", "RuntimeError: ill")


def test_frames_that_are_missing_are_waited_for_and_repeated_ones_count_once() -> None:
    """A task that was done again gave some frames twice and left others out: the count alone would be right."""
    twice = [rows(0, [0, 1]), rows(0, [0, 1]), rows(0, [3], total=4)]
    pipeline = Scripted([*twice, rows(1, [0], total=1)], [rows(0, [0, 1, 2, 3], total=4)])
    np.testing.assert_array_equal(results(pipeline, CLIPS[:2])["c0"].features, [[0, n] for n in range(4)])
    whole = results(Scripted([*twice, rows(0, [2])]), CLIPS[:1])["c0"]
    np.testing.assert_array_equal(whole.features, [[0, n] for n in range(4)])


def test_a_worker_that_cannot_read_blames_no_clip() -> None:
    trouble = rows(0, [0], total=0, status="lost", reason="RuntimeError: the decoding process did not start")
    found = results(Scripted([trouble, rows(1, [0], total=1)], [rows(0, [0], total=1)]), CLIPS[:2])
    assert [encoded.status for encoded in found.values()] == ["ok", "ok"]
    found = results(Scripted([trouble], [trouble]), CLIPS[:1])
    assert (found["c0"].status, found["c0"].reason) == ("lost", trouble["reason"][0])


def test_a_backbone_that_fails_from_the_beginning_is_not_tried_on_everything() -> None:
    clips = [Clip(f"c{i}", "s", f"{i}.mp4", "target") for i in range(100)]
    asked = []

    def failing() -> Iterator[Batch]:
        for index in range(100):
            asked.append(index)
            yield rows(index, [0], total=1, status="not_encoded", reason="RuntimeError: ill")

    with pytest.raises(BackboneError, match="the backbone encoded nothing: RuntimeError: ill"):
        list(Scripted(failing()).run(clips))  # type: ignore[arg-type]
    assert len(asked) == 8


def test_a_backbone_that_encodes_nothing_is_one_error() -> None:
    ill = rows(0, [0], total=1, status="not_encoded", reason="RuntimeError: ill")
    unreadable = rows(1, [0], total=0, status="unreadable", reason="text")
    pipeline = Scripted([ill, unreadable], [ill])
    with pytest.raises(BackboneError, match="the backbone encoded nothing: RuntimeError: ill"):
        list(pipeline.run(CLIPS[:2]))


def test_a_clip_that_is_missing_on_a_worker_and_here_is_not_is_tried_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node that failed is left for another one; when none is left, the clip is lost, not missing."""
    (tmp_path / "0.mp4").touch()
    clips = [replace(CLIPS[0], source=str(tmp_path / "0.mp4")), replace(CLIPS[1], source=str(tmp_path / "gone.mp4"))]
    nodes = ["a", "b", "c"]
    monkeypatch.setattr(
        "ray_jobs.platform.extraction.pipeline.usable_nodes",
        lambda avoid=(): [Node(name, name, 1, 0) for name in nodes if name not in avoid],
    )

    def failing(node: str) -> list[Batch]:
        return [rows(i, [0], total=0, status="missing", reason="no file", node=node) for i in (0, 1)]

    pipeline = Scripted(failing("a"), failing("b")[:1], [rows(0, [0], total=1)])
    found = results(pipeline, clips)
    assert (found["c0"].status, found["c1"].status) == ("ok", "missing") and pipeline.avoid == {"a", "b"}
    assert pipeline.asked == [["c0 ×4", "c1 ×4"], ["c0 ×1"], ["c0 ×1"]]
    pipeline = Scripted(*(failing(node)[:1] for node in nodes))
    found = results(pipeline, clips[:1])
    assert (found["c0"].status, found["c0"].reason) == (
        "lost",
        "no file on a worker, but it is here: is the storage shared?",
    )
    assert pipeline.avoid == {"a", "b"} and len(pipeline.asked) == 3


def test_trouble_of_a_worker_is_told_apart_from_that_of_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    frames = FrameSpec(Preprocessing(32, (0.5,) * 3, (0.25,) * 3, "area"))
    asked = {"index": np.arange(2), "clip": np.array([json.dumps(asdict(Clip(n, "s", f"{tmp_path}/{n}.mp4", "target")))
                                                       for n in ("text", "gone")])}  # fmt: skip

    def statuses(stage: DecodeStage) -> list[tuple[str, str]]:
        return [(str(rows["status"][-1]), str(rows["reason"][-1])) for rows in stage(asked)]

    stage = DecodeStage(frames, ReadLimits())
    assert [status for status, _ in statuses(stage)] == ["unreadable", "missing"]
    no_detector = replace(frames, faces=FaceConfig("cascade"))
    object.__setattr__(no_detector.faces, "detector", "yunet")  # its file is there where the job was started
    found = statuses(DecodeStage(no_detector, ReadLimits()))
    assert [status for status, _ in found] == ["lost", "lost"] and "faces.model" in found[0][1]

    def no_handles(*_: object) -> Iterator[None]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("ray_jobs.platform.extraction.decode_stage.read_clip", no_handles)
    assert statuses(stage)[0] == ("lost", "OSError: [Errno 24] Too many open files")
