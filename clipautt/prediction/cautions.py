"""What speaks against the numbers of a clip: a code for tables, and a sentence for people.

In: the features of a clip and the model. Out: code → sentence, in a fixed order; empty where nothing speaks against it.

The limits were measured, see `make bench-validity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from clipautt.adaptation.basis import Basis
from clipautt.features.clip_features import ClipFeatures
from clipautt.features.store import ClipFacts
from clipautt.footage import Footage, is_rendered, other_footage
from clipautt.model.checkpoint import Checkpoint
from clipautt.model.windows import WindowSpec
from clipautt.video.face_check import face_warning
from clipautt.video.faces import FEW_FACES, few_faces
from clipautt.video.head_turn import MOST_TURNED

MANY_TURNED = 1 - FEW_FACES
"""Share of the frames with the face in which it may be turned away: as many as may lack it."""
Code = Literal[
    "unseen_footage",
    "few_faces",
    "small_face",
    "turned_face",
    "other_faces",
    "decoding",
    "too_short",
    "too_long",
    "too_dark",
    "few_personal_frames",
    "not_adapted",
]
CODES: dict[Code, str] = {
    "unseen_footage": "Backbone or checkpoint were trained on another kind of faces, rendered or real, only",
    "few_faces": f"The face is found in fewer than {100 * FEW_FACES:.0f} % of the frames",
    "small_face": "The face has too few pixels for the model, or without a face detector none fills the picture",
    "turned_face": (
        f"The head is turned to a side by more than {MOST_TURNED:.0f} degrees in more than {100 * MANY_TURNED:.0f} % "
        "of the frames that show the face"
    ),
    "other_faces": "Other faces were followed and left out, and nothing says whose face is meant",
    "decoding": "The video could not be shown as it should be",
    "too_short": "The clip is hardly longer than one window, so that there is no resting face to compare with",
    "too_long": "The clip is much longer than those of training, so that some window shows anything by chance",
    "too_dark": "What the model sees is darker than footage on which it is reliable",
    "few_personal_frames": "The personalization that is used rests on few frames",
    "not_adapted": "Adaptation went wrong, and the prediction is made without it",
}
"""Code of a warning → what it means."""
MIN_WINDOWS = 2.0
"""Windows, laid end to end, that a clip without a personalization should have at least.

`make bench-validity` (part `length`) cuts clips of three windows, of 90 unseen rendered people. Cut around the
expression, UAR falls by 32 points at one window and by 5 at 1.25; cut anywhere, by 4.8 (2.0 to 7.6) at 1.5 and by 1.6
(-0.7 to 3.8) at two. With a resting face from the person's other clips, one window is enough. Where the expression
hardly ends, length is no help: if it fills 90 % of three windows, 9 points are lost, if all of them 24. Stillness does
not tell such a clip from one at rest, so only the length is looked at.
"""
MAX_LENGTH, USUAL_WINDOWS = 2.0, 3
"""How many times as long as a training clip a clip may be; and the windows of a training clip of unknown length.

`make bench-validity` (part `long`) cuts clips of twelve windows, of 90 unseen rendered people. Against three windows,
the length of the training clips, UAR falls by 2.2 points (-2.8 to 7.2) at four, by 5.0 (-0.6 to 10.6) at six and by
15.6 (9.4 to 21.7) at twelve, where half of the neutral clips are called expressive.
"""
MIN_BRIGHTNESS = 0.15
"""Mean luma, 0..1, below which footage is too dark.

`make bench-validity` (part `picture`) darkens clips of 60 unseen rendered people. Mean change of UAR with less light,
and with darker tones: +0.8 and -5.8 points at a brightness of 0.2, 0.0 and -5.8 at 0.15, -1.7 and -8.3 at 0.1, -9.2 and
-20.0 at 0.05. Overexposed frames lose 8 points at 0.9, where the picture is nearly white; no warning is given for them.
"""

FEWEST_PIXELS = 1 / 3
"""Side of the face's crop in the video, as a share of the side that the model takes, below which it is too small.

`make bench-validity` (part `picture`) reduces crops of 30 unseen rendered people and enlarges them again: the AUC, 0.91
with all pixels, is 0.86 at a third of the side, 0.63 at a quarter and 0.54 at a sixth.
"""


class Model(Protocol):
    """What is asked of a model: a `Source` has it, and `Unloaded`."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def window(self) -> WindowSpec: ...
    @property
    def footage(self) -> Mapping[str, Footage]: ...


@dataclass(frozen=True)
class Unloaded:
    """A model of which the backbone is not loaded."""

    checkpoint: Checkpoint
    """The checkpoint."""
    window: WindowSpec
    """How its clips are cut into windows."""
    footage: Mapping[str, Footage]
    """What it was trained on, see `checkpoint.footage_seen`."""


def cautions(
    model: Model,
    clip: ClipFeatures | ClipFacts,
    *,
    video: str = "",
    face: str | None = None,
    centred: bool = False,
    basis: Basis | None = None,
    fallback: str | None = None,
) -> dict[Code, str]:
    """What speaks against the numbers of a clip.

    Args:
        model: the model.
        clip: features of the clip, or what is known of it besides them.
        video: its file, which tells whether its faces are rendered where the clip does not; empty if it is not at hand.
        face: whose face was asked for; None if nobody was named.
        centred: whether the resting face comes from elsewhere than from this clip.
        basis: what the personalization rests on that is used; None without one, or if that is not known.
        fallback: why the prediction is made without adaptation, where that was asked for; None elsewhere.
    """
    found = dict(_cautions(model, clip, video, face, centred))
    if basis and basis.too_few:
        found["few_personal_frames"] = basis.too_few
    if fallback:
        found["not_adapted"] = f"Adaptation went wrong, and the prediction is made without it: {fallback}."
    return found


def _cautions(
    model: Model, clip: ClipFeatures | ClipFacts, video: str, face: str | None, centred: bool
) -> Iterator[tuple[Code, str]]:
    rendered = is_rendered(video) if clip.rendered is None and video else clip.rendered
    unseen = other_footage(model.footage, [rendered])
    if unseen:
        yield "unseen_footage", unseen
    few = few_faces(clip.face_share, model.checkpoint.spec.features.frames.faces)
    if few:
        yield "few_faces", f"{few[0].upper()}{few[1:]}, when extracting and training."
    small = _few_pixels(model, clip.face_pixels) or face_warning(clip.face_sides)
    if small:
        yield "small_face", small
    if clip.turned_share > MANY_TURNED:
        turned = (
            f"The head is turned to a side by more than {MOST_TURNED:.0f} degrees in {100 * clip.turned_share:.0f} % "
            "of the frames that show the face; half-hidden expressions are read poorly: film the face from the front."
        )
        yield "turned_face", turned
    if clip.other_faces and face is None:
        were = "1 other face was" if clip.other_faces == 1 else f"{clip.other_faces} other faces were"
        yield (
            "other_faces",
            (f"{were} left out; `clipautt predict` follows another one with face=left, right, center or a number."),
        )
    if clip.notes:
        yield "decoding", "; ".join(clip.notes)
    yield from _length(model, clip, centred)
    yield from _light(clip)


def _few_pixels(model: Model, pixels: float) -> str | None:
    frames = model.checkpoint.spec.features.frames
    wanted = frames.preprocessing.size / (1 + 2 * frames.faces.margin)
    if not pixels < FEWEST_PIXELS * wanted:
        return None
    return (
        f"The face is small: the side of its box has {pixels:.0f} pixels, where the model takes {wanted:.0f} and needs "
        f"{math.ceil(FEWEST_PIXELS * wanted)} or more; film it from nearby, or give the video in its full size."
    )


def _length(model: Model, clip: ClipFeatures | ClipFacts, centred: bool) -> Iterator[tuple[Code, str]]:
    frames = -(-clip.num_frames // model.window.stride)
    least = round(MIN_WINDOWS * model.window.length)
    if model.checkpoint.spec.subject_baseline != "none" and not centred and frames < least:
        short = (
            f"The clip has {frames} frame{'s' * (frames != 1)}, and its resting face is estimated from "
            f"{'them' if frames != 1 else 'it'}; {least} or more are needed to "
            "tell it from the expression: use other clips of the person as well (`clipautt personalize`)."
        )
        yield "too_short", short
    usual = model.checkpoint.spec.clip_frames or USUAL_WINDOWS * model.window.length * model.window.stride
    if clip.num_frames > MAX_LENGTH * usual:
        long = (
            f"The clip has {clip.num_frames} frames, and those of training had about {usual}: the label rests on its "
            "most certain window, and among so many some look expressive by chance. Cut it into clips of that length."
        )
        yield "too_long", long


def _light(clip: ClipFeatures | ClipFacts) -> Iterator[tuple[Code, str]]:
    light = clip.mean_brightness
    if light < MIN_BRIGHTNESS:
        dark = (
            f"The picture is dark: its brightness is {light:.2f} on a scale from 0 to 1, and below "
            f"{MIN_BRIGHTNESS:g} answers are unreliable; use brighter footage."
        )
        yield "too_dark", dark
