"""Rebuild `clip_autt.safetensors`: `python -m tests.golden.regenerate`.

The file holds everything that enters (weights, window embeddings) beside what came out (logits, gradient of the
entropy, tuned context), so that it depends on no random generator. Run it only when the method itself is meant to
change, and say in the commit why the figures moved.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.methods.clip_autt.objectives import objective_loss
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone
from clipautt.model.checkpoint import Checkpoint
from tests.support.configs import adapt_config
from tests.support.fakes import PREPROCESSING, fake_checkpoint, fake_clip_model, fake_clips, fake_source
from tests.support.tuned import tune_context

FILE = Path(__file__).parent / "clip_autt.safetensors"
CONFIG = adapt_config(objective="infomax_kl", steps=3, learning_rate=0.1)


def compute(source: Source, windows: Tensor) -> dict[str, Tensor]:
    """What is expected: logits under the source prompts, the gradient of their entropy, the tuned context."""
    context = source.context.requires_grad_(True)
    logits = source.logits(windows, source.au_embeddings_of(context))
    (gradient,) = torch.autograd.grad(objective_loss(logits, logits, ClipAUTT("entropy")), context)
    source.context = context.detach()
    tuned = tune_context(source, windows.split(1), source.context, CONFIG)
    return {"logits": logits.detach(), "gradient": gradient, "tuned_context": tuned}


def load() -> tuple[Source, Tensor, dict[str, Tensor]]:
    """The source, the windows and the expected tensors of the file."""
    tensors = load_file(FILE)
    part = {
        p: {k[len(p) :]: v for k, v in tensors.items() if k.startswith(p)} for p in ("text/", "model/", "expected/")
    }
    clip = fake_clip_model()
    ids, rows = part["text/"].pop("ids"), part["text/"].pop("rows")
    missing, unexpected = clip.load_state_dict(part["text/"], strict=False)
    assert not unexpected and all(name.startswith(("visual.", "token_", "logit_")) for name in missing)
    with torch.no_grad():
        clip.token_embedding.weight.zero_()
        clip.token_embedding.weight[ids] = rows
    backbone = Backbone(clip, name="fake", preprocessing=PREPROCESSING)
    checkpoint = fake_checkpoint(backbone=backbone)
    checkpoint.model.load_state_dict(part["model/"])
    return Source(Checkpoint(checkpoint.model, checkpoint.spec), backbone), tensors["windows"], part["expected/"]


def main() -> None:
    """Write the file."""
    source = fake_source()
    windows = torch.cat([source.views(clip).embeddings[:2] for clip in fake_clips(subjects=2, per_subject=2)])
    state = source.backbone.model.state_dict()
    ids = source.prompts.tokens.unique()
    text = {k: v for k, v in state.items() if not k.startswith(("visual.", "token_", "logit_"))}
    tensors = {
        "windows": windows,
        "text/ids": ids,
        "text/rows": state["token_embedding.weight"][ids],
        **{f"text/{name}": value for name, value in text.items()},
        **{f"model/{name}": value for name, value in source.model.state_dict().items()},
        **{f"expected/{name}": value for name, value in compute(source, windows).items()},
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, FILE)
    FILE.chmod(0o644)
    print(f"{FILE.name}: {len(tensors)} tensors, {FILE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
