"""Journal: the shard's facts on disk, one row per group commit, one sync each (DESIGN 4).

Knows rows and bytes, not what entries mean. A receipt is given only for what is durable; nothing
leaves the shard without one. Any error in a commit means that its fate is unknown: the process
must end, and the next start reads what is there.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import apsw
from msgspec import Struct

from shard.codec import (
    GENESIS,
    Unreadable,
    link,
    pack_batch,
    unpack_batch,
    unpack_checkpoint,
    unpack_record,
    unseal,
)
from shard.entries import Batch, Entry
from shard.records import Record, Row, is_of, thinned
from shard.state import Checkpoint
from shard.store import UNREADABLE, JournalFailed, JournalFull, JournalRefused, Store

__all__ = [
    "Journal",
    "JournalFailed",
    "JournalFull",
    "JournalRefused",
    "MemoryJournal",
    "Receipt",
    "SqliteJournal",
]


_ROW = "SELECT batch FROM journal WHERE seq = ?"


class Receipt(Struct, frozen=True, gc=False):
    """Everything up to `seq` is on disk; `chain` is the hash over it."""

    seq: int
    chain: bytes


class Journal(Protocol):
    """Where a shard's facts are kept. Two implementations pass the same conformance tests."""

    @property
    def last(self) -> Receipt:
        """What everything that is written has come to."""

    def checkpoint(self) -> Checkpoint | None:
        """Give what stands for the rows that are gone; None while all rows are there.

        Raises:
            JournalRefused: it is not what was written.
        """

    def kept(self) -> Iterator[Record]:
        """Give the record of each saga that had not ended by the checkpoint, by its number.

        Raises:
            JournalRefused: one is not what was written.
        """

    def replay(self) -> Iterator[tuple[int, Batch]]:
        """Give every row after the checkpoint in order, checked: dense, chained, readable.

        Raises:
            JournalRefused: a row is not what was written.
        """

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Write entries as one row and wait until it is durable.

        Returns:
            The new last receipt; the old one if there are no entries.

        Raises:
            JournalFull: there was no room; nothing of it is there, and the next one may succeed.
            JournalFailed: its fate is unknown.
        """

    def chain_at(self, seq: int) -> bytes | None:
        """Give the chain at a row, or at the checkpoint; None where neither is there.

        Raises:
            JournalFailed: the file cannot be read.
        """

    def history(self, number: int, seqs: Iterable[int]) -> Record:
        """Give what is kept of a saga, and of these rows those that are still there.

        Raises:
            JournalFailed: the file cannot be read, or holds what was not written.
        """

    def size_bytes(self) -> int:
        """Give how much room it takes."""

    def close(self) -> None:
        """Let go of it."""


class SqliteJournal:
    """A journal in a shard's file, one row and one sync a commit.

    Hold the shard's lock before. `replay` must be read to its end before the first commit.

    Args:
        path: of the file; made (0600) where there is none.
        cluster_id: that it belongs to.
        shard: index that it belongs to.
        vfs: name of another apsw VFS, for tests that crash at every write.

    Attributes:
        store: the file.
        checkpoint_seq: rows up to this one are stood for by the checkpoint.
        tail_bytes: of the rows behind it.

    Raises:
        JournalRefused: it is something else.
    """

    def __init__(self, path: Path, cluster_id: str, shard: int, vfs: str | None = None) -> None:
        self._path = path
        self.last = Receipt(0, GENESIS)
        self.store = Store(path, cluster_id, shard, vfs)
        self._db = self.store.db
        self.checkpoint_seq = 0
        self.tail_bytes = 0
        self._sizes: deque[tuple[int, int]] = deque()  # seq and bytes of the rows of the tail

    def checkpoint(self) -> Checkpoint | None:
        """Give what stands for the rows that are gone; None while all rows are there."""
        try:
            row = self._db.execute("SELECT seq, counts FROM checkpoint").fetchone()
            if row is None:
                return None
            found = unpack_checkpoint(row[1])
        except UNREADABLE as error:
            raise JournalRefused(f"{self._path} is damaged: {error}") from None
        except Unreadable as error:
            raise JournalRefused(f"{self._path} is damaged in its checkpoint: {error}") from None
        if found.seq != row[0]:
            raise JournalRefused(f"{self._path} is damaged: its checkpoint is not of row {row[0]}")
        return found

    def kept(self) -> Iterator[Record]:
        """Give the record of each saga that had not ended by the checkpoint, by its number."""
        checkpoint, count = self.checkpoint(), 0
        try:
            for number, sealed in self._db.execute("SELECT number, record FROM kept ORDER BY 1"):
                count += 1
                yield self._read(number, sealed)
        except UNREADABLE as error:
            raise JournalRefused(f"{self._path} is damaged: {error}") from None
        except Unreadable as error:
            raise JournalRefused(f"{self._path} is damaged in what it keeps: {error}") from None
        running = checkpoint.counts.running if checkpoint else -1
        if running not in (-1, count):  # a flipped bit in a page's header hides its rows
            raise JournalRefused(
                f"{self._path} is damaged: it keeps {count} sagas of {running} that had not ended"
            )

    def replay(self) -> Iterator[tuple[int, Batch]]:
        """Give every row after the checkpoint in order, checked."""
        checkpoint = self.checkpoint()
        self.last = Receipt(checkpoint.seq, checkpoint.chain) if checkpoint else Receipt(0, GENESIS)
        self.checkpoint_seq, self.tail_bytes = self.last.seq, 0
        self._sizes.clear()
        try:
            for seq, chain, packed in self._db.execute(
                "SELECT seq, chain, batch FROM journal WHERE seq > ? ORDER BY seq",
                (self.checkpoint_seq,),
            ):
                yield seq, self._checked(seq, chain, packed)
        except UNREADABLE as error:
            raise JournalRefused(f"{self._path} is damaged: {error}") from None

    def _checked(self, seq: int, chain: bytes, packed: bytes) -> Batch:
        if seq != self.last.seq + 1:
            raise JournalRefused(f"{self._path} is damaged: row {self.last.seq + 1} is missing")
        whole = type(chain) is bytes and type(packed) is bytes  # a damaged page gives anything
        if not whole or chain != link(self.last.chain, seq, packed):
            raise JournalRefused(f"{self._path} is damaged: row {seq} is not what was written")
        try:
            batch = unpack_batch(packed)
        except Unreadable as error:
            raise JournalRefused(f"{self._path} is damaged at row {seq}: {error}") from None
        self._took(Receipt(seq, chain), len(packed))
        return batch

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Write entries as one row and wait until it is durable."""
        if not entries:
            return self.last
        packed = pack_batch(entries, epoch, wall_ms)
        seq = self.last.seq + 1
        chain = link(self.last.chain, seq, packed)
        self.store.begin_writing()
        try:
            self._db.execute("INSERT INTO journal VALUES(?, ?, ?)", (seq, chain, packed))
        except apsw.Error as error:
            raise self.store.failure(f"commit {seq}", error) from error
        self.store.require_in_place()
        self._took(Receipt(seq, chain), len(packed))
        self.store.write_back()
        return self.last

    def chain_at(self, seq: int) -> bytes | None:
        """Give the chain at a row, or at the checkpoint; None where neither is there."""
        found = self.store.rows("SELECT chain FROM journal WHERE seq = ?", seq)
        if found:
            return bytes(found[0][0])
        checkpoint = self.checkpoint()
        return checkpoint.chain if checkpoint and checkpoint.seq == seq else None

    def _took(self, receipt: Receipt, size: int) -> None:
        self.last = receipt
        self.tail_bytes += size
        self._sizes.append((receipt.seq, size))

    def history(self, number: int, seqs: Iterable[int]) -> Record:
        """Give what is kept of a saga, and of these rows those that are still there."""
        rows = self.kept_record(number)
        try:
            for seq in seqs:
                if seq > self.checkpoint_seq:
                    packed: Any = self._db.execute(_ROW, (seq,)).get
                    batch = unpack_batch(packed)
                    rows.append(Row(seq, batch.wall_ms, batch.entries))
        except (*UNREADABLE, Unreadable) as error:
            raise JournalFailed(f"{self._path} cannot be read: {error}") from error
        return thinned(rows) if rows and rows[0].seq <= self.checkpoint_seq else rows

    # -- for the compaction ---------------------------------------------------------------------

    def kept_record(self, number: int) -> Record:
        """Give what a compaction has kept of a saga; nothing where it has not.

        Raises:
            JournalFailed: the file cannot be read, or holds what was not written.
        """
        found = self.store.rows("SELECT record FROM kept WHERE number = ?", number)
        try:
            return self._read(number, found[0][0]) if found else []
        except Unreadable as error:
            raise JournalFailed(f"{self._path} is damaged in what it keeps: {error}") from None

    def slices(self, upto: int, size: int) -> Iterator[list[tuple[int, Batch]]]:
        """Give the rows after the checkpoint up to `upto`, some `size` bytes at a time.

        Raises:
            JournalFailed: the file cannot be read, or holds what was not written.
        """
        begin, taken = self.checkpoint_seq, 0
        # Commits add to the sizes meanwhile.
        for end, length in [each for each in self._sizes if each[0] <= upto]:
            taken += length
            if taken < size and end != upto:
                continue
            rows = self.store.rows(
                "SELECT seq, batch FROM journal WHERE seq > ? AND seq <= ? ORDER BY seq", begin, end
            )
            try:
                yield [(seq, unpack_batch(packed)) for seq, packed in rows]
            except Unreadable as error:
                raise JournalFailed(f"{self._path} is damaged: {error}") from None
            begin, taken = end, 0

    def checkpointed(self, seq: int) -> None:
        """A checkpoint that stands for the rows up to `seq` is durable."""
        self.checkpoint_seq = seq
        while self._sizes and self._sizes[0][0] <= seq:
            self.tail_bytes -= self._sizes.popleft()[1]

    @staticmethod
    def _read(number: int, sealed: bytes) -> Record:
        record = unpack_record(unseal(sealed))
        if not is_of(record, number):
            raise Unreadable(f"the record of {number} is of another saga")
        return record

    # -------------------------------------------------------------------------------------------

    def size_bytes(self) -> int:
        """Give how much room the file and its WAL take."""
        return self.store.size_bytes()

    def close(self) -> None:
        """Close the file; SQLite copies the WAL into it."""
        self.store.close()


class MemoryJournal:
    """The twin: rows in a list, packed and chained alike, durable as soon as they are there."""

    def __init__(self) -> None:
        self.last = Receipt(0, GENESIS)
        self.rows: list[tuple[int, bytes, bytes]] = []

    def checkpoint(self) -> Checkpoint | None:
        """Give none: no row is ever gone."""
        return None

    def kept(self) -> Iterator[Record]:
        """Give nothing, as there is no checkpoint."""
        return iter(())

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

    def chain_at(self, seq: int) -> bytes | None:
        """Give the chain at a row: none is ever gone."""
        return self.rows[seq - 1][1] if 1 <= seq <= len(self.rows) else None

    def history(self, number: int, seqs: Iterable[int]) -> Record:  # noqa: ARG002 - keeps rows
        """Give these rows: none is ever gone."""
        batches = ((seq, unpack_batch(self.rows[seq - 1][2])) for seq in seqs)
        return [Row(seq, batch.wall_ms, batch.entries) for seq, batch in batches]

    def size_bytes(self) -> int:
        """Give how much room the rows take."""
        return sum(len(packed) for _, _, packed in self.rows)

    def close(self) -> None:
        """Keep the rows: the next start reads them."""
