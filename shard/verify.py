"""Verify: whether a stopped shard's journal is what its shard wrote; changes no byte of it.

python -P -m shard verify --data DIR [--parent PID]

One line of JSON a shard on stdout. The caller keeps the cluster from starting meanwhile.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import apsw
import msgspec
from msgspec import Struct

from cluster.child import die_with
from cluster.directory import DataDirectory
from cluster.resting import opened
from sagacity.errors import SagacityError
from sagacity.ids import shard_of
from shard.codec import (
    GENESIS,
    Unreadable,
    as_bytes,
    link,
    unpack_batch,
    unpack_block,
    unpack_checkpoint,
    unpack_record,
    unpack_segment,
    unseal,
)
from shard.entries import FORMAT, Finished, Opened, Ran, Started
from shard.records import Record, is_of
from shard.segments import ENTRY_BYTES, HASH_BYTES, Prints, entries_in, entry_of
from shard.state import Checkpoint
from shard.store import APPLICATION_ID

EXIT_INTERRUPTED = 128 + signal.SIGINT  # as shells count
_TAIL = "SELECT seq, chain, batch FROM journal WHERE seq > ? ORDER BY seq"
FAULTS_MAX = 100  # told of one shard; the rest is counted as one more


class Found(Struct):
    """What a journal holds.

    Args:
        shard: its index.
        checkpoint: rows up to this one are stood for by the checkpoint; 0 without one.
        rows: behind it.
        last_seq: of the last row; 0 without any.
        chain: the hash over all rows, 32 hexadecimal digits.
        finished: sagas that had ended by the checkpoint.
        epoch: how often the shard was taken over.
        faults: a sentence for each thing that is not as it was written.
    """

    shard: int
    checkpoint: int = 0
    rows: int = 0
    last_seq: int = 0
    chain: str = GENESIS.hex()
    finished: int = 0
    epoch: int = 0
    faults: list[str] = msgspec.field(default_factory=list)


def verify(path: Path, cluster_id: str, shard: int) -> Found:
    """Read a journal from its first byte to its last.

    Args:
        path: of the file.
        cluster_id: that it should belong to.
        shard: index that it should belong to.
    """
    found = Found(shard)
    try:
        with opened(path) as db:
            for fault in faults_of(db, cluster_id, shard, found):
                found.faults.append(fault)
                if len(found.faults) == FAULTS_MAX:
                    found.faults.append(f"more than {FAULTS_MAX} faults: the rest is not told")
                    break
    except apsw.Error as error:
        found.faults.append(f"cannot be read after row {found.last_seq}: {error}")
    except OSError as error:
        found.faults.append(f"cannot be read: {error.strerror} ({error.filename})")
    return found


def faults_of(db: apsw.Connection, cluster_id: str, shard: int, found: Found) -> Iterator[str]:
    """Give a sentence for each fault, and note what was read; changes nothing.

    Raises:
        apsw.Error: the file cannot be read any further.
    """
    application, version = _pragma(db, "application_id"), _pragma(db, "user_version")
    if application == version == 0 and not _pragma(db, "schema_version"):
        yield "it is empty: its shard never served, or what it held is gone"
        return
    if application != APPLICATION_ID:
        yield "it is no journal of Sagacity"
        return
    if version != FORMAT:
        yield f"it has format version {version}; this version of Sagacity reads {FORMAT}"
        return
    whose = db.execute("SELECT cluster_id, shard FROM identity").fetchall()
    if whose != [(cluster_id, shard)]:
        yield f"it belongs to {whose}, not to cluster {cluster_id}, shard {shard}"
    yield from (
        f"the file is damaged: {line}"
        for (line,) in db.execute("PRAGMA quick_check(20)")
        if line != "ok"
    )
    try:
        checkpoint = _checkpoint(db)
    except Unreadable as error:
        yield f"the checkpoint is not what was written: {error}"
        return
    if checkpoint is not None:
        counts = checkpoint.counts
        found.checkpoint = found.last_seq = checkpoint.seq
        found.chain, found.epoch, found.finished = (
            checkpoint.chain.hex(),
            counts.epoch,
            counts.finished,
        )
    yield from _rows(db, cluster_id, shard, found, checkpoint)
    yield from _kept(db)
    yield from _generations(db, found.finished)


def _checkpoint(db: apsw.Connection) -> Checkpoint | None:
    rows = db.execute("SELECT id, seq, counts FROM checkpoint").fetchall()
    if not rows:
        return None
    if [row[0] for row in rows] != [1]:
        raise Unreadable("there is not one of it")
    [(_, seq, sealed)] = rows
    checkpoint = unpack_checkpoint(sealed)
    if checkpoint.seq != seq:
        raise Unreadable(f"it is of row {checkpoint.seq}, not of row {seq}")
    return checkpoint


def _rows(
    db: apsw.Connection, cluster_id: str, shard: int, found: Found, checkpoint: Checkpoint | None
) -> Iterator[str]:
    """Check the rows behind the checkpoint; what is still there before it means nothing."""
    chain = GENESIS if checkpoint is None else checkpoint.chain
    highest = 0 if checkpoint is None else checkpoint.counts.number
    ran_ms = 0 if checkpoint is None else checkpoint.counts.ran_ms
    for seq, stored, packed in db.execute(_TAIL, (found.checkpoint,)):
        follows = seq == found.last_seq + 1
        if not follows:
            yield f"rows are missing: row {seq} follows row {found.last_seq}"
        found.rows, found.last_seq = found.rows + 1, seq
        try:
            if follows and as_bytes(stored) != link(chain, seq, as_bytes(packed)):
                yield f"row {seq} is not what was written: its chain does not fit"
            # From here on the chain is taken as it stands: one flipped bit is one fault.
            chain, found.chain = as_bytes(stored), as_bytes(stored).hex()
            batch = unpack_batch(as_bytes(packed))
        except Unreadable as error:
            yield f"row {seq} cannot be read: {error}"
            continue
        for entry in batch.entries:
            if isinstance(entry, Opened):
                if (entry.cluster_id, entry.shard) != (cluster_id, shard):
                    yield f"row {seq} was written for {entry.cluster_id}, shard {entry.shard}"
                if entry.epoch <= found.epoch:
                    yield f"row {seq}: epoch {entry.epoch} follows epoch {found.epoch}"
                found.epoch = entry.epoch
            elif isinstance(entry, Started):
                if entry.number <= highest or shard_of(entry.number) != shard:
                    yield f"row {seq}: number {entry.number} was given after {highest}"
                highest = entry.number
            elif isinstance(entry, Ran):
                if entry.ran_ms < ran_ms:
                    yield f"row {seq}: the shard had run {entry.ran_ms} ms, after {ran_ms} ms"
                ran_ms = entry.ran_ms
        if batch.epoch != found.epoch:
            yield f"row {seq} was written in epoch {batch.epoch}, not in {found.epoch}"


def _kept(db: apsw.Connection) -> Iterator[str]:
    """Check the records of sagas that had not ended by the checkpoint."""
    for number, sealed in db.execute("SELECT number, record FROM kept ORDER BY number"):
        try:
            record = unpack_record(unseal(sealed))
        except Unreadable as error:
            yield f"what is kept of saga {number} is not what was written: {error}"
            continue
        if not record or not isinstance(record[0].entries[0], Started):
            yield f"what is kept of saga {number} does not begin with its start"
        if not is_of(record, number):
            yield f"what is kept of saga {number} is of another saga"


def _generations(db: apsw.Connection, finished: int) -> Iterator[str]:
    """Check the finished sagas, and that the segments know the id of each: a wrong no runs twice.

    Ids and ordinals are added up on both sides: one that is missing or changed makes the sums
    differ, and a million of them need no memory.
    """
    blocks, segments = _Sum(), _Sum()
    oldest = at = None
    for first, sealed in db.execute("SELECT first, records FROM block ORDER BY first"):
        oldest = first if oldest is None else oldest
        if at not in (None, first):
            yield f"finished sagas are missing: {first} follows {at}"
        try:
            saga_ids = [_ended(unpack_record(each)) for each in unpack_block(sealed)]
        except Unreadable as error:
            yield f"finished sagas from {first} on are not what was written: {error}"
            at, blocks.is_whole = None, False
            continue
        for ordinal, saga_id in enumerate(saga_ids, first):
            blocks.add(entry_of(saga_id, ordinal))
        at = first + len(saga_ids)
    if at not in (None, finished):
        yield f"finished sagas are missing: the last one is {at}, and {finished} had ended"
    yield from _segments(db, finished if oldest is None else oldest, segments)
    if blocks.is_whole and segments.is_whole and blocks != segments:
        yield (
            f"the segments know {segments.count} ids of finished sagas, the blocks {blocks.count}, "
            "and they are not the same"
        )


def _segments(db: apsw.Connection, oldest: int, known: "_Sum") -> Iterator[str]:
    """Check the segments; add up their entries of sagas that stand in blocks."""
    for segment_id, head, prints in db.execute("SELECT id, head, prints FROM segment"):
        try:
            segment = unpack_segment(head)
            if segment.id != segment_id:
                yield f"segment {segment_id} says that it is segment {segment.id}"
            if not segment.live:
                continue  # half made, or in another: swept at the next start
            size = 0
            for key in segment.part_keys():
                row = db.execute("SELECT entries FROM part WHERE key = ?", (key,)).fetchone()
                if row is None:
                    raise Unreadable(f"part {key} is missing")
                entries = entries_in(unseal(row[0]), segment.width)
                size += len(entries)
                for entry in entries if segment.width == ENTRY_BYTES else ():
                    if int.from_bytes(entry[HASH_BYTES:], "big") >= oldest:
                        known.add(entry)
            in_memory = Prints.unpack(unseal(prints)).size
        except Unreadable as error:
            yield f"segment {segment_id} is not what was written: {error}"
            known.is_whole = False
            continue
        if not size == in_memory == segment.size:
            yield f"segment {segment_id} has {size} ids and {in_memory} prints of {segment.size}"


def _ended(record: Record) -> str:
    """Give the id of the saga whose whole record this is."""
    entries = [entry for row in record for entry in row.entries]
    if not entries or not isinstance(entries[-1], Finished) or not isinstance(entries[0], Started):
        raise Unreadable("a record does not go from a start to an end")
    return entries[0].saga_id


class _Sum(Struct):
    """A sum over entries, whatever their order; not whole where some could not be read."""

    count: int = 0
    total: int = 0
    is_whole: bool = True

    def add(self, entry: bytes) -> None:
        """Add an entry, as a number that no other sum of few entries gives by chance."""
        self.count += 1
        self.total += int.from_bytes(blake2b(entry, digest_size=16).digest(), "big")


def _pragma(db: apsw.Connection, name: str) -> int:
    row = db.execute(f"PRAGMA {name}").fetchone()
    return int(row[0]) if row else 0


def main(argv: Sequence[str]) -> int:
    """Verify every shard of a directory; an exit code of SPEC 4, 0 also where there are faults."""
    parser = argparse.ArgumentParser(prog="python -m shard verify", allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--parent", type=int, metavar="PID")
    args = parser.parse_args(argv)
    if args.parent is not None:
        die_with(args.parent, signal.SIGINT)  # as from a terminal: the copies are removed
    try:
        return _verify_all(DataDirectory(args.data))
    except SagacityError as error:
        sys.stderr.write(f"{error.text}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _verify_all(data: DataDirectory) -> int:
    cluster = data.read()
    for index in range(cluster.shards):
        found = verify(data.journal(index), cluster.cluster_id, index)
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.buffer.flush()
    return 0
