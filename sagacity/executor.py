"""A batch of commands as one transaction on a service's database; what `worker` does per turn.

Opens and makes the database, commits, rolls back, checkpoints. Knows nothing of sockets, shards'
addresses or time: a simulation drives it as well as a worker does.

    run all -> COMMIT                              the usual case: one sync for hundreds of commands
    something to undo -> ROLLBACK, run each alone  in a savepoint, so that its neighbours stay
    database full, busy or failing -> ROLLBACK     all refused as unavailable, until a write works
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw
from apsw import Connection

from sagacity import books, forgotten
from sagacity.barrier import TABLES, UNAVAILABLE, Barrier, Log, MustUndo
from sagacity.errors import Malformed
from sagacity.ranges import Range
from sagacity.service import Service
from sagacity.sqlite import set_pragma
from sagacity.wal import HEADER_BYTES as WAL_HEADER_BYTES
from sagacity.wal import empty_wal, fault_of, sync_wal
from sagacity.wire import (
    REFUSED_UNAVAILABLE,
    Answer,
    BooksAsked,
    BooksPage,
    Commands,
    Forget,
    Witness,
    answer_to,
)

FORMAT: Final = 2  # of the tables that every service's database has
OPEN_PATIENCE_MS: Final = 5_000  # for another's lock, before there is an executor that waits
ALIVE_COMMANDS: Final = 16  # between two signs of life; 10 ns a command
CHECKPOINT_PAGES: Final = 1_000  # a WAL of 4 MiB is written back

# Beside the service's own tables: whose database this is. Its row is written in the transaction
# that makes the tables and the first rows, so that it is there with all of them or with none.
_ORIGIN: Final = """
CREATE TABLE origin (
    format INTEGER NOT NULL,
    service TEXT NOT NULL,
    cluster_id TEXT NOT NULL,
    trials INTEGER NOT NULL  -- writes that only tried whether the database takes one
) STRICT;
"""


def open_file(path: Path, vfs: str | None = None) -> Connection:
    """Open a service's database, made empty (mode 0600) where there is none.

    Args:
        path: of the file.
        vfs: name of another apsw VFS, for tests that crash at every write.

    Raises:
        Malformed: it is no database, is damaged, or cannot be opened.
    """
    try:
        if vfs is None:
            _require_whole(path)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_wal(str(path), vfs or "")  # a reply that a killed worker has stored is given again
        connection = Connection(str(path)) if vfs is None else Connection(str(path), vfs=vfs)
        # Closing would copy what is left of a damaged WAL into the file, and remove it.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        if vfs is not None:
            set_pragma(connection, "locking_mode", "exclusive")  # such a VFS has no shared memory
        connection.set_busy_timeout(OPEN_PATIENCE_MS)
        _require_ours(connection, path)  # before the mode is set: that is a write
        fault = fault_of(connection)
        if fault is not None:
            raise Malformed(f"{path} is damaged: {fault}")
        set_pragma(connection, "journal_mode", "wal")
        set_pragma(connection, "synchronous", "FULL", expect=2)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        with suppress(apsw.FullError, apsw.BusyError):  # then it stays as it was found
            empty_wal(connection)
    except OSError as error:
        raise Malformed(f"cannot open {path}: {error.strerror}") from None
    except (apsw.Error, UnicodeDecodeError) as error:
        raise Malformed(f"cannot open {path}: {error}") from None
    return connection


def _require_whole(path: Path) -> None:
    """Refuse what SQLite would take for an empty database without a word."""
    wal = path.with_name(path.name + "-wal")
    size = path.stat().st_size if path.exists() else 0
    if size == 1:
        raise Malformed(f"{path} is no database")
    if size == 0 and wal.exists() and wal.stat().st_size > WAL_HEADER_BYTES:
        raise Malformed(f"{path} is damaged: its WAL is there, the file itself is gone")


def _require_ours(connection: Connection, path: Path) -> None:
    """Refuse a database that is another program's: it has tables, and not `origin`."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if tables and "origin" not in tables:
        raise Malformed(f"{path} is no database of a service of ours: it has other tables")


def make_tables(
    connection: Connection, service: Service, cluster_id: str, catalog: object = None
) -> bool:
    """Make the tables and first rows of a new database, in one transaction.

    Args:
        connection: of the database, without a transaction.
        service: whose tables they are.
        cluster_id: 32 hexadecimal digits; the database belongs to this cluster from now on.
        catalog: for the service's `seed`.

    Returns:
        Whether it was new. One that has its tables is left as it is.

    Raises:
        Malformed: it belongs to another service or cluster, or has an unknown format; or the
            database does not take the tables.
    """
    db = connection.cursor()
    try:
        db.execute("BEGIN IMMEDIATE")
        made = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'origin'").get is None
        if made:
            for script in (_ORIGIN, TABLES, forgotten.TABLES, service.schema):
                list(db.execute(script))
            if service.seed is not None:
                service.seed(db, catalog)
            db.execute("INSERT INTO origin VALUES (?, ?, ?, 0)", (FORMAT, service.name, cluster_id))
        found = db.execute("SELECT format, service, cluster_id FROM origin").get
        db.execute("COMMIT")
    except (apsw.Error, UnicodeDecodeError) as error:
        raise Malformed(f"cannot make the tables of {service.name}: {error}") from error
    finally:
        if connection.in_transaction:
            db.execute("ROLLBACK")
    expected = (FORMAT, service.name, cluster_id)
    if found != expected:
        raise Malformed(f"this database is of (format, service, cluster) {found}, not {expected}")
    return made


class BatchExecutor:
    """Runs batches of commands on one database.

    Args:
        connection: with the tables of `make_tables`.
        service: whose handlers run.
        log: for faults.
        wait: called while another connection has the lock, with the number of calls before; False
            gives up. None: never waits.
        alive: called now and then during a long transaction, so that its worker is not taken for
            a hung one.
        checkpoint_pages: length of the WAL that `tidy` writes back.

    After a batch that the database could not take `available` is False, and every command is
    refused until `try_write` succeeds.
    """

    def __init__(
        self,
        connection: Connection,
        service: Service,
        log: Log,
        *,
        wait: Callable[[int], bool] | None = None,
        alive: Callable[[], None] | None = None,
        checkpoint_pages: int = CHECKPOINT_PAGES,
    ) -> None:
        self.available = True
        self.replays = 0  # batches that were run again one by one
        self._connection = connection
        self._service = service
        self._log = log
        self._db = connection.cursor()
        self._barrier = Barrier(connection, service, log)
        self._barrier.load()
        self._version = self._foreign_writes()
        self._alive = alive or _nothing
        self._wal_pages = 0
        self._checkpoint_pages = self._checkpoint_at = checkpoint_pages
        connection.set_busy_handler(wait)
        connection.set_wal_hook(self._on_commit)  # in place of SQLite's own checkpoints

    @property
    def repeated(self) -> int:
        """Answers that came out of stored replies, since the start."""
        return self._barrier.repeated

    def witnesses(self) -> list[Witness]:
        """Give the highest witness that the database holds of each shard, whoever wrote it.

        Raises:
            UNAVAILABLE: the database cannot be read.
        """
        version = self._foreign_writes()
        if version != self._version:
            self._version = version
            self._barrier.load()
        return list(self._barrier.witnesses.values())

    def execute(self, batches: Sequence[Commands]) -> list[list[Answer]]:
        """Perform all commands in one transaction; they are durable when this returns.

        Returns:
            For each batch its answers, in order.

        Raises:
            apsw.Error: the commit failed, and not for room: nobody knows what the file holds.
                The process has to end.
        """
        if not self.available:
            return _refuse(batches)
        repeated = self._barrier.repeated
        try:
            self._begin()
            try:
                answers = self._run(batches, alone=False)
            except MustUndo:
                self._undo()
                self._barrier.repeated = repeated
                self.replays += 1
                self._begin()
                answers = self._run(batches, alone=True)
        except UNAVAILABLE as error:
            return self._unavailable(batches, error)
        try:
            self._db.execute("COMMIT")
        except (apsw.FullError, apsw.BusyError) as error:
            return self._unavailable(batches, error)
        return answers

    def forget(self, asked: Forget) -> list[Range] | None:
        """Forget what a list names, as much as one turn should take, in a transaction of its own.

        Returns:
            What is left of its ranges, all of it while the database is not available; the rest is
            durable. None for a list that does not count.

        Raises:
            apsw.Error: as `execute` does.
        """
        if not self.available:
            return asked.ranges
        try:
            self._begin()
            left = self._barrier.forget(asked)
        except UNAVAILABLE as error:
            self._give_up(error)
            return asked.ranges
        try:
            self._db.execute("COMMIT")
        except (apsw.FullError, apsw.BusyError) as error:
            self._give_up(error)
            return asked.ranges
        return left

    def try_write(self) -> bool:
        """Try whether the database takes a write again; say whether it does."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("UPDATE origin SET trials = trials + 1")
            self._db.execute("COMMIT")
            self._barrier.load()
        except UNAVAILABLE:
            self._undo()
            return False
        self.available = True
        self._log.info("database_available", service=self._service.name)
        return True

    def tidy(self) -> None:
        """Write the WAL back if it is long. Call it when the answers have left.

        Raises:
            apsw.Error: a sync failed: the process has to end.
        """
        if self._wal_pages < self._checkpoint_at:
            return
        try:
            pages, written = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.FullError, apsw.BusyError) as error:
            self._log.warning("checkpoint_failed", service=self._service.name, error=repr(error))
            pages, written = self._wal_pages, 0
        # What a reader still needs cannot be written back: try again when it has grown as much.
        self._checkpoint_at = self._checkpoint_pages + max(pages - written, 0)
        self._wal_pages = 0

    def read_books(self, asked: BooksAsked) -> BooksPage:
        """Give a page of the service's books, or an error: whatever is asked, the worker lives."""
        return books.page_of(self._service, self._connection, asked, self._log)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        version = self._foreign_writes()
        if version != self._version:
            self._version = version
            self._barrier.load()

    def _foreign_writes(self) -> object:
        """Give a value that changes when another connection commits."""
        return self._db.execute("PRAGMA data_version").get

    def _run(self, batches: Sequence[Commands], *, alone: bool) -> list[list[Answer]]:
        barrier, answer = self._barrier, self._barrier.answer
        answers = []
        for batch in batches:
            barrier.see(batch.witness)
            done: list[Answer] = []
            for at in range(0, len(batch.items), ALIVE_COMMANDS):
                some = batch.items[at : at + ALIVE_COMMANDS]
                done += [answer(command, alone=alone) for command in some]
                self._alive()
            answers.append(done)
        return answers

    def _undo(self) -> None:
        if self._connection.in_transaction:
            self._db.execute("ROLLBACK")
        with suppress(*UNAVAILABLE):  # a database that cannot be read is read by try_write
            self._barrier.load()

    def _unavailable(self, batches: Sequence[Commands], error: Exception) -> list[list[Answer]]:
        self._give_up(error)
        return _refuse(batches)

    def _give_up(self, error: Exception) -> None:
        """Undo a transaction that the database could not take, until `try_write` succeeds."""
        self.available = False
        self._undo()
        self._log.error("database_unavailable", service=self._service.name, error=repr(error))

    def _on_commit(self, _: Connection, __: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK


def _nothing() -> None:
    """Do nothing."""


def _refuse(batches: Sequence[Commands]) -> list[list[Answer]]:
    return [
        [answer_to(command, REFUSED_UNAVAILABLE, b"") for command in batch.items]
        for batch in batches
    ]
