"""What a subject's adaptation leaves behind: tuned prompts and centre, to predict and adapt on further clips.

What this module does not know: how prompts are tuned, and which folder of a run they lie in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipautt.adaptation.config import AdaptConfig
from clipautt.adaptation.driver import Course, SubjectResult
from clipautt.adaptation.methods import PromptState
from clipautt.adaptation.source import Source
from clipautt.model.windows import WindowSpec


@dataclass(frozen=True, eq=False, repr=False)
class Personalization:
    """What a subject's adaptation leaves behind."""

    subject_id: str
    """Subject."""
    config: AdaptConfig
    """How it was made."""
    centre: Tensor
    """Subtracted from frame features, [d]."""
    context: Tensor | None = None
    """Tuned context vectors [K, M, d_text]; None leaves the source prompts."""
    offset: Tensor | None = None
    """`tune=feature`: added to the text features of the prompts, [K, d]."""
    prior: Tensor | None = None
    """Shares of the classes that were assumed, [C]; None: those of the training."""
    memory: tuple[Tensor, ...] = ()
    """`online`: recent samples, each the embeddings of its windows [W, d]."""
    decisions: tuple[tuple[int, int], ...] = ()
    """`online`: see `Course`."""
    fallen: str | None = None
    """Why the source prompts stay; see `Course`."""
    clips: tuple[str, ...] = field(default=())
    """Ids of the clips it was made from, in the order of the visits."""
    au_embeddings: Tensor | None = None
    """a under the tuned prompts as they were tuned (to first order, or in bf16), [K, d]; None: by the tower."""

    def __repr__(self) -> str:
        return f"Personalization({self.subject_id!r}, {self.config.name})"

    @classmethod
    def of(cls, result: SubjectResult, config: AdaptConfig, *, earlier: Sequence[str] = ()) -> Personalization:
        """From a finished adaptation; methods without prompts leave the centre only.

        Args:
            result: of the subject.
            config: how it was made.
            earlier: ids of the clips that went before, where an online run went on.
        """
        state = result.state if isinstance(result.state, PromptState) else PromptState()
        return cls(
            result.subject_id,
            config,
            result.centre,
            state.context,
            state.offset,
            state.prior,
            state.memory,
            result.course.decisions,
            result.course.fallen,
            (*earlier, *(p.clip_id for p in result.predictions)),
            None if state.context is None and state.offset is None else state.au_embeddings,
        )

    def state(self, source: Source) -> PromptState:
        """The prompts as a state to predict and to go on from."""
        device = source.backbone.device
        context, offset, prior = (None if t is None else t.to(device) for t in (self.context, self.offset, self.prior))
        memory = tuple(sample.to(device) for sample in self.memory)
        with torch.no_grad():
            if self.au_embeddings is not None:
                embeddings = self.au_embeddings.to(device)
            elif offset is not None:
                embeddings = source.model.au_embeddings(source.text_features + offset)
            else:
                embeddings = source.au_embeddings if context is None else source.au_embeddings_of(context)
        return PromptState(context, embeddings, offset, prior, memory)

    def course(self, source: Source) -> Course:
        """Where an online run goes on."""
        return Course(self.state(source), self.decisions, self.fallen)


def subject_file(subject_id: str) -> str:
    """File name for a subject's adapted prompts; every id gives a name of its own, and none leads out of the folder."""
    return quote(subject_id, safe="").replace(".", "%2E") + ".safetensors"


def save_personalization(personalization: Personalization, path: Path, *, checkpoint: str) -> None:
    """Write one subject's prompts and centre, aside and renamed, with the checkpoint's fingerprint inside."""
    named = {name: getattr(personalization, name) for name in ("centre", "context", "offset", "prior", "au_embeddings")}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in named.items() if tensor is not None}
    tensors |= {f"memory.{i:08d}": sample.cpu().contiguous() for i, sample in enumerate(personalization.memory)}
    facts = {
        "subject_id": personalization.subject_id,
        "checkpoint": checkpoint,
        "config": asdict(personalization.config),
        "clips": personalization.clips,
        "decisions": personalization.decisions,
        "fallen": personalization.fallen,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file(tensors, aside, metadata={"personalization": json.dumps(facts)})
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)


def clips_of_personalization(path: Path) -> tuple[str, ...] | None:
    """Ids of the clips that a file's prompts were made from, in the order of the visits; None without a file.

    Raises:
        ValueError: if the file is damaged.
    """
    return tuple(_read(path, tensors=False)[0]["clips"]) if path.is_file() else None


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys()) if tensors else []
            return json.loads(file.metadata()["personalization"]), {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and its subject is done anew") from error


def load_personalization(path: Path, source: Source) -> Personalization:
    """Read what `save_personalization` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or belongs to another checkpoint, naming both.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no adapted prompts at {path}")
    facts, tensors = _read(path)
    if facts["checkpoint"] != source.checkpoint.fingerprint:
        raise ValueError(
            f"{path} was adapted from checkpoint {facts['checkpoint']}, given is {source.checkpoint.fingerprint}"
        )
    window = facts["config"].pop("window")
    config = AdaptConfig(**facts["config"], window=None if window is None else WindowSpec(**window))
    return Personalization(
        facts["subject_id"],
        config,
        tensors["centre"],
        tensors.get("context"),
        tensors.get("offset"),
        tensors.get("prior"),
        tuple(tensor for name, tensor in tensors.items() if name.startswith("memory.")),
        tuple((int(a), int(b)) for a, b in facts["decisions"]),
        facts["fallen"],
        tuple(facts["clips"]),
        tensors.get("au_embeddings"),
    )
