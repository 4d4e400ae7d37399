"""ELAN documents: tiers of AUs, tiers of codes, references between tiers, and documents that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipautt.evaluation.facs_coding.coding import ClipCoding, Piece
from clipautt.evaluation.facs_coding.elan import read_elan

SLOTS = {"t0": 0, "t1": 1000, "t2": None, "t3": 3000, "t4": 4000}
Annotation = tuple[str, str, str, str]
"""Id, first and second time slot (or the annotation that it refers to, and nothing), and text."""


def tier(name: str, *annotations: Annotation, **attributes: str) -> str:
    parts = []
    for own, first, second, text in annotations:
        kind = f'ALIGNABLE_ANNOTATION TIME_SLOT_REF1="{first}" TIME_SLOT_REF2="{second}"'
        kind = kind if second else f'REF_ANNOTATION ANNOTATION_REF="{first}"'
        end = kind.partition(" ")[0]
        value = f"<ANNOTATION_VALUE>{text}</ANNOTATION_VALUE>"
        parts.append(f'<ANNOTATION><{kind} ANNOTATION_ID="{own}">{value}</{end}></ANNOTATION>')
    more = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<TIER TIER_ID="{name}" LINGUISTIC_TYPE_REF="x"{more}>{"".join(parts)}</TIER>'


def document(folder: Path, *tiers: str, origin: int = 0, before: str = "", encoding: str = "utf-8") -> Path:
    times = "".join(
        f'<TIME_SLOT TIME_SLOT_ID="{name}"' + ("/>" if at is None else f' TIME_VALUE="{at}"/>')
        for name, at in SLOTS.items()
    )
    media = f'<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/my%20film.mp4" TIME_ORIGIN="{origin}"/>'
    text = f'<?xml version="1.0" encoding="UTF-8"?>{before}<ANNOTATION_DOCUMENT FORMAT="3.0"><HEADER>{media}</HEADER>'
    path = folder / "clip.eaf"
    body = f"{text}<TIME_ORDER>{times}</TIME_ORDER>{''.join(tiers)}</ANNOTATION_DOCUMENT>"
    path.write_bytes(body.encode(encoding))
    return path


def values(piece: Piece, code: str, times: list[float]) -> tuple[list[float], list[float]]:
    present, intensity = ClipCoding((piece,)).at(code, np.array(times), present_from=1)
    return present.tolist(), intensity.tolist()


def test_tiers_of_aus_with_intensities_remarks_and_sides(tmp_path: Path) -> None:
    path = document(
        tmp_path,
        tier("AU12", ("a1", "t0", "t1", "C"), ("a2", "t3", "t4", "very slight?")),
        tier("AU 4 L@anna", ("a3", "t0", "t2", "")),
        tier("au4_R", ("a4", "t1", "t3", "4D")),
        tier("AU9"),
        tier("speech", ("a5", "t0", "t1", "4")),
    )
    piece = read_elan(path)
    assert values(piece, "AU12", [0.5, 1.5, 3.5])[0] == [1, 0, 1]
    assert np.array_equal(values(piece, "AU12", [0.5, 1.5, 3.5])[1], [3, 0, np.nan], equal_nan=True)
    assert values(piece, "AU4", [0.5, 1.5, 2.5, 3.5])[0] == [1, 1, 1, 0]
    assert values(piece, "AU9", [0.5])[0] == [0] and not piece.comprehensive
    assert piece.also == ("my film",)
    assert piece.notes == ("clip.eaf: tiers speech are no AUs and not read",)


def test_a_tier_of_codes_and_the_start_of_the_film(tmp_path: Path) -> None:
    """The slot without a time lies halfway between its neighbours; the film runs 500 ms ahead of the annotations."""
    path = document(tmp_path, tier("FACS coding", ("a1", "t0", "t2", "1+2C"), ("a2", "t2", "t3", "L12")), origin=500)
    piece = read_elan(path)
    assert piece.comprehensive and sorted(piece.tracks) == ["AU1", "AU12", "AU2"]
    assert values(piece, "AU1", [0.4, 0.6, 2.4, 2.6])[0] == [0, 1, 1, 0]
    assert values(piece, "AU12", [2.4, 2.6, 3.4, 3.6])[0] == [0, 1, 1, 0]
    assert values(piece, "AU2", [1.0])[1] == [3]


def test_references_take_their_times_and_give_intensities(tmp_path: Path) -> None:
    path = document(
        tmp_path,
        tier("event", ("e1", "t0", "t1", "smile"), ("e2", "t3", "t4", "smile")),
        tier("AU6", ("a1", "e1", "", "B"), PARENT_REF="event"),
        tier("AU12", ("b1", "t0", "t1", ""), ("b2", "t3", "t4", "")),
        tier("how strong", ("c1", "b1", "", "E"), ("c2", "b2", "", "2"), PARENT_REF="AU12"),
        encoding="utf-16",
    )
    piece = read_elan(path)
    assert values(piece, "AU6", [0.5, 3.5]) == ([1, 0], [2, 0])
    assert values(piece, "AU12", [0.5, 2.0, 3.5]) == ([1, 0, 1], [5, 0, 2])


@pytest.mark.parametrize(
    ("tiers", "before", "said"),
    [
        ([tier("AU4")], '<!DOCTYPE x [<!ENTITY a "ha">]>', "declares a document type or entities"),
        ([tier("AU4")[:-3]], "", "is damaged: "),
        ([tier("speech", ("a", "t0", "t1", "4"))], "", "has no tier named after an AU, such as AU12"),
        ([tier("AU4", ("a", "t1", "t0", ""))], "", "tier 'AU4' has an annotation from 1 to 0 s"),
        ([tier("AU4", ("a", "t1", "t9", ""))], "", "refers to the time slot 't9', which there is not"),
        ([tier("AU4", ("a", "b", "", ""), ("b", "a", "", ""))], "", "has no time; open it in ELAN"),
        ([tier("AU4", ("a", "t0", "t1", "AU12"))], "", "tier 'AU4' at 0 s is annotated as 'AU12', another action unit"),
        ([tier("AUs", ("a", "t0", "t1", "smile"))], "", "tier 'AUs' at 0 s: 'smile' is no action unit"),
        ([tier("AU4", ANNOTATOR="a"), tier("AU4@b", ANNOTATOR="b")], "", "coding of 2 people; choose one"),
        ([tier("AU4", PARTICIPANT="p"), tier("AU4@q", PARTICIPANT="q")], "", "codes 2 people (p, q); save the tiers"),
        ([tier("AU4"), tier("AU4", ("a", "t0", "t1", ""))], "", "has two tiers named 'AU4'; rename one of them"),
    ],
)
def test_documents_that_are_refused(tmp_path: Path, tiers: list[str], before: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_elan(document(tmp_path, *tiers, before=before))
    assert said in str(caught.value) and "clip.eaf" in str(caught.value)


def test_a_coder_is_chosen_and_other_xml_is_refused(tmp_path: Path) -> None:
    two = tier("AU4", ("a", "t0", "t1", ""), ANNOTATOR="anna"), tier("AU4@b", ("b", "t3", "t4", ""), ANNOTATOR="bo")
    assert values(read_elan(document(tmp_path, *two), coder="bo"), "AU4", [0.5, 3.5])[0] == [0, 1]
    other = tmp_path / "other.eaf"
    other.write_text("<svg/>")
    with pytest.raises(ValueError, match=r"other\.eaf is no ELAN document: its root is 'svg'"):
        read_elan(other)
    frames = document(tmp_path, tier("AU4", ("a", "t0", "t1", "")))
    frames.write_text(frames.read_text().replace("<HEADER>", '<HEADER TIME_UNITS="NTSC-frames">'))
    with pytest.raises(ValueError, match="has times in NTSC-frames; open it in a current ELAN and save it"):
        read_elan(frames)
