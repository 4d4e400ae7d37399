"""What footage shows: rendered faces, or something else; and what a model has seen of the two.

In: clips, or the path of a video. Out: whether its faces are rendered, the `Footage` that a model was trained on, and a
sentence where a model meets footage of another kind.

`clipautt synth` marks its videos, and writes their true intensities beside them. The mark is text in the container, and
stays when a video is copied, renamed or converted by a tool that keeps the metadata. Whatever has neither is taken for
other footage. This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipautt.clips import Clip

Faces = Literal["rendered", "other", "mixed"]
"""`other`: nothing shows that the faces are rendered, as with every film of a person."""

RENDERED_MARK = "clipautt synth: rendered face"
"""The comment in the metadata of rendered videos."""
RENDERED_DATASET = "synthetic-"
"""How the names of rendered data sets begin."""
_SEARCHED_BYTES = 1 << 16
"""At either end of a file: containers have their metadata in front of the pictures or behind them."""
_KINDS: dict[frozenset[bool | None], Faces] = {
    frozenset({True}): "rendered",
    frozenset({False}): "other",
    frozenset({True, False}): "mixed",
}
"""Whether the clips are rendered → what they are together; anything unknown among them leaves that open."""
_NAMED_DATASETS = 5


def truth_path(video: str | Path) -> Path:
    """Where the true intensities of a video lie: `name.aus.parquet` beside `name.mp4`."""
    return Path(video).with_suffix(".aus.parquet")


def is_rendered(source: str | Path) -> bool | None:
    """Whether a video comes from `clipautt synth`; None if there is no file to look at.

    Nothing is decoded or parsed, so a damaged or hostile file does no harm here.

    Args:
        source: path of a video file, or of a folder of frames, which has no place for a mark.
    """
    path = Path(source)
    if path.name and truth_path(path).is_file():
        return True
    if path.is_dir():
        return False
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            start = file.read(_SEARCHED_BYTES)
            file.seek(max(0, path.stat().st_size - _SEARCHED_BYTES))
            return RENDERED_MARK.encode() in start + file.read(_SEARCHED_BYTES)
    except OSError:
        return None


def is_rendered_clip(clip: Clip) -> bool | None:
    """`is_rendered` of a clip's file; where this machine has no such file, the data set's name decides."""
    rendered = is_rendered(clip.source)
    return rendered if rendered is not None else clip.dataset.startswith(RENDERED_DATASET) or None


@dataclass(frozen=True)
class Footage:
    """What a model was trained on."""

    faces: Faces | None = None
    """Which kind of faces; None if that is not recorded."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets, sorted; empty if they are not recorded."""

    @classmethod
    def of(cls, rendered: Iterable[bool | None], datasets: Iterable[str]) -> Footage:
        """The footage of some clips.

        Args:
            rendered: of each clip, see `is_rendered_clip`.
            datasets: names of their data sets; empty ones do not count.
        """
        return cls(_KINDS.get(frozenset(rendered)), tuple(sorted({*datasets} - {""})))

    def __str__(self) -> str:
        words = {"rendered": "rendered faces", "other": "not rendered", "mixed": "rendered and other faces"}
        kind = words[self.faces] if self.faces else "not recorded"
        more = len(self.datasets) - _NAMED_DATASETS
        names = ", ".join(self.datasets[:_NAMED_DATASETS]) + (f" and {more} more" if more > 0 else "")
        return f"{names} ({kind})" if names else kind


def other_footage(seen: Mapping[str, Footage], rendered: Iterable[bool | None]) -> str | None:
    """A sentence that warns of footage of a kind that a model has not seen.

    Args:
        seen: what each part of the model was trained on, by its name in a sentence, such as `the checkpoint`.
        rendered: of each clip, see `is_rendered`; clips of which nothing is known do not count.

    Returns:
        None if the clips are of a kind that every part has seen, or if that is not known.
    """
    known = [one for one in rendered if one is not None]
    for kind, unlike, trained_on, state, meaning in _KINDS_UNLIKE:
        parts, count = [name for name, footage in seen.items() if footage.faces == kind], known.count(unlike)
        if parts and count:
            who, were = " and ".join(parts), "were" if len(parts) > 1 else "was"
            which = "this video is" if len(known) == 1 else f"{count} of {len(known)} clips are"
            return f"{who[0].upper()}{who[1:]} {were} trained on {trained_on}, and {which} {state}: {meaning}"
    return None


def rendered_only(seen: Mapping[str, Footage]) -> str | None:
    """A sentence that a model has seen rendered faces only, whatever it is shown; None if it has seen others.

    Args:
        seen: as in `other_footage`.
    """
    parts = [name for name, footage in seen.items() if footage.faces == "rendered"]
    if not parts:
        return None
    who, have = " and ".join(parts), "have" if len(parts) > 1 else "has"
    return f"{who[0].upper()}{who[1:]} {have} seen rendered faces only: what is said about real people means nothing."


_KINDS_UNLIKE = (
    (
        "rendered",
        False,
        "rendered faces only",
        "not marked as rendered",
        "for the face of a real person the answer means nothing.",
    ),
    ("other", True, "footage without rendered faces", "rendered", "for a rendered face the answer means nothing."),
)
"""What was trained on; whether clips unlike it are rendered; and the words for both, and for what follows."""
