"""API keys: who asks, and what a key allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scope = Literal["predict", "personalize", "admin"]


@dataclass(frozen=True)
class Who:
    """Who sent a request."""

    owner: str
    """Public id of the key; `local` where none is needed."""
    scope: Scope
    """What it allows; each scope includes those before it."""
