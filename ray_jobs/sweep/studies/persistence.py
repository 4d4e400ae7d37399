"""Calls to a storage that survive a lost connection.

In: a method of something that is kept in a storage. Out: the method, tried again for a minute where the connection is
lost; other errors of the storage become one line without secrets.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from ray_jobs.sweep.studies.storage import lost, plain_errors

_RETRY_SECONDS = 60.0
_PAUSE_SECONDS = 0.5
_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Kept(Protocol):
    """What is kept in a storage."""

    where: str
    """The storage in words, without secrets."""
    lock: threading.RLock
    """Held during a call."""


_K = TypeVar("_K", bound=Kept)


def persistent(method: Callable[Concatenate[_K, _P], _T]) -> Callable[Concatenate[_K, _P], _T]:
    """Try again for a minute where the connection is lost; tell other errors of the storage in one line."""

    @functools.wraps(method)
    def call(self: _K, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        deadline, pause = time.monotonic() + _RETRY_SECONDS, _PAUSE_SECONDS
        while True:
            try:
                with self.lock:
                    return method(self, *args, **kwargs)
            except (SQLAlchemyError, OptunaError) as error:
                if not lost(error) or time.monotonic() + pause > deadline:
                    with plain_errors(self.where):
                        raise
                if pause == _PAUSE_SECONDS:
                    _log.warning("storage %s: the connection was lost; trying again", self.where)
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    return call
