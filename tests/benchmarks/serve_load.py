"""Load on a running server, from a process of its own: so many requests at once, so many a second, live frames.

Each part prints one line of JSON. Bodies are made once, so that the load itself costs the machine little.

    python -m tests.benchmarks.serve_load closed http://127.0.0.1:8000 8 200 a.mp4 b.mp4
    python -m tests.benchmarks.serve_load open http://127.0.0.1:8000 60 600 a.mp4 b.mp4
    python -m tests.benchmarks.serve_load at-once http://127.0.0.1:8000 20 large.mp4
    python -m tests.benchmarks.serve_load live http://127.0.0.1:8000 12 20 a.mp4
    python -m tests.benchmarks.serve_load ping http://127.0.0.1:8000        # until SIGTERM
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

_BOUNDARY = "0b8b1d1f3f5b4f0e"
_SECONDS = 240.0
_KIND = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
_PING_SECONDS = 0.25
_TRIES, _PAUSE, _NOBODY = 60, 0.25, "ClientConnectorError"


@dataclass(frozen=True)
class Outcome:
    """What became of a request."""

    status: int
    """HTTP status; 0 if the connection failed."""
    seconds: float
    """From sending it to the end of its answer."""
    began: float
    """Seconds from the beginning of the load."""
    retry_seconds: float | None = None
    """When to try again, as the answer says."""
    problem: str = ""
    """The code of a refusal, or the kind of a failed connection."""


def body_of(path: str) -> bytes:
    """A form with one file `video`."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
    return head.encode() + Path(path).read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()


class Load:
    """Requests to one server, and what became of them.

    Args:
        url: of the server.
        session: of aiohttp.
        bodies: taken in turn.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, bodies: Sequence[bytes]) -> None:
        self.outcomes: list[Outcome] = []
        self._url, self._session = url, session
        self._bodies = itertools.cycle(bodies)
        self._began = time.perf_counter()

    async def predict(self) -> Outcome:
        """Send one video."""
        body = next(self._bodies)
        send = self._session.post(f"{self._url}/v1/predict", data=body, headers=_KIND)
        outcome = await self._outcome(send)
        self.outcomes.append(outcome)
        return outcome

    async def _outcome(self, request: Any) -> Outcome:
        began = time.perf_counter()
        at = began - self._began
        try:
            async with request as answer:
                content = await answer.read()
                seconds = time.perf_counter() - began
                problem = "" if answer.status == 200 else _code(content)
                retry = answer.headers.get("Retry-After")
                return Outcome(answer.status, seconds, at, None if retry is None else float(retry), problem)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            return Outcome(0, time.perf_counter() - began, at, problem=type(error).__name__)

    async def ping(self) -> None:
        """Ask whether the server is alive, until cancelled."""
        while True:
            self.outcomes.append(await self._outcome(self._session.get(f"{self._url}/healthz")))
            await asyncio.sleep(_PING_SECONDS)

    @property
    def seconds(self) -> float:
        """Since the load began."""
        return time.perf_counter() - self._began


def _code(content: bytes) -> str:
    try:
        return str(json.loads(content)["code"])
    except (ValueError, KeyError, TypeError):
        return "no JSON"


async def closed(load: Load, concurrency: int, count: int) -> None:
    """`count` answers, so many clients at once: each sends its next video when the last one is answered, a refused one
    again after as long as it is told, and one for which nobody listened again in a moment."""
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            for _ in range(_TRIES):
                outcome = await load.predict()
                pause = _PAUSE if outcome.problem == _NOBODY else outcome.retry_seconds
                if pause is None:
                    break
                await asyncio.sleep(pause)

    await asyncio.gather(*[client() for _ in range(concurrency)])


async def open_loop(load: Load, rate: float, seconds: float) -> None:
    """`rate` requests a second, whatever becomes of those before."""
    running: set[asyncio.Task[Any]] = set()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, number / rate - load.seconds))
        task = asyncio.create_task(load.predict())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


def summary(load: Load) -> dict[str, Any]:
    """The outcomes in figures; times in milliseconds. `nobody` counts attempts to connect while nobody listened, `lost`
    requests that were neither answered nor refused as they should be."""
    accepted = [one for one in load.outcomes if one.status == 200]
    refused = [one for one in load.outcomes if one.status in (429, 503)]
    others = [one for one in load.outcomes if one.status not in (200, 429, 503)]
    return {
        "seconds": load.seconds,
        "requests": len(load.outcomes),
        "accepted": len(accepted),
        "refused": len(refused),
        "nobody": sum(one.problem == _NOBODY for one in others),
        "lost": sum(one.problem != _NOBODY for one in others),
        "per_second": len(accepted) / load.seconds,
        "accepted_ms": percentiles([one.seconds for one in accepted]),
        "refused_ms": percentiles([one.seconds for one in refused]),
        "without_retry_after": sum(one.retry_seconds is None for one in refused),
        "problems": dict(Counter(f"{one.status} {one.problem}" for one in [*refused, *others])),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, milliseconds; empty for none."""
    if not seconds:
        return {}
    values = np.percentile(np.array(seconds) * 1000, (50, 95, 99, 100))
    return dict(zip(("p50", "p95", "p99", "max"), values.round(2).tolist(), strict=True))


async def pinged(load: Load) -> None:
    """Ask whether the server is alive until this process is told to end."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    pinging = asyncio.create_task(load.ping())
    await told.wait()
    pinging.cancel()


async def loaded(url: str, files: Sequence[str], work: Callable[[Load], Awaitable[None]]) -> Load:
    """Run some load."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        load = Load(url, session, [body_of(file) for file in files])
        await work(load)
    return load


def jpegs(video: str) -> list[bytes]:
    """The frames of a video as a browser sends them."""
    import av

    from tests.support.recordings import jpeg

    with av.open(video) as container:
        return [jpeg(frame.to_ndarray(format="rgb24"), quality=80) for frame in container.decode(video=0)]


async def live(url: str, rate: float, seconds: float, frames: Sequence[bytes]) -> dict[str, Any]:
    """A live session: latency from sending a frame to its answer, as one client sees it."""
    sent: dict[int, float] = {}
    answers: list[tuple[float, float]] = []
    kinds: Counter[str] = Counter()
    dropped = 0
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/v1/live") as socket:
        await socket.send_json({"type": "start", "resting_seconds": 2})
        ready = await socket.receive_json()
        assert ready["type"] == "ready", ready

        async def listen() -> None:
            nonlocal dropped
            async for message in socket:
                told = json.loads(message.data)
                kinds[told.get("code", told["type"])] += 1
                if told["type"] == "frame":
                    answers.append((time.perf_counter() - sent[told["frame"]], told["seconds"]))
                    dropped = told["dropped"]

        listening = asyncio.create_task(listen())
        began = time.perf_counter()
        for number, frame in zip(range(round(rate * seconds)), itertools.cycle(frames), strict=False):
            await asyncio.sleep(max(0.0, number / rate - (time.perf_counter() - began)))
            sent[number] = time.perf_counter()
            await socket.send_bytes(frame)
        await asyncio.sleep(1)
        await socket.close()
        listening.cancel()
    return {
        "frames": len(sent),
        "answered": len(answers),
        "dropped": dropped,
        "kinds": dict(kinds),
        "client_ms": percentiles([mine for mine, _ in answers]),
        "server_ms": percentiles([theirs for _, theirs in answers]),
    }


def main(arguments: Sequence[str]) -> None:
    """Run one kind of load and print its figures."""
    kind, url, *more = arguments
    if kind == "live":
        print(json.dumps(asyncio.run(live(url, float(more[0]), float(more[1]), jpegs(more[2])))))
        return
    files: Sequence[str]
    if kind == "closed":
        first, second, *files = more
        load = asyncio.run(loaded(url, files, lambda one: closed(one, int(first), int(second))))
    elif kind == "open":
        first, second, *files = more
        load = asyncio.run(loaded(url, files, lambda one: open_loop(one, float(first), float(second))))
    elif kind == "at-once":
        first, *files = more
        load = asyncio.run(loaded(url, files, lambda one: closed(one, int(first), int(first))))
    elif kind == "ping":
        load = asyncio.run(loaded(url, (), pinged))
    else:
        raise SystemExit(f"{kind!r}: allowed: closed, open, at-once, live, ping")
    print(json.dumps(summary(load)))


if __name__ == "__main__":
    main(sys.argv[1:])
