"""Admission: whether a new start is taken. Pure. Repeats, cancels and reads never come here.

Two bounds: the number in flight, for memory, and how long a saga that starts now must expect to
wait for workers (`Course.wait_ms`): one that would only wait too long is better told so at once.
"""

from sagacity.errors import NotTaken

RETRY_AFTER_MIN_MS = 100
RETRY_AFTER_MAX_MS = 5_000  # longer than that no client waits before it asks again
FULL_RETRY_AFTER_MS = 250  # a place is free when some saga ends, which no queue may be to blame for
DRAINING_RETRY_AFTER_MS = 1_000  # the next process is there then


class Admission:
    """Bounds what is in flight.

    Args:
        inflight_max: sagas admitted and not finished.
        queue_age_max_ms: the longest wait for workers that a start is taken with.
    """

    def __init__(self, inflight_max: int, queue_age_max_ms: int = 5_000) -> None:
        self.inflight_max = inflight_max
        self.queue_age_max_ms = queue_age_max_ms
        self.draining = False
        self.full = False  # what room there is, is for the sagas in flight

    def refusal(self, inflight: int, wait_ms: int = 0) -> NotTaken | None:
        """Give the refusal of a start, or None.

        Args:
            inflight: sagas that are not finished.
            wait_ms: that the saga must expect for workers.
        """
        if self.draining:
            text = "the shard is draining"
            return NotTaken(text, retry_after_ms=DRAINING_RETRY_AFTER_MS, cause="draining")
        if wait_ms > self.queue_age_max_ms:
            text = f"commands wait {wait_ms} ms for a worker, over this shard's limit"
            return NotTaken(text, retry_after_ms=retry_after_ms(wait_ms), cause="queue")
        if self.full:
            return NotTaken("the disk is full", retry_after_ms=1000, cause="disk_full")
        if inflight >= self.inflight_max:
            text = f"{inflight} sagas are in flight on this shard, its limit"
            after = max(FULL_RETRY_AFTER_MS, retry_after_ms(wait_ms))
            return NotTaken(text, retry_after_ms=after, cause="in_flight")
        return None


def retry_after_ms(wait_ms: int) -> int:
    """Give when a refused caller should come again: later, the longer the queue is or has stood."""
    return min(max(wait_ms // 5, RETRY_AFTER_MIN_MS), RETRY_AFTER_MAX_MS)
