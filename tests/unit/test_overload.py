"""Overload: three times what a pool can do, then an outage, then a load that it can do (PROOF G3).

A simulation in one thread: the engine, the client library's own `Asks`, and workers that perform so
many commands a second, each once. Times are simulated; nothing here waits.
"""

from collections import Counter, deque
from typing import Final

import pytest

from sagacity import wire
from sagacity.asks import Asks
from sagacity.ids import barrier_key
from sagacity.saga import Retry
from sagacity.slots import SLOTS
from sagacity.wire import Answer, Command, Reply
from services.checkout import checkout
from shard.admission import Admission
from shard.effects import Effects
from shard.engine import Engine
from shard.entries import FORMAT, Batch
from shard.events import (
    Answered,
    Event,
    Instant,
    Requests,
    WorkerCame,
    WorkerLives,
    WorkerWent,
)
from shard.finished import FinishedInMemory
from shard.retries import RetryBudget
from shard.sagas import MS, Definition
from shard.state import State
from shard.tally import PlainTally
from tests.unit.canned import SERVICES, answer
from tests.unit.world import CLIENT, CLUSTER_ID, PRICES, order

TICK_MS: Final = 50
SECOND_MS: Final = 1_000
RATE: Final = 40  # commands a second of the slow pool; its credit is two seconds and a half
CREDIT: Final = 100
WITHIN: Final = RATE * 9 // 10
WAIT_S: Final = 35
DEFINITIONS: Final = {checkout.name: Definition(checkout, Retry())}


class Performer:
    """Performs what it has been given in order, each command once, so many a second."""

    def __init__(self, service: str, per_second: int) -> None:
        self.service = service
        self.per_second = per_second
        self.peer = service.encode()
        self.queue: deque[Command] = deque()
        self.effects: dict[int, Answer] = {}
        self.hangs = False

    def perform(self, most: int) -> list[Event]:
        """Give the answers of one tick; to repeat what is stored costs half of doing it."""
        done = []
        halves = 0 if self.hangs else 2 * most
        while self.queue and halves > 0:
            command = self.queue.popleft()
            key = barrier_key(command.number, command.step, command.direction)
            halves -= 1 if key in self.effects else 2
            if key not in self.effects:
                self.effects[key] = answer(command, wire.OK)
            done.append(self.effects[key])
        return [Answered(self.peer, done)] if done else []


class Dawdler(Performer):
    """Answers each command so many ticks after it has performed it."""

    def __init__(self, service: str, per_second: int, ticks: int) -> None:
        super().__init__(service, per_second)
        self.late: deque[list[Event]] = deque([[]] * ticks)

    def perform(self, most: int) -> list[Event]:
        self.late.append(super().perform(most))
        return self.late.popleft()


class Lumper(Performer):
    """Answers all that it has performed at once, each so many ticks: a batch is one transaction."""

    def __init__(self, service: str, per_second: int, ticks: int) -> None:
        super().__init__(service, per_second)
        self.ticks = ticks
        self.turns = 0
        self.done: list[Event] = []

    def perform(self, most: int) -> list[Event]:
        self.done += super().perform(most)
        self.turns += 1
        if self.turns % self.ticks:
            return []
        done, self.done = self.done, []
        return done


class Sim:
    """One shard, its workers, one of them slow, and the customers of a shop."""

    def __init__(self, slow: str, *, queue_age_max_ms: int) -> None:
        self.queue_age_max_ms = queue_age_max_ms
        workers = {name: Performer(name, RATE if name == slow else 10 * RATE) for name in SERVICES}
        self.workers = list(workers.values())
        self.slow = workers[slow]
        self.rows: list[Batch] = []
        self.asks = Asks("the simulation")
        self.asked_at: dict[int, int] = {}
        self.waits: list[tuple[int, int]] = []  # of those that completed: asked at, ms
        self.given: Counter[int] = Counter()  # barrier key -> how often it was given out
        self.refusals = 0
        self.now_ms = 0
        self.owed = 0
        self.events: list[Event] = []
        self.engine: Engine | None = None
        self.start()

    def start(self) -> None:
        """Have the shard's process start on what its journal says."""
        self.engine = Engine(
            0,
            frozenset(range(SLOTS)),
            State(DEFINITIONS, FinishedInMemory()),
            PRICES,
            Admission(4_096, self.queue_age_max_ms),
            RetryBudget(100, 100, 10),
            PlainTally(),
        )
        for seq, row in enumerate(self.rows, 1):
            self.engine.replay(row, seq)
        self.keep(self.engine.resume(CLUSTER_ID, self.instant(), len(self.rows) + 1))
        for worker in self.workers:
            self.join(worker)

    def end(self) -> None:
        """End the shard's process; what workers had from it is not answered to the next."""
        self.engine = None
        self.events.clear()
        for worker in self.workers:
            worker.queue.clear()

    def join(self, worker: Performer) -> None:
        self.events.append(WorkerCame(worker.peer, worker.service, 1, CREDIT))

    def leave(self, worker: Performer) -> None:
        worker.queue.clear()
        self.events.append(WorkerWent(worker.peer))

    def instant(self) -> Instant:
        return Instant(self.now_ms * MS, self.now_ms)

    def run(self, seconds: int, per_second: int) -> None:
        """Let time pass while so many customers a second come."""
        for _ in range(seconds * SECOND_MS // TICK_MS):
            self.now_ms += TICK_MS
            self.owed += per_second * TICK_MS
            while self.owed >= SECOND_MS:
                self.owed -= SECOND_MS
                self.come()
            self.tick()

    def come(self) -> None:
        saga_id = f"s{len(self.asked_at)}"
        token = self.asks.ask(
            wire.START,
            saga_id,
            wire.pack(order(saga_id)),
            now=self.now_ms * MS,
            wait_ns=WAIT_S * SECOND_MS * MS,
        )
        self.asked_at[token] = self.now_ms

    def tick(self) -> None:
        self.asks.due(self.now_ms * MS)
        self.asks.settled()
        requests = self.asks.take()
        if self.engine is None:
            return
        if requests:
            self.events.append(Requests(CLIENT, requests))
        for worker in self.workers:
            self.events += worker.perform(worker.per_second * TICK_MS // SECOND_MS)
            if self.now_ms % SECOND_MS == 0 and not worker.hangs:
                self.events.append(WorkerLives(worker.peer, CREDIT))
        events, self.events = self.events, []
        seq, now = len(self.rows) + 1, self.instant()
        self.keep(self.engine.step(events, now, seq, now.ns))

    def keep(self, effects: Effects) -> None:
        if effects.entries:
            self.rows.append(Batch(FORMAT, 1, self.now_ms, effects.entries))
        for worker in self.workers:
            for command in effects.commands.get(worker.peer, []):
                worker.queue.append(command)
                self.given[barrier_key(command.number, command.step, command.direction)] += 1
        for reply in effects.replies.get(CLIENT, []):
            self.hear(reply)

    def hear(self, reply: Reply) -> None:
        self.refusals += reply.code == 11
        settled = self.asks.on_reply(reply, self.now_ms * MS)
        if settled is not None and b"checkout_complete" in reply.body:
            asked_at = self.asked_at[settled[0]]
            self.waits.append((asked_at, self.now_ms - asked_at))

    def goodput(self, seconds: int, per_second: int) -> float:
        """Give how many have what they want in a stretch, for each who comes."""
        before = len(self.waits)
        self.run(seconds, per_second)
        return (len(self.waits) - before) / (seconds * per_second)

    def outage(self, kind: str, per_second: int) -> None:
        """Ten seconds in which little or nothing is done, while customers come as before."""
        slow = self.slow
        if kind == "its workers are away":
            self.leave(slow)
            self.run(10, per_second)
            self.join(slow)
        elif kind == "its worker hangs and is killed":
            slow.hangs = True
            self.run(10, per_second)
            slow.hangs = False
            self.leave(slow)
            self.join(slow)
        elif kind == "its worker crawls":
            slow.per_second = RATE // 2
            self.run(10, per_second)
            slow.per_second = RATE
        else:
            self.end()
            self.run(10, per_second)
            self.start()

    def commands_for_each(self) -> float:
        """Give how many commands were given out for each that had to be."""
        return sum(self.given.values()) / len(self.given)


OUTAGES = [
    "its workers are away",
    "its worker hangs and is killed",
    "its worker crawls",
    "the shard is away",
]


@pytest.mark.parametrize("slow", SERVICES[::2])
@pytest.mark.parametrize("kind", OUTAGES)
def test_overload_and_an_outage_leave_nothing_behind_for_long(kind: str, slow: str) -> None:
    """G3: 30 s later a load that the slow pool can do is served; B12: there was no storm."""
    sim = Sim(slow, queue_age_max_ms=5_000)
    assert sim.goodput(60, 3 * RATE) >= 0.95 / 3, "overload itself costs no goodput"
    sim.outage(kind, 3 * RATE)
    sim.run(30, WITHIN)
    assert sim.goodput(60, WITHIN) >= 0.95  # not 10: a batch is a fifth of that
    assert sim.commands_for_each() <= 1.1


@pytest.mark.parametrize("ticks", [8, 24, 36])  # 36: 72 commands, for which its credit has room
def test_a_pool_that_answers_in_lumps_has_the_pace_of_all_of_them(ticks: int) -> None:
    """G3: what may start is bounded by what five seconds of the pool can do, give or take two.

    Where a batch outlasts the time over which a pace is measured, a part of that time sees a whole
    batch or nothing of it: a shard took more than its workers could do before the deadline.
    """
    sim = Sim("payment", queue_age_max_ms=5_000)
    sim.run(1, 0)
    sim.leave(sim.slow)
    sim.workers[1] = sim.slow = Lumper("payment", RATE, ticks)
    sim.join(sim.slow)
    sim.run(30, 3 * RATE)
    assert sim.engine is not None
    assert 4 * RATE <= sim.engine.inflight <= 2 * 5 * RATE
    sim.outage(OUTAGES[0], 3 * RATE)
    sim.run(30, WITHIN)
    assert sim.goodput(60, WITHIN) >= 0.95  # not 10: a batch is a fifth of that


def test_without_a_bound_on_waiting_overload_would_outlive_its_cause() -> None:
    """That the simulation can tell: the number in flight alone lets in what only times out."""
    sim = Sim(SERVICES[0], queue_age_max_ms=86_400_000)
    sim.run(60, 3 * RATE)
    sim.outage(OUTAGES[0], 3 * RATE)
    sim.run(30, WITHIN)
    assert sim.goodput(10, WITHIN) < 0.5


def test_a_pool_that_was_slow_once_is_not_taken_for_slow_for_ever() -> None:
    """By the pace of a bad minute a hundred sagas may run: too few to make a queue, which alone
    would show that it is quick again. Sagas that take long elsewhere were refused for it."""
    sim = Sim(SERVICES[0], queue_age_max_ms=5_000)
    sim.slow.per_second = RATE // 2
    sim.run(30, 3 * RATE)
    sim.slow.per_second = 10 * RATE
    sim.run(30, 0)
    for at, name in enumerate(SERVICES[1:], 1):
        sim.leave(sim.workers[at])
        sim.workers[at] = Dawdler(name, 10 * RATE, SECOND_MS // TICK_MS)
        sim.join(sim.workers[at])
    sim.run(5, 2 * RATE)
    refusals = sim.refusals
    assert sim.goodput(20, 2 * RATE) >= 0.95
    assert sim.refusals == refusals
