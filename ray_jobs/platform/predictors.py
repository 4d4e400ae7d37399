"""The predictor that a job's settings describe; where they name no checkpoint or prompts, the newest are used.

In: the settings `checkpoint` and `prompts`. Out: the folders, and a `Predictor`.
"""

from __future__ import annotations

from pathlib import Path

from clipautt.adaptation.personalization import checkpoint_of_personalization
from clipautt.backbones.loading import BackboneConfig
from clipautt.files import newest
from clipautt.model.checkpoint import find_checkpoint, newest_checkpoint
from clipautt.predictor import Predictor
from clipautt.subjects import subject_file
from clipautt.tables import nfc
from clipautt.video.reader_process import ReadLimits

_RUNS = "runs"


def chosen_checkpoint(named: str | Path | None, runs: str | Path = _RUNS) -> Path:
    """The checkpoint folder that the user names, or the newest one below the folder of runs.

    Raises:
        FileNotFoundError: if there is no checkpoint.
    """
    folder = find_checkpoint(named) if named else newest_checkpoint(runs)
    if folder is None:
        raise FileNotFoundError(
            f"no checkpoint below {runs}; `clipautt demo` or `clipautt train` makes one, or give checkpoint=FOLDER"
        )
    return folder


def chosen_personalizations(named: str | Path | None, subject: str | None = None) -> Path | None:
    """The folder of adapted prompts that the user names, or the newest one below `runs`; None where there is none.

    Args:
        named: the folder; None looks for one.
        subject: whose prompts are needed: the folder of the newest ones, if any are there.
    """
    if named:
        return Path(named)
    file = subject and newest(_RUNS, f"**/prompts/{subject_file(nfc(subject))}")
    return file.parent if file else newest(_RUNS, "**/prompts")


def newest_personalizations(fingerprint: str, runs: str | Path) -> Path | None:
    """The newest folder of adapted prompts below `runs` that belong to a checkpoint; None where there is none.

    Args:
        fingerprint: of the checkpoint.
        runs: folder of all runs.
    """
    folders = {path.parent for path in Path(runs).glob("**/prompts/*.safetensors")}
    own = [folder for folder in folders if belong_to(folder, fingerprint)]
    return max(own, key=lambda folder: folder.stat().st_mtime, default=None)


def belong_to(personalizations: Path, fingerprint: str) -> bool:
    """Whether the newest of the adapted prompts in a folder belong to the checkpoint of this fingerprint."""
    file = newest(personalizations, "*.safetensors")
    try:
        return file is not None and checkpoint_of_personalization(file) == fingerprint
    except ValueError:  # damaged, or of an earlier version
        return False


def check_personalizations(folder: Path) -> None:
    """Refuse a folder of adapted prompts that is missing.

    Raises:
        FileNotFoundError: saying what makes one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"prompts={folder}: no such folder; `clipautt adapt` or `clipautt personalize` makes one"
        )


def load_predictor(
    checkpoint: Path,
    personalizations: Path | None,
    *,
    backbone: BackboneConfig | None,
    limits: ReadLimits,
    device: str = "cpu",
) -> Predictor:
    """The predictor of a checkpoint.

    Args:
        checkpoint: folder of the checkpoint.
        personalizations: folder of adapted prompts; None predicts with the source prompts only.
        backbone: how to load the checkpoint's backbone; None: as in training.
        limits: limits for reading a video.
        device: device of the backbone.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if backbone and checkpoint do not belong together.
    """
    if personalizations is not None:
        check_personalizations(personalizations)
    return Predictor.load(
        checkpoint, backbone=backbone, personalizations=personalizations, limits=limits, device=device
    )
