"""Tokens of Ray clusters: used where there is one, and asked for in one line where one is missing.

In: the environment, and an address. Out: Ray's token mode in this process, or a sentence that says which variable to
set. Ray writes a token for this user at the first local start and from then on gives every
cluster that is started there this token, but does not use it for a cluster that is joined by its address.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

MODE = "RAY_AUTH_MODE"
_TOKEN, _FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_ANSWER_SECONDS = 10.0
_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""A method without arguments of the server at the head of a cluster."""


@contextlib.contextmanager
def mode_for(address: str) -> Iterator[None]:
    """Set Ray's mode inside this block: with the token where the cluster asks for one, without where it does not.

    The latter matters as much: a driver with a token refuses the calls of a cluster without, and its actors then die.

    Args:
        address: `host:port`, or `ray://host:port`, whose server cannot be asked and takes a token in any case.

    Raises:
        ConnectionError: the cluster wants a token that is not here; the message says which variable to set.
    """
    before = os.environ.get(MODE)
    if address.startswith("ray://") or _refuses(address, ""):
        if before is None and _token():
            _set(MODE, "token")
        if not address.startswith("ray://") and _refuses(address, _token() if _mode() == "token" else ""):
            advice = token_advice(address)
            _set(MODE, before)
            raise ConnectionError(advice)
    elif _mode() == "token":
        _set(MODE, "disabled")
    try:
        yield
    finally:
        _set(MODE, before)


def use_token() -> None:
    """Set Ray's token mode if there is a token, unless RAY_AUTH_MODE is set; for a cluster that has asked for one."""
    if MODE not in os.environ and _token():
        _set(MODE, "token")


def _refuses(address: str, token: str) -> bool:
    """Whether the cluster refuses a token, or none."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=_ANSWER_SECONDS, metadata=(("authorization", f"Bearer {token}"),) if token else ())
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


def _set(name: str, value: str | None) -> None:
    """Set or remove a variable, and make Ray read it again if it has done so before."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
    if "ray" in sys.modules:
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def token_advice(address: str) -> str:
    """What to do about a cluster that wants another token than this process has, in one line."""
    if _token() and _mode() != "token":
        return f"the cluster at {address} wants a token, and {MODE}={_mode()} keeps it back: set {MODE}=token"
    where = f"{_TOKEN} to it, or {_FILE} to a file with it"
    source = "the file ~/.ray/auth_token of the user who started it"
    if not _token():
        return f"the cluster at {address} wants a token and there is none here: it is in {source}; set {where}"
    return f"the cluster at {address} wants another token than the one in {_source()}: it is in {source}; set {where}"


def _mode() -> str:
    return os.environ.get(MODE, "disabled").lower()


def _source() -> str:
    """Where the token comes from, in Ray's order; empty if there is no place for one."""
    if os.environ.get(_TOKEN):
        return _TOKEN
    return os.environ.get(_FILE) or str(Path.home() / ".ray" / "auth_token")


def _token() -> str:
    """The token of this process; empty without one."""
    if os.environ.get(_TOKEN):
        return os.environ[_TOKEN].strip()
    try:
        return Path(_source()).read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError):
        return ""
