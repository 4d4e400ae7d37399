"""Whether predictions work: a bundled clip goes through every deployment, again and again.

In: the pipeline. Out: a `Ready`, which `/readyz` answers at once. A replica counts when Ray Serve runs it, which is
only after the replica has decoded or predicted the clip itself, see `model.check`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.schemas import Ready

_EVERY_SECONDS = 10.0
_AGAIN_SECONDS = 0.5
_OVERDUE_SECONDS = 60.0

logger = logging.getLogger(__name__)
Check = Callable[[], Awaitable[Refusal | None]]
Replicas = Callable[[], Awaitable[Mapping[str, tuple[int, int]]]]


class Readiness:
    """Checks the server in the background.

    Args:
        check: predicts the bundled clip; None if that worked.
        replicas: deployment → replicas that run, and those that are wanted.
    """

    def __init__(self, check: Check, replicas: Replicas) -> None:
        self._check = check
        self._replicas = replicas
        self._state = Ready(ready=False, reason="the server is starting", replicas={})
        self._checked = 0.0

    def state(self) -> Ready:
        """What the last check found; it asks nobody."""
        if self._state.ready and asyncio.get_running_loop().time() - self._checked > _OVERDUE_SECONDS:
            return self._state.model_copy(update={"ready": False, "reason": "the last check does not end"})
        return self._state

    async def watch(self) -> None:
        """Check until cancelled."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                self._state = await asyncio.wait_for(self._looked(), _OVERDUE_SECONDS)
                self._checked = asyncio.get_running_loop().time()
            await asyncio.sleep(_EVERY_SECONDS if self._state.ready else _AGAIN_SECONDS)

    async def _looked(self) -> Ready:
        try:
            refusal = await self._check()
            counts = await self._replicas()
        except Exception as error:  # whatever it is, the server is not ready, and the next check may find it well
            logger.warning("the check of the server failed", exc_info=error)
            return Ready(ready=False, reason=f"the check failed: {type(error).__name__}", replicas={})
        shown = {name: f"{running} of {wanted}" for name, (running, wanted) in counts.items()}
        missing = [name for name, (running, wanted) in counts.items() if running < wanted]
        reason = f"not all replicas run: {', '.join(missing)}" if missing else ""
        if refusal is not None and refusal.code != "busy":  # a busy server works
            reason = f"the bundled clip is not predicted: {refusal.detail}"
        return Ready(ready=not reason, reason=reason, replicas=shown)
