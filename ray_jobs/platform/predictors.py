"""The predictor that a job's settings describe.

TODO
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from clipautt.files import hidden
from clipautt.model.checkpoint import find_checkpoint
from clipautt.predictor import Predictor
from ray_jobs.platform.configuration import instantiate


def newest(pattern: str, *, unless: Sequence[str] = (), root: str = "runs") -> Path | None:
    """The most recently written path below `root` that matches and holds none of the other texts, or None."""
    paths = (path for path in Path(root).glob(pattern) if not hidden(path, below=Path(root)))
    meant = [path for path in paths if not any(text in path.as_posix() for text in unless)]
    return max(meant, key=lambda path: path.stat().st_mtime, default=None)


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
