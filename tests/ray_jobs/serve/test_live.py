"""The live socket: what is seen in single frames, and how a session begins, goes on and ends, over a real WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket as sockets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from clipautt.adaptation.driver import adapt
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.methods.clip_autt import ClipAUTT
from clipautt.adaptation.personalization import Personalization
from clipautt.model.windows import WindowSpec
from clipautt.predictor import Predictor
from clipautt.video.decoding import DecodeError
from clipautt.video.preprocessing import Frames
from clipautt.video.reader import FrameSpec
from clipautt.video.stills import StillReader
from ray_jobs.serve.model.live import moment as seen_in
from ray_jobs.serve.model.looks import Look, Moment
from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.access_log import Watch
from ray_jobs.serve.web.keys import Who
from ray_jobs.serve.web.live import Live, LiveLimits
from ray_jobs.serve.web.metrics import Metrics
from tests.support.fakes import FEATURE_DIM, IMAGE_SIZE, PREPROCESSING, fake_clip, fake_source
from tests.support.listening import listening, wait_until
from tests.support.recordings import jpeg

BLANK = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
NOTHING = np.zeros((0, 0), np.float32)
LOCAL = Who("local", "admin")
START = {"type": "start"}
CODES = ["AU1", "AU2", "AU4", "AU5", "AU6", "AU7"]


def predictor(**options: Any) -> Predictor:
    return Predictor(fake_source(**options))


def look_at(past: npt.NDArray[np.float32], **options: Any) -> Look:
    seen = np.ones(len(past), bool)
    return Look(
        **{"model": "pain", "frame": BLANK, "found": True, "shown": True, "past": past, "past_found": seen} | options
    )


def one(made: Moment | Refusal) -> Moment:
    assert isinstance(made, Moment)
    return made


def test_a_full_window_is_predicted_as_in_a_video_of_these_frames_whatever_the_stride() -> None:
    for window in (WindowSpec(6), WindowSpec(5, stride=3)):
        model = predictor(window=window)
        clip = fake_clip(num_frames=40, positive=True)
        needed = (window.length - 1) * window.stride
        features = clip.features[-needed - 1 :]
        expected = model.predict_features(replace(clip, features=features, times=clip.times[: needed + 1]))
        moment = one(seen_in(model, look_at(clip.features[:-1].numpy()), features[-1]))
        assert moment.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
        assert moment.entropy == pytest.approx(-sum(p * np.log(p) for p in expected.probabilities.values()), abs=1e-5)
        assert moment.action_units == pytest.approx(expected.frames.iloc[-1][CODES].to_dict(), abs=1e-6)
        assert (moment.needed, moment.window_frames) == (needed, window.length)
        part = one(seen_in(model, look_at(clip.features[-window.stride - 1 : -1].numpy()), features[-1]))
        assert (part.probabilities, part.entropy, part.window_frames) == (None, None, 2)


def test_a_resting_face_personalizes_as_the_default_method_does() -> None:
    model = predictor(subject_baseline="median")
    rest, clip = fake_clip("rest", num_frames=15), fake_clip("c", num_frames=6, positive=True)
    config = AdaptConfig(ClipAUTT(), subject_baseline="median")
    person = Personalization.of(adapt(model.source, [rest], config)["s0"], config)
    expected = model.predict_features(clip, personalization=person).probabilities
    past, feature = clip.features[:-1].numpy(), clip.features[-1]
    by_file = one(seen_in(model, look_at(past), feature, person))
    by_rest = one(seen_in(model, look_at(past, centre_of=rest.features.numpy()), feature))
    assert by_file.probabilities == pytest.approx(expected, abs=1e-6)
    assert by_rest.probabilities == pytest.approx(expected, abs=1e-6)
    assert by_file.centre is None
    assert by_rest.centre == pytest.approx(rest.features.median(0).values.numpy())
    again = one(seen_in(model, look_at(past, centre=by_rest.centre), feature))
    both = one(seen_in(model, look_at(past, centre=np.zeros(FEATURE_DIM, np.float32)), feature, person))
    assert again.probabilities == by_rest.probabilities
    assert both.probabilities != by_file.probabilities  # the session's own resting face goes before the stored one


def test_what_is_not_finite_or_shows_no_face_says_nothing_of_the_classes() -> None:
    model, clip = predictor(), fake_clip(positive=True)
    past, feature = clip.features[:5].numpy(), clip.features[5]
    assert one(seen_in(model, look_at(past), feature)).probabilities is not None
    assert one(seen_in(model, look_at(np.full_like(past, np.inf)), feature)).probabilities is None
    hidden = one(seen_in(model, look_at(NOTHING, found=False, shown=False), feature))
    assert (hidden.probabilities, hidden.action_units) == (None, {})
    refused = Refusal("not_finite", "the model's numbers for this frame are not finite")
    assert seen_in(model, look_at(past), torch.full_like(feature, torch.nan)) == refused


class InProcess:
    """A small pipeline: the real decoding, encoding and prediction, in threads of this process."""

    def __init__(self, **options: Any) -> None:
        self.model = predictor(window=WindowSpec(4), subject_baseline="median", **options)
        self.stills = StillReader(FrameSpec(PREPROCESSING), max_pixels=10_000)
        self.instead: list[Refusal | Exception | None] = []
        """What is answered to the next frames instead of looking at them."""
        self.held = threading.Event()
        self.held.set()
        self.cancelled = 0

    async def models(self) -> list[dict[str, Any]]:
        facts = {"action_units": {code: code for code in CODES}, "classes": list(self.model.source.classes)}
        return [{"name": name, "window_frames": 4} | facts for name in ("pain", "stress")]

    async def subject(self, who: Who, subject_id: str) -> dict[str, Any] | Refusal:
        known = {"models": {"stress": {}}}
        return known if subject_id == "anna" else Refusal("unknown_subject", f"no subject {subject_id}")

    async def still(self, jpeg: bytes, model: str, *, seconds: float, seen: tuple[Any, ...]) -> Any:
        try:
            while not self.held.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        instead = self.instead.pop(0) if self.instead else None
        if isinstance(instead, Exception):
            raise instead
        if instead is not None:
            return instead
        try:
            return await asyncio.to_thread(self.stills, jpeg, seconds=seconds, seen=seen)
        except DecodeError as error:
            return Refusal("not_a_picture", f"frame: {error}")

    async def moment(self, look: Look) -> Any:
        (feature,) = self.model.source.backbone.encode_frames(look.frame[None])
        return await asyncio.to_thread(seen_in, self.model, look, feature)


async def anyone(socket: WebSocket, key: str | None) -> Who | Refusal:
    return Refusal("key_unknown", "the key is not known") if key == "wrong" else LOCAL


class Served:
    """A running server with a live socket."""

    def __init__(self, pipeline: InProcess, limits: LiveLimits) -> None:
        self.pipeline = pipeline
        self.metrics = Metrics()
        self.outcomes: list[str] = []
        self.lapsed: Refusal | None = None
        """Why the key of who has `anna's` is none any more."""
        self.live = Live(
            pipeline,  # type: ignore[arg-type]
            authenticate=anyone,
            lapsed=lambda socket, key: self.lapsed if key == "anna's" else None,
            limits=limits,
            on_frame=lambda outcome, _: self.outcomes.append(outcome),
        )
        self.port = 0

    def refused(self, code: str) -> int:
        """How many sessions were refused for this reason, as Prometheus is told."""
        found = re.search(rf'failures_total{{reason="{code}"}} (\d+)', self.metrics.render()[0].decode())
        assert found is not None
        return int(found[1])

    def connect(self, first: dict[str, Any] | None = START) -> ClientConnection:
        client = connect(f"ws://127.0.0.1:{self.port}/v1/live", compression=None, proxy=None, legacy=True)
        if first is not None:
            client.send(json.dumps(first))
        return client

    def ready(self, **first: Any) -> ClientConnection:
        """A client of a session that has begun."""
        client = self.connect(START | first)
        assert told(client)["type"] == "ready"
        return client


@contextlib.contextmanager
def serving(**limits: Any) -> Iterator[Served]:
    served = Served(InProcess(), LiveLimits(**limits))
    app = Starlette(routes=[WebSocketRoute("/v1/live", served.live.serve)])
    with listening(Watch(app, served.metrics, None)) as listener:
        served.port = listener.port
        try:
            yield served
        finally:
            served.pipeline.held.set()


def told(client: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(client.recv(timeout=20))
    return message


def ended(client: ClientConnection) -> tuple[dict[str, Any], int]:
    """The last message of a session, and the code with which it was closed."""
    message = told(client)
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=20)
    assert closed.value.rcvd is not None
    return message, closed.value.rcvd.code


def noise(number: int) -> bytes:
    pixels: Frames = np.random.default_rng(number).integers(0, 255, (40, 48, 3), np.uint8)
    return jpeg(pixels)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(max_bad_frames=3, max_frame_mb=0.05) as running:
        yield running


def test_a_session_from_the_first_message_over_a_resting_face_to_its_end(served: Served) -> None:
    client = served.connect(START | {"resting_seconds": 0.15, "model": "stress", "subject_id": None, "key": None})
    ready = {"type": "ready", "model": "stress", "classes": ["neutral", "pain"], "window_frames": 4}
    assert told(client) == ready | {"action_units": {code: code for code in CODES}}
    answers: list[dict[str, Any]] = []
    numbers = iter(range(1000))
    while not answers or answers[-1]["type"] != "rest":
        if answers and answers[-1].get("frame", 0) > 10:
            time.sleep(0.02)
        client.send(noise(next(numbers)))
        answers.append(told(client))
    *frames, rest = answers
    first = frames[0]
    assert set(first) == {
        "type", "frame", "dropped", "seconds", "face", "brightness", "action_units", "rises", "probabilities",
        "entropy", "window_frames", "personalized", "resting",
    }  # fmt: skip
    assert (first["frame"], first["dropped"], first["face"], first["rises"], first["probabilities"]) == (
        0,
        0,
        None,
        None,
        None,
    )
    assert list(first["action_units"]) == CODES
    assert 0 < first["seconds"] < 20
    assert [one["window_frames"] for one in frames[:6]] == [1, 2, 3, 4, 4, 4]
    assert all(one["resting"] and not one["personalized"] for one in frames)
    assert set(frames[3]["probabilities"]) == {"neutral", "pain"}
    assert rest == {"type": "rest", "frames": len(frames), "seconds": rest["seconds"]}
    after = told(client)
    assert (after["resting"], after["personalized"], after["frame"]) == (False, True, len(frames))
    resting = {code: float(np.median([one["action_units"][code] for one in frames])) for code in CODES}
    assert after["rises"] == pytest.approx({c: after["action_units"][c] - resting[c] for c in CODES}, abs=3e-5)
    client.close()
    wait_until(lambda: served.live.clients == 0)


def test_frames_that_come_while_one_is_in_work_are_dropped_and_counted(served: Served) -> None:
    with served.ready() as client:
        served.outcomes.clear()
        served.pipeline.held.clear()
        for number in range(30):
            client.send(noise(number))
        wait_until(lambda: served.outcomes.count("dropped") == 29)
        served.pipeline.held.set()
        first = told(client)
        client.send(noise(30))
        second = told(client)
        assert [(one["frame"], one["dropped"]) for one in (first, second)] == [(0, 29), (30, 29)]


@pytest.mark.parametrize(
    ("first", "code", "closed", "detail"),
    [
        ("hello", "malformed", 1008, "Invalid JSON"),
        ('{"type": "start"', "malformed", 1008, "Invalid JSON"),
        ("[" * 4000, "malformed", 1008, "Invalid JSON"),
        ("[1]", "malformed", 1008, "should be an object"),
        ('{"type": "rest"}', "malformed", 1008, "type: Input should be 'start'"),
        ('{"type": "start", "model": 3}', "malformed", 1008, "model: Input should be a valid string"),
        ('{"type": "start", "resting_seconds": 1e9}', "malformed", 1008, "resting_seconds: "),
        ('{"type": "start", "resting_seconds": NaN}', "malformed", 1008, "resting_seconds: "),
        ('{"type": "start", "path": "/etc/passwd"}', "malformed", 1008, "path: Extra inputs are not permitted"),
        (json.dumps(START | {"subject_id": "a" * 5000}), "malformed", 1008, "text of more than 4096 characters"),
        (noise(0), "malformed", 1008, "a frame before the first message"),
        (json.dumps(START | {"key": "wrong"}), "key_unknown", 1008, "the key is not known"),
        (json.dumps(START | {"model": "joy"}), "unknown_model", 1008, "no such model; there are: pain, stress"),
        (json.dumps(START | {"subject_id": ""}), "wrong_field", 1008, "a name that is not empty"),
        (json.dumps(START | {"subject_id": ".."}), "wrong_field", 1008, "any name in UTF-8 but `.` and `..`"),
        (json.dumps(START | {"subject_id": "a\0"}), "wrong_field", 1008, "all printable"),
        (json.dumps(START | {"subject_id": "bob"}), "unknown_subject", 1008, "no subject bob"),
        (json.dumps(START | {"subject_id": "anna"}), "unknown_subject", 1008, "nothing is stored of this subject for"),
    ],
)  # fmt: skip
def test_a_wrong_beginning_is_refused(served: Served, first: str | bytes, code: str, closed: int, detail: str) -> None:
    before = served.refused(code)
    client = served.connect(None)
    client.send(first)
    message, close_code = ended(client)
    wait_until(lambda: served.refused(code) == before + 1)
    assert (message["type"], message["code"], message["final"], close_code) == ("error", code, True, closed)
    assert detail in message["detail"]
    assert message["help"]


def test_a_bad_frame_costs_itself_and_only_bad_frames_in_a_row_end_a_session(served: Served) -> None:
    client = served.ready()
    large = noise(0) + bytes(60_000)
    for number, (bad, code) in enumerate(
        [(b"", "not_a_picture"), (large, "too_large"), (noise(1), ""), (noise(2)[:500], "not_a_picture")]
    ):
        client.send(bad)
        answer = told(client)
        assert (answer["frame"], answer.get("code", ""), answer.get("final", False)) == (number, code, False)
    client.send(b"\x89PNG")
    assert told(client)["detail"] == "frame: it is not a JPEG"
    client.send(b"GIF89a")
    message, closed = ended(client)
    assert (message["detail"], message["final"], closed) == ("3 frames in a row: frame: it is not a JPEG", True, 1008)
    client = served.ready()
    client.send('{"type": "start"}')
    message, closed = ended(client)
    assert (message["code"], closed) == ("malformed", 1008)


def test_a_worker_that_is_lost_is_told_and_the_session_goes_on(served: Served) -> None:
    lost = Refusal("worker_lost", "the worker stopped")
    with served.ready() as client:
        served.pipeline.instead = [None, lost, lost, lost, lost, RuntimeError("a bug"), None]
        answers = []
        for number in range(7):
            client.send(noise(number))
            answers.append(told(client))
        assert [one.get("code", one["type"]) for one in answers] == ["frame", *["worker_lost"] * 4, "failed", "frame"]
        assert not any(one.get("final") for one in answers)
        assert answers[-1]["window_frames"] == 2  # what was seen before is still known


def test_a_face_that_is_not_seen_at_rest_is_said_and_can_be_tried_again(served: Served) -> None:
    with served.ready() as client:
        for _ in range(2):
            client.send('{"type": "rest", "seconds": 0.01}')
            client.send(noise(0))
            assert told(client)["resting"]
            time.sleep(0.02)
            client.send(noise(1))
            error, frame = told(client), told(client)
            assert (error["code"], error["final"], frame["personalized"]) == ("no_face", False, False)
            assert error["detail"] == "the face was seen in 1 of 1 frames of the resting face; 10 are needed"


def test_who_is_silent_slow_or_too_long_is_told_and_let_go() -> None:
    with serving(
        start_seconds=0.2, idle_seconds=0.3, session_seconds=0.6, answer_seconds=0.2, trouble_seconds=0.1
    ) as served:
        silent, idle, long = served.connect(None), served.ready(), served.ready()
        assert (ended(silent)[0]["detail"]) == "no first message within 0.2 s"
        last: dict[str, Any] = {}
        with contextlib.suppress(ConnectionClosed):
            while "final" not in last:
                long.send(noise(0))
                last = told(long)
        with contextlib.suppress(ConnectionClosed):
            last = told(long)
        assert (last["code"], last["detail"]) == ("session_over", "a session lasts 0.6 s at most")
        message, closed = ended(idle)
        assert (message["code"], message["detail"], closed) == ("too_slow", "nothing was received for 0.3 s", 1008)
        wait_until(lambda: served.live.clients == 0)
        client = served.ready()
        served.pipeline.held.clear()
        client.send(noise(0))
        assert told(client)["code"] == "timeout"
        client.send(noise(1))
        message, closed = ended(client)
        assert message["detail"] == "no answers for 0.1 s: no answer for this frame within 0.2 s"
        assert (message["code"], closed) == ("timeout", 1008)
        assert served.pipeline.cancelled == 2


def test_a_key_that_is_revoked_ends_its_session_at_the_next_message(served: Served) -> None:
    with served.ready(key="anna's") as anna, served.ready() as other:
        anna.send(noise(0))
        assert told(anna)["type"] == "frame"
        served.lapsed = Refusal("key_unknown", "this API key is not known")
        anna.send(noise(1))
        message, closed = ended(anna)
        assert (message["code"], message["final"], closed) == ("key_unknown", True, 1008)
        other.send(noise(2))
        assert told(other)["type"] == "frame"
    served.lapsed = None


def test_clients_beyond_the_limit_are_turned_away_and_one_that_vanishes_frees_its_place() -> None:
    with serving(max_clients=1) as served:
        client = served.ready()
        other = served.connect()
        message, closed = ended(other)
        assert (message["code"], closed) == ("busy", 1013)
        assert (message["detail"], message["retry_seconds"]) == ("1 live sessions at once are allowed", 10)
        served.pipeline.held.clear()
        client.send(noise(0))
        time.sleep(0.05)
        client.socket.shutdown(sockets.SHUT_RDWR)  # without a word, in the middle of a frame
        client.socket.close()
        wait_until(lambda: served.live.clients == 0)
        assert served.pipeline.cancelled == 1
        served.pipeline.held.set()
        with served.ready() as client:
            client.send(noise(0))
            assert told(client)["window_frames"] == 1  # nothing is left of the other's frames
        waiting = [served.connect(None) for _ in range(4)]
        wait_until(lambda: len(served.live._waiting) == 4)
        with served.ready() as client:  # whoever says nothing keeps out nobody who does
            message, closed = ended(waiting[0])
            assert (message["code"], closed) == ("busy", 1013)
        wait_until(lambda: len(served.live._waiting) == 3)
        for silent in waiting[1:]:
            silent.close()
        wait_until(lambda: served.live._waiting == {})
