"""A whole shard on a file: loop, journal, generations, compaction; on a disk that may be tight.

Beside it stands a replica, folded from the rows that are durable: before anything leaves, and after
each turn, the shard must know exactly what these rows say.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import apsw
from msgspec import Struct

from cluster.clock import ManualClock
from sagacity.ids import barrier_key
from sagacity.saga import Retry
from sagacity.wire import Command, Witness
from services.checkout import checkout
from shard.admission import Admission
from shard.compaction import Compaction
from shard.effects import Effects
from shard.engine import Engine
from shard.entries import Entry, Finished, Forgotten, Started
from shard.events import Event, Peer, WorkerCame, WorkerWent
from shard.finished import FinishedInMemory
from shard.generations import Generations
from shard.journal import MemoryJournal, Receipt, SqliteJournal
from shard.loop import SERVING, Loop, Received, Upkeep
from shard.retries import RetryBudget
from shard.sagas import MS, Definition
from shard.state import State
from shard.tally import PlainTally
from tests.unit.disk_world import SLICE_BYTES, TAIL_BYTES, Twinned
from tests.unit.journal_world import abandon
from tests.unit.loop_rig import Watch
from tests.unit.watched_disk import TRUNCATE, WRITE, WatchedDisk
from tests.unit.world import CLUSTER_ID, PRICES, Rules, given, snapshot

RETENTION_MS = 20_000
RESERVE_WRITES = 30


class TightDisk(WatchedDisk):
    """The real disk, with room for so many writes, or one that dies at a write or sync."""

    syncs_for_real = False  # a process that dies loses nothing that the system has

    def __init__(self, name: str = "tight-disk") -> None:
        self.room: int | None = None  # writes; None for no end
        self.dies_in: int | None = None  # writes and syncs
        super().__init__(name)

    def meet(self, operation: str, *, wal: bool) -> None:
        """Die at a write or sync, if this is the moment; a write takes room."""
        if operation == TRUNCATE:
            return
        if self.dies_in is not None:
            self.dies_in = max(0, self.dies_in - 1)
            if self.dies_in == 0:  # from here on nothing works
                raise apsw.IOError("the disk has died")
        if operation == WRITE and self.room is not None:
            if self.room == 0:
                raise apsw.FullError("no room")
            self.room -= 1

    def take(self) -> bool:
        """Be the shard's reserve: keep room."""
        return self.room is None

    def give_up(self) -> bool:
        """Be the shard's reserve: free what was kept."""
        if self.room is None or self.room >= RESERVE_WRITES:
            return False
        self.room += RESERVE_WRITES
        return True


class Reserve(Struct):
    """The reserve on a tight disk; given up once until there is room again."""

    disk: TightDisk
    held: bool = False

    def take(self) -> bool:
        """Keep it, if there is room."""
        self.held = self.held or self.disk.take()
        return self.held

    def give_up(self) -> bool:
        """Free it."""
        held, self.held = self.held, False
        return held and self.disk.give_up()


class WholeWorld(Twinned):
    """A World in which the loop drives; what it sends goes to `sent`."""

    def __init__(self, path: Path, disk: TightDisk) -> None:
        self.path, self.tight = path, disk
        self.rules = Rules(retry=Retry(stuck_after=3))
        self.definitions = {checkout.name: Definition(checkout, self.rules.retry)}
        self.tally = PlainTally()
        self.clock = ManualClock(monotonic_ns=5_000_000_000_000)
        self.reserve = Reserve(disk)
        self.admission = Admission(self.rules.inflight_max)
        self.present: list[Peer] = []
        self.held: dict[Peer, list[Command]] = {}
        self.travelled = {}
        self.requests = 0
        self.replica = State(self.definitions, FinishedInMemory())
        self.twin_journal = MemoryJournal()
        self.witnesses: dict[tuple[int, int, int], Witness] = {}  # key, attempt, epoch
        self.seen: dict[str, Witness] = {}  # the highest that each service holds
        self.ended: dict[str, Finished] = {}
        self.ended_ns: list[int] = []  # by ordinal
        self.began: dict[str, int] = {}  # saga_id -> number
        self.sent: Callable[[Witness, Effects], None] = lambda _witness, _effects: None
        self.coming: list[tuple[Sequence[Event], bool]] = []
        self.modes: list[str] = []
        self._boot()

    def _boot(self) -> None:
        self.disk = SqliteJournal(self.path, CLUSTER_ID, 0, self.tight.name)
        self.journal = self.disk
        engine, upkeep = self.fresh()
        self.loop = Loop(
            engine,
            self.disk,
            self,
            self.clock,
            CLUSTER_ID,
            Watch(),
            upkeep,
            fresh=self.fresh,
            reserve=self.reserve,
        )
        self.loop.recover()
        self.catch_up()

    def fresh(self) -> tuple[Engine, Upkeep]:
        """Make an engine that knows nothing."""
        self.generations = Generations(self.disk.store)
        engine = Engine(
            0,
            self.rules.slots,
            State(self.definitions, self.generations),
            PRICES,
            self.admission,
            RetryBudget(*self.rules.budget),
            self.tally,
            self.rules.deadline_ms,
            retention_ms=RETENTION_MS,
        )
        self.compaction = Compaction(
            self.disk, self.generations, engine.state.counts, TAIL_BYTES, SLICE_BYTES
        )
        return engine, self.compaction

    # -- the loop's links -----------------------------------------------------------------------

    def receive(self, timeout_ns: int) -> Received:
        """Give what a step brings, or let the time go by."""
        if self.coming:
            events, drained = self.coming.pop(0)
            return Received(list(events), drained)
        self.clock.advance(max(1, -(-timeout_ns // MS)))
        return Received([], True)

    def send(self, receipt: Receipt, witness: Witness, effects: Effects) -> None:
        """Check what leaves against what is durable, and deliver it."""
        assert receipt == self.disk.last
        self.catch_up()
        for peer, commands in given(effects):
            assert self.loop.mode == SERVING
            for command in commands:
                key = barrier_key(command.number, command.step, command.direction)
                self.witnesses.setdefault((key, command.attempt, command.epoch), witness)
            self.held.setdefault(peer, []).extend(commands)
        for sent in effects.lists:
            assert self.replica.lists_open[sent.list_number] == sent.ranges
        self.sent(witness, effects)

    def reject(self, worker: Peer, text: str) -> None:
        """Never: every database here is healthy."""
        raise AssertionError(f"{worker!r} was turned away: {text}")

    def catch_up(self) -> None:
        """Fold the rows that are new; the shard must know just that."""
        self.engine, self.now = self.loop.engine, self.loop.now
        assert self.twin_journal.last.seq >= self.disk.checkpoint_seq, "a row nobody has seen"
        for seq in range(self.twin_journal.last.seq + 1, self.disk.last.seq + 1):
            row = self.disk.history(0, [seq])[0]
            self.twin_journal.commit(row.entries, self.engine.state.epoch, row.wall_ms)
            self.replica.wall_ms = row.wall_ms
            for entry in row.entries:
                self._note(entry)
                self.replica.apply(entry, seq)
        assert snapshot(self.replica) == snapshot(self.engine.state)
        assert self.replica.forgotten_counts.all() == self.engine.state.forgotten_counts.all()

    def _note(self, entry: Entry) -> None:
        if isinstance(entry, Started):
            assert entry.saga_id not in self.began, "an id runs twice"
            self.began[entry.saga_id] = entry.number
        elif isinstance(entry, Finished):
            saga_id = self.replica.live[entry.number].saga_id
            assert saga_id not in self.ended
            self.ended[saga_id] = entry
            self.ended_ns.append(self.clock.monotonic_ns())
        elif isinstance(entry, Forgotten):
            youngest_ns = self.ended_ns[entry.ordinal - 1]
            assert self.clock.monotonic_ns() - youngest_ns >= RETENTION_MS * MS, "forgotten early"

    def see(self, service: str, witness: Witness) -> None:
        """A service's database keeps a witness, if none higher is there."""
        known = self.seen.get(service)
        if known is None or (witness.epoch, witness.seq) > (known.epoch, known.seq):
            self.seen[service] = witness

    # -- time and steps -------------------------------------------------------------------------

    def after(self, ms: int, wall_ms: int | None = None, *, beats: bool = True) -> None:
        """Let time pass, in turns of the loop."""
        del wall_ms  # clocks that jump are tested elsewhere
        until = self.clock.monotonic_ns() + ms * MS
        while self.clock.monotonic_ns() < until:
            if beats:
                self.coming.append((self.beats(), True))
                self._turn()
            self._turn()

    def step(self, *events: Event, timers: bool = True, forget: object = None) -> Effects:
        """Do one turn; what it sends has been given to `sent` when this returns."""
        del forget  # the shard's own retention does
        for event in events:
            if isinstance(event, WorkerCame | WorkerWent):
                self.present = [peer for peer in self.present if peer != event.worker]
            if isinstance(event, WorkerCame):
                self.present.append(event.worker)
        self.coming.append((events, timers))
        self._turn()
        return Effects()

    def _turn(self) -> None:
        self.loop.turn()
        self.modes.append(self.loop.mode)
        self.catch_up()

    def restart(self) -> Effects:
        """Lose the process: nothing is closed; what the file says goes on."""
        self.held.clear()
        self.present.clear()
        self.coming.clear()
        self.tight.dies_in = None
        abandon(self.disk)
        self._boot()
        return Effects()
