"""What adaptation did to one subject: which AU prompts moved, what that changed, and how far another tool agrees.

"Before" is the same model with the source prompts, on the same frame features: with the subject's centre removed where
the checkpoint was trained so, and with the class prior of the prediction. "After" is what was predicted with the
adapted prompts. The difference is thus due to the prompts alone, and is zero for a method that tunes none.

Labels are not used: the tables show what changed, not whether the change was right. The other tool (OpenFace, py-feat,
LibreFace or iMotions) is another model, not ground truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from clipautt.action_units import action_unit_columns
from clipautt.adaptation.predictions import Prediction
from clipautt.adaptation.priors import shift
from clipautt.adaptation.readout import Readout, read_clip
from clipautt.adaptation.source import Source, Views
from clipautt.evaluation.au_tables.reading import AuTrack
from clipautt.features.clip_features import ClipFeatures
from clipautt.files import write_json, write_text
from clipautt.metrics import rank_correlation, roc_auc
from clipautt.model.windows import entropy

_TABLES = ("prompts", "similarities", "windows", "aus")
FACTS_FILE = "explanation.json"
"""Name of the file that is written last into a subject's folder."""
_TEXT = {"clip_id": str, "code": str, "phrase": str, "class_before": str, "class_after": str, "status": str}
_SAME_SECONDS = 1e-3
_MIN_WINDOWS = 3
ENOUGH_CLIPS, ENOUGH_APART = 3, 10
"""From how many clips, and windows that do not overlap, a figure of one AU is worth a mean over AUs."""
Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False, repr=False)
class SubjectExplanation:
    """One subject before and after adaptation, as tables."""

    subject_id: str
    """Id of the subject."""
    classes: tuple[str, ...]
    """Class names in label order; the last is the positive one."""
    prompts: pd.DataFrame
    """A row per AU in the order of the prompts: `code`, `phrase`, `moved` = 1 − cos(before, after), 0..2, mean over
    clips where each clip has its own prompts; `rank`, 1 moved most; `learned`, whether the backbone was taught this AU,
    True too where that is not known."""
    similarities: pd.DataFrame
    """A row per clip and AU: `clip_id`, `code`, `before`, `after`, −5..5, of the window chosen after adaptation."""
    windows: pd.DataFrame
    """A row per clip: `clip_id`; `start_seconds`, `end_seconds` of the window chosen and `start_seconds_before`,
    `end_seconds_before` of CLIP-AU's; `other_window`, whether these differ; of both predictions `entropy_before`,
    `entropy_after` in nats, `probability_before`, `probability_after` of the positive class, `class_before`,
    `class_after`; `status` of the prediction."""
    aus: pd.DataFrame | None = None
    """A row per AU that has a prompt and that another tool estimates: `code`; Spearman's `rho_before`, `rho_after` with
    the intensity; `auc_before`, `auc_after` for the presence; `num_windows`, and `num_present` of them with the AU;
    `num_clips` they are from, and `num_apart`, the most of them that do not overlap. NaN where a figure is not defined.
    None where no clip has a table of another tool."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the tables are based on, as JSON: `prompts_per`, `readout`, `au_files`, and the caller's facts."""

    def __repr__(self) -> str:
        return f"SubjectExplanation({self.subject_id!r}, {len(self.windows)} clips, {len(self.prompts)} AUs)"


def explain_subject(
    source: Source,
    clips: Sequence[ClipFeatures],
    *,
    adapted: Tensor,
    predictions: Sequence[Prediction],
    readout: Readout = "best_window",
    aus: Mapping[str, AuTrack] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> SubjectExplanation:
    """Compare the source prompts with a subject's adapted ones, clip by clip.

    Args:
        source: the frozen model with the windows that the clips were predicted with.
        clips: one subject's clips, their centre removed as it was for prediction.
        adapted: AU embeddings after adaptation, [K, d] for the subject or [clips, K, d] in the order of `clips`.
        predictions: one per clip in any order: what was predicted, and from which window.
        readout: how clips were read out (`adapt.readout`); CLIP-AU chooses its own window by the same rule.
        aus: clip id → another tool's track in seconds of the clip, for the clips that have one; all by one tool.
        facts: further facts to store.

    Raises:
        ValueError: if clips, predictions and embeddings do not belong together, naming what does not fit.
    """
    embeddings = _check(source, clips, adapted, predictions)
    of_clip = {prediction.clip_id: prediction for prediction in predictions}
    codes = action_unit_columns(source.checkpoint.spec.phrases)
    seen = [
        _compare(source, clip, embeddings[number], of_clip[clip.clip_id], readout) for number, clip in enumerate(clips)
    ]
    tracks = {clip.clip_id: aus[clip.clip_id] for clip in clips if aus and clip.clip_id in aus}
    return SubjectExplanation(
        subject_id=clips[0].subject_id,
        classes=source.classes,
        prompts=_prompt_table(source, embeddings, codes),
        similarities=pd.concat([_similarity_table(one, codes) for one in seen], ignore_index=True),
        windows=pd.DataFrame([one.row for one in seen]),
        aus=au_agreement(_track_windows(seen, tracks), codes) if tracks else None,
        facts={
            "prompts_per": "clip" if adapted.dim() == 3 else "subject",
            "readout": readout,
            "window": asdict(source.window),
            "au_files": {clip_id: _file_facts(track) for clip_id, track in tracks.items()},
            **(facts or {}),
        },
    )


def _check(source: Source, clips: Sequence[ClipFeatures], adapted: Tensor, predictions: Sequence[Prediction]) -> Tensor:
    """Validate the arguments; returns the adapted embeddings of every clip, [clips, K, d]."""
    if not clips:
        raise ValueError("clips is empty; at least one clip is needed")
    subjects = sorted({clip.subject_id for clip in clips})
    if len(subjects) > 1:
        raise ValueError(f"clips belong to the subjects {', '.join(subjects)}; allowed is one subject at a time")
    ids, predicted = [clip.clip_id for clip in clips], [prediction.clip_id for prediction in predictions]
    if sorted(ids) != sorted(predicted):
        odd = sorted(set(ids) ^ set(predicted)) or ids
        raise ValueError(
            f"subject {subjects[0]!r}: clips and predictions differ in {', '.join(odd[:5])}; "
            "each clip needs one prediction"
        )
    wanted = tuple(source.au_embeddings.shape)
    if tuple(adapted.shape) not in (wanted, (len(clips), *wanted)):
        raise ValueError(
            f"adapted is {tuple(adapted.shape)}; allowed: [K, d] = {wanted} and [clips, K, d] = {(len(clips), *wanted)}"
        )
    return adapted.detach().to(source.au_embeddings).expand(len(clips), *wanted)


@dataclass(frozen=True, eq=False)
class _Compared:
    """One clip under the source prompts and the adapted prompts."""

    clip_id: str
    """Id of the clip."""
    views: Views
    """Its windows."""
    before: Array
    """AU similarities of every window under the source prompts, [V, K]."""
    after: Array
    """The same under the adapted prompts, [V, K]."""
    chosen: int
    """Index of the window that the prediction is based on."""
    row: dict[str, Any]
    """Its row in the table of windows."""


def _compare(
    source: Source, clip: ClipFeatures, adapted: Tensor, prediction: Prediction, readout: Readout
) -> _Compared:
    views = source.whole_clip(clip) if readout == "whole_clip" else source.views(clip)
    with torch.no_grad():
        before = source.model.similarities(views.embeddings, source.au_embeddings)
        after = source.model.similarities(views.embeddings, adapted)
        logits = source.logits(views.embeddings)
    chosen = _window_of(prediction, views)
    used, usual = read_clip(logits, readout)
    if prediction.prior is not None:  # before and after alike, so that adaptation alone differs
        used = shift(used, prediction.prior.to(used), source.class_shares)
    probabilities = F.softmax(used, dim=-1)
    row = {
        "clip_id": clip.clip_id,
        "start_seconds": float(views.start_seconds[chosen]),
        "end_seconds": float(views.end_seconds[chosen]),
        "start_seconds_before": float(views.start_seconds[usual]),
        "end_seconds_before": float(views.end_seconds[usual]),
        "other_window": chosen != usual,
        "entropy_before": float(entropy(used)),
        "entropy_after": prediction.entropy,
        "probability_before": float(probabilities[-1]),
        "probability_after": float(prediction.probabilities[-1]),
        "class_before": source.classes[int(probabilities.argmax())],
        "class_after": source.classes[prediction.label_index],
        "status": prediction.status,
    }
    return _Compared(clip.clip_id, views, before.float().cpu().numpy(), after.float().cpu().numpy(), chosen, row)


def _window_of(prediction: Prediction, views: Views) -> int:
    """Index of the window that a prediction names by its seconds."""
    start, end = prediction.window_start_seconds, prediction.window_end_seconds
    apart = np.maximum(np.abs(views.start_seconds - start), np.abs(views.end_seconds - end))
    if not apart.min() <= _SAME_SECONDS:
        raise ValueError(
            f"clip {prediction.clip_id!r} was predicted from {start:g} to {end:g} seconds, which is none of its "
            f"{len(apart)} windows; give the source the windows and the readout used for the prediction"
        )
    return int(apart.argmin())


def _prompt_table(source: Source, after: Tensor, codes: Sequence[str]) -> pd.DataFrame:
    """How far each prompt moved. 1 − cos(a, b) is half the squared distance of unit vectors, 0 if equal."""
    apart = F.normalize(after.double(), dim=-1) - F.normalize(source.au_embeddings.double(), dim=-1)
    moved = (apart.square().sum(-1) / 2).mean(0).cpu().numpy()
    rank = np.empty(len(moved), int)
    rank[np.argsort(-moved, kind="stable")] = np.arange(1, len(moved) + 1)
    unknown = source.backbone.facts.not_learned(codes)
    learned = [code not in unknown for code in codes]
    phrases = list(source.checkpoint.spec.phrases)
    return pd.DataFrame({"code": list(codes), "phrase": phrases, "moved": moved, "rank": rank, "learned": learned})


def _similarity_table(one: _Compared, codes: Sequence[str]) -> pd.DataFrame:
    before, after = one.before[one.chosen].astype(float), one.after[one.chosen].astype(float)
    return pd.DataFrame({"clip_id": one.clip_id, "code": list(codes), "before": before, "after": after})


@dataclass(frozen=True, eq=False)
class TrackWindows:
    """Windows of one or more clips with their AU similarities and another tool's estimates."""

    before: Array
    """AU similarities under the source prompts, [N, K]."""
    after: Array
    """Under the adapted prompts, [N, K]."""
    intensities: pd.DataFrame
    """The tool's mean intensity, N rows and a column per AU code; NaN where it saw no face."""
    presences: pd.DataFrame
    """Share of frames in which the tool saw the AU, 0..1; rows and columns likewise."""
    spans: pd.DataFrame
    """`clip_id`, `start_seconds` and `end_seconds` of every window, N rows."""


def _track_windows(seen: Sequence[_Compared], tracks: Mapping[str, AuTrack]) -> TrackWindows:
    tracked = [one for one in seen if one.clip_id in tracks]
    means = [tracks[one.clip_id].in_windows(one.views.start_seconds, one.views.end_seconds) for one in tracked]
    return TrackWindows(
        before=np.concatenate([one.before for one in tracked]),
        after=np.concatenate([one.after for one in tracked]),
        intensities=pd.concat([intensities for intensities, _ in means], ignore_index=True),
        presences=pd.concat([presences for _, presences in means], ignore_index=True),
        spans=pd.concat(
            [
                pd.DataFrame(
                    {
                        "clip_id": one.clip_id,
                        "start_seconds": one.views.start_seconds,
                        "end_seconds": one.views.end_seconds,
                    }
                )
                for one in tracked
            ],
            ignore_index=True,
        ),
    )


def count_apart(spans: pd.DataFrame) -> int:
    """The most of these windows that do not overlap, over all clips."""
    count = 0
    for _, clip in spans.groupby("clip_id", sort=False):
        last = -np.inf
        for start, end in clip.sort_values("end_seconds")[["start_seconds", "end_seconds"]].to_numpy(float):
            if start >= last - _SAME_SECONDS:
                count, last = count + 1, end
    return count


def enough(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `SubjectExplanation.aus` that are worth a mean: from several clips, and enough windows apart."""
    return table[(table["num_clips"] >= ENOUGH_CLIPS) & (table["num_apart"] >= ENOUGH_APART)]


def au_agreement(windows: TrackWindows, codes: Sequence[str]) -> pd.DataFrame:
    """How well the AU similarities of windows follow another tool, before and after adaptation.

    Spearman's rank correlation with the mean intensity of a window, and the area under the ROC curve for an AU that is
    present in at least half of its frames. Windows overlap and are not independent samples, so the figures
    only describe.

    Args:
        windows: of all clips of one subject, so that differences between people do not enter.
        codes: the K codes of the similarities; those that the tool does not estimate have no row.

    Returns:
        A row per AU, see `SubjectExplanation.aus`.
    """
    rows = []
    for column, code in enumerate(codes):
        if code not in windows.intensities and code not in windows.presences:
            continue
        nothing = pd.Series(np.nan, windows.presences.index)
        intensity = windows.intensities.get(code, nothing).to_numpy(float)
        presence = windows.presences.get(code, nothing).to_numpy(float)
        before, after = windows.before[:, column], windows.after[:, column]
        rated, decided = ~np.isnan(intensity), ~np.isnan(presence)
        present = presence[decided] >= 0.5
        rows.append(
            {
                "code": code,
                "rho_before": rank_correlation(before[rated], intensity[rated], fewest=_MIN_WINDOWS),
                "rho_after": rank_correlation(after[rated], intensity[rated], fewest=_MIN_WINDOWS),
                "auc_before": roc_auc(before[decided], present),
                "auc_after": roc_auc(after[decided], present),
                "num_windows": int((rated | decided).sum()),
                "num_present": int(present.sum()),
                "num_clips": int(windows.spans.loc[rated | decided, "clip_id"].nunique()),
                "num_apart": count_apart(windows.spans[rated | decided]),
            }
        )
    columns = ["code", "rho_before", "rho_after", "auc_before", "auc_after", "num_windows", "num_present"]
    columns += ["num_clips", "num_apart"]
    return pd.DataFrame(rows, columns=columns)


def _file_facts(track: AuTrack) -> dict[str, Any]:
    return {
        "file": track.path.name,
        "tool": track.tool,
        "face": track.face,
        "rows": track.num_rows,
        "rows_dropped": track.num_dropped,
        "rows_of_other_faces": track.num_other_faces,
        "notes": list(track.notes),
    }


def write_explanation(explanation: SubjectExplanation, folder: Path, *, name: str) -> Path:
    """Write one subject's tables as CSV, and `explanation.json` last; a folder with it is complete.

    Args:
        explanation: what to write.
        folder: folder of the run; the subject's folder is made in it.
        name: name of the subject's folder, safe as a file name.

    Returns:
        The subject's folder.

    Raises:
        ValueError: for a name that leads out of the folder.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"name={name!r}; allowed is the name of a single folder")
    subject_folder = folder / name
    subject_folder.mkdir(parents=True, exist_ok=True)
    (subject_folder / FACTS_FILE).unlink(missing_ok=True)
    for part in _TABLES:
        table: pd.DataFrame | None = getattr(explanation, part)
        if table is None:
            (subject_folder / f"{part}.csv").unlink(missing_ok=True)
        else:
            write_text(subject_folder / f"{part}.csv", table.to_csv(index=False))
    facts = {
        "subject_id": explanation.subject_id,
        "classes": list(explanation.classes),
        "clip_ids": explanation.windows["clip_id"].tolist(),
    }
    facts |= explanation.facts | facts  # our keys come first, and the caller's do not replace them
    write_json(subject_folder / FACTS_FILE, facts)
    return subject_folder


def read_explanation(folder: Path) -> SubjectExplanation:
    """Read what `write_explanation` wrote.

    Args:
        folder: the subject's folder.

    Raises:
        FileNotFoundError: if the folder holds no complete explanation.
    """
    if not (folder / FACTS_FILE).is_file():
        raise FileNotFoundError(
            f"no explanation in {folder} ({FACTS_FILE} is missing); `clipautt adapt explain=true` makes one"
        )
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    del facts["clip_ids"]
    prompts, similarities, windows, aus = (
        _read_table(folder / f"{part}.csv") if (folder / f"{part}.csv").is_file() else None for part in _TABLES
    )
    assert prompts is not None and similarities is not None and windows is not None
    if "learned" not in prompts:  # written by an earlier version
        prompts["learned"] = True
    subject_id, classes = facts.pop("subject_id"), tuple(facts.pop("classes"))
    return SubjectExplanation(subject_id, classes, prompts, similarities, windows, aus, facts)


def _read_table(path: Path) -> pd.DataFrame:
    """Read a CSV: a blank is NaN in a column of numbers; text stays text, even if it looks like a number or `NA`."""
    names = pd.read_csv(path, nrows=0).columns
    text = {name: kind for name, kind in _TEXT.items() if name in names}
    blank = {name: [""] for name in names if name not in text}
    return pd.read_csv(path, dtype=text, na_values=blank, keep_default_na=False)


def read_explanations(folder: Path) -> dict[str, SubjectExplanation]:
    """Name of a subject's folder → explanation, for all complete explanations of a run, in alphabetical order."""
    folders = sorted(path.parent for path in folder.glob(f"*/{FACTS_FILE}"))
    return {path.name: read_explanation(path) for path in folders}
