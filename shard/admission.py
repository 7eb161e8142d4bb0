"""Admission: whether a new start is taken. Pure. Repeats, cancels and reads never come here."""

from sagacity.errors import NotTaken


class Admission:
    """Bounds what is in flight.

    Args:
        inflight_max: sagas admitted and not finished.
        retry_after_ms: what a refused caller is told.
    """

    def __init__(self, inflight_max: int, retry_after_ms: int = 250) -> None:
        self.inflight_max = inflight_max
        self._retry_after_ms = retry_after_ms
        self.draining = False
        self.full = False  # what room there is, is for the sagas in flight

    def refusal(self, inflight: int) -> NotTaken | None:
        """Give the refusal of a start while `inflight` sagas are not finished, or None."""
        if self.draining:
            return NotTaken("the shard is draining", retry_after_ms=1000)
        if self.full:
            return NotTaken("the disk is full", retry_after_ms=1000)
        if inflight >= self.inflight_max:
            return NotTaken(
                f"{inflight} sagas are in flight on this shard, its limit",
                retry_after_ms=self._retry_after_ms,
            )
        return None
