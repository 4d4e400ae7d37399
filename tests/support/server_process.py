"""A real server in processes of its own, and what they hold: memory, files, and which process is which.

The memory of a process is its proportional share (PSS): pages that several processes map, such as Ray's object store,
count once. All figures come from /proc.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

OBJECT_STORE, PROGRAM_FILES = "object store", "files of programs"
_START_SECONDS = 300.0
_REPLICA = re.compile(r"ServeReplica:[^:]+:(\w+)")
_KNOWN = ("raylet", "gcs_server", "plasma", "log_monitor", "dashboard", "monitor", "runtime_env")


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """A running `clipautt serve`."""

    url: str
    process: subprocess.Popen[bytes]
    folder: Path
    """Its working folder: `runs/` and `tmp/` are in it."""

    @property
    def pid(self) -> int:
        """Of the command; all other processes are below it."""
        return self.process.pid

    def status(self, path: str, seconds: float = 10.0) -> int:
        """HTTP status of an address; 0 if there is no answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=seconds) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait_until_ready(self, seconds: float = _START_SECONDS) -> float:
        """Seconds until predictions work."""
        began = time.monotonic()
        while self.status("/readyz") != 200:
            if self.process.poll() is not None or time.monotonic() - began > seconds:
                raise TimeoutError(f"the server is not ready; see the end of {self.folder / 'server.log'}")
            time.sleep(0.1)
        return time.monotonic() - began

    def replicas(self, deployment: str) -> set[int]:
        """The processes of a deployment."""
        return {pid for pid, name in processes(self.pid).items() if name == deployment}

    def files(self) -> list[str]:
        """What lies in the server's temporary folder, Ray's own and signs of life aside."""
        root = self.folder / "tmp"
        found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        aside = {"ray", ".alive"}
        return [str(path) for path in found if not aside & set(path.parts) and path.suffix != ".log"]


def ended(url: str, job: dict[str, Any], seconds: float = 120.0) -> dict[str, Any]:
    """What a server tells of a personalization once nothing is to come of it."""
    ends = time.monotonic() + seconds
    while job["status"] in ("waiting", "running"):
        assert time.monotonic() < ends, job
        time.sleep(0.05)
        job = httpx.get(f"{url}/v1/jobs/{job['job']}", timeout=30).raise_for_status().json()
    return job


@contextlib.contextmanager
def serving(folder: Path, settings: Sequence[str]) -> Iterator[Server]:
    """Run `clipautt serve` in a folder with these settings until the block ends."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    port = free_port()
    words = ["serve", f"port={port}", f"runs={folder}/runs", *settings]
    log = (folder / "server.log").open("a")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    server = Server(f"http://127.0.0.1:{port}", process, folder)
    try:
        server.wait_until_ready()
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            for pid in processes(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        log.close()


def processes(root: int) -> dict[int, str]:
    """The process and all below it → what each is: a deployment's name, or that of the program."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                parents.setdefault(int(parent), []).append(int(entry))
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            found[pid] = _name_of(pid)
        waiting += parents.get(pid, [])
    return found


def _name_of(pid: int) -> str:
    line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    replica = _REPLICA.search(line)
    if replica:
        return replica[1]
    for name in _KNOWN:
        if name in line:
            return "Ray"
    if line.startswith("ray::"):
        return "Ray Serve" if "Serve" in line else "Ray, idle"
    return "clipautt serve" if "ray_jobs.cli" in line else "others"


def memory_by_name(root: int) -> dict[str, float]:
    """What each kind of process holds by itself, MB; what several map, the object store and the files of programs and
    libraries, is counted apart. The share of files changes with what else runs on the machine."""
    found = {OBJECT_STORE: 0.0, PROGRAM_FILES: 0.0}
    for pid, name in processes(root).items():
        sizes = _sizes(pid)
        found[name] = found.get(name, 0.0) + sizes.get("Pss_Anon", 0.0)
        found[OBJECT_STORE] += sizes.get("Pss_Shmem", 0.0)
        found[PROGRAM_FILES] += sizes.get("Pss_File", 0.0)
    return found


def _sizes(pid: int) -> dict[str, float]:
    """The kernel's account of a process, MB; empty if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {line.partition(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


def cpu_seconds(root: int) -> dict[str, float]:
    """Processor time that each kind of process has used, with that of its children that have ended."""
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[str, float] = {}
    for pid, name in processes(root).items():
        with contextlib.suppress(OSError):
            values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[name] = found.get(name, 0.0) + sum(map(int, values[11:15])) / ticks
    return found


@dataclass
class MemoryWatch:
    """Samples the memory of a server's processes while its block runs."""

    root: int
    period: float = 1.0
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """Seconds since the beginning, and MB by kind of process."""

    def __enter__(self) -> MemoryWatch:
        self._done = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self.period):
            self.samples.append((time.monotonic() - self._began, memory_by_name(self.root)))

    @property
    def peak_mb(self) -> float:
        """The most that all processes held together."""
        return max((sum(found.values()) for _, found in self.samples), default=0.0)
