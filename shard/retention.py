"""Retention: when finished sagas are forgotten. Pure.

What is forgotten cannot be asked for again, so no wall clock has a say in it: a saga is kept for as
long as its shard runs `keep_ms` after its end. An outage does not count: it is kept longer, never
shorter.

    every minute: Ran -> a mark: so long has the shard run, so many sagas have ended
    a mark is old enough -> what had ended by then is past retention
"""

from collections.abc import Iterable

from msgspec import Struct

from shard.events import Instant
from shard.sagas import MS

LOOK_NS = 1_000 * MS  # between two looks for sagas that are past retention
AGAIN_NS = 50 * MS  # while there are more: some ten thousand a second are forgotten so
NOTE_MS = 60_000  # of running time that a crash takes back; or less, where little is kept long
NOTES_MIN = 32  # within a retention
MARKS_MAX = 512  # of a week they then stand half an hour apart, so much later is forgotten

_NEVER = 1 << 63


class Mark(Struct, frozen=True, array_like=True, gc=False):
    """What was noted of a moment.

    Args:
        ran_ms: how long the shard had run.
        ordinal: how many sagas had ended: those with a lower ordinal.
    """

    ran_ms: int
    ordinal: int


def thin(marks: list[Mark]) -> None:
    """Take the mark away that leaves the smallest gap; so they stay as far apart everywhere.

    Only what an entry says decides, no setting: a replay must leave the same ones.

    Args:
        marks: three or more, the oldest first.
    """
    del marks[
        min(
            range(1, len(marks) - 1),
            key=lambda at: marks[at + 1].ran_ms - marks[at - 1].ran_ms,
        )
    ]


class Retention:
    """Counts how long the shard runs, and says what is past retention.

    Args:
        keep_ms: of running time, after a saga's end.

    `look_at` is the loop time from which there may be something to note or to forget.
    """

    def __init__(self, keep_ms: int) -> None:
        self.look_at = _NEVER
        self._keep_ms = keep_ms
        self._note_ms = min(NOTE_MS, keep_ms // NOTES_MIN)
        self._zero_ns = 0  # loop time at which the shard would have begun, had it never ended

    def begin(self, ran_ms: int, now: Instant) -> None:
        """The shard was taken over.

        Args:
            ran_ms: what was noted last.
            now: when.
        """
        self._zero_ns = now.ns - ran_ms * MS
        self.look_at = now.ns + LOOK_NS

    def ran_ms(self, now: Instant) -> int:
        """Give how long the shard has run."""
        return (now.ns - self._zero_ns) // MS

    def is_due(self, noted_ms: int, now: Instant) -> bool:
        """Say whether it is time to note how long the shard has run, after `noted_ms`."""
        return self.ran_ms(now) >= noted_ms + self._note_ms

    def ended(self, marks: Iterable[Mark], now: Instant) -> int:
        """Give the ordinal below which sagas are past retention; look again in a second."""
        self.look_at = now.ns + LOOK_NS
        before_ms = self.ran_ms(now) - self._keep_ms
        return max((mark.ordinal for mark in marks if mark.ran_ms < before_ms), default=0)

    def look_again(self, now: Instant) -> None:
        """Look again soon: there were some, so there may be more."""
        self.look_at = now.ns + AGAIN_NS
