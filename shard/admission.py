"""Admission: whether a new start is taken. Pure. Repeats, cancels and reads never come here.

Two bounds: the number in flight, for memory, and the age of the oldest command that waits for a
worker, for time: a saga that would only wait longer than that is better told so at once.
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
        queue_age_max_ms: of the oldest command that waits for a worker.
    """

    def __init__(self, inflight_max: int, queue_age_max_ms: int = 5_000) -> None:
        self.inflight_max = inflight_max
        self.queue_age_max_ms = queue_age_max_ms
        self.draining = False

    def refusal(self, inflight: int, waited_ms: int = 0) -> NotTaken | None:
        """Give the refusal of a start, or None.

        Args:
            inflight: sagas that are not finished.
            waited_ms: the age of the oldest command in the queues that the saga will stand in.
        """
        if self.draining:
            text = "the shard is draining"
            return NotTaken(text, retry_after_ms=DRAINING_RETRY_AFTER_MS)
        if waited_ms > self.queue_age_max_ms:
            text = f"commands wait {waited_ms} ms for a worker, over this shard's limit"
            return NotTaken(text, retry_after_ms=retry_after_ms(waited_ms))
        if inflight >= self.inflight_max:
            text = f"{inflight} sagas are in flight on this shard, its limit"
            after = max(FULL_RETRY_AFTER_MS, retry_after_ms(waited_ms))
            return NotTaken(text, retry_after_ms=after)
        return None


def retry_after_ms(waited_ms: int) -> int:
    """Give when a refused caller should come again: later, the longer the queue has stood."""
    return min(max(waited_ms // 5, RETRY_AFTER_MIN_MS), RETRY_AFTER_MAX_MS)
