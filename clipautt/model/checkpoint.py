"""CLIP-AU: adapter, temporal module, AU similarities and classifier; and the checkpoint that carries it.

Section 2 of the method (CLIP-AUTT, arXiv 2603.27999): a_k = normalise(Adapter(t_k));
v = normalise(mean(GELU(Conv1d(X)))); s_k = τ ⟨v, a_k⟩ with τ = 5; logits = MLP(s). Both CLIP towers stay frozen
outside. The model takes text features as an argument, so that tuned prompts need no change of the model.
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

from clipautt.backbones.loading import BackboneConfig
from clipautt.features.clip_features import FeatureSpec, SubjectBaseline
from clipautt.files import newest, write_json, write_tensors
from clipautt.model.network import ClipAU
from clipautt.model.windows import WindowSpec

FACTS_FILE = "checkpoint.json"
"""In the folder of a checkpoint; written last."""
_PREFERRED: tuple[SubjectBaseline, ...] = ("median", "none", "mean")


@dataclass(frozen=True)
class CheckpointSpec:
    """The facts beside the weights."""

    classes: tuple[str, ...]
    """Class names in label order."""
    phrases: tuple[str, ...]
    """The K AU phrases, verbatim and in order."""
    context: str
    """The leading phrase of every prompt; its tokens are the M context tokens."""
    context_tokens: int
    """M."""
    features: FeatureSpec
    """What the model was trained on; other features are refused."""
    subject_baseline: SubjectBaseline
    """What was subtracted from the frame features of every subject, and must be again."""
    window: WindowSpec
    """Length and stride that the model was trained with."""
    training: dict[str, Any]
    """The training configuration and the fingerprint of its manifest; of an imported one, the file it came from."""
    metrics: dict[str, float]
    """On source-validation subjects."""
    descriptions: tuple[tuple[str, ...], ...] = ()
    """Per class, phrases for the zero-shot row; empty when the task has none."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """How the backbone was loaded; its weights may lie elsewhere by now."""
    class_shares: tuple[float, ...] = ()
    """Shares of the classes among the training clips; equal ones where they are not known, as by default."""

    def __post_init__(self) -> None:
        if not self.class_shares:
            object.__setattr__(self, "class_shares", (1 / len(self.classes),) * len(self.classes))
        elif len(self.class_shares) != len(self.classes):
            raise ValueError(f"class_shares={self.class_shares}: expected one for each of {', '.join(self.classes)}")


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """A trained CLIP-AU with everything needed to use it."""

    model: ClipAU
    """In evaluation mode, without gradients."""
    spec: CheckpointSpec
    """Facts."""
    folder: Path | None = None
    """Where it was loaded from."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights and of the facts that change a prediction."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        facts = asdict(self.spec) | {"features": self.spec.features.facts}
        used = {k: v for k, v in facts.items() if k not in ("training", "metrics", "backbone")}
        digest.update(json.dumps(used, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Checkpoint({self.spec.classes}, K={len(self.spec.phrases)}, d={self.spec.features.feature_dim})"

    def check_features(self, features: FeatureSpec) -> None:
        """Refuse features of another backbone, preprocessing or sampling.

        Raises:
            ValueError: naming both sides.
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
    """Dotted name → value."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def save_checkpoint(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write `weights.safetensors` and `checkpoint.json`; the facts come last, so a folder with them is complete."""
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
        raise FileNotFoundError(f"no checkpoint in {folder} (checkpoint.json is not there); `clipautt train` makes one")
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    fingerprint = facts.pop("fingerprint")
    spec = _spec_from_json(facts)
    model = ClipAU(spec.features.feature_dim, len(spec.phrases), len(spec.classes))
    try:
        model.load_state_dict(load_file(folder / "weights.safetensors"))
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
    earlier = training.pop("class_shares", None)  # where checkpoints once had them
    return CheckpointSpec(
        **{
            **facts,
            "backbone": BackboneConfig(**facts["backbone"]),
            "classes": tuple(facts["classes"]),
            "class_shares": tuple(facts.get("class_shares") or earlier or ()),
            "phrases": tuple(facts["phrases"]),
            "descriptions": tuple(tuple(group) for group in facts["descriptions"]),
            "features": FeatureSpec.from_json(facts["features"]),
            "training": training,
            "window": WindowSpec(**facts["window"]),
        }
    )


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return Path(folder, FACTS_FILE).is_file()


def checkpoint_folder(run: str | Path, baseline: str) -> Path:
    """Where a run keeps the checkpoint of a subject baseline."""
    return Path(run) / "checkpoints" / baseline


def find_checkpoint(path: str | Path, baseline: str | None = None) -> Path:
    """The checkpoint folder of a subject baseline, from a run folder or a checkpoint folder.

    Args:
        path: folder of a run, or of a checkpoint.
        baseline: of the subjects; None takes any, best the default one of training.

    Raises:
        FileNotFoundError: if there is none, naming those that are there.
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
    """The checkpoint folder below a folder of runs that was written last; None where there is none.

    Of a training the one with the default baseline is taken; the many models of a sweep are not meant.
    """
    others = tuple(f"checkpoints/{name}/" for name in _PREFERRED[1:])
    found = newest(runs, f"**/{FACTS_FILE}", unless=(*others, "/models/"))
    found = found or newest(runs, f"**/checkpoints/*/{FACTS_FILE}")
    return found and found.parent
