"""The timer wheel: nothing early, nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from shard.deadlines import TICK_NS, Wheel


def test_an_empty_wheel_has_nothing_due() -> None:
    """The loop then waits for the world alone."""
    wheel = Wheel()
    assert wheel.next_ns() is None
    assert wheel.take(1 << 60) == []
    assert len(wheel) == 0


@given(st.integers(0, 1 << 50))
def test_a_tick_never_comes_before_its_instant(at_ns: int) -> None:
    """A time-out that fires early would count an attempt that had time left."""
    due = Wheel.tick_of(at_ns) * TICK_NS
    assert at_ns < due <= at_ns + TICK_NS


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 50 * TICK_NS))),
    st.lists(st.integers(0, 60 * TICK_NS)),
)
def test_everything_comes_up_once_and_in_order(
    placed: list[tuple[int, int]], looks: list[int]
) -> None:
    """Against a naive twin: a sorted list."""
    wheel = Wheel()
    for number, at_ns in placed:
        wheel.place(number, Wheel.tick_of(at_ns))
    left = sorted(((Wheel.tick_of(at_ns), number) for number, at_ns in placed), key=lambda p: p[0])
    for until in sorted(looks):
        assert wheel.next_ns() == (left[0][0] * TICK_NS if left else None)
        due = [each for each in left if each[0] * TICK_NS <= until]
        taken = wheel.take(until)
        assert [tick for tick, _ in taken] == [tick for tick, _ in due]
        assert sorted(taken) == sorted(due)
        left = left[len(due) :]
        assert len(wheel) == len(left)
