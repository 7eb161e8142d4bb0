"""A disk in memory that remembers in which order it was written: a VFS of apsw.

    live      what the process reads back
    log       every operation since the disk was loaded, in order
    medium    what would be there after a crash: what was synced, and any part of what was not

A crash at an operation is a prefix of the log: the workload runs once, and every crash of it is
made from the log afterwards. `Medium` reads the log and gives the images that a crash may leave.

    drop      nothing that was not synced
    keep      all of it, as when only the process dies
    killed    likewise, and it is still not synced: a second crash may take it
    torn      all of it, but of the last write only some sectors
    last      of what was not synced only the last operation
    gap       all of it but one operation
    part-N    a part of it, drawn sector by sector

As POSIX has it: a name is there for certain when its directory was synced, which SQLite does when
it first syncs a WAL or a rollback journal that it has made. What SQLite is told of this disk is
what its own VFS says on Linux: sectors of 4 KiB, and a write changes no byte beside it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from random import Random
from typing import Any, Final

import apsw
from msgspec import Struct

from sagacity.wal import HEADER_BYTES

CREATE, DELETE, WRITE, TRUNCATE, SYNC, SYNC_NAMES = range(6)
KINDS: Final = ("create", "delete", "write", "truncate", "sync", "sync_names")
PAGE: Final = 4096
SECTOR: Final = 512  # bytes that are written whole or not at all

_OF_LOGS: Final = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
_names = count(1)


class Op(Struct, frozen=True, gc=False):
    """One operation on the disk.

    Args:
        kind: one of KINDS.
        inode: of the file.
        phase: what the process was about.
        at: offset of a write, size of a truncation.
        content: of a write.
        name: of a file that is made or deleted.
    """

    kind: int
    inode: int
    phase: str
    at: int = 0
    content: bytes = b""
    name: str = ""


class Image(Struct, frozen=True):
    """What a crash leaves.

    Args:
        files: on the medium, by name.
        unsynced: operations that the machine still holds and the medium does not have, where only
            the process died; their inodes are those of `inodes`.
        inodes: of the files, by name.
    """

    files: dict[str, bytes]
    unsynced: tuple[Op, ...] = ()
    inodes: dict[str, int] = {}

    def is_lost_by_name(self, name: str) -> bool:
        """Say whether a shard would find a WAL without its file, which it refuses.

        A header alone holds nothing: two crashes, of the making of a file and of the next start,
        which rolls that back, leave one.
        """
        return not self.files.get(name) and len(self.files.get(f"{name}-wal", b"")) > HEADER_BYTES


class MemoryDisk(apsw.VFS):
    """The disk; its `name` is what SQLite opens files through.

    Attributes:
        log: of operations since `load`.
        read: pages that were read, by file; None where nobody wants to know.
        phase: what the process is about, noted in each operation.
    """

    def __init__(self) -> None:
        self.name = f"memory-disk-{next(_names)}"
        self.phase = ""
        self.log: list[Op] = []
        self.read: set[tuple[str, int]] | None = None  # file and page, where it is wanted
        self.image = Image({})
        self.live: dict[int, bytearray] = {}
        self.inodes: dict[str, int] = {}  # of the files that have a name
        self._next = 0
        super().__init__(self.name, base="")

    def load(self, image: Image) -> None:
        """Be what a crash left; the log begins with what is still not synced."""
        medium = Medium(image)
        self.image, self.log = image, list(image.unsynced)
        for op in self.log:
            medium.take(op)
        kept = medium.content(medium.unsynced)
        self.inodes = kept.inodes
        self.live = {kept.inodes[name]: bytearray(held) for name, held in kept.files.items()}
        self._next = max([0, *medium.inodes_seen])

    def note(
        self, kind: int, inode: int, at: int = 0, content: bytes = b"", name: str = ""
    ) -> None:
        """Add an operation to the log; what raises here keeps it from being done."""
        self.log.append(Op(kind, inode, self.phase, at, content, name))

    # -- what SQLite calls ----------------------------------------------------------------------

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> "_File":  # type: ignore[override]  # noqa: N802 - apsw's name; a file without its base class
        flags[1] = flags[0]
        if name is None:
            return _File(self, "", 0, bytearray(), names=False)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        inode = self.inodes.get(path)
        if inode is None:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(f"{path} is not there")
            inode = self._next + 1
            self.note(CREATE, inode, name=path)
            self._next = self.inodes[path] = inode
            self.live[inode] = bytearray()
        # As SQLite's own VFS does: also where the file was there already.
        names = flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _OF_LOGS
        return _File(self, path, inode, self.live[inode], names=bool(names))

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - apsw's name
        inode = self.inodes.get(filename)
        if inode is None:
            error: Any = apsw.IOError(f"{filename} is not there")
            error.extendedresult = apsw.SQLITE_IOERR_DELETE_NOENT
            raise error
        self.note(DELETE, inode, name=filename)
        del self.inodes[filename]
        if syncdir:
            self.note(SYNC_NAMES, 0)

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802 - apsw's name
        inode = self.inodes.get(pathname)
        # An empty file does not count, as in SQLite's own VFS.
        return inode is not None and bool(self.live[inode])

    def xFullPathname(self, name: str) -> str:  # noqa: N802 - apsw's name
        return os.path.abspath(name)


class _File:
    """An open file. The lock of its shard is elsewhere, so every lock is granted."""

    def __init__(
        self, disk: MemoryDisk, name: str, inode: int, live: bytearray, *, names: bool
    ) -> None:
        self._disk, self._name, self._inode, self._live = disk, name, inode, live
        self._syncs_names = names

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - apsw's name
        if self._disk.read is not None:
            pages = range(offset // PAGE, (offset + amount - 1) // PAGE + 1)
            self._disk.read.update((self._name, page) for page in pages)
        return bytes(self._live[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - apsw's name
        content = bytes(data)
        if self._inode:
            self._disk.note(WRITE, self._inode, offset, content)
        write(self._live, offset, content)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - apsw's name
        if self._inode:
            self._disk.note(TRUNCATE, self._inode, newsize)
        truncate(self._live, newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        if not self._inode:
            return
        self._disk.note(SYNC, self._inode)
        if self._syncs_names:
            self._syncs_names = False
            self._disk.note(SYNC_NAMES, 0)

    def xFileSize(self) -> int:  # noqa: N802 - apsw's name
        return len(self._live)

    def xLock(self, level: int) -> None:  # noqa: N802 - apsw's name
        """Grant it."""

    xUnlock = xLock  # noqa: N815 - apsw's name

    def xCheckReservedLock(self) -> bool:  # noqa: N802 - apsw's name
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: N802 - apsw's name
        return False

    def xSectorSize(self) -> int:  # noqa: N802 - apsw's name
        return 4096

    def xDeviceCharacteristics(self) -> int:  # noqa: N802 - apsw's name
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xClose(self) -> None:  # noqa: N802 - apsw's name
        """Nothing: a crash closes nothing either."""


def write(held: bytearray, at: int, content: bytes) -> None:
    """Write into a file; what it skips is zero."""
    if at > len(held):
        held.extend(bytes(at - len(held)))
    held[at : at + len(content)] = content


def truncate(held: bytearray, size: int) -> None:
    """Set a file's size."""
    if size < len(held):
        del held[size:]
    else:
        held.extend(bytes(size - len(held)))


class Medium:
    """What is on the medium while a log is read, and what a crash may leave there."""

    def __init__(self, image: Image) -> None:
        self.unsynced: list[Op] = []
        self.inodes_seen: set[int] = set()
        self._held: dict[int, bytearray] = {}
        self._names: dict[str, int] = {}
        for at, (name, content) in enumerate(image.files.items(), 1):
            inode = image.inodes.get(name, at)
            self._names[name], self._held[inode] = inode, bytearray(content)
            self.inodes_seen.add(inode)

    def take(self, op: Op) -> None:
        """Take in the next operation."""
        self.inodes_seen.add(op.inode)
        if op.kind == SYNC:
            self._settle(lambda each: each.inode == op.inode and each.kind in (WRITE, TRUNCATE))
        elif op.kind == SYNC_NAMES:
            self._settle(lambda each: each.kind in (CREATE, DELETE))
        else:
            self.unsynced.append(op)

    def _settle(self, is_synced: Callable[[Op], bool]) -> None:
        left = []
        for op in self.unsynced:
            if is_synced(op):
                _perform(op, op.content, self._held, self._names)
            else:
                left.append(op)
        self.unsynced = left

    def content(self, kept: list[Op]) -> Image:
        """Give the medium with some of what was not synced, in that order."""
        held = {inode: bytearray(content) for inode, content in self._held.items()}
        names = dict(self._names)
        for op in kept:
            _perform(op, op.content, held, names)
        return _image(held, names)

    def images(self, ways: Sequence[str], seed: str) -> Iterator[tuple[str, Image]]:
        """Give what a crash now may leave, in these ways; those that would be the same once."""
        waiting = self.unsynced
        for way in ways:
            if way == "keep":
                yield way, self.content(waiting)
            elif way == "killed":
                base = self.content([])
                yield way, Image(base.files, tuple(waiting), base.inodes)
            elif way == "torn" and waiting and waiting[-1].kind == WRITE:
                for half in (0, 1):
                    pieces = list(_sectors(waiting[-1]))
                    middle = len(pieces) // 2 or 1
                    torn = pieces[:middle] if half == 0 else pieces[middle:]
                    yield f"torn-{half}", self.content([*waiting[:-1], *torn])
            elif way == "last" and len(waiting) > 1:
                yield way, self.content(waiting[-1:])
            elif way == "gap" and len(waiting) > 2:
                at = Random(f"{seed}/gap").randrange(len(waiting) - 1)
                yield way, self.content([*waiting[:at], *waiting[at + 1 :]])
            elif way.startswith("part-") and waiting:
                random = Random(f"{seed}/{way}")
                pieces = [each for op in waiting for each in _sectors(op)]
                yield way, self.content([each for each in pieces if random.random() < 0.5])

    def dropped(self) -> Image:
        """Give what is synced."""
        return self.content([])


def _sectors(op: Op) -> Iterator[Op]:
    """Give a write as writes of one sector each; another operation as it is."""
    if op.kind != WRITE:
        yield op
        return
    begin, end = op.at, op.at + len(op.content)
    while begin < end:
        upto = min(end, (begin // SECTOR + 1) * SECTOR)
        yield Op(WRITE, op.inode, op.phase, begin, op.content[begin - op.at : upto - op.at])
        begin = upto


def _perform(op: Op, content: bytes, held: dict[int, bytearray], names: dict[str, int]) -> None:
    if op.kind == WRITE:
        write(held.setdefault(op.inode, bytearray()), op.at, content)
    elif op.kind == TRUNCATE:
        truncate(held.setdefault(op.inode, bytearray()), op.at)
    elif op.kind == CREATE:
        names[op.name] = op.inode
    elif names.get(op.name) == op.inode:
        del names[op.name]


def _image(held: dict[int, bytearray], names: dict[str, int]) -> Image:
    files = {name: bytes(held.get(inode, b"")) for name, inode in names.items()}
    return Image(files, (), dict(names))


@contextmanager
def memory_disk() -> Iterator[MemoryDisk]:
    """Give a disk, and unregister it."""
    disk = MemoryDisk()
    try:
        yield disk
    finally:
        disk.unregister()
