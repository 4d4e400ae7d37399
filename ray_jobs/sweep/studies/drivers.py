"""The drivers of a study: each notes that it lives, and finds out which others do.

In: an Optuna study. Out: the names of the drivers that live. On one machine a driver lives while its process does. Of
another machine's driver, only its notes are seen: it is taken for dead when they stop. Clocks of machines differ, so
notes are first of all compared with each other: a driver is dead if its note stays the same for two minutes of the
observer's own time. An observer that has just started would have to wait that long; it also believes a note that is
three minutes old by its clock, once it has stayed the same for 25 seconds. A driver whose clock is wrong is therefore
safe as long as it writes its notes, and clocks that differ by a minute shorten no wait below the two minutes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study

REFRESH_SECONDS = 10.0
"""Time between two notes of a driver."""
QUIET_SECONDS = 120.0
"""A note that stays the same for so long is a dead driver's."""
_OLD_SECONDS = 180.0
_WATCHED_SECONDS = 25.0
_KEY = "driver "

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """A process, told apart from every other one that had or will have its number."""

    host: str
    """Name of its machine."""
    machine: str
    """Name, boot and space of process numbers of its machine: equal where the numbers of two processes compare."""
    pid: int
    """Its number."""
    started: str
    """When it started, in the machine's own count; empty where the system does not tell."""


def this_process() -> Process:
    """The process that runs this."""
    host = socket.gethostname()
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [host, boot.read_text().strip() if boot.exists() else str(uuid.getnode())]
    with contextlib.suppress(OSError):
        parts.append(os.readlink(space))
    return Process(host, " ".join(parts), os.getpid(), _started(os.getpid()) or "")


def runs(process: Process) -> bool:
    """Whether a process of this machine still runs; one that has ended and whose parent did not notice does not."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(process.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return _started(process.pid) == process.started


def _started(pid: int) -> str | None:
    """Clock ticks from the machine's start to the process's; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Drivers:
    """This driver's notes, and what it knows of the others.

    Args:
        study: the study that keeps the notes.
        refresh: seconds between two notes.
    """

    def __init__(self, study: Study, *, refresh: float = REFRESH_SECONDS) -> None:
        self.study, self.process = study, this_process()
        self.name = f"{self.process.host} {self.process.pid} {uuid.uuid4().hex[:6]}"
        self.refresh, self._notes, self._stop = refresh, 0, threading.Event()
        self._watched: dict[str, tuple[Any, float]] = {}
        self._thread = threading.Thread(target=self._keep_noting, name="sweep driver", daemon=True)

    def enter(self) -> None:
        """Note that this driver lives, now and from time to time."""
        self._note()
        self._thread.start()

    def leave(self) -> None:
        """Note that this driver has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self.refresh)
        self._note(left=True)

    def alive(self) -> set[str]:
        """Names of the drivers that live, this one among them."""
        notes = {key.removeprefix(_KEY): note for key, note in self.study.user_attrs.items() if key.startswith(_KEY)}
        return {self.name} | {name for name, note in notes.items() if not note.get("left") and self._lives(name, note)}

    def _lives(self, name: str, note: dict[str, Any]) -> bool:
        process = Process(note["host"], note["machine"], note["pid"], note["started"])
        if process.machine == self.process.machine:
            return runs(process)
        now = time.monotonic()
        if self._watched.get(name, (None, 0.0))[0] != note["notes"]:
            self._watched[name] = note["notes"], now
        quiet, age = now - self._watched[name][1], time.time() - note["seen"]
        return quiet < QUIET_SECONDS and (quiet < _WATCHED_SECONDS or age < _OLD_SECONDS)

    def _note(self, *, left: bool = False) -> None:
        self._notes += 1
        process = {"host": self.process.host, "machine": self.process.machine, "pid": self.process.pid}
        note = {**process, "started": self.process.started, "seen": time.time(), "notes": self._notes, "left": left}
        self.study.set_user_attr(_KEY + self.name, note)

    def _keep_noting(self) -> None:
        failing = False
        while not self._stop.wait(self.refresh):
            try:
                self._note()
                failing = False
            except Exception as error:  # Whatever it is: the sweep itself meets it too, and tells.
                if not failing:
                    _log.warning("this driver cannot note that it lives (%s); it tries again", type(error).__name__)
                failing = True
        self.study._storage.remove_session()
