"""Predict one video: label, probabilities, the most expressive window and the action units in it.

With `subject=` the adapted prompts of that subject are used, as `clipautt adapt` wrote them. With `overlay=` the video
is written with the answer drawn around it: the face's box, the window, the action units and the class probabilities
over time, and every warning; browsers play it, without sound. `figure=` draws the same as a picture.

Example:
    clipautt predict face.mp4
    clipautt predict face.mp4 overlay=overlay.mp4 figure=figure.pdf
    clipautt predict face.mp4 subject=target-003 prompts=runs/adapt/hard/prompts checkpoint=runs/train/hard
"""

from __future__ import annotations

import math
from pathlib import Path

from omegaconf import DictConfig

from clipautt.action_units import title_of
from clipautt.clips import Clip
from clipautt.prediction.answers import VideoPrediction
from clipautt.video.faces import hints
from clipautt.video.reader import NoFaceError
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.predictors import chosen_checkpoint, chosen_personalizations, load_predictor
from ray_jobs.platform.progress import table
from ray_jobs.predict.pictures import Pictures

POSITIONAL = "video"


def show(prediction: VideoPrediction) -> None:
    """Print a prediction for a person to read."""
    shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in prediction.probabilities.items())
    answer = f"no label: {prediction.reason}" if prediction.label is None else f"{prediction.label} ({shares})"
    print(f"{prediction.video}: {answer}")
    for sentence in prediction.warnings:
        print(f"warning: {sentence}")
    if prediction.label is None:
        _show_faces(prediction)
        return
    print(f"most expressive window: {prediction.window_start_seconds:.2f} to {prediction.window_end_seconds:.2f} s")
    _show_faces(prediction)
    if prediction.personalized_for:
        print(f"personalized for: {prediction.personalized_for}")
    units = prediction.top_action_units
    if len(units):
        rows = [(title_of(str(code)), f"{rise:+.2f}") for code, rise in units["rise"].items()]
        table(rows, ["action unit", "rise in the window (similarity, -5 to 5)"])
    if prediction.not_learned:
        count, total = len(prediction.not_learned), prediction.action_units.shape[1]
        print(f"left out: {count} of {total} action units, which the backbone never learned")


def _show_faces(prediction: VideoPrediction) -> None:
    """Print how much of the video shows the face."""
    if not math.isnan(prediction.face_share):
        print(f"face found in {100 * prediction.face_share:.0f} % of the frames")


def main(cfg: DictConfig) -> int:
    """Run the job; the exit code is 1 where the video has no label."""
    if not Path(cfg.video).exists():
        raise FileNotFoundError(f"video={cfg.video}: no such file or folder")
    overlay, figure = (None if given is None else str(given) for given in (cfg.overlay, cfg.figure))
    pictures, limits = Pictures(overlay, figure), instantiate(cfg.limits)
    pictures.check([Clip(Path(cfg.video).stem, "unknown", str(cfg.video), "target")])
    predictor = load_predictor(
        chosen_checkpoint(cfg.checkpoint),
        chosen_personalizations(cfg.prompts),
        backbone=instantiate(cfg.backbone),
        limits=limits,
    )
    subject, face = (None if given is None else str(given) for given in (cfg.subject, cfg.face))
    settings = predictor.source.checkpoint.spec.features.frames.faces
    try:
        prediction = predictor.predict(cfg.video, subject=subject, face=face)
    except NoFaceError as error:
        raise NoFaceError(f"{error}; {hints(settings)}, when extracting and training") from error
    show(prediction)
    for path in pictures.write(prediction, limits=limits):
        print(f"  {path}")
    return 1 if prediction.label is None else 0
