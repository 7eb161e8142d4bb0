"""A shard's side of its workers, driven by a test: binds where workers connect, speaks `wire`.

And what starts real worker processes on a directory of their own.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from cluster.directory import DataDirectory, RunDirectory
from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION, number_of
from sagacity.sockets import (
    Context,
    PeerGone,
    context,
    pull,
    receive_all,
    receive_all_from,
    router,
    send_to,
)
from sagacity.wire import (
    Answer,
    Answers,
    Beat,
    Begun,
    BooksPage,
    Command,
    Commands,
    Forgot,
    Hello,
    Report,
    Witness,
)

PATIENCE_S = 10.0

T = TypeVar("T")


class TwinShard:
    """One shard, as its workers see it.

    Args:
        ctx: for its socket.
        address: to bind.
        cluster_id: of its witnesses.
        index: of the shard.
    """

    def __init__(self, ctx: Context, address: str, cluster_id: str, index: int = 0) -> None:
        self._socket = router(ctx, address)
        self._cluster_id = cluster_id
        self._index = index
        self._seq = 0
        self.hellos: list[tuple[bytes, Hello]] = []
        self.beats: list[tuple[bytes, Beat]] = []
        self.answers: list[Answer] = []
        self.answer_frames = 0
        self.begun: list[Begun] = []
        self.pages: list[BooksPage] = []
        self.forgot: list[Forgot] = []
        self.kinds: list[type] = []  # of all that came, in order

    def receive(self) -> None:
        """Take what came, waiting a moment for it."""
        self._socket.poll(20)
        for peer, frame in receive_all_from(self._socket, 1000)[0]:
            said = wire.read_to_shard(frame)
            self.kinds.append(type(said))
            if isinstance(said, Hello):
                self.hellos.append((peer, said))
            elif isinstance(said, Beat):
                self.beats.append((peer, said))
            elif isinstance(said, Begun):
                self.begun.append(said)
            elif isinstance(said, Answers):
                self.answer_frames += 1
                self.answers += said.items
            elif isinstance(said, Forgot):
                self.forgot.append(said)
            else:
                self.pages.append(said)

    def until(self, found: Callable[["TwinShard"], T], what: str) -> T:
        """Receive until `found` gives something true; give that."""
        give_up = time.monotonic() + PATIENCE_S
        while not (seen := found(self)):
            assert time.monotonic() < give_up, f"no {what} within {PATIENCE_S} s"
            self.receive()
        return seen

    def worker(self, seen_before: int = 0) -> bytes:
        """Give the connection of the worker that says HELLO next."""
        self.until(lambda shard: len(shard.hellos) > seen_before, "HELLO")
        return self.hellos[-1][0]

    def send(self, peer: bytes, *commands: Command, alone: bool = False) -> None:
        self._seq += 1
        number = max((command.number for command in commands), default=0)
        seen = Witness(self._cluster_id, self._index, 1, self._seq, bytes(16), number)
        assert send_to(self._socket, peer, wire.encode(Commands(seen, list(commands), alone)))

    def send_frame(self, peer: bytes, frame: bytes) -> None:
        assert send_to(self._socket, peer, frame)

    def ask(self, peer: bytes, *commands: Command) -> list[Answer]:
        """Send commands and wait for as many answers."""
        before = len(self.answers)
        self.send(peer, *commands)
        self.until(lambda shard: len(shard.answers) >= before + len(commands), "answers")
        return self.answers[before:]

    def gone(self, peer: bytes) -> bool:
        """Say whether a worker's connection is gone."""
        nothing = Commands(Witness(self._cluster_id, 0, 0, 0, b"", 0), [])
        try:
            send_to(self._socket, peer, wire.encode(nothing))
        except PeerGone:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


def command(count: int, step: int, body: Struct, *, attempt: int = 1, shard: int = 0) -> Command:
    """Give a message of SPEC 1 as a command of the count-th saga of a shard."""
    direction = COMPENSATION if hasattr(body, "compensating") else ACTION
    number = number_of(count, shard)
    saga_id = f"checkout{count}-{shard}"
    return Command(saga_id, step, direction, 1, number, attempt, {}, wire.encode(body))


class Place:
    """A data directory, a run directory, twin shards, and worker processes on them."""

    def __init__(self, data: Path, run: Path, shards: int) -> None:
        self.directory = DataDirectory(data)
        self.cluster = self.directory.open_or_create(shards)
        self.run = RunDirectory(run)
        self.ctx = context()
        self._reports = pull(self.ctx, self.run.reports)
        self.reports: list[Report] = []
        self.shards = [self.shard(index) for index in range(shards)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def shard(self, index: int) -> TwinShard:
        return TwinShard(self.ctx, self.run.workers(index), self.cluster.cluster_id, index)

    def argv(self, service: str, index: int = 0) -> list[str]:
        """Give the command line of a worker."""
        argv = [sys.executable, "-P", "-m", "services", "--service", service]
        argv += ["--index", str(index), "--data", str(self.directory.path)]
        return [*argv, "--run", str(self.run.path), "--parent", str(os.getpid())]

    def start(
        self, service: str, index: int = 0, under: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a worker, as the supervisor does; under a tracer whose command line is given."""
        argv = [*under, *self.argv(service, index)]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._processes.append(process)
        return process

    def until_reported(self, pid: int, state: str) -> Report:
        """Wait until a process has reported a state."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            self._reports.poll(20)
            frames, _ = receive_all(self._reports, 1000)
            self.reports += [wire.read_report(frame) for frame in frames]
            for report in self.reports:
                if (report.pid, report.state) == (pid, state):
                    return report
            assert time.monotonic() < give_up, f"{pid} is not {state}: {self.reports}"

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stderr:
                process.stderr.close()
        for shard in self.shards:
            shard.close()
        self._reports.close()
        self.ctx.term()


@contextlib.contextmanager
def place(data: Path, shards: int = 1) -> Iterator[Place]:
    """Give a place, and clear it. Its run directory has a short path: sockets stand in it."""
    run = Path(tempfile.mkdtemp(prefix="sagacity-t-"))
    made = Place(data, run, shards)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(run)
