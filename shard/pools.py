"""Pools: which worker gets which command. Pure; knows workers by their connection.

A worker's credit is the number of commands it takes before it has answered one. A command that
finds no credit waits here, at no cost to its attempt; so do commands whose worker went away. These
are suspects: each worker gets one at a time, alone.

Compensations go first, then actions of sagas that have begun, then those that begin one: what is
half done is undone or finished before more is begun. None is kept away for ever: there are never
more of the others than sagas in flight.
"""

from collections import deque
from collections.abc import Callable, Iterable

from sagacity.ids import barrier_key
from shard.events import Peer
from shard.sagas import OUT, QUEUED, Live

WINDOW_NS = 500_000_000  # over which a pool's pace is measured, at least
BATCH_NS = 4_000_000_000  # what takes longer than that is no batch: its pool stood still
WINDOW_COMMANDS = 8  # given out in a window, at least: fewer tell no pace


class Worker:
    """A worker that said HELLO.

    Args:
        peer: its connection.
        incarnation: of its process.
        capacity: commands it takes; 0 while its database does not work.
        now: loop time, nanoseconds.
    """

    __slots__ = ("alone", "begun", "capacity", "incarnation", "out", "peer", "pool", "seen_at")

    def __init__(self, peer: Peer, pool: "Pool", incarnation: int, capacity: int, now: int) -> None:
        self.peer = peer
        self.pool = pool
        self.incarnation = incarnation
        self.capacity = capacity
        self.out: dict[int, int] = {}  # barrier key -> sent at, in that order
        self.seen_at = now
        self.alone: int | None = None  # barrier key of the suspect that it has
        self.begun = False  # it has said that it runs that one, and not shown that it came out

    def takes_suspect(self) -> bool:
        """Say whether it may get a suspect now."""
        return not self.begun and self.alone not in self.out and self.capacity > len(self.out)

    def lives(self, now: int, capacity: int) -> None:
        """Take a heartbeat: who sends one after a suspect's time was over has come out of it."""
        self.seen_at = now
        self.capacity = capacity
        if self.begun and self.alone not in self.out:
            self.alone, self.begun = None, False


class Pool:
    """The workers of one service, and the sagas whose command waits for one of them."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.workers: dict[Peer, Worker] = {}
        self.undoing: deque[Live] = deque()  # sagas that wait with a compensation
        self.going_on: deque[Live] = deque()  # with an action that is not their first
        self.beginning: deque[Live] = deque()  # with their first action
        self._queues = (self.undoing, self.going_on, self.beginning)
        self.suspects: deque[Live] = deque()  # with what may have killed a worker
        self.pace_ns = 0  # between two commands given out of late, while some waited; 0: unknown
        self._last_pace_ns = 0  # of the last window alone
        self._guessed_until = 0
        self._taken = 0  # commands, since the start
        self.waited_ns = 0  # by all commands together, for a worker; what a batch waits is not told
        self._looked_at = 0  # when `measure` last did
        self._seen = 0  # of them, when `measure` last looked
        self._moved_at = 0  # when it last saw more
        self._gap_ns = 0  # between the last two times that it did
        self._calm_since: int | None = None  # nothing has waited from then on
        self._window: tuple[int, int] | None = None  # when it began, what was taken by then
        self._before = (0, 0)  # the window before it, or itself

    @property
    def given_out(self) -> int:
        """Commands given to workers since the start; suspects are not counted."""
        return self._taken

    @property
    def queued(self) -> int:
        """Places in its queues, suspects left out; of some the saga waits no more."""
        return sum(map(len, self._queues))

    def offer(self, saga: Live, now_ns: int) -> None:
        """Queue a saga's current command; one whose saga has a place there already takes that."""
        queue = self._queue_of(saga)
        if saga.queued_in is not queue:
            saga.queued_in = queue
            saga.queued_at = now_ns
            queue.append(saga)
        saga.where = QUEUED
        saga.worker = None
        saga.due = 0

    def offer_again(self, sagas: Iterable[Live], now_ns: int) -> None:
        """Queue commands that a worker had and will not answer; they go first, in their order."""
        for saga in reversed(list(sagas)):
            queue = self._queue_of(saga)
            # As old as the one it passes: the first place stays the oldest, whoever has it.
            saga.queued_at = queue[0].queued_at if queue else now_ns
            saga.queued_in = queue
            saga.where = QUEUED
            saga.worker = None
            queue.appendleft(saga)

    def _queue_of(self, saga: Live) -> deque[Live]:
        if saga.suspect is not None and saga.suspected() is not None:
            return self.suspects
        if saga.direction:
            return self.undoing
        return self.going_on if saga.step > 1 else self.beginning

    def take(self) -> Live | None:
        """Take the next saga whose command still waits here; None when there is none."""
        for queue in self._queues:
            if queue and (saga := _next(queue)) is not None:
                self._taken += 1
                return saga
        return None

    def measure(self, now_ns: int) -> int:
        """Look, once a batch, at what waits since the last one, and at the pace.

        Returns:
            The age of the oldest place, nanoseconds; 0 while the queue moves: what is to come is
            said by its pace then, not by what has been.
        """
        # Between two batches nothing comes and nothing goes: the queue times its age is the wait.
        self.waited_ns += self.queued * (now_ns - self._looked_at)
        self._looked_at = now_ns
        firsts = [first for queue in self._queues if (first := _first(queue)) is not None]
        if firsts:
            self._calm_since = None
            self._measure_pace(now_ns)
            moves = self.pace_ns and now_ns - self._moved_at <= max(WINDOW_NS, 2 * self._gap_ns)
            return 0 if moves else now_ns - min(first.queued_at for first in firsts)
        self._window = None
        self._forget_guess()
        if self.pace_ns:
            self._doubt_pace(now_ns)
        return 0

    def guess_pace(self, pace_ns: int, until_ns: int) -> None:
        """Take a pace for the true one until it is measured, nothing waits, or that instant."""
        self.pace_ns = pace_ns
        self._guessed_until = until_ns

    def _measure_pace(self, now_ns: int) -> None:
        moved = self._taken > self._seen
        if moved:
            self._gap_ns = now_ns - self._moved_at
            if self._gap_ns > BATCH_NS:
                self._window, self._gap_ns = None, 0  # it stood still; that is no pace
            self._seen, self._moved_at = self._taken, now_ns
        if now_ns > self._guessed_until:
            self._forget_guess()
        if self._window is None:
            self._window = self._before = (now_ns, self._taken)
        # From one giving out to another: a worker's batch is one transaction, so its answers, and
        # the credit for the next commands, come at once.
        enough = self._taken - self._window[1] >= WINDOW_COMMANDS
        if not (moved and enough and now_ns - self._window[0] >= WINDOW_NS):
            return
        # Over two windows: a batch that gives back its credit in two parts makes uneven ones.
        began, taken = self._before
        self._before, self._window = self._window, (now_ns, self._taken)
        pace_ns = (now_ns - began) // (self._taken - taken)
        self._forget_guess()
        # The better of two: a hiccup of the disk is no pace either.
        self.pace_ns = min(self._last_pace_ns or pace_ns, pace_ns)
        self._last_pace_ns = pace_ns

    def _doubt_pace(self, now_ns: int) -> None:
        """Take the pool for twice as quick with each half second in which it had little to do.

        Without a queue no pace is measured, and by an old one few sagas may start: too few for a
        queue. So a slow minute would be believed for ever.
        """
        if self._calm_since is None or not self._has_little_to_do():
            self._calm_since = now_ns
        windows = (now_ns - self._calm_since) // WINDOW_NS
        if windows:
            self._calm_since = now_ns
            self.pace_ns >>= windows
            self._last_pace_ns = self.pace_ns

    def _has_little_to_do(self) -> bool:
        """Say whether half of the credit is free: else a queue may wait with the workers."""
        out = capacity = 0
        for worker in self.workers.values():
            out, capacity = out + len(worker.out), capacity + worker.capacity
        return 2 * out <= capacity

    def _forget_guess(self) -> None:
        if self._guessed_until:
            self._guessed_until = self.pace_ns = 0

    def take_suspect(self) -> Live | None:
        """Take the next saga whose command has to be given out alone; None when there is none."""
        return _next(self.suspects)

    def freest(self) -> Worker | None:
        """Give the worker with the most credit; None when none has any."""
        best: Worker | None = None
        most = 0
        for worker in self.workers.values():
            free = worker.capacity - len(worker.out)
            if free > most:
                best, most = worker, free
        return best

    def let_go(self) -> None:
        """Know no worker and no saga any more: each of them knows this pool."""
        self.workers.clear()
        for queue in (*self._queues, self.suspects):
            queue.clear()

    def forget_before(self, sent_before: int, keeps: Callable[[int, Worker], bool]) -> None:
        """Give back the credit of commands whose attempt has ended without an answer.

        Args:
            sent_before: loop time; younger ones are left alone.
            keeps: says of a barrier key and its worker whether it is still waited for.
        """
        for worker in self.workers.values():
            for key, sent_at in list(worker.out.items()):
                if sent_at > sent_before:
                    break
                if not keeps(key, worker):
                    del worker.out[key]


def _first(queue: deque[Live]) -> Live | None:
    """Give the first saga whose command still waits in a queue; places before it are given up."""
    while queue:
        saga = queue[0]
        if saga.queued_in is queue:
            if saga.where == QUEUED:
                return saga
            saga.queued_in = None
        queue.popleft()
    return None


def _next(queue: deque[Live]) -> Live | None:
    """Take the first saga whose command still waits in a queue; None where none does."""
    while queue:
        saga = queue.popleft()
        if saga.queued_in is queue:
            saga.queued_in = None
            if saga.where == QUEUED:
                return saga
    return None


def sent(worker: Worker, saga: Live, now: int, timeout: int) -> None:
    """A worker gets a saga's current command: its attempt's clock starts."""
    key = barrier_key(saga.number, saga.step, saga.direction)
    worker.out.pop(key, None)  # sent again: its place in the order is the last
    worker.out[key] = now
    saga.where = OUT
    saga.worker = worker.peer
    saga.sent_at = now
    saga.due = now + timeout
