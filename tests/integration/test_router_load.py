"""Clients that are slow, gone or hostile, and a well-behaved one beside them (PROOF G4, G5, G6).

Each test has a real router between a twin of its shard, which answers in a thread of its own, and
connections that say whatever a test likes. The good client must be answered meanwhile, and the
router's memory must stay where it was, give or take what is said in the test.
"""

import socket as plain
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from sagacity import sockets, wire
from sagacity.client import Connection
from sagacity.errors import NotTaken
from sagacity.wire import Reply, Request
from tests.integration.router_world import (
    AT_0,
    AT_1,
    PATIENCE_S,
    Twin,
    World,
    opened,
)

MIB = 1 << 20
SHOWN = wire.pack({"type": "saga"})
SOON_S = 3.0  # a good client's patience with one answer, on a machine that others use too


@pytest.fixture
def world() -> Iterator[World]:
    with opened() as made:
        yield made


def shown(item: Request) -> Reply:
    return Reply(item.request, None, SHOWN)


@contextmanager
def answering(twin: Twin, said: Callable[[Request], Reply | None]) -> Iterator[None]:
    """Have a twin answer what comes, in a thread: a shard for clients that block."""
    stop = threading.Event()

    def turns() -> None:
        while not stop.is_set():
            twin.socket.poll(5)
            frames, _ = sockets.receive_all_from(twin.socket, 100)
            for identity, frame in frames:
                replies = [reply for item in wire.read_requests(frame) if (reply := said(item))]
                for out in wire.frames(replies):
                    while not sockets.send_to(twin.socket, identity, out) and not stop.is_set():
                        stop.wait(0.001)

    thread = threading.Thread(target=turns)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def until(holds: Callable[[], object], connection: Connection) -> None:
    """Wait for something to hold; the connection goes on meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "did not come true"
        connection.poll(0.02)


def ask_often(world: World, times: int, saga_id: str = AT_0) -> float:
    """Ask so often, for a second at most, as a well-behaved client does; give the longest wait."""
    client = world.client(PATIENCE_S)
    waits: list[float] = []
    while len(waits) < times and sum(waits) < 1.0:
        begun = time.monotonic()
        client.show(saga_id)
        waits.append(time.monotonic() - begun)
    return max(waits)


def hostile(world: World, *, received_max: int = 1_000_000) -> "zmq.Socket[bytes]":
    """A connection that takes so many frames in and sends what a test likes."""
    ctx = world.connection()._ctx
    made = ctx.socket(zmq.DEALER)
    made.setsockopt(zmq.LINGER, 0)
    made.setsockopt(zmq.RCVHWM, received_max)
    made.connect(world.url)
    assert made.poll(int(PATIENCE_S * 1000), zmq.POLLOUT)
    return made


def starts(first: int, count: int, kind: int = wire.START) -> bytes:
    asked = [Request(kind, AT_0, number, {}, b"") for number in range(first, first + count)]
    return wire.encode(asked)


def test_a_client_that_never_reads_costs_its_bound_and_delays_nobody(world: World) -> None:
    """G4, bug unbounded_outbox: 200 MB of answers are due to it; its queues end, the rest drops."""
    shard, _, _ = world.served()
    big = bytes(100_000)

    def said(item: Request) -> Reply:
        return Reply(item.request, None, big if item.kind == wire.START else SHOWN)

    with answering(shard, said):
        ask_often(world, 5)
        before = world.rss_bytes()
        deaf = hostile(world, received_max=1)
        for batch in range(20):
            deaf.send(starts(100 * batch, 100))
            assert ask_often(world, 2) < SOON_S
        assert world.rss_bytes() - before < 64 * MIB
    assert world.serves()


def test_clients_that_vanish_with_all_they_may_have_open_take_no_room(world: World) -> None:
    """G4: eight of them fill a shard's room; a second or two later it is free again."""
    shard, _, connection = world.served()
    kinds: list[int] = []

    def said(item: Request) -> Reply | None:
        kinds.append(item.kind)
        return None

    with answering(shard, said):
        vanishing = [hostile(world) for _ in range(8)]
        for each in vanishing:
            each.send(starts(1, 1024))
        until(lambda: len(kinds) == 8 * 1024, connection)
        assert set(kinds) == {wire.START}
        vanishing[0].send(starts(2000, 1))
        until(lambda: kinds[-1] == wire.RECALL, connection)
        for each in vanishing:
            each.close()
        late = hostile(world)
        until(lambda: (late.send(starts(len(kinds), 1)), kinds[-1] == wire.START)[1], connection)
    assert world.serves()


def test_a_shard_that_never_answers_delays_no_other(world: World) -> None:
    """A8: all the load is on one shard, which hangs: its rooms are full, the rest flows."""
    hung, well, _ = world.served()
    with answering(well, shown):
        ask_often(world, 5, AT_1)
        rushing = [hostile(world) for _ in range(8)]
        for each in rushing:
            each.send(starts(1, 6_000))
        hung.take(8 * (1_024 + 4_096))
        assert ask_often(world, 100, AT_1) < SOON_S
        for each in rushing:
            refused = [reply.code for reply in wire.read_replies(each.recv())]
            assert refused == [NotTaken.code] * (6_000 - 1_024 - 4_096)
    assert world.serves()


FLOOD = """
import sys, zmq
from sagacity import sockets
frame = sys.stdin.buffer.read()
ctx = sockets.context()
socket = sockets.dealer(ctx, sys.argv[1])
socket.poll(10_000, zmq.POLLOUT)
sent = 0
while True:
    for _ in range(100):
        sent += sockets.send(socket, frame)
        while socket.poll(0):
            socket.recv()
    print(sent, flush=True)
"""


@contextmanager
def flooding(world: World, frame: bytes) -> Iterator[None]:
    """Have another process send a frame as often as it can; it must get rid of 1 000."""
    command = [sys.executable, "-c", FLOOD, world.url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    reader, sent = process.stdout, [0]
    with process.stdin as given:
        given.write(frame)

    def read() -> None:
        for line in reader:
            sent[0] = int(line)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        until(lambda: sent[0] > 0, world.connection())
        yield
    finally:
        process.kill()
        process.wait()
        thread.join()
        reader.close()


ONE = [99, "", 1, {}, b""]  # of a kind that is none: answered at once, so the most work a byte
FLOODS = {
    "nothing": b"",
    "garbage": b"\xc1",
    "no requests": wire.encode([]),
    "a request of no kind": wire.encode([ONE]),
    "a repeat": starts(1, 1),
    "a full frame of no kind": wire.encode([ONE] * wire.FRAME_ITEMS_MAX),
    "a full frame of repeats": wire.encode([[1, AT_0, 1, {}, b""]] * 16_384),
    "too many items": wire.encode([ONE] * 100_000),
    "a mebibyte of nothing": bytes(wire.FRAME_BYTES_MAX),
    "a mebibyte of body": wire.encode([[1, AT_0, 1, {}, bytes(1 << 18)]] * 3),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=list(FLOODS))
def test_a_flood_of_frames_delays_nobody(world: World, frame: bytes) -> None:
    """G5, 10^6 frames: ZeroMQ takes from its peers in turn, and our turn is bounded in bytes."""
    shard, _, _ = world.served()
    with answering(shard, shown):
        ask_often(world, 5)
        before = world.rss_bytes()
        with flooding(world, frame):
            slowest = ask_often(world, 50)
            grown = world.rss_bytes() - before
    assert slowest < SOON_S
    assert grown < 64 * MIB
    assert world.serves()


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\x00") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
HELLO = GREETING + b"\x04" + bytes([len(READY)]) + READY  # as ZeroMQ says it (ZMTP 3.0)
HALF = b"\x02" + wire.FRAME_BYTES_MAX.to_bytes(8) + bytes(1000)  # of the longest frame, not half


@contextmanager
def connected(world: World, count: int, said: bytes) -> Iterator[list["plain.socket"]]:
    """Have so many connections that say some bytes of ZeroMQ's protocol, and no more."""
    path = world.url.removeprefix("ipc://")
    made = [plain.socket(plain.AF_UNIX, plain.SOCK_STREAM) for _ in range(count)]
    try:
        for each in made:
            each.settimeout(PATIENCE_S)
            each.connect(path)
            each.sendall(said)
        yield made
    finally:
        for each in made:
            each.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"\xff", GREETING[:20], HELLO[:-1], HELLO, HELLO + HALF[:5], HELLO + HALF, b"GET / "],
    ids=[
        "nothing",
        "a byte",
        "half a greeting",
        "half a hello",
        "hello",
        "half a size",
        "half a frame",
        "http",
    ],
)
def test_connections_that_say_half_of_something_delay_nobody(world: World, said: bytes) -> None:
    """G6: half-open ones. They wait for themselves; those without a handshake are closed."""
    shard, _, _ = world.served()
    with answering(shard, shown):
        ask_often(world, 5)
        before = world.rss_bytes()
        with connected(world, 300, said):
            assert ask_often(world, 100) < SOON_S
            assert world.rss_bytes() - before < 64 * MIB
        assert ask_often(world, 20) < SOON_S
    assert world.serves()


def test_a_trickle_of_bytes_delays_nobody(world: World) -> None:
    """G6: a frame that comes a byte at a time is read when it is whole, and is then served."""
    shard, _, _ = world.served()
    asked = wire.encode([Request(wire.SHOW, AT_0, 1, {}, b"")])
    trickled = HELLO + b"\x00" + bytes([len(asked)]) + asked
    with answering(shard, shown), connected(world, 1, b"") as (slow,):
        for byte in trickled:
            slow.sendall(bytes([byte]))
            assert ask_often(world, 1) < SOON_S
        answer = b""
        while not answer.endswith(SHOWN):
            answer += slow.recv(1000)
    assert world.serves()


def test_a_flood_of_connections_delays_nobody(world: World) -> None:
    """G6: each is taken, greeted and let go; its end is looked for once a second, not each time."""
    shard, _, _ = world.served()
    with answering(shard, shown):
        ask_often(world, 5)
        before = world.rss_bytes()
        for _ in range(10):
            with connected(world, 100, HELLO):
                assert ask_often(world, 5) < SOON_S
        assert world.rss_bytes() - before < 64 * MIB
    assert world.serves()
