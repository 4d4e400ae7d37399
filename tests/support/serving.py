"""A real server for tests: small checkpoints, prompts of two subjects, and Ray Serve on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clipautt.action_units import VOCABULARY
from clipautt.adaptation.method import SavedState
from clipautt.adaptation.personalization import Personalization, save_personalization
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.model.checkpoint import Checkpoint, save_checkpoint
from clipautt.subjects import subject_file
from ray_jobs.platform.cluster import ClusterConfig
from ray_jobs.serve.job import serving
from ray_jobs.serve.settings import ServeConfig
from tests.support.configs import adapt_config
from tests.support.fakes import fake_checkpoint
from tests.support.server_process import free_port

ODD_SUBJECT = "../Ü b/%2e.. '\"<i>"


def small_source(**changes: Any) -> Source:
    """A model of eight action units on the embedded backbone, with weights by chance."""
    backbone = load_backbone(BackboneConfig())
    return Source(
        fake_checkpoint(backbone=backbone, phrases=[unit.phrase for unit in VOCABULARY[:8]], **changes), backbone
    )


def save_prompts(folder: Path, checkpoint: Checkpoint, source: Source, subject: str, *, shift: float = 1.0) -> Path:
    """Adapted prompts of a subject: the source context moved far enough to change every answer."""
    context = source.context * (1 + shift)
    config = adapt_config(objective="infomax", subject_baseline=checkpoint.spec.subject_baseline)
    centre = torch.zeros(source.backbone.feature_dim)
    path = folder / subject_file(subject)
    with torch.no_grad():
        saved = SavedState({"context": context, "au_embeddings": source.au_embeddings_of(context)})
    save_personalization(Personalization(subject, config, centre, saved), path, checkpoint=checkpoint.fingerprint)
    return path


def save_model(source: Source, folder: Path) -> Path:
    """Write `checkpoint/`, and `prompts/` of the subjects s1 and `ODD_SUBJECT`; gives the folder."""
    save_checkpoint(source.checkpoint, folder / "checkpoint")
    for subject in ("s1", ODD_SUBJECT):
        save_prompts(folder / "prompts", source.checkpoint, source, subject)
    return folder


@contextlib.contextmanager
def served(model: Path, runs: Path, **settings: Any) -> Iterator[ServeConfig]:
    """A running server of a folder of `save_model`, on a Ray of its own."""
    given = {"checkpoint": model / "checkpoint", "prompts": model / "prompts"} if "models" not in settings else {}
    config = ServeConfig(
        **given
        | {"port": free_port(), "runs": str(runs), "cluster": ClusterConfig(address="local", num_cpus=2)}
        | settings
    )
    with serving(config) as url:
        assert url == config.url
        yield config
