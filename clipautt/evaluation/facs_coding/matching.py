"""Human coding of many clips: reads a file or folder, and finds what belongs to each clip.

In: a path, and clips. Out: a `ClipCoding` per clip; and for everything else the reason: files that are no coding,
coding of no clip, clips without coding, coding that cannot be of its clip.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from clipautt.clips import Clip
from clipautt.commands import is_utf8
from clipautt.datasets.files import clip_name
from clipautt.evaluation.au_tables.fitting import Footage, footage_of
from clipautt.evaluation.au_tables.matching import match_au_tables, names_of_video
from clipautt.evaluation.facs_coding.coding import ClipCoding, FacsSettings, Floats, Piece, Track
from clipautt.evaluation.facs_coding.elan import read_elan
from clipautt.evaluation.facs_coding.text_tables import UnknownTableError, read_text_coding
from clipautt.tables import nfc

_TEXT = (".csv", ".tsv", ".txt")
_SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_DISFA = re.compile(r"SN\d{3}")
_TOLERANCE = 0.1
"""How far coding may reach beyond the end of its video, as a share of the video's length."""
_SLACK_SECONDS = 0.5
_SHOWN_PROBLEMS = 12
_ADVICE = {
    "frames": "; if its frames have another rate, give facs.frames_per_second",
    "seconds": "; if its times are not in seconds, call the columns onset_ms and offset_ms, or onset_frame and "
    "offset_frame",
}
"""What may be wrong with a table whose times reach beyond the end of its video."""


@dataclass(frozen=True)
class Coding:
    """Everything in a file or folder of human coding."""

    path: Path
    """The file or folder."""
    pieces: tuple[Piece, ...]
    """What was read, sorted by file."""
    not_read: dict[str, str] = field(default_factory=dict)
    """Path of each file that is no coding → why."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over or decided, a sentence each."""
        return tuple(dict.fromkeys(note for piece in self.pieces for note in piece.notes))


def read_coding(path: str | Path, settings: FacsSettings | None = None) -> Coding:
    """Read human coding.

    An AU that a table of intervals names anywhere counts as looked for in every clip of such tables: where none are
    noted it was absent. ELAN documents say by their tiers what was looked for, see `elan`.

    Args:
        path: a file, or a folder that is searched at any depth for .eaf, .csv, .tsv and .txt.
        settings: whose coding is read.

    Raises:
        FileNotFoundError: if there is no such path.
        ValueError: if there is no coding, or naming everything in it that is damaged.
    """
    path, settings = Path(path), settings or FacsSettings()
    if not path.exists():
        raise FileNotFoundError(f"coding={path}: no such file or folder")
    files = [path] if path.is_file() else sorted(_files(path))
    pieces: list[Piece] = []
    not_read: dict[str, str] = {}
    problems = []
    for file in files:
        try:
            found = _read(file, settings.coder)
            pieces += found
            if not found:
                not_read[str(file)] = f"{file} has a header and no rows"
        except UnknownTableError as error:
            not_read[str(file)] = str(error)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f"\n… and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise ValueError("\n".join(problems[:_SHOWN_PROBLEMS]) + more)
    if not pieces:
        reasons = "; ".join(list(not_read.values())[:3])
        raise ValueError(reasons or f"coding={path}: there is no .eaf, .csv, .tsv or .txt file in this folder")
    return Coding(path, tuple(_complete(_alike(pieces))), not_read)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        wanted = (*_TEXT, *_SHEETS, ".eaf")
        yield from (
            Path(place, name)
            for name in names
            if name.lower().endswith(wanted) and is_utf8(name) and not name.startswith((".", "~$"))
        )


def _read(file: Path, coder: str | None) -> list[Piece]:
    suffix = file.suffix.lower()
    if suffix == ".eaf":
        return [read_elan(file, coder=coder)]
    if suffix in _SHEETS:
        raise UnknownTableError(f"{file}: workbooks are not read; save the sheet as CSV")
    if suffix not in _TEXT:
        raise UnknownTableError(f"{file}: allowed are .eaf, .csv, .tsv and .txt")
    return read_text_coding(file, coder=coder)


def _alike(pieces: Sequence[Piece]) -> list[Piece]:
    """Tables with a column per AU hold intensities if one of them has a value above 1: an AU that never exceeds A looks
    like an occurrence."""
    graded = any(piece.kind == "intensity" and not piece.one_au for piece in pieces)
    return [replace(piece, kind="intensity") if graded and piece.kind == "occurrence" else piece for piece in pieces]


def _complete(pieces: Sequence[Piece]) -> list[Piece]:
    """Every AU that comprehensive intervals name anywhere, in all of them; and intensities of AUs that some grade."""
    looked_for = {code for piece in pieces if piece.comprehensive for code in piece.tracks}
    graded = {code for piece in pieces for code in piece.intensities}
    absent = Track.of([], outside=0.0)
    return [
        piece
        if piece.kind != "intervals"
        else replace(
            piece,
            tracks={**(dict.fromkeys(looked_for, absent) if piece.comprehensive else {}), **piece.tracks},
            intensities={code: piece.intensities.get(code, _ungraded(piece, code)) for code in graded},
        )
        for piece in pieces
    ]


def _ungraded(piece: Piece, code: str) -> Track:
    """Intensities of an AU that others grade and this piece does not: 0 outside of its intervals, unknown inside."""
    track = piece.tracks.get(code)
    if track is None:
        return Track.of([], outside=0.0)
    return replace(track, values=track.values * float("nan"))


@dataclass(frozen=True)
class Matched:
    """Which coding belongs to which clip."""

    codings: dict[str, ClipCoding]
    """Clip id → its coding."""
    problems: dict[str, str]
    """Clip id → why its coding cannot be used; clips that are in neither have none."""
    unmatched: tuple[Piece, ...]
    """Coding that belongs to no clip."""


def match_coding(coding: Coding, clips: Sequence[Clip], settings: FacsSettings | None = None) -> Matched:
    """Find the coding of each clip by its name, as `au_tables.matching` does for tables by tools.

    Coding is named after the clip, after its video, or after the folder and the video, as BP4D's `F001_T1` for
    `F001/T1`; DISFA's `SN001` also belongs to `LeftVideoSN001_comp`. An ELAN document may also name the video as its
    media file.

    Args:
        coding: what was read.
        clips: all clips, since videos with the same name must be told apart.
        settings: rate and first number of frames.
    """
    settings = settings or FacsSettings()
    found: dict[str, list[tuple[Piece, bool]]] = {}
    problems: dict[str, str] = {}
    for group in _groups(coding.pieces):
        pieces = _names(group, clips)
        matched, ambiguous = _match(pieces, clips)
        problems |= ambiguous
        for clip in clips:
            if clip.clip_id in matched:
                path = matched[clip.clip_id]
                found.setdefault(clip.clip_id, []).append((pieces[path], _covers_video(path, clip)))
    used = {id(piece) for entries in found.values() for piece, _ in entries}
    codings = {}
    for clip in clips:
        if clip.clip_id in found and clip.clip_id not in problems:
            try:
                codings[clip.clip_id] = _fitted(found[clip.clip_id], clip, settings)
            except ValueError as error:
                problems[clip.clip_id] = str(error)
    return Matched(codings, problems, tuple(piece for piece in coding.pieces if id(piece) not in used))


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces of which a clip has at most one: those of one kind, and where a file holds one AU, of that AU."""
    groups: dict[tuple[str, ...], list[Piece]] = {}
    for piece in pieces:
        one = tuple(piece.tracks) if piece.one_au else ()
        groups.setdefault((piece.kind, *one), []).append(piece)
    return list(groups.values())


def _match(pieces: Mapping[Path, Piece], clips: Sequence[Clip]) -> tuple[dict[str, Path], dict[str, str]]:
    """`match_au_tables` by the names of clips and videos, then by folder and video, for pieces of one group."""
    by_stem: dict[str, list[Path]] = {}
    for path in pieces:
        by_stem.setdefault(nfc(path.with_suffix("").name), []).append(path)
    matched, problems = match_au_tables(by_stem, clips)
    rest = [clip for clip in clips if clip.clip_id not in matched]
    joined = [
        replace(clip, source=f"{parent}/{parent.name}_{names_of_video(clip)[0]}")
        for clip in rest
        if (parent := Path(clip.source).parent).name
    ]
    by_folder, more = match_au_tables(by_stem, joined)
    taken = {*matched.values(), *by_folder.values()}
    for clip in rest:
        there = {path for name in names_of_video(clip) for path in by_stem.get(name, ())}
        if clip.clip_id in by_folder or there <= taken:  # all that is named like it is another video's
            problems.pop(clip.clip_id, None)
    return matched | by_folder, problems | more


def _names(pieces: Sequence[Piece], clips: Sequence[Clip]) -> dict[Path, Piece]:
    """Paths under which pieces are looked for, which need not exist → the piece."""
    stems = {name for clip in clips for name in names_of_video(clip)}
    own = {nfc(piece.name) for piece in pieces}
    found: dict[Path, Piece] = {}
    for piece in pieces:
        name = clip_name(nfc(piece.name).replace("\\", "/")).lstrip("/")
        names = [name, *(other for other in map(nfc, piece.also) if other not in own)]
        if _DISFA.fullmatch(name):
            names += [video for side in ("Left", "Right") if (video := f"{side}Video{name}_comp") in stems]
        for one in dict.fromkeys(names):
            path = piece.path.parent / f"{one}.csv"
            # The same name twice in one folder: under both paths, so that the matching finds it ambiguous.
            found[piece.path.parent / piece.path.name / f"{one}.csv" if path in found else path] = piece
    return found


def _covers_video(path: Path, clip: Clip) -> bool:
    """Whether coding found under this path is of the whole video, and not of the clip alone."""
    name = nfc(path.with_suffix("").name)
    return name in names_of_video(clip) or name != nfc(clip.clip_id).rpartition("/")[2]


def _fitted(entries: Sequence[tuple[Piece, bool]], clip: Clip, settings: FacsSettings) -> ClipCoding:
    """The coding of a clip, if it can be of it.

    Raises:
        ValueError: if its frames have no rate, or it reaches beyond the end of the video.
    """
    footage = footage_of(clip.source)
    rate = settings.frames_per_second or (footage.frames_per_second if footage else clip.frames_per_second)
    counted = next((piece for piece, _ in entries if piece.unit == "frames"), None)
    if counted is not None and rate is None:
        raise ValueError(
            f"{counted.path} counts frames, and {clip.source} does not tell its rate; give facs.frames_per_second=25"
        )
    of_video = {covers for _, covers in entries}
    start = 0.0
    if of_video == {True}:
        start = clip.start_frame / rate if clip.start_frame is not None and rate else clip.start_seconds or 0.0
    elif len(of_video) > 1 and (clip.start_seconds or clip.start_frame):
        raise ValueError(f"{entries[0][0].path} and {entries[1][0].path} are named after a clip and after its video")
    for piece, covers in entries:
        _check_extent(piece, clip, footage, rate, settings, start=0.0 if covers else _start_of(clip))
    return ClipCoding(tuple(piece for piece, _ in entries), start, rate, settings.first_frame)


def _start_of(clip: Clip) -> float:
    return clip.start_seconds or 0.0


def _check_extent(
    piece: Piece, clip: Clip, footage: Footage | None, rate: float | None, settings: FacsSettings, *, start: float
) -> None:
    edges: list[Floats] = [track.ends for track in piece.tracks.values() if len(track.ends)]
    if not edges:
        return
    first = min(float(track.starts[0]) for track in piece.tracks.values() if len(track.starts))
    last = max(float(ends.max()) for ends in edges)
    if piece.unit == "frames":
        if first < settings.first_frame:
            raise ValueError(
                f"{piece.path} begins with frame {first:g}, and facs.first_frame={settings.first_frame}; give "
                f"facs.first_frame={first:g}"
            )
        assert rate is not None
        last = (last - settings.first_frame) / rate
    if footage is None:
        return
    length = footage.seconds - start
    if last > length + max(_TOLERANCE * length, _SLACK_SECONDS):
        advice = "" if piece.path.suffix.lower() == ".eaf" else _ADVICE[piece.unit]
        raise ValueError(
            f"{piece.path} codes until {last:.2f} s, and {clip.source} ends at {length:.2f} s, so it is not the coding "
            f"of clip {clip.clip_id!r}{advice}"
        )
