"""Journal: the shard's facts on disk, one row per group commit, one sync each (DESIGN 4).

Knows rows and bytes, not what entries mean. A receipt is given only for what is durable; nothing
leaves the shard without one. Any error in a commit means that its fate is unknown: the process
must end, and the next start reads what is there.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import apsw
from msgspec import Struct

from sagacity.errors import Malformed
from shard.codec import GENESIS, Unreadable, link, pack_batch, unpack_batch
from shard.entries import FORMAT, Batch, Entry

APPLICATION_ID = 0x53414741  # "SAGA", in the file's header
CHECKPOINT_PAGES = 1_000  # of 4 KiB in the WAL, then they are copied into the file

_SCHEMA = """
CREATE TABLE journal(seq INTEGER PRIMARY KEY, chain BLOB NOT NULL, batch BLOB NOT NULL) STRICT;
CREATE TABLE identity(cluster_id TEXT NOT NULL, shard INTEGER NOT NULL) STRICT;
"""


class Receipt(Struct, frozen=True, gc=False):
    """Everything up to `seq` is on disk; `chain` is the hash over it."""

    seq: int
    chain: bytes


class JournalFailed(Exception):
    """A commit or sync failed: what became of it is unknown, and this process must end."""


class JournalRefused(Malformed):
    """The file is no journal of this shard, of another version, or damaged; it is left as it is."""


class Journal(Protocol):
    """Where a shard's facts are kept. Two implementations pass the same conformance tests."""

    last: Receipt

    def replay(self) -> Iterator[tuple[int, Batch]]:
        """Give every row in order, checked: dense, chained, readable.

        Raises:
            JournalRefused: a row is not what was written.
        """

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Write entries as one row and wait until it is durable.

        Returns:
            The new last receipt; the old one if there are no entries.

        Raises:
            JournalFailed: its fate is unknown.
        """

    def read(self, seqs: Iterable[int]) -> list[Batch]:
        """Give single rows, in the order asked.

        Raises:
            JournalFailed: the file cannot be read, or holds what was not written.
        """

    def size_bytes(self) -> int:
        """Give how much room it takes."""

    def close(self) -> None:
        """Let go of it."""


class SqliteJournal:
    """A journal in one SQLite file: WAL, synchronous=FULL, both read back.

    Hold the shard's lock before. `replay` must be read to its end before the first commit.

    Args:
        path: of the file; made (0600) where there is none.
        cluster_id: that it belongs to.
        shard: index that it belongs to.
        vfs: name of another apsw VFS, for tests that crash at every write.

    Raises:
        JournalRefused: it is something else.
    """

    def __init__(self, path: Path, cluster_id: str, shard: int, vfs: str | None = None) -> None:
        self._path = path
        self.last = Receipt(0, GENESIS)
        self._wal_pages = 0
        try:
            if vfs is None:
                _make(path)
            self._db = apsw.Connection(str(path), vfs=vfs)
        except (apsw.Error, OSError) as error:
            raise JournalRefused(f"{path} cannot be opened as a journal: {error}") from None
        try:
            self._open(cluster_id, shard)
        except (apsw.Error, JournalRefused) as error:
            with suppress(apsw.Error):
                self._db.close()
            if isinstance(error, JournalRefused):
                raise
            raise JournalRefused(f"{path} cannot be opened as a journal: {error}") from None

    def _open(self, cluster_id: str, shard: int) -> None:
        db = self._db
        # Only `close` may copy the WAL: what is refused or has failed stays as it was found.
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        _set(db, "locking_mode", "exclusive")  # no shared memory; the shard's lock guards the file
        new = self._is_new(cluster_id, shard)
        _set(db, "journal_mode", "wal")
        _set(db, "synchronous", "FULL", expect=2)
        _set(db, "wal_autocheckpoint", 0)  # SQLite swallows errors of its own checkpoints
        db.set_wal_hook(self._on_commit)
        if new:
            with db:
                db.execute(_SCHEMA)
                db.execute("INSERT INTO identity VALUES(?, ?)", (cluster_id, shard))
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={FORMAT}")

    def _is_new(self, cluster_id: str, shard: int) -> bool:
        """Say whether the file is empty; refuse what is neither that nor ours, before any write."""
        db = self._db
        version = _number(db, "PRAGMA user_version")
        if version == 0 and _number(db, "SELECT count(*) FROM sqlite_master") == 0:
            return True
        if _number(db, "PRAGMA application_id") != APPLICATION_ID:
            raise JournalRefused(f"{self._path} is no journal of Sagacity")
        if version != FORMAT:
            raise JournalRefused(
                f"{self._path} has format version {version}; this version reads {FORMAT}"
            )
        found = db.execute("SELECT cluster_id, shard FROM identity").fetchone()
        if found != (cluster_id, shard):
            raise JournalRefused(
                f"{self._path} belongs to {found}, not to cluster {cluster_id}, shard {shard}"
            )
        return False

    def _on_commit(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def replay(self) -> Iterator[tuple[int, Batch]]:
        """Give every row in order, checked."""
        self.last = Receipt(0, GENESIS)
        try:
            for seq, chain, packed in self._db.execute(
                "SELECT seq, chain, batch FROM journal ORDER BY seq"
            ):
                yield seq, self._checked(seq, chain, packed)
        except apsw.Error as error:
            raise JournalRefused(f"{self._path} is damaged: {error}") from None

    def _checked(self, seq: int, chain: bytes, packed: bytes) -> Batch:
        if seq != self.last.seq + 1:
            raise JournalRefused(f"{self._path} is damaged: row {self.last.seq + 1} is missing")
        if chain != link(self.last.chain, seq, packed):
            raise JournalRefused(f"{self._path} is damaged: row {seq} is not what was written")
        try:
            batch = unpack_batch(packed)
        except Unreadable as error:
            raise JournalRefused(f"{self._path} is damaged at row {seq}: {error}") from None
        self.last = Receipt(seq, chain)
        return batch

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Write entries as one row and wait until it is durable."""
        if not entries:
            return self.last
        packed = pack_batch(entries, epoch, wall_ms)
        seq = self.last.seq + 1
        chain = link(self.last.chain, seq, packed)
        try:
            self._db.execute("INSERT INTO journal VALUES(?, ?, ?)", (seq, chain, packed))
            if self._wal_pages > CHECKPOINT_PAGES:
                # Not truncated: commits into room that is there already need no new length on disk,
                # which is a seventh of the throughput and of the latency of one alone.
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._wal_pages = 0
        except apsw.Error as error:
            raise JournalFailed(f"commit {seq} of {self._path}: {error}") from error
        self.last = Receipt(seq, chain)
        return self.last

    def read(self, seqs: Iterable[int]) -> list[Batch]:
        """Give single rows, in the order asked."""
        rows = []
        try:
            for seq in seqs:
                row = self._db.execute("SELECT batch FROM journal WHERE seq = ?", (seq,)).fetchone()
                if row is not None:
                    rows.append(unpack_batch(row[0]))
        except (apsw.Error, Unreadable) as error:
            raise JournalFailed(f"{self._path} cannot be read: {error}") from error
        return rows

    def size_bytes(self) -> int:
        """Give how much room the file and its WAL take."""
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close the file; SQLite copies the WAL into it."""
        self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self._db.close()


class MemoryJournal:
    """The twin: rows in a list, packed and chained alike, durable as soon as they are there."""

    def __init__(self) -> None:
        self.last = Receipt(0, GENESIS)
        self.rows: list[tuple[int, bytes, bytes]] = []

    def replay(self) -> Iterator[tuple[int, Batch]]:
        """Give every row in order, checked."""
        self.last = Receipt(0, GENESIS)
        for seq, chain, packed in self.rows:
            if seq != self.last.seq + 1 or chain != link(self.last.chain, seq, packed):
                raise JournalRefused(f"row {seq} is not what was written")
            try:
                batch = unpack_batch(packed)
            except Unreadable as error:
                raise JournalRefused(f"damaged at row {seq}: {error}") from None
            self.last = Receipt(seq, chain)
            yield seq, batch

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Keep entries as one row."""
        if not entries:
            return self.last
        packed = pack_batch(entries, epoch, wall_ms)
        seq = self.last.seq + 1
        chain = link(self.last.chain, seq, packed)
        self.rows.append((seq, chain, packed))
        self.last = Receipt(seq, chain)
        return self.last

    def read(self, seqs: Iterable[int]) -> list[Batch]:
        """Give single rows, in the order asked."""
        return [unpack_batch(self.rows[seq - 1][2]) for seq in seqs if 1 <= seq <= len(self.rows)]

    def size_bytes(self) -> int:
        """Give how much room the rows take."""
        return sum(len(packed) for _, _, packed in self.rows)

    def close(self) -> None:
        """Keep the rows: the next start reads them."""


def _make(path: Path) -> None:
    """Make the file (0600) where there is none."""
    wal = path.with_name(path.name + "-wal")
    size = path.stat().st_size if path.exists() else 0
    if size == 1:  # SQLite reads a single byte as an empty database
        raise JournalRefused(f"{path} is no database")
    if size == 0 and wal.exists() and wal.stat().st_size > 0:
        # SQLite would delete the WAL: acknowledged facts gone without a word.
        raise JournalRefused(f"{path} is damaged: its WAL is there, the file itself is gone")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _set(db: apsw.Connection, name: str, value: str | int, expect: str | int | None = None) -> None:
    """Set a pragma and read it back: SQLite answers a refusal with silence."""
    db.execute(f"PRAGMA {name}={value}").fetchall()
    got = db.execute(f"PRAGMA {name}").fetchone()
    wanted = value if expect is None else expect
    if got is None or got[0] != wanted:
        raise JournalRefused(f"SQLite does not take {name}={value}: it says {got}")


def _number(db: apsw.Connection, query: str) -> int:
    row = db.execute(query).fetchone()
    return int(row[0]) if row else 0
