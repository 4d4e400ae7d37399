"""The page of explanations says what moved, in figures that can be checked, and needs nothing else."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clipautt.evaluation.prompt_changes import SubjectExplanation, read_explanations, write_explanation
from clipautt.evaluation.reports.prompt_changes_page import (
    mean_agreement,
    mean_changes,
    subject_changes,
    write_explanation_page,
)

CODES = ("AU1", "AU4", "AU12", "a published phrase")


def explanation(
    subject: str = "s0",
    *,
    moved: Sequence[float] = (0.0, 0.25, 0.0002, 0.0),
    clips: int = 2,
    aus: pd.DataFrame | None = None,
) -> SubjectExplanation:
    """Similarities rise by one where the prompt moved; of every two clips the second has another window and class."""
    rank = np.argsort(np.argsort(-np.asarray(moved), kind="stable")) + 1
    prompts = pd.DataFrame({"code": CODES, "phrase": CODES, "moved": moved, "rank": rank, "learned": True})
    ids = [f"{subject}c{number}" for number in range(clips)]
    after = [0.5 + (value > 0) for value in moved]
    each = [pd.DataFrame({"clip_id": one, "code": CODES, "before": 0.5, "after": after}) for one in ids]
    odd = np.arange(clips) % 2 == 1
    windows = pd.DataFrame(
        {
            "clip_id": ids,
            "start_seconds": np.where(odd, 3.0, 1.0),
            "end_seconds": np.where(odd, 4.28, 2.28),
            "start_seconds_before": 1.0,
            "end_seconds_before": 2.28,
            "other_window": odd,
            "entropy_before": 0.6,
            "entropy_after": np.where(odd, 0.2, 0.6),
            "probability_before": 0.3,
            "probability_after": np.where(odd, 0.8 + 0.001 * np.arange(clips), 0.3),
            "class_before": "neutral",
            "class_after": np.where(odd, "pain", "neutral"),
            "status": "ok",
        }
    )
    files = {} if aus is None else {clip_id: {"tool": "OpenFace 2"} for clip_id in ids}
    facts: dict[str, Any] = {"prompts_per": "subject", "au_files": files}
    return SubjectExplanation(
        subject, ("neutral", "pain"), prompts, pd.concat(each, ignore_index=True), windows, aus, facts
    )


def agreement(*rho: float, code: Sequence[str] = ("AU4", "AU12")) -> pd.DataFrame:
    """`rho` before and after of each code; ROC-AUC is not defined."""
    nan = [float("nan")] * len(code)
    return pd.DataFrame(
        {
            "code": code,
            "rho_before": rho[0::2],
            "rho_after": rho[1::2],
            "auc_before": nan,
            "auc_after": nan,
            "num_windows": 30,
            "num_present": 7,
            "num_clips": 3,
            "num_apart": 10,
        }
    )


def page_of(folder: Path, *subjects: SubjectExplanation) -> str:
    named = {f"folder {number}": one for number, one in enumerate(subjects)}
    return write_explanation_page(folder, named, title="Explained").read_text(encoding="utf-8")


def cells(page: str) -> list[list[str]]:
    """The text of every row of every table."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]


def test_the_page_says_what_moved(tmp_path: Path) -> None:
    page = page_of(tmp_path, explanation())
    assert "<strong>AU4 Brow lowerer and AU12 Lip corner puller moved most</strong>" in page
    assert (
        "Of 2 clips, 1 are predicted from another window than with the source prompts, and 1 get another class." in page
    )
    assert ["s0", "2", "0.063", "AU4 Brow lowerer, 0.250", "1", "1", "0.30 → 0.55"] in cells(page)
    assert ["s0c0", "1.00–2.28", "1.00–2.28", "0.60 → 0.60", "0.30 → 0.30", "neutral"] in cells(page)
    assert ["s0c1", "1.00–2.28", "3.00–4.28 changed", "0.60 → 0.20", "0.30 → 0.80", "neutral → pain changed"] in cells(
        page
    )
    assert "OpenFace" not in page and "fell back" not in page


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = page_of(tmp_path, explanation(aus=agreement(0.1, 0.5, 0.2, 0.3)))
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(sources) == page.count("<img") == 3  # the mean, the agreement, the subject
    assert "http" not in page and "<script" not in page and "<link" not in page
    for source in sources:
        picture = np.asarray(Image.open(BytesIO(base64.b64decode(source))).convert("RGB")).astype(int)
        assert (np.abs(picture - (0, 114, 178)).max(-1) <= 3).sum() > 1000  # the colour of what is after
    assert [path.name for path in tmp_path.iterdir()] == ["explain.html"]


@pytest.mark.parametrize(("clips", "apart"), [(1, 30), (3, 9)])
def test_few_windows_make_no_mean(tmp_path: Path, clips: int, apart: int) -> None:
    few = agreement(0.1, 0.5, 0.2, 0.3).assign(num_clips=clips, num_apart=apart)
    page = page_of(tmp_path, explanation(aus=few))
    assert (
        "No mean agreement with OpenFace 2 is given: it takes 3 clips and 10 windows that do not overlap of one "
        f"person, and at most {clips} clips and {apart} such windows have a table."
    ) in page
    assert "mean rank correlation with OpenFace 2 over" not in page and page.count("<img") == 2
    assert ["AU4 Brow lowerer", "0.10 → 0.50", "+0.40", "–", "–", "30", "7"] in cells(page)


def test_agreement_stands_beside_it(tmp_path: Path) -> None:
    nan = float("nan")
    page = page_of(
        tmp_path,
        explanation("a", aus=agreement(0.1, 0.5, nan, nan)),
        explanation("b", aus=agreement(0.3, 0.4, nan, nan)),
        explanation("c"),
    )
    assert "The mean rank correlation with OpenFace 2 over 1 action unit went from 0.20 to 0.45." in page
    assert "Agreement with OpenFace 2, mean over 2 subjects" in page and "4 of 6 clips with a file" in page
    table = cells(page)
    assert ["AU4 Brow lowerer", "0.20 → 0.45", "+0.25", "–", "–", "60", "14"] in table
    assert ["AU12 Lip corner puller", "–", "–", "–", "–", "60", "14"] in table
    assert ["AU4 Brow lowerer", "0.10 → 0.50", "+0.40", "–", "–", "30", "7"] in table
    overview = {row[0]: row[-1] for row in table if len(row) == 8}
    assert overview == {"a": "0.10 → 0.50", "b": "0.30 → 0.40", "c": "–"}


def test_a_loss_has_a_minus_and_nothing_has_no_sign(tmp_path: Path) -> None:
    page = page_of(tmp_path, explanation(aus=agreement(0.5, -0.1, 0.301, 0.3)))
    assert ["AU4 Brow lowerer", "0.50 → −0.10", "−0.60", "–", "–", "30", "7"] in cells(page)
    assert ["AU12 Lip corner puller", "0.30 → 0.30", "0.00", "–", "–", "30", "7"] in cells(page)


def test_where_no_prompt_moved_it_says_so(tmp_path: Path) -> None:
    page = page_of(tmp_path, explanation(moved=(0.0,) * 4))
    assert "<strong>No prompt moved</strong>" in page and "The source prompts were used as they are" in page
    assert "<img" not in page and "Mean over" not in page and cells(page)[1][:4] == ["s0", "2", "0", "none"]


def test_means_count_each_subject_once() -> None:
    few, many = explanation("a", moved=(0.2, 0, 0, 0), clips=2), explanation("b", moved=(0.0, 0.1, 0, 0), clips=20)
    assert subject_changes(few)["after"].tolist() == [1.5, 0.5, 0.5, 0.5]
    mean = mean_changes([few, many])
    assert mean["code"].tolist() == list(CODES) and mean["moved"].tolist() == [0.1, 0.05, 0.0, 0.0]
    assert mean["before"].tolist() == [0.5] * 4 and mean["after"].tolist() == [1.0, 1.0, 0.5, 0.5]


def test_the_mean_agreement_takes_each_unit_where_it_is_defined() -> None:
    mean = mean_agreement([agreement(0.1, 0.3, float("nan"), 0.2), agreement(0.5, 0.6, code=["AU12"])])
    by_code = mean.set_index("code")
    assert by_code["rho_before"].to_dict() == {"AU4": 0.1, "AU12": 0.5}
    assert by_code["rho_after"].to_dict() == {"AU4": 0.3, "AU12": 0.4}
    assert by_code["num_windows"].to_dict() == {"AU4": 30, "AU12": 60}
    assert mean_agreement([]).empty


def test_the_24_that_moved_most_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "clipautt.evaluation.reports.prompt_changes_page._changes_picture", lambda *_, alt, **__: drawn.append(alt)
    )
    page = page_of(tmp_path, *(explanation(f"p{n:02d}", moved=(0, 0.01 * n, 0, 0)) for n in range(30)))
    assert "The 24 subjects whose prompts moved most are shown; the tables of all 30 are beside this page" in page
    titles = re.findall(r'<section class="story" id="s\d+">\n<h2>(.*?)</h2>', page)
    assert titles == [f"p{n:02d}" for n in range(29, 5, -1)] and len(drawn) == 1 + 24
    assert "Of 60 clips, 30 are predicted from another window" in page  # the figures above are of all


def test_many_clips_show_those_that_changed_most(tmp_path: Path) -> None:
    page = page_of(tmp_path, explanation(clips=130))
    shown = [row[0] for row in cells(page) if row and re.fullmatch(r"s0c\d+", row[0])]
    assert shown == [f"s0c{number}" for number in range(11, 130, 2)]
    assert "The 60 clips whose probability changed most are shown; all are in <code>folder 0/windows.csv</code>" in page


def test_a_fallback_gives_its_reason_and_names_are_no_html(tmp_path: Path) -> None:
    one = explanation("<script>alert(1)</script>")
    one = replace(one, windows=one.windows.assign(status=["ok", "not adapted: the loss of step 2 is <nan>"]))
    page = page_of(tmp_path, one)
    assert "1 fell back to the source prompts" in page and "not adapted: the loss of step 2 is &lt;nan&gt;" in page
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_the_page_of_what_was_written(tmp_path: Path) -> None:
    for number in range(2):
        one = explanation(f"s{number}", aus=agreement(0.1, 0.5, 0.2, 0.3) if number else None)
        write_explanation(one, tmp_path, name=f"s{number}")
    read = read_explanations(tmp_path)
    path = write_explanation_page(tmp_path, read, title="A & B", facts=[("method", "CLIP-AUTT <x>")])
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "explain.html" and "<title>A &amp; B</title>" in page
    assert '<th scope="row">method</th><td>CLIP-AUTT &lt;x&gt;</td>' in page and "Tables in s1/." in page


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="explanations is empty; the page needs at least one subject"):
        write_explanation_page(tmp_path, {}, title="none")
    other = replace(explanation("s1"), classes=("neutral", "stress"))
    with pytest.raises(ValueError, match="subjects 's0' and 's1' have different classes or prompts; one page holds"):
        page_of(tmp_path, explanation("s0"), other)


def test_units_that_the_backbone_never_learned_are_left_out_and_counted(tmp_path: Path) -> None:
    one = explanation(moved=(0.1, 0.9, 0.2, 0.0))
    one.prompts["learned"] = [True, False, True, True]
    text = write_explanation_page(tmp_path, {"s0": one}, title="t", warnings=["Beware."]).read_text()
    assert text.index('<p class="warning">Beware.</p>') < text.index('<section class="verdict')
    assert "AU12 Lip corner puller and AU1 Inner brow raiser moved most" in text and "AU4 Brow lowerer" not in text
    assert "1 of 4 action units are left out here, because the backbone never learned them; the tables list" in text
    assert "<td>AU12 Lip corner puller, 0.200</td>" in text
