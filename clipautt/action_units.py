"""The vocabulary: facial action units (AUs) of the Facial Action Coding System, and the tasks built on them.

Codes, names and regions follow the FACS manual (Ekman, Friesen and Hager, 2002). The phrases are ours: plain
descriptions of what is seen, because a CLIP text tower reads words, not codes. `VOCABULARY` holds the K = 46 prompts
that CLIP-AU compares a video with; their order is the order of the AU similarities everywhere.

Which units a given backbone actually sees is measured elsewhere: see the model card of the embedded backbone and the
rank correlations in every report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LEAST_RISE = 0.0005
"""What rises less has not risen: it would be shown as +0.000."""
NONE_ROSE = "no action unit rose over its usual level"
"""What is said where `risen` is empty."""
Region = Literal["brow", "eye", "nose", "cheek", "mouth", "jaw", "neck", "head", "gaze"]


@dataclass(frozen=True)
class ActionUnit:
    """One FACS unit: a main code, an eye or head code, or an action descriptor."""

    code: str
    """`AU` and the FACS number, for instance `AU4`."""
    name: str
    """The FACS name, for instance `Brow lowerer`."""
    phrase: str
    """The words of the prompt: lower case, spaces, no class name."""
    region: Region
    """Where on the face it shows."""
    wordings: tuple[str, ...] = ()
    """Other ways to say the phrase, used to train the embedded backbone."""
    held_out: str = ""
    """A wording that no training caption uses; it tests whether the text tower generalizes."""


def _unit(number: int, name: str, region: Region, phrase: str, *wordings: str, held_out: str = "") -> ActionUnit:
    return ActionUnit(f"AU{number}", name, phrase, region, wordings, held_out)


# ruff: noqa: E501
# fmt: off
VOCABULARY: tuple[ActionUnit, ...] = (
    _unit(1, "Inner brow raiser", "brow", "inner eyebrows raised", "inner corners of the brows lifted", "inner brow raiser", held_out="inner brows lifted"),
    _unit(2, "Outer brow raiser", "brow", "outer eyebrows raised", "outer ends of the brows lifted", "outer brow raiser", held_out="outer brows lifted"),
    _unit(4, "Brow lowerer", "brow", "eyebrows lowered and pulled together", "furrowed brow", "brow lowerer", held_out="brows pulled together"),
    _unit(5, "Upper lid raiser", "eye", "upper eyelids raised and eyes widened", "wide open eyes", "upper lid raiser", held_out="eyes wide open"),
    _unit(6, "Cheek raiser", "cheek", "cheeks raised and eye corners wrinkled", "crow's feet around the eyes", "cheek raiser", held_out="raised cheeks"),
    _unit(7, "Lid tightener", "eye", "lower eyelids tightened", "narrowed tense eyelids", "lid tightener", held_out="tightened eyelids"),
    _unit(9, "Nose wrinkler", "nose", "nose wrinkled", "wrinkles across the bridge of the nose", "nose wrinkler", held_out="a wrinkled nose"),
    _unit(10, "Upper lip raiser", "mouth", "upper lip raised", "upper lip lifted toward the nose", "upper lip raiser", held_out="lifted upper lip"),
    _unit(11, "Nasolabial deepener", "cheek", "furrow beside the nose deepened"),
    _unit(12, "Lip corner puller", "mouth", "lip corners pulled up", "mouth corners turned up", "lip corner puller", held_out="raised lip corners"),
    _unit(13, "Sharp lip puller", "mouth", "lip corners pulled sharply upward"),
    _unit(14, "Dimpler", "mouth", "lip corners tightened into dimples", "dimpled cheeks", "dimpler", held_out="dimples beside the mouth"),
    _unit(15, "Lip corner depressor", "mouth", "lip corners pulled down", "mouth corners turned down", "lip corner depressor", held_out="lowered lip corners"),
    _unit(16, "Lower lip depressor", "mouth", "lower lip pulled down"),
    _unit(17, "Chin raiser", "jaw", "chin raised and wrinkled", "lower lip pushed up by the chin", "chin raiser", held_out="a wrinkled chin"),
    _unit(18, "Lip pucker", "mouth", "lips puckered", "lips pushed forward and narrowed", "lip pucker", held_out="puckered lips"),
    _unit(19, "Tongue show", "mouth", "tongue shown"),
    _unit(20, "Lip stretcher", "mouth", "lips stretched sideways", "mouth stretched wide", "lip stretcher", held_out="stretched lips"),
    _unit(21, "Neck tightener", "neck", "neck muscles tightened"),
    _unit(22, "Lip funneler", "mouth", "lips funneled outward"),
    _unit(23, "Lip tightener", "mouth", "lips tightened and thin", "thin tense lips", "lip tightener", held_out="tightened lips"),
    _unit(24, "Lip pressor", "mouth", "lips pressed together"),
    _unit(25, "Lips part", "mouth", "lips parted", "slightly open lips", "lips part", held_out="parted lips"),
    _unit(26, "Jaw drop", "jaw", "jaw dropped with mouth open", "open mouth", "jaw drop", held_out="mouth open and jaw dropped"),
    _unit(27, "Mouth stretch", "jaw", "mouth stretched open vertically"),
    _unit(28, "Lip suck", "mouth", "lips sucked in over the teeth"),
    _unit(29, "Jaw thrust", "jaw", "jaw thrust forward"),
    _unit(30, "Jaw sideways", "jaw", "jaw moved sideways"),
    _unit(31, "Jaw clencher", "jaw", "jaw clenched"),
    _unit(32, "Lip bite", "mouth", "lip bitten"),
    _unit(33, "Cheek blow", "cheek", "cheeks blown out"),
    _unit(34, "Cheek puff", "cheek", "cheeks puffed"),
    _unit(35, "Cheek suck", "cheek", "cheeks sucked in"),
    _unit(38, "Nostril dilator", "nose", "nostrils widened"),
    _unit(39, "Nostril compressor", "nose", "nostrils narrowed"),
    _unit(43, "Eyes closed", "eye", "eyes closed", "shut eyes", "eyelids closed", held_out="closed eyes"),
    _unit(51, "Head turn left", "head", "head turned left", "face turned to the left", "head turn left", held_out="a head turned to the left"),
    _unit(52, "Head turn right", "head", "head turned right", "face turned to the right", "head turn right", held_out="a head turned to the right"),
    _unit(53, "Head up", "head", "head raised up", "face looking upward", "head up", held_out="a head raised upward"),
    _unit(54, "Head down", "head", "head bowed down", "face looking downward", "head down", held_out="a head bowed downward"),
    _unit(55, "Head tilt left", "head", "head tilted left", "face leaning left", "head tilt left", held_out="a head tilted to the left"),
    _unit(56, "Head tilt right", "head", "head tilted right", "face leaning right", "head tilt right", held_out="a head tilted to the right"),
    _unit(61, "Eyes turn left", "gaze", "eyes looking left", "gaze to the left", "eyes turn left", held_out="eyes turned to the left"),
    _unit(62, "Eyes turn right", "gaze", "eyes looking right", "gaze to the right", "eyes turn right", held_out="eyes turned to the right"),
    _unit(63, "Eyes up", "gaze", "eyes looking up", "gaze upward", "eyes up", held_out="eyes turned upward"),
    _unit(64, "Eyes down", "gaze", "eyes looking down", "gaze downward", "eyes down", held_out="eyes turned downward"),
)
# fmt: on

RENDERED: tuple[str, ...] = tuple(unit.code for unit in VOCABULARY if unit.held_out)
"""Codes that the synthetic faces can show, in vocabulary order; the other units have a prompt only."""

_TITLES = {unit.code: f"{unit.code} {unit.name}" for unit in VOCABULARY}

RESTING_PHRASES: tuple[str, ...] = ("relaxed muscles", "all muscles at rest", "nothing moving")
"""Wordings for a face on which no unit is active."""


def unit(code: str) -> ActionUnit:
    """The unit with this code.

    Raises:
        ValueError: for a code that is not in the vocabulary, naming it.
    """
    for candidate in VOCABULARY:
        if candidate.code == code:
            return candidate
    raise ValueError(f"unknown action unit {code!r}; known are {', '.join(u.code for u in VOCABULARY)}")


def phrases(units: Sequence[ActionUnit] = VOCABULARY) -> tuple[str, ...]:
    """The K prompt phrases, in order."""
    return tuple(u.phrase for u in units)


@dataclass(frozen=True)
class Task:
    """A recognition task: class names in label order, and phrases that describe each class."""

    name: str
    """`pain`, `stress` or `ambivalence`."""
    classes: tuple[str, ...]
    """Class names; a label is one of them, and index 0 is the neutral class."""
    descriptions: tuple[tuple[str, ...], ...]
    """Per class, phrases in AU words for zero-shot recognition; they never contain a class name."""

    @property
    def positive(self) -> str:
        """The class to detect: the last one."""
        return self.classes[-1]


def _describe(*groups: Iterable[str]) -> tuple[str, ...]:
    return tuple(" and ".join(unit(code).phrase for code in group) for group in groups)


TASKS: dict[str, Task] = {
    "pain": Task(
        "pain",
        ("neutral", "pain"),
        (RESTING_PHRASES, _describe(("AU4", "AU6", "AU9"), ("AU4", "AU7", "AU10"), ("AU4", "AU43"))),
    ),
    "stress": Task(
        "stress",
        ("neutral", "stress"),
        (RESTING_PHRASES, _describe(("AU4", "AU23"), ("AU17", "AU23"), ("AU1", "AU4", "AU20"))),
    ),
    "ambivalence": Task(
        "ambivalence",
        ("neutral", "ambivalence"),
        (RESTING_PHRASES, _describe(("AU12", "AU15"), ("AU2", "AU14"), ("AU4", "AU18", "AU12"))),
    ),
}
"""The built-in tasks. `pain` follows the Prkachin–Solomon scale (AU4, AU6 or 7, AU9 or 10, AU43; Pain 139, 2008); the AU
mixtures of `stress` and `ambivalence` are this project's own, for the synthetic data only."""


def content_hash(prompts: Sequence[str]) -> str:
    """A short SHA-256 of the exact prompt strings and their order."""
    return hashlib.sha256(json.dumps(list(prompts), ensure_ascii=False).encode()).hexdigest()[:16]


def action_unit_columns(prompts: tuple[str, ...]) -> list[str]:
    """Column names for prompts: the AU code of a phrase in the vocabulary, any other phrase itself."""
    codes = {unit.phrase: unit.code for unit in VOCABULARY}
    return [codes.get(phrase, phrase) for phrase in prompts]


def risen(rises: Mapping[str, float], *, most: int = 5) -> list[str]:
    """The action units that rose, highest first; a fall, 0 and nan are no rises.

    Args:
        rises: code → by how much its similarity rose over the usual level.
        most: of how many at most.

    Returns:
        Codes of those that rose by `LEAST_RISE` or more; empty where none did, see `NONE_ROSE`.
    """
    found = [code for code, rise in rises.items() if rise >= LEAST_RISE]
    return sorted(found, key=lambda code: -rises[code])[:most]


def title_of(column: str) -> str:
    """An AU code with its name, such as `AU4 Brow lowerer`; any other text itself."""
    return _TITLES.get(column, column)


def descriptions_of(classes: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Per class, the zero-shot phrases of the built-in task with these classes; empty if there is none."""
    return next((task.descriptions for task in TASKS.values() if task.classes == classes), ())
