"""Predict videos: label, probabilities, the most expressive window and the action units in it.

One video is answered at once, in this process. Several, a folder, a pattern or a table of clips go through Ray Data and
the feature store: each video is decoded and encoded once, and the same command started again does only what is missing.
`out=` writes a table, CSV or Parquet: a row per window of one video, or per clip of several; `windows=true` and
`frames=true` give a row per window or per frame of each. clipautt/prediction/README.md describes the columns.

`overlay=` writes the video with the answer drawn around it: the face's box, the window, the action units and the class
probabilities over time, and every warning; browsers play it, without sound. `figure=` draws the same as a picture.

In a folder, the first folder is the subject and a second one the condition, as in study/anna/stress/07.mp4; `names=`
reads them from file names instead. With `subject=` the adapted prompts of that subject are used, with
`personalized=true` those of each clip's own subject, as `clipautt adapt` and `clipautt personalize` wrote them.

Example:
    clipautt predict face.mp4
    clipautt predict face.mp4 out=face.csv frames=true
    clipautt predict face.mp4 overlay=overlay.mp4 figure=figure.pdf
    clipautt predict study out=clips.csv checkpoint=runs/train/hard
    clipautt predict 'videos/*.mp4' out=windows.parquet windows=true 'names="{subject}_{condition}"'
    clipautt predict face.mp4 subject=target-003 prompts=runs/adapt/hard/prompts checkpoint=runs/train/hard
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from omegaconf import DictConfig

from clipautt.action_units import title_of
from clipautt.adaptation.personalization import Personalization
from clipautt.commands import setting, word
from clipautt.datasets.inputs import Inputs, find_inputs
from clipautt.footage import rendered_only
from clipautt.prediction.answers import VideoPrediction
from clipautt.prediction.shown import why_no_units
from clipautt.prediction.tables import check_place, write_rows
from clipautt.predictor import Predictor
from clipautt.video.faces import hints
from clipautt.video.reader import NoFaceError
from ray_jobs.platform.cluster import connect
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.extraction.extract import checkpoint_extraction, extract, report_failures
from ray_jobs.platform.extraction.faces_seen import report_faces
from ray_jobs.platform.predictors import chosen_checkpoint, chosen_personalizations, load_predictor
from ray_jobs.platform.progress import table
from ray_jobs.predict.many import Rows, Table, Tally
from ray_jobs.predict.pictures import Pictures

POSITIONAL = "videos…"
_SHOWN = 20
_CHOSEN = ("names", "checkpoint", "face", "subject", "prompts", "store")
"""Settings without which a printed command would give other answers, or extract again."""


def main(cfg: DictConfig) -> int:
    """Run the job; the exit code is 1 where no video has a label, or clips were lost."""
    rows = _rows(cfg)
    inputs = find_inputs([str(video) for video in cfg.videos], names=cfg.names)
    for note in inputs.notes:
        print(note)
    if cfg.face is not None:
        inputs = replace(inputs, clips=tuple(replace(clip, face=str(cfg.face)) for clip in inputs.clips))
    overlay, figure = (None if given is None else str(given) for given in (cfg.overlay, cfg.figure))
    pictures = Pictures(overlay, figure, several=not inputs.one)
    pictures.check(inputs.clips)
    predictor = load_predictor(
        chosen_checkpoint(cfg.checkpoint),
        chosen_personalizations(cfg.prompts, None if cfg.subject is None else str(cfg.subject)),
        backbone=instantiate(cfg.backbone),
        limits=instantiate(cfg.limits),
    )
    made = Table(predictor, inputs, rows or ("windows" if inputs.one else "clips"))
    return _one(cfg, made, pictures) if inputs.one else _many(cfg, made, pictures)


def _rows(cfg: DictConfig) -> Rows | None:
    """What a row of the table is; None for the default."""
    if cfg.out:
        check_place(str(cfg.out))
    windows = _flag(cfg.windows)
    if cfg.frames and windows:
        raise ValueError("frames=true and windows=true: a table has a row per frame or per window; give one of them")
    if cfg.subject is not None and cfg.personalized:
        raise ValueError(
            f"{setting('subject', str(cfg.subject))} and personalized=true: give the subject of all clips, or let "
            "personalized=true use each clip's own"
        )
    if not cfg.out and (cfg.frames or windows):
        raise ValueError("frames=true and windows=true are for a table; name its file, for instance with out=table.csv")
    if cfg.frames:
        return "frames"
    return None if windows is None else "windows" if windows else "clips"


def _flag(given: object) -> bool | None:
    """`windows`, which is text where it is given, as any setting is that is null by default."""
    text = None if given is None else str(given).lower()
    if text not in (None, "true", "false"):
        raise ValueError(f"{setting('windows', str(given))}; allowed: true, false or null")
    return None if text is None else text == "true"


def _one(cfg: DictConfig, made: Table, pictures: Pictures) -> int:
    (clip,) = made.inputs.clips
    subject = _subject_of(cfg, clip.subject_id)
    settings = made.predictor.source.checkpoint.spec.features.frames.faces
    try:
        prediction = made.predictor.predict(clip.source, subject=subject, face=clip.face)
    except NoFaceError as error:
        raise NoFaceError(f"{error}; {hints(settings)}, when extracting and training") from error
    named = replace(prediction.clip, clip_id=clip.clip_id, subject_id=clip.subject_id or prediction.clip.subject_id)
    prediction = replace(prediction, clip=named)
    _warn_of_rendered(made.predictor, prediction.cautions)
    show(prediction)
    if cfg.out:
        _show_count(write_rows(cfg.out, made.columns, [made.of_answer(prediction)]), made.rows, str(cfg.out))
    for path in pictures.write(prediction, clip, made.predictor.limits):
        print(f"picture: {path}")
    return 1 if prediction.label is None else 0


def _subject_of(cfg: DictConfig, own: str) -> str | None:
    if cfg.personalized and not own:
        raise ValueError("personalized=true, and nothing says who is in the video; give subject=NAME")
    return own if cfg.personalized else None if cfg.subject is None else str(cfg.subject)


def _many(cfg: DictConfig, made: Table, pictures: Pictures) -> int:
    spec, clips = made.predictor.source.checkpoint.spec, made.inputs.clips
    known = _personalizations(cfg, made.predictor, made.inputs)
    backbone = instantiate(cfg.backbone) or spec.backbone
    config = checkpoint_extraction(cfg, backbone, spec.features.frames, manifest=None)
    with connect(config.cluster):
        store, summary = extract(clips, config)
    report_failures(summary)
    report_faces(summary)
    made.on_answer = partial(pictures.write, limits=config.limits)
    parts = made.of_features(store, summary, known)
    rows: list[dict[str, Any]] = []
    if cfg.out:
        count = write_rows(cfg.out, made.columns, parts)
    else:
        rows = [{str(name): value for name, value in row.items()} for part in parts for row in part.to_dict("records")]
    _warn_of_rendered(made.predictor, made.tally.cautions)
    _show_warnings(made.tally)
    if rows:
        _show_rows(rows[:_SHOWN], len(clips))
    _show_tally(made.tally)
    for folder in filter(None, (cfg.overlay, cfg.figure)):
        print(f"pictures: {folder}")
    if cfg.out:
        _show_count(count, made.rows, str(cfg.out))
        if made.rows == "clips" and any(clip.subject_id for clip in clips):
            print(f"means per subject and condition: clipautt report {setting('table', str(cfg.out))}")
    else:
        words = [word(str(video)) for video in cfg.videos]
        chosen = [setting(name, str(cfg[name])) for name in _CHOSEN if cfg[name] is not None]
        chosen += ["personalized=true"] if cfg.personalized else []
        print(f"all of it as a table: clipautt predict {' '.join([*words, 'out=clips.csv', *chosen])}")
    return 1 if summary.lost or not made.tally.labels else 0


def _personalizations(cfg: DictConfig, predictor: Predictor, inputs: Inputs) -> dict[str, Personalization]:
    """Clip id → what it is predicted with."""
    if cfg.subject is not None:
        one = predictor.find_personalization(str(cfg.subject))
        return {clip.clip_id: one for clip in inputs.clips}
    if not cfg.personalized:
        return {}
    known: dict[str, Personalization] = {}
    lacking = []
    for subject in sorted({clip.subject_id for clip in inputs.clips}):
        try:
            known[subject] = predictor.find_personalization(subject)
        except FileNotFoundError:
            lacking.append(subject or "(nobody named)")
    if not known:
        raise FileNotFoundError(
            f"personalized=true, and {predictor.personalizations} has adapted prompts of none of the subjects: "
            f"{', '.join(lacking[:_SHOWN])}{'…' * (len(lacking) > _SHOWN)}"
        )
    if lacking:
        print(f"without adapted prompts, and predicted without: {', '.join(lacking[:_SHOWN])}")
    return {clip.clip_id: known[clip.subject_id] for clip in inputs.clips if clip.subject_id in known}


def _show_rows(rows: list[dict[str, Any]], total: int) -> None:
    shown = []
    for row in rows:
        probability = row.get(f"probability_{row['prediction']}", math.nan)
        answer = f"{row['prediction']} {100 * probability:.1f} %" if row["prediction"] else f"none: {row['reason']}"
        share = "" if math.isnan(row["face_share"]) else f"{100 * row['face_share']:.0f} %"
        shown.append((str(row["clip"]), answer, share, str(row["warnings"])))
    table(shown, ["clip", "prediction", "frames with a face", "warnings"])
    if total > len(rows):
        print(f"… and {total - len(rows)} more")


def _show_tally(tally: Tally) -> None:
    labels = ", ".join(f"{name} {count}" for name, count in tally.labels.most_common())
    print(f"{tally.statuses['ok']} of {tally.statuses.total()} clips have a prediction: {labels or 'none'}")
    for status, count in tally.statuses.items():
        if status != "ok":
            print(f"{status}: {count}")
    if tally.personalized:
        print(f"personalized: {tally.personalized}")


def _warn_of_rendered(predictor: Predictor, cautions: Collection[str]) -> None:
    """Print that the model has seen rendered faces only, unless a warning of a clip says so."""
    sentence = rendered_only(predictor.source.footage)
    if sentence and "unseen_footage" not in cautions:
        print(f"warning rendered_only: {sentence}")


def _show_warnings(tally: Tally) -> None:
    """Print what speaks against the answers, before them."""
    for code, count in tally.cautions.most_common():
        clips = "1 clip" if count == 1 else f"{count} clips, the first"
        print(f"warning {code} for {clips}: {tally.sentences[code]}")


def _show_count(rows: int, kind: Rows, path: str) -> None:
    print(f"{path}: 1 row, for 1 {kind[:-1]}" if rows == 1 else f"{path}: {rows} rows, one per {kind[:-1]}")


def show(prediction: VideoPrediction) -> None:
    """Print a prediction for a person to read: what speaks against it, then the label."""
    shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in prediction.probabilities.items())
    answer = f"no label: {prediction.reason}" if prediction.label is None else f"{prediction.label} ({shares})"
    for code, sentence in prediction.cautions.items():
        print(f"warning {code}: {sentence}")
    print(f"{prediction.video}: {answer}")
    if prediction.label is None:
        _show_faces(prediction)
        return
    print(f"most expressive window: {prediction.window_start_seconds:.2f} to {prediction.window_end_seconds:.2f} s")
    _show_faces(prediction)
    if prediction.personalized_for:
        print(f"personalized for: {prediction.personalized_for}")
    units = prediction.top_action_units
    if len(units):
        rows = [(title_of(str(code)), f"{rise:+.3f}") for code, rise in units["rise"].items()]
        table(rows, ["action unit", "rise in the window (cosine of face and phrase)"])
    else:
        print(why_no_units(prediction))
    if prediction.not_learned:
        count, total = len(prediction.not_learned), prediction.action_units.shape[1]
        print(f"left out: {count} of {total} action units, which the backbone never learned")


def _show_faces(prediction: VideoPrediction) -> None:
    """Print how much of the video shows the face."""
    if not math.isnan(prediction.face_share):
        print(f"face found in {100 * prediction.face_share:.0f} % of the frames")
