"""Course: the moves that a saga can make, and what each writes down. Pure.

    begin -> queue -> ... -> finish(completed)
                   -> attempt_ended -> retried later, or turn_back
             turn_back -> compensate_next -> ... -> finish(aborted)

Who decides that a move is due stands above: `requests`, `outcomes`, and the engine for time.
"""

from collections.abc import Mapping

from sagacity.errors import Stuck
from sagacity.ids import ACTION
from shard import entries, phases
from shard.admission import Admission
from shard.deadlines import Wheel
from shard.effects import Effects
from shard.entries import AttemptEnded, Finished, Quarantined, TurnedBack
from shard.events import Instant, Peer
from shard.phases import RUNNING
from shard.pools import Pool
from shard.replies import answer, refuse
from shard.retries import RetryBudget, backoff_ns
from shard.sagas import (
    BACKING_OFF,
    COMPENSATED,
    HELD,
    MS,
    QUEUED,
    Definition,
    Live,
    Suspect,
    settle,
)
from shard.state import State
from shard.tally import Tally

TEXT_BYTES_MAX = 4_096  # of a reason or currency that a definition's own code gives


class Course:
    """What requests, outcomes and time do to the sagas of one shard.

    Args:
        shard: its index.
        slots: the slots that it owns.
        state: what its journal says.
        prices: SKU -> minor units.
        admission: whether a new start is taken.
        budget: a full retry budget; each service gets its own.
        tally: is told what happens.
        deadline_ms: of a saga.
    """

    def __init__(
        self,
        shard: int,
        slots: frozenset[int],
        state: State,
        prices: Mapping[str, int],
        admission: Admission,
        budget: RetryBudget,
        tally: Tally,
        deadline_ms: int,
    ) -> None:
        self.shard = shard
        self.slots = slots
        self.state = state
        self.prices = prices
        self.admission = admission
        self.tally = tally
        self.deadline_ms = deadline_ms
        self._waited_ns: dict[str, int] = {}  # by definition, as this batch began
        self._pace_ns: dict[str, int] = {}  # the slowest pool's, likewise
        self._loaded = False  # any of them is not 0
        self.seq = 0  # of the journal row that the current batch will become
        self._deadline = 0  # of the sagas that start in it, loop time
        self.deadline_wall_ms = 0  # the same, wall time
        self.wheel = Wheel()
        services = sorted({name for d in state.definitions.values() for name in d.services})
        self.pools = {name: Pool(name) for name in services}
        self.budgets = {name: budget.copy() for name in services}

    def any_worker(self, service: str) -> Peer | None:
        """Give a worker of a service; None when none is here."""
        pool = self.pools.get(service)
        return next(iter(pool.workers), None) if pool else None

    def begin(self, saga: Live, now: Instant) -> None:
        """Have the first command of a saga given out, and its deadline watched."""
        saga.deadline = self._deadline
        self._give_out(saga, now)

    def go_on(self, saga: Live, now: Instant, deadline: int) -> None:
        """Have the current command of a recovered saga given out, and its deadline watched.

        One that had failed or timed out waits like any retry: what a sick service left behind
        does not fall upon it at once because the shard was restarted. First attempts are paced by
        credit.
        """
        saga.deadline = deadline
        if saga.quarantined:
            saga.where = HELD
        elif saga.attempt > 1:
            self._back_off(saga, now)
        else:
            self._give_out(saga, now)

    def _give_out(self, saga: Live, now: Instant) -> None:
        self.queue(saga, now)
        # Looked at when its first attempt would be over: the usual saga never moves this place.
        first = now.ns + saga.definition.timeouts[saga.step - 1]
        self.arm(saga, min(first, saga.deadline))

    def turn_back(self, saga: Live, cause: str, reason: str, now: Instant, fx: Effects) -> None:
        """Turn a running saga back, for good; the reason is what its client will read."""
        entry = TurnedBack(saga.number, saga.step, cause, reason)
        fx.entries.append(entry)
        self.state.turned_back(entry, self.seq)
        self.tally.turned_back(saga.definition.name, cause)
        settle(saga)
        self.compensate_next(saga, now, fx)

    def send_now(self, saga: Live, now: Instant) -> None:
        """Give a saga's current command out again: no backoff, no quarantine keeps it any more."""
        if saga.where == HELD:
            saga.suspect = Suspect(saga.step, saga.direction)
        if saga.where in (BACKING_OFF, HELD):
            self.queue(saga, now)
            self.arm(saga, now.ns + saga.definition.timeouts[saga.step - 1])

    def compensate_next(self, saga: Live, now: Instant, fx: Effects) -> None:
        """Have the next step compensated; without one the saga is aborted."""
        if saga.step == 0:
            self.finish(saga, phases.ABORTED, now, fx)
        else:
            self.queue(saga, now)

    def finish(self, saga: Live, phase: int, now: Instant, fx: Effects) -> None:
        """End a saga: its answer, built once, goes to all who wait and never changes."""
        completed = phase == phases.COMPLETED
        try:
            final = saga.final_body(phase)
        except Exception as error:  # the definition's own code may raise anything
            self.tally.faulted("definition_answer", type(error).__name__, saga)
            final = saga.plain_body(phase)
        entry = Finished(saga.number, phase, final)
        fx.entries.append(entry)
        self.state.finish(entry, self.seq)
        for waiter in saga.waiters:
            answer(fx, waiter, final)
        outcome = "completed" if completed else "aborted"
        exposed = -1
        if saga.exposed_at:
            exposed = now.ns - saga.exposed_at
        elif COMPENSATED in saga.states:
            exposed = now.ns - saga.started_at  # its outcome was unknown: it may stand since then
        self.tally.finished(saga.definition.name, outcome, now.ns - saga.started_at, exposed)

    def attempt_ended(self, saga: Live, cause: str, text: str, now: Instant, fx: Effects) -> None:
        """An attempt counts: retry after a wait, or turn back, or mark the saga STUCK."""
        direction, step_number, attempt = saga.direction, saga.step, saga.attempt
        name = saga.definition.names[step_number - 1]
        retry = saga.definition.retries[step_number - 1]
        entry = AttemptEnded(saga.number, step_number, direction, attempt, cause, text)
        fx.entries.append(entry)
        was_stuck = saga.stuck
        self.state.attempt_ended(entry, self.seq)
        self.tally.attempted(name, direction, cause, now.ns - saga.sent_at)
        if direction == ACTION and attempt >= retry.attempts:
            self.turn_back(saga, entries.TIMED_OUT, f"Timed out: {name}", now, fx)
            return
        if not was_stuck:
            self._tell_if_stuck(saga, fx)
        self._back_off(saga, now)

    def _back_off(self, saga: Live, now: Instant) -> None:
        """Have the attempt that comes next wait its time, and then for the retry budget."""
        retry = saga.definition.retries[saga.step - 1]
        saga.where = BACKING_OFF
        saga.worker = None
        saga.due = now.ns + backoff_ns(retry, saga.saga_id, saga.step, saga.attempt - 1)
        self.arm(saga, self.look_at(saga))

    def command_raised(self, saga: Live, error: Exception, now: Instant, fx: Effects) -> None:
        """A definition's own code raised instead of building the current command.

        That is a failed attempt of this saga alone: it turns back, or becomes STUCK.
        """
        builder = "command" if saga.direction == ACTION else "undo"
        text = told_of(error)
        self.tally.faulted(f"definition_{builder}", type(error).__name__, saga)
        saga.sent_at = now.ns
        self.attempt_ended(saga, "failed", f"{builder} raised {text}"[:256], now, fx)

    def quarantine(self, saga: Live, deaths: int, now: Instant, fx: Effects) -> None:
        """The current command kills its workers: an unknown outcome, or a compensation STUCK."""
        direction, step_number = saga.direction, saga.step
        name = saga.definition.names[step_number - 1]
        entry = Quarantined(saga.number, step_number, direction, saga.attempt, deaths)
        fx.entries.append(entry)
        was_stuck = saga.stuck
        self.state.quarantined(entry, self.seq)
        self.tally.attempted(name, direction, "quarantined", now.ns - saga.sent_at)
        if direction == ACTION:
            self.turn_back(saga, entries.QUARANTINED, f"Timed out: {name}", now, fx)
            return
        settle(saga)
        saga.where = HELD
        if not was_stuck:
            self._tell_if_stuck(saga, fx)

    def _tell_if_stuck(self, saga: Live, fx: Effects) -> None:
        if saga.stuck:
            for waiter in saga.waiters:
                refuse(fx, waiter, self.stuck_error(saga))
            saga.waiters = ()

    def queue(self, saga: Live, now: Instant) -> None:
        """Have the current command of a saga given to a worker with credit."""
        self.pools[saga.definition.services[saga.step - 1]].offer(saga, now.ns)

    def begin_batch(self, now: Instant, seq: int) -> None:
        """Make ready for a batch: its row and its deadlines, which are one integer for all of it;
        how long commands wait for workers, and at what pace they go."""
        self.seq = seq
        self._deadline = now.ns + self.deadline_ms * MS
        self.deadline_wall_ms = now.wall_ms + self.deadline_ms
        waited = {name: pool.measure(now.ns) for name, pool in self.pools.items()}
        for name, definition in self.state.definitions.items():
            self._waited_ns[name] = max(waited[service] for service in definition.services)
            self._pace_ns[name] = max(self.pools[each].pace_ns for each in definition.services)
        self._loaded = any(self._waited_ns.values()) or any(self._pace_ns.values())

    def wait_ms(self, definition: Definition) -> int:
        """Give how long a saga that starts now must expect to wait for workers.

        Where a queue stands still, the age of its oldest command says it. Where it moves that
        would come too late: a burst makes a long queue, and for seconds a young one. There it is
        what all who are before it will take at the pace of the slowest pool.
        """
        if not self._loaded:
            return 0
        running = len(self.state.live) - self.state.compensating
        name = definition.name
        return max(self._waited_ns[name], running * self._pace_ns[name]) // MS

    @property
    def waited_ms(self) -> int:
        """How long the oldest of all commands has waited for a worker, as this batch began."""
        return max(self._waited_ns.values(), default=0) // MS

    def look_at(self, saga: Live) -> int:
        """Give the loop time at which a saga needs a look."""
        if saga.phase == RUNNING:
            return saga.deadline if saga.where == QUEUED else min(saga.due, saga.deadline)
        return saga.due

    def arm(self, saga: Live, at_ns: int) -> None:
        """Have a saga looked at by an instant; one place in the wheel is enough."""
        tick = Wheel.tick_of(at_ns)
        if saga.placed == 0 or tick < saga.placed:
            saga.placed = self.wheel.place(saga.number, tick)

    @staticmethod
    def stuck_error(saga: Live) -> Stuck:
        """Say which compensation does not succeed."""
        name = saga.definition.compensation_names[saga.step - 1]
        if saga.quarantined:
            text = f"{name} of {saga.saga_id} ends its workers; `retry` alone sends it again"
        else:
            text = f"{name} of {saga.saga_id} does not succeed; it is tried for ever"
        return Stuck(Stuck.prefix + text)


def writable(text: object) -> str:
    """Give a text of a definition's own code that an entry is to hold.

    Raises:
        TypeError, ValueError: it is none, is too long, or has a surrogate.
    """
    if type(text) is not str:
        raise TypeError(f"a text is expected, not {type(text).__name__}")
    if len(text.encode()) > TEXT_BYTES_MAX:
        raise ValueError(f"a text has at most {TEXT_BYTES_MAX} bytes")
    return text


def told_of(error: Exception) -> str:
    """Say what a definition's own code raised; whatever it is, the text can be written down."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # its own __str__ raises
        text = type(error).__name__
    return text[:200].encode(errors="replace").decode()
