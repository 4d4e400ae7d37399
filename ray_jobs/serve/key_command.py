"""`clipautt serve keys add|list|renew|revoke`: who may use a server.

In: the words after `keys`, and the server's folder. Out: the keys file there, see `web.keys`; a new key on the standard
output, once, and everything else that `add` and `renew` say on the standard error, so that `KEY=$(clipautt serve keys
add NAME)` works.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ray_jobs.platform.nearest import suggestion
from ray_jobs.platform.progress import table
from ray_jobs.serve.web.keys import SCOPES, Key, Scope, add_command, add_key, read_keys, renew_key, revoke_key

FILE = "keys.json"
"""Name of the keys file in a server's folder."""
_ACTIONS = ("add", "list", "renew", "revoke")
_USAGE = "`clipautt serve keys add NAME`, `list`, `renew NAME` or `revoke NAME`"


def run(
    words: Sequence[str], folder: Path, *, scope: Scope | None = None, days: int | None = None, options: str = ""
) -> int:
    """Run the command.

    Args:
        words: an action, and for all but `list` a name; `renew` and `revoke` take an id, too.
        folder: of the server, `runs/serve/NAME`.
        scope: what a new key allows; None for `predict`.
        days: after how many days a new key or secret expires; None for never.
        options: words that name this server on the command line, such as `name=clinic`.

    Returns:
        0.

    Raises:
        ValueError: a word, name or setting is not understood, or the file is damaged.
    """
    action, name = _checked(words, scope, days)
    path = folder / FILE
    if action == "list":
        return _list(path, options)
    if action == "revoke":
        return _revoked(revoke_key(path, name), folder)
    if action == "add":
        return _shown("new key", *add_key(path, name, scope=scope or "predict", days=days))
    return _shown("new secret", *renew_key(path, name, days=days))


def _checked(words: Sequence[str], scope: Scope | None, days: int | None) -> tuple[str, str]:
    """The action and the name, which is empty for `list`."""
    if not words:
        raise ValueError(f"keys: which action? {_USAGE}")
    action, names = words[0], words[1:]
    if action not in _ACTIONS:
        raise ValueError(f"keys {action}: unknown action{suggestion(action, _ACTIONS)}")
    if action == "list" and names:
        raise ValueError(f"keys list {names[0]}: no further word is allowed; `clipautt serve keys list` lists all")
    if action != "list" and len(names) != 1:
        given = f"; put {' '.join(names)!r} into quotes if it is one" if names else ""
        raise ValueError(f"keys {action}: expected one name, as in `clipautt serve keys {action} NAME`{given}")
    if scope is not None and action != "add":
        raise ValueError(f"scope={scope}: only for `clipautt serve keys add`; a key keeps its scope")
    if scope is not None and scope not in SCOPES:
        raise ValueError(f"scope={scope}: allowed: {', '.join(SCOPES)}")
    if days is not None and action not in ("add", "renew"):
        raise ValueError(f"days={days}: only for `clipautt serve keys add` and `renew`")
    if days is not None and not 1 <= days <= 36_500:
        raise ValueError(f"days={days}: allowed: 1 to 36500")
    return action, names[0] if names else ""


def _list(path: Path, options: str) -> int:
    keys = read_keys(path)
    if not keys:
        print(f"no keys in {path}; `{add_command(options)}` makes one")
        return 0
    table([_row(key) for key in keys], ("id", "name", "scope", "made", "expires", "state"))
    return 0


def _row(key: Key) -> tuple[object, ...]:
    expires = f"{key.expires:%Y-%m-%d}" if key.expires else "never"
    state = f"revoked {key.revoked:%Y-%m-%d}" if key.revoked else key.state
    return key.id, key.name, key.scope, f"{key.created:%Y-%m-%d}", expires, state


def _shown(what: str, key: Key, secret: str) -> int:
    until = f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "without expiry"
    print(f"{what} for {key.name}: id {key.id}, scope {key.scope}, {until}", file=sys.stderr)
    print(
        "It is shown this once; only a hash of it is kept. Programs send `Authorization: Bearer KEY`.", file=sys.stderr
    )
    sys.stderr.flush()
    print(secret, flush=True)
    return 0


def _revoked(key: Key, folder: Path) -> int:
    print(f"the key {key.id} of {key.name} is revoked; a running server refuses it from now on")
    stored = folder / "subjects" / key.id
    if stored.is_dir():
        print(f"what it stored of its subjects stays in {stored}; remove that folder to erase it")
    return 0
