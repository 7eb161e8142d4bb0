"""A shard as a table: the production engine, run once for each state and event that differ.

A *still* is all that a shard is at one moment, its journal too. `turn` gives what an event makes of
it: the first time the engine itself is brought back and does a step, from then on the answer is
looked up. A search asks for millions of turns and the engine makes some ten thousand.

What two stills may differ in and still be one (`canonical`), and why:

- Time. A timer of a saga may fire at any moment at which the engine waits for it: `_at` moves the
  clock past all of them and puts off every other timer. That is every order that real times could
  give, and more.
- Attempts of a compensation above `stuck_after`: it is tried for ever, and nothing is asked of
  their number any more but whether an answer is of the current one (`letters`).
- Epochs: the engine asks of an answer whether it is of the current one, see `letters`.
- The reason of turning back, and so the text of the end: no decision reads it. That an end never
  changes is checked on each turn, with the engine itself (`_check_kept`).
- Sequence numbers, wall times, witnesses, metrics: told to people or to the guard, which stands
  outside the engine. Where a saga's rows are is likewise no part of it.
- Pace, credit, retry budget, the order of a queue: with one worker of so much credit for each
  service all that waits leaves together, and the letters have no order.
"""

import io
import pickle
import types
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from msgspec import Struct

from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION
from sagacity.slots import slot_of
from sagacity.wire import Answer, Begun, Command
from shard.admission import Admission
from shard.codec import pack_batch, unpack_batch
from shard.effects import Effects
from shard.engine import Engine
from shard.events import (
    Answered,
    CommandBegun,
    Event,
    Instant,
    Requests,
    WorkerCame,
    WorkerLives,
    WorkerWent,
)
from shard.finished import FinishedInMemory
from shard.phases import ABORTED, COMPLETED, NEW, RUNNING
from shard.retries import RetryBudget
from shard.sagas import BACKING_OFF, COMPENSATED, MS, OUT, STEP_DECLINED, Card, Definition, Live
from shard.state import State
from shard.tally import PlainTally
from tests.exhaustive.cases import (
    CATALOG,
    DEFINITIONS,
    NUMBERS,
    RETRY,
    SAGA_IDS,
    SERVICES,
    SHARD,
    Wrong,
    cancel_of,
    start_of,
)
from tests.exhaustive.letters import ALONE, COMMAND, Letter
from tests.unit.world import snapshot

CLUSTER_ID: Final = "c0ffee" + "0" * 26
CLIENT: Final = b"client"
CREDIT: Final = 256
APART_NS: Final = 7_200_000 * MS  # between two moments at which a timer fires
LATER_NS: Final = APART_NS // 2  # to which every other timer is put off
WALL_MS: Final = 1_700_000_000_000
DEADLINE_MS: Final = 30_000
_KEPT_MS: Final = 1 << 50  # nothing is past retention
_INDEX: Final = {number: saga for saga, number in enumerate(NUMBERS)}

# Events, as a table's keys.
ASK: Final = "ask"
ASK_OTHER: Final = "ask other"
CANCEL: Final = "cancel"
READ: Final = "read"
BEGAN: Final = "began"
CAME: Final = "came"
WENT: Final = "went"
REPLACED: Final = "replaced"
OVER: Final = "attempt over"
RETRY_DUE: Final = "retry due"
DEADLINE: Final = "deadline"
TIME: Final = "time"
Key = tuple[Any, ...]
RESTART: Final[Key] = ("restart", None)


class SagaFacts(NamedTuple):
    """What a still says of a saga.

    `phase` is NEW while the shard does not know it, `answer` is b"" before it is final. `suspect`
    is the step and direction of a command that may have killed a worker. `timed`: if it waits for
    time the wheel has a place for it.
    """

    phase: int = NEW
    step: int = 0
    direction: int = ACTION
    where: int = 0
    states: tuple[int, ...] = ()
    results: tuple[bytes | None, ...] = ()
    cancelled: bool = False
    stuck: bool = False
    awaited: bool = False
    timed: bool = True
    suspect: tuple[int, int] | None = None
    answer: bytes = b""

    @property
    def is_final(self) -> bool:
        """Whether it is completed or aborted."""
        return self.phase in (COMPLETED, ABORTED)

    def is_closed(self, step: int) -> bool:
        """Whether a step was declined or is compensated, or its saga is final."""
        return self.is_final or bool(
            self.states and self.states[step - 1] in (STEP_DECLINED, COMPENSATED)
        )


class Still(NamedTuple):
    """A shard.

    Args:
        engine: the first engine that was in this state, pickled.
        rows: its journal, packed.
        now_ns: its loop time.
        sagas: what it says of each.
        workers: services whose worker it knows.
    """

    engine: bytes
    rows: tuple[bytes, ...]
    now_ns: int
    sagas: tuple[SagaFacts, ...]
    workers: frozenset[str]


class Turn(NamedTuple):
    """What an event made of a shard.

    Args:
        still: it is that one now.
        wrote: its journal has another row.
        sent: letters that leave.
        aged: sagas whose letters are now of an older command.
        replies: (saga, code, body); of cancels too.
        heard: sagas whose clients are told their end.
        wanted: the word on a command that has begun; None where there is none.
    """

    still: int
    wrote: bool
    sent: tuple[Letter, ...]
    aged: frozenset[int]
    replies: tuple[tuple[int, int | None, bytes], ...]
    heard: frozenset[int]
    wanted: bool | None


class Played(NamedTuple):
    """What an engine has done; its fields as those of Still and Turn."""

    engine: Engine
    rows: tuple[bytes, ...]
    now_ns: int
    sent: tuple[Letter, ...]
    aged: frozenset[int]
    replies: tuple[tuple[int, int | None, bytes], ...]
    wanted: bool | None


class Parts(Struct, frozen=True):
    """What an engine is built of; a planted bug puts another in."""

    state: type[State] = State
    finished: type[FinishedInMemory] = FinishedInMemory
    mend: Callable[[Engine], None] | None = None


class ShardTable:
    """Stills, and what events make of them.

    Args:
        sagas: how many.
        parts: of the engine.
    """

    def __init__(self, sagas: int, parts: Parts | None = None) -> None:
        self.stills: list[Still] = []
        self.steps = 0  # that the engine has made
        self._parts = parts or Parts()
        self._sagas = range(sagas)
        self._known: dict[Any, int] = {}
        self._turns: dict[tuple[int, Key], Turn] = {}
        engine = self._engine()
        now = Instant(0, WALL_MS)
        rows = (self._row(engine, engine.resume(CLUSTER_ID, now, 1), now),)
        self.root = self._intern(engine, rows, 0)

    def turn(self, still: int, key: Key) -> Turn:
        """Give what an event makes of a still."""
        found = self._turns.get((still, key))
        if found is None:
            found = self._turns[still, key] = self._make(still, key)
        return found

    def restarted(self, still: int) -> Turn:
        """Give what a still is after a crash: its journal, read by another process."""
        return self.turn(still, RESTART)

    # -- the engine itself ----------------------------------------------------------------------

    def _engine(self) -> Engine:
        state = self._parts.state(DEFINITIONS, self._parts.finished())
        engine = Engine(
            SHARD,
            frozenset(slot_of(each) for each in SAGA_IDS),
            state,
            CATALOG.prices,
            Admission(len(SAGA_IDS)),
            RetryBudget(100, 100, 10),
            PlainTally(),
            DEADLINE_MS,
            retention_ms=_KEPT_MS,
        )
        if self._parts.mend is not None:
            self._parts.mend(engine)
        return engine

    def _make(self, at: int, key: Key) -> Turn:
        self.steps += 1
        still = self.stills[at]
        played = self.play(unpickled(still.engine), still.rows, still.now_ns, key)
        heard = _check_kept(still.sagas, self._facts(played.engine), played.replies)
        to = self._intern(played.engine, played.rows, played.now_ns)
        wrote = len(played.rows) > len(still.rows)
        return Turn(to, wrote, played.sent, played.aged, played.replies, heard, played.wanted)

    def play(self, engine: Engine, rows: tuple[bytes, ...], now_ns: int, key: Key) -> Played:
        """Have an engine, with its journal and at its loop time, take an event."""
        if key == RESTART:
            return self._restart(rows, now_ns)
        before = {n: _current(saga) for n, saga in engine.state.live.items()}
        events, ns = self._event(engine, now_ns, key)
        now = Instant(ns, WALL_MS + ns // MS)
        fx = engine.step(events, now, len(rows) + 1, ns)
        if fx.entries:
            rows = (*rows, self._row(engine, fx, now))
        if fx.fenced_by:
            raise Wrong(f"the only owner of a shard is not fenced: epoch {fx.fenced_by}")
        live = engine.state.live
        aged = {
            _INDEX[number]
            for number, was in before.items()
            if number not in live or _current(live[number]) != was
        }
        _check_sent(engine, fx)
        replies = tuple(
            (each.request % len(SAGA_IDS), each.code, each.body)
            for each in fx.replies.get(CLIENT, ())
        )
        wanted = fx.proceeds[0][1].wanted if fx.proceeds else None
        sent = tuple(_letters(fx))
        return Played(engine, rows, ns, sent, frozenset(aged), replies, wanted)

    def _restart(self, rows: tuple[bytes, ...], now_ns: int) -> Played:
        engine = self._engine()
        for seq, row in enumerate(rows, 1):
            engine.replay(unpack_batch(row), seq)
        now = Instant(now_ns, WALL_MS + now_ns // MS)
        fx = engine.resume(CLUSTER_ID, now, len(rows) + 1)
        rows = (*rows, self._row(engine, fx, now))
        return Played(engine, rows, now_ns, (), frozenset(self._sagas), (), None)

    def _row(self, engine: Engine, fx: Effects, now: Instant) -> bytes:
        return pack_batch(fx.entries, engine.state.epoch, now.wall_ms)

    def _event(self, engine: Engine, now: int, key: Key) -> tuple[list[Event], int]:
        """Give the events of a key, and the loop time at which they come."""
        kind, about = key
        if kind == ASK:
            return [Requests(CLIENT, [start_of(about)])], now
        if kind == ASK_OTHER:
            return [Requests(CLIENT, [start_of(about, "elsewhere")])], now
        if kind == CANCEL:
            return [Requests(CLIENT, [cancel_of(about)])], now
        if kind == CAME:
            return [WorkerCame(each.encode(), each, 1, CREDIT) for each in about], now
        if kind == WENT:
            return [WorkerWent(about.encode())], now
        if kind == REPLACED:
            return [WorkerWent(about.encode()), WorkerCame(about.encode(), about, 1, CREDIT)], now
        if kind == BEGAN:
            saga = engine.state.live.get(NUMBERS[about.saga])
            said = Begun(NUMBERS[about.saga], about.step, about.direction, _attempt_of(about, saga))
            return [CommandBegun(about.service.encode(), said)], now
        if kind == READ:
            saga = engine.state.live.get(NUMBERS[about.saga])
            body = about.body
            if about.outcome == wire.REFUSED_FENCED:
                body = wire.encode(engine.state.epoch)  # who else could have the shard
            answer = Answer(
                SAGA_IDS[about.saga],
                about.step,
                about.direction,
                engine.state.epoch,
                NUMBERS[about.saga],
                _attempt_of(about, saga),
                about.outcome,
                body,
            )
            peer = about.service.encode()
            events: list[Event] = [Answered(peer, [answer])]
            if about.outcome == wire.REFUSED_UNAVAILABLE:
                events.append(WorkerLives(peer, CREDIT))  # its database works again
            return events, now
        alive: list[Event] = [WorkerLives(peer, CREDIT) for peer in sorted(engine.workers())]
        number = None if kind == TIME else NUMBERS[about]
        return alive, self._at(engine, now + APART_NS, number, kind)

    @staticmethod
    def _at(engine: Engine, then: int, number: int | None, kind: str) -> int:
        """Have one timer of one saga be due at an instant, and no other; or none at all."""
        for saga in engine.state.live.values():
            if saga.number != number:
                saga.due = saga.deadline = then + LATER_NS
            elif kind == DEADLINE:
                saga.due, saga.deadline = then + LATER_NS, then
            else:
                saga.due, saga.deadline = then, then + LATER_NS
        return then

    # -- stills ----------------------------------------------------------------------------------

    def _intern(self, engine: Engine, rows: tuple[bytes, ...], now_ns: int) -> int:
        form = canonical(engine)
        found = self._known.get(form)
        if found is not None:
            return found
        self._check_replay(engine, rows)
        facts = self._facts(engine)
        for saga, each in enumerate(facts):
            if not each.timed:
                raise Wrong(f"who waits for time is in the wheel: {SAGA_IDS[saga]} is not")
        workers = frozenset(peer.decode() for peer in engine.workers())
        still = Still(_pickled(engine), rows, now_ns, facts, workers)
        found = self._known[form] = len(self.stills)
        self.stills.append(still)
        return found

    def _facts(self, engine: Engine) -> tuple[SagaFacts, ...]:
        return tuple(_facts(engine, saga) for saga in self._sagas)

    def _check_replay(self, engine: Engine, rows: tuple[bytes, ...]) -> None:
        """Invariant 4: the journal's rows, read back and folded, give the live state."""
        replica = self._parts.state(DEFINITIONS, self._parts.finished())
        for seq, row in enumerate(rows, 1):
            batch = unpack_batch(row)
            replica.wall_ms = batch.wall_ms
            for entry in batch.entries:
                replica.apply(entry, seq)
        if snapshot(replica) != snapshot(engine.state):
            raise Wrong("replay gives the live state: it gives another")


def _current(saga: Live) -> tuple[int, int, int]:
    return saga.step, saga.direction, saga.attempt


def _attempt_of(letter: Letter, saga: Live | None) -> int:
    """Give a letter's attempt as this engine numbers them; an old one's is none that it knows."""
    if saga is None or (letter.step, letter.direction) != (saga.step, saga.direction):
        return 1
    return saga.attempt if letter.latest else saga.attempt - 1


def _letters(fx: Effects) -> list[Letter]:
    commands = [(COMMAND, each) for some in fx.commands.values() for each in some]
    commands += [(ALONE, each) for each in fx.alone.values()]
    return [
        Letter(kind, _INDEX[c.number], c.step, c.direction, True, 0, c.body) for kind, c in commands
    ]


def _check_sent(engine: Engine, fx: Effects) -> None:
    """Invariants 6 and 7: what leaves is what the state, and with it the journal, says is due."""
    leaving = [(peer, each) for peer, some in fx.commands.items() for each in some]
    for peer, command in (*leaving, *fx.alone.items()):
        saga = engine.state.live.get(command.number)
        if saga is None or _command(command) != (*_current(saga), saga.command_body()):
            raise Wrong(f"what leaves is what the journal says is due: {command}")
        if SERVICES[command.step - 1] != peer.decode():
            raise Wrong(f"a command goes to its step's service: {command}")
        if command.direction == COMPENSATION and not _is_next_back(saga):
            raise Wrong(f"compensations run in strict reverse: {command} {saga.states}")


def _check_kept(
    before: tuple[SagaFacts, ...],
    after: tuple[SagaFacts, ...],
    replies: tuple[tuple[int, int | None, bytes], ...],
) -> frozenset[int]:
    """Invariant 2: phases never go back, an end never changes, replies say what is durable.

    Returns:
        Sagas whose clients are told their end.
    """
    for saga, (was, now) in enumerate(zip(before, after, strict=True)):
        if now.phase < was.phase or (
            was.is_final and (now.phase, now.answer) != (was.phase, was.answer)
        ):
            raise Wrong(f"2  phases never go back, an end never changes: {SAGA_IDS[saga]}")
    heard = set()
    for saga, code, body in replies:
        if code is None and body == after[saga].answer:
            heard.add(saga)
        elif code is None:
            kind = wire.unpack(body)["type"]
            if kind != "cancel_ok" or not after[saga].cancelled:
                raise Wrong(f"2  a reply says what is durable: {kind} of {SAGA_IDS[saga]}")
    return frozenset(heard)


def _command(command: Command) -> tuple[int, int, int, bytes]:
    return command.step, command.direction, command.attempt, command.body


def _is_next_back(saga: Live) -> bool:
    """Whether all later steps are undone, or need not be."""
    return not any(1 <= state <= 2 for state in saga.states[saga.step :])


def _facts(engine: Engine, saga: int) -> SagaFacts:
    live = engine.state.live.get(NUMBERS[saga])
    if live is None:
        card = next((c for c in _cards(engine.state) if c.number == NUMBERS[saga]), None)
        if card is None:
            return SagaFacts()
        return SagaFacts(card.phase, cancelled=card.cancelled, answer=card.answer)
    waits = live.phase == RUNNING or live.where in (OUT, BACKING_OFF)
    return SagaFacts(
        live.phase,
        live.step,
        live.direction,
        live.where,
        tuple(live.states),
        tuple(live.results),
        live.cancelled,
        live.stuck,
        bool(live.waiters),
        not waits or _is_placed(engine, live),
        None if live.suspected() is None else (live.step, live.direction),
    )


def _cards(state: State) -> list[Card]:
    return state.finished.page(0, len(state.finished), len(state.finished))


def _is_placed(engine: Engine, saga: Live) -> bool:
    return saga.number in engine._course.wheel._ticks.get(saga.placed, ())[1:]


def canonical(engine: Engine) -> Any:
    """Give what makes a difference, as the top of this file says; hashable."""
    state = engine.state
    places = {
        id(queue): (pool.service, at)
        for pool in engine._course.pools.values()
        for at, queue in enumerate((*pool._queues, pool.suspects))
    }
    return (
        tuple(_saga(each, places) for each in state.live.values()),
        tuple((c.saga_id, c.number, c.phase, c.cancelled) for c in _cards(state)),
        tuple(
            (
                w.peer,
                w.alone if w.begun or w.alone in w.out else None,
                w.alone in w.out,
                w.begun,
                bool(w.capacity),
            )
            for w in sorted(engine._workers.values(), key=lambda w: w.peer)
        ),
        tuple(
            tuple(s.number for s in pool.suspects if s.queued_in is pool.suspects)
            for pool in engine._course.pools.values()
        ),
    )


def _saga(saga: Live, places: dict[int, tuple[str, int]]) -> Any:
    suspect = saga.suspected()
    attempt = saga.attempt
    if saga.direction == COMPENSATION:
        attempt = min(attempt, RETRY.stuck_after + 1)
    return (
        saga.number,
        saga.phase,
        saga.direction,
        saga.step,
        attempt,
        tuple(saga.states),
        tuple(saga.results),
        (saga.stuck, saga.quarantined, saga.cancelled),
        (saga.where, saga.worker),
        places.get(id(saga.queued_in)),
        None if suspect is None else suspect.deaths,
        len(saga.waiters),
        # Of a command that waits the same as of one that never did: see `Engine._has_timer`.
    )


# -- pickling: definitions are known by name -------------------------------------------------------


def _definition(name: str) -> Definition:
    return DEFINITIONS[name]


def _order_reader() -> Any:
    return next(iter(DEFINITIONS.values())).readers.order


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Definition):
            return _definition, (value.name,)
        if type(value) is types.BuiltinMethodType and value.__name__ == "decode":
            return _order_reader, ()
        return NotImplemented


def _pickled(engine: Engine) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(engine)
    return file.getvalue()


def unpickled(engine: bytes) -> Engine:
    """Give an engine as a still holds it; another each time."""
    found: Engine = pickle.loads(engine)
    return found
