"""API keys: who asks, and what they may do.

In: a file of keys and the headers of a request. Out: a `Who`, or the `Refusal` that is answered instead. The file is
written by `clipautt serve keys`, see `key_command`; a running server reads it again whenever it has changed, and
refuses everybody while it cannot be read.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clipautt.files import locked, write_json
from ray_jobs.serve.refusals import Refusal

Scope = Literal["predict", "personalize", "admin"]
"""What a key allows; each includes those before it."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "clipautt_"
"""Every key begins with it, so that people and programs that search for secrets recognize one."""

_ID_BYTES = 4
_SECRET_BYTES = 32
_FORM = re.compile(rb"clipautt_(?P<id>[0-9a-f]{8})_[0-9a-f]{64}")
_NAME = re.compile(r"[^\W_][\w .@+'’-]{0,63}")
_NOBODY = "0" * hashlib.sha256().digest_size * 2
"""Compared with where there is no such key, so that it takes as long."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Who:
    """Who asks."""

    owner: str
    """Public id of the key, to whom subjects belong; `local` where no keys are needed."""
    scope: Scope
    """What they may do."""

    def allows(self, scope: Scope) -> bool:
        """Whether the key's scope includes another one."""
        return SCOPES.index(scope) <= SCOPES.index(self.scope)


LOCAL = Who("local", "admin")
"""Everyone, where no keys are needed."""


class Key(BaseModel):
    """A key as it lies in the file, without its secret.

    The secret is stored as plain SHA-256. A slow hash, as passwords need, would gain nothing: a secret has 256 random
    bits, which cannot be guessed however fast a guess is, and it would let anybody occupy the server with wrong keys.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    """Public: it stands in the key itself, in the access log, and before everything that the key's owner stores."""
    name: str
    """Who has it."""
    scope: Scope
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Of the whole key as it is sent; None once it is revoked."""

    @model_validator(mode="after")
    def _has_hash_until_revoked(self) -> Key:
        if (self.sha256 is None) != (self.revoked is not None):
            raise ValueError("a key has either sha256 or revoked")
        return self

    @property
    def state(self) -> str:
        """`usable`, `expired` or `revoked`."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and self.expires <= _now() else "usable"


class _KeyFile(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: Literal[1]
    keys: list[Key]


class Keys:
    """The keys of a file, read again when it changes. One thread asks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] | None = ()
        self._keys: dict[str, Key] | None = None

    def who(self, headers: Iterable[tuple[bytes, bytes]]) -> Who | Refusal:
        """Who sent a request, by its `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Args:
            headers: of the request, names in lower case, as in an ASGI scope.
        """
        sent, other = [], False
        for name, value in headers:
            if name == b"x-api-key":
                sent.append(value.strip())
            elif name == b"authorization":
                scheme, _, key = value.strip().partition(b" ")
                is_bearer = scheme.lower() == b"bearer"
                sent += [key.strip()] if is_bearer else []
                other |= not is_bearer
        if len(sent) > 1:
            return Refusal("malformed", f"{len(sent)} API keys were sent; send one")
        if not sent or not sent[0]:
            return Refusal("key_missing", _OTHER_SCHEME if other else "this server needs an API key")
        return self.who_has(sent[0])

    def who_has(self, key: str | bytes) -> Who | Refusal:
        """Who has this key; it takes as long for a wrong key as for the right one."""
        keys = self._current()
        if keys is None:
            return _UNREADABLE
        sent = key if isinstance(key, bytes) else key.encode("utf-8", "surrogatepass")
        form = _FORM.fullmatch(sent)
        known = keys.get(form["id"].decode()) if form else None
        expected = (known.sha256 if known else None) or _NOBODY
        same = hmac.compare_digest(hashlib.sha256(sent if form else b"").hexdigest(), expected)
        if known is None or not same:
            return Refusal("key_unknown", "this API key is not known")
        if known.state == "expired":
            return Refusal("key_unknown", f"this API key expired on {known.expires:%Y-%m-%d}")
        return Who(known.id, known.scope)

    def gone(self, owner: str) -> Refusal | None:
        """Why an owner has no usable key any more; None if it has one."""
        keys = self._current()
        if keys is None:
            return _UNREADABLE
        key = keys.get(owner)
        if key is not None and key.state == "usable":
            return None
        return Refusal("key_unknown", f"the API key is {'not there any more' if key is None else key.state}")

    def _current(self) -> dict[str, Key] | None:
        """The keys by id; None if the file cannot be read."""
        try:
            state = os.stat(self._path)
            stamp: tuple[int, ...] | None = (state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_size)
        except OSError:
            stamp = None
        if stamp != self._stamp:
            self._stamp, self._keys = stamp, self._read()
        return self._keys

    def _read(self) -> dict[str, Key] | None:
        try:
            if not self._path.is_file():
                raise ValueError(f"{self._path}: no such file")
            keys = {key.id: key for key in read_keys(self._path)}
        except (ValueError, OSError) as error:
            logger.error("every request is refused, because the API keys cannot be read: %s", error)
            return None
        logger.info("%d of %d API keys are usable", sum(key.state == "usable" for key in keys.values()), len(keys))
        return keys


class NoKeys:
    """In place of `Keys` where everyone may do everything."""

    def who(self, headers: Iterable[tuple[bytes, bytes]]) -> Who | Refusal:
        """Everyone is `LOCAL`."""
        return LOCAL

    def who_has(self, key: str | bytes) -> Who | Refusal:
        """Everyone is `LOCAL`."""
        return LOCAL

    def gone(self, owner: str) -> Refusal | None:
        """Nobody goes."""
        return None


_UNREADABLE = Refusal("failed", "the server cannot read its API keys, so it refuses everybody")
_OTHER_SCHEME = "Authorization has no API key; it is written `Authorization: Bearer KEY`"


def scope_refusal(who: Who, scope: Scope) -> Refusal | None:
    """Why somebody may not do what needs a scope; None if they may."""
    if who.allows(scope):
        return None
    return Refusal("key_scope", f"this needs a key of scope {scope}, and yours has scope {who.scope}")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach an address to listen on; a name other than localhost may be any."""
    name = host.strip().lower().removesuffix(".")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return bool(
        address.is_loopback or (address.version == 6 and address.ipv4_mapped and address.ipv4_mapped.is_loopback)
    )


def needs_keys(host: str, require_keys: bool, *, behind_proxy: bool = False) -> bool:
    """Whether requests need a key: where others than programs on this machine can send them, or where it is asked."""
    return require_keys or behind_proxy or not is_loopback(host)


def open_keys(
    path: Path, host: str, *, require_keys: bool = False, behind_proxy: bool = False, options: str = ""
) -> Keys | NoKeys:
    """What asks requests for keys, or not.

    Args:
        path: file of the keys; it may be missing where none are needed.
        host: address to listen on.
        require_keys: whether keys are needed on loopback, too.
        behind_proxy: whether a proxy on this machine passes on what others send.
        options: words that name this server to `clipautt serve keys`, such as `name=clinic`.

    Raises:
        ValueError: keys are needed, and there is no usable one, or the file is damaged.
    """
    if not needs_keys(host, require_keys, behind_proxy=behind_proxy):
        return NoKeys()
    keys = read_keys(path)
    if not any(key.state == "usable" for key in keys):
        reason = (
            "require_keys=true"
            if require_keys
            else "behind a proxy"
            if behind_proxy
            else f"host={host} is not loopback"
        )
        have = f"none of the {len(keys)} in {path} is usable" if keys else "there is none"
        raise ValueError(f"{reason}: an API key is needed, and {have}; make one first: {add_command(options)}")
    return Keys(path)


def add_command(options: str = "") -> str:
    """The command that makes a key, for messages."""
    return " ".join(filter(None, ("clipautt serve keys add NAME", options)))


def read_keys(path: Path) -> list[Key]:
    """The keys of a file, in the order in which they were made; none if there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        keys = _KeyFile.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return []
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path} is damaged ({where + ': ' if where else ''}{first['msg']}); repair it, or remove it and make new "
            "keys"
        ) from None
    if len({key.id for key in keys}) < len(keys):
        raise ValueError(f"{path} is damaged (two keys have the same id); remove one of them")
    return keys


def add_key(path: Path, name: str, *, scope: Scope, days: int | None = None) -> tuple[Key, str]:
    """Make a key and store it, without its secret.

    Args:
        path: file of the keys.
        name: who gets it.
        scope: what it allows.
        days: after how many days it expires; None for never.

    Returns:
        What is stored, and the key itself, which is known to nobody else.

    Raises:
        ValueError: the name is not allowed or has a key already, or the file is damaged.
    """
    if not _NAME.fullmatch(name) or name != name.strip():
        raise ValueError(
            f"{name!r} is no name for a key; allowed: up to 64 letters, digits, spaces and . _ @ + - ', the first a "
            "letter or digit"
        )
    with locked(path):
        keys = read_keys(path)
        for key in keys:
            if name == key.id or (name == key.name and key.state != "revoked"):
                raise ValueError(
                    f"{name!r} has a key already ({key.id}, {key.state}); revoke or renew it, or choose another name"
                )
        taken = {name, *(key.id for key in keys), *(key.name for key in keys)}
        identity = next(new for new in iter(lambda: secrets.token_hex(_ID_BYTES), "") if new not in taken)
        key, secret = _issued(identity, name, scope, _now(), days)
        _write(path, [*keys, key])
    return key, secret


def renew_key(path: Path, name: str, *, days: int | None = None) -> tuple[Key, str]:
    """Give a key a new secret under the same id, so that its subjects stay its own; the old secret is void.

    Args:
        path: file of the keys.
        name: name or id; a key that was revoked is found by its id only.
        days: after how many days from now it expires; needed for a key that expires, and None for one that does not.

    Returns:
        As `add_key`.

    Raises:
        ValueError: there is no such key, or it expires and `days` is None, or the file is damaged.
    """
    with locked(path):
        keys = read_keys(path)
        old = _found(keys, name, path)
        if old.expires and days is None:
            raise ValueError(f"the key of {old.name} expires ({old.expires:%Y-%m-%d}); say for how long, as in days=90")
        key, secret = _issued(old.id, old.name, old.scope, old.created, days)
        _write(path, [key if other is old else other for other in keys])
    return key, secret


def revoke_key(path: Path, name: str) -> Key:
    """Make a key void; a record without its hash stays, so that its id is not given away again.

    Args:
        path: file of the keys.
        name: name or id.

    Raises:
        ValueError: there is no such key, or it was revoked before, or the file is damaged.
    """
    with locked(path):
        keys = read_keys(path)
        old = _found(keys, name, path)
        if old.state == "revoked":
            raise ValueError(f"{name!r} was revoked before, on {old.revoked:%Y-%m-%d}")
        key = old.model_copy(update={"revoked": _now(), "sha256": None})
        _write(path, [key if other is old else other for other in keys])
    return key


def _issued(identity: str, name: str, scope: Scope, created: datetime, days: int | None) -> tuple[Key, str]:
    """A key with a new secret, and the key itself."""
    secret = f"{PREFIX}{identity}_{secrets.token_hex(_SECRET_BYTES)}"
    hashed = hashlib.sha256(secret.encode()).hexdigest()
    expires = None if days is None else _now() + timedelta(days=days)
    return Key(id=identity, name=name, scope=scope, created=created, expires=expires, sha256=hashed), secret


def _found(keys: list[Key], name: str, path: Path) -> Key:
    for key in keys:
        if key.id == name or (key.name == name and key.state != "revoked"):
            return key
    have = ", ".join(f"{key.name} ({key.id})" for key in keys if key.state != "revoked")
    raise ValueError(f"no key {name!r} in {path}; there are: {have or 'none'}")


def _write(path: Path, keys: list[Key]) -> None:
    write_json(path, _KeyFile(version=1, keys=keys).model_dump(mode="json"), private=True)


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)
