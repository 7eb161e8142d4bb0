"""A real shard process between twins: a supervisor's ear, a router, workers with made-up services.

The twins' workers remember what they have answered under each barrier key, as real ones do: a
command that comes twice has one effect, and its answer is the same.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from cluster.directory import DataDirectory, RunDirectory
from sagacity import sockets, wire
from sagacity.errors import NotTaken
from sagacity.ids import barrier_key
from sagacity.sockets import CONNECTED, Monitor
from sagacity.wire import (
    OK,
    Answer,
    Answers,
    Command,
    Commands,
    Hello,
    Rejected,
    Reply,
    Report,
    Request,
    Witness,
)
from tests.unit.canned import SERVICES, answer
from tests.unit.world import order

PATIENCE_S = 20.0

Outcome = Callable[[Command], int]


class TwinWorker:
    """Answers commands of one service: at once, or when `release` is called."""

    def __init__(self, ctx: sockets.Context, address: str, cluster_id: str, service: str) -> None:
        self.socket = sockets.dealer(ctx, address)
        self.monitor = Monitor(self.socket)
        self.service = service
        self.holds = False
        self.held: list[Command] = []
        self.outcome: Outcome = lambda _: OK
        self.effects: dict[int, Answer] = {}
        self.seen: list[Command] = []
        self.cluster_id = cluster_id
        self.witness: Witness | None = None  # the highest that came with commands, as a database's
        self.rejected = ""

    def turn(self) -> None:
        """Say HELLO after each connection, take what came, answer it unless it is held."""
        if CONNECTED in self.monitor.events():
            self.held.clear()
            held = [self.witness] if self.witness else []
            hello = Hello(wire.PROTOCOL, self.cluster_id, self.service, 1, 256, held)
            sockets.send(self.socket, wire.encode(hello))
        frames, _ = sockets.receive_all(self.socket, 1000)
        for frame in frames:
            said = wire.read_to_worker(frame)
            if isinstance(said, Rejected):
                self.rejected = said.text
                continue
            assert isinstance(said, Commands), said
            if said.items:
                self.witness = said.witness
            self.seen += said.items
            self.held += said.items
        if self.held and not self.holds:
            self.release()

    def release(self) -> None:
        """Answer what is held, each once for good."""
        answers = [self._perform(command) for command in self.held]
        self.held.clear()
        sockets.send(self.socket, wire.encode(Answers(answers)))

    def _perform(self, command: Command) -> Answer:
        key = barrier_key(command.number, command.step, command.direction)
        if key not in self.effects:
            self.effects[key] = answer(command, self.outcome(command))
        return self.effects[key]


class ShardWorld:
    """A data directory, a shard process on it, and the twins around it."""

    def __init__(self, base: Path, shards: int) -> None:
        self.base = base
        self.data = DataDirectory(base / "data")
        self.cluster = self.data.open_or_create(shards)
        self.run = RunDirectory(base / "run")
        self.run.path.mkdir(mode=0o700)
        self.ctx = sockets.context()
        self.reports: list[Report] = []
        self._ear = sockets.pull(self.ctx, self.run.reports)
        self._router = sockets.dealer(self.ctx, self.run.shard(0))
        self._monitor = Monitor(self._router)
        self.connected = False
        self.open: dict[int, Request] = {}
        self.replies: dict[int, Reply] = {}
        self.workers = {
            name: TwinWorker(self.ctx, self.run.workers(0), self.cluster.cluster_id, name)
            for name in SERVICES
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._poller = zmq.Poller()
        for socket in (self._ear, self._router, self._monitor.socket):
            self._poller.register(socket, zmq.POLLIN)
        for name, worker in self.workers.items():
            self.add_worker(name, worker)

    def add_worker(self, name: str, worker: TwinWorker) -> None:
        """Have a worker take part."""
        self.workers[name] = worker
        self._poller.register(worker.socket, zmq.POLLIN)
        self._poller.register(worker.monitor.socket, zmq.POLLIN)

    def lose_worker(self, name: str) -> None:
        """End a worker's connection."""
        worker = self.workers.pop(name)
        for socket in (worker.socket, worker.monitor.socket):
            self._poller.unregister(socket)
        worker.monitor.close()
        worker.socket.close()

    # -- processes ------------------------------------------------------------------------------

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        index: int = 0,
        under: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a shard, as the supervisor does; under a tracer whose command line is given."""
        command = [*under, sys.executable, "-P", "-m", "shard", "--data", str(self.data.path)]
        command += ["--run", str(self.run.path), "--index", str(index)]
        command += ["--parent", str(os.getpid()), *arguments]
        with self._stderr(len(self._processes)).open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                cwd=self.base,
                env={**os.environ, **(env or {})},
            )
        self._processes.append(process)
        return process

    def started(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a shard and wait until it serves."""
        process = self.start(*arguments, env=env)
        self.until(lambda: self.connected and self.report(process.pid, "up"), "a shard that serves")
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9, and wait until its connections are gone."""
        process.kill()
        process.wait()
        self.until(lambda: not self.connected, "the end of the connection")

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        """Go on until a process has ended by itself; give its exit code."""
        self.until(lambda: process.poll() is not None, "the end of the process")
        return process.wait()

    def log(self, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        """Give the lines that a process has logged; anything else on stderr fails."""
        text = self._stderr(self._processes.index(process)).read_text()
        return [json.loads(line) for line in text.splitlines()]

    def report(self, pid: int, state: str) -> Report | None:
        """Give a process's newest report of a state."""
        found = [each for each in self.reports if (each.pid, each.state) == (pid, state)]
        return found[-1] if found else None

    def _stderr(self, at: int) -> Path:
        return self.base / f"stderr-{at}"

    # -- conversation ---------------------------------------------------------------------------

    def turn(self) -> None:
        """Wait a moment for something to come, then have every twin do its part."""
        self._poller.poll(20)
        self.reports += map(wire.read_report, sockets.receive_all(self._ear, 1000)[0])
        for _ in self._monitor.events():
            self.connected = self._monitor.connected
            if self.connected and self.open:  # what a client does, through its router
                sockets.send(self._router, wire.encode(list(self.open.values())))
        for frame in sockets.receive_all(self._router, 1000)[0]:
            for reply in wire.read_replies(frame):
                assert reply.request not in self.replies, "a second reply to one request"
                if reply.code == NotTaken.code and b"is starting" in reply.body:
                    # As the client library does, with the same number.
                    again = self.open[reply.request]
                    sockets.send(self._router, wire.encode([again]))
                    continue
                self.replies[reply.request] = reply
                self.open.pop(reply.request, None)
        for worker in self.workers.values():
            worker.turn()

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Turn until something holds."""
        give_up = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < give_up, f"no {what} within {PATIENCE_S} s"
            self.turn()

    def ask(self, kind: int, saga_id: str, body: Mapping[str, Any] | None = None) -> int:
        """Send a request; it is sent again after each connection until it is answered."""
        number = len(self.open) + len(self.replies) + 1
        packed = wire.pack(dict(body)) if body is not None else b""
        self.open[number] = Request(kind, saga_id, number, {}, packed)
        if self.connected:
            sockets.send(self._router, wire.encode([self.open[number]]))
        return number

    def start_saga(self, saga_id: str, kind: int = wire.START) -> int:
        """Send a start."""
        return self.ask(kind, saga_id, order(saga_id))

    def answer(self, request: int) -> tuple[int | None, dict[str, Any]]:
        """Wait for the reply to a request: code and body."""
        self.until(lambda: request in self.replies, f"reply to request {request}")
        reply = self.replies[request]
        return reply.code, wire.unpack(reply.body)

    def answers(self) -> list[tuple[int | None, dict[str, Any]]]:
        """Wait for every reply that is open; give all there ever were, by request."""
        self.until(lambda: not self.open, "replies to all requests")
        return [self.answer(number) for number in sorted(self.replies)]

    def send_frame(self, frame: bytes) -> None:
        """Send any bytes as a router."""
        sockets.send(self._router, frame)

    def close(self) -> None:
        """End everything."""
        for process in self._processes:
            process.kill()
            process.wait()
        self.ctx.destroy(linger=0)


@contextmanager
def opened(shards: int = 1) -> Iterator[ShardWorld]:
    """Give a world on a new directory, whose path is short: sockets stand in it."""
    base = Path(tempfile.mkdtemp(prefix="sagacity-t-"))
    world = ShardWorld(base, shards)
    try:
        yield world
    finally:
        world.close()
        shutil.rmtree(base)
