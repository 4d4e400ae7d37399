"""Personalize to one person from a few unlabelled videos; `clipautt predict` then uses it by name.

By default the person's resting face, the median of all frames given, is removed from what follows. Eight seconds or
more are needed to gain anything, and several everyday clips in which the person also shows what is to be recognized
give most: from a face at rest alone, the model calls the expression too often. Nothing here needs a label.

The file is the one that `clipautt adapt` writes for a subject. Videos that cannot be used are listed, and the exit code
is then 1. The same name again replaces the file if all clips of the earlier one are given again, alone or with others;
else it is refused unless `replace=true`, so that no footage is lost unnoticed. This runs in one process, without Ray.

Example:
    clipautt personalize anna monday.mp4 tuesday.mp4
    clipautt personalize anna monday.mp4 interviews/ checkpoint=runs/train/hard prompts=people
    clipautt predict face.mp4 subject=anna
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.personalization import Personalization, clips_of_personalization
from clipautt.clips import Clip
from clipautt.commands import setting
from clipautt.datasets.inputs import TABLES, find_inputs
from clipautt.features.clip_features import ClipFeatures
from clipautt.model.checkpoint import find_checkpoint, is_checkpoint
from clipautt.personalizing import Saving, personalize_videos
from clipautt.subjects import subject_file
from clipautt.tables import nfc
from ray_jobs.platform.configuration import instantiate
from ray_jobs.platform.footage import warn
from ray_jobs.platform.predictors import chosen_checkpoint, load_predictor
from ray_jobs.platform.progress import table

POSITIONAL = "subject videos…"
_SHOWN = 12


def main(cfg: DictConfig) -> int:
    """Run the job; the exit code is 1 where a video could not be used."""
    subject, videos = nfc(str(cfg.subject)), expanded([cfg.videos] if isinstance(cfg.videos, str) else cfg.videos)
    if os.path.isfile(subject):
        raise ValueError(
            f"subject={subject} is a file; the name of the person comes first: `clipautt personalize NAME …`"
        )
    own: AdaptConfig = instantiate(cfg.adapt)
    checkpoint = _checkpoint(cfg.checkpoint, own)
    predictor = load_predictor(checkpoint, None, backbone=instantiate(cfg.backbone), limits=instantiate(cfg.limits))
    path = Path(cfg.prompts) / subject_file(subject)
    earlier = None if cfg.replace and not _readable(path) else clips_of_personalization(path)
    made = personalize_videos(
        predictor.source,
        subject,
        videos,
        config=own,
        face=None if cfg.face is None else str(cfg.face),
        limits=predictor.limits,
        tuning=instantiate(cfg.tuning),
        saving=Saving(Path(cfg.prompts), bool(cfg.replace)),
        on_video=show_video if len(videos) > 1 else None,
    )
    show(made, path, earlier)
    words = [setting("subject", subject), setting("prompts", str(cfg.prompts)), setting("checkpoint", str(checkpoint))]
    print(f"next: clipautt predict VIDEO {' '.join(words)}")
    return 1 if made.omitted else 0


def expanded(words: Sequence[object]) -> list[str]:
    """The videos and folders of frames that words of the command line mean; prints what is left out of folders.

    Raises:
        FileNotFoundError: naming every word that gives none.
        ValueError: for a table of clips.
    """
    paths: list[str] = []
    missing: list[str] = []
    for word in map(str, words):
        if Path(word).suffix.lower() in TABLES and os.path.isfile(word):
            raise ValueError(f"{word} is a table of clips; `clipautt adapt manifest=…` personalizes to its subjects")
        try:
            inputs = find_inputs([word])
        except FileNotFoundError as error:
            missing.append(str(error))
            continue
        paths += [clip.source for clip in inputs.clips]
        for note in inputs.notes:
            print(note)
    if missing:
        raise FileNotFoundError("; ".join(missing))
    return paths


def show_video(clip: Clip, outcome: ClipFeatures | str) -> None:
    """Print a line about a video: its frames with the face, or why it is left out."""
    name = os.path.relpath(clip.source)
    if isinstance(outcome, str):
        print(f"{name}: left out: {outcome}", flush=True)
    elif outcome.min_share:
        print(f"{name}: {round(outcome.face_share * len(outcome.times))} of {len(outcome.times)} frames show the face")
    else:
        print(f"{name}: {len(outcome.times)} frames", flush=True)


def show(made: Personalization, path: Path, earlier: Sequence[str] | None) -> None:
    """Print what was made, from what, and what speaks against it."""
    print(f"personalized to {made.subject_id}: {made.basis}; {made.config.name}")
    if made.omitted:
        shown = list(made.omitted.items())[:_SHOWN]
        table(shown, [f"{len(made.omitted)} video{'s' * (len(made.omitted) != 1)} not used", "reason"])
    for sentence in made.warnings:
        warn(sentence)
    if earlier is not None:
        clips = "1 clip" if len(earlier) == 1 else f"{len(earlier)} clips"
        print(f"replaced an earlier file of {clips}: {', '.join(earlier[:_SHOWN])}{'…' * (len(earlier) > _SHOWN)}")
    print(f"prompts: {path}")


def _readable(path: Path) -> bool:
    try:
        return clips_of_personalization(path) is not None
    except ValueError:
        return False


def _checkpoint(named: str | None, own: AdaptConfig) -> Path:
    """The checkpoint for these settings: one of the named training, or of the newest, with their subject baseline."""
    if named:
        return find_checkpoint(named, own.subject_baseline)
    newest = chosen_checkpoint(None)
    sibling = newest.parent / own.subject_baseline
    return sibling if is_checkpoint(sibling) else newest
