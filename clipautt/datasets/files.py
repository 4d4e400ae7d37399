"""Finds the files of a data set: its label file, and the video or folder of frames of each clip.

Videos and folders of frames are found by name anywhere below the root. No picture is opened, so a tree of a million
frames is listed in seconds, and whether a file can be decoded is not checked. Names are compared in one Unicode form,
whichever the file system uses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

from clipautt.commands import is_utf8
from clipautt.tables import loosely, nfc
from clipautt.video.pictures import PICTURES

Layout = Literal["auto", "videos", "frames"]
_SUFFIXES = ".mp4 .m4v .mov .qt .3gp .3g2 .avi .webm .mkv .wmv .asf .mpg .mpeg .vob .ts .mts .m2ts .flv .ogv .mxf .gif"
VIDEOS = frozenset(_SUFFIXES.split())
"""Suffixes of the containers that can be decoded."""
_TEXTS = frozenset({".csv", ".tsv", ".txt"})
_SHOWN_PLACES = 3


class DatasetError(ValueError):
    """The files of a data set do not fit together; the message lists the problems, each with its place."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set."""

    kind: str
    """One word, for counting: `missing`, `ambiguous`, `unlabelled`, `duplicate`, `conflict`, `unreadable`, `absent`."""
    text: str
    """One sentence that names the file and the row or clip."""


@dataclass(frozen=True)
class Place:
    """A video, or a folder that holds pictures."""

    path: str
    """Relative to the root, with forward slashes, as the file system spells it."""
    parts: tuple[str, ...]
    """Its path from the sub-folder to which the search is limited, as `name_parts` gives it."""
    video: bool
    """True for a video, False for a folder of frames."""


@dataclass(frozen=True, repr=False)
class Tree:
    """The files below a root that matter; paths are relative to it, with forward slashes."""

    dataset: str
    """Name of the data set, for messages."""
    root: Path
    """Absolute path."""
    within: str
    """Sub-folder that holds the clips; empty is the root."""
    places: tuple[Place, ...]
    """Videos and folders of frames in that sub-folder, sorted."""
    by_end: Mapping[tuple[str, ...], list[Place]]
    """Last parts of a path → the places whose paths end with them."""
    texts: tuple[str, ...]
    """Files below the root that may hold labels, sorted."""
    broken: Mapping[str, str]
    """Name of a clip → one of its files that is a broken link."""
    problems: tuple[Problem, ...] = ()
    """Folders that could not be listed."""
    unnamed: tuple[str, ...] = ()
    """Files and folders whose names are not UTF-8, so that no table can name them."""

    def __repr__(self) -> str:
        videos = sum(place.video for place in self.places)
        return f"Tree({self.root}: {videos} videos, {len(self.places) - videos} folders of frames)"

    @property
    def below(self) -> str:
        """The folder in which clips are looked for, for messages."""
        return join(str(self.root), self.within)

    def find(
        self,
        path: str,
        *,
        layout: Layout = "auto",
        whole_path: bool = False,
        subject: str = "",
        subjects: frozenset[str] = frozenset(),
    ) -> list[Place]:
        """Where a clip lies: the places whose paths agree with `path` in the most parts, counted from the end.

        Of a video and a folder of frames that agree equally, the video is taken; of videos that differ in their
        extension, the one with that of `path`.

        Args:
            path: a name, or a path that ends with it; a video's extension is not needed.
            layout: look for videos, for folders of frames, or for both.
            whole_path: every part of `path` has to agree, not only the name; if one place agrees from the root, deeper
                ones are ignored.
            subject: whose clip it is.
            subjects: all subjects. A place in the folder of another subject is not the clip, unless the folder of
                `subject` is among the parts that agree.
        """
        wanted = name_parts(path)
        for count in range(len(wanted), len(wanted) - 1 if whole_path else 0, -1):
            end = wanted[-count:]
            found = [
                place for place in self.by_end.get(end, ()) if layout == "auto" or place.video == (layout != "frames")
            ]
            if subject not in end[:-1]:
                found = [place for place in found if subjects.intersection(place.parts[:-1]) <= {subject}]
            if found:
                return _meant(found, path, whole_path=whole_path)
        return []

    def has_text(self, names: Sequence[str]) -> bool:
        """Whether a file with one of these names lies somewhere below the root."""
        return any(PurePosixPath(text).name.lower() in names for text in self.texts)

    def label_file(self, given: str | None, names: Sequence[str]) -> Path:
        """The label file: the given one, or the first of `names` that lies somewhere below the root.

        Raises:
            FileNotFoundError: if there is none.
            DatasetError: if several files have that name.
        """
        if given is not None:
            path = self.root / Path(given).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"{self.dataset}: no label file at {path}, which dataset.labels={given} names")
            return path
        for name in names:
            found = [text for text in self.texts if PurePosixPath(text).name.lower() == name]
            if len(found) > 1:
                raise DatasetError(
                    f"{self.dataset}: {len(found)} files below {self.root} may hold the labels: "
                    f"{some(found)}; say which with dataset.labels=PATH"
                )
            if found:
                return self.root / found[0]
        raise FileNotFoundError(
            f"{self.dataset}: no label file below {self.root}; looked for {', '.join(names)}; "
            "dataset.labels=PATH names another one"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on files that are left out."""
        count = len(self.unnamed)
        if not count:
            return ()
        left = f"{count} file{'s' if count > 1 else ''} left out, as no table can name"
        return (f"{left} {'them' if count > 1 else 'it'} (the name is not UTF-8; rename): {some(self.unnamed)}",)

    def alike(self, path: str) -> list[Place]:
        """Places whose path ends like this one but for zeros, decimals and capitals: `007/a` for `7.0/A`."""
        return self._loosely_by_end.get(tuple(map(loosely, name_parts(path))), [])

    @cached_property
    def _loosely_by_end(self) -> dict[tuple[str, ...], list[Place]]:
        found: dict[tuple[str, ...], list[Place]] = {}
        for end, places in self.by_end.items():
            found.setdefault(tuple(map(loosely, end)), []).extend(places)
        return found

    def name_of(self, path: Path) -> str:
        """A path as messages show it: relative to the root where it lies below it."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def _meant(found: list[Place], path: str, *, whole_path: bool) -> list[Place]:
    """Of places that agree equally with a path, those to take."""
    parts = path_parts(path)
    same_kind = [place for place in found if nfc(place.path.rpartition("/")[2]) == parts[-1]]
    if clip_name(parts[-1]) != parts[-1] and same_kind:
        found = same_kind
    if whole_path:
        found = [place for place in found if len(place.parts) == len(parts)] or found
    return [place for place in found if place.video] or found


@dataclass(frozen=True)
class Labels:
    """Which label file is read, and where the clips are looked for."""

    path: Path
    """The file."""
    shown_as: str
    """Its name in messages."""
    official: bool
    """Whether it is the owners' table rather than a list of frames."""
    layout: Layout
    """`videos` or `frames`, or `auto` if the table may refer to either."""


def choose(
    tree: Tree, *, given: str | None, layout: Layout, official: str, frame_lists: Sequence[str], column: str
) -> Labels:
    """The label file of a data set that has a table for videos, or a list of frames.

    Args:
        tree: the files.
        given: label file that the user names.
        layout: `videos` needs the table, `frames` prefers a list, `auto` prefers the table.
        official: name of the table.
        frame_lists: possible names of the list.
        column: name of a column by which the table is recognized.

    Raises:
        FileNotFoundError: if there is no label file.
        DatasetError: if there are several.
    """
    names = {"videos": [official], "frames": [*frame_lists, official], "auto": [official, *frame_lists]}[layout]
    path = tree.label_file(given, names)
    with path.open("rb") as file:
        table = path.suffix.lower() != ".txt" or column.encode() in file.readline().lower()
    return Labels(path, tree.name_of(path), table, "frames" if layout == "auto" and not table else layout)


def walk(root: str, *, dataset: str, within: str = "") -> Tree:
    """List all files below a folder; links are followed, no folder is entered twice, hidden files are skipped.

    Args:
        root: the folder.
        dataset: name of the data set, for messages.
        within: sub-folder that holds the clips, from the root or absolute; label files may lie outside it.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if `within` lies outside the root.
    """
    top = Path(os.path.abspath(Path(root).expanduser()))
    if not top.is_dir():
        raise FileNotFoundError(f"{dataset}: no folder at root={root}")
    inner = _inner(top, within, dataset)
    found: dict[str, bool] = {}
    texts: list[str] = []
    broken: dict[str, str] = {}
    problems: list[Problem] = []
    unnamed: list[str] = []
    for folder, names, lost in _list_folders(top, problems, unnamed):
        for name in names:
            kind = os.path.splitext(name)[1].lower()
            if kind in VIDEOS:
                found[join(folder, name)] = True
            elif kind in _TEXTS:
                texts.append(join(folder, name))
            elif kind in PICTURES and folder:
                found[folder] = False
        for name in lost:
            clip = folder.rpartition("/")[2] if is_picture(name) else name
            broken.setdefault(name_parts(clip)[-1], join(folder, name))
    places = tuple(_places(found, inner))
    by_end: dict[tuple[str, ...], list[Place]] = {}
    for place in places:
        for start in range(len(place.parts)):
            by_end.setdefault(place.parts[start:], []).append(place)
    return Tree(
        dataset, top, inner, places, by_end, tuple(sorted(texts)), broken, tuple(problems), tuple(sorted(unnamed))
    )


def _inner(top: Path, within: str, dataset: str) -> str:
    """`within` relative to the root; a link to another folder below the root is that folder."""
    path = Path(os.path.abspath(top / Path(within).expanduser()))
    if not path.is_dir():
        raise FileNotFoundError(f"{dataset}: no folder at {path}, which dataset.within={within} names")
    if not path.is_relative_to(top):
        raise ValueError(
            f"{dataset}: dataset.within={within} lies outside root={top}; a folder below the root is needed"
        )
    real, real_top = path.resolve(), top.resolve()
    relative = real.relative_to(real_top) if real.is_relative_to(real_top) else path.relative_to(top)
    return "" if relative == Path() else relative.as_posix()


def _places(found: Mapping[str, bool], within: str) -> Iterator[Place]:
    """The places in a sub-folder; like the root, the sub-folder itself is never a place, even if it holds pictures."""
    start = f"{within}/" if within else ""
    for path in sorted(found):
        if path.startswith(start):
            yield Place(path, name_parts(path[len(start) :]), found[path])


def _list_folders(top: Path, problems: list[Problem], unnamed: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder's path relative to `top`, the names of its files, and those of its broken links.

    Links to folders come last, so that a folder with several paths is known by its real one.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        names, lost, linked = list[str](), list[str](), list[str]()
        try:
            facts = os.stat(top / folder)
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            for item in os.scandir(top / folder):
                if item.name.startswith(".") or item.name == "__MACOSX":
                    continue
                if not is_utf8(item.name):
                    unnamed.append(join(folder, item.name))
                elif item.is_dir():
                    (linked if item.is_symlink() else folders).append(join(folder, item.name))
                else:
                    (names if item.is_file() else lost).append(item.name)
        except OSError as error:
            problems.append(Problem("unreadable", f"{error.filename}: cannot be listed ({error.strerror})"))
        links += sorted(linked)
        yield folder, sorted(names), lost


def clip_name(name: str) -> str:
    """A file name without the extension of a video; other dots belong to the name."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEOS else name


def is_picture(path: str) -> bool:
    """Whether a path ends like the path of a picture."""
    return os.path.splitext(path)[1].lower() in PICTURES


def join(folder: str, name: str) -> str:
    """A path with forward slashes; either may be empty."""
    return f"{folder}/{name}" if folder and name else folder or name


def path_parts(path: str) -> tuple[str, ...]:
    """The parts of a path from a label file, which may come from Windows; an empty path has one empty part."""
    return tuple(part for part in nfc(path).replace("\\", "/").split("/") if part not in ("", ".")) or ("",)


def name_parts(path: str) -> tuple[str, ...]:
    """The parts of a path without the extension of a video: what clips are compared by."""
    parts = path_parts(path)
    return (*parts[:-1], clip_name(parts[-1]))


def some(items: Sequence[str]) -> str:
    """The first few of a list, and how many more."""
    more = len(items) - _SHOWN_PLACES
    return ", ".join(items[:_SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "")
