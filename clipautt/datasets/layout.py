"""What the readers of data sets share: a look through the files, rows of label files, and the way from rows to clips.

A reader turns a label file into entries, one per clip it names. The rest happens here: entries that repeat or
contradict each other are sorted out, videos and folders of frames are found by name wherever they lie below the root,
subjects are divided into source and target. Whatever is wrong is collected and told at once. No picture is opened, so
that a tree of a million frames is read in seconds.

What this module does not know: any data set, and whether a file can be decoded.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from clipautt.clips import Clip, Manifest, Split, id_number

Layout = Literal["auto", "videos", "frames"]
VIDEOS = frozenset({".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".wmv", ".mpg", ".mpeg"})
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
NEUTRAL = "neutral"
_TEXTS = frozenset({".csv", ".tsv", ".txt"})
_NO_LABEL = frozenset({"", "nan", "na", "n/a", "null"})
_SHOWN_PROBLEMS = 25
_SHOWN_PLACES = 3


class DatasetError(ValueError):
    """The files of a data set do not fit together; the message lists what is wrong, each with its place."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set."""

    kind: str
    """In a word, to count by: `missing`, `ambiguous`, `unlabelled`, `duplicate`, `conflict`, `unreadable`, `absent`."""
    text: str
    """In a sentence, with the file and the row or clip."""


@dataclass(frozen=True)
class Entry:
    """One clip as a label file names it."""

    clip_id: str
    """Unique in its data set, unless the file lists it twice."""
    subject_id: str
    """Whose face it shows."""
    path: str
    """What to look for: a name, or a path that ends with it; an extension is not needed."""
    label: str
    """Class name."""
    where: str
    """File and line it comes from."""
    start_frame: int | None = None
    """First frame of the clip; None is the beginning."""
    end_frame: int | None = None
    """Frame before which it ends; None is the end."""
    split: Split | None = None
    """Where the label file itself says it; None leaves it to the settings."""


@dataclass(frozen=True)
class Listing:
    """What a label file holds."""

    entries: tuple[Entry, ...]
    """In the order of the file."""
    problems: tuple[Problem, ...] = ()
    """Rows that became no entry."""
    notes: tuple[str, ...] = ()
    """What was left out because it does not belong to the task, a sentence each."""


@dataclass(frozen=True, repr=False)
class Reading:
    """What a reader found."""

    clips: tuple[Clip, ...]
    """Sorted by `clip_id`; sources are absolute paths."""
    classes: tuple[str, ...]
    """Class names in label order; index 0 is the neutral class."""
    problems: tuple[str, ...] = ()
    """What was left out because something is wrong with it, a sentence each with file and row or clip."""
    notes: tuple[str, ...] = ()
    """What else the user should know, a sentence each."""

    def __repr__(self) -> str:
        subjects = {clip.subject_id for clip in self.clips}
        return (
            f"Reading({len(self.clips)} clips, {len(subjects)} subjects, classes={self.classes}, "
            f"{len(self.problems)} problems)"
        )

    @property
    def manifest(self) -> Manifest:
        """The clips with their classes."""
        return Manifest(self.clips, self.classes)


@dataclass(frozen=True)
class Subjects:
    """Who is a source and who is a target."""

    target: tuple[str, ...]
    """Subjects to be personalised; all others are source subjects."""
    validation: int | tuple[str, ...]
    """How many source subjects select settings instead of training, or which."""
    seed: int
    """Another seed draws other validation subjects."""

    def __post_init__(self) -> None:
        given: dict[str, object] = {"target_subjects": self.target, "validation_subjects": self.validation}
        for name, value in given.items():
            if isinstance(value, str):
                raise ValueError(f"{name}={value!r} is one text; a list of subject ids is needed")
        if isinstance(self.validation, tuple):
            both = sorted(set(self.target) & set(self.validation))
            if both:
                raise ValueError(
                    f"target_subjects and validation_subjects both name {', '.join(both)}; "
                    "a subject is either a target or a source"
                )
        elif self.validation < 0:
            raise ValueError(f"validation_subjects={self.validation}; allowed are 0 or more, or a list of subject ids")

    def absent(self, subjects: Iterable[str]) -> list[Problem]:
        """The subjects that the settings name and the data lack."""
        there = set(subjects)
        named = {"target": self.target, "validation": self.validation if isinstance(self.validation, tuple) else ()}
        return [
            Problem("absent", f"{role} subject {subject!r} has no clip that can be used")
            for role, ids in named.items()
            for subject in dict.fromkeys(ids)
            if subject not in there
        ]

    def splits(self, subjects: Iterable[str], *, known: Mapping[str, Split] | None = None) -> dict[str, Split]:
        """The split of every subject.

        Validation subjects are those with the lowest numbers among seeded hashes of the source subjects' ids: one
        subject more or less changes at most one of them.

        Args:
            subjects: everyone.
            known: subjects whose split the data set itself says; validation subjects among them count.

        Raises:
            ValueError: if no source subject is left to train on, or the settings contradict the data set.
        """
        known = known or {}
        everyone = sorted(set(subjects))
        splits: dict[str, Split] = {s: known.get(s, "target" if s in self.target else "source_train") for s in everyone}
        source = [subject for subject in everyone if splits[subject] != "target"]
        free = [subject for subject in source if subject not in known]
        if isinstance(self.validation, tuple):
            chosen = [subject for subject in self.validation if subject in splits]
        else:
            wanted = max(0, self.validation - list(splits.values()).count("source_val"))
            chosen = sorted(free, key=lambda subject: id_number(f"{self.seed}:{subject}"))[:wanted]
        for subject in chosen:
            if known.get(subject, "source_val") != "source_val":
                raise ValueError(f"validation_subjects names {subject}, who is in {known[subject]}")
            splits[subject] = "source_val"
        if source and "source_train" not in splits.values():
            raise ValueError(
                f"validation_subjects={self.validation} leaves none of the {len(source)} source subjects to train on; "
                "fewer are allowed"
            )
        return splits


@dataclass(frozen=True)
class Rules:
    """How the entries of a data set become clips."""

    dataset: str
    """Name of the data set."""
    classes: tuple[str, ...]
    """Class names, neutral class first."""
    subjects: Subjects
    """Who is a source and who is a target."""
    strict: bool
    """Whether a problem refuses the data set, or only leaves out what it concerns."""
    layout: Layout
    """Where clips are looked for: among videos, folders of frames, or both."""
    within: str
    """Sub-folder of the root that holds the clips; empty is the root."""
    frames_per_second: float
    """Rate at which the numbers in the names of frames count."""
    whole_path: bool = False
    """Whether a clip must lie under its whole path, or the name is enough."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ValueError(f"layout={self.layout!r}; allowed are {', '.join(get_args(Layout))}")
        if not self.frames_per_second > 0:
            raise ValueError(f"frames_per_second={self.frames_per_second}; allowed are positive numbers")


# Files


@dataclass(frozen=True, repr=False)
class Tree:
    """The files below a root that matter; paths are relative to it, with forward slashes."""

    dataset: str
    """Name of the data set, for messages."""
    root: Path
    """Absolute."""
    videos: Mapping[str, list[str]]
    """Name without extension → video files."""
    folders: Mapping[str, list[str]]
    """Name → folders that hold pictures."""
    texts: tuple[str, ...]
    """Files that may hold labels, sorted."""
    problems: tuple[Problem, ...] = ()
    """Folders that could not be listed."""

    def __repr__(self) -> str:
        return f"Tree({self.root}: {len(self.videos)} videos, {len(self.folders)} folders of frames)"

    def find(self, path: str, *, layout: Layout = "auto", within: str = "", whole_path: bool = False) -> list[str]:
        """Where a clip lies: the places whose paths agree with `path` from the end for the longest.

        Args:
            path: a name, or a path that ends with it; a video's extension is ignored.
            layout: look for videos, for folders of frames, or for both.
            within: sub-folder to which the search is limited.
            whole_path: every part of `path` has to agree, not only the name.
        """
        wanted = _parts(path)
        found = [] if layout == "frames" else list(self.videos.get(wanted[-1], ()))
        found += [] if layout == "videos" else self.folders.get(wanted[-1], ())
        folder = PurePosixPath(within).parts
        found = [place for place in found if PurePosixPath(place).parts[: len(folder)] == folder]
        agreeing = {place: _agreement(_parts(place), wanted) for place in found}
        most = len(wanted) if whole_path else max(agreeing.values(), default=0)
        return [place for place, parts in agreeing.items() if parts == most]

    def label_file(self, given: str | None, names: Sequence[str]) -> Path:
        """The label file: the given one, or the first of `names` that lies somewhere below the root.

        Raises:
            FileNotFoundError: if there is none.
            DatasetError: if a name is there several times.
        """
        if given is not None:
            path = self.root / Path(given).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"{self.dataset}: no label file at {path}, which labels={given} names")
            return path
        for name in names:
            found = [text for text in self.texts if PurePosixPath(text).name.lower() == name]
            if len(found) > 1:
                raise DatasetError(
                    f"{self.dataset}: {len(found)} files below {self.root} may hold the labels: "
                    f"{_some(found)}; say which with labels=PATH"
                )
            if found:
                return self.root / found[0]
        raise FileNotFoundError(
            f"{self.dataset}: no label file below {self.root}; looked for {', '.join(names)}; "
            "labels=PATH names another one"
        )

    def name_of(self, path: Path) -> str:
        """A path as messages show it: relative to the root where it lies below it."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


@dataclass(frozen=True)
class Labels:
    """Which label file is read, and where the clips are looked for."""

    path: Path
    """The file."""
    shown_as: str
    """Its name in messages."""
    official: bool
    """Whether it is the owners' table, or a list of frames."""
    layout: Layout
    """`videos` or `frames`."""


def choose(
    tree: Tree, *, given: str | None, layout: Layout, official: str, frame_lists: Sequence[str], column: str
) -> Labels:
    """The label file of a data set that has a table for videos, or a list of frames.

    Args:
        tree: the files.
        given: label file that the user names.
        layout: `videos` needs the table, `frames` prefers a list; `auto` prefers the table, and videos if it is there.
        official: name of the table.
        frame_lists: possible names of the list.
        column: name of a column by which a table is known.

    Raises:
        FileNotFoundError: if there is no label file.
        DatasetError: if there are several.
    """
    names = {"videos": [official], "frames": [*frame_lists, official], "auto": [official, *frame_lists]}[layout]
    path = tree.label_file(given, names)
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        table = path.suffix.lower() != ".txt" or column in file.readline()
    found: Layout = "videos" if table and tree.videos else "frames"
    return Labels(path, tree.name_of(path), table, found if layout == "auto" else layout)


def walk(root: str, *, dataset: str) -> Tree:
    """Look through a folder once; links are followed, no folder is entered twice, hidden files are passed over.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    top = Path(os.path.abspath(Path(root).expanduser()))
    if not top.is_dir():
        raise FileNotFoundError(f"{dataset}: no folder at root={root}")
    videos: dict[str, list[str]] = {}
    folders: dict[str, list[str]] = {}
    texts: list[str] = []
    problems: list[Problem] = []
    for place, names in _list_folders(top, problems):
        kinds = {name: os.path.splitext(name)[1].lower() for name in names if not name.startswith(".")}
        for name, kind in kinds.items():
            if kind in VIDEOS:
                videos.setdefault(clip_name(name), []).append(_join(place, name))
            elif kind in _TEXTS:
                texts.append(_join(place, name))
        if place and not PICTURES.isdisjoint(kinds.values()):
            folders.setdefault(clip_name(place.rpartition("/")[2]), []).append(place)
    return Tree(dataset, top, videos, folders, tuple(sorted(texts)), tuple(problems))


def _list_folders(top: Path, problems: list[Problem]) -> Iterator[tuple[str, list[str]]]:
    """Every folder's path relative to `top`, and the names of its files."""

    def remember(error: OSError) -> None:
        problems.append(Problem("unreadable", f"{error.filename}: cannot be listed ({error.strerror})"))

    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(top, followlinks=True, onerror=remember):
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in seen:
            inner.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "__MACOSX")
        relative = os.path.relpath(folder, top).replace(os.sep, "/")
        yield "" if relative == "." else relative, sorted(names)


def clip_name(name: str) -> str:
    """A file name without the extension of a video; other dots belong to the name."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in VIDEOS else name


def is_picture(path: str) -> bool:
    """Whether a path ends like the path of a picture."""
    return os.path.splitext(path)[1].lower() in PICTURES


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def path_parts(path: str) -> tuple[str, ...]:
    """The parts of a path from a label file, which may come from Windows."""
    return tuple(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def _parts(path: str) -> tuple[str, ...]:
    parts = path_parts(path) or ("",)
    return (*parts[:-1], clip_name(parts[-1]))


def _agreement(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts agree, from the end."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


# Rows of label files


def read_table(path: Path, *, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with a header: line number, and text by column name.

    Columns are parted by tabs, semicolons or commas, whichever the header has.

    Raises:
        DatasetError: for columns that are missing, or a file that is not text.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
        delimiter = next((mark for mark in "\t;" if mark in first), ",")
        columns = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        absent = [name for name in required if name not in columns]
        if absent:
            raise DatasetError(
                f"{path}: the first line has no column {', '.join(absent)}; required are {', '.join(required)}; "
                f"it reads {first.strip()[:120]!r}"
            )
        rows = csv.reader(file, delimiter=delimiter)
        try:
            for row in rows:
                if any(cell.strip() for cell in row):
                    cells = [cell.strip() for cell in row] + [""] * len(columns)
                    yield rows.line_num + 1, dict(zip(columns, cells, strict=False))
        except csv.Error as error:
            raise DatasetError(f"{path} line {rows.line_num + 1}: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file without a header that are not empty, with their numbers from 1: the first one counts."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


def plain_label(text: str) -> str:
    """A label without decoration: `1.0` and ` 1` are `1`, and what stands for no label is empty."""
    text = text.strip()
    if text.lower() in _NO_LABEL:
        return ""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def unlabelled(where: str, what: str) -> Problem:
    """A row without a label."""
    return Problem("unlabelled", f"{where}: {what} has no label")


def unknown_label(where: str, what: str, label: str, words: Iterable[str]) -> Problem:
    """A row with a label that says nothing."""
    return Problem("unreadable", f"{where}: label {label!r} of {what} is not one of {', '.join(words)}")


@dataclass(frozen=True)
class LabelledFolder:
    """The rows of a list of frames that belong to one folder."""

    folder: str
    """Path as the list gives it, with forward slashes."""
    label: str
    """The one label of all its rows, as `plain_label` gives it."""
    where: str
    """File and first line."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.folder.rpartition("/")[2]

    @property
    def parent(self) -> str:
        """The part of the path before the last one; empty where there is none."""
        return self.folder.rpartition("/")[0].rpartition("/")[2]


def read_frame_list(path: Path, *, shown_as: str) -> tuple[list[LabelledFolder], list[Problem]]:
    """Folders of frames and their labels, from a file without a header that has a line `path label` for every frame.

    Paths may hold spaces. Rows belong together by their folder; one that has several labels has none.

    Args:
        path: the file.
        shown_as: its name in messages.

    Returns:
        The folders in the order in which they appear, and what is wrong.
    """
    lines: dict[str, dict[str, list[int]]] = {}
    problems: list[Problem] = []
    for number, line in read_lines(path):
        picture, label = (line, "") if is_picture(line) else (*line.rsplit(None, 1), "")[:2]
        parts = path_parts(picture)
        if len(parts) < 2 or not is_picture(parts[-1]):
            problems.append(Problem("unreadable", f"{shown_as} line {number}: {line!r} is not `FOLDER/PICTURE LABEL`"))
            continue
        seen = lines.setdefault("/".join(parts[:-1]), {}).setdefault(plain_label(label), [number, 0])
        seen[1] += 1
    folders = []
    for folder, labels in lines.items():
        name = folder.rpartition("/")[2]
        if "" in labels:
            first, count = labels.pop("")
            problems.append(unlabelled(f"{shown_as} line {first}", f"clip {name!r}, in {count} rows,"))
        if len(labels) > 1:
            told = " and ".join(f"{label} (from line {first})" for label, (first, _) in labels.items())
            problems.append(Problem("conflict", f"{shown_as}: clip {name!r} has the labels {told}"))
        elif labels:
            [(label, (first, _))] = labels.items()
            folders.append(LabelledFolder(folder, label, f"{shown_as} line {first}"))
    return folders, problems


# From entries to clips


def assemble(listing: Listing, tree: Tree, rules: Rules) -> Reading:
    """The clips of a data set.

    Raises:
        DatasetError: if anything is wrong and `rules.strict`, or nothing is left.
        ValueError: if no source subject is left to train on.
    """
    entries, repeated = _drop_repeated(listing.entries)
    sources, unfound = _locate(entries, tree, rules)
    found = [entry for entry in entries if entry.path in sources]
    subjects = {entry.subject_id for entry in found}
    problems = [*listing.problems, *tree.problems, *repeated, *unfound, *rules.subjects.absent(subjects)]
    if not found or (problems and rules.strict):
        raise DatasetError(_refusal(tree, problems, any_clip=bool(found)))
    notes = [*listing.notes, *([f"left out or absent: {_kinds(problems)}"] if problems else [])]
    clips = _clips(found, sources, tree, rules)
    return Reading(clips, rules.classes, tuple(problem.text for problem in problems), tuple(notes))


def _clips(entries: Sequence[Entry], sources: Mapping[str, str], tree: Tree, rules: Rules) -> tuple[Clip, ...]:
    known = {entry.subject_id: entry.split for entry in entries if entry.split is not None}
    splits = rules.subjects.splits((entry.subject_id for entry in entries), known=known)
    clips = []
    for entry in sorted(entries, key=lambda entry: entry.clip_id):
        source = sources[entry.path]
        frames = source in tree.folders.get(_parts(source)[-1], ())
        clips.append(
            Clip(
                clip_id=entry.clip_id,
                subject_id=entry.subject_id,
                source=str(tree.root / source),
                split=splits[entry.subject_id],
                label=entry.label,
                dataset=rules.dataset,
                start_frame=entry.start_frame,
                end_frame=entry.end_frame,
                frames_per_second=rules.frames_per_second if frames else None,
            )
        )
    return tuple(clips)


def _drop_repeated(entries: Iterable[Entry]) -> tuple[list[Entry], list[Problem]]:
    """Every clip once: of equal entries the first is kept, of contradicting ones none."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.clip_id, []).append(entry)
    kept, problems = [], []
    for clip_id, same in groups.items():
        places = _some([entry.where for entry in same])
        told = {
            _told(entry.label, entry.subject_id, entry.start_frame, entry.end_frame, entry.split): entry
            for entry in same
        }
        if len(told) > 1:
            problems.append(Problem("conflict", f"{places}: clip {clip_id!r} is {' and '.join(told)}"))
            continue
        kept.append(same[0])
        if len(same) > 1:
            problems.append(Problem("duplicate", f"{places}: clip {clip_id!r} is listed {len(same)} times"))
    return kept, problems


def _told(label: str, subject: str, start: int | None, end: int | None, split: str | None) -> str:
    span = f", frames {start} to {end}" if start is not None or end is not None else ""
    return f"{label!r} of subject {subject!r}{span}{f' in {split}' if split else ''}"


def _locate(entries: Iterable[Entry], tree: Tree, rules: Rules) -> tuple[dict[str, str], list[Problem]]:
    """Path of an entry → the one place where it lies, and a problem for each path that has none or several."""
    users: dict[str, list[Entry]] = {}
    for entry in entries:
        users.setdefault(entry.path, []).append(entry)
    sources, problems = {}, []
    what = {"videos": "video", "frames": "folder of frames"}.get(rules.layout, "video or folder of frames")
    for path, same in users.items():
        places = tree.find(path, layout=rules.layout, within=rules.within, whole_path=rules.whole_path)
        where = same[0].where + (f" and {len(same) - 1} more" if len(same) > 1 else "")
        if len(places) == 1:
            sources[path] = places[0]
        elif places:
            text = f"{where}: {path!r} may be any of {_some(places)}; within=FOLDER limits the search"
            problems.append(Problem("ambiguous", text))
        else:
            below = _join(str(tree.root), rules.within) if rules.within else str(tree.root)
            problems.append(Problem("missing", f"{where}: no {what} {path!r} below {below}"))
    return sources, problems


def _refusal(tree: Tree, problems: Sequence[Problem], *, any_clip: bool) -> str:
    """The message of a `DatasetError`."""
    if not problems:
        return f"{tree.dataset} at {tree.root}: the label file names no clip"
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    shown = "".join(f"\n  {problem.text}" for problem in problems[:_SHOWN_PROBLEMS])
    more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    advice = "strict=false goes on without them" if any_clip else "no clip is left without them"
    return f"{tree.dataset} at {tree.root} has {count} ({_kinds(problems)}):{shown}{more}\n{advice}"


def _kinds(problems: Iterable[Problem]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).most_common())


def _some(items: Sequence[str]) -> str:
    """The first few of a list, and how many more."""
    more = len(items) - _SHOWN_PLACES
    return ", ".join(items[:_SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "")
