"""Before the first clip: can every node of the cluster do its part?

In: what the nodes have to see. Out: the nodes that cannot, with the reason. The driver's own node needs no probe: it
sees what the driver sees.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipautt.features.contents import content_of
from clipautt.files import write_text
from ray_jobs.platform.cluster import Node, usable_nodes
from ray_jobs.platform.extraction.decode_stage import check_readable, this_node

_SOURCES = 64
"""How many sources a node is asked for; evenly spread over those that are to be read."""
_ANSWER_SECONDS = 120.0
_MARK = ".probe-{}.tmp"
"""File by which a node recognizes the store; a leading dot, so that no reader of the folder takes it for content."""


class NoNodeError(ValueError):
    """No node can do the work; the message says why."""


@dataclass(frozen=True)
class Needs:
    """What a node has to see."""

    sources: tuple[str, ...]
    """Files and folders that this process can read; some of the clips'."""
    files: Mapping[str, str]
    """Weights and models: path → content."""
    store: str
    """Folder of the feature store."""
    mark: str
    """Name of a file in the store."""


def unfit_nodes(
    sources: Sequence[str], files: Sequence[str], store: str, *, answer_seconds: float = _ANSWER_SECONDS
) -> dict[str, str]:
    """Ask every node of the connected cluster but the driver's, at once, what it can see, and print which cannot work.

    Args:
        sources: the clips' files and folders.
        files: paths of weights and models; names of models are not among them.
        store: folder of the feature store; it is made if it is missing.
        answer_seconds: a node that takes longer than this to answer is not used.

    Returns:
        Id of a node that cannot work → why.

    Raises:
        NoNodeError: if no other node is left.
    """
    nodes = usable_nodes()
    asked = [node for node in nodes if node.node_id != _own_node()]
    if not asked:
        return {}
    mark = Path(store) / _MARK.format(uuid.uuid4().hex)
    write_text(mark, mark.name)
    try:
        needs = Needs(_spread(sources), {path: content_of(path) for path in files}, store, mark.name)
        unfit = _ask(asked, needs, answer_seconds)
    finally:
        mark.unlink(missing_ok=True)
    named = {node.node_id: f"{node} is not used: it {unfit[node.node_id]}" for node in asked if node.node_id in unfit}
    if len(named) == len(nodes):
        raise NoNodeError(f"no node can do the work; {'; '.join(named.values())}")
    for line in named.values():
        print(f"extract: {line}", flush=True)
    return unfit


def look(needs: Needs) -> str:
    """What this node cannot do, to follow "it"; empty if it can do everything."""
    for path in needs.sources:
        try:
            check_readable(path)
        except OSError as error:
            return f"cannot read {path} ({error.strerror or error}), which is there where the job was started"
    for path, content in needs.files.items():
        try:
            here = content_of(path)
        except OSError as error:
            return f"cannot read {path} ({error.strerror or error}), which is there where the job was started"
        if here != content:
            return f"has another file at {path} than the machine where the job was started"
    return _look_at_store(Path(needs.store), needs.mark)


def _look_at_store(store: Path, mark: str) -> str:
    own = store / _MARK.format(uuid.uuid4().hex)
    try:
        if (store / mark).read_text(encoding="utf-8") != mark:
            return f"sees another folder at store={store}"
    except OSError:
        return f"sees another folder at store={store}, or none, than the machine where the job was started"
    try:
        write_text(own, mark)
    except OSError as error:
        return f"cannot write to store={store} ({error.strerror or error})"
    own.unlink(missing_ok=True)
    return ""


def _own_node() -> str:
    """The node that this process runs on; empty if it is connected from elsewhere, through Ray's client."""
    from ray.util.client import ray as client

    return "" if client.is_connected() else this_node()


def _spread(sources: Sequence[str]) -> tuple[str, ...]:
    """Some of the sources that this process can read, evenly spread over the sorted ones."""
    ordered = sorted(set(sources))
    step = max(1, -(-len(ordered) // _SOURCES))
    readable = []
    for path in ordered[::step]:
        try:
            check_readable(path)
        except OSError:  # the clip's own fault
            continue
        readable.append(os.path.abspath(path))
    return tuple(readable)


def _ask(nodes: Sequence[Node], needs: Needs, answer_seconds: float) -> dict[str, str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    pending = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        pending[remote.options(scheduling_strategy=there).remote(needs)] = node
    deadline, unfit = time.monotonic() + answer_seconds, {}
    for reference, node in pending.items():
        try:
            reason = ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(reference, force=True)
            reason = f"did not answer within {answer_seconds:g} s"
        except ray.exceptions.RayError as error:
            reason = f"cannot run a task ({' '.join(str(error).split())[:300]})"
        if reason:
            unfit[node.node_id] = reason
    return unfit
