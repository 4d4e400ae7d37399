"""Human coding in an ELAN document (.eaf): tiers named after AUs, or tiers of FACS codes.

In: the XML file. Out: a `Piece` in seconds of the video.

A tier whose name is an AU, such as `AU12`, `AU 12 L` or `AU4@anna`, codes that AU; its annotations may hold the
intensity (`C`, `3`, `12C`) or any text. A tier with `FACS` or `AU` in its name holds codes such as `12C+25`. A tier of
symbolic subdivisions or associations takes its times from the annotation that it refers to; where it belongs to a tier
of an AU and holds intensities, they are those of that AU. Other tiers are passed over, and a note names them.
A tier of an AU says that it was looked for, even where it is empty. An AU without a tier was not, unless there is a
tier of codes, which may name any.
The format: https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

from clipautt.evaluation.facs_coding.coding import NOT_VISIBLE, Piece, SpanBook
from clipautt.evaluation.facs_coding.notation import Code, is_code, read_codes, read_intensity
from clipautt.evaluation.facs_coding.text_tables import of_coder
from clipautt.tables import read_text

_OF_CODES = re.compile(r"(^|[^a-z])(facs|aus?|action[ _-]?units?)([^a-z]|$)", re.IGNORECASE)
"""Names of tiers whose annotations are FACS codes."""
_SHOWN = 8


@dataclass(frozen=True)
class _Tier:
    name: str
    """Without what follows an @, which ELAN adds for a participant."""
    coder: str
    person: str
    parent: str
    annotations: tuple[_Annotation, ...]


@dataclass(frozen=True)
class _Annotation:
    own: str
    """Its id."""
    about: str
    """Id of the annotation that it refers to; empty for none."""
    start: float
    """Seconds."""
    end: float
    text: str


def read_elan(path: Path, *, coder: str | None = None) -> Piece:
    """The coding in an ELAN document.

    Args:
        path: the file.
        coder: whose tiers are read (ELAN's "annotator"), where there are several people's.

    Raises:
        ValueError: naming the file, if it is no ELAN document, has a document type declaration, holds the coding of
            several coders or of several people, or an annotation of AUs that is not understood.
    """
    text = read_text(path)
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ValueError(f"{path} declares a document type or entities, which no ELAN document does; it is not read")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is damaged: {error}; open it in ELAN and save it again") from error
    if root.tag != "ANNOTATION_DOCUMENT":
        raise ValueError(f"{path} is no ELAN document: its root is {root.tag!r}, not 'ANNOTATION_DOCUMENT'")
    tiers = _tiers(path, root)
    coded = {name: tier for name, tier in tiers.items() if is_code(tier.name) or _is_of_codes(tier, tiers)}
    mine = of_coder(path, [tier.coder for tier in coded.values()], coder)
    chosen = {name: coded[name] for name, keep in zip(coded, mine, strict=True) if keep}
    people = sorted({tier.person for tier in chosen.values()} - {""})
    if len(people) > 1:
        raise ValueError(
            f"{path} codes {len(people)} people ({', '.join(people)}); save the tiers of each into a file of its own"
        )
    if not chosen:
        raise ValueError(f"{path} has no tier named after an AU, such as AU12, and none with FACS in its name")
    book = SpanBook("seconds")
    for name, tier in chosen.items():
        _add_tier(path, tier, _graded_by(name, tiers), book)
    comprehensive = any(not is_code(tier.name) for tier in chosen.values())
    graders = {name for name, tier in tiers.items() if tier.parent in chosen}
    passed = [name for name, tier in tiers.items() if name not in coded and name not in graders and tier.annotations]
    shown = ", ".join(passed[:_SHOWN]) + (" and others" if len(passed) > _SHOWN else "")
    notes = (f"{path.name}: tiers {shown} are no AUs and not read",) if passed else ()
    return book.piece(path, path.stem, comprehensive=comprehensive, also=_media(root), notes=notes)


def _is_of_codes(tier: _Tier, tiers: Mapping[str, _Tier]) -> bool:
    parent = tiers.get(tier.parent)
    return _OF_CODES.search(tier.name) is not None and not (parent is not None and is_code(parent.name))


def _add_tier(path: Path, tier: _Tier, graded: Mapping[str, float], book: SpanBook) -> None:
    named = read_codes(tier.name) if is_code(tier.name) else ()
    for one in named:
        if one.number not in NOT_VISIBLE:
            book.look_for(one.code)
    for note in tier.annotations:
        if note.end <= note.start:
            raise ValueError(f"{path}: tier {tier.name!r} has an annotation from {note.start:g} to {note.end:g} s")
        if not named and not note.text:
            continue
        for one in _codes_of(path, tier, named, note.text, note.start):
            book.add(one.code, note.start, note.end, graded.get(note.own, one.intensity))


def _codes_of(path: Path, tier: _Tier, named: Sequence[Code], text: str, start: float) -> Sequence[Code]:
    """The units that an annotation names; in a tier of one AU, its text may be an intensity or a remark."""
    if not named:
        try:
            return read_codes(text)
        except ValueError as error:
            raise ValueError(f"{path}: tier {tier.name!r} at {start:g} s: {error}") from error
    if is_code(text) and not _is_intensity(text):
        told = [one for one in read_codes(text) if one.code in {unit.code for unit in named}]
        if not told:
            raise ValueError(f"{path}: tier {tier.name!r} at {start:g} s is annotated as {text!r}, another action unit")
        return told
    value = read_intensity(text) if _is_intensity(text) else math.nan
    return [Code(one.code, one.intensity if math.isnan(value) else value, one.side) for one in named]


def _is_intensity(text: str) -> bool:
    try:
        read_intensity(text)
    except ValueError:
        return False
    return True


def _graded_by(name: str, tiers: Mapping[str, _Tier]) -> dict[str, float]:
    """Id of an annotation of this tier → the intensity that a tier below it gives."""
    graded: dict[str, float] = {}
    for tier in tiers.values():
        if tier.parent == name and not is_code(tier.name):
            filled = [note for note in tier.annotations if note.text]
            if all(_is_intensity(note.text) for note in filled):
                graded |= {note.about: read_intensity(note.text) for note in filled}
    return graded


def _media(root: ElementTree.Element) -> tuple[str, ...]:
    """Names without folder and suffix of the media files."""
    urls = [unquote(media.get("MEDIA_URL", "")) for media in root.iter("MEDIA_DESCRIPTOR")]
    names = [PurePosixPath(PureWindowsPath(url).as_posix()).name for url in urls]
    return tuple(dict.fromkeys(Path(name).stem for name in names if name))


def _slots(path: Path, root: ElementTree.Element) -> dict[str, float]:
    """Id of each time slot → seconds of the media; slots without a time lie evenly between their neighbours."""
    header = root.find("HEADER")
    unit = "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")
    if unit != "milliseconds":
        raise ValueError(f"{path} has times in {unit}; open it in a current ELAN and save it, in milliseconds")
    slots = [(slot.get("TIME_SLOT_ID", ""), slot.get("TIME_VALUE")) for slot in root.iter("TIME_SLOT")]
    try:
        known = [(place, float(value)) for place, (_, value) in enumerate(slots) if value is not None]
        media = next(root.iter("MEDIA_DESCRIPTOR"), None)
        origin = float(media.get("TIME_ORIGIN", 0)) if media is not None else 0.0
    except ValueError as error:
        raise ValueError(f"{path}: a time of the document is no number ({error})") from error
    if not all(math.isfinite(value) and value >= 0 for _, value in known):
        raise ValueError(f"{path}: a time of the document is not finite, or negative")
    if not known:
        return {}
    times = np.interp(range(len(slots)), [place for place, _ in known], [value for _, value in known])
    return {name: (float(time) + origin) / 1000 for (name, _), time in zip(slots, times, strict=True)}


def _tiers(path: Path, root: ElementTree.Element) -> dict[str, _Tier]:
    """Full name → tier, with times of annotations that refer to others."""
    slots, spans, refers = _slots(path, root), {}, {}
    for one in root.iter("ALIGNABLE_ANNOTATION"):
        try:
            edges = slots[one.get("TIME_SLOT_REF1", "")], slots[one.get("TIME_SLOT_REF2", "")]
        except KeyError as error:
            raise ValueError(f"{path}: an annotation refers to the time slot {error}, which there is not") from error
        spans[one.get("ANNOTATION_ID", "")] = edges
    for one in root.iter("REF_ANNOTATION"):
        refers[one.get("ANNOTATION_ID", "")] = one.get("ANNOTATION_REF", "")
    tiers = {}
    for element in root.iter("TIER"):
        name = element.get("TIER_ID", "")
        if name in tiers:
            raise ValueError(f"{path} has two tiers named {name!r}; rename one of them, such as {name}@2")
        rows = []
        for one in element.iterfind("ANNOTATION/*"):
            own = one.get("ANNOTATION_ID", "")
            value = (one.findtext("ANNOTATION_VALUE") or "").strip()
            rows.append(_Annotation(own, refers.get(own, ""), *_span(path, own, spans, refers), value))
        coder, person = element.get("ANNOTATOR", ""), element.get("PARTICIPANT", "")
        tiers[name] = _Tier(name.partition("@")[0].strip(), coder, person, element.get("PARENT_REF", ""), tuple(rows))
    return tiers


def _span(
    path: Path, own: str, spans: Mapping[str, tuple[float, float]], refers: Mapping[str, str]
) -> tuple[float, float]:
    """Times of an annotation, or of the one that it refers to."""
    passed = {own}
    while own not in spans:
        own = refers.get(own, "")
        if not own or own in passed:
            raise ValueError(
                f"{path}: annotation {own or min(passed)!r} has no time; open it in ELAN and save it again"
            )
        passed.add(own)
    return spans[own]
