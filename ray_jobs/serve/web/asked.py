"""What the routes ask of the deployments behind them; `pipeline` implements it over Ray Serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ray_jobs.serve.model.looks import Look, Moment
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.schemas import Adapt
from ray_jobs.serve.web.uploads import Upload


@dataclass(frozen=True)
class Ask:
    """How a video is to be predicted."""

    who: Who
    """Who asks."""
    models: tuple[str, ...] = ()
    """Names of the models; empty for the first one."""
    subject_id: str | None = None
    """Whose personalization is used; None for nobody's."""
    adapt: Adapt = "none"
    """Whether the model is tuned to the video, alone or as a further one of the subject."""
    ticket: int | None = None
    """From `Encoder.ticket`, before `online` work began: nothing is stored of who was erased since."""


class Pipeline(Protocol):
    """The deployments as the web side sees them. A refusal is a value: what crosses Ray as an exception is logged."""

    async def predict(self, upload: Upload, ask: Ask) -> dict[str, Any] | Refusal:
        """An `Answer` as plain values."""

    async def models(self) -> list[dict[str, Any]] | Refusal:
        """Each model as a `ServedModel`, as plain values, the first one first."""

    async def subjects(self, who: Who) -> list[str] | Refusal:
        """Ids of the subjects with something stored."""

    async def subject(self, who: Who, subject_id: str) -> dict[str, Any] | Refusal:
        """A `Subject` as plain values."""

    async def personalize(
        self,
        who: Who,
        subject_id: str,
        clips: Sequence[Path],
        *,
        models: Sequence[str],
        keep: bool,
        on_clip: Callable[[], None],
    ) -> dict[str, Any] | Refusal:
        """Personalize to a subject; a `Subject` as plain values. It may take minutes."""

    async def erase(self, who: Who, subject_id: str) -> list[str] | Refusal:
        """Erase what is stored of a subject, on every replica; what that was, in words."""

    async def still(self, jpeg: bytes, model: str, *, seconds: float, seen: tuple[Any, ...]) -> Any | Refusal:
        """A picture as the image tower takes it, a `Still` from a decoder.

        Args:
            jpeg: the picture.
            model: whose image tower.
            seconds: when it arrived, from the first picture of its session on.
            seen: `Still.seen` of the picture before.
        """

    async def moment(self, look: Look) -> Moment | Refusal:
        """What a model sees in a live frame, from the encoder."""

    async def annotate(self, upload: Upload, answer: dict[str, Any], target: Path) -> Refusal | None:
        """Write the video with its answer drawn around it."""
