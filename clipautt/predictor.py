"""Video in, typed prediction out: what a notebook, the command line and the server share.

from clipautt import Predictor
print(Predictor.load("runs/train/demo").predict("face.mp4"))
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import torch
from torch import Tensor

from clipautt.action_units import action_unit_columns
from clipautt.adaptation.basis import Basis
from clipautt.adaptation.driver import (
    FALLBACK,
    SubjectResult,
    SubjectState,
    Unit,
    adapt_units,
    predict_clips,
    prompts_after,
)
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.personalization import Personalization, load_personalization
from clipautt.adaptation.predictions import NO_PREDICTION, Prediction
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone, BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.datasets.files import clip_name
from clipautt.features.clip_features import ClipFeatures, encode_clip
from clipautt.model.checkpoint import load_checkpoint
from clipautt.model.windows import entropy
from clipautt.personalizing import Saving, personalize_videos
from clipautt.prediction.answers import Curves, VideoPrediction
from clipautt.prediction.cautions import cautions
from clipautt.subjects import SUFFIX, subject_file
from clipautt.tables import nfc
from clipautt.video.faces import make_detector
from clipautt.video.reader_process import ReadLimits


@dataclass(frozen=True, eq=False, repr=False)
class ClipAnswer:
    """The driver's prediction of a clip, and what it was made with."""

    prediction: Prediction
    """As the driver gives it."""
    au_embeddings: Tensor
    """AU embeddings a of the prompts, [K, d]."""
    centre: Tensor
    """What was subtracted from the clip's features, [d]."""

    @classmethod
    def of(cls, session: Session, result: SubjectResult) -> ClipAnswer:
        """The answer for the last clip of a subject."""
        return cls(result.predictions[-1], prompts_after(session, result.state), result.centre)

    def __repr__(self) -> str:
        return f"ClipAnswer({self.prediction!r})"


@dataclass(frozen=True)
class Personal:
    """What is told of the personalization behind an answer."""

    subject_id: str
    """Whose it is."""
    basis: Basis | None = None
    """The footage it rests on; None if that is not known."""
    centred: bool = True
    """Whether the resting face comes from other clips as well than the one that is predicted."""
    fallback: str | None = None
    """Why predictions are made without it; None while they are made with it."""

    @classmethod
    def of(cls, personalization: Personalization | None) -> Personal | None:
        """What is told of a stored one; None for none."""
        if personalization is None:
            return None
        return cls(personalization.subject_id, personalization.basis, fallback=personalization.fallback)


class Predictor:
    """A loaded checkpoint with its backbone. Immutable; safe to share between threads.

    Args:
        source: the frozen model.
        config: how to predict; by default CLIP-AU, every video alone, with the checkpoint's subject baseline.
        personalizations: folder with one `<subject>.safetensors` per subject, as `clipautt adapt` writes it.
        limits: time, frame size and memory that reading a video may take.
    """

    def __init__(
        self,
        source: Source,
        *,
        config: AdaptConfig | None = None,
        personalizations: Path | None = None,
        limits: ReadLimits | None = None,
    ) -> None:
        self.source = source
        self.config = config or AdaptConfig(
            ClipAUTT(), protocol="per_video", subject_baseline=source.checkpoint.spec.subject_baseline
        )
        self.personalizations = personalizations
        self.limits = limits

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        backbone: Backbone | BackboneConfig | None = None,
        personalizations: str | Path | None = None,
        limits: ReadLimits | None = None,
        device: str | None = None,
    ) -> Predictor:
        """Load a checkpoint folder and the backbone it was trained with.

        Args:
            checkpoint: folder with `checkpoint.json`.
            backbone: how the checkpoint's backbone is loaded, where its weights have moved since training.
            personalizations: folder of adapted prompts, see `clipautt adapt`.
            limits: time, frame size and memory that reading a video may take.
            device: where the backbone runs, such as `cuda`; None: where it is.

        Raises:
            FileNotFoundError: if there is no checkpoint.
            ValueError: if backbone and checkpoint do not belong together.
        """
        loaded = load_checkpoint(checkpoint)
        if loaded.spec.features.frames.faces.detector != "none":
            make_detector(loaded.spec.features.frames.faces)  # a missing model must fail here, not at a video
        given = backbone if isinstance(backbone, Backbone) else load_backbone(backbone or loaded.spec.backbone)
        folder = None if personalizations is None else Path(personalizations)
        return cls(Source(loaded, given.to(device) if device else given), personalizations=folder, limits=limits)

    def predict(
        self, video: str | Path, *, subject: str | Personalization | None = None, face: str | None = None
    ) -> VideoPrediction:
        """Predict one video.

        Args:
            video: path of a video, or of a folder of frames. If the checkpoint was trained with a face detector, the
                face is detected; otherwise it must fill most of the frame.
            subject: a subject with adapted prompts in the predictor's folder, or a `Personalization`; None predicts
                without personalization (a subject baseline then uses the video's own frames).
            face: whose face to follow where there are several, as `faces.which`; None: as in training.

        Returns:
            The prediction; without a label, but with a `reason`, where the video has too few frames of a face.

        Raises:
            FileNotFoundError: if the video or the subject's prompts are missing.
            DecodeError: if the video cannot be decoded.
            NoFaceError: if the checkpoint uses a face detector and it finds no face.
            ValueError: if `face` is no name of a face, or the checkpoint uses no face detector.
        """
        personalization = self.find_personalization(subject) if isinstance(subject, str) else subject
        who = personalization.subject_id if personalization else ""
        clip = Clip(clip_name(os.path.basename(os.path.abspath(video))), who, str(video), "target", face=face)
        frames = self.source.checkpoint.spec.features.frames
        frames.faces.following(face)
        features = encode_clip(clip, self.source.backbone, frames, limits=self.limits)
        return self.predict_features(features, video=str(video), personalization=personalization, face=face)

    def predict_features(
        self,
        clip: ClipFeatures,
        *,
        video: str = "",
        personalization: Personalization | None = None,
        face: str | None = None,
    ) -> VideoPrediction:
        """Predict from stored features of one clip.

        Args:
            clip: its features.
            video: its file, which tells whether its faces are rendered; empty if it is not at hand.
            personalization: of the clip's subject; None predicts without.
            face: whose face was asked for; None if nobody was named.
        """
        return self.predict_many([clip], videos=[video], personalization=personalization, faces=[face])[0]

    def predict_many(
        self,
        clips: Sequence[ClipFeatures],
        *,
        videos: Sequence[str],
        personalization: Personalization | None = None,
        faces: Sequence[str | None] = (),
    ) -> list[VideoPrediction]:
        """`predict_features` of many clips, every one alone; together they take less time.

        Args:
            clips: their features.
            videos: their files.
            personalization: of the subject of all clips; None predicts without.
            faces: whose faces were asked for; empty for nobody's.
        """
        session, answers = self._answered(clips, personalization)
        return self.describe(session, clips, answers, videos=videos, faces=faces, personal=Personal.of(personalization))

    def describe(
        self,
        session: Session,
        clips: Sequence[ClipFeatures],
        answers: Sequence[ClipAnswer],
        *,
        videos: Sequence[str],
        faces: Sequence[str | None] = (),
        personal: Personal | None = None,
    ) -> list[VideoPrediction]:
        """What the driver predicted, with the curves and cautions that people are shown.

        Args:
            session: the one in which it was predicted.
            clips: features, with no centre removed.
            answers: the prediction of each.
            videos: their files.
            faces: whose faces were asked for; empty for nobody's.
            personal: of the person that was adapted to; None if every clip was predicted alone.
        """
        made = [(clip, one) for clip, one in zip(clips, answers, strict=True) if one.prediction.made]
        source = session.source.limited_to(None)
        curves = dict(zip((clip for clip, _ in made), _curves(source, made), strict=True))
        whose = faces or [None] * len(clips)
        return [
            self._described(source, clip, one, curves.get(clip), video=video, face=face, personal=personal)
            for clip, one, video, face in zip(clips, answers, videos, whose, strict=True)
        ]

    def _answered(
        self, clips: Sequence[ClipFeatures], personalization: Personalization | None
    ) -> tuple[Session, list[ClipAnswer]]:
        """The prediction of every clip, with the prompts and the centre behind it."""
        if personalization is None:
            session = Session.open(self.source, self.config)
            results = adapt_units(session, [Unit(clip.subject_id, (clip,)) for clip in clips])
            return session, [ClipAnswer.of(session, result) for result in results]
        session = personalization.session(self.source)
        after, centre = personalization.after(session), personalization.centre
        prompts = prompts_after(session, after.state)
        return session, [
            ClipAnswer(self._personalized(session, after, clip, centre), prompts, centre) for clip in clips
        ]

    def _described(
        self,
        source: Source,
        clip: ClipFeatures,
        answer: ClipAnswer,
        curves: Curves | None,
        *,
        video: str,
        face: str | None,
        personal: Personal | None,
    ) -> VideoPrediction:
        prediction, made = answer.prediction, answer.prediction.made
        codes = tuple(action_unit_columns(source.checkpoint.spec.phrases))
        probabilities = zip(source.classes, prediction.probabilities.tolist(), strict=True)
        return VideoPrediction(
            video=video,
            label=source.classes[prediction.label_index] if made else None,
            probabilities=dict(probabilities) if made else {},
            window_start_seconds=prediction.window_start_seconds,
            window_end_seconds=prediction.window_end_seconds,
            clip=clip,
            spec=source.window,
            classes=source.classes,
            action_unit_codes=codes,
            curves=curves,
            personalized_for=personal.subject_id if personal else None,
            cautions=cautions(
                source,
                clip,
                video=video,
                face=face,
                centred=personal is not None and personal.centred,
                basis=personal.basis if personal else None,
                fallback=_why_not_adapted(prediction, personal),
            ),
            not_learned=source.backbone.facts.not_learned(list(codes)) if made else (),
            reason="" if made else prediction.status.removeprefix(NO_PREDICTION),
        )

    def _personalized(self, session: Session, after: SubjectState, clip: ClipFeatures, centre: Tensor) -> Prediction:
        why = session.source.why_no_window(clip, whole=session.config.readout == "whole_clip")
        if why is not None:
            return Prediction.missing(clip, why, num_classes=len(self.source.classes))
        (prediction,) = predict_clips(session, after, [replace(clip, features=clip.features - centre)])
        return prediction

    def personalize(
        self,
        subject: str,
        videos: Sequence[str | Path] | str | Path,
        *,
        config: AdaptConfig | None = None,
        face: str | None = None,
        save: bool | str | Path = False,
        replace: bool = False,
    ) -> Personalization:
        """Personalize to one person from unlabelled videos; see `personalize_videos` for arguments and errors.

            anna = predictor.personalize("anna", ["rest.mp4"])
            predictor.predict("interview.mp4", subject=anna)

        Args:
            save: True writes the person's file into the predictor's folder, a path into that folder, as `clipautt
                adapt` does; `predict(subject="anna")` then finds it.
            replace: whether an earlier file may be replaced that rests on clips which are not given again.
        """
        if save is True and self.personalizations is None:
            raise ValueError("save=True needs a predictor with a folder of adapted prompts; give save=FOLDER")
        folder = self.personalizations if save is True else Path(save) if save else None
        saving = None if folder is None else Saving(folder, replace)
        given = [videos] if isinstance(videos, str | Path) else videos
        return personalize_videos(
            self.source, subject, given, config=config, face=face, limits=self.limits, saving=saving
        )

    def find_personalization(self, subject: str) -> Personalization:
        """A subject's adapted prompts in the predictor's folder.

        Raises:
            ValueError: if the predictor has no folder.
            FileNotFoundError: if there are none for this subject; the message names subjects that have some.
        """
        if self.personalizations is None:
            raise ValueError(f"subject={subject!r} needs a folder of adapted prompts: give prompts=FOLDER")
        names = subject_file(subject), subject_file(nfc(subject))  # a keyboard's spelling of accents, and a manifest's
        path = self.personalizations / next((n for n in names if (self.personalizations / n).is_file()), names[0])
        if not path.is_file():
            there = sorted(unquote(path.stem) for path in self.personalizations.glob(f"*{SUFFIX}"))
            raise FileNotFoundError(
                f"no adapted prompts for subject {subject!r} in {self.personalizations}; "
                f"there are: {', '.join(there[:10]) or 'none'}"
            )
        return load_personalization(path, self.source)


def _why_not_adapted(prediction: Prediction, personal: Personal | None) -> str | None:
    """Why a prediction is made without adaptation; None where it is not, or where there was none to be made."""
    stopped = personal.fallback if personal and prediction.made else None
    why = prediction.status if prediction.status.startswith(FALLBACK) else stopped
    return why and why.removeprefix(FALLBACK)


def _curves(source: Source, made: Sequence[tuple[ClipFeatures, ClipAnswer]]) -> Iterator[Curves]:
    """The numbers of every window of the clips."""
    shown = [replace(clip, features=clip.features - one.centre) for clip, one in made]
    for (clip, one), views in zip(made, source.views_of(shown), strict=True):
        with torch.no_grad():
            evidence = source.model.similarities(views.embeddings, one.au_embeddings)
            logits = source.logits(views.embeddings, one.au_embeddings)
        yield Curves(
            views.starts,
            source.face_similarities(clip),
            evidence.cpu().numpy(),
            logits.softmax(-1).cpu().numpy(),
            entropy(logits).cpu().numpy(),
        )
