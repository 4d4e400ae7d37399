"""The frozen source model as adaptation methods see it: views of a clip, text features, logits. Nothing here changes.

A `Source` binds a checkpoint to its backbone's text tower and computes once what every subject shares: the tokenised AU
prompts, their text features and AU embeddings, and the class descriptions of the zero-shot row.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.backbone import Backbone, Prompts
from clipautt.features import ClipFeatures
from clipautt.model import Checkpoint, CheckpointSpec
from clipautt.windows import WindowSpec, entropy

OK = "ok"


def tokenize_prompts(backbone: Backbone, spec: CheckpointSpec) -> Prompts:
    """The prompts of a checkpoint; without a leading phrase, the first tokens of each stand where context goes."""
    return backbone.tokenize(
        spec.phrases, context=spec.context, num_context=None if spec.context else spec.context_tokens
    )


@dataclass(frozen=True, eq=False, repr=False)
class Views:
    """The windows of one clip."""

    embeddings: Tensor
    """v, unit vectors [V, d], on the backbone's device."""
    starts: npt.NDArray[np.int64]
    """First frame of each window, counted in stored frames, [V]."""
    start_seconds: npt.NDArray[np.float64]
    """Begin of each window, seconds from the start of the clip, [V]."""
    end_seconds: npt.NDArray[np.float64]
    """End of each window, seconds, [V]."""

    def __repr__(self) -> str:
        return f"Views({tuple(self.embeddings.shape)})"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a method says about one clip."""

    clip_id: str
    """Clip."""
    subject_id: str
    """Subject."""
    probabilities: Tensor
    """float32 [C], sums to 1, on the CPU."""
    window_start_seconds: float
    """Begin of the window it rests on."""
    window_end_seconds: float
    """End of that window."""
    similarities: Tensor | None = None
    """AU similarities s of that window, [K], on the CPU; None where the method has none."""
    status: str = OK
    """`ok`, or why the source prompts were used instead."""

    @property
    def label_index(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())

    @property
    def entropy(self) -> float:
        """Of the probabilities, nats."""
        return float(entropy(self.probabilities.clamp_min(1e-12).log()))

    def __repr__(self) -> str:
        return f"Prediction({self.clip_id!r}, class {self.label_index}, p={self.probabilities.max():.3f})"


class Source:
    """A checkpoint and its backbone, read-only.

    Args:
        checkpoint: the trained CLIP-AU.
        backbone: the CLIP it was trained with.
        window: instead of the checkpoint's window specification.

    Raises:
        ValueError: if the backbone is not the checkpoint's, naming both sides.
    """

    def __init__(self, checkpoint: Checkpoint, backbone: Backbone, *, window: WindowSpec | None = None) -> None:
        trained, given = checkpoint.spec.features.backbone_fingerprint, backbone.fingerprint
        if trained != given:
            raise ValueError(
                f"the checkpoint was trained with backbone {checkpoint.spec.features.backbone} ({trained}), "
                f"given is {backbone.name} ({given})"
            )
        self.checkpoint = checkpoint
        self.backbone = backbone
        on_device = next(checkpoint.model.parameters()).device == backbone.device
        self.model = checkpoint.model if on_device else copy.deepcopy(checkpoint.model).to(backbone.device)
        self.window = window or checkpoint.spec.window
        with torch.no_grad():
            self.prompts = tokenize_prompts(backbone, checkpoint.spec)
            self.text_features = backbone.encode_prompts(self.prompts)
            self.au_embeddings = self.model.au_embeddings(self.text_features)
        self.context = self.prompts.context

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.checkpoint.spec.classes

    def with_window(self, window: WindowSpec | None) -> Source:
        """The same model with other windows; itself for None or the windows it has."""
        if window is None or window == self.window:
            return self
        other = copy.copy(self)
        other.window = window
        return other

    def views(self, clip: ClipFeatures, *, window: WindowSpec | None = None) -> Views:
        """All windows of a clip."""
        spec = window or self.window
        with torch.no_grad():
            embeddings, starts = self.model.window_embeddings(clip.features.to(self.backbone.device), spec)
        first = np.asarray(starts) * spec.stride
        num_frames = len(clip.times)
        last = np.minimum(first + (min(spec.length, -(-num_frames // spec.stride)) - 1) * spec.stride, num_frames - 1)
        period = float(np.median(np.diff(clip.times))) if num_frames > 1 else 0.0
        return Views(embeddings, first, clip.times[first], clip.times[last] + period)

    def whole_clip(self, clip: ClipFeatures) -> Views:
        """The clip as a single window."""
        return self.views(clip, window=WindowSpec(len(clip.features), self.window.stride))

    def au_embeddings_of(self, context: Tensor) -> Tensor:
        """AU embeddings under other context vectors: [..., K, M, d_text] → [..., K, d]; differentiable."""
        return self.model.au_embeddings(self.backbone.encode_prompts(self.prompts, context))

    def logits(self, embeddings: Tensor, au_embeddings: Tensor | None = None) -> Tensor:
        """Class logits of window embeddings [..., V, d]; under the source prompts when none are given."""
        return self.model.logits(embeddings, self.au_embeddings if au_embeddings is None else au_embeddings)

    def class_text(self) -> Tensor:
        """Zero-shot class vectors [C, d]: the normalised mean of each class's description features.

        Raises:
            ValueError: if the checkpoint's task has no descriptions.
        """
        spec = self.checkpoint.spec
        if not spec.descriptions:
            raise ValueError("this checkpoint has no class descriptions, so there is no zero-shot row")
        with torch.no_grad():
            groups = [
                self.backbone.encode_prompts(self.backbone.tokenize(g, context=spec.context)) for g in spec.descriptions
            ]
        return F.normalize(torch.stack([F.normalize(group, dim=-1).mean(0) for group in groups]), dim=-1)
