"""Records for a report: single clips, and how far AU similarities follow the true AU intensities.

True intensities are passed in; synthetic faces have them, real videos do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.metrics import rank_correlation

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class ClipStory:
    """One clip: what was seen, which window was chosen, and what personalization changed."""

    clip_id: str
    """Id of the clip."""
    subject_id: str
    """Id of the subject."""
    label: str
    """True class name."""
    prediction_before: str
    """Class predicted by the reference."""
    prediction_after: str
    """Class predicted by the personalized model."""
    probability_before: float
    """Probability of the positive (last) class by the reference, 0..1."""
    probability_after: float
    """Probability of the positive (last) class by the personalized model, 0..1."""
    frames: npt.NDArray[np.uint8] = field(repr=False)
    """RGB frames of the selected window in order, uint8 [n, H, W, 3], n from 1."""
    window_start_seconds: float
    """Where the selected window begins in the clip."""
    window_end_seconds: float
    """Where it ends."""
    window_times: Array = field(repr=False)
    """Centre of every window, seconds, ascending, [V]."""
    entropies: Array = field(repr=False)
    """Entropy of every window's prediction, nats, [V]."""
    similarities: Array = field(repr=False)
    """AU similarities of every window, [V, K]."""
    codes: tuple[str, ...]
    """AU codes of the K columns, such as `AU4`; those that the backbone never learned are left out."""
    truth: pd.DataFrame | None = field(default=None, repr=False)
    """True intensities per frame: `time_seconds`, AU codes (0..1), `burst` (bool); None where unknown."""

    def __post_init__(self) -> None:
        shape = np.shape(self.frames)
        if len(shape) != 4 or shape[0] < 1 or shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ValueError(
                f"frames of {self.clip_id!r} are {self.frames.dtype} {shape}; allowed is uint8 [n, H, W, 3]"
            )
        num_windows, num_units = len(self.window_times), len(self.codes)
        if len(self.entropies) != num_windows or np.shape(self.similarities) != (num_windows, num_units):
            raise ValueError(
                f"clip {self.clip_id!r} has {num_windows} window times, {len(self.entropies)} entropies and "
                f"similarities {np.shape(self.similarities)} for {num_units} codes; allowed: [V], [V] and [V, K]"
            )
        if self.truth is not None and not {"time_seconds", "burst"} <= set(self.truth.columns):
            raise ValueError(
                f"truth of {self.clip_id!r} has columns {list(self.truth)}; time_seconds and burst are needed"
            )

    @property
    def selected(self) -> int:
        """Index of the window nearest to the centre of the selected one."""
        centre = (self.window_start_seconds + self.window_end_seconds) / 2
        return int(np.abs(np.asarray(self.window_times) - centre).argmin())


@dataclass(frozen=True)
class AuAgreement:
    """How well one AU's similarity ranks the windows by the true intensity of that AU."""

    code: str
    """Such as `AU4`."""
    rho: float
    """Spearman's rank correlation before personalization, -1..1; NaN where one side is constant."""
    rho_adapted: float | None
    """The same with adapted prompts or a subject baseline; None without either."""
    num_windows: int
    """Windows it was computed over."""


def au_agreement(
    similarities: Array, truth: pd.DataFrame, codes: Sequence[str], *, adapted: Array | None = None
) -> list[AuAgreement]:
    """Spearman's rank correlation of AU similarities with true intensities, for every code that has both.

    Args:
        similarities: of N windows (or frames), possibly of many clips, [N, K].
        truth: true intensities of the same windows, N rows, a column per AU code; other columns are not read.
        codes: the K codes of `similarities`.
        adapted: the similarities after personalization, [N, K].

    Raises:
        ValueError: if the shapes do not fit.
    """
    wanted = (len(truth), len(codes))
    for name, array in {"similarities": similarities, "adapted": adapted}.items():
        if array is not None and np.shape(array) != wanted:
            raise ValueError(f"{name} is {np.shape(array)}; allowed is [rows of truth, codes] = {wanted}")
    agreement = []
    for column, code in enumerate(codes):
        if code not in truth:
            continue
        true = truth[code].to_numpy(float)
        after = None if adapted is None else rank_correlation(adapted[:, column], true)
        agreement.append(AuAgreement(code, rank_correlation(similarities[:, column], true), after, len(truth)))
    return agreement


def truth_of_windows(truth: pd.DataFrame, start_seconds: Array, end_seconds: Array) -> pd.DataFrame:
    """Mean true intensity of every window, the counterpart of its AU similarities.

    Args:
        truth: per frame, `time_seconds` and AU codes (0..1); `burst` becomes the share of frames in the burst.
        start_seconds: of each window, inclusive, [V].
        end_seconds: of each window, exclusive, [V].

    Raises:
        ValueError: if no frame of `truth` lies in a window.
    """
    times = truth["time_seconds"].to_numpy(float)
    values = truth.drop(columns="time_seconds").to_numpy(float)
    means = []
    for start, end in zip(start_seconds, end_seconds, strict=True):
        inside = (times >= start) & (times < end)
        if not inside.any():
            raise ValueError(f"no frame of truth lies in the window from {start} to {end} seconds")
        means.append(values[inside].mean(0))
    columns = [name for name in truth.columns if name != "time_seconds"]
    return pd.DataFrame(np.reshape(means, (len(means), len(columns))), columns=columns)
