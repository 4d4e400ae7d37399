"""The measurements of `make gpu-check`, each a function that yields rows; `gpu_check` runs them under deadlines.

In: a `Work` (device and sizes). Out: `Row`s, as they become known. Things to compare are measured in turns within the
same rounds, after a warm-up and with the device synchronized; rows show medians over the rounds, and shares are medians
of the ratios within a round. Weights are random. Only `tuner_of` uses the tuner's API.
"""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import queue
import statistics
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from clipautt.adaptation.source import Source
    from clipautt.backbones.loading import Backbone
    from clipautt.clips import Clip

Status = Literal["ok", "failed", "skipped", "late"]
_WINDOW = 16
_PACKAGES = ("torch", "torchvision", "numpy", "open_clip_torch", "timm", "av", "decord", "opencv-python-headless")
_TOLERANCE = {"fp32": 1e-2, "bf16": 1e-1}
"""Largest allowed difference of a probability between a problem in a batch and the same problem alone."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    """Which measurement it belongs to."""
    case: str
    """What was measured."""
    value: float | None = None
    """The figure, in `unit`."""
    unit: str = ""
    """Unit of `value`."""
    share: float | None = None
    """`value` relative to the bound named in `of`; 1 is the bound."""
    of: str = ""
    """The bound."""
    status: Status = "ok"
    """`failed`: it raised or a result is wrong; `skipped`: not possible here; `late`: its time ran out."""
    note: str = ""
    """Reason or detail."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    models: tuple[str, ...]
    """Image towers by open_clip name; `fake` is the small random CLIP of the tests."""
    tower: str
    """The CLIP whose text tower is used for tuning."""
    matrix: int
    """Side of the square matrices."""
    images: int
    """Frames in one batch of the image tower."""
    turn_seconds: float
    """How long one function runs in each round."""
    rounds: int
    """Rounds of most measurements."""
    videos: int
    """Number of different video files."""
    readers: int
    """Number of decoding processes."""
    read_seconds: float
    """Duration of one turn of decoding."""
    problems: int
    """Number of tuning problems in one batch."""
    steps: int
    """Number of AdamW steps."""
    frames: int
    """Number of frames of the long video, T."""
    sampled: int
    """Number of windows of the long video that the loop visits."""


SIZES = {
    "full": Sizes(
        models=("ViT-B-32", "ViT-L-14"),
        tower="ViT-B-32-quickgelu",
        matrix=8192,
        images=256,
        turn_seconds=0.3,
        rounds=5,
        videos=8,
        readers=len(os.sched_getaffinity(0)),
        read_seconds=2.5,
        problems=32,
        steps=10,
        frames=10_000,
        sampled=300,
    ),
    "tiny": Sizes(
        models=("fake",),
        tower="fake",
        matrix=64,
        images=4,
        turn_seconds=0.01,
        rounds=2,
        videos=2,
        readers=2,
        read_seconds=0.3,
        problems=3,
        steps=2,
        frames=200,
        sampled=10,
    ),
}


@dataclass(frozen=True)
class Work:
    """What to measure, as plain values to send to another process."""

    device: str
    """`cuda` or `cpu`."""
    size: Literal["full", "tiny"]
    """Key of `SIZES`."""

    @property
    def sizes(self) -> Sizes:
        """The numbers behind `size`."""
        return SIZES[self.size]


def facts(device: str | None) -> dict[str, Any]:
    """The device to use, its name, its driver, and package versions; `device` is None without a GPU."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else None)
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    versions["torch"] = torch.__version__  # with the CUDA it was built for
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"device": device, "gpu": gpu, "driver": _driver() if gpu else None, "versions": versions}


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError, IndexError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    return None


def tidy(work: Work) -> None:
    """Free what an earlier part left behind, so that it does not count in the next part's memory."""
    import torch

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # open_clip warns about random weights, which are intended
    gc.collect()
    if work.device == "cuda":
        torch.cuda.empty_cache()


def encoder(work: Work) -> Iterator[Row]:
    """Speed of the bare image tower on frames on the device, and of `encode_frames` on frames in host memory."""
    import numpy as np
    import torch

    from clipautt.backbones.frozen_clip import normalize_frames

    sizes, batches = work.sizes, 4
    rate = {p: _product(work, p) for p in ("fp32", "tf32", "bf16")}
    yield from _matrix_rows(_in_turns(work, rate))
    for name in sizes.models:
        backbone = _backbone(work, name)
        size = backbone.preprocessing.size
        frames = np.random.default_rng(0).integers(0, 255, (batches * sizes.images, size, size, 3), np.uint8)
        resident = torch.from_numpy(frames[: sizes.images]).to(work.device)
        model, preprocessing = backbone.model, backbone.preprocessing
        flops = _operations(
            lambda model=model, p=preprocessing: model.encode_image(  # type: ignore[misc]
                normalize_frames(torch.zeros(1, p.size, p.size, 3, device=work.device), p).requires_grad_(True)
            )
        )

        def bare(
            precision: str, model: Any = model, resident: torch.Tensor = resident, p: Any = preprocessing
        ) -> Callable[[], Any]:
            return _with_arithmetic(work, precision, lambda: model.encode_image(normalize_frames(resident, p)))

        def whole(backbone: Backbone = backbone, frames: Any = frames) -> Any:
            backbone.precision = "bf16"
            return backbone.encode_frames(frames, batch_size=sizes.images)

        found = _in_turns(work, rate | {f"bare {p}": bare(p) for p in rate} | {"whole": whole})
        for precision in rate:
            share = _median_ratio(found[f"bare {precision}"], found[precision], sizes.images * flops)
            value = sizes.images * statistics.median(found[f"bare {precision}"])
            note = f"{flops / 1e9:.1f} · 10⁹ operations per frame, {sizes.images} frames per batch"
            yield Row("encoder", f"{name} {precision}", value, "frames/s", share, f"matrix rate {precision}", note=note)
        value = batches * sizes.images * statistics.median(found["whole"])
        share = _median_ratio(found["whole"], found["bare bf16"], batches)
        case = f"{name} bf16, encode_frames from host memory"
        yield Row("encoder", case, value, "frames/s", share, "bare encoder")


def overlap(work: Work) -> Iterator[Row]:
    """Speed of decoding in child processes while the encoder works, compared with each of the two alone."""
    from clipautt.video.decoding import Sampling
    from clipautt.video.reader import FrameSpec

    sizes = work.sizes
    with tempfile.TemporaryDirectory() as folder:
        clips = _write_videos(Path(folder), sizes)
        for name in sizes.models:
            backbone = _backbone(work, name)
            backbone.precision = "bf16"
            spec = FrameSpec(backbone.preprocessing, Sampling(12.5))
            _decoded(clips, spec, sizes, None)  # starts the decoding processes
            rounds = []
            for _ in range(2):
                decoder = _decoded(clips, spec, sizes, None)
                alone = _encoded_alone(backbone, sizes)
                rounds.append((decoder, alone, _decoded(clips, spec, sizes, backbone)))
            decoder, alone, both = (statistics.median(column) for column in zip(*rounds, strict=True))
            share = statistics.median(whole / min(a, b) for a, b, whole in rounds)
            used = f"{sizes.readers} decoding processes, 640 × 480 H.264"
            yield Row("overlap", f"{name}: decoder alone", decoder, "frames/s", note=used)
            yield Row("overlap", f"{name}: encoder alone, bf16, from host memory", alone, "frames/s")
            bound = "decoder" if decoder < alone else "encoder"
            yield Row("overlap", f"{name}: decoding and encoding", both, "frames/s", share, f"the slower, the {bound}")


def tuning(work: Work) -> Iterator[Row]:
    """Speed of exact tuning in fp32 and bf16, and of feature tuning, on one full batch of videos."""
    sizes = work.sizes
    source = _source(work)
    problems = _videos(work, source)
    modes = {"exact fp32": ("context", "fp32"), "exact bf16": ("context", "bf16"), "feature": ("feature", "fp32")}
    solve = {
        case: tuner_of(source, tune=tune, precision=precision, steps=sizes.steps, batch=sizes.problems)
        for case, (tune, precision) in modes.items()
    }
    functions: dict[str, Callable[[], Any]] = {p: _product(work, p) for p in ("fp32", "bf16")}
    functions |= {case: lambda run=run: run(problems) for case, run in solve.items()}  # type: ignore[misc]
    found = _in_turns(work, functions)
    for case, (tune, precision) in modes.items():
        share = None
        if tune == "context":
            share = _median_ratio(found[case], found[precision], _tuning_operations(source, precision, sizes))
        yield _steps_row("tuning", case, found[case], sizes, share, f"matrix rate {precision}")


def windows(work: Work) -> Iterator[Row]:
    """Entropies of all windows of a long video: one pass compared with a loop, in time, memory and values."""
    import torch

    from clipautt.model.network import initial_model
    from clipautt.model.windows import WindowSpec, entropy
    from tests.benchmarks.naive_adaptation import naive_window_entropies

    sizes, width, units = work.sizes, 512, 46
    model = initial_model(width, units, 2, seed=0).eval().requires_grad_(False).to(work.device)
    noise = torch.Generator().manual_seed(0)
    frames = torch.randn(sizes.frames, width, generator=noise).to(work.device)
    prompts = model.au_embeddings(torch.randn(units, width, generator=noise).to(work.device))

    def one_pass() -> torch.Tensor:
        embedded, _ = model.window_embeddings(frames, WindowSpec(_WINDOW))
        return entropy(model.logits(embedded, prompts))

    def loop() -> torch.Tensor:
        return naive_window_entropies(model, frames[: sizes.sampled + _WINDOW - 1], prompts, length=_WINDOW)

    functions = {"one pass": _with_arithmetic(work, "fp32", one_pass), "loop": _with_arithmetic(work, "fp32", loop)}
    entropies = functions["one pass"]()
    difference = float((entropies[: sizes.sampled] - functions["loop"]()).abs().max())
    found = _in_turns(work, functions)
    total = len(entropies)
    of_loop = sizes.sampled / total
    title = f"T = {sizes.frames:,}"
    speed = _median_ratio(found["one pass"], found["loop"], 1 / of_loop)
    seconds = 1 / statistics.median(found["loop"]) / of_loop
    note = f"{sizes.sampled} of {total:,} windows measured"
    yield Row("windows", f"{title}, loop over windows", 1e3 * seconds, "ms", note=note)
    milliseconds = 1e3 / statistics.median(found["one pass"])
    yield Row("windows", f"{title}, one pass", milliseconds, "ms", note=f"{speed:,.0f} × the speed of the loop")
    peak = _peak_mb(work, functions["one pass"])
    if peak is not None:
        frames_mb = frames.numel() * 4 / 2**20
        note = f"above model and features; features {frames_mb:.0f} MiB"
        yield Row("windows", f"{title}, one pass, memory peak", peak, "MiB", note=note)
    status: Status = "ok" if difference <= 1e-4 else "failed"
    note = "largest difference of entropies; at most 0.0001 is allowed"
    yield Row("windows", "one pass equals the loop", difference, "nats", status=status, note=note)


def batched(work: Work) -> Iterator[Row]:
    """Compare problems tuned in a batch with the same problems tuned alone: decisions and probabilities."""
    sizes, source = work.sizes, _source(work)
    sets = {"per video, entropy": _videos(work, source), "per subject, infomax": _subjects(work, source)}
    for precision in ("fp32", "bf16"):
        for case, problems in sets.items():
            objective = "entropy" if case.startswith("per video") else "infomax"
            solve = tuner_of(
                source,
                tune="context",
                precision=precision,
                objective=objective,
                steps=sizes.steps,
                batch=sizes.problems,
            )
            began = time.perf_counter()
            together = solve(problems)
            middle = time.perf_counter()
            alone = [solve([problem])[0] for problem in problems]
            ended = time.perf_counter()
            row = _compare("batched", f"{case}, {precision}", source, problems, together, alone, precision)
            speed = f"batch {middle - began:.2f} s, alone {ended - middle:.2f} s"
            yield Row(**vars(row) | {"note": f"{row.note}; {speed}"})


_COMPILED: dict[str, Any] = {}
"""What `prepare_compiled` made ready in this process."""


def prepare_compiled(work: Work, compilation: str) -> tuple[float, Row]:
    """Compile exact tuning in bf16, which takes a minute or more; return its seconds and a row on its results."""
    sizes, source = work.sizes, _source(work)
    problems = _videos(work, source)
    options: dict[str, Any] = {"tune": "context", "precision": "bf16", "steps": sizes.steps, "batch": sizes.problems}
    plain, compiled = tuner_of(source, **options), tuner_of(source, **options, compilation=compilation)
    began = time.perf_counter()
    found = compiled(problems)
    seconds = time.perf_counter() - began
    row = _compare("compiled", f"{compilation} equals not compiled", source, problems, found, plain(problems), "bf16")
    _COMPILED.update(source=source, plain=lambda: plain(problems), compiled=lambda: compiled(problems))
    return seconds, row


def time_compiled(work: Work, compilation: str) -> Row:
    """Speed of what `prepare_compiled` made ready in this process."""
    sizes = work.sizes
    functions = {"bf16": _product(work, "bf16"), "plain": _COMPILED["plain"], "compiled": _COMPILED["compiled"]}
    found = _in_turns(work, functions)
    share = _median_ratio(found["compiled"], found["bf16"], _tuning_operations(_COMPILED["source"], "bf16", sizes))
    speed = _median_ratio(found["compiled"], found["plain"], 1.0)
    row = _steps_row("compiled", f"exact bf16, {compilation}", found["compiled"], sizes, share, "matrix rate bf16")
    return Row(**vars(row) | {"note": f"{speed:.2f} × the speed without compiling; {row.note}"})


def tuner_of(
    source: Source,
    *,
    tune: str,
    precision: str,
    steps: int,
    batch: int,
    objective: str = "entropy",
    compilation: str = "none",
) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
    """A function that tunes problems and returns the AU embeddings [K, d] of each.

    A problem is given as its windows [n, d], each of which is one sample. The step size is the published one: larger
    steps on random weights would amplify rounding.
    """
    import torch

    from clipautt.adaptation.method import TuningConfig
    from clipautt.adaptation.methods.clip_autt import ClipAUTT
    from clipautt.adaptation.methods.clip_autt.tuner import Problem, Tuner
    from clipautt.adaptation.predictions import unless_degenerate

    options: dict[str, Any] = {"tune": tune, "precision": precision, "objective": objective, "steps": steps}
    method = ClipAUTT(**options, learning_rate=1e-3, learning_rate_unit="absolute")
    tuner = Tuner(source, TuningConfig(batch_size=batch, compile=compilation))  # type: ignore[arg-type]

    def solve(problems: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outcomes = tuner.tune([Problem(torch.split(windows, 1)) for windows in problems], method, "best_window")
        return [unless_degenerate(outcome).au_embeddings for outcome in outcomes]

    return solve


def _tuning_operations(source: Source, precision: str, sizes: Sizes) -> float:
    """Operations of the text tower when one batch is tuned: all steps and the prediction."""
    import torch

    read = source.prompt_reader(precision)  # type: ignore[arg-type]
    context = source.context[None].detach().clone().requires_grad_(True)
    both = _operations(lambda: torch.autograd.backward(read(context).sum()))
    with torch.no_grad():
        forward = _operations(lambda: read(context))
    return sizes.problems * (sizes.steps * both + forward)


def _steps_row(part: str, case: str, rates: Sequence[float], sizes: Sizes, share: float | None, of: str) -> Row:
    value = sizes.problems * sizes.steps * statistics.median(rates)
    note = f"{sizes.problems} videos in a batch, {sizes.steps} steps"
    return Row(part, case, value, "video-steps/s", share, of if share is not None else "", note=note)


def _compare(
    part: str,
    case: str,
    source: Source,
    problems: Sequence[torch.Tensor],
    found: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    precision: str,
) -> Row:
    """Compare decisions and probabilities under two sets of AU embeddings of the same problems.

    A decision that changes is an error unless the expected probability was closer to the boundary than rounding.
    """
    import torch

    def probabilities(embeddings: Sequence[torch.Tensor]) -> torch.Tensor:
        logits = [source.logits(windows, a) for windows, a in zip(problems, embeddings, strict=True)]
        return torch.cat(logits).softmax(-1)

    p, q = probabilities(found), probabilities(expected)
    largest = float((p - q).abs().max())
    changed = p.argmax(-1) != q.argmax(-1)
    top = q.topk(2, dim=-1).values
    wrong = changed & (top[:, 0] - top[:, 1] > _TOLERANCE[precision])
    good = largest <= _TOLERANCE[precision] and not bool(wrong.any())
    note = f"{int((~changed).sum())} of {len(p)} decisions equal; largest difference, at most {_TOLERANCE[precision]:g}"
    return Row(part, case, largest, "probability", status="ok" if good else "failed", note=note)


def _backbone(work: Work, name: str) -> Backbone:
    """A CLIP with random weights, on the device."""
    import torch

    from clipautt.backbones.loading import Backbone
    from clipautt.video.preprocessing import Preprocessing

    if name == "fake":
        from tests.support.fakes import fake_backbone

        return fake_backbone().to(work.device)
    import open_clip

    torch.manual_seed(0)
    with torch.device(work.device):  # random weights of ViT-L-14 take half a minute on a slow core
        model = open_clip.create_model(name, pretrained=None, device=work.device)
    preprocessing = Preprocessing(224, (0.5,) * 3, (0.25,) * 3, "bicubic")
    return Backbone(model, name=name, preprocessing=preprocessing)


def _source(work: Work) -> Source:
    """An untrained CLIP-AU with all AU prompts (`tiny`: four), whose logits are spread as a trained one's."""
    from clipautt.action_units import VOCABULARY
    from clipautt.model.windows import WindowSpec
    from tests.support.fakes import fake_source

    phrases = [unit.phrase for unit in VOCABULARY][: None if work.size == "full" else 4]
    backbone = _backbone(work, work.sizes.tower)
    return fake_source(backbone=backbone, phrases=phrases, window=WindowSpec(_WINDOW))


def _videos(work: Work, source: Source) -> list[torch.Tensor]:
    """One batch of single videos, each given by its most certain window, [1, d]."""
    return [windows[:1] for windows in _best_windows(source, work.sizes.problems, 1)]


def _subjects(work: Work, source: Source) -> list[torch.Tensor]:
    """Subjects with different numbers of videos, each given by its most certain window, [n, d]."""
    subjects = _best_windows(source, max(2, work.sizes.problems // 2), 16)
    return [windows[: 5 + number % 12] for number, windows in enumerate(subjects)]


def _best_windows(source: Source, subjects: int, videos: int) -> list[torch.Tensor]:
    import torch

    from clipautt.model.windows import entropy
    from tests.support.fakes import fake_clips

    width = source.backbone.feature_dim
    clips = fake_clips(subjects=subjects, per_subject=videos, feature_dim=width, num_frames=40)
    best = []
    for views in source.views_of(clips):
        best.append(views.embeddings[entropy(source.logits(views.embeddings)).argmin()])
    return list(torch.split(torch.stack(best), videos))


def _write_videos(folder: Path, sizes: Sizes) -> list[Clip]:
    """Write videos of three seconds in 640 × 480, each of a smooth random picture that moves."""
    import cv2
    import numpy as np

    from clipautt.clips import Clip
    from tests.support.fakes import write_video

    noise = np.random.default_rng(0)
    clips = []
    for number in range(sizes.videos):
        picture = cv2.resize(noise.integers(0, 255, (20, 26, 3), np.uint8), (840, 640), interpolation=cv2.INTER_CUBIC)
        frames = np.stack([picture[2 * i : 2 * i + 480, 2 * i : 2 * i + 640] for i in range(75)])
        path = write_video(folder / f"{number}.mp4", frames.astype(np.uint8))
        clips.append(Clip(f"c{number}", "s0", str(path), "target"))
    return clips


def _decoded(clips: Sequence[Clip], spec: Any, sizes: Sizes, backbone: Backbone | None) -> float:
    """Frames per second of parallel decoding processes; with a backbone, frames per second that it encoded.

    Clips being read when the time is over are read to their end, so that the processes can be used again, but their
    frames are not counted.
    """
    import numpy as np

    from clipautt.video.reader_process import read_clip

    chunks: queue.Queue[Any] = queue.Queue(2 * sizes.readers)
    numbers, enough = count(), threading.Event()

    def read() -> None:
        try:
            while not enough.is_set():
                for chunk in read_clip(clips[next(numbers) % len(clips)], spec):
                    chunks.put(chunk.frames)
        except Exception as error:
            chunks.put(error)
        finally:
            chunks.put(None)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(sizes.readers)]
    began = time.perf_counter()
    for reader in readers:
        reader.start()
    done, seconds, running = 0, 0.0, len(readers)
    waiting: list[Any] = []
    failure: Exception | None = None
    while running:
        chunk = chunks.get()
        if chunk is None:
            running -= 1
        elif isinstance(chunk, Exception):
            failure = chunk
        elif not enough.is_set():
            waiting.append(chunk)
            gathered = sum(map(len, waiting))
            if backbone is not None and gathered < 2 * sizes.images:
                continue
            if backbone is not None:
                backbone.encode_frames(np.concatenate(waiting), batch_size=sizes.images)
            done, waiting, seconds = done + gathered, [], time.perf_counter() - began
            if seconds >= sizes.read_seconds:
                enough.set()
    if failure is not None:
        raise failure
    return done / seconds


def _encoded_alone(backbone: Backbone, sizes: Sizes) -> float:
    """Frames per second of `encode_frames` on frames in host memory, in calls as large as in `_decoded`."""
    import numpy as np

    size = backbone.preprocessing.size
    frames = np.random.default_rng(0).integers(0, 255, (2 * sizes.images, size, size, 3), np.uint8)
    backbone.encode_frames(frames, batch_size=sizes.images)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < sizes.read_seconds:
        backbone.encode_frames(frames.copy(), batch_size=sizes.images)
        done += len(frames)
    return done / (time.perf_counter() - began)


def _product(work: Work, precision: str) -> Callable[[], Any]:
    """A function that multiplies large square matrices in this precision."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(work.sizes.matrix, work.sizes.matrix, device=work.device, dtype=dtype) for _ in "ab")
    return _with_arithmetic(work, precision, lambda: a @ b)


def _matrix_rows(found: Mapping[str, Sequence[float]]) -> Iterator[Row]:
    for precision, rates in found.items():
        yield Row("encoder", f"matrix rate {precision}", statistics.median(rates) / 1e12, "10¹² operations/s")


def _with_arithmetic(work: Work, precision: str, function: Callable[[], Any]) -> Callable[[], Any]:
    """The function without gradients and in this precision."""
    import torch

    from clipautt.backbones.frozen_clip import image_arithmetic

    def run() -> Any:
        with torch.inference_mode(), image_arithmetic(precision, work.device):  # type: ignore[arg-type]
            return function()

    return run


def _in_turns(work: Work, functions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Calls per second of each function in each round; for matrix products, operations per second.

    Each is called a few times to warm up; then every round measures all of them, one after the other.
    """
    sizes = work.sizes
    calls, found = {}, {name: list[float]() for name in functions}
    for name, function in functions.items():
        function()
        seconds = min(_seconds(work, function, 1) for _ in range(2))
        calls[name] = max(1, round(sizes.turn_seconds / max(seconds, 1e-6)))
    for _ in range(sizes.rounds):
        for name, function in functions.items():
            operations = 2 * sizes.matrix**3 if name in ("fp32", "tf32", "bf16") else 1
            found[name].append(operations * calls[name] / _seconds(work, function, calls[name]))
    return found


def _seconds(work: Work, function: Callable[[], Any], times: int) -> float:
    """Time of `times` calls in a row, until the device has finished."""
    _synchronize(work)
    began = time.perf_counter()
    for _ in range(times):
        function()
    _synchronize(work)
    return time.perf_counter() - began


def _synchronize(work: Work) -> None:
    import torch

    if work.device == "cuda":
        torch.cuda.synchronize()


def _median_ratio(rates: Sequence[float], bounds: Sequence[float], factor: float) -> float:
    return statistics.median(factor * rate / bound for rate, bound in zip(rates, bounds, strict=True))


def _operations(function: Callable[[], Any]) -> float:
    """Floating-point operations of a function's matrix products.

    Attention is counted by its plain products; without gradients, image towers use PyTorch's fused attention, which the
    counter does not see, so callers require a gradient. On CPUs, frozen layers use PyTorch's products here.
    """
    from unittest import mock

    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with ExitStack() as stack:
        stack.enter_context(mock.patch("clipautt.backbones.frozen_linear._by_onednn", lambda *_: False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = stack.enter_context(FlopCounterMode(display=False))
        function()
    return float(counter.get_total_flops())


def _peak_mb(work: Work, function: Callable[[], Any]) -> float | None:
    """Peak GPU memory of a call above what was in use before, MiB; None on a CPU."""
    import torch

    if work.device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
