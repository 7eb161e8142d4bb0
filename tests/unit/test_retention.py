"""Retention: nothing is forgotten early, whatever the clocks do."""

import pytest

from shard.events import Instant
from shard.retention import Retention
from shard.sagas import MS

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
WALL_MS = 1_700_000_000_000
TEN_YEARS_MS = 3_650 * DAY_MS


def begun(written_ms: int, wall_ms: int) -> Retention:
    made = Retention(WEEK_MS)
    made.begin(written_ms, Instant(0, wall_ms))
    return made


def later(ms: int, wall_ms: int | None = None) -> Instant:
    return Instant(ms * MS, WALL_MS + ms if wall_ms is None else wall_ms)


def test_it_looks_once_a_second() -> None:
    """What is past retention is no hurry, and looking costs a read."""
    retention = begun(WALL_MS, WALL_MS)
    assert retention.due(later(999)) is None
    assert retention.due(later(1_000)) == WALL_MS + 1_000 - WEEK_MS
    assert retention.due(later(1_500)) is None
    assert retention.due(later(DAY_MS)) == WALL_MS + DAY_MS - WEEK_MS


@pytest.mark.parametrize("jump_ms", [TEN_YEARS_MS, -TEN_YEARS_MS, 3_600_000, -3_600_000])
def test_a_clock_that_jumps_while_it_runs_forgets_nothing_early(jump_ms: int) -> None:
    """E2: time is what passed; but a clock that was set back dates what ends from then on."""
    retention = begun(WALL_MS, WALL_MS)
    due = retention.due(later(2_000, WALL_MS + jump_ms))
    assert due == min(WALL_MS + 2_000, WALL_MS + jump_ms) - WEEK_MS


@pytest.mark.parametrize(
    ("written_ms", "wall_ms", "from_ms"),
    [
        (WALL_MS, WALL_MS + TEN_YEARS_MS, WALL_MS),  # the clock, or an outage of ten years
        (WALL_MS + TEN_YEARS_MS, WALL_MS, WALL_MS),  # rows of a clock that was wrong
        (WALL_MS, WALL_MS - DAY_MS, WALL_MS - DAY_MS),
        (0, WALL_MS, WALL_MS),  # a new journal
    ],
)
def test_a_start_takes_the_earlier_of_journal_and_clock(
    written_ms: int, wall_ms: int, from_ms: int
) -> None:
    """Kept longer than promised is no harm; forgotten early is."""
    retention = begun(written_ms, wall_ms)
    assert retention.due(later(1_000, wall_ms + 1_000)) == from_ms + 1_000 - WEEK_MS


def test_nothing_is_forgotten_before_the_shard_was_taken_over() -> None:
    """A shard that waits for its services writes nothing."""
    assert Retention(WEEK_MS).due(later(5_000)) is None
