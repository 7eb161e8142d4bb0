"""Engine: decides what a shard does. Pure: no clock, file, socket, random or log.

    step(events, now, seq, timers_until) -> Effects

`events` are a batch; `entries` of the effects must be durable before anything else of them leaves.
The same history and the same instants give the same effects, on every machine.
"""

from collections.abc import Mapping

from sagacity.errors import broken
from sagacity.ids import ACTION, COMPENSATION, barrier_key
from sagacity.wire import (
    BOOKS,
    CANCEL,
    DECLINED,
    FAILED,
    OK,
    OUTCOMES,
    REFUSED,
    REFUSED_FENCED,
    REFUSED_UNAVAILABLE,
    RETRY,
    SHOW,
    Answer,
    Command,
    decoder,
    encode,
)
from shard import entries, phases
from shard.admission import Admission
from shard.deadlines import Wheel
from shard.effects import Effects
from shard.entries import AttemptEnded, Batch, Finished, Opened, TurnedBack
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
from shard.phases import COMPENSATING, RUNNING
from shard.pools import Pool, Worker, sent
from shard.requests import Desk, answer, refuse, stuck_error
from shard.retries import RetryBudget, backoff_ns
from shard.sagas import (
    BACKING_OFF,
    COMPENSATED,
    MS,
    OUT,
    QUEUED,
    STEP_DECLINED,
    SUCCEEDED,
    UNKNOWN,
    Live,
    settle,
)
from shard.state import State
from shard.tally import Tally

RECOVERED_MIN_MS = 10_000  # what a deadline leaves at least after an outage
NOT_LIVE_RECHECK_NS = 500 * MS
CREDIT_SWEEP_NS = 1_000 * MS

_epoch_of = decoder(int)
_map = decoder(dict)
_SOONER = frozenset((CANCEL, RETRY, SHOW, BOOKS))  # before starts, which could end what they mean


class Engine:
    """The decisions of one shard.

    Args:
        shard: its index.
        slots: the slots that it owns.
        state: what its journal says.
        prices: SKU -> minor units.
        admission: whether a new start is taken.
        budget: makes the retry budget of a service.
        tally: is told what happens.
        deadline_ms: of a saga.
        worker_live_ns: a worker whose heartbeat is older is not live.
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
        deadline_ms: int = 30_000,
        worker_live_ns: int = 2_500 * MS,
    ) -> None:
        self.shard = shard
        self.slots = slots
        self.state = state
        self.prices = prices
        self.admission = admission
        self.tally = tally
        self.deadline_ms = deadline_ms
        self.seq = 0  # of the journal row that the current batch will become
        self._worker_live_ns = worker_live_ns
        self._wheel = Wheel()
        self._swept_at = 0
        self._workers: dict[Peer, Worker] = {}
        services = sorted({name for d in state.definitions.values() for name in d.services})
        self._pools = {name: Pool(name) for name in services}
        self._budgets = {name: budget.copy() for name in services}
        self._longest = max(t for d in state.definitions.values() for t in d.timeouts)
        self._desk = Desk(self)

    # -- the loop's side ------------------------------------------------------------------------

    def replay(self, batch: Batch, seq: int) -> None:
        """Take in a row of the journal; before `resume` only."""
        for entry in batch.entries:
            self.state.apply(entry, seq)

    def resume(self, cluster_id: str, now: Instant, seq: int) -> Effects:
        """Take the shard over: the next epoch, and every running saga goes on.

        A deadline has what was left of it, at least 10 s and at most the whole: neither an outage
        nor a clock that jumped turns sagas back in bulk.
        """
        self.seq = seq
        fx = Effects()
        opened = Opened(cluster_id, self.shard, self.state.epoch + 1)
        fx.entries.append(opened)
        self.state.opened(opened, seq)
        for saga in self.state.live.values():
            left = saga.deadline_ms - now.wall_ms
            left = min(max(left, min(RECOVERED_MIN_MS, self.deadline_ms)), self.deadline_ms)
            saga.started_at = now.ns
            self.begin(saga, now, deadline=now.ns + left * MS)
        self.tally.recovered(len(self.state.live))
        return fx

    def step(self, events: list[Event], now: Instant, seq: int, timers_until: int) -> Effects:
        """Decide about a batch: outcomes, cancels and reads, starts, timers; then give commands.

        Args:
            events: whatever came while the batch before was written.
            now: one instant for all of them.
            seq: of the journal row that the entries will become.
            timers_until: loop time; what was due by then fires, after the answers.
        """
        self.seq = seq
        fx = Effects()
        requests: list[Requests] = []
        for event in events:
            kind = type(event)
            if kind is Answered:
                self._answered(event, now, fx)  # type: ignore[arg-type]  # narrowed by `kind`
            elif kind is Requests:
                requests.append(event)  # type: ignore[arg-type]  # likewise
            else:
                self._of_worker(event, now)
        take = self._desk.take
        for batch in requests:
            for request in batch.items:
                if request.kind in _SOONER:
                    take(batch.origin, request, now, fx)
        for batch in requests:
            for request in batch.items:
                if request.kind not in _SOONER:
                    take(batch.origin, request, now, fx)
        self._fire(timers_until, now, fx)
        self._assign(now, fx)
        return fx

    def next_due(self) -> int | None:
        """Give the loop time at which a timer is next to be looked at."""
        return self._wheel.next_ns()

    @property
    def inflight(self) -> int:
        """Sagas that are not final."""
        return len(self.state.live)

    def any_worker(self, service: str) -> Peer | None:
        """Give a worker of a service; None when none is here."""
        pool = self._pools.get(service)
        return next(iter(pool.workers), None) if pool else None

    def workers(self) -> list[Peer]:
        """Give every worker's connection."""
        return list(self._workers)

    def services(self) -> frozenset[str]:
        """Give the services that the definitions need."""
        return frozenset(self._pools)

    def busy(self, service: str) -> tuple[int, int, int]:
        """Give commands out, capacity, and sagas waiting, of a service."""
        pool = self._pools[service]
        out = sum(len(worker.out) for worker in pool.workers.values())
        return out, sum(w.capacity for w in pool.workers.values()), len(pool.waiting)

    # -- workers --------------------------------------------------------------------------------

    def _of_worker(self, event: Event, now: Instant) -> None:
        if isinstance(event, WorkerCame):
            self._went(event.worker)
            pool = self._pools[event.service]
            worker = Worker(event.worker, pool, event.incarnation, event.capacity, now.ns)
            self._workers[event.worker] = pool.workers[event.worker] = worker
        elif isinstance(event, WorkerLives):
            known = self._workers.get(event.worker)
            if known is not None:
                known.seen_at = now.ns
                known.capacity = event.capacity
        elif isinstance(event, WorkerWent):
            self._went(event.worker)

    def _went(self, peer: Peer) -> None:
        """A worker is gone: what it had goes to another; such a delivery is no attempt."""
        worker = self._workers.pop(peer, None)
        if worker is None:
            return
        del worker.pool.workers[peer]
        lost = []
        for key in worker.out:
            saga = self.state.live.get(key >> 5)
            if saga is not None and saga.worker == peer and saga.where == OUT:
                lost.append(saga)
        worker.pool.offer_again(lost)

    def _answered(self, event: Answered, now: Instant, fx: Effects) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            self.tally.absorbed("unknown_worker")
            return
        worker.seen_at = now.ns
        for each in event.items:
            self._outcome(worker, each, now, fx)

    # -- outcomes -------------------------------------------------------------------------------

    def _outcome(self, worker: Worker, got: Answer, now: Instant, fx: Effects) -> None:
        """Take one answer; what moves nothing is absorbed and counted."""
        worker.out.pop(barrier_key(got.number, got.step, got.direction), None)
        saga = self.state.live.get(got.number)
        if saga is None or saga.saga_id != got.saga_id:
            self.tally.absorbed("answer_unknown_saga")
            return
        definition = saga.definition
        if not (
            1 <= got.step <= definition.last
            and got.direction in (ACTION, COMPENSATION)
            and OK <= got.outcome <= REFUSED_UNAVAILABLE
        ):
            self.tally.faulted("answer_out_of_range")
            return
        if definition.services[got.step - 1] != worker.pool.service:
            self.tally.faulted("answer_wrong_pool")
            return
        current = got.step == saga.step and got.direction == saga.direction
        if got.outcome >= REFUSED:
            self._refused(worker, saga, got, current, fx)
        elif got.outcome == FAILED or (got.direction == COMPENSATION and got.outcome == DECLINED):
            if current and saga.where == OUT and self._is_latest(saga, got):
                self._attempt_ended(saga, "failed", _text(got.body), now, fx)
            else:
                self.tally.absorbed("answer_late")
        elif not definition.outcome_readable(got.step, got.direction, got.outcome == OK, got.body):
            self.tally.faulted("answer_malformed")
        elif got.direction == ACTION:
            self._action_settled(saga, got, current, now, fx)
        elif current and saga.phase == COMPENSATING:
            self._compensation_succeeded(saga, got, now, fx)
        else:
            self.tally.absorbed("answer_late")

    def _is_latest(self, saga: Live, got: Answer) -> bool:
        return got.attempt == saga.attempt and got.epoch == self.state.epoch

    def _refused(self, worker: Worker, saga: Live, got: Answer, current: bool, fx: Effects) -> None:
        """A refusal is no outcome and never moves a saga."""
        if got.outcome == REFUSED_FENCED:
            try:
                known = _epoch_of(got.body)
            except ValueError:
                known = 0
            if known > self.state.epoch:
                fx.fenced_by = known
            self.tally.absorbed("refused_fenced")
        elif got.outcome == REFUSED_UNAVAILABLE:
            worker.capacity = 0  # until its heartbeat says otherwise
            if current and saga.where == OUT and saga.worker == worker.peer:
                worker.pool.offer_again([saga])
            self.tally.absorbed("refused_unavailable")
        elif current and saga.where == OUT and self._is_latest(saga, got):
            self.tally.faulted(OUTCOMES[got.outcome])
        else:
            self.tally.absorbed(OUTCOMES[got.outcome])

    def _action_settled(
        self, saga: Live, got: Answer, current: bool, now: Instant, fx: Effects
    ) -> None:
        known = saga.states[got.step - 1]
        if known != UNKNOWN:
            settled_as = {SUCCEEDED: OK, STEP_DECLINED: DECLINED}.get(known)
            if known == COMPENSATED or settled_as == got.outcome:
                self.tally.absorbed("answer_repeated")
            else:
                self.tally.faulted("answer_contradicts")  # the first stands; or no command did
            return
        if saga.phase == COMPENSATING and got.outcome == DECLINED:
            self.tally.absorbed("answer_late")  # its compensation is under way and stays so
            return
        if not (current or saga.phase == COMPENSATING):
            broken("an unknown step that is not current", saga=saga)
        fx.entries.append(got)
        self.state.answered(got, self.seq)
        definition, at = saga.definition, got.step - 1
        name, took = definition.names[at], now.ns - saga.sent_at
        self.tally.attempted(name, ACTION, OUTCOMES[got.outcome], took)
        if saga.phase == COMPENSATING:
            return  # late: told in the history; the compensation undoes it
        self._budgets[definition.services[at]].succeeded()
        if got.outcome == DECLINED:
            reason = definition.saga.steps[at].reason(definition.readers.declined[at](got.body))
            self.turn_back(saga, entries.DECLINED, reason, now, fx)
        elif got.step == definition.last:
            self._finish(saga, phases.COMPLETED, now, fx)
        else:
            self._queue(saga)

    def _compensation_succeeded(self, saga: Live, got: Answer, now: Instant, fx: Effects) -> None:
        definition, at = saga.definition, got.step - 1
        name = definition.names[at]
        self.tally.attempted(name, COMPENSATION, "ok", now.ns - saga.sent_at)
        self.tally.compensated(definition.name, name, saga.cause)
        self._budgets[definition.services[at]].succeeded()
        fx.entries.append(got)
        self.state.answered(got, self.seq)
        self._compensate_next(saga, now, fx)

    # -- decisions ------------------------------------------------------------------------------

    def begin(self, saga: Live, now: Instant, deadline: int | None = None) -> None:
        """Have the current command of a saga given out, and its deadline watched."""
        saga.deadline = now.ns + self.deadline_ms * MS if deadline is None else deadline
        self._queue(saga)
        # Looked at when its first attempt would be over: the usual saga never moves this place.
        first = now.ns + saga.definition.timeouts[saga.step - 1]
        self._arm(saga, min(first, saga.deadline))

    def turn_back(self, saga: Live, cause: str, reason: str, now: Instant, fx: Effects) -> None:
        """Turn a running saga back, for good; the reason is what its client will read."""
        entry = TurnedBack(saga.number, saga.step, cause, reason)
        fx.entries.append(entry)
        self.state.turned_back(entry, self.seq)
        settle(saga)
        self._compensate_next(saga, now, fx)

    def send_now(self, saga: Live, now: Instant) -> None:
        """Give a saga's current command out again without waiting for its backoff."""
        if saga.where == BACKING_OFF:
            self._queue(saga)
            self._arm(saga, now.ns + saga.definition.timeouts[saga.step - 1])

    def _compensate_next(self, saga: Live, now: Instant, fx: Effects) -> None:
        if saga.step == 0:
            self._finish(saga, phases.ABORTED, now, fx)
        else:
            self._queue(saga)

    def _finish(self, saga: Live, phase: int, now: Instant, fx: Effects) -> None:
        completed = phase == phases.COMPLETED
        plan = saga.definition.saga
        run = saga.run()
        final = encode(plan.completed(run) if completed else plan.aborted(run, saga.reason))
        entry = Finished(saga.number, phase, final)
        fx.entries.append(entry)
        self.state.finish(entry, self.seq)
        for waiter in saga.waiters:
            answer(fx, waiter, final)
        outcome = "completed" if completed else "aborted"
        self.tally.finished(saga.definition.name, outcome, now.ns - saga.started_at)

    def _attempt_ended(self, saga: Live, cause: str, text: str, now: Instant, fx: Effects) -> None:
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
        if saga.stuck and not was_stuck:
            for waiter in saga.waiters:
                refuse(fx, waiter, stuck_error(saga))
            saga.waiters.clear()
        saga.where = BACKING_OFF
        saga.worker = None
        saga.due = now.ns + backoff_ns(retry, saga.saga_id, step_number, attempt)
        self._arm(saga, self._look_at(saga))

    # -- commands and time ----------------------------------------------------------------------

    def _queue(self, saga: Live) -> None:
        self._pools[saga.definition.services[saga.step - 1]].offer(saga)

    def _assign(self, now: Instant, fx: Effects) -> None:
        """Give commands to workers with credit; each attempt's clock starts here."""
        for pool in self._pools.values():
            while pool.waiting:
                worker = pool.freest()
                if worker is None:
                    break
                share = -(-len(pool.waiting) // len(pool.workers))
                commands = fx.commands.setdefault(worker.peer, [])
                for _ in range(min(share, worker.capacity - len(worker.out))):
                    saga = pool.take()
                    if saga is None:
                        break
                    commands.append(self._command(saga))
                    sent(worker, saga, now.ns, saga.definition.timeouts[saga.step - 1])
                    self._arm(saga, self._look_at(saga))
        for peer in [peer for peer, commands in fx.commands.items() if not commands]:
            del fx.commands[peer]

    def _command(self, saga: Live) -> Command:
        return Command(
            saga.saga_id,
            saga.step,
            saga.direction,
            self.state.epoch,
            saga.number,
            saga.attempt,
            saga.headers,
            saga.command_body(),
        )

    def _look_at(self, saga: Live) -> int:
        """Give the loop time at which a saga needs a look."""
        if saga.phase == RUNNING:
            return saga.deadline if saga.where == QUEUED else min(saga.due, saga.deadline)
        return saga.due

    def _arm(self, saga: Live, at_ns: int) -> None:
        tick = Wheel.tick_of(at_ns)
        if saga.placed == 0 or tick < saga.placed:
            self._wheel.place(saga.number, tick)
            saga.placed = tick

    def _fire(self, until: int, now: Instant, fx: Effects) -> None:
        for tick, number in self._wheel.take(until):
            saga = self.state.live.get(number)
            if saga is None or saga.placed != tick:
                continue
            saga.placed = 0
            self._look(saga, until, now, fx)
            if saga.placed == 0 and number in self.state.live and self._has_timer(saga):
                self._arm(saga, self._look_at(saga))
        if now.ns - self._swept_at >= CREDIT_SWEEP_NS:
            self._swept_at = now.ns
            for pool in self._pools.values():
                pool.forget_before(now.ns - self._longest, self._keeps)

    @staticmethod
    def _has_timer(saga: Live) -> bool:
        return saga.phase == RUNNING or saga.where in (OUT, BACKING_OFF)

    def _look(self, saga: Live, until: int, now: Instant, fx: Effects) -> None:
        """A saga's place in the wheel came up: see what is due by `until`, not yet by `now`."""
        if saga.phase == RUNNING and until >= saga.deadline:
            name = saga.definition.names[saga.step - 1]
            self.turn_back(saga, entries.DEADLINE, f"Timed out: {name}", now, fx)
        elif saga.where == BACKING_OFF and until >= saga.due:
            service = saga.definition.services[saga.step - 1]
            wait = self._budgets[service].take(now.ns)
            if wait:
                saga.due = now.ns + wait
            else:
                self._queue(saga)
        elif saga.where == OUT and until >= saga.due:
            worker = self._workers.get(saga.worker or b"")
            if worker is None or now.ns - worker.seen_at > self._worker_live_ns:
                saga.due = now.ns + NOT_LIVE_RECHECK_NS  # no attempt: it may never have had it
                return
            worker.out.pop(barrier_key(saga.number, saga.step, saga.direction), None)
            self._attempt_ended(saga, "timed_out", "", now, fx)

    def _keeps(self, key: int, worker: Worker) -> bool:
        """Say whether a command that is out for long is still its saga's current one."""
        saga = self.state.live.get(key >> 5)
        return (
            saga is not None
            and saga.where == OUT
            and saga.worker == worker.peer
            and key == barrier_key(saga.number, saga.step, saga.direction)
        )


def _text(body: bytes) -> str:
    """Read a failure's text for the history; it decides nothing."""
    try:
        return str(_map(body).get("text", ""))[:256]
    except (ValueError, RecursionError):
        return ""
