"""What an overlay draws around and into the frames of a video: text, curves, bars, and where the face is.

In: an answer, see `shown.Answer`, and the boxes of the face. Out: a `Plan` for `overlay_frames.write_frames`. This
module does without PyTorch.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipautt.prediction.figure import FOUND, INFERRED, rendered, rgb
from clipautt.prediction.lettering import font_file
from clipautt.prediction.overlay_frames import Plan
from clipautt.prediction.shown import Answer, face_states

_SAID = {
    "found": ("face found", FOUND),
    "inferred": ("face not found here, box inferred from other frames", INFERRED),
    "not seen": ("face not found here", "#8A8A8A"),
}
"""State of the face → what is said of it, and the colour of the box; nothing without a detector."""


def plan_of(
    answer: Answer,
    times: npt.NDArray[np.floating],
    boxes: npt.NDArray[np.floating],
    *,
    highest: int = 640,
    rate: float | None = None,
) -> Plan:
    """The plan of an answer's overlay.

    Args:
        answer: what is drawn.
        times: seconds at which the face was looked for, those of `answer.frames`, [T].
        boxes: where it is, of which the first four values of `reader.BOX` count, [T, 4 or more]; nan for nowhere.
        highest: pixels of the picture's height at most.
        rate: frames per second at most; None: all.
    """
    made = rendered(answer)
    file = io.BytesIO()
    Image.fromarray(made.pixels).save(file, format="PNG")
    return Plan(
        png=base64.b64encode(file.getvalue()).decode(),
        header=made.header,
        left=made.left,
        right=made.right,
        end_seconds=made.end_seconds,
        charts=made.charts,
        moments=made.moments,
        curves=[(curve.rows, curve.colour) for curve in made.curves],
        bars=[(bar.rows[0], bar.rows[1], bar.values, bar.colour) for bar in made.bars],
        bar_columns=made.bar_columns,
        reach=(answer.window_end_seconds - answer.window_start_seconds) / 2 if made.bars else 0.0,
        times=times.tolist(),
        boxes=boxes[:, :4].astype(np.float64).tolist(),
        states=[_SAID[state][0] if state in _SAID else "" for state in face_states(answer.frames)],
        colours={sentence: rgb(colour) for sentence, colour in _SAID.values()},
        font=font_file(),
        highest=highest,
        rate=rate,
    )
