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
)
from clipautt.adaptation.source import Source
from clipautt.clips import Clip
from clipautt.datasets.files import name_parts, path_parts
from clipautt.features.clip_features import ClipFeatures, encode_clip
from clipautt.prediction.cautions import cautions
from clipautt.subjects import checked_subject, subject_file
from clipautt.video.decoding import DecodeError
from clipautt.video.reader import NoFaceError
from clipautt.video.reader_process import ReadLimits

_SAME = 0.01
"""Distance as a share of a feature's length up to which two features are of one frame: a batch of another size rounds
otherwise, which in bfloat16 with its 8 bits is 0.4 %."""
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
        config: method and settings; None removes the resting face as in training and tunes nothing (`adapt=default`).
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
    subject = checked_subject(subject)
    check_keeps_something(source, config)
    source.checkpoint.spec.features.frames.faces.following(face)
    clips, notes = clips_of(subject, videos, face=face)
    if saving:
        _refuse_loss(saving, subject, {clip.clip_id for clip in clips}, source)
    files = {clip.clip_id: clip.source for clip in clips}
    encoded, failed = _encoded(source, clips, limits, on_video)
    features, copies = without_copies(encoded, files)
    made = personalize_features(
        source,
        subject,
        features,
        config=config,
        tuning=tuning,
        face=face,
        omitted=failed,
        notes=[*notes, *copies],
    )
    if saving:
        save_personalization(made, saving.folder / subject_file(subject), checkpoint=source.checkpoint.fingerprint)
    return made


class NothingLeftError(ValueError):
    """No video can be used to personalize.

    Args:
        subject: name of the person.
        omitted: clip id → why the clip cannot be used.
    """

    def __init__(self, subject: str, omitted: Mapping[str, str]) -> None:
        reasons = "".join(f"\n  {clip_id}: {why}" for clip_id, why in omitted.items())
        super().__init__(f"no video can be used to personalize to {subject!r}:{reasons}")
        self.omitted = omitted


def personalize_features(
    source: Source,
    subject: str,
    clips: Sequence[ClipFeatures],
    *,
    config: AdaptConfig,
    tuning: TuningConfig | None = None,
    face: str | None = None,
    omitted: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Personalization:
    """Personalize to one person from clips that are encoded already.

    Args:
        source: the frozen model.
        subject: name of the person, as `checked_subject` gives it.
        clips: features, with ids that differ; see `without_copies`.
        config: method and settings, see `check_keeps_something`.
        tuning: memory limit, batch size and compilation.
        face: whose face was asked for; None if nobody was named.
        omitted: clip id → why a clip could not be encoded.
        notes: sentences on the footage that come first.

    Returns:
        The personalization; `omitted` says which clips took no part and why, `warnings` what speaks against it.

    Raises:
        NothingLeftError: without a clip that can be used, with the reason of each.
        ValueError: for settings that cannot run here or keep nothing of a person.
        NotFiniteError: for features, or a prediction without adaptation, that are not finite.
    """
    check_keeps_something(source, config)
    reasons = dict(omitted or {})
    if not clips:
        raise NothingLeftError(subject, reasons)
    (result,) = adapt(source, [replace(clip, subject_id=subject) for clip in clips], config, tuning=tuning).values()
    made = Personalization.of(result, config)
    reasons |= {  # what follows a semicolon is for `predict`
        clip_id: why.partition(";")[0] for clip_id, why in made.omitted.items()
    }
    if not (made.basis and made.basis.num_clips):
        raise NothingLeftError(subject, reasons)
    sentences = dict.fromkeys([*notes, *_notes(source, clips, face)])
    return replace(made, omitted=reasons, notes=tuple(sentences))


def without_copies(
    clips: Sequence[ClipFeatures], names: Mapping[str, str] | None = None
) -> tuple[list[ClipFeatures], list[str]]:
    """The clips without those that show the same frames as an earlier one, and a note for each of these.

    Args:
        clips: features of clips.
        names: clip id → what the note calls it; None for the id.
    """
    kept: list[ClipFeatures] = []
    notes = []
    for clip in clips:
        twin = next((one for one in kept if same_frames(one, clip)), None)
        if twin is None:
            kept.append(clip)
        else:
            name = (names or {}).get(clip.clip_id, clip.clip_id)
            notes.append(f"{name} shows the same frames as {twin.clip_id!r}, and they count once.")
    return kept, notes


def same_frames(one: ClipFeatures, other: ClipFeatures) -> bool:
    """Whether two clips are encodings of the same frames, apart from rounding."""
    if one.features.shape != other.features.shape:
        return False
    lengths = torch.maximum(one.features.norm(dim=-1), other.features.norm(dim=-1))
    return bool(((one.features - other.features).norm(dim=-1) <= _SAME * lengths).all())


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


def _encoded(
    source: Source, clips: Sequence[Clip], limits: ReadLimits | None, on_video: OnVideo | None
) -> tuple[list[ClipFeatures], dict[str, str]]:
    """Features of the clips, and clip → why it has none."""
    features: list[ClipFeatures] = []
    failed: dict[str, str] = {}
    for clip in clips:
        outcome: ClipFeatures | str
        try:
            outcome = encode_clip(clip, source.backbone, source.checkpoint.spec.features.frames, limits=limits)
            features.append(outcome)
        except (DecodeError, NoFaceError, OSError) as error:
            outcome = failed[clip.clip_id] = str(error).removeprefix(f"clip {clip.clip_id!r}: ")
        if on_video:
            on_video(clip, outcome)
    return features, failed


def _notes(source: Source, features: Sequence[ClipFeatures], face: str | None) -> Iterator[str]:
    """What `predict` would warn of in these videos, with the clip where it is about one."""
    for one in features:
        for code, sentence in cautions(source, one, face=face, centred=True).items():
            yield sentence if code == "unseen_footage" else f"{one.clip_id}: {sentence}"


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
