"""Sagas in memory: the running ones, the finished ones' cards, definitions made ready. Pure."""

from array import array
from collections import deque
from hashlib import blake2b
from typing import Any

from msgspec import Struct

from sagacity.ids import ACTION, order_id
from sagacity.saga import Readers, Retry, Run, Saga
from sagacity.traces import TRACEPARENT
from sagacity.wire import OK, Answer, encode
from shard.events import Peer
from shard.phases import COMPLETED, PHASES, RUNNING

# What is known of a step's action.
UNTOUCHED = 0
UNKNOWN = 1  # commanded, or about to be: it may have taken effect
SUCCEEDED = 2
STEP_DECLINED = 3
COMPENSATED = 4

# Where the current command of a saga is.
IDLE = 0
QUEUED = 1  # waits for a worker with credit
OUT = 2  # a worker has it
BACKING_OFF = 3
HELD = 4  # quarantined: nobody gets it until an operator asks

DEATHS_MAX = 3  # of workers that ran a command alone; then it is quarantined

MS = 1_000_000  # nanoseconds
NO_HEADERS: dict[str, str] = {}
ROWS_TOLD = 40  # rows of a saga that `show` reads before it leaves attempts out
LATE_ROWS_TOLD = 20  # the last attempts of a compensation that has been tried often


class Suspect:
    """A command that was unanswered when its worker died: it may be what killed it.

    Never journalled: after a restart of the shard nobody is suspected.
    """

    __slots__ = ("deaths", "direction", "step")

    def __init__(self, step: int, direction: int) -> None:
        self.step = step
        self.direction = direction
        self.deaths = 0  # of workers that had begun it, alone


class Definition:
    """A saga's definition as the engine reads it: decoders made, times in nanoseconds."""

    def __init__(self, saga: Saga, retry: Retry) -> None:
        self.saga = saga
        self.name = saga.name
        self.version = saga.version
        self.last = len(saga.steps)
        self.readers = Readers(saga)
        self.services = [step.service for step in saga.steps]
        self.names = [step.name for step in saga.steps]
        self.compensation_names = [step.compensation_name for step in saga.steps]
        self.retries = [step.retry or retry for step in saga.steps]
        self.charging = next(
            (at for at, step in enumerate(saga.steps) if step.charges), None
        )  # index of the step that moves the amount
        self.timeouts = [each.timeout_ms * MS for each in self.retries]
        # By direction, as a step's index finds them: what an `ok` of it is read with.
        self._ok = (self.readers.ok, self.readers.compensated)
        self.builders = [step.command for step in saga.steps]

    def fingerprint(self, order: bytes) -> bytes:
        """Give the 16 bytes that tell one order's content from another's."""
        return blake2b(order, digest_size=16).digest()

    def reply(self, got: Answer) -> Any:
        """Read a reply's body, as the type that its step promises.

        Raises:
            ValueError, RecursionError: it has another shape.
        """
        readers = self._ok[got.direction] if got.outcome == OK else self.readers.declined
        return readers[got.step - 1](got.body)

    def readable(self, got: Answer) -> bool:
        """Say whether a reply's body has the shape that its step promises, and is about it."""
        try:
            said = self.reply(got)
        except (ValueError, RecursionError):
            return False
        is_about_it: bool = said.saga_id == got.saga_id and said.step == got.step
        return is_about_it

    def result(self, step: int, body: bytes | None) -> Any:
        """Read the `ok` body of a step's action; None stays None."""
        return None if body is None else self.readers.ok[step - 1](body)


class Live:
    """A saga that is not final.

    Plain and slotted (making one costs 0.25 us, DESIGN 8). What the journal says of it is changed
    by `State` alone; where its command is and what time it has, by `course`, `pools` and `engine`.
    """

    __slots__ = (
        "amount",
        "attempt",
        "cancelled",
        "cause",
        "deadline",
        "deadline_ms",
        "definition",
        "direction",
        "due",
        "due_seq",
        "exposed_at",
        "fingerprint",
        "headers",
        "late_seqs",
        "number",
        "order_id",
        "phase",
        "placed",
        "quarantined",
        "queued_at",
        "queued_in",
        "reason",
        "results",
        "run",
        "saga_id",
        "sent_at",
        "seqs",
        "started_at",
        "started_ms",
        "states",
        "step",
        "stuck",
        "suspect",
        "waiters",
        "where",
        "worker",
    )

    def __init__(
        self,
        definition: Definition,
        number: int,
        saga_id: str,
        order: bytes,
        fingerprint: bytes,
        amount: int,
        order_count: int,
        slot: int,
        deadline_ms: int,
        headers: dict[str, str],
        started_ms: int = 0,
    ) -> None:
        self.definition = definition
        self.number = number
        self.saga_id = saga_id
        self.order_id = order_id(order_count, slot)
        # What the definition's builders may read; made once, it is asked for at each command.
        self.run = Run(saga_id, order, definition.readers.order, amount, self.order_id)
        self.fingerprint = fingerprint
        self.amount = amount
        self.headers = headers or NO_HEADERS  # one for all: 64 bytes a saga
        self.started_ms = started_ms  # wall time of its first row; for people
        self.phase = RUNNING
        self.direction = ACTION  # of the current command
        self.step = 1  # the step whose command is current
        self.states = [UNTOUCHED] * definition.last
        self.states[0] = UNKNOWN
        self.results: list[bytes | None] = [None] * definition.last
        self.attempt = 1  # of the current command; counts only those that count
        self.due_seq = 0  # the journal row that made the current command due
        self.cause = ""
        self.reason = ""
        self.stuck = False
        self.quarantined = False  # its compensation; sent again only when an operator asks
        self.cancelled = False
        self.waiters: tuple[Waiter, ...] = ()  # mostly none or one: a list takes 72 bytes more
        self.seqs: list[int] = []  # journal rows that speak of it, but for attempts without end
        self.late_seqs: deque[int] | None = None  # the last rows of such attempts
        # Where it stands in time; loop time, set by the engine, never journalled.
        self.deadline_ms = deadline_ms
        self.deadline = 0
        self.due = 0
        self.placed = 0  # tick of its one place in the timer wheel
        self.started_at = 0
        self.exposed_at = 0  # when its first success was known; 0 where that was in another life
        self.sent_at = 0
        self.where = IDLE
        self.queued_in: object = None  # the queue of a pool in which it has a place
        self.queued_at = 0  # when it got that place
        self.worker: Peer | None = None
        self.suspect: Suspect | None = None  # of this command or, read `suspected`, an earlier one

    def suspected(self) -> Suspect | None:
        """Give what is held against the current command; None where nothing is."""
        found = self.suspect
        if found is None or (found.step, found.direction) != (self.step, self.direction):
            return None
        return found

    def command_body(self) -> bytes:
        """Build the body of the current command; the same facts give the same bytes."""
        step, definition = self.step, self.definition
        if self.phase == RUNNING:
            return encode(definition.builders[step - 1](self.run, step))
        result = definition.result(step, self.results[step - 1])
        return encode(definition.saga.steps[step - 1].undo(self.run, step, result))

    def final_body(self, phase: int) -> bytes:
        """Build the answer that its client gets in the end.

        Raises:
            Exception: whatever the definition's own code raises.
        """
        plan = self.definition.saga
        completed = phase == COMPLETED
        body = plan.completed(self.run) if completed else plan.aborted(self.run, self.reason)
        if not isinstance(body, Struct):
            raise TypeError(f"a final answer is a Struct, not {type(body).__name__}")
        return encode(body)

    def plain_body(self, phase: int) -> bytes:
        """Give a final answer that needs nothing of the definition's code."""
        completed = phase == COMPLETED
        body = {
            "type": self.definition.saga.request_type + ("_complete" if completed else "_failed"),
            "saga_id": self.saga_id,
            "status": PHASES[phase],
        }
        return encode(body if completed else {**body, "reason": self.reason})

    def tell_late(self, seq: int) -> None:
        """Keep a row of a compensation that has been tried often: the last ones, not all."""
        if self.late_seqs is None:
            self.late_seqs = deque(maxlen=LATE_ROWS_TOLD)
        self.late_seqs.append(seq)

    def rows(self) -> list[int]:
        """Give the journal rows that tell its history, ascending; bounded, however long it is."""
        if self.late_seqs is None:
            return self.seqs
        return sorted({*self.seqs, *self.late_seqs})

    def dossier(self) -> "Dossier":
        """Give what `show` needs to find and tell its history."""
        return Dossier(
            saga_id=self.saga_id,
            number=self.number,
            saga=self.definition.name,
            phase=self.phase,
            stuck=self.stuck,
            order_id=self.order_id,
            amount=self.amount,
            seqs=tuple(self.rows()),
        )

    def __repr__(self) -> str:
        return f"<Live {self.saga_id} phase={self.phase} step={self.step} attempt={self.attempt}>"


def settle(saga: Live) -> None:
    """A saga's command is no longer wanted, wherever it is."""
    saga.where = IDLE  # a place in a pool's queue is kept: the compensation may take it
    saga.worker = None


class Waiter(Struct, frozen=True, gc=False):
    """Who waits for a saga's outcome; `msg_id` where the request's body had one."""

    origin: Peer
    request: int
    msg_id: int | None


class Card(Struct, frozen=True, gc=False):
    """A finished saga: all that its id must still answer.

    Args:
        number: its number.
        saga_id: its id.
        saga: name of its definition.
        phase: COMPLETED or ABORTED.
        fingerprint: 16 bytes.
        answer: the final body.
        amount: minor units.
        order_id: taken at the start.
        cancelled: a client's cancel was accepted.
        seqs: journal rows that speak of it, packed as an array of 64-bit integers.
        started_ms: wall time of its first row; for people.
        ended_ms: wall time of its last row; likewise.
        traceparent: as it came with the start; empty where none did.
    """

    number: int
    saga_id: str
    saga: str
    phase: int
    fingerprint: bytes
    answer: bytes
    amount: int
    order_id: str
    cancelled: bool
    seqs: bytes
    started_ms: int = 0
    ended_ms: int = 0
    traceparent: str = ""

    def dossier(self) -> "Dossier":
        """Give what `show` needs to find and tell its history."""
        return Dossier(
            saga_id=self.saga_id,
            number=self.number,
            saga=self.saga,
            phase=self.phase,
            stuck=False,
            order_id=self.order_id,
            amount=self.amount,
            seqs=tuple(array("q", self.seqs)),
        )


class Tombstone(Struct, frozen=True, gc=False):
    """An id that was used and is past retention: it never runs again."""


def card_of(saga: Live, phase: int, answer: bytes, ended_ms: int) -> Card:
    """Make the card of a saga that ends."""
    return Card(
        saga.number,
        saga.saga_id,
        saga.definition.name,
        phase,
        saga.fingerprint,
        answer,
        saga.amount,
        saga.order_id,
        saga.cancelled,
        array("q", saga.rows()).tobytes(),
        saga.started_ms,
        ended_ms,
        saga.headers.get(TRACEPARENT, ""),
    )


class Dossier(Struct, frozen=True, kw_only=True):
    """What `show` says first of a saga, and where its history stands."""

    saga_id: str
    number: int
    saga: str
    phase: int
    stuck: bool
    order_id: str
    amount: int
    seqs: tuple[int, ...]
