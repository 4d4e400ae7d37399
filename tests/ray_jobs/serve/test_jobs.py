"""Personalization in the background: what is told of a job, by whom, and what is left when it ended, however it did."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from clipautt.adaptation.source import Source
from clipautt.clips import Clip
from clipautt.features.clip_features import encode_clip
from clipautt.video.decoding import DecodeError
from ray_jobs.serve.alive import Alive, is_alive
from ray_jobs.serve.model.personalized import Sent, personalize
from ray_jobs.serve.model.subjects import SubjectStore
from ray_jobs.serve.refusals import KINDS, Refusal, RefusedError
from ray_jobs.serve.web.jobs import JobLimits, Jobs
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.schemas import Job
from ray_jobs.serve.web.uploads import Upload
from tests.support.configs import adapt_config
from tests.support.fakes import fake_source, write_video
from tests.support.photograph import photograph

TUNED = adapt_config(objective="infomax_kl", steps=2, learning_rate=0.1)
ANNA, BOB = Who("anna-key", "personalize"), Who("bob-key", "personalize")
MADE = {"subject_id": "p", "models": {}, "kept_clips": 0, "made_by": "server"}


@dataclass
class FakePipeline:
    """Personalizes by reading the files, one per opened gate."""

    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    answer: Any = field(default_factory=lambda: MADE)
    seen: list[tuple[str, list[str], bool]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    written: int = 0

    async def personalize(
        self, who: Who, subject_id: str, clips: Sequence[Path], *, keep: bool, on_clip: Callable[[], None], **_: Any
    ) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            texts = []
            for clip in clips:
                await self.gate.acquire()
                texts.append(clip.read_text())
                on_clip()
            self.seen.append((subject_id, texts, keep))
            if isinstance(self.answer, Exception):
                raise self.answer
            self.written += 1
            return self.answer
        finally:
            self.running -= 1

    def open(self, clips: int = 1) -> None:
        """Let this many clips through."""
        for _ in range(clips):
            self.gate.release()


class World:
    """Storage of a run, and web processes on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spool, self.uploads = folder / "jobs", folder / "spool", folder / "uploads"
        self.uploads.mkdir(exist_ok=True)
        self.spool.mkdir(exist_ok=True)
        self.number = 0
        self.gone: dict[str, Refusal] = {}
        """Owner → why nothing more is done for it."""

    def jobs(self, pipeline: Any = None, **limits: Any) -> Jobs:
        return Jobs(
            self.folder, self.spool, cast(Any, pipeline or FakePipeline()), JobLimits(**limits), gone=self.gone.get
        )

    def upload(self, text: str = "video") -> Upload:
        self.number += 1
        path = self.uploads / f"u{self.number}"
        path.write_text(text)
        return Upload(path, len(text))

    def left(self) -> list[str]:
        """Videos that still lie somewhere."""
        return [path.name for path in self.spool.rglob("*") if path.is_file()]

    def files(self) -> list[str]:
        return [path.name for path in self.folder.glob("*.json")]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """An async test."""
    asyncio.run(asyncio.wait_for(test(), 20))


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Wait for something that happens in the background."""
    while True:
        value = condition()
        if value if isinstance(value, bool) else await value:
            return
        await asyncio.sleep(0.005)


async def told(jobs: Jobs, job: Any, who: Who = ANNA) -> dict[str, Any]:
    """What is told of a job, in the form of the OpenAPI."""
    found = await jobs.status(who, job["job"])
    assert isinstance(found, dict), found
    return Job(**found).model_dump()


async def ended(jobs: Jobs, job: Any, who: Who = ANNA) -> dict[str, Any]:
    """What is told of a job once nothing is to come of it."""

    async def over() -> bool:
        return (await told(jobs, job, who))["status"] in ("done", "failed")

    await until(over)
    return await told(jobs, job, who)


def code_of(answer: Any) -> str:
    assert isinstance(answer, Refusal), answer
    return answer.code


def test_a_job_is_told_of_from_the_first_moment_to_its_end(world: World) -> None:
    async def test() -> None:
        pipeline = FakePipeline()
        jobs, replica = world.jobs(pipeline), world.jobs()
        uploads = [world.upload("one"), world.upload("two")]
        job = await jobs.submit(ANNA, "Zoe\u0308", uploads, models=["pain"], keep=True)
        assert isinstance(job, dict) and len(job["job"]) == 22
        for upload in uploads:
            assert not upload.path.exists(), "moved, so that the request may end and delete it"
        first = {"subject_id": "Zo\u00eb", "total": 2, "error": None, "subject": None}
        assert Job(**job).model_dump() == first | {"job": job["job"], "status": "waiting", "done": 0}
        pipeline.open()

        async def one_read() -> bool:
            return bool((await told(replica, job))["done"] == 1)

        await until(one_read)
        assert (await told(replica, job))["status"] == "running"
        pipeline.open()
        last = await ended(replica, job)
        assert last == first | {"job": job["job"], "status": "done", "done": 2, "subject": MADE}
        assert pipeline.seen == [("Zo\u00eb", ["one", "two"], True)] and world.left() == []
        for answer in [await jobs.status(BOB, job["job"])] + [
            await jobs.status(ANNA, name) for name in ("x" * 22, "../x", "", "a" * 999, job["job"] + "\n")
        ]:
            assert code_of(answer) == "unknown_job"
        await jobs.close()
        await replica.close()

    run(test)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the jobs log, whatever an earlier test has done to their logger."""
    for name in ("ray_jobs", "ray_jobs.serve", "ray_jobs.serve.web", "ray_jobs.serve.web.jobs"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.WARNING, logger="ray_jobs.serve.web.jobs")
    return caplog


def test_a_job_that_fails_says_why_and_leaves_nothing(world: World, logged: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        for answer, code, detail in (
            (Refusal("no_face", "clip 1: no face"), "no_face", "clip 1: no face"),
            (RefusedError("busy", "too much"), "busy", "too much"),
            (RuntimeError("/secret/path"), "failed", "the server failed on this job, and its log says why"),
        ):
            pipeline = FakePipeline(answer=answer)
            pipeline.open(1)
            jobs = world.jobs(pipeline)
            job = await jobs.submit(ANNA, "p", [world.upload()])
            found = await ended(jobs, job)
            assert found["error"] == {"code": code, "detail": detail, "help": KINDS[code][2]}
            assert found["subject"] is None and world.left() == []
            await jobs.close()

    run(test)
    assert "/secret/path" in logged.text


def test_one_at_a_time_the_others_wait_and_too_many_are_refused(world: World) -> None:
    async def test() -> None:
        pipeline = FakePipeline()
        jobs = world.jobs(pipeline, at_once=1, waiting=2)
        made = [await jobs.submit(ANNA, f"p{number}", [world.upload()]) for number in range(3)]
        upload = world.upload()
        refusal = await jobs.submit(ANNA, "p9", [upload])
        assert refusal == Refusal("busy", "too many personalizations are waiting", 10) and upload.path.exists()
        assert len(world.files()) == 3
        pipeline.open(3)
        for job in made:
            assert (await ended(jobs, job))["status"] == "done"
        assert pipeline.most == 1
        await until(lambda: not jobs._tasks)
        many = await asyncio.gather(*(jobs.submit(ANNA, f"q{number}", [world.upload()]) for number in range(9)))
        assert [isinstance(one, dict) for one in many].count(True) == 3
        await jobs.close()

    run(test)


def test_one_job_of_a_subject_at_a_time_on_all_replicas(world: World) -> None:
    async def test() -> None:
        pipeline = FakePipeline()
        jobs, replica = world.jobs(pipeline), world.jobs()
        job = await jobs.submit(ANNA, "p", [world.upload()])
        for other in (jobs, replica):
            assert code_of(await other.submit(ANNA, "p", [world.upload()])) == "subject_busy"
        assert isinstance(await replica.submit(BOB, "p", [world.upload()]), dict), "another person"
        pipeline.open(2)
        await ended(jobs, job)
        assert isinstance(await jobs.submit(ANNA, "p", [world.upload()]), dict)
        at_once = [one.submit(ANNA, "q", [world.upload()]) for one in (jobs, replica, jobs, replica)]
        assert [isinstance(one, dict) for one in await asyncio.gather(*at_once)].count(True) == 1
        await jobs.close()
        await replica.close()
        assert world.left() == []

    run(test)


@pytest.mark.parametrize("where", ["waiting", "running", "another replica"])
def test_a_job_of_an_erased_subject_writes_nothing(world: World, where: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        pipeline = FakePipeline()
        jobs = world.jobs(pipeline)
        eraser = world.jobs() if where == "another replica" else jobs
        if where == "waiting":
            await jobs.submit(BOB, "p", [world.upload(), world.upload()])
        job = await jobs.submit(ANNA, "p", [world.upload(), world.upload()])
        await until(lambda: pipeline.running == 1)
        assert await eraser.erase(BOB, "nobody") == []
        half = world.folder / ".a-job.json.0123.tmp"
        half.write_text("half a file that names a person")
        assert await eraser.erase(ANNA, "p") == ["1 job"]
        assert code_of(await jobs.status(ANNA, job["job"])) == "unknown_job"  # type: ignore[index]
        assert not half.exists()
        assert len(world.left()) == (2 if where == "waiting" else 0), "videos are deleted at once"
        if where == "another replica":  # it stops at its next video, even one that it has open
            (jobs._spool / jobs._alive.name / job["job"]).mkdir()  # type: ignore[index]
            (jobs._spool / jobs._alive.name / job["job"] / "0").write_text("open")  # type: ignore[index]
        pipeline.open(2)
        await until(lambda: not jobs._tasks)
        assert pipeline.written == (1 if where == "waiting" else 0) and len(world.files()) == pipeline.written
        assert world.left() == []
        await jobs.close()

    run(test)
    assert caplog.text == "", "that its videos are gone is no fault"


def test_jobs_of_a_key_that_was_revoked_fail_and_leave_no_video(world: World) -> None:
    async def test() -> None:
        pipeline = FakePipeline()
        jobs = world.jobs(pipeline)
        running = await jobs.submit(ANNA, "p", [world.upload(), world.upload()])
        waiting = await jobs.submit(ANNA, "q", [world.upload()])
        await until(lambda: pipeline.running == 1)
        world.gone[ANNA.owner] = Refusal("key_unknown", "the API key is revoked")
        pipeline.open()
        for job in (running, waiting):
            found = await ended(jobs, job)
            assert (found["status"], found["error"]["detail"]) == ("failed", "the API key is revoked")
        assert (pipeline.written, world.left()) == (0, [])
        await jobs.close()

    run(test)


def test_a_job_of_which_the_end_could_not_be_written_blocks_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        pipeline = FakePipeline()
        jobs = world.jobs(pipeline)
        job = await jobs.submit(ANNA, "p", [world.upload()])
        await until(lambda: pipeline.running == 1)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Jobs, "_write", full)
            pipeline.open()
            await until(lambda: not jobs._tasks)
        found = await told(jobs, job)
        assert (found["status"], found["error"]["code"]) == ("failed", "worker_lost")
        assert isinstance(await jobs.submit(ANNA, "p", [world.upload()]), dict)
        await jobs.close()

    run(test)
    assert "No space left on device" in logged.text


def test_a_stopped_server_fails_its_jobs(world: World) -> None:
    async def test() -> None:
        jobs = world.jobs()
        running = await jobs.submit(ANNA, "p", [world.upload()])
        waiting = await jobs.submit(ANNA, "q", [world.upload()])
        await jobs.close()
        assert world.left() == []
        again = world.jobs()
        for job in (running, waiting):
            found = await told(again, job)
            assert (found["status"], found["error"]["code"]) == ("failed", "worker_lost")
        assert isinstance(await again.submit(ANNA, "p", [world.upload()]), dict)
        await again.close()

    run(test)


def die_with_a_job(folder: Path) -> None:
    """A process that is killed during a job."""

    async def begin() -> None:
        world = World(folder)
        await world.jobs().submit(ANNA, "p", [world.upload()])
        os._exit(9)

    asyncio.run(begin())


def test_a_job_of_a_killed_process_is_told_as_lost_and_its_videos_are_swept(world: World, tmp_path: Path) -> None:
    async def test() -> None:
        watching = world.jobs()
        child = multiprocessing.get_context("fork").Process(target=die_with_a_job, args=(tmp_path,))
        child.start()
        await asyncio.to_thread(child.join)
        assert child.exitcode == 9 and world.left() == ["0"]
        (name,) = world.files()
        half = world.folder / f".{name}.0123.tmp"
        half.write_text("half a file that names a person")
        found = await told(watching, {"job": name.removesuffix(".json")})
        assert found["status"] == "failed"
        assert found["error"]["detail"] == "the server stopped during this job; send the videos again"
        assert isinstance(await watching.submit(ANNA, "p", [world.upload()]), dict)
        restarted = world.jobs()
        assert len(world.left()) == 1, "of the process that lives"
        assert not half.exists()
        assert len(list((world.folder / ".alive").iterdir())) == 2
        for jobs in (watching, restarted):
            await jobs.close()

    run(test)


def test_ended_jobs_are_forgotten_in_time_and_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        pipeline = FakePipeline()
        pipeline.open(5)
        jobs = world.jobs(pipeline, most_kept=2)
        made = []
        for number in range(4):
            made.append(await jobs.submit(ANNA, f"p{number}", [world.upload()]))
            await ended(jobs, made[-1])
        going = await jobs.submit(ANNA, "p4", [world.upload()])
        kept = [isinstance(await jobs.status(ANNA, job["job"]), dict) for job in [*made, going]]  # type: ignore[index]
        assert kept == [False, False, True, True, True]
        await ended(jobs, going)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 24 * 3600 + 1)
        assert code_of(await jobs.status(ANNA, going["job"])) == "unknown_job"  # type: ignore[index]
        await jobs.close()
        (world.folder / "junk.json").write_text("{")
        await world.jobs().close()
        assert world.files() == []

    run(test)


def test_uploads_that_are_gone_leave_no_job(world: World) -> None:
    async def test() -> None:
        jobs = world.jobs()
        gone = world.upload()
        gone.path.unlink()
        with pytest.raises(FileNotFoundError):
            await jobs.submit(ANNA, "p", [world.upload(), gone])
        assert world.files() == [] and world.left() == [] and not jobs._going
        submitting = asyncio.create_task(jobs.submit(ANNA, "p", [world.upload()]))
        await asyncio.sleep(0)
        submitting.cancel()  # the client went away
        await until(lambda: len(jobs._tasks) == 1)
        await jobs.close()
        (name,) = world.files()
        assert json.loads((world.folder / name).read_text())["error"]["code"] == "worker_lost"

    run(test)


class StorePipeline:
    """The real store and model in one process."""

    def __init__(self, store: SubjectStore, source: Source) -> None:
        self.store, self.source = store, source
        self.outcome: Any = None

    async def personalize(
        self, who: Who, subject_id: str, clips: Sequence[Path], *, keep: bool, on_clip: Callable[[], None], **_: Any
    ) -> Any:
        ticket = await asyncio.to_thread(self.store.ticket, who, subject_id)
        sent = []
        for clip in clips:
            sent.append(await asyncio.to_thread(self._read, clip))
            on_clip()
        arguments = (self.store, who, subject_id, sent, {"pain": self.source})
        work = asyncio.to_thread(personalize, *arguments, config=TUNED, keep=keep, ticket=ticket)
        self.outcome = asyncio.ensure_future(work)  # as a deployment, it goes on where nobody waits any more
        return await asyncio.shield(self.outcome)

    def _read(self, path: Path) -> Sent:
        clip = Clip("any", "", str(path), "target")
        try:
            found = encode_clip(clip, self.source.backbone, self.source.checkpoint.spec.features.frames)
        except DecodeError:
            return Sent(path, {}, Refusal("not_a_video", "not a video"))
        return Sent(path, {"pain": found})


def test_real_videos_become_what_is_stored_and_nothing_after_an_erasure(world: World, tmp_path: Path) -> None:
    frames = np.stack([photograph(x=110 + i, y=120, scale=1.6, size=(240, 240)) for i in range(40)])
    video = write_video(tmp_path / "face.mp4", frames).read_bytes()

    async def test() -> None:
        store = SubjectStore(tmp_path / "subjects", {"pain": None})
        pipeline = StorePipeline(store, fake_source(subject_baseline="median"))
        jobs = world.jobs(pipeline)

        async def submit() -> Any:
            uploads = [world.upload("no video"), world.upload()]
            uploads[1].path.write_bytes(video)
            return await jobs.submit(ANNA, "p", uploads, keep=True)

        found = await ended(jobs, await submit())
        assert found["subject"] == store.describe(ANNA, "p") and found["subject"]["kept_clips"] == 1
        assert store.personalization(ANNA, "p", "pain", pipeline.source).omitted == {"clip 1": "not a video"}
        (kept,) = (tmp_path / "subjects" / "anna-key" / ".clips" / "p").iterdir()
        assert kept.read_bytes() == video and world.left() == []

        with store.changing(ANNA, "p"):  # the job comes to its end and waits for this
            await submit()
            await until(lambda: not pipeline.outcome.done())
            assert await jobs.erase(ANNA, "p") == ["2 jobs"]
            erasing = asyncio.create_task(asyncio.to_thread(store.erase, ANNA, "p"))
        assert (await erasing)[-1] in ("1 kept clip", "2 kept clips")
        await asyncio.wait([pipeline.outcome])
        assert store.ids(ANNA) == [] and not list((tmp_path / "subjects").rglob("*p.safetensors"))
        assert not list((tmp_path / "subjects" / "anna-key" / ".clips").iterdir())
        await jobs.close()
        assert world.left() == []

    run(test)


def test_a_sign_of_life_ends_with_its_process(tmp_path: Path) -> None:
    sign = Alive(tmp_path)
    assert is_alive(tmp_path, sign.name) and not is_alive(tmp_path, "never")
    os.close(sign._handle)  # as a kill does
    assert not is_alive(tmp_path, sign.name)
