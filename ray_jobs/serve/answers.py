"""The part of the server that holds the model, without Ray or the web.

In: an uploaded video and the id of a subject. Out: a prediction as plain values, or a `RefusedError`.

Subjects are looked up among the existing files, so an id never becomes a path. The prompts of a bounded number of them
are kept in memory, and read again when the file changes.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from safetensors import SafetensorError

from clipautt.action_units import VOCABULARY, title_of
from clipautt.adaptation.personalization import Personalization, load_personalization, subject_file
from clipautt.adaptation.predictions import NotFiniteError
from clipautt.prediction.answers import VideoPrediction
from clipautt.predictor import Predictor
from clipautt.video.decoding import DecodeError
from clipautt.video.reader import NoFaceError
from ray_jobs.serve.uploads import Limits, RefusedError, check_video, private_file, without_paths

_CACHED_SUBJECTS = 64
_DIGITS = 5


class Service:
    """Answers requests with a predictor.

    Args:
        predictor: A loaded predictor.
        limits: Limits of an upload.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor = predictor
        self.limits = limits
        self._personalization_of = lru_cache(maxsize=_CACHED_SUBJECTS)(self._load_personalization)

    def predict(self, video: bytes, subject: str | None) -> dict[str, Any]:
        """The prediction for a video, as `web.Answer` in plain values.

        Raises:
            RefusedError: The subject is unknown, or the video cannot be read or is over a limit.
        """
        began = time.perf_counter()
        personalization = self._find(subject) if subject else None
        with private_file(video) as path:
            duration = check_video(path, self.limits)
            try:
                prediction = self.predictor.predict(path, subject=personalization)
            except DecodeError as error:
                said = without_paths(str(error), path).removeprefix(f"clip {path.stem!r}: ")
                raise RefusedError(415, said) from error
            except NoFaceError as error:
                said = without_paths(str(error), path).removeprefix(f"clip {path.stem!r}: {path.name}: ")
                raise RefusedError(422, said) from error
            except NotFiniteError as error:
                raise RefusedError(422, f"the model's numbers for this video are not finite: {error}") from error
        if prediction.label is None:
            raise RefusedError(422, f"no label: {prediction.reason}")
        return describe(prediction) | {"duration_seconds": duration, "seconds": time.perf_counter() - began}

    def subjects(self) -> list[str]:
        """Ids of the subjects with adapted prompts, sorted."""
        folder = self.predictor.personalizations
        return sorted(unquote(path.stem) for path in folder.glob("*.safetensors")) if folder else []

    def facts(self) -> dict[str, Any]:
        """What is served, as `web.Health` without status and limits."""
        checkpoint = self.predictor.source.checkpoint
        return {
            "checkpoint": checkpoint.fingerprint,
            "backbone": self.predictor.source.backbone.name,
            "classes": list(checkpoint.spec.classes),
            "subjects": len(self.subjects()),
            "trained_on": {name: str(footage) for name, footage in self.predictor.source.footage.items()},
        }

    def _find(self, subject: str) -> Personalization:
        folder = self.predictor.personalizations
        # Compare names instead of opening the file: an id can be longer than a file name may be.
        if folder is None or subject_file(subject) not in {path.name for path in folder.glob("*.safetensors")}:
            raise RefusedError(404, f"no adapted prompts for subject {subject!r}; GET /v1/subjects lists the subjects")
        path = folder / subject_file(subject)
        try:
            return self._personalization_of(path, path.stat().st_mtime_ns)
        except (ValueError, SafetensorError) as error:
            said = without_paths(str(error), path)
            raise RefusedError(409, f"the prompts of subject {subject!r} cannot be used here: {said}") from error

    def _load_personalization(self, path: Path, modified_ns: int) -> Personalization:
        return load_personalization(path, self.predictor.source)


def describe(prediction: VideoPrediction) -> dict[str, Any]:
    """A prediction as plain values, without the path of its video."""
    known = {unit.code: unit for unit in VOCABULARY}
    curves = prediction.action_units.round(_DIGITS)
    return {
        "label": prediction.label,
        "probabilities": dict(prediction.probabilities),
        "window_start_seconds": float(prediction.window_start_seconds),
        "window_end_seconds": float(prediction.window_end_seconds),
        "top_action_units": [
            {
                "code": code,
                "name": name,
                "phrase": known[code].phrase if code in known else code,
                "rise": round(float(rise), _DIGITS),
            }
            for code, name, rise in prediction.top_action_units.itertuples()
        ],
        "action_units": {
            "time_seconds": [round(float(time), _DIGITS) for time in curves.index],
            "codes": {str(code): [round(float(value), _DIGITS) for value in curves[code]] for code in curves},
            "names": {str(code): title_of(str(code)) for code in curves},
            "not_learned": list(prediction.not_learned),
        },
        "entropy": [round(float(value), _DIGITS) for value in prediction.entropy],
        "personalized_for": prediction.personalized_for,
        "warnings": list(prediction.warnings),
    }
