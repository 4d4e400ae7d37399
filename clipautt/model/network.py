"""CLIP-AU's network: adapter, temporal module, AU similarities and classifier.

TODO
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipautt.backbones.frozen_linear import frozen_linear
from clipautt.model.windows import WindowSpec, embed_windows, window_runs, window_starts

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

    def hidden(self, embeddings: Tensor, au_embeddings: Tensor) -> Tensor:
        """z, the hidden layer of the classifier after its ReLU: [..., V, d] and [..., K, d] → [..., V, h]."""
        first = self.classifier[0]
        assert isinstance(first, nn.Linear)
        return F.relu(frozen_linear(self.similarities(embeddings, au_embeddings), first.weight, first.bias))

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


def initial_model(feature_dim: int, num_prompts: int, num_classes: int, *, seed: int) -> ClipAU:
    """An untrained CLIP-AU whose weights follow from the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClipAU(feature_dim, num_prompts, num_classes)
