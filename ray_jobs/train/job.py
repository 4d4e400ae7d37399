"""Train CLIP-AU on features of the source subjects.

Missing features are extracted first. One checkpoint is written per subject baseline, each with the figures on the
source-validation subjects; target subjects are never used. Augmentation of the training clips' frames is possible in
two ways: with `train.features=augmented` every clip is encoded a few times with different random changes and stored;
with `train.features=streamed` clips are decoded and encoded again in each epoch, which takes longer.

Example:
    clipautt train manifest=data/hard/manifest.parquet train.epochs=10 name=hard
    clipautt train manifest=data/hard/manifest.parquet train.features=augmented train.augmentation.flip=0.5 name=flipped
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clipautt.backbones.loading import Backbone, load_backbone
from clipautt.clips import Clip, Split
from clipautt.features.clip_features import SUBJECT_BASELINES, FeatureSpec, clip_key
from clipautt.features.store import OK, TRIED_AGAIN, FeatureStore
from clipautt.footage import Footage
from clipautt.manifest import Manifest
from clipautt.model.checkpoint import checkpoint_folder, is_checkpoint, load_checkpoint, save_checkpoint
from clipautt.model.training import (
    AugmentedBatches,
    Example,
    TrainConfig,
    augmented_batches,
    fit,
    labelled_examples,
    make_checkpoint,
    subject_centres,
    untrained,
    validate,
)
from clipautt.model.windows import clip_starts
from ray_jobs.platform.cluster import connect, gpu_share
from ray_jobs.platform.configuration import instantiate, resolved
from ray_jobs.platform.extraction.augmented import extract_passes
from ray_jobs.platform.extraction.extract import (
    ExtractionConfig,
    extract,
    extraction_config,
    refuse_lost,
    report_failures,
)
from ray_jobs.platform.extraction.faces_seen import left_out, report_faces, report_left_out
from ray_jobs.platform.footage import training_footage
from ray_jobs.platform.manifests import check_sources, load_manifest
from ray_jobs.platform.progress import table
from ray_jobs.platform.runs import open_run
from ray_jobs.train.streaming import TRAINER_CPUS, StreamedClips, beside_trainer

EPOCHS_FILE = "epochs.jsonl"
"""In the run folder: a line per epoch that was trained on streamed features."""
_LOOK_EVERY_SECONDS = 0.5
_SHOWN_CLIPS = 20


@dataclass(frozen=True)
class TrainJob:
    """What every training worker needs to know; plain values only."""

    manifest: Manifest
    """The manifest, of which the source clips are used."""
    extraction: ExtractionConfig
    """Where the features are, and how clips are decoded and encoded if features are streamed."""
    features: FeatureSpec
    """Specification of the stored features."""
    configs: tuple[TrainConfig, ...]
    """One per checkpoint."""
    folder: str
    """Checkpoints are written to `<folder>/checkpoints/<subject baseline>`."""
    footage: Footage = field(default_factory=Footage)
    """What the training clips show."""

    @property
    def streamed(self) -> bool:
        """Whether any configuration trains straight from decoded clips."""
        return any(config.features == "streamed" for config in self.configs)


def train(job: TrainJob, *, workers: int = 1) -> dict[str, dict[str, float]]:
    """Train every configuration that has no checkpoint yet, on the connected Ray.

    Returns:
        subject baseline → figures on source-validation subjects.

    Raises:
        ValueError: if features are to be streamed, and there are several workers or too few cores.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    todo = [c for c in job.configs if not is_checkpoint(checkpoint_folder(job.folder, c.subject_baseline))]
    if todo:
        for config in todo:
            check_streaming(config, job.extraction, workers=workers)
        gpu = 0.0 if job.streamed else gpu_share(job.extraction.cluster)  # the encoders need it, and the model is small
        resources = {"GPU": gpu} if gpu else {"CPU": TRAINER_CPUS}
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": ray.put(replace(job, configs=tuple(todo)))},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu > 0, resources_per_worker=resources),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(Path(job.folder).absolute()),
                failure_config=FailureConfig(max_failures=2),
            ),
        )
        with _epochs_shown(Path(job.folder) / EPOCHS_FILE):
            trainer.fit()
    return {
        c.subject_baseline: load_checkpoint(checkpoint_folder(job.folder, c.subject_baseline)).spec.metrics
        for c in job.configs
    }


def _train_worker(settings: dict[str, Any]) -> None:
    """Runs on every worker; rank 0 writes the checkpoints."""
    import ray
    import ray.train
    import torch

    job: TrainJob = ray.get(settings["job"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    backbone = load_backbone(job.extraction.backbone)
    for config in job.configs:
        metrics = _train_one(job, config, backbone, rank=rank, world=world)
        ray.train.report({"subject_baseline": config.subject_baseline, **metrics})


def _train_one(job: TrainJob, config: TrainConfig, backbone: Backbone, *, rank: int, world: int) -> dict[str, float]:
    """Train one configuration and write its checkpoint; returns the figures on source-validation subjects."""
    import ray.train.torch

    store = FeatureStore(job.extraction.store, job.features)
    begun = untrained(backbone, config, num_classes=len(job.manifest.classes))
    model, text = begun.model, begun.text_features
    trained = ray.train.torch.prepare_model(model, move_to_device=False) if world > 1 else model
    if config.features == "streamed":
        stream = streamed_clips(job, config, store)
        fit(trained, text, stream.batches, config, on_epoch=_note_epochs(job, config, stream))
    elif config.features == "augmented":
        fit(trained, text, augmented_examples(job, config, store), config, rank=rank, world_size=world)
    else:
        examples = load_examples(job.manifest, store, job.manifest.of_split("source_train"), config)
        fit(trained, text, examples, config, rank=rank, world_size=world)
    held_out = load_examples(job.manifest, store, job.manifest.of_split("source_val"), config)
    metrics = dict(validate(model.eval(), text, held_out, config))
    if rank == 0:
        manifest, sources = job.manifest, job.manifest.of_split("source_train")
        checkpoint = make_checkpoint(
            model,
            config,
            labels=[manifest.label_index(clip) for clip in sources],
            classes=manifest.classes,
            features=job.features,
            backbone=job.extraction.backbone,
            context_tokens=begun.context_tokens,
            footage=job.footage,
            clip_frames=[known.num_frames for known in store.facts(sources).values()],
            manifest=manifest.fingerprint,
            metrics=metrics,
        )
        save_checkpoint(checkpoint, checkpoint_folder(job.folder, config.subject_baseline))
    return metrics


def streamed_clips(job: TrainJob, config: TrainConfig, store: FeatureStore) -> StreamedClips:
    """The training clips to stream, without those that are known to fail.

    Subjects' centres are those of the clips without augmentation, from the store; without a subject baseline the store
    need not have the training clips.
    """
    clips = job.manifest.of_split("source_train")
    labels = {clip.clip_id: job.manifest.label_index(clip) for clip in clips}
    if config.subject_baseline == "none":
        status = store.status()
        failed = set(status.loc[~status["status"].isin({OK, *TRIED_AGAIN}), "clip_key"])
        readable, centres = [clip for clip in clips if clip_key(clip) not in failed], {}
    else:
        loaded = {name: clip for name, clip in store.load(clips).items() if clip_starts(clip, config.window)}
        readable = [clip for clip in clips if clip.clip_id in loaded]
        centres = subject_centres(loaded.values(), config.subject_baseline)
    return StreamedClips(
        readable,
        labels,
        centres,
        config,
        extraction=job.extraction,
        fingerprint=job.features.backbone_fingerprint,
        frames=job.features.frames,
    )


def check_streaming(config: TrainConfig, extraction: ExtractionConfig, *, workers: int) -> None:
    """Refuse what cannot be streamed on the connected Ray, before anything is computed.

    Raises:
        ValueError: for several workers or too few cores.
    """
    if config.features != "streamed":
        return
    if workers > 1:
        raise ValueError(
            f"workers={workers} with train.features=streamed, which trains in one worker, while decoding and encoding "
            "take the rest of the cluster; set workers=1 or train.features=augmented"
        )
    beside_trainer(extraction.pipeline, extraction.cluster)


def _note_epochs(job: TrainJob, config: TrainConfig, stream: StreamedClips) -> Callable[[int, float], None]:
    """A function that adds an epoch's line to the run's file of epochs."""
    file = Path(job.folder) / EPOCHS_FILE

    def note(epoch: int, loss: float) -> None:
        row = {"subject_baseline": config.subject_baseline, "epoch": epoch, "epochs": config.epochs, "loss": loss}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row | asdict(stream.figures)) + "\n")

    return note


@contextlib.contextmanager
def _epochs_shown(file: Path) -> Iterator[None]:
    """Print the epochs that are added to the file inside this block; what a worker prints itself is not shown."""
    start, done = file.stat().st_size if file.exists() else 0, threading.Event()

    def follow() -> None:
        at, last = start, False
        while not last:
            last = done.wait(_LOOK_EVERY_SECONDS)
            for line in _lines_from(file, at):
                at += len(line)
                print("\n".join(epoch_lines(json.loads(line))), flush=True)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _lines_from(file: Path, start: int) -> list[bytes]:
    """The complete lines from byte `start` of the file on."""
    if not file.exists():
        return []
    with file.open("rb") as lines:
        lines.seek(start)
        return [line for line in lines.readlines() if line.endswith(b"\n")]


def epoch_lines(row: dict[str, Any]) -> list[str]:
    """What is printed about a streamed epoch: a line with loss and speed, and one for each clip that was omitted."""
    rate, frames = (row[name] / max(row["seconds"], 1e-9) for name in ("clips", "frames"))
    epoch = f"train {row['subject_baseline']}: epoch {row['epoch'] + 1}/{row['epochs']}, loss {row['loss']:.4f}"
    omitted = list(row["omitted"].items())
    ends = [f"{len(omitted)} omitted"] if omitted else []
    first = ", ".join([epoch, f"{row['clips']} clips", f"{rate:.3g} clips/s", f"{frames:.3g} frames/s", *ends])
    more = [f"  … and {len(omitted) - _SHOWN_CLIPS} more"] if len(omitted) > _SHOWN_CLIPS else []
    return [first, *(f"  {clip_id}: {reason}" for clip_id, reason in omitted[:_SHOWN_CLIPS]), *more]


def load_examples(manifest: Manifest, store: FeatureStore, clips: Sequence[Clip], config: TrainConfig) -> list[Example]:
    """Labelled clips with features and a window that counts, each subject's centre removed."""
    labels = {clip.clip_id: manifest.label_index(clip) for clip in clips}
    return labelled_examples(store.load(clips).values(), labels, config)


def augmented_examples(job: TrainJob, config: TrainConfig, store: FeatureStore) -> AugmentedBatches:
    """The training clips' augmented features by epoch; centres are those of the clips without augmentation."""
    clips = job.manifest.of_split("source_train")
    clean = [clip for clip in store.load(clips).values() if clip_starts(clip, config.window)]
    specs = job.features.passes(config.augmentation, passes=config.num_passes, seed=config.seed)
    return augmented_batches(
        [FeatureStore(job.extraction.store, spec).load(clips) for spec in specs],
        {clip.clip_id: job.manifest.label_index(clip) for clip in clips},
        subject_centres(clean, config.subject_baseline),
        config,
    )


def train_configs(cfg: DictConfig) -> tuple[TrainConfig, ...]:
    """One training configuration per subject baseline."""
    unknown = [b for b in cfg.baselines if b not in SUBJECT_BASELINES]
    if unknown or not cfg.baselines:
        raise ValueError(f"baselines={list(cfg.baselines)}; allowed: {', '.join(SUBJECT_BASELINES)}, at least one")
    base = instantiate(cfg.train)
    return tuple(replace(base, subject_baseline=baseline) for baseline in cfg.baselines)


def stored_splits(configs: Sequence[TrainConfig]) -> tuple[Split, ...]:
    """The splits whose features training takes from the store; streamed clips are needed there for centres only."""
    if all(config.features == "streamed" and config.subject_baseline == "none" for config in configs):
        return ("source_val",)
    return ("source_train", "source_val")


def main(cfg: DictConfig) -> int:
    """Run the job."""
    configs, extraction = train_configs(cfg), extraction_config(cfg)
    manifest = load_manifest(cfg)
    check_sources(manifest)
    run = open_run("train", cfg.name, resolved(cfg) | {"manifest_fingerprint": manifest.fingerprint}, root=cfg.runs)
    with connect(extraction.cluster):
        check_streaming(configs[0], extraction, workers=cfg.workers)
        clips = manifest.of_split(*stored_splits(configs))
        store, summary = extract(clips, extraction)
        report_failures(summary)
        refuse_lost(summary)
        report_faces(summary)
        report_left_out(summary, configs[0].window)
        lost = {failure.clip_id for failure in summary.failures} | {*left_out(summary, configs[0].window)}
        check_classes(clips, lost)
        if configs[0].features == "augmented":
            extract_augmented([clip for clip in clips if clip.clip_id not in lost], extraction, configs[0])
        footage = training_footage(manifest, extraction.backbone)
        job = TrainJob(manifest, extraction, store.spec, configs, str(run.folder), footage)
        figures = train(job, workers=cfg.workers)
    print_figures(figures)
    print(f"checkpoints: {run.folder / 'checkpoints'}")
    return 0


def extract_augmented(clips: Iterable[Clip], extraction: ExtractionConfig, config: TrainConfig) -> None:
    """Fill the store with what is missing of the training clips' augmented features.

    Raises:
        ValueError: if a pass has no clip left of a class.
    """
    training = [clip for clip in clips if clip.split == "source_train"]
    stores = extract_passes(training, extraction, config.augmentation, passes=config.num_passes, seed=config.seed)
    for store in stores:
        check_classes(training, {clip.clip_id for clip in training} - store.present(training))


def check_classes(clips: Iterable[Clip], lost: Set[str]) -> None:
    """Refuse to train where some classes lose all their training clips: the model would never have seen them.

    Raises:
        ValueError: naming the classes.
    """
    training = [clip for clip in clips if clip.split == "source_train" and clip.label]
    kept = {clip.label for clip in training if clip.clip_id not in lost}
    gone = {clip.label for clip in training} - kept
    if kept and gone:
        raise ValueError(
            f"no clip of {', '.join(sorted(map(repr, gone)))} is left to train on: all of them failed or are left "
            "out, see above"
        )


def print_figures(figures: dict[str, dict[str, float]]) -> None:
    """Print a short table of the figures on source-validation subjects."""
    rows = [(name, f"{100 * m['war']:.1f} %", f"{100 * m['uar']:.1f} %") for name, m in figures.items() if m]
    if rows:
        table(rows, ["subject baseline", "validation WAR", "validation UAR"])
