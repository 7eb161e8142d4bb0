"""Loop: durable before visible. Takes the ports as values; knows neither zmq nor files.

    receive -> step -> commit -> send

Whatever came while the last batch was written is the next batch: no timer collects one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from cluster.clock import Clock
from sagacity.errors import NotTaken, check
from sagacity.wire import Reply, Witness, pack_error
from shard.effects import Effects, HistoryAsked
from shard.engine import Engine
from shard.entries import Entry
from shard.events import Event, Instant, Peer, Requests, WorkerCame, WorkerWent
from shard.guard import Gate, Guard
from shard.history import tell
from shard.journal import Journal, JournalFull, Receipt
from shard.requests import no_longer_kept
from shard.sagas import MS

LATE_NS = 500 * MS  # a turn that is later than this could not work; nobody pays for that time
WAIT_MAX_NS = 500 * MS  # between two looks at the world without an event
RECEIVES_BEFORE_TIMERS = 3
READ_PER_SIGN = 64  # rows or records at recovery; a row of a thousand entries takes 10 ms
HISTORIES_PER_TURN = 4  # each reads some rows of the journal, 2.5 ms
HISTORIES_MAX = 1_024  # asked for and not told
TRY_AGAIN_NS = 500 * MS  # between two tries whether there is room
UPKEEP_PAUSE_NS = 5_000 * MS  # after upkeep that found no room
NEVER = 1 << 63

STARTING: Final = "starting"
SERVING: Final = "serving"
FULL: Final = "full"

_REFUSALS: Final = {
    STARTING: NotTaken("the shard is starting", retry_after_ms=250, cause="starting"),
    FULL: NotTaken("the disk is full", retry_after_ms=1000, cause="disk_full"),
}


T = TypeVar("T")


def _nothing() -> None:
    """Do nothing."""


def _alive_during(read: Iterable[T], alive: Callable[[], None]) -> Iterator[T]:
    """Give what is read, and a sign of life now and then."""
    for at, each in enumerate(read):
        if at % READ_PER_SIGN == 0:
            alive()
        yield each


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

    def reject(self, worker: Peer, text: str) -> None:
        """Tell a worker that it may not work here, and know it no more."""


class Upkeep(Protocol):
    """Work on what is kept that can wait, in slices of some two milliseconds."""

    def turn(self) -> bool:
        """Do a slice; say whether there is more to do."""

    def let_go(self) -> None:
        """Leave what is half done: another goes on with what the file says."""


class NoUpkeep:
    """For a journal that needs none."""

    def turn(self) -> bool:
        """Do nothing."""
        return False

    def let_go(self) -> None:
        """Do nothing."""


class Reserve(Protocol):
    """Room on the disk that is kept for the sagas in flight."""

    def take(self) -> bool:
        """Keep it, unless it is kept already; say whether it is."""

    def give_up(self) -> bool:
        """Free it; say whether there was any."""


class NoReserve:
    """For a journal that needs none."""

    def take(self) -> bool:
        """Do nothing."""
        return True

    def give_up(self) -> bool:
        """Do nothing."""
        return False


class Observer(Protocol):
    """Told how long things took, nanoseconds; and who was turned away."""

    def committed(self, took_ns: int, entries: int) -> None:
        """A group commit is durable."""

    def turned(self, took_ns: int) -> None:
        """A turn worked this long, waiting left out."""

    def turned_away(self, service: str, text: str) -> None:
        """A worker may not work here."""

    def forgot(self) -> None:
        """What was decided since the last commit is not written, and decided by nobody."""


class Fenced(Exception):
    """A service knows a higher epoch than ours: another process owns this shard."""


class Loop:
    """One thread's work.

        starting -> serving          every service was heard, and the journal is not an old one
        serving  -> full -> serving  a commit found no room; one finds it again
        starting -> full             likewise

    What is neither, waits: reads are answered from what is durable, everything else is refused.

    Args:
        engine: decides.
        journal: keeps.
        links: brings and sends.
        clock: tells the time.
        cluster_id: travels in the witness.
        observer: told how long things took, and who was turned away.
        upkeep: gets a slice of each turn.
        fresh: makes engine and upkeep anew, knowing nothing.
        reserve: room for the sagas in flight.
        accepts_loss: go on although the journal, or a service's database, is an old copy.
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
        *,
        fresh: Callable[[], tuple[Engine, Upkeep]],
        reserve: Reserve | None = None,
        accepts_loss: bool = False,
    ) -> None:
        self.engine = engine
        self.mode = STARTING
        self._upkeep = upkeep or NoUpkeep()
        self._unkempt = False  # there is more to do
        self._upkeep_at = 0  # not before that, on the clock
        self._journal = journal
        self._links = links
        self._clock = clock
        self._cluster_id = cluster_id
        self._observer = observer
        self._fresh = fresh
        self._reserve = reserve or NoReserve()
        self._reserve_at = 0  # when to take it, on the clock; NEVER while it is held
        self._accepts_loss = accepts_loss
        self._try_at = 0  # when to try a commit again, on the clock
        self._histories: dict[tuple[Peer, int], HistoryAsked] = {}
        self._lost_ns = 0  # time in which the loop could not work; loop time leaves it out
        self._busy_since = 0
        self._begun: deque[int] = deque(maxlen=RECEIVES_BEFORE_TIMERS)
        self.now = self._instant()
        self._gate = self._new_gate()

    def recover(self, alive: Callable[[], None] = _nothing) -> int:
        """Replay the journal. Of a new one the shard is taken over at once, else by `turn`.

        One that is new because a loss is accepted waits, too: services may know what is lost.

        Args:
            alive: called now and then, so that a long replay is not taken for a hung process.

        Returns:
            How many sagas go on.
        """
        self._replay(alive)
        self.engine.tally.recovered(self.engine.inflight)
        self.now = self._instant()
        self._gate = self._new_gate()
        if self._journal.last.seq == 0 and not self._accepts_loss:
            self._open()
        self._busy_since = self._clock.monotonic_ns()
        return self.engine.inflight

    def turn(self) -> int:
        """Do one turn.

        Returns:
            How many events came.
        """
        before = self._clock.monotonic_ns()
        self._forgive(before - self._busy_since)
        wait = self._wait_ns(before)
        # A timer fires only after the answers that came before it was due, and during a pause.
        self._begun.append(before - self._lost_ns)
        received = self._links.receive(wait)
        after = self._clock.monotonic_ns()
        self._forgive(after - before - wait)
        self._busy_since = after
        # `after` itself: a pause between it and another reading would be forgiven by nobody.
        self.now = Instant(after - self._lost_ns, self._clock.wall_ms())
        events = self._welcomed(received.events)
        if self.mode == SERVING:
            try:
                self._serve(events, received.drained)
            except JournalFull:
                self._forget()
                self._wait(events)
        else:
            self._wait(events)
        self._observer.turned(self._clock.monotonic_ns() - after)
        return len(received.events)

    # -- serving --------------------------------------------------------------------------------

    def _serve(self, events: list[Event], drained: bool) -> None:
        if drained:
            timers_until = self.now.ns
        elif len(self._begun) == RECEIVES_BEFORE_TIMERS:
            timers_until = self._begun[0]
        else:
            timers_until = 0
        if self._busy_since >= self._reserve_at:
            self._take_reserve()
        seq = self._journal.last.seq + 1
        self._perform(self.engine.step(events, self.now, seq, timers_until))
        if self._busy_since >= self._upkeep_at:
            try:
                self._unkempt = self._upkeep.turn()
            except JournalFull:  # nothing of it is there: it begins again when there may be room
                self._unkempt = False
                self._upkeep_at = self._busy_since + UPKEEP_PAUSE_NS

    def _perform(self, effects: Effects) -> None:
        if effects.fenced_by:
            raise Fenced(f"a service knows epoch {effects.fenced_by}")
        receipt = self._journal.last
        if effects.entries:
            receipt = self._commit(effects.entries, self.engine.state.epoch)
            check(receipt.seq == self.engine.seq, "a journal hole", got=receipt.seq)
        self._tell_histories(effects)
        self._links.send(receipt, self._witness(receipt), effects)

    def _commit(self, entries: list[Entry], epoch: int) -> Receipt:
        """Commit; where there is no room, in that which is kept for the sagas in flight."""
        begun = self._clock.monotonic_ns()
        try:
            receipt = self._journal.commit(entries, epoch, self.now.wall_ms)
        except JournalFull:
            if not self._reserve.give_up():
                raise
            self._starts_refused(begun)
            receipt = self._journal.commit(entries, epoch, self.now.wall_ms)
        self._observer.committed(self._clock.monotonic_ns() - begun, len(entries))
        return receipt

    def _take_reserve(self) -> None:
        """Keep room for the sagas in flight; without it no new one begins."""
        if self._reserve.take():
            self.engine.admission.full = False
            self._reserve_at = NEVER
        else:
            self._starts_refused(self._busy_since)

    def _starts_refused(self, now_ns: int) -> None:
        self.engine.admission.full = True
        self._reserve_at = now_ns + TRY_AGAIN_NS

    # -- starting, and without room -------------------------------------------------------------

    def _welcomed(self, events: list[Event]) -> list[Event]:
        """Leave out the workers that may not work with this shard."""
        unwelcome: set[Peer] = set()
        for event in events:
            if isinstance(event, WorkerCame):
                why = self._gate.hear(event)
                if why is not None:
                    self._observer.turned_away(event.service, why)
                    self._links.reject(event.worker, why)
                    unwelcome.add(event.worker)
        if not unwelcome:
            return events
        kept = [e for e in events if isinstance(e, Requests) or e.worker not in unwelcome]
        return [*kept, *(WorkerWent(worker) for worker in unwelcome)]

    def _wait(self, events: list[Event]) -> None:
        """Answer what needs no writing, refuse the rest, and go on as soon as that can be."""
        effects = self.engine.wait(events, self.now, _REFUSALS[self.mode])
        check(not effects.entries, "nothing is written before its time", entries=effects.entries)
        self._perform(effects)
        if self.mode == STARTING:
            may_open = self._gate.may_open(self.now.ns)
        else:
            may_open = self._busy_since >= self._try_at
        if may_open:
            self._open()

    def _open(self) -> None:
        """Take the shard over: the first write, and a trial whether there is room for it."""
        opened = self.engine.opening(self._cluster_id, self._gate.loss())
        try:
            receipt = self._commit([opened], opened.epoch)
        except JournalFull:
            self.mode = FULL
            self._try_at = self._clock.monotonic_ns() + TRY_AGAIN_NS
            return
        self.engine.go_on(opened, self.now, receipt.seq)
        self._gate = self._new_gate(is_open=True)
        self.mode = SERVING

    def _forget(self) -> None:
        """Know no more than the journal, as at a start: what memory holds was not written."""
        hellos = self.engine.hellos()
        self.engine.let_go()
        self._upkeep.let_go()
        self._observer.forgot()
        self.engine, self._upkeep = self._fresh()
        self._unkempt = False
        self._histories.clear()  # who asked asks again
        self._replay()
        self.engine.wait(hellos, self.now, _REFUSALS[FULL])
        self._gate = self._new_gate(is_open=True)
        self.mode = FULL
        self._try_at = self._clock.monotonic_ns() + TRY_AGAIN_NS

    def _replay(self, alive: Callable[[], None] = _nothing) -> None:
        checkpoint = self._journal.checkpoint()
        if checkpoint is not None:
            kept = _alive_during(self._journal.kept(), alive)
            self.engine.state.restore(kept, checkpoint.counts)
        for seq, batch in _alive_during(self._journal.replay(), alive):
            self.engine.replay(batch, seq)
        self.engine.state.require_named()

    def _new_gate(self, *, is_open: bool = False) -> Gate:
        engine, journal = self.engine, self._journal
        guard = Guard(
            self._cluster_id,
            engine.shard,
            engine.state,
            lambda: journal.last.seq,
            journal.chain_at,
        )
        return Gate(
            guard,
            engine.services(),
            self.now.ns,
            is_open=is_open,
            accepts_loss=self._accepts_loss,
        )

    # -- histories ------------------------------------------------------------------------------

    def _tell_histories(self, effects: Effects) -> None:
        """Tell some of the histories that were asked for; sagas go on between them."""
        for asked in effects.histories:
            if len(self._histories) < HISTORIES_MAX:
                self._histories.setdefault((asked.origin, asked.request), asked)  # repeats are one
            else:
                error = NotTaken("too many histories are asked for", retry_after_ms=250)
                body = pack_error(error)
                effects.reply(asked.origin, Reply(asked.request, error.code, body))
        for key in list(self._histories)[:HISTORIES_PER_TURN]:
            asked = self._histories.pop(key)
            dossier = asked.saga.dossier()
            state = self.engine.state
            # A generation may have closed since it was asked: then the rows are gone.
            record = state.finished.record(dossier.saga_id)
            if record is None:
                record = self._journal.history(dossier.number, dossier.seqs)
            if record:
                body = tell(dossier, record, state.definitions)
                effects.reply(asked.origin, Reply(asked.request, None, body))
            else:  # it went past retention since it was asked
                gone = no_longer_kept()
                effects.reply(asked.origin, Reply(asked.request, gone.code, pack_error(gone)))

    def _witness(self, receipt: Receipt) -> Witness:
        state = self.engine.state
        return Witness(
            self._cluster_id,
            self.engine.shard,
            state.epoch,
            receipt.seq,
            receipt.chain,
            state.number,
        )

    # -- time -----------------------------------------------------------------------------------

    def _instant(self) -> Instant:
        return Instant(self._clock.monotonic_ns() - self._lost_ns, self._clock.wall_ms())

    def _forgive(self, took_ns: int) -> None:
        """Stop loop time for a stretch in which the loop could not work: a pause, a slow sync."""
        if took_ns > LATE_NS:
            self._lost_ns += took_ns

    def _wait_ns(self, now_ns: int) -> int:
        """Give how long there is nothing to do, `now_ns` on the clock."""
        if self._histories or self._unkempt:
            return 0
        if self.mode != SERVING:
            return min(max(self._try_at - now_ns, 0), WAIT_MAX_NS) if self._try_at else WAIT_MAX_NS
        due = self.engine.next_due()
        if due is None:
            return WAIT_MAX_NS
        return min(max(due - (now_ns - self._lost_ns), 0), WAIT_MAX_NS)
