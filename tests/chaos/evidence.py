"""What a stopped cluster left on disk, read row by row: journals, databases of the services.

Reads only: journals through `SqliteJournal.replay`, which checks density and chain, databases
through a read-only connection. Decides nothing; `checker` does. Knows no process and no client.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw
from msgspec import Struct

from cluster.directory import DataDirectory
from sagacity.wire import Witness
from shard.entries import OF_NO_SAGA, Entry, Opened, Started
from shard.journal import SqliteJournal

SERVICES: Final = ("inventory", "payment", "shipping")

Row = tuple[Any, ...]


class Story(Struct):
    """A saga as its journal tells it: its start, and the entries after it."""

    shard: int
    started: Started
    entries: list[Entry]


class JournalRead(Struct):
    """A journal.

    Args:
        shard: its index.
        epochs: of each row, in order.
        opened: the entries that say so.
        chains: the chain after each row, by sequence.
        stories: by number, in the order of their starts.
        strays: entries of a number that was not started before, or numbers started twice.
    """

    shard: int
    epochs: list[int]
    opened: list[Opened]
    chains: dict[int, bytes]
    stories: dict[int, Story]
    strays: list[Entry]


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
        journals = [_journal(directory, cluster.cluster_id, n) for n in range(cluster.shards)]
        services = {name: _service(directory.service(name), name) for name in SERVICES}
    finally:
        lock.release()
    return Evidence(cluster.cluster_id, cluster.slots.owners, journals, services)


def _journal(directory: DataDirectory, cluster_id: str, shard: int) -> JournalRead:
    owned = directory.own_shard(shard)
    journal = SqliteJournal(directory.journal(shard), cluster_id, shard)
    found = JournalRead(shard, [], [], {}, {}, [])
    try:
        for seq, batch in journal.replay():
            found.epochs.append(batch.epoch)
            found.chains[seq] = journal.last.chain
            for entry in batch.entries:
                _sort(found, entry)
    finally:
        journal.close()
        owned.release()
    return found


def _sort(found: JournalRead, entry: Entry) -> None:
    if isinstance(entry, Opened):
        found.opened.append(entry)
    elif isinstance(entry, OF_NO_SAGA):
        return
    elif isinstance(entry, Started) and entry.number not in found.stories:
        found.stories[entry.number] = Story(found.shard, entry, [])
    elif isinstance(entry, Started) or entry.number not in found.stories:
        found.strays.append(entry)
    else:
        found.stories[entry.number].entries.append(entry)


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
