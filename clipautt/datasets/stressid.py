"""StressID as its owners ship it: stress against none, in the video of each task of each subject.

Two layouts are read:

    labels.csv                                   subject/task,binary-stress,affect3-class
    <subject>/<subject>_<task>.mp4               videos, for instance kycf/kycf_Math.mp4

    sub_images/<subject>/<subject>_<task>/image_215.jpg
    all_sub_labels.txt                           no header: `kycf/kycf_Math/image_215.jpg 1`

Subjects agreed to different recordings, so that rows without a label or without a video are to be expected;
`strict=false` omits them.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import NonNegativeInt, PositiveFloat

from clipautt.datasets import files, label_files, layout
from clipautt.datasets.files import Layout, Problem
from clipautt.datasets.layout import Entry, Listing, Reading, Rules
from clipautt.settings import settings

TARGETS = ("kycf", "uymz", "h8s1", "ctzy", "p9i3", "7h5u", "g7r2", "b9w0", "r3zm", "x1q3")
"""The target subjects of arXiv 2603.27999."""
CLASSES = (layout.NEUTRAL, "stress")
_OFFICIAL = "labels.csv"
_FRAME_LISTS = ("all_sub_labels.txt", "labels.txt", "label.txt")
_CLASS_OF = {"0": CLASSES[0], "1": CLASSES[1]}


@settings
class StressID:
    """Where a copy of StressID lies and how it is used."""

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
    """Label file, relative to the root; None looks for `labels.csv`, or `all_sub_labels.txt` for frames."""
    within: str = ""
    """Sub-folder of the root that holds the clips; needed where several hold copies of them."""
    frames_per_second: PositiveFloat = 25.0
    """Rate at which the frames in folders were taken, if their numbers count frames."""

    def __post_init__(self) -> None:
        _ = self._rules  # checks them

    def read(self) -> Reading:
        """The clips of all tasks.

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
            column="subject/task",
            of_table=_tasks,
            of_frames=_frames,
        )

    @property
    def _rules(self) -> Rules:
        return layout.rules_of(self, dataset="stressid", classes=CLASSES, frames_per_second=self.frames_per_second)


def _tasks(path: Path, shown_as: str) -> Listing:
    """The rows of the official table."""
    table = label_files.read_table(path, required=("subject/task", "binary-stress"), shown_as=shown_as)
    rows = [
        (where, files.clip_name(row["subject/task"].replace("/", "_")), label_files.plain_label(row["binary-stress"]))
        for where, row in table.rows
    ]
    return _listing(rows, list(table.problems))


def _frames(path: Path, shown_as: str) -> Listing:
    """The folders of a list of frames."""
    folders, problems = label_files.read_frame_list(path, shown_as=shown_as)
    return _listing([(folder.where, folder.name, folder.label) for folder in folders], problems)


def _listing(rows: list[tuple[str, str, str]], problems: list[Problem]) -> Listing:
    """The entries of rows (place, name, label), and a problem for each that gives none."""
    entries: list[Entry] = []
    subjects = {name.partition("_")[0] for _, name, _ in rows if "_" in name} - {""}
    for where, name, label in rows:
        subject, _, task = name.partition("_")
        if not subject or not task:
            problems.append(Problem("unreadable", f"{where}: {name!r} is not SUBJECT_TASK"))
        elif not label:
            problems.append(label_files.unlabelled(where, f"clip {name!r}"))
        elif label not in _CLASS_OF:
            problems.append(label_files.unknown_label(where, f"clip {name!r}", label, _CLASS_OF))
        else:
            entries.append(Entry(name, subject, f"{subject}/{name}", _CLASS_OF[label], where))
    return Listing(tuple(entries), tuple(problems), subjects=frozenset(subjects))
