"""Predict one video: label, probabilities, the most expressive window and the action units in it.

With `subject=` the adapted prompts of that subject are used, as `clipautt adapt` wrote them.

Example:
    clipautt predict face.mp4
    clipautt predict face.mp4 subject=target-003 prompts=runs/adapt/hard/prompts checkpoint=runs/train/hard
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from clipautt.predictor import Predictor, VideoPrediction
from ray_jobs import cli
from ray_jobs.configuration import instantiate
from ray_jobs.progress import table
from ray_jobs.train import find_checkpoint

POSITIONAL = "video"


def newest(pattern: str, *, unless: Sequence[str] = (), root: str = "runs") -> Path | None:
    """The most recently written path below `root` that matches and holds none of the other texts, or None."""
    paths = [path for path in Path(root).glob(pattern) if not any(text in path.as_posix() for text in unless)]
    found = sorted(paths, key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def resolve_checkpoint(given: str | None) -> Path:
    """A checkpoint folder from the user's word, or the newest one below `runs`.

    Raises:
        FileNotFoundError: if there is none.
    """
    if given:
        for baseline in ("median", "none", "mean"):
            try:
                return find_checkpoint(given, baseline)
            except FileNotFoundError:
                continue
        return find_checkpoint(given, "median")
    # Of a training the one with the default baseline; a sweep's many models are not meant.
    found = newest("**/checkpoint.json", unless=("checkpoints/none/", "checkpoints/mean/", "/models/"))
    found = found or newest("**/checkpoints/*/checkpoint.json")
    if found is None:
        raise FileNotFoundError(
            "no checkpoint below runs; `clipautt demo` or `clipautt train` makes one, or give checkpoint=FOLDER"
        )
    return found.parent


def load_predictor(cfg: DictConfig) -> Predictor:
    """The predictor that a configuration with backbone, checkpoint and prompts describes."""
    folder = resolve_checkpoint(cfg.checkpoint)
    prompts = Path(cfg.prompts) if cfg.prompts else newest("**/prompts")
    return Predictor.load(
        folder, backbone=instantiate(cfg.backbone), personalizations=prompts, limits=instantiate(cfg.limits)
    )


def show(prediction: VideoPrediction) -> None:
    """Print a prediction for a person to read."""
    shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in prediction.probabilities.items())
    print(f"{prediction.video}: {prediction.label} ({shares})")
    print(f"most expressive window: {prediction.window_start_seconds:.2f} to {prediction.window_end_seconds:.2f} s")
    if prediction.personalized_for:
        print(f"personalized for: {prediction.personalized_for}")
    table(
        [(code, f"{rise:+.2f}") for code, rise in prediction.top_action_units.items()],
        ["action unit", "rise in the window"],
    )


def main(cfg: DictConfig) -> int:
    """Run the job."""
    if not Path(cfg.video).exists():
        raise FileNotFoundError(f"video={cfg.video}: no such file or folder")
    show(load_predictor(cfg).predict(cfg.video, subject=None if cfg.subject is None else str(cfg.subject)))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.main(["predict", *sys.argv[1:]]))
