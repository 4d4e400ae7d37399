"""The whole report from seeded, made-up result rows: what it says, what it writes, and that it needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipautt.evaluation.reports.next_steps import next_steps
from clipautt.evaluation.reports.page import OPTIONAL, VERDICT, first_words, write_report
from clipautt.evaluation.results import ResultRow
from clipautt.evaluation.stories import AuAgreement, ClipStory

CLASSES = ("neutral", "pain")
REFERENCE = "CLIP-AU, best window"
DEFAULT = "median baseline: CLIP-AU, mean of windows"
TUNED = "median baseline: CLIP-AUTT infomax, per subject"

# name, objective, protocol, baseline, readout, share of right answers
METHODS = (
    ("zero-shot", "zero_shot", "per_video", "none", "whole_clip", None),
    ("CLIP-AU, whole clip", "none", "per_video", "none", "whole_clip", 0.68),
    (REFERENCE, "none", "per_video", "none", "best_window", 0.72),
    ("CLIP-AU, mean of windows", "none", "per_video", "none", "mean_windows", 0.71),
    ("CLIP-AUTT entropy, per video", "entropy", "per_video", "none", "best_window", 0.72),
    ("CLIP-AUTT infomax, per subject", "infomax", "per_subject", "none", "mean_windows", 0.76),
    ("CLIP-AUTT infomax+KL, per subject", "infomax_kl", "per_subject", "none", "mean_windows", 0.75),
    (DEFAULT, "none", "per_subject", "median", "mean_windows", 0.87),
    (TUNED, "infomax", "per_subject", "median", "mean_windows", 0.86),
)


def make_rows(
    methods: tuple[tuple[str, str, str, str, str, float | None], ...] = METHODS,
    *,
    cohorts: tuple[tuple[str, float], ...] = (("balanced", 0.5), ("20%", 0.2), ("5%", 0.05)),
    splits: tuple[tuple[str, int], ...] = (("target", 10), ("source_val", 4)),
    seeds: tuple[int, ...] = (0, 1),
    num_clips: int = 20,
) -> pd.DataFrame:
    """Result rows of methods that are right with a given probability (None: they always say neutral)."""
    parts = []
    for number, (method, objective, protocol, baseline, readout, right) in enumerate(methods):
        for seed in seeds:
            for part, (split, num_subjects) in enumerate(splits):
                for cohort, share in cohorts:
                    rng = np.random.default_rng([number, seed, part, round(100 * share)])
                    positives = max(1, round(num_clips * share))
                    true = np.tile(np.arange(num_clips) < positives, num_subjects).astype(int)
                    hit = rng.random(len(true)) < (0 if right is None else right)
                    predicted = np.zeros_like(true) if right is None else np.where(hit, true, 1 - true)
                    certain = np.where(hit == (right is not None), rng.beta(4, 1, len(true)), rng.beta(1, 2, len(true)))
                    subject = np.repeat(np.arange(num_subjects), num_clips)
                    frame = pd.DataFrame(
                        {
                            "clip_id": [f"{split}_{s:02d}_clip{i:03d}" for i, s in enumerate(subject)],
                            "subject_id": [f"{split}_{s:02d}" for s in subject],
                            "label": np.array(CLASSES)[true],
                            "prediction": np.array(CLASSES)[predicted],
                            "probability": 0.5 + np.where(predicted == 1, 1, -1) * (0.001 + 0.498 * certain),
                        }
                    )
                    settings = {"split": split, "method": method, "objective": objective, "protocol": protocol}
                    settings |= {"subject_baseline": baseline, "readout": readout, "cohort": cohort, "seed": seed}
                    adapts = objective not in ("zero_shot", "none")
                    logits = "class_text" if objective == "zero_shot" else "head"
                    settings |= {"method_key": "zero_shot" if objective == "zero_shot" else "clip_autt"}
                    parts.append(
                        frame.assign(
                            **settings, adapts=adapts, logits_from=logits, settings="{}", manifest=f"manifest{seed}"
                        )
                    )
    rest = {"window_start_seconds": 1.0, "window_end_seconds": 2.0, "entropy": 0.4, "status": "ok", "draw": 0}
    rest |= {"window_length": 16, "window_stride": 1, "context_tokens": 4, "steps": 10, "learning_rate": 0.001}
    rest |= {"tune": "context", "prior": 0.5, "training_prior": 0.5, "position": 0}
    rest |= {"backbone": "tiny", "checkpoint": "c", "code_version": "0", "seconds": 0.04, "warnings": ""}
    rest |= {"face_share": np.nan, "cautions": "", "other_faces": 0}
    rows = pd.concat(parts, ignore_index=True).assign(**rest)
    return rows[[field.name for field in fields(ResultRow)]]


def make_story(*, clip_id: str = "target_03_clip007", with_truth: bool = True) -> ClipStory:
    """A clip with an expression from 2.0 to 3.2 seconds."""
    times = np.arange(0, 5, 0.04)
    bump = np.exp(-(((times - 2.6) / 0.45) ** 2))
    truth = pd.DataFrame({"time_seconds": times, "AU4": 0.8 * bump, "AU6": 0.1 + 0.5 * bump, "AU9": 0.4 * bump})
    truth["burst"] = (times >= 2.0) & (times < 3.2)
    centres = np.arange(0.32, 4.7, 0.08)
    near = np.exp(-(((centres - 2.6) / 0.6) ** 2))
    codes = ("AU1", "AU4", "AU6", "AU12", "AU43", "AU25")
    noise = np.random.default_rng(0).normal(0, 0.02, (len(centres), len(codes)))
    similarities = near[:, None] * [0.02, 0.9, 0.6, -0.2, 0.35, 0.1] + noise
    frames = np.linspace(30, 220, 16 * 40 * 32 * 3).reshape(16, 40, 32, 3).astype(np.uint8)
    return ClipStory(
        clip_id=clip_id,
        subject_id="target_03",
        label="pain",
        prediction_before="neutral",
        prediction_after="pain",
        probability_before=0.31,
        probability_after=0.884,
        frames=frames,
        window_start_seconds=2.3,
        window_end_seconds=2.94,
        window_times=centres,
        entropies=0.69 - 0.5 * near,
        similarities=similarities,
        codes=codes,
        truth=truth if with_truth else None,
    )


def make_agreement() -> list[AuAgreement]:
    return [
        AuAgreement("AU4", 0.51, 0.7, 90),
        AuAgreement("AU6", 0.3, 0.2, 90),
        AuAgreement("AU9", float("nan"), None, 90),
    ]


FEWER = tuple(one for one in METHODS if one[0] in ("zero-shot", REFERENCE, DEFAULT, TUNED))
HOSTILE = "<script>alert('x')</script> & \"co\""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report, with text in it that is HTML if not escaped."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "figures").mkdir()
    (folder / "figures" / "clip_09.png").write_bytes(b"of an earlier report")
    (folder / "figures" / "sweep.png").write_bytes(b"somebody else's")
    rows = make_rows(FEWER, cohorts=(("balanced", 0.5), ("5%", 0.05)), splits=(("target", 6), ("source_val", 1)))
    write_report(
        folder,
        rows=rows,
        classes=CLASSES,
        title=f"Benchmark {HOSTILE}",
        personalized=DEFAULT,
        stories=[make_story(clip_id=f"clip {HOSTILE}")],
        agreement=make_agreement(),
        facts={"backbone": HOSTILE, "home": "https://example.org/"},
        notes=[f"Note {HOSTILE}"],
        synthetic=True,
    )
    return folder


def test_everything_is_written(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == {
        "figures",
        "methods.parquet",
        "priors.parquet",
        "report.html",
        "report.md",
        "results.parquet",
        "subjects.parquet",
        "verdict.json",
    }
    figures = {path.name for path in (report / "figures").iterdir()}
    own = {
        "agreement.png",
        "clip_01.png",
        "confusion.png",
        "methods.png",
        "priors.png",
        "who_5.png",
        "who_balanced.png",
    }
    assert figures == own | {"sweep.png"}


def test_the_page_needs_nothing_else(report: Path) -> None:
    page = (report / "report.html").read_text()
    sources = re.findall(r"""(?:src|href|action|data)\s*=\s*["']?([^"'>\s]+)""", page)
    assert len(sources) == 7
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"@import|url\(|<link|<script|<iframe", page)


def test_text_is_escaped(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;co&#34;") == 6
    # title twice, heading and picture of the clip, fact, note


def test_the_top_says_whether_it_worked(report: Path) -> None:
    page = (report / "report.html").read_text()
    top = page[page.index("<main>") : page.index("Whom did it help?")]
    assert '<span class="badge synthetic">synthetic faces</span>' in top
    assert '<section class="verdict helped">' in top
    assert "<strong>Personalization helped</strong>" in top
    assert re.search(
        r"raised mean UAR by \d+\.\d points, from \d\d\.\d to \d\d\.\d, over 12 unseen subjects \(95% interval", top
    )
    assert re.search(r"with this many subjects, \d+\.\d points or more can be detected", top)
    assert "below the majority predictor&#39;s 95.0." in top


def test_the_page_answers_in_the_order_of_the_questions(report: Path) -> None:
    page, text = (report / "report.html").read_text(), (report / "report.md").read_text()
    questions = ["Whom did it help?", "What does it see?", "How do the methods compare?", "What next?", "Small print"]
    assert re.findall(r"<h2>(.*?)</h2>", page) == questions
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == questions
    assert page.index("<strong>Personalization helped") < page.index(questions[0])


def test_tables_of_all_rows_are_folded(report: Path) -> None:
    page = (report / "report.html").read_text()
    without = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert page.count("<table") == 5 and "<table" not in without
    assert page.count("<details") == page.count("</details>")
    assert without.count("<figure>") == 3, "who, one clip and the methods are seen at once"


def test_the_page_says_what_to_run_next(report: Path) -> None:
    page, text = (report / "report.html").read_text(), (report / "report.md").read_text()
    for step in next_steps(synthetic=True):
        for command in step.commands:
            assert command in page and command in text
    assert next_steps(synthetic=False) != next_steps(synthetic=True)


def test_the_verdict_is_written_for_programs(report: Path) -> None:
    said = json.loads((report / "verdict.json").read_text())
    assert f"<p>{said['sentence']}</p>" in (report / "report.html").read_text()
    assert said["effect"] == "helped" and said["difference"]["low"] > 0 and said["detectable"] > 0
    assert said["helped"] + said["hurt"] + said["unchanged"] == 12


def test_the_page_groups_by_baseline_and_flags_the_constant_row(report: Path) -> None:
    page = (report / "report.html").read_text()
    headings = [page.index(f">{name}</th>") for name in ("Without subject baseline", "With median subject baseline")]
    assert headings[0] < page.index(f"<td>{REFERENCE}") < headings[1] < page.index(f"<td>{DEFAULT}")
    row = page[page.index("<td>zero-shot") :]
    row = row[: row.index("</tr>")]
    assert row.count(">one class</span>") == 2
    assert "50.0" in row and "33.3" in row and "95.0" in row and "48.7" in row
    assert re.search(r"On top of the median baseline, adaptation (helps|hurts|has no)", page)
    assert "it is the default reported here" in page or "the default reported here, “" in page


def test_tables_hold_the_rows(report: Path) -> None:
    rows = pd.read_parquet(report / "results.parquet")
    assert len(rows) == 4 * 2 * 2 * (6 + 1) * 20
    methods = pd.read_parquet(report / "methods.parquet")
    assert len(methods) == 4 * 2 * 2
    own = methods.set_index(["method", "cohort", "split"]).loc[("zero-shot", "5%", "target")]
    assert own["degenerate"] and own["num_subjects"] == 12 and own["num_videos"] == 240
    assert own["f1"] == pytest.approx(0.95 / 1.95)
    subjects = pd.read_parquet(report / "subjects.parquet")
    target = subjects[(subjects["split"] == "target") & (subjects["method"] == DEFAULT) & (subjects["cohort"] == "5%")]
    kept = (methods["method"] == DEFAULT) & (methods["cohort"] == "5%") & (methods["split"] == "target")
    assert methods.loc[kept, "uar"].item() == pytest.approx(target["uar"].mean())


def test_the_markdown_says_the_same(report: Path) -> None:
    text, page = (report / "report.md").read_text(), (report / "report.html").read_text()
    sentence = re.search(r"\*\*Personalization helped\.\*\* (.*)", text)
    assert sentence and sentence[1] in page
    assert "*Synthetic faces: every face is rendered." in text
    assert "| majority predictor | 50.0 | 50.0 | 33.3 | 50.0 | 95.0 | 48.7 |" in text
    assert all((report / name).is_file() for name in re.findall(r"\]\((.*?\.png)\)", text))


def test_other_shares_of_the_positive_class_are_shown(report: Path) -> None:
    text, page = (report / "report.md").read_text(), (report / "report.html").read_text()
    section = page[
        page.index("<summary>What if pain is rarer, or more common?</summary>") : page.index("<h2>How do the methods")
    ]
    sentence = re.search(
        r"At 5% positives, assuming 5% instead of 50% \w+ WAR from [^;]+; always predicting .* 95\.0\.", text
    )
    assert sentence and sentence[0] in section
    assert '<th scope="col">assumed share</th>' in section
    assert section.count(">as it stands</span>") == text.count("50% (as it stands)") == 2
    assert "do not state" not in page
    table = pd.read_parquet(report / "priors.parquet")
    assert len(table) == 4 * 2 * (1 + 6)
    methods = pd.read_parquet(report / "methods.parquet").set_index(["split", "method", "cohort"]).loc["target"]
    for _, row in table[table["own"] | (table["assumed_share"] == 0.5)].iterrows():
        assert row["uar"] == pytest.approx(methods.loc[(row["method"], row["cohort"]), "uar"])


def test_rows_of_earlier_versions_are_taken_as_trained_on_even_shares(tmp_path: Path) -> None:
    rows = make_rows(FEWER[1:3], cohorts=(("balanced", 0.5),), splits=(("target", 2),), seeds=(0,))
    old = rows.drop(columns=list(OPTIONAL))
    page = write_report(tmp_path, rows=old, classes=CLASSES, title="t", personalized=DEFAULT).read_text()
    said = "80 of 80 rows do not state the share of positives in training; 50% is assumed for them."
    assert said in page and said in (tmp_path / "report.md").read_text()
    assert (pd.read_parquet(tmp_path / "priors.parquet")["prior"] == 0.5).all()
    assert "prior" not in pd.read_parquet(tmp_path / "results.parquet")


def test_estimated_priors_have_a_line_of_their_own(tmp_path: Path) -> None:
    rows = make_rows(FEWER[1:3], cohorts=(("balanced", 0.5),), splits=(("target", 2),), seeds=(0,))
    rows["prior"] = np.where(rows["subject_id"] == "target_00", 0.3, 0.45)
    write_report(tmp_path, rows=rows, classes=CLASSES, title="t", personalized=DEFAULT)
    assert (tmp_path / "report.md").read_text().count("| 37.5% (as it stands) |") == 2


def test_three_classes_have_no_share_to_assume(tmp_path: Path) -> None:
    rows = make_rows(FEWER[:2], cohorts=(("balanced", 0.5),), splits=(("target", 1),), seeds=(0,))
    write_report(tmp_path, rows=rows, classes=CLASSES, title="t", personalized=REFERENCE)
    assert (tmp_path / "priors.parquet").is_file()
    path = write_report(tmp_path, rows=rows, classes=("calm", *CLASSES), title="t", personalized=REFERENCE)
    assert "What if" not in path.read_text() and "What if" not in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "priors.parquet").exists() and not (tmp_path / "figures" / "priors.png").exists()


def test_wrong_input_is_named(tmp_path: Path) -> None:
    rows = make_rows(FEWER[:2], cohorts=(("balanced", 0.5),), splits=(("target", 1),), seeds=(0,))

    def write(table: pd.DataFrame, *, personalized: str = REFERENCE, classes: tuple[str, ...] = CLASSES) -> None:
        write_report(tmp_path, rows=table, classes=classes, title="t", personalized=personalized)

    with pytest.raises(ValueError, match=r"rows lack the columns \['cohort', 'seed'\]"):
        write(rows.drop(columns=["cohort", "seed"]))
    with pytest.raises(ValueError, match=r"rows have label \['neutral', 'pain'\]; allowed: the classes \['calm'\]"):
        write(rows, classes=("calm",))
    with pytest.raises(
        ValueError, match=r"personalized='nobody' has no target rows; allowed: \['zero-shot', 'CLIP-AU, best"
    ):
        write(rows, personalized="nobody")
    assert not list(tmp_path.iterdir())


def test_the_first_words_are_those_of_the_report(tmp_path: Path) -> None:
    said = {"headline": "Personalization helped", "sentence": "“new” raised mean UAR by 6.9 points."}
    (tmp_path / "verdict.json").write_text(json.dumps(said))
    assert first_words(tmp_path) == "Personalization helped. “new” raised mean UAR by 6.9 points."


def test_warnings_stand_above_everything_else(tmp_path: Path) -> None:
    rows = make_rows(FEWER[1:3], cohorts=(("balanced", 0.5),), splits=(("target", 2),), seeds=(0,))
    said = "The checkpoint was trained on <rendered> faces only."
    page = write_report(
        tmp_path, rows=rows, classes=CLASSES, title="t", personalized=DEFAULT, warnings=[said]
    ).read_text()
    shown = '<p class="warning">The checkpoint was trained on &lt;rendered&gt; faces only.</p>'
    assert page.index(shown) < page.index('<section class="verdict')
    assert f"**Warning:** {said}" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / VERDICT).read_text())["warnings"] == [said]
    assert first_words(tmp_path).startswith(f"warning: {said}\n")
