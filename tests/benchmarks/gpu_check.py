"""Check and measure the method on a machine with one GPU, in under eight minutes, without Ray.

Out: one table and one JSON file. The measurements are in `gpu_parts`. They run in a worker process, one part after the
other; each part has a time limit, and all share one deadline. A part that raises or runs out of time becomes a row with
the reason; the worker is then replaced and the next part begins. Rows are printed at once; the file is written after
each part.

    make gpu-check                                # ARGS: out=FILE parts=encoder,tuning minutes=7.5
    make gpu-check ARGS="device=cpu size=tiny"    # everything but compiling, in seconds, at meaningless sizes

Exit code 1: a part raised, or a result is wrong. Without a GPU: one line, and exit code 0.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.benchmarks import gpu_parts
from tests.benchmarks.gpu_parts import Row, Work
from tests.benchmarks.machine import machine

ROOT = Path(__file__).resolve().parents[2]
_MINUTES = 7.5
_START_SECONDS = 90.0
"""Time limit for a worker's imports; a new machine reads PyTorch from a cold disk."""
LIMITS = {
    "tests": 90.0,
    "encoder": 100.0,
    "overlap": 75.0,
    "tuning": 60.0,
    "windows": 30.0,
    "batched": 60.0,
    "compiled": 200.0,
}
"""Part → time limit in seconds. Compiling comes last, so that a slow machine drops it first."""
_COMPILATIONS = ("default", "cuda_graphs")


@dataclass
class Report:
    """The results so far; printed row by row, and written to a file after each part."""

    path: Path
    """The JSON file."""
    head: dict[str, Any]
    """Machine, versions and settings."""
    rows: list[Row] = field(default_factory=list)
    """Rows in the order of the table."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Name, seconds and limit of each part that has ended."""
    began: float = field(default_factory=time.monotonic)
    """When the check began, `time.monotonic` seconds."""

    def add(self, row: Row) -> None:
        """Print a row and keep it."""
        if not self.rows:
            print(_line("part", "case", "figure", "", "share", "status", "note"), flush=True)
        self.rows.append(row)
        value = "" if row.value is None else _figure(row.value)
        share = "" if row.share is None else f"{100 * row.share:.0f} % of {row.of}"
        print(_line(row.part, row.case, value, row.unit, share, row.status, row.note), flush=True)

    def end_part(self, name: str, seconds: float, limit: float) -> None:
        """Record how long a part took, and write the file."""
        self.parts.append({"name": name, "seconds": round(seconds, 1), "limit_seconds": limit})
        self.write()

    def write(self) -> None:
        """Write the file with the results so far."""
        facts = {**self.head, "seconds": round(time.monotonic() - self.began, 1), "parts": self.parts}
        content = json.dumps({**facts, "rows": [asdict(row) for row in self.rows]}, indent=1, ensure_ascii=False)
        self.path.write_text(content + "\n", encoding="utf-8")


def _line(*cells: str) -> str:
    widths = (9, 48, 10, 17, 32, 8)
    padded = [cell.rjust(width) if i == 2 else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths))]  # noqa: B905
    return " ".join([*padded, cells[-1]]).rstrip()


def _figure(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.1e}"


class Worker:
    """A new process that runs one function after the other; it can be killed together with its children."""

    def __init__(self) -> None:
        ours, theirs = get_context("spawn").Pipe()
        self.connection = ours
        self.process = get_context("spawn").Process(target=_serve, args=(theirs,))
        self.process.start()
        theirs.close()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a function of `gpu_parts`; `answers` yields its results."""
        self.connection.send((function.__name__, arguments))

    def answers(self, until: float) -> Iterator[Any]:
        """Yield what the function returns or, one by one, what it yields.

        Raises:
            TimeoutError: if the time is over; the worker has then been killed.
            RuntimeError: if the function raised, or the process ended; the worker has then been killed.
        """
        while True:
            try:
                if not self.connection.poll(max(0.0, until - time.monotonic())):
                    raise TimeoutError
                kind, content = self.connection.recv()
            except (EOFError, ConnectionError):
                self.process.join(5)
                self.end()
                raise RuntimeError(f"the process ended with exit code {self.process.exitcode}") from None
            except TimeoutError:
                self.end()
                raise
            if kind == "done":
                return
            if kind == "error":
                self.end()
                raise RuntimeError(content)
            yield content

    def end(self) -> None:
        """Kill the process and its children."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()


def _serve(connection: Connection) -> None:
    """The worker's side: run the requested functions until the parent is gone."""
    os.setsid()  # its children belong to its group and end with it
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            result = getattr(gpu_parts, name)(*arguments)
            for answer in result if isinstance(result, Iterator) else [result]:
                connection.send(("answer", answer))
            connection.send(("done", None))
        except Exception as error:
            import traceback

            traceback.print_exc()
            lines = str(error).strip().splitlines()
            connection.send(("error", f"{type(error).__name__}: {lines[0] if lines else ''}"))


def run_part(name: str, work: Work, worker: Worker, until: float) -> Iterator[Row]:
    """Yield the rows of a part that one worker measures."""
    worker.ask(gpu_parts.tidy, work)
    for _ in worker.answers(until):
        pass
    worker.ask(getattr(gpu_parts, name), work)
    yield from worker.answers(until)


def run_tests(work: Work, until: float) -> Iterator[Row]:
    """Run the method's GPU tests with pytest in a separate process."""
    if importlib.util.find_spec("pytest") is None:
        yield Row("tests", "GPU tests of clipautt", status="skipped", note="pytest is not installed")
        return
    files = [str(p) for p in sorted((ROOT / "tests" / "clipautt").rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfE", "-p", "no:cacheprovider", *files]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said = process.communicate(timeout=max(0.0, until - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise TimeoutError from None
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", said)}
    wrong = re.findall(r"^(?:FAILED|ERROR) (.*)$", said, re.MULTILINE)
    note = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    if process.returncode:
        print(said, file=sys.stderr)
        note = "; ".join([note or f"pytest ended with exit code {process.returncode}", *wrong[:3]])
        yield Row("tests", "GPU tests of clipautt", counts.get("passed", 0), "passed", status="failed", note=note)
    elif counts.get("passed"):
        yield Row("tests", "GPU tests of clipautt", counts["passed"], "passed", note=note)
    else:
        yield Row("tests", "GPU tests of clipautt", status="skipped", note=note)


def run_compiled(work: Work, until: float) -> Iterator[Row]:
    """Compiled tuning: all kinds are compiled at the same time, one per worker, and measured one after the other."""
    if work.size == "tiny":
        yield Row("compiled", "exact bf16", status="skipped", note="compiling takes longer than size=tiny may")
        return
    workers = {compilation: Worker() for compilation in _COMPILATIONS}
    try:
        for compilation, worker in workers.items():
            worker.ask(gpu_parts.prepare_compiled, work, compilation)
        ready = {}
        for compilation, worker in workers.items():
            try:
                ((seconds, row),) = worker.answers(until)
            except (RuntimeError, TimeoutError) as error:
                yield failure("compiled", f"exact bf16, {compilation}", error)
                continue
            yield row
            ready[compilation] = seconds
        for compilation, seconds in ready.items():
            workers[compilation].ask(gpu_parts.time_compiled, work, compilation)
            try:
                (row,) = workers[compilation].answers(until)
            except (RuntimeError, TimeoutError) as error:
                yield failure("compiled", f"exact bf16, {compilation}", error)
                continue
            yield Row(**asdict(row) | {"note": f"{row.note}; first call took {seconds:.0f} s"})
    finally:
        for worker in workers.values():
            worker.end()


def failure(part: str, case: str, error: Exception) -> Row:
    """The row of a case that raised or ran out of time."""
    if isinstance(error, TimeoutError):
        return Row(part, case, status="late", note="its time ran out")
    return Row(part, case, status="failed", note=str(error))


def check(parts: Sequence[str], work: Work, report: Report, minutes: float, worker: Worker) -> None:
    """Run the parts, and add their rows to the report."""
    deadline = report.began + 60 * minutes
    current: Worker | None = worker
    try:
        for name in parts:
            began = time.monotonic()
            until = min(began + LIMITS[name], deadline)
            try:
                if name in ("tests", "compiled"):
                    run = run_tests if name == "tests" else run_compiled
                    rows = run(work, until)
                else:
                    current = current or Worker()
                    rows = run_part(name, work, current, until)
                for row in rows:
                    report.add(row)
            except (RuntimeError, TimeoutError) as error:
                report.add(failure(name, "", error))
                current = None if name not in ("tests", "compiled") else current
            report.end_part(name, time.monotonic() - began, LIMITS[name])
    finally:
        if current is not None:
            current.end()


def main(arguments: Sequence[str]) -> int:
    """Print the table, write the file, and return the exit code."""
    options = {"out": "gpu_check.json", "size": "full", "device": "", "parts": ",".join(LIMITS), "minutes": _MINUTES}
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            raise SystemExit(f"gpu-check: {word!r}; allowed: {', '.join(f'{name}=…' for name in options)}")
        options[key] = value
    parts, size = str(options["parts"]).split(","), str(options["size"])
    for key, given, allowed in (("size", [size], gpu_parts.SIZES), ("parts", parts, LIMITS)):
        if unknown := [name for name in given if name not in allowed]:
            raise SystemExit(f"gpu-check: {key}={unknown[0]}; allowed: {', '.join(allowed)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began = time.monotonic()
    worker = Worker()
    worker.ask(gpu_parts.facts, options["device"] or None)
    (facts,) = worker.answers(time.monotonic() + _START_SECONDS)
    if facts["device"] is None:
        worker.end()
        print('gpu-check: no GPU on this machine, nothing to do (ARGS="device=cpu size=tiny" runs it at tiny sizes)')
        return 0
    head = {"machine": machine(), "host": platform.node(), **facts, "size": size}
    report = Report(Path(str(options["out"])), head, began=began)
    name = f"{facts['gpu']}, driver {facts['driver']}" if facts["gpu"] else "no GPU used"
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    print(f"{machine()}, {name}\n{versions}; size={size}\n", flush=True)
    check(parts, Work(facts["device"], size), report, float(options["minutes"]), worker)  # type: ignore[arg-type]
    bad = [row for row in report.rows if row.status == "failed"]
    seconds = ", ".join(f"{part['name']} {part['seconds']:.0f}" for part in report.parts)
    report.write()
    print(
        f"\n{time.monotonic() - began:.0f} s ({seconds}); {len(bad)} rows failed; written to {report.path}", flush=True
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
