"""One way to personalise, as settings: method, objective, protocol, windows, steps, and what is tuned.

What this module does not know: how any of it is computed (`tuning`, `methods`) and in which order clips come
(`adaptation`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from clipautt.backbones.packed_tower import TextPrecision
from clipautt.features.clip_features import SUBJECT_BASELINES, SubjectBaseline
from clipautt.model.windows import WindowSpec

Objective = Literal["none", "entropy", "infomax", "infomax_kl"]
AdaptationProtocol = Literal["per_video", "online", "per_subject"]
Readout = Literal["best_window", "mean_windows", "peak_window", "whole_clip"]
Tune = Literal["context", "feature", "first_order"]

_LEAST_PRIOR = 1e-6
"""One in a million; float32 can hardly tell less from nothing."""
_PRIORS = f"numbers from {_LEAST_PRIOR:g} to 1 - {_LEAST_PRIOR:g}, estimate, or null"
_OBJECTIVE_NAMES = {"entropy": "entropy", "infomax": "infomax", "infomax_kl": "infomax+KL"}
_READOUT_NAMES = {
    "best_window": "best window",
    "mean_windows": "mean of windows",
    "peak_window": "peak window",
    "whole_clip": "whole clip",
}


@dataclass(frozen=True)
class AdaptConfig:
    """One way to personalise; `objective=none` is CLIP-AU itself."""

    method: Literal["clip_autt", "zero_shot"] = "clip_autt"
    """`zero_shot` compares frames with class descriptions and ignores the settings of prompt tuning."""
    objective: Objective = "none"
    """What the tuned prompts minimise."""
    protocol: AdaptationProtocol = "per_subject"
    """`per_video`: every clip from the source prompts; `online`: carried along the subject's clips; `per_subject`: all
    unlabeled clips of the subject together, then all are predicted."""
    subject_baseline: SubjectBaseline = "none"
    """Centre removed from the frame features; the checkpoint must have been trained with the same."""
    readout: Readout = "best_window"
    """The lowest-entropy window, the mean of all windows' logits, the window least like the neutral class, or the clip
    as one window."""
    window: WindowSpec | None = None
    """Instead of the checkpoint's windows."""
    tune: Tune = "context"
    """`context`: context vectors of the AU prompts through the text tower, exact and as published; `first_order`: the
    same through the tower's Jacobian at the source prompts; `feature`: an offset of the AU prompts' text features."""
    relinearise: int = 0
    """`first_order`: after every so many steps the tower's features are computed exactly and the first-order model goes
    on from there; 0 never asks the tower."""
    precision: TextPrecision = "fp32"
    """Arithmetic inside the text tower while tuning; context vectors, optimiser and loss are always fp32."""
    per_au_context: bool = True
    """Context vectors (or an offset) of their own for each AU prompt, or one displacement shared by all."""
    steps: int = 10
    """AdamW steps; 0 is CLIP-AU."""
    learning_rate: float = 1.0
    """Step size, in the unit below."""
    learning_rate_unit: Literal["relative", "absolute"] = "relative"
    """Relative to the root mean square of what is tuned at the source prompts, or as it is."""
    tolerance: float = 0.0
    """Stop early where a step has changed the objective by less, nats; 0 takes all steps."""
    kl_weight: float = 0.3
    """Weight of the divergence from the source predictions in `infomax_kl`."""
    balance_weight: float = 1.0
    """Weight of the divergence of the mean prediction from the prior in `infomax` and `infomax_kl`; 1 with equal shares
    gives the mutual information."""
    windows_per_clip: int = 1
    """`best_window`: lowest-entropy windows of each clip that the objective sees."""
    memory: int = 16
    """`online`: how many recent samples (windows or clips, as read out) the objective sees, embedded as they came."""
    prior: float | Literal["estimate"] | None = None
    """Share of the positive class to assume in objective and decision, 0..1 exclusive; `estimate`: from the subject's
    clips without labels; None: the training's in the decision, equal shares in the objective."""
    max_drift: float = 30.0
    """How far what is tuned may move from the source prompts, root mean square, in relative steps of size 1, before
    these are taken instead. The text tower normalises: behind it no distance tells a runaway from a useful step."""
    collapse_share: float = 0.2
    """Where the tuned prompts put all of a subject's clips into one class, and the source prompts put at least this
    share of them into others, the source prompts are taken instead; above 1 never."""
    seed: int = 0
    """Of the order of clips in `online`."""

    def __post_init__(self) -> None:
        _check("method", self.method, ("clip_autt", "zero_shot"))
        _check("objective", self.objective, get_args(Objective))
        _check("protocol", self.protocol, get_args(AdaptationProtocol))
        _check("subject_baseline", self.subject_baseline, SUBJECT_BASELINES)
        _check("readout", self.readout, get_args(Readout))
        _check("learning_rate_unit", self.learning_rate_unit, ("relative", "absolute"))
        _check("tune", self.tune, get_args(Tune))
        _check("precision", self.precision, get_args(TextPrecision))
        for name, least in (("steps", 0), ("windows_per_clip", 1), ("memory", 1), ("relinearise", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"adapt.{name}={getattr(self, name)}; allowed are whole numbers from {least}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"adapt.learning_rate={self.learning_rate}; allowed are positive numbers")
        for name in ("kl_weight", "balance_weight", "tolerance", "max_drift", "collapse_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"adapt.{name}={getattr(self, name)}; allowed are numbers from 0")
        self._check_prior()

    def _check_prior(self) -> None:
        if isinstance(self.prior, str) and self.prior != "estimate":
            raise ValueError(f"adapt.prior={self.prior!r}; allowed are {_PRIORS}")
        if isinstance(self.prior, int | float) and not _LEAST_PRIOR <= self.prior <= 1 - _LEAST_PRIOR:
            raise ValueError(f"adapt.prior={self.prior}; allowed are {_PRIORS}")
        if self.prior == "estimate" and self.protocol != "per_subject":
            raise ValueError(
                f"adapt.prior='estimate' with protocol={self.protocol!r}; the estimate needs all clips of a subject: "
                "take protocol=per_subject, or give a number"
            )

    @property
    def tunes(self) -> bool:
        """Whether prompts change at all."""
        return self.method == "clip_autt" and self.objective != "none" and self.steps > 0

    @property
    def transductive(self) -> bool:
        """Whether a clip's prediction depends on the subject's other clips."""
        return self.protocol != "per_video" and (
            self.tunes or self.subject_baseline != "none" or self.prior == "estimate"
        )

    @property
    def cheap(self) -> bool:
        """Whether prompts are tuned by another way than the exact one."""
        return self.tunes and self.tune != "context"

    @property
    def name(self) -> str:
        """The name of its rows in tables: what it does, then each setting that counts for it and is not the default."""
        if self.method == "zero_shot":
            return "zero-shot"
        readout = _READOUT_NAMES[self.readout]
        if not self.tunes:
            name = f"CLIP-AU, {readout}"
        else:
            name = f"CLIP-AUTT {_OBJECTIVE_NAMES[self.objective]}, {self.protocol.replace('_', ' ')}"
            name += "" if self.readout == "best_window" else f", {readout}"
        name += "" if self.subject_baseline == "none" else f", {self.subject_baseline} baseline"
        return ", ".join([name, *self._particulars()])

    def _particulars(self) -> Iterator[str]:
        if self.window is not None:
            yield f"windows of {self.window.length}"
            yield from (f"{part} {value}" for part in ("stride", "hop") if (value := getattr(self.window, part)) > 1)
        if self.prior is not None:
            yield "estimated prior" if self.prior == "estimate" else f"prior {self.prior:g}"
        if not self.tunes:
            return
        usual = AdaptConfig()
        if self.tune != "context":
            yield f"{self.tune.replace('_', '-')} tuning"
            yield from (f"re-linearised every {self.relinearise}",) * (
                self.tune == "first_order" and self.relinearise > 0
            )
        if self.precision != "fp32" and (self.tune == "context" or (self.tune == "first_order" and self.relinearise)):
            yield self.precision
        if (self.steps, self.learning_rate, self.learning_rate_unit) != (
            usual.steps,
            usual.learning_rate,
            usual.learning_rate_unit,
        ):
            unit = "" if self.learning_rate_unit == "relative" else " absolute"
            yield f"{self.steps} steps of {self.learning_rate:g}{unit}"
        if not self.per_au_context:
            yield "shared displacement"
        if self.objective == "infomax_kl" and self.kl_weight != usual.kl_weight:
            yield f"KL weight {self.kl_weight:g}"
        if self.objective in ("infomax", "infomax_kl") and self.balance_weight != usual.balance_weight:
            yield f"balance weight {self.balance_weight:g}"
        if self.readout == "best_window" and self.windows_per_clip != usual.windows_per_clip:
            yield f"{self.windows_per_clip} windows per clip"
        if self.protocol == "online" and self.memory != usual.memory:
            yield f"memory {self.memory}"
        if self.tolerance:
            yield f"tolerance {self.tolerance:g}"
        for part, name in (("largest drift", "max_drift"), ("collapse share", "collapse_share")):
            if getattr(self, name) != getattr(usual, name):
                yield f"{part} {getattr(self, name):g}"


def _check(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"adapt.{name}={value!r}; allowed are {', '.join(allowed)}")


REFERENCE = AdaptConfig()
"""CLIP-AU without personalization: what gains are measured against, where it is among the methods of a run."""
