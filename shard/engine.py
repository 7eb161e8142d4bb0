"""Engine: decides what a shard does. Pure: no clock, file, socket, random or log.

    step(events, now, seq, timers_until) -> Effects

`events` are a batch; `entries` of the effects must be durable before anything else of them leaves.
The same history and the same instants give the same effects, on every machine.
"""

from collections.abc import Mapping

from sagacity.errors import SagacityError
from sagacity.ids import STEP_BITS, barrier_key, count_of
from sagacity.ranges import Range, ranges_of
from sagacity.wire import (
    BOOKS,
    CANCEL,
    LIST,
    RECALL,
    RETRY,
    SHOW,
    START,
    SUBMIT,
    Command,
    Proceed,
    Request,
)
from shard import entries
from shard.admission import Admission
from shard.course import Course
from shard.deadlines import TICK_NS
from shard.effects import Effects
from shard.entries import Batch, Opened, Ran
from shard.events import (
    Answered,
    CommandBegun,
    Event,
    Instant,
    ListApplied,
    Peer,
    Requests,
    WorkerCame,
    WorkerLives,
    WorkerWent,
)
from shard.forgetting import Forgetting
from shard.guard import Loss
from shard.outcomes import Outcomes
from shard.phases import RUNNING
from shard.pools import Pool, Worker, sent
from shard.requests import Desk
from shard.retention import Retention
from shard.retries import RetryBudget
from shard.sagas import (
    BACKING_OFF,
    COMPENSATED,
    DEATHS_MAX,
    MS,
    OUT,
    SUCCEEDED,
    Live,
    Suspect,
)
from shard.state import State
from shard.tally import Tally

RECOVERED_MIN_MS = 10_000  # what a deadline leaves at least after an outage
NOT_LIVE_RECHECK_NS = 500 * MS
# All who waited ask again at once after a restart, new ones with them. Until a pool's pace is
# measured, which takes half a second, the shard takes no more than twice what it went on with.
RECOVERED_TIMES = 2
RECOVERED_ALLOWED_MIN = 256  # sagas; so many a worker takes at once anyway
RECOVERED_GUESS_NS = 5_000 * MS
CREDIT_SWEEP_NS = 1_000 * MS

READS = frozenset((SHOW, BOOKS, LIST))  # answered by a shard that may not write
STARTS = frozenset((START, SUBMIT, RECALL))  # likewise where their id is known: they are repeats
_SOONER = frozenset((CANCEL, RETRY, *READS))  # before starts, which could end what they mean


class Engine:
    """The decisions of one shard.

    Args:
        shard: its index.
        slots: the slots that it owns.
        state: what its journal says.
        prices: SKU -> minor units.
        admission: whether a new start is taken.
        budget: a full retry budget; each service gets its own.
        tally: is told what happens.
        deadline_ms: of a saga.
        worker_live_ns: a worker whose heartbeat is older is not live.
        retention_ms: how long a finished saga is kept, while the shard runs.
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
        retention_ms: int = 604_800_000,
    ) -> None:
        self.state = state
        self.admission = admission
        self.tally = tally
        self._worker_live_ns = worker_live_ns
        self._course = course = Course(
            shard, slots, state, prices, admission, budget, tally, deadline_ms
        )
        self._workers: dict[Peer, Worker] = {}
        self._swept_at = 0
        self._longest = max(t for d in state.definitions.values() for t in d.timeouts)
        self._desk = Desk(course)
        self._outcomes = Outcomes(course)
        self._forgetting = Forgetting(course)
        self._retention = Retention(retention_ms)

    @property
    def shard(self) -> int:
        """The shard's index."""
        return self._course.shard

    @property
    def seq(self) -> int:
        """The journal row that the last batch of effects becomes."""
        return self._course.seq

    @property
    def deadline_ms(self) -> int:
        """From a saga's start until it turns back."""
        return self._course.deadline_ms

    # -- the loop's side ------------------------------------------------------------------------

    def replay(self, batch: Batch, seq: int) -> None:
        """Take in a row of the journal; before `resume` only."""
        self.state.wall_ms = batch.wall_ms
        for entry in batch.entries:
            self.state.apply(entry, seq)

    def resume(self, cluster_id: str, now: Instant, seq: int) -> Effects:
        """Take the shard over at once: `opening`, then `go_on`."""
        fx = Effects()
        opened = self.opening(cluster_id)
        fx.entries.append(opened)
        self.go_on(opened, now, seq)
        self.tally.recovered(self.inflight)
        return fx

    def opening(self, cluster_id: str, loss: Loss | None = None) -> Opened:
        """Give the entry with which this process takes the shard over; changes nothing."""
        if loss is None:
            return Opened(cluster_id, self.shard, self.state.epoch + 1)
        return Opened(cluster_id, self.shard, loss.epoch, loss.number, loss.orders)

    def go_on(self, opened: Opened, now: Instant, seq: int) -> None:
        """Have every running saga go on, in the epoch that journal row `seq` has opened.

        A deadline has what was left of it, at least 10 s and at most the whole: neither an outage
        nor a clock that jumped turns sagas back in bulk.
        """
        self._course.seq = seq
        self._retention.begin(self.state.ran_ms, now)
        self.state.wall_ms = now.wall_ms
        self.state.opened(opened, seq)
        for saga in self.state.live.values():
            left = saga.deadline_ms - now.wall_ms
            left = min(max(left, min(RECOVERED_MIN_MS, self.deadline_ms)), self.deadline_ms)
            ran = self.deadline_ms - (saga.deadline_ms - now.wall_ms)
            saga.started_at = now.ns - max(ran, 0) * MS
            if SUCCEEDED in saga.states or COMPENSATED in saga.states:
                saga.exposed_at = saga.started_at  # when it was is not known: no later than this
            self._course.go_on(saga, now, deadline=now.ns + left * MS)
        self._guess_paces(now)

    def wait(self, events: list[Event], now: Instant, refusal: SagacityError) -> Effects:
        """Take a batch while nothing may be written: reads and repeats are answered, no more.

        A repeat must not be refused: its start may have been taken before, by the shard that was
        here before this one. Workers are taken note of and get no commands. What they answer is
        asked of them again when the shard goes on, under the same number: nothing is lost.

        Returns:
            Effects without entries.
        """
        fx = Effects()
        for event in events:
            if isinstance(event, WorkerCame | WorkerLives | WorkerWent):
                self._of_worker(event, now, fx)
            elif not isinstance(event, Requests):
                self.tally.absorbed("answer_while_waiting")
        for batch in (event for event in events if isinstance(event, Requests)):
            for request in batch.items:
                kind = request.kind
                if kind in READS or (kind in STARTS and self._desk.knows(request)):
                    self._desk.take(batch.origin, request, now, fx)
                else:
                    self._desk.refuse(batch.origin, request, refusal, fx)
        return fx

    def _guess_paces(self, now: Instant) -> None:
        running = len(self.state.live) - self.state.compensating
        if running:
            allowed = max(RECOVERED_TIMES * running, RECOVERED_ALLOWED_MIN)
            pace_ns = self.admission.queue_age_max_ms * MS // allowed
            for pool in self._course.pools.values():
                pool.guess_pace(pace_ns, now.ns + RECOVERED_GUESS_NS)

    def step(self, events: list[Event], now: Instant, seq: int, timers_until: int) -> Effects:
        """Decide about a batch: outcomes, cancels and reads, starts, timers; then give commands.

        Args:
            events: whatever came while the batch before was written.
            now: one instant for all of them.
            seq: of the journal row that the entries will become.
            timers_until: loop time; what was due by then fires, after the answers.
        """
        self._course.begin_batch(now, seq)
        self.state.wall_ms = now.wall_ms
        fx = Effects()
        requests: list[Requests] = []
        for event in events:
            kind = type(event)
            if kind is Answered:
                self._answered(event, now, fx)  # type: ignore[arg-type]  # narrowed by `kind`
            elif kind is Requests:
                requests.append(event)  # type: ignore[arg-type]  # likewise
            else:
                self._of_worker(event, now, fx)
        self._take(requests, now, fx)
        self._fire(timers_until, now, fx)
        self._assign(now, fx)
        if now.ns >= self._retention.look_at:
            self._retain(now, fx)
        if now.ns >= self._forgetting.due:
            self._forgetting.send(now, fx)
        return fx

    def _retain(self, now: Instant, fx: Effects) -> None:
        """Note how long the shard has run; have some of what is past retention forgotten."""
        state, retention = self.state, self._retention
        kept = len(state.finished) > state.forgotten
        if kept and retention.is_due(state.ran_ms, now):
            entry = Ran(retention.ran_ms(now))
            fx.entries.append(entry)
            state.ran(entry, self.seq)
        below = retention.ended(state.marks, now)
        found = state.finished.expired(below) if below and self.may_forget else None
        if found is not None:
            ordinal, numbers = found
            self.forget(ranges_of(count_of(number) for number in numbers), ordinal, fx)
            retention.look_again(now)

    @property
    def may_forget(self) -> bool:
        """Whether there is room for another list; not while a service has taken none for long."""
        return self._forgetting.has_room

    def forget(self, ranges: list[Range], ordinal: int, fx: Effects) -> None:
        """Have every service forget sagas that are final and past retention.

        Args:
            ranges: normal ranges of their counts, as `ranges_of` makes them.
            ordinal: finished sagas below it are forgotten by the shard itself.
            fx: of the current step; the lists leave with it, or with the next one.
        """
        self._forgetting.add(ranges, ordinal, fx)

    def _take(self, requests: list[Requests], now: Instant, fx: Effects) -> None:
        """Take cancels and reads, then starts; then what was asked of a saga before it started."""
        take, knows = self._desk.take, self._desk.knows
        starts: list[tuple[Peer, Request]] = []
        early: list[tuple[Peer, Request]] = []
        for batch in requests:
            for request in batch.items:
                if request.kind not in _SOONER:
                    starts.append((batch.origin, request))
                elif knows(request):
                    take(batch.origin, request, now, fx)
                else:
                    early.append((batch.origin, request))
        for origin, request in starts:
            take(origin, request, now, fx)
        for origin, request in early:
            take(origin, request, now, fx)

    def next_due(self) -> int | None:
        """Give the loop time at which a timer is next to be looked at."""
        return self._course.wheel.next_ns()

    @property
    def inflight(self) -> int:
        """Sagas that are not final."""
        return len(self.state.live)

    def workers(self) -> list[Peer]:
        """Give every worker's connection."""
        return list(self._workers)

    def pools(self) -> list[Pool]:
        """Give the pools of all services, to be looked at."""
        return list(self._course.pools.values())

    @property
    def slots(self) -> int:
        """How many slots the shard owns."""
        return len(self._course.slots)

    def hellos(self) -> list[Event]:
        """Give the events by which another engine knows the workers of this one."""
        return [
            WorkerCame(each.peer, each.pool.service, each.incarnation, each.capacity)
            for each in self._workers.values()
        ]

    def let_go(self) -> None:
        """Drop what refers to each other: of an engine that is replaced nothing must wait, sagas
        and all, for the collector, which comes rarely."""
        for pool in self._course.pools.values():
            pool.let_go()

    def services(self) -> frozenset[str]:
        """Give the services that the definitions need."""
        return frozenset(self._course.pools)

    # -- workers --------------------------------------------------------------------------------

    def _of_worker(self, event: Event, now: Instant, fx: Effects) -> None:
        if isinstance(event, WorkerCame):
            self._went(event.worker, now)
            pool = self._course.pools[event.service]
            worker = Worker(event.worker, pool, event.incarnation, event.capacity, now.ns)
            self._workers[event.worker] = pool.workers[event.worker] = worker
            self._forgetting.came(event.service)
        elif isinstance(event, WorkerLives):
            known = self._workers.get(event.worker)
            if known is not None:
                known.lives(now.ns, event.capacity)
        elif isinstance(event, WorkerWent):
            self._died(event.worker, now, fx)
        elif isinstance(event, CommandBegun):
            self._begun(event, now, fx)
        else:
            assert isinstance(event, ListApplied)
            known = self._workers.get(event.worker)
            if known is None:
                self.tally.absorbed("unknown_worker")
            else:
                self._forgetting.applied(known, event.shard, event.list_number, fx)

    def _died(self, peer: Peer, now: Instant, fx: Effects) -> None:
        """A worker is gone, and any of the commands that it had may have killed it.

        They are given out alone from now on. A death counts against the one that it had begun so.
        """
        worker = self._workers.get(peer)
        if worker is None:
            return
        for saga in self._lost(peer):
            if saga.suspected() is None:
                saga.suspect = Suspect(saga.step, saga.direction)
        if worker.begun and worker.alone is not None:
            self._blame(worker, worker.alone, now, fx)
        self._went(peer, now)

    def _blame(self, worker: Worker, key: int, now: Instant, fx: Effects) -> None:
        """A worker died between begin and answer of a command."""
        saga = self.state.live.get(key >> (STEP_BITS + 1))
        suspect = saga.suspected() if saga is not None else None
        if saga is None or suspect is None or key != _key(saga):
            return  # it was settled meanwhile
        suspect.deaths += 1
        if suspect.deaths >= DEATHS_MAX:
            self._course.quarantine(saga, suspect.deaths, now, fx)
        elif saga.where == OUT and saga.worker == worker.peer:
            worker.pool.offer(saga, now.ns)  # the last one: those that did nothing come first

    def _begun(self, event: CommandBegun, now: Instant, fx: Effects) -> None:
        """A worker is about to run a suspect: from here on its death is held against that one."""
        worker, said = self._workers.get(event.worker), event.said
        if worker is None:
            self.tally.absorbed("unknown_worker")
            return
        worker.seen_at = now.ns
        key = barrier_key(said.number, said.step, said.direction)
        saga = self.state.live.get(said.number)
        is_out = (
            saga is not None
            and saga.where == OUT
            and saga.worker == worker.peer
            and _key(saga) == key == worker.alone
        )
        wanted = False
        if saga is None or not is_out:
            worker.out.pop(key, None)  # settled, timed out or turned back
        elif saga.attempt == said.attempt:
            wanted = worker.begun = True
            saga.sent_at = now.ns
            saga.due = now.ns + saga.definition.timeouts[saga.step - 1]
        proceed = Proceed(said.number, said.step, said.direction, said.attempt, wanted)
        fx.proceeds.append((worker.peer, proceed))

    def _lost(self, peer: Peer) -> list[Live]:
        """Give the sagas whose command a worker has, in the order in which it got them."""
        # Not from `worker.out`: an older attempt's late answer has taken the credit back already.
        lost = [s for s in self.state.live.values() if s.worker == peer and s.where == OUT]
        return sorted(lost, key=lambda saga: saga.sent_at)

    def _went(self, peer: Peer, now: Instant) -> None:
        """A worker is gone: what it had goes to another; such a delivery is no attempt."""
        worker = self._workers.pop(peer, None)
        if worker is None:
            return
        del worker.pool.workers[peer]
        worker.pool.offer_again(self._lost(peer), now.ns)

    def _answered(self, event: Answered, now: Instant, fx: Effects) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            self.tally.absorbed("unknown_worker")
            return
        worker.seen_at = now.ns
        take = self._outcomes.take
        for each in event.items:
            take(worker, each, now, fx)

    # -- commands and time ----------------------------------------------------------------------

    def _assign(self, now: Instant, fx: Effects) -> None:
        """Give commands to workers with credit; each attempt's clock starts here."""
        broken: list[tuple[Live, Exception]] = []
        for pool in self._course.pools.values():
            if pool.suspects:  # first: under load those that wait would leave no credit for them
                self._assign_suspects(pool, now, fx, broken)
            while pool.queued:
                worker = pool.freest()
                if worker is None:
                    break
                share = -(-pool.queued // len(pool.workers))
                commands = fx.commands.setdefault(worker.peer, [])
                for _ in range(min(share, worker.capacity - len(worker.out))):
                    saga = pool.take()
                    if saga is None:
                        break
                    try:
                        commands.append(self._command(saga))
                    except Exception as error:  # the definition's own code may raise anything
                        broken.append((saga, error))
                        continue
                    sent(worker, saga, now.ns, saga.definition.timeouts[saga.step - 1])
                    # Usually it is looked at before that anyway: where its first attempt would end.
                    if not 0 < saga.placed <= saga.due // TICK_NS + 1:
                        self._course.arm(saga, self._course.look_at(saga))
        for saga, raised in broken:
            self._course.command_raised(saga, raised, now, fx)
        if broken:
            self._assign(now, fx)  # some have turned back, and the others wait: this ends
        for peer in [peer for peer, commands in fx.commands.items() if not commands]:
            del fx.commands[peer]

    def _assign_suspects(
        self, pool: Pool, now: Instant, fx: Effects, broken: list[tuple[Live, Exception]]
    ) -> None:
        """Give each worker one command that may have killed another, if it has none such."""
        for worker in pool.workers.values():
            if not worker.takes_suspect():
                continue
            saga = pool.take_suspect()
            if saga is None:
                return
            try:
                fx.alone[worker.peer] = self._command(saga)
            except Exception as error:  # as above
                broken.append((saga, error))
                continue
            sent(worker, saga, now.ns, saga.definition.timeouts[saga.step - 1])
            worker.alone, worker.begun = _key(saga), False
            self._course.arm(saga, self._course.look_at(saga))

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

    def _fire(self, until: int, now: Instant, fx: Effects) -> None:
        for tick, number in self._course.wheel.take(until):
            saga = self.state.live.get(number)
            if saga is None or saga.placed != tick:
                continue
            saga.placed = 0
            self._look(saga, until, now, fx)
            if saga.placed == 0 and number in self.state.live and self._has_timer(saga):
                self._course.arm(saga, self._course.look_at(saga))
        if now.ns - self._swept_at >= CREDIT_SWEEP_NS:
            self._swept_at = now.ns
            for pool in self._course.pools.values():
                pool.forget_before(now.ns - self._longest, self._keeps)

    @staticmethod
    def _has_timer(saga: Live) -> bool:
        return saga.phase == RUNNING or saga.where in (OUT, BACKING_OFF)

    def _look(self, saga: Live, until: int, now: Instant, fx: Effects) -> None:
        """A saga's place in the wheel came up: see what is due by `until`, not yet by `now`."""
        if saga.phase == RUNNING and until >= saga.deadline:
            name = saga.definition.names[saga.step - 1]
            self._course.turn_back(saga, entries.DEADLINE, f"Timed out: {name}", now, fx)
        elif saga.where == BACKING_OFF and until >= saga.due:
            service = saga.definition.services[saga.step - 1]
            wait = self._course.budgets[service].take(now.ns)
            if wait:
                saga.due = now.ns + wait
            else:
                self.tally.retried(saga.definition.names[saga.step - 1], saga.direction)
                self._course.queue(saga, now)
        elif saga.where == OUT and until >= saga.due:
            worker = self._workers.get(saga.worker or b"")
            if worker is None or now.ns - worker.seen_at > self._worker_live_ns:
                saga.due = now.ns + NOT_LIVE_RECHECK_NS  # no attempt: it may never have had it
                return
            worker.out.pop(_key(saga), None)
            if worker.alone == _key(saga) and not worker.begun:
                worker.alone = None  # else it may hang in it: its next heartbeat tells, or its end
            self._course.attempt_ended(saga, "timed_out", "", now, fx)

    def _keeps(self, key: int, worker: Worker) -> bool:
        """Say whether a command that is out for long is still its saga's current one."""
        saga = self.state.live.get(key >> (STEP_BITS + 1))
        return (
            saga is not None
            and saga.where == OUT
            and saga.worker == worker.peer
            and key == _key(saga)
        )


def _key(saga: Live) -> int:
    """Give the barrier key of a saga's current command."""
    return barrier_key(saga.number, saga.step, saga.direction)
