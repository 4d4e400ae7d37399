"""Turn a checkpoint of the published method into one of ours.

The published `.pth` file holds weights only: you give its prompts, one per line and in the order of training, and the
CLIP it was trained with. The checkpoint then works in `adapt`, `predict` and `serve`; it has no subject baseline, so
choose a method without one, for instance `adapt=paper` or `adapt=infomax`.

Example:
    clipautt backbone fetch ViT-B-32-quickgelu
    clipautt import-checkpoint weights=source.pth prompts=prompts.txt out=runs/published backbone=ViT-B-32-quickgelu
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from clipautt.backbones.loading import load_backbone
from clipautt.model.checkpoint import is_checkpoint, save_checkpoint
from clipautt.model.published import import_checkpoint, read_prompts
from ray_jobs.platform.configuration import instantiate


def main(cfg: DictConfig) -> int:
    """Run the job."""
    prompts = read_prompts(cfg.prompts)
    config, out = instantiate(cfg.given), Path(cfg.out)
    if is_checkpoint(out):
        raise FileExistsError(f"out={out}: there is a checkpoint already; give another folder")
    backbone = instantiate(cfg.backbone)
    checkpoint = import_checkpoint(cfg.weights, prompts, load_backbone(backbone), config=config, loaded_from=backbone)
    save_checkpoint(checkpoint, out)
    print(f"{sum(weights.numel() for weights in checkpoint.model.parameters()):,} weights, {len(prompts)} prompts")
    hint = "" if config.datasets else "; given.datasets=[NAME] records what it was trained on"
    print(f"trained on: {checkpoint.spec.footage}{hint}")
    print(f"checkpoint: {out}")
    return 0
