"""Extraction on a real local Ray: batches across clips, poison, kills, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.evaluation.reports.extraction import Failure
from clipautt.features.clip_features import encode_clip
from clipautt.features.store import FeatureStore
from clipautt.manifest import write_manifest
from clipautt.settings import one_line
from clipautt.video.decoding import Sampling
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import ReadLimits
from ray_jobs import cli
from ray_jobs.platform.cluster import ClusterConfig
from ray_jobs.platform.extraction.decode_stage import Batch, DecodeStage
from ray_jobs.platform.extraction.extract import (
    ExtractionConfig,
    ExtractSummary,
    LostClipsError,
    extract,
    refuse_lost,
)
from ray_jobs.platform.extraction.pipeline import BackboneError, EncodeStage, Pipeline, PipelineConfig
from tests.support.corpus import write_corpus, write_pipe
from tests.support.fakes import numbered_frames, write_video

EVERY = Sampling(None)
CRASH = """
import os, signal, sys
def crash(event, arguments):
    if event == "open" and "/crashes/" in str(arguments[0]) and "reader_process" in " ".join(sys.orig_argv):
        os.kill(os.getpid(), signal.SIGSEGV)
    if event == "open" and "/hidden/" in str(arguments[0]) and "default_worker" in " ".join(sys.orig_argv):
        raise PermissionError(13, "Permission denied", str(arguments[0]))
sys.addaudithook(crash)
"""
"""For a `sitecustomize.py`: the decoding process dies of SIGSEGV when it opens a picture in a folder `crashes`; Ray's
workers may not open anything in a folder `hidden`."""


@pytest.fixture(scope="module", autouse=True)
def gpu_ray(no_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for the tests of this file. It believes in a GPU; there is none, so encoders work on the CPU."""
    import ray

    path = tmp_path_factory.mktemp("site")
    (path / "sitecustomize.py").write_text(CRASH)
    root = str(Path(__file__).parents[3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(path), root, os.environ.get("PYTHONPATH", "")]))
        ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "numbered.mp4", numbered_frames(800))


def spans(video: Path, lengths: Sequence[int]) -> list[Clip]:
    """Clips of these many frames, `c0`, `c1`, …, each from another frame on."""
    return [
        Clip(f"c{i}", f"s{i % 5}", str(video), "target", start_frame=i, end_frame=i + length)
        for i, length in enumerate(lengths)
    ]


def on_cpus(clips: Sequence[Clip], root: Path, **options: Any) -> tuple[FeatureStore, ExtractSummary]:
    cluster = ClusterConfig(num_gpus_per_actor=0)
    return extract(clips, ExtractionConfig(BackboneConfig(), str(root), EVERY, cluster=cluster, **options))


def part_rows(store: FeatureStore) -> Counter[str]:
    """How many rows there are of each clip, in all files."""
    return Counter(
        clip_id
        for file in store.path.glob("part-*.parquet")
        for clip_id in pd.read_parquet(file, columns=["clip_id"])["clip_id"]
    )


@pytest.mark.slow
def test_weights_that_are_others_on_a_worker_are_refused(video: Path) -> None:
    stream = pipeline_of(PipelineConfig(encoders=1), 0)
    stream.fingerprint = "another"
    with pytest.raises(
        BackboneError, match=r"backbone embedded has fingerprint \w{16} on .*, and another where the job"
    ):
        list(stream.run(spans(video, [3] * 2)))


@pytest.mark.slow
def test_batches_fill_across_clips_change_no_feature_and_are_counted(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of 1 to 150 frames, in batches of 40: each has the features that it has alone. Ray's metrics agree."""
    clips = spans(video, [1, 150, 3, 64, 65, 7, 128, 20])
    noted = tmp_path / "batches.txt"

    class Noting(EncodeStage):
        def __call__(self, batch: Batch) -> Batch:
            with noted.open("a") as file:
                file.write(f"{len(batch['index'])} {len(set(batch['index']))}\n")
            return super().__call__(batch)

    monkeypatch.setattr("ray_jobs.platform.extraction.pipeline.EncodeStage", Noting)
    store, summary = on_cpus(clips, tmp_path / "store", pipeline=PipelineConfig(batch_frames=40, clips_per_task=3))
    assert summary.extracted == 8 and not summary.failures
    batches = [tuple(map(int, line.split())) for line in noted.read_text().splitlines()]
    assert sum(frames for frames, _ in batches) == sum(clip.end_frame - clip.start_frame for clip in clips)
    assert sum(frames == 40 for frames, _ in batches) >= 8 and max(clips for _, clips in batches) >= 2
    backbone, loaded = load_backbone(BackboneConfig()), store.load(clips)
    for clip in clips:
        alone = encode_clip(clip, backbone, store.spec.frames)
        np.testing.assert_allclose(loaded[clip.clip_id].features, alone.features, atol=2e-5)
        np.testing.assert_array_equal(loaded[clip.clip_id].times, alone.times)
    assert part_rows(store) == Counter({clip.clip_id: 1 for clip in clips})
    figures = eventually(metrics_of_ray, lambda figures: figures.get("clips_left") == 0)
    assert figures["clips_done"] == 8 and figures["clips_failed"] == 0 and figures["seconds_left"] == 0
    assert figures["clips_per_second"] > 0 and figures["frames_per_second"] > 0
    assert 0 < figures["encoders_busy_share"] <= 1


@pytest.mark.slow
def test_a_pool_of_quarters_of_a_gpu_grows_while_frames_wait(video: Path, tmp_path: Path) -> None:
    """Four actors fit on the GPU."""
    cluster, clips = ClusterConfig(num_gpus_per_actor=0.25), spans(video, [200] * 100)
    pipeline = PipelineConfig(min_encoders=1, clips_per_task=1, batch_frames=4)
    config = ExtractionConfig(BackboneConfig(), str(tmp_path), EVERY, cluster=cluster, pipeline=pipeline)
    _, summary = extract(clips, config)
    assert summary.extracted == 100 and summary.usage is not None and 2 <= len(summary.usage.encoders) <= 4


@pytest.mark.parametrize(("share", "asked", "encoders"), [(0.25, None, 4), (None, None, 1), (0, None, 2), (0, 5, 3)])
def test_as_many_encoders_as_fit(share: float | None, asked: int | None, encoders: int) -> None:
    """On one GPU and two cores; a decoder always finds a place."""
    assert pipeline_of(PipelineConfig(encoders=asked), share).num_encoders == encoders
    with pytest.raises(ValueError, match=r"pipeline\.decoder_cpus=2: with an encoder, this exceeds the 2 cores"):
        _ = pipeline_of(PipelineConfig(decoder_cpus=2), 0).num_encoders


def pipeline_of(config: PipelineConfig, share: float | None) -> Pipeline:
    backbone = load_backbone(BackboneConfig())
    frames, cluster = FrameSpec(backbone.preprocessing), ClusterConfig(num_gpus_per_actor=share)
    return Pipeline(BackboneConfig(), backbone.fingerprint, frames, config=config, cluster=cluster, limits=ReadLimits())


TILTED = (56756, 32768, 0, -32768, 56756, 0, 0, 0, 1 << 30)
"""The display matrix of a turn by 30 degrees."""


def test_poison_costs_itself(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clip in five is broken in some way of the corpus, hangs, or crashes its decoder: all others are there."""
    whole = FrameSpec(load_backbone(BackboneConfig()).preprocessing, EVERY)
    files = {name: path for name, path in write_corpus(tmp_path).items() if not is_readable(path, whole)}
    files["hangs"] = write_pipe(tmp_path / "hangs.mp4")
    files["crashes"] = write_pictures(tmp_path / "crashes")
    bad = [Clip(f"bad {name}", "s0", str(path), "target") for name, path in files.items()]
    good = spans(video, [5] * 4 * len(bad))
    clips = [clip for i, one in enumerate(bad) for clip in (one, *good[4 * i : 4 * (i + 1)])]
    tilted = write_video(tmp_path / "tilted.mp4", numbered_frames(5), matrix=TILTED)
    good.append(Clip("tilted", "s0", str(tilted), "target"))
    clips.append(good[-1])
    write_manifest(clips, tmp_path / "manifest.parquet")
    words = [f"manifest={tmp_path}/manifest.parquet", f"store={tmp_path}/store", f"runs={tmp_path}/runs"]
    words += [
        "limits.stall_seconds=2",
        "sampling.frames_per_second=null",
        "cluster.num_gpus_per_actor=0",
        "name=poison",
    ]
    assert cli.main(["extract", *words]) == 0
    said = capsys.readouterr().out
    assert f"{len(good)} clips encoded, 0 already in the store, {len(bad)} without features" in said
    noted = "the file says to turn its pictures by 30 degrees; the corners are black"
    assert f"1 clip with features all the same: {noted}\n" in said
    (folder,) = (tmp_path / "store").iterdir()
    rows = pd.read_parquet(folder).set_index("clip_id")
    assert rows.loc["tilted", "reason"] == noted
    assert len(rows) == len(clips) and set(rows[rows["status"] == "ok"].index) == {clip.clip_id for clip in good}
    reasons = rows.loc[[clip.clip_id for clip in bad], "reason"]
    assert len(bad) >= 15 and reasons.str.len().min() > 20
    assert "crashed (SIGSEGV)" in reasons["bad crashes"] and "gave no frame for 2 s" in reasons["bad hangs"]
    page = (tmp_path / "runs" / "extract" / "poison" / "report.html").read_text()
    listed = pd.read_csv(tmp_path / "runs" / "extract" / "poison" / "failures.csv").set_index("clip_id")
    assert set(listed.index) == {clip.clip_id for clip in bad} and listed["reason"].to_dict() == reasons.to_dict()
    assert all(clip.clip_id in page for clip in bad) and f"{len(good)} of {len(clips)} clips have features" in page


def test_what_only_the_workers_cannot_read_is_lost_and_not_a_success(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code says so, the clip counts as missing the next time, and jobs that need all clips stop."""
    (tmp_path / "hidden").mkdir()
    hidden = shutil.copy(video, tmp_path / "hidden" / "a.mp4")
    lost = Clip("lost", "s", str(hidden), "target", start_frame=0, end_frame=5)
    write_manifest([*spans(video, [5] * 3), lost], tmp_path / "m.parquet")
    words = [f"manifest={tmp_path}/m.parquet", f"store={tmp_path}/store", f"runs={tmp_path}/runs"]
    words += ["sampling.frames_per_second=null", "cluster.num_gpus_per_actor=0"]
    assert cli.main(["extract", *words]) == 1
    said = capsys.readouterr().out
    assert "3 clips encoded, 0 already in the store, 1 without features" in said
    assert "Permission denied" in said and "a.mp4' on a worker, but it is here: is the storage shared?" in said
    assert "1 clips failed because of their workers, not because of the clips: run the same command to" in said
    (folder,) = (tmp_path / "store").iterdir()
    assert pd.read_parquet(folder).set_index("clip_id")["status"].to_dict() == {
        **{f"c{i}": "ok" for i in range(3)},
        "lost": "lost",
    }
    failures = (Failure("lost", "s", "a.mp4", "lost", "why"), Failure("dark", "s", "b.mp4", "no_face", "why"))
    with pytest.raises(LostClipsError, match=r"^1 clips failed because of their workers"):
        refuse_lost(ExtractSummary(0, 0, failures, None))
    refuse_lost(ExtractSummary(0, 0, failures[1:], None))


def is_readable(path: Path, frames: FrameSpec) -> bool:
    from clipautt.video.reader_process import read_clip

    try:
        return bool(list(read_clip(Clip("c", "s", str(path), "target"), frames)))
    except ValueError:
        return False


def write_pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    for number, frame in enumerate(numbered_frames(3)):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


class DeadlyStage(DecodeStage):
    """Kills its worker at a clip called `deadly`."""

    def _blocks(self, index: int, clip: Clip) -> Iterator[Batch]:
        if clip.clip_id == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super()._blocks(index, clip)


@pytest.mark.slow
def test_a_clip_that_kills_its_worker_costs_itself(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clips that were read in the same task come again, alone; the deadly one ends with a reason."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("ray_jobs.platform.extraction.pipeline.DecodeStage", DeadlyStage)
    clips = spans(video, [30] * 7)
    clips.insert(2, Clip("deadly", "s", str(video), "target"))
    try:
        store, summary = on_cpus(clips, tmp_path, pipeline=PipelineConfig(encoders=1, clips_per_task=4))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert summary.extracted == 7
    (failure,) = summary.failures
    assert (failure.clip_id, failure.status) == ("deadly", "lost") and "died 6 times" in failure.reason
    assert part_rows(store) == Counter({clip.clip_id: 1 for clip in clips})


@pytest.mark.slow
def test_a_backbone_that_fails_on_everything_is_one_error(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written: the clips are not to blame."""

    class Broken(EncodeStage):
        def _encode(self, frames: Any) -> Any:
            raise RuntimeError("the device is ill")

    monkeypatch.setattr("ray_jobs.platform.extraction.pipeline.EncodeStage", Broken)
    with pytest.raises(BackboneError, match="the backbone encoded nothing: RuntimeError: the device is ill"):
        on_cpus(spans(video, [3] * 4), tmp_path, pipeline=PipelineConfig(encoders=1))
    assert not list(tmp_path.rglob("part-*"))


@pytest.mark.slow
def test_killed_workers_lose_nothing(video: Path, tmp_path: Path) -> None:
    """An encoder and a decoding worker are killed in the middle: every clip is there, each once, and right."""
    clips = spans(video, [150] * 40)
    killed: dict[str, int] = {}
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.02):
            for stage in {"EncodeStage", "DecodeStage"} - killed.keys():
                begun = stage == "DecodeStage" or any(tmp_path.rglob("part-*.parquet"))
                if begun and (found := workers(stage)):
                    os.kill(found[0], signal.SIGKILL)
                    killed[stage] = found[0]

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        store, summary = on_cpus(clips, tmp_path, pipeline=PipelineConfig(batch_frames=8, clips_per_task=2))
    finally:
        done.set()
        killer.join()
    assert killed.keys() == {"EncodeStage", "DecodeStage"}
    assert summary.extracted == 40 and not summary.failures
    assert part_rows(store) == Counter({clip.clip_id: 1 for clip in clips})
    backbone, loaded = load_backbone(BackboneConfig()), store.load(clips)
    for clip in clips[::20]:
        alone = encode_clip(clip, backbone, store.spec.frames)
        np.testing.assert_allclose(loaded[clip.clip_id].features, alone.features, atol=2e-5)


def workers(stage: str) -> list[int]:
    """Processes of Ray that run a stage now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::") and stage in title:
            found.append(int(path.parent.name))
    return found


def metrics_of_ray() -> dict[str, float]:
    """What a dashboard would read of the job `extract`, from the node's own port."""
    import ray

    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    ours = [line for line in lines if line.startswith("ray_clipautt_") and 'job="extract"' in line]
    return {line.partition("{")[0].removeprefix("ray_clipautt_"): float(line.rpartition(" ")[2]) for line in ours}


def eventually(
    look: Callable[[], dict[str, float]], good: Callable[[dict[str, float]], bool], *, seconds: float = 60
) -> dict[str, float]:
    """What `look` returns, once it is good."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if good(found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoders": 0}, r"pipeline.encoders=0: should be greater than 0"),
        ({"encoders": 1, "min_encoders": 2}, "pipeline.min_encoders=2 is more than pipeline.encoders=1"),
        ({"decoder_cpus": 0.0}, r"pipeline.decoder_cpus=0.0: should be greater than 0"),
        ({"memory_mb": 8}, r"pipeline.memory_mb=8: should be greater than or equal to 64"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PipelineConfig(**settings)
    assert one_line(caught.value, "pipeline") == message


def test_no_row_block_grows_with_the_video(video: Path) -> None:
    """Whatever the length of a clip, one piece of what the decoding stage gives holds 64 frames at most."""
    stage = DecodeStage(FrameSpec(load_backbone(BackboneConfig()).preprocessing, EVERY), ReadLimits())
    pieces = list(stage._blocks(0, Clip("long", "s", str(video), "target")))
    assert [len(piece["frame"]) for piece in pieces] == [64] * 12 + [32]
    assert [int(piece["total"][-1]) for piece in pieces] == [-1] * 12 + [800]
