"""The embedded backbone: what it reads, and files that are not one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from clipautt.action_units import RENDERED, TASKS, phrases
from clipautt.backbones.embedded import RENDERED_FACES, SmallClipShape, embedded_weights, load_small_clip
from clipautt.backbones.facts import BackboneFacts
from clipautt.backbones.loading import BackboneConfig, facts_of, load_backbone
from tests.support.fakes import CONTEXT, shared_backbone


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


def changed(tmp_path: Path, shape: str | None = None, **tensors: torch.Tensor | None) -> Path:
    """The embedded weights with another shape in the metadata, and other tensors or, for None, without them."""
    with safe_open(embedded_weights(), framework="pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    state = {**state, **{name.replace("__", "."): value for name, value in tensors.items()}}
    path = tmp_path / "changed.safetensors"
    save_file(
        {name: value for name, value in state.items() if value is not None}, path, {"shape": shape or metadata["shape"]}
    )
    return path


def test_unchanged_weights_are_read(tmp_path: Path) -> None:
    assert load_small_clip(changed(tmp_path)).fingerprint == "55ddb662437864e8"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"token_embedding__ids": None}, r"it has no token_embedding\.ids$"),
        (
            {"token_embedding__ids": None, "token_embedding__rows": None},
            r"no token_embedding\.ids and no token_embedding\.r",
        ),
        ({"token_embedding__ids": torch.zeros(3)}, r"token_embedding\.ids \[3\] must be whole numbers from 0 to 49407"),
        ({"token_embedding__rows": torch.zeros(3, 5)}, r"token_embedding\.rows \[3, 5\] one row of 128 for each"),
        (
            {"token_embedding__ids": torch.tensor([49408]), "token_embedding__rows": torch.zeros(1, 128)},
            r"must be whole numbers from 0 to 49407",
        ),
        (
            {"ln_final__weight": torch.zeros(3)},
            r"the shape that it states, .*: size mismatch for ln_final\.weight",
        ),
        ({"ln_final__weight": None}, r"missing \['ln_final\.weight'\], unexpected \[\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"changed\.safetensors is not a small CLIP of .*{message}"):
        load_small_clip(changed(tmp_path, **tensors))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "AttributeError"),
        ("{}", "KeyError: 'preprocessing'"),
        ('{"preprocessing": 3}', "TypeError"),
        ('{"preprocessing": {"size": 96}}', r"preprocessing\.mean has no value"),
        ('{"depth": 1, "preprocessing": {"size": 96, "mean": [0, 0, 0], "std": [1, 1, 1]}}', "TypeError: .*depth"),
    ],
)
def test_shape_that_cannot_be_read_is_refused(tmp_path: Path, shape: str, reason: str) -> None:
    message = rf"backbone\.weights '.*changed\.safetensors' states no shape of a small CLIP in its metadata \({reason}"
    with pytest.raises(ValueError, match=message):
        load_small_clip(changed(tmp_path, shape))


def test_shape_and_preprocessing_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shape\.image_size=64; its preprocessing has 96"):
        SmallClipShape(image_size=64)


def test_what_the_weights_were_taught_is_a_fact_in_them(tmp_path: Path) -> None:
    facts = load_backbone(BackboneConfig()).facts
    assert facts.footage.faces == "rendered" and facts.action_units == RENDERED and len(RENDERED) == 28
    assert facts.not_learned(["AU4", "AU13", "a prompt of your own", "AU20"]) == ("AU13",)
    assert facts_of(BackboneConfig()) == facts
    assert facts_of(BackboneConfig(weights=str(tmp_path / "on another machine.safetensors"))) == BackboneFacts()
    without_figures = load_small_clip(changed(tmp_path)).facts
    assert without_figures.footage.faces == "rendered" and without_figures.action_units is None


def test_nothing_is_known_of_other_backbones() -> None:
    assert facts_of(BackboneConfig("ViT-B-32-quickgelu")) == BackboneFacts() == shared_backbone().facts
    assert BackboneFacts().not_learned(["AU4", "AU13"]) == ()
