"""Retries: how long to wait before the next attempt, and how many a service gets. Pure.

Jitter comes from a hash, not from chance: the same history gives the same waits.
"""

from zlib import crc32

from sagacity.saga import Retry
from shard.sagas import MS

SECOND = 1_000_000_000


def backoff_ns(retry: Retry, saga_id: str, step: int, attempt: int) -> int:
    """Give the wait before attempt `attempt` + 1: exponential, full jitter, in nanoseconds."""
    ceiling = min(retry.backoff_max_ms, retry.backoff_ms << min(attempt - 1, 20)) * MS
    fraction = crc32(f"{saga_id}/{step}/{attempt}".encode())
    return ceiling * fraction >> 32


class RetryBudget:
    """A bucket of retries for one service, so that a sick service meets no storm.

    Args:
        per_success_permille: tokens that a thousand successes earn.
        burst: most tokens that are kept.
        per_second: tokens that time alone earns: the floor.
    """

    def __init__(self, per_success_permille: int, burst: int, per_second: int) -> None:
        self._earned = per_success_permille
        self._burst = burst * 1000
        self._per_second = per_second * 1000
        self._tokens = self._burst  # thousandths of a retry
        self._filled_at = 0

    def copy(self) -> "RetryBudget":
        """Give a full bucket with the same rules."""
        return RetryBudget(self._earned, self._burst // 1000, self._per_second // 1000)

    def succeeded(self) -> None:
        """A command of the service succeeded."""
        if self._tokens < self._burst:
            self._tokens = min(self._burst, self._tokens + self._earned)

    def take(self, now_ns: int) -> int:
        """Ask for one retry.

        Returns:
            0 when it is granted, else after how many nanoseconds to ask again: a retry is
            delayed, a step never ended by it.
        """
        gained = (now_ns - self._filled_at) * self._per_second // SECOND
        if gained > 0:
            self._tokens = min(self._burst, self._tokens + gained)
            self._filled_at = now_ns
        if self._tokens >= 1000:
            self._tokens -= 1000
            return 0
        return max(MS, (1000 - self._tokens) * SECOND // self._per_second)
