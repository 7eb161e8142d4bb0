"""Store: the one SQLite file of a shard, opened as it must be; its transactions and its WAL.

Knows pragmas, tables and errors, not what rows mean: `journal`, `generations` and `compaction` do.
Any error in a commit or sync means that its fate is unknown: the process must end, and the next
start reads what is there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from sagacity.errors import Malformed
from sagacity.sqlite import set_pragma
from sagacity.wal import HEADER_BYTES as WAL_HEADER_BYTES
from sagacity.wal import empty_wal, fault_of, sync_wal
from shard.entries import FORMAT

APPLICATION_ID = 0x53414741  # "SAGA", in the file's header
# A flipped bit can make a text of bytes; apsw then raises Python's own error.
UNREADABLE = (apsw.Error, UnicodeDecodeError)
WAL_PAGES_MAX = 1_000  # of 4 KiB in the WAL, then they are copied into the file

# What reading gives where a page is damaged: a text where bytes were, and that no UTF-8.
UNREADABLE = (apsw.Error, UnicodeDecodeError)

SCHEMA = """
CREATE TABLE identity(cluster_id TEXT NOT NULL, shard INTEGER NOT NULL) STRICT;
CREATE TABLE journal(seq INTEGER PRIMARY KEY, chain BLOB NOT NULL, batch BLOB NOT NULL) STRICT;
CREATE TABLE checkpoint(
    id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, counts BLOB NOT NULL
) STRICT;
CREATE TABLE kept(number INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
CREATE TABLE block(first INTEGER PRIMARY KEY, records BLOB NOT NULL) STRICT;
CREATE TABLE segment(id INTEGER PRIMARY KEY, head BLOB NOT NULL, prints BLOB NOT NULL) STRICT;
CREATE TABLE part(key INTEGER PRIMARY KEY, entries BLOB NOT NULL) STRICT;
"""


class JournalFailed(Exception):
    """A commit or sync failed: what became of it is unknown, and this process must end."""


class JournalFull(JournalFailed):
    """There was no room: the transaction is rolled back for certain, and nothing of it is there."""


class JournalRefused(Malformed):
    """The file is no journal of this shard, of another version, or damaged; it is left as it is."""


class Store:
    """A shard's file: WAL, synchronous=FULL, both read back. Hold the shard's lock before.

    Args:
        path: of the file; made (0600) where there is none.
        cluster_id: that it belongs to.
        shard: index that it belongs to.
        vfs: name of another apsw VFS, for tests that crash at every write.

    Attributes:
        wal_pages_max: of 4 KiB in the WAL, then they are copied into the file.

    Raises:
        JournalRefused: it is something else.
    """

    def __init__(self, path: Path, cluster_id: str, shard: int, vfs: str | None = None) -> None:
        self.path = path
        self.wal_pages_max = WAL_PAGES_MAX
        self._wal_pages = 0
        self._without_room = 0  # pages in the WAL when there was none for copying them
        self._is_as_found = False  # nothing was written to what an earlier process has left
        try:
            if vfs is None:
                _make(path)
            sync_wal(str(path), vfs or "")
            self.db = apsw.Connection(str(path), vfs=vfs)
            self._file = _identity(path) if vfs is None else None
        except (apsw.Error, OSError) as error:
            raise JournalRefused(f"{path} cannot be opened as a journal: {error}") from None
        try:
            self._open(cluster_id, shard)
        except (*UNREADABLE, Malformed) as error:
            with suppress(apsw.Error):
                self.db.close()
            if isinstance(error, JournalRefused):
                raise
            raise JournalRefused(f"{path} cannot be opened as a journal: {error}") from None

    def _open(self, cluster_id: str, shard: int) -> None:
        db = self.db
        # Only `close` may copy the WAL: what is refused or has failed stays as it was found.
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        # No shared memory; the shard's lock guards the file.
        set_pragma(db, "locking_mode", "exclusive")
        new = self._is_new(cluster_id, shard)
        fault = fault_of(db)
        if fault is not None:
            raise JournalRefused(f"{self.path} is damaged: {fault}")
        if not new:
            self._require_whole_pages()
            self._is_as_found = True
        set_pragma(db, "journal_mode", "wal")
        set_pragma(db, "synchronous", "FULL", expect=2)
        set_pragma(db, "wal_autocheckpoint", 0)  # SQLite swallows errors of its own checkpoints
        db.set_wal_hook(self._on_commit)
        if new:
            with db:
                list(db.execute(SCHEMA))
                db.execute("INSERT INTO identity VALUES(?, ?)", (cluster_id, shard))
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={FORMAT}")

    def _is_new(self, cluster_id: str, shard: int) -> bool:
        """Say whether the file is empty; refuse what is neither that nor ours, before any write."""
        db = self.db
        version = _number(db, "PRAGMA user_version")
        if version == 0 and _number(db, "SELECT count(*) FROM sqlite_master") == 0:
            return True
        if _number(db, "PRAGMA application_id") != APPLICATION_ID:
            raise JournalRefused(f"{self.path} is no journal of Sagacity")
        if version != FORMAT:
            raise JournalRefused(
                f"{self.path} has format version {version}; this version reads {FORMAT}"
            )
        found = db.execute("SELECT cluster_id, shard FROM identity").fetchone()
        if found != (cluster_id, shard):
            raise JournalRefused(
                f"{self.path} belongs to {found}, not to cluster {cluster_id}, shard {shard}"
            )
        return False

    def _require_whole_pages(self) -> None:
        """Refuse a journal whose pages hide rows: one bit says how many rows a page has.

        Of rows in the middle the chain knows, of the last ones nobody would: 0.5 ms for 1.5 MiB.
        """
        found = [line for (line,) in self.db.execute("PRAGMA quick_check(journal)")]
        if found != ["ok"]:
            raise JournalRefused(f"{self.path} is damaged: {' '.join(found)[:200]}")

    def _on_commit(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    @contextmanager
    def transaction(self) -> Iterator[apsw.Cursor]:
        """Write several rows as one transaction with one sync; nothing of it stays if it raises.

        Raises:
            JournalFull: there was no room; nothing of it is there.
            JournalFailed: its fate is unknown.
        """
        self.begin_writing()
        try:
            cursor = self.db.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    cursor.execute("ROLLBACK")
                raise
        except apsw.Error as error:
            raise self.failure("a transaction", error) from error
        self.write_back()

    def begin_writing(self) -> None:
        """Call it before a write; the first one adds nothing to the WAL that was found.

        Not when the file is opened: what is refused, by its rows or by a witness, stays as it was.

        Raises:
            JournalFull: there is no room.
            JournalFailed: a write or sync failed.
        """
        if self._is_as_found:
            try:
                empty_wal(self.db)
            except apsw.Error as error:
                raise self.failure("the first write-back", error) from error
            self._is_as_found = False

    def failure(self, what: str, error: apsw.Error) -> JournalFailed:
        """Give what an error of SQLite means; after one for room the next transaction can begin."""
        kind = JournalFull if isinstance(error, apsw.FullError) else JournalFailed
        return kind(f"{what} of {self.path}: {error}")

    def write_back(self) -> None:
        """Copy the WAL into the file if it is long; the WAL's file keeps its length.

        Not truncated: commits into room that is there already need no new length on disk, which is
        a seventh of the throughput and of the latency of one alone.

        Raises:
            JournalFailed: a sync failed.
        """
        if self._wal_pages <= self._without_room + self.wal_pages_max:
            return
        try:
            self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.FullError:
            # The WAL has it all: nothing is lost, and it is tried again when it has grown as much.
            self._without_room = self._wal_pages
            return
        except apsw.Error as error:
            raise JournalFailed(f"the write-back of {self.path}: {error}") from error
        self._wal_pages = self._without_room = 0

    def require_in_place(self) -> None:
        """Refuse a receipt where the file is not at its path any more.

        Somebody has moved or replaced it while this process stood still, and another may own what
        stands there now: both locks are of files that nobody looks at. Asked after a commit: who
        copies the file later than that has the commit, too. Costs 1 us.

        Raises:
            JournalFailed: what is committed here is in no journal of the cluster.
        """
        if self._file is not None and _identity(self.path) != self._file:
            raise JournalFailed(f"{self.path} is not the file that this process has open")

    def rows(self, query: str, *values: Any) -> list[Any]:
        """Read rows.

        Raises:
            JournalFailed: the file cannot be read.
        """
        try:
            return self.db.execute(query, values).fetchall()
        except UNREADABLE as error:
            raise JournalFailed(f"{self.path} cannot be read: {error}") from error

    def size_bytes(self) -> int:
        """Give how much room the file and its WAL take."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close the file; SQLite copies the WAL into it."""
        self.db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self.db.close()


def _make(path: Path) -> None:
    """Make the file (0600) where there is none."""
    wal = path.with_name(path.name + "-wal")
    size = path.stat().st_size if path.exists() else 0
    if size == 1:  # SQLite reads a single byte as an empty database
        raise JournalRefused(f"{path} is no database")
    if size == 0 and wal.exists() and wal.stat().st_size > WAL_HEADER_BYTES:
        # SQLite would delete the WAL: acknowledged facts gone without a word.
        raise JournalRefused(f"{path} is damaged: its WAL is there, the file itself is gone")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _identity(path: Path) -> tuple[int, int] | None:
    """Give which file stands at a path, whatever it is called elsewhere; None: none does."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        return None
    return seen.st_dev, seen.st_ino


def _number(db: apsw.Connection, query: str) -> int:
    row = db.execute(query).fetchone()
    return int(row[0]) if row else 0
