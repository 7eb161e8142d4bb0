"""Durations in HDR histograms: every one counted, none averaged away, mergeable over processes.

The one room that knows the library; why this one: docs/decisions/0030-histograms.md.
"""

from collections.abc import Iterable
from typing import Final, Self

from hdrh.histogram import HdrHistogram

from bench.result import Percentiles

_LONGEST_US: Final = 3_600_000_000  # an hour; what took longer counts as one
_DIGITS: Final = 3  # each value is kept to 0.1 %


class Histogram:
    """Durations from a microsecond to an hour, to 0.1 %."""

    def __init__(self) -> None:
        self._counts = HdrHistogram(1, _LONGEST_US, _DIGITS)

    def __len__(self) -> int:
        return int(self._counts.total_count)

    def record_ns(self, duration: int, times: int = 1) -> None:
        """Count a duration in nanoseconds; 1.1 us of CPU."""
        self._counts.record_value(min(max(1, duration // 1000), _LONGEST_US), times)

    def add(self, other: Self) -> None:
        """Count all that another has counted."""
        self._counts.add(other._counts)

    def percentiles(self) -> Percentiles:
        """Give the percentiles, milliseconds; zeros where nothing was counted."""
        if not len(self):
            return Percentiles()
        middle, most, nearly, almost = (self.at_ms(share) for share in (50, 90, 99, 99.9))
        return Percentiles(middle, most, nearly, almost, self._counts.get_max_value() / 1000)

    def at_ms(self, share: float) -> float:
        """Give the duration, milliseconds, below which that share of all is, percent."""
        return float(self._counts.get_value_at_percentile(share)) / 1000

    def encode(self) -> str:
        """Give it as HdrHistogram V2, base64: what the library's tools in any language read."""
        return str(self._counts.encode().decode("ascii"))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` gave."""
        found = cls()
        found._counts.decode_and_add(text)
        return found


def merged(texts: Iterable[str]) -> Histogram:
    """Add up histograms that were encoded elsewhere."""
    found = Histogram()
    for text in texts:
        found.add(Histogram.decode(text))
    return found
