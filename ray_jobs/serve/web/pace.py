"""Whether bytes come or go fast enough."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Pace:
    """A deadline that each byte moves on.

    `grace_seconds` are left at first, and a byte adds `1 / bytes_per_second`. Never are more than `stall_seconds` left,
    which is how long a client may pause. All bytes move within `grace_seconds + bytes / bytes_per_second`.
    """

    bytes_per_second: float
    grace_seconds: float
    stall_seconds: float
    seconds_left: float = field(init=False)
    """Until the client is too slow."""

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin again."""
        self.seconds_left = self.grace_seconds

    def wait(self, seconds: float) -> None:
        """Time has passed."""
        self.seconds_left -= seconds

    def move(self, num_bytes: int) -> None:
        """Bytes have come or gone."""
        self.seconds_left = min(
            max(self.stall_seconds, self.seconds_left), self.seconds_left + num_bytes / self.bytes_per_second
        )
