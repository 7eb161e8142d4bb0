"""The real disk, and somebody who is asked before each operation on it: a VFS of apsw.

The disks that fail in the unit tests are made of it; each says when. What was written before is
there. (The disk in memory, which knows what was synced, is `sagacity.simulation.vfs`.)
"""

from typing import Final

import apsw

WRITE: Final = "xWrite"
SYNC: Final = "xSync"
TRUNCATE: Final = "xTruncate"


class WatchedDisk(apsw.VFS):
    """A disk whose operations pass through `meet`.

    Args:
        name: under which SQLite opens files on it.

    Attributes:
        syncs_for_real: a test in which no power fails saves the time.
    """

    syncs_for_real = True

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name, base="")

    def meet(self, operation: str, *, wal: bool) -> None:
        """Raise what an operation meets; the operation is not done then.

        Args:
            operation: WRITE, SYNC or TRUNCATE.
            wal: on a WAL.
        """

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> "_File":  # noqa: N802 - apsw's name
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(
        self, disk: WatchedDisk, name: apsw.URIFilename | str | None, flags: list[int]
    ) -> None:
        self._disk = disk
        self._is_wal = bool(flags[0] & apsw.SQLITE_OPEN_WAL)
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - apsw's name
        self._disk.meet(WRITE, wal=self._is_wal)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        self._disk.meet(SYNC, wal=self._is_wal)
        if self._disk.syncs_for_real:
            super().xSync(flags)

    def xTruncate(self, size: int) -> None:  # noqa: N802 - apsw's name
        self._disk.meet(TRUNCATE, wal=self._is_wal)
        super().xTruncate(size)
