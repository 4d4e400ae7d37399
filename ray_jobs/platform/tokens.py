"""Tokens of Ray clusters: used where there is one, and asked for in one line where one is missing.

In: the environment, and an address. Out: Ray's token mode set for this process and its children, or a sentence that
says which variable to set. Ray writes a token for this user at the first local start and from then on gives every
cluster that is started there this token, but does not use it for a cluster that is joined by its address.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MODE = "RAY_AUTH_MODE"
_TOKEN, _FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_ANSWER_SECONDS = 10.0
_METHODS = {"ray://": "/ray.rpc.RayletDriver/ClusterInfo", "": "/ray.rpc.NodeInfoGcsService/GetClusterId"}
"""Beginning of an address → a method without arguments of the server there."""


def use_token() -> None:
    """Set Ray's token mode if there is a token, unless RAY_AUTH_MODE is set; a cluster without tokens ignores it."""
    if MODE in os.environ or not _token():
        return
    os.environ[MODE] = "token"
    if "ray" in sys.modules:  # it has read the environment already
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def wants_token(address: str) -> bool:
    """Whether the cluster at `host:port` or `ray://host:port` refuses what this process would send as its token."""
    import grpc

    scheme = "ray://" if address.startswith("ray://") else ""
    sent = (("authorization", f"Bearer {_token()}"),) if _token() and _mode() == "token" else ()
    with grpc.insecure_channel(address.removeprefix("ray://")) as channel:
        ask = channel.unary_unary(_METHODS[scheme], request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=_ANSWER_SECONDS, metadata=sent)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


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
