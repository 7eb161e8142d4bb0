"""Processes that a run starts: each logs to a file, is ended by its id, and ends when we do.

Knows the kernel's files about processes; nothing of peers.
"""

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from bench.peers.errors import PeerError, Refused
from cluster.child import PR_SET_PDEATHSIG

ROOT: Final = Path(__file__).parents[2]
STOP_S: Final = 20.0
START_S: Final = 90.0
_LOOK_AGAIN_S: Final = 0.1
_TOLD_LINES_MAX: Final = 15
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LIBC: Final = ctypes.CDLL(None)


class Process:
    """A started process.

    Args:
        role: under which its CPU is counted.
        popen: it.
        log: file of what it says.
    """

    def __init__(self, role: str, popen: subprocess.Popen[str], log: Path) -> None:
        self.role, self.popen, self.log = role, popen, log

    def hear(self, word: str) -> None:
        """Wait until it says a line.

        Raises:
            PeerError: it says something else, or ends.
        """
        if self.popen.stdout is None or self.popen.stdout.readline().strip() != word:
            raise PeerError(f"{self.role} did not say {word!r}; {self.last_words()}")

    def tell(self) -> None:
        """Let it go on."""
        if self.popen.stdin is not None:
            self.popen.stdin.write("go\n")
            self.popen.stdin.flush()

    def last_words(self) -> str:
        """Give the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TOLD_LINES_MAX:]
        return f"its last words ({self.log.name}):\n" + "\n".join(lines)


class Processes:
    """All processes of a run. `with Processes(logs) as processes: processes.start(...)`.

    Args:
        logs: folder for their logs.
        stop_s: seconds that each has to end by itself.
    """

    def __init__(self, logs: Path, stop_s: float = STOP_S) -> None:
        self._logs, self._stop_s = logs, stop_s
        self.started: list[Process] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self.started):
            stop(process.popen, self._stop_s)
        self.started.clear()

    def start(
        self,
        role: str,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        *,
        user: int | None = None,
        end: signal.Signals = signal.SIGKILL,
        spoken: bool = False,
    ) -> Process:
        """Start one.

        Args:
            role: under which its CPU is counted.
            command: program and arguments.
            env: more environment.
            user: its user and group, if not ours.
            end: signal that it gets when we die without ending it.
            spoken: we read its stdout and write its stdin; else stdout is log, too.
        """
        log = self._logs / f"{role}-{len(self.started)}.log"
        with log.open("wb") as file:
            popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE if spoken else subprocess.DEVNULL,
                stdout=subprocess.PIPE if spoken else file,
                stderr=file,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "TMPDIR": str(self._logs),
                    **(env or {}),
                },
                text=True,
                cwd=self._logs,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                process_group=0,  # a terminal's SIGINT is for who started the run
                preexec_fn=lambda: _end_with_parent(end),  # noqa: PLW1509 - we have no threads
            )
        process = Process(role, popen, log)
        self.started.append(process)
        return process

    def cpu_seconds(self) -> dict[str, float]:
        """Give the CPU used so far by role, children of the processes included."""
        parents = _parents()
        used: dict[str, float] = {}
        for process in self.started:
            used[process.role] = used.get(process.role, 0.0) + _tree_cpu(process.popen.pid, parents)
        return used


def wait_until(holds: Callable[[], bool], process: Process, what: str) -> None:
    """Look again and again until something holds.

    Raises:
        PeerError: the process ends before, or it takes too long.
    """
    give_up = time.monotonic() + START_S
    while not holds():
        if process.popen.poll() is not None:
            raise PeerError(f"{what}: it has ended instead; {process.last_words()}")
        if time.monotonic() > give_up:
            raise PeerError(f"{what}: not within {START_S:g} s; {process.last_words()}")
        time.sleep(_LOOK_AGAIN_S)


def http(url: str, body: bytes | None = None) -> str | None:
    """Get a URL on loopback, or post JSON to it; give the answer, None if there was none."""
    request = urllib.request.Request(
        url, body, {"content-type": "application/json", "accept": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            file: IO[bytes] = answer
            return file.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def ports(wanted: int, first: int | None) -> list[int]:
    """Give ports of loopback that are free now.

    Args:
        wanted: so many.
        first: of a row of ports; None for any.

    Raises:
        Refused: one of the row is taken, or is no port.
    """
    numbers = [0] * wanted if first is None else list(range(first, first + wanted))
    opened: list[socket.socket] = []
    try:
        for number in numbers:
            opened.append(socket.socket())
            opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                opened[-1].bind(("127.0.0.1", number))
            except (OSError, OverflowError) as error:
                raise Refused(f"port {number} of 127.0.0.1 cannot be had: {error}") from error
        return [each.getsockname()[1] for each in opened]
    finally:
        for each in opened:
            each.close()


def stop(popen: subprocess.Popen[str], stop_s: float) -> None:
    """End a process that we started: SIGTERM, then SIGKILL to it and its children."""
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            pipe.close()
    if popen.poll() is None:
        popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            popen.wait(stop_s)
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)  # its own group: nobody else is in it
    popen.wait()


def _end_with_parent(number: signal.Signals) -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _parents() -> dict[int, list[int]]:
    """Give the children of every process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    return children


def _tree_cpu(pid: int, children: Mapping[int, Sequence[int]]) -> float:
    fields = _stat(pid)
    # User and system time, of itself and of children that have ended.
    own = sum(int(field) for field in fields[11:15]) / _TICKS if fields else 0.0
    return own + sum(_tree_cpu(child, children) for child in children.get(pid, ()))


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
