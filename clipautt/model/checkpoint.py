"""Checkpoints of CLIP-AU: their contents, and how they are saved, found and loaded.

In: a trained `ClipAU` and its `CheckpointSpec`. Out: a folder with `weights.safetensors` and `checkpoint.json`, and
from it a `Checkpoint` whose fingerprint is verified.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from clipautt.backbones.loading import BackboneConfig, BackboneFacts, recorded_backbone
from clipautt.features.clip_features import FeatureSpec, SubjectBaseline
from clipautt.files import newest, write_json, write_tensors
from clipautt.footage import Footage
from clipautt.model.network import ClipAU, adapter_width_of
from clipautt.model.windows import WindowSpec

FACTS_FILE = "checkpoint.json"
"""Name of the JSON file in a checkpoint's folder; written last."""
_PREFERRED: tuple[SubjectBaseline, ...] = ("median", "none", "mean")


@dataclass(frozen=True)
class CheckpointSpec:
    """What a checkpoint says about its weights."""

    classes: tuple[str, ...]
    """Class names in label order."""
    phrases: tuple[str, ...]
    """The K AU phrases, verbatim and in order."""
    context: str
    """The leading phrase of every prompt; its tokens are the M context tokens."""
    context_tokens: int
    """Number of context tokens, M."""
    features: FeatureSpec
    """Specification of the features the model was trained on; other features are refused."""
    subject_baseline: SubjectBaseline
    """Centre subtracted from the frame features of every subject, in training and at test time alike."""
    window: WindowSpec
    """Length and stride that the model was trained with."""
    training: dict[str, Any]
    """The training configuration and the fingerprint of its manifest; for an imported checkpoint, its file's name."""
    metrics: dict[str, float]
    """Figures on source-validation subjects."""
    descriptions: tuple[tuple[str, ...], ...] = ()
    """Per class, phrases for the zero-shot row; empty when the task has none."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """How the backbone was loaded; its weights may have moved since."""
    class_shares: tuple[float, ...] = ()
    """Shares of the classes among the training clips; equal if unknown, which is the default."""
    footage: Footage = field(default_factory=Footage)
    """What it was trained on: which kind of faces, and which data sets; how they were cropped is part of `features`."""
    clip_frames: int = 0
    """Frames of a training clip, median; 0 if unknown."""

    def __post_init__(self) -> None:
        if not self.class_shares:
            object.__setattr__(self, "class_shares", (1 / len(self.classes),) * len(self.classes))
        elif len(self.class_shares) != len(self.classes):
            raise ValueError(f"class_shares={self.class_shares}: expected one for each of {', '.join(self.classes)}")


def footage_seen(spec: CheckpointSpec, backbone: str, facts: BackboneFacts) -> dict[str, Footage]:
    """What each part of a model was trained on, by its name in a sentence; see `footage.other_footage`."""
    return {f"the backbone {backbone!r}": facts.footage, "the checkpoint": spec.footage}


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """A trained CLIP-AU with everything needed to use it."""

    model: ClipAU
    """In evaluation mode, without gradients."""
    spec: CheckpointSpec
    """Classes, prompts, features and training."""
    folder: Path | None = None
    """Folder it was loaded from; None for one that was not."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights and of the facts that change a prediction."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        facts = asdict(self.spec) | {"features": self.spec.features.facts}
        used = {
            k: v for k, v in facts.items() if k not in ("training", "metrics", "backbone", "footage", "clip_frames")
        }
        digest.update(json.dumps(used, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Checkpoint({self.spec.classes}, K={len(self.spec.phrases)}, d={self.spec.features.feature_dim})"

    def check_features(self, features: FeatureSpec) -> None:
        """Refuse features of another backbone, preprocessing or sampling.

        Raises:
            ValueError: if they differ; the message names both sides of each difference.
        """
        mine, theirs = _flat(self.spec.features.facts), _flat(features.facts)
        differences = [
            f"{name}: checkpoint {mine.get(name)}, given {theirs.get(name)}"
            for name in dict.fromkeys([*mine, *theirs])
            if mine.get(name) != theirs.get(name)
        ]
        if differences:
            raise ValueError(f"these features do not belong to this checkpoint ({'; '.join(differences)})")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts as dotted name → value."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write `weights.safetensors` and `checkpoint.json`; the latter comes last, so a folder that has it is complete."""
    folder = Path(folder)
    (folder / FACTS_FILE).unlink(missing_ok=True)
    write_tensors(folder / "weights.safetensors", checkpoint.model.state_dict())
    write_json(folder / FACTS_FILE, asdict(checkpoint.spec) | {"fingerprint": checkpoint.fingerprint})


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        ValueError: if weights and facts do not belong together.
    """
    folder = Path(folder)
    if not is_checkpoint(folder):
        raise FileNotFoundError(f"no checkpoint in {folder} (checkpoint.json is missing); `clipautt train` makes one")
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        fingerprint = facts.pop("fingerprint")
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{folder}: {FACTS_FILE} is damaged ({error}); `clipautt train` makes a checkpoint") from error
    spec = _spec_from_json(facts)
    try:
        weights = load_file(folder / "weights.safetensors")
        shape = (spec.features.feature_dim, len(spec.phrases), len(spec.classes))
        model = ClipAU(*shape, adapter_width=adapter_width_of(weights))
        model.load_state_dict(weights)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: weights.safetensors does not fit checkpoint.json ({error})") from error
    checkpoint = Checkpoint(model.eval().requires_grad_(False), spec, folder)
    if checkpoint.fingerprint != fingerprint:
        raise ValueError(
            f"{folder}: the weights have fingerprint {checkpoint.fingerprint}, checkpoint.json says {fingerprint}"
        )
    return checkpoint


def _spec_from_json(facts: dict[str, Any]) -> CheckpointSpec:
    training = dict(facts["training"])
    earlier = training.pop("class_shares", None)  # older checkpoints have them here
    footage = facts.get("footage", {})  # older checkpoints do not say
    return CheckpointSpec(
        **{
            **facts,
            "backbone": recorded_backbone(facts["backbone"]),
            "classes": tuple(facts["classes"]),
            "class_shares": tuple(facts.get("class_shares") or earlier or ()),
            "phrases": tuple(facts["phrases"]),
            "descriptions": tuple(tuple(group) for group in facts["descriptions"]),
            "features": FeatureSpec.from_json(facts["features"]),
            "footage": Footage(footage.get("faces"), tuple(footage.get("datasets", ()))),
            "training": training,
            "window": WindowSpec(**facts["window"]),
        }
    )


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return Path(folder, FACTS_FILE).is_file()


def checkpoint_folder(run: str | Path, baseline: str) -> Path:
    """Folder of a run's checkpoint for a subject baseline."""
    return Path(run) / "checkpoints" / baseline


def find_checkpoint(path: str | Path, baseline: str | None = None) -> Path:
    """The checkpoint folder of a subject baseline, from a run folder or a checkpoint folder.

    Args:
        path: folder of a run, or of a checkpoint.
        baseline: subject baseline; None takes the first there is of `median`, `none` and `mean`.

    Raises:
        FileNotFoundError: if there is none; the message names the existing ones.
    """
    wanted = _PREFERRED if baseline is None else (baseline,)
    for folder in (Path(path), *(checkpoint_folder(path, name) for name in wanted)):
        if is_checkpoint(folder):
            return folder
    there = sorted(folder.name for folder in Path(path).glob("checkpoints/*") if is_checkpoint(folder))
    kind = "" if baseline is None else f" for subject baseline {baseline!r}"
    raise FileNotFoundError(
        f"no checkpoint{kind} in {path}; "
        + (
            f"there are: {', '.join(there)}; train it with baselines=[{baseline}]"
            if there
            else "`clipautt train` makes one"
        )
    )


def newest_checkpoint(runs: str | Path) -> Path | None:
    """The most recently written checkpoint folder below a folder of runs; None if there is none.

    Checkpoints with the default subject baseline that do not belong to a sweep are preferred.
    """
    others = tuple(f"checkpoints/{name}/" for name in _PREFERRED[1:])
    facts = newest(runs, f"**/{FACTS_FILE}", unless=(*others, "/models/"))
    facts = facts or newest(runs, f"**/checkpoints/*/{FACTS_FILE}")
    return facts and facts.parent
