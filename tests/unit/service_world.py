"""A service's database in memory, and the commands that a shard would send to it.

Holds what tests of barrier, executor and services share: a `World` around one service, and `toy`,
a service whose bodies say how its handler shall end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from apsw import Connection
from msgspec import UNSET, Struct, UnsetType

from config.load import Catalog, load_catalog
from sagacity import wire
from sagacity.executor import BatchExecutor, make_tables
from sagacity.ids import ACTION, COMPENSATION, number_of
from sagacity.ranges import Range
from sagacity.service import Call, Database, Declined, Failed, Ok, Result, Service
from sagacity.wire import Answer, BodyReader, Command, Commands, Forget, Witness

CLUSTER_ID = "c0ffee" + "0" * 26
TURNS_MAX = 1_000  # that a list may take

T = TypeVar("T")


class Events:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def info(self, event: str, **_: Any) -> None:
        self.told.append(event)

    warning = error = info


class Put(Struct, frozen=True, tag_field="type", tag="Put"):
    """Puts `amount` down; `how` says how the handler ends, after it has written."""

    amount: int
    how: str = "ok"


class PutOk(Struct, frozen=True, tag_field="type", tag="Put_ok"):
    """`at`: of the row."""

    at: int


class PutFailed(Struct, frozen=True, tag_field="type", tag="Put_failed"):
    """Declined."""


class Take(Struct, frozen=True, tag_field="type", tag="Take"):
    """Takes back what was put down."""

    at: int | UnsetType = UNSET
    how: str = "ok"


class TakeOk(Struct, frozen=True, tag_field="type", tag="Take_ok"):
    """Taken back."""


def _end(how: str, ok: Struct) -> Result:
    if how == "raise":
        raise RuntimeError("the handler breaks")
    endings: dict[str, Result] = {
        "ok": Ok(ok),
        "declined": Declined(PutFailed()),
        "failed": Failed("not now"),
    }
    return endings[how]


def put(db: Database, call: Call[Put]) -> Result:
    if call.body.how == "declined_clean":
        return Declined(PutFailed())
    db.execute(
        "INSERT INTO put (number, step, amount) VALUES (?, ?, ?)",
        (call.number, call.step, call.body.amount),
    )
    return _end(call.body.how, PutOk(db.connection.last_insert_rowid()))


def take(db: Database, call: Call[Take]) -> Result:
    db.execute("UPDATE put SET taken = 1 WHERE number = ? AND step = ?", (call.number, call.step))
    return _end(call.body.how, TakeOk())


toy = Service(
    name="toy",
    schema="""CREATE TABLE put (
        id INTEGER PRIMARY KEY, number INTEGER, step INTEGER, amount INTEGER CHECK (amount > 0),
        taken INTEGER DEFAULT 0, UNIQUE (number, step)
    ) STRICT;""",
    actions={Put: put},
    compensations={Take: take},
)


def put_command(
    count: int = 1,
    *,
    how: str = "ok",
    amount: int = 7,
    attempt: int = 1,
    epoch: int = 1,
    saga_id: str = "",
    shard: int = 0,
) -> Command:
    body = wire.encode(Put(amount, how))
    number = number_of(count, shard)
    return Command(saga_id or f"s{count}", 1, ACTION, epoch, number, attempt, {}, body)


def take_command(
    count: int = 1, *, how: str = "ok", attempt: int = 1, epoch: int = 1, saga_id: str = ""
) -> Command:
    body = wire.encode(Take(how=how))
    number = number_of(count, 0)
    return Command(saga_id or f"s{count}", 1, COMPENSATION, epoch, number, attempt, {}, body)


def a_list(
    *ranges: Range, list_number: int = 1, shard: int = 0, epoch: int = 1, given: int = 1 << 20
) -> Forget:
    """Give a list of a shard that has started `given` sagas."""
    witness = Witness(CLUSTER_ID, shard, epoch, 1, bytes(16), number_of(given, shard))
    return Forget(witness, list_number, list(ranges))


def read(kind: type[T], body: bytes) -> T:
    return BodyReader[T](kind).decode(body)


class World:
    """One service's database and executor."""

    def __init__(
        self, service: Service, catalog: Catalog | None = None, connection: Connection | None = None
    ) -> None:
        self.service = service
        self.log = Events()
        self.connection = connection or Connection(":memory:")
        make_tables(self.connection, service, CLUSTER_ID, catalog or load_catalog())
        self.executor = BatchExecutor(self.connection, service, self.log)
        self._seq = 0

    def send(self, *commands: Command, shard: int = 0) -> list[Answer]:
        """Perform one batch."""
        self._seq += 1
        witness = Witness(CLUSTER_ID, shard, 1, self._seq, bytes(16), 0)
        answers = self.executor.execute([Commands(witness, list(commands))])
        return answers[0]

    def outcomes(self, *commands: Command) -> list[str]:
        """Perform one batch; give the names of the outcomes."""
        return [wire.OUTCOMES[answer.outcome] for answer in self.send(*commands)]

    def each(self, *commands: Command) -> list[str]:
        """Perform each command in a batch of its own; give the names of the outcomes."""
        return [outcome for command in commands for outcome in self.outcomes(command)]

    def ask(
        self, count: int, step: int, body: Struct, *, attempt: int = 1, epoch: int = 1
    ) -> Answer:
        """Send one message of SPEC 1 for the count-th saga."""
        direction = COMPENSATION if hasattr(body, "compensating") else ACTION
        number = number_of(count, 0)
        saga_id = f"checkout{count}"
        packed = wire.encode(body)
        return self.send(Command(saga_id, step, direction, epoch, number, attempt, {}, packed))[0]

    def forget(self, *ranges: Range, shard: int = 0, epoch: int = 1) -> int:
        """Forget a list to its end; give how many turns that took."""
        asked = a_list(*ranges, shard=shard, epoch=epoch)
        for turns in range(1, TURNS_MAX):
            left = self.executor.forget(asked)
            assert left is not None, "a list that does not count"
            if not left:
                return turns
            asked = Forget(asked.witness, asked.list_number, left)
        raise AssertionError("a list has no end")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return list(self.connection.execute(sql))


@contextmanager
def world_of(service: Service, catalog: Catalog | None = None) -> Iterator[World]:
    """Give a world and close it."""
    world = World(service, catalog)
    try:
        yield world
    finally:
        world.executor.close()
