"""BAH as its owners ship it: ambivalence or hesitancy against none, in answers to a webcam.

    split/train.txt, val.txt, test.txt           no header: `Videos/82725/Visite_1/….mp4,1,transcript, unquoted`
    segments.csv                                 video,segment_id,label,num_frames,start_frame,end_frame
    Videos/<subject>/Visite_1/<name>.mp4         videos
    cropped_aligned/Videos/<subject>/Visite_1/<name>.mp4/frame-17.jpg
                                                 face crops, also below cropped-aligned-faces
    …train_labels.csv, …val_labels.csv           instead of split/: a header, a column of videos and one of labels

A clip is a whole video with the label of a split file, or a segment with its own label. The owners' split into
training, validation and test is not used: subjects are divided by the settings. Only `…_labels.csv` files keep theirs
(train, val and test are `source_train`, `source_val` and `target`), except for target subjects that the settings name.
Frames of segments count from 0, as the decoder counts those of a video; in a folder they are the numbers in the file
names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from clipautt.clips import Split
from clipautt.datasets import files, label_files, layout
from clipautt.datasets.files import DatasetError, Layout, Problem, Tree
from clipautt.datasets.layout import Entry, Listing, Reading, Rules
from clipautt.settings import settings
from clipautt.tables import nfc

Unit = Literal["videos", "segments"]
TARGETS = ("82711", "82687", "82585", "82592", "82598", "82632", "82681", "82683", "82708", "82714")
"""The target subjects of arXiv 2603.27999."""
CLASSES = (layout.NEUTRAL, "ambivalence")
_SPLIT_FILES = ("train.txt", "val.txt", "test.txt")
_PART = re.compile(r".*(train|val|test)_labels\.csv", re.IGNORECASE)
_SPLIT_OF: dict[str, Split] = {"train": "source_train", "val": "source_val", "test": "target"}
_VIDEO = ("video", "video_path", "path", "video_name", "file", "file_name", "filename", "name", "video_id", "clip")
_LABEL = ("label", "video_label", "labels", "class", "ah", "a/h")
_SUBJECT = ("subject", "subject_id", "participant", "participant_id")
_COLUMNS = ("video", "segment_id", "label", "num_frames", "start_frame", "end_frame")
_SKIPPED = ("frame", "unlabel")
"""Folders with these words in their paths hold lists of frames, and videos whose labels were not released."""
_WORDS = {
    CLASSES[0]: "0 neutral no false absent noah nonah notah withoutah",
    CLASSES[1]: "1 ambivalence ambivalent hesitancy hesitant ambivalencehesitancy yes true present ah withah",
}
_CLASS_OF = {word: label for label, words in _WORDS.items() for word in words.split()}


@settings
class BAH:
    """Where a copy of BAH lies and how it is used."""

    root: str
    """Folder below which the label files and the clips lie, at any depth."""
    strict: bool = True
    """Refuse a data set that has a problem; False omits what has one, and says so."""
    target_subjects: tuple[str, ...] = TARGETS
    """Subjects to personalize for, the paper's by default; all others are source subjects."""
    validation_subjects: NonNegativeInt | tuple[str, ...] = 10
    """Source subjects held out to select settings: how many, or which, as [a,b]."""
    seed: int = 0
    """Another seed draws other validation subjects."""
    unit: Unit = "videos"
    """What a clip is: a whole video, labelled by the split files, or a segment of one."""
    clip_frames: PositiveInt | None = None
    """Length in frames of the pieces that segments are cut into; the rest is a clip of its own. None: no cutting."""
    layout: Layout = "auto"
    """`auto`: videos or frames, whichever has more of the clips; videos where both have all."""
    labels: str | None = None
    """Label file, or folder of split files, relative to the root; None looks for them."""
    within: str = ""
    """Sub-folder of the root that holds the clips; needed where several hold copies of them."""
    frames_per_second: PositiveFloat = 24.0
    """Rate at which the frames in folders were taken."""

    def __post_init__(self) -> None:
        if self.clip_frames is not None and self.unit == "videos":
            raise ValueError(f"clip_frames={self.clip_frames} needs unit=segments; whole videos are not cut")
        _ = self._rules  # checks the others

    def read(self) -> Reading:
        """The clips: videos or segments.

        Raises:
            FileNotFoundError: if there is no such folder or no label file.
            ValueError: if there are source subjects and none is left to train on.
            DatasetError: listing everything that is wrong, if `strict`; or if no clip is left.
        """
        tree = files.walk(self.root, dataset="bah", within=self.within)
        problems: list[Problem] = []
        if self.unit == "videos":
            paths, problems = _split_files(tree, self.labels)
            parts = [self._part(path, tree.name_of(path)) for path in paths]
        else:
            path = _segment_file(tree, self.labels)
            parts = [_segments(path, tree.name_of(path), self.clip_frames)]
        listing = Listing(
            _short_ids([entry for part in parts for entry in part.entries]),
            (*problems, *(problem for part in parts for problem in part.problems)),
            subjects=frozenset().union(*(part.subjects for part in parts)),
        )
        listing, rules = layout.settle(_in_one_split(listing), tree, self._rules)
        return layout.assemble(listing, tree, rules)

    def _part(self, path: Path, shown_as: str) -> Listing:
        """The videos of a label file, with its split if its name tells one."""
        match = _PART.fullmatch(path.name)
        if match is None:
            return _videos(path, shown_as)
        listing = _labelled(path, shown_as)
        targets = {nfc(subject) for subject in self.target_subjects}
        split = _SPLIT_OF[match[1].lower()]
        entries = [replace(e, split="target" if e.subject_id in targets else split) for e in listing.entries]
        return replace(listing, entries=tuple(entries))

    @property
    def _rules(self) -> Rules:
        return layout.rules_of(self, dataset="bah", classes=CLASSES, frames_per_second=self.frames_per_second)


def cut(start: int, end: int, length: int | None) -> list[tuple[int, int]]:
    """Cut a span of frames into pieces of one length; the rest is a piece of its own, however short.

    Args:
        start: first frame.
        end: frame before which the span ends.
        length: of a piece in frames; None gives one piece.

    Returns:
        Start and exclusive end of each piece; together they are the whole span.
    """
    starts = range(start, end, length or end - start)
    return [(first, min(first + starts.step, end)) for first in starts]


def exclusive_end(start: int, end: int, num_frames: int) -> int | None:
    """The frame before which a segment ends, whether its `end` is inclusive or exclusive; None if neither fits."""
    if end - start == num_frames:
        return end
    return end + 1 if end - start + 1 == num_frames else None


def _split_files(tree: Tree, given: str | None) -> tuple[list[Path], list[Problem]]:
    """The given file or the files in the given folder, or else the split files of the only folder that has some.

    Returns:
        The files, and a problem for each one that is missing.
    """
    folder = tree.root / Path(given or "").expanduser()
    if given is not None and folder.is_dir():
        inside = sorted(path for path in folder.iterdir() if path.is_file())
        chosen = [path for path in inside if path.name.lower() in _SPLIT_FILES]
        return _checked(chosen or [path for path in inside if _PART.fullmatch(path.name)], tree, f"in {folder}")
    if given is not None:
        return [tree.label_file(given, ())], []
    texts = [path for path in map(PurePosixPath, tree.texts) if not _is_skipped(path)]
    paths = [path for path in texts if path.name.lower() in _SPLIT_FILES]
    paths = paths or [path for path in texts if _PART.fullmatch(path.name)]
    folders = sorted({str(path.parent) for path in paths})
    if len(folders) > 1:
        raise DatasetError(
            f"bah: {len(folders)} folders below {tree.root} have split files: {', '.join(folders)}; "
            "say which with dataset.labels=FOLDER"
        )
    return _checked([tree.root / path for path in paths], tree, f"below {tree.root}")


def _is_skipped(path: PurePosixPath) -> bool:
    """Whether a file lies in a folder of lists that are not read."""
    return any(word in str(path.parent).lower() for word in _SKIPPED)


def _checked(paths: list[Path], tree: Tree, place: str) -> tuple[list[Path], list[Problem]]:
    if not paths:
        raise FileNotFoundError(
            f"bah: no split file {place}; looked for {', '.join(_SPLIT_FILES)} and for names that end with "
            "train_labels.csv, val_labels.csv; dataset.labels=PATH names another one"
        )
    parts = [match[1].lower() for path in paths if (match := _PART.fullmatch(path.name))]
    if parts:
        twice = sorted({part for part in parts if parts.count(part) > 1})
        if twice:
            raise DatasetError(
                f"bah: several files {place} end with {twice[0]}_labels.csv: {', '.join(map(tree.name_of, paths))}; "
                "say which folder to read with dataset.labels=FOLDER"
            )
        absent = [f"{part}_labels.csv" for part in ("train", "val") if part not in parts]
        return paths, [Problem("missing", f"no …{name} beside {tree.name_of(paths[0])}") for name in absent]
    there = {path.name.lower() for path in paths}
    beside = tree.name_of(paths[0])
    absent = [name for name in _SPLIT_FILES if name not in there]
    return paths, [Problem("missing", f"no split file {name} beside {beside}") for name in absent]


def _segment_file(tree: Tree, given: str | None) -> Path:
    """The given file, or the one table with `segment` in its name."""
    names = sorted({PurePosixPath(text).name.lower() for text in tree.texts})
    fitting = [name for name in names if "segment" in name and name.endswith(".csv")]
    if given is None and len(fitting) > 1:
        raise DatasetError(
            f"bah: {len(fitting)} tables below {tree.root} may hold the segments: {', '.join(fitting)}; "
            "say which with dataset.labels=PATH"
        )
    return tree.label_file(given, fitting or ["segments.csv"])


def _videos(path: Path, shown_as: str) -> Listing:
    """The videos of a split file; a first row with the names of columns is skipped."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    subjects: set[str] = set()
    for number, line in label_files.read_lines(path):
        video, label = _path_and_label(line)
        where = f"{shown_as} line {number}"
        if files.clip_name(video) != video:
            entries.extend(_entries(problems, subjects, where, video, label))
        elif number > 1:
            problems.append(Problem("unreadable", f"{where}: {line[:80]!r} does not begin with the path of a video"))
        elif label.lower() != "label":
            text = f"{line[:80]!r} is neither `PATH,LABEL,TRANSCRIPT` nor the names of these columns"
            problems.append(Problem("unreadable", f"{where}: {text}"))
    return Listing(tuple(entries), tuple(problems), subjects=frozenset(subjects))


def _labelled(path: Path, shown_as: str) -> Listing:
    """The videos of a table with a header; one with other columns is read like a split file."""
    table = label_files.read_table(path, required=(), shown_as=shown_as)
    video, label, subject = (
        next((name for name in names if name in table.columns), "") for names in (_VIDEO, _LABEL, _SUBJECT)
    )
    if not video or not label:
        return _videos(path, shown_as)
    entries: list[Entry] = []
    problems = list(table.problems)
    subjects: set[str] = set()
    for where, row in table.rows:
        name = row[video]
        if len(files.path_parts(name)) == 1:  # a name alone begins with its subject
            name = f"{row.get(subject, '') or name.partition('_')[0]}/{name}"
        entries.extend(_entries(problems, subjects, where, name, row[label]))
    return Listing(tuple(entries), tuple(problems), subjects=frozenset(subjects))


def _in_one_split(listing: Listing) -> Listing:
    """Without the subjects that several label files place in different splits; each is a problem."""
    places: dict[str, dict[str, str]] = {}
    for entry in listing.entries:
        if entry.split is not None:
            places.setdefault(entry.subject_id, {}).setdefault(entry.split, entry.where)
    torn = {subject: where for subject, where in places.items() if len(where) > 1}
    problems = [
        Problem("conflict", f"{', '.join(where.values())}: subject {subject!r} is in {' and '.join(where)}")
        for subject, where in torn.items()
    ]
    kept = tuple(entry for entry in listing.entries if entry.subject_id not in torn)
    return replace(listing, entries=kept, problems=(*listing.problems, *problems))


def _path_and_label(line: str) -> tuple[str, str]:
    """The first two cells of a row; the transcript follows, unquoted. A path in quotes may hold commas."""
    quoted = re.match(r'"([^"]*)"\s*,([^,]*)', line)
    video, label = (quoted[1], quoted[2]) if quoted else (*line.split(",", 2), "")[:2]
    return video.strip().strip('"'), label.strip().strip('"')


def _segments(path: Path, shown_as: str, length: int | None) -> Listing:
    """The segments of a table, cut where they are too long."""
    table = label_files.read_table(path, required=_COLUMNS, shown_as=shown_as)
    entries: list[Entry] = []
    problems = list(table.problems)
    subjects: set[str] = set()
    for where, row in table.rows:
        told = ", ".join(f"{name}={row[name]}" for name in _COLUMNS[3:])
        numbers = [_whole(row[name]) for name in _COLUMNS[3:]]
        if None in numbers or not row["segment_id"]:
            text = f"{where}: segment_id={row['segment_id']}, {told}: a number is missing"
            problems.append(Problem("unreadable", text))
            continue
        count, start, last = (number or 0 for number in numbers)
        end = exclusive_end(start, last, count)
        if end is None or start < 0 or end <= start:
            problems.append(Problem("conflict", f"{where}: {told} do not fit together"))
            continue
        for base in _entries(problems, subjects, where, row["video"], row["label"]):
            entries.extend(_pieces(base, row["segment_id"], cut(start, end, length)))
    return Listing(tuple(entries), tuple(problems), subjects=frozenset(subjects))


def _entries(problems: list[Problem], subjects: set[str], where: str, video: str, label: str) -> Iterator[Entry]:
    """The entry of a row, with the path from the subject on as its id; or none, and a problem is added."""
    parts = files.path_parts(video)
    name, below = files.clip_name(parts[-1]), _from_subject(parts)
    word = re.sub(r"[^a-z0-9]", "", label_files.plain_label(label).lower())
    subjects.update(below[:1])
    if not name or not below:
        problems.append(Problem("unreadable", f"{where}: {video!r} is not a path Videos/SUBJECT/…"))
    elif not word:
        problems.append(label_files.unlabelled(where, f"video {name!r}"))
    elif word not in _CLASS_OF:
        problems.append(label_files.unknown_label(where, f"video {name!r}", label, ("0", "1", *CLASSES)))
    else:
        yield Entry("/".join((*below[:-1], name)), below[0], "/".join(parts), _CLASS_OF[word], where)


def _short_ids(entries: list[Entry]) -> tuple[Entry, ...]:
    """The name alone is the id of a clip, unless videos in several folders have it."""
    folders: dict[str, set[str]] = {}
    for entry in entries:
        folders.setdefault(files.name_parts(entry.path)[-1], set()).add(entry.clip_id.rpartition("/")[0])
    return tuple(
        replace(entry, clip_id=entry.clip_id.rpartition("/")[2])
        if len(folders[files.name_parts(entry.path)[-1]]) == 1
        else entry
        for entry in entries
    )


def _pieces(base: Entry, segment: str, spans: list[tuple[int, int]]) -> Iterator[Entry]:
    """A clip for each span of a segment; numbers are padded so that names sort in their order."""
    name = f"{base.clip_id}_segment{segment.zfill(3)}"
    width = len(str(len(spans)))
    for number, (start, end) in enumerate(spans, 1):
        part = f"_part{number:0{width}d}of{len(spans)}" if len(spans) > 1 else ""
        yield Entry(f"{name}{part}", base.subject_id, base.path, base.label, base.where, start, end)


def _from_subject(parts: tuple[str, ...]) -> tuple[str, ...]:
    """A path from its subject on: the folder after `Videos`, or the first one where there is no such folder."""
    folders = parts[:-1]
    after = [place for place, before in enumerate(folders[:-1], 1) if before.lower() == "videos"]
    first = [place for place, folder in enumerate(folders) if folder.lower() != "videos"]
    return parts[(after or first)[0] :] if after or first else ()


def _whole(text: str) -> int | None:
    """A whole number, also where it is written as 12.0."""
    plain = label_files.plain_label(text)
    return int(plain) if re.fullmatch(r"-?\d+", plain) else None
