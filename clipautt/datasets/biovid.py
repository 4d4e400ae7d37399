"""BioVid heat pain, part A, as its owners ship it: no pain (BL1) against the strongest pain (PA4).

Two layouts are read:

    samples.csv                                  tab-separated: subject_name, class_name, sample_name, …
    <subject>/<subject>-BL1-083.mp4              videos of 5.5 s at 25 frames per second

    <subject>/<subject>-BL1-083/image4320.jpg    face crops; the number is the time in milliseconds
    labels.txt                                   no header: `<subject>/<subject>-BL1-083/image4320.jpg 0`

Labels of crops count the five classes from 0 to 4, or are 0 and 1 for the two of the task, whichever fits more of the
list; a sample's name says its class as well, and has to agree.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import NonNegativeInt

from clipautt.datasets import files, label_files, layout
from clipautt.datasets.files import Layout, Problem
from clipautt.datasets.layout import Entry, Listing, Reading, Rules
from clipautt.settings import settings

TARGETS = (
    "081014_w_27", "101609_m_36", "112009_w_43", "091809_w_43", "071309_w_21",
    "073114_m_25", "080314_w_25", "073109_w_28", "100909_w_65", "081609_w_40",
)  # fmt: skip
"""The target subjects of arXiv 2603.27999."""
CLASSES = (layout.NEUTRAL, "pain")
_OFFICIAL = "samples.csv"
_FRAME_LISTS = ("labels.txt", "label.txt", "all_sub_labels.txt")
_LEVELS = ("BL1", "PA1", "PA2", "PA3", "PA4")
_CLASS_OF = {"BL1": CLASSES[0], "PA4": CLASSES[1]}
_LEVEL_IN_NAME = re.compile(r"(?:^|-)(BL1|PA[1-4])(?:-|$)", re.IGNORECASE)
_MILLISECONDS = 1000.0


@settings
class BioVid:
    """Where a copy of BioVid lies and how it is used."""

    root: str
    """Folder below which the label file and the clips lie, at any depth."""
    strict: bool = True
    """Refuse a data set that has a problem; False omits what has one, and says so."""
    target_subjects: tuple[str, ...] = TARGETS
    """Subjects to personalize for, the paper's by default; all others are source subjects."""
    validation_subjects: NonNegativeInt | tuple[str, ...] = 10
    """Source subjects held out to select settings: how many, or which, as [a,b]."""
    seed: int = 0
    """Another seed draws other validation subjects."""
    layout: Layout = "auto"
    """`auto`: videos or frames, whichever has more of the clips; videos where both have all."""
    labels: str | None = None
    """Label file, relative to the root; None looks for `samples.csv`, or `labels.txt` for frames."""
    within: str = ""
    """Sub-folder of the root that holds the clips; needed where several hold copies of them."""

    def __post_init__(self) -> None:
        _ = self._rules  # checks them

    def read(self) -> Reading:
        """The clips of the classes BL1 and PA4.

        Raises:
            FileNotFoundError: if there is no such folder or no label file.
            ValueError: if there are source subjects and none is left to train on.
            DatasetError: listing everything that is wrong, if `strict`; or if no clip is left.
        """
        return layout.read_either(
            self,
            self._rules,
            official=_OFFICIAL,
            frame_lists=_FRAME_LISTS,
            column="sample_name",
            of_table=_samples,
            of_frames=_frames,
        )

    @property
    def _rules(self) -> Rules:
        return layout.rules_of(self, dataset="biovid", classes=CLASSES, frames_per_second=_MILLISECONDS)


def _samples(path: Path, shown_as: str) -> Listing:
    """The samples of the official table."""
    table = label_files.read_table(path, required=("subject_name", "class_name", "sample_name"), shown_as=shown_as)
    entries, problems, others = [], list(table.problems), Counter[str]()
    for where, row in table.rows:
        sample = files.clip_name(row["sample_name"])
        level, named = label_files.plain_label(row["class_name"]).upper(), _level_of(sample)
        if not sample or not row["subject_name"]:
            problems.append(Problem("unreadable", f"{where}: subject_name or sample_name is empty"))
        elif not level:
            problems.append(label_files.unlabelled(where, f"sample {sample!r}"))
        elif level not in _LEVELS:
            problems.append(label_files.unknown_label(where, f"sample {sample!r}", level, _LEVELS))
        elif "-" in sample and sample.partition("-")[0] != row["subject_name"]:
            problems.append(
                Problem("conflict", f"{where}: sample {sample!r} is listed for subject {row['subject_name']!r}")
            )
        elif named not in (None, level):
            problems.append(Problem("conflict", f"{where}: class_name of sample {sample!r} is {level}"))
        elif level not in _CLASS_OF:
            others[level] += 1
        else:
            place = f"{row['subject_name']}/{sample}"
            entries.append(Entry(sample, row["subject_name"], place, _CLASS_OF[level], where))
    subjects = frozenset(row["subject_name"] for _, row in table.rows) - {""}
    return Listing(tuple(entries), tuple(problems), _notes(others), subjects)


def _frames(path: Path, shown_as: str) -> Listing:
    """The folders of a list of frames."""
    folders, problems = label_files.read_frame_list(path, shown_as=shown_as)
    levels = _numbering((folder.label, _level_of(folder.name)) for folder in folders)
    entries, others, subjects = [], Counter[str](), set[str]()
    for folder in folders:
        what, named = f"sample {folder.name!r}", _level_of(folder.name)
        level = levels.get(folder.label, folder.label.upper())
        subject = folder.name.partition("-")[0] if named else folder.parent
        subjects.add(subject)
        if named is not None and named not in _CLASS_OF:
            others[named] += 1
        elif level not in _LEVELS:
            problems.append(label_files.unknown_label(folder.where, what, folder.label, (*levels, *_LEVELS)))
        elif named not in (None, level):
            problems.append(Problem("conflict", f"{folder.where}: label {folder.label!r} of {what} means {level}"))
        elif level not in _CLASS_OF:
            others[level] += 1
        elif not subject:
            problems.append(Problem("unreadable", f"{folder.where}: {what} lies in no folder of a subject"))
        else:
            place = f"{folder.parent}/{folder.name}".lstrip("/")
            entries.append(Entry(folder.name, subject, place, _CLASS_OF[level], folder.where))
    return Listing(tuple(entries), tuple(problems), _notes(others), frozenset(subjects - {""}))


def _numbering(samples: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """What numeric labels mean: 0 and 1 the two classes of the task, or 0 to 4 the five levels.

    The majority decides, so a stray label does not change the meaning of the others. Samples whose names say their
    level are counted; if these are undecided, all samples: a 1 counts for two classes, a 2, 3 or 4 for five levels.

    Args:
        samples: label and, where the name says it, level of each.
    """
    samples = list(samples)
    two, five = {"0": _LEVELS[0], "1": _LEVELS[-1]}, {str(number): level for number, level in enumerate(_LEVELS)}
    named = [pair for pair in samples if pair[1] is not None and pair[0] in five]
    votes = sum((two.get(label) == level) - (five[label] == level) for label, level in named)
    if votes == 0:
        labels = Counter(label for label, _ in samples)
        votes = labels["1"] - labels["2"] - labels["3"] - labels["4"]
    return five if votes < 0 else two


def _level_of(sample: str) -> str | None:
    match = _LEVEL_IN_NAME.search(sample)
    return match[1].upper() if match else None


def _notes(others: Counter[str]) -> tuple[str, ...]:
    if not others:
        return ()
    counted = ", ".join(f"{count} of {level}" for level, count in sorted(others.items()))
    return (f"only BL1 and PA4 are used; samples of other classes are omitted: {counted}",)
