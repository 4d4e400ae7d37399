"""The source models of a sweep as a worker process uses them: from its memory, from the shelf, or trained now.

In: the key of a model, and how to train it. Out: its `Source`.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from clipautt.adaptation.source import Source
from clipautt.backbones.loading import Backbone
from clipautt.files import write_bytes
from clipautt.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ray_jobs.sweep.shelf import Files

_KEPT_SOURCES = 12
"""Source models that a process keeps in memory."""


class Models(Protocol):
    """Where a trial takes its source models from."""

    def source(self, key: str, backbone: Backbone, train: Callable[[], Checkpoint]) -> tuple[Source, bool]:
        """The source model of this key, and whether it was trained now."""


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
        files: Files | None = ray.get(self.shelf.take.remote(key, self.holder))
        if files is not None:
            checkpoint = checkpoint_of(files)
        else:
            try:
                checkpoint = train()
                ray.get(self.shelf.put.remote(key, files_of(checkpoint)))
            except BaseException:
                self.shelf.release.remote(self.holder)
                raise
        self.kept[key] = Source(checkpoint, backbone)
        while len(self.kept) > _KEPT_SOURCES:
            self.kept.popitem(last=False)
        return self.kept[key], files is None


def files_of(checkpoint: Checkpoint) -> Files:
    """The files of a checkpoint, as `save_checkpoint` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(checkpoint, folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def checkpoint_of(files: Files) -> Checkpoint:
    """The inverse of `files_of`."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            write_bytes(Path(folder) / name, content)
        return load_checkpoint(folder)
