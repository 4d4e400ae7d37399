"""Keeps the source models of a sweep in its run folder and sees to it that each is trained once.

In: keys of models. Out: the files of their checkpoints. `ModelShelf` is a Ray actor on the driver's node, so that the
run folder need not be on a disk that all nodes share. It imports no torch and starts at once.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from clipautt.files import atomic, write_bytes

Files = dict[str, bytes]
"""Name → content of the files of a checkpoint's folder, in the order in which they are written."""


class ModelShelf:
    """The models of a sweep. An asyncio actor.

    Args:
        folder: `models/` of the run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.claims: dict[str, str] = {}
        """Key → who is training it."""
        self.ended: set[str] = set()
        """Who has ended: of these, one may still wait here, and must not be given anything to train."""
        self.changed = asyncio.Condition()

    async def take(self, key: str, holder: str) -> Files | None:
        """The files of a model; None makes the caller train it. Waits while somebody else trains it.

        A task of Ray whose process died asks again under its name, and goes on with what it had claimed.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.claims.get(key, holder) == holder or holder in self.ended)
            if (self.folder / key).is_dir():
                return {path.name: path.read_bytes() for path in (self.folder / key).iterdir()}
            if holder not in self.ended:
                self.claims[key] = holder
            return None

    async def put(self, key: str, files: Files) -> None:
        """Keep a model that was trained; if another driver has written the same one, that one stays."""
        try:
            self._write(self.folder / key, files)
        finally:
            async with self.changed:
                self.claims.pop(key, None)
                self.changed.notify_all()

    async def release(self, holder: str) -> None:
        """Let others train what a process that ended was training."""
        async with self.changed:
            self.ended.add(holder)
            self.claims = {key: one for key, one in self.claims.items() if one != holder}
            self.changed.notify_all()

    def _write(self, folder: Path, files: Files) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with atomic(folder) as temporary:
                temporary.mkdir()
                for name, content in files.items():
                    write_bytes(temporary / name, content)
        except OSError:
            if not folder.is_dir():
                raise


def start_shelf(folder: Path) -> Any:
    """A `ModelShelf` on this node, as a handle of its actor.

    Ray starts it again if its process dies. Who is training what is then forgotten, so that a model may be trained
    twice; of equal ones, the first stays.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(ModelShelf).options(num_cpus=0, scheduling_strategy=here, **lasting).remote(str(folder))
