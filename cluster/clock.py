"""Clocks: monotonic time for waiting, wall time for writing down. Everything else gets one passed.

Two readings that are never mixed: nanoseconds that only grow, for every wait and deadline inside
a process; milliseconds since 1970, for what is journalled and shown.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """What tells the time."""

    def monotonic_ns(self) -> int:
        """Give nanoseconds that never go back; their zero means nothing."""

    def wall_ms(self) -> int:
        """Give milliseconds since 1970, UTC; may jump in both directions."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """Give nanoseconds that never go back."""
        return time.monotonic_ns()

    def wall_ms(self) -> int:
        """Give milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that moves when it is told to: the twin for tests and simulation.

    Args:
        monotonic_ns: first reading.
        wall_ms: first reading.
    """

    def __init__(self, monotonic_ns: int = 0, wall_ms: int = 1_700_000_000_000) -> None:
        self._monotonic_ns = monotonic_ns
        self._wall_ms = wall_ms

    def monotonic_ns(self) -> int:
        """Give nanoseconds that never go back."""
        return self._monotonic_ns

    def wall_ms(self) -> int:
        """Give milliseconds since 1970, UTC."""
        return self._wall_ms

    def advance(self, ms: int) -> None:
        """Let time pass; both readings move.

        Raises:
            ValueError: `ms` is negative.
        """
        if ms < 0:
            raise ValueError(f"time does not go back, by {-ms} ms or at all")
        self._monotonic_ns += ms * 1_000_000
        self._wall_ms += ms

    def set_wall(self, ms: int) -> None:
        """Let the wall clock jump; the monotonic one does not notice."""
        self._wall_ms = ms

    def __repr__(self) -> str:
        return f"<ManualClock monotonic_ns={self._monotonic_ns} wall_ms={self._wall_ms}>"
