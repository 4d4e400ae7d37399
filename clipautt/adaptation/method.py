"""The seam between the driver and every adaptation method: what a method is, what it is given, what all of them share.

In: nothing is computed here. Out: `AdaptConfig` (settings that every method has), `Method` (what a method implements)
and `Session` (what it is given). A method is one module of `clipautt.adaptation.methods`: a frozen settings class that
implements `Method`. Open `methods.zero_shot` for the shortest one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from clipautt.adaptation.predictions import ClipOutput, DegenerateError
from clipautt.adaptation.readout import Readout
from clipautt.adaptation.source import Need, Source
from clipautt.features.clip_features import ClipFeatures, SubjectBaseline
from clipautt.model.checkpoint import CheckpointSpec
from clipautt.model.windows import WindowSpec
from clipautt.settings import settings

AdaptationProtocol = Literal["per_video", "online", "per_subject"]
Compilation = Literal["none", "default", "cuda_graphs"]
Fidelity = Literal["exact", "adapted", "variant"]
LogitSource = Literal["head", "class_text"]
_READOUT_NAMES = {
    "best_window": "best window",
    "mean_windows": "mean of windows",
    "peak_window": "peak window",
    "whole_clip": "whole clip",
}


@settings
class TuningConfig:
    """How adaptation is computed; nothing here changes a result by more than rounding."""

    memory_mb: PositiveInt | None = None
    """Memory that one batch may take, MiB; null takes half of what is free, or 80 % on a GPU, divided among the actors
    that share it."""
    batch_size: PositiveInt | None = None
    """Videos or subjects that are tuned together; null takes as many as the memory holds, at most 32, or the number
    that was measured to be fastest."""
    compile: Compilation = "none"
    """`default` compiles the text tower with `torch.compile`, `cuda_graphs` with CUDA graphs as well; either takes
    minutes to start."""


@dataclass(frozen=True, eq=False, repr=False)
class SavedState:
    """A method's state as it is written to a file."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Name → tensor, on the CPU."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Everything else, as JSON takes it."""


@runtime_checkable
class Method(Protocol):
    """One way to adapt. An instance is a frozen settings object; a state is an immutable value of the method's own."""

    name: ClassVar[str]
    """Name of its module in `clipautt.adaptation.methods`."""
    fidelity: ClassVar[Fidelity]
    """`exact`: as published; `adapted`: to videos and stored features; `variant`: changed on purpose."""
    deviations: ClassVar[str]
    """In what it differs from the published method, in sentences that the report prints."""

    @property
    def needs(self) -> frozenset[Need]:
        """What of the source it uses; everything else is refused."""

    @property
    def logits_from(self) -> LogitSource:
        """`head`: the trained classifier, whose logits hold the class shares of its training; `class_text`: class
        descriptions, which know no shares."""

    @property
    def adapts(self) -> bool:
        """Whether clips can change the state at all; CLIP-AU and zero-shot do not adapt."""

    def title(self, config: AdaptConfig) -> tuple[str, ...]:
        """Name in tables, then each setting that counts under `config` and is not the default."""

    def start(self, session: Session, prior: Tensor | None) -> Any:
        """The state before a subject's first clip.

        Args:
            session: what the method is given.
            prior: class shares to assume, [C]; None: those of the training clips.
        """

    def fit(self, state: Any, session: Session, clips: Sequence[ClipFeatures]) -> Any:
        """`per_subject`: the state after all clips of a subject, which must not depend on their order."""

    def step(self, state: Any, session: Session, clip: ClipFeatures) -> tuple[ClipOutput, Any]:
        """`per_video` and `online`: adapt to one clip, predict it, and return the next state."""

    def predict(self, state: Any, session: Session, clip: ClipFeatures) -> ClipOutput:
        """Predict one clip without adapting to it."""

    def save(self, state: Any) -> SavedState:
        """The state for a file; class priors are kept by the caller."""

    def restore(self, saved: SavedState, session: Session, prior: Tensor | None) -> Any:
        """The inverse of `save`."""


@runtime_checkable
class BatchedMethod(Protocol):
    """What a method adds that works on many subjects at once. An error takes the place of a result that has one."""

    def prepare(self, session: Session) -> None:
        """Called once before a large amount of work; measure or compile here."""

    def fit_many(
        self, states: Sequence[Any], session: Session, clips: Sequence[Sequence[ClipFeatures]]
    ) -> list[Any | DegenerateError]:
        """`fit`, one state and one set of clips each."""

    def step_many(
        self, states: Sequence[Any], session: Session, clips: Sequence[ClipFeatures]
    ) -> list[tuple[ClipOutput, Any] | DegenerateError]:
        """`step`, one state and one clip each."""

    def predict_many(self, states: Sequence[Any], session: Session, clips: Sequence[ClipFeatures]) -> list[ClipOutput]:
        """`predict`, one state and one clip each."""


@runtime_checkable
class PromptMethod(Protocol):
    """What a method adds that moves the AU prompts, so that what it changed can be shown."""

    def au_embeddings(self, state: Any) -> Tensor:
        """a under the prompts of this state, [K, d]."""


@runtime_checkable
class Approximation(Protocol):
    """What a method adds that approximates another one faster; every run compares the two on a few subjects."""

    @property
    def exact(self) -> Method | None:
        """The method whose decisions it approximates; None where these settings are exact."""


@settings
class AdaptConfig:
    """One way to personalize: a method, and the settings that every method has."""

    method: Method
    """The method with its own settings."""
    protocol: AdaptationProtocol = "per_subject"
    """`per_video` starts every clip from the source model; `online` carries the state along the subject's clips;
    `per_subject` adapts to all unlabelled clips of the subject together, then predicts all of them."""
    subject_baseline: SubjectBaseline = "none"
    """Centre removed from the frame features of a subject; the checkpoint must have been trained with the same."""
    readout: Readout = "best_window"
    """The window of lowest entropy, the mean of all windows' logits, the window least like the neutral class, or the
    clip as one window."""
    window: WindowSpec | None = None
    """Windows to use instead of the checkpoint's; null keeps the checkpoint's."""
    prior: Annotated[float, Field(ge=1e-6, le=1 - 1e-6)] | Literal["estimate"] | None = None
    """Share of the positive class to assume, such as 0.2; `estimate` takes it from the subject's clips without labels;
    null takes the training clips' in decisions, and equal shares in objectives."""
    collapse_share: NonNegativeFloat = 0.2
    """If adaptation puts all clips of a subject into one class, and the unadapted model puts at least this share of
    them into others, the unadapted predictions are used; a value above 1 switches this off."""
    seed: int = 0
    """Seed of the order in which `online` visits clips."""

    def __post_init__(self) -> None:
        if self.prior == "estimate" and self.protocol != "per_subject":
            raise ValueError(
                f"prior='estimate' with protocol={self.protocol!r}; the estimate needs all clips of a subject: take "
                "protocol=per_subject, or give a number"
            )

    @property
    def transductive(self) -> bool:
        """Whether a clip's prediction depends on the subject's other clips."""
        return self.protocol != "per_video" and (
            self.method.adapts or self.subject_baseline != "none" or self.prior == "estimate"
        )

    @property
    def exact(self) -> AdaptConfig | None:
        """The same with the method that this one approximates; None where it is no approximation."""
        method = self.method.exact if isinstance(self.method, Approximation) else None
        return None if method is None else replace(self, method=method)

    @property
    def name(self) -> str:
        """Name of its rows in tables: what it does, then each setting that counts and is not the default."""
        title, *particulars = self.method.title(self)
        baseline = [] if self.subject_baseline == "none" else [f"{self.subject_baseline} baseline"]
        collapse = AdaptConfig.__dataclass_fields__["collapse_share"].default
        share = [f"collapse share {self.collapse_share:g}"] if self.collapse_share != collapse else []
        own = [*particulars, *share] if self.method.adapts else particulars
        return ", ".join([title, *baseline, *self._shared_particulars(), *own])

    def _shared_particulars(self) -> Iterator[str]:
        if self.window is not None and "views" in self.method.needs:
            yield f"windows of {self.window.length}"
            yield from (f"{part} {value}" for part in ("stride", "hop") if (value := getattr(self.window, part)) > 1)
        if self.prior is not None:
            yield "estimated prior" if self.prior == "estimate" else f"prior {self.prior:g}"

    @property
    def readout_name(self) -> str:
        """The readout in words."""
        return _READOUT_NAMES[self.readout]

    @property
    def facts(self) -> dict[str, Any]:
        """All settings as JSON takes them, with the name of the method; see `from_facts`."""
        shared = {one.name: getattr(self, one.name) for one in fields(self)}
        window = None if self.window is None else asdict(self.window)
        return shared | {"window": window, "method": {"name": self.method.name, **asdict(self.method)}}  # type: ignore[call-overload]

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> AdaptConfig:
        """The inverse of `facts`.

        Raises:
            ValueError: if there is no such method, or a setting does not fit.
        """
        own = dict(facts["method"])
        method = find_method(own.pop("name"))(**own)
        window = None if facts["window"] is None else WindowSpec(**facts["window"])
        return cls(**{**facts, "method": method, "window": window})


@dataclass(frozen=True, eq=False)
class Session:
    """What a method is given: the source model, as far as the method asked for it, and the shared settings."""

    source: Source
    """Frozen, with the windows of the configuration; it refuses what the method's `needs` do not name."""
    config: AdaptConfig
    """Method and shared settings."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Memory, batch size and compilation."""

    @classmethod
    def open(cls, source: Source, config: AdaptConfig, tuning: TuningConfig | None = None) -> Session:
        """A session of this configuration.

        Raises:
            ValueError: if the source cannot give what the method needs; see `check_needs`.
        """
        check_needs(source.checkpoint.spec, config)
        limited = source.with_window(config.window).limited_to(config.method.needs)
        return cls(limited, config, tuning or TuningConfig())


def check_needs(spec: CheckpointSpec, config: AdaptConfig) -> None:
    """Refuse a method that needs what the checkpoint or the protocol cannot give.

    Raises:
        ValueError: naming the method, what is missing and what to do.
    """
    method, needs = config.method.name, config.method.needs
    if "pixels" in needs:
        raise ValueError(f"method {method!r} needs pixels, and the feature store holds features of frames only")
    if "class_text" in needs and not spec.descriptions:
        raise ValueError(
            f"method {method!r} needs descriptions of the classes, and this checkpoint has none for "
            f"{', '.join(spec.classes)}; take a method that uses the trained classifier, such as adapt=clip_au"
        )
    if "text_tower" in needs and not spec.context_tokens:
        raise ValueError(
            f"method {method!r} tunes context tokens, and this checkpoint's prompts have none; take "
            "adapt.method.tune=feature, or adapt=clip_au"
        )
    if "subject_set" in needs and config.protocol != "per_subject":
        raise ValueError(
            f"method {method!r} needs all clips of a subject together, and protocol is {config.protocol!r}; take "
            "adapt.protocol=per_subject"
        )


def method_names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    package = import_module("clipautt.adaptation.methods")
    return tuple(sorted(module.name for module in iter_modules(package.__path__)))


def find_method(name: str) -> type[Any]:
    """The settings class of a method.

    Raises:
        ValueError: if there is none of this name, naming those that there are.
    """
    if name not in method_names():
        raise ValueError(f"method {name!r} is unknown; there are {', '.join(method_names())}")
    module = import_module(f"clipautt.adaptation.methods.{name}")
    (found,) = {one for one in vars(module).values() if isinstance(one, type) and getattr(one, "name", None) == name}
    return found


def changed_settings(method: Any) -> tuple[str, ...]:
    """`setting value` for every setting of a method that is not the default; for titles."""
    return tuple(
        f"{one.name.replace('_', ' ')} {getattr(method, one.name)}"
        for one in fields(method)
        if getattr(method, one.name) != one.default
    )


def fit_in_turn(method: Method, state: Any, session: Session, clips: Sequence[ClipFeatures]) -> Any:
    """`fit` of a method that adapts clip by clip: one step per clip, in the order of their ids."""
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        _, state = method.step(state, session, clip)
    return state
