"""Extraction that is killed: its driver or a node; and two extractions into one store. Real processes, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.features.clip_features import FeatureSpec, encode_clip
from clipautt.features.store import FeatureStore
from clipautt.manifest import read_manifest, write_manifest
from clipautt.video.decoding import Sampling
from ray_jobs.platform.extraction.extract import ExtractionConfig, extract
from ray_jobs.platform.extraction.pipeline import PipelineConfig
from tests.support.fakes import numbered_frames, write_video

CLIPS, FRAMES = 48, 100


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of one video, each from another frame on."""
    folder = tmp_path_factory.mktemp("clips")
    video = write_video(folder / "numbered.mp4", numbered_frames(CLIPS + FRAMES))
    clips = [
        Clip(f"c{i}", f"s{i % 5}", str(video), "target", start_frame=i, end_frame=i + FRAMES, label="pain")
        for i in range(CLIPS)
    ]
    write_manifest(clips, folder / "manifest.parquet", classes=("neutral", "pain"))
    return folder / "manifest.parquet"


def start(manifest: Path, root: Path, *more: str) -> subprocess.Popen[str]:
    """A job of its own, with a Ray of its own, in a process group of its own."""
    words = [f"manifest={manifest}", f"store={root}", f"runs={root}.runs", "sampling.frames_per_second=null"]
    words += ["cluster.address=local", "pipeline.encoders=1", "pipeline.batch_frames=4", *more]
    command = [sys.executable, "-m", "ray_jobs.extract", *words]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(job: subprocess.Popen[str]) -> str:
    said, _ = job.communicate(timeout=280)
    assert job.returncode == 0, said
    return said


def rows_of(root: Path) -> Counter[str]:
    """How many rows there are of each clip, in all files."""
    files = list(root.glob("*/part-*.parquet"))
    return Counter(name for file in files for name in pd.read_parquet(file, columns=["clip_id"])["clip_id"])


def wait_for_rows(root: Path, job: subprocess.Popen[str] | None = None) -> Counter[str]:
    deadline = time.monotonic() + 200
    while not (found := rows_of(root)):
        assert time.monotonic() < deadline and (job is None or job.poll() is None)
        time.sleep(0.1)
    return found


def assert_all_there(manifest: Path, root: Path) -> None:
    clips, backbone = read_manifest(manifest).clips, load_backbone(BackboneConfig())
    store = FeatureStore(root, FeatureSpec.of(backbone, Sampling(None)))
    loaded = store.load(clips)
    assert set(store.status()["status"]) == {"ok"} and len(loaded) == CLIPS
    for clip in clips[::17]:
        alone = encode_clip(clip, backbone, store.spec.frames)
        np.testing.assert_allclose(loaded[clip.clip_id].features, alone.features, atol=2e-5)


@pytest.mark.slow
def test_a_killed_driver_is_started_again_and_does_what_is_missing(manifest: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    killed = start(manifest, root)
    wait_for_rows(root, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    stored = rows_of(root)
    assert 0 < len(stored) < CLIPS
    said = finish(start(manifest, root))
    assert f"{CLIPS - len(stored)} clips encoded, {len(stored)} already in the store, 0 without features" in said
    assert rows_of(root) == Counter({f"c{i}": 1 for i in range(CLIPS)})
    assert_all_there(manifest, root)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_again_and_again(manifest: Path, tmp_path: Path) -> None:
    """At six moments, those before the first clip among them; what was stored is never done again."""
    root, rng = tmp_path / "store", np.random.default_rng(0)
    for _ in range(6):
        job = start(manifest, root)
        time.sleep(float(rng.uniform(2, 25)))
        job.send_signal(signal.SIGKILL)
        job.communicate()
    finish(start(manifest, root))
    assert rows_of(root) == Counter({f"c{i}": 1 for i in range(CLIPS)})
    assert_all_there(manifest, root)


@pytest.mark.slow
def test_two_jobs_fill_one_store(manifest: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    jobs = [start(manifest, root, "cluster.num_cpus=1", f"name=job{number}") for number in (1, 2)]
    for job in jobs:
        finish(job)
    assert rows_of(root).keys() == {f"c{i}" for i in range(CLIPS)}
    assert_all_there(manifest, root)


@pytest.mark.cluster
@pytest.mark.usefixtures("no_ray")
def test_a_lost_node_costs_time_only(manifest: Path, tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    other = nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, logging_level="ERROR")
    lost = threading.Event()

    def lose() -> None:
        wait_for_rows(tmp_path)
        nodes.remove_node(other, allow_graceful=False)
        lost.set()

    threading.Thread(target=lose, daemon=True).start()
    try:
        clips: Sequence[Clip] = read_manifest(manifest).clips
        config = PipelineConfig(encoders=2, batch_frames=8, clips_per_task=1)
        extraction = ExtractionConfig(BackboneConfig(), str(tmp_path), Sampling(None), pipeline=config)
        _, summary = extract(clips, extraction)
        assert lost.is_set() and summary.extracted == CLIPS and not summary.failures
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert rows_of(tmp_path) == Counter({f"c{i}": 1 for i in range(CLIPS)})
    assert_all_there(manifest, tmp_path)
