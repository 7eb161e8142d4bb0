"""A real router process, twins of its shards, and connections: for the tests that need them.

A twin is a bound socket of `sagacity.sockets` that says what the test tells it to.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.directory import DataDirectory, RunDirectory
from sagacity import sockets, wire
from sagacity.client import Client, Connection
from sagacity.slots import SlotMap
from sagacity.wire import Reply, Request

SLOTS = SlotMap.even(2)
AT_0 = next(f"s{n}" for n in range(99) if SLOTS.owner(f"s{n}") == 0)
AT_1 = next(f"s{n}" for n in range(99) if SLOTS.owner(f"s{n}") == 1)
PATIENCE_S = 10.0


class Twin:
    """Stands where a shard, or the supervisor, would."""

    def __init__(self, address: str) -> None:
        self._ctx = sockets.context()
        self.socket = sockets.router(self._ctx, address)
        self._asked: list[tuple[bytes, Request]] = []

    def take(self, count: int = 1) -> list[tuple[bytes, Request]]:
        """Wait for so many requests; give each with its asker."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self._asked) < count:
            assert time.monotonic() < deadline, f"{len(self._asked)} of {count} requests came"
            self.socket.poll(20)
            frames, _ = sockets.receive_all_from(self.socket, 100)
            for identity, frame in frames:
                self._asked.extend((identity, item) for item in wire.read_requests(frame))
        taken, self._asked = self._asked[:count], self._asked[count:]
        return taken

    def answer(self, identity: bytes, *replies: Reply) -> None:
        assert sockets.send_to(self.socket, identity, wire.encode(replies))

    def close(self) -> None:
        self._ctx.destroy(linger=0)


class World:
    """A router process, its run directory, and twins made as tests want them."""

    def __init__(self, base: Path) -> None:
        self.data = base / "data"
        DataDirectory(self.data).open_or_create(2)
        self.run = RunDirectory(base / "run")
        self.run.path.mkdir(mode=0o700)
        self.url = self.run.router
        self._open: list[Twin | Connection | Client] = []
        self._process: subprocess.Popen[bytes] | None = None

    def router(self, *more: str) -> "subprocess.Popen[bytes]":
        """Start the router; an older one is waited for."""
        self.end(signal.SIGKILL)
        command = [sys.executable, "-P", "-m", "router", "--data", str(self.data)]
        command += ["--run", str(self.run.path), "--parent", str(os.getpid()), *more]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)
        return self._process

    def serves(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def rss_bytes(self) -> int:
        """Give the router's resident memory."""
        assert self._process is not None
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals) -> tuple[int, bytes]:
        """Send a signal to the router and wait for its end; give exit code and stderr."""
        process, self._process = self._process, None
        if process is None:
            return 0, b""
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE_S)
        return process.returncode, said

    def twin(self, address: str) -> Twin:
        twin = Twin(address)
        self._open.append(twin)
        return twin

    def shard(self, index: int) -> Twin:
        return self.twin(self.run.shard(index))

    def served(self) -> tuple[Twin, Twin, Connection]:
        """Start a router with both shards, and a connection that reaches them."""
        self.router()
        shards = self.shard(0), self.shard(1)
        connection = self.connection()
        ready(connection, _0=shards[0], _1=shards[1])
        return *shards, connection

    def connection(self, timeout_s: float = PATIENCE_S, *, url: str | None = None) -> Connection:
        connection = Connection(url or self.url, timeout_s=timeout_s)
        self._open.append(connection)
        return connection

    def client(self, timeout_s: float = PATIENCE_S) -> Client:
        client = Client(self.url, timeout_s=timeout_s)
        self._open.append(client)
        return client

    def close(self) -> None:
        for each in self._open:
            each.close()
        self.end(signal.SIGKILL)


@contextmanager
def opened() -> Iterator[World]:
    """Give a world, and leave nothing of it."""
    with tempfile.TemporaryDirectory(prefix="sg-") as base:
        world = World(Path(base))
        try:
            yield world
        finally:
            world.close()


def settle(connection: Connection, count: int = 1) -> dict[int, Reply]:
    """Poll until so many requests are settled."""
    deadline = time.monotonic() + PATIENCE_S
    found: dict[int, Reply] = {}
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} were settled"
        found.update(connection.poll(0.1))
    return found


def flush(connection: Connection) -> None:
    """Poll until everything asked has left."""
    deadline = time.monotonic() + PATIENCE_S
    while not connection.connected:
        assert time.monotonic() < deadline, "no connection"
        connection.poll(0.01)
    connection.poll(0)


def ready(connection: Connection, **shards: Twin) -> None:
    """Poll until the router reaches these twins: `_0` is shard 0."""
    for name, shard in shards.items():
        token = connection.ask(wire.BOOKS, name[1:], b"")
        flush(connection)
        deadline = time.monotonic() + PATIENCE_S
        while not shard.socket.poll(10):  # code 11 until the router has found it
            assert time.monotonic() < deadline, f"shard {name[1:]} is not reached"
            connection.poll(0)
        [(router, item)] = shard.take()
        shard.answer(router, Reply(item.request, None, b""))
        assert settle(connection)[token].code is None


def serve(shard: Twin, stop: threading.Event, said: Callable[[Request], Reply]) -> None:
    """Answer what comes until told to stop: a shard for clients that block."""
    while not stop.is_set():
        shard.socket.poll(5)
        frames, _ = sockets.receive_all_from(shard.socket, 100)
        for identity, frame in frames:
            shard.answer(identity, *[said(item) for item in wire.read_requests(frame)])


def echo(item: Request) -> Reply:
    """Answer with what was asked."""
    body = {"type": "echo", "kind": item.kind, "saga_id": item.saga_id}
    if item.body:
        body["asked"] = wire.unpack(item.body)
    return Reply(item.request, None, wire.pack(body))
