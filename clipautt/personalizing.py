"""One person's videos in, a personalization out: `personalize_videos(source, "anna", ["rest.mp4"])`.

The videos need no label. They are encoded here, without a store; `adaptation.driver` adapts to them as `clipautt adapt`
does, and `adaptation.personalization` writes the same file. A video that cannot be used is left out, and the
personalization says why; what can be wrong with all of them is found before the first one is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clipautt.adaptation.driver import adapt, check_baseline
from clipautt.adaptation.method import AdaptConfig, TuningConfig, check_needs
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.personalization import (
    Personalization,
    checkpoint_of_personalization,
    clips_of_personalization,
    save_personalization,
    subject_file,
)
from clipautt.adaptation.source import Source
from clipautt.clips import Clip
from clipautt.commands import is_utf8
from clipautt.datasets.files import name_parts, path_parts
from clipautt.features.clip_features import ClipFeatures, encode_clip
from clipautt.prediction.cautions import cautions
from clipautt.tables import nfc
from clipautt.video.decoding import DecodeError
from clipautt.video.reader import NoFaceError
from clipautt.video.reader_process import ReadLimits

_LONGEST_NAME = 240
"""Bytes that the name of a subject's file may have; file systems allow 255, and a temporary name is longer."""
OnVideo = Callable[[Clip, ClipFeatures | str], None]
"""Called after each video, with its features or why it cannot be used."""


@dataclass(frozen=True)
class Saving:
    """Where a personalization is written."""

    folder: Path
    """Folder of the subjects' files; made if it is missing."""
    replace: bool = False
    """Whether an earlier file may be replaced that rests on clips which are not given again."""


def personalize_videos(
    source: Source,
    subject: str,
    videos: Sequence[str | Path],
    *,
    config: AdaptConfig | None = None,
    face: str | None = None,
    limits: ReadLimits | None = None,
    tuning: TuningConfig | None = None,
    saving: Saving | None = None,
    on_video: OnVideo | None = None,
) -> Personalization:
    """Personalize to one person from unlabelled videos.

    Args:
        source: the frozen model.
        subject: name of the person.
        videos: paths of videos or of folders of frames, `FEWEST_FRAMES` together or more. Best are several everyday
            ones in which the person also shows what is to be recognized: from a face at rest alone, decisions lean
            towards the expression, as in training half of a subject's clips showed it.
        config: method and settings; None removes the resting face as the checkpoint was trained with it, and tunes
            nothing (`adapt=default`).
        face: whose face to follow where there are several, as `faces.which`; None: as in training.
        limits: time, frame size and memory that reading a video may take.
        tuning: memory limit, batch size and compilation.
        saving: where it is written; None keeps it in memory.
        on_video: called after each video.

    Returns:
        The personalization; `omitted` says which videos were left out and why, `warnings` what speaks against it.

    Raises:
        FileNotFoundError: naming all videos that are missing.
        ValueError: without a video that can be used, with the reason of each; for a name that is none, or a method
            that cannot run here or keeps nothing of a person.
        FileExistsError: for an earlier file of this person that would be lost, see `Saving`.
    """
    config = config or AdaptConfig(ClipAUTT(), subject_baseline=source.checkpoint.spec.subject_baseline)
    subject = _checked_subject(subject)
    check_keeps_something(source, config)
    source.checkpoint.spec.features.frames.faces.following(face)
    clips, notes = clips_of(subject, videos, face=face)
    if saving:
        _refuse_loss(saving, subject, {clip.clip_id for clip in clips}, source)
    features, omitted, copies = _encoded(source, clips, limits, on_video)
    if not features:
        raise ValueError(_nothing_left(subject, omitted))
    (result,) = adapt(source, features, config, tuning=tuning).values()
    made = Personalization.of(result, config)
    omitted |= {
        clip_id: why.partition(";")[0] for clip_id, why in made.omitted.items()
    }  # what follows is for `predict`
    if not (made.basis and made.basis.num_clips):
        raise ValueError(_nothing_left(subject, omitted))
    sentences = dict.fromkeys([*notes, *copies, *_notes(source, clips, features)])
    made = replace(made, omitted=omitted, notes=tuple(sentences))
    if saving:
        path = saving.folder / subject_file(subject)
        save_personalization(made, path, checkpoint=source.checkpoint.fingerprint)
    return made


def check_keeps_something(source: Source, config: AdaptConfig) -> None:
    """Refuse settings that cannot run with this checkpoint, or after which nothing of a person is left to keep.

    Raises:
        ValueError: saying what to take instead.
    """
    check_needs(source.checkpoint.spec, config)
    check_baseline(source.checkpoint.spec, config)
    if config.protocol == "per_video":
        raise ValueError(
            f"{config.name!r} begins every video at the source model (adapt.protocol=per_video), so that nothing of a "
            "person is kept; take adapt.protocol=per_subject or online"
        )
    if not config.transductive:
        raise ValueError(
            f"{config.name!r} adapts nothing to a person; take adapt=default, with a checkpoint that was trained with "
            "a subject baseline, or a method that adapts, such as adapt=infomax_kl"
        )


def clips_of(subject: str, videos: Sequence[str | Path], *, face: str | None = None) -> tuple[list[Clip], list[str]]:
    """The videos as clips of one subject, and a note for each that is given twice.

    A clip is called as `clipautt adapt dataset=folder` calls it: `anna/rest` for `people/anna/rest.mp4`; where two
    videos would have one name, folders above them and the suffix are added.

    Raises:
        ValueError: without videos.
        FileNotFoundError: naming all that are missing.
    """
    paths = [str(video) for video in videos]
    if not paths:
        raise ValueError(f"no videos of subject {subject!r}: give videos, or folders of frames")
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(f"no such video or folder of frames: {', '.join(missing)}")
    counts = Counter(map(os.path.realpath, paths))
    sources = list({os.path.realpath(path): os.path.abspath(path) for path in reversed(paths)}.values())[::-1]
    names = _names(sources)
    notes = [f"{names[one]} was given {counts[os.path.realpath(one)]} times and counts once." for one in sources]
    notes = [note for note, one in zip(notes, sources, strict=True) if counts[os.path.realpath(one)] > 1]
    return [Clip(f"{subject}/{names[one]}", subject, one, "target", face=face) for one in sources], notes


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Path → its end without a video's suffix, with as many folders as tell it from the others."""
    parts = {path: name_parts(path) for path in paths}
    counts = Counter(parts.values())
    parts = {path: own if counts[own] == 1 else path_parts(path) for path, own in parts.items()}
    names: dict[str, str] = {}
    for path, own in parts.items():
        others = [other for one, other in parts.items() if one != path]
        depths = (d for d in range(1, len(own) + 1) if all(other[-d:] != own[-d:] for other in others))
        name = "/".join(own[-next(depths, len(own)) :])
        names[path] = name if name not in names.values() else f"{name} ({len(names) + 1})"  # é in two spellings
    return names


def _checked_subject(subject: str) -> str:
    """The name in the spelling of manifests.

    Raises:
        ValueError: if it is empty, no UTF-8, or too long for the name of a file.
    """
    if not subject.strip() or not is_utf8(subject):
        raise ValueError(f"subject={subject!r}; allowed: a name that is not empty, in UTF-8")
    name = nfc(subject)
    if len(subject_file(name)) > _LONGEST_NAME:
        raise ValueError(f"subject={subject[:20]!r}… is too long for the name of a file; give a shorter one")
    return name


def _encoded(
    source: Source, clips: Sequence[Clip], limits: ReadLimits | None, on_video: OnVideo | None
) -> tuple[list[ClipFeatures], dict[str, str], list[str]]:
    """Features of the clips, clip → why it has none, and a note for each copy of another clip."""
    features: list[ClipFeatures] = []
    failed: dict[str, str] = {}
    copies: list[str] = []
    for clip in clips:
        outcome: ClipFeatures | str
        try:
            outcome = encode_clip(clip, source.backbone, source.checkpoint.spec.features.frames, limits=limits)
        except (DecodeError, NoFaceError, OSError) as error:
            outcome = failed[clip.clip_id] = str(error).removeprefix(f"clip {clip.clip_id!r}: ")
        if isinstance(outcome, ClipFeatures):
            twin = next((one for one in features if torch.equal(one.features, outcome.features)), None)
            if twin is None:
                features.append(outcome)
            else:
                copies.append(f"{clip.source} shows the same frames as {twin.clip_id!r}, and they count once.")
        if on_video:
            on_video(clip, outcome)
    return features, failed, copies


def _notes(source: Source, clips: Sequence[Clip], features: Sequence[ClipFeatures]) -> Iterator[str]:
    """What `predict` would warn of in these videos, with the clip where it is about one."""
    sources = {clip.clip_id: clip for clip in clips}
    for one in features:
        clip = sources[one.clip_id]
        for code, sentence in cautions(source, one, video=clip.source, face=clip.face, centred=True).items():
            yield sentence if code == "unseen_footage" else f"{one.clip_id}: {sentence}"


def _nothing_left(subject: str, omitted: Mapping[str, str]) -> str:
    reasons = "".join(f"\n  {clip_id}: {why}" for clip_id, why in omitted.items())
    return f"no video can be used to personalize to {subject!r}:{reasons}"


def _refuse_loss(saving: Saving, subject: str, given: set[str], source: Source) -> None:
    """Refuse to replace a file that rests on clips which are not given, or on another checkpoint, unless told to."""
    path = saving.folder / subject_file(subject)
    if saving.folder.exists() and not saving.folder.is_dir():
        raise NotADirectoryError(f"{saving.folder} is a file; the person's file needs a folder (prompts=FOLDER)")
    earlier = None if saving.replace else clips_of_personalization(path)
    if earlier is None:
        return
    lost = [clip_id for clip_id in earlier if clip_id not in given]
    why = f"rests on other clips as well: {', '.join(lost[:5])}{'…' * (len(lost) > 5)}" if lost else ""
    if not lost and checkpoint_of_personalization(path) != source.checkpoint.fingerprint:
        why = "belongs to another checkpoint"
    if why:
        raise FileExistsError(
            f"{path} {why}; give the videos of these clips too, or another folder (prompts=…), or replace=true to "
            "replace it"
        )
