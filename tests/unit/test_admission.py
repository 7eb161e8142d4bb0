"""Admission: two bounds, and a word when to come again."""

import pytest

from shard.admission import RETRY_AFTER_MAX_MS, RETRY_AFTER_MIN_MS, Admission


def test_starts_are_taken_up_to_the_bound() -> None:
    """inflight_max sagas, not one more."""
    admission = Admission(2)
    assert admission.refusal(1) is None
    refusal = admission.refusal(2)
    assert refusal is not None
    assert (refusal.code, refusal.definite, refusal.retry_after_ms) == (11, True, 250)


def test_a_draining_shard_takes_none() -> None:
    """Not even with room; the next process will."""
    admission = Admission(2)
    admission.draining = True
    refusal = admission.refusal(0)
    assert refusal is not None
    assert (refusal.code, refusal.retry_after_ms) == (11, 1000)


def test_a_start_is_refused_while_commands_wait_too_long() -> None:
    """It would only wait as long: told at once, its client can do something else."""
    admission = Admission(10, queue_age_max_ms=700)
    assert admission.refusal(0, 700) is None
    refusal = admission.refusal(0, 701)
    assert refusal is not None
    assert (refusal.code, refusal.definite) == (11, True)


@pytest.mark.parametrize("inflight", [0, 10])
def test_the_longer_the_queue_has_stood_the_later_one_comes_again(inflight: int) -> None:
    """Within bounds: at once is a storm, and nobody waits for ever (code 11 says when)."""
    admission = Admission(10, queue_age_max_ms=50)
    ages = [51, 400, 700, 5_000, 12_000, 25_000, 26_000, 10**9]
    refusals = [admission.refusal(inflight, age) for age in ages]
    told = [refusal.retry_after_ms or 0 for refusal in refusals if refusal is not None]
    assert told == sorted(told)
    assert len(set(told)) > 3
    assert (told[0], told[-1]) == (RETRY_AFTER_MIN_MS, RETRY_AFTER_MAX_MS)


def test_a_stopped_pool_may_fill_memory_where_the_age_is_configured_large() -> None:
    """100 000 in flight behind a pool that is away for ten minutes: the number bounds, not time."""
    admission = Admission(100_000, queue_age_max_ms=600_000)
    assert admission.refusal(99_999, 599_000) is None
    assert admission.refusal(100_000, 0) is not None
