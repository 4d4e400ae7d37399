"""Video in, typed prediction out: what a notebook, the command line and the server share.

from clipautt import Predictor
print(Predictor.load("runs/train/demo").predict("face.mp4"))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import torch
from torch import Tensor

from clipautt.action_units import action_unit_columns, title_of
from clipautt.adaptation.driver import SubjectState, adapt, predict_clips, prompts_after
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.personalization import Personalization, load_personalization, subject_file
from clipautt.adaptation.predictions import NO_PREDICTION, Prediction
from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone, BackboneConfig, load_backbone
from clipautt.clips import Clip
from clipautt.features.clip_features import ClipFeatures, encode_clip
from clipautt.footage import is_rendered, other_footage
from clipautt.model.checkpoint import load_checkpoint
from clipautt.model.windows import entropy
from clipautt.personalizing import Saving, personalize_videos
from clipautt.tables import nfc
from clipautt.video.faces import few_faces, make_detector
from clipautt.video.reader_process import ReadLimits


@dataclass(frozen=True, eq=False)
class VideoPrediction:
    """What the model says about one video."""

    video: str
    """Path of the file."""
    label: str | None
    """The most probable class; None where the video cannot be predicted, which leaves the fields below without values:
    no probabilities, window times that are nan, and no rows."""
    probabilities: Mapping[str, float]
    """Class name → probability; they sum to 1."""
    window_start_seconds: float
    """Start of the most expressive window, seconds from the start of the clip."""
    window_end_seconds: float
    """End of that window, seconds."""
    action_units: pd.DataFrame
    """AU similarities s over time: index `time_seconds` (middle of the window), a column per AU code, V rows. Only
    windows that count have a row: enough of their frames show the face."""
    entropy: pd.Series
    """Entropy of the class prediction of every window in nats, same index; lowest where the face is most expressive."""
    personalized_for: str | None = None
    """Subject whose prompts or centre were used."""
    warnings: tuple[str, ...] = ()
    """Sentences on why the answer may be worth little: footage that the model has never seen, no face that fills the
    picture. Empty where nothing speaks against it."""
    not_learned: tuple[str, ...] = ()
    """Columns of `action_units` that the backbone never learned, so that they mean nothing; empty if that is not
    known."""
    reason: str = ""
    """Why there is no label; empty if there is one."""
    face_share: float = math.nan
    """Share of the frames in which the face was found, 0..1; nan without a face detector."""
    other_faces: int = 0
    """Other faces that were followed through the video and left out."""

    @property
    def top_action_units(self) -> pd.DataFrame:
        """The five AUs that rose most in the window, highest first, of those that the backbone has learned.

        Returns:
            Index `code`, such as `AU4`; columns `name`, such as `Brow lowerer`, and `rise`: mean similarity in the
            window minus the median over the video, where similarities range from -5 to 5.
        """
        inside = (self.action_units.index >= self.window_start_seconds) & (
            self.action_units.index <= self.window_end_seconds
        )
        rise = self.action_units[inside].mean() - self.action_units.median()
        highest = rise.drop(list(self.not_learned)).dropna().sort_values(ascending=False).head(5)
        names = [title_of(str(code)).removeprefix(f"{code} ") for code in highest.index]
        return pd.DataFrame({"name": names, "rise": highest.to_numpy()}, index=highest.index.rename("code"))

    def __repr__(self) -> str:
        warned = "".join(f"; warning: {sentence}" for sentence in self.warnings)
        if self.label is None:
            return f"VideoPrediction(None: {self.reason}{warned})"
        shares = ", ".join(f"{name} {value:.2f}" for name, value in self.probabilities.items())
        window = f"{self.window_start_seconds:.2f}–{self.window_end_seconds:.2f} s"
        units = ", ".join(f"{code} {name} {rise:+.2f}" for code, name, rise in self.top_action_units.itertuples())
        return (
            f"VideoPrediction({self.label!r}: {shares}; window {window} of {self.action_units.shape[0]}; rise in AU "
            f"similarity (-5 to 5): {units or 'none'}{warned})"
        )


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
        who = personalization.subject_id if personalization else "unknown"
        clip = Clip(Path(video).stem, who, str(video), "target", face=face)
        frames = self.source.checkpoint.spec.features.frames
        frames.faces.following(face)
        features = encode_clip(clip, self.source.backbone, frames, limits=self.limits)
        return self.predict_features(features, video=str(video), personalization=personalization)

    def predict_features(
        self, clip: ClipFeatures, *, video: str = "", personalization: Personalization | None = None
    ) -> VideoPrediction:
        """Predict from stored features of one clip.

        Args:
            clip: its features.
            video: its file, which tells whether its faces are rendered; empty if it is not at hand.
            personalization: of the clip's subject; None predicts without.
        """
        if personalization is None:
            result = adapt(self.source, [clip], self.config)[clip.subject_id]
            session, after, centre = Session.open(self.source, self.config), result.after, result.centre
            prediction, subject = result.predictions[0], None
        else:
            session, centre, subject = (
                personalization.session(self.source),
                personalization.centre,
                personalization.subject_id,
            )
            after = personalization.after(session)
            prediction = self._personalized(session, after, clip, centre)
        if prediction.made:
            shown = replace(clip, features=clip.features - centre)
            described = _describe(session, shown, video, prediction, after, subject)
        else:
            described = _without_label(self.source, clip, video, prediction.status.removeprefix(NO_PREDICTION), subject)
        return replace(described, warnings=(*self._warnings(clip, video, personalization), *clip.notes))

    def _warnings(self, clip: ClipFeatures, video: str, personalization: Personalization | None) -> Iterator[str]:
        """What speaks against an answer: footage that the model has never seen, and too few frames with the face, in
        the video or behind the personalization."""
        unseen = other_footage(self.source.footage, [is_rendered(video)] if video else [])
        few = few_faces(clip.face_share, self.source.checkpoint.spec.features.frames.faces)
        if unseen:
            yield unseen
        if few:
            yield f"{few[0].upper()}{few[1:]}, when extracting and training."
        if personalization and personalization.basis and personalization.basis.too_few:
            yield personalization.basis.too_few

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
            there = sorted(unquote(path.stem) for path in self.personalizations.glob("*.safetensors"))
            raise FileNotFoundError(
                f"no adapted prompts for subject {subject!r} in {self.personalizations}; "
                f"there are: {', '.join(there[:10]) or 'none'}"
            )
        return load_personalization(path, self.source)


def _without_label(source: Source, clip: ClipFeatures, video: str, reason: str, subject: str | None) -> VideoPrediction:
    index = pd.Index([], dtype=float, name="time_seconds")
    return VideoPrediction(
        video=video,
        label=None,
        probabilities={},
        window_start_seconds=math.nan,
        window_end_seconds=math.nan,
        action_units=pd.DataFrame(
            index=index, columns=action_unit_columns(source.checkpoint.spec.phrases), dtype=float
        ),
        entropy=pd.Series(index=index, name="entropy", dtype=float),
        personalized_for=subject,
        reason=reason,
        face_share=clip.face_share,
        other_faces=clip.other_faces,
    )


def _describe(
    session: Session,
    clip: ClipFeatures,
    video: str,
    prediction: Prediction,
    after: SubjectState,
    subject: str | None,
) -> VideoPrediction:
    """Complete a prediction with its clip's AU similarities over time; the clip's centre is already removed."""
    source, au_embeddings = session.source.limited_to(None), prompts_after(session, after.state)
    views = source.views(clip)
    with torch.no_grad():
        similarities = source.model.similarities(views.embeddings, au_embeddings).cpu().numpy()
        curve = entropy(source.logits(views.embeddings, au_embeddings)).cpu().numpy()
    index = pd.Index((views.start_seconds + views.end_seconds) / 2, name="time_seconds")
    probabilities = {name: float(p) for name, p in zip(source.classes, prediction.probabilities, strict=True)}
    columns = action_unit_columns(source.checkpoint.spec.phrases)
    return VideoPrediction(
        video=video,
        label=source.classes[prediction.label_index],
        probabilities=probabilities,
        window_start_seconds=prediction.window_start_seconds,
        window_end_seconds=prediction.window_end_seconds,
        action_units=pd.DataFrame(similarities, index=index, columns=columns),
        entropy=pd.Series(curve, index=index, name="entropy"),
        personalized_for=subject,
        not_learned=source.backbone.facts.not_learned(columns),
        face_share=clip.face_share,
        other_faces=clip.other_faces,
    )
