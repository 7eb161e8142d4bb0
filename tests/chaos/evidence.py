"""What a stopped cluster left on disk, read row by row: journals, databases of the services.

Reads only: the rows after a checkpoint through `SqliteJournal.replay`, which checks density and
chain; before them the blocks of finished sagas and what is kept of the others; databases through a
read-only connection. Decides nothing; `checker` does. Knows no process and no client.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw
from msgspec import Struct

from cluster.directory import DataDirectory
from sagacity.errors import Malformed
from sagacity.wire import Witness
from shard.codec import Unreadable, unpack_block, unpack_record
from shard.entries import OF_NO_SAGA, Entry, Opened, Started
from shard.journal import JournalFailed, SqliteJournal
from shard.records import Record
from shard.store import Store

SERVICES: Final = ("inventory", "payment", "shipping")

Row = tuple[Any, ...]


class Story(Struct):
    """A saga as its journal tells it: its start, the row in which it stands, what came after."""

    shard: int
    started: Started
    seq: int
    entries: list[Entry]


class JournalRead(Struct):
    """A journal.

    Args:
        shard: its index.
        checkpoint: sequence of the last row that it stands for, 0 where there is none.
        epochs: the checkpoint's, if there is one, and of each row after it, in order.
        opened: the entries that say so, after the checkpoint.
        chains: the chain after each row, by sequence, from the checkpoint on.
        stories: by number, in the order of their numbers.
        strays: entries of a number that was not started before, or numbers started twice.
        gaps: what is missing among the finished sagas, in words.
    """

    shard: int
    checkpoint: int
    epochs: list[int]
    opened: list[Opened]
    chains: dict[int, bytes]
    stories: dict[int, Story]
    strays: list[Entry]
    gaps: list[str]


class ServiceRead(Struct):
    """A service's database.

    Args:
        name: of the service.
        barrier: key -> (saga_id, outcome, reply).
        fence: slot -> epoch.
        witnesses: the highest of each shard.
        tables: its own tables, by name.
    """

    name: str
    barrier: dict[int, tuple[str, int, bytes]]
    fence: dict[int, int]
    witnesses: list[Witness]
    tables: dict[str, list[Row]]


class Evidence(Struct):
    """All that a cluster left."""

    cluster_id: str
    owners: tuple[int, ...]
    journals: list[JournalRead]
    services: dict[str, ServiceRead]


def read(data: Path) -> Evidence:
    """Read a data directory that no process uses.

    Raises:
        SagacityError: it is in use, damaged, or no data directory.
    """
    directory = DataDirectory(data)
    lock = directory.lock()
    try:
        cluster = directory.read()
        journals = [read_journal(directory, cluster.cluster_id, n) for n in range(cluster.shards)]
        services = {name: _service(directory.service(name), name) for name in SERVICES}
    finally:
        lock.release()
    return Evidence(cluster.cluster_id, cluster.slots.owners, journals, services)


def read_journal(directory: DataDirectory, cluster_id: str, shard: int) -> JournalRead:
    """Read the journal of a shard that nobody runs.

    Raises:
        SagacityError: it is in use or damaged.
    """
    owned = directory.own_shard(shard)
    journal = SqliteJournal(directory.journal(shard), cluster_id, shard)
    found = JournalRead(shard, 0, [], [], {}, {}, [], [])
    try:
        checkpoint = journal.checkpoint()
        if checkpoint is not None:
            found.checkpoint = checkpoint.seq
            found.epochs.append(checkpoint.counts.epoch)
            found.chains[checkpoint.seq] = checkpoint.chain
            _finished(found, journal.store, checkpoint.counts.finished)
            for record in journal.kept():
                _sort_record(found, record)
        for seq, batch in journal.replay():
            found.epochs.append(batch.epoch)
            found.chains[seq] = journal.last.chain
            for entry in batch.entries:
                _sort(found, seq, entry)
    except (JournalFailed, Unreadable) as error:
        raise Malformed(f"journal {shard} is damaged: {error}") from None
    finally:
        journal.close()
        owned.release()
    found.stories = dict(sorted(found.stories.items()))
    return found


def _finished(found: JournalRead, store: Store, count: int) -> None:
    """Read the blocks: every saga that had ended by the checkpoint, in the order of their ends."""
    ordinal = 0
    for first, sealed in store.rows("SELECT first, records FROM block ORDER BY first"):
        if first != ordinal:
            found.gaps.append(f"after {ordinal} finished sagas comes a block from {first} on")
        records = unpack_block(sealed)
        for packed in records:
            _sort_record(found, unpack_record(packed))
        ordinal = first + len(records)
    if ordinal != count:
        found.gaps.append(f"blocks hold {ordinal} finished sagas, the checkpoint counts {count}")


def _sort_record(found: JournalRead, record: Record) -> None:
    for row in record:
        for entry in row.entries:
            _sort(found, row.seq, entry)


def _sort(found: JournalRead, seq: int, entry: Entry) -> None:
    number = getattr(entry, "number", None)
    if isinstance(entry, Opened):
        found.opened.append(entry)
    elif isinstance(entry, OF_NO_SAGA):
        return
    elif isinstance(entry, Started) and number not in found.stories:
        found.stories[entry.number] = Story(found.shard, entry, seq, [])
    elif isinstance(entry, Started) or number not in found.stories:
        found.strays.append(entry)
    else:
        found.stories[number].entries.append(entry)


_TABLES: Final = {
    "inventory": {
        "stock": "SELECT sku, initial, available FROM stock",
        "reservation": "SELECT id, number, step, line, sku, quantity, released FROM reservation",
    },
    "payment": {
        "payment": "SELECT id, number, step, user_id, amount, refunded FROM payment",
        "account": "SELECT user_id, balance FROM account",
        "crash": "SELECT number FROM crash",
    },
    "shipping": {"shipment": "SELECT id, number, step, address, cancelled FROM shipment"},
}


def _service(file: Path, name: str) -> ServiceRead:
    with _opened(file) as db:
        barrier = {
            key: (saga_id, outcome, reply)
            for key, saga_id, outcome, reply in _rows(
                db, "SELECT key, saga_id, outcome, reply FROM barrier"
            )
        }
        fence: dict[int, int] = dict(_rows(db, "SELECT slot, epoch FROM fence"))
        witnesses = [
            Witness(*row)
            for row in _rows(db, "SELECT cluster_id, shard, epoch, seq, chain, number FROM witness")
        ]
        tables = {table: _rows(db, query) for table, query in _TABLES[name].items()}
    return ServiceRead(name, barrier, fence, witnesses, tables)


@contextmanager
def _opened(file: Path) -> Iterator[apsw.Connection]:
    db = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        yield db
    finally:
        db.close()


def _rows(db: apsw.Connection, query: str) -> list[Row]:
    return list(db.execute(query))
