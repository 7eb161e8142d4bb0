"""Loop: durable before visible. Takes the ports as values; knows neither zmq nor files.

    receive -> step -> commit -> send

Whatever came while the last batch was written is the next batch: no timer collects one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from msgspec import Struct

from sagacity.errors import NotTaken, check
from sagacity.wire import Reply, Witness, pack
from shard.effects import Effects, HistoryAsked
from shard.engine import Engine
from shard.events import Event, Instant, Peer
from shard.history import tell
from shard.journal import Journal, Receipt
from shard.sagas import MS

LATE_NS = 500 * MS  # a turn that is later than this could not work; nobody pays for that time
WAIT_MAX_NS = 500 * MS  # between two looks at the world without an event
RECEIVES_BEFORE_TIMERS = 3
READ_PER_SIGN = 64  # rows or records at recovery; a row of a thousand entries takes 10 ms
HISTORIES_PER_TURN = 4  # each reads some rows of the journal, 2.5 ms
HISTORIES_MAX = 1_024  # asked for and not told


T = TypeVar("T")


def _nothing() -> None:
    """Do nothing."""


def _alive_during(read: Iterable[T], alive: Callable[[], None]) -> Iterator[T]:
    """Give what is read, and a sign of life now and then."""
    for at, each in enumerate(read):
        if at % READ_PER_SIGN == 0:
            alive()
        yield each


class Clock(Protocol):
    """What tells the time."""

    def monotonic_ns(self) -> int:
        """Give nanoseconds that never go back."""

    def wall_ms(self) -> int:
        """Give milliseconds since 1970."""


class Received(Struct):
    """What `Links.receive` found, and whether it left the sockets empty."""

    events: list[Event]
    drained: bool


class Links(Protocol):
    """The shard's connections."""

    def receive(self, timeout_ns: int) -> Received:
        """Wait for something to come, at most `timeout_ns`; then take all that is there."""

    def send(self, receipt: Receipt, witness: Witness, effects: Effects) -> None:
        """Send commands and replies; cannot be called without a receipt."""


class Upkeep(Protocol):
    """Work on what is kept that can wait, in slices of some two milliseconds."""

    def turn(self) -> bool:
        """Do a slice; say whether there is more to do."""


class NoUpkeep:
    """For a journal that needs none."""

    def turn(self) -> bool:
        """Do nothing."""
        return False


class Observer(Protocol):
    """Told how long things took, nanoseconds."""

    def committed(self, took_ns: int, entries: int) -> None:
        """A group commit is durable."""

    def turned(self, took_ns: int) -> None:
        """A turn worked this long, waiting left out."""


class Fenced(Exception):
    """A service knows a higher epoch than ours: another process owns this shard."""


class Loop:
    """One thread's work.

    Args:
        engine: decides.
        journal: keeps.
        links: brings and sends.
        clock: tells the time.
        cluster_id: travels in the witness.
        observer: told how long things took.
        upkeep: gets a slice of each turn.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        links: Links,
        clock: Clock,
        cluster_id: str,
        observer: Observer,
        upkeep: Upkeep | None = None,
    ) -> None:
        self._upkeep = upkeep or NoUpkeep()
        self._unkempt = False  # there is more to do
        self._engine = engine
        self._journal = journal
        self._links = links
        self._clock = clock
        self._cluster_id = cluster_id
        self._observer = observer
        self._histories: dict[tuple[Peer, int], HistoryAsked] = {}
        self._lost_ns = 0  # time in which the loop could not work; loop time leaves it out
        self._busy_since = 0
        self._begun: deque[int] = deque(maxlen=RECEIVES_BEFORE_TIMERS)
        self.now = self._instant()

    def recover(self, alive: Callable[[], None] = _nothing) -> int:
        """Replay the journal and take the shard over.

        Args:
            alive: called now and then, so that a long replay is not taken for a hung process.

        Returns:
            How many sagas go on.
        """
        checkpoint = self._journal.checkpoint()
        if checkpoint is not None:
            kept = _alive_during(self._journal.kept(), alive)
            self._engine.state.restore(kept, checkpoint.counts)
        for seq, batch in _alive_during(self._journal.replay(), alive):
            self._engine.replay(batch, seq)
        self.now = self._instant()
        seq = self._journal.last.seq + 1
        self._perform(self._engine.resume(self._cluster_id, self.now, seq))
        self._busy_since = self._clock.monotonic_ns()
        return self._engine.inflight

    def turn(self) -> int:
        """Do one turn.

        Returns:
            How many events came.
        """
        before = self._clock.monotonic_ns()
        self._forgive(before - self._busy_since)
        wait = self._wait_ns(before - self._lost_ns)
        # A timer fires only after the answers that came before it was due, and during a pause.
        self._begun.append(before - self._lost_ns)
        received = self._links.receive(wait)
        after = self._clock.monotonic_ns()
        self._forgive(after - before - wait)
        self._busy_since = after
        # `after` itself: a pause between it and another reading would be forgiven by nobody.
        self.now = Instant(after - self._lost_ns, self._clock.wall_ms())
        if received.drained:
            timers_until = self.now.ns
        elif len(self._begun) == RECEIVES_BEFORE_TIMERS:
            timers_until = self._begun[0]
        else:
            timers_until = 0
        seq = self._journal.last.seq + 1
        effects = self._engine.step(received.events, self.now, seq, timers_until)
        self._perform(effects)
        self._unkempt = self._upkeep.turn()
        self._observer.turned(self._clock.monotonic_ns() - after)
        return len(received.events)

    def _perform(self, effects: Effects) -> None:
        if effects.fenced_by:
            raise Fenced(f"a service knows epoch {effects.fenced_by}")
        receipt = self._journal.last
        if effects.entries:
            begun = self._clock.monotonic_ns()
            receipt = self._journal.commit(
                effects.entries, self._engine.state.epoch, self.now.wall_ms
            )
            check(receipt.seq == self._engine.seq, "a journal hole", got=receipt.seq)
            self._observer.committed(self._clock.monotonic_ns() - begun, len(effects.entries))
        self._tell_histories(effects)
        self._links.send(receipt, self._witness(receipt), effects)

    def _tell_histories(self, effects: Effects) -> None:
        """Tell some of the histories that were asked for; sagas go on between them."""
        for asked in effects.histories:
            if len(self._histories) < HISTORIES_MAX:
                self._histories.setdefault((asked.origin, asked.request), asked)  # repeats are one
            else:
                error = NotTaken("too many histories are asked for", retry_after_ms=250)
                body = pack(error.body())
                effects.reply(asked.origin, Reply(asked.request, error.code, body))
        for key in list(self._histories)[:HISTORIES_PER_TURN]:
            asked = self._histories.pop(key)
            dossier = asked.saga.dossier()
            state = self._engine.state
            # A generation may have closed since it was asked: then the rows are gone.
            record = state.finished.record(dossier.saga_id)
            if record is None:
                record = self._journal.history(dossier.number, dossier.seqs)
            body = tell(dossier, record, state.definitions)
            effects.reply(asked.origin, Reply(asked.request, None, body))

    def _witness(self, receipt: Receipt) -> Witness:
        state = self._engine.state
        return Witness(
            self._cluster_id,
            self._engine.shard,
            state.epoch,
            receipt.seq,
            receipt.chain,
            state.number,
        )

    def _instant(self) -> Instant:
        return Instant(self._clock.monotonic_ns() - self._lost_ns, self._clock.wall_ms())

    def _forgive(self, took_ns: int) -> None:
        """Stop loop time for a stretch in which the loop could not work: a pause, a slow sync."""
        if took_ns > LATE_NS:
            self._lost_ns += took_ns

    def _wait_ns(self, now_ns: int) -> int:
        if self._histories or self._unkempt:
            return 0
        due = self._engine.next_due()
        if due is None:
            return WAIT_MAX_NS
        return min(max(due - now_ns, 0), WAIT_MAX_NS)
