"""What tests of the adaptation job share: a checkpoint, clips with features in a store, and a pool without Ray."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.evaluation.results import Cohort, read_rows
from clipautt.features.clip_features import ClipFeatures, FeatureSpec
from clipautt.features.store import FeatureStore
from clipautt.manifest import Manifest, read_manifest, write_manifest
from clipautt.model.checkpoint import checkpoint_folder, load_checkpoint, save_checkpoint
from clipautt.video.decoding import Sampling
from clipautt.video.faces import FaceConfig
from ray_jobs.adapt.actor import Outcome
from ray_jobs.adapt.job import execute, plan_run, rows_of
from ray_jobs.adapt.plan import SubjectWork
from ray_jobs.adapt.run import AdaptJob, AdaptRun, WorkConfig
from ray_jobs.platform.actor_pool import Done, Failed, PoolConfig
from ray_jobs.platform.cluster import ClusterConfig
from tests.support import stored
from tests.support.fakes import fake_checkpoint, fake_clip

CLASSES = ("neutral", "pain")
KEY = ["method", "cohort", "draw", "subject_id", "clip_id"]
"""What identifies a result row."""


@dataclass(frozen=True)
class World:
    """Everything that an adaptation job is given; no video is ever opened."""

    folder: Path
    """Holds `train`, `store`, `videos` and `runs`."""
    clips: tuple[Clip, ...]
    """Of all subjects, labelled: those of odd number show pain."""

    @property
    def checkpoint(self) -> Path:
        """Run folder of a training that never was."""
        return self.folder / "train"

    @property
    def store(self) -> FeatureStore:
        """Features of the clips, as wide as the embedded backbone's."""
        return FeatureStore(
            self.folder / "store", load_checkpoint(checkpoint_folder(self.checkpoint, "none")).spec.features
        )

    def source(self, baseline: str = "none") -> Source:
        """The model as an actor loads it."""
        return Source(load_checkpoint(checkpoint_folder(self.checkpoint, baseline)), load_backbone(BackboneConfig()))

    def manifest(self, clips: Sequence[Clip] | None = None, *, name: str = "manifest") -> Path:
        """A file that lists these clips, by default all."""
        path = self.folder / f"{name}.parquet"
        write_manifest(self.clips if clips is None else clips, path, classes=CLASSES)
        return path

    def read(self, clips: Sequence[Clip] | None = None) -> Manifest:
        """The same as a value."""
        return read_manifest(self.manifest(clips), classes=CLASSES)

    def words(self, name: str, *more: str, manifest: Path | None = None) -> list[str]:
        """The command line of a run."""
        path = manifest or self.manifest()
        words = [f"manifest={path}", f"checkpoint={self.checkpoint}", f"store={self.folder / 'store'}"]
        return [*words, f"runs={self.folder / 'runs'}", f"name={name}", "compare=[clip_au]", *more]

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / "adapt" / name

    def rows(self, name: str) -> pd.DataFrame:
        """All rows of a run in a fixed order."""
        return in_order(read_rows((self.run(name) / "subjects").glob("*.parquet")))

    def job(self, name: str, *methods: AdaptConfig, **options: Any) -> AdaptJob:
        """What the actors of a run compute."""
        store = self.store
        return AdaptJob(
            BackboneConfig(),
            str(self.checkpoint),
            methods,
            str(self.run(name)),
            str(store.path.parent),
            store.spec,
            **options,
        )


def make_world(folder: Path, *, subjects: int, per_subject: int, faceless: Sequence[str] | None = None) -> World:
    """A world with subjects `s0`, `s1`, … whose clips are `s0c0`, `s0c1`, … and between 12 and 25 frames long.

    Args:
        folder: where it is made.
        subjects: how many.
        per_subject: how many clips of each.
        faceless: a face was looked for, and found in every frame of the clips other than these, and in two of each of
            these; None: no face was looked for.
    """
    backbone = load_backbone(BackboneConfig())
    faces = FaceConfig() if faceless is None else FaceConfig("cascade")
    features = FeatureSpec.of(backbone, Sampling(12.5), faces)
    for baseline in ("none", "median"):
        checkpoint = fake_checkpoint(backbone=backbone, subject_baseline=baseline)
        checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, features=features))
        save_checkpoint(checkpoint, checkpoint_folder(folder / "train", baseline))
    (folder / "videos").mkdir(parents=True)
    names = [(f"s{s}", f"s{s}c{c}", c) for s in range(subjects) for c in range(per_subject)]
    clips = tuple(
        replace(stored.clip_at(folder / "videos", clip_id), subject_id=subject, label=CLASSES[c % 2])
        for subject, clip_id, c in names
    )
    world = World(folder, clips)
    store = FeatureStore(folder / "store", features)
    rows = [stored.row(clip, features_of(clip, store.spec.feature_dim)) for clip in clips]
    if faceless is not None:
        for row in rows:
            row["face_found"] = np.arange(len(row["times"])) < (2 if row["clip_id"] in faceless else len(row["times"]))
    store.append(rows)
    return world


def features_of(clip: Clip, width: int = 128) -> Any:
    """What the store holds of a clip, [T, d]."""
    number = int(clip.clip_id.rpartition("c")[2])
    frames = 12 + (5 * number + int(clip.subject_id[1:])) % 14
    made = fake_clip(clip.clip_id, clip.subject_id, positive=clip.label == "pain", num_frames=frames, feature_dim=width)
    return made.features.numpy()


def loaded(world: World, subject: str) -> list[ClipFeatures]:
    """A subject's clips as a method sees them."""
    own = [clip for clip in world.clips if clip.subject_id == subject]
    return list(world.store.load(own).values())


def run_adaptation(
    job: AdaptJob,
    manifest: Manifest,
    clips: Sequence[Clip],
    cohorts: Sequence[Cohort] = (),
    *,
    cluster: ClusterConfig | None = None,
    work: WorkConfig | None = None,
    seed: int = 0,
    reasons: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """A run on the connected Ray, as `main` does it once the features are there.

    Returns:
        All result rows of the run; and of the subjects that failed, id → reason.
    """
    run = AdaptRun(
        job,
        manifest,
        tuple(clips),
        tuple(cohorts),
        cluster or ClusterConfig(),
        work or WorkConfig(),
        seed,
        reasons or {},
    )
    plan = plan_run(run)
    execute(plan)
    return rows_of(run), plan.book.failures


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by what identifies them, each of which occurs once."""
    assert not rows.duplicated(KEY).any(), rows[rows.duplicated(KEY, keep=False)][[*KEY, "status"]]
    return rows.sort_values(KEY, ignore_index=True)


def assert_same_results(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same rows with the same decisions, numbers to 1e-5; time and version of the code may differ."""
    exact = [*KEY, "label", "prediction", "status", "position", "prior", "steps", "checkpoint", "tune", "settings"]
    pd.testing.assert_frame_equal(found[exact], expected[exact])
    for name in ("probability", "entropy", "window_start_seconds", "window_end_seconds"):
        np.testing.assert_allclose(found[name].to_numpy(float), expected[name].to_numpy(float), atol=1e-5, err_msg=name)


def run_here(
    make_actor: Callable[..., Any],
    arguments: tuple[Any, ...],
    tasks: Iterable[Sequence[SubjectWork]],
    *,
    config: PoolConfig,
    size: Callable[[SubjectWork], float],
    on_ready: Callable[[], None],
) -> Generator[Done[SubjectWork, list[Outcome]] | Failed[SubjectWork], None, None]:
    """`run_pool` with one actor in this process: what depends on no Ray is tested without waiting for one."""
    actor = make_actor(*arguments)
    on_ready()
    for task in tasks:
        try:
            results = actor.run(list(task))
        except Exception:
            yield from (_alone(actor, item, config.attempts) for item in task)
        else:
            yield from (Done(item, result) for item, result in zip(task, results, strict=True))


def _alone(actor: Any, item: SubjectWork, attempts: int) -> Done[SubjectWork, list[Outcome]] | Failed[SubjectWork]:
    reason = ""
    for _ in range(attempts):
        try:
            return Done(item, actor.run([item])[0])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    return Failed(item, reason, attempts)
