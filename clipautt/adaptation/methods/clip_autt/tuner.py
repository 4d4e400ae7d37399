"""Prompt tuning of many videos and subjects in one batch, each with its own optimiser state and its own end.

In: problems (the window embeddings that one video or subject shows the objective). Out: tuned prompts for each, or why
there are none. Problems share nothing but the frozen model, so a batch of them gives what each gives alone, up to the
order of floating-point sums. What is tuned (`ClipAUTT.tune`):

- `context`: the context vectors of the AU prompts, through the text tower. The exact mode and the paper's.
- `feature`: an offset of the K text features; the tower is not needed at all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipautt.adaptation.method import TuningConfig
from clipautt.adaptation.methods.clip_autt.objectives import objective_loss
from clipautt.adaptation.predictions import DegenerateError, NotFiniteError
from clipautt.adaptation.readout import Readout, read_samples
from clipautt.adaptation.source import Source
from clipautt.memory import free_bytes, is_out_of_memory, saved_bytes

if TYPE_CHECKING:
    from clipautt.adaptation.methods.clip_autt.method import ClipAUTT

Tune = Literal["context", "feature"]
LearningRateUnit = Literal["relative", "absolute"]
_LARGEST_BATCH = 32
_MEASURING_SECONDS = 1.0
_FEATURE_STEP = 0.1
"""A relative step of 1 of the feature offset, in root mean squares of the text features. Chosen on source-validation
subjects of the synthetic data: there the decisions are nearest to those of a relative step of 1 of the context."""
_LARGEST_RATE = 1e30
"""AdamW computes in float32, which holds no more; prompts that took such a step are rejected anyhow."""
_WINDOWS_PER_PASS = 1 << 16
_FEWEST_ROWS = 16
"""Windows that a problem has room for at least: products of fewer rows take other kernels on CPUs, by their number."""
_FLOATS_OF_CLASSIFIER = 1024
"""That the classifier keeps for a window on its way there and back."""


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """What the objective sees of one video or subject."""

    samples: Sequence[Tensor]
    """What is predicted as one: the embeddings v of a sample's windows, [W, d]; see `read_samples`."""
    start: Tensor | None = None
    """To go on from: context [K, M, d_text], or the offset of the features [K, d]; None: the source's."""
    prior: Tensor | None = None
    """Shares of the classes that are assumed, [C]; None: those of the training."""

    def __repr__(self) -> str:
        return f"Problem({len(self.samples)} samples)"


@dataclass(frozen=True, eq=False, repr=False)
class Tuned:
    """What tuning gives for one problem."""

    parameter: Tensor
    """Tuned context [K, M, d_text], or offset of the features [K, d]."""
    au_embeddings: Tensor
    """a under it, [K, d]."""
    steps: int
    """How many were taken."""
    drift: float = 0.0
    """Distance from the source prompts, root mean square, in relative steps of size 1."""

    def __repr__(self) -> str:
        return f"Tuned({tuple(self.parameter.shape)}, {self.steps} steps)"


@dataclass(frozen=True, eq=False)
class _Batch:
    """Several problems with their windows padded to the longest."""

    windows: Tensor
    """[B, V, d]."""
    index: Tensor
    """Which windows belong to a sample, int64 [B, S, W]."""
    inside: Tensor
    """Which places of `index` count, bool [B, S, W]."""
    shift: Tensor
    """Added to the logits: log of prior over the training's shares, [B, C]."""
    prior: Tensor
    """[B, C]."""

    def rows(self, chosen: Sequence[int]) -> _Batch:
        """Only these problems."""
        return _Batch(*(getattr(self, name)[list(chosen)] for name in self.__dataclass_fields__))

    def logits(self, source: Source, au_embeddings: Tensor, readout: Readout) -> Tensor:
        """Logits of every sample [B, S, C], under AU embeddings [B, K, d]."""
        windows = torch.cat(
            [
                _few_logits(source, part, au_embeddings, last=self.windows.shape[:2].numel() <= _WINDOWS_PER_PASS)
                for part in torch.split(self.windows, max(1, _WINDOWS_PER_PASS // len(self.windows)), dim=1)
            ],
            dim=1,
        )
        return read_samples(windows, self.index, self.inside, readout) + self.shift[:, None]


def _few_logits(source: Source, windows: Tensor, au_embeddings: Tensor, *, last: bool) -> Tensor:
    """Logits of windows; where there are very many, the way back computes them again instead of keeping them."""
    if last or not au_embeddings.requires_grad:
        return source.logits(windows, au_embeddings)
    again: Tensor = checkpoint(source.logits, windows, au_embeddings, use_reentrant=False)
    return again


_Shape = tuple[int, int, int]
_Kind = tuple[str, str]


def _kind(method: ClipAUTT) -> _Kind:
    """Ways to tune that cost the same."""
    return method.tune, method.precision


def _shape(problem: Problem) -> _Shape:
    """Windows, samples and windows of a sample that a problem has room for in a batch, powers of two.

    They follow from the problem alone, and a batch holds problems of one shape: so sums over windows are added up in
    the same order whatever else is in the batch.
    """
    sizes = [len(sample) for sample in problem.samples]
    rows, samples, longest = (1 << (size - 1).bit_length() for size in (sum(sizes), len(sizes), max(sizes)))
    return max(_FEWEST_ROWS, rows), samples, longest


def _batch(problems: Sequence[Problem], source: Source, readout: Readout) -> _Batch:
    device = source.backbone.device
    windows = torch.nn.utils.rnn.pad_sequence([torch.cat(list(p.samples)) for p in problems], batch_first=True)
    rows, samples, longest = _shape(problems[0])
    windows = F.pad(windows, (0, 0, 0, rows - windows.shape[1]))
    index = torch.zeros(len(problems), samples, longest, dtype=torch.int64)
    inside = torch.zeros(len(problems), samples, longest, dtype=torch.bool)
    for row, problem in enumerate(problems):
        first = 0
        for number, sample in enumerate(problem.samples):
            index[row, number, : len(sample)] = torch.arange(first, first + len(sample))
            inside[row, number, : len(sample)] = True
            first += len(sample)
    trained = source.class_shares
    priors = torch.stack([trained if p.prior is None else p.prior.to(device) for p in problems])
    even = torch.full_like(trained, 1 / len(trained))
    assumed = torch.stack([even if p.prior is None else p.prior.to(device) for p in problems])
    shift = (priors / trained).log()
    return _Batch(windows.to(device), index.to(device), inside.to(device), shift, assumed)


@dataclass(frozen=True, eq=False)
class _Parameter:
    """What is tuned: where it starts, how large a relative step is, and what it makes of the AU embeddings."""

    start: Tensor
    """At the source prompts."""
    scale: float
    """A relative learning rate of 1, in units of the parameter."""
    au_embeddings: Callable[[Tensor], Tensor]
    """[B, …] → [B, K, d], differentiable."""


class _Free:
    """What the optimiser moves of one problem's parameter: a value per AU, or one displacement that all AUs share.

    With a displacement the AUs keep what distinguishes them, which matters where context stands in their own words.
    """

    def __init__(self, start: Tensor, per_au: bool) -> None:
        self.start = None if per_au else start
        self.leaf = (start.clone() if per_au else torch.zeros_like(start[:1])).requires_grad_(True)

    def value(self) -> Tensor:
        """The parameter, of the shape of the start."""
        return self.leaf if self.start is None else self.start + self.leaf


class Tuner:
    """Solves problems for one source model, in batches that fit the memory.

    Args:
        source: frozen; nothing in it changes.
        config: see `TuningConfig`.
    """

    def __init__(self, source: Source, config: TuningConfig | None = None) -> None:
        self.source = source
        self.config = config or TuningConfig()
        self._sizes: dict[_Kind, int] = {}
        self._halved: dict[tuple[_Kind, _Shape], int] = {}  # what a batch was halved to, for want of memory
        self._readers: dict[str, Callable[[Tensor], Tensor]] = {}

    def tune(self, problems: Sequence[Problem], method: ClipAUTT, readout: Readout) -> list[Tuned | DegenerateError]:
        """A few AdamW steps on the objective, for every problem from its own start.

        A single sample has no mutual information: there `infomax` and `infomax_kl` return the start, since AdamW would
        turn rounding errors into full steps.

        Args:
            problems: of any sizes.
            method: objective, steps, step size, and what is tuned.
            readout: how a sample's windows become one prediction.

        Returns:
            In the order of the problems: the tuned prompts, or why there are none.

        Raises:
            MemoryError: if the device's memory is too small for a single problem.
            ValueError: if the checkpoint's prompts have no context tokens, and context is to be tuned.
        """
        parameter = self._parameter(method)
        found: dict[int, Tuned | DegenerateError] = {}
        shapes = [_shape(problem) for problem in problems]
        waiting = sorted(range(len(problems)), key=lambda i: (shapes[i], i))
        while waiting:
            shape = shapes[waiting[0]]
            same = [i for i in waiting if shapes[i] == shape]
            chosen = same[: self._room(shape, method)]
            outcomes = self._tune_within_memory([problems[i] for i in chosen], method, readout, parameter)
            if outcomes is None:
                self._halved[_kind(method), shape] = len(chosen) // 2
                continue
            found |= dict(zip(chosen, outcomes, strict=True))
            waiting = waiting[len(chosen) :]
        return [found[i] for i in range(len(problems))]

    def _tune_within_memory(
        self, problems: Sequence[Problem], method: ClipAUTT, readout: Readout, parameter: _Parameter
    ) -> list[Tuned | DegenerateError] | None:
        """The outcomes; None where memory is too short for so many."""
        try:
            return self._tune_batch(problems, method, readout, parameter)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(problems) == 1:
                raise MemoryError(
                    f"the memory of {self.source.backbone.device} is too small to tune a single problem ({error}); "
                    "free some, use another device, or take adapt.method.tune=feature"
                ) from error
        if self.source.backbone.device.type == "cuda":
            torch.cuda.empty_cache()  # out here, where what the failed batch held is free again
        return None

    def batch_size(self, method: ClipAUTT) -> int:
        """Problems in one batch: as configured, as measured, or as many as the memory holds."""
        kind = _kind(method)
        if kind not in self._sizes:
            self._sizes[kind] = self.config.batch_size or min(_LARGEST_BATCH, self._fitting(method))
        return self._sizes[kind]

    def measure_batch_size(self, method: ClipAUTT, readout: Readout) -> int:
        """Find the batch size that is fastest per problem, by a step of 1, 2, 4, … problems, and use it from now on.

        Out of memory, or once two doublings have gained less than 5%, the search ends. A size that is configured stays.
        """
        if self.config.batch_size:
            return self.batch_size(method)
        most = min(_LARGEST_BATCH, self._fitting(method))
        best, least = 1, torch.inf
        for size in (2**power for power in range(most.bit_length())):
            try:
                seconds = self._seconds_of_step(method, readout, size) / size
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            if seconds <= 0.95 * least:
                best, least = size, seconds
            elif size > 2 * best:
                break
        self._sizes[_kind(method)] = best
        return best

    def _seconds_of_step(self, method: ClipAUTT, readout: Readout, size: int) -> float:
        """Of a whole step of so many problems: the least of three, or of what a second holds, after one to warm up."""
        parameter, one_step = self._parameter(method), replace(method, steps=1, tolerance=0.0)
        noise = torch.Generator().manual_seed(size)
        windows = F.normalize(torch.randn(_FEWEST_ROWS, self.source.au_embeddings.shape[-1], generator=noise), dim=-1)
        problems = [Problem(torch.split(windows, 1))] * size
        least, began = torch.inf, time.perf_counter()
        for turn in range(4):
            start = time.perf_counter()
            self._tune_batch(problems, one_step, readout, parameter)
            if self.source.backbone.device.type == "cuda":
                torch.cuda.synchronize(self.source.backbone.device)
            taken = time.perf_counter() - start
            least = min(least, taken) if turn else least
            if turn and time.perf_counter() - began > _MEASURING_SECONDS:
                break
        return least

    def bytes_per_problem(self, method: ClipAUTT) -> int:
        """What one problem more takes on its way through the text side and back, measured on two and on one.

        What is kept for the way back is counted while it is computed; half as much again comes and goes.
        """
        parameter = self._parameter(method)
        both = parameter.start.expand(2, *parameter.start.shape).clone().requires_grad_(True)
        one = saved_bytes(lambda: parameter.au_embeddings(both[:1]))
        two = saved_bytes(lambda: parameter.au_embeddings(both))
        return int(1.5 * (two - one))

    def _fitting(self, method: ClipAUTT) -> int:
        try:
            return max(1, self._budget() // max(1, self.bytes_per_problem(method)))
        except (RuntimeError, MemoryError) as error:  # not even two
            if not is_out_of_memory(error):
                raise
            return 1

    def _budget(self) -> int:
        return self.config.memory_mb * 2**20 if self.config.memory_mb else free_bytes(self.source.backbone.device)

    def _room(self, shape: _Shape, method: ClipAUTT) -> int:
        """How many problems of a shape go into a batch; their windows may take half of the memory."""
        most = min(self.batch_size(method), self._halved.get((_kind(method), shape), sys.maxsize))
        if self.config.batch_size:
            return most
        units, width = self.source.au_embeddings.shape
        windows = self._budget() // 2 // (4 * (2 * width + 4 * units + _FLOATS_OF_CLASSIFIER))
        return max(1, min(most, windows // shape[0]))

    def _tune_batch(
        self, problems: Sequence[Problem], method: ClipAUTT, readout: Readout, parameter: _Parameter
    ) -> list[Tuned | DegenerateError]:
        starts = [parameter.start if p.start is None else p.start.to(parameter.start.device) for p in problems]
        outcomes: list[DegenerateError | None] = [None] * len(problems)
        taken = [0] * len(problems)
        moving = [i for i, p in enumerate(problems) if len(p.samples) > 1 or method.objective == "entropy"]
        values = [start.detach() for start in starts]
        if moving:
            free = [_Free(values[i], method.per_au_context) for i in moving]
            batch = _batch([problems[i] for i in moving], self.source, readout)
            errors, steps = self._descend(free, batch, method, readout, parameter)
            for i, own, error, count in zip(moving, free, errors, steps, strict=True):
                values[i], outcomes[i], taken[i] = own.value().detach(), error, count
        return self._finish(torch.stack(values), outcomes, taken, parameter)

    def _descend(
        self,
        values: Sequence[_Free],
        batch: _Batch,
        method: ClipAUTT,
        readout: Readout,
        parameter: _Parameter,
    ) -> tuple[list[DegenerateError | None], list[int]]:
        """Steps in place of all values that are still on their way; why some stopped, and the steps of each."""
        rate = method.learning_rate * (parameter.scale if method.learning_rate_unit == "relative" else 1.0)
        rate = min(rate, _LARGEST_RATE)
        optimizer = torch.optim.AdamW([one.leaf for one in values], lr=rate, weight_decay=0.0, foreach=True)
        errors: list[DegenerateError | None] = [None] * len(values)
        steps, before = [0] * len(values), [torch.inf] * len(values)
        moving, part = list(range(len(values))), batch
        with torch.no_grad():
            own = self.source.au_embeddings.expand(len(values), -1, -1)
            source_logits = batch.logits(self.source, own, readout).double()
        for step in range(method.steps):
            stacked = torch.stack([values[i].value() for i in moving])
            logits = part.logits(self.source, parameter.au_embeddings(stacked), readout).double()
            given = {"inside": part.inside.any(-1), "prior": part.prior.double()}
            losses = objective_loss(logits, source_logits[moving], method, **given)
            now = losses.tolist()
            optimizer.zero_grad()
            torch.autograd.backward(losses.sum())
            going = []
            for i, loss in zip(moving, now, strict=True):
                if not torch.isfinite(torch.tensor(loss)):
                    errors[i] = NotFiniteError(f"the {method.objective} loss of step {step} is {loss}")
                elif abs(loss - before[i]) >= method.tolerance:
                    going.append(i)
                before[i] = loss
            for i in set(moving) - set(going):
                values[i].leaf.grad = None
            optimizer.step()
            for i in going:
                steps[i] += 1
            if not going:
                break
            if going != moving:
                moving, part = going, batch.rows(going)
        return errors, steps

    def _finish(
        self, tuned: Tensor, outcomes: Sequence[DegenerateError | None], steps: Sequence[int], parameter: _Parameter
    ) -> list[Tuned | DegenerateError]:
        with torch.no_grad():
            embeddings = parameter.au_embeddings(tuned)
        drifts = ((tuned - parameter.start) / parameter.scale).flatten(1).square().mean(-1).sqrt().tolist()
        results: list[Tuned | DegenerateError] = []
        for value, a, error, count, drift in zip(tuned, embeddings, outcomes, steps, drifts, strict=True):
            if error is None and not (torch.isfinite(value).all() and torch.isfinite(a).all()):
                error = NotFiniteError("the tuned prompts are not finite")
            results.append(error or Tuned(value.clone(), a.clone(), count, drift))
        return results

    def _parameter(self, method: ClipAUTT) -> _Parameter:
        source = self.source
        if method.tune == "feature":
            features = source.text_features
            return _Parameter(
                torch.zeros_like(features),
                _FEATURE_STEP * float(features.square().mean().sqrt()),
                lambda offset: source.model.au_embeddings(features + offset),
            )
        if not source.context.numel():
            raise ValueError(
                f"adapt.method.tune={method.tune!r}, but this checkpoint's prompts have no context tokens; take "
                "adapt.method.tune=feature, or adapt=clip_au"
            )
        scale = float(source.context.square().mean().sqrt())
        read = self._reader(method)
        return _Parameter(source.context, scale, lambda context: source.model.au_embeddings(read(context)))

    def _reader(self, method: ClipAUTT) -> Callable[[Tensor], Tensor]:
        if method.precision not in self._readers:
            self._readers[method.precision] = self._compiled(self.source.prompt_reader(method.precision))
        return self._readers[method.precision]

    def _compiled(self, read: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        if self.config.compile == "none":
            return read
        mode = "reduce-overhead" if self.config.compile == "cuda_graphs" else "default"
        compiled: Callable[[Tensor], Tensor] = torch.compile(read, mode=mode, dynamic=False)
        return compiled
