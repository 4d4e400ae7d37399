"""What a live session asks of the encoder for one frame, and what it is told; without PyTorch, for the web side.

In: a frame and what the session knows of the frames before it. Out: a `Moment`. The encoder keeps nothing of a session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_jobs.serve.web.keys import Who

Features = npt.NDArray[np.float32]
Found = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Look:
    """One frame of a live session."""

    model: str
    """Name of the model."""
    frame: npt.NDArray[np.uint8]
    """As the image tower takes it, uint8 [size, size, 3]."""
    found: bool
    """Whether a face was found in it; True without a detector."""
    shown: bool
    """Whether it shows anything."""
    past: Features
    """Features of the frames before, the newest last, [n, d]; 0 at first, and as many as the window needs later."""
    past_found: Found
    """Whether a face was found in each of them, [n]."""
    centre: Features | None = None
    """What is removed from features, as an earlier `Moment` returned it, [d]."""
    centre_of: Features | None = None
    """Features whose centre is to be taken instead, because frames were added to them, [r, d]."""
    who: Who | None = None
    """Whose subject it is."""
    subject_id: str | None = None
    """Whose personalization is used; None for nobody's."""


@dataclass(frozen=True, eq=False)
class Moment:
    """What a model sees in a frame and in the running window that ends with it."""

    feature: Features
    """The frame's, not normalized, [d], for `Look.past`."""
    action_units: dict[str, float]
    """FACS code → the frame's similarity to it, a cosine, as the frozen backbone sees it; empty where no face is
    shown."""
    probabilities: dict[str, float] | None
    """Class → probability of the running window; None until it is full, and where too few of its frames show the
    face."""
    entropy: float | None
    """Entropy of these probabilities, nats."""
    window_frames: int
    """Frames in the running window so far."""
    needed: int
    """Frames before the next one that the window will need: the most that `Look.past` has to hold."""
    centre: Features | None
    """What was removed from the features, [d], for `Look.centre`; None if the personalization's own was."""
