"""The whole path on a real local Ray with real mp4 files: synth, extract, train, adapt, report, predict."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from clipautt import Predictor
from clipautt.backbones.loading import BackboneConfig
from clipautt.evaluation.results import EVERY
from clipautt.footage import Footage
from clipautt.manifest import read_manifest
from clipautt.model.checkpoint import load_checkpoint
from ray_jobs import cli
from ray_jobs.platform.extraction.extract import ExtractionConfig, extract
from ray_jobs.report.job import without_prediction

pytestmark = pytest.mark.usefixtures("local_ray")
SMALL = ["size=tiny", "seed=3", "compare=[zero_shot,clip_au,infomax_kl@median]", "train.epochs=2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny demo."""
    out = tmp_path_factory.mktemp("demo") / "run"
    assert cli.main(["demo", *SMALL, f"out={out}"]) == 0
    return out


def rows_of(run: Path) -> pd.DataFrame:
    tables = [pd.read_parquet(path) for path in sorted((run / "adapt" / "demo" / "subjects").glob("*.parquet"))]
    return pd.concat(tables).sort_values(["method", "cohort", "draw", "clip_id"], ignore_index=True)


def test_demo_leaves_every_artefact(demo: Path) -> None:
    for path in ("data/manifest.parquet", "data/contact_sheet.png", "train/demo/checkpoints/median/checkpoint.json"):
        assert (demo / path).is_file(), path
    page = (demo / "report" / "report.html").read_text()
    assert "synthetic" in page.lower()
    assert "http://" not in page and "https://" not in page
    rows = rows_of(demo)
    assert set(rows["status"]) == {"ok"} and set(rows["warnings"]) == {""}
    assert 'class="warning"' not in page and "synthetic-pain-hard-seed3 (rendered faces)" in page
    spec = load_checkpoint(demo / "train" / "demo" / "checkpoints" / "median").spec
    assert spec.footage == Footage("rendered", ("synthetic-pain-hard-seed3",))
    assert set(rows["split"]) == {"target", "source_val"}
    assert rows.groupby(["method", "cohort", "draw"])["clip_id"].nunique().loc[(slice(None), EVERY, 0)].eq(12).all()


def test_a_second_run_does_nothing_twice_and_ends_with_what_the_page_says_first(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [
        *demo.rglob("*.mp4"),
        *demo.rglob("part-*.parquet"),
        *demo.rglob("weights.safetensors"),
        *demo.rglob("subjects/*"),
    ]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert cli.main(["demo", *SMALL, f"out={demo}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert len(list(demo.rglob("part-*.parquet"))) == len([p for p in kept if p.name.startswith("part-")])
    before_open, _, rest = capsys.readouterr().out.rpartition("\n\nOpen ")
    page = html.unescape((demo / "report" / "report.html").read_text())
    first = re.search(r"<strong>(.*?)</strong>\s*<p>(.*?)</p>", page)
    assert first and before_open.splitlines()[-1] == f"{first[1]}. {first[2]}"
    assert rest.splitlines()[1].startswith("Try  clipautt predict ")


def test_other_settings_are_refused_and_named(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", *SMALL, "train.epochs=3", f"out={demo}"]) == 2
    assert "train.epochs" in capsys.readouterr().err


def test_the_report_names_clips_without_a_prediction() -> None:
    runs = [{"a": "no features: broken"}, {f"b{i}": "no features: no face" for i in range(6)}]
    (note,) = without_prediction(runs)
    assert note.startswith(
        "Omitted from the figures of methods that cannot predict them: a (no features: broken), b0 ("
    )
    assert note.endswith("b3 (no features: no face) and 2 more.")
    assert without_prediction([{}, {}]) == []


def test_adaptation_resumes_subject_by_subject(demo: Path, tmp_path: Path) -> None:
    """A result file that is there is kept; the missing subject is done again and gives the same rows."""
    copy = tmp_path / "run"
    shutil.copytree(demo, copy)
    results = copy / "adapt" / "demo" / "subjects"
    gone = results / "target-000.parquet"
    expected, kept = pd.read_parquet(gone), (results / "target-001.parquet").stat().st_mtime_ns
    gone.unlink()
    overrides = [
        f"runs={copy}",
        "name=demo",
        f"manifest={demo / 'data' / 'manifest.parquet'}",
        f"store={demo / 'features'}",
    ]
    overrides += [
        f"checkpoint={demo / 'train' / 'demo'}",
        "compare=[zero_shot,clip_au,infomax_kl@median]",
        "seed=3",
        "adapt.seed=3",
    ]
    overrides += ["splits=[target,source_val]"]
    assert cli.main(["adapt", *overrides]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(gone).drop(columns="seconds"), expected.drop(columns="seconds"))
    assert (results / "target-001.parquet").stat().st_mtime_ns == kept


def test_unreadable_clips_cost_a_row_each(demo: Path, tmp_path: Path) -> None:
    manifest = pd.read_parquet(demo / "data" / "manifest.parquet").head(3)
    manifest["source"] = [str(demo / "data" / source) for source in manifest["source"]]
    (tmp_path / "broken.mp4").write_text("not a video")
    manifest.loc[1, "source"] = str(tmp_path / "broken.mp4")
    manifest.loc[2, "source"] = str(tmp_path / "gone.mp4")
    manifest.to_parquet(tmp_path / "manifest.parquet")
    clips = read_manifest(tmp_path / "manifest.parquet", classes=("neutral", "pain")).clips
    config = ExtractionConfig(BackboneConfig(), str(tmp_path / "store"))
    store, summary = extract(clips, config)
    again = extract(clips, config)[1]
    assert summary.extracted == 1 and again.extracted == 0
    reasons = {failure.clip_id: failure.reason for failure in summary.failures}
    assert "broken.mp4" in reasons[clips[1].clip_id] and "gone.mp4" in reasons[clips[2].clip_id]
    assert list(store.load(clips)) == [clips[0].clip_id]


def test_predictor_and_command_agree(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = demo / "data" / "videos" / "target-000" / "target-000_c001.mp4"
    checkpoint, prompts = demo / "train" / "demo" / "checkpoints" / "median", demo / "adapt" / "demo" / "prompts"
    predictor = Predictor.load(checkpoint, personalizations=prompts)
    prediction = predictor.predict(video, subject="target-000")
    assert prediction.personalized_for == "target-000" and list(prediction.cautions) == ["few_personal_frames"]
    copied = predictor.predict(shutil.copy(video, tmp_path / "copy.mp4"))
    assert list(copied.cautions) == ["too_short"], "the mark must be copied, too"
    assert prediction.action_units.shape[1] == 46
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    # The personalized prediction of a clip that took part in the adaptation is the run's own.
    rows = rows_of(demo)
    own = rows[
        (rows["clip_id"] == video.stem)
        & (rows["cohort"] == EVERY)
        & (rows["method"] == "CLIP-AU, best window, median baseline")
    ]
    assert prediction.probabilities["pain"] == pytest.approx(own["probability"].iloc[0], abs=1e-5)
    words = [str(video), "subject=target-000", f"checkpoint={checkpoint}", f"prompts={prompts}"]
    assert cli.main(["predict", *words]) == 0
    said = capsys.readouterr().out
    warnings = [line.split(": ")[0] for line in said.partition(prediction.label)[0].splitlines()]
    assert {"warning rendered_only", "warning few_personal_frames"} <= set(warnings)
    assert "left out: 18 of 46 action units, which the backbone never learned" in said
    top = prediction.top_action_units
    first = next(line for line in said.splitlines() if line.startswith(f"{top.index[0]} "))
    assert first.startswith(f"{top.index[0]} {top['name'].iloc[0]} ") and first.endswith(f" {top['rise'].iloc[0]:+.3f}")
    assert cli.main(["predict", *words[:1], "subject=nobody", *words[2:]]) == 2
    assert "nobody" in capsys.readouterr().err
