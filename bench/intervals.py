"""Intervals: is one side better than the other, or can one not tell? Pure; chance from a seed.

The ratio of two medians, with the interval in which it lies when runs are drawn anew from those
that there are (bootstrap). With five runs a side, equal sides are called different in about one of
twenty-five comparisons, and a difference of 5 % among runs that scatter by 2 % is seen in nine of
ten; with fewer than five the interval is too narrow to mean what it says.
"""

import random
import statistics
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

RUNS_MIN: Final = 5  # of each side, to tell anything
CONFIDENCE: Final = 0.95
DRAWS: Final = 4000
_SEED: Final = 1

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"


class Ratio(Struct, frozen=True):
    """How much of A's median B's is, and the interval; None where there are too few runs."""

    middle: float
    low: float | None
    high: float | None

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def ratio_of_medians(a: Sequence[float], b: Sequence[float]) -> Ratio | None:
    """Give B's median divided by A's; None where A's is nothing."""
    base = statistics.median(a)
    if base <= 0:
        return None
    middle = statistics.median(b) / base
    if min(len(a), len(b)) < RUNS_MIN:
        return Ratio(middle, None, None)
    chance = random.Random(_SEED)
    drawn = []
    for _ in range(DRAWS):
        under = statistics.median(chance.choices(a, k=len(a)))
        if under > 0:
            drawn.append(statistics.median(chance.choices(b, k=len(b))) / under)
    drawn.sort()
    cut = int(len(drawn) * (1 - CONFIDENCE) / 2)
    return Ratio(middle, drawn[cut], drawn[-1 - cut])


def verdict(ratio: Ratio | None, *, more_is_better: bool) -> str:
    """Give it in words."""
    if ratio is None or not ratio.differs:
        return CANNOT_TELL
    return BETTER if (ratio.middle > 1) == more_is_better else WORSE
