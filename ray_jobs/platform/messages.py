"""What Ray and its nodes say during a job: lost nodes in one line of ours, Ray's own messages in a file.

In: a connected Ray. Out: lines on standard output, and the file that they name. When a node is lost, Ray prints
hundreds of lines about tasks that it repeats; they are kept for whoever looks for the cause.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray_jobs.platform.progress import running

_LOOK_EVERY_SECONDS = 2.0


class MessageFile(logging.Handler):
    """Collects messages in a file, which is made when the first one arrives."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.path, self.named = "", False

    def emit(self, record: logging.LogRecord) -> None:
        """Add the record of a logger."""
        with contextlib.suppress(OSError):  # a full disk; the job matters more
            self.add(self.format(record))

    def add(self, text: str) -> None:
        """Add a message."""
        with self.lock or contextlib.nullcontext():
            if not self.path:
                handle, self.path = tempfile.mkstemp(prefix="clipautt-ray-", suffix=".log")
                os.close(handle)
            with open(self.path, "a", encoding="utf-8", errors="replace") as file:
                file.write(text.rstrip("\n") + "\n")

    def discard(self) -> None:
        """Remove the file, unless it has been named; the next message begins another one."""
        with self.lock or contextlib.nullcontext():
            if self.path and not self.named:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
                self.path = ""

    def mention(self) -> str:
        """Path of the file, which then counts as named; empty if nothing has been said."""
        self.named = self.named or bool(self.path)
        return self.path


MESSAGES = MessageFile()
"""The file of this process."""


def silence(logger: logging.Logger) -> None:
    """Send a logger's messages to the file instead of the console; its own files stay complete."""
    for handler in logger.handlers:
        if handler is not MESSAGES and "File" not in type(handler).__name__:
            handler.setLevel(logging.CRITICAL + 1)
    if MESSAGES not in logger.handlers:
        logger.addHandler(MESSAGES)


@contextlib.contextmanager
def kept_aside() -> Iterator[None]:
    """Send what the cluster tells its drivers to the file.

    Where an error ends the block, the file is named, if it has not been; where nothing went wrong, it is removed.
    """
    from ray._private import worker

    def note(data: Mapping[str, Any], **_: Any) -> None:
        for line in data.get("lines", ()):
            MESSAGES.add(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ({data.get('pid')}) {line}")

    before = worker.print_to_stdstream
    worker.print_to_stdstream = note  # type: ignore[assignment]
    try:
        yield
    except BaseException:
        if MESSAGES.path and not MESSAGES.named:
            print(f"Ray's messages: {MESSAGES.mention()}", file=sys.stderr, flush=True)
        raise
    finally:
        worker.print_to_stdstream = before
        MESSAGES.discard()


@contextlib.contextmanager
def watched(nodes: Callable[[], Mapping[str, str]], *, every_seconds: float = _LOOK_EVERY_SECONDS) -> Iterator[None]:
    """Print a line for every node that is lost inside this block.

    Args:
        nodes: the nodes that are alive: id → name and size.
        every_seconds: how often it is asked.
    """
    stop, known = threading.Event(), dict(nodes())

    def watch() -> None:
        while not stop.wait(every_seconds):
            with contextlib.suppress(Exception):  # the cluster does not answer: the job itself says so
                now = dict(nodes())
                for node_id in known.keys() - now.keys():
                    print(_lost(known.pop(node_id), len(now)), flush=True)
                known.update(now)

    watcher = threading.Thread(target=watch, name="clipautt_nodes", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _lost(node: str, left: int) -> str:
    """What was lost and what happens to it, in one line."""
    others = {0: "as soon as there is another node", 1: "on the other node"}.get(left, f"on the other {left} nodes")
    finished = f" ({'; '.join(running())})" if running() else ""
    said = f". Ray's messages: {file}" if (file := MESSAGES.mention()) else ""
    return f"lost {node}: what it was working on is done again {others}, what is finished stays{finished}{said}"
