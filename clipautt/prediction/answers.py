"""`VideoPrediction`: what the model says of one video, with its tables.

In: a clip's features, its windows and their numbers. Out: the answer; `windows`, `frames` and `row` are what
`clipautt predict … out=` writes, with the columns of `columns`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.action_units import NONE_ROSE, risen, title_of
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.windows import WindowSpec, window_spans, window_starts
from clipautt.prediction.cautions import Code
from clipautt.prediction.columns import columns_of
from clipautt.video.reader import BOX

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FACE = tuple(f"face_{name}" for name in BOX)
_NONE = ""


@dataclass(frozen=True, eq=False, repr=False)
class Curves:
    """The numbers of the windows of a clip that count."""

    starts: npt.NDArray[np.int64]
    """First frame of each window, counted in stored frames, [V]."""
    of_frames: npt.NDArray[np.float32]
    """How similar every frame is to every AU phrase, see `Source.face_similarities`, [T, K]."""
    evidence: npt.NDArray[np.float32]
    """AU similarities s of the trained model, which its classifier reads, [V, K]."""
    probabilities: npt.NDArray[np.float32]
    """Class probabilities, [V, C]."""
    entropy: npt.NDArray[np.float32]
    """Entropy of the class probabilities in nats, [V]."""

    def __repr__(self) -> str:
        return f"Curves({len(self.starts)} windows)"


@dataclass(frozen=True, eq=False, repr=False)
class VideoPrediction:
    """What the model says about one video."""

    video: str
    """Path of the file."""
    label: str | None
    """The most probable class; None where the video cannot be predicted, which leaves the fields below without values:
    no probabilities, and window times that are nan."""
    probabilities: Mapping[str, float]
    """Class name → probability; they sum to 1."""
    window_start_seconds: float
    """Start of the most expressive window, seconds from the start of the clip."""
    window_end_seconds: float
    """End of that window, seconds."""
    clip: ClipFeatures
    """The features that the answer rests on, with the face's box in every frame."""
    spec: WindowSpec
    """How the video was cut into windows."""
    classes: tuple[str, ...]
    """Names of the model's classes."""
    action_unit_codes: tuple[str, ...]
    """Codes of the model's AUs, the columns of `action_units`."""
    curves: Curves | None = None
    """The numbers of every window that counts; None without a label."""
    personalized_for: str | None = None
    """Subject whose prompts or centre were used."""
    cautions: Mapping[Code, str] = field(default_factory=dict)
    """What speaks against the answer: code → sentence, see `cautions.CODES`."""
    not_learned: tuple[str, ...] = ()
    """Columns of `action_units` that the backbone never learned, so that they mean nothing; empty if that is not
    known."""
    reason: str = ""
    """Why there is no label; empty if there is one."""

    @property
    def status(self) -> Literal["ok", "no_prediction"]:
        """Whether there is a label."""
        return "ok" if self.label is not None else "no_prediction"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on why the answer may be worth little; empty where nothing speaks against it."""
        return tuple(self.cautions.values())

    @property
    def face_share(self) -> float:
        """Share of the frames in which the face was found, 0..1; nan without a face detector."""
        return self.clip.face_share

    @property
    def other_faces(self) -> int:
        """Other faces that were followed through the video and left out."""
        return self.clip.other_faces

    @property
    def duration_seconds(self) -> float:
        """Length of the video from its first frame to the end of its last."""
        start, end = window_spans(self.clip.times, np.zeros(1, np.int64), WindowSpec(len(self.clip.times)))
        return float(end[0] - start[0])

    @property
    def action_units(self) -> pd.DataFrame:
        """How similar the face is to each AU, for the frozen backbone: cosines from -1 to 1, means over a window.

        Index `time_seconds` (middle of the window), a column per AU code, a row per window that counts: enough of its
        frames show the face. Only changes within a video say something: every AU has a level of its own.
        """
        return pd.DataFrame(self._similarities(), index=self._times(), columns=list(self.action_unit_codes))

    @property
    def evidence(self) -> pd.DataFrame:
        """AU similarities s of the trained model, -5 to 5, which its classifier reads; index and columns as above.

        They say what speaks for a class. Training bends them to that end, so they do not say whether an AU is there.
        """
        values = np.empty((0, len(self.action_unit_codes))) if self.curves is None else self.curves.evidence
        return pd.DataFrame(values, index=self._times(), columns=list(self.action_unit_codes))

    def _similarities(self) -> npt.NDArray[np.float64]:
        if self.curves is None:
            return np.empty((0, len(self.action_unit_codes)))
        stride, grid = self.spec.stride, len(self.clip.times[:: self.spec.stride])
        values = self.curves.of_frames[::stride].astype(np.float64)
        return _means(values, self.curves.starts // stride, min(self.spec.length, grid))

    @property
    def entropy(self) -> pd.Series[float]:
        """Entropy of the class probabilities of every such window in nats, same index; lowest where the face is most
        expressive."""
        return pd.Series(
            np.empty(0) if self.curves is None else self.curves.entropy, index=self._times(), name="entropy"
        )

    @property
    def class_probabilities(self) -> pd.DataFrame:
        """Class probabilities of every such window, same index, a column per class."""
        values = np.empty((0, len(self.classes))) if self.curves is None else self.curves.probabilities
        return pd.DataFrame(values, index=self._times(), columns=list(self.classes))

    def _times(self) -> pd.Index[float]:
        return pd.Index(self._middles(), name="time_seconds", dtype=float)

    def _middles(self) -> npt.NDArray[np.float64]:
        """Middle of every window that counts, seconds, [V]."""
        starts = np.empty(0, np.int64) if self.curves is None else self.curves.starts
        start, end = window_spans(self.clip.times, starts, self.spec)
        return (start + end) / 2

    @property
    def top_action_units(self) -> pd.DataFrame:
        """The AUs that rose most in the window, highest first, of those that the backbone has learned.

        Returns:
            At most five rows, none where nothing rose, see `action_units.risen`; index `code`, such as `AU4`; columns
            `name`, such as `Brow lowerer`, and `rise`, see `rises`.
        """
        rises = self.rises()
        codes = risen({str(code): rise for code, rise in rises.items() if code not in self.not_learned})
        names = [title_of(code).removeprefix(f"{code} ") for code in codes]
        return pd.DataFrame(
            {"name": names, "rise": rises[codes].to_numpy()}, index=pd.Index(codes, name="code", dtype=object)
        )

    def rises(self) -> pd.Series[float]:
        """By how much each AU rose, below 0 where it fell: mean of `action_units` in the window minus their median over
        the video; index: AU code."""
        return pd.Series(self._rises(), index=list(self.action_unit_codes), dtype=float)

    def _rises(self) -> npt.NDArray[np.float64]:
        if self.curves is None:
            return np.full(len(self.action_unit_codes), math.nan)
        times, values = self._middles(), self._similarities()
        inside = (times >= self.window_start_seconds) & (times <= self.window_end_seconds)
        mean = values[inside].mean(axis=0) if inside.any() else np.full(values.shape[1], math.nan)
        rises: npt.NDArray[np.float64] = mean - np.median(values, axis=0)
        return rises

    @property
    def row(self) -> dict[str, Any]:
        """The row of this video in the table of clips."""
        numbers: dict[str, Any] = {
            "status": self.status,
            "reason": self.reason,
            "source": self.video,
            "prediction": self.label or _NONE,
            "window_start_seconds": self.window_start_seconds,
            "window_end_seconds": self.window_end_seconds,
            "entropy": _entropy(list(self.probabilities.values())),
            "duration_seconds": self.duration_seconds,
            "frames": len(self.clip.times),
            "windows": len(window_starts(len(self.clip.times[:: self.spec.stride]), self.spec)),
            "windows_counted": 0 if self.curves is None else len(self.curves.starts),
            "face_share": self.face_share,
            "turned_share": self.clip.turned_share,
            "brightness": self.clip.mean_brightness,
        }
        chances = {f"probability_{name}": self.probabilities.get(name, math.nan) for name in self.classes}
        values = numbers | chances | self._units() | self._validity()
        return {name: values[name] for name in _names("clips", self.classes, self.action_unit_codes)}

    def _units(self) -> dict[str, float]:
        """The numbers of every AU for the row of the clip."""
        nothing = np.full(len(self.action_unit_codes), math.nan)
        mean, evidence = nothing, nothing
        if self.curves is not None:
            mean, times = self._similarities().mean(axis=0), self._middles()
            chosen = np.abs(times - (self.window_start_seconds + self.window_end_seconds) / 2).argmin()
            evidence = self.curves.evidence[chosen].astype(np.float64)
        figures = {"mean": mean, "rise": self._rises(), "evidence": evidence}
        return {
            f"{code}_{name}": float(value)
            for name, values in figures.items()
            for code, value in zip(self.action_unit_codes, values, strict=True)
        }

    @property
    def windows(self) -> pd.DataFrame:
        """A row per window, also of those that do not count, with the columns `columns.WINDOWS`, the probability of
        each class, the similarity of each AU, and what speaks against them."""
        spec, times = self.spec, self.clip.times
        grid = len(times[:: spec.stride])
        starts = np.array(window_starts(grid, spec), np.int64) * spec.stride
        start, end = window_spans(times, starts, spec)
        number = np.arange(len(starts))
        counted = self._counted(starts)
        chosen = counted >= 0
        if chosen.any():
            chosen &= np.isclose(start, self.window_start_seconds) & np.isclose(end, self.window_end_seconds)
        values: dict[str, Any] = {
            "window": number,
            "time_seconds": (start + end) / 2,
            "start_seconds": start,
            "end_seconds": end,
            "status": np.where(counted >= 0, "ok", "no_face") if self.curves is not None else "no_prediction",
            "chosen": chosen,
        }
        values |= self._faces_in(starts // spec.stride, min(spec.length, grid)) | self._numbers(counted)
        return self._table("windows", values, len(starts))

    @property
    def frames(self) -> pd.DataFrame:
        """A row per frame, with the columns `columns.FRAMES`, the frame's similarity to each AU, and the class
        probabilities and the evidence of the window around it."""
        spec, clip = self.spec, self.clip
        count, grid = len(clip.times), len(clip.times[:: spec.stride])
        starts = np.array(window_starts(grid, spec), np.int64)
        middles = starts + (min(spec.length, grid) - 1) / 2
        window = _nearest(np.arange(count) / spec.stride, middles)
        counted = self._counted(starts * spec.stride)[window]
        detected = bool(clip.min_share) and clip.face_found is not None
        values: dict[str, Any] = {
            "frame": np.arange(count),
            "time_seconds": clip.times,
            "status": np.where(counted >= 0, "ok", "no_face") if self.curves is not None else "no_prediction",
            "face_found": pd.Series(clip.face_found if detected else None, index=range(count), dtype="boolean"),
            "face_turn": _known(clip.turned, count),
            "brightness": _known(clip.brightness, count),
            "window": window,
        }
        boxes = np.full((count, len(BOX)), math.nan) if clip.boxes is None else clip.boxes
        values |= dict(zip(_FACE, boxes.T, strict=True)) | self._numbers(counted)
        if self.curves is not None:
            shown = (counted >= 0) & (np.ones(count, bool) if clip.brightness is None else np.isfinite(clip.brightness))
            own = np.where(shown[:, None], self.curves.of_frames, math.nan)
            values |= dict(zip(self.action_unit_codes, own.T, strict=True))
        return self._table("frames", values, count)

    def _table(self, name: str, values: dict[str, Any], rows: int) -> pd.DataFrame:
        every = values | self._validity()
        names = _names(name, self.classes, self.action_unit_codes)
        return pd.DataFrame({one: every[one] for one in names}, index=range(rows))

    def _validity(self) -> dict[str, Any]:
        return {
            "clip": self.clip.clip_id,
            "subject": self.clip.subject_id,
            "other_faces": self.other_faces,
            "personalized_for": self.personalized_for or _NONE,
            "not_learned": ";".join(self.not_learned),
            "warnings": ";".join(self.cautions),
        }

    def _counted(self, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For each window its row in `curves`, or -1 where it does not count."""
        if self.curves is None:
            return np.full(len(starts), -1)
        place = np.searchsorted(self.curves.starts, starts).clip(max=len(self.curves.starts) - 1)
        return np.where(self.curves.starts[place] == starts, place, -1)

    def _numbers(self, counted: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
        """Entropy, probabilities, similarities and evidence of windows; nan for those that do not count."""
        codes = self.action_unit_codes
        chances, evidence = (f"probability_{name}" for name in self.classes), (f"{code}_evidence" for code in codes)
        names = ["entropy", *chances, *codes, *evidence]
        if self.curves is None:
            return {name: np.full(len(counted), math.nan) for name in names}
        curves = self.curves
        every = np.column_stack([curves.entropy, curves.probabilities, self._similarities(), curves.evidence]).astype(
            np.float64
        )
        taken = np.where(counted[:, None] >= 0, every[counted], math.nan)
        return dict(zip(names, taken.T, strict=True))

    def _faces_in(self, starts: npt.NDArray[np.int64], length: int) -> dict[str, npt.NDArray[np.float64]]:
        """Share of each window's frames with the face, and the means of box, turn and brightness over its frames."""
        clip, stride = self.clip, self.spec.stride
        count = len(clip.times)
        found = np.full(count, math.nan) if not clip.min_share or clip.face_found is None else clip.face_found
        boxes = np.full((count, len(BOX)), math.nan) if clip.boxes is None else clip.boxes
        others = (_known(values, count) for values in (clip.turned, clip.brightness))
        columns = np.column_stack([found, boxes, *others])[::stride].astype(np.float64)
        names = ("face_share", *_FACE, "face_turn", "brightness")
        return dict(zip(names, _means(columns, starts, length).T, strict=True))

    def plot(self, path: str | Path | None = None) -> Figure:
        """The answer as a figure: label and warnings, then the face, the class probabilities and the AUs over time.

        The most expressive window is marked, and stretches without a face are hatched. `overlay.write_overlay` puts the
        same around the frames of the video.

        Args:
            path: file to write as well; its name ends in .png, .svg or .pdf.

        Returns:
            The figure of matplotlib, which belongs to no window of pyplot. Its curves are named.

        Raises:
            ValueError: for a file of another kind.
        """
        from clipautt.evaluation.reports.figures import save  # matplotlib takes a second to import
        from clipautt.prediction.figure import draw

        figure = draw(self)
        if path is not None:
            save(figure, Path(path))
        return figure

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from clipautt.prediction.notebook import html_of

        return html_of(self)

    def __repr__(self) -> str:
        warned = "".join(f"; warning: {sentence}" for sentence in self.warnings)
        if self.label is None:
            return f"VideoPrediction(None: {self.reason}{warned})"
        shares = ", ".join(f"{name} {value:.2f}" for name, value in self.probabilities.items())
        window = f"{self.window_start_seconds:.2f}–{self.window_end_seconds:.2f} s"
        units = ", ".join(f"{code} {name} {rise:+.3f}" for code, name, rise in self.top_action_units.itertuples())
        return (
            f"VideoPrediction({self.label!r}: {shares}; window {window} of {self.action_units.shape[0]}; "
            f"{f'rise in AU similarity (cosine): {units}' if units else NONE_ROSE}{warned})"
        )


def _known(values: npt.NDArray[np.float32] | None, count: int) -> npt.NDArray[np.floating]:
    """The values of the frames, [T]; nan where they were not recorded."""
    return np.full(count, math.nan) if values is None else values


@cache
def _names(table: str, classes: tuple[str, ...], codes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(column.name for column in columns_of(table, classes=classes, action_units=codes))


def _nearest(places: npt.NDArray[np.floating], middles: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Index of the nearest of the ascending `middles` for each place; of two equally near ones the first."""
    if len(middles) == 1:
        return np.zeros(len(places), np.int64)
    after = np.searchsorted(middles, places).clip(1, len(middles) - 1)
    nearer = places - middles[after - 1] > middles[after] - places
    return np.where(nearer, after, after - 1)


def _means(values: npt.NDArray[np.float64], starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.float64]:
    """Mean of the known values of each window: [T, k] → [V, k]; nan where none is known."""
    known = np.isfinite(values)
    sums, counts = (
        np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(part, axis=0)])
        for part in (np.where(known, values, 0.0), known)
    )
    number = counts[starts + length] - counts[starts]
    with np.errstate(invalid="ignore"):
        return np.where(number > 0, (sums[starts + length] - sums[starts]) / np.maximum(number, 1), math.nan)


def _entropy(probabilities: list[float]) -> float:
    """Shannon entropy in nats; nan without probabilities."""
    return -sum(p * math.log(p) for p in probabilities if p > 0) if probabilities else math.nan
