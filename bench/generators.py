"""The generators of a run: started, led through its phases, broken off, ended."""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Final, Self

import msgspec
from msgspec import Struct

from bench.generator import DRAIN_NS, Done, Phase, Plan, Progress
from bench.tally import Told
from sagacity.errors import InternalError

LEAD_NS: Final = 100_000_000  # from a phase's announcement to its begin: all read it before
_END_S: Final = 2.0
_READ_BYTES: Final = 1 << 20
_TURN_S: Final = 0.1


class HowFar(Struct, frozen=True):
    """How far all generators are together, as they last told."""

    started: int
    completed: int
    aborted: int
    refused: int
    errors: int
    opened: int
    connected: bool  # one of them at least
    p99_ms: float  # the worst of theirs


_NOTHING: Final = Progress(0, 0, 0, 0, 0, 0, True, 0.0)


class Generators:
    """Generator processes. `with Generators(plans) as generators: ...`

    Args:
        plans: one each.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for plan in plans:
                self._processes.append(_start(plan))
            for process in self._processes:
                _pipe(process.stdout).readline()  # READY; nothing of one that has ended
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def play(
        self,
        phases: Sequence[tuple[int | None, int | None]],
        turn: Callable[[HowFar], bool],
        begun: Callable[[], None] | None = None,
    ) -> list[Told]:
        """Play a phase in all generators.

        Args:
            phases: for each how many sagas, and nanoseconds; None where that is no bound.
            turn: called about ten times a second; what is open is drained once it says False.
            begun: called just before the phase begins.

        Returns:
            What those tell that have come to its end.
        """
        if begun is not None:
            begun()
        begin = time.monotonic_ns() + LEAD_NS
        for process, (sagas, duration_ns) in zip(self._processes, phases, strict=True):
            line = msgspec.json.encode(Phase(begin, sagas, duration_ns)) + b"\n"
            with suppress(BrokenPipeError):  # it has ended: that is seen below
                _pipe(process.stdin).write(line)
                _pipe(process.stdin).flush()
        return _Play(self._processes).run(turn)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            with suppress(BrokenPipeError):
                _pipe(process.stdin).close()
        for process in self._processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _pipe(process.stdout).close()


class _Play:
    """One phase as it is played: reads what the generators say."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = processes
        self._told: dict[int, Told] = {}
        self._far = [_NOTHING] * len(processes)
        self._ended: set[int] = set()
        self._halves = [b""] * len(processes)
        self._give_up: int | None = None

    def run(self, turn: Callable[[HowFar], bool]) -> list[Told]:
        """Read until all have told, or ended; give what they told."""
        with selectors.DefaultSelector() as selector:
            for index, process in enumerate(self._processes):
                selector.register(_pipe(process.stdout), selectors.EVENT_READ, index)
            while len(self._told.keys() | self._ended) < len(self._processes):
                for key, _ in selector.select(_TURN_S):
                    self._read(key.fd, key.data)
                    if key.data in self._ended:
                        selector.unregister(key.fileobj)
                # Without one of them the load is not what was asked for.
                goes_on = turn(self._how_far()) and not self._ended
                if not goes_on and self._give_up is None:
                    self._break_off()
                if self._give_up is not None and time.monotonic_ns() > self._give_up:
                    break
        return [self._told[index] for index in sorted(self._told)]

    def _break_off(self) -> None:
        self._give_up = time.monotonic_ns() + 2 * DRAIN_NS
        for process in self._processes:
            process.send_signal(signal.SIGTERM)

    def _read(self, descriptor: int, index: int) -> None:
        read = os.read(descriptor, _READ_BYTES)
        if not read:
            self._ended.add(index)
            return
        *lines, self._halves[index] = (self._halves[index] + read).split(b"\n")
        for line in lines:
            said = msgspec.json.decode(line, type=Progress | Done)
            if isinstance(said, Progress):
                self._far[index] = said
            else:
                self._told[index] = msgspec.json.decode(said.told, type=Told)

    def _how_far(self) -> HowFar:
        far = self._far
        return HowFar(
            started=sum(each.started for each in far),
            completed=sum(each.completed for each in far),
            aborted=sum(each.aborted for each in far),
            refused=sum(each.refused for each in far),
            errors=sum(each.errors for each in far),
            opened=sum(each.opened for each in far),
            connected=any(each.connected for each in far),
            p99_ms=max(each.p99_ms for each in far),
        )


def _start(plan: Plan) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "bench.generator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,  # a terminal's SIGINT is for who started the run
    )
    _pipe(process.stdin).write(msgspec.json.encode(plan) + b"\n")
    _pipe(process.stdin).flush()
    return process


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise InternalError("a generator without a pipe")
    return pipe
