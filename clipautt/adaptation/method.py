"""The interface between the driver and adaptation methods.

Defines `AdaptConfig` (the settings all methods share), `Method` (the protocol a method implements) and `Session` (the
source model and settings that a method receives), and finds methods by name. A method is one module of
`clipautt.adaptation.methods`: a frozen settings class that implements `Method`. `methods.zero_shot` is the shortest.
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
    """Memory limit of one batch, MiB; null takes half of the free memory (80 % on a GPU), divided among the actors that
    share it."""
    batch_size: PositiveInt | None = None
    """Number of videos or subjects tuned together; null takes the number measured to be fastest, or as many as memory
    allows, at most 32."""
    compile: Compilation = "none"
    """`default` compiles the text tower with `torch.compile`, `cuda_graphs` with CUDA graphs as well; either takes
    minutes to start."""


@dataclass(frozen=True, eq=False, repr=False)
class SavedState:
    """A method's state as it is written to a file."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Name → tensor, on the CPU."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Everything else; values must be JSON-serializable."""


@runtime_checkable
class Method(Protocol):
    """An adaptation method. An instance is a frozen settings object; its state is an immutable value of any type."""

    name: ClassVar[str]
    """Name of the method's module in `clipautt.adaptation.methods`."""
    fidelity: ClassVar[Fidelity]
    """`exact`: as published; `adapted`: to videos and stored features; `variant`: changed on purpose."""
    deviations: ClassVar[str]
    """How the method differs from the published one, in full sentences that the report prints."""

    @property
    def needs(self) -> frozenset[Need]:
        """Parts of the source that the method uses; access to anything else is refused."""

    @property
    def logits_from(self) -> LogitSource:
        """`head`: the trained classifier, whose logits reflect the class shares of its training; `class_text`: class
        descriptions, which imply equal shares."""

    @property
    def adapts(self) -> bool:
        """Whether clips can change the state at all; CLIP-AU and zero-shot do not adapt."""

    def title(self, config: AdaptConfig) -> tuple[str, ...]:
        """Name in tables, followed by each non-default setting that has an effect under `config`."""

    def start(self, session: Session, prior: Tensor | None) -> Any:
        """The state before a subject's first clip.

        Args:
            session: source model and settings.
            prior: class shares to assume, [C]; None for those of the training clips.
        """

    def fit(self, state: Any, session: Session, clips: Sequence[ClipFeatures]) -> Any:
        """`per_subject`: the state after all clips of a subject, which must not depend on their order."""

    def step(self, state: Any, session: Session, clip: ClipFeatures) -> tuple[ClipOutput, Any]:
        """`per_video` and `online`: adapt to one clip, predict it, and return the next state."""

    def predict(self, state: Any, session: Session, clip: ClipFeatures) -> ClipOutput:
        """Predict one clip without adapting to it."""

    def save(self, state: Any) -> SavedState:
        """Convert the state for writing to a file; the caller saves the class prior."""

    def restore(self, saved: SavedState, session: Session, prior: Tensor | None) -> Any:
        """The inverse of `save`."""


@runtime_checkable
class BatchedMethod(Protocol):
    """Optional methods for batch processing of many subjects. Where an item fails, its error takes the place of the
    result."""

    def prepare(self, session: Session) -> None:
        """Called once before a large amount of work; measure or compile here."""

    def fit_many(
        self, states: Sequence[Any], session: Session, clips: Sequence[Sequence[ClipFeatures]]
    ) -> list[Any | DegenerateError]:
        """`fit` of many states, each to its set of clips."""

    def step_many(
        self, states: Sequence[Any], session: Session, clips: Sequence[ClipFeatures]
    ) -> list[tuple[ClipOutput, Any] | DegenerateError]:
        """`step` of many states, each with its clip."""

    def predict_many(self, states: Sequence[Any], session: Session, clips: Sequence[ClipFeatures]) -> list[ClipOutput]:
        """`predict` of many clips, each under its state."""


@runtime_checkable
class PromptMethod(Protocol):
    """Optional method for adaptation that changes the AU prompts, so that the changes can be shown."""

    def au_embeddings(self, state: Any) -> Tensor:
        """AU embeddings a under the prompts of this state, [K, d]."""


@runtime_checkable
class Approximation(Protocol):
    """Optional property of a faster approximation; every run compares it with the exact method on a few subjects."""

    @property
    def exact(self) -> Method | None:
        """The exact method that this one approximates; None if these settings are exact already."""


@settings
class AdaptConfig:
    """How to personalize: a method, and the settings that all methods share."""

    method: Method
    """The adaptation method with its settings."""
    protocol: AdaptationProtocol = "per_subject"
    """`per_video` starts every clip from the source model; `online` carries the state along the subject's clips;
    `per_subject` adapts to all unlabelled clips of the subject together, then predicts all of them."""
    subject_baseline: SubjectBaseline = "none"
    """Centre removed from a subject's frame features; must be the one the checkpoint was trained with."""
    readout: Readout = "best_window"
    """How a clip is predicted from its windows: from the one of lowest entropy, from the mean of all windows'
    logits, from the one least like the neutral class, or from the whole clip as a single window."""
    window: WindowSpec | None = None
    """Windows to use instead of the checkpoint's; null keeps the checkpoint's."""
    prior: Annotated[float, Field(ge=1e-6, le=1 - 1e-6)] | Literal["estimate"] | None = None
    """Assumed share of the positive class, such as 0.2; `estimate` estimates it from the subject's unlabelled clips;
    null assumes the training clips' shares in decisions, and equal shares in objectives."""
    collapse_share: NonNegativeFloat = 0.2
    """If adaptation puts all clips of a subject into one class while the unadapted model puts at least this share of
    them into others, the unadapted predictions are used; a value above 1 disables this."""
    seed: int = 0
    """Random seed of the order in which `online` visits clips."""

    def __post_init__(self) -> None:
        if isinstance(self.method, type):  # A class has the attributes that the protocol asks of an instance.
            raise ValueError(f"method={self.method.__name__}; give an instance, such as {self.method.__name__}()")
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
        """The same settings with the exact method; None if this method is not an approximation."""
        method = self.method.exact if isinstance(self.method, Approximation) else None
        return None if method is None else replace(self, method=method)

    @property
    def name(self) -> str:
        """Name of its rows in tables: the method's title, then each non-default setting that has an effect."""
        title, *particulars = self.method.title(self)
        baseline = [] if self.subject_baseline == "none" else [f"{self.subject_baseline} baseline"]
        collapse = AdaptConfig.__dataclass_fields__["collapse_share"].default
        share = [f"collapse share {self.collapse_share:g}"] if self.collapse_share != collapse else []
        particulars = [*particulars, *share] if self.method.adapts else particulars
        return ", ".join([title, *baseline, *self._shared_particulars(), *particulars])

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
        """All settings as JSON-serializable values, including the name of the method; see `from_facts`."""
        shared = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        window = None if self.window is None else asdict(self.window)
        return shared | {"window": window, "method": {"name": self.method.name, **asdict(self.method)}}  # type: ignore[call-overload]

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> AdaptConfig:
        """The inverse of `facts`.

        Raises:
            ValueError: if the method does not exist or a setting is invalid.
        """
        particulars = dict(facts["method"])
        method = find_method(particulars.pop("name"))(**particulars)
        window = None if facts["window"] is None else WindowSpec(**facts["window"])
        return cls(**{**facts, "method": method, "window": window})


@dataclass(frozen=True, eq=False)
class Session:
    """What a method receives: the parts of the source model it asked for, and the shared settings."""

    source: Source
    """Frozen source model with the configured windows; refuses access to anything not listed in the method's
    `needs`."""
    config: AdaptConfig
    """Method and shared settings."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Memory limit, batch size and compilation."""

    @classmethod
    def open(cls, source: Source, config: AdaptConfig, tuning: TuningConfig | None = None) -> Session:
        """Open a session with this configuration.

        Raises:
            ValueError: if the source lacks something the method needs; see `check_needs`.
        """
        check_needs(source.checkpoint.spec, config)
        limited = source.with_window(config.window).limited_to(config.method.needs)
        return cls(limited, config, tuning or TuningConfig())


def check_needs(spec: CheckpointSpec, config: AdaptConfig) -> None:
    """Refuse a method that needs something the checkpoint or the protocol does not provide.

    Raises:
        ValueError: the message names the method, what is missing and what to do.
    """
    method, needs = config.method.name, config.method.needs
    if "pixels" in needs:
        raise ValueError(f"method {method!r} needs pixels, but the feature store holds frame features only")
    if "class_text" in needs and not spec.descriptions:
        raise ValueError(
            f"method {method!r} needs class descriptions, but this checkpoint has none for "
            f"{', '.join(spec.classes)}; take a method that uses the trained classifier, such as adapt=clip_au"
        )
    if "text_tower" in needs and not spec.context_tokens:
        raise ValueError(
            f"method {method!r} tunes context tokens, but this checkpoint's prompts have none; take "
            "adapt.method.tune=feature, or adapt=clip_au"
        )
    if "subject_set" in needs and config.protocol != "per_subject":
        raise ValueError(
            f"method {method!r} needs all clips of a subject together, but protocol is {config.protocol!r}; take "
            "adapt.protocol=per_subject"
        )


def method_names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    package = import_module("clipautt.adaptation.methods")
    return tuple(sorted(module.name for module in iter_modules(package.__path__)))


def find_method(name: str) -> type[Any]:
    """The settings class of a method.

    Raises:
        ValueError: if there is no method of this name; the message lists the known ones.
    """
    if name not in method_names():
        raise ValueError(f"method {name!r} is unknown; known methods are {', '.join(method_names())}")
    module = import_module(f"clipautt.adaptation.methods.{name}")
    classes = {value for value in vars(module).values() if isinstance(value, type)}
    (method,) = {cls for cls in classes if getattr(cls, "name", None) == name}
    return method


def changed_settings(method: Any) -> tuple[str, ...]:
    """Describe each non-default setting of a method as `setting value`; used in titles."""
    return tuple(
        f"{setting.name.replace('_', ' ')} {getattr(method, setting.name)}"
        for setting in fields(method)
        if getattr(method, setting.name) != setting.default
    )


def fit_in_turn(method: Method, state: Any, session: Session, clips: Sequence[ClipFeatures]) -> Any:
    """`fit` of a method that adapts clip by clip: one step per clip, in order of clip ids."""
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        _, state = method.step(state, session, clip)
    return state
