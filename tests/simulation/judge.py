"""Judge: what must hold when a run is over, read from the rows of journals and databases and from
what clients heard. The numbers are those of the proof's invariants.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import apsw
from msgspec import Struct, field

from sagacity import wire
from sagacity.ids import ACTION
from sagacity.wire import Answer
from shard.entries import Finished, Opened, Started, TurnedBack
from shard.journal import JournalRefused, MemoryJournal
from shard.phases import COMPLETED
from tests.simulation.clients import Clients
from tests.simulation.cluster import Cluster


class _Saga(Struct):
    """A saga as its journal tells it."""

    started: Started
    shard: int
    succeeded: list[int] = field(default_factory=list)  # steps whose action's success is written
    declined: list[int] = field(default_factory=list)
    compensated: list[int] = field(default_factory=list)
    turned_back: int = 0
    finished: Finished | None = None

    @property
    def completed(self) -> bool:
        return self.finished is not None and self.finished.phase == COMPLETED


def judge(cluster: Cluster, clients: Clients) -> list[str]:
    """Give what does not hold."""
    faults: list[str] = []
    sagas: dict[int, _Saga] = {}
    for shard, rows in cluster.journals.items():
        faults += _journal(shard, rows, sagas)
    faults += _sagas(sagas)
    faults += _heard(clients, sagas)
    faults += _services(cluster, sagas)
    return faults


def _journal(
    shard: int, rows: list[tuple[int, bytes, bytes]], sagas: dict[int, _Saga]
) -> Iterator[str]:
    """3 and 4: dense and chained, epochs never fall, every entry where it may be."""
    journal = MemoryJournal()
    journal.rows = rows
    epoch = 0
    try:
        for seq, batch in journal.replay():
            if batch.epoch < epoch:
                yield f"3: shard {shard} row {seq}: epoch {batch.epoch} after {epoch}"
            epoch = batch.epoch
            for entry in batch.entries:
                if isinstance(entry, Started):
                    if entry.number in sagas:
                        yield f"1: number {entry.number} was given twice"
                    sagas[entry.number] = _Saga(entry, shard)
                elif not isinstance(entry, Opened) and hasattr(entry, "number"):
                    yield from _entry(entry, sagas.get(entry.number))
    except JournalRefused as error:
        yield f"3: shard {shard}: {error.text}"


def _entry(entry: Any, saga: _Saga | None) -> Iterator[str]:
    if saga is None:
        yield f"4: {entry} is of no saga"
    elif saga.finished is not None:
        yield f"4: {entry} comes after the end"
    elif isinstance(entry, TurnedBack):
        saga.turned_back += 1
    elif isinstance(entry, Finished):
        saga.finished = entry
    elif isinstance(entry, Answer):
        ok = entry.outcome == wire.OK
        if entry.direction == ACTION and ok:
            saga.succeeded.append(entry.step)
        elif entry.direction == ACTION and entry.outcome == wire.DECLINED:
            saga.declined.append(entry.step)
        elif ok:
            saga.compensated.append(entry.step)


def _sagas(sagas: dict[int, _Saga]) -> Iterator[str]:
    """1, 5 and 6: each id once, all finished, in the order that a saga has."""
    for saga_id, count in Counter(saga.started.saga_id for saga in sagas.values()).items():
        if count > 1:
            yield f"1: {saga_id} was started {count} times"
    orders = Counter((s.started.slot, s.started.order_count) for s in sagas.values())
    for order, count in orders.items():
        if count > 1:
            yield f"1: the order number {order} was given {count} times"
    for saga in sagas.values():
        name = saga.started.saga_id
        if saga.finished is None:
            yield f"5: {name} has not finished"
        elif saga.completed:
            if saga.succeeded != [1, 2, 3] or saga.compensated or saga.turned_back:
                yield f"6: {name} completed with {saga}"
        else:
            if saga.turned_back != 1:
                yield f"6: {name} aborted and turned back {saga.turned_back} times"
            if saga.compensated != sorted(set(saga.compensated), reverse=True):
                yield f"6: {name} was compensated in the order {saga.compensated}"
            left = set(saga.succeeded) - set(saga.compensated)
            if left:
                yield f"6: {name} aborted, its steps {left} succeeded and were not compensated"


def _heard(clients: Clients, sagas: dict[int, _Saga]) -> Iterator[str]:
    """1 and 2: what was acknowledged is there; a final answer never changes."""
    by_id = {saga.started.saga_id: saga for saga in sagas.values()}
    told: dict[str, tuple[Any, Any]] = {}
    for heard in clients.heard:
        if heard.code == 13:
            yield f"a bug was answered: {heard}"
        if heard.code is not None or heard.ask.kind == wire.SHOW:
            continue
        saga = by_id.get(heard.saga_id)
        if saga is None:
            yield f"1: {heard.saga_id} was acknowledged and is in no journal"
        elif heard.final and saga.finished is not None:
            said = heard.body["status"], heard.body.get("order_id", heard.body.get("reason"))
            if told.setdefault(heard.saga_id, said) != said:
                yield f"2: {heard.saga_id} was told {told[heard.saga_id]} and {said}"
            if (said[0] == "COMPLETED") != saga.completed:
                yield f"2: {heard.saga_id} was told {said}, its journal says another"


def _services(cluster: Cluster, sagas: dict[int, _Saga]) -> Iterator[str]:
    """7 to 10: what services hold is what completed sagas asked for, each once."""
    rows = {name: _Rows(database) for name, database in cluster.databases.items()}
    held: Counter[int] = Counter()
    reserved: Counter[str] = Counter()
    for number, sku, quantity, released in rows["inventory"](
        "SELECT number, sku, quantity, released FROM reservation"
    ):
        if not released:
            held[number] += 1
            reserved[sku] += quantity
        yield from _known("reservation", number, sagas)
    for sku, initial, available in rows["inventory"]("SELECT sku, initial, available FROM stock"):
        if initial - available != reserved[sku]:
            yield f"8: {sku}: {initial} = {available} + {reserved[sku]} does not hold"
    charged: dict[int, int] = {}
    for number, amount, refunded in rows["payment"](
        "SELECT number, amount, refunded FROM payment"
    ):
        charged[number] = amount - refunded
        yield from _known("payment", number, sagas)
    shipped: dict[int, bool] = {}
    for number, cancelled in rows["shipping"]("SELECT number, cancelled FROM shipment"):
        shipped[number] = not cancelled
        yield from _known("shipment", number, sagas)
    for number, saga in sagas.items():
        name = saga.started.saga_id
        if saga.completed:
            if not held[number]:
                yield f"8: {name} completed and holds nothing"
            if charged.get(number) != saga.started.amount:
                yield f"9: {name} completed, charged {charged.get(number)}"
            if not shipped.get(number):
                yield f"10: {name} completed and was not shipped"
        else:
            if held[number]:
                yield f"8: {name} aborted and holds {held[number]} reservations"
            if charged.get(number):
                yield f"9: {name} aborted, charged {charged[number]}"
            if shipped.get(number):
                yield f"10: {name} aborted and was shipped"


def _known(what: str, number: int, sagas: dict[int, _Saga]) -> Iterator[str]:
    if number not in sagas:
        yield f"7: a {what} of {number}, which is no saga"


class _Rows:
    """Reads a database past its disk's faults."""

    def __init__(self, database: apsw.Connection) -> None:
        self._cursor = apsw.Cursor(database)

    def __call__(self, query: str) -> list[Any]:
        return self._cursor.execute(query).fetchall()
