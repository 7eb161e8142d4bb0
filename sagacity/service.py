"""What a service is: its tables, the handlers of its commands, its books.

Users write one of these for each of their services; `worker` runs it. Knows nothing of sockets,
transactions or other sagas: a handler sees one command and the service's own tables.

    def charge(db: Database, call: Call[Charge]) -> Result:
        db.execute("INSERT INTO payment (number, step, amount) VALUES (?, ?, ?)",
                   (call.number, call.step, call.body.amount))
        return Ok(Charged(call.saga_id, call.step))

    service = Service("payment", SCHEMA, actions={Charge: charge}, compensations={Refund: refund})

A handler writes rows under (number, step), UNIQUE, and leaves transactions alone: its effect and
the barrier's row are committed together, with those of other commands.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import apsw
from msgspec import Struct

from sagacity.ids import ACTION
from sagacity.saga import tag_of
from sagacity.wire import BodyReader, Command, Headers

# What handlers get for their statements: a cursor of the connection that is in the transaction,
# the same each time (making one costs 1.2 us). Take all rows of a statement before the next one;
# `db.connection` has last_insert_rowid() and changes().
Database: TypeAlias = apsw.Cursor

B = TypeVar("B")


class Call(Struct, Generic[B], gc=False):
    """One command, as its handler sees it.

    Args:
        saga_id: the saga that asks.
        number: of the saga; rows of this command stand under (number, step).
        step: of the saga, from 1.
        attempt: of the step, from 1; another delivery of the same attempt has the same.
        body: of the type under which the handler stands.
        headers: as they came with the saga's start; `traceparent`, if it is there, can be read.
    """

    saga_id: str
    number: int
    step: int
    attempt: int
    body: B
    headers: Headers = {}


class Ok(Struct, frozen=True, gc=False):
    """It is done; `body` is the reply."""

    body: Struct


class Declined(Struct, frozen=True, gc=False):
    """A business no, final; `body` says why. What the handler wrote is undone."""

    body: Struct


class Failed(Struct, frozen=True, gc=False):
    """A technical no: nothing happened, the saga tries again. What was written is undone."""

    text: str


Result = Ok | Declined | Failed
Handler = Callable[[Database, Call[Any]], Result]
Rows = Sequence[Sequence[Any]]
# Which sagas: (shard, lowest count, highest count) each; shard -1 for those of every shard.
Within = Sequence[tuple[int, int, int]]


class Service(Struct, frozen=True):
    """A service: what its workers do.

    Args:
        name: of its pool, an identifier.
        schema: SQL that makes its tables in a new database. The names barrier, fence, witness,
            forgotten and origin are taken.
        actions: the handler of each type of action.
        compensations: the handler of each type of compensation. It undoes exactly what the
            service's own tables hold under (number, step); ids in the body are compared with
            them, never acted on. It does not decline.
        seed: writes the first rows of a new database, given what the worker was given as catalog.
        books: for each table that may be read, what gives its rows: (db, after, limit) -> at most
            `limit` rows whose first column is greater than `after`, in its order.
        audited: tables that the continuous audit reads, asked for sagas rather than for what comes
            after a key: (db, within, after, limit) -> at most `limit` rows whose first column is
            greater than `after`, in its order, of integers and texts alone.
        answer_delay: seconds until the answer of a command may leave: 0 at once, inf never. For
            services that play dead.
    """

    name: str
    schema: str
    actions: Mapping[type[Struct], Handler]
    compensations: Mapping[type[Struct], Handler]
    seed: Callable[[Database, Any], None] | None = None
    books: Mapping[str, Callable[[Database, Any, int], Rows]] = {}
    audited: Mapping[str, Callable[[Database, Within, Any, int], Rows]] = {}
    answer_delay: Callable[[Command], float] | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"Service.name is an identifier, not {self.name!r}")
        if not self.actions or not self.compensations:
            raise ValueError("a service has actions and compensations")
        tags = [tag_of(kind) for kind in (*self.actions, *self.compensations)]
        if None in tags or len(set(tags)) != len(tags):
            raise ValueError('bodies are Structs with tag_field="type" and different text tags')

    def handlers(self, direction: int) -> Mapping[type[Struct], Handler]:
        """Give the handlers of a direction (ids.ACTION or ids.COMPENSATION)."""
        return self.actions if direction == ACTION else self.compensations

    def reader(self, direction: int) -> Callable[[bytes], Any]:
        """Give what decodes the bodies of a direction, each to its type."""
        kinds = tuple(self.handlers(direction))
        union: Any = kinds[0]
        for kind in kinds[1:]:
            union |= kind
        return BodyReader[Any](union).decode
