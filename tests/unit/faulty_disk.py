"""A disk whose WAL fails when it is told to, and a database on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from tests.unit.watched_disk import SYNC, WRITE, WatchedDisk

FAULTY_DISK = "faulty-disk"  # the VFS by name


class FaultyDisk(WatchedDisk):
    """Set `writes` or `syncs` to the error that the next ones on the WAL shall meet."""

    def __init__(self) -> None:
        self.writes: type[apsw.Error] | None = None
        self.syncs: type[apsw.Error] | None = None
        self.synced = 0
        super().__init__(FAULTY_DISK)

    def meet(self, operation: str, *, wal: bool) -> None:
        """Fail as told; count the syncs that do not."""
        if operation == WRITE and wal and self.writes is not None:
            raise self.writes("this write fails")
        if operation == SYNC:
            if wal and self.syncs is not None:
                raise self.syncs("this sync fails")
            self.synced += 1


@contextmanager
def faulty_database(file: Path) -> Iterator[tuple[FaultyDisk, apsw.Connection]]:
    """Give a disk and a connection to a file on it, in WAL mode, every commit synced."""
    disk = FaultyDisk()
    connection = apsw.Connection(str(file), vfs=FAULTY_DISK)
    # A file object of ours has no shared memory: one connection, and it keeps the lock.
    connection.pragma("locking_mode", "exclusive")
    assert connection.pragma("journal_mode", "wal") == "wal"
    connection.pragma("synchronous", "FULL")
    try:
        yield disk, connection
    finally:
        disk.writes = disk.syncs = None
        connection.close()
        disk.unregister()
