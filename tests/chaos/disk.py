"""A small disk of one's own: ext4 in a file, mounted, filled to the last byte, freed.

Needs root, mkfs.ext4 and a free loop device. Leaves no mount and no device, whatever happens.
Knows nothing of what is kept on it.
"""

import errno
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MIB: Final = 1 << 20
_LET_GO_S: Final = 10.0  # for ended processes to let go of their files


class NoDisk(Exception):
    """No such disk can be made here; the text says why."""


class SmallDisk:
    """A disk of so many bytes. A context: it is mounted in the block.

    Args:
        base: an empty directory, for the image and where it is mounted; not on the disk itself.
        size: bytes; the file system takes some of them.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, base: Path, size: int) -> None:
        self._image = base / "disk.img"
        self.path = base / "disk"
        self._size = size
        self._filler = self.path / "filler"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise NoDisk("a disk of one's own needs root: mount is not for others")
        for program in ("mkfs.ext4", "mount", "umount", "losetup"):
            if shutil.which(program) is None:
                raise NoDisk(f"a disk of one's own needs {program}")
        with ExitStack() as stack:
            with open(self._image, "wb") as image:
                image.truncate(self._size)
            stack.callback(self._image.unlink, missing_ok=True)
            # No blocks are kept for root: the cluster runs as root here, and would have them.
            _call("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
            self.path.mkdir()
            _call("mount", "-o", "loop", str(self._image), str(self.path))
            stack.callback(self._detach)
            stack.callback(_unmount, self.path)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def show_at(self, place: Path, name: str) -> None:
        """Have a directory of the disk, made empty, stand at another place too."""
        there = self.path / name
        there.mkdir(mode=0o700)
        _call("mount", "--bind", str(there), str(place))
        self._stack.callback(_unmount, place)

    def fill(self) -> int:
        """Take every byte that is left; give how many.

        May be called again, for what became free meanwhile.
        """
        taken = 0
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for piece in (MIB, 4096, 512, 1):
                taken += _write_all(descriptor, b"\0" * piece)
        finally:
            os.close(descriptor)
        return taken

    def free(self) -> int:
        """Give back all that `fill` took; give how many bytes are free then."""
        self._filler.unlink(missing_ok=True)
        return self.left

    @property
    def left(self) -> int:
        """Bytes that can be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def _detach(self) -> None:
        """Give back the loop device, should the unmounting not have done it."""
        said = subprocess.run(
            ["losetup", "-j", str(self._image)], capture_output=True, text=True, check=False
        ).stdout
        for line in said.splitlines():
            subprocess.run(["losetup", "-d", line.partition(":")[0]], check=False)


def _write_all(descriptor: int, piece: bytes) -> int:
    """Write pieces, synced, until no more fits; give how many bytes went in."""
    taken = 0
    while True:
        try:
            taken += os.write(descriptor, piece)
            if len(piece) >= MIB:
                os.fsync(descriptor)  # else blocks are only promised, and the promise may fail
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            os.fsync(descriptor)
            return taken


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoDisk(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def _unmount(place: Path) -> None:
    """Unmount, as soon as nobody uses it; at last without asking who does."""
    give_up = time.monotonic() + _LET_GO_S
    while time.monotonic() < give_up:
        done = subprocess.run(["umount", str(place)], capture_output=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
