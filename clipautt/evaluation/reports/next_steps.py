"""What a reader of a report can do next: a reason and the commands for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Something to do after reading."""

    reason: str
    """What the step is for, as a heading."""
    commands: tuple[str, ...]
    """Commands to run one after the other; words in capitals are for the reader to fill in."""
    note: str = ""
    """What to know first."""


_BACKBONE = "ViT-B-32-quickgelu"
_SYNTHETIC = (
    Step(
        "Look at one video",
        ("clipautt predict VIDEO.mp4", "clipautt predict VIDEO.mp4 subject=target-000"),
        "Take a video of the run (`data/videos/`). With its subject, the person's resting face is removed first.",
    ),
    Step("See whether other people give the same answer", ("clipautt demo seed=1",)),
    Step(
        "Compare more methods on more videos, including cohorts with rare positives",
        ("clipautt demo size=full",),
        "A quarter of an hour. In a checkout, `make demo-hard` does this for three seeds and joins their reports.",
    ),
)
_OWN_DATA = Step(
    "Use your own videos",
    (
        f"clipautt backbone fetch {_BACKBONE}",
        "clipautt faces VIDEO.mp4 out=FOLDER",
        f"clipautt train dataset=folder root=DATA faces=cascade backbone={_BACKBONE}",
        "clipautt adapt dataset=folder root=DATA",
        "clipautt predict VIDEO.mp4",
    ),
    "The embedded CLIP was trained on rendered faces only, so real faces need another backbone and a model trained on "
    "real videos. DATA holds SUBJECT/CLIP.mp4 and labels.csv. Look at the detected faces first.",
)
_REAL = (
    Step("Look at one video", ("clipautt predict VIDEO.mp4", "clipautt predict VIDEO.mp4 subject=SUBJECT")),
    Step(
        "See what prompt tuning changes, person by person",
        ("clipautt adapt adapt=infomax_kl explain=true",),
        "Add the settings of the data set. The command writes one page.",
    ),
)


def next_steps(*, synthetic: bool) -> Sequence[Step]:
    """What to do after a run on rendered faces, or after one on real ones."""
    return (*_SYNTHETIC, _OWN_DATA) if synthetic else _REAL
