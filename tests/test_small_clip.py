"""The embedded backbone: what it reads, and files that are not one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clipautt.action_units import TASKS, phrases
from clipautt.small_clip import RENDERED_FACES, SmallClipShape, embedded_weights, load_small_clip
from tests.fakes import CONTEXT


def test_embedded_backbone_reads_every_prompt_and_nothing_else() -> None:
    backbone = load_small_clip(embedded_weights())
    assert backbone.name == "embedded" and backbone.feature_dim == 128 and backbone.preprocessing == RENDERED_FACES
    descriptions = [text for task in TASKS.values() for group in task.descriptions for text in group]
    for texts in (phrases(), descriptions):
        prompts = backbone.tokenize(texts, context=CONTEXT)
        features = backbone.encode_prompts(prompts)
        assert prompts.num_context == 4 and torch.isfinite(features).all()
    with pytest.raises(ValueError, match=r"the embedded backbone was never trained on some words of \['a happy dog'\]"):
        backbone.tokenize(["a happy dog"])


def test_fingerprint_of_the_embedded_backbone() -> None:
    """Checkpoints and feature stores carry it: another value makes all of them useless."""
    assert load_small_clip(embedded_weights()).fingerprint == "55ddb662437864e8"


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights of a small CLIP at .*gone\.safetensors"):
        load_small_clip(tmp_path / "gone.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(embedded_weights().read_bytes()[:5000])
    for name in ("other", "broken"):
        with pytest.raises(
            ValueError, match=rf"backbone\.weights '.*{name}\.safetensors' holds no small CLIP; weights of"
        ):
            load_small_clip(tmp_path / f"{name}.safetensors")


def test_shape_and_preprocessing_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shape\.image_size=64; its preprocessing has 96"):
        SmallClipShape(image_size=64)
