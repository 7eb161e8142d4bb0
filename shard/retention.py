"""Retention: when finished sagas are forgotten. Pure.

What is forgotten cannot be asked for again, so a clock that jumps must not forget anything early:
time counts while the shard runs, from the earlier of what the journal and the clock said at its
start. An outage makes a saga be kept longer, never shorter. A clock that was set back since then is
believed: what ends now is dated by it.
"""

from shard.events import Instant
from shard.sagas import MS

LOOK_NS = 1_000 * MS  # between two looks for sagas that are past retention
AGAIN_NS = 50 * MS  # while there are more: some ten thousand a second are forgotten so


class Retention:
    """Says what is past retention.

    Args:
        keep_ms: after a saga's end.
    """

    def __init__(self, keep_ms: int) -> None:
        self._keep_ms = keep_ms
        self._began_ns = 0
        self._began_ms: int | None = None
        self._looked_ns = 0

    def begin(self, written_ms: int, now: Instant) -> None:
        """The shard was taken over.

        Args:
            written_ms: wall time of the last row before; 0 for a new journal.
            now: when.
        """
        self._began_ns = self._looked_ns = now.ns
        self._began_ms = min(written_ms, now.wall_ms) if written_ms else now.wall_ms

    def due(self, now: Instant) -> int | None:
        """Give the wall time before which ended sagas are to be forgotten now; None: not now."""
        if self._began_ms is None or now.ns - self._looked_ns < LOOK_NS:
            return None
        self._looked_ns = now.ns
        passed_ms = (now.ns - self._began_ns) // MS
        return min(self._began_ms + passed_ms, now.wall_ms) - self._keep_ms

    def look_again(self, now: Instant) -> None:
        """Look again soon: there were some, so there may be more."""
        self._looked_ns = now.ns - LOOK_NS + AGAIN_NS
