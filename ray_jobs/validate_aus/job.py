"""Compare AU similarities with human FACS coding: ROC-AUC, rank correlation and ICC per action unit.

Two similarities are compared: those of the frozen backbone, the cosine of face and phrase, which `clipautt predict`
shows, and those of the trained model, which its classifier reads. Coding is matched to clips by name. Figures are
computed within each subject; the mean over subjects has a bootstrap interval from six subjects on. Writes three tables,
as CSV and Parquet: `aus` (a row per AU and similarity), `subjects` (the same for each subject) and `clips` (what was
matched, and what was not and why). Columns `status` and `reason` say what a figure is worth.

Videos are named as for `clipautt predict`: the first folder is the subject, or `names=` says who it is.

Example:
    clipautt validate-aus coding.csv people out=validation
    clipautt validate-aus ELAN 'videos/*.mp4' 'names="{subject}_{}"' checkpoint=runs/train/hard out=validation
    clipautt validate-aus DISFA/ActionUnit_Labels DISFA/videos out=disfa facs.present_from=2 facs.coder=anna
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from clipautt.action_units import action_unit_columns
from clipautt.adaptation.driver import centre_clips
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import BackboneConfig, facts_of, load_backbone
from clipautt.clips import Clip
from clipautt.datasets.inputs import find_inputs
from clipautt.evaluation.facs_coding.coding import FacsSettings
from clipautt.evaluation.facs_coding.comparison import SIMILARITIES, CodedClip, compare
from clipautt.evaluation.facs_coding.matching import Coding, Matched, match_coding, read_coding
from clipautt.features.store import FeatureStore
from clipautt.files import refuse_uri, write_json, write_table, write_text
from clipautt.footage import is_rendered_clip, other_footage
from clipautt.manifest import by_subject
from clipautt.model.checkpoint import Checkpoint, footage_seen, load_checkpoint
from clipautt.video.face_check import faces_warning
from clipautt.video.faces import few_faces
from ray_jobs.platform.cluster import connect
from ray_jobs.platform.configuration import instantiate, resolved
from ray_jobs.platform.extraction.extract import ExtractSummary, checkpoint_extraction, extract, report_failures
from ray_jobs.platform.extraction.faces_seen import report_faces
from ray_jobs.platform.footage import warn
from ray_jobs.platform.predictors import chosen_checkpoint
from ray_jobs.platform.progress import table
from ray_jobs.platform.runs import code_version

POSITIONAL = "coding videos…"
TABLES = ("aus", "subjects", "clips")
FACTS = "validation.json"
CLIP_COLUMNS = [
    "clip_id",
    "subject_id",
    "coding",
    "num_windows",
    "num_windows_without_face",
    "face_share",
    "status",
    "reason",
    "warnings",
]
"""Of the table with a row per clip, and per coding without a clip."""
_SHOWN = 12
_LOST = 0.05
"""Difference of mean ROC-AUC from which the model is said to agree less than its backbone."""
_WITHOUT_FIGURES = ("no_prompt", "not_coded", "never_present", "always_present", "no_contrast")


@dataclass(frozen=True)
class Task:
    """What is compared."""

    clips: tuple[Clip, ...]
    """All clips of the manifest."""
    coding: Coding
    """All coding that was read."""
    matched: Matched
    """Which belongs to which clip."""
    settings: FacsSettings
    """How coding is read and compared."""
    checkpoint: Checkpoint
    """The model."""
    backbone: BackboneConfig
    """How its backbone is loaded."""
    warnings: tuple[str, ...] = ()
    """What speaks against the figures, a sentence each."""

    @property
    def coded(self) -> list[Clip]:
        """Clips with coding."""
        return [clip for clip in self.clips if clip.clip_id in self.matched.codings]


def main(cfg: DictConfig) -> int:
    """Run the job; the exit code is 1 where no AU can be compared, or a clip was lost."""
    check_place(Path(cfg.out))
    task = make_task(cfg)
    with connect(instantiate(cfg.cluster)):
        store, summary = with_features(task, cfg)
    warnings = [*filter(None, (*task.warnings, _footage_warning(task), faces_warning(summary.face_sides)))]
    source = Source(task.checkpoint, load_backbone(task.backbone))
    compared, clips = windows_of(task, source, store, summary)
    columns = action_unit_columns(task.checkpoint.spec.phrases)
    aus, subjects = compare(
        compared,
        columns,
        not_learned=source.backbone.facts.not_learned(columns),
        learned_known=source.backbone.facts.action_units is not None,
        present_from=task.settings.present_from,
        warnings=warnings,
    )
    out = Path(cfg.out)
    write_results(out, {"aus": aus, "subjects": subjects, "clips": clips}, cfg, task)
    show(aus, clips, task, warnings)
    print(f"tables: {', '.join(str(out / f'{name}.csv') for name in TABLES)}; the same as .parquet")
    return 1 if summary.lost or aus["roc_auc"].isna().all() else 0


def check_place(out: Path) -> None:
    """Refuse to overwrite tables that this job did not write.

    Raises:
        ValueError: for a URI.
        FileExistsError: if `out` is a file, or holds such tables.
    """
    refuse_uri(str(out), "out")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out={out} is a file; give a folder")
    tables = [path for name in TABLES for path in (out / f"{name}.csv", out / f"{name}.parquet") if path.exists()]
    if tables and not (out / FACTS).is_file():
        raise FileExistsError(f"out={out}: {tables[0].name} would be overwritten; give another folder")


def make_task(cfg: DictConfig) -> Task:
    """Read coding, checkpoint and manifest.

    Raises:
        FileNotFoundError: if one of them is missing.
        ValueError: if coding or manifest is damaged, or no coding belongs to a clip.
    """
    settings: FacsSettings = instantiate(cfg.facs)
    coding = read_coding(cfg.coding, settings)
    checkpoint = load_checkpoint(chosen_checkpoint(cfg.checkpoint))
    clips, doubts = _clips(cfg)
    matched = match_coding(coding, clips, settings)
    if not matched.codings:
        raise ValueError(_no_match(coding, clips, matched))
    backbone = instantiate(cfg.backbone) or checkpoint.spec.backbone
    return Task(tuple(clips), coding, matched, settings, checkpoint, backbone, doubts)


def _clips(cfg: DictConfig) -> tuple[list[Clip], tuple[str, ...]]:
    """The clips, and what speaks against them; where nobody says who is in one, it counts as a subject of its own."""
    inputs = find_inputs([str(video) for video in cfg.videos], names=cfg.names)
    unknown = sum(not clip.subject_id for clip in inputs.clips)
    for note in inputs.notes:
        print(note)
    nobody = (
        f"nothing says who is in {unknown} of {len(inputs.clips)} videos, and each counts as a subject of its own. "
        "Where several show one person, intervals are too narrow; names= says who is in them."
    )
    clips = [replace(clip, subject_id=clip.subject_id or clip.clip_id) for clip in inputs.clips]
    return clips, (nobody,) if unknown and len(clips) > 1 else ()


def _no_match(coding: Coding, clips: Sequence[Clip], matched: Matched) -> str:
    if matched.problems:
        return "\n".join(list(matched.problems.values())[:_SHOWN])
    names = ", ".join(dict.fromkeys(piece.name for piece in coding.pieces[:4]))
    there = ", ".join(clip.clip_id for clip in clips[:4])
    return (
        f"coding={coding.path}: nothing in it is named after a clip or its video; it names {names}, and the clips are "
        f"{there}; rename the files, or the entries of the column `clip`"
    )


def with_features(task: Task, cfg: DictConfig) -> tuple[FeatureStore, ExtractSummary]:
    """Extract the missing features of the coded clips on the connected Ray."""
    config = checkpoint_extraction(cfg, task.backbone, task.checkpoint.spec.features.frames, manifest=None)
    store, summary = extract(task.coded, config)
    report_failures(summary)
    report_faces(summary)
    task.checkpoint.check_features(store.spec)
    return store, summary


def _footage_warning(task: Task) -> str | None:
    spec = task.checkpoint.spec
    seen = footage_seen(spec, task.backbone.name, facts_of(task.backbone))
    return other_footage(seen, [is_rendered_clip(clip) for clip in task.coded])


def windows_of(
    task: Task, source: Source, store: FeatureStore, summary: ExtractSummary
) -> tuple[list[CodedClip], pd.DataFrame]:
    """The coded windows of all clips; and a row per clip, and per coding without a clip, with what became of it."""
    compared: dict[str, CodedClip] = {}
    reasons = {failure.clip_id: ("no_features", failure.reason) for failure in summary.failures}
    notes: dict[str, str] = {}
    baseline = task.checkpoint.spec.subject_baseline
    for own in by_subject(task.coded).values():
        loaded = list(store.load(own).values())
        groups = [loaded] if task.settings.protocol == "per_subject" else [[clip] for clip in loaded]
        for group in filter(None, groups):
            centred, centre = centre_clips(group, baseline)
            for clip in centred:
                why = source.why_no_window(clip)
                if why is not None:
                    reasons[clip.clip_id] = "no_window", why
                    continue
                notes[clip.clip_id] = few_faces(clip.face_share, store.spec.frames.faces) or ""
                compared[clip.clip_id] = CodedClip.of(source, clip, centre, task.matched.codings[clip.clip_id])
    rows = [*_clip_rows(task, compared, reasons, notes), *_coding_rows(task)]
    return list(compared.values()), pd.DataFrame(rows, columns=CLIP_COLUMNS)


def _clip_rows(
    task: Task, compared: dict[str, CodedClip], reasons: dict[str, tuple[str, str]], notes: dict[str, str]
) -> Iterator[dict[str, Any]]:
    for clip in task.clips:
        coding, one = task.matched.codings.get(clip.clip_id), compared.get(clip.clip_id)
        status, reason = reasons.get(clip.clip_id, ("ok", ""))
        if coding is None:
            why = task.matched.problems.get(clip.clip_id)
            status, reason = ("coding_refused", why) if why else ("no_coding", "no coding is named after it")
        yield {
            "clip_id": clip.clip_id,
            "subject_id": clip.subject_id,
            "coding": "" if coding is None else "; ".join(dict.fromkeys(str(p.path) for p in coding.pieces)),
            "num_windows": 0 if one is None else len(one.windows),
            "num_windows_without_face": 0 if one is None else one.num_without_face,
            "face_share": math.nan if one is None else one.face_share,
            "status": status,
            "reason": reason,
            "warnings": notes.get(clip.clip_id, ""),
        }


def _coding_rows(task: Task) -> Iterator[dict[str, Any]]:
    empty = {"clip_id": "", "subject_id": "", "num_windows": 0, "num_windows_without_face": 0, "face_share": math.nan}
    for piece in task.matched.unmatched:
        reason = f"{piece.name!r} is the name of no clip or video"
        yield empty | {"coding": str(piece.path), "status": "no_clip", "reason": reason, "warnings": ""}
    for path, reason in task.coding.not_read.items():
        yield empty | {"coding": path, "status": "not_read", "reason": reason, "warnings": ""}


def write_results(out: Path, tables: dict[str, pd.DataFrame], cfg: DictConfig, task: Task) -> None:
    """Write the tables, and the settings and the model that gave them."""
    facts = {"code_version": code_version(), "checkpoint_fingerprint": task.checkpoint.fingerprint}
    write_json(out / FACTS, facts | {"settings": resolved(cfg)})
    for name, rows in tables.items():
        write_text(out / f"{name}.csv", rows.to_csv(index=False))
        write_table(out / f"{name}.parquet", rows)


def show(aus: pd.DataFrame, clips: pd.DataFrame, task: Task, warnings: Sequence[str]) -> None:
    """Print the figures, what has none and why, and what was not matched."""
    for note in task.coding.notes:
        print(f"note: {note}")
    counts = clips["status"].value_counts()
    rest = ", ".join(f"{count} {status}" for status, count in counts.items() if status != "ok")
    print(f"{counts.get('ok', 0)} of {len(task.clips)} clips compared{f' ({rest}, see clips.csv)' if rest else ''}")
    odd = clips[clips["status"].isin(("coding_refused", "no_clip", "not_read"))]
    if len(odd):
        shown = odd.head(_SHOWN)
        table(zip(shown["clip_id"].where(shown["clip_id"] != "", shown["coding"]), shown["reason"], strict=True), ODD)
    figures = aus[~aus["status"].isin(_WITHOUT_FIGURES)]
    if len(figures):
        table([_line(rows) for _, rows in figures.groupby("au", sort=False)], HEADERS)
        for which, rows in figures.groupby("similarity", sort=False):
            print(_summary(str(which), rows))
    none = aus[aus["status"].isin(_WITHOUT_FIGURES) & (aus["similarity"] == "model")]
    for status, rows in none.groupby("status", sort=False):
        print(f"{status}, {rows['reason'].iloc[0]}: {', '.join(rows['au'])}")
    for sentence in (*warnings, _training_warning(aus)):
        warn(sentence)


ODD = ["clip, or coding", "not used, because"]
HEADERS = [
    "action unit",
    "subjects",
    "windows with it",
    "model: ROC-AUC",
    "other AUs",
    "ICC(3,1)",
    "backbone: ROC-AUC",
    "other AUs",
    "ICC(3,1)",
    "status",
]


def _line(rows: pd.DataFrame) -> list[str]:
    """One AU by both similarities."""
    model, backbone = (rows[rows["similarity"] == which].to_dict("records")[0] for which in SIMILARITIES)
    share = f"{100 * model['share_present']:.0f} %"
    figures = [
        text
        for row in (model, backbone)
        for text in (_interval(row, "roc_auc"), _number(row["roc_auc_others"]), _number(row["icc"]))
    ]
    return [f"{model['au']} {model['name']}", str(model["num_subjects"]), share, *figures, model["status"]]


def _summary(which: str, rows: pd.DataFrame) -> str:
    """How many AUs a similarity recognizes."""
    learned = rows[rows["learned"] != "no"]
    counts = learned["verdict"].value_counts()
    judged = int((learned["verdict"] != "").sum())
    sure = (
        f"by their intervals {counts.get('above_chance', 0)} above chance and {counts.get('below_chance', 0)} below it"
    )
    if judged < len(learned):
        sure = f"{sure}, {len(learned) - judged} without interval" if judged else "too few subjects for an interval"
    count = f"{len(learned)} action unit{'s' * (len(learned) != 1)}"
    return f"{which}: mean ROC-AUC {_number(learned['roc_auc'].mean())} over {count}; {sure}"


def _training_warning(aus: pd.DataFrame) -> str | None:
    """A sentence if training took away what the backbone knows of the AUs."""
    sure = aus[aus["status"] == "ok"]
    means = sure.groupby("similarity")["roc_auc"].mean()
    above = sure[sure["verdict"] == "above_chance"]["similarity"].value_counts()
    if sure.empty or means["model"] >= means["backbone"] - _LOST or above.get("model", 0) >= above.get("backbone", 0):
        return None
    return (
        "the trained model's AU similarities (`<AU>_evidence` of `clipautt predict`) agree less with the coding than "
        "those of its frozen backbone (`<AU>_mean`, `<AU>_rise`). Training for classes need not keep what a prompt "
        "means: see the column verdict before taking one for a measurement."
    )


def _interval(row: Mapping[Any, Any], key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return _number(row[key]) + ("" if math.isnan(low) else f" ({_number(low)} to {_number(high)})")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
