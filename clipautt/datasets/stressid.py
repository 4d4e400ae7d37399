"""StressID as its owners ship it: stress against none, in the video of each task of each subject.

Two layouts are read:

    labels.csv                                   subject/task,binary-stress,affect3-class
    <subject>/<subject>_<task>.mp4               videos, for instance kycf/kycf_Math.mp4

    sub_images/<subject>/<subject>_<task>/image_215.jpg
    all_sub_labels.txt                           no header: `kycf/kycf_Math/image_215.jpg 1`

Subjects agreed to different recordings, so that rows without a label or without a video are to be expected;
`strict=false` goes on without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipautt.datasets import layout as files
from clipautt.datasets.layout import Entry, Layout, Listing, Problem, Reading

TARGETS = ("kycf", "uymz", "h8s1", "ctzy", "p9i3", "7h5u", "g7r2", "b9w0", "r3zm", "x1q3")
"""The target subjects of arXiv 2603.27999."""
CLASSES = (files.NEUTRAL, "stress")
_OFFICIAL = "labels.csv"
_FRAME_LISTS = ("all_sub_labels.txt", "labels.txt", "label.txt")
_CLASS_OF = {"0": CLASSES[0], "1": CLASSES[1]}


@dataclass(frozen=True)
class StressID:
    """Where a copy of StressID lies and how it is used."""

    root: str
    """Folder below which the label file and the clips lie, at any depth."""
    strict: bool = True
    """False leaves out what has a problem instead of refusing."""
    target_subjects: tuple[str, ...] = TARGETS
    """Subjects to be personalised; all others are source subjects."""
    validation_subjects: int | tuple[str, ...] = 10
    """How many source subjects select settings instead of training, or which."""
    seed: int = 0
    """Another seed draws other validation subjects."""
    layout: Layout = "auto"
    """`videos`, `frames`, or `auto`: videos where `labels.csv` and videos are there, else frames."""
    labels: str | None = None
    """Label file, from the root; None looks for `labels.csv`, or `all_sub_labels.txt` for frames."""
    within: str = ""
    """Sub-folder of the root that holds the clips; needed where copies of them lie in several."""
    frames_per_second: float = 25.0
    """Rate at which the frames in folders were taken, if their numbers count frames."""

    def __post_init__(self) -> None:
        self._rules(self.layout)

    def read(self) -> Reading:
        """The clips of all tasks.

        Raises:
            FileNotFoundError: if there is no such folder or no label file.
            DatasetError: listing everything that is wrong, if `strict`; or if no clip is left.
        """
        tree = files.walk(self.root, dataset="stressid")
        labels = files.choose(
            tree,
            given=self.labels,
            layout=self.layout,
            official=_OFFICIAL,
            frame_lists=_FRAME_LISTS,
            column="subject/task",
        )
        listing = (_tasks if labels.official else _frames)(labels.path, labels.shown_as)
        return files.assemble(listing, tree, self._rules(labels.layout))

    def _rules(self, layout: Layout) -> files.Rules:
        subjects = files.Subjects(self.target_subjects, self.validation_subjects, self.seed)
        return files.Rules("stressid", CLASSES, subjects, self.strict, layout, self.within, self.frames_per_second)


def _tasks(path: Path, shown_as: str) -> Listing:
    """The rows of the official table."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for line, row in files.read_table(path, required=("subject/task", "binary-stress")):
        name = files.clip_name(row["subject/task"].replace("/", "_"))
        _add(entries, problems, f"{shown_as} line {line}", name, files.plain_label(row["binary-stress"]))
    return Listing(tuple(entries), tuple(problems))


def _frames(path: Path, shown_as: str) -> Listing:
    """The folders of a list of frames."""
    folders, problems = files.read_frame_list(path, shown_as=shown_as)
    entries: list[Entry] = []
    for folder in folders:
        _add(entries, problems, folder.where, folder.name, folder.label)
    return Listing(tuple(entries), tuple(problems))


def _add(entries: list[Entry], problems: list[Problem], where: str, name: str, label: str) -> None:
    """Append an entry, or a problem where the row does not give one."""
    subject, _, task = name.partition("_")
    if not subject or not task:
        problems.append(Problem("unreadable", f"{where}: {name!r} is not SUBJECT_TASK"))
    elif not label:
        problems.append(files.unlabelled(where, f"clip {name!r}"))
    elif label not in _CLASS_OF:
        problems.append(files.unknown_label(where, f"clip {name!r}", label, _CLASS_OF))
    else:
        entries.append(Entry(name, subject, f"{subject}/{name}", _CLASS_OF[label], where))
