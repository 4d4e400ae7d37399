"""Speed of prompt tuning, relative to the naive loop and to matrix products; and of window entropies.

Each mode runs in a separate process, which loads the model, warms up and waits for its turn; a round measures all modes
and the matrix products, one after the other. The tables show medians over the rounds, of figures and of the ratios
within each round. Image encoding is excluded everywhere: features are random, 75 frames per video.

    make bench-adapt                          # ARGS: vit embedded windows rounds=3 steps=10 videos=64 batch=8
    make bench-adapt ARGS="vit modes=naive,batched rounds=1"
    make bench-adapt ARGS="vit modes=naive,bf16,compiled"       # the tower by torch.compile, which takes minutes
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

from ray_jobs.platform.progress import table
from tests.benchmarks.machine import machine

if TYPE_CHECKING:
    import torch

    from clipautt.adaptation.method import AdaptConfig, TuningConfig
    from clipautt.adaptation.source import Source
    from clipautt.backbones.loading import Backbone
    from clipautt.features.clip_features import ClipFeatures
    from tests.benchmarks.naive_adaptation import NaiveCLIPAUTT

FRAMES, WINDOW, LEARNING_RATE = 75, 16, 1e-3
_CORES = len(os.sched_getaffinity(0))
_VIT = "ViT-B-32-quickgelu"


@dataclass(frozen=True)
class Mode:
    """A way to tune, as plain values to send to another process."""

    title: str
    """Name in the table."""
    tune: Literal["naive", "context", "feature"]
    """`naive`: the loop; else as in `ClipAUTT`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the text tower."""
    batched: bool = True
    """Whether videos are tuned together."""
    compile: Literal["none", "default", "cuda_graphs"] = "none"
    """Compilation of the text tower."""


MODES = {
    "naive": Mode("naive loop", "naive", batched=False),
    "single": Mode("exact, one at a time", "context", batched=False),
    "batched": Mode("exact, batched", "context"),
    "bf16": Mode("exact, batched, bf16", "context", precision="bf16"),
    "compiled": Mode("exact, batched, bf16, compiled", "context", precision="bf16", compile="default"),
    "feature": Mode("feature", "feature"),
}
_USUAL = tuple(name for name in MODES if name != "compiled")


@dataclass(frozen=True)
class Work:
    """What one process measures in every round."""

    backbone: str
    """`embedded`, or an open_clip name, whose weights are random."""
    mode: Mode
    """How it tunes."""
    steps: int
    """AdamW steps per video that are reported."""
    measured_steps: int
    """Steps taken per video; only the naive loop may take fewer, and the others are assumed to take as long."""
    videos: int
    """Videos per round."""
    batch: int
    """Videos tuned together."""


@dataclass(frozen=True)
class Start:
    """What a process reports once it is ready."""

    step_flops: float
    """Operations of the text tower per video and step, forward and backward pass; 0 without the tower."""
    read_flops: float
    """Operations of the text tower per prediction, forward pass."""
    base_mb: float
    """Memory with the model loaded, MiB."""


@dataclass(frozen=True)
class Figures:
    """Figures of one mode in one round."""

    seconds: float
    """Time per video: window selection, all steps, prediction."""
    peak_mb: float
    """Peak memory since the process was ready, MiB."""


@dataclass(frozen=True)
class Rates:
    """Operations per second of large matrix products."""

    fp32: float
    """By PyTorch."""
    onednn: float | None
    """By `frozen_linear`; None on a GPU."""
    bf16: float
    """By PyTorch."""


class _Ready:
    """State of a mode's process: the model, loaded and warmed up."""

    def __init__(self, work: Work) -> None:
        import torch

        from clipautt.adaptation.method import TuningConfig

        self.work, self.round = work, 0
        self.source = make_source(work.backbone)
        self._tuning = TuningConfig(batch_size=work.batch, compile=work.mode.compile)
        self._naive = naive_of(self.source) if work.mode.tune == "naive" else None
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which loading has set
        self._base_mb = memory_mb()
        self.seconds_per_video(steps=1)

    def start(self) -> Start:
        """The facts known before the first round."""
        step, read = (0.0, 0.0) if self.work.mode.tune == "feature" else self._flops()
        return Start(step, read, self._base_mb)

    def _flops(self) -> tuple[float, float]:
        if self._naive is not None:
            return flops_of(self._naive.au_embeddings, self._naive.source_context)
        read = self.source.prompt_reader(self.work.mode.precision)
        return flops_of(read, self.source.context[None])

    def seconds_per_video(self, *, steps: int) -> float:
        """Time per video in a round with new videos."""
        self.round += 1
        clips = make_clips(self.work.videos, self.source.backbone.feature_dim, seed=self.round)
        if self._naive is not None:
            frames = [clip.features.to(self.source.backbone.device) for clip in clips]
            results = [self._naive.adapt(video, steps=steps, learning_rate=LEARNING_RATE) for video in frames]
            return statistics.mean(result.seconds(self.work.steps) for result in results)
        config = published(self.work.mode, steps)
        units = [clips] if self.work.mode.batched else [[clip] for clip in clips]
        _wait()
        began = time.perf_counter()
        for unit in units:
            adapt_all(self.source, unit, config, self._tuning)
        _wait()
        return (time.perf_counter() - began) / len(clips)


_READY: list[_Ready] = []
"""The state of this process, once it is ready."""


def get_ready(work: Work) -> Start:
    """Load and warm up; runs in the mode's process."""
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(_CORES)
    _READY[:] = [_Ready(work)]
    return _READY[0].start()


def take_turn() -> Figures:
    """Measure one round; runs in the mode's process."""
    (ready,) = _READY
    seconds = ready.seconds_per_video(steps=ready.work.measured_steps)
    return Figures(seconds, memory_mb(peak=True))


def make_source(name: str) -> Source:
    """An untrained CLIP-AU with all AU prompts on a backbone, on the GPU where there is one."""
    import torch

    from clipautt.action_units import TASKS, VOCABULARY
    from clipautt.adaptation.source import Source
    from clipautt.features.clip_features import FeatureSpec
    from clipautt.model.checkpoint import Checkpoint, CheckpointSpec
    from clipautt.model.network import initial_model
    from clipautt.model.windows import WindowSpec
    from clipautt.video.decoding import Sampling

    backbone = make_backbone(name)
    if torch.cuda.is_available():
        backbone.to("cuda")
    spec = CheckpointSpec(
        classes=TASKS["pain"].classes,
        phrases=tuple(unit.phrase for unit in VOCABULARY),
        context="a human face with",
        context_tokens=4,
        features=FeatureSpec.of(backbone, Sampling(12.5)),
        subject_baseline="none",
        window=WindowSpec(WINDOW),
        training={},
        metrics={},
    )
    model = initial_model(backbone.feature_dim, len(spec.phrases), len(spec.classes), seed=0)
    return Source(Checkpoint(model.eval().requires_grad_(False), spec), backbone)


def make_backbone(name: str) -> Backbone:
    """The embedded backbone, or an open_clip model with random weights."""
    import logging

    import open_clip
    import torch

    from clipautt.backbones.loading import Backbone, BackboneConfig, load_backbone
    from clipautt.video.preprocessing import Preprocessing

    if name == "embedded":
        return load_backbone(BackboneConfig())
    logging.disable(logging.WARNING)  # open_clip warns about random weights, which are intended
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None)
    return Backbone(model, name=name, preprocessing=Preprocessing(224, (0.5,) * 3, (0.25,) * 3, "bicubic"))


def naive_of(source: Source) -> NaiveCLIPAUTT:
    """The naive loop over the weights and prompts of a source."""
    from tests.benchmarks.naive_adaptation import NaiveCLIPAUTT

    prompts = source.prompts
    return NaiveCLIPAUTT(
        source.backbone.model,
        source.model,
        prompts.texts,
        num_context=prompts.num_context,
        window_length=source.window.length,
    )


def make_clips(count: int, feature_dim: int, *, seed: int) -> list[ClipFeatures]:
    """Random features, one clip per subject."""
    import numpy as np
    import torch

    from clipautt.features.clip_features import ClipFeatures

    noise = torch.Generator().manual_seed(seed)
    times = np.arange(FRAMES) / 12.5
    return [
        ClipFeatures(f"c{i}", f"s{i}", torch.randn(FRAMES, feature_dim, generator=noise), times) for i in range(count)
    ]


def published(mode: Mode, steps: int) -> AdaptConfig:
    """Settings as published: each video by itself, entropy of the best window, an absolute step size."""
    from tests.support.configs import adapt_config

    assert mode.tune != "naive"
    return adapt_config(
        objective="entropy",
        protocol="per_video",
        tune=mode.tune,
        precision=mode.precision,
        steps=steps,
        learning_rate=LEARNING_RATE,
        learning_rate_unit="absolute",
    )


def adapt_all(source: Source, clips: Sequence[ClipFeatures], config: AdaptConfig, tuning: TuningConfig) -> None:
    """Select, tune and predict; fail if a video fell back to no adaptation."""
    from clipautt.adaptation.driver import adapt

    results = adapt(source, clips, config, tuning=tuning)
    wrong = [p.status for result in results.values() for p in result.predictions if p.status != "ok"]
    assert not wrong, wrong[0]


def flops_of(read: Callable[[torch.Tensor], torch.Tensor], context: torch.Tensor) -> tuple[float, float]:
    """Operations of a text tower: forward and backward pass, and forward alone, counted on PyTorch's products."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with mock.patch(
        "clipautt.backbones.frozen_linear._by_onednn", lambda *_: False
    ):  # the counter does not see oneDNN products
        with FlopCounterMode(display=False) as both:
            torch.autograd.backward(read(context.detach().clone().requires_grad_(True)).sum())
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            read(context)
    return float(both.get_total_flops()), float(forward.get_total_flops())


def memory_mb(*, peak: bool = False) -> float:
    """Memory of this process, MiB, now or at its peak; on the GPU if there is one."""
    import torch

    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def typical_seconds(function: Callable[[], Any], *, times: int) -> float:
    """Median time of `times` calls, after one to warm up."""
    taken = []
    for _ in range(times + 1):
        _wait()
        began = time.perf_counter()
        function()
        _wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def multiply() -> Rates:
    """Rates of large matrix products with all cores, or on the GPU, in this process."""
    import torch

    from clipautt.backbones.frozen_linear import _by_onednn, frozen_linear

    torch.set_num_threads(_CORES)
    gpu = torch.cuda.is_available()
    n, device = (8192, "cuda") if gpu else (2048, "cpu")
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    c, d = a.bfloat16(), b.bfloat16()
    operations = 2 * n**3
    fp32 = operations / typical_seconds(lambda: a @ b, times=7)
    onednn = operations / typical_seconds(lambda: frozen_linear(a, b), times=7) if _by_onednn(a, b) else None
    return Rates(fp32, onednn, operations / typical_seconds(lambda: c @ d, times=7))


@contextmanager
def processes(names: Sequence[str]) -> Iterator[dict[str, ProcessPoolExecutor]]:
    """A fresh process for each name."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            for name in [*names, "rates"]
        }


@dataclass(frozen=True)
class Measured:
    """All rounds of one backbone."""

    works: Mapping[str, Work]
    """Mode → what it measured."""
    starts: Mapping[str, Start]
    """Mode → what its process reported at first."""
    rounds: Sequence[Mapping[str, Figures]]
    """Per round, mode → figures."""
    rates: Sequence[Rates]
    """Rates of matrix products per round."""

    def median(self, of: Callable[[Mapping[str, Figures], Rates], float]) -> float:
        """Median over the rounds of a figure computed from each."""
        return statistics.median(of(one, rates) for one, rates in zip(self.rounds, self.rates, strict=True))

    def flops(self, name: str) -> float:
        """Operations of the text tower per video: all steps and the prediction."""
        return self.works[name].steps * self.starts[name].step_flops + self.starts[name].read_flops

    def share(self, name: str, rate: Callable[[Rates], float | None]) -> str:
        """Share of a matrix rate that the tower's operations reach over the whole time of a video, as a percentage."""
        if not self.flops(name) or rate(self.rates[0]) is None:
            return "-"
        share = self.median(lambda one, rates: self.flops(name) / one[name].seconds / (rate(rates) or 1.0))
        return f"{100 * share:.0f} %"


def measure(works: Mapping[str, Work], rounds: int) -> Measured:
    """Run all rounds of one backbone."""
    with processes(list(works)) as pools:
        starts = {}
        for name, work in works.items():
            began = time.perf_counter()
            starts[name] = pools[name].submit(get_ready, work).result()
            print(f"  {work.mode.title}: ready after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        pools["rates"].submit(multiply).result()
        figures, rates = [], []
        for _ in range(rounds):
            rates.append(pools["rates"].submit(multiply).result())
            figures.append({name: pools[name].submit(take_turn).result() for name in works})
    return Measured(works, starts, figures, rates)


def report(title: str, measured: Measured) -> None:
    """Print the table of one backbone."""
    steps = next(iter(measured.works.values())).steps
    rows = []
    for name, work in measured.works.items():
        seconds = measured.median(lambda one, _, name=name: one[name].seconds)  # type: ignore[misc]
        ratio = "-"
        if "naive" in measured.works:
            ratio = f"{measured.median(lambda one, _, name=name: one['naive'].seconds / one[name].seconds):.1f} ×"  # type: ignore[misc]
        peak = max(one[name].peak_mb for one in measured.rounds)
        shares = [measured.share(name, rate) for rate in (lambda r: r.fp32, lambda r: r.onednn, lambda r: r.bf16)]
        memory = [f"{peak:.0f}", f"{peak - measured.starts[name].base_mb:.0f}"]
        rows.append(
            [work.mode.title, f"{work.batch}", f"{seconds / steps:.2g}", f"{1 / seconds:.3g}", ratio, *shares, *memory]
        )
    headers = ["batch", "s per video-step", "videos/s", "of naive", "of fp32", "of oneDNN", "of bf16"]
    table(rows, [title, *headers, "peak MiB", "above the model"])
    for line in remarks(measured, steps):
        print(line, flush=True)


def remarks(measured: Measured, steps: int) -> Iterator[str]:
    """What the figures mean, and figures that are in no row."""
    gpu = measured.rates[0].onednn is None
    fp32, bf16 = (measured.median(lambda _, r, n=n: getattr(r, n)) / 1e9 for n in ("fp32", "bf16"))  # type: ignore[misc]
    onednn = ""
    if not gpu:
        onednn = f", by oneDNN {measured.median(lambda _, r: r.onednn or 0.0) / 1e9:.0f}"
    yield f"Matrix products, 10⁹ operations per second: torch.matmul fp32 {fp32:.0f}{onednn}, bf16 {bf16:.0f}."
    yield (
        f"Seconds per video-step: (window selection + {steps} steps + prediction) / {steps}, {FRAMES} frames, windows "
        f"of {WINDOW}; videos/s: at {steps} steps. Memory in MiB{', of the GPU' if gpu else ''}."
    )
    for work in measured.works.values():
        if work.measured_steps != work.steps:
            counts = f"{work.measured_steps} of {work.steps}"
            yield f"  {work.mode.title}: {counts} steps are measured, the others are taken to last as long."
    tower = [f"{w.mode.title} {measured.starts[n].step_flops / 1e9:.1f}" for n, w in measured.works.items()]
    counted = [one for one, name in zip(tower, measured.works, strict=True) if measured.flops(name)]
    if counted:
        yield f"Operations of the text tower, 10⁹ per video-step: {', '.join(counted)}."
        yield "Shares: these operations over the whole time of a video, as shares of the matrix rates above."


def compare_windows(rounds: int) -> None:
    """Print times of the loop over windows and of the one pass."""
    with processes([]) as pools:
        figures = [pools["rates"].submit(measure_windows, number).result() for number in range(rounds)]
    middle = {name: statistics.median(one[name] for one in figures) for name in figures[0]}
    ratio, many = (statistics.median(one["loop"] / one[name] for one in figures) for name in ("T = 1000", "16 videos"))
    rows = [
        ("per-window loop, T = 1000", f"{1e3 * middle['loop']:.1f}", "1"),
        ("one pass, T = 1000", f"{1e3 * middle['T = 1000']:.2f}", f"{ratio:.0f} ×"),
        ("one pass over 16 videos, T = 1000, per video", f"{1e3 * middle['16 videos']:.2f}", f"{many:.0f} ×"),
    ]
    table(rows, ["all window entropies, L = 16, d = 512, K = 46", "ms", "of loop"])
    names = [name for name in middle if name.startswith("T = ")]
    rows = [(name, f"{1e3 * middle[name]:.2f}", f"{1e6 * middle[name] / int(name[4:]):.2f}") for name in names]
    table(rows, ["one pass", "ms", "µs per frame"])


def measure_windows(number: int) -> dict[str, float]:
    """Seconds per video of the loop and of passes of several sizes; runs in a separate process."""
    import torch

    from clipautt.model.network import initial_model
    from clipautt.model.windows import WindowSpec, entropy
    from tests.benchmarks.naive_adaptation import naive_window_entropies

    torch.set_num_threads(_CORES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = initial_model(512, 46, 2, seed=0).eval().requires_grad_(False).to(device)
    torch.manual_seed(number)
    prompts = model.au_embeddings(torch.randn(46, 512, device=device))
    spec = WindowSpec(WINDOW)

    def one_pass(videos: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        embedded = model.window_embeddings_of(videos, [spec] * len(videos))
        entropies = entropy(model.logits(torch.cat([windows for windows, _ in embedded]), prompts))
        return list(torch.split(entropies, [len(windows) for windows, _ in embedded]))

    def loop(frames: torch.Tensor) -> torch.Tensor:
        return naive_window_entropies(model, frames, prompts, length=WINDOW)

    frames = {length: torch.randn(length, 512, device=device) for length in (500, 1000, 2000, 4000)}
    torch.testing.assert_close(loop(frames[1000]), one_pass([frames[1000]])[0], atol=1e-5, rtol=0)
    seconds = {"loop": typical_seconds(lambda: loop(frames[1000]), times=2)}
    for length, video in frames.items():
        seconds[f"T = {length}"] = typical_seconds(lambda video=video: one_pass([video]), times=11)  # type: ignore[misc]
    seconds["16 videos"] = typical_seconds(lambda: one_pass([frames[1000]] * 16), times=5) / 16
    return seconds


def works_of(backbone: str, options: Mapping[str, str], *, gpu: bool) -> dict[str, Work]:
    """Mode → what its process measures, for one backbone."""
    small = backbone == "embedded"
    steps = int(options.get("steps", 10))
    videos = int(options.get("videos", 64))
    batch = int(options.get("batch", 32 if gpu or small else 8))
    quick = gpu or small  # a naive step of ViT-B-32 takes seconds on a few cores
    works = {}
    for name in options.get("modes", ",".join(_USUAL)).split(","):
        if name not in MODES:
            raise SystemExit(f"modes={name}; allowed: {', '.join(MODES)}")
        mode = MODES[name]
        if mode.tune == "naive":
            works[name] = Work(backbone, mode, steps, steps if quick else min(2, steps), 1, 1)
        elif not mode.batched:
            works[name] = Work(backbone, mode, steps, steps, 8 if quick else 2, 1)
        elif mode.tune == "context":
            works[name] = Work(backbone, mode, steps, steps, min(videos, 2 * batch if quick else batch), batch)
        else:
            works[name] = Work(backbone, mode, steps, steps, videos, min(videos, 32))
    return works


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    import torch

    warnings.filterwarnings("ignore")
    options = dict(word.split("=") for word in arguments if "=" in word)
    chosen = {word for word in arguments if "=" not in word} or {"vit", "embedded", "windows"}
    gpu = torch.cuda.is_available()
    rounds = int(options.get("rounds", 3))
    name = torch.cuda.get_device_name() if gpu else "no GPU"
    print(f"{machine()}, {name}, {_CORES} threads; {rounds} rounds", flush=True)
    for word, backbone, title in (("vit", _VIT, "ViT-B-32"), ("embedded", "embedded", "embedded")):
        if word in chosen:
            report(title, measure(works_of(backbone, options, gpu=gpu), rounds))
    if "windows" in chosen:
        compare_windows(rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
