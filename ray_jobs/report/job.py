"""Draw the report of adaptation runs, or of predicted clips as a study.

`run=` tells whom personalization helped, and what it looked at: a self-contained HTML page, PNG figures, Parquet tables
and Markdown. Several runs (other seeds, other people) make one report.

`table=` takes tables of clips, as `clipautt predict FOLDER out=clips.csv` writes them: means per subject and condition
with intervals over subjects, differences between conditions, and CSV files with a codebook for R and SPSS.

Example:
    clipautt report run=runs/adapt/hard
    clipautt report 'run=[runs/adapt/seed0,runs/adapt/seed1]' out=report
    clipautt report table=clips.csv by=condition out=study
    clipautt report 'table=[day1.csv,day2.csv]' 'exclude_warnings=[few_faces,too_dark]' reference=baseline
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from omegaconf import DictConfig, ListConfig

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt.method import CLIP_AU
from clipautt.adaptation.personalization import load_personalization
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone, BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.datasets.synthetic.generate import read_truth
from clipautt.evaluation.clip_stories import Side, choose_clips, measure_agreement, tell_story
from clipautt.evaluation.reports.page import first_words, write_report
from clipautt.evaluation.reports.tables import cohort_title, percent
from clipautt.evaluation.results import EVERY, predicted, read_rows
from clipautt.evaluation.stories import AuAgreement, ClipStory
from clipautt.features.store import FeatureStore
from clipautt.footage import is_rendered_clip, other_footage, truth_path
from clipautt.manifest import Manifest, read_manifest
from clipautt.model.checkpoint import find_checkpoint, footage_seen, load_checkpoint
from clipautt.prediction.cautions import CODES
from clipautt.subjects import subject_file
from clipautt.video.faces import FEW_FACES
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.methods import make_methods
from ray_jobs.platform.progress import table
from ray_jobs.platform.runs import versions
from ray_jobs.report import study

DEFAULT_RUN = "runs/adapt/default"
_NAMED_CLIPS = 5


def report(runs: Sequence[Path], out: Path, *, backbone: BackboneConfig | None = None, clips: int = 4) -> Path:
    """Write the report of adaptation runs.

    Args:
        runs: run folders of `clipautt adapt`, with the same method in each.
        out: folder of the report.
        backbone: how the runs' backbone is loaded; None: as in training.
        clips: how many clips of the first run are shown in detail.

    Returns:
        The path of report.html.

    Raises:
        FileNotFoundError: if a folder is not an adaptation run or has no results.
        ValueError: if the manifest lacks a clip of the first run, or its method predicted no clip with a label.
    """
    settings = [_settings(run) for run in runs]
    read = [_rows(run) for run in runs]
    rows = pd.concat([scored for scored, _ in read], ignore_index=True)
    own = instantiate(settings[0]["adapt"])
    if own.name not in set(read[0][0]["method"]):
        why = "".join(f"; {clip}: {status}" for clip, status in list(read[0][1].items())[:1])
        raise ValueError(f"{runs[0]}: {own.name!r} predicted no clip with a label, so there is nothing to compare{why}")
    spec = load_checkpoint(find_checkpoint(settings[0]["checkpoint"], own.subject_baseline)).spec
    manifests = [read_manifest(one["manifest"], classes=spec.classes) for one in settings]
    manifest = manifests[0]
    gone = sorted(set(read[0][0]["clip_id"]) - {clip.clip_id for clip in manifest.clips})
    if gone:
        raise ValueError(
            f"{settings[0]['manifest']} is no longer the manifest that {runs[0]} was made with: {gone[0]!r} is gone"
        )
    names = list(dict.fromkeys(map(_dataset_name, manifests, settings)))
    loaded = load_backbone(backbone or spec.backbone)
    scored = set(rows["clip_id"])
    clips_scored = [clip for one in manifests for clip in one.clips if clip.clip_id in scored]
    rendered = [is_rendered_clip(clip) for clip in clips_scored]
    seen = footage_seen(spec, loaded.name, loaded.facts)
    warning = other_footage(seen, rendered)
    stories, agreement = _explained(runs[0], settings[0], manifest, read[0][0], own, loaded, clips)
    methods = make_methods(own, settings[0]["compare"])
    notes = list(dict.fromkeys(config.method.deviations for config in methods))
    if own.method.adapts and own.protocol != "per_subject":
        notes.append("Entropies and AU tracks of single clips are made with the prompts after a subject's last clip.")
    return write_report(
        out,
        rows=rows,
        classes=manifest.classes,
        title=f"Personalization report: {', '.join(names)}",
        personalized=own.name,
        reference=CLIP_AU.name,
        stories=stories,
        agreement=agreement,
        facts=_facts(rows, names) | {"Trained on": "; ".join(f"{part}: {footage}" for part, footage in seen.items())},
        notes=[*without_prediction([empty for _, empty in read]), *faces_found(rows), *cautioned(rows), *notes],
        warnings=[warning] if warning else [],
        synthetic=all(rendered),
    )


def _settings(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    if not file.is_file() or not (run / "subjects").is_dir():
        raise FileNotFoundError(f"{run} is not a run folder of `clipautt adapt` (config.yaml or subjects/ is missing)")
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def _rows(run: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows of a run to score; and clip id → why it has no prediction."""
    every = read_rows((run / "subjects").glob("[!.]*.parquet"))
    labelled = predicted(every[every["label"] != ""])
    if labelled.empty:
        raise FileNotFoundError(f"{run} has no results with labels to report on")
    drawn = labelled[labelled["cohort"] != EVERY]
    empty = every[every["prediction"] == ""].drop_duplicates("clip_id")
    return (drawn if len(drawn) else labelled), dict(zip(empty["clip_id"], empty["status"], strict=True))


def without_prediction(runs: Sequence[dict[str, str]]) -> list[str]:
    """A sentence on the clips that some method, or all of them, could not predict."""
    every = [f"{clip} ({why})" for empty in runs for clip, why in empty.items()]
    if not every:
        return []
    more = f" and {len(every) - _NAMED_CLIPS} more" if len(every) > _NAMED_CLIPS else ""
    return [f"Omitted from the figures of methods that cannot predict them: {', '.join(every[:_NAMED_CLIPS])}{more}."]


def cautioned(rows: pd.DataFrame) -> list[str]:
    """A sentence for each code of a caution, with the number of clips that carry it; none for earlier runs."""
    if "cautions" not in rows:
        return []
    clips = rows.drop_duplicates(["subject_id", "clip_id"])["cautions"].fillna("")
    counts = Counter(code for codes in clips for code in codes.split(";") if code)
    meanings = {str(code): meaning for code, meaning in CODES.items()}
    return [
        f"{code} in {count} of {len(clips)} clips: {meanings.get(code, 'a code of another version')}."
        for code, count in counts.most_common()
    ]


def faces_found(rows: pd.DataFrame) -> list[str]:
    """A sentence on the share of the frames with a face; none where no detector looked for it."""
    shares = rows.drop_duplicates(["subject_id", "clip_id"])["face_share"].dropna()
    if shares.empty:
        return []
    low = int((shares < FEW_FACES).sum())
    few = f"; in {low} of {len(shares)} clips in fewer than {100 * FEW_FACES:.0f} % of them" if low else ""
    return [f"The face was found in {100 * shares.mean():.1f} % of the frames, mean over clips{few}."]


def _explained(
    run: Path,
    settings: dict[str, Any],
    manifest: Manifest,
    rows: pd.DataFrame,
    own: AdaptConfig,
    backbone: Backbone,
    count: int,
) -> tuple[list[ClipStory], list[AuAgreement]]:
    """Stories and agreement of one run's target subjects."""
    folder = settings["checkpoint"]
    reference = Side(Source(load_checkpoint(find_checkpoint(folder, "none")), backbone), {})
    source = Source(load_checkpoint(find_checkpoint(folder, own.subject_baseline)), backbone, window=own.window)
    targets = manifest.of_split("target")
    run_rows = rows[rows["split"] == "target"]
    before, after = (_one_per_clip(run_rows, name) for name in (CLIP_AU.name, own.name))
    chosen = choose_clips(before, after, positive=manifest.classes[-1], count=count)
    by_id: dict[str, Clip] = {clip.clip_id: clip for clip in targets}
    has_truth = all(truth_path(clip.source).is_file() for clip in targets)
    truth = read_truth if has_truth else None
    needed = targets if has_truth else [by_id[clip_id] for clip_id in chosen]
    paths = {clip.subject_id: run / "prompts" / subject_file(clip.subject_id) for clip in needed}
    known = {subject: load_personalization(path, source) for subject, path in paths.items() if path.is_file()}
    personalized = Side(source, known)
    features = FeatureStore(settings["store"], source.checkpoint.spec.features).load(needed)
    shown = set(chosen)
    rows_before, rows_after = (
        {str(row["clip_id"]): row for _, row in side[side["clip_id"].isin(shown)].iterrows()}
        for side in (before, after)
    )
    stories = [
        tell_story(by_id[c], features[c], personalized, before=rows_before[c], after=rows_after[c], truth=truth)
        for c in chosen
    ]
    agreement = measure_agreement(targets, features, reference, personalized, truth=read_truth) if has_truth else []
    return stories, agreement


def _one_per_clip(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """A method's rows of the cohort with the most clips, one per clip."""
    own = rows[rows["method"] == method]
    largest = own.groupby("cohort")["clip_id"].nunique().idxmax()
    return own[own["cohort"] == largest].drop_duplicates("clip_id")


def _dataset_name(manifest: Manifest, settings: Mapping[str, Any]) -> str:
    return manifest.clips[0].dataset or Path(settings["manifest"]).parent.name


def _facts(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    packages = versions()["packages"]
    return {
        "Data": f"{', '.join(names)} (manifest {', '.join(dict.fromkeys(rows['manifest']))})",
        "Backbone": ", ".join(sorted(set(rows["backbone"]))),
        "Checkpoints": ", ".join(sorted(set(rows["checkpoint"]))),
        "Code": ", ".join(sorted(set(rows["code_version"]))),
        "Packages": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    }


def main(cfg: DictConfig) -> int:
    """Run the job."""
    if cfg.table is not None:
        if cfg.run is not None:
            raise ValueError("run= and table= are two different reports; give one of them")
        return study.main(cfg)
    _refuse_of_tables(cfg)
    chosen = cfg.run or DEFAULT_RUN
    runs = [Path(run) for run in (chosen if isinstance(chosen, ListConfig) else [chosen])]
    out = Path(cfg.out) if cfg.out else runs[0] / "report"
    path = report(runs, out, backbone=instantiate(cfg.backbone), clips=cfg.clips)
    print(first_words(out))
    table(*uar_by_cohort(pd.read_parquet(out / "methods.parquet")))
    print(f"report: {path}")
    return 0


def _refuse_of_tables(cfg: DictConfig) -> None:
    given = [key for key in ("by", "exclude_warnings", "reference") if cfg[key]]
    if given:
        raise ValueError(f"{given[0]}={cfg[given[0]]} belongs to a report of clips: give table=clips.csv as well")


def uar_by_cohort(figures: pd.DataFrame) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows and headers of a small table: mean UAR over target subjects, a row per method and a column per cohort.

    Args:
        figures: `methods.parquet` of a report.
    """
    uar = figures[figures["split"] == "target"].set_index(["method", "cohort"])["uar"].unstack(sort=False)
    rows = [(str(method), *("-" if pd.isna(v) else percent(v) for v in values)) for method, *values in uar.itertuples()]
    return rows, ["method", *(f"UAR, {cohort_title(name)}" for name in uar.columns)]
