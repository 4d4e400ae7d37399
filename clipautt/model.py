"""CLIP-AU: adapter, temporal module, AU similarities and classifier; and the checkpoint that carries it.

Section 2 of the method (CLIP-AUTT, arXiv 2603.27999): a_k = normalise(Adapter(t_k));
v = normalise(mean(GELU(Conv1d(X)))); s_k = τ ⟨v, a_k⟩ with τ = 5; logits = MLP(s). Both CLIP towers stay frozen
outside. The model takes text features as an argument, so that tuned prompts need no change of the model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clipautt.backbone import BackboneConfig
from clipautt.features import FeatureSpec, SubjectBaseline
from clipautt.frozen_linear import frozen_linear
from clipautt.windows import WindowSpec, embed_windows, window_runs, window_starts

TEMPERATURE = 5.0
"""τ of the AU similarities."""
_HIDDEN_ADAPTER, _HIDDEN_CLASSIFIER = 512, 256


class ClipAU(nn.Module):
    """The trainable part of CLIP-AU.

    Args:
        feature_dim: d, width of image and text features.
        num_prompts: K.
        num_classes: C.
    """

    def __init__(self, feature_dim: int, num_prompts: int, num_classes: int) -> None:
        super().__init__()
        self.adapter = nn.Sequential(
            nn.Linear(feature_dim, _HIDDEN_ADAPTER), nn.ReLU(), nn.Linear(_HIDDEN_ADAPTER, feature_dim)
        )
        self.temporal = nn.Conv1d(feature_dim, feature_dim, kernel_size=3, padding=1)
        self.classifier = nn.Sequential(
            nn.Linear(num_prompts, _HIDDEN_CLASSIFIER), nn.ReLU(), nn.Linear(_HIDDEN_CLASSIFIER, num_classes)
        )

    def au_embeddings(self, text_features: Tensor) -> Tensor:
        """a = normalise(Adapter(t)): [..., K, d] → [..., K, d]."""
        return F.normalize(_two_layers(self.adapter, text_features), dim=-1)

    def video_embedding(self, windows: Tensor, lengths: Tensor | None = None) -> Tensor:
        """v of stacked windows [B, L, d] → [B, d]; the training path, one convolution per window.

        Args:
            windows: frame features, zeros behind the end of a clip shorter than L.
            lengths: frames of each window that count, [B]; all of them by default.
        """
        hidden = F.gelu(self.temporal(windows.transpose(1, 2)))
        if lengths is None:
            return F.normalize(hidden.mean(-1), dim=-1)
        inside = torch.arange(windows.shape[1], device=windows.device) < lengths[:, None]
        return F.normalize((hidden * inside[:, None]).sum(-1) / lengths[:, None], dim=-1)

    def window_embeddings(self, frames: Tensor, spec: WindowSpec) -> tuple[Tensor, list[int]]:
        """v of every window of one video [T, d], in one pass: [V, d] and the first frame of each window."""
        return self.window_embeddings_of([frames], [spec])[0]

    def window_embeddings_of(
        self, videos: Sequence[Tensor], specs: Sequence[WindowSpec], *, frames_per_pass: int | None = None
    ) -> list[tuple[Tensor, list[int]]]:
        """`window_embeddings` of many videos [T, d], each with a T of its own.

        Args:
            videos: frame features.
            specs: of each video.
            frames_per_pass: so many frames go through the temporal module at most at once, or one window where that is
                longer; all by default. A long video is cut between windows, which changes nothing.
        """
        used = [frames[:: spec.stride] for frames, spec in zip(videos, specs, strict=True)]
        starts = [window_starts(len(frames), spec) for frames, spec in zip(used, specs, strict=True)]
        lengths = [min(spec.length, len(frames)) for frames, spec in zip(used, specs, strict=True)]
        most = frames_per_pass or max(1, sum(map(len, used)))
        runs = [
            (video, starts[video][run], lengths[video])
            for video in range(len(used))
            for run in window_runs(starts[video], lengths[video], most)
        ]
        assert self.temporal.bias is not None
        found: list[list[Tensor]] = [[] for _ in used]
        for part in _passes(runs, most):
            embedded = embed_windows(
                [used[video][own[0] : own[-1] + length] for video, own, length in part],
                self.temporal.weight,
                self.temporal.bias,
                lengths=[length for *_, length in part],
                starts=[[start - own[0] for start in own] for _, own, _ in part],
            )
            for (video, *_), windows in zip(part, embedded, strict=True):
                found[video].append(windows)
        return [(torch.cat(windows), own) for windows, own in zip(found, starts, strict=True)]

    def similarities(self, embeddings: Tensor, au_embeddings: Tensor) -> Tensor:
        """s = τ ⟨v, a⟩: [..., V, d] and [..., K, d] → [..., V, K]."""
        return TEMPERATURE * embeddings @ au_embeddings.transpose(-1, -2)

    def logits(self, embeddings: Tensor, au_embeddings: Tensor) -> Tensor:
        """Class logits of window embeddings: [..., V, d] and [..., K, d] → [..., V, C]."""
        return _two_layers(self.classifier, self.similarities(embeddings, au_embeddings))

    def forward(self, windows: Tensor, text_features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits [B, C] of windows [B, L, d] under text features [K, d]; `lengths` as in `video_embedding`."""
        return self.logits(self.video_embedding(windows, lengths), self.au_embeddings(text_features))


_Run = tuple[int, list[int], int]
"""Number of a video, the first frames of some of its windows, and their length."""


def _passes(runs: Sequence[_Run], most: int) -> Iterator[list[_Run]]:
    """Runs of windows that go together: of so many frames at most, but for one that is longer alone."""
    part: list[_Run] = []
    frames = 0
    for run in runs:
        own = run[1][-1] + run[2] - run[1][0]
        if part and frames + own > most:
            yield part
            part, frames = [], 0
        part.append(run)
        frames += own
    if part:
        yield part


def _two_layers(layers: nn.Sequential, inputs: Tensor) -> Tensor:
    """`layers(inputs)` of linear, ReLU, linear; once frozen, a row of many does not depend on how many there are."""
    first, last = layers[0], layers[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return frozen_linear(F.relu(frozen_linear(inputs, first.weight, first.bias)), last.weight, last.bias)


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
    """The training configuration."""
    metrics: dict[str, float]
    """On source-validation subjects."""
    descriptions: tuple[tuple[str, ...], ...] = ()
    """Per class, phrases for the zero-shot row; empty when the task has none."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """How the backbone was loaded; its weights may lie elsewhere by now."""

    @property
    def class_shares(self) -> tuple[float, ...]:
        """Shares of the classes among the training clips; equal ones where the checkpoint does not know them."""
        equal = (1 / len(self.classes),) * len(self.classes)
        return tuple(self.training.get("class_shares") or equal)


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
        """Of weights and facts that change a prediction."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        facts = asdict(self.spec) | {"features": self.spec.features.facts}
        used = {k: v for k, v in facts.items() if k not in ("training", "metrics", "backbone")}
        used["class_shares"] = self.spec.class_shares
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
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: value.contiguous() for name, value in checkpoint.model.state_dict().items()})
    (folder / "weights.safetensors").write_bytes(weights)  # save_file would let nobody else read it
    facts = asdict(checkpoint.spec) | {"fingerprint": checkpoint.fingerprint}
    aside = folder / f"checkpoint.json.{os.getpid()}.tmp"
    aside.write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(aside, folder / "checkpoint.json")


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        ValueError: if weights and facts do not belong together.
    """
    folder = Path(folder)
    if not (folder / "checkpoint.json").is_file():
        raise FileNotFoundError(f"no checkpoint in {folder} (checkpoint.json is not there); `clipautt train` makes one")
    facts = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
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
    return CheckpointSpec(
        **{
            **facts,
            "backbone": BackboneConfig(**facts["backbone"]),
            "classes": tuple(facts["classes"]),
            "phrases": tuple(facts["phrases"]),
            "descriptions": tuple(tuple(group) for group in facts["descriptions"]),
            "features": FeatureSpec.from_json(facts["features"]),
            "window": WindowSpec(**facts["window"]),
        }
    )


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def initial_model(feature_dim: int, num_prompts: int, num_classes: int, *, seed: int) -> ClipAU:
    """An untrained CLIP-AU whose weights follow from the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClipAU(feature_dim, num_prompts, num_classes)
