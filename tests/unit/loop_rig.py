"""A loop between twins: a journal that can be slow or fail, links that check what leaves.

The links check each thing that they are asked to send against the rows that are durable by then.
"""

from collections import deque
from typing import Any

from cluster.clock import ManualClock
from sagacity.saga import Retry
from sagacity.slots import SLOTS
from sagacity.wire import (
    OK,
    START,
    Command,
    Reply,
    Request,
    Witness,
    pack,
    unpack,
)
from services.checkout import checkout
from shard.admission import Admission
from shard.effects import Effects
from shard.engine import Engine
from shard.entries import AttemptEnded, Entry, TurnedBack
from shard.events import Answered, Event, Requests, WorkerCame, WorkerLives, WorkerWent
from shard.finished import FinishedInMemory
from shard.journal import JournalFailed, JournalFull, MemoryJournal, Receipt
from shard.loop import SERVING, STARTING, Loop, NoUpkeep, Received, Upkeep
from shard.retries import RetryBudget
from shard.sagas import MS, Card, Definition, Live
from shard.state import State
from shard.tally import PlainTally
from tests.unit.canned import SERVICES, answer
from tests.unit.world import CLIENT, CLUSTER_ID, PRICES, order

ATTEMPT_MS = 3_000
DEADLINE_MS = 30_000
DEFINITIONS = {checkout.name: Definition(checkout, Retry(timeout_ms=ATTEMPT_MS))}
PEERS = [name.encode() for name in SERVICES]


class TwinJournal(MemoryJournal):
    """Takes its time, or fails."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self.slow_ms = 0
        self.fails = False
        self.full = 0  # commits that find no room from now on
        self.commits = 0

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Keep entries, late, or not at all."""
        self._clock.advance(self.slow_ms)
        if self.fails:
            raise JournalFailed("as told")
        if self.full:
            self.full -= 1
            raise JournalFull("as told")
        self.commits += 1
        return super().commit(entries, epoch, wall_ms)

    def entries(self) -> list[Entry]:
        """Give every entry that is durable."""
        return [entry for _, batch in self.replay() for entry in batch.entries]

    def state(self) -> State:
        """Give what the durable rows say."""
        state = State(DEFINITIONS, FinishedInMemory())
        for seq, batch in self.replay():
            for entry in batch.entries:
                state.apply(entry, seq)
        return state


class TwinLinks:
    """Gives what a test put in, and checks that what leaves was durable before."""

    def __init__(self, clock: ManualClock, journal: TwinJournal) -> None:
        self._clock = clock
        self._journal = journal
        self.coming: deque[tuple[list[Event], bool, int]] = deque()
        self.waits: list[int] = []
        self.sent: list[Effects] = []
        self.held: dict[bytes, list[Command]] = {peer: [] for peer in PEERS}
        self.replies: list[Reply] = []
        self.rejected: list[tuple[bytes, str]] = []
        self.witnesses: dict[bytes, Witness] = {}  # the highest that each worker got

    def reject(self, worker: bytes, text: str) -> None:
        """Keep it."""
        self.rejected.append((worker, text))

    def receive(self, timeout_ns: int) -> Received:
        """Give the next batch, after the time that it is said to take; or wait in vain."""
        self.waits.append(timeout_ns)
        events, drained, took_ms = (
            self.coming.popleft() if self.coming else ([], True, -(-timeout_ns // MS))
        )
        self._clock.advance(took_ms)
        return Received(events, drained)

    def send(self, receipt: Receipt, witness: Witness, effects: Effects) -> None:
        """Check every single thing."""
        durable = self._journal.state()
        last = self._journal.last
        assert receipt == last, "a receipt for what is not durable"
        assert witness == Witness(
            CLUSTER_ID, 0, durable.epoch, last.seq, last.chain, durable.number
        )
        for peer, commands in effects.commands.items():
            for command in commands:
                saga = durable.live[command.number]
                assert (command.saga_id, command.step, command.direction, command.attempt) == (
                    saga.saga_id,
                    saga.step,
                    saga.direction,
                    saga.attempt,
                ), "no durable entry says that this command is due"
                assert command.body == saga.command_body()
                assert command.epoch == durable.epoch
            self.held[peer] += commands
            self.witnesses[peer] = witness
        for peer, command in effects.alone.items():
            assert command.body == durable.live[command.number].command_body(), "not due"
            self.held[peer].append(command)
        for sent in effects.lists:
            assert durable.lists_open[sent.list_number] == sent.ranges, "not durable before"
        for reply in (each for batch in effects.replies.values() for each in batch):
            if reply.code is None:
                _assert_true_of(durable, unpack(reply.body))
            self.replies.append(reply)
        self.sent.append(effects)


def _assert_true_of(durable: State, said: dict[str, Any]) -> None:
    """Check that a reply says nothing that a crash could undo."""
    if said["type"] == "books":
        return
    found = durable.by_id.get(said["saga_id"]) or durable.finished.find(said["saga_id"])
    assert found is not None, "a reply about a saga that is not durable"
    if said["type"] in {"checkout_complete", "checkout_failed"}:
        card = durable.finished.find(said["saga_id"])
        assert isinstance(card, Card)
        assert unpack(card.answer) == said
    elif said["type"] == "cancel_ok":
        assert isinstance(found, Live | Card)
        assert found.cancelled


class Watch:
    """The observer's twin."""

    def __init__(self) -> None:
        self.commits: list[tuple[int, int]] = []
        self.turns: list[int] = []
        self.away: list[str] = []
        self.forgotten = 0

    def committed(self, took_ns: int, entries: int) -> None:
        """Keep it."""
        self.commits.append((took_ns, entries))

    def turned(self, took_ns: int) -> None:
        """Keep it."""
        self.turns.append(took_ns)

    def forgot(self) -> None:
        """Count it."""
        self.forgotten += 1

    def turned_away(self, service: str, text: str) -> None:
        """Keep it."""
        self.away.append(service)


class TwinReserve:
    """Room that can be taken when there is some."""

    def __init__(self) -> None:
        self.held = False
        self.room = True

    def take(self) -> bool:
        """Keep it."""
        self.held = self.held or self.room
        return self.held

    def give_up(self) -> bool:
        """Free it."""
        held, self.held = self.held, False
        return held


class Rig:
    """A loop between twins."""

    def __init__(self) -> None:
        self.clock = ManualClock(monotonic_ns=5_000_000_000_000)
        self.journal = TwinJournal(self.clock)
        self.requests = 0
        self.reserve = TwinReserve()
        self.upkeep: Upkeep = NoUpkeep()  # of the next loop
        self.known: dict[bytes, Witness] = {}  # what the databases hold
        self.start_over()

    def start_over(self) -> int:
        """Lose everything but the journal; give how many sagas go on.

        Every service is heard, and gone again: tests have them come when they like.
        """
        going_on = self.begin()
        if self.loop.mode == STARTING:
            self.turn(*self.workers())
            assert self.loop.mode == SERVING
            self.turn(*[WorkerWent(peer) for peer in PEERS])
            del self.links.sent[:-1]
            self.links.waits.clear()
            self.watch.commits.clear()
        return going_on

    def begin(self, *, accepts_loss: bool = False) -> int:
        """Lose everything but the journal, and replay it; give how many sagas go on."""
        known = self.known
        self.links = TwinLinks(self.clock, self.journal)
        self.links.witnesses = known
        self.tally = PlainTally()
        self.watch = Watch()
        self.admission = Admission(4096)
        engine, upkeep = self.fresh()
        self.loop = Loop(
            engine,
            self.journal,
            self.links,
            self.clock,
            CLUSTER_ID,
            self.watch,
            upkeep,
            fresh=self.fresh,
            reserve=self.reserve,
            accepts_loss=accepts_loss,
        )
        return self.loop.recover()

    @property
    def engine(self) -> Engine:
        """The engine of now."""
        return self.loop.engine

    def fresh(self) -> tuple[Engine, Upkeep]:
        """Make an engine that knows nothing."""
        engine = Engine(
            0,
            frozenset(range(SLOTS)),
            State(DEFINITIONS, FinishedInMemory()),
            PRICES,
            self.admission,
            RetryBudget(100, 100, 10),
            self.tally,
            DEADLINE_MS,
        )
        return engine, self.upkeep

    def turn(self, *events: Event, drained: bool = True, took_ms: int = 0) -> Effects:
        """Do one turn in which these events come; give what it sent."""
        self.links.coming.append((list(events), drained, took_ms))
        self.loop.turn()
        return self.links.sent[-1]

    def workers(self, capacity: int = 256) -> list[Event]:
        """Give the events of a worker's HELLO for each service."""
        return [
            WorkerCame(peer, name, 1, capacity, self.witnesses_of(peer))
            for peer, name in zip(PEERS, SERVICES, strict=True)
        ]

    def witnesses_of(self, peer: bytes) -> tuple[Witness, ...]:
        """Give what a service's database holds."""
        found = self.links.witnesses.get(peer)
        return (found,) if found else ()

    def beats(self) -> list[Event]:
        """Give a heartbeat of each worker that is known."""
        return [WorkerLives(peer, 256) for peer in self.engine.workers()]

    def ask(self, kind: int, saga_id: str, body: bytes = b"") -> Requests:
        """Give the event of a request."""
        self.requests += 1
        return Requests(CLIENT, [Request(kind, saga_id, self.requests, {}, body)])

    def start(self, saga_id: str, kind: int = START) -> Requests:
        """Give the event of a start."""
        return self.ask(kind, saga_id, pack(order(saga_id)))

    def answered(self, step: int, outcome: int = OK) -> Answered:
        """Give the event in which a step's worker answers the oldest command that it holds."""
        peer = PEERS[step - 1]
        return Answered(peer, [answer(self.links.held[peer].pop(0), outcome)])

    def ended(self) -> list[Entry]:
        """Give the entries that only time can have caused."""
        return [e for e in self.journal.entries() if isinstance(e, AttemptEnded | TurnedBack)]


def serving() -> Rig:
    """Give a loop that serves, with three workers and one saga whose first command is out."""
    made = Rig()
    made.turn(*made.workers())
    made.turn(made.start("s1"))
    assert [command.step for command in made.links.held[b"inventory"]] == [1]
    return made
