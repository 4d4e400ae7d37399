"""The frozen source model as adaptation methods use it: a clip's features in, windows and logits out.

A `Source` combines a checkpoint with its backbone's text tower and computes once what all subjects share: the
tokenized AU prompts, their text features and AU embeddings, and the class descriptions of zero-shot CLIP.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.backbones.loading import Backbone, Prompts
from clipautt.backbones.packed_tower import TextPrecision
from clipautt.features.clip_features import ClipFeatures
from clipautt.footage import Footage
from clipautt.memory import is_out_of_memory
from clipautt.model.checkpoint import Checkpoint, CheckpointSpec, footage_seen
from clipautt.model.windows import WindowSpec, clip_starts, why_no_window, window_spans

Need = Literal["views", "class_text", "text_tower", "subject_set", "pixels"]
"""What a method may ask for: windows, and the trained classifier's output for them; class descriptions as text
features; the text tower; all clips of a subject at once; the frames themselves."""
_FRAMES_PER_PASS = 8192
_T = TypeVar("_T")


def tokenize_prompts(backbone: Backbone, spec: CheckpointSpec) -> Prompts:
    """Tokenize a checkpoint's prompts; without a leading phrase, the first tokens of each prompt serve as its
    context."""
    return backbone.tokenize(
        spec.phrases, context=spec.context, num_context=None if spec.context else spec.context_tokens
    )


@dataclass(frozen=True, eq=False, repr=False)
class Views:
    """The windows of one clip that count: enough of their frames show the face."""

    embeddings: Tensor
    """Window embeddings v, unit vectors [V, d], on the backbone's device."""
    starts: npt.NDArray[np.int64]
    """First frame of each window, counted in stored frames, [V]."""
    start_seconds: npt.NDArray[np.float64]
    """Start of each window, seconds from the start of the clip, [V]."""
    end_seconds: npt.NDArray[np.float64]
    """End of each window, seconds, [V]."""

    def __repr__(self) -> str:
        return f"Views({tuple(self.embeddings.shape)})"


class Source:
    """A checkpoint and its backbone, read-only.

    Args:
        checkpoint: the trained CLIP-AU.
        backbone: the CLIP it was trained with.
        window: window specification to use instead of the checkpoint's.

    Raises:
        ValueError: if the backbone is not the checkpoint's; the message names both.
    """

    def __init__(self, checkpoint: Checkpoint, backbone: Backbone, *, window: WindowSpec | None = None) -> None:
        trained, loaded = checkpoint.spec.features.backbone_fingerprint, backbone.fingerprint
        if trained != loaded:
            raise ValueError(
                f"the checkpoint was trained with backbone {checkpoint.spec.features.backbone} ({trained}), "
                f"not with {backbone.name} ({loaded})"
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
            self.class_shares = torch.tensor(checkpoint.spec.class_shares, device=backbone.device)
        self.context = self.prompts.context
        self._views: WeakKeyDictionary[ClipFeatures, dict[WindowSpec, Views]] = WeakKeyDictionary()
        self._kept: dict[Any, Any] = {}  # computed at first use, shared by copies
        self._passes = {"frames": _FRAMES_PER_PASS}  # halved for all copies when memory runs out
        self.granted: frozenset[Need] | None = None
        """Parts that may be used, see `limited_to`; None for everything."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.checkpoint.spec.classes

    @property
    def footage(self) -> dict[str, Footage]:
        """What backbone and checkpoint were trained on, see `footage.other_footage`."""
        return footage_seen(self.checkpoint.spec, self.backbone.name, self.backbone.facts)

    def with_window(self, window: WindowSpec | None) -> Source:
        """The same model with other windows; itself for None or unchanged windows."""
        if window is None or window == self.window:
            return self
        other = copy.copy(self)
        other.window = window
        return other

    def limited_to(self, needs: frozenset[Need] | None) -> Source:
        """The same model restricted to `needs`; using anything else raises a RuntimeError. None lifts the
        restriction."""
        other = copy.copy(self)
        other.granted = needs
        return other

    def _require(self, need: Need) -> None:
        if self.granted is not None and need not in self.granted:
            raise RuntimeError(f"the method uses {need!r} without listing it in its `needs` ({sorted(self.granted)})")

    def kept(self, key: Any, make: Callable[[], _T]) -> _T:
        """A value computed once for this model, whatever the windows; `key` must be hashable and identify it."""
        if key not in self._kept:
            self._kept[key] = make()
        value: _T = self._kept[key]
        return value

    def why_no_window(self, clip: ClipFeatures, *, whole: bool = False) -> str | None:
        """Why no window of a clip counts, as a sentence; None if one does. `whole`: for the clip as a single window."""
        spec = WindowSpec(len(clip.features), self.window.stride) if whole else self.window
        return why_no_window(clip.face_found, spec, clip.min_share)

    def views(self, clip: ClipFeatures, *, window: WindowSpec | None = None) -> Views:
        """The windows of a clip that count; cached as long as the clip's features exist."""
        return self.views_of([clip], window=window)[0]

    def views_of(
        self, clips: Sequence[ClipFeatures], *, window: WindowSpec | None = None, whole: bool = False
    ) -> list[Views]:
        """The windows of many clips that count, computed in a few passes of bounded size.

        Args:
            clips: clips of any length.
            window: window specification to use instead of the source's.
            whole: whether to take each clip as a single window.

        Raises:
            ValueError: if a clip has no window that counts, see `why_no_window`.
            MemoryError: if the device's memory is too small for a single window.
        """
        self._require("views")
        specs = {
            clip: WindowSpec(len(clip.features), self.window.stride) if whole else window or self.window
            for clip in clips
        }
        missing = [clip for clip, spec in specs.items() if spec not in self._views.get(clip, {})]
        embedded = self._embed_within_memory(missing, [specs[clip] for clip in missing])
        for clip, views in zip(missing, embedded, strict=True):
            self._views.setdefault(clip, {})[specs[clip]] = views
        return [self._views[clip][specs[clip]] for clip in clips]

    def _embed_within_memory(self, clips: Sequence[ClipFeatures], specs: Sequence[WindowSpec]) -> list[Views]:
        """Embed; halve the number of frames per pass, for good, each time memory runs out."""
        longest = max((min(spec.length, len(clip.times)) for clip, spec in zip(clips, specs, strict=True)), default=1)
        while True:
            try:
                return list(self._embed(clips, specs))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._passes["frames"] <= longest:
                    raise MemoryError(
                        f"the memory of {self.backbone.device} is too small for a window of {longest} frames of clip "
                        f"{clips[0].clip_id!r} or another one ({error}); free some, or take shorter windows"
                    ) from error
            self._passes["frames"] //= 2

    def _embed(self, clips: Sequence[ClipFeatures], specs: Sequence[WindowSpec]) -> Iterator[Views]:
        with torch.no_grad():
            frames = [clip.features.to(self.backbone.device) for clip in clips]
            counted = [clip_starts(clip, spec) for clip, spec in zip(clips, specs, strict=True)]
            for clip, spec, starts in zip(clips, specs, counted, strict=True):
                if not starts:
                    raise ValueError(f"clip {clip.clip_id!r}: {why_no_window(clip.face_found, spec, clip.min_share)}")
            embedded = self.model.window_embeddings_of(
                frames, specs, starts=counted, frames_per_pass=self._passes["frames"]
            )
        for clip, spec, (embeddings, starts) in zip(clips, specs, embedded, strict=True):
            first = np.asarray(starts) * spec.stride
            yield Views(embeddings, first, *window_spans(clip.times, first, spec))

    def whole_clip(self, clip: ClipFeatures) -> Views:
        """The clip as a single window."""
        return self.views_of([clip], whole=True)[0]

    def prompt_reader(self, precision: TextPrecision = "fp32") -> Callable[[Tensor], Tensor]:
        """A function from contexts [B, K, M, d_text] to the AU prompts' text features, float32 [B, K, d]."""
        self._require("text_tower")
        return self.backbone.prompt_reader(self.prompts, precision=precision)

    def au_embeddings_of(self, context: Tensor) -> Tensor:
        """AU embeddings under other context vectors: [..., K, M, d_text] → [..., K, d]; differentiable."""
        self._require("text_tower")
        return self.model.au_embeddings(self.backbone.encode_prompts(self.prompts, context))

    def logits(self, embeddings: Tensor, au_embeddings: Tensor | None = None) -> Tensor:
        """Class logits [..., V, C] of window embeddings [..., V, d]; under the source prompts by default."""
        return self.model.logits(embeddings, self.au_embeddings if au_embeddings is None else au_embeddings)

    @torch.no_grad()
    def face_similarities(self, clip: ClipFeatures) -> npt.NDArray[np.float32]:
        """How similar every frame is to every AU phrase for the frozen backbone: cosines, -1 to 1, [T, K].

        Training does not change them, so they say what the face shows; the model's own similarities say what its
        classifier makes of it. `clipautt validate-aus` compares both with human coding.

        Args:
            clip: features as they were encoded, with no centre removed.
        """
        phrases = self.kept("unit text", lambda: F.normalize(self.text_features, dim=-1))
        frames = F.normalize(clip.features.to(phrases.device), dim=-1)
        similarities: npt.NDArray[np.float32] = (frames @ phrases.T).cpu().numpy()
        return similarities

    def hidden(self, embeddings: Tensor, au_embeddings: Tensor | None = None) -> Tensor:
        """The classifier's hidden layer z of window embeddings, [..., V, h]; arguments as for `logits`."""
        return self.model.hidden(embeddings, self.au_embeddings if au_embeddings is None else au_embeddings)

    def class_text(self) -> Tensor:
        """Zero-shot class vectors [C, d]: the normalized mean of each class's description features.

        Raises:
            ValueError: if the checkpoint's task has no descriptions.
        """
        self._require("class_text")
        if not self.checkpoint.spec.descriptions:
            raise ValueError("this checkpoint has no class descriptions, so zero-shot CLIP cannot run")
        return self.kept("class_text", self._class_text)

    def _class_text(self) -> Tensor:
        spec = self.checkpoint.spec
        with torch.no_grad():
            groups = [
                self.backbone.encode_prompts(self.backbone.tokenize(group, context=spec.context))
                for group in spec.descriptions
            ]
        means = torch.stack([F.normalize(group, dim=-1).mean(0) for group in groups])
        return F.normalize(means, dim=-1)
