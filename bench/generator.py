"""One generator process: asks as its loop says, and tallies what comes back.

    python -m bench.generator      a plan on stdin, then one line a phase; JSON lines on stdout

Asks through the client library's connection, so that it costs what a client costs and comes
through a restart of the router as one does; but a refusal (code 11) is counted and not asked again.
`play` knows neither sockets nor clocks: they are given to it.
"""

import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from bench.carts import Carts, CartsOfShard
from bench.mix import Mix
from bench.schedule import SECOND, ClosedLoop, Loop, OpenLoop, arrivals
from bench.tally import Tally
from cluster.child import die_with
from sagacity import wire
from sagacity.asks import retry_after_ms
from sagacity.connection import Connection
from sagacity.errors import NotTaken
from sagacity.wire import Reply

READY: Final = b"ready\n"  # the first that it says: what is announced before would begin late
PER_CONNECTION: Final = 1024  # starts that a router takes of one client (its default)
DRAIN_NS: Final = 5 * SECOND  # for what is open when a run is broken off
_PATIENCE_NS: Final = 200_000_000  # the longest wait: signals and progress are looked at then
_GRAIN_NS: Final = 200_000  # arrivals so close together leave together; more with more connections
_TELL_NS: Final = 500_000_000
_WORDS_MAX: Final = 120  # of an error, as they are counted


class Plan(Struct, frozen=True, kw_only=True):
    """What one generator does, in every phase of a run.

    Args:
        url: the router's address.
        parent: who ends it.
        part: which generator of `parts` it is.
        in_flight: its own share; 0 for the open loop.
        rate: of all generators together, per second; 0 for the closed loop.
        arrivals: EVEN or POISSON.
        connections_max: for the open loop, which needs more when answers are late.
        timeout_s: a saga without an outcome for so long is an error.
        objective_ns: a saga that takes longer is no goodput.
        by_shard: it asks for checkouts of shard `part` of `parts` alone.
    """

    url: str
    parent: int
    part: int
    parts: int
    seed: int
    mix: Mix
    in_flight: int = 0
    rate: float = 0.0
    arrivals: str = "even"
    connections_max: int = 16
    timeout_s: float = 35.0
    objective_ns: int = SECOND
    by_shard: bool = False


class Phase(Struct, frozen=True):
    """A phase: when it begins, and how much of it there is for this generator."""

    begin: int  # monotonic nanoseconds
    sagas: int | None
    duration_ns: int | None


class Progress(Struct, tag="progress"):
    """How far it is."""

    started: int
    completed: int
    aborted: int
    refused: int
    errors: int
    opened: int
    connected: bool
    p99_ms: float


class Done(Struct, tag="done"):
    """A phase is over."""

    told: msgspec.Raw


class Asker(Protocol):
    """What a generator needs of its connections."""

    def ask(self, saga_id: str, body: bytes) -> int:
        """Ask for a checkout; give a token."""

    def poll(self, wait_ns: int) -> list[tuple[int, Reply]]:
        """Send, wait so long for something to be settled; give what is."""

    @property
    def connected(self) -> bool:
        """Whether the router is there."""


class Lines:
    """The connections of a generator: the first with room takes a start, more are made if need be.

    Args:
        url: the router's address.
        timeout_s: for an outcome.
        connections_max: that are made.
    """

    def __init__(self, url: str, timeout_s: float, connections_max: int) -> None:
        self._url, self._timeout_s, self._max = url, timeout_s, connections_max
        self._lines: list[Connection] = []
        self._looked_ns = 0
        self._more()

    @property
    def connected(self) -> bool:
        """Whether the router is there."""
        return self._lines[0].connected

    def ask(self, saga_id: str, body: bytes) -> int:
        """Ask; give a token."""
        for index, line in enumerate(self._lines):
            if len(line) < PER_CONNECTION:
                return line.ask(wire.START, saga_id, body) * self._max + index
        if len(self._lines) < self._max:
            self._more()
        index = len(self._lines) - 1
        return self._lines[index].ask(wire.START, saga_id, body) * self._max + index

    def poll(self, wait_ns: int) -> list[tuple[int, Reply]]:
        """Send, wait, give what is settled."""
        if len(self._lines) == 1 and wait_ns >= _PATIENCE_NS:
            return self._poll(0, wait_ns / SECOND)
        self._rest()
        settled = self._poll_all()
        if settled or not wait_ns:
            return settled
        waits = [wait_ns / SECOND, *(line.wait_s() for line in self._lines)]
        wait_s = min(wait for wait in waits if wait is not None)
        if wait_s:
            # select: microseconds, where a poller waits for whole milliseconds.
            select.select(self._lines, [], [], wait_s)
        return self._poll_all()

    def close(self) -> None:
        """Close them."""
        for line in self._lines:
            line.close()

    def _rest(self) -> None:
        """Look at many connections less often: each look costs all of them."""
        if len(self._lines) > 1:
            ahead = self._looked_ns + _GRAIN_NS * len(self._lines) - time.monotonic_ns()
            if ahead > 0:
                time.sleep(ahead / SECOND)
            self._looked_ns = time.monotonic_ns()

    def _poll_all(self) -> list[tuple[int, Reply]]:
        if len(self._lines) == 1:
            return self._poll(0, 0.0)
        return [each for index in range(len(self._lines)) for each in self._poll(index, 0.0)]

    def _poll(self, index: int, timeout_s: float) -> list[tuple[int, Reply]]:
        most = self._max
        settled = self._lines[index].poll(timeout_s)
        return [(token * most + index, reply) for token, reply in settled]

    def _more(self) -> None:
        self._lines.append(
            Connection(self._url, timeout_s=self._timeout_s, again_when_refused=False)
        )


def play(
    loop: Loop,
    asker: Asker,
    carts: Carts,
    tally: Tally,
    *,
    clock: Callable[[], int],
    stopping: Callable[[], bool],
    tell: Callable[[int, int], None] | None = None,
) -> None:
    """Play a phase until all that it starts is settled.

    Args:
        loop: when to start.
        asker: whom to ask.
        carts: what for.
        tally: takes what becomes of it.
        clock: monotonic nanoseconds, those of the loop.
        stopping: whether it is broken off: then nothing more starts, and what is still open after
            `DRAIN_NS` is given up.
        tell: called every turn with the instant and how many are open.
    """
    opened: dict[int, int] = {}
    give_up: int | None = None
    while True:
        now = clock()
        if give_up is None and stopping():
            loop.stop()
            give_up = now + DRAIN_NS
        due = loop.due(now, len(opened))
        if due:
            for intended in due:
                opened[asker.ask(*carts.deal())] = intended
            tally.started(due, now)
        if loop.over and not opened:
            return
        if give_up is not None and now >= give_up:
            tally.given_up(len(opened))
            return
        settled = asker.poll(_wait(loop.next(), now))
        now = clock()
        if settled:
            _settle(settled, opened, now, loop, tally)
        if tell is not None:
            tell(now, len(opened))


def _wait(until: int | None, now: int) -> int:
    if until is None:
        return _PATIENCE_NS
    # Never zero: a loop that does not wait for those who answer takes the CPU away from them.
    return min(max(until - now, _GRAIN_NS), _PATIENCE_NS)


def _settle(
    settled: list[tuple[int, Reply]], opened: dict[int, int], now: int, loop: Loop, tally: Tally
) -> None:
    """Count what is settled; all of a batch came at the same instant."""
    completed: list[int] = []
    aborted: list[int] = []
    for token, reply in settled:
        intended = opened.pop(token)
        if reply.code is None:
            (completed if b"COMPLETED" in reply.body else aborted).append(intended)
        elif reply.code == NotTaken.code:
            tally.refused(intended, now)
            loop.refused(now + retry_after_ms(reply.body) * 1_000_000)
        else:
            told = wire.unpack(reply.body).get("text", "")
            tally.failed(f"code {reply.code}: {told}"[:_WORDS_MAX], now)
    tally.finished(completed, aborted, now)


class Generator:
    """A generator: its connections and carts, phase after phase.

    Args:
        plan: what it does.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        in_flight = plan.in_flight or plan.connections_max * PER_CONNECTION
        self._lines = Lines(plan.url, plan.timeout_s, -(-in_flight // PER_CONNECTION))
        seed = plan.seed + plan.part
        self._carts = (
            CartsOfShard(plan.mix, seed, plan.part, plan.parts)
            if plan.by_shard
            else Carts(plan.mix, seed)
        )
        self._stopping = False
        signal.signal(signal.SIGTERM, self._stop)

    def phase(self, phase: Phase) -> bytes:
        """Play a phase; give what it has to tell, as JSON."""
        plan = self._plan
        end = None if phase.duration_ns is None else phase.begin + phase.duration_ns
        open_loop = plan.rate > 0
        loop: OpenLoop | ClosedLoop
        if open_loop:
            offsets = arrivals(
                plan.rate, plan.arrivals, seed=plan.seed, part=plan.part, parts=plan.parts
            )
            loop = OpenLoop(offsets, begin=phase.begin, sagas=phase.sagas, end=end)
        else:
            loop = ClosedLoop(plan.in_flight, sagas=phase.sagas, end=end)
        tally = Tally(phase.begin, plan.objective_ns, open_loop=open_loop)
        teller = Teller(tally, self._lines)
        while not self._stopping and (wait := phase.begin - time.monotonic_ns()) > 0:
            self._lines.poll(min(wait, _PATIENCE_NS))  # connects
        cpu = time.process_time_ns()
        play(
            loop,
            self._lines,
            self._carts,
            tally,
            clock=time.monotonic_ns,
            stopping=lambda: self._stopping,
            tell=teller.tell,
        )
        cpu = time.process_time_ns() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        left_out = loop.left_out if isinstance(loop, OpenLoop) else 0
        return msgspec.json.encode(tally.end(cpu, peak, left_out))

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True


class Teller:
    """Tells a generator's progress to who started it, twice a second."""

    def __init__(self, tally: Tally, asker: Asker) -> None:
        self._tally, self._asker = tally, asker
        self._next = 0

    def tell(self, now: int, opened: int) -> None:
        """Tell it, if it is time."""
        if now < self._next:
            return
        self._next = now + _TELL_NS
        told = self._tally.told
        say(
            Progress(
                started=told.started,
                completed=told.completed,
                aborted=told.aborted,
                refused=told.refused,
                errors=self._tally.errors.total(),
                opened=opened,
                connected=self._asker.connected,
                p99_ms=self._tally.p99_ms(),
            )
        )


def say(what: Struct) -> None:
    """Write one line for who started us."""
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


def main(lines: Iterable[bytes]) -> None:
    """Read a plan and play its phases until there are no more lines."""
    told = iter(lines)
    plan = msgspec.json.decode(next(told), type=Plan)
    die_with(plan.parent, signal.SIGKILL)
    generator = Generator(plan)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    for line in told:
        say(Done(msgspec.Raw(generator.phase(msgspec.json.decode(line, type=Phase)))))


if __name__ == "__main__":
    main(iter(sys.stdin.buffer.readline, b""))
