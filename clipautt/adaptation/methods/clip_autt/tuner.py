"""Prompt tuning of many videos and subjects in one batch, each with separate optimizer state and early stopping.

In: problems (the window embeddings of one video or subject that enter the objective). Out: tuned prompts for each, or
the error that prevented them. Problems share only the frozen model, so results do not depend on the batch, up to the
order of floating-point sums. What is tuned (`ClipAUTT.tune`):

- `context`: the context vectors of the AU prompts, through the text tower. The exact mode, as published.
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
subjects of the synthetic data, where it gives decisions closest to a relative step of 1 of the context."""
_LARGEST_RATE = 1e30
"""AdamW computes in float32, which overflows beyond this; prompts after such a step are rejected anyway."""
_WINDOWS_PER_PASS = 1 << 16
_FEWEST_ROWS = 16
"""Minimum number of window rows per problem: on CPUs, products of fewer rows use kernels that depend on their
number."""
_FLOATS_OF_CLASSIFIER = 1024
"""Floats that the classifier keeps per window for the forward and backward pass."""


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """One video or subject to tune on."""

    samples: Sequence[Tensor]
    """Samples that get one prediction each, as their window embeddings v, [W, d]; see `read_samples`."""
    start: Tensor | None = None
    """Starting point: context [K, M, d_text] or feature offset [K, d]; None for that of the source."""
    prior: Tensor | None = None
    """Assumed class shares, [C]; None for those of training."""

    def __repr__(self) -> str:
        return f"Problem({len(self.samples)} samples)"


@dataclass(frozen=True, eq=False, repr=False)
class Tuned:
    """Result of tuning for one problem."""

    parameter: Tensor
    """Tuned context [K, M, d_text], or feature offset [K, d]."""
    au_embeddings: Tensor
    """AU embeddings a under the tuned parameter, [K, d]."""
    steps: int
    """Number of steps taken."""
    drift: float = 0.0
    """Distance from the source prompts, root mean square, in relative steps of size 1."""

    def __repr__(self) -> str:
        return f"Tuned({tuple(self.parameter.shape)}, {self.steps} steps)"


@dataclass(frozen=True, eq=False)
class _Batch:
    """Several problems with their windows padded to the longest."""

    windows: Tensor
    """Window embeddings v, padded, [B, V, d]."""
    index: Tensor
    """Indices of the windows of each sample, int64 [B, S, W]."""
    inside: Tensor
    """True where an entry of `index` is not padding, bool [B, S, W]."""
    shift: Tensor
    """Added to the logits: log(prior / training shares), [B, C]."""
    prior: Tensor
    """Class shares that the objective assumes, [B, C]."""

    def rows(self, chosen: Sequence[int]) -> _Batch:
        """The batch reduced to these problems."""
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
    """Logits of windows; for very many, activations are recomputed in the backward pass to save memory."""
    if last or not au_embeddings.requires_grad:
        return source.logits(windows, au_embeddings)
    logits: Tensor = checkpoint(source.logits, windows, au_embeddings, use_reentrant=False)
    return logits


_Shape = tuple[int, int, int]
_Kind = tuple[str, str]


def _kind(method: ClipAUTT) -> _Kind:
    """Key of settings with the same memory and time per problem."""
    return method.tune, method.precision


def _shape(problem: Problem) -> _Shape:
    """Padded numbers of windows, of samples and of windows per sample of a problem; powers of two.

    They depend on the problem alone, and all problems of a batch have the same shape, so sums over windows run in the
    same order whatever else is in the batch.
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
    """The tuned parameter: its start, the size of a relative step, and its map to AU embeddings."""

    start: Tensor
    """Value at the source prompts, [K, M, d_text] or [K, d]."""
    scale: float
    """A relative learning rate of 1, in units of the parameter."""
    au_embeddings: Callable[[Tensor], Tensor]
    """Parameters of a batch [B, …] → AU embeddings [B, K, d], differentiable."""


class _Free:
    """Free variable of one problem: a value per AU, or one displacement that all AUs share.

    A shared displacement preserves the differences between AUs, which matters when the context is initialized from
    each prompt's first tokens.
    """

    def __init__(self, start: Tensor, per_au: bool) -> None:
        self.start = None if per_au else start
        self.leaf = (start.clone() if per_au else torch.zeros_like(start[:1])).requires_grad_(True)

    def value(self) -> Tensor:
        """Current parameter, of the same shape as the start."""
        return self.leaf if self.start is None else self.start + self.leaf


class Tuner:
    """Solves problems for one source model, in batches that fit the memory.

    Args:
        source: the frozen model; not modified.
        config: memory limit, batch size and compilation.
    """

    def __init__(self, source: Source, config: TuningConfig | None = None) -> None:
        self.source = source
        self.config = config or TuningConfig()
        self._sizes: dict[_Kind, int] = {}
        self._halved: dict[tuple[_Kind, _Shape], int] = {}  # reduced batch size after running out of memory
        self._readers: dict[str, Callable[[Tensor], Tensor]] = {}

    def tune(self, problems: Sequence[Problem], method: ClipAUTT, readout: Readout) -> list[Tuned | DegenerateError]:
        """Take AdamW steps on the objective for every problem, from its starting point.

        The mutual information of a single sample is zero: there `infomax` and `infomax_kl` return the start, since
        AdamW would turn rounding errors into full steps.

        Args:
            problems: problems of any sizes.
            method: objective, steps, step size, and what is tuned.
            readout: how a sample's windows become one prediction.

        Returns:
            Tuned prompts, or the error that prevented them, in the order of the problems.

        Raises:
            MemoryError: if the device's memory is too small for a single problem.
            ValueError: if context is to be tuned and the checkpoint's prompts have no context tokens.
        """
        parameter = self._parameter(method)
        results: dict[int, Tuned | DegenerateError] = {}
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
            results |= dict(zip(chosen, outcomes, strict=True))
            waiting = waiting[len(chosen) :]
        return [results[i] for i in range(len(problems))]

    def _tune_within_memory(
        self, problems: Sequence[Problem], method: ClipAUTT, readout: Readout, parameter: _Parameter
    ) -> list[Tuned | DegenerateError] | None:
        """Tune one batch; None if there is too little memory for so many problems."""
        try:
            return self._tune_batch(problems, method, readout, parameter)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(problems) == 1:
                raise MemoryError(
                    f"the memory of {self.source.backbone.device} is too small to tune a single problem ({error}); "
                    "free some, use another device, or set adapt.method.tune=feature"
                ) from error
        if self.source.backbone.device.type == "cuda":
            torch.cuda.empty_cache()  # outside `except`, where the tensors of the failed batch have been freed
        return None

    def batch_size(self, method: ClipAUTT) -> int:
        """Number of problems per batch: as configured, as measured, or as many as fit in memory."""
        kind = _kind(method)
        if kind not in self._sizes:
            self._sizes[kind] = self.config.batch_size or min(_LARGEST_BATCH, self._fitting(method))
        return self._sizes[kind]

    def measure_batch_size(self, method: ClipAUTT, readout: Readout) -> int:
        """Time one step of 1, 2, 4, … problems, and use the batch size that is fastest per problem from now on.

        The search stops when memory runs out, or once two doublings have gained less than 5%. A configured size is
        kept.
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
        """Fastest step of `size` problems, seconds: of three runs, or as many as fit into a second, after a warm-up."""
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
        """Memory that each additional problem needs in the text tower's forward and backward pass, measured on two
        and one.

        Tensors saved for the backward pass are counted exactly; temporaries are estimated at half as much again.
        """
        parameter = self._parameter(method)
        both = parameter.start.expand(2, *parameter.start.shape).clone().requires_grad_(True)
        one = saved_bytes(lambda: parameter.au_embeddings(both[:1]))
        two = saved_bytes(lambda: parameter.au_embeddings(both))
        return int(1.5 * (two - one))

    def _fitting(self, method: ClipAUTT) -> int:
        try:
            return max(1, self._budget() // max(1, self.bytes_per_problem(method)))
        except (RuntimeError, MemoryError) as error:  # measuring two problems did not fit
            if not is_out_of_memory(error):
                raise
            return 1

    def _budget(self) -> int:
        return self.config.memory_mb * 2**20 if self.config.memory_mb else free_bytes(self.source.backbone.device)

    def _room(self, shape: _Shape, method: ClipAUTT) -> int:
        """Number of problems of a shape per batch; their windows may take half of the memory."""
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
            for i, variable, error, count in zip(moving, free, errors, steps, strict=True):
                values[i], outcomes[i], taken[i] = variable.value().detach(), error, count
        return self._finish(torch.stack(values), outcomes, taken, parameter)

    def _descend(
        self,
        values: Sequence[_Free],
        batch: _Batch,
        method: ClipAUTT,
        readout: Readout,
        parameter: _Parameter,
    ) -> tuple[list[DegenerateError | None], list[int]]:
        """Optimize `values` in place; return the error of each (None if it succeeded) and the number of steps it
        took."""
        rate = method.learning_rate * (parameter.scale if method.learning_rate_unit == "relative" else 1.0)
        rate = min(rate, _LARGEST_RATE)
        optimizer = torch.optim.AdamW([value.leaf for value in values], lr=rate, weight_decay=0.0, foreach=True)
        errors: list[DegenerateError | None] = [None] * len(values)
        steps, before = [0] * len(values), [torch.inf] * len(values)
        moving, part = list(range(len(values))), batch
        with torch.no_grad():
            unadapted = self.source.au_embeddings.expand(len(values), -1, -1)
            source_logits = batch.logits(self.source, unadapted, readout).double()
        for step in range(method.steps):
            stacked = torch.stack([values[i].value() for i in moving])
            logits = part.logits(self.source, parameter.au_embeddings(stacked), readout).double()
            inside, prior = part.inside.any(-1), part.prior.double()
            losses = objective_loss(logits, source_logits[moving], method, inside=inside, prior=prior)
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
                f"adapt.method.tune={method.tune!r}, but this checkpoint's prompts have no context tokens; set "
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
