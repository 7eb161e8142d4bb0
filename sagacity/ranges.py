"""Ranges of integers: many numbers that lie close together, kept in little room. Pure.

A range is (low, high), both included. A list of ranges is normal if it ascends and no two of them
overlap or touch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def ranges_of(numbers: Iterable[int]) -> list[Range]:
    """Give the normal ranges that hold these numbers and no others, in any order, even twice."""
    found: list[Range] = []
    low = high = None
    for number in sorted(numbers):
        if low is None or high is None:
            low = high = number
        elif number <= high + 1:
            high = number
        else:
            found.append((low, high))
            low = high = number
    if low is not None and high is not None:
        found.append((low, high))
    return found


def are_normal(ranges: Sequence[Range], least: int, most: int) -> bool:
    """Say whether ranges are normal, and all within least..most."""
    before = least - 2
    for low, high in ranges:
        if not before + 1 < low <= high:
            return False
        before = high
    return before <= most


class Ranges:
    """A set of integers as normal ranges.

    Args:
        ranges: normal.
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._lows: list[int] = []
        self._highs: list[int] = []
        for low, high in ranges:
            self._lows.append(low)
            self._highs.append(high)

    @property
    def highest(self) -> int:
        """The highest number; -1 where there is none."""
        return self._highs[-1] if self._highs else -1

    def all(self) -> list[Range]:
        """Give the ranges, ascending."""
        return list(zip(self._lows, self._highs, strict=True))

    def __contains__(self, number: int) -> bool:
        return self.first_missing(number) != number

    def first_missing(self, number: int) -> int:
        """Give the least number, from this one on, that is not here."""
        at = bisect_right(self._lows, number) - 1
        return self._highs[at] + 1 if at >= 0 and self._highs[at] >= number else number

    def add(self, low: int, high: int) -> tuple[list[int], Range]:
        """Take a range in: it becomes one with those that it overlaps or touches.

        Returns:
            The lows of the ranges that are no more, and the one that stands in their place.
        """
        first = bisect_left(self._highs, low - 1)
        after = bisect_right(self._lows, high + 1)
        gone = self._lows[first:after]
        if gone:
            low = min(low, gone[0])
            high = max(high, self._highs[after - 1])
        self._lows[first:after] = [low]
        self._highs[first:after] = [high]
        return gone, (low, high)
