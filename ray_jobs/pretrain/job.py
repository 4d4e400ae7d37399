"""Train the embedded CLIP on rendered faces and write its weights and model card.

This is how the weights in the package were made. On two CPU cores it takes most of an hour; a GPU is used where there
is one.

Example:
    clipautt pretrain out=clipautt/backbones/weights/embedded_clip.safetensors
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from omegaconf import DictConfig

from clipautt.backbones.loading import Backbone
from clipautt.backbones.pretraining import (
    TRAINING_STREAM,
    VALIDATION_STREAM,
    draw_people,
    evaluate,
    mean_auc,
    save_small_clip,
    shipped_tokens,
    train_small_clip,
)
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.progress import Progress, table


def main(cfg: DictConfig) -> int:
    """Run the job."""
    config = instantiate(cfg.recipe)
    workers = cfg.workers or os.cpu_count() or 1
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    people = []
    for stream, count in ((TRAINING_STREAM, config.identities), (VALIDATION_STREAM, config.validation_identities)):
        with Progress("draw", count, unit="people") as drawing:
            people.append(
                draw_people(config, stream=stream, count=count, workers=workers, progress=lambda _: drawing.advance())
            )
    with Progress("train", config.steps, unit="steps") as progress:
        model = train_small_clip(
            config, *people[0], device=device, on_step=lambda _, loss: progress.advance(note=f"loss {loss:.3f}")
        )
    backbone = Backbone(
        model, name="new", preprocessing=config.shape.preprocessing, known_tokens=frozenset(shipped_tokens())
    )
    auc = evaluate(backbone, *people[1])
    out = Path(cfg.out)
    save_small_clip(model, out, config=config, auc=auc, command=f"clipautt pretrain recipe.seed={config.seed}")
    table([(name, f"{mean_auc(values):.3f}") for name, values in auc.items()], ["prompts", "mean AUC"])
    print(f"weights: {out}; use them with backbone.weights={out}")
    return 0
