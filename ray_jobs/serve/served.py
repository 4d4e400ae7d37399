"""Which models are served: their checkpoints, prompts, and names.

In: a `ServeConfig`. Out: the `Served` models. Nothing is loaded here but the checkpoints, so that a mistake is reported
before anything starts.
"""

from __future__ import annotations

from pathlib import Path

from clipautt.features.clip_features import fingerprint_of
from clipautt.model.checkpoint import Checkpoint, load_checkpoint
from ray_jobs.platform.predictors import (
    belong_to,
    check_personalizations,
    chosen_checkpoint,
    newest_personalizations,
)
from ray_jobs.serve.model.messages import Served
from ray_jobs.serve.settings import ALLOWED_NAME, NAME, ServeConfig


def chosen_models(config: ServeConfig) -> dict[str, Checkpoint]:
    """Name → checkpoint. A single model without a name is called after what it recognizes.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: a name is not allowed, or a checkpoint is damaged.
    """
    if config.models is None:
        only = load_checkpoint(chosen_checkpoint(config.checkpoint, config.runs).absolute())
        return {name_of(only): only}
    for name in config.models:
        if not NAME.fullmatch(name):
            raise ValueError(f"models: {name!r} is no name of a model; {ALLOWED_NAME}")
    return {name: load_checkpoint(chosen_checkpoint(folder).absolute()) for name, folder in config.models.items()}


def name_of(checkpoint: Checkpoint) -> str:
    """The name of a model: its class that is not neutral, or `model` where there are several or it is no name."""
    others = checkpoint.spec.classes[1:]
    return others[0].lower() if len(others) == 1 and NAME.fullmatch(others[0]) else "model"


def served_models(config: ServeConfig) -> tuple[Served, ...]:
    """The models of the settings.

    Raises:
        FileNotFoundError: a checkpoint or the folder of prompts is missing.
        ValueError: a checkpoint is damaged, or a name is not allowed.
    """
    if config.prompts is not None:
        check_personalizations(config.prompts)
    models = chosen_models(config)
    return tuple(_served(name, one, config, alone=len(models) == 1) for name, one in models.items())


def _served(name: str, checkpoint: Checkpoint, config: ServeConfig, *, alone: bool) -> Served:
    features, prompts = checkpoint.spec.features, _prompts_of(checkpoint, config, alone=alone)
    return Served(
        name,
        str(checkpoint.folder),
        None if prompts is None else str(prompts.absolute()),
        features.frames,
        pixels=fingerprint_of(features.frames.facts),
        backbone=features.backbone_fingerprint,
    )


def _prompts_of(checkpoint: Checkpoint, config: ServeConfig, *, alone: bool) -> Path | None:
    """The folder of prompts of a model: the one that is named, if they are its own or it is the only model; else the
    newest of its own."""
    if config.prompts is None:
        return newest_personalizations(checkpoint.fingerprint, config.runs)
    return config.prompts if alone or belong_to(config.prompts, checkpoint.fingerprint) else None


def missing_cores(config: ServeConfig, cores: int) -> str | None:
    """Why the settings need more cores than there are; None if they do not."""
    needed = config.decoders + config.encoders
    if needed <= cores:
        return None
    return (
        f"decoders={config.decoders} and encoders={config.encoders} need {needed} cores, and the cluster has {cores}; "
        f"give fewer, or on one machine cluster.num_cpus={needed}, if they may share cores"
    )
