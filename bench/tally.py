"""What generators tell of a run: each its own tally, added up by who started them. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from bench.histogram import Histogram, merged
from bench.result import Seconds
from bench.schedule import SECOND

LATE_NS: Final = 10_000_000  # a start that is later than this counts as a late one
_SECONDS_MAX: Final = 100_000  # that are kept apart; whatever comes later counts to the last
TENTH: Final = SECOND // 10
_TENTHS_MAX: Final = 6_000  # likewise; a gap that is looked at falls into the first ten minutes


class Told(Struct):
    """One generator's tally of a phase, as it travels. Instants are monotonic nanoseconds."""

    first: int = 0  # the first intended start; 0 where there was none
    last_start: int = 0  # the last start, as it was
    last: int = 0  # when the last one was settled
    started: int = 0
    completed: int = 0
    aborted: int = 0
    within: int = 0  # finished within the objective
    refused: int = 0
    late_starts: int = 0
    left_out: int = 0  # arrivals that were never started
    errors_by: dict[str, int] = {}
    cpu_ns: int = 0
    peak_rss_mb: float = 0.0
    latency: str = ""  # histograms
    late: str = ""
    refusal: str = ""
    per_second: Seconds = Seconds()
    per_tenth: list[int] = []  # finished in each tenth of a second
    gap_ns: int = 0  # the longest time between two batches of finished sagas


class Tally:
    """Counts what becomes of the checkouts of one phase.

    Args:
        begin: of the phase, monotonic nanoseconds.
        objective_ns: a saga that takes longer is no goodput.
        open_loop: starts have a schedule that they can be late for.
    """

    def __init__(self, begin: int, objective_ns: int, *, open_loop: bool) -> None:
        self.told = Told()
        self.errors: Counter[str] = Counter()
        self._begin = begin
        self._finished_at = 0
        self._objective_ns = objective_ns
        self._open_loop = open_loop
        self._latency, self._late, self._refusal = Histogram(), Histogram(), Histogram()
        self._offered: Counter[int] = Counter()
        self._finished: Counter[int] = Counter()
        self._refused: Counter[int] = Counter()
        self._tenths: Counter[int] = Counter()

    @property
    def settled(self) -> int:
        """How many checkouts are settled."""
        told = self.told
        return told.completed + told.aborted + told.refused + self.errors.total()

    def started(self, intended: Sequence[int], now: int) -> None:
        """Count starts, by the instants that were meant for them."""
        told = self.told
        told.first, told.last_start = told.first or intended[0], now
        told.started += len(intended)
        if not self._open_loop:  # all of them are now
            self._offered[self._second(now)] += len(intended)
            return
        for instant in intended:
            self._offered[self._second(instant)] += 1
            self._late.record_ns(now - instant)
            told.late_starts += now - instant > LATE_NS

    def finished(self, completed: Sequence[int], aborted: Sequence[int], now: int) -> None:
        """Count sagas that came to their end now, by the instants that were meant for their starts.

        Many of a batch were started together: a histogram takes them in one go. One by one cost
        2 us of CPU a saga more, with a thousand in flight.
        """
        if not completed and not aborted:
            return
        told, oldest = self.told, now - self._objective_ns
        for intended, times in Counter((*completed, *aborted)).items():
            self._latency.record_ns(now - intended, times)
            if intended >= oldest:
                told.within += times
        told.completed += len(completed)
        told.aborted += len(aborted)
        told.gap_ns = max(told.gap_ns, now - (self._finished_at or now))
        told.last = self._finished_at = now
        tenth = min(max(0, now - self._begin) // TENTH, _TENTHS_MAX)
        self._tenths[tenth] += len(completed) + len(aborted)
        self._finished[self._second(now)] += len(completed) + len(aborted)

    def refused(self, intended: int, now: int) -> None:
        """Count a start that was not taken."""
        self.told.refused += 1
        self.told.last = now
        self._refusal.record_ns(now - intended)
        self._refused[self._second(now)] += 1

    def failed(self, why: str, now: int) -> None:
        """Count what was answered, and neither finished nor refused."""
        self.errors[why] += 1
        self.told.last = now

    def given_up(self, times: int) -> None:
        """Count what was still open when a run was broken off; waiting for it is no part of it."""
        self.errors["given up"] += times

    def end(self, cpu_ns: int, peak_rss_mb: float, left_out: int) -> Told:
        """Give it all."""
        told = self.told
        told.cpu_ns, told.peak_rss_mb, told.left_out = cpu_ns, peak_rss_mb, left_out
        told.errors_by = dict(self.errors)
        told.latency = self._latency.encode()
        told.late, told.refusal = self._late.encode(), self._refusal.encode()
        counts = (self._offered, self._finished, self._refused)
        told.per_second = Seconds(*(_dense(count) for count in counts))
        told.per_tenth = _dense(self._tenths)
        return told

    def p99_ms(self) -> float:
        """Give the 99th percentile of the latencies so far."""
        return self._latency.at_ms(99.0)

    def _second(self, instant: int) -> int:
        return min(max(0, instant - self._begin) // SECOND, _SECONDS_MAX)


def together(tallies: Sequence[Told]) -> Told:
    """Add up what generators tell of the same phase."""
    found = Told(first=min((each.first for each in tallies if each.first), default=0))
    found.last = max((each.last for each in tallies), default=0)
    found.last_start = max((each.last_start for each in tallies), default=0)
    sums = "started completed aborted within refused late_starts left_out cpu_ns"
    for name in sums.split():
        setattr(found, name, sum(getattr(each, name) for each in tallies))
    errors: Counter[str] = Counter()
    for each in tallies:
        errors.update(each.errors_by)
    found.errors_by = dict(errors)
    found.per_tenth = _added([each.per_tenth for each in tallies])
    found.gap_ns = max((each.gap_ns for each in tallies), default=0)
    for name in ("latency", "late", "refusal"):
        texts = [text for each in tallies if (text := getattr(each, name))]
        setattr(found, name, merged(texts).encode())
    found.per_second = Seconds(
        *(
            _added([getattr(each.per_second, name) for each in tallies])
            for name in Seconds.__struct_fields__
        )
    )
    return found


def _dense(counts: Counter[int]) -> list[int]:
    return [counts[second] for second in range(max(counts, default=-1) + 1)]


def _added(rows: Sequence[Sequence[int]]) -> list[int]:
    length = max((len(row) for row in rows), default=0)
    return [sum(row[at] for row in rows if at < len(row)) for at in range(length)]
