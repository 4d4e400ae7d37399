"""Videos or frames of your own, a folder per subject, with a table of labels.

    <root>/<subject>/<clip>.mp4                  a video, of any kind that can be decoded
    <root>/<subject>/<clip>/17.jpg               or a folder of frames, numbered in their names
    <root>/labels.csv                            subject,clip,label[,split]  or  clip,label[,split] with SUBJECT/CLIP

The column `split` (`source_train`, `source_val`, `source` or `target`) says which subjects are targets, unless the
setting `target_subjects` is given: then the column is ignored. Subjects without a split, or with `source`, are source
subjects, and validation subjects are drawn from them.

Target subjects alone need no label, nor a `labels.csv`: without that file, all clips are target subjects' clips. Videos
right in the root then belong to one person, named like the root.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

from pydantic import NonNegativeInt, PositiveFloat

from clipautt.clips import Split
from clipautt.commands import setting
from clipautt.datasets import files, label_files, layout
from clipautt.datasets.files import Layout, Problem, Tree
from clipautt.datasets.label_files import Table
from clipautt.datasets.layout import Entry, Listing, Reading, Rules
from clipautt.manifest import SPLITS
from clipautt.settings import settings
from clipautt.tables import column_problems, doubtful_labels, nfc, no_label, whole, without_decimals

_LABELS = ("labels.csv",)
_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods")
_COLUMNS = ("subject", "clip", "label", "split")
_DRAWN = ("", "source")
_ALLOWED = (*SPLITS, "source")


@settings
class Folder:
    """Where a data set lies and how it is used."""

    root: str
    """Folder of the subjects' folders and of `labels.csv`."""
    strict: bool = True
    """Refuse a data set that has a problem; False omits what has one, and says so."""
    target_subjects: tuple[str, ...] = ()
    """Subjects to personalize for; all others are source subjects. If empty, the column `split` decides."""
    validation_subjects: NonNegativeInt | tuple[str, ...] = 2
    """Source subjects without a split that are held out to select settings: how many, or which, as [a,b]."""
    seed: int = 0
    """Another seed draws other validation subjects."""
    classes: tuple[str, ...] = ()
    """Class names, neutral class first; empty takes `neutral` and then the other labels in alphabetical order."""
    layout: Layout = "auto"
    """`auto`: for each clip its video, or else its frames."""
    labels: str | None = None
    """Label file, relative to the root; None is `labels.csv`, or no labels where there is no table at all."""
    within: str = ""
    """Sub-folder of the root that holds the subjects' folders; needed where several hold copies of them."""
    frames_per_second: PositiveFloat = 25.0
    """Rate at which the numbers in the names of frames count; 1000 for milliseconds."""
    name: str = "folder"
    """Name of the data set in results and reports."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={self.classes!r}: should be different names, the neutral class first")
        self._rules(self.classes)

    def read(self) -> Reading:
        """The clips that the label file names.

        Raises:
            FileNotFoundError: if there is no such folder, neither a label file nor a clip, or not the given label file.
            DatasetError: listing everything that is wrong, if `strict`; or if no clip is left.
            ValueError: if no class is the neutral one, or there are source subjects and none is left to train on.
        """
        tree = files.walk(self.root, dataset=self.name, within=self.within)
        if self.labels is None and tree.places and not tree.has_text(_LABELS):
            _refuse_other_tables(tree)
            return self._read_unlabelled(tree)
        path = tree.label_file(self.labels, _LABELS)
        shown_as = tree.name_of(path)
        table = label_files.read_table(path, required=("clip", "label"), shown_as=shown_as)
        wrong, unused = column_problems(table.columns, _COLUMNS)
        if wrong:
            raise files.DatasetError(f"{path}: {'; '.join(wrong)}")
        listing = _listing(table)
        if not self.target_subjects:
            listing = _with_splits(listing, table)
        learned = any(
            entry.split != "target" and entry.subject_id not in self.target_subjects for entry in listing.entries
        )
        if learned:
            listing = _only_labelled(listing)
        if self.classes:
            classes = tuple(map(nfc, self.classes))
        else:
            listing = _without_slips(listing)
            classes = _classes({entry.label for entry in listing.entries if entry.label}, shown_as, learned=learned)
        rules = self._rules(classes)
        notes = [f"{shown_as}: columns that are not used: {', '.join(unused)}"] if unused else []
        listing = replace(listing, notes=(*notes, *_unlisted(tree, listing, rules)))
        return layout.assemble(_only_known(listing, classes), tree, rules)

    def _read_unlabelled(self, tree: Tree) -> Reading:
        """All clips of a folder without a label file: they are target subjects' clips without a label."""
        entries = []
        lost = [path for path in tree.broken.values() if files.clip_name(path) != path]
        problems = [Problem("missing", f"{path} is a broken link") for path in sorted(lost)]
        for place in tree.places:
            path = place.path[len(f"{tree.within}/") if tree.within else 0 :]
            subject = place.parts[0] if len(place.parts) > 1 else nfc(Path(tree.below).name)
            clip_id = "/".join(place.parts if len(place.parts) > 1 else (subject, *place.parts))
            if self.target_subjects and subject not in map(nfc, self.target_subjects):
                problems.append(label_files.unlabelled(place.path, f"clip {clip_id!r} of source subject {subject!r}"))
            else:
                entries.append(Entry(clip_id, subject, path, None, place.path, split="target"))
        note = (
            f"there is no {_LABELS[0]}: {len(entries)} clips of {len({entry.subject_id for entry in entries})} "
            "subjects are to be adapted to, without labels"
        )
        listing = Listing(tuple(entries), tuple(problems), (note,))
        return layout.assemble(listing, tree, self._rules(tuple(map(nfc, self.classes))))

    def _rules(self, classes: tuple[str, ...]) -> Rules:
        rate = self.frames_per_second
        return layout.rules_of(self, dataset=self.name, classes=classes, frames_per_second=rate, whole_path=True)


def _refuse_other_tables(tree: Tree) -> None:
    """Refuse a root with a table that may be the label file under another name; one beside its video is none."""
    names = sorted(path.name for path in tree.root.iterdir() if path.suffix.lower() in _TABLES)
    clips = {place.parts[-1] for place in tree.places}
    other = [name for name in names if nfc(Path(name).stem) not in clips]
    if other:
        table = next((name for name in other if Path(name).suffix.lower() in (".csv", ".tsv")), None)
        ask = f"give {setting('dataset.labels', table)}" if table else f"save {other[0]} as CSV, {_LABELS[0]}"
        raise FileNotFoundError(
            f"{tree.dataset}: no {_LABELS[0]} below {tree.root}, and {files.some(other)} may hold the labels: {ask}, "
            "or move it away to read the clips without labels"
        )


def _path(row: dict[str, str]) -> tuple[str, ...]:
    """The parts of SUBJECT/CLIP."""
    return files.path_parts(f"{row['subject']}/{row['clip']}" if "subject" in row else row["clip"])


def _listing(table: Table) -> Listing:
    """The clips of the rows, without their splits."""
    entries: list[Entry] = []
    problems = list(table.problems)
    for where, row in table.rows:
        parts = _path(row)
        path = "/".join(parts)
        if len(parts) < 2 or ("subject" in row and not row["subject"]):
            problems.append(Problem("unreadable", f"{where}: {path!r} is not SUBJECT/CLIP"))
        else:
            label = None if no_label(row["label"]) else row["label"]
            entries.append(Entry(files.clip_name(path), parts[0], path, label, where))
    if without_decimals({entry.label for entry in entries if entry.label}):
        entries = [replace(entry, label=entry.label and whole(entry.label)) for entry in entries]
    return Listing(tuple(entries), tuple(problems), subjects=frozenset(_path(row)[0] for _, row in table.rows) - {""})


def _classes(labels: set[str], shown_as: str, *, learned: bool) -> tuple[str, ...]:
    """The classes that the labels make; none where the labels do not tell which is neutral and nothing is learned."""
    if labels and layout.NEUTRAL not in labels:
        if not learned:
            return ()
        raise ValueError(
            f"{shown_as} has the labels {', '.join(sorted(labels))} and none is {layout.NEUTRAL!r}; "
            f"name the classes, the neutral one first, as in {setting('dataset.classes', sorted(labels))}"
        )
    return (layout.NEUTRAL, *sorted(labels - {layout.NEUTRAL})) if labels else ()


def _only_labelled(listing: Listing) -> Listing:
    """Without the clips that have no label: where a model is trained, a label that is missing is a mistake."""
    problems = [
        label_files.unlabelled(entry.where, f"clip {entry.path!r}") for entry in listing.entries if entry.label is None
    ]
    labelled = tuple(entry for entry in listing.entries if entry.label is not None)
    return replace(listing, entries=labelled, problems=(*problems, *listing.problems))


def _without_slips(listing: Listing) -> Listing:
    """Without the clips whose label seems to be a slip of the pen; each is a problem."""
    counts = Counter(entry.label for entry in listing.entries if entry.label)
    meant = doubtful_labels(counts)
    ask = f"correct it, or say that both are classes with {setting('dataset.classes', _classes_of(counts))}"
    problems = [
        Problem("doubtful", f"{entry.where}: label {entry.label!r} beside {meant[entry.label]!r}; {ask}")
        for entry in listing.entries
        if entry.label in meant
    ]
    kept = tuple(entry for entry in listing.entries if entry.label not in meant)
    return replace(listing, entries=kept, problems=(*listing.problems, *problems))


def _classes_of(labels: Iterable[str]) -> list[str]:
    """All labels, the neutral one first."""
    return sorted(labels, key=lambda label: (label != layout.NEUTRAL, label))


def _only_known(listing: Listing, classes: tuple[str, ...]) -> Listing:
    known = [entry for entry in listing.entries if entry.label is None or not classes or entry.label in classes]
    unknown = [
        label_files.unknown_label(entry.where, f"clip {entry.clip_id!r}", entry.label, classes)
        for entry in listing.entries
        if entry.label is not None and classes and entry.label not in classes
    ]
    return replace(listing, entries=tuple(known), problems=(*listing.problems, *unknown))


def _with_splits(listing: Listing, table: Table) -> Listing:
    """The split of one row holds for all rows of its subject, even if that row gives no clip.

    Subjects with several splits, or one that cannot be read, are omitted: they might be targets.
    """
    told: dict[str, dict[str, str]] = {}
    for where, row in table.rows:
        split = row.get("split", "").lower()
        if split not in _DRAWN and not no_label(split) and _path(row)[0]:
            told.setdefault(_path(row)[0], {}).setdefault(split, where)
    for where, cells in table.misfits:
        for subject in {part for cell in cells for part in files.path_parts(cell)[:1]} & listing.subjects:
            for split in {cell.lower() for cell in cells}.intersection(SPLITS):
                told.setdefault(subject, {}).setdefault(split, where)
    problems = [
        Problem("unreadable", f"{where}: split {split!r} of subject {subject!r} is not one of {', '.join(_ALLOWED)}")
        for subject, splits in told.items()
        for split, where in splits.items()
        if split not in SPLITS
    ]
    problems += [
        Problem("conflict", f"{', '.join(splits.values())}: subject {subject!r} is in {' and '.join(splits)}")
        for subject, splits in told.items()
        if len(splits) > 1
    ]
    unclear = {subject for subject, splits in told.items() if len(splits) > 1 or not splits.keys() <= set(SPLITS)}
    agreed = {subject: cast(Split, next(iter(splits))) for subject, splits in told.items()}
    entries = [
        replace(entry, split=agreed.get(entry.subject_id))
        for entry in listing.entries
        if entry.subject_id not in unclear
    ]
    return replace(listing, entries=tuple(entries), problems=(*listing.problems, *problems))


def _unlisted(tree: Tree, listing: Listing, rules: Rules) -> tuple[str, ...]:
    """A note on clips on disk that have no labelled row; copies of a clip in deeper folders count as that clip."""
    listed = {files.name_parts(entry.path) for entry in listing.entries}
    free = [
        place.path
        for place in tree.places
        if rules.layout == "auto" or place.video == (rules.layout == "videos")
        if not any(place.parts[start:] in listed for start in range(len(place.parts)))
    ]
    return (f"{len(free)} videos or folders of frames have no labelled row, the first is {free[0]}",) if free else ()
