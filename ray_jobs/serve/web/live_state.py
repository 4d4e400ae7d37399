"""What a live session knows of its frames: the running window, the resting face, and where the face was.

In: what decoder and encoder say of each frame. Out: what they are asked next, and what the client is told. No input or
output happens here. Memory is bounded however long the session lasts.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ray_jobs.serve.model.looks import Features, Look, Moment
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.keys import Who

LONGEST_REST = 30.0
"""Longest resting face, seconds."""
_REST_FRAMES = 450
"""Most frames of a resting face that are kept: fifteen a second."""
_FEWEST_REST_FRAMES = 10
_HISTORY = 256
"""Frames that stand for the resting face where none was declared: twenty seconds at the rate of training."""
_FIRST, _EVERY = 32, 8
"""Their centre is taken anew at each of the first frames, then at every eighth."""
_PAUSE = 2.0
"""Seconds without a frame after which the running window begins again."""
_DIGITS = 5


class Still(Protocol):
    """What is asked of a `clipautt.video.stills.Still`."""

    @property
    def frame(self) -> npt.NDArray[np.uint8]: ...
    @property
    def found(self) -> bool: ...
    @property
    def shown(self) -> bool: ...
    @property
    def brightness(self) -> float: ...
    @property
    def box(self) -> dict[str, float] | None: ...
    @property
    def seen(self) -> tuple[Any, ...]: ...


@dataclass
class _Rest:
    """A resting face that is being recorded."""

    seconds: float
    """How long it lasts."""
    began: float | None = None
    """When its first frame arrived, seconds of the session."""
    features: list[Features] = field(default_factory=list)
    """Of the frames that show the face, [d] each."""
    action_units: list[dict[str, float]] = field(default_factory=list)
    """Their similarities."""
    looked_at: int = 0
    """Frames, with and without the face."""


class LiveState:
    """The state of one session.

    Args:
        model: name of the model.
        who: whose session it is.
        subject_id: whose personalization is used; None for nobody's.
    """

    def __init__(self, model: str, who: Who, subject_id: str | None = None) -> None:
        self.model = model
        self.seen: tuple[Any, ...] = ()
        """Where faces were in the latest frames, for the next one."""
        self._who, self._subject_id = who, subject_id
        self._past: deque[tuple[Features, bool]] = deque(maxlen=_HISTORY)
        self._run = self._needed = self._looked_at = 0
        self._last = -math.inf
        self._resting: _Rest | None = None
        self._centre: Features | None = None
        self._centre_of: Features | None = None
        self._at_rest: dict[str, float] | None = None

    def rest(self, seconds: float) -> None:
        """The resting face begins with the next frame and lasts for so many seconds."""
        self._resting = _Rest(seconds)

    def finish_rest(self, now: float) -> dict[str, Any] | Refusal | None:
        """What is to be said where the resting face has ended by now, before the next frame is looked at."""
        rest = self._resting
        if rest is None or rest.began is None or now - rest.began < rest.seconds:
            return None
        self._resting = None
        if len(rest.features) < _FEWEST_REST_FRAMES:
            return Refusal(
                "no_face",
                f"the face was seen in {len(rest.features)} of {rest.looked_at} frames of the resting face; "
                f"{_FEWEST_REST_FRAMES} are needed",
            )
        self._centre_of = np.stack(rest.features)
        codes = rest.action_units[0]
        self._at_rest = {code: float(np.median([one[code] for one in rest.action_units])) for code in codes}
        return {"frames": len(rest.features), "seconds": round(now - rest.began, 3)}

    def look(self, still: Still, now: float) -> Look:
        """What the encoder is asked of a frame."""
        if now - self._last > _PAUSE:
            self._run = 0
        used = list(self._past)[len(self._past) - min(self._run, self._needed) :]
        width = len(self._past[0][0]) if self._past else 0
        return Look(
            model=self.model,
            frame=still.frame,
            found=still.found,
            shown=still.shown,
            past=np.array([feature for feature, _ in used], np.float32).reshape(len(used), width),
            past_found=np.array([found for _, found in used], bool),
            centre=self._centre,
            centre_of=self._sample(),
            who=self._who,
            subject_id=self._subject_id,
        )

    def _sample(self) -> Features | None:
        """Features whose centre is to be taken; None where the centre is known, or is the subject's own."""
        if self._at_rest is not None or self._subject_id is not None:
            return self._centre_of
        if self._looked_at > _FIRST and self._looked_at % _EVERY:
            return None
        faces = [feature for feature, found in self._past if found]
        return np.stack(faces) if faces else None

    def take(self, still: Still, moment: Moment, now: float) -> dict[str, Any]:
        """Remember what was seen in a frame, and say it."""
        resting = self._record(still, moment, now)
        self._last, self._run, self._needed = now, self._run + 1, moment.needed
        if moment.needed > (self._past.maxlen or 0):
            self._past = deque(self._past, maxlen=moment.needed)
        self._past.append((moment.feature, still.found))
        self._looked_at += 1
        self._centre, self._centre_of, self.seen = moment.centre, None, still.seen
        known = self._at_rest is not None and bool(moment.action_units)
        return {
            "face": _face(still),
            "brightness": round(still.brightness, _DIGITS) if math.isfinite(still.brightness) else None,
            "action_units": _rounded(moment.action_units),
            "rises": _rounded({c: s - (self._at_rest or {})[c] for c, s in moment.action_units.items()})
            if known
            else None,
            "probabilities": None if moment.probabilities is None else _rounded(moment.probabilities),
            "entropy": None if moment.entropy is None else round(moment.entropy, _DIGITS),
            "window_frames": moment.window_frames,
            "personalized": self._subject_id is not None or self._at_rest is not None,
            "resting": resting,
        }

    def _record(self, still: Still, moment: Moment, now: float) -> bool:
        """Add a frame to the resting face if it is being recorded, and say whether it is."""
        rest = self._resting
        if rest is None:
            return False
        rest.began = now if rest.began is None else rest.began
        rest.looked_at += 1
        if still.found and len(rest.features) < _REST_FRAMES:
            rest.features.append(moment.feature)
            rest.action_units.append(moment.action_units)
        return True


def _face(still: Still) -> dict[str, Any] | None:
    """The square box of the face without its tilt, pixels of the frame that was sent."""
    if still.box is None:
        return None
    return {name: round(still.box[name], 2) for name in ("x", "y", "side")} | {"found": still.found}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, _DIGITS) for name, value in values.items()}
