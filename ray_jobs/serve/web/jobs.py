"""Personalization in the background: PUT /v1/subjects/ID answers at once with a job, GET /v1/jobs/ID follows it.

In: uploaded videos of a subject. Out: a `Job` as plain values, at once and whenever it is asked for. A job is a file in
the run's storage, so that every web replica and a restarted server can tell of it:

    JOB.json         who asked, how far it is, and what came of it
    .alive/PROCESS   locked by each process that runs jobs, so that the others see when it is gone
    .jobs.lock       held while files are looked through and changed

Its videos are moved to a folder of the process that runs it, and deleted when the job ends, however it ends. A job
without its file writes nothing any more: that is how a subject's jobs are stopped when it is erased.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clipautt.files import locked, sync_folder, write_json
from clipautt.tables import nfc
from ray_jobs.serve.alive import Alive, is_alive, remove_dead
from ray_jobs.serve.private import private_folder
from ray_jobs.serve.refusals import Refusal, RefusedError, unless_refused
from ray_jobs.serve.web.asked import Pipeline
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.schemas import JobStatus
from ray_jobs.serve.web.uploads import Upload

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[\w-]{22}", re.ASCII)
_DAY = 24 * 3600.0
_RETRY_SECONDS = 10
_LOST = Refusal("worker_lost", "the server stopped during this job; send the videos again")


class _ForgottenError(Exception):
    """A job has no file any more."""


@dataclass(frozen=True)
class JobLimits:
    """How much is done in the background."""

    at_once: int = 1
    """Jobs that one process runs at a time."""
    waiting: int = 16
    """Jobs that wait for those; more are refused."""
    seconds_kept: float = _DAY
    """How long after its end a job can still be asked for."""
    most_kept: int = 1000
    """Most ended jobs that can be asked for; beyond them, those that ended first are forgotten."""


@dataclass(frozen=True)
class _Record:
    """A job's file."""

    job: str
    """Id of the job, which nobody can guess."""
    owner: str
    """Who sees it."""
    subject_id: str
    """Who is personalized to."""
    total: int
    """Videos that were sent."""
    process: str
    """Name of the sign of life of the process that runs it."""
    changed: float
    """When the file was written, Unix time."""
    status: JobStatus = "waiting"
    """How far it is."""
    done: int = 0
    """Videos that were read."""
    error: dict[str, Any] | None = None
    """`Problem` of a job that failed."""
    subject: dict[str, Any] | None = None
    """`Subject` of a job that is done."""

    @property
    def going(self) -> bool:
        """Whether something is still to come of it."""
        return self.status in ("waiting", "running")

    @property
    def told(self) -> dict[str, Any]:
        """A `Job` as plain values."""
        return {name: value for name, value in asdict(self).items() if name not in ("owner", "process", "changed")}


class Jobs:
    """The jobs of one web process. Its coroutines belong into one event loop.

    Args:
        folder: where the jobs' files are, in storage of the run that all web replicas share.
        spool: a folder for their videos alone, shared by the web replicas of a machine; the decoders read it.
        pipeline: what personalizes.
        limits: how much is done in the background.
        gone: why nothing more is done for an owner; asked before a job begins and after each video.
    """

    def __init__(
        self,
        folder: Path,
        spool: Path,
        pipeline: Pipeline,
        limits: JobLimits | None = None,
        *,
        gone: Callable[[str], Refusal | None] = lambda owner: None,
    ) -> None:
        self.folder, self.pipeline, self.limits, self._gone = folder, pipeline, limits or JobLimits(), gone
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private_folder(spool)
        self._signs = folder / ".alive"
        self._alive = Alive(self._signs)
        self._spool = spool
        (spool / self._alive.name).mkdir(mode=0o700)
        self._slots = asyncio.Semaphore(self.limits.at_once)
        self._going: set[str] = set()  # from `submit` to the end
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._beginning: set[asyncio.Task[dict[str, Any] | Refusal]] = set()
        self._sweep()

    async def submit(
        self, who: Who, subject_id: str, uploads: Sequence[Upload], *, models: Sequence[str] = (), keep: bool = False
    ) -> dict[str, Any] | Refusal:
        """Begin to personalize to a subject.

        Args:
            who: its owner.
            subject_id: whose videos they are, see `forms.check_subject`.
            uploads: the videos, one or more, which are moved away, so that the request may end.
            models: names of the models; empty for all.
            keep: whether the videos are kept, so that later ones add to them.

        Returns:
            A `Job` as plain values; or why there is none: `subject_busy` while an earlier one of the subject goes on,
            `busy` if too many wait.
        """
        if len(self._going) >= self.limits.at_once + self.limits.waiting:
            return Refusal("busy", "too many personalizations are waiting", _RETRY_SECONDS)
        job = _Record(
            secrets.token_urlsafe(16), who.owner, nfc(subject_id), len(uploads), self._alive.name, time.time()
        )
        self._going.add(job.job)
        beginning = asyncio.create_task(self._begin(job, who, uploads, models, keep))
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        return await asyncio.shield(beginning)  # a client that goes away leaves no job that nobody runs

    async def status(self, who: Who, job_id: str) -> dict[str, Any] | Refusal:
        """How far a job is, a `Job` as plain values; `unknown_job` for those of others, too."""
        job = await asyncio.to_thread(self._find, job_id)
        if job is None or job.owner != who.owner:
            return Refusal("unknown_job", f"no job {job_id[:40]!r}")
        return job.told

    async def erase(self, who: Who, subject_id: str) -> list[str]:
        """Stop and forget a subject's jobs, before `Pipeline.erase`; says in words what that was.

        Their videos are deleted at once. A job of another process stops at its next video, and the store refuses what
        it would still write.
        """
        jobs = await asyncio.to_thread(self._forget, who.owner, nfc(subject_id))
        for job in jobs:
            if job.job in self._tasks:
                self._tasks[job.job].cancel()
        return [f"{len(jobs)} job{'s' * (len(jobs) != 1)}"] if jobs else []

    async def close(self) -> None:
        """Stop all jobs, mark them as failed, and delete their videos."""
        await asyncio.gather(*self._beginning, return_exceptions=True)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        shutil.rmtree(self._spool / self._alive.name, ignore_errors=True)
        self._alive.close()

    async def _begin(
        self, job: _Record, who: Who, uploads: Sequence[Upload], models: Sequence[str], keep: bool
    ) -> dict[str, Any] | Refusal:
        try:
            refusal = await asyncio.to_thread(self._take, job, uploads)
        except BaseException:
            self._going.discard(job.job)
            raise
        if refusal is not None:
            self._going.discard(job.job)
            return refusal
        task = self._tasks[job.job] = asyncio.create_task(self._run(job, who, models, keep))
        task.add_done_callback(lambda ended: self._end(job, ended))
        return job.told

    def _take(self, job: _Record, uploads: Sequence[Upload]) -> Refusal | None:
        """Write the job's file and move its videos, unless the subject has another job."""
        with self._locked():
            own = [one for one in self._records() if (one.owner, one.subject_id) == (job.owner, job.subject_id)]
            if any(one.going for one in map(self._checked, own)):
                detail = f"subject {job.subject_id!r} is being personalized"
                return Refusal("subject_busy", detail, _RETRY_SECONDS)
            self._write(job)
            self._forget_old()
        try:
            self._videos(job).mkdir(mode=0o700)
            for number, upload in enumerate(uploads):
                shutil.move(upload.path, self._videos(job) / str(number))
        except BaseException:
            self._remove(job)
            raise
        return None

    async def _run(self, job: _Record, who: Who, models: Sequence[str], keep: bool) -> None:
        clips = [self._videos(job) / str(number) for number in range(job.total)]
        try:
            async with self._slots:
                self._check_owner(job)
                await asyncio.to_thread(self._change, job, status="running")
                answer = await self.pipeline.personalize(
                    who, job.subject_id, clips, models=models, keep=keep, on_clip=lambda: self._count(job)
                )
        except _ForgottenError:
            return
        except RefusedError as error:
            answer = error.refusal
        except Exception:
            if self._is_forgotten(job):  # and its videos with it, so that they could not be read
                return
            _LOG.exception("job %s failed", job.job)
            answer = Refusal("failed", "the server failed on this job, and its log says why")
        await asyncio.to_thread(shutil.rmtree, self._videos(job), ignore_errors=True)  # before the end is told
        with contextlib.suppress(_ForgottenError):
            if isinstance(answer, Refusal):
                await asyncio.to_thread(self._change, job, status="failed", error=answer.body)
            else:
                await asyncio.to_thread(self._change, job, status="done", done=job.total, subject=answer)

    def _end(self, job: _Record, task: asyncio.Task[None]) -> None:
        """However a job ended: its videos are deleted, and one that was stopped is marked as failed."""
        shutil.rmtree(self._videos(job), ignore_errors=True)
        self._tasks.pop(job.job, None)
        self._going.discard(job.job)
        if task.cancelled():
            with contextlib.suppress(_ForgottenError):
                self._change(job, status="failed", error=_LOST.body)
        elif task.exception() is not None and not isinstance(task.exception(), _ForgottenError):
            _LOG.error("job %s cannot be told of", job.job, exc_info=task.exception())

    def _count(self, job: _Record) -> None:
        """One more video was read. Stops a job that another process has erased, or whose key was revoked."""
        self._check_owner(job)
        try:
            self._change(job, more=1)
        except _ForgottenError:
            task = self._tasks.get(job.job)
            if task is not None:
                task.cancel()
            raise

    def _check_owner(self, job: _Record) -> None:
        unless_refused(self._gone(job.owner))

    def _is_forgotten(self, job: _Record) -> bool:
        with self._locked():
            return not self._path(job.job).exists()

    def _change(self, job: _Record, *, more: int = 0, **values: Any) -> None:
        """Write a job's file anew.

        Raises:
            _ForgottenError: if there is none any more, since its subject was erased.
        """
        with self._locked():
            there = self._read(self._path(job.job))
            if there is None:
                raise _ForgottenError(job.job)
            self._write(replace(there, **({"done": there.done + more} | values), changed=time.time()))

    def _find(self, job_id: str) -> _Record | None:
        if not _ID.fullmatch(job_id):
            return None
        with self._locked():
            job = self._read(self._path(job_id))
            if job is not None and self._is_old(job):
                self._remove(job)
                return None
            return job and self._checked(job)

    def _forget(self, owner: str, subject: str) -> list[_Record]:
        with self._locked():
            jobs = [one for one in self._records() if (one.owner, one.subject_id) == (owner, subject)]
            for job in jobs:
                self._remove(job)
            self._remove_unfinished()
            sync_folder(self.folder)
        return jobs

    def _forget_old(self) -> None:
        """Forget jobs that ended long ago, and the earliest of too many."""
        ended = sorted((job for job in self._records() if not job.going), key=lambda job: job.changed, reverse=True)
        for number, job in enumerate(ended):
            if number >= self.limits.most_kept or self._is_old(job):
                self._remove(job)

    def _is_old(self, job: _Record) -> bool:
        return not job.going and time.time() - job.changed > self.limits.seconds_kept

    def _checked(self, job: _Record) -> _Record:
        """The job; as failed, which is written down, if nobody runs it any more."""
        own = job.process == self._alive.name
        if not job.going or (job.job in self._going if own else is_alive(self._signs, job.process)):
            return job
        lost = replace(job, status="failed", error=_LOST.body, changed=time.time())
        self._write(lost)
        return lost

    def _sweep(self) -> None:
        """Mark the jobs of processes that are gone as failed, and remove what they left."""
        with self._locked():
            for job in self._records():
                self._checked(job)
            self._forget_old()
            self._remove_unfinished()
        remove_dead(self._signs, self._spool)

    def _remove_unfinished(self) -> None:
        """Remove what killed processes left half written: nobody else writes while the lock is held."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / "jobs")

    def _path(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.json"

    def _videos(self, job: _Record) -> Path:
        return self._spool / job.process / job.job

    def _records(self) -> list[_Record]:
        return [job for path in self.folder.glob("[!.]*.json") if (job := self._read(path)) is not None]

    def _read(self, path: Path) -> _Record | None:
        try:
            return _Record(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            _LOG.warning("%s is no job of this version and is removed: %s", path.name, error)
            path.unlink(missing_ok=True)
            return None

    def _write(self, job: _Record) -> None:
        write_json(self._path(job.job), asdict(job))

    def _remove(self, job: _Record) -> None:
        """Remove a job's file and its videos."""
        self._path(job.job).unlink(missing_ok=True)
        shutil.rmtree(self._videos(job), ignore_errors=True)
