"""Asks the deployments that decode and encode, over Ray Serve: with deadlines, retries and a bounded queue.

In: an upload and how it is to be predicted. Out: plain values, or a `Refusal`. Every request that is accepted is
answered: with a prediction, or with the reason why there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipautt.files import write_bytes
from ray_jobs.serve.model.messages import Decoded, NotHere, Personalizing
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.asked import Ask
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.uploads import Upload

_ATTEMPTS = 2
"""How often a video is tried if its worker is lost."""
_FIRST_GUESS_SECONDS = 0.5
"""What a prediction is taken to last before one was measured."""
_PATIENT_SECONDS = 0.1
"""How often a patient video looks for a place."""
_CONTROL_SECONDS = 20.0
"""How long a question without a video may take."""


@dataclass(frozen=True)
class Capacity:
    """How much is accepted."""

    at_once: int
    """Videos that the deployments work on at the same time."""
    waiting: int
    """Further ones that wait."""
    answer_seconds: float
    """Longest time from the last byte of a video to its answer."""


class Queue:
    """Counts what is in work, so that more than can be answered in time is refused at once."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.inside = 0
        self._seconds = _FIRST_GUESS_SECONDS

    @property
    def working(self) -> int:
        """Videos in work."""
        return min(self.inside, self.capacity.at_once)

    @property
    def waiting(self) -> int:
        """Videos that wait for a worker."""
        return self.inside - self.working

    def full(self) -> Refusal | None:
        """Why no further video is accepted; None if there is room."""
        if self.inside < self.capacity.at_once + self.capacity.waiting:
            return None
        wait = max(1, math.ceil(self._seconds * self.inside / self.capacity.at_once))
        return Refusal("busy", f"{self.inside} videos are in work or waiting; no more are accepted now", wait)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for one video."""
        self.inside += 1
        began = time.monotonic()
        ahead = max(1.0, self.inside / self.capacity.at_once)
        try:
            yield
        finally:
            self.inside -= 1
            self._seconds += 0.1 * ((time.monotonic() - began) / ahead - self._seconds)


class ServePipeline:
    """`asked.Pipeline` over Ray Serve.

    Args:
        decoders: handle of the deployment of `Decoders`.
        encoder: handle of the deployment of `Encoder`.
        names: the models, the first of which answers where none is named.
        capacity: how much is accepted.
    """

    def __init__(self, decoders: Any, encoder: Any, *, names: Sequence[str], capacity: Capacity) -> None:
        self._decoders = decoders
        self._encoder = encoder
        self._names = tuple(names)
        self.queue = Queue(capacity)
        self.answered: float | None = None
        """When a video was predicted last, as `time.monotonic`."""
        self._facts: list[dict[str, Any]] | None = None

    async def predict(self, upload: Upload, ask: Ask, *, patient: bool = False) -> dict[str, Any] | Refusal:
        """See `Encoder.predict`.

        Args:
            upload: the video.
            ask: how it is to be predicted.
            patient: whether to wait for a place, as a video of a batch does that was accepted as a whole.
        """
        models = self.named(ask.models)
        if isinstance(models, Refusal):
            return models
        began = time.monotonic()
        deadline = began + self.queue.capacity.answer_seconds
        while full := self.queue.full():
            if not patient or time.monotonic() > deadline:
                return full
            await asyncio.sleep(_PATIENT_SECONDS)
        with self.queue.place():
            found = await self._within(self._predict(upload, models, ask))
        if not isinstance(found, Refusal):
            self.answered = time.monotonic()
            for one in (found, *found["others"]):
                _note_time(one, self.answered - began)
        return found

    def named(self, models: Sequence[str], *, every: bool = False) -> tuple[str, ...] | Refusal:
        """The models that are asked, each once; where none is named the first one, or every one."""
        wrong = [name for name in models if name not in self._names]
        if wrong:
            return Refusal("unknown_model", f"no model {wrong[0][:80]!r}; served are: {', '.join(self._names)}")
        return tuple(dict.fromkeys(models)) or (self._names if every else self._names[:1])

    async def _predict(self, upload: Upload, models: tuple[str, ...], ask: Ask) -> dict[str, Any] | Refusal:
        asked = replace(ask, models=models)
        if ask.adapt == "online":
            begun = await _control(self._encoder.ticket.remote(ask.who, ask.subject_id, ()))
            if isinstance(begun, Refusal):
                return begun
            asked = replace(asked, ticket=begun[0])
        attempts = 1 if ask.adapt == "online" else _ATTEMPTS  # an online one may have changed what is stored
        for attempt in range(attempts):
            decoded = await self._decoded(upload, models)
            if isinstance(decoded, Refusal):
                return decoded
            answer = await _asked(self._encoder.predict.remote(decoded, asked, self.queue.inside > 1))
            if not (isinstance(answer, Refusal) and answer.code == "worker_lost" and attempt + 1 < attempts):
                return answer
        raise AssertionError("the last attempt returns")

    async def _decoded(self, upload: Upload, models: Sequence[str]) -> Decoded | Refusal:
        """The decoded video; a decoder is asked again if the first one is lost, since nothing is stored by it."""
        content = None
        for _ in range(_ATTEMPTS + 1):
            found = await _asked(self._decoders.decode.remote(str(upload.path), models, content))
            if isinstance(found, NotHere):
                content = np.fromfile(upload.path, np.uint8)
            elif not (isinstance(found, Refusal) and found.code == "worker_lost"):
                return found
        return found if isinstance(found, Refusal) else Refusal("worker_lost", "no decoder could read the upload")

    async def _within(self, work: Awaitable[Any]) -> Any:
        seconds = self.queue.capacity.answer_seconds
        try:
            return await asyncio.wait_for(work, seconds)
        except asyncio.TimeoutError:
            return Refusal("timeout", f"no answer within {seconds:g} s")

    async def models(self) -> list[dict[str, Any]] | Refusal:
        """See `Encoder.models`; asked once, since a server's models do not change."""
        if self._facts is None:
            found = await _control(self._encoder.models.remote())
            if isinstance(found, Refusal):
                return found
            self._facts = found
        return self._facts

    async def subjects(self, who: Who) -> list[str] | Refusal:
        """See `Encoder.subjects`."""
        return await _control(self._encoder.subjects.remote(who))

    async def subject(self, who: Who, subject_id: str) -> dict[str, Any] | Refusal:
        """See `Encoder.subject`."""
        return await _control(self._encoder.subject.remote(who, subject_id))

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
        """See `Encoder.personalize`; the clips are decoded one after another, so that predictions go on meanwhile."""
        begun = await _control(self._encoder.ticket.remote(who, subject_id, models))
        if isinstance(begun, Refusal):
            return begun
        ticket, again = begun
        videos = []
        for path in [*clips, *(again if keep else ())]:
            videos.append((path, await self._decoded(Upload(path, path.stat().st_size), models)))
            on_clip()
        work = Personalizing(who, subject_id, tuple(videos), tuple(models), keep, ticket)
        found = await _asked(self._encoder.personalize.remote(work))
        if isinstance(found, NotHere):
            contents = await asyncio.to_thread(_in_object_store, clips)
            found = await _asked(self._encoder.personalize.remote(replace(work, contents=contents)))
        return found

    async def erase(self, who: Who, subject_id: str) -> list[str] | Refusal:
        """See `Encoder.erase`; every replica forgets the subject."""
        erased = await _control(self._encoder.erase.remote(who, subject_id))
        if not isinstance(erased, Refusal):
            await asyncio.to_thread(self._forgotten, who, subject_id)
        return erased

    def _forgotten(self, who: Who, subject_id: str) -> None:
        self._encoder.broadcast("forget", who, subject_id).results(timeout_s=_CONTROL_SECONDS)

    async def still(self, jpeg: bytes, model: str, *, seconds: float, seen: tuple[Any, ...]) -> Any | Refusal:
        """See `Decoders.still`."""
        return await _asked(self._decoders.still.remote(jpeg, model, seconds, seen))

    async def moment(self, look: Any) -> Any | Refusal:
        """See `Encoder.moment`."""
        return await _asked(self._encoder.moment.remote(look))

    async def annotate(self, upload: Upload, answer: dict[str, Any], target: Path) -> Refusal | None:
        """See `Decoders.annotate`."""
        found = await self._within(self._annotated(upload, answer, target, None))
        if isinstance(found, NotHere):
            found = await self._within(self._annotated(upload, answer, target, np.fromfile(upload.path, np.uint8)))
        if found is None or isinstance(found, Refusal):
            return found
        await asyncio.to_thread(write_bytes, target, found.tobytes(), private=True)
        return None

    def _annotated(self, upload: Upload, answer: dict[str, Any], target: Path, content: Any) -> Awaitable[Any]:
        return _asked(self._decoders.annotate.remote(str(upload.path), answer, str(target), content))


def _note_time(answer: dict[str, Any], seconds: float) -> None:
    """Write down how long an answer took, and that what no stage needed of it was waiting."""
    timings = answer["timings"]
    worked = sum(timings[stage] for stage in ("decode", "encode", "predict", "adapt"))
    answer["seconds"] = seconds
    timings["wait"] = max(0.0, seconds - worked)


def _in_object_store(paths: Sequence[Path]) -> dict[Path, Any]:
    """File → reference of its bytes."""
    import ray

    return {path: ray.put(np.fromfile(path, np.uint8)) for path in paths}


async def _control(work: Awaitable[Any]) -> Any:
    """The answer to a question without a video."""
    try:
        return await asyncio.wait_for(_asked(work), _CONTROL_SECONDS)
    except asyncio.TimeoutError:
        return Refusal("timeout", f"no answer within {_CONTROL_SECONDS:g} s")


async def _asked(work: Awaitable[Any]) -> Any:
    """The answer of a deployment; that its worker is gone or busy is a refusal, anything else is a bug."""
    from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    try:
        return await work
    except BackPressureError:
        return Refusal("busy", "too many videos at once", 1)
    except (RayActorError, ObjectLostError, DeploymentUnavailableError):
        return Refusal("worker_lost", "the worker stopped during this request", 2)
    except RayTaskError as error:
        if isinstance(error.cause, ObjectLostError | RayActorError):
            return Refusal("worker_lost", "the worker stopped during this request", 2)
        raise
