"""The web side of the server inside Ray Serve. Separate from `job`, so that its worker starts without PyTorch."""

from __future__ import annotations

import asyncio
from typing import Any

from ray_jobs.serve.uploads import Limits, Refusal
from ray_jobs.serve.web import ASGI, make_app

ANSWER_SECONDS = 180.0
"""How long a request may wait for its turn and its answer."""


class WebReplica:
    """The web side as a Ray Serve deployment. Ray calls `__serve_build_asgi_app__` once it is constructed."""

    def __init__(self, model: Any, limits: Limits, host: str) -> None:
        self._model = RemoteModel(model)
        self._limits = limits
        self._host = host

    def __serve_build_asgi_app__(self) -> ASGI:
        return make_app(self._model, self._limits, host=self._host)


class RemoteModel:
    """A `web.Model` that asks the replicas, with a deadline.

    Args:
        handle: Ray Serve's handle of the `ModelReplica` deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def predict(self, video: bytes, subject: str | None) -> dict[str, Any] | Refusal:
        """See `ModelReplica`."""
        return await self._ask("predict", video, subject)

    async def subjects(self) -> list[str] | Refusal:
        """See `ModelReplica`."""
        return await self._ask("subjects")

    async def facts(self) -> dict[str, Any] | Refusal:
        """See `ModelReplica`."""
        return await self._ask("facts")

    async def _ask(self, question: str, *arguments: Any) -> Any:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        try:
            return await asyncio.wait_for(getattr(self._handle, question).remote(*arguments), ANSWER_SECONDS)
        except BackPressureError:
            return Refusal(503, "too many videos at once; try again in a moment")
        except asyncio.TimeoutError:
            return Refusal(504, f"no answer within {ANSWER_SECONDS:g} s")
        except RayActorError:
            return Refusal(503, "the worker stopped during this request; it restarts by itself, try again")
