"""The auditor: the continuous audit as a process, `python -m cluster.auditor`.

Asks the cluster as any client does, through the router, and serves what does not balance as
`saga_books_imbalance`. A process of its own, so that it slows nobody: not the supervisor, which has
to hear its children, and no shard but by the pages that it asks for. What it knows is in memory
alone: after a restart it reads history once more. What is read in a round says `rounds`.
"""

import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from cluster.balance import CHECKOUT, Told
from cluster.child import Child, arguments
from cluster.clock import Clock, SystemClock
from cluster.directory import DataDirectory, RunDirectory
from cluster.fleet import AUDITOR
from cluster.meters import AuditorMeters
from cluster.rounds import Reader, Rounds, StartedOver
from cluster.telemetry import MetricsServer, configure_logging, guarded
from config.load import load
from sagacity import wire
from sagacity.barrier import Log
from sagacity.client import answer
from sagacity.connection import Connection
from sagacity.errors import InternalError, SagacityError

T = TypeVar("T")

ANSWER_S: Final = 5.0  # how long a page is waited for, asked again meanwhile
LINES_MAX: Final = 20  # of what does not balance, logged in one round
NICENESS: Final = 10  # whoever serves customers comes first

_MS: Final = 1_000_000


class Stopped(Exception):
    """The process is told to end."""


class Asker:
    """Asks for pages and waits for them; gives signs of life meanwhile.

    Args:
        url: the router's.
        child: this process.
        clock: tells the time.
    """

    def __init__(self, url: str, child: Child, clock: Clock) -> None:
        self._connection = Connection(url, timeout_s=ANSWER_S)
        self._child, self._clock = child, clock
        self._poller = select.poll()
        self._poller.register(child.wakeup_fd, select.POLLIN)
        self._poller.register(self._connection.fd, select.POLLIN)
        self._readers: dict[type[Any], wire.BodyReader[Any]] = {}

    def ask(self, shard: int, body: dict[str, Any], kind: type[T]) -> T:
        """Ask a shard for a page.

        Raises:
            SagacityError: it cannot be had now.
            Stopped: the process is told to end.
        """
        token = self._connection.ask(wire.BOOKS, str(shard), wire.pack(body))
        while True:
            for settled, reply in self._connection.poll():
                if settled == token:
                    return self._read(reply, kind)
            self.wait(self._connection.wait_s())

    def wait(self, wait_s: float | None) -> None:
        """Wait for something to come, no longer than until the next sign of life.

        Raises:
            Stopped: the process is told to end.
        """
        now = self._clock.monotonic_ns()
        self._child.beat(now)
        wait_ms = max(0, self._child.beat_due_ns() - now) // _MS + 1
        self._poller.poll(wait_ms if wait_s is None else min(wait_ms, int(wait_s * 1000) + 1))
        if self._child.woken():
            raise Stopped

    def rest(self, wait_s: float) -> None:
        """Wait without a question; replies that come late, or twice, are dropped.

        Raises:
            Stopped: the process is told to end.
        """
        self.wait(wait_s)
        self._connection.poll()  # else what has come would end each wait at once

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _read(self, reply: wire.Reply, kind: type[T]) -> T:
        if reply.code is not None:
            answer(reply)  # raises what it says
        reader = self._readers.setdefault(kind, wire.BodyReader(kind))
        try:
            found: T = reader.decode(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InternalError(f"a page cannot be read: {error}") from None
        return found


class Auditor:
    """Makes round after round.

    Args:
        reader: to ask.
        shards: their indices.
        clock: tells the time.
        meters: to count in.
        log: for what does not balance.
        others: the journals may hold sagas that are no checkouts.
    """

    def __init__(
        self,
        reader: Reader,
        shards: Sequence[int],
        clock: Clock,
        meters: AuditorMeters,
        log: Log,
        *,
        others: bool = False,
    ) -> None:
        self._reader, self._shards, self._clock = reader, list(shards), clock
        self._meters, self._log = meters, log
        self._others = others
        self._rounds = self._anew()
        self._totals: dict[str, int] = {}
        self._fails = False
        meters.books_imbalance.source = self._imbalance
        self._finished_s = self._took_s = self._history_s = 0.0
        meters.books_round_timestamp.source = lambda: self._finished_s
        meters.books_round_duration.source = lambda: self._took_s
        meters.books_history_timestamp.source = lambda: self._history_s

    def round(self) -> None:
        """Make a round, and say what it has found."""
        began = self._clock.monotonic_ns()
        rounds, compared = self._rounds, self._rounds.balance.compared
        try:
            rounds.round()
        except StartedOver as why:
            self._log.error("books_started_over", reason=str(why))
            self._rounds = self._anew()
            return
        except SagacityError as error:
            if not self._fails:  # once, until a round is finished again
                self._log.warning("books_unread", text=error.text, code=error.code)
            self._fails = True
        else:
            self._fails = False
            self._finished_s = self._clock.wall_ms() / 1000
            self._took_s = (self._clock.monotonic_ns() - began) / 1e9
        if rounds.read_through:
            self._history_s = self._clock.wall_ms() / 1000
            rounds.read_through = 0
        self._meters.books_sagas.add((), rounds.balance.compared - compared)
        self._say(list(rounds.balance.news()))

    def _anew(self) -> Rounds:
        return Rounds(self._reader, self._shards, others=self._others)

    def _imbalance(self) -> dict[tuple[str, ...], float]:
        return {(book,): amount for book, amount in self._totals.items()}

    def _say(self, news: Sequence[Told]) -> None:
        for told in news[:LINES_MAX]:
            about: dict[str, object] = {"book": told.book, "amount": told.amount}
            if told.sku:
                about["sku"] = told.sku
            else:
                about |= {"saga_id": told.saga_id, "number": told.number}
            if told.mended:
                self._log.info("books_mended", **about)
            else:
                self._log.error("books_do_not_balance", **about)
        if len(news) > LINES_MAX:
            self._log.error("books_said_less", left_out=len(news) - LINES_MAX)
        # Behind the lines: who sees the metric finds them in the log.
        self._totals = self._rounds.balance.totals()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the auditor until it is told to stop.

    Returns:
        An exit code of SPEC 4.
    """
    args = arguments("python -m cluster.auditor", index=int, router=str).parse_args(argv)
    clock = SystemClock()
    child = Child(AUDITOR, args.index, RunDirectory(args.run), args.parent, clock)
    try:
        log = configure_logging(AUDITOR, args.index)
        config = load(args.config)
        child.set_heartbeat(config.supervisor.heartbeat_ms)
        cluster = DataDirectory(args.data).read()
        others = any(name != CHECKOUT for name, _ in cluster.sagas)
        meters = AuditorMeters()
        child.metrics_port = MetricsServer(meters).start()
        asker = Asker(args.router, child, clock)
        auditor = Auditor(asker, range(cluster.shards), clock, meters, log, others=others)
    except SagacityError as error:
        print(f"auditor: {error.text}", file=sys.stderr)  # noqa: T201 - a program's last words
        child.close()
        return error.exit_code
    os.nice(NICENESS)
    child.report("up")
    with suppress(Stopped):
        _rounds(auditor, asker, clock, config.supervisor.books_every_ms * _MS)
    asker.close()
    child.close()
    return 0


def _rounds(auditor: Auditor, asker: Asker, clock: Clock, every_ns: int) -> NoReturn:
    """Make a round each `every_ns`; one that takes longer is followed by the next at once."""
    due = clock.monotonic_ns()
    while True:
        auditor.round()
        now = clock.monotonic_ns()
        due = max(due + every_ns, now)
        while now < due:
            asker.rest((due - now) / 1e9)
            now = clock.monotonic_ns()


if __name__ == "__main__":
    sys.exit(guarded(main))
