"""Videos or frames of your own, a folder per subject, with a table of labels.

    <root>/<subject>/<clip>.mp4                  a video, of any kind that can be decoded
    <root>/<subject>/<clip>/17.jpg               or a folder of frames, numbered in their names
    <root>/labels.csv                            subject,clip,label[,split]  or  clip,label[,split] with SUBJECT/CLIP

Which subjects are targets stands in the column `split` (`source_train`, `source_val`, `source` or `target`), or in the
setting `target_subjects`, which comes first: where it is given, the column is not looked at. Subjects of whom neither
says anything, or only that they are `source`, are source subjects, and validation subjects are drawn among them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from clipautt.clips import SPLITS, Split
from clipautt.datasets import layout as files
from clipautt.datasets.layout import Entry, Layout, Listing, Problem, Reading, Rules, Tree

_LABELS = ("labels.csv",)
_DRAWN = ("", "source")


@dataclass(frozen=True)
class Folder:
    """Where a data set lies and how it is used."""

    root: str
    """Folder of the subjects' folders and of `labels.csv`."""
    strict: bool = True
    """False leaves out what has a problem instead of refusing."""
    target_subjects: tuple[str, ...] = ()
    """Subjects to be personalised; all others are source subjects. Empty leaves it to the column `split`."""
    validation_subjects: int | tuple[str, ...] = 2
    """How many of the source subjects without a split select settings instead of training, or which."""
    seed: int = 0
    """Another seed draws other validation subjects."""
    classes: tuple[str, ...] = ()
    """Class names, neutral class first; empty takes `neutral` and then the other labels in alphabetical order."""
    layout: Layout = "auto"
    """`videos`, `frames`, or `auto`: either."""
    labels: str | None = None
    """Label file, from the root; None is `labels.csv`."""
    within: str = ""
    """Sub-folder of the root that holds the subjects' folders; needed where copies of them lie in several."""
    frames_per_second: float = 25.0
    """Rate at which the numbers in the names of frames count; 1000 for milliseconds."""
    name: str = "folder"
    """Name of the data set in results and reports."""

    def __post_init__(self) -> None:
        if isinstance(cast(object, self.classes), str) or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"classes={self.classes!r}; a list of different class names is needed, neutral class first"
            )
        self._rules(self.classes)

    def read(self) -> Reading:
        """The clips that the label file names.

        Raises:
            FileNotFoundError: if there is no such folder or no label file.
            DatasetError: listing everything that is wrong, if `strict`; or if no clip is left.
            ValueError: if no class is the neutral one, or no source subject is left to train on.
        """
        tree = files.walk(self.root, dataset=self.name)
        path = tree.label_file(self.labels, _LABELS)
        listing = _table(path, tree.name_of(path), use_splits=not self.target_subjects)
        classes = self.classes or _classes({entry.label for entry in listing.entries}, tree.name_of(path))
        rules = self._rules(classes)
        listing = replace(listing, notes=_unlisted(tree, listing, rules))
        listing = _only_known(_one_split_each(listing), classes)
        return files.assemble(listing, tree, rules)

    def _rules(self, classes: tuple[str, ...]) -> Rules:
        subjects = files.Subjects(self.target_subjects, self.validation_subjects, self.seed)
        return Rules(
            self.name, classes, subjects, self.strict, self.layout, self.within, self.frames_per_second, whole_path=True
        )


def _table(path: Path, shown_as: str, *, use_splits: bool) -> Listing:
    entries: list[Entry] = []
    problems: list[Problem] = []
    for number, row in files.read_table(path, required=("clip", "label")):
        where = f"{shown_as} line {number}"
        parts = files.path_parts(f"{row['subject']}/{row['clip']}" if "subject" in row else row["clip"])
        split = row.get("split", "") if use_splits else ""
        if len(parts) < 2 or ("subject" in row and not row["subject"]):
            problems.append(Problem("unreadable", f"{where}: {'/'.join(parts)!r} is not SUBJECT/CLIP"))
        elif row["label"].lower() in ("", "nan"):
            problems.append(files.unlabelled(where, f"clip {'/'.join(parts)!r}"))
        elif split not in (*SPLITS, *_DRAWN):
            problems.append(
                Problem("unreadable", f"{where}: split {split!r} is not one of {', '.join((*SPLITS, 'source'))}")
            )
        else:
            clip = files.clip_name("/".join(parts))
            own = None if split in _DRAWN else cast(Split, split)
            entries.append(Entry(clip, parts[0], clip, row["label"], where, split=own))
    return Listing(tuple(entries), tuple(problems))


def _classes(labels: set[str], shown_as: str) -> tuple[str, ...]:
    if labels and files.NEUTRAL not in labels:
        raise ValueError(
            f"{shown_as} has the labels {', '.join(sorted(labels))} and none is {files.NEUTRAL!r}; "
            "name the classes, neutral class first, with classes=[…]"
        )
    return (files.NEUTRAL, *sorted(labels - {files.NEUTRAL}))


def _only_known(listing: Listing, classes: tuple[str, ...]) -> Listing:
    unknown = [
        files.unknown_label(entry.where, f"clip {entry.clip_id!r}", entry.label, classes)
        for entry in listing.entries
        if entry.label not in classes
    ]
    known = tuple(entry for entry in listing.entries if entry.label in classes)
    return replace(listing, entries=known, problems=(*listing.problems, *unknown))


def _one_split_each(listing: Listing) -> Listing:
    """The split of one row holds for all rows of its subject; subjects with several splits are left out."""
    told: dict[str, dict[Split, str]] = {}
    for entry in listing.entries:
        if entry.split is not None:
            told.setdefault(entry.subject_id, {}).setdefault(entry.split, entry.where)
    problems = [
        Problem("conflict", f"{', '.join(splits.values())}: subject {subject!r} is in {' and '.join(splits)}")
        for subject, splits in told.items()
        if len(splits) > 1
    ]
    agreed = {subject: next(iter(splits)) for subject, splits in told.items()}
    entries = [
        replace(entry, split=agreed.get(entry.subject_id))
        for entry in listing.entries
        if len(told.get(entry.subject_id, ())) < 2
    ]
    return replace(listing, entries=tuple(entries), problems=(*listing.problems, *problems))


def _unlisted(tree: Tree, listing: Listing, rules: Rules) -> tuple[str, ...]:
    """A note on clips that lie there without a labelled row."""
    kinds = {"videos": [tree.videos], "frames": [tree.folders], "auto": [tree.videos, tree.folders]}[rules.layout]
    search = partial(tree.find, layout=rules.layout, within=rules.within, whole_path=True)
    listed = {place for entry in listing.entries for place in search(entry.path)}
    free = [place for kind in kinds for places in kind.values() for place in places if place not in listed]
    return (f"{len(free)} videos or folders of frames have no labelled row, the first is {free[0]}",) if free else ()
