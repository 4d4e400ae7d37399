"""Lists of items over Ray actors that load something once; what fails is tried again, and costs nobody else anything.

The pool decides, not Ray: an actor whose process or node is lost is replaced by a new one, a task that fails is cut
into its items, and an item is given up after so many tries of its own. At most one task is in flight per actor, and a
task is taken from its iterable, and put into Ray, only when an actor is ready for it.

What this module does not know: what the items are, what an actor does with them, and where results go. A driver that is
killed takes all its actors along; whoever calls keeps what has been done.
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
_ILL_AFTER = 2
"""Failed tasks in a row after which the actor is suspected, and not the items: a device can be ill."""
_MOST_READY = 64
"""Outcomes that wait for the caller at most before no more tasks are handed out."""
_ANSWER_SECONDS = 10.0
"""An idle actor answers within milliseconds; one that does not in so long counts as lost."""


class PoolError(RuntimeError):
    """No actor can be had, or none can be started."""


class Runner(Protocol[Item, _ResultOut]):
    """What works in an actor: made once, then given lists of items."""

    def run(self, items: list[Item], /) -> Sequence[_ResultOut]:
        """One result per item, in the same order."""
        ...


@dataclass(frozen=True)
class PoolConfig:
    """How many actors there are, what each asks for, and how long and how often something is tried."""

    actors: int
    """How many at most, from 1 up; those that find no place wait while the others work."""
    num_cpus: float = 1.0
    """Cores of each actor, from 0 up."""
    num_gpus: float = 0.0
    """Share of a GPU of each actor, or whole GPUs, from 0 up."""
    attempts: int = 3
    """Tries of one item alone before it is given up, and failed starts in a row before no more actors are started; from
    1 up."""
    start_seconds: float = 900.0
    """After so long without any actor that is ready or at work the pool gives up; above 0."""
    seconds_per_item: float | None = 1800.0
    """A task that takes more than this for each unit of its items' sizes has failed, and its actor is killed; above 0.
    None: never."""

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
    """As it was given."""
    result: Result
    """What `run` returned for it."""


@dataclass(frozen=True)
class Failed(Generic[Item]):
    """An item that was given up."""

    item: Item
    """As it was given."""
    reason: str
    """Of the last try, in one line: type and message of the exception, or what became of the worker."""
    attempts: int
    """How often it was tried alone, at least 1."""


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

    A task that fails, by an exception, a lost worker or node, or its deadline, costs no item that shares it: each is
    tried again alone. An actor that was lost before its task began does not count against the task. No actor outlives
    the iterator: close it (`contextlib.closing`) where it may be left early. An item may run twice, so what `run`
    writes must bear that.

    Args:
        make_actor: called as `make_actor(*arguments)` in each actor; a class that workers can import.
        arguments: of `make_actor`, sent to every actor.
        tasks: lists of items that run together; may be a generator, and is read no faster than actors become ready.
        config: how many, and how often.
        size: of an item, in units of `config.seconds_per_item`.
        on_ready: called once, when the first actor has loaded.

    Yields:
        `Done` or `Failed` for each item, in order of completion.

    Raises:
        PoolError: if no actor finds a place or is ready in time, or the actors fail at their start.
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
    """At least one."""
    attempts: int = 0
    """How often the only item has failed alone."""


class _Queue(Generic[Item]):
    """Tasks that wait: those to be tried again, which are few, before new ones."""

    def __init__(self, tasks: Iterable[Sequence[Item]]) -> None:
        self.tasks = iter(tasks)
        self.exhausted = False
        self.again: deque[_Task[Item]] = deque()
        first = self._new()  # without any there is no need for actors
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
    """An exception of the code in the actor, in words: not every exception survives being sent."""

    reason: str
    """Type and message, one line."""


class PoolActor:
    """The process around a `Runner`. It starts empty, so that finding a place and loading can be told apart."""

    def __init__(self) -> None:
        self.runner: Runner[Any, Any] | None = None

    def ping(self) -> None:
        """Show that the process is there."""

    def load(self, make_actor: Callable[..., Runner[Any, Any]], arguments: tuple[Any, ...]) -> _Raised | None:
        """Make the runner; what it raises is returned."""
        try:
            self.runner = make_actor(*arguments)
        except Exception as error:
            return _Raised(_in_words(error))
        return None

    def work(self, items: list[Any]) -> _Raised | list[Any]:
        """Results in the order of the items; what the runner raises is returned."""
        assert self.runner is not None
        try:
            results = list(self.runner.run(items))
            if len(results) != len(items):
                raise ValueError(f"run() gave {len(results)} results for {len(items)} items; expected one for each")
        except Exception as error:
            return _Raised(_in_words(error))
        return results


@dataclass(eq=False)
class _Worker(Generic[Item]):
    """An actor as the driver sees it."""

    handle: Any
    """Of the actor."""
    loaded: Any
    """Reference that comes when the actor has loaded."""
    pending: Any
    """Reference that the pool waits for; None while the actor is idle."""
    state: Literal["unplaced", "loading", "idle", "working"] = "unplaced"
    """Where it stands."""
    task: _Task[Item] | None = None
    """In flight."""
    deadline: float = math.inf
    """Of the task, on the monotonic clock."""
    proven: bool = False
    """Whether it has ended a task, well or not."""
    failures: int = 0
    """Tasks that failed in a row."""


class _Pool(Generic[Item, Result]):
    """The actors and what is in flight."""

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
        self.ill_in_vain = 0  # actors replaced because they seemed ill, since the last task that went well
        self.last_able = time.monotonic()

    def outcomes(self) -> Iterator[Done[Item, Result] | Failed[Item]]:
        """All items; see `run_pool`.

        One outcome at a time: before each of them actors that are ready get their next task, so that they do not wait
        for what the caller does with a result.
        """
        ready: deque[Done[Item, Result] | Failed[Item]] = deque()
        while ready or self._is_work_left():
            if len(ready) < _MOST_READY:
                ready.extend(self._round(wait=not ready))
            if ready:
                yield ready.popleft()
                self.last_able = time.monotonic()  # the caller may have been away for long

    def _round(self, *, wait: bool) -> Iterator[Done[Item, Result] | Failed[Item]]:
        """Hand out what waits, and take what has come, or what comes next."""
        self._fill()
        yield from self._hand_out()
        if not self._is_work_left():  # known only now; actors that wait for a place are not waited for
            return
        if self._able():
            self.last_able = time.monotonic()
        for worker in self._come(wait=wait):
            yield from self._advance(worker)
        yield from self._end_overdue()
        yield from self._hand_out()
        self._check_clock()

    def kill_all(self) -> None:
        """Leave no actor behind."""
        for worker in list(self.workers):
            self._drop(worker)

    def _is_work_left(self) -> bool:
        return bool(self.queue.again) or not self.queue.exhausted or bool(self._working())

    def _working(self) -> list[_Worker[Item]]:
        return [worker for worker in self.workers if worker.state == "working"]

    def _able(self) -> bool:
        return any(worker.state in ("idle", "working") for worker in self.workers)

    def _fill(self) -> None:
        """Start actors until there are enough for what is left.

        Raises:
            PoolError: if starts failed too often and no actor is left.
        """
        left = len(self.queue.again) + len(self._working())
        wanted = min(self.config.actors, left) if self.queue.exhausted else self.config.actors
        while len(self.workers) < wanted and self.failed_starts < self.config.attempts:
            self._start()
        if wanted and not self.workers:
            raise PoolError(f"no actor can be started; {self.failed_starts} in a row failed: {self.start_reason}")

    def _start(self) -> None:
        import ray

        asked = {"num_cpus": self.config.num_cpus, "num_gpus": self.config.num_gpus}
        options: dict[str, Any] = asked | {"max_restarts": 0, "max_task_retries": 0}
        remote: Any = ray.remote(**options)(PoolActor)
        handle = remote.remote()
        placed = handle.ping.remote()
        self.workers.append(_Worker(handle, handle.load.remote(self.make_actor, self.arguments), placed))

    def _hand_out(self) -> Iterator[Failed[Item]]:
        """A task for each idle actor."""
        for worker in [worker for worker in self.workers if worker.state == "idle"]:
            if self.queue.exhausted and not self.queue.again:
                return
            if not self._is_there(worker):
                continue
            while worker.state == "idle":
                # After one failure a new task shows which of the two is to blame, the actor or the item.
                task = self.queue.take(prefer_new=worker.failures == 1)
                if task is None:
                    return
                try:
                    self._send(worker, task)
                except Exception as error:  # an item that cannot be sent
                    yield from self._fail(task, _in_words(error.__cause__ or error))

    def _is_there(self, worker: _Worker[Item]) -> bool:
        """Whether an idle actor still answers; one that died while it was idle has cost no task anything."""
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

    def _come(self, *, wait: bool) -> list[_Worker[Item]]:
        """Actors whose reference has come; waits for one, where asked, at most until the next clock runs out."""
        import ray

        waiting = {worker.pending: worker for worker in self.workers if worker.pending is not None}
        if not waiting:  # the last actors were found dead; the next round starts others
            return []
        if wait:
            clocks = [worker.deadline for worker in self._working()]
            if not self._able():
                clocks.append(self.last_able + self.config.start_seconds)
            timeout = max(0.0, min(clocks, default=math.inf) - time.monotonic())
            ray.wait(list(waiting), timeout=None if math.isinf(timeout) else timeout)
        come, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        return [waiting[reference] for reference in come]

    def _advance(self, worker: _Worker[Item]) -> Iterator[Done[Item, Result] | Failed[Item]]:
        """What follows from the reference that has come."""
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
        worker.failures, self.ill_in_vain = 0, 0
        yield from (Done(item, result) for item, result in zip(task.items, value, strict=True))

    def _suspect(self, worker: _Worker[Item]) -> None:
        """Replace an actor that fails again and again; but not for ever, where new ones do no better."""
        worker.failures += 1
        if worker.failures >= _ILL_AFTER and self.ill_in_vain < self.config.attempts:
            self.ill_in_vain += 1
            self._drop(worker)

    def _fail(self, task: _Task[Item], reason: str) -> Iterator[Failed[Item]]:
        """Try again, each item alone, or give up."""
        if len(task.items) > 1:
            self.queue.again.extend(_Task([item]) for item in task.items)
        elif task.attempts + 1 < self.config.attempts:
            self.queue.again.append(_Task(task.items, task.attempts + 1))
        else:
            yield Failed(task.items[0], reason, task.attempts + 1)

    def _lose_start(self, reason: str) -> None:
        """After too many in a row those without a place are not waited for; the others may still become ready."""
        if _is_node(reason):  # says nothing about the next start, which waits for a place
            return
        self.failed_starts, self.start_reason = self.failed_starts + 1, reason
        if self.failed_starts >= self.config.attempts:
            for worker in [worker for worker in self.workers if worker.state == "unplaced"]:
                self._drop(worker)

    def _end_overdue(self) -> Iterator[Failed[Item]]:
        """Kill the actors whose task takes too long."""
        import ray

        for worker in self._working():
            task = worker.task
            if task is None or time.monotonic() <= worker.deadline:
                continue
            # The caller may have been away since the last look.
            if not ray.wait([worker.pending], timeout=0)[0]:
                self._drop(worker)
                self.failed_starts = 0
                yield from self._fail(task, f"took longer than {self._allowed(task):g} s, and its worker was killed")

    def _check_clock(self) -> None:
        """Give up where no actor has been ready or at work for too long.

        Raises:
            PoolError: with what each actor asks for and what the cluster has.
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
            f"{loading} of {len(self.workers)} have a place and are loading"
        )

    def _drop(self, worker: _Worker[Item]) -> None:
        """Kill an actor, dead or alive, and forget it."""
        import ray

        self.workers.remove(worker)
        if ray.is_initialized():  # else Ray has been stopped before the iterator, and the actors with it
            with contextlib.suppress(Exception):
                ray.kill(worker.handle)


def _in_words(error: BaseException) -> str:
    """Type and message in one line."""
    text = " ".join(_COLOURS.sub("", str(error)).split())
    return _shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _lost_in_words(error: BaseException) -> str:
    """What Ray tells about a worker that gives no answer, without its advice; one line."""
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):  # a result that cannot be sent, or code that a worker cannot import
        return _in_words(error.cause)
    # Ray names class, process and address first, each line indented; then says what happened, then what to try.
    said = " ".join(line for line in str(error).splitlines()[1:] if line and not line[0].isspace())
    said = said.replace("The actor is dead because ", "").replace("The actor died because ", "")
    said = re.split(r" (?:Some common causes|There are some potential root causes|Traceback \(most)", said)[0]
    return _shortened(f"its worker died ({said.strip().rstrip('.') or _in_words(error)})")


def _is_node(reason: str) -> bool:
    return reason.startswith("its worker died (") and "node has died" in reason


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"
