"""Whether predictions work: a bundled clip goes through every deployment, again and again.

In: the pipeline. Out: a `Ready`, which `/readyz` answers at once. A replica counts when Ray Serve runs it, which is
only after the replica has decoded or predicted the clip itself, see `model.check`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.schemas import Ready

_LOOK_SECONDS = 1.0
_CHECK_SECONDS = 10.0
"""A prediction that is older than this is made again."""
_LONGEST_CHECK = 20.0
_OVERDUE_SECONDS = 60.0

logger = logging.getLogger(__name__)
Check = Callable[[], Awaitable[Refusal | None]]
Replicas = Callable[[], Awaitable[Mapping[str, tuple[int, int]]]]


class Readiness:
    """Checks the server in the background.

    Args:
        check: predicts the bundled clip; None if that worked.
        replicas: deployment → replicas that run, and those that are wanted.
        answered: when a video was predicted last, as `time.monotonic`; None for never.
    """

    def __init__(self, check: Check, replicas: Replicas, answered: Callable[[], float | None]) -> None:
        self._check = check
        self._replicas = replicas
        self._answered = answered
        self._state = Ready(ready=False, reason="the server is starting", replicas={})
        self._looked_at = 0.0

    def state(self) -> Ready:
        """What was found last; it asks nobody."""
        if self._state.ready and time.monotonic() - self._looked_at > _OVERDUE_SECONDS:
            return self._state.model_copy(update={"ready": False, "reason": "the last check does not end"})
        return self._state

    async def watch(self) -> None:
        """Check until cancelled."""
        while True:
            self._state = await self._found()
            self._looked_at = time.monotonic()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _found(self) -> Ready:
        try:
            counts = await self._replicas()
            missing = [name for name, (running, wanted) in counts.items() if running < wanted]
            reason = f"not all replicas run: {', '.join(missing)}" if missing else await self._why_not()
        except Exception as error:  # whatever it is, the server is not ready, and the next check may find it well
            logger.warning("the check of the server failed", exc_info=error)
            return Ready(ready=False, reason=f"the check failed: {type(error).__name__}", replicas={})
        shown = {name: f"{running} of {wanted}" for name, (running, wanted) in counts.items()}
        return Ready(ready=not reason, reason=reason, replicas=shown)

    async def _why_not(self) -> str:
        """Why no video is predicted; empty if one was, just now or by this check."""
        last = self._answered()
        if last is not None and time.monotonic() - last < _CHECK_SECONDS:
            return ""
        try:
            refusal = await asyncio.wait_for(self._check(), _LONGEST_CHECK)
        except asyncio.TimeoutError:
            return f"the bundled clip is not predicted within {_LONGEST_CHECK:g} s"
        if refusal is None or refusal.code == "busy":  # a busy server works
            return ""
        return f"the bundled clip is not predicted: {refusal.detail}"
