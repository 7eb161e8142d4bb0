"""When checkouts start: the closed loop and the open one. Pure; instants come in as nanoseconds.

The open loop's arrivals are fixed before anything is asked. A cluster that stalls does not hold
them back: each start's latency counts from the instant at which it was meant, however late it was
asked, and so a stall shows in all those who would have come meanwhile (coordinated omission).
"""

import heapq
import random
from collections.abc import Iterator
from itertools import count
from typing import Final, Protocol

SECOND: Final = 1_000_000_000

EVEN: Final = "even"  # the same time between any two
POISSON: Final = "poisson"  # as if each came by itself: bursts and gaps


def arrivals(
    rate: float, kind: str, *, seed: int = 0, part: int = 0, parts: int = 1
) -> Iterator[int]:
    """Give the instants at which checkouts arrive, nanoseconds after the begin, without an end.

    Args:
        rate: of all parts together, per second.
        kind: EVEN or POISSON.
        seed: of the chance.
        part: which part of them; even parts lie between each other.
        parts: how many there are.
    """
    if kind == EVEN:
        yield from (round((at * parts + part) * SECOND / rate) for at in count())
    chance = random.Random(f"{seed} {part}")
    at = 0.0
    while True:
        at += chance.expovariate(rate / parts)
        yield round(at * SECOND)


class Loop(Protocol):
    """Says when to start."""

    def due(self, now: int, opened: int) -> list[int]:
        """Give the intended instants of what is to be started now, each once.

        Args:
            now: in nanoseconds.
            opened: how many are started and not settled.
        """

    def next(self) -> int | None:
        """Give the instant at which `due` should be asked again; None: when something settles."""

    def refused(self, until: int) -> None:
        """Take note that a start was refused until an instant."""

    def stop(self) -> None:
        """Start nothing more."""

    @property
    def over(self) -> bool:
        """Whether nothing more is started."""


class ClosedLoop:
    """So many at any time: the next one starts when one has settled.

    A refused one's place rests for as long as the refusal says: who asks again at once measures how
    fast a cluster says no.

    Args:
        in_flight: at any time.
        sagas: to be started; None: until `end`.
        end: nothing starts after it; None: until all `sagas` are started.
    """

    def __init__(self, in_flight: int, *, sagas: int | None, end: int | None) -> None:
        self._in_flight = in_flight
        self._left = sagas
        self._end = end
        self._resting: list[int] = []  # until when, a heap
        self._over = False

    def due(self, now: int, opened: int) -> list[int]:
        """Give `now` for each free place."""
        if self._end is not None and now >= self._end:
            self._over = True
        while self._resting and self._resting[0] <= now:
            heapq.heappop(self._resting)
        free = self._in_flight - len(self._resting) - opened
        if self._left is not None:
            free = min(free, self._left)
        if self._over or free <= 0:
            return []
        if self._left is not None:
            self._left -= free
            self._over = self._left == 0
        return [now] * free

    def next(self) -> int | None:
        """Give when the first rest ends, or the loop."""
        times = [*self._resting[:1], *([] if self._end is None else [self._end])]
        return None if self._over else min(times, default=None)

    def refused(self, until: int) -> None:
        """Let a place rest."""
        heapq.heappush(self._resting, until)

    def stop(self) -> None:
        """Start nothing more."""
        self._over = True

    @property
    def over(self) -> bool:
        """Whether nothing more is started."""
        return self._over


class OpenLoop:
    """Starts what has arrived, whatever became of those before.

    Args:
        offsets: of the arrivals, as `arrivals` gives them.
        begin: the instant from which they count.
        sagas: to be started; None: until `end`.
        end: what arrives after it does not count; None: until all `sagas` have arrived.
        grace: how long after the last arrival starts may lag behind; then the rest is left out.
    """

    def __init__(
        self,
        offsets: Iterator[int],
        *,
        begin: int,
        sagas: int | None,
        end: int | None,
        grace: int = 10 * SECOND,
    ) -> None:
        self._offsets = offsets
        self._begin = begin
        self._left = sagas
        self._end = end
        self._grace = grace
        self._over = False
        self.left_out = 0  # arrivals that were never started: the generator was too slow
        self._next = 0
        self._advance()

    def due(self, now: int, opened: int) -> list[int]:  # noqa: ARG002 - it is open
        """Give the arrivals until `now`, at most a thousand: replies must be read between."""
        found: list[int] = []
        if self._end is not None and now >= self._end + self._grace:
            while not self._over:
                self.left_out += 1
                self._advance()
        while not self._over and self._next <= now and len(found) < 1000:
            found.append(self._next)
            self._advance()
        return found

    def next(self) -> int | None:
        """Give the next arrival."""
        return None if self._over else self._next

    def refused(self, until: int) -> None:
        """Go on: those who come do not know of each other."""

    def stop(self) -> None:
        """Start nothing more."""
        self._over = True

    @property
    def over(self) -> bool:
        """Whether nothing more is started."""
        return self._over

    def _advance(self) -> None:
        if self._left is not None:
            if self._left == 0:
                self._over = True
                return
            self._left -= 1
        self._next = self._begin + next(self._offsets)
        if self._end is not None and self._next >= self._end:
            self._over = True
