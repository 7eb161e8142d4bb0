"""Rates: what the last ten seconds brought."""

from shard.rates import Rates

SECOND = 1_000_000_000


def test_the_window_is_what_came_since_the_oldest_reading_it_keeps() -> None:
    """Ten seconds once there are so many, less before."""
    rates = Rates(0, {"started": 0})
    assert rates.read(0, {"started": 0}) == {"window_ms": 0, "started_in_window": 0}
    assert rates.read(SECOND, {"started": 5}) == {"window_ms": 1000, "started_in_window": 5}
    for second in range(2, 31):
        told = rates.read(second * SECOND, {"started": 5 * second})
    assert told == {"window_ms": 10_000, "started_in_window": 50}


def test_what_stopped_is_nothing_ten_seconds_later() -> None:
    """A rate is of now, not of the process's life."""
    rates = Rates(0, {"started": 0})
    rates.read(SECOND, {"started": 700})
    for second in range(2, 13):
        told = rates.read(second * SECOND, {"started": 700})
    assert told["started_in_window"] == 0


def test_a_long_silence_is_its_own_window() -> None:
    """A shard that could not report for a minute says so by the window's length."""
    rates = Rates(0, {"started": 0})
    rates.read(SECOND, {"started": 1})
    assert rates.read(60 * SECOND, {"started": 61}) == {
        "window_ms": 59_000,
        "started_in_window": 60,
    }
