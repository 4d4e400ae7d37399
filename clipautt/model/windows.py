"""Windows of a video: their embeddings and entropies, all in one pass. Pure tensor functions.

A window of L frames goes through the temporal module as if it stood alone: its first and last frame see zero padding.
All windows of a video share one convolution of the whole sequence; only those two border frames differ per window, so
the cost grows with the number of frames T, not with T × L. Videos of different lengths go through it together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from clipautt.backbones.frozen_linear import frozen_linear
from clipautt.features.clip_features import ClipFeatures
from clipautt.settings import settings

_ROUNDING = 1e-9
"""0.8 × 5 is a little more than 4 in binary fractions."""


@settings
class WindowSpec:
    """How a video is cut into windows."""

    length: PositiveInt = 16
    """Frames in a window, L."""
    stride: PositiveInt = 1
    """Step between the stored frames that are used; 1 uses all of them."""
    hop: PositiveInt = 1
    """Frames between the starts of neighbouring windows when a video is scanned."""


def window_starts(num_frames: int, spec: WindowSpec) -> list[int]:
    """First frame of every window of a video of `num_frames` frames (after the stride).

    The last frames are never dropped: when the hop does not reach the end, one more window ends there. A video shorter
    than a window is one window.

        num_frames 10, length 4, hop 3:  0 · · 3 · · 6      (the window at 6 ends at the last frame)
    """
    last = max(num_frames - spec.length, 0)
    starts = list(range(0, last + 1, spec.hop))
    return starts if starts[-1] == last else [*starts, last]


def counted_starts(face_found: npt.NDArray[np.bool_], spec: WindowSpec, min_share: float) -> list[int]:
    """The `window_starts` of the windows that count: the face is found in at least `min_share` of their frames.

        face_found 1 1 1 1 0 0 1 1, length 4, min_share 0.75:  0 1      (the window at 2 shows it in half of its frames)

    Args:
        face_found: whether the face was found in each frame (after the stride), [T].
        spec: how the video is cut into windows.
        min_share: 0 counts every window.
    """
    starts, length = window_starts(len(face_found), spec), min(spec.length, len(face_found))
    seen = np.concatenate([[0], np.cumsum(face_found)])
    return [start for start in starts if seen[start + length] - seen[start] >= min_share * length - _ROUNDING]


def clip_starts(clip: ClipFeatures, spec: WindowSpec, *, offset: int = 0) -> list[int]:
    """`counted_starts` of a clip, counted in the frames `offset`, `offset` + stride, …; all where faces were not
    recorded."""
    if clip.face_found is None:
        return window_starts(len(clip.times[offset :: spec.stride]), spec)
    return counted_starts(clip.face_found[offset :: spec.stride], spec, clip.min_share)


def window_spans(
    times: npt.NDArray[np.float64], starts: npt.NDArray[np.int64], spec: WindowSpec
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Start and end of windows, seconds from the start of the clip: from the first frame to the end of the last one.

    Args:
        times: of the stored frames, [T].
        starts: first frame of each window, counted in stored frames, [V].
        spec: how the clip is cut into windows.
    """
    count = len(times)
    last = np.minimum(starts + (min(spec.length, -(-count // spec.stride)) - 1) * spec.stride, count - 1)
    period = float(np.median(np.diff(times))) if count > 1 else 0.0
    return times[starts], times[last] + period


def why_no_window(face_found: npt.NDArray[np.bool_] | None, spec: WindowSpec, min_share: float) -> str | None:
    """Why no window of a clip counts, as a sentence; None if one does.

    Args:
        face_found: whether the face was found in each frame, [T]; None where it was not recorded.
        spec: how the video is cut into windows.
        min_share: as for `counted_starts`.
    """
    if face_found is None or counted_starts(face_found[:: spec.stride], spec, min_share):
        return None
    length = min(spec.length, -(-len(face_found) // spec.stride))
    return (
        f"the face is found in {int(face_found.sum())} of {len(face_found)} frames, and no window of {length} frames "
        f"shows it in {100 * min_share:.0f} % of them (faces.min_share)"
    )


def window_runs(starts: Sequence[int], length: int, most: int) -> Iterator[slice]:
    """Runs of neighbouring windows, as slices of `starts`: each spans at most `most` frames, or is a single window.

    starts 0 1 2 3 4, length 3, most 5:  0:3 (frames 0 to 4), 3:5 (frames 3 to 6)
    """
    first = 0
    for number in range(1, len(starts) + 1):
        if number == len(starts) or starts[number] + length - starts[first] > most:
            yield slice(first, number)
            first = number


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits) in nats: [..., C] → [...]."""
    log_probabilities = F.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def embed_windows(
    videos: Sequence[Tensor], weight: Tensor, bias: Tensor, *, lengths: Sequence[int], starts: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Embedding of every window of every video: Conv1d (kernel 3, padding 1) → GELU → mean over time → normalize.

    Args:
        videos: frame features of each video, [T, d]; T may differ.
        weight: weight of the convolution, [d_out, d, 3].
        bias: bias of the convolution, [d_out].
        lengths: L of each video's windows, at most its T.
        starts: first frames of each video's windows, see `window_starts`.

    Returns:
        Unit vectors of each video's windows, [V, d_out].
    """
    frames = torch.cat(list(videos))
    offsets = np.cumsum([0, *(len(video) for video in videos)])
    before, centre, after = frozen_linear(frames, weight.permute(2, 0, 1).flatten(0, 1)).chunk(3, dim=-1)
    first = centre + bias  # a frame's contribution to itself
    edges = torch.zeros(len(frames), 1, dtype=torch.bool, device=frames.device)
    edges[offsets[:-1]] = True
    zero = torch.zeros_like(first[:1])
    from_left = torch.cat([zero, before[:-1]]).masked_fill(edges, 0.0)  # no video contributes to the next
    from_right = torch.cat([after.masked_fill(edges, 0.0)[1:], zero])
    counts = [len(firsts) for firsts in starts]
    begin = torch.as_tensor(
        np.concatenate([offset + np.asarray(firsts) for offset, firsts in zip(offsets, starts, strict=False)])
    ).to(frames.device)
    length = torch.as_tensor(np.repeat(lengths, counts)).to(frames.device)[:, None]
    end = begin + length[:, 0] - 1
    borders = F.gelu(first + from_right)[begin] + F.gelu(first + from_left)[end]
    # Running sums in double precision: a difference of two long fp32 sums would lose the digits that matter. Each
    # video has its own sums, so that no value of it, finite or not, reaches another video.
    inner = F.gelu(first + from_left + from_right).double()
    inner = torch.cat([part.cumsum(0) for part in torch.split(inner, [len(video) for video in videos])])
    between = (inner[end - 1] - inner[begin]).to(borders.dtype)
    alone = F.gelu(first)[begin] if min(lengths) == 1 else borders
    means = torch.where(length == 1, alone, (borders + between) / length)
    return list(torch.split(F.normalize(means, dim=-1), counts))
