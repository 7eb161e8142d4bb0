"""Retries: full jitter from a hash, and a budget that delays and never ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagacity.saga import Retry
from shard.retries import SECOND, RetryBudget, backoff_ns
from shard.sagas import MS

RETRY = Retry(backoff_ms=50, backoff_max_ms=5_000)


@given(st.text(min_size=1, max_size=20), st.integers(1, 15), st.integers(1, 1 << 40))
def test_a_wait_stays_under_the_doubling_and_its_end(saga_id: str, step: int, attempt: int) -> None:
    """50 ms, 100, 200 ... 5 s, however many attempts."""
    ceiling = min(5_000, 50 * 2 ** min(attempt - 1, 10))
    assert 0 <= backoff_ns(RETRY, saga_id, step, attempt) < ceiling * MS


def test_waits_spread_over_the_whole_range() -> None:
    """Full jitter: a thousand sagas that failed together do not come back together."""
    waits = [backoff_ns(RETRY, f"saga-{at}", 1, 1) for at in range(1000)]
    tenths = [sum(at * 5 * MS <= wait < (at + 1) * 5 * MS for wait in waits) for at in range(10)]
    assert min(tenths) > 50


def test_the_same_attempt_always_waits_the_same() -> None:
    """The engine is deterministic: golden values, the same in every process."""
    waits = [backoff_ns(RETRY, "checkout42", 2, attempt) for attempt in (1, 2, 3)]
    assert waits == [25_400_506, 10_555_471, 84_382_851]


def test_a_full_budget_grants_its_burst_then_delays() -> None:
    """The 101st retry of an instant waits a tenth of a second."""
    budget = RetryBudget(100, 100, 10)
    now = 50 * SECOND
    assert [budget.take(now) for _ in range(100)] == [0] * 100
    assert budget.take(now) == SECOND // 10
    assert budget.take(now + SECOND // 10) == 0
    assert budget.take(now + SECOND // 10) > 0


def test_ten_successes_earn_a_retry() -> None:
    """0.1 per success: at most 1.1 x the offered load."""
    budget = RetryBudget(100, 1, 1)
    assert budget.take(0) == 0
    for _ in range(9):
        budget.succeeded()
    assert budget.take(0) > 0
    budget.succeeded()
    assert budget.take(0) == 0


def test_a_budget_keeps_no_more_than_its_burst() -> None:
    """An hour without retries is no licence for a storm."""
    budget = RetryBudget(100, 3, 10)
    for _ in range(10_000):
        budget.succeeded()
    now = 3_600 * SECOND
    assert [budget.take(now) for _ in range(3)] == [0, 0, 0]
    assert budget.take(now) > 0


def test_the_wait_told_is_long_enough() -> None:
    """Who asks again then is granted it, give or take what rounding costs: a millisecond."""
    budget = RetryBudget(0, 1, 7)
    now = 0
    budget.take(now)
    for _ in range(100):
        now += budget.take(now) + MS
        assert budget.take(now) == 0


def test_a_copy_is_full_and_its_own() -> None:
    """One bucket for each service."""
    budget = RetryBudget(100, 1, 10)
    other = budget.copy()
    assert budget.take(0) == 0
    assert budget.take(0) > 0
    assert other.take(0) == 0


@pytest.mark.parametrize("per_second", [1, 10, 1_000_000])
@given(gaps=st.lists(st.integers(0, 3 * SECOND), max_size=50))
def test_grants_never_exceed_burst_plus_floor(per_second: int, gaps: list[int]) -> None:
    """The budget's promise, whatever the rhythm."""
    budget = RetryBudget(0, 5, per_second)
    now = granted = 0
    for gap in gaps:
        now += gap
        granted += budget.take(now) == 0
    assert granted <= 5 + now * per_second // SECOND
