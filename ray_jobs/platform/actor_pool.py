"""A pool of Ray actors that load something once and then work on items; failures are retried and cost no other item.

In: a function that makes an actor, and tasks, which are lists of items. Out: a `Done` or `Failed` per item. Open
`run_pool` first.

The pool, not Ray, handles failures: a lost actor or node is replaced, a failed task is split into its items, and an
item is given up after it has failed alone a number of times. Each actor has at most one task in flight, and a task is
taken from its iterable and put into Ray only when an actor is ready for it. When the driver is killed, its actors die
with it; keeping finished results is up to the caller.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_ResultOut = TypeVar("_ResultOut", covariant=True)

_LONGEST_REASON = 400
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_FAULTY_AFTER = 2
"""Failed tasks in a row after which the actor is suspected rather than the items: a device can be faulty."""
_MOST_READY = 64
"""While this many outcomes wait for the caller, no tasks are handed out."""
_ANSWER_SECONDS = 10.0
"""An idle actor answers within milliseconds; one that takes longer than this counts as lost."""


class PoolError(RuntimeError):
    """No actor can be placed or started."""


class Runner(Protocol[Item, _ResultOut]):
    """The object that works in an actor: made once, then given lists of items."""

    def run(self, items: list[Item], /) -> Sequence[_ResultOut]:
        """One result per item, in the same order."""
        ...


@dataclass(frozen=True)
class PoolConfig:
    """Number and resources of the actors, attempts and time limits."""

    actors: int
    """Maximum number of actors, at least 1; those that cannot be placed wait while the others work."""
    num_cpus: float = 1.0
    """Cores per actor, at least 0."""
    num_gpus: float = 0.0
    """Share of a GPU, or number of GPUs, per actor, at least 0."""
    attempts: int = 3
    """Attempts at an item alone before it is given up, and failed starts in a row before no more actors are started; at
    least 1."""
    start_seconds: float = 900.0
    """The pool gives up after this many seconds without an actor that is ready or working; above 0."""
    seconds_per_item: float | None = 1800.0
    """Time limit of a task in seconds, per unit of its items' sizes; above 0. A task over the limit has failed, and its
    actor is killed. None: no limit."""
    avoid: frozenset[str] = frozenset()
    """Ids of nodes on which no actor is started."""

    def __post_init__(self) -> None:
        for name in ("actors", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("num_cpus", "num_gpus"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        if not self.start_seconds > 0:
            raise ValueError(f"start_seconds={self.start_seconds}: expected more than 0")
        if self.seconds_per_item is not None and not self.seconds_per_item > 0:
            raise ValueError(f"seconds_per_item={self.seconds_per_item}: expected more than 0, or null for no limit")


@dataclass(frozen=True)
class Done(Generic[Item, Result]):
    """An item with its result."""

    item: Item
    """The item as the caller gave it."""
    result: Result
    """What `run` returned for it."""


@dataclass(frozen=True)
class Failed(Generic[Item]):
    """An item that was given up."""

    item: Item
    """The item as the caller gave it."""
    reason: str
    """Why the last attempt failed, in one line: type and message of the exception, or what happened to the worker."""
    attempts: int
    """Number of attempts at this item alone, at least 1."""


def run_pool(
    make_actor: Callable[..., Runner[Item, Result]],
    arguments: tuple[Any, ...],
    tasks: Iterable[Sequence[Item]],
    *,
    config: PoolConfig,
    size: Callable[[Item], float] = lambda _: 1.0,
    on_ready: Callable[[], None] = lambda: None,
) -> Generator[Done[Item, Result] | Failed[Item], None, None]:
    """Run every item on the connected Ray.

    When a task fails, by an exception, a lost worker or node, or its deadline, its items are each tried again alone. An
    actor that was lost before its task began does not count against the task. No actor outlives the iterator: close it
    (`contextlib.closing`) if you may leave it early. An item may run twice, so what `run` writes must allow for that.

    Args:
        make_actor: called as `make_actor(*arguments)` in each actor; a class that workers can import.
        arguments: arguments of `make_actor`, sent to every actor.
        tasks: lists of items that run together; may be a generator, which is read only as actors become ready.
        config: number of actors, attempts and time limits.
        size: size of an item, in units of `config.seconds_per_item`.
        on_ready: called once, when the first actor has loaded.

    Yields:
        `Done` or `Failed` for each item, in order of completion.

    Raises:
        PoolError: if no actor is placed or ready in time, or the actors fail to start.
    """
    pool: _Pool[Item, Result] = _Pool(make_actor, arguments, _Queue(tasks), config, size, on_ready)
    try:
        yield from pool.outcomes()
    finally:
        pool.kill_all()


@dataclass(frozen=True)
class _Task(Generic[Item]):
    """Items that run together."""

    items: list[Item]
    """The items, at least one."""
    attempts: int = 0
    """How often the item has failed alone; 0 for several items."""


class _Queue(Generic[Item]):
    """The waiting tasks: retries, which are few, before new ones."""

    def __init__(self, tasks: Iterable[Sequence[Item]]) -> None:
        self.tasks = iter(tasks)
        self.exhausted = False
        self.again: deque[_Task[Item]] = deque()
        first = self._new()  # if there is none, no actor is needed
        if first is not None:
            self.again.append(first)

    def take(self, *, prefer_new: bool) -> _Task[Item] | None:
        """The next task; None if nothing waits."""
        task = self._new() if prefer_new or not self.again else None
        if task is None and self.again:
            return self.again.popleft()
        return task

    def _new(self) -> _Task[Item] | None:
        while not self.exhausted:
            items = next(self.tasks, None)
            if items is None:
                self.exhausted = True
            elif len(items):
                return _Task(list(items))
        return None


@dataclass(frozen=True)
class _Raised:
    """An exception raised in the actor, as text: not every exception can be pickled."""

    reason: str
    """Type and message, in one line."""


class PoolActor:
    """The process around a `Runner`. It starts empty, so that being placed and having loaded are separate events."""

    def __init__(self) -> None:
        self.runner: Runner[Any, Any] | None = None

    def ping(self) -> None:
        """Return at once, which shows that the process runs."""

    def load(self, make_actor: Callable[..., Runner[Any, Any]], arguments: tuple[Any, ...]) -> _Raised | None:
        """Make the runner; an exception is returned as text."""
        try:
            self.runner = make_actor(*arguments)
        except Exception as error:
            return _Raised(_in_words(error))
        return None

    def work(self, items: list[Any]) -> _Raised | list[Any]:
        """Results in the order of the items; an exception is returned as text."""
        assert self.runner is not None
        try:
            results = list(self.runner.run(items))
            if len(results) != len(items):
                raise ValueError(f"run() gave {len(results)} results for {len(items)} items; expected one per item")
        except Exception as error:
            return _Raised(_in_words(error))
        return results


@dataclass(eq=False)
class _Worker(Generic[Item]):
    """An actor as the driver sees it."""

    handle: Any
    """Ray's handle of the actor."""
    loaded: Any
    """Reference that becomes ready when the actor has loaded."""
    pending: Any
    """Reference that the pool waits for; None while the actor is idle."""
    state: Literal["unplaced", "loading", "idle", "working"] = "unplaced"
    """What the actor is doing."""
    task: _Task[Item] | None = None
    """The task in flight, if any."""
    deadline: float = math.inf
    """Deadline of the task, on the monotonic clock."""
    proven: bool = False
    """Whether it has finished a task, successfully or not."""
    failures: int = 0
    """Number of failed tasks in a row."""


class _Pool(Generic[Item, Result]):
    """The actors and the tasks in flight."""

    def __init__(
        self,
        make_actor: Callable[..., Any],
        arguments: tuple[Any, ...],
        queue: _Queue[Item],
        config: PoolConfig,
        size: Callable[[Item], float],
        on_ready: Callable[[], None],
    ) -> None:
        self.make_actor, self.arguments, self.queue, self.config = make_actor, arguments, queue, config
        self.size, self.on_ready = size, on_ready
        self.was_ready = False
        self.workers: list[_Worker[Item]] = []
        self.failed_starts = 0
        self.start_reason = ""
        self.replaced = 0  # actors replaced because they seemed faulty, since the last task that succeeded
        self.last_able = time.monotonic()

    def outcomes(self) -> Iterator[Done[Item, Result] | Failed[Item]]:
        """The outcomes of all items; see `run_pool`.

        Before each outcome, actors that are ready get their next task, so that they do not wait while the caller
        handles a result.
        """
        ready: deque[Done[Item, Result] | Failed[Item]] = deque()
        while ready or self._is_work_left():
            if len(ready) < _MOST_READY:
                ready.extend(self._round(wait=not ready))
            if ready:
                yield ready.popleft()
                self.last_able = time.monotonic()  # the caller may have taken long

    def _round(self, *, wait: bool) -> Iterator[Done[Item, Result] | Failed[Item]]:
        """Hand out waiting tasks, then take the results that are ready, or with `wait` the next one."""
        self._fill()
        yield from self._hand_out()
        if not self._is_work_left():  # known only now; do not wait for unplaced actors
            return
        if self._able():
            self.last_able = time.monotonic()
        for worker in self._await_ready(wait=wait):
            yield from self._advance(worker)
        yield from self._end_overdue()
        yield from self._hand_out()
        self._check_clock()

    def kill_all(self) -> None:
        """Kill all actors."""
        for worker in list(self.workers):
            self._drop(worker)

    def _is_work_left(self) -> bool:
        return bool(self.queue.again) or not self.queue.exhausted or bool(self._working())

    def _working(self) -> list[_Worker[Item]]:
        return [worker for worker in self.workers if worker.state == "working"]

    def _able(self) -> bool:
        return any(worker.state in ("idle", "working") for worker in self.workers)

    def _fill(self) -> None:
        """Start actors until there are enough for the remaining work.

        Raises:
            PoolError: if too many starts failed and no actor is left.
        """
        left = len(self.queue.again) + len(self._working())
        wanted = min(self.config.actors, left) if self.queue.exhausted else self.config.actors
        while len(self.workers) < wanted and self.failed_starts < self.config.attempts:
            self._start()
        if wanted and not self.workers:
            raise PoolError(f"no actor can be started; {self.failed_starts} in a row failed: {self.start_reason}")

    def _start(self) -> None:
        import ray

        from ray_jobs.platform.cluster import avoiding  # here, since the command line imports this module

        asked = {"num_cpus": self.config.num_cpus, "num_gpus": self.config.num_gpus}
        options: dict[str, Any] = asked | {"max_restarts": 0, "max_task_retries": 0}
        options["label_selector"] = avoiding(self.config.avoid)
        remote: Any = ray.remote(**options)(PoolActor)
        handle = remote.remote()
        placed = handle.ping.remote()
        self.workers.append(_Worker(handle, handle.load.remote(self.make_actor, self.arguments), placed))

    def _hand_out(self) -> Iterator[Failed[Item]]:
        """Send a task to each idle actor; yields items that are given up because they cannot be sent."""
        for worker in [worker for worker in self.workers if worker.state == "idle"]:
            if self.queue.exhausted and not self.queue.again:
                return
            if not self._is_there(worker):
                continue
            while worker.state == "idle":
                # After one failure, a new task shows whether the actor or the item is to blame.
                task = self.queue.take(prefer_new=worker.failures == 1)
                if task is None:
                    return
                try:
                    self._send(worker, task)
                except Exception as error:  # an item that cannot be sent
                    yield from self._fail(task, _in_words(error.__cause__ or error))

    def _is_there(self, worker: _Worker[Item]) -> bool:
        """Whether an idle actor still answers, so that no task is sent to one that died while idle."""
        import ray

        try:
            ray.get(worker.handle.ping.remote(), timeout=_ANSWER_SECONDS)
        except Exception as error:
            self._drop(worker)
            if not worker.proven:
                self._lose_start(_lost_in_words(error))
            return False
        return True

    def _send(self, worker: _Worker[Item], task: _Task[Item]) -> None:
        worker.pending = worker.handle.work.remote(task.items)
        worker.state, worker.task = "working", task
        worker.deadline = time.monotonic() + self._allowed(task)

    def _allowed(self, task: _Task[Item]) -> float:
        """Seconds that a task may take."""
        each = self.config.seconds_per_item
        return math.inf if each is None else each * sum(self.size(item) for item in task.items)

    def _await_ready(self, *, wait: bool) -> list[_Worker[Item]]:
        """Actors whose reference is ready; with `wait`, waits for one, at most until the next deadline."""
        import ray

        waiting = {worker.pending: worker for worker in self.workers if worker.pending is not None}
        if not waiting:  # the last actors turned out to be dead; the next round starts others
            return []
        if wait:
            clocks = [worker.deadline for worker in self._working()]
            if not self._able():
                clocks.append(self.last_able + self.config.start_seconds)
            timeout = max(0.0, min(clocks, default=math.inf) - time.monotonic())
            ray.wait(list(waiting), timeout=None if math.isinf(timeout) else timeout)
        ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        return [waiting[reference] for reference in ready]

    def _advance(self, worker: _Worker[Item]) -> Iterator[Done[Item, Result] | Failed[Item]]:
        """Act on the reference that has become ready."""
        import ray

        if worker not in self.workers:  # killed since
            return
        try:
            value, lost = ray.get(worker.pending), ""
        except Exception as error:
            value, lost = None, _lost_in_words(error)
        if worker.state == "working":
            yield from self._end_task(worker, value, lost)
        elif lost or isinstance(value, _Raised):
            self._drop(worker)
            self._lose_start(lost or value.reason)
        elif worker.state == "unplaced":
            worker.state, worker.pending = "loading", worker.loaded
        else:
            worker.state, worker.pending = "idle", None
            if not self.was_ready:
                self.was_ready = True
                self.on_ready()

    def _end_task(self, worker: _Worker[Item], value: Any, lost: str) -> Iterator[Done[Item, Result] | Failed[Item]]:
        task = worker.task
        assert task is not None
        self.failed_starts = 0
        if lost:
            self._drop(worker)
            yield from self._fail(task, lost)
            return
        worker.state, worker.pending, worker.task = "idle", None, None
        worker.deadline, worker.proven = math.inf, True
        if isinstance(value, _Raised):
            self._suspect(worker)
            yield from self._fail(task, value.reason)
            return
        worker.failures, self.replaced = 0, 0
        yield from (Done(item, result) for item, result in zip(task.items, value, strict=True))

    def _suspect(self, worker: _Worker[Item]) -> None:
        """Replace an actor that keeps failing, unless its replacements keep failing too."""
        worker.failures += 1
        if worker.failures >= _FAULTY_AFTER and self.replaced < self.config.attempts:
            self.replaced += 1
            self._drop(worker)

    def _fail(self, task: _Task[Item], reason: str) -> Iterator[Failed[Item]]:
        """Try each item again alone, or give it up."""
        if len(task.items) > 1:
            self.queue.again.extend(_Task([item]) for item in task.items)
        elif task.attempts + 1 < self.config.attempts:
            self.queue.again.append(_Task(task.items, task.attempts + 1))
        else:
            yield Failed(task.items[0], reason, task.attempts + 1)

    def _lose_start(self, reason: str) -> None:
        """Count a failed start; after too many in a row, drop unplaced actors. Others may still become ready."""
        if _is_node(reason):  # says nothing about the next start, which waits until it can be placed
            return
        self.failed_starts, self.start_reason = self.failed_starts + 1, reason
        if self.failed_starts >= self.config.attempts:
            for worker in [worker for worker in self.workers if worker.state == "unplaced"]:
                self._drop(worker)

    def _end_overdue(self) -> Iterator[Failed[Item]]:
        """Kill actors whose task is past its deadline."""
        import ray

        for worker in self._working():
            task = worker.task
            if task is None or time.monotonic() <= worker.deadline:
                continue
            # The result may have arrived while the caller was busy.
            if not ray.wait([worker.pending], timeout=0)[0]:
                self._drop(worker)
                self.failed_starts = 0
                yield from self._fail(task, f"took longer than {self._allowed(task):g} s, and its worker was killed")

    def _check_clock(self) -> None:
        """Give up if no actor has been ready or at work for too long.

        Raises:
            PoolError: naming what each actor asks for and what the cluster has.
        """
        if self._able() or time.monotonic() < self.last_able + self.config.start_seconds:
            return
        import ray

        asked = {"CPU": self.config.num_cpus, "GPU": self.config.num_gpus}
        whole, free = ray.cluster_resources(), ray.available_resources()
        has = ", ".join(f"{whole.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in asked)
        loading = sum(worker.state == "loading" for worker in self.workers)
        raise PoolError(
            f"no actor was ready for start_seconds={self.config.start_seconds:g}: each asks for "
            f"num_cpus={self.config.num_cpus:g} and num_gpus={self.config.num_gpus:g}, the cluster has {has}; "
            f"{loading} of {len(self.workers)} are placed and loading"
        )

    def _drop(self, worker: _Worker[Item]) -> None:
        """Kill an actor, even if it seems dead, and forget it."""
        import ray

        self.workers.remove(worker)
        if ray.is_initialized():  # else Ray, and the actors with it, was stopped first
            with contextlib.suppress(Exception):
                ray.kill(worker.handle)


def _in_words(error: BaseException) -> str:
    """Type and message in one line."""
    text = " ".join(_COLOURS.sub("", str(error)).split())
    return _shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _lost_in_words(error: BaseException) -> str:
    """Ray's account of a lost worker in one line, without its advice."""
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):  # a result that cannot be sent, or code that a worker cannot import
        return _in_words(error.cause)
    # Ray lists class, process and address on indented lines, then says what happened, then what to try.
    said = " ".join(line for line in str(error).splitlines()[1:] if line and not line[0].isspace())
    said = said.replace("The actor is dead because ", "").replace("The actor died because ", "")
    said = re.split(r" (?:Some common causes|There are some potential root causes|Traceback \(most)", said)[0]
    return _shortened(f"its worker died ({said.strip().rstrip('.') or _in_words(error)})")


def _is_node(reason: str) -> bool:
    return reason.startswith("its worker died (") and "node has died" in reason


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"
