"""The worker: takes commands from every shard, performs them as one batch, answers.

Holds the loop, its sockets and its clock. What a batch does to the database is `executor`'s, what
a command means is the service's. A user's own service runs like this:

    worker = Worker(service, Path("payment.db"), ["ipc:///.../shard-0-workers.sock"], cluster_id)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    sys.exit(worker.run())

One turn: wait, take all that is there from all shards, one transaction, one commit, one frame of
answers to each shard. What is not answered is asked again by the shard, so nothing that is kept
here has to outlive the process.
"""

import heapq
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

import zmq
from apsw import Connection
from msgspec import Struct, structs

from sagacity.barrier import UNAVAILABLE, Log
from sagacity.errors import Malformed
from sagacity.executor import BatchExecutor, make_tables, open_file
from sagacity.machine import Machine, SystemMachine
from sagacity.service import Service
from sagacity.sockets import (
    CONNECTED,
    Context,
    Monitor,
    Socket,
    close_politely,
    dealer,
    receive_all,
    send,
)
from sagacity.wire import (
    PROTOCOL,
    REFUSED_UNAVAILABLE,
    Answer,
    Beat,
    Begun,
    BooksAsked,
    Command,
    Commands,
    Forget,
    Forgot,
    Hello,
    Proceed,
    Rejected,
    Unknown,
    answer_frames,
    answer_to,
    encode,
    read_to_worker,
)

CAPACITY: Final = 256  # commands of each shard before one is answered
FRAMES_MAX: Final = 64  # of one shard in one turn
TRIAL_MS: Final = 500  # between two tries of a database that took no write
LOCK_PATIENCE_MS: Final = 2_000  # for another connection's lock; below an attempt's 3 s
LOCK_RETRY_S: Final = 0.005
PROCEED_PATIENCE_MS: Final = 500  # for a shard's word; then the others have waited long enough
LISTS_MAX: Final = 256  # kept to be forgotten; a shard repeats what does not find room

EXIT_STOPPED: Final = 0
EXIT_REJECTED: Final = 1

_MS: Final = 1_000_000  # nanoseconds


class Served(Struct, frozen=True, gc=False):
    """What a turn did.

    Args:
        commands: of all shards.
        answers: theirs, in the same order.
        repeated: how many of them were stored replies.
        waited_ns: from the receipt of the commands to their transaction.
        turn_ns: how long the turn kept what came meanwhile waiting.
    """

    commands: list[Command]
    answers: list[Answer]
    repeated: int
    waited_ns: int
    turn_ns: int


class Watch:
    """What a worker's process may see and say; all is called in the loop's thread.

    `wakeup_fd`, where there is one, ends the loop's wait when it is readable.
    """

    wakeup_fd: int | None = None

    def woken(self) -> bool:
        """Take what makes `wakeup_fd` readable; say whether the worker has to stop."""
        return False

    def turned(self, now_ns: int) -> None:
        """See a turn of the loop, at least one each heartbeat."""

    def served(self, served: Served) -> None:
        """See commands performed and answered."""

    def garbage(self) -> None:
        """See a frame dropped that could not be read."""


class _Link:
    """The connection to one shard."""

    __slots__ = ("greeted", "monitor", "socket")

    def __init__(self, ctx: Context, address: str) -> None:
        self.socket: Socket = dealer(ctx, address)
        self.monitor = Monitor(self.socket)
        self.greeted = False


_Held = tuple[int, int, _Link, Answer]  # due at, order, to whom, what


class Worker:
    """One worker of a service.

    Args:
        service: what it performs.
        database: file of the service's database; made if it is not there.
        addresses: of the shards, where they take workers.
        cluster_id: 32 hexadecimal digits; shards of another cluster are not served.
        capacity: commands that it takes from each shard before it has answered one.
        heartbeat_ms: between two signs of life.
        catalog: for the service's `seed`, when the database is made.
        log: None for structlog's.
        watch: None when nobody watches.
        machine: None for this one.
        open_database: opens the file; for tests.

    Raises:
        Malformed: the database cannot be used, or is another service's or cluster's.
    """

    def __init__(
        self,
        service: Service,
        database: Path,
        addresses: Sequence[str],
        cluster_id: str,
        *,
        capacity: int = CAPACITY,
        heartbeat_ms: int = 1_000,
        catalog: object = None,
        log: Log | None = None,
        watch: Watch | None = None,
        machine: Machine | None = None,
        open_database: Callable[[Path], Connection] = open_file,
    ) -> None:
        self.busy = 0  # commands received and not answered
        self._service = service
        self._addresses = list(addresses)
        self._cluster_id = cluster_id
        self._capacity = capacity
        self._heartbeat_ns = heartbeat_ms * _MS
        self._log = log or _default_log()
        self._watch = watch or Watch()
        self._machine = machine or SystemMachine()
        self._now_ns = self._machine.monotonic_ns
        self._incarnation = self._machine.random_bits(62)
        self._links: list[_Link] = []
        self._held: list[_Held] = []
        self._lists: dict[tuple[int, int], tuple[_Link, Forget]] = {}  # shard, number: what is left
        # Commands that may kill us, one each, run alone. While one has begun, and its shard has not
        # said Proceed, no others run: a death is then known to be about this one.
        self._alone: deque[tuple[_Link, Commands]] = deque()
        self._begun: tuple[_Link, Commands] | None = None
        self._begun_at = 0
        self._granted: tuple[_Link, Commands] | None = None  # to be run in this turn
        self._deferred: list[tuple[_Link, Commands]] = []
        self._order = count()
        self._next_beat = 0
        self._next_trial = 0
        self._lock_asked = 0
        self._waits_for_lock = False
        self._exit: int | None = None
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        connection = open_database(database)
        if make_tables(connection, service, cluster_id, catalog):
            self._log.info("database_made", service=service.name)
        self._executor = BatchExecutor(
            connection, service, self._log, wait=self._wait_for_lock, alive=self._say_alive
        )

    @property
    def capacity(self) -> int:
        """Commands that it takes from each shard now: 0 while its database does not work."""
        return self._capacity if self._executor.available else 0

    @property
    def replays(self) -> int:
        """Batches that were run again one by one, which is slow: handlers raised or wrote first."""
        return self._executor.replays

    def stop(self) -> None:
        """Have `run` end after the batch at hand. Any thread or signal handler may, at any time."""
        if self._wake >= 0:
            with suppress(BlockingIOError):  # full of earlier calls
                os.write(self._wake, b"s")

    def run(self) -> int:
        """Serve until `stop`, or until a shard rejects this worker.

        Returns:
            An exit code: EXIT_STOPPED or EXIT_REJECTED.

        Raises:
            apsw.Error: a commit or sync failed, not for room; the process has to end.
        """
        ctx = self._machine.context()
        poller = ctx.poller()
        try:
            for fd in self._wakeup_fds():
                poller.register(fd, zmq.POLLIN)
            for address in self._addresses:
                link = _Link(ctx, address)
                self._links.append(link)
                poller.register(link.socket, zmq.POLLIN)
                poller.register(link.monitor.socket, zmq.POLLIN)
                self._see_connection(link)
            while self._exit is None:
                timeout_ns = max(0, self._next_due() - self._now_ns())
                self._turn(dict(poller.poll(-(-timeout_ns // _MS))))
        finally:
            self._close(ctx)
        return self._exit

    # -- a turn ---------------------------------------------------------------------------------

    def _turn(self, ready: dict[object, int]) -> None:
        began = self._now_ns()
        if any(fd in ready for fd in self._wakeup_fds()):
            self._see_wakeups()
            if self._exit is not None:
                return
        batches, self._deferred = self._deferred, []
        for link in self._links:
            if link.monitor.socket in ready:
                self._see_connection(link)
            if link.socket in ready:
                self._receive(link, batches)
        if self._begun is not None and began - self._begun_at > PROCEED_PATIENCE_MS * _MS:
            self._withdraw()
        if self._granted is not None:
            alone, self._granted = self._granted, None
            self._serve([alone], began)
        if batches and self._begun is None:
            self._serve(batches, began)
        else:
            self._deferred = batches
        if self._alone:
            self._begin_next(began)
        if self._held:
            self._release_held()
        if self._lists and self._executor.available:
            self._forget_some()
        now = self._now_ns()
        if not self._executor.available and now >= self._next_trial:
            self._next_trial = now + TRIAL_MS * _MS
            if self._executor.try_write():
                self._next_beat = now
        self._live(now)
        self._executor.tidy()

    def _receive(self, link: _Link, batches: list[tuple[_Link, Commands]]) -> None:
        frames, _ = receive_all(link.socket, FRAMES_MAX)
        for frame in frames:
            try:
                said = read_to_worker(frame)
            except Malformed:
                self._watch.garbage()
                continue
            if isinstance(said, Commands):
                if said.witness.cluster_id != self._cluster_id:
                    self._watch.garbage()
                elif said.alone:
                    for command in said.items:
                        batch = Commands(said.witness, [command], alone=True)
                        self._alone.append((link, batch))
                elif said.items:  # a shard probes its connections with empty batches
                    batches.append((link, said))
            elif isinstance(said, Proceed):
                self._proceed(link, said)
            elif isinstance(said, BooksAsked):
                send(link.socket, encode(self._executor.read_books(said)))
            elif isinstance(said, Forget):
                if said.witness.cluster_id == self._cluster_id:
                    self._keep_list(link, said)
                else:
                    self._watch.garbage()
            elif isinstance(said, Unknown):
                if said.incarnation == self._incarnation:
                    link.greeted = False
                    self._sign_life(link)
            elif isinstance(said, Rejected):
                self._log.error("worker_rejected", text=said.text)
                self._exit = EXIT_REJECTED

    def _serve(self, batches: list[tuple[_Link, Commands]], received: int) -> None:
        """Perform what came in one transaction, then answer each shard in one frame."""
        self.busy = len(self._held) + sum(len(batch.items) for _, batch in batches)
        available, repeated = self._executor.available, self._executor.repeated
        waited = self._now_ns() - received
        answered = self._executor.execute([batch for _, batch in batches])
        for link in self._links:
            leaving: list[Answer] = []
            for (origin, batch), answers in zip(batches, answered, strict=True):
                if origin is link:
                    leaving += self._held_back(link, batch.items, answers)
            self._send_answers(link, leaving)
        self.busy = len(self._held)
        if available and not self._executor.available:
            self._take_back_credit(received)
        self._watch.served(
            Served(
                [command for _, batch in batches for command in batch.items],
                [answer for answers in answered for answer in answers],
                self._executor.repeated - repeated,
                waited,
                self._now_ns() - received,
            )
        )

    def _take_back_credit(self, now: int) -> None:
        """The database does not work: say so at once, and try it in a while."""
        self._next_beat = 0
        self._next_trial = now + TRIAL_MS * _MS

    def _keep_list(self, link: _Link, asked: Forget) -> None:
        """Keep a list for the turns that follow. One that is here already came again."""
        key = asked.witness.shard, asked.list_number
        known = self._lists.get(key)
        if known is None:
            if len(self._lists) < LISTS_MAX:
                self._lists[key] = link, asked
        elif known[1].witness.epoch < asked.witness.epoch:
            self._lists[key] = link, asked

    def _forget_some(self) -> None:
        """Forget a part of the oldest list; when nothing is left of it, its shard hears so."""
        key, (link, asked) = next(iter(self._lists.items()))
        left = self._executor.forget(asked)
        if left:
            self._lists[key] = link, structs.replace(asked, ranges=left)
            if not self._executor.available:
                self._take_back_credit(self._now_ns())
            return
        del self._lists[key]
        if left is not None:
            send(link.socket, encode(Forgot(asked.witness.shard, asked.list_number)))

    def _held_back(
        self, link: _Link, commands: list[Command], answers: list[Answer]
    ) -> list[Answer]:
        """Give the answers that may leave now; the others are kept, or dropped for ever."""
        delay_of = self._service.answer_delay
        if delay_of is None:
            return answers
        leaving = []
        for command, answer in zip(commands, answers, strict=True):
            delay = delay_of(command)
            if delay <= 0:
                leaving.append(answer)
            elif not math.isinf(delay):
                due = self._now_ns() + int(delay * 1000) * _MS
                heapq.heappush(self._held, (due, next(self._order), link, answer))
        return leaving

    def _release_held(self) -> None:
        now = self._now_ns()
        while self._held and self._held[0][0] <= now:
            _, _, link, answer = heapq.heappop(self._held)
            self._send_answers(link, [answer])
        self.busy = len(self._held)

    def _send_answers(self, link: _Link, answers: list[Answer]) -> None:
        if answers:
            for frame in answer_frames(answers):
                send(link.socket, frame)  # a shard that is away asks again when it is back

    # -- alone ----------------------------------------------------------------------------------

    def _begin_next(self, now: int) -> None:
        """Tell a shard which of the commands that may kill us comes next."""
        while self._alone and self._begun is None:
            link, batch = self._alone[0]
            if not self._executor.available:
                self._serve([self._alone.popleft()], now)  # refused
            elif send(link.socket, encode(_begun(batch.items[0]))):
                self._begun, self._begun_at = self._alone.popleft(), now
            else:
                return  # full: tried again in the next turn

    def _proceed(self, link: _Link, said: Proceed) -> None:
        """A shard has noted what we have begun, or does not want it any more."""
        if self._begun is None or self._begun[0] is not link:
            return
        begun = _begun(self._begun[1].items[0])
        if begun == Begun(said.number, said.step, said.direction, said.attempt):
            if said.wanted:
                self._granted = self._begun
            self._begun = None

    def _withdraw(self) -> None:
        """Give back what has begun and not been run: its shard may give it to another."""
        if self._begun is not None:
            (link, batch), self._begun = self._begun, None
            self._send_answers(link, [answer_to(batch.items[0], REFUSED_UNAVAILABLE, b"")])

    def _drop_alone(self, link: _Link) -> None:
        """A shard without a connection delivers again what it had given us."""
        self._alone = deque(each for each in self._alone if each[0] is not link)
        if self._begun is not None and self._begun[0] is link:
            self._begun = None

    # -- signs of life --------------------------------------------------------------------------

    def _live(self, now: int) -> None:
        if now >= self._next_beat:
            self._next_beat = now + self._heartbeat_ns
            for link in self._links:
                if link.monitor.connected:
                    self._sign_life(link)
        self._watch.turned(now)

    def _see_connection(self, link: _Link) -> None:
        events = link.monitor.events()
        if events:
            self._drop_alone(link)
        if CONNECTED in events:
            link.greeted = False
            self._sign_life(link)

    def _sign_life(self, link: _Link) -> None:
        """Say HELLO, once on each connection, then that we live and what we can take.

        HELLO waits for a database that can be read: a shard takes what it tells of it for true.
        """
        if not link.greeted and not self._waits_for_lock:
            try:
                witnesses = self._executor.witnesses()
            except UNAVAILABLE as error:
                self._log.warning("database_unreadable", error=repr(error))
                return
            hello = Hello(
                PROTOCOL,
                self._cluster_id,
                self._service.name,
                self._incarnation,
                self._capacity,
                witnesses,
            )
            link.greeted = send(link.socket, encode(hello))
        if link.greeted:
            send(link.socket, encode(Beat(self._incarnation, self.capacity)))

    def _next_due(self) -> int:
        if self._lists and self._executor.available:
            return 0
        due = self._next_beat
        if self._begun is not None:
            due = min(due, self._begun_at + (PROCEED_PATIENCE_MS + 1) * _MS)
        elif self._deferred:
            return 0  # its shard has gone before it answered
        if self._held:
            due = min(due, self._held[0][0])
        if not self._executor.available:
            due = min(due, self._next_trial)
        return due

    def _say_alive(self) -> None:
        now = self._now_ns()
        if now >= self._next_beat:
            self._live(now)

    def _wait_for_lock(self, calls: int) -> bool:
        """Wait a moment for another connection's lock, alive; False when that took too long."""
        if not self._executor.available:
            return False  # a trial: the next one comes soon enough
        now = self._now_ns()
        if calls == 0:
            self._lock_asked = now
        self._waits_for_lock = True  # and so its connection must not be used
        self._live(now)
        self._waits_for_lock = False
        self._see_wakeups()
        if self._exit is not None or now - self._lock_asked > LOCK_PATIENCE_MS * _MS:
            return False
        time.sleep(LOCK_RETRY_S)
        return True

    # -- beginning and end ----------------------------------------------------------------------

    def _wakeup_fds(self) -> list[int]:
        watched = self._watch.wakeup_fd
        return [self._woken] if watched is None else [self._woken, watched]

    def _see_wakeups(self) -> None:
        with suppress(BlockingIOError):
            if os.read(self._woken, 64):
                self._exit = EXIT_STOPPED
        if self._watch.woken():
            self._exit = EXIT_STOPPED

    def _close(self, ctx: Context) -> None:
        self._withdraw()  # our end shall not be held against it
        for link in self._links:
            link.monitor.close()
            close_politely(link.socket)
        ctx.term()
        self._executor.close()
        wake, self._wake = self._wake, -1  # a late `stop` must not write into another's file
        os.close(wake)
        os.close(self._woken)


def _begun(command: Command) -> Begun:
    return Begun(command.number, command.step, command.direction, command.attempt)


def _default_log() -> Log:
    import structlog  # noqa: PLC0415 - 100 ms that a caller with its own log does not pay

    log: Log = structlog.get_logger()
    return log
