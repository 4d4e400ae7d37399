"""Random augmentation of a clip's frames for training: mirroring, cropping, colour changes.

All frames of a clip get the same change, so it adds no motion or flicker. The change depends on seed, epoch and clip
only. Decoding workers apply it, so this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from clipautt.clips import id_number
from clipautt.settings import settings
from clipautt.video.preprocessing import Frames

FrameChange = Callable[[Frames], Frames]
"""RGB frames, uint8 [n, S, S, 3], to frames of the same shape and type; the input is not modified."""
VERSION = 1
"""To be raised if the same settings give other frames, so that stored features of the earlier ones are not used."""
_STREAM = 13
"""Keeps these random numbers apart from those of order (11) and windows (12)."""
_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in luma: Recommendation ITU-R BT.601, section 2.5.1."""
_MID_GREY = 127.5


@settings
class Augmentation:
    """How much the frames of a clip are changed; zeros leave every bit as it is."""

    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of mirroring a clip."""
    crop: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest share of the side that a random crop removes; the rest is enlarged to the full size."""
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest relative change of brightness, contrast and saturation."""

    @property
    def on(self) -> bool:
        """Whether anything can change."""
        return max(self.flip, self.crop, self.colour) > 0

    def transform(self, clip_id: str, *, seed: int, epoch: int) -> FrameChange:
        """The augmentation of one clip in one epoch.

        Args:
            clip_id: as in the manifest.
            seed: the training's.
            epoch: counted from 0.

        Returns:
            A function that changes any part of the clip's frames; it may be called part by part.
        """
        rng = np.random.default_rng([seed, _STREAM, epoch, id_number(clip_id)])
        # All are drawn, even those that are off, so switching one on does not change the others.
        mirrored, removed, across, down = rng.random(4)
        brightness, contrast, saturation = 1 + self.colour * rng.uniform(-1, 1, 3)
        crop = _crop_map(self.crop * removed, across, down) if self.crop else None
        colour = _colour_map(brightness, contrast, saturation) if self.colour else None
        flip = bool(mirrored < self.flip)

        def change(frames: Frames) -> Frames:
            frames = frames[:, :, ::-1] if flip else frames
            if crop is not None or colour is not None:
                frames = np.stack([_changed(frame, crop, colour) for frame in frames])
            return np.ascontiguousarray(frames)

        return change


@dataclass(frozen=True)
class AugmentedPass:
    """One pass over the clips with a random change of each; it makes the frames that training streams in that epoch."""

    augmentation: Augmentation
    """How much is changed."""
    seed: int
    """The training's."""
    number: int
    """Number of the pass, from 0."""
    version: int = VERSION
    """Version of augmentation."""

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> AugmentedPass:
        """The inverse of `dataclasses.asdict`, for values read from JSON."""
        return cls(**{**facts, "augmentation": Augmentation(**facts["augmentation"])})

    def transform(self, clip_id: str) -> FrameChange:
        """How the frames of a clip are changed, see `Augmentation.transform`."""
        return self.augmentation.transform(clip_id, seed=self.seed, epoch=self.number)

    def __str__(self) -> str:
        changes = [f"{name} {value:g}" for name, value in asdict(self.augmentation).items() if value]
        return f"{', '.join(changes)}; pass {self.number + 1}, seed {self.seed}"


def augmented_passes(augmentation: Augmentation, passes: int, *, seed: int) -> list[AugmentedPass | None]:
    """The passes of training on stored features; one, None, if the augmentation changes nothing.

    Raises:
        ValueError: for fewer than one pass.
    """
    if passes < 1:
        raise ValueError(f"passes={passes}; allowed: 1 or more")
    return [AugmentedPass(augmentation, seed, number) for number in range(passes)] if augmentation.on else [None]


def _crop_map(removed: float, across: float, down: float) -> npt.NDArray[np.float64]:
    """The affine map [2, 3] from a position in the crop to the position in the frame, both in 0..1."""
    kept = 1 - removed
    return np.array([[kept, 0, across * removed], [0, kept, down * removed]])


def _colour_map(brightness: float, contrast: float, saturation: float) -> npt.NDArray[np.float64]:
    """Brightness, then contrast about the middle grey, then saturation, as one linear map of RGB: [3, 4]."""
    mixed = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    shift = np.full((3, 1), _MID_GREY * (1 - contrast))
    return np.hstack([brightness * contrast * mixed, shift])


def _changed(frame: Frames, crop: npt.NDArray[np.float64] | None, colour: npt.NDArray[np.float64] | None) -> Frames:
    """One frame [S, S, 3], cropped and recoloured."""
    if crop is not None:
        size = frame.shape[0]
        pixels = crop.copy()
        # Coordinates refer to pixel centres: pixel x lies at (x + 0.5) / S.
        pixels[:, 2] = crop[:, 2] * size + 0.5 * crop[0, 0] - 0.5
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frame = np.asarray(
            cv2.warpAffine(frame, pixels, (size, size), flags=how, borderMode=cv2.BORDER_REPLICATE), np.uint8
        )
    return frame if colour is None else np.asarray(cv2.transform(frame, colour), np.uint8)
