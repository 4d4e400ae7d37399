"""How often somebody may ask: at most so many requests in any minute.

In: who asks. Out: nothing, or the `Refusal` that says when to ask again. Counts are kept in this process only, and one
thread asks.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.connections import client_of
from ray_jobs.serve.web.keys import LOCAL, Who

_SECONDS = 60.0
_FAILURES_PER_MINUTE = 10
_MAX_NAMES = 10_000


class Window:
    """Counts what each name did in the last minute; the names that did something last are remembered."""

    def __init__(self, limit: int, *, max_names: int = _MAX_NAMES, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._max_names = max_names
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def take(self, name: str) -> int | None:
        """Count one more, unless there were `limit` in the last minute.

        Returns:
            None if it was counted, else after how many seconds one more is allowed, at least 1.
        """
        now = self._clock()
        times = self._times.setdefault(name, deque())
        self._times.move_to_end(name)
        while times and times[0] <= now - _SECONDS:
            times.popleft()
        if len(times) >= self._limit:
            return max(1, math.ceil(times[0] + _SECONDS - now))
        times.append(now)
        while len(self._times) > self._max_names:
            self._times.popitem(last=False)
        return None


class Rates:
    """Requests per minute of each key; where no keys are needed, nobody is limited.

    Args:
        per_minute: how many.
        clock: seconds that never go back.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._window = Window(per_minute, clock=clock)

    def refusal(self, who: Who) -> Refusal | None:
        """Count a request; a refusal if it is one too many, which is not counted."""
        if who == LOCAL:
            return None
        wait = self._window.take(who.owner)
        if wait is None:
            return None
        return Refusal(
            "rate_limited", f"this key may send {self._per_minute} requests a minute; wait {wait} s", retry_seconds=wait
        )


class Failures:
    """Wrong keys per minute from each client address.

    Only further wrong keys are turned away: who has a right one is answered, whatever others behind the same address
    do. Addresses are kept in memory for counting, and nowhere else.
    """

    def __init__(self, per_minute: int = _FAILURES_PER_MINUTE, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = Window(per_minute, clock=clock)

    def answer(self, refusal: Refusal, address: str | None) -> Refusal:
        """Count a refused key; gives the refusal to answer, which is another one after too many.

        Args:
            refusal: why the key was refused; only `key_unknown` counts.
            address: of the client; None if unknown.
        """
        if refusal.code != "key_unknown":
            return refusal
        wait = self._window.take(_client(address))
        if wait is None:
            return refusal
        return Refusal("rate_limited", f"too many wrong API keys; wait {wait} s", retry_seconds=wait)


def _client(address: str | None) -> str:
    try:
        return client_of(address or "")
    except ValueError:
        return "unknown"
