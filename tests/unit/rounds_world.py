"""A cluster that the continuous audit reads: journals as lists, the three services' own tables.

What sagas do is done by the services' handlers, what the audit asks of services is answered by the
kit. Knows nothing of the judgement.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import apsw

from config.load import Catalog
from sagacity import wire
from sagacity.books import page_of
from sagacity.errors import NotTaken, from_body
from sagacity.ids import count_of, number_of, shard_of
from sagacity.messages import (
    CancelShipment,
    ChargePayment,
    CreateShipment,
    Line,
    RefundPayment,
    ReleaseReservation,
    ReserveInventory,
)
from sagacity.ranges import ranges_of
from sagacity.service import Call, Ok, Service
from sagacity.wire import BodyReader, BooksAsked
from services.inventory import release, reserve
from services.inventory import service as inventory
from services.payment import charge, refund
from services.payment import service as payment
from services.shipping import cancel, create
from services.shipping import service as shipping
from tests.unit.audit_world import ENDS

T = TypeVar("T")

SHARDS = 2
SKUS = ["abc123", "xyz789", "other"]
AMOUNT = 500  # of every saga


class Quiet:
    """A log for what the services' code would do wrong."""

    def info(self, event: str, **fields: Any) -> None:
        """Say nothing."""

    def warning(self, event: str, **fields: Any) -> None:
        """Say nothing."""

    def error(self, event: str, **fields: Any) -> None:
        """Fail: ours do nothing wrong."""
        raise AssertionError((event, fields))


class Shop:
    """The twin of a cluster, as the audit's reader sees it.

    Args:
        chance: how many lines carts have, of what.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.highest = [0] * SHARDS  # counts
        self.finished: list[list[tuple[int, str, str, int, str]]] = [[] for _ in range(SHARDS)]
        self.running: list[dict[int, str]] = [{} for _ in range(SHARDS)]
        self.forgotten = [0] * SHARDS  # finished sagas that are past retention
        self.down: set[str] = set()  # services without a worker
        self.rows_read = 0
        self.snapshots: set[int] = set()
        self.between: Callable[[str], None] = lambda _: None  # what happens before an answer
        self._services: dict[str, tuple[Service, apsw.Connection]] = {}
        catalog = Catalog({}, dict.fromkeys(SKUS, 10**6), {})
        for service in (inventory, payment, shipping):
            connection = apsw.Connection(":memory:")
            connection.execute(service.schema)
            if service.seed is not None:
                service.seed(connection.cursor(), catalog)
            self._services[service.name] = service, connection

    def close(self) -> None:
        """Close the databases."""
        for _, connection in self._services.values():
            connection.close()

    def db(self, service: str) -> apsw.Cursor:
        """Give a service's database, to do with it what nobody should."""
        return self._services[service][1].cursor()

    def spoil(self, service: str, sql: str, *values: Any) -> None:
        """Change rows behind the service's back."""
        db = self.db(service)
        db.execute(sql, values)
        assert db.connection.changes() > 0

    # -- what sagas do --------------------------------------------------------------------------

    def start(self, shard: int) -> int:
        """Start a saga; give its number."""
        self.highest[shard] += 1
        number = number_of(self.highest[shard], shard)
        self.running[shard][number] = f"saga-{number}"
        return number

    def act(self, number: int, step: int) -> None:
        """Have a step of a saga take effect."""
        name = f"saga-{number}"
        if step == 1:
            lines = [Line(self.chance.choice(SKUS), self.chance.randint(1, 4)) for _ in range(2)]
            body: Any = ReserveInventory(name, 1, lines)
            done = reserve(self.db("inventory"), Call(name, number, 1, 1, body))
        elif step == 2:
            body = ChargePayment(name, 2, "u42", AMOUNT)
            done = charge(self.db("payment"), Call(name, number, 2, 1, body))
        else:
            body = CreateShipment(name, 3, [], "1 Main St")
            done = create(self.db("shipping"), Call(name, number, 3, 1, body))
        assert isinstance(done, Ok)

    def undo(self, number: int, step: int) -> None:
        """Have a step of a saga compensated."""
        name = f"saga-{number}"
        if step == 1:
            release(
                self.db("inventory"), Call(name, number, 1, 1, ReleaseReservation(name, 1, True))
            )
        elif step == 2:
            refund(self.db("payment"), Call(name, number, 2, 1, RefundPayment(name, 2, True)))
        else:
            cancel(self.db("shipping"), Call(name, number, 3, 1, CancelShipment(name, 3, True)))

    def end(self, number: int, phase: str, saga: str = "checkout") -> None:
        """Have a saga's journal say that it is final."""
        shard = shard_of(number)
        saga_id = self.running[shard].pop(number)
        self.finished[shard].append((number, saga_id, phase, AMOUNT, saga))

    def whole(self, shard: int, end: int = 0, saga: str = "checkout") -> int:
        """Run a saga from its start to its end, one of ENDS; give its number."""
        phase, *effects = ENDS[end]
        number = self.start(shard)
        for step, effect in enumerate(effects, 1):
            if effect:
                self.act(number, step)
        for step, effect in enumerate(effects, 1):
            if effect == "undone":
                self.undo(number, step)
        self.end(number, phase, saga)
        return number

    def some(self, count: int) -> list[int]:
        """Run sagas of every kind in every shard; give their numbers."""
        return [self.whole(at % SHARDS, at // SHARDS % len(ENDS)) for at in range(count)]

    # -- what the audit asks --------------------------------------------------------------------

    def ask(self, shard: int, body: dict[str, Any], kind: type[T]) -> T:
        """Answer as a shard does, or one of its workers."""
        book = body["book"]
        self.between(f"{book} {body.get('table', '')}".strip())
        if book in self.down:
            raise NotTaken(f"no worker of {book!r} is here")
        if book in self._services:
            service, connection = self._services[book]
            page = page_of(service, connection, BooksAsked(1, wire.pack(body)), Quiet())
            if page.code is not None:
                raise from_body({**wire.unpack(page.body), "code": page.code})
            answer = page.body
        else:
            answer = wire.pack({"type": "books", "book": book, **self._own(shard, body)})
        self.rows_read += len(wire.unpack(answer).get("rows", []))
        return BodyReader[T](kind).decode(answer)

    def _own(self, shard: int, body: dict[str, Any]) -> dict[str, Any]:
        book = body["book"]
        finished = self.finished[shard]
        if book == "sagas":
            snapshot = 0
            if "snapshot" in body:
                self.snapshots.discard(body["snapshot"])
            else:
                snapshot = 100 + shard
                self.snapshots.add(snapshot)
            return {
                "highest": number_of(self.highest[shard], shard) if self.highest[shard] else 0,
                "finished": len(finished),
                "snapshot": snapshot,
                "running": len(self.running[shard]),
            }
        if book == "running":
            assert body["snapshot"] in self.snapshots
            rows: list[Any] = [
                [number, saga_id, "RUNNING", False, AMOUNT, "checkout"]
                for number, saga_id in self.running[shard].items()
            ]
            return {"from": body["from"], "rows": rows[body["from"] :]}
        if book == "finished":
            start = max(body["from"], self.forgotten[shard])
            return {"from": start, "rows": [*map(list, finished[start : body["upto"]])]}
        assert book == "forgotten"
        gone = [count_of(row[0]) for row in finished[: self.forgotten[shard]]]
        ranges = [*map(list, ranges_of(gone))]
        return {"from": body["from"], "rows": ranges[body["from"] :]}


@contextmanager
def shop_of(seed: int = 1) -> Iterator[Shop]:
    """Give a shop and close it."""
    shop = Shop(random.Random(seed))
    try:
        yield shop
    finally:
        shop.close()
