"""From label files to clips: the steps that the readers of all data sets share.

A reader turns a label file into entries, one per clip it names. The rest happens here: repeated entries are merged,
contradictory ones dropped, the others located among the files, and subjects are divided into source and target.
Problems are collected and reported together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from clipautt.clips import Clip, Split, id_number
from clipautt.commands import setting
from clipautt.datasets.files import DatasetError, Layout, Place, Problem, Tree, choose, name_parts, some, walk
from clipautt.manifest import Manifest
from clipautt.tables import nfc

NEUTRAL = "neutral"
_SHOWN_PROBLEMS = 25


@dataclass(frozen=True)
class Entry:
    """One clip as a label file names it."""

    clip_id: str
    """Unique in its data set, unless the file lists it twice."""
    subject_id: str
    """Whose face it shows."""
    path: str
    """What to look for: a name, or a path that ends with it; an extension is not needed."""
    label: str | None
    """Class name; None where it is not known, which only target subjects may have."""
    where: str
    """File and line it comes from."""
    start_frame: int | None = None
    """First frame of the clip; None is the beginning."""
    end_frame: int | None = None
    """Frame before which it ends; None is the end."""
    split: Split | None = None
    """Split that the label file itself gives; None leaves it to the settings."""


@dataclass(frozen=True)
class Listing:
    """What a label file holds."""

    entries: tuple[Entry, ...]
    """In the order of the file."""
    problems: tuple[Problem, ...] = ()
    """Rows that gave no entry."""
    notes: tuple[str, ...] = ()
    """What was omitted because it does not belong to the task, a sentence each."""
    subjects: frozenset[str] = frozenset()
    """All subjects that the file names, also in rows that gave no entry."""


@dataclass(frozen=True, repr=False)
class Reading:
    """What a reader returns."""

    clips: tuple[Clip, ...]
    """Sorted by `clip_id`; sources are absolute paths."""
    classes: tuple[str, ...]
    """Class names in label order; index 0 is the neutral class."""
    problems: tuple[str, ...] = ()
    """What was omitted because of a problem, a sentence each with file and row or clip."""
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
    """Subjects to be personalized; all others are source subjects."""
    validation: int | tuple[str, ...]
    """How many source subjects are held out to select settings, or which."""
    seed: int
    """Another seed draws other validation subjects."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", tuple(map(nfc, self.target)))
        if not isinstance(self.validation, int):
            object.__setattr__(self, "validation", tuple(map(nfc, self.validation)))
        if isinstance(self.validation, tuple):
            both = sorted(set(self.target) & set(self.validation))
            if both:
                raise ValueError(
                    f"dataset.target_subjects and dataset.validation_subjects both name {', '.join(both)}; "
                    "a subject is either a target or a source"
                )

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

        Validation subjects are those with the lowest numbers among seeded hashes of the source subjects' ids: adding
        or removing a subject changes at most one of them.

        Args:
            subjects: ids of all subjects.
            known: subjects whose split the data set itself gives; validation subjects among them are counted.

        Raises:
            ValueError: if there are source subjects and none is left to train on, or the settings contradict the data.
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
                raise ValueError(f"dataset.validation_subjects names {subject}, who is in {known[subject]}")
            splits[subject] = "source_val"
        if source and "source_train" not in splits.values():
            raise ValueError(
                f"dataset.validation_subjects={self._shown} leaves none of the {len(source)} source subjects to train "
                f"on; fewer are allowed, or make them targets, to adapt to with another checkpoint: "
                f"{setting('dataset.target_subjects', everyone)}"
            )
        return splits

    @property
    def _shown(self) -> str:
        """The validation subjects as they are set."""
        return str(self.validation) if isinstance(self.validation, int) else f"[{','.join(self.validation)}]"


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
    """True refuses a data set that has a problem; False omits what has one."""
    layout: Layout
    """Where clips are looked for: among videos, folders of frames, or both."""
    frames_per_second: float
    """Rate at which the numbers in the names of frames count."""
    whole_path: bool = False
    """Whether a clip's whole path must agree, rather than its name only."""


class Copy(Protocol):
    """The settings that all readers share."""

    @property
    def root(self) -> str: ...
    @property
    def strict(self) -> bool: ...
    @property
    def target_subjects(self) -> tuple[str, ...]: ...
    @property
    def validation_subjects(self) -> int | tuple[str, ...]: ...
    @property
    def seed(self) -> int: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def labels(self) -> str | None: ...
    @property
    def within(self) -> str: ...


def rules_of(
    copy: Copy, *, dataset: str, classes: tuple[str, ...], frames_per_second: float, whole_path: bool = False
) -> Rules:
    """The rules that a reader's settings make.

    Raises:
        ValueError: for settings that are wrong or contradict each other.
    """
    subjects = Subjects(copy.target_subjects, copy.validation_subjects, copy.seed)
    return Rules(dataset, classes, subjects, copy.strict, copy.layout, frames_per_second, whole_path)


def read_either(
    copy: Copy,
    rules: Rules,
    *,
    official: str,
    frame_lists: Sequence[str],
    column: str,
    of_table: Callable[[Path, str], Listing],
    of_frames: Callable[[Path, str], Listing],
) -> Reading:
    """Read a data set that is distributed as videos with a table, and as extracted frames with a list of them.

    Args:
        copy: the settings of the data set.
        rules: from `rules_of`.
        official: name of the table.
        frame_lists: possible names of the list.
        column: name of a column by which the table is recognized.
        of_table: reads the table, from its path and its name in messages.
        of_frames: reads the list, likewise.

    Raises:
        FileNotFoundError, DatasetError, ValueError: as `files.walk`, `files.choose` and `assemble`.
    """
    tree = walk(copy.root, dataset=rules.dataset, within=copy.within)
    labels = choose(
        tree, given=copy.labels, layout=copy.layout, official=official, frame_lists=frame_lists, column=column
    )
    listing = (of_table if labels.official else of_frames)(labels.path, labels.shown_as)
    listing, rules = settle(listing, tree, replace(rules, layout=labels.layout))
    return assemble(listing, tree, rules)


def settle(listing: Listing, tree: Tree, rules: Rules) -> tuple[Listing, Rules]:
    """Resolve `layout=auto` to the layout that has more of the clips; videos if both have as many.

    Returns:
        The listing, with a note if both layouts have clips; and the rules, with the layout.
    """
    kinds = {place.video for place in tree.places}
    if rules.layout != "auto" or not kinds:
        return listing, rules
    if len(kinds) == 1:
        return listing, replace(rules, layout="videos" if True in kinds else "frames")
    paths = {entry.path: entry.subject_id for entry in listing.entries}
    subjects = _everyone(listing, rules)
    count: dict[Layout, int] = {
        layout: sum(
            bool(tree.find(path, layout=layout, subject=subject, subjects=subjects)) for path, subject in paths.items()
        )
        for layout in ("videos", "frames")
    }
    if not any(count.values()):
        return listing, rules
    best: Layout = "videos" if count["videos"] >= count["frames"] else "frames"
    if all(count.values()):
        note = (
            f"layout=auto reads {best}: {count['videos']} of {len(paths)} clips are there as videos, "
            f"{count['frames']} as folders of frames"
        )
        listing = replace(listing, notes=(*listing.notes, note))
    return listing, replace(rules, layout=best)


def assemble(listing: Listing, tree: Tree, rules: Rules) -> Reading:
    """The clips of a data set.

    Raises:
        DatasetError: if there is a problem and `rules.strict`, or no clip is left.
        ValueError: if there are source subjects and none is left to train on.
    """
    entries, repeated = _drop_repeated(listing.entries)
    sources, unfound = _locate(entries, tree, rules, _everyone(listing, rules))
    found = [entry for entry in entries if entry.path in sources]
    absent = rules.subjects.absent({entry.subject_id for entry in found})
    if found and learned(found, rules):
        without = [name for name in rules.classes if all(entry.label != name for entry in found)]
        absent += [Problem("absent", f"class {name!r} has no clip that can be used") for name in without]
    problems = [*listing.problems, *tree.problems, *repeated, *unfound, *absent]
    if not found or (problems and rules.strict):
        raise DatasetError(_refusal(tree, problems, any_clip=bool(found)))
    notes = [*listing.notes, *tree.notes, *([f"omitted or absent: {_kinds(problems)}"] if problems else [])]
    clips = _clips(found, sources, tree, rules)
    return Reading(clips, rules.classes, tuple(problem.text for problem in problems), tuple(notes))


def learned(entries: Iterable[Entry], rules: Rules) -> bool:
    """Whether there is a source subject, so that a model is trained on these clips."""
    return any(entry.split != "target" and entry.subject_id not in rules.subjects.target for entry in entries)


def _everyone(listing: Listing, rules: Rules) -> frozenset[str]:
    """Every subject that the label file or the settings name."""
    chosen = rules.subjects.validation
    named = (*rules.subjects.target, *(chosen if isinstance(chosen, tuple) else ()))
    return listing.subjects.union((entry.subject_id for entry in listing.entries), named)


def _clips(entries: Sequence[Entry], sources: Mapping[str, Place], tree: Tree, rules: Rules) -> tuple[Clip, ...]:
    known = {entry.subject_id: entry.split for entry in entries if entry.split is not None}
    splits = rules.subjects.splits((entry.subject_id for entry in entries), known=known)
    clips = []
    for entry in sorted(entries, key=lambda entry: entry.clip_id):
        source = sources[entry.path]
        clips.append(
            Clip(
                clip_id=entry.clip_id,
                subject_id=entry.subject_id,
                source=str(tree.root / source.path),
                split=splits[entry.subject_id],
                label=entry.label,
                dataset=rules.dataset,
                start_frame=entry.start_frame,
                end_frame=entry.end_frame,
                frames_per_second=None if source.video else rules.frames_per_second,
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
        places = some([entry.where for entry in same])
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


def _told(label: str | None, subject: str, start: int | None, end: int | None, split: str | None) -> str:
    span = f", frames {start} to {end}" if start is not None or end is not None else ""
    return f"{label!r} of subject {subject!r}{span}{f' in {split}' if split else ''}"


def _locate(
    entries: Iterable[Entry], tree: Tree, rules: Rules, subjects: frozenset[str]
) -> tuple[dict[str, Place], list[Problem]]:
    """Path of an entry → the one place where it lies, and a problem for each path that has none or several."""
    users: dict[str, list[Entry]] = {}
    for entry in entries:
        users.setdefault(entry.path, []).append(entry)
    sources: dict[str, Place] = {}
    problems = []
    for path, same in users.items():
        subject = same[0].subject_id
        places = tree.find(path, layout=rules.layout, whole_path=rules.whole_path, subject=subject, subjects=subjects)
        where = same[0].where + (f" and {len(same) - 1} more" if len(same) > 1 else "")
        if len({entry.subject_id for entry in same}) > 1:
            several = " and ".join(sorted({repr(entry.subject_id) for entry in same}))
            problems.append(Problem("conflict", f"{where}: {path!r} is listed for subjects {several}"))
        elif len(places) == 1:
            sources[path] = places[0]
        elif places:
            listed = some([place.path for place in places])
            text = f"{where}: {path!r} may be any of {listed}; dataset.within=FOLDER limits the search"
            problems.append(Problem("ambiguous", text))
        else:
            problems.append(_missing(where, path, subject, tree, rules))
    return sources, [*problems, *_drop_shared(sources, users)]


def _missing(where: str, path: str, subject: str, tree: Tree, rules: Rules) -> Problem:
    """The problem that a clip is not found, with what comes close to it."""
    what = {"videos": "video", "frames": "folder of frames"}.get(rules.layout, "video or folder of frames")
    text = f"{where}: no {what} {path!r} below {tree.below}"
    others = tree.find(path, layout=rules.layout, whole_path=rules.whole_path)
    broken = tree.broken.get(name_parts(path)[-1])
    alike = [] if others else tree.alike(path)
    if alike:
        text += f"; {some([place.path for place in alike])} is there: spreadsheets change names, 007 to 7, unless the "
        text += "column is formatted as text"
    elif others:
        text += f"; {some([place.path for place in others])} lies in the folder of another subject than {subject!r}"
    elif broken is not None:
        text += f"; {broken} is a broken link"
    return Problem("missing", text)


def _drop_shared(sources: dict[str, Place], users: Mapping[str, list[Entry]]) -> list[Problem]:
    """A place belongs to the path that agrees with it the most; other paths are removed from `sources`."""
    takers: dict[str, list[str]] = {}
    for path, place in sources.items():
        takers.setdefault(place.path, []).append(path)
    problems = []
    for shared, paths in takers.items():
        if len(paths) == 1:
            continue
        agreeing = {path: _agreement(name_parts(path), sources[path].parts) for path in paths}
        most = max(agreeing.values())
        best = [path for path, count in agreeing.items() if count == most]
        for path in paths if len(best) > 1 else sorted(set(paths) - set(best)):
            other = next(rival for rival in best if rival != path)
            text = f"{users[path][0].where}: {path!r} fits only {shared}, as does {other!r} of {users[other][0].where}"
            problems.append(Problem("conflict", text))
            del sources[path]
    return problems


def _agreement(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts agree, from the end."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _refusal(tree: Tree, problems: Sequence[Problem], *, any_clip: bool) -> str:
    """The message of a `DatasetError`."""
    if not problems:
        return f"{tree.dataset} at {tree.root}: the label file names no clip"
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    shown = "".join(f"\n  {problem.text}" for problem in problems[:_SHOWN_PROBLEMS])
    more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    advice = "strict=false omits them" if any_clip else "no clip is left without them"
    return f"{tree.dataset} at {tree.root} has {count} ({_kinds(problems)}):{shown}{more}\n{advice}"


def _kinds(problems: Iterable[Problem]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(problem.kind for problem in problems).most_common())
