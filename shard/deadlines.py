"""Deadlines: the timer wheel. Pure; knows numbers of sagas and loop time, nothing else.

Each saga has at most one live place. A timer that moves later stays where it is and is looked at
again when its old place comes up, so that the usual saga costs one append and no removal: 0.5 us,
where a heap costs 4 (DESIGN 8).
"""

from heapq import heappop, heappush

TICK_NS = 10_000_000


class Wheel:
    """Numbers of sagas by the tick in which they are to be looked at."""

    def __init__(self) -> None:
        self._ticks: dict[int, list[int]] = {}  # each begins with its tick
        self._order: list[int] = []

    @staticmethod
    def tick_of(at_ns: int) -> int:
        """Give the first tick that does not come before an instant."""
        return at_ns // TICK_NS + 1

    def place(self, number: int, tick: int) -> int:
        """Have a saga looked at in a tick; give the tick, as one integer for all who are in it."""
        bucket = self._ticks.get(tick)
        if bucket is None:
            self._ticks[tick] = [tick, number]
            heappush(self._order, tick)
            return tick
        bucket.append(number)
        return bucket[0]

    def take(self, until_ns: int) -> list[tuple[int, int]]:
        """Take out what is to be looked at until an instant: (tick, number), earliest first."""
        last = until_ns // TICK_NS
        found: list[tuple[int, int]] = []
        while self._order and self._order[0] <= last:
            tick, *numbers = self._ticks.pop(heappop(self._order))
            found.extend((tick, number) for number in numbers)
        return found

    def next_ns(self) -> int | None:
        """Give the instant of the earliest place; None while there is none."""
        return self._order[0] * TICK_NS if self._order else None

    def __len__(self) -> int:
        return sum(len(bucket) - 1 for bucket in self._ticks.values())
