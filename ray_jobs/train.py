"""Train CLIP-AU on stored features of the source subjects.

What the store lacks is extracted first. One checkpoint is written per subject baseline, each with the figures on the
source-validation subjects; target subjects are never looked at.

Example:
    clipautt train manifest=data/hard/manifest.parquet train.epochs=10 name=hard
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from clipautt.action_units import TASKS
from clipautt.backbone import BackboneConfig, load_backbone
from clipautt.clips import Clip, Manifest
from clipautt.features import SUBJECT_BASELINES, FeatureSpec, FeatureStore, SubjectBaseline
from clipautt.model import Checkpoint, CheckpointSpec, initial_model, save_checkpoint
from clipautt.training import PHRASES, Example, TrainConfig, centre_subjects, fit, validate
from ray_jobs import cli
from ray_jobs.cluster import ClusterConfig, connect, gpu_share
from ray_jobs.configuration import instantiate, resolved
from ray_jobs.extract import extract, report_failures
from ray_jobs.manifest import load_manifest
from ray_jobs.progress import table
from ray_jobs.runs import open_run


@dataclass(frozen=True)
class TrainJob:
    """What every training worker needs to know; plain values only."""

    manifest: Manifest
    """Source clips are taken from it."""
    store_root: str
    """Folder of the feature store."""
    backbone: BackboneConfig
    """For the text features, and to name the features."""
    features: FeatureSpec
    """Of the store."""
    configs: tuple[TrainConfig, ...]
    """One per checkpoint."""
    folder: str
    """Checkpoints are written to `<folder>/checkpoints/<subject baseline>`."""


def checkpoint_folder(folder: str | Path, baseline: str) -> Path:
    """Where a run keeps the checkpoint of a subject baseline."""
    return Path(folder) / "checkpoints" / baseline


def find_checkpoint(path: str | Path, baseline: str) -> Path:
    """The checkpoint folder of a subject baseline, from a run folder or a checkpoint folder.

    Raises:
        FileNotFoundError: if there is none, naming those that are there.
    """
    path = Path(path)
    if (path / "checkpoint.json").is_file():
        return path
    found = checkpoint_folder(path, baseline)
    if (found / "checkpoint.json").is_file():
        return found
    there = sorted(p.parent.name for p in path.glob("checkpoints/*/checkpoint.json"))
    raise FileNotFoundError(
        f"no checkpoint for subject baseline {baseline!r} in {path}; "
        + (
            f"there are: {', '.join(there)}; train it with baselines=[{baseline}]"
            if there
            else "`clipautt train` makes one"
        )
    )


def train(job: TrainJob, *, cluster: ClusterConfig, workers: int = 1) -> dict[str, dict[str, float]]:
    """Train every configuration that has no checkpoint yet, on the connected Ray.

    Returns:
        subject baseline → figures on source-validation subjects.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    todo = [
        c for c in job.configs if not (checkpoint_folder(job.folder, c.subject_baseline) / "checkpoint.json").is_file()
    ]
    if todo:
        gpu = gpu_share(cluster)
        resources = {"GPU": gpu} if gpu else {"CPU": 1}
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
        trainer.fit()
    from clipautt.model import load_checkpoint

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
    backbone = load_backbone(job.backbone)
    store = FeatureStore(job.store_root, job.features)
    for config in job.configs:
        with torch.no_grad():
            prompts = backbone.tokenize(PHRASES, context=config.context)
            text = backbone.encode_prompts(prompts)
        model = initial_model(backbone.feature_dim, len(PHRASES), len(job.manifest.classes), seed=config.seed)
        trained = ray.train.torch.prepare_model(model, move_to_device=False) if world > 1 else model
        examples = load_examples(job.manifest, store, job.manifest.of_split("source_train"), config.subject_baseline)
        fit(trained, text, examples, config, rank=rank, world_size=world)
        held_out = load_examples(job.manifest, store, job.manifest.of_split("source_val"), config.subject_baseline)
        metrics = dict(validate(model.eval(), text, held_out, config))
        if rank == 0:
            spec = _spec(job, config, metrics, prompts.num_context)
            save_checkpoint(
                Checkpoint(model.requires_grad_(False), spec), checkpoint_folder(job.folder, config.subject_baseline)
            )
        ray.train.report({"subject_baseline": config.subject_baseline, **metrics})


def load_examples(
    manifest: Manifest, store: FeatureStore, clips: Sequence[Clip], baseline: SubjectBaseline
) -> list[Example]:
    """Labelled clips with features, each subject's centre removed."""
    loaded = store.load(clips)
    labels = {clip.clip_id: manifest.label_index(clip) for clip in clips}
    return [Example(clip, labels[clip.clip_id]) for clip in centre_subjects(list(loaded.values()), baseline)]


def _spec(job: TrainJob, config: TrainConfig, metrics: dict[str, float], context_tokens: int) -> CheckpointSpec:
    classes = job.manifest.classes
    task = next((task for task in TASKS.values() if task.classes == classes), None)
    return CheckpointSpec(
        classes=classes,
        phrases=PHRASES,
        context=config.context,
        context_tokens=context_tokens,
        features=job.features,
        subject_baseline=config.subject_baseline,
        window=config.window,
        training=asdict(config) | {"manifest": job.manifest.fingerprint},
        metrics=metrics,
        descriptions=task.descriptions if task else (),
        backbone=job.backbone,
    )


def make_job(cfg: DictConfig, manifest: Manifest, features: FeatureSpec, folder: Path) -> TrainJob:
    """The job that a composed configuration describes."""
    unknown = [b for b in cfg.baselines if b not in SUBJECT_BASELINES]
    if unknown or not cfg.baselines:
        raise ValueError(f"baselines={list(cfg.baselines)}; allowed are {', '.join(SUBJECT_BASELINES)}, at least one")
    base = instantiate(cfg.train)
    configs = tuple(replace(base, subject_baseline=baseline) for baseline in cfg.baselines)
    return TrainJob(
        manifest, str(Path(cfg.store).absolute()), instantiate(cfg.backbone), features, configs, str(folder)
    )


def main(cfg: DictConfig) -> int:
    """Run the job."""
    manifest = load_manifest(cfg)
    cluster = instantiate(cfg.cluster)
    run = open_run("train", cfg.name, resolved(cfg) | {"manifest_fingerprint": manifest.fingerprint}, root=cfg.runs)
    clips = manifest.of_split("source_train", "source_val")
    with connect(cluster):
        store, summary = extract(
            clips,
            instantiate(cfg.backbone),
            instantiate(cfg.sampling),
            cfg.store,
            cluster=cluster,
            faces=instantiate(cfg.faces),
            limits=instantiate(cfg.limits),
        )
        report_failures(summary)
        figures = train(make_job(cfg, manifest, store.spec, run.folder), cluster=cluster, workers=cfg.workers)
    print_figures(figures)
    print(f"checkpoints: {run.folder / 'checkpoints'}")
    return 0


def print_figures(figures: dict[str, dict[str, float]]) -> None:
    """A short table of the figures on source-validation subjects."""
    rows = [(name, f"{100 * m['war']:.1f} %", f"{100 * m['uar']:.1f} %") for name, m in figures.items() if m]
    if rows:
        table(rows, ["subject baseline", "validation WAR", "validation UAR"])


if __name__ == "__main__":
    raise SystemExit(cli.main(["train", *sys.argv[1:]]))
