"""A service as a table: the production barrier, executor and handlers on SQLite, run once for each
database and command that differ.

A base is all that a service's database holds. `perform` gives what a command makes of it; the
first time the database itself is brought back and the executor runs one batch, from then on the
answer is looked up. So no twin of the barrier is needed.

The services are ours with three changes. The search chooses what a handler says: declined or
failed come after it has written, so that the barrier has something to undo. Each effect leaves a
row that nothing keeps from standing there twice. And the UNIQUE of their own tables is taken out:
it would hide what gets past the barrier. Where no rule breaks without it, it never fires with it.

Two bases may differ in witnesses and still be one: the guard reads them, no command does. They may
differ in the fence, since who performs a command says how it stands to it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import apsw
import msgspec
from msgspec import Struct

from sagacity.barrier import Barrier
from sagacity.executor import BatchExecutor, make_tables
from sagacity.ids import ACTION, COMPENSATION, barrier_key
from sagacity.service import Call, Database, Declined, Failed, Ok, Result, Service
from sagacity.slots import slot_of
from sagacity.testing import fill
from sagacity.wire import Command, Commands, Witness
from services import inventory, payment, shipping
from services.checkout import checkout
from tests.exhaustive.cases import (
    CATALOG,
    DECLINED,
    FAILED,
    NUMBERS,
    OK,
    PRICE,
    SAGA_IDS,
    SERVICES,
    Wrong,
)
from tests.exhaustive.letters import Letter
from tests.exhaustive.shard_table import CLUSTER_ID
from tests.unit.service_world import Events

_LOCKS: Final = (
    ",\n    UNIQUE (number, step, line)",
    ",\n    UNIQUE (number, step)",
)
_EFFECTS: Final = """
CREATE TABLE effect (number INTEGER NOT NULL, step INTEGER NOT NULL, direction INTEGER NOT NULL);
"""
_OURS: Final = {each.name: each for each in (inventory.service, payment.service, shipping.service)}
# What stands undone of a saga; each gives rows [number, count].
_STANDING: Final = {
    "inventory": "SELECT number, sum(quantity) FROM reservation WHERE NOT released GROUP BY number",
    "payment": "SELECT number, sum(amount - refunded) FROM payment GROUP BY number",
    "shipping": "SELECT number, count(*) FROM shipment WHERE NOT cancelled GROUP BY number",
}
_SLOTS: Final = tuple(slot_of(saga_id) for saga_id in SAGA_IDS)
_WHOLE: Final = {"inventory": 1, "payment": PRICE, "shipping": 1}


class StepFacts(NamedTuple):
    """What a base says of a saga's step.

    Args:
        action: outcome in the barrier's row; None where there is no row.
        compensation: likewise.
        stands: how much of the effect is not undone; 1 is all of it.
    """

    action: int | None = None
    compensation: int | None = None
    stands: int = 0


class Base(NamedTuple):
    """A service's database.

    Args:
        file: the first such one, as SQLite writes it.
        sagas: what it says of each.
    """

    file: bytes
    sagas: tuple[StepFacts, ...]


class Performed(NamedTuple):
    """What a command made of a database.

    Args:
        base: it is that one now.
        outcome: of the answer.
        body: of the answer.
        first: its handler ran, and what it did stayed.
    """

    base: int
    outcome: int
    body: bytes
    first: bool


class Chosen:
    """A handler whose outcome somebody chooses; it is told by `says`."""

    def __init__(self) -> None:
        self.says = OK

    def instead_of(
        self, handler: Callable[[Database, Call[Any]], Result]
    ) -> Callable[[Database, Call[Any]], Result]:
        """Give a handler that does what the other one does, and says what is chosen."""

        def run(db: Database, call: Call[Any]) -> Result:
            result = handler(db, call)
            if not isinstance(result, Ok):
                return result
            direction = int(hasattr(call.body, "compensating"))
            db.execute("INSERT INTO effect VALUES (?, ?, ?)", (call.number, call.step, direction))
            if self.says == DECLINED:
                return Declined(_decline(call))
            return Failed("as chosen") if self.says == FAILED else result

        return run


def _decline(call: Call[Any]) -> Struct:
    kind = checkout.steps[call.step - 1].declined
    told = {"saga_id": call.saga_id, "step": call.step, "decline_code": "CHOSEN"}
    return msgspec.convert(fill(kind, told, {}), kind)


def unlocked(service: Service, chosen: Chosen) -> Service:
    """Give one of our services as this search runs it."""
    schema = service.schema
    for lock in _LOCKS:
        schema = schema.replace(lock, "")
    if "UNIQUE" in schema or schema == service.schema:
        raise AssertionError(f"{service.name} has another lock than this search takes out")
    return Service(
        service.name,
        schema + _EFFECTS,
        {kind: chosen.instead_of(run) for kind, run in service.actions.items()},
        {kind: chosen.instead_of(run) for kind, run in service.compensations.items()},
        service.seed,
    )


class ServiceTable:
    """Bases of one service, and what commands make of them.

    Args:
        name: of the service.
        sagas: how many.
        barrier: what its executor has for one; a planted bug puts another in.
    """

    def __init__(self, name: str, sagas: int, barrier: type[Barrier] = Barrier) -> None:
        self.bases: list[Base] = []
        self.steps = 0  # that an executor has made
        self._name = name
        self._sagas = range(sagas)
        self._barrier = barrier
        self._chosen = Chosen()
        self._service = unlocked(_OURS[name], self._chosen)
        self._known: dict[Any, int] = {}
        self._performed: dict[Any, Performed] = {}
        connection = apsw.Connection(":memory:")
        make_tables(connection, self._service, CLUSTER_ID, CATALOG)
        self.root = self._intern(connection)
        connection.close()

    def perform(self, base: int, letter: Letter, says: str, *, fenced: bool = False) -> Performed:
        """Give what a command makes of a base, where its handler, if it runs, says this.

        Args:
            base: the database.
            letter: the command.
            says: OK, DECLINED or FAILED.
            fenced: whether the database knows of a higher epoch.
        """
        key = (base, letter.command, letter.body, says, fenced)
        found = self._performed.get(key)
        if found is None:
            found = self._performed[key] = self._run(base, letter, says, fenced)
        return found

    def _run(self, base: int, letter: Letter, says: str, fenced: bool) -> Performed:
        self.steps += 1
        connection = apsw.Connection(":memory:")
        try:
            connection.deserialize("main", self.bases[base].file)
            outcome, body, first = self.play(connection, letter, says, fenced=fenced)
            return Performed(self._intern(connection), outcome, body, first)
        finally:
            connection.close()

    def play(
        self, connection: apsw.Connection, letter: Letter, says: str, *, fenced: bool = False
    ) -> tuple[int, bytes, bool]:
        """Have a database perform a command; give outcome, reply, and whether an effect stayed."""
        for slot in _SLOTS:
            connection.execute("INSERT OR REPLACE INTO fence VALUES (?, ?)", (slot, 1 + fenced))
        executor = BatchExecutor(connection, self._service, Events())
        executor._barrier = self._barrier(connection, self._service, Events())
        executor._barrier.load()
        self._chosen.says = says
        before = _effects(connection)
        answer = executor.execute([Commands(_witness(), [_command(letter)])])[0][0]
        if not executor.available:
            raise Wrong("a service's database works: it does not")
        return answer.outcome, answer.body, _effects(connection) != before

    def _intern(self, connection: apsw.Connection) -> int:
        form = canonical(connection)
        found = self._known.get(form)
        if found is None:
            found = self._known[form] = len(self.bases)
            self._check(connection)
            facts = tuple(self._facts(connection, saga) for saga in self._sagas)
            self.bases.append(Base(connection.serialize("main"), facts))
        return found

    def _check(self, connection: apsw.Connection) -> None:
        """Invariants 7, 8 and 9, as far as one database tells."""
        twice = "SELECT * FROM effect GROUP BY number, step, direction HAVING count(*) > 1"
        found = connection.execute(twice).fetchall()
        if found:
            raise Wrong(f"at most one effect per number, step and direction: {found}")
        if self._name == "inventory":
            found = connection.execute(
                "SELECT sku FROM stock WHERE available < 0 OR initial != available +"
                " (SELECT coalesce(sum(quantity), 0) FROM reservation WHERE NOT released)"
            ).fetchall()
            if found:
                raise Wrong(f"stock: initial = available + held, none negative: {found}")
        if self._name == "payment":
            found = connection.execute("SELECT id FROM payment WHERE refunded > amount").fetchall()
            if found:
                raise Wrong(f"refunds do not exceed charges: {found}")

    def _facts(self, connection: apsw.Connection, saga: int) -> StepFacts:
        number, step = NUMBERS[saga], SERVICES.index(self._name) + 1
        rows: Mapping[int, int] = dict(connection.execute("SELECT key, outcome FROM barrier"))
        standing: Mapping[int, int] = dict(connection.execute(_STANDING[self._name]))
        amount = standing.get(number, 0)
        return StepFacts(
            rows.get(barrier_key(number, step, ACTION)),
            rows.get(barrier_key(number, step, COMPENSATION)),
            amount // _WHOLE[self._name] if amount % _WHOLE[self._name] == 0 else -1,
        )


def _command(letter: Letter) -> Command:
    """Give a command as it travels; no barrier and no handler of ours reads the attempt."""
    return Command(
        SAGA_IDS[letter.saga],
        letter.step,
        letter.direction,
        1,
        NUMBERS[letter.saga],
        1,
        {},
        letter.body,
    )


def _witness() -> Witness:
    return Witness(CLUSTER_ID, 0, 1, 1, bytes(16), NUMBERS[-1])


def _effects(connection: apsw.Connection) -> int:
    count: int = connection.execute("SELECT count(*) FROM effect").get
    return count


def canonical(connection: apsw.Connection) -> Any:
    """Give every row of every table, but for fence, witnesses and trials."""
    tables = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        if name not in ("fence", "origin", "witness")
    ]
    return tuple(
        (name, tuple(sorted(connection.execute(f"SELECT * FROM {name}")))) for name in tables
    )
