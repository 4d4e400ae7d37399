"""Who may ask: the key of a request, what it allows, and how often it may be used.

In: a request, or the key of a live session. Out: a `Who`, or a `RefusedError`.
"""

from __future__ import annotations

from starlette.requests import HTTPConnection

from ray_jobs.serve.refusals import Refusal, RefusedError, unless_refused
from ray_jobs.serve.web.access_log import note
from ray_jobs.serve.web.keys import Keys, NoKeys, Scope, Who, scope_refusal
from ray_jobs.serve.web.rates import Failures, Rates


class Gate:
    """Admits requests.

    Args:
        keys: the server's keys, or that none are needed.
        requests_per_minute: of each key.
    """

    def __init__(self, keys: Keys | NoKeys, *, requests_per_minute: int) -> None:
        self._keys = keys
        self._rates = Rates(requests_per_minute)
        self._failures = Failures()

    def admit(self, connection: HTTPConnection, scope: Scope) -> Who:
        """Whose request it is.

        Args:
            connection: the request, of which the headers are looked at.
            scope: what it needs.

        Raises:
            RefusedError: it has no key or a wrong one, the key does not allow this, or is used too often.
        """
        return self.admit_key(connection, None, scope)

    def admit_key(self, connection: HTTPConnection, key: str | None, scope: Scope) -> Who:
        """As `admit`, for a key that comes in a message instead of a header; None where the message has none."""
        return self._admit(connection, self._found(connection, key), scope)

    def lapsed(self, connection: HTTPConnection, key: str | None) -> Refusal | None:
        """Why a key that was admitted by `admit_key` is none any more, since it was revoked, renewed or has expired."""
        found = self._found(connection, key)
        return found if isinstance(found, Refusal) else None

    def gone(self, owner: str) -> Refusal | None:
        """Why nothing more is done for an owner whose request was admitted: its key was revoked or has expired."""
        return self._keys.gone(owner)

    def _found(self, connection: HTTPConnection, key: str | None) -> Who | Refusal:
        return self._keys.who(connection.headers.raw) if key is None else self._keys.who_has(key)

    def _admit(self, connection: HTTPConnection, found: Who | Refusal, scope: Scope) -> Who:
        if isinstance(found, Refusal):
            raise RefusedError.of(self._failures.answer(found, connection.client and connection.client.host))
        note(connection.scope, owner=found.owner)
        unless_refused(self._rates.refusal(found) or scope_refusal(found, scope))
        return found
