"""CLIP-AU's network: adapter, temporal module, AU similarities and classifier.

In: frame features X [T, d] of videos, cut into windows of L frames, and text features t [K, d] of the AU prompts; both
CLIP towers stay frozen outside. Out: unit window embeddings v [V, d], AU similarities s [V, K], class logits [V, C].

Section 2 of the method (CLIP-AUTT, arXiv 2603.27999): a_k = normalize(Adapter(t_k));
v = normalize(mean(GELU(Conv1d(X)))); s_k = τ ⟨v, a_k⟩ with τ = 5; logits = MLP(s). Text features are an argument, so
tuned prompts need no change of the model. `ClipAU.forward` is the training path, on stacked windows;
`ClipAU.window_embeddings` embeds all windows of a video in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipautt.backbones.frozen_linear import frozen_linear
from clipautt.model.windows import WindowSpec, embed_windows, window_runs, window_starts

TEMPERATURE = 5.0
"""τ of the AU similarities."""


ADAPTER_WIDTH = 512
"""Hidden width of the published adapter."""
_HIDDEN_CLASSIFIER = 256


class ClipAU(nn.Module):
    """The trainable part of CLIP-AU.

    Args:
        feature_dim: d, width of image and text features.
        num_prompts: K.
        num_classes: C.
        adapter_width: hidden width of the adapter.
    """

    def __init__(
        self, feature_dim: int, num_prompts: int, num_classes: int, *, adapter_width: int = ADAPTER_WIDTH
    ) -> None:
        super().__init__()
        self.adapter = nn.Sequential(
            nn.Linear(feature_dim, adapter_width), nn.ReLU(), nn.Linear(adapter_width, feature_dim)
        )
        self.temporal = nn.Conv1d(feature_dim, feature_dim, kernel_size=3, padding=1)
        self.classifier = nn.Sequential(
            nn.Linear(num_prompts, _HIDDEN_CLASSIFIER), nn.ReLU(), nn.Linear(_HIDDEN_CLASSIFIER, num_classes)
        )

    def au_embeddings(self, text_features: Tensor) -> Tensor:
        """a = normalize(Adapter(t)): [..., K, d] → [..., K, d]."""
        return F.normalize(_two_layers(self.adapter, text_features), dim=-1)

    def video_embedding(self, windows: Tensor, lengths: Tensor | None = None) -> Tensor:
        """v of stacked windows [B, L, d] → [B, d]; the training path, one convolution per window.

        Args:
            windows: frame features, padded with zeros if a clip is shorter than L.
            lengths: number of frames before the padding of each window, [B]; L by default.
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
        self,
        videos: Sequence[Tensor],
        specs: Sequence[WindowSpec],
        *,
        starts: Sequence[list[int]] | None = None,
        frames_per_pass: int | None = None,
    ) -> list[tuple[Tensor, list[int]]]:
        """`window_embeddings` of many videos [T, d] of different lengths.

        Args:
            videos: frame features.
            specs: how each video is cut into windows.
            starts: first frames of the windows of each video, counted after the stride, at least one; all by default.
            frames_per_pass: maximum number of frames that go through the temporal module at once, or one window if that
                is longer; all by default. A long video is cut between windows, which does not change the result.
        """
        used = [frames[:: spec.stride] for frames, spec in zip(videos, specs, strict=True)]
        starts = starts or [window_starts(len(frames), spec) for frames, spec in zip(used, specs, strict=True)]
        lengths = [min(spec.length, len(frames)) for frames, spec in zip(used, specs, strict=True)]
        most = frames_per_pass or max(1, sum(map(len, used)))
        runs = [
            (video, starts[video][run], lengths[video])
            for video in range(len(used))
            for run in window_runs(starts[video], lengths[video], most)
        ]
        assert self.temporal.bias is not None
        embeddings: list[list[Tensor]] = [[] for _ in used]
        for part in _passes(runs, most):
            embedded = embed_windows(
                [used[video][firsts[0] : firsts[-1] + length] for video, firsts, length in part],
                self.temporal.weight,
                self.temporal.bias,
                lengths=[length for *_, length in part],
                starts=[[start - firsts[0] for start in firsts] for _, firsts, _ in part],
            )
            for (video, *_), windows in zip(part, embedded, strict=True):
                embeddings[video].append(windows)
        return [(torch.cat(windows), firsts) for windows, firsts in zip(embeddings, starts, strict=True)]

    def similarities(self, embeddings: Tensor, au_embeddings: Tensor) -> Tensor:
        """s = τ ⟨v, a⟩: [..., V, d] and [..., K, d] → [..., V, K]."""
        return TEMPERATURE * embeddings @ au_embeddings.transpose(-1, -2)

    def logits(self, embeddings: Tensor, au_embeddings: Tensor) -> Tensor:
        """Class logits of window embeddings: [..., V, d] and [..., K, d] → [..., V, C]."""
        return _two_layers(self.classifier, self.similarities(embeddings, au_embeddings))

    def hidden(self, embeddings: Tensor, au_embeddings: Tensor) -> Tensor:
        """z, the hidden layer of the classifier after its ReLU: [..., V, d] and [..., K, d] → [..., V, h]."""
        first = self.classifier[0]
        assert isinstance(first, nn.Linear)
        return F.relu(frozen_linear(self.similarities(embeddings, au_embeddings), first.weight, first.bias))

    def forward(self, windows: Tensor, text_features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits [B, C] of windows [B, L, d] under text features [K, d]; `lengths` as in `video_embedding`."""
        return self.logits(self.video_embedding(windows, lengths), self.au_embeddings(text_features))


_Run = tuple[int, list[int], int]
"""Index of a video, the first frames of some of its windows, and the length of those windows."""


def _passes(runs: Sequence[_Run], most: int) -> Iterator[list[_Run]]:
    """Group runs of windows into passes of at most `most` frames; a longer run is a pass by itself."""
    part: list[_Run] = []
    frames = 0
    for run in runs:
        length = run[1][-1] + run[2] - run[1][0]
        if part and frames + length > most:
            yield part
            part, frames = [], 0
        part.append(run)
        frames += length
    if part:
        yield part


def _two_layers(layers: nn.Sequential, inputs: Tensor) -> Tensor:
    """`layers(inputs)` for linear, ReLU, linear; once frozen, a row's result does not depend on the number of rows."""
    first, last = layers[0], layers[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return frozen_linear(F.relu(frozen_linear(inputs, first.weight, first.bias)), last.weight, last.bias)


def initial_model(
    feature_dim: int, num_prompts: int, num_classes: int, *, seed: int, adapter_width: int = ADAPTER_WIDTH
) -> ClipAU:
    """An untrained CLIP-AU whose weights follow from the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClipAU(feature_dim, num_prompts, num_classes, adapter_width=adapter_width)


def adapter_width_of(weights: Mapping[str, Tensor]) -> int:
    """Hidden width of the adapter that these weights of a `ClipAU` belong to; the published one if they have none."""
    first = weights.get("adapter.0.weight")
    return ADAPTER_WIDTH if first is None or first.ndim != 2 else len(first)
