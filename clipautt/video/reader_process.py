"""Decoding in a child process, under deadlines and with bounded memory.

Decoders run native code on untrusted files. One that hangs is killed, and one that crashes takes only the child with
it; the next decoder is tried in a new child. A clip gives frames, or an error that says what each decoder did. A child
serves many clips, so its start (about half a second) is paid once. `read_clip` returns the frames; `work_on_clip` runs
a function of the caller on them in the child.

`main` is the child: it answers requests on an inherited socket until that closes.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from clipautt.clips import Clip
from clipautt.settings import settings
from clipautt.video.decoding import DecodeError, Decoder, decoders_of
from clipautt.video.reader import OF_FRAMES, FrameChunk, FrameSpec, NoFaceError, decode_chunks

_START_SECONDS = 120.0
_ALIVE_SECONDS = 0.5
_GRACE_SECONDS = 5.0
_TRIM_FRAMES = 32


@settings
class ReadLimits:
    """What reading one clip may cost; a clip that costs more is omitted, with a reason."""

    stall_seconds: PositiveFloat = 30.0
    """A decoder that gives no frame for this long is stopped."""
    total_seconds: PositiveFloat = 1800.0
    """A decoder that takes longer than this is stopped; waiting for the caller to take frames does not count."""
    max_pixels: PositiveInt = 33_177_600
    """Width × height of a frame; larger frames are not decoded. The default is 8K, 7680 × 4320."""
    memory_mb: PositiveInt = 6144
    """Address space of the decoding process, MiB."""


def read_clip(clip: Clip, spec: FrameSpec, limits: ReadLimits | None = None) -> Iterator[FrameChunk]:
    """Decode, crop and resize a clip in a child process.

    If a decoder fails midway, the next decoder's chunks follow, from the beginning of the clip: keep only chunks with
    the same `decoder` as the last one.

    Args:
        clip: what to read.
        spec: what its frames become.
        limits: deadlines, pixels and memory.

    Yields:
        Chunks in order.

    Raises:
        FileNotFoundError: if the source does not exist.
        DecodeError: if no decoder gives frames, with the reason of each.
        NoFaceError: if a face is looked for and never found.
    """
    with closing(_ask_decoders(clip, {"spec": asdict(spec)}, limits or ReadLimits())) as answers:
        for decoder, answer in answers:
            if answer["kind"] == "chunk":
                yield _chunk(answer, decoder)


def work_on_clip(
    work: Callable[..., Any], clip: Clip, arguments: Mapping[str, Any], limits: ReadLimits | None = None
) -> Any:
    """Run a function on a clip in a child process, with one decoder after another until it succeeds.

    A decoder that fails may leave the work half done; the next call starts over and must cope with that.

    Args:
        work: a function at the top of a module, which the child imports; it is called as
            `work(clip, decoder=…, max_pixels=…, on_frame=…, **arguments)`; it passes those three on to `stream_clip`.
        clip: what is decoded.
        arguments: further arguments of `work`, as JSON values.
        limits: deadlines, pixels and memory; between two calls of `on_frame` no more than `stall_seconds` may pass.

    Returns:
        What `work` returned, after a round trip through JSON.

    Raises:
        ValueError: for a function that another process cannot import.
        FileNotFoundError, DecodeError, NoFaceError: as `read_clip`; any other error of `work` is a decoder's failure.
    """
    if work.__module__ == "__main__" or not work.__qualname__.isidentifier():
        raise ValueError(
            f"work={work.__module__}.{work.__qualname__}; allowed: functions at the top of a module, "
            "which the decoding process can import"
        )
    request = {"work": [work.__module__, work.__qualname__], "arguments": dict(arguments)}
    *_, (_, done) = _ask_decoders(clip, request, limits or ReadLimits())
    return done["result"]


def _ask_decoders(
    clip: Clip, request: dict[str, Any], limits: ReadLimits
) -> Generator[tuple[Decoder, dict[str, Any]], None, None]:
    """The answers of one decoder after another, until one succeeds; raises as `read_clip`."""
    # Absolute: a child may have been started in another folder, and a colon in a name would look like a protocol.
    clip = replace(clip, source=os.path.abspath(clip.source))
    if not os.path.exists(clip.source):  # also for a name that is too long, about which `Path` raises another error
        raise FileNotFoundError(f"clip {clip.clip_id!r}: no video file or folder of frames at {clip.source}")
    failures: dict[str, list[str]] = {}
    for decoder in decoders_of(clip.source):
        try:
            with _borrowed_child() as child:
                for answer in child.ask(request | {"clip": asdict(clip), "decoder": decoder}, limits):
                    yield decoder, answer
            return
        except NoFaceError as error:
            raise NoFaceError(f"clip {clip.clip_id!r}: {clip.source}: {error}") from None
        except DecodeError as error:
            failures.setdefault(str(error), []).append(decoder)
    said = "; ".join(f"{' and '.join(decoders)}: {reason}" for reason, decoders in failures.items())
    raise DecodeError(f"clip {clip.clip_id!r}: {clip.source} cannot be decoded ({said})")


def _chunk(answer: dict[str, Any], decoder: Decoder) -> FrameChunk:
    frames = np.frombuffer(answer["content"], np.uint8).reshape(answer["shape"])
    times, found = np.array(answer["times"], np.float64), np.array(answer["found"], bool)
    boxes, light, turned = (np.array(answer[name], np.float32) for name in ("boxes", "brightness", "turned"))
    return FrameChunk(
        decoder, frames, times, found, boxes, light, turned, tuple(answer["notes"]), answer["other_faces"]
    )


def read_frames(
    clip: Clip,
    spec: FrameSpec,
    *,
    start_seconds: float = -math.inf,
    end_seconds: float = math.inf,
    limits: ReadLimits | None = None,
) -> FrameChunk:
    """The frames of a short part of a clip, from `start_seconds` and before `end_seconds`, as one chunk.

    One that lies at `start_seconds` is among them even if the part has no length, as a clip of one frame has.

    Raises:
        DecodeError: if no frame lies there; and as `read_clip`.
    """
    kept: list[FrameChunk] = []
    for chunk in read_clip(clip, spec, limits):
        if kept and kept[-1].decoder != chunk.decoder:
            kept = []
        since = chunk.times - start_seconds
        inside = (since >= -1e-6) & ((chunk.times < end_seconds - 1e-6) | (since <= 1e-6))
        if inside.any():
            kept.append(chunk.where(inside))
    if not kept:
        raise DecodeError(f"clip {clip.clip_id!r}: no frames from {start_seconds:g} to {end_seconds:g} s")
    return FrameChunk.joined(kept)


class _Child:
    """A decoding process and the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):  # A library may have given sockets a default timeout, with which reads do not wait.
            end.setblocking(True)
        # The child imports what this process would, and nothing that happens to be in the current folder; it has one
        # thread per library.
        environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        code = "import sys; sys.path[:] = sys.argv[2:]; from clipautt.video.reader_process import main; main()"
        command = [sys.executable, "-c", code, str(theirs.fileno()), *filter(None, sys.path)]
        with theirs:
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if os.environ.get("CLIPAUTT_DEBUG") else subprocess.DEVNULL,
            )
        self.connection = Connection(ours.detach())
        self.busy = False
        try:
            started = self.connection.poll(_START_SECONDS) and self._receive()["kind"] == "ready"
        except (EOFError, OSError):
            started = False
        if not started:
            self.end()
            raise RuntimeError("the decoding process did not start; set CLIPAUTT_DEBUG=1 in the environment to see why")

    def ask(self, request: dict[str, Any], limits: ReadLimits) -> Iterator[dict[str, Any]]:
        """The answers to one request, the last of them `done`; raises `DecodeError` or `NoFaceError`.

        The child is `busy` until it has answered `done` or `failed`.
        """
        self.busy = True
        waited = 0.0
        try:
            self.connection.send_bytes(json.dumps(request | {"limits": asdict(limits)}).encode())
            if self.connection.poll(_START_SECONDS):  # the child's imports do not count against the decoder
                self._receive()
            while self.busy:
                began = time.monotonic()
                left = limits.total_seconds - waited
                if not self.connection.poll(max(0.0, min(limits.stall_seconds, left))):
                    why = "gave no frame for" if limits.stall_seconds <= left else "had not finished after"
                    raise DecodeError(f"stopped because it {why} {min(limits.stall_seconds, limits.total_seconds):g} s")
                answer = self._receive()
                waited += time.monotonic() - began
                if answer["kind"] == "chunk":
                    answer["content"] = bytearray(self.connection.recv_bytes())
                if answer["kind"] != "alive":
                    yield answer
        except (EOFError, ConnectionError):
            raise DecodeError(f"the decoding process {self._death()}") from None

    def _receive(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.connection.recv_bytes())
        if answer["kind"] in ("done", "failed"):
            self.busy = False
        if answer["kind"] == "failed":
            raise NoFaceError(answer["reason"]) if answer["no_face"] else DecodeError(answer["reason"])
        return answer

    def _death(self) -> str:
        try:
            code = self.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its socket"
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"

    def end(self) -> None:
        """Kill the process."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class _Pool:
    """Idle children of one process. A forked process starts with none: sockets cannot be shared."""

    def __init__(self) -> None:
        self.idle: list[_Child] = []
        self.owner = os.getpid()
        self.lock = threading.Lock()

    def take(self) -> _Child:
        with self.lock:
            if self.owner != os.getpid():
                self.idle, self.owner = [], os.getpid()
            child = self.idle.pop() if self.idle else None
        return child if child is not None and child.process.poll() is None else _Child()

    def put(self, child: _Child) -> None:
        with self.lock:
            self.idle.append(child)

    def close(self) -> None:
        if self.owner == os.getpid():
            while self.idle:
                self.idle.pop().end()


_pool = _Pool()
atexit.register(_pool.close)


@contextmanager
def _borrowed_child() -> Iterator[_Child]:
    """A child for one request; it is kept for the next request unless it is still busy."""
    child = _pool.take()
    try:
        yield child
    finally:
        if child.busy:
            child.end()
        else:
            _pool.put(child)


class _ParentGoneError(Exception):
    """The parent no longer reads the answers of this child."""


def _serve(connection: Connection) -> None:
    """The child: answer requests until the parent is gone."""
    _send(connection, {"kind": "ready"})
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        limits = ReadLimits(**request["limits"])
        _bound_memory(limits.memory_mb)
        try:
            _answer(connection, request, limits)
        except _ParentGoneError:
            return
        except Exception as error:  # decoders raise types of their own, end-of-file among them; each reason is kept
            reason = {"reason": _reason(error), "no_face": isinstance(error, NoFaceError)}
            _send(connection, {"kind": "failed", **reason})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(connection: Connection, request: dict[str, Any], limits: ReadLimits) -> None:
    work = _imported(*request["work"]) if "work" in request else None
    _send(connection, {"kind": "begun"})
    on_frame = _alive_teller(connection, limits)
    on_frame()
    clip, result = Clip(**request["clip"]), None
    how = {"decoder": request["decoder"], "max_pixels": limits.max_pixels, "on_frame": on_frame}
    if work is not None:
        result = work(clip, **how, **request["arguments"])
    else:
        _send_chunks(connection, decode_chunks(clip, FrameSpec.from_json(request["spec"]), **how), on_frame)
    _send(connection, {"kind": "done", "result": result})


def _imported(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _alive_teller(connection: Connection, limits: ReadLimits) -> Callable[[], None]:
    """Function to call after each frame: it keeps the parent waiting, and ends this process if no other comes."""
    spoke, seen, trim = time.monotonic(), 0, _memory_trimmer()

    def on_frame() -> None:
        nonlocal spoke, seen
        seen += 1
        if seen % _TRIM_FRAMES == 0:
            trim()
        # The parent may be gone while native code hangs: then the alarm ends this process.
        signal.setitimer(signal.ITIMER_REAL, limits.stall_seconds + _GRACE_SECONDS)
        if time.monotonic() - spoke > _ALIVE_SECONDS:
            spoke = time.monotonic()
            _send(connection, {"kind": "alive"})

    return on_frame


def _send_chunks(connection: Connection, chunks: Iterator[FrameChunk], on_frame: Callable[[], None]) -> None:
    for chunk in chunks:
        of_frames = {name: getattr(chunk, name).tolist() for name in OF_FRAMES if name != "frames"}
        facts = of_frames | {"shape": chunk.frames.shape, "notes": chunk.notes, "other_faces": chunk.other_faces}
        signal.setitimer(signal.ITIMER_REAL, 0)  # the parent may take its time
        _send(connection, {"kind": "chunk", **facts}, np.ascontiguousarray(chunk.frames).data.cast("B"))
        on_frame()


def _send(connection: Connection, answer: dict[str, Any], content: memoryview | None = None) -> None:
    try:
        connection.send_bytes(json.dumps(answer).encode())
        if content is not None:
            connection.send_bytes(content)
    except OSError as error:
        raise _ParentGoneError from error


def _reason(error: Exception) -> str:
    """A decoder's error in one line, without the path, which the message already has."""
    said = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return said[-1] if said else type(error).__name__


def _memory_trimmer() -> Callable[[], object]:
    """Function that gives freed memory back: glibc keeps hundreds of megabytes. Without glibc it does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: trim(0)) if trim else (lambda: None)


def _bound_memory(megabytes: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = megabytes << 20
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def main() -> None:
    """Run the child; its first argument is the socket's file descriptor."""
    import av
    import cv2

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent, which ends its children
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    _serve(Connection(int(sys.argv[1])))
