"""A cluster in memory and the evidence that it leaves: one shard, three real services, one client.

What a simulation does, in little: the engine on the journal's twin, services on SQLite in memory,
and the checker's rules called with what is in memory.
"""

from typing import Any

from apsw import Connection
from msgspec.structs import replace

from checker.evidence import Evidence, Journal, Sent
from checker.folds import LIVE, fold_of, plans_of, refolded, replayed
from checker.record import Catalog, ClientRecord, Recorder, read
from checker.rules import judge
from checker.verdict import Verdict
from cluster.resting import service_rows
from config.load import load_catalog
from sagacity import wire
from sagacity.executor import BatchExecutor, make_tables
from sagacity.ids import count_of
from sagacity.ranges import ranges_of
from sagacity.saga import Retry
from sagacity.service import Service
from sagacity.slots import SLOTS
from sagacity.wire import Begun, Commands, Forget, Witness
from services import inventory, payment, shipping
from shard.effects import Effects
from shard.events import Answered, CommandBegun, ListApplied, Peer, Requests, WorkerWent
from shard.journal import MemoryJournal
from shard.tally import PlainTally
from tests.unit.service_world import Events
from tests.unit.world import CLUSTER_ID, PRICES, Rules, World

SERVICES: dict[str, Service] = {
    "inventory": inventory.service,
    "payment": payment.payment_service(crash=lambda: None),
    "shipping": shipping.service,
}
FAULT = "a worker is lost"
RETRY = Retry(attempts=2, stuck_after=2)


class Cluster(World):
    """A shard, its services and its client's record."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.recorder = Recorder(self.lines.append, "unit", lambda: self.now.wall_ms, CLUSTER_ID)
        catalog = replace(load_catalog(), prices=PRICES, stock={"abc123": 10**6, "xyz789": 60})
        self.recorder.line(Catalog(catalog.prices, catalog.stock, catalog.accounts))
        self.seen: list[Sent] = []
        self.databases: dict[str, Connection] = {}
        self.executors: dict[str, BatchExecutor] = {}
        for name, service in SERVICES.items():
            self.databases[name] = Connection(":memory:")
            make_tables(self.databases[name], service, CLUSTER_ID, catalog)
            self.executors[name] = BatchExecutor(self.databases[name], service, Events())
        super().__init__(Rules(retry=RETRY))
        self.step(*self.came(*SERVICES))
        self.measure()

    def close(self) -> None:
        """Let go of the databases."""
        for database in self.databases.values():
            database.close()

    # -- what its client records ----------------------------------------------------------------

    def ask(self, kind: int, saga_id: str, *more: Any, **fields: Any) -> Requests:
        """Give the event of a request, and write it down."""
        event = super().ask(kind, saga_id, *more, **fields)
        [asked] = event.items
        self.recorder.sent(asked.request, kind, saga_id, asked.body)
        return event

    def _perform(self, effects: Effects) -> None:
        super()._perform(effects)
        for replies in effects.replies.values():
            for reply in replies:
                self.recorder.heard(reply.request, reply.code, reply.body)
        for batch in (*effects.commands.values(), *([each] for each in effects.alone.values())):
            self.seen += [
                Sent(0, self.journal.last.seq, each.number, each.step, each.direction, each.attempt)
                for each in batch
            ]

    def restart(self) -> Effects:
        """Lose the process; the next one counts from 0."""
        self.tally = PlainTally()
        return super().restart()

    def measure(self) -> None:
        """Write down what a process would serve as its metrics, and what it takes."""
        counts = self.tally.counts
        finished = sum(n for key, n in counts.items() if key[0] == "finished")
        values = {
            "saga_started_total": counts["started", "checkout"],
            "saga_recovered_total": counts["recovered",],
            "saga_finished_total": finished,
        }
        self.recorder.metrics("shard-0", 1, values)
        self.recorder.usage("shard-0", 1, 1 << 20, 10, 3)

    # -- what its services do -------------------------------------------------------------------

    def serve(self, *names: str) -> Effects:
        """Have services do what they were given, the answers of each in a batch."""
        effects = Effects()
        for name in names or tuple(SERVICES):
            peer = name.encode()
            for held in [self.held.pop(peer, [])]:
                answers = self.executors[name].execute([Commands(self.witness(), held)])[0]
                if answers:
                    effects = self.step(Answered(peer, answers))
        return effects

    def lose(self, name: str) -> None:
        """A service does what it was given, and its answers are lost."""
        held = self.held.pop(name.encode(), [])
        self.executors[name].execute([Commands(self.witness(), held)])

    def witness(self) -> Witness:
        """Give what leaves with commands."""
        state, last = self.engine.state, self.journal.last
        return Witness(CLUSTER_ID, 0, state.epoch, last.seq, last.chain, state.number)

    def settle(self) -> None:
        """Go on until nothing is held and no timer is due soon."""
        for _ in range(60):
            while any(self.held.values()):
                self.serve()
            if not self.engine.state.live or self.engine.state.stuck:
                return
            self.after(500)
            self.step(*self.beats())

    def die_of(self, name: str) -> None:
        """A worker dies of what it was given last, three times alone."""
        peer: Peer = name.encode()
        self.step(WorkerWent(peer))
        self.held.pop(peer, None)
        for _ in range(3):
            self.step(*self.came(name))
            [command] = self.held.pop(peer)
            begun = Begun(command.number, command.step, command.direction, command.attempt)
            self.step(CommandBegun(peer, begun))
            self.step(WorkerWent(peer))
        self.step(*self.came(name))

    def forget(self, *numbers: int) -> None:
        """Finished sagas, the first that ended, are past retention; services take the list."""
        ranges = ranges_of(count_of(number) for number in numbers)
        self.step(forget=(ranges, len(numbers)))
        list_number = self.engine.state.lists
        for name, executor in self.executors.items():
            executor.forget(Forget(self.witness(), list_number, ranges))
            self.step(ListApplied(name.encode(), 0, list_number))

    # -- what it leaves -------------------------------------------------------------------------

    def evidence(self) -> Evidence:
        """Give all that it has left by now."""
        assert isinstance(self.journal, MemoryJournal)
        journal = Journal(0)
        chains = {seq: chain for seq, chain, _ in self.journal.rows}
        rows = list(self.journal.replay())
        for seq, batch in rows:
            journal.take(seq, batch, chains[seq])
        journal.folds = [
            fold_of(LIVE, self.engine.state),
            replayed(None, [], rows, self.definitions),
            refolded(journal, self.definitions),
        ]
        services = {name: service_rows(db, name) for name, db in self.databases.items()}
        owners = (0,) * SLOTS
        plans = plans_of(self.definitions)
        return Evidence(
            CLUSTER_ID, owners, [journal], services, plans, self.record_by_now(), self.seen, []
        )

    def record_by_now(self) -> ClientRecord:
        """Give the client's record, as if it ended here."""
        lines = list(self.lines)
        copy = Recorder(lambda _: None, "", lambda: 0)
        copy._lines = len(lines)
        copy._write = lines.append
        copy.end()
        return read("the record", lines, ClientRecord())


def lived() -> Cluster:
    """Give a cluster in which everything has happened that a saga can meet, and which has ended."""
    cluster = Cluster()
    cluster.recorder.planned(FAULT)
    _simple_ends(cluster)
    _faults(cluster)
    _kills(cluster)
    cluster.recorder.quiet()
    cluster.settle()
    cluster.measure()
    return cluster


def _simple_ends(cluster: Cluster) -> None:
    orders: dict[str, dict[str, Any]] = {
        "completes": {},
        "declined": {"user_id": "u999"},
        "no-stock": {"items": [{"sku": "xyz789", "quantity": 61}]},
        "no-price": {"items": [{"sku": "unknown", "quantity": 1}]},
        "no-carrier": {"shipping_address": "no_carrier"},
    }
    for name, fields in orders.items():
        cluster.step(cluster.start(f"{name}-1", **fields))
        cluster.step(cluster.start(f"{name}-2", wire.SUBMIT, **fields))
    cluster.settle()
    cluster.step(cluster.start("completes-1"))
    cluster.step(cluster.start("completes-1", user_id="another"))
    cluster.step(cluster.ask(wire.SHOW, "completes-1"))


def _faults(cluster: Cluster) -> None:
    """Answers are lost, attempts used up, late successes noted, one is cancelled."""
    for name in ("lost", "never-came", "late", "cancelled"):
        cluster.step(cluster.start(name))
        cluster.serve("inventory")
        if name == "cancelled":
            asked = {"type": "cancel", "saga_id": name, "reason": "changed my mind"}
            cluster.step(cluster.ask(wire.CANCEL, name, asked))
            cluster.step(cluster.ask(wire.CANCEL, name, asked))
            cluster.settle()
            continue
        late = []
        for _ in range(RETRY.attempts):
            held = list(cluster.held.get(b"payment", ()))
            if name == "lost":
                cluster.lose("payment")
            elif name == "late":
                late += cluster.executors["payment"].execute([Commands(cluster.witness(), held)])[0]
            cluster.held.pop(b"payment", None)
            for _ in range(8):
                cluster.after(500)
                cluster.step(*cluster.beats())
        if late:
            cluster.step(Answered(b"payment", late[:1]))
        cluster.settle()
    cluster.recorder.struck(FAULT, 1)


def _kills(cluster: Cluster) -> None:
    """The shard restarts while sagas run; commands kill their workers; one is asked again."""
    cluster.step(cluster.start("restarted"))
    cluster.serve("inventory")
    cluster.restart()
    cluster.step(*cluster.came(*SERVICES))
    cluster.step(cluster.start("restarted"))
    cluster.settle()
    cluster.step(cluster.start("poison"))
    cluster.die_of("inventory")
    cluster.settle()
    cluster.step(cluster.start("stuck", user_id="u999"))
    cluster.serve("inventory")
    cluster.serve("payment")
    cluster.die_of("inventory")
    asked = {"type": "retry", "saga_id": "stuck", "reason": "mended"}
    cluster.step(cluster.ask(wire.RETRY, "stuck", asked))
    cluster.settle()
    assert not cluster.engine.state.live


def verdicts(evidence: Evidence) -> dict[int, Verdict]:
    """Judge evidence; give the verdicts by number."""
    return {verdict.number: verdict for verdict in judge(evidence)}


def without_record(evidence: Evidence) -> Evidence:
    """Give evidence that nobody's client has written down."""
    return replace(evidence, record=None)
