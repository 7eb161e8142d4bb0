"""A disk on which one operation fails, the n-th of its kind.

What was written before is there: so a process dies at that very operation, and its files stay.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from tests.unit.watched_disk import WatchedDisk


class FailingDisk(WatchedDisk):
    """The real disk, but for one operation that fails: once, or from then on."""

    def __init__(self, name: str) -> None:
        self.fails: tuple[str, int] | None = None  # operation, how many of it go well before
        self.error: type[apsw.Error] = apsw.IOError
        self.once = False
        self.failures = 0
        self._counts: dict[str, int] = {}
        super().__init__(name)

    def begin_again(self, error: type[apsw.Error], fails: tuple[str, int], *, once: bool) -> None:
        """Count from zero."""
        self.error, self.fails, self.once = error, fails, once
        self.failures = 0
        self._counts.clear()

    def count(self, operation: str) -> int:
        """Give how many of an operation there were."""
        return self._counts.get(operation, 0)

    def meet(self, operation: str, *, wal: bool) -> None:
        """Count an operation, or fail it."""
        done = self.count(operation)
        if self.fails == (operation, done):
            self._counts[operation] = done + self.once
            self.failures += 1
            raise self.error(f"{operation} {done} fails")
        self._counts[operation] = done + 1


@contextmanager
def disk_that_fails() -> Iterator[FailingDisk]:
    disk = FailingDisk("journal-test-disk")
    try:
        yield disk
    finally:
        disk.unregister()
