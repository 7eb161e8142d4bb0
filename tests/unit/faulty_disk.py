"""A disk that fails when it is told to: a VFS of apsw over the real one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

FAULTY_DISK = "faulty-disk"  # the VFS by name


class FaultyDisk(apsw.VFS):
    """Set `writes` or `syncs` to the error that the next ones on the WAL shall meet."""

    def __init__(self) -> None:
        self.writes: type[apsw.Error] | None = None
        self.syncs: type[apsw.Error] | None = None
        self.synced = 0
        super().__init__(FAULTY_DISK, base="")

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> "_File":  # noqa: N802
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(
        self, disk: FaultyDisk, name: apsw.URIFilename | str | None, flags: list[int]
    ) -> None:
        self._disk = disk
        self._is_wal = bool(flags[0] & apsw.SQLITE_OPEN_WAL)
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - apsw's name
        if self._is_wal and self._disk.writes is not None:
            raise self._disk.writes("this write fails")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        if self._is_wal and self._disk.syncs is not None:
            raise self._disk.syncs("this sync fails")
        self._disk.synced += 1
        super().xSync(flags)


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
