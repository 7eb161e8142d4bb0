"""`sagacity maelstrom`: a Maelstrom node on stdin and stdout (SPEC 5), in front of a cluster.

Holds the process: descriptors, signals, the cluster that it starts for itself. What is said stands
in `conversation`. One thread, one poll; whatever is slow to import waits until `init` is answered.
"""

import argparse
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from cluster.conversation import Ask, Lines, Session
from sagacity.errors import Malformed, NoOutcome, NotTaken, SagacityError

if TYPE_CHECKING:
    from cluster.private import ClusterProcess
    from sagacity.client import Connection
    from sagacity.wire import Reply

DRAIN_S: Final = 10.0
START_S: Final = 30.0  # within which a cluster of our own serves
IN_FLIGHT_MAX: Final = 1024  # asks; stdin is not read while there are so many
_READ_BYTES: Final = 64 << 10
_INTERRUPTED: Final = 128 + signal.SIGINT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `maelstrom`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--connect", metavar="URL", help="a router's address; else SAGACITY_URL, else its own"
    )
    where.add_argument(
        "--data", type=Path, metavar="DIR", help="of its own cluster; else a temporary one"
    )
    parser.add_argument(
        "--drain",
        type=_seconds,
        default=DRAIN_S,
        metavar="S",
        help="at the end of input, how long to wait for what is in flight",
    )


def run_maelstrom(options: argparse.Namespace) -> int:
    """Answer until the end of input, SIGTERM or SIGINT, then stop what it started.

    Returns:
        0 at the end of input and after SIGTERM, 130 after SIGINT.

    Raises:
        SagacityError: there is no cluster, or not any more; what was asked is answered before.
    """
    url = options.connect
    if url is None and options.data is None:
        url = os.environ.get("SAGACITY_URL") or None
    with _signals() as stop:
        cluster = None if url else _own_cluster(options.data)
        node = _Node(url, cluster, options.drain)
        try:
            node.run(stop)
        finally:
            node.close()
            if cluster is not None:
                cluster.stop()
        return _INTERRUPTED if stop.number == signal.SIGINT else 0


class _Stop:
    """What SIGTERM and SIGINT do: the first asks for an orderly end, the next ends at once."""

    def __init__(self) -> None:
        self.number = 0
        self.fd, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        os.write(self._wake, b"!")


@contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Node:
    """The loop between stdin, the cluster and stdout.

    Args:
        url: of the router; None while the own cluster has not said it.
        cluster: the own cluster, if it is one.
        drain_s: how long to wait at the end.
    """

    def __init__(self, url: str | None, cluster: "ClusterProcess | None", drain_s: float) -> None:
        self._url = url
        self._cluster = cluster
        self._drain_s = drain_s
        self._session = Session(_log)
        self._lines = Lines()
        self._connection: Connection | None = None
        self._tokens: dict[int, int] = {}  # the connection's token: the session's
        self._waiting: list[Ask] = []  # for the cluster
        self._end_at: float | None = None  # set at the end of input
        self._start_by = time.monotonic() + START_S

    def run(self, stop: _Stop) -> None:
        """Run to the end of input, and of what is in flight."""
        poll = select.poll()
        poll.register(stop.fd, select.POLLIN)
        if self._cluster is not None:
            poll.register(self._cluster.ready_fd, select.POLLIN)
        reading = False
        while not self._done():
            connection = self._exchange()
            if reading != self._wants_input():
                reading = not reading
                if reading:
                    poll.register(0, select.POLLIN)
                else:
                    poll.unregister(0)
            if connection is not None:
                poll.register(connection.fd, select.POLLIN)
            for fd, _ in poll.poll(self._wait_ms()):
                if fd == 0:
                    self._read()
                elif fd == stop.fd:
                    poll.unregister(stop.fd)
                    self._end()
                elif self._cluster is not None and fd == self._cluster.ready_fd:
                    self._hear_cluster(self._cluster)
            if self._cluster is not None and not self._url and time.monotonic() > self._start_by:
                raise self._refuse(NoOutcome(f"the cluster did not serve within {START_S:g} s"))
        self._give_up(NotTaken("the cluster did not serve before the end of input"))

    def close(self) -> None:
        """Close the connection to the cluster."""
        if self._connection is not None:
            self._connection.close()

    def _done(self) -> bool:
        if self._end_at is None:
            return False
        return not self._session.asking or time.monotonic() >= self._end_at

    def _wants_input(self) -> bool:
        return self._end_at is None and self._session.asking < IN_FLIGHT_MAX

    def _wait_ms(self) -> float | None:
        waits = [] if self._connection is None else [self._connection.wait_s()]
        now = time.monotonic()
        if self._end_at is not None:
            waits.append(self._end_at - now)
        if not self._url:
            waits.append(self._start_by - now)
        known = [wait for wait in waits if wait is not None]
        return max(0.0, min(known)) * 1000 + 1 if known else None

    def _read(self) -> None:
        try:
            chunk = os.read(0, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # a terminal that has gone
            chunk = b""
        dropped = self._lines.dropped
        self._take(self._lines.feed(chunk) if chunk else self._lines.end())
        if self._lines.dropped > dropped:
            _log("line_skipped", reason="a line has at most 1 MiB")
        if not chunk:
            self._end()

    def _take(self, lines: list[bytes]) -> None:
        for line in lines:
            found = self._session.take(line)
            if isinstance(found, Ask):
                self._waiting.append(found)
            elif found is not None:
                _write([found])  # at once: the next line may need an import that takes its time

    def _exchange(self) -> "Connection | None":
        """Ask what waits, write what is answered; give the connection if it is a new one."""
        made = None
        if self._connection is None:
            if not self._waiting:
                return None
            _prepare()  # while the cluster starts
            if not self._url:
                return None
            try:
                made = self._connection = _connect(self._url)
            except Malformed as error:
                raise self._refuse(error) from None
        for token, asked in self._waiting:
            self._tokens[self._connection.ask(*asked)] = token
        self._waiting.clear()
        out = []
        for token, reply in self._connection.poll():
            line = self._session.answered(self._tokens.pop(token), _body(reply))
            if line is not None:
                out.append(line)
        _write(out)
        return made

    def _hear_cluster(self, cluster: "ClusterProcess") -> None:
        if self._url:  # it has nothing more to say: it has ended
            raise self._refuse(NoOutcome("the cluster has ended; ask again with the same id"))
        try:
            if cluster.read_ready():
                self._url = cluster.url
        except SagacityError as error:
            raise self._refuse(error) from None

    def _refuse(self, error: SagacityError) -> SagacityError:
        self._give_up(NotTaken(error.text))
        return error

    def _end(self) -> None:
        if self._end_at is None:
            self._end_at = time.monotonic() + self._drain_s

    def _give_up(self, never_sent: NotTaken) -> None:
        """Answer what is open: what the cluster never saw was not taken, the rest may have been."""
        unsent = {token for token, _ in self._waiting}
        unsure = NoOutcome("no outcome before the end; ask again with the same id")
        out = []
        for token in self._session.open:
            error = never_sent if token in unsent else unsure
            line = self._session.answered(token, error.body())
            if line is not None:
                out.append(line)
        _write(out)


def _own_cluster(data: Path | None) -> "ClusterProcess":
    from cluster.private import ClusterProcess  # noqa: PLC0415 - not with --connect

    return ClusterProcess(data)


def _prepare() -> None:
    import sagacity.client  # noqa: F401, PLC0415 - slow: after init


def _connect(url: str) -> "Connection":
    from sagacity.client import Connection  # noqa: PLC0415 - slow: after init

    return Connection(url)


def _body(reply: "Reply") -> dict[str, Any]:
    from sagacity.client import answer  # noqa: PLC0415 - imported when there is a reply

    try:
        return answer(reply)
    except SagacityError as error:
        return error.body()


def _log(event: str, **fields: object) -> None:
    from cluster.telemetry import configure_logging  # noqa: PLC0415 - slow: at the first line

    configure_logging("maelstrom", 0).warning(event, **fields)


def _write(lines: list[bytes]) -> None:
    """Write whole lines; waits for who reads them."""
    left = memoryview(b"".join(lines))
    while left:
        try:
            left = left[os.write(1, left) :]
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(1, select.POLLOUT)
            waiting.poll()


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"0 to 3600 seconds, not {text}")
    return seconds
