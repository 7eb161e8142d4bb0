"""State: what a shard knows, as the fold of its journal. Pure.

The engine decides which entry to write; what an entry means is here and nowhere else, so that a
replay of the journal gives the state that the live shard had.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from msgspec import Struct, field

from sagacity.errors import Malformed, broken, check
from sagacity.ids import ACTION, COMPENSATION, count_of, number_of, order_id
from sagacity.ranges import Range, Ranges, are_normal
from sagacity.slots import SLOTS
from sagacity.traces import TRACEPARENT
from sagacity.wire import DECLINED, OK, Answer
from shard import phases
from shard.entries import (
    CANCELLED,
    OF_NO_SAGA,
    UNPRICED,
    AttemptEnded,
    Entry,
    Finished,
    ForgetTaken,
    Forgotten,
    Opened,
    Quarantined,
    Ran,
    RetryAsked,
    Started,
    TurnedBack,
)
from shard.phases import NEXT
from shard.records import Record
from shard.retention import MARKS_MAX, Mark, thin
from shard.sagas import (
    COMPENSATED,
    ROWS_TOLD,
    STEP_DECLINED,
    SUCCEEDED,
    UNKNOWN,
    UNTOUCHED,
    Card,
    Definition,
    Live,
    Tombstone,
    card_of,
    settle,
)

_ENDLESS = (phases.ATTEMPT_ENDED, phases.RETRY_ASKED)  # a compensation is tried for ever


class FinishedSagas(Protocol):
    """Where finished sagas are kept; a wrong "no" would run a checkout twice.

    A saga's *ordinal* is its place in the order in which sagas ended, from 0.
    """

    def find(self, saga_id: str) -> Card | Tombstone | None:
        """Give a finished saga's card; a tombstone once it is past retention."""

    def record(self, saga_id: str) -> Record | None:
        """Give a finished saga's record; None where the journal's rows still tell of it."""

    def add(self, card: Card) -> None:
        """Keep the next card."""

    def expired(self, below: int) -> tuple[int, list[int]] | None:
        """Give the next sagas to forget: the ordinal behind them, and their numbers.

        Args:
            below: those with this ordinal or a higher one are left alone.
        """

    def forget(self, below: int) -> None:
        """From now on what has a lower ordinal is past retention."""

    def restore(self, base: int, forgotten: int) -> None:
        """Take in a checkpoint: how many sagas had ended, and how many are past retention."""

    def page(self, start: int, upto: int, limit: int) -> list[Card]:
        """Give cards with an ordinal of start .. upto, in that order, at most `limit`."""

    def newest(self, before: int, limit: int) -> list[Card]:
        """Give cards with an ordinal below `before`, newest first, at most `limit`.

        Fewer than `limit` are the last ones: what is past retention is not given.
        """

    def __len__(self) -> int:
        """Give how many sagas have ended; the next one's ordinal."""


class Counts(Struct, frozen=True, kw_only=True):
    """What the fold of a journal knows beside its sagas; small, whatever has happened.

    Args:
        epoch: the last one.
        wall_ms: of the last row.
        number: highest given to a saga.
        order_counts: of each slot.
        finished: how many sagas have ended.
        forgotten: of these, how many are past retention: those with a lower ordinal.
        lists: highest number given to a list of forgotten sagas.
        lists_open: the ranges of those lists that some service has not taken, by number.
        lists_takers: of each of them, the services that have.
        forgotten_counts: normal ranges of the counts of the sagas that are past retention.
        ran_ms: how long the shard has run.
        marks: by when the sagas that are not past retention had ended.
        seen: service -> the newest row that it is known to have seen.
        accepted: epoch that accepted a loss last.
        running: sagas that had not ended, each of which is kept; -1 in files of before it was told.
    """

    epoch: int
    number: int
    order_counts: list[int]
    finished: int
    forgotten: int
    lists: int
    lists_open: dict[int, list[Range]]
    lists_takers: dict[int, list[str]]
    forgotten_counts: list[Range]
    ran_ms: int
    marks: list[Mark]
    seen: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    running: int = -1


class Checkpoint(Struct, frozen=True):
    """The fold of all rows up to one; sagas that had not ended then are kept beside it.

    Args:
        seq: of the last of these rows.
        chain: the hash over them.
        counts: what the state counted then.
    """

    seq: int
    chain: bytes
    counts: Counts


class State:
    """Sagas, counts and epoch of one shard.

    Args:
        definitions: by name.
        finished: where sagas go when they end.
    """

    def __init__(self, definitions: Mapping[str, Definition], finished: FinishedSagas) -> None:
        self.definitions = definitions
        self.finished = finished
        self.live: dict[int, Live] = {}
        self.by_id: dict[str, Live] = {}
        self.count = 0
        self.number = 0  # highest given
        self.epoch = 0
        self.wall_ms = 0  # of the row whose entries are taken in; for what people are shown
        self.order_counts = [0] * SLOTS
        self.compensating = 0  # sagas, stuck ones included
        self.stuck = 0  # sagas
        self.stuck_since: dict[int, int] = {}  # number -> wall time of the row that says so
        self.forgotten = 0  # finished sagas that are past retention
        self.seen: dict[str, int] = {}  # service -> newest row whose command it has answered
        self.accepted = 0  # epoch that accepted a loss last; witnesses of before say nothing
        self.at_risk = 0  # minor units that may be charged in sagas that are turning back
        self.lists = 0  # highest number given to a list of forgotten sagas
        self.lists_open: dict[int, list[Range]] = {}  # those that some service has not taken
        self.lists_takers: dict[int, list[str]] = {}  # of these: who has
        self.forgotten_counts = Ranges()  # of all that are past retention
        # Sagas whose definition, or its version, is not configured: they end within the replay.
        self.bygone: dict[int, Bygone] = {}
        self.ran_ms = 0  # loop time that the shard has run, over all its lives, as noted last
        self.marks: list[Mark] = []  # by when what is kept had ended; the oldest first
        self._services = frozenset(name for d in definitions.values() for name in d.services)

    def apply(self, entry: Entry, seq: int) -> None:
        """Take in an entry of journal row `seq`; one that cannot follow stops the process."""
        if isinstance(entry, Started) and not self._names(entry):
            self._count(entry, seq)
            self.bygone[entry.number] = Bygone(entry, seq, self.wall_ms)
        elif self.bygone and not isinstance(entry, OF_NO_SAGA) and entry.number in self.bygone:
            self._read_on(self.bygone[entry.number], entry, seq)
        else:
            _FOLDS[type(entry)](self, entry, seq)

    def _read_on(self, saga: "Bygone", entry: Entry, seq: int) -> None:
        saga.take(entry, seq)
        if isinstance(entry, Finished):
            del self.bygone[entry.number]
            self.finished.add(saga.card(entry, self.wall_ms))

    def require_named(self) -> None:
        """Refuse to go on with sagas that have not ended and cannot: call it after the replay.

        Raises:
            Malformed: their definition, or its version, is not configured.
        """
        found = sorted({(saga.started.saga, saga.started.version) for saga in self.bygone.values()})
        if found:
            names = ", ".join(f"{name} version {version}" for name, version in found)
            count = len(self.bygone)
            unfinished = (
                f"{count} sagas of {names} that have"
                if count > 1
                else (f"1 saga of {names} that has")
            )
            raise Malformed(
                f"the journal holds {unfinished} not ended, which cluster.sagas does not name: "
                "start with the definition of before, and have them end first; `sagacity status` "
                "counts what is in flight"
            )

    def _names(self, entry: Started) -> bool:
        definition = self.definitions.get(entry.saga)
        return definition is not None and definition.version == entry.version

    def counts(self) -> Counts:
        """Give what a checkpoint keeps of this instant, beside the sagas."""
        return Counts(
            epoch=self.epoch,
            number=self.number,
            order_counts=list(self.order_counts),
            finished=len(self.finished),
            forgotten=self.forgotten,
            lists=self.lists,
            lists_open=dict(self.lists_open),
            lists_takers={number: list(takers) for number, takers in self.lists_takers.items()},
            forgotten_counts=self.forgotten_counts.all(),
            seen=dict(self.seen),
            accepted=self.accepted,
            ran_ms=self.ran_ms,
            marks=list(self.marks),
            running=len(self.live),
        )

    def restore(self, kept: Iterable[Record], counts: Counts) -> None:
        """Take in a checkpoint, before the rows that follow it.

        Args:
            kept: of each saga that had not ended, its record; in order of their numbers.
            counts: as `counts` gave them.
        """
        self.finished.restore(counts.finished, counts.forgotten)
        for record in kept:
            for row in record:
                self.wall_ms = row.wall_ms
                for entry in row.entries:
                    # A record leaves some of them out.
                    if isinstance(entry, AttemptEnded | Quarantined):
                        self.live[entry.number].attempt = entry.attempt
                    self.apply(entry, row.seq)
        self.epoch = counts.epoch
        self.number = counts.number
        self.count = count_of(counts.number)
        self.order_counts = list(counts.order_counts)
        self.forgotten = counts.forgotten
        self.lists = counts.lists
        self.lists_open = dict(counts.lists_open)
        self.lists_takers = {number: list(said) for number, said in counts.lists_takers.items()}
        self.forgotten_counts = Ranges(counts.forgotten_counts)
        self.seen = dict(counts.seen)
        self.accepted = counts.accepted
        self.ran_ms = counts.ran_ms
        self.marks = list(counts.marks)

    def opened(self, entry: Opened, seq: int) -> None:
        """The shard was taken over."""
        check(entry.epoch > self.epoch, "an epoch fell", was=self.epoch, got=entry.epoch, seq=seq)
        self.epoch = entry.epoch
        for number in list(self.lists_open):  # a service that is no more takes none
            self._drop_if_taken(number)
        if entry.orders_skipped:
            self.accepted = entry.epoch
            self.seen.clear()
            # The next one is far above all that may have been given in what is lost.
            self.count = max(self.count, count_of(entry.numbers_above)) + entry.orders_skipped
            self.number = max(self.number, number_of(self.count, entry.shard))
            self.order_counts = [count + entry.orders_skipped for count in self.order_counts]

    def started(self, entry: Started, seq: int) -> Live:
        """A saga was accepted."""
        self._count(entry, seq)
        saga = Live(
            self.definitions[entry.saga],
            entry.number,
            entry.saga_id,
            entry.order,
            entry.fingerprint,
            entry.amount,
            entry.order_count,
            entry.slot,
            entry.deadline_ms,
            entry.headers,
            self.wall_ms,
        )
        saga.seqs.append(seq)
        saga.due_seq = seq
        self.live[entry.number] = saga
        self.by_id[entry.saga_id] = saga
        return saga

    def _count(self, entry: Started, seq: int) -> None:
        if entry.number <= self.number:
            broken("a number was given twice", number=entry.number, seq=seq)
        self.number = entry.number
        self.count = count_of(entry.number)
        self.order_counts[entry.slot] = entry.order_count

    def answered(self, entry: Answer, seq: int) -> None:
        """A step's outcome is known."""
        saga = self.live[entry.number]
        at = entry.step - 1
        if entry.attempt == saga.attempt and entry.step == saga.step:
            self._saw(saga, entry)
        outcome = entry.outcome
        if entry.direction != ACTION:
            _move(saga, phases.STEP_COMPENSATED, seq)
            check(outcome == OK, "only a success compensates", entry=entry)
            if at == saga.definition.charging:
                self.at_risk -= saga.amount
            saga.states[at] = COMPENSATED
            if saga.stuck:
                self.stuck -= 1
                del self.stuck_since[saga.number]
            saga.stuck = saga.quarantined = False
            _point_at_next_compensation(saga, seq)
            return
        if saga.states[at] != UNKNOWN:
            broken("an outcome of a step that was settled", entry=entry)
        if outcome == DECLINED:
            _move(saga, phases.STEP_DECLINED, seq)
            saga.states[at] = STEP_DECLINED
            return
        _move(saga, phases.STEP_SUCCEEDED, seq)
        if outcome != OK:
            broken("not an outcome", entry=entry)
        saga.states[at] = SUCCEEDED
        if saga.phase == phases.RUNNING:
            # Late ones tell history alone: the compensation that is under way stays as it was sent.
            saga.results[at] = entry.body
            if entry.step < saga.definition.last:
                saga.step = entry.step + 1
                saga.states[at + 1] = UNKNOWN
                saga.attempt = 1
                saga.due_seq = seq

    def _saw(self, saga: Live, entry: Answer) -> None:
        """A service has answered the current command: it has stored the witness that came with it.

        An older attempt's answer says nothing of the rows that made the current one due.
        """
        service = saga.definition.services[entry.step - 1]
        if entry.direction == saga.direction and saga.due_seq > self.seen.get(service, 0):
            self.seen[service] = saga.due_seq

    def attempt_ended(self, entry: AttemptEnded, seq: int) -> None:
        """An attempt counts."""
        saga = self.live[entry.number]
        _move(saga, phases.ATTEMPT_ENDED, seq)
        check(
            (entry.step, entry.direction, entry.attempt)
            == (saga.step, saga.direction, saga.attempt),
            "not the current attempt",
            entry=entry,
        )
        saga.attempt += 1
        saga.due_seq = seq
        saga.quarantined = False  # it was sent again; a record may leave out who asked for that
        if entry.direction != ACTION:
            retry = saga.definition.retries[entry.step - 1]
            if entry.attempt >= retry.stuck_after:
                self._mark_stuck(saga)

    def quarantined(self, entry: Quarantined, seq: int) -> None:
        """The current command killed its workers; a compensation is not sent until `retry`."""
        saga = self.live[entry.number]
        _move(saga, phases.COMMAND_QUARANTINED, seq)
        check(
            (entry.step, entry.direction, entry.attempt)
            == (saga.step, saga.direction, saga.attempt),
            "not the current command",
            entry=entry,
        )
        if entry.direction != ACTION:
            saga.quarantined = True
            self._mark_stuck(saga)

    def _mark_stuck(self, saga: Live) -> None:
        self.stuck += not saga.stuck
        saga.stuck = True
        self.stuck_since.setdefault(saga.number, self.wall_ms)

    def turned_back(self, entry: TurnedBack, seq: int) -> None:
        """The saga turns back: everything that may have taken effect is to be compensated."""
        saga = self.live[entry.number]
        _move(saga, phases.TURNED_BACK, seq)
        saga.direction = COMPENSATION
        saga.cause = entry.cause
        saga.reason = entry.reason
        saga.cancelled = entry.cause == CANCELLED
        if entry.cause == UNPRICED:  # decided together with the start: no command was sent
            saga.states[0] = UNTOUCHED
        charging = saga.definition.charging
        if charging is not None and saga.states[charging] in (UNKNOWN, SUCCEEDED):
            self.at_risk += saga.amount
        self.compensating += 1
        _point_at_next_compensation(saga, seq)

    def retry_asked(self, entry: RetryAsked, seq: int) -> None:
        """An operator asked again; the compensation's attempts go on counting."""
        saga = self.live[entry.number]
        _move(saga, phases.RETRY_ASKED, seq)
        saga.quarantined = False

    def finish(self, entry: Finished, seq: int) -> None:
        """The saga is final; its card answers from now on."""
        saga = self.live[entry.number]
        completed = entry.phase == phases.COMPLETED
        _move(saga, phases.ALL_SUCCEEDED if completed else phases.ALL_COMPENSATED, seq)
        if completed:
            if saga.states.count(SUCCEEDED) != len(saga.states):
                broken("a step is open", saga=saga)
        else:
            if saga.step != 0:
                broken("a compensation is open", saga=saga)
            self.compensating -= 1
        settle(saga)
        del self.live[entry.number]
        del self.by_id[saga.saga_id]
        self.finished.add(card_of(saga, entry.phase, entry.answer, self.wall_ms))

    def forget(self, entry: Forgotten, seq: int) -> None:
        """Sagas are past retention; a list that names an open one stops the shard."""
        number, ranges = entry.list_number, entry.ranges
        if number != self.lists + 1 or not are_normal(ranges, 1, self.count):
            broken("not the next list", number=number, was=self.lists, seq=seq)
        if not self.forgotten <= entry.ordinal <= len(self.finished):
            broken("more forgotten than finished", ordinal=entry.ordinal, seq=seq)
        named = Ranges(ranges)
        for open_number in self.live:
            count = count_of(open_number)
            if count <= named.highest and count in named:
                broken("a list names a saga that is not final", saga=self.live[open_number])
        self.lists = number
        self.forgotten = entry.ordinal
        self.finished.forget(entry.ordinal)
        self.marks = [mark for mark in self.marks if mark.ordinal > entry.ordinal]
        for low, high in ranges:
            self.forgotten_counts.add(low, high)
        if ranges:
            self.lists_open[number] = ranges
            self.lists_takers[number] = []
            self._drop_if_taken(number)

    def forget_taken(self, entry: ForgetTaken, seq: int) -> None:
        """A service has forgotten the sagas of a list; after the last one the list is dropped."""
        takers = self.lists_takers.get(entry.list_number)
        if takers is None:  # taken by all whom the configuration names now
            return
        check(entry.service not in takers, "a list was taken twice", entry=entry, seq=seq)
        takers.append(entry.service)
        self._drop_if_taken(entry.list_number)

    def ran(self, entry: Ran, seq: int) -> None:
        """So long has the shard run; what has ended is kept for a retention from here on."""
        check(entry.ran_ms >= self.ran_ms, "running time fell", entry=entry, seq=seq)
        self.ran_ms = entry.ran_ms
        ended = len(self.finished)
        if ended > (self.marks[-1].ordinal if self.marks else self.forgotten):
            self.marks.append(Mark(entry.ran_ms, ended))
        if len(self.marks) > MARKS_MAX:
            thin(self.marks)

    def lacks(self, service: str, list_number: int) -> bool:
        """Say whether a service has yet to take a list."""
        takers = self.lists_takers.get(list_number)
        return takers is not None and service not in takers

    def _drop_if_taken(self, list_number: int) -> None:
        if self._services <= set(self.lists_takers[list_number]):
            del self.lists_open[list_number], self.lists_takers[list_number]


# Not of an instance: with its own methods in it a state that is replaced would wait, sagas and all,
# for the collector, which comes rarely.
_FOLDS: Final[dict[type, Callable[[State, Any, int], object]]] = {
    Opened: State.opened,
    Started: State.started,
    Answer: State.answered,
    AttemptEnded: State.attempt_ended,
    TurnedBack: State.turned_back,
    RetryAsked: State.retry_asked,
    Quarantined: State.quarantined,
    Finished: State.finish,
    Forgotten: State.forget,
    ForgetTaken: State.forget_taken,
    Ran: State.ran,
}


class Bygone:
    """A saga of a definition that is not configured: read to its end, which is all there is to do.

    Args:
        started: its first entry.
        seq: of the row that holds it.
        wall_ms: of that row.
    """

    __slots__ = ("cancelled", "seqs", "started", "started_ms")

    def __init__(self, started: Started, seq: int, wall_ms: int) -> None:
        self.started = started
        self.started_ms = wall_ms
        self.cancelled = False
        self.seqs = [seq]

    def take(self, entry: Entry, seq: int) -> None:
        """Take in what was written of it."""
        if isinstance(entry, TurnedBack):
            self.cancelled = entry.cause == CANCELLED
        endless = isinstance(entry, AttemptEnded | RetryAsked) and len(self.seqs) >= ROWS_TOLD
        if self.seqs[-1] != seq and not endless:
            self.seqs.append(seq)

    def card(self, end: Finished, ended_ms: int) -> Card:
        """Make its card: it answers for its id like any other's."""
        started = self.started
        return Card(
            started.number,
            started.saga_id,
            started.saga,
            end.phase,
            started.fingerprint,
            end.answer,
            started.amount,
            order_id(started.order_count, started.slot),
            self.cancelled,
            array("q", self.seqs).tobytes(),
            self.started_ms,
            ended_ms,
            started.headers.get(TRACEPARENT, ""),
        )


def _move(saga: Live, fact: int, seq: int) -> None:
    """Take a saga to the phase that the table gives; the only place where a phase changes."""
    phase = NEXT[saga.phase][fact]
    if phase < 0:
        broken("an illegal transition", saga=saga, fact=phases.FACTS[fact], seq=seq)
    saga.phase = phase
    if saga.seqs[-1] != seq:
        if fact in _ENDLESS and len(saga.seqs) >= ROWS_TOLD:
            saga.tell_late(seq)
        else:
            saga.seqs.append(seq)


def _point_at_next_compensation(saga: Live, seq: int) -> None:
    """Make the last step that may have taken effect the current one; 0 when none is left."""
    saga.attempt = 1
    saga.due_seq = seq
    for at in range(len(saga.states) - 1, -1, -1):
        if saga.states[at] in (UNKNOWN, SUCCEEDED):
            saga.step = at + 1
            return
    saga.step = 0
