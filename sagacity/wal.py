"""WAL: what SQLite does not look at when it opens a file with a write-ahead log.

`sync_wal`: a killed process may have written rows and not synced them. They are read like the
rest; a power loss must not take them after somebody was told of them.

`fault_of`: SQLite's recovery ends at the first frame whose checksum does not fit, and says nothing.
After a crash that is right: of one commit, the last, some frames may not have reached the disk. It
is wrong where whole commits stand behind the bad frame: those were synced, one after the other.

    frames that SQLite reads | a bad one, of a commit | a whole commit       damaged
    frames that SQLite reads | some of one commit, which was not synced      a torn tail

A flipped bit in the last commit looks like a torn tail; only a witness can know of it.

`empty_wal`: a torn tail stays behind the end. A commit after it goes over its first frames; if
that is torn, too, and shorter, the end of the older one stands behind it, whole. So no process adds
to the frames that it has found: it empties the WAL before its first commit.

A commit has one such mark: SQLite repeats its last frame only on a disk of which it does not know
that a write changes no byte beside it, and its own VFS says that of every disk.

Format: https://sqlite.org/fileformat2.html#walformat. A header of 32 bytes, then frames: page
number, size of the file after a commit or 0, two salts, two checksums, each of 4 bytes; the page.
"""

import struct
from typing import Final

import apsw

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}  # says in which order checksums read bytes
_MASK: Final = 0xFFFFFFFF

_Sums = tuple[int, int]


def sync_wal(path: str, vfs: str = "") -> None:
    """Make durable what stands in a file's WAL. Before the file is opened; no byte is changed.

    The WAL's name is synced with it, as SQLite syncs the name of each WAL that it opens.

    Raises:
        apsw.Error: the sync failed.
    """
    wal, flags = f"{path}-wal", apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE
    try:
        apsw.VFSFile(vfs, wal, [flags, 0]).xClose()
    except apsw.Error:
        return  # there is none, and this makes none; or SQLite will soon say what is wrong with it
    file = apsw.VFSFile(vfs, wal, [flags | apsw.SQLITE_OPEN_CREATE, 0])
    try:
        file.xSync(apsw.SQLITE_SYNC_NORMAL)
    finally:
        file.xClose()


def fault_of(db: apsw.Connection) -> str | None:
    """Say what is wrong with the WAL of a database that this connection has read.

    Returns:
        A sentence; None where there is no WAL, or nothing is wrong with it.
    """
    try:
        wal = Wal(db.filename_wal, db.open_vfs)
    except apsw.Error:
        return None  # there is none, or SQLite would have said what is wrong
    try:
        frames, _ = db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        return wal.fault(max(frames, 0))
    finally:
        wal.close()


def empty_wal(db: apsw.Connection) -> None:
    """Copy a WAL that was found to be sound into its file, and empty it; before the first write.

    Emptied, not only begun anew: a WAL without a whole frame would keep its salts then, and what
    stands behind its first frames would still seem to belong to it.

    Raises:
        apsw.FullError: there is no room; nothing is lost.
        apsw.BusyError: others read it.
        apsw.Error: a write or sync failed.
    """
    db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


class _Frame:
    """One frame behind those that SQLite reads."""

    def __init__(self, head: bytes, page: bytes) -> None:
        self.is_commit = head[4:8] != bytes(4)
        self.salts = head[8:16]
        self.stored: _Sums = struct.unpack(">II", head[16:24])
        self.summed = head[:8] + page

    def lost_its_mark(self, order: str, firsts: set[_Sums]) -> bool:
        """Say whether one bit more would make a whole commit of it: a file of 2^k pages has one."""
        marked = (
            self.summed[:4] + (1 << bit).to_bytes(4, "big") + self.summed[8:] for bit in range(32)
        )
        return any(_sums(each, order, first) == self.stored for each in marked for first in firsts)


class Wal:
    """A WAL that nobody writes to meanwhile.

    Args:
        path: of the file.
        vfs: name of the VFS that it is read through.

    Raises:
        apsw.Error: it is not there, or cannot be opened.
    """

    def __init__(self, path: str, vfs: str) -> None:
        flags = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READONLY
        self._file = apsw.VFSFile(vfs, path, [flags, 0])

    def close(self) -> None:
        """Close it."""
        self._file.xClose()

    def fault(self, frames: int) -> str | None:
        """Say what is wrong with it.

        Args:
            frames: that SQLite reads.

        Returns:
            A sentence; None where SQLite reads all that was committed, or all but a torn tail.
        """
        size = self._file.xFileSize()
        if size <= HEADER_BYTES:
            return None
        header = self._file.xRead(HEADER_BYTES, 0)
        order = _MAGIC.get(int.from_bytes(header[:4], "big"))
        # It is synced before the first frame is written, and stands in one sector.
        if order is None or _sums(header[:24], order, (0, 0)) != struct.unpack(">II", header[24:]):
            return "the header of its WAL is not what was written"
        length = FRAME_HEADER_BYTES + int.from_bytes(header[8:12], "big")
        left = range(HEADER_BYTES + frames * length, size - length + 1, length)
        before = _before(self._file, frames, length, header)
        return self._behind(left, length, order, header[16:24], before)

    def _behind(
        self, places: range, length: int, order: str, salts: bytes, before: _Sums
    ) -> str | None:
        """Look for a whole commit behind a bad one."""
        bad = False  # a commit that SQLite does not read
        firsts = {before}  # what the next frame's checksum may have begun with
        for at in places:
            frame = _Frame(*_halves(self._file.xRead(length, at)))
            if (
                _bits_apart(frame.salts, salts) > 1
            ):  # of an older round of the WAL, or never written
                firsts = set()
                continue
            is_whole = any(_sums(frame.summed, order, first) == frame.stored for first in firsts)
            if bad and frame.is_commit and is_whole:
                return "its WAL has a bad frame, and whole commits behind it"
            bad = bad or frame.is_commit or (not is_whole and frame.lost_its_mark(order, firsts))
            firsts = {frame.stored, *(_sums(frame.summed, order, first) for first in firsts)}
        return None


def _before(file: apsw.VFSFile, frames: int, length: int, header: bytes) -> _Sums:
    """Give the checksums that the first frame which SQLite does not read goes on from."""
    if not frames:
        found = header[24:]
    else:
        found = file.xRead(FRAME_HEADER_BYTES, HEADER_BYTES + (frames - 1) * length)[16:]
    first, second = struct.unpack(">II", found)
    return first, second


def _halves(frame: bytes) -> tuple[bytes, bytes]:
    return frame[:FRAME_HEADER_BYTES], frame[FRAME_HEADER_BYTES:]


def _bits_apart(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def _sums(content: bytes, order: str, first: _Sums) -> _Sums:
    """Give SQLite's checksums over 8 bytes at a time; 0.1 ms a page."""
    one, two = first
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & _MASK
        two = (two + odd + one) & _MASK
    return one, two
