"""A subject's adaptation as a file: the method's state, the centre and what is needed to resume.

In: a `SubjectResult` and the settings that made it. Out: one safetensors file per subject, and from it the state to
predict with or to resume. The method converts its own state (`Method.save`, `Method.restore`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipautt.adaptation.basis import Basis
from clipautt.adaptation.driver import FALLBACK, SubjectResult, SubjectState
from clipautt.adaptation.method import AdaptConfig, SavedState, Session, TuningConfig
from clipautt.adaptation.predictions import NO_PREDICTION
from clipautt.adaptation.source import Source
from clipautt.files import write_tensors

FORMAT = 2
"""Version of the file format."""
_METHOD = "method."
"""Prefix of the names of the method's tensors."""
_BESIDE = "beside."
"""Prefix of the names of tensors that `load_personalization` does not read."""


@dataclass(frozen=True, eq=False, repr=False)
class Personalization:
    """The saved result of a subject's adaptation."""

    subject_id: str
    """Id of the subject."""
    config: AdaptConfig
    """Settings it was made with."""
    centre: Tensor
    """Vector to subtract from frame features, [d]."""
    saved: SavedState
    """The method's state, as `Method.save` returns it."""
    prior: Tensor | None = None
    """Assumed class shares, [C]; None for those of the training clips."""
    decisions: tuple[tuple[int, int], ...] = ()
    """`online`: see `SubjectState`."""
    fallback: str | None = None
    """Why adaptation to the subject has stopped; see `SubjectState`."""
    clips: tuple[str, ...] = ()
    """Ids of the clips it was made from, in visiting order."""
    basis: Basis | None = None
    """How much footage it rests on; None in files of before that was recorded."""
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Clip id → why the clip was not used."""
    notes: tuple[str, ...] = ()
    """Sentences on the footage that whoever uses it must know."""

    def __repr__(self) -> str:
        return f"Personalization({self.subject_id!r}, {self.config.name}; {self.basis or 'footage unknown'})"

    @property
    def num_frames(self) -> int | None:
        """Frames of the face that it rests on; None if unknown."""
        return None if self.basis is None else self.basis.num_frames

    @property
    def seconds(self) -> float | None:
        """Time that these frames stand for; None if unknown."""
        return None if self.basis is None else self.basis.seconds

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on why it may be worth little; empty where nothing speaks against it."""
        return tuple(self._warnings())

    def _warnings(self) -> Iterator[str]:
        if self.basis is not None and self.basis.too_few:
            yield self.basis.too_few
        if self.fallback:
            yield f"Adaptation went wrong, and predictions are made without it: {self.fallback.removeprefix(FALLBACK)}."
        yield from self.notes

    @classmethod
    def of(cls, result: SubjectResult, config: AdaptConfig, *, earlier: Sequence[str] = ()) -> Personalization:
        """Build it from a finished adaptation.

        Args:
            result: result of the subject.
            config: settings it was made with.
            earlier: ids of the clips of the run that was resumed, in visiting order.
        """
        after = result.after
        return cls(
            result.subject_id,
            config,
            result.centre,
            config.method.save(after.state),
            after.prior,
            after.decisions,
            after.fallback,
            (*earlier, *(prediction.clip_id for prediction in result.predictions)),
            result.basis,
            {p.clip_id: p.status.removeprefix(NO_PREDICTION) for p in result.predictions if not p.made},
        )

    def session(self, source: Source, tuning: TuningConfig | None = None) -> Session:
        """Open a session with the settings that this was made with."""
        return Session.open(source, self.config, tuning)

    @torch.no_grad()
    def after(self, session: Session) -> SubjectState:
        """The subject's progress, to predict with or to resume."""
        prior = None if self.prior is None else self.prior.to(session.source.backbone.device)
        state = self.config.method.restore(self.saved, session, prior)
        return SubjectState(state, prior, self.decisions, self.fallback)


def save_personalization(
    personalization: Personalization, path: Path, *, checkpoint: str, beside: SavedState | None = None
) -> None:
    """Write one subject's state and centre atomically, with the checkpoint's fingerprint.

    Args:
        personalization: what is written.
        path: the file, which is replaced.
        checkpoint: fingerprint of the checkpoint it belongs to.
        beside: what else the caller needs in the same file, see `load_beside`; to predict, it is not read.
    """
    tensors = {f"{_METHOD}{name}": tensor for name, tensor in personalization.saved.tensors.items()}
    tensors["centre"] = personalization.centre
    if personalization.prior is not None:
        tensors["prior"] = personalization.prior
    facts = {
        "format": FORMAT,
        "subject_id": personalization.subject_id,
        "checkpoint": checkpoint,
        "config": personalization.config.facts,
        "method": dict(personalization.saved.facts),
        "clips": personalization.clips,
        "decisions": personalization.decisions,
        "fallback": personalization.fallback,
        "basis": personalization.basis and asdict(personalization.basis),
        "omitted": dict(personalization.omitted),
        "notes": personalization.notes,
    }
    metadata = {"personalization": json.dumps(facts)}
    if beside is not None:
        tensors |= {f"{_BESIDE}{name}": tensor for name, tensor in beside.tensors.items()}
        metadata["beside"] = json.dumps(dict(beside.facts))
    write_tensors(path, tensors, metadata)


def load_beside(path: Path, *, tensors: bool = True) -> SavedState:
    """What `save_personalization` wrote beside a personalization; empty if it was given nothing.

    Args:
        path: the file.
        tensors: whether to read the tensors, which may be large.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    with _opened(path) as file:
        names = [name for name in file.keys() if tensors and name.startswith(_BESIDE)]  # noqa: SIM118 (no mapping)
        read = {name.removeprefix(_BESIDE): file.get_tensor(name) for name in sorted(names)}
        return SavedState(read, json.loads((file.metadata() or {}).get("beside", "{}")))


def clips_of_personalization(path: Path) -> tuple[str, ...] | None:
    """Ids of the clips that a file's prompts were made from, in visiting order; None if there is no file.

    Raises:
        ValueError: if the file is damaged.
    """
    return tuple(_read(path, tensors=False)[0]["clips"]) if path.is_file() else None


def checkpoint_of_personalization(path: Path) -> str:
    """Fingerprint of the checkpoint that a file belongs to.

    Raises:
        ValueError: if the file is damaged.
    """
    return str(_read(path, tensors=False)[0]["checkpoint"])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, open; what is wrong with it is told as one kind of error."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and its subject is adapted again") from error


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with _opened(path) as file:
        names = [name for name in sorted(file.keys()) if tensors and not name.startswith(_BESIDE)]
        facts = json.loads((file.metadata() or {}).get("personalization", "{}"))
        read = {name: file.get_tensor(name) for name in names}
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} was written by another version of clipautt; remove its folder, and the next `clipautt adapt` "
            "writes it again"
        )
    return facts, read


def load_personalization(path: Path, source: Source) -> Personalization:
    """Read what `save_personalization` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another version, or belongs to another checkpoint; the message names both.
    """
    checkpoint, read = read_personalization(path)
    if checkpoint != source.checkpoint.fingerprint:
        raise ValueError(f"{path} was adapted from checkpoint {checkpoint}, not from {source.checkpoint.fingerprint}")
    return read


def read_personalization(path: Path) -> tuple[str, Personalization]:
    """The fingerprint of the checkpoint that a file belongs to, and what it says; to predict, `load_personalization`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no adapted prompts at {path}")
    facts, tensors = _read(path)
    state = {name.removeprefix(_METHOD): value for name, value in tensors.items() if name.startswith(_METHOD)}
    return str(facts["checkpoint"]), Personalization(
        facts["subject_id"],
        AdaptConfig.from_facts(facts["config"]),
        tensors["centre"],
        SavedState(state, facts["method"]),
        tensors.get("prior"),
        tuple((int(a), int(b)) for a, b in facts["decisions"]),
        facts["fallback"],
        tuple(facts["clips"]),
        Basis(**facts["basis"]) if facts.get("basis") else None,  # files of before it was recorded lack the last three
        facts.get("omitted", {}),
        tuple(facts.get("notes", ())),
    )
