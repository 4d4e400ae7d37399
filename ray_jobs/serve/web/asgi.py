"""Types of the ASGI interface, https://asgi.readthedocs.io, and how a refusal is answered in it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ray_jobs.serve.refusals import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


def refusal_headers(refusal: Refusal, content: bytes) -> Headers:
    """Headers of a refusal that is answered with `content`."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refusal.retry_seconds is not None:
        headers.append((b"retry-after", str(refusal.retry_seconds).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def refusal_content(refusal: Refusal) -> bytes:
    """The JSON of a refusal."""
    return json.dumps(refusal.body).encode()


async def refuse(refusal: Refusal, send: Send, *, websocket: bool = False) -> None:
    """Answer a request, or the handshake of a WebSocket, with a refusal.

    Args:
        refusal: Why.
        send: ASGI's `send`, to which nothing has been sent yet.
        websocket: Whether it is a handshake; the server must know the extension `websocket.http.response`.
    """
    kind = "websocket.http.response" if websocket else "http.response"
    content = refusal_content(refusal)
    headers = refusal_headers(refusal, content)
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": content})
