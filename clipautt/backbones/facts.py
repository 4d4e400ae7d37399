"""What is known of a backbone's own training: the footage it has seen, and the action units it was taught."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from clipautt.action_units import VOCABULARY
from clipautt.footage import Footage

_CODES = frozenset(unit.code for unit in VOCABULARY)


@dataclass(frozen=True)
class BackboneFacts:
    """Facts that a backbone's weights come with; nothing is known of most models."""

    footage: Footage = field(default_factory=Footage)
    """What its image tower was trained on."""
    action_units: tuple[str, ...] | None = None
    """Codes of the AUs that it was taught, such as `AU4`; None if that is not known."""

    def not_learned(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The AU codes among these that it never learned; empty if that is not known."""
        if self.action_units is None:
            return ()
        return tuple(column for column in columns if column in _CODES and column not in self.action_units)
