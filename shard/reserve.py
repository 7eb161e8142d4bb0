"""Reserve: room beside a shard's journal, kept so that sagas in flight can end on a full disk.

A file of zeros that holds room and says nothing. Compensations need commits: without room a saga
could neither go on nor turn back.
"""

import os
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 4 << 20


class ReserveFile:
    """The file; made (0600) by `take`, removed by `give_up`.

    Args:
        path: of the file.
        size: bytes that it holds.
    """

    def __init__(self, path: Path, size: int = RESERVE_BYTES) -> None:
        self._path = path
        self._size = size

    def take(self) -> bool:
        """Keep the room, unless it is kept already; say whether it is."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(descriptor).st_size >= self._size:
                    return True
                # As much again must be left: what it takes must not be what the next commit needs.
                room = os.fstatvfs(descriptor)
                if room.f_bavail * room.f_frsize < 2 * self._size:
                    return False
                os.posix_fallocate(descriptor, 0, self._size)
            finally:
                os.close(descriptor)
        except OSError:
            self.give_up()
            return False
        return True

    def give_up(self) -> bool:
        """Free the room; say whether there was any."""
        held = False
        with suppress(OSError):
            held = self._path.stat().st_size > 0
            self._path.unlink()
        return held
