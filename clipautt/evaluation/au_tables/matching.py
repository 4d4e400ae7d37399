"""Finds the table of each clip in a folder, by the names of clips and videos; a person never gets another's table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipautt.clips import Clip
from clipautt.commands import is_utf8
from clipautt.tables import nfc

_SUFFIXES = (".csv", ".tsv", ".txt")


def list_au_tables(folder: str | Path) -> dict[str, list[Path]]:
    """Name without suffix → paths, for the text tables below a folder; one scan of the disk serves many clips.

    Folders named `…_aligned`, where OpenFace leaves a picture of every frame, are skipped.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"aus={folder}: no such folder; give the folder with the tables of action units")
    by_stem: dict[str, list[Path]] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith("_aligned")]
        for name in files:
            if name.lower().endswith(_SUFFIXES) and is_utf8(name):
                by_stem.setdefault(nfc(Path(name).stem), []).append(Path(place, name))
    return {stem: sorted(paths) for stem, paths in by_stem.items()}


def match_au_tables(
    folder: str | Path | Mapping[str, Sequence[Path]], clips: Sequence[Clip]
) -> tuple[dict[str, Path], dict[str, str]]:
    """The table of each clip: `<clip_id>.csv`, or else the one named after the video that the clip was cut from.

    Of several tables with that name, the one in a folder named like the video's is taken. If other videos have the
    same name, only such a file is taken, so that no clip gets the file of another video.

    Args:
        folder: searched at any depth; or the result of `list_au_tables`.
        clips: all clips of a run, since videos with the same name must be told apart. A clip id with slashes is matched
            by its whole path.

    Returns:
        Clip id → path, for clips with a file; and clip id → reason, for clips whose file is ambiguous.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    files = folder if isinstance(folder, Mapping) else list_au_tables(folder)
    sources: dict[str, set[str]] = {}
    for clip in clips:
        for name in names_of_video(clip):
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


def names_of_video(clip: Clip) -> list[str]:
    """Names without suffix of the video or folder of frames that a clip was cut from."""
    return list(dict.fromkeys([nfc(Path(clip.source).stem), nfc(Path(clip.source).name)]))


def _of_clip(files: Mapping[str, Sequence[Path]], clip: Clip) -> Path | None:
    ending = f"/{nfc(clip.clip_id)}"
    named = files.get(Path(ending).name, ())
    return _only(clip, [path for path in named if nfc(path.with_suffix("").as_posix()).endswith(ending)])


def _of_video(files: Mapping[str, Sequence[Path]], clip: Clip, sources: Mapping[str, set[str]]) -> Path | None:
    folder = nfc(Path(clip.source).parent.name)
    for name in names_of_video(clip):
        same = list(files.get(name, ()))
        fitting = [path for path in same if nfc(path.parent.name) == folder]
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
            "or name the tables after clip_id"
        )
    return paths[0] if paths else None
