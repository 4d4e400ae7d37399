"""An answer beside the table of another tool: OpenFace 2, py-feat, LibreFace or iMotions.

In: a `VideoPrediction` of a whole video, and the tool's table of it. Out: a row per action unit that both have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from clipautt.action_units import title_of
from clipautt.clips import Clip
from clipautt.evaluation.au_tables.faces import Which
from clipautt.evaluation.au_tables.fitting import read_au_table_of
from clipautt.metrics import rank_correlation
from clipautt.prediction.answers import VideoPrediction


def compare(prediction: VideoPrediction, path: str | Path, *, which: Which = "largest") -> pd.DataFrame:
    """How far the similarities of a video rise and fall with another tool's intensities.

    Args:
        prediction: of a whole video, whose file is still there.
        path: the tool's table of the same video.
        which: whose face, where the table holds several, see `faces.which`.

    Returns:
        Index `code`; `name`, `spearman` (rank correlation over the windows, -1 to 1; nan where one of the two does not
        change), `windows` (in which both see the face), `learned` (False if the backbone never learned the AU) and
        `tool`.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it is none of a known tool, or does not fit the video.
    """
    clip = Clip(prediction.clip.clip_id, prediction.clip.subject_id, prediction.video, "target")
    track = read_au_table_of(Path(path), clip, which=which)
    windows = prediction.windows
    theirs, _ = track.in_windows(windows["start_seconds"].to_numpy(), windows["end_seconds"].to_numpy())
    rows = []
    for code in (code for code in prediction.action_unit_codes if code in theirs):
        ours, other = windows[code].to_numpy(float), theirs[code].to_numpy(float)
        both = np.isfinite(ours) & np.isfinite(other)
        spearman = rank_correlation(ours[both], other[both])
        name = title_of(code).removeprefix(f"{code} ")
        rows.append((code, name, spearman, int(both.sum()), code not in prediction.not_learned, track.tool))
    return pd.DataFrame(rows, columns=["code", "name", "spearman", "windows", "learned", "tool"]).set_index("code")
