"""What serving costs, in one run: against the bare `Predictor` on the same clips, live, in memory, overloaded, killed.

The server is a real `clipautt serve` in processes of its own, asked over HTTP from another process. Rounds of the bare
predictor and of the server take turns. Bare and batched is: all clips encoded one after another with all cores, then
`predict_many`. The figures are written to runs/bench/serve.json.

    make bench-serve                                 # twenty minutes on two cores, half of them overload
    make bench-serve ARGS="minutes=1 rounds=2"       # and any of: latency live memory overload kill
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipautt.files import write_json
from ray_jobs.platform.progress import table
from tests.benchmarks.bench_predict_many import write_checkpoint
from tests.benchmarks.machine import machine
from tests.benchmarks.serve_load import percentiles
from tests.support.fakes import write_video
from tests.support.photograph import photograph
from tests.support.server_process import MemoryWatch, Server, cpu_seconds, memory_by_name, serving

PARTS = ("latency", "live", "memory", "overload", "kill")
_RESULT = Path("runs/bench/serve.json")
_CONCURRENCY = (8, 32)
_REST_SECONDS = 0.02
"""Between two predictions: threads of PyTorch wait busily for a moment."""
_LIVE_RATE, _LIVE_SECONDS = 12, 20
_VIDEOS, _FRAMES = 8, 75
_UPLOADS, _UPLOAD_BYTES = 20, 49_900_000
_WARM_SHARE = 0.2
"""Share of the overload after which memory is taken to be warm."""


def cpu_per_clip(server: Server, videos: Sequence[Path], clips: int) -> dict[str, float]:
    """Processor time of each kind of process for a clip, eight at once, milliseconds; other work on the machine, which
    makes all of it take longer, hardly changes it."""
    before = cpu_seconds(server.pid)
    answered = load("closed", server.url, 8, 4 * clips, *videos)["accepted"]
    after = cpu_seconds(server.pid)
    return {name: 1000 * (used - before.get(name, 0.0)) / answered for name, used in after.items()}


class Bare:
    """The predictor without a server, with all cores."""

    def __init__(self, checkpoint: str, videos: Sequence[Path]) -> None:
        import torch

        from clipautt.predictor import Predictor

        torch.set_num_threads(os.cpu_count() or 1)
        self._predictor, self._videos = Predictor.load(checkpoint), videos

    def predict(self, video: Path) -> float:
        """Milliseconds of a `predict`."""
        return 1000 * timed(lambda: self._predictor.predict(video))

    def batched(self, times: int = 4) -> float:
        """Clips per second where all are predicted together."""
        videos = [*self._videos] * times
        return len(videos) / timed(lambda: self._batched(videos))

    def cpu_per_clip(self, times: int = 4) -> float:
        """Processor time of a clip where all are predicted together, decoding included, milliseconds."""
        videos = [*self._videos] * times
        before = sum(cpu_seconds(os.getpid()).values())
        self._batched(videos)
        return 1000 * (sum(cpu_seconds(os.getpid()).values()) - before) / len(videos)

    def _batched(self, videos: Sequence[Path]) -> None:
        from clipautt.clips import Clip
        from clipautt.features.clip_features import encode_clip

        source = self._predictor.source
        frames = source.checkpoint.spec.features.frames
        clips = [Clip(f"c{number}", "", str(video), "target") for number, video in enumerate(videos)]
        features = [encode_clip(clip, source.backbone, frames) for clip in clips]
        self._predictor.predict_many(features, videos=[str(video) for video in videos])


def timed(work: Callable[[], object]) -> float:
    """Seconds of some work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def load(*words: object) -> dict[str, Any]:
    """The figures of a load from a process of its own."""
    return finished(begin_load(*words))


def begin_load(*words: object) -> subprocess.Popen[str]:
    """Begin a load."""
    command = [sys.executable, "-m", "tests.benchmarks.serve_load", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The figures of a load, once it has ended."""
    shown, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the load ended with {process.returncode}")
    figures: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return figures


def write_faces(folder: Path) -> list[Path]:
    """Videos of 3 s in 640 × 480 with a moving face that fills the picture, as is needed without a detector."""
    return [
        write_video(
            folder / f"{number}.mp4",
            np.stack(
                [photograph(310 + 5 * number + i % 20, 240 + i % 10, 3.4, size=(480, 640)) for i in range(_FRAMES)]
            ),
        )
        for number in range(_VIDEOS)
    ]


@contextlib.contextmanager
def pinging(server: Server, found: dict[str, Any]) -> Iterator[None]:
    """A process asks whether the server is alive while the block runs; its times are put into `found`."""
    process = begin_load("ping", server.url)
    time.sleep(1)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        figures = finished(process)
        found |= {"ping_ms": figures["accepted_ms"], "pings_failed": figures["requests"] - figures["accepted"]}


def latency(server: Server, bare: Bare, videos: Sequence[Path], *, rounds: int, clips: int) -> dict[str, Any]:
    """Latency and throughput of the server and of the bare predictor, medians over rounds."""
    load("closed", server.url, 8, 16, *videos)  # both are warm
    pairs: list[tuple[float, float]] = []
    stages: list[dict[str, float]] = []
    found: dict[str, list[Any]] = {}
    for number in range(rounds):
        pairs += paired(server, bare, videos, clips, stages)
        steps: dict[str, Callable[[], Any]] = {
            "bare batched": bare.batched,
            **{
                f"server {many}": lambda many=many: load("closed", server.url, many, 4 * clips, *videos)
                for many in _CONCURRENCY
            },
        }
        for name in sorted(steps, reverse=bool(number % 2)):
            found.setdefault(name, []).append(steps[name]())
    bares, ones = np.array(pairs).T
    served = {many: _middle(found[f"server {many}"]) for many in _CONCURRENCY}
    times = percentiles((ones / 1000).tolist())
    cpu = {"bare": bare.cpu_per_clip()} | cpu_per_clip(server, videos, clips)
    return {
        "bare": percentiles((bares / 1000).tolist()),
        "bare_per_second": statistics.median(found["bare batched"]),
        "server": {1: times | {"per_second": 1000 / float(ones.mean())}, **served},
        "over_bare_ms": float(np.median(ones - bares)),
        "stages_ms": {name: statistics.median(one[name] for one in stages) for name in stages[0]},
        "cpu_ms_per_clip": cpu,
    }


def paired(
    server: Server, bare: Bare, videos: Sequence[Path], clips: int, stages: list[dict[str, float]]
) -> list[tuple[float, float]]:
    """Milliseconds of one video at a time, by the bare predictor and by the server right after it; adds to `stages`
    where those of the server went."""
    import httpx

    pairs = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for number in range(clips):
            video = videos[number % len(videos)]
            content = {"video": ("a.mp4", video.read_bytes())}
            alone = bare.predict(video)
            time.sleep(_REST_SECONDS)
            began = time.perf_counter()
            answer = client.post("/v1/predict", files=content).json()
            seconds = time.perf_counter() - began
            pairs.append((alone, 1000 * seconds))
            stages.append(stages_of(answer, seconds))
            time.sleep(_REST_SECONDS)
    return pairs


def stages_of(answer: dict[str, Any], seconds: float) -> dict[str, float]:
    """Milliseconds of an answer by stage: the server's own timings, and what HTTP takes of the client's seconds."""
    of = {name: 1000 * answer["timings"][name] for name in ("receive", "wait", "decode", "encode", "predict")}
    return of | {"HTTP": 1000 * (seconds - answer["seconds"] - answer["timings"]["receive"])}


def _middle(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds' figures; counts are summed."""
    times = [one["accepted_ms"] for one in rounds]
    middle: dict[str, Any] = {name: statistics.median(one[name] for one in times) for name in times[0]}
    middle["per_second"] = statistics.median(one["per_second"] for one in rounds)
    return middle | {name: sum(one[name] for one in rounds) for name in ("accepted", "refused")}


def show_latency(found: dict[str, Any]) -> None:
    """Print the table of latencies."""
    rows = [("bare predictor", *_shown(found["bare"]), "", "", "")]
    for many, one in found["server"].items():
        over = f"{found['over_bare_ms']:+.0f}" if many == 1 else ""
        share = f"{100 * one['per_second'] / found['bare_per_second']:.0f} %" if many > 1 else ""
        rows.append((f"server, {many} at once", *_shown(one), over, f"{one['per_second']:.1f}", share))
    rows.append(("bare, batched", "", "", "", "", f"{found['bare_per_second']:.1f}", "100 %"))
    table(rows, ["", "p50 ms", "p95 ms", "p99 ms", "over bare", "clips/s", "of bare, batched"])
    stages = {name: f"{ms:.1f}" for name, ms in found["stages_ms"].items()}
    table([("server, 1 at once, by stage, ms", *stages.values())], ["", *stages])
    used = {name: f"{ms:.0f}" for name, ms in found["cpu_ms_per_clip"].items() if ms >= 0.5}
    used["bare, batched"] = used.pop("bare")
    table([("processor time of a clip, ms", *used.values())], ["", *used])


def _shown(one: dict[str, float]) -> list[str]:
    return [f"{one[name]:.0f}" for name in ("p50", "p95", "p99")]


def live(server: Server, video: Path) -> dict[str, Any]:
    """One live client."""
    return load("live", server.url, _LIVE_RATE, _LIVE_SECONDS, video)


def write_large(video: Path, path: Path) -> Path:
    """A video of `_UPLOAD_BYTES`, most of which is a box that players skip."""
    content = video.read_bytes()
    empty = _UPLOAD_BYTES - len(content)
    path.write_bytes(content + empty.to_bytes(4, "big") + b"free" + bytes(empty - 8))
    return path


def memory(server: Server, video: Path, folder: Path) -> dict[str, Any]:
    """Memory of all processes while large files are uploaded at once, against idle."""
    large = write_large(video, folder / "large.mp4")
    idle = memory_by_name(server.pid)
    pings: dict[str, Any] = {}
    with MemoryWatch(server.pid, 0.2) as watch, pinging(server, pings):
        figures = load("at-once", server.url, _UPLOADS, large)
    large.unlink()
    highest = {name: max((found.get(name, 0.0) for _, found in watch.samples), default=0.0) for name in idle}
    sizes = {"idle_mb": sum(idle.values()), "peak_mb": watch.peak_mb, "idle": idle, "highest": highest}
    return sizes | figures | pings


def overload(server: Server, videos: Sequence[Path], *, rate: float, minutes: float) -> dict[str, Any]:
    """Requests far faster than they can be answered."""
    pings: dict[str, Any] = {}
    with MemoryWatch(server.pid, max(1.0, minutes)) as watch, pinging(server, pings):
        figures = load("open", server.url, rate, 60 * minutes, *videos)
    time.sleep(3)
    return figures | pings | {"rate": rate, "memory": drift(watch), "files_left": server.files()}


def drift(watch: MemoryWatch) -> dict[str, dict[str, float]]:
    """Memory of each kind of process once warm, at the end, and its slope from one to the other, MB per minute."""
    end = watch.samples[-1][0]
    warm = [(at / 60, found) for at, found in watch.samples if at >= _WARM_SHARE * end]
    found: dict[str, dict[str, float]] = {}
    for name in sorted({name for _, one in warm for name in one}):
        values = [one.get(name, 0.0) for _, one in warm]
        slope = float(np.polyfit([at for at, _ in warm], values, 1)[0]) if len(warm) > 2 else float("nan")
        found[name] = {"warm_mb": values[0], "end_mb": values[-1], "per_minute_mb": slope}
    return found


def show_overload(found: dict[str, Any]) -> None:
    """Print what overload does."""
    rows = [
        ("requests", f"{found['requests']} at {found['rate']:.0f}/s", ""),
        ("accepted", f"{100 * found['accepted'] / found['requests']:.0f} %", _times(found["accepted_ms"])),
        ("refused", f"{100 * found['refused'] / found['requests']:.0f} %", _times(found["refused_ms"])),
        ("without Retry-After", str(found["without_retry_after"]), ""),
        ("/healthz", f"{found['pings_failed']} failed", _times(found["ping_ms"])),
        ("kinds of refusals and failures", ", ".join(f"{k}: {n}" for k, n in found["problems"].items()), ""),
        ("files left", str(len(found["files_left"])), ""),
    ]
    table(rows, ["overload", "", "p50 / p95 / p99 / max, ms"])
    rows = [
        (name, f"{one['warm_mb']:.0f}", f"{one['end_mb']:.0f}", f"{one['per_minute_mb']:+.1f}")
        for name, one in found["memory"].items()
    ]
    table(rows, ["memory, MB", "warm", "at the end", "per minute"])


def _times(found: dict[str, float]) -> str:
    return " / ".join(f"{value:.0f}" for value in found.values())


def kill(server: Server, videos: Sequence[Path], deployment: str, *, clips: int) -> dict[str, Any]:
    """What it costs that a replica is killed under load."""
    loading = begin_load("closed", server.url, 8, 4 * clips, *videos)
    time.sleep(3)
    before = server.replicas(deployment)
    os.kill(min(before), signal.SIGKILL)
    began = time.monotonic()
    while not server.replicas(deployment) - before:
        time.sleep(0.05)
    server.wait_until_ready()
    seconds = time.monotonic() - began
    figures = finished(loading)
    time.sleep(1)
    return figures | {"ready_seconds": seconds, "files_left": server.files()}


def show_kills(found: dict[str, dict[str, Any]]) -> None:
    """Print what kills cost."""
    rows = [
        (
            name,
            str(one["accepted"]),
            f"{one['lost']} ({', '.join(kind for kind in one['problems'] if kind[0] == '0')})" if one["lost"] else "0",
            str(one["refused"]),
            str(one["nobody"]),
            f"{one['ready_seconds']:.1f}",
            str(len(one["files_left"])),
        )
        for name, one in found.items()
    ]
    table(rows, ["killed", "answered", "lost", "refused", "nobody listened", "s until ready", "files left"])


def main(arguments: Sequence[str]) -> None:
    """Print the tables and write the figures."""
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    chosen = {word for word in arguments if "=" not in word} or set(PARTS)
    if not chosen <= set(PARTS):
        raise SystemExit(f"{' '.join(sorted(chosen - set(PARTS)))}: allowed: {' '.join(PARTS)}")
    clips, rounds = int(options.get("clips", 20)), int(options.get("rounds", 3))
    found: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    print(f"{found['machine']}; embedded backbone, videos of 3 s in 640 × 480", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        videos, checkpoint = write_faces(folder), write_checkpoint(folder / "checkpoint")
        settings = [f"checkpoint={checkpoint}", *options.get("serve", "").split()]
        with serving(folder, settings) as server:
            for part in PARTS:
                if part in chosen:
                    found[part] = run(part, server, videos, folder, checkpoint, options, clips, rounds, found)
                    write_json(_RESULT, found)
    print(f"figures: {_RESULT}")


def run(
    part: str,
    server: Server,
    videos: Sequence[Path],
    folder: Path,
    checkpoint: str,
    options: dict[str, str],
    clips: int,
    rounds: int,
    before: dict[str, Any],
) -> dict[str, Any]:
    """One part of the benchmark: its figures, printed as they come."""
    if part == "latency":
        found = latency(server, Bare(checkpoint, videos), videos, rounds=rounds, clips=clips)
        show_latency(found)
    elif part == "live":
        found = live(server, videos[0])
        rows = [(str(found["frames"]), str(found["dropped"]), _times(found["client_ms"]), _times(found["server_ms"]))]
        table(rows, ["live frames", "dropped", "client: p50 / p95 / p99 / max, ms", "server's own count"])
    elif part == "memory":
        found = memory(server, videos[0], folder)
        ends = f"{found['accepted']} answered, {found['refused']} refused, {found['lost']} lost"
        sizes = f"{found['idle_mb']:.0f} MB idle, {found['peak_mb']:.0f} MB peak"
        print(f"{_UPLOADS} uploads of 50 MB at once ({ends}): {sizes}; /healthz {_times(found['ping_ms'])} ms")
    elif part == "overload":
        known = before.get("latency", {}).get("server", {}).get(8, {}).get("per_second")
        known = known or load("closed", server.url, 8, 64, *videos)["per_second"]
        found = overload(server, videos, rate=4 * known, minutes=float(options.get("minutes", 10)))
        show_overload(found)
    else:
        found = {name: kill(server, videos, name, clips=clips) for name in ("decoders", "encoder", "web")}
        show_kills(found)
    sys.stdout.flush()
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
