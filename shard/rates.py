"""Rates: how many of each the last ten seconds brought. Pure.

Counts and the window's length are told, not a quotient: the wire carries no fractions, and one saga
in ten seconds is no zero.
"""

from collections import deque

WINDOW_NS = 10_000_000_000


class Rates:
    """A window over counters that only grow.

    Args:
        now_ns: monotonic; the window begins here.
        counts: name -> count, at this instant.
    """

    def __init__(self, now_ns: int, counts: dict[str, int]) -> None:
        self._readings = deque([(now_ns, counts)])

    def read(self, now_ns: int, counts: dict[str, int]) -> dict[str, int]:
        """Take the counts of now; give what has come since the window's begin, and its length.

        Returns:
            `window_ms`, and NAME_in_window for each count.
        """
        readings = self._readings
        readings.append((now_ns, counts))
        # The oldest reading that is kept is at least as old as the window, where there is one.
        while len(readings) > 2 and now_ns - readings[1][0] >= WINDOW_NS:
            readings.popleft()
        since_ns, before = readings[0]
        told = {f"{name}_in_window": count - before[name] for name, count in counts.items()}
        return {"window_ms": (now_ns - since_ns) // 1_000_000, **told}
