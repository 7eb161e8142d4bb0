"""The life of a child process: it dies with its supervisor, ends when told, says how it is.

Every process of a cluster but the supervisor holds one Child. Knows signals and the reports'
socket; knows nothing of what the process does.
"""

import argparse
import ctypes
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

from cluster.clock import Clock
from cluster.directory import RunDirectory
from sagacity import sockets, wire

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
EXIT_ORPHAN: Final = 71
_REPORTS_KEPT: Final = 16  # unsent reports; a newer one says all that an older one said

Facts = Mapping[str, int] | Callable[[], Mapping[str, int]]


def arguments(prog: str, **extra: type[Any]) -> argparse.ArgumentParser:
    """Give a parser of what every child takes: --data --run [--config] [--parent].

    Args:
        prog: as it stands in the usage line, such as "python -m shard".
        extra: further required options by name, each with its type: `index=int`.
    """
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--parent", type=int, metavar="PID")
    for name, kind in extra.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    return parser


class StopSignals:
    """SIGTERM and SIGINT as a flag, and as a descriptor that wakes a poller.

    zmq_poll goes on waiting after a signal, so a flag alone would be seen late. Make it in the
    main thread.

    Args:
        ignore_interrupt: SIGINT does nothing.
    """

    def __init__(self, *, ignore_interrupt: bool = False) -> None:
        self.stopping = False
        self.wakeup_fd, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_stop),
            signal.SIGINT: signal.signal(
                signal.SIGINT, signal.SIG_IGN if ignore_interrupt else self._on_stop
            ),
        }
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def woken(self) -> bool:
        """Take what makes `wakeup_fd` readable; say whether the process has to stop."""
        with suppress(BlockingIOError):
            while os.read(self.wakeup_fd, 64):
                pass
        return self.stopping

    def close(self) -> None:
        """Give the signals back."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.wakeup_fd)
        os.close(self._wake)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopping = True


class Child:
    """A process of a cluster. Make it in the main thread, before anything that takes time.

    Args:
        role: router, shard or a service's name.
        index: among its like.
        run: where the supervisor takes reports; without its socket reports go nowhere.
        parent_pid: of the supervisor, None when somebody else started this process. With one, the
            process is killed when that one ends, and ends at once (exit code 71) if it has.
        clock: for the rhythm of `beat`.
        heartbeat_ms: between two reports of an unchanged state.
        ctx: for the reports' socket; the process-wide one if left out.
    """

    def __init__(
        self,
        role: str,
        index: int,
        run: RunDirectory,
        parent_pid: int | None,
        clock: Clock,
        *,
        heartbeat_ms: int = 1_000,
        ctx: sockets.Context | None = None,
    ) -> None:
        if parent_pid is not None:
            die_with(parent_pid, signal.SIGKILL)
        self.role = role
        self.index = index
        self.state = "starting"
        self.metrics_port = 0
        self._clock = clock
        self.set_heartbeat(heartbeat_ms)
        self._next_beat_ns = 0
        self._run = run
        self._ctx = ctx
        self._socket: sockets.Socket | None = None
        # A terminal sends SIGINT to the whole group; what it means is the supervisor's to decide.
        self._signals = StopSignals(ignore_interrupt=parent_pid is not None)

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM has come: finish what is in flight and end."""
        return self._signals.stopping

    @property
    def wakeup_fd(self) -> int:
        """Readable after a signal: register it in the process's poller and call `woken` then."""
        return self._signals.wakeup_fd

    def woken(self) -> bool:
        """Take what makes `wakeup_fd` readable; say whether the process has to stop."""
        return self._signals.woken()

    def report(self, state: str, facts: Facts | None = None) -> None:
        """Tell the supervisor a state: "starting", "standby" or "up", with facts for `status`."""
        self.state = state
        self._send(facts)

    def beat(self, now_ns: int, facts: Facts | None = None) -> None:
        """Tell the state again if a heartbeat is due. Cheap: call it each turn of the loop.

        Args:
            now_ns: of the clock.
            facts: or what gives them, called only when they are sent.
        """
        if now_ns >= self._next_beat_ns:
            self._send(facts)

    def set_heartbeat(self, heartbeat_ms: int) -> None:
        """Change the time between two reports, once the configuration is known."""
        self._heartbeat_ns = heartbeat_ms * 1_000_000

    def beat_due_ns(self) -> int:
        """Give the instant of the next heartbeat, for the loop's time-out."""
        return self._next_beat_ns

    def close(self) -> None:
        """Close the reports' socket and give the signals back."""
        self._signals.close()
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _send(self, facts: Facts | None) -> None:
        self._next_beat_ns = self._clock.monotonic_ns() + self._heartbeat_ns
        socket = self._socket or self._connect()
        if socket is None:
            return
        told = dict(facts() if callable(facts) else facts or {})
        report = wire.Report(
            self.role, self.index, os.getpid(), self.state, self.metrics_port, told
        )
        sockets.send(socket, wire.encode(report))  # full: the next heartbeat says it again

    def _connect(self) -> "sockets.Socket | None":
        reports = self._run.reports
        if not Path(reports.removeprefix("ipc://")).exists():
            return None
        ctx = self._ctx or sockets.Context.instance()
        self._socket = sockets.push(ctx, reports, frames_queued_max=_REPORTS_KEPT)
        return self._socket


def die_with(parent_pid: int, number: signal.Signals) -> None:
    """Get a signal when the parent's thread that started us ends; be gone if it has ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(EXIT_ORPHAN)
