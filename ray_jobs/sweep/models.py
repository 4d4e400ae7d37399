"""The source models of a sweep: each is trained once, whoever asks for it first, and kept in the run folder.

In: keys of models. Out: their checkpoints. `ModelShelf` is a Ray actor on the driver's node, so that the run folder
need not be on a disk that all nodes share; `ShelvedModels` is how a worker process uses it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone
from clipautt.files import atomic
from clipautt.model.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, save_checkpoint

_KEPT_SOURCES = 12
"""Source models that a process keeps in memory."""


class Models(Protocol):
    """Where a trial takes its source models from."""

    def source(self, key: str, backbone: Backbone, train: Callable[[], Checkpoint]) -> tuple[Source, bool]:
        """The source model of this key, and whether it was trained now."""


class ModelShelf:
    """Keeps the models of a sweep and sees to it that each is trained once. An asyncio actor.

    Args:
        folder: `models/` of the run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.claims: dict[str, str] = {}
        """Key → who is training it."""
        self.changed = asyncio.Condition()

    async def take(self, key: str, holder: str) -> Checkpoint | None:
        """A model; None makes the caller train it. Waits while somebody else trains it."""
        async with self.changed:
            await self.changed.wait_for(lambda: key not in self.claims)
            if is_checkpoint(self.folder / key):
                return load_checkpoint(self.folder / key)
            self.claims[key] = holder
            return None

    async def put(self, key: str, checkpoint: Checkpoint) -> None:
        """Keep a model that was trained."""
        try:
            keep(checkpoint, self.folder / key)
        finally:
            async with self.changed:
                self.claims.pop(key, None)
                self.changed.notify_all()

    async def release(self, holder: str) -> None:
        """Let others train what a process that ended was training."""
        async with self.changed:
            self.claims = {key: one for key, one in self.claims.items() if one != holder}
            self.changed.notify_all()


def start_shelf(folder: Path) -> Any:
    """A `ModelShelf` on this node, as a handle of its actor."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(ModelShelf).options(num_cpus=0, scheduling_strategy=here).remote(str(folder))


@dataclass
class ShelvedModels:
    """The models of a `ModelShelf`, the latest ones also in the memory of this process."""

    shelf: Any
    """Handle of the actor."""
    holder: str = ""
    """Who asks: the id of the trial or task that runs in this process now."""
    kept: OrderedDict[str, Source] = field(default_factory=OrderedDict)
    """Key → source model, the one used last at the end."""

    def source(self, key: str, backbone: Backbone, train: Callable[[], Checkpoint]) -> tuple[Source, bool]:
        """The source model of this key, and whether it was trained now."""
        import ray

        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key], False
        checkpoint: Checkpoint | None = ray.get(self.shelf.take.remote(key, self.holder))
        trained = checkpoint is None
        if checkpoint is None:
            try:
                checkpoint = train()
                ray.get(self.shelf.put.remote(key, checkpoint))
            except BaseException:
                self.shelf.release.remote(self.holder)
                raise
        self.kept[key] = Source(checkpoint, backbone)
        while len(self.kept) > _KEPT_SOURCES:
            self.kept.popitem(last=False)
        return self.kept[key], trained


def keep(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as a whole; if another driver has written the same model, that one is kept."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic(folder) as temporary:
            save_checkpoint(checkpoint, temporary)
    except OSError:
        if not is_checkpoint(folder):
            raise
