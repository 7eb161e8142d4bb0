"""The clock's twin keeps the promises that its readers lean on."""

import pytest

from cluster.clock import Clock, ManualClock, SystemClock


def test_the_twin_moves_only_when_told() -> None:
    """A test that waits for the machine's clock is slow, or wrong, or both."""
    clock = ManualClock(monotonic_ns=5, wall_ms=7)
    assert (clock.monotonic_ns(), clock.wall_ms()) == (5, 7)
    clock.advance(2)
    assert (clock.monotonic_ns(), clock.wall_ms()) == (2_000_005, 9)


def test_a_wall_clock_jump_leaves_monotonic_time_alone() -> None:
    """PROOF E2: deadlines must not notice that somebody set the clock back by ten years."""
    clock = ManualClock(monotonic_ns=5, wall_ms=10**12)
    clock.set_wall(0)
    assert (clock.monotonic_ns(), clock.wall_ms()) == (5, 0)


def test_monotonic_time_never_goes_back() -> None:
    """Not even in a test."""
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-1)


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock()])
def test_both_clocks_agree_on_units(clock: Clock) -> None:
    """Milliseconds since 1970 have 13 digits for the next 260 years."""
    assert len(str(clock.wall_ms())) == 13
    first = clock.monotonic_ns()
    assert clock.monotonic_ns() >= first
