"""Features of many clips in a few large arrays, so that processes can share them without copying.

In: clips as `store.load` gives them. Out: `PackedClips`, whose arrays an object store can map into the memory of any
number of processes, and the clips again, as views of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from clipautt.features.clip_features import ClipFeatures


@dataclass(frozen=True, eq=False, repr=False)
class PackedClips:
    """Clips with what adaptation and training need of them; boxes and brightness are left out."""

    clip_ids: tuple[str, ...]
    """As in the manifest, in the order of the arrays."""
    subject_ids: tuple[str, ...]
    """As in the manifest."""
    features: npt.NDArray[np.float32]
    """Features of all frames, one clip after the other, [N, d]."""
    times: npt.NDArray[np.float64]
    """Seconds from the start of the clip, [N]."""
    face_found: npt.NDArray[np.int8]
    """Whether a face was found in the frame: 1 or 0, and -1 where it was not recorded, [N]."""
    ends: npt.NDArray[np.int64]
    """End of each clip in the arrays, [number of clips]."""
    min_shares: tuple[float, ...]
    """`ClipFeatures.min_share` of each clip."""

    def __repr__(self) -> str:
        return f"PackedClips({len(self.clip_ids)} clips, features={self.features.shape})"

    @classmethod
    def of(cls, clips: Iterable[ClipFeatures]) -> PackedClips:
        """Copy the clips into common arrays.

        Raises:
            ValueError: without clips.
        """
        clips = tuple(clips)
        if not clips:
            raise ValueError("no clips to pack")
        return cls(
            tuple(clip.clip_id for clip in clips),
            tuple(clip.subject_id for clip in clips),
            np.concatenate([clip.features.numpy() for clip in clips]),
            np.concatenate([clip.times for clip in clips]),
            np.concatenate([_found(clip) for clip in clips]),
            np.cumsum([clip.num_frames for clip in clips]),
            tuple(clip.min_share for clip in clips),
        )

    def clips(self) -> dict[str, ClipFeatures]:
        """Clip id → clip; its features are a view of the common array, which must not be modified."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            features = torch.from_numpy(self.features)
        starts = [0, *self.ends[:-1].tolist()]
        unpacked = {}
        for number, (start, end) in enumerate(zip(starts, self.ends.tolist(), strict=True)):
            found = self.face_found[start:end]
            unpacked[self.clip_ids[number]] = ClipFeatures(
                self.clip_ids[number],
                self.subject_ids[number],
                features[start:end],
                self.times[start:end],
                None if (found < 0).any() else found.astype(bool),
                min_share=self.min_shares[number],
            )
        return unpacked


def _found(clip: ClipFeatures) -> npt.NDArray[np.int8]:
    if clip.face_found is None:
        return np.full(clip.num_frames, -1, np.int8)
    return clip.face_found.astype(np.int8)
