"""A shard in memory: the engine, the journal's twin, a clock that a test moves, named workers.

Holds what transcripts and properties share: a `World` takes events and gives effects, keeps what
workers have been given, and checks after every step that the journal's rows, read back and folded,
give the state of the live engine. Knows no file and no socket.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from sagacity import wire
from sagacity.ids import count_of
from sagacity.messages import ReserveInventory
from sagacity.ranges import Range
from sagacity.saga import Retry, Saga
from sagacity.slots import SLOTS
from sagacity.testing import fill
from sagacity.wire import Answer, Command, Reply, Request, answer_to
from services.checkout import checkout
from shard.admission import Admission
from shard.effects import Effects
from shard.engine import Engine
from shard.events import (
    Answered,
    Event,
    Instant,
    Peer,
    Requests,
    WorkerCame,
    WorkerLives,
    WorkerWent,
)
from shard.finished import FinishedInMemory
from shard.history import tell
from shard.journal import Journal, MemoryJournal
from shard.records import Record
from shard.retries import RetryBudget
from shard.sagas import MS, Definition, Dossier
from shard.state import FinishedSagas, State
from shard.tally import PlainTally

CLUSTER_ID = "c0ffee" + "0" * 26
PRICES = {"abc123": 10_000, "xyz789": 4_999}
WALL_MS = 1_700_000_000_000
CLIENT = b"client"


class Rules(Struct, frozen=True, kw_only=True):
    """How a World is set up; the defaults are SPEC 6's."""

    plans: tuple[Saga, ...] = (checkout,)
    retry: Retry = Retry()
    deadline_ms: int = 30_000
    inflight_max: int = 4_096
    queue_age_max_ms: int = 5_000
    slots: frozenset[int] = frozenset(range(SLOTS))
    budget: tuple[int, int, int] = (100, 100, 10)
    retention_ms: int = 604_800_000


class World:
    """One shard. `now` moves by `after` alone; `held` is what each worker has not answered."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.definitions = {
            plan.name: Definition(plan, self.rules.retry) for plan in self.rules.plans
        }
        self.journal: Journal = self._open()
        self.tally = PlainTally()
        self.now = Instant(0, WALL_MS)
        self.present: list[Peer] = []  # workers that said HELLO, in that order
        self.held: dict[Peer, list[Command]] = {}
        self.travelled: dict[str, list[dict[str, Any]]] = {}
        self.requests = 0
        self.engine = self._engine()
        self.replica = State(self.definitions, FinishedInMemory())
        self._begin()

    def _begin(self) -> None:
        """Take a new shard over."""
        self._perform(self.engine.resume(CLUSTER_ID, self.now, 1))

    def _open(self) -> Journal:
        return MemoryJournal()

    def _finished(self) -> FinishedSagas:
        return FinishedInMemory()

    def _engine(self) -> Engine:
        return Engine(
            0,
            self.rules.slots,
            State(self.definitions, self._finished()),
            PRICES,
            Admission(self.rules.inflight_max, self.rules.queue_age_max_ms),
            RetryBudget(*self.rules.budget),
            self.tally,
            self.rules.deadline_ms,
            retention_ms=self.rules.retention_ms,
        )

    # -- time and steps -------------------------------------------------------------------------

    def after(self, ms: int, wall_ms: int | None = None) -> None:
        """Let time pass; the wall clock may go its own way."""
        wall = self.now.wall_ms + (ms if wall_ms is None else wall_ms)
        self.now = Instant(self.now.ns + ms * MS, wall)

    def step(
        self,
        *events: Event,
        timers: bool = True,
        forget: tuple[list[Range], int] | None = None,
    ) -> Effects:
        """Take one batch, make its entries durable, and deliver what it asks for.

        `forget`: ranges of counts and the ordinal with which retention ends the step.
        """
        for event in events:
            if isinstance(event, WorkerCame | WorkerWent):
                self.present = [peer for peer in self.present if peer != event.worker]
            if isinstance(event, WorkerCame):
                self.present.append(event.worker)
        seq = self.journal.last.seq + 1
        until = self.now.ns if timers else 0
        effects = self.engine.step(list(events), self.now, seq, until)
        if forget is not None:
            self.engine.forget(*forget, effects)
        if not effects.fenced_by:
            self._perform(effects)
        return effects

    def restart(self) -> Effects:
        """Lose everything but the journal, and take the shard over again."""
        self.held.clear()
        self.present.clear()
        self.engine = self._engine()
        checkpoint = self.journal.checkpoint()
        if checkpoint is not None:
            self.engine.state.restore(self.journal.kept(), checkpoint.counts)
        for seq, batch in self.journal.replay():
            self.engine.replay(batch, seq)
        assert snapshot(self.engine.state) == snapshot(self.replica)
        effects = self.engine.resume(CLUSTER_ID, self.now, self.journal.last.seq + 1)
        self._perform(effects)
        return effects

    def _perform(self, effects: Effects) -> None:
        for entry in effects.entries:
            if isinstance(entry, Answer):
                self._travels(entry.saga_id, entry.body)
        if effects.entries:
            epoch = self.engine.state.epoch
            receipt = self.journal.commit(effects.entries, epoch, self.now.wall_ms)
            assert receipt.seq == self.engine.seq
            self.replica.wall_ms = self.now.wall_ms
            for entry in self.journal.history(0, [receipt.seq])[0].entries:
                self.replica.apply(entry, receipt.seq)
        for asked in effects.histories:
            dossier = asked.saga.dossier()
            body = tell(dossier, self.record(dossier), self.definitions)
            effects.reply(asked.origin, Reply(asked.request, None, body))
        for peer, commands in given(effects):
            for command in commands:
                self.held.setdefault(peer, []).append(command)
                self._travels(command.saga_id, command.body)
        for sent in effects.lists:
            assert self.replica.lists_open[sent.list_number] == sent.ranges
        assert snapshot(self.replica) == snapshot(self.engine.state)

    def record(self, dossier: Dossier) -> Record:
        """Give the rows that tell a saga's history."""
        found = self.engine.state.finished.record(dossier.saga_id)
        return self.journal.history(dossier.number, dossier.seqs) if found is None else found

    def _travels(self, saga_id: str, body: bytes) -> None:
        self.travelled.setdefault(saga_id, []).append(loosely(body))

    # -- events ---------------------------------------------------------------------------------

    def ask(
        self,
        kind: int,
        saga_id: str,
        body: Mapping[str, Any] | bytes = b"",
        origin: Peer = CLIENT,
        headers: Mapping[str, str] | None = None,
    ) -> Requests:
        """Give the event of one request; requests are numbered from 1."""
        self.requests += 1
        packed = body if isinstance(body, bytes) else wire.pack(dict(body))
        asked = Request(kind, saga_id, self.requests, dict(headers or {}), packed)
        return Requests(origin, [asked])

    def start(self, saga_id: str, kind: int = wire.START, **fields: Any) -> Requests:
        """Give the event of a checkout's start."""
        return self.ask(kind, saga_id, order(saga_id, **fields))

    def came(self, *services: str, capacity: int = 256) -> list[Event]:
        """Give the events of one worker's HELLO for each service; it is called like it."""
        return [WorkerCame(name.encode(), name, 1, capacity) for name in services]

    def beats(self) -> list[Event]:
        """Give the heartbeats of all workers."""
        return [WorkerLives(peer, 256) for peer in self.present]

    def take(
        self, peer: Peer, saga_id: str, attempt: int | None = None, direction: int | None = None
    ) -> Command:
        """Take a saga's newest command (or a certain one) from a worker's hands."""
        held = self.held.get(peer, [])
        for command in reversed(held):
            wanted = attempt in (None, command.attempt) and direction in (None, command.direction)
            if command.saga_id == saga_id and wanted:
                held.remove(command)
                return command
        raise LookupError(f"{peer.decode()} holds no command of {saga_id}")

    def reply(
        self, peer: Peer, command: Command, outcome: int, body: Mapping[str, Any] | None = None
    ) -> Answered:
        """Give the event of a worker's answer to a command that it was given."""
        packed = self.body_of(command, outcome, body)
        return Answered(peer, [answer_to(command, outcome, packed)])

    def body_of(
        self, command: Command, outcome: int, body: Mapping[str, Any] | None = None
    ) -> bytes:
        """Make a reply's body: what is left out is filled in as SPEC 1's examples have it."""
        asked = wire.unpack(command.body)
        if outcome in (wire.OK, wire.DECLINED):
            step = self._step_of(command)
            kind = (
                (step.compensated if command.direction else step.ok)
                if not outcome
                else (step.declined)
            )
            return wire.pack(fill(kind, {**(body or {})}, {**_examples(asked, command), **asked}))
        return wire.pack(dict(body or {"type": "failed", "text": "no luck"}))

    def _step_of(self, command: Command) -> Any:
        asked = wire.unpack(command.body)["type"]
        for plan in self.rules.plans:
            for step in plan.steps:
                if asked in (step.name, step.compensation_name):
                    return step
        raise LookupError(asked)

    def drive(self, saga_id: str, *outcomes: int) -> Effects:
        """Answer a saga's commands as they come, one batch each; the last outcome's effects."""
        effects = Effects()
        for outcome in outcomes:
            for peer, held in self.held.items():
                if any(command.saga_id == saga_id for command in held):
                    command = self.take(peer, saga_id)
                    effects = self.step(self.reply(peer, command, outcome))
                    break
            else:
                raise LookupError(f"nobody holds a command of {saga_id}")
        return effects


def order(saga_id: str, **fields: Any) -> dict[str, Any]:
    """Give the body of a checkout: SPEC 1's example but for what is given."""
    items = [{"sku": "abc123", "quantity": 2}, {"sku": "xyz789", "quantity": 1}]
    body = {
        "type": "checkout",
        "saga_id": saga_id,
        "user_id": "u42",
        "items": items,
        "shipping_address": "123 Main St",
    }
    return {**body, **fields}


def _examples(asked: Mapping[str, Any], command: Command) -> dict[str, Any]:
    """Give the ids that a service would make up, and a decline's fields."""
    at = count_of(command.number)
    held = asked.get("items", []) if asked["type"] == ReserveInventory.__struct_config__.tag else []
    return {
        "reservations": [
            {"sku": each["sku"], "reservation_id": f"r{at}-{line}"}
            for line, each in enumerate(held, 1)
        ],
        "payment_id": f"p{at}",
        "transaction_id": f"txn_{at}",
        "shipment_id": f"s{at}",
        "tracking_number": f"1Z{at}",
        "error": "business",
        "decline_code": "DECLINED",
        "sku": "abc123",
    }


def replies(effects: Effects) -> list[tuple[int, int | None, dict[str, Any]]]:
    """Give a step's replies: request, code, body."""
    return [
        (each.request, each.code, wire.unpack(each.body))
        for batch in effects.replies.values()
        for each in batch
    ]


def bodies(effects: Effects) -> list[dict[str, Any]]:
    """Give the bodies of a step's replies."""
    return [body for _, _, body in replies(effects)]


def commands(effects: Effects) -> list[Command]:
    """Give a step's commands, whoever gets them."""
    return [command for _, batch in given(effects) for command in batch]


def given(effects: Effects) -> list[tuple[Peer, list[Command]]]:
    """Give what each worker gets, those that it gets alone too."""
    alone = [(peer, [command]) for peer, command in effects.alone.items()]
    return [*effects.commands.items(), *alone]


def loosely(body: bytes) -> dict[str, Any]:
    """Read a body as it is, with what no body should carry."""
    read: dict[str, Any] = msgspec.msgpack.decode(body)
    return read


def types(of: Iterable[Command]) -> list[str]:
    """Give the types of commands' bodies."""
    return [wire.unpack(command.body)["type"] for command in of]


_FOLDED = [
    "number",
    "saga_id",
    "fingerprint",
    "amount",
    "order_id",
    "headers",
    "phase",
    "step",
    "states",
    "results",
    "attempt",
    "cause",
    "reason",
    "stuck",
    "cancelled",
    "quarantined",
    "deadline_ms",
    "started_ms",
    "seqs",
    "due_seq",
]


def snapshot(state: State) -> dict[str, Any]:
    """Give all that the journal's fold decides; loop time and waiters are none of it."""
    return {
        "live": [
            {
                "saga": saga.definition.name,
                "order": wire.encode(saga.run.order),
                **{name: getattr(saga, name) for name in _FOLDED},
            }
            for saga in state.live.values()
        ],
        "by_id": sorted(state.by_id),
        # Where a finished saga's rows are is no part of it.
        "finished": [
            msgspec.structs.replace(card, seqs=b"")
            for card in state.finished.page(0, len(state.finished), len(state.finished))
        ],
        "counts": (state.count, state.number, state.epoch, state.compensating, state.stuck),
        "at_risk": state.at_risk,
        "forgetting": (state.lists, state.lists_open, state.lists_takers),
        "forgotten": state.forgotten,
        "orders": list(state.order_counts),
        "seen": (dict(state.seen), state.accepted),
        "running": (state.ran_ms, state.marks),
    }
