"""OpenFace 2's CSV files: find the file of each clip, and read its AU intensities and presences under our AU codes.

OpenFace (Baltrušaitis et al., 2018, doi:10.1109/FG.2018.00019) estimates 17 intensities (`AU01_r` … `AU45_r`, 0 to 5)
and 18 presences (`AU01_c` …, 0 or 1; AU28 has only this one) in every frame. Users write the
files with `FeatureExtraction` or `FaceLandmarkVidMulti`; nothing here runs OpenFace.

The estimates are not ground truth. Whether OpenFace read the video that was encoded is not checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.clips import Clip

MIN_CONFIDENCE = 0.75
"""Rows in which OpenFace is less confident are dropped."""

_UNIT = re.compile(r"AU(\d+)_([rc])")
_NOT_FINITE = r"[+-]?(?:nan|inf)(?:\(\w*\))?"
_FACTS = ("timestamp", "frame", "face_id", "confidence", "success")


@dataclass(frozen=True, eq=False, repr=False)
class OpenFaceTrack:
    """One face over the usable frames of a video."""

    path: Path
    """File it was read from."""
    intensities: pd.DataFrame
    """`time_seconds` of the clip, ascending, and a column per code such as `AU4`, 0..5; a row per usable frame."""
    presences: pd.DataFrame
    """The same rows: `time_seconds` and a column per AU code, 0 or 1."""
    face_id: int
    """OpenFace's number of the face with the most rows; 0 where the file has none."""
    num_rows: int
    """Rows of this face in the file."""
    num_dropped: int
    """Of these, rows that were dropped: no success, low confidence, or a value that is not finite."""
    num_other_faces: int
    """Rows of other faces, which are omitted."""

    def __repr__(self) -> str:
        return f"OpenFaceTrack({self.path.name!r}, {len(self.intensities)} of {self.num_rows} rows)"

    def in_windows(self, start_seconds: npt.ArrayLike, end_seconds: npt.ArrayLike) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Mean intensity and mean presence of every window.

        Args:
            start_seconds: of each window, inclusive, [V].
            end_seconds: of each window, exclusive, [V].

        Returns:
            Intensities (0..5) and presences (0..1), V rows each and a column per AU code; NaN in a window without a
            usable row.
        """
        return window_means(self.intensities, start_seconds, end_seconds), window_means(
            self.presences, start_seconds, end_seconds
        )


def window_means(frames: pd.DataFrame, start_seconds: npt.ArrayLike, end_seconds: npt.ArrayLike) -> pd.DataFrame:
    """Mean of each column over the rows of each window.

    Args:
        frames: `time_seconds`, ascending, and columns of finite numbers.
        start_seconds: of each window, inclusive, [V].
        end_seconds: of each window, exclusive, [V].

    Returns:
        V rows, the columns of `frames` without `time_seconds`; NaN in a window without rows.
    """
    values = frames.drop(columns="time_seconds")
    times = frames["time_seconds"].to_numpy(float)
    first, last = np.searchsorted(times, start_seconds), np.searchsorted(times, end_seconds)
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.to_numpy(float).cumsum(axis=0)])
    counts = np.where(last > first, last - first, np.nan)
    return pd.DataFrame((sums[last] - sums[first]) / counts[:, None], columns=values.columns)


def list_openface(folder: str | Path) -> dict[str, list[Path]]:
    """Name without suffix → paths, for the CSV files below a folder; one scan of the disk serves many clips.

    Folders named `…_aligned`, where OpenFace leaves a picture of every frame, are skipped.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"openface={folder}: no such folder; give the folder with OpenFace's CSV files")
    by_stem: dict[str, list[Path]] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith("_aligned")]
        for name in files:
            if name.lower().endswith(".csv"):
                by_stem.setdefault(Path(name).stem, []).append(Path(place, name))
    return {stem: sorted(paths) for stem, paths in by_stem.items()}


def match_openface(
    folder: str | Path | Mapping[str, Sequence[Path]], clips: Sequence[Clip]
) -> tuple[dict[str, Path], dict[str, str]]:
    """The CSV file of each clip: `<clip_id>.csv`, or else the one named after the video that the clip was cut from.

    Of several CSV files with that name, the one in a folder named like the video's is taken. If other videos have the
    same name, only such a file is taken, so that no clip gets the file of another video.

    Args:
        folder: searched at any depth; or the result of `list_openface`.
        clips: all clips of a run, since videos with the same name must be told apart. A clip id with slashes is matched
            by its whole path.

    Returns:
        Clip id → path, for clips with a file; and clip id → reason, for clips whose file is ambiguous.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    files = folder if isinstance(folder, Mapping) else list_openface(folder)
    sources: dict[str, set[str]] = {}
    for clip in clips:
        for name in _names(clip):
            sources.setdefault(name, set()).add(clip.source)
    matched: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for clip in clips:
        try:
            path = _of_clip(files, clip) or _of_video(files, clip, sources)
        except ValueError as error:
            problems[clip.clip_id] = str(error)
        else:
            if path is not None:
                matched[clip.clip_id] = path
    return matched, problems


def _names(clip: Clip) -> list[str]:
    """Names without suffix of the video or folder of frames that a clip was cut from."""
    return list(dict.fromkeys([Path(clip.source).stem, Path(clip.source).name]))


def _of_clip(files: Mapping[str, Sequence[Path]], clip: Clip) -> Path | None:
    ending = f"/{clip.clip_id}"
    named = files.get(Path(clip.clip_id).name, ())
    return _only(clip, [path for path in named if path.with_suffix("").as_posix().endswith(ending)])


def _of_video(files: Mapping[str, Sequence[Path]], clip: Clip, sources: Mapping[str, set[str]]) -> Path | None:
    folder = Path(clip.source).parent.name
    for name in _names(clip):
        same = list(files.get(name, ()))
        fitting = [path for path in same if path.parent.name == folder]
        if same and not fitting and len(sources[name]) > 1:
            raise ValueError(
                f"clip {clip.clip_id!r}: {same[0]} may belong to any of {len(sources[name])} videos named {name!r}; "
                f"put it into a folder named {folder!r}, or name it after clip_id"
            )
        if same:
            return _only(clip, fitting or same)
    return None


def _only(clip: Clip, paths: Sequence[Path]) -> Path | None:
    if len(paths) > 1:
        raise ValueError(
            f"clip {clip.clip_id!r}: {paths[0]} and {paths[1]} are both named {paths[0].stem!r}; keep one of them, "
            "or name OpenFace's files after clip_id"
        )
    return paths[0] if paths else None


def read_openface_of(path: Path, clip: Clip) -> OpenFaceTrack:
    """Read the CSV file of a clip, in seconds of the clip.

    A file named after the video covers all of it, so its times are shifted by the start of the clip; a file named after
    the clip starts with the clip.

    Raises:
        FileNotFoundError, ValueError: as `read_openface`.
    """
    if path.stem not in _names(clip):
        return read_openface(path)
    return read_openface(path, offset_seconds=clip.start_seconds or 0.0, offset_frames=clip.start_frame or 0)


def read_openface(
    path: str | Path,
    *,
    offset_seconds: float = 0.0,
    offset_frames: int = 0,
    min_confidence: float = MIN_CONFIDENCE,
) -> OpenFaceTrack:
    """Read a CSV file that OpenFace wrote.

    Args:
        path: the CSV file.
        offset_seconds: where the clip begins in the video that OpenFace read; subtracted from its times.
        offset_frames: the same as a number of frames, for clips that are cut by frames.
        min_confidence: rows with a lower confidence are dropped, 0..1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file, column and line, if it is empty, has no timestamps or no action units, holds something
            that is not a number or is out of range, or if times decrease.
    """
    path = Path(path)
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence={min_confidence}; allowed is 0 to 1")
    table = _read_numbers(path)
    face, face_id = _main_face(table)
    _check_times(path, face)
    usable = face.notna().all(axis=1)
    usable &= face.get("success", pd.Series(1, face.index)) == 1
    usable &= face.get("confidence", pd.Series(1, face.index)) >= min_confidence
    kept = face[usable]
    _check_ranges(path, kept)
    times = kept["timestamp"] - _time_of_frame(path, face, offset_frames) - offset_seconds
    return OpenFaceTrack(
        path=path,
        intensities=_units(kept, times, "r"),
        presences=_units(kept, times, "c"),
        face_id=face_id,
        num_rows=len(face),
        num_dropped=int((~usable).sum()),
        num_other_faces=len(table) - len(face),
    )


def _read_numbers(path: Path) -> pd.DataFrame:
    """The needed columns as numbers, blanks stripped from their names, and the `line` of each row in the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no OpenFace file at {path}; FeatureExtraction -f VIDEO -out_dir FOLDER writes it")
    try:
        header = pd.read_csv(path, nrows=0, encoding="utf-8-sig", index_col=False)
        names = [str(name).strip() for name in header.columns]
        wanted = [number for number, name in enumerate(names) if name in _FACTS or _UNIT.fullmatch(name)]
        _check_columns(path, names)
        text = pd.read_csv(
            path, usecols=wanted, dtype=str, na_filter=False, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty; run OpenFace again") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}; run OpenFace again") from error
    text.columns = pd.Index([names[number] for number in wanted])
    text = text.apply(lambda column: column.str.strip())
    text = text[(text != "").any(axis=1)]
    if text.empty:
        raise ValueError(f"{path} has a header and no rows; run OpenFace again")
    lines = text.index.to_numpy() + 2
    numbers = {str(name): _numbers(path, column, lines) for name, column in text.items()}
    return pd.DataFrame(numbers).assign(line=lines)


def _check_columns(path: Path, names: Sequence[str]) -> None:
    there = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    if "timestamp" not in names:
        raise ValueError(
            f"{path}: no column timestamp (columns: {there}); OpenFace's FeatureExtraction writes it for videos, "
            "FaceLandmarkImg does not"
        )
    if not any(_UNIT.fullmatch(name) for name in names):
        raise ValueError(f"{path}: no action units such as AU04_r (columns: {there}); run OpenFace with -aus")


def _numbers(path: Path, column: pd.Series, lines: npt.NDArray[np.int64]) -> pd.Series:
    """Cells as numbers; OpenFace's spellings of NaN and infinity become NaN, but are errors in `timestamp`."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    numbers[np.isinf(numbers)] = np.nan
    wrong = numbers.isna()
    if column.name != "timestamp":
        wrong &= ~column.str.fullmatch(_NOT_FINITE, case=False)
    if wrong.any():
        row = _first(wrong)
        cell = column.iloc[row]
        todo = "a number is needed" if cell else "the line was cut off, run OpenFace again"
        raise ValueError(f"{path}, line {lines[row]}: {column.name} is {cell!r}; {todo}")
    return numbers


def _main_face(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The rows and number of the face with the most rows; at a tie, of the lowest number."""
    if "face_id" not in table:
        return table, 0
    sizes = table["face_id"].value_counts()
    face = sizes[sizes == sizes.max()].index.min()
    return table[table["face_id"] == face], int(face)


def _check_times(path: Path, table: pd.DataFrame) -> None:
    """Refuse times that decrease or are all equal; neighbours may be equal, as OpenFace rounds to milliseconds."""
    times = table["timestamp"].to_numpy(float)
    back = np.diff(times, prepend=times[0]) < 0
    if back.any():
        row = _first(back)
        raise ValueError(
            f"{path}, line {table['line'].iloc[row]}: timestamp {times[row]:g} comes after {times[row - 1]:g}; times "
            "must ascend: a file may hold a single video only"
        )
    if len(times) > 1 and times[0] == times[-1]:
        raise ValueError(
            f"{path}: timestamp is {times[0]:g} in all {len(times)} rows, so frames cannot be placed in time; convert "
            "the video to a constant frame rate and run OpenFace again"
        )


def _check_ranges(path: Path, table: pd.DataFrame) -> None:
    for name, values in table.items():
        match = _UNIT.fullmatch(str(name))
        if match is None:
            continue
        wrong = ~values.between(0, 5) if match[2] == "r" else ~values.isin([0, 1])
        if wrong.any():
            row = _first(wrong)
            allowed = "0 to 5" if match[2] == "r" else "0 or 1"
            line = table["line"].iloc[row]
            raise ValueError(f"{path}, line {line}: {name} is {values.iloc[row]:g}; allowed is {allowed}")


def _first(wrong: npt.ArrayLike) -> int:
    """Position of the first true value."""
    return int(np.flatnonzero(wrong)[0])


def _time_of_frame(path: Path, table: pd.DataFrame, frame: int) -> float:
    """Time of a frame counted from 0; OpenFace counts from 1."""
    if frame == 0:
        return 0.0
    times = table.loc[table["frame"] == frame + 1, "timestamp"] if "frame" in table else pd.Series(dtype=float)
    if times.empty:
        raise ValueError(
            f"{path}: no row has frame {frame + 1}, where the clip begins (offset_frames={frame}); run OpenFace on the "
            "whole video, or name the file after clip_id if it covers the clip alone"
        )
    return float(times.iloc[0])


def _units(table: pd.DataFrame, times: pd.Series, kind: str) -> pd.DataFrame:
    """`time_seconds` and the action units of one kind under our codes: `AU04_r` becomes `AU4`."""
    columns = {"time_seconds": times.to_numpy()}
    for name in table.columns:
        match = _UNIT.fullmatch(str(name))
        if match and match[2] == kind:
            columns[f"AU{int(match[1])}"] = table[name].to_numpy(float)
    return pd.DataFrame(columns)
