"""Admission: a bound, and a word when to come again."""

from shard.admission import Admission


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
