"""Predicts many videos: features through Ray Data into the store, then a table, a few clips at a time.

In: clips and a predictor. Out: rows in the order of the clips; also a clip without features has one, with the reason.
Started again, only what is missing in the store is decoded and encoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from clipautt.action_units import action_unit_columns
from clipautt.adaptation.personalization import Personalization
from clipautt.clips import Clip
from clipautt.datasets.inputs import Inputs
from clipautt.evaluation.reports.extraction import Failure
from clipautt.features.store import FeatureStore
from clipautt.prediction.answers import VideoPrediction
from clipautt.prediction.columns import CLIP, Column, columns_of
from clipautt.prediction.tables import unknown_row
from clipautt.predictor import Predictor
from ray_jobs.platform.extraction.extract import ExtractSummary
from ray_jobs.platform.progress import Progress

Rows = Literal["clips", "windows", "frames"]
_Part = dict[str, Any] | pd.DataFrame
"""The row of a clip, or its rows."""
_FRAMES_AT_ONCE = 16384
"""Frames whose features are in memory together; one clip may have more."""
_OTHER = "input_"
"""Before the name of a column of the input that has the name of one of ours."""


@dataclass
class Tally:
    """What came out, counted."""

    labels: Counter[str] = field(default_factory=Counter)
    """Class → clips."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Status → clips."""
    cautions: Counter[str] = field(default_factory=Counter)
    """Code of a warning → clips."""
    sentences: dict[str, str] = field(default_factory=dict)
    """Code of a warning → the sentence of the first clip that has it."""
    personalized: int = 0
    """Clips that were predicted with their subject's prompts or centre."""

    def add(self, prediction: VideoPrediction) -> None:
        """Count an answer."""
        self.labels.update([prediction.label] if prediction.label is not None else [])
        self.statuses[prediction.status] += 1
        self.cautions.update(list(prediction.cautions))
        for code, sentence in prediction.cautions.items():
            self.sentences.setdefault(code, sentence)
        self.personalized += prediction.personalized_for is not None


class Table:
    """The rows of many clips.

    Args:
        predictor: gives the answers.
        inputs: the clips, and their further columns.
        rows: what a row is.
    """

    def __init__(self, predictor: Predictor, inputs: Inputs, rows: Rows) -> None:
        self.predictor, self.inputs, self.rows = predictor, inputs, rows
        source = predictor.source
        codes = action_unit_columns(source.checkpoint.spec.phrases)
        own = columns_of(rows, classes=source.classes, action_units=codes)
        taken = {column.name for column in own}
        self.others = {name: _OTHER + name if name in taken else name for name in inputs.columns}
        more = [Column(shown, f"{name}, as given with the input") for name, shown in self.others.items()]
        self.columns = [*own[: len(CLIP)], *more, *own[len(CLIP) :]]
        self.tally = Tally()
        self.on_answer: Callable[[VideoPrediction, Clip], object] = lambda prediction, clip: None
        """Called with every answer of `of_features`."""

    def of_features(
        self,
        store: FeatureStore,
        summary: ExtractSummary,
        personalizations: Mapping[str, Personalization],
    ) -> Iterator[pd.DataFrame]:
        """The rows of every clip, in the order of the clips.

        Args:
            store: has the features.
            summary: says which clips have none, and why.
            personalizations: clip id → what it is predicted with; others without.
        """
        failed = {failure.clip_id: failure for failure in summary.failures}
        with Progress("predict", len(self.inputs.clips)) as progress:
            for part in _parts(self.inputs.clips, summary):
                answers = self._answers([clip for clip in part if clip.clip_id not in failed], store, personalizations)
                rows = [
                    self._failed(clip, failed[clip.clip_id])
                    if clip.clip_id in failed
                    else self._answered(answers.pop(clip.clip_id))
                    for clip in part
                ]
                yield self._together(rows)
                progress.advance(len(part), failed=sum(clip.clip_id in failed for clip in part))

    def of_answer(self, prediction: VideoPrediction) -> pd.DataFrame:
        """The rows of an answer."""
        return self._together([self._answered(prediction)])

    def _answered(self, prediction: VideoPrediction) -> _Part:
        self.tally.add(prediction)
        facts = self._facts(prediction.clip.clip_id)
        if self.rows == "clips":
            return prediction.row | facts
        return (prediction.windows if self.rows == "windows" else prediction.frames).assign(**facts)

    def _together(self, parts: Sequence[_Part]) -> pd.DataFrame:
        """The rows of several clips as one frame; making many small ones takes longer than the predictions."""
        if self.rows == "clips":
            return pd.DataFrame(list(parts))
        return pd.concat(
            [part if isinstance(part, pd.DataFrame) else unknown_row(self.columns, part) for part in parts]
        )

    def _answers(
        self, clips: Sequence[Clip], store: FeatureStore, personalizations: Mapping[str, Personalization]
    ) -> dict[str, VideoPrediction]:
        features = store.load(clips)
        groups: dict[Personalization | None, list[Clip]] = {}
        for clip in clips:
            groups.setdefault(personalizations.get(clip.clip_id), []).append(clip)
        answers: dict[str, VideoPrediction] = {}
        for personalization, together in groups.items():
            made = self.predictor.predict_many(
                [features[clip.clip_id] for clip in together],
                videos=[clip.source for clip in together],
                personalization=personalization,
                faces=[clip.face for clip in together],
            )
            answers |= {clip.clip_id: one for clip, one in zip(together, made, strict=True)}
        for clip in clips:
            self.on_answer(answers[clip.clip_id], clip)
        return answers

    def _failed(self, clip: Clip, failure: Failure) -> _Part:
        self.tally.statuses[failure.status] += 1
        known: dict[str, Any] = {"clip": clip.clip_id, "subject": clip.subject_id, "status": failure.status}
        if self.rows == "clips":
            known |= {"source": clip.source, "reason": failure.reason}
        return known | self._facts(clip.clip_id)

    def _facts(self, clip_id: str) -> dict[str, str]:
        facts = self.inputs.facts.get(clip_id, {})
        return {shown: facts.get(name, "") for name, shown in self.others.items()}


def _parts(clips: Sequence[Clip], summary: ExtractSummary) -> Iterator[list[Clip]]:
    """The clips in parts of which the features fit into memory together."""
    part: list[Clip] = []
    size = 0
    for clip in clips:
        own = summary.known[clip.clip_id].num_frames if clip.clip_id in summary.known else 0
        if part and size + own > _FRAMES_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(clip)
        size += own
    if part:
        yield part
