"""The real router process between the real client library and twins of its shards.

A twin is a bound socket of `sagacity.sockets` that says what the test tells it to.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import zmq

from cluster.directory import DataDirectory, RunDirectory
from sagacity import sockets, wire
from sagacity.client import AsyncClient, Client, Connection
from sagacity.errors import Conflict, Malformed, NoOutcome, NotTaken
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


@pytest.fixture
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="sg-") as base:
        world = World(Path(base))
        yield world
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


@pytest.fixture
def echoing(world: World) -> Iterator[World]:
    """A router with two shards and a supervisor that answer by themselves."""
    world.router()
    twins = [world.shard(0), world.shard(1), world.twin(world.run.supervisor)]
    stop = threading.Event()
    threads = [threading.Thread(target=serve, args=(twin, stop, echo)) for twin in twins]
    for thread in threads:
        thread.start()
    yield world
    stop.set()
    for thread in threads:
        thread.join()


def test_requests_and_replies_find_their_way_with_two_clients_of_equal_numbers(
    world: World,
) -> None:
    """The router's own numbers keep them apart."""
    *shards, alice = world.served()
    bob = world.connection()
    ready(bob, _0=shards[0], _1=shards[1])  # as many numbers used as by the other
    tokens = {
        client: [client.ask(wire.START, saga_id, b"") for saga_id in (AT_0, AT_1)]
        for client in (alice, bob)
    }
    assert tokens[alice] == tokens[bob]
    flush(alice)
    flush(bob)
    for index, shard in enumerate(shards):
        taken = shard.take(2)
        assert {item.saga_id for _, item in taken} == {(AT_0, AT_1)[index]}
        for router, item in reversed(taken):
            shard.answer(router, Reply(item.request, None, b"%d" % item.request))
    for client in (alice, bob):
        found = settle(client, 2)
        assert sorted(found) == tokens[client]
        assert len({reply.body for reply in found.values()}) == 2


def test_a_shard_that_is_down_gets_11_and_the_other_serves(world: World) -> None:
    """PROOF A10: never forwarded, so definite."""
    world.router()
    shard = world.shard(1)
    connection = world.connection()
    ready(connection, _1=shard)
    down = connection.ask(wire.START, AT_0, timeout_s=0.5)
    up = connection.ask(wire.START, AT_1)
    flush(connection)
    [(router, item)] = shard.take()
    shard.answer(router, Reply(item.request, None, b"final"))
    found = settle(connection, 2)
    assert found[up] == Reply(up, None, b"final")
    assert found[down].code == NotTaken.code
    assert wire.unpack(found[down].body)["text"] == "shard 0 is down"


def test_what_was_forwarded_to_a_shard_that_went_away_is_asked_again_not_refused(
    world: World,
) -> None:
    """PROOF A10: 0 at once, so that the client asks the one that comes back."""
    shard, _, connection = world.served()
    token = connection.ask(wire.START, AT_0, b"body")
    flush(connection)
    shard.take()
    shard.close()
    again = world.shard(0)
    deadline = time.monotonic() + PATIENCE_S
    while not again.socket.poll(10):
        assert time.monotonic() < deadline
        assert connection.poll(0) == []
    [(router, item)] = again.take()
    assert (item.saga_id, item.body) == (AT_0, b"body")
    again.answer(router, Reply(item.request, None, b"final"))
    assert settle(connection) == {token: Reply(token, None, b"final")}


def test_a_lost_shard_is_told_to_the_client_as_0(world: World) -> None:
    """The raw answer of the router, without the library that asks again."""
    shard, _, _ = world.served()
    raw = raw_dealer(world)
    raw.send(wire.encode([Request(wire.START, AT_0, 7, {}, b"")]))
    shard.take()
    shard.close()
    [reply] = raw_replies(raw)
    assert (reply.request, reply.code) == (7, NoOutcome.code)


def test_a_new_router_is_asked_again_at_once(world: World) -> None:
    """SPEC 4; silence alone would wait for one second first. The address stays the same."""
    shard, _, connection = world.served()
    tokens = [connection.ask(wire.START, AT_0, b"%d" % n) for n in range(50)]
    flush(connection)
    shard.take(50)
    world.router()
    deadline = time.monotonic() + PATIENCE_S
    while connection.connected:
        assert time.monotonic() < deadline
        connection.poll(0.005)
    flush(connection)
    assert shard.socket.poll(900), "it waited for a second of silence"
    taken = shard.take(50)
    assert sorted(int(item.body) for _, item in taken) == list(range(50))
    shard.answer(taken[0][0], *[Reply(item.request, None, item.body) for _, item in taken])
    found = settle(connection, 50)
    assert [int(found[token].body) for token in tokens] == list(range(50))


def raw_dealer(world: World) -> "zmq.Socket[bytes]":
    """A socket that sends whatever a test likes, without a limit of its own."""
    socket = sockets.dealer(world.connection()._ctx, world.url)
    assert socket.poll(int(PATIENCE_S * 1000), zmq.POLLOUT)
    return socket


def raw_replies(raw: "zmq.Socket[bytes]") -> list[Reply]:
    assert raw.poll(int(PATIENCE_S * 1000)), "no reply came"
    return wire.read_replies(raw.recv())


HOSTILE: list[bytes | Sequence[bytes]] = [
    b"",
    b"\xc1",
    b"garbage",
    b"\x00" * 1000,
    b"\xff" * 100_000,
    os.urandom(5000),
    wire.encode([Request(wire.START, AT_0, 1, {}, b"x" * 500)])[:-1],
    wire.encode([Request(wire.START, AT_0, 1, {}, b"")]) + b"\x00",
    wire.encode({"not": "an array"}),
    wire.encode([[wire.START, AT_0, 1, {}]]),
    wire.encode([[wire.START, AT_0, 1, {}, b"", "more"]]),
    wire.encode([[wire.START, AT_0, 1.5, {}, b""]]),
    wire.encode([[True, AT_0, 1, {}, b""]]),
    wire.encode([[wire.START, AT_0, 2**64 - 1, {"k": 1}, b""]]),
    b"\x91" * 100_000 + b"\xc0",
    b"\x81\xa1a" * 100_000 + b"\xc0",
    b"\xdd\xff\xff\xff\xff",
    b"\x91\x95\x01\xa2\xed\xa0\x01\x80\xc4\x00",  # a surrogate for a saga_id
    wire.encode([[wire.START, "", 0, {}, b""]] * 100_000),
    [b"two", b"parts"],
    [b""] * 10_000,
]


def test_no_frame_of_a_hostile_client_harms_another_one(world: World) -> None:
    """PROOF G5: each is dropped and counted, and the same connection is still served."""
    shard, _, connection = world.served()
    raw = raw_dealer(world)
    for hostile in HOSTILE:
        parts = [hostile] if isinstance(hostile, bytes) else hostile
        raw.send_multipart(parts)
    raw.send(wire.encode([Request(wire.START, AT_0, 7, {}, b"body")]))
    [(router, item)] = shard.take()
    assert item.body == b"body"
    shard.answer(router, Reply(item.request, None, b"raw"))
    assert raw_replies(raw) == [Reply(7, None, b"raw")]
    token = connection.ask(wire.START, AT_0)
    flush(connection)
    [(router, item)] = shard.take()
    shard.answer(router, Reply(item.request, None, b"good"))
    assert settle(connection) == {token: Reply(token, None, b"good")}
    assert world.serves()


def test_an_oversize_frame_closes_its_connection_and_no_other(world: World) -> None:
    """PROOF G5, SPEC 2: it is never in the router's memory."""
    shard, _, connection = world.served()
    raw = raw_dealer(world)
    monitor = sockets.Monitor(raw)
    assert monitor.events() == [sockets.CONNECTED]
    raw.send(bytes(wire.FRAME_BYTES_MAX + 1))
    deadline = time.monotonic() + PATIENCE_S
    while sockets.DISCONNECTED not in monitor.events():
        assert time.monotonic() < deadline, "it is still connected"
        monitor.socket.poll(20)
    token = connection.ask(wire.START, AT_0)
    flush(connection)
    [(router, item)] = shard.take()
    shard.answer(router, Reply(item.request, None, b"good"))
    assert settle(connection)[token].body == b"good"
    assert connection.connected


def test_garbage_from_a_shard_is_dropped(world: World) -> None:
    """A bug of one shard is not the end of the others."""
    shard, _, connection = world.served()
    token = connection.ask(wire.START, AT_0)
    flush(connection)
    [(router, item)] = shard.take()
    for garbage in (b"", b"\xc1", wire.encode([[1, 2]])):
        sockets.send_to(shard.socket, router, garbage)
    shard.answer(router, Reply(10**9, None, b""), Reply(item.request, None, b"good"))
    assert settle(connection)[token].body == b"good"
    assert world.serves()


def test_a_client_that_went_away_is_no_burden(world: World) -> None:
    """PROOF G4: replies to it are dropped; the next client is served."""
    shard, _, gone = world.served()
    gone.ask(wire.START, AT_0)
    gone.ask(wire.START, AT_0)
    flush(gone)
    taken = shard.take(2)
    gone.close()
    connection = world.connection()
    flush(connection)
    for router, item in taken:
        shard.answer(router, Reply(item.request, None, b""))
    token = connection.ask(wire.START, AT_0)
    flush(connection)
    [(router, item)] = shard.take()
    shard.answer(router, Reply(item.request, None, b"good"))
    assert settle(connection)[token].body == b"good"
    assert world.serves()


def test_sigterm_drains(world: World) -> None:
    """What is in flight is answered, what is new is refused, then it ends with 0."""
    shard, _, connection = world.served()
    old = connection.ask(wire.START, AT_0)
    flush(connection)
    [(router, item)] = shard.take()
    world.send_signal(signal.SIGTERM)
    raw = raw_dealer(world)
    deadline = time.monotonic() + PATIENCE_S
    refused = 0
    while not refused:  # until the signal has arrived
        raw.send(wire.encode([Request(wire.START, AT_0, 1, {}, b"")]))
        if raw.poll(50):
            [reply] = wire.read_replies(raw.recv())
            refused = reply.code == NotTaken.code
            assert wire.unpack(reply.body)["text"] == "draining"
        else:
            shard.answer(router, Reply(shard.take()[0][1].request, 12, wire.pack({})))
            raw.recv()
        assert time.monotonic() < deadline
    shard.answer(router, Reply(item.request, None, b"final"))
    assert settle(connection) == {old: Reply(old, None, b"final")}
    code, said = world.end(signal.SIGTERM)
    assert code == 0
    assert b"router_stopped" in said


def test_a_router_serves_tcp_on_loopback(world: World) -> None:
    """`up --port`; a taken port is the words of the error table and exit code 2."""
    with zmq.Context() as ctx, ctx.socket(zmq.ROUTER) as probe:
        port = probe.bind_to_random_port("tcp://127.0.0.1")
        process = world.router("--port", str(port))
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == Malformed.exit_code
        assert b"cannot listen" in said
        assert b"Traceback" not in said
    world.router("--port", str(port))
    shards = world.shard(0), world.shard(1)
    ready(world.connection(url=f"tcp://127.0.0.1:{port}"), _0=shards[0], _1=shards[1])


@pytest.mark.parametrize("broken", ["no cluster", "bad config"])
def test_a_router_that_cannot_start_says_why_and_exits_with_2(world: World, broken: str) -> None:
    """No traceback for what a user can mend."""
    more: list[str] = []
    if broken == "no cluster":
        (world.data / "cluster.json").unlink()
    else:
        config = world.data / "bad.toml"
        config.write_text("[router]\nclient_inflight_maximum = 3\n")
        more = ["--config", str(config)]
    process = world.router(*more)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == Malformed.exit_code
    assert b"router_refused" in said
    assert b"Traceback" not in said


def test_a_router_says_that_it_is_up_once_it_reaches_its_shards(world: World) -> None:
    """The supervisor is ready only then, so that a first checkout is not refused."""
    ctx = sockets.context()
    reports = sockets.pull(ctx, world.run.reports)
    world.router()
    states: list[wire.Report] = []
    twins: list[Twin] = []
    deadline = time.monotonic() + PATIENCE_S
    while not states or states[-1].state != "up":
        assert time.monotonic() < deadline
        reports.poll(50)
        states += [wire.read_report(frame) for frame in sockets.receive_all(reports, 10)[0]]
        if states and not twins:
            twins = [world.shard(0), world.shard(1)]
    assert states[0].state == "starting"
    up = states[-1]
    assert (up.role, up.index) == ("router", 0)
    assert up.metrics_port > 0
    assert up.facts["shards_connected"] == 2
    ctx.destroy(linger=0)


def test_the_client_gives_bodies_and_raises_the_errors_of_the_table(echoing: World) -> None:
    """Every method through the real router, answered by echoes."""
    with echoing.client() as client:
        items = [{"sku": "abc123", "quantity": 2}]
        checkout = {
            "type": "checkout",
            "saga_id": AT_0,
            "user_id": "u42",
            "items": items,
            "shipping_address": "123 Main St",
        }
        answered = client.checkout(
            user_id="u42", items=items, shipping_address="123 Main St", saga_id=AT_0
        )
        assert answered["asked"] == checkout
        assert list(answered["asked"]) == list(checkout)
        assert answered["kind"] == wire.START
        assert client.submit(checkout)["kind"] == wire.SUBMIT
        generated = client.checkout(user_id="u", items=items, shipping_address="a", wait=False)
        assert generated["kind"] == wire.SUBMIT
        assert generated["saga_id"].startswith("saga-")
        assert client.cancel(AT_1, "too late")["asked"] == {
            "type": "cancel",
            "saga_id": AT_1,
            "reason": "too late",
        }
        assert client.show(AT_1) == {"type": "echo", "kind": wire.SHOW, "saga_id": AT_1}
        assert client.status()["kind"] == wire.STATUS
        assert client.books(1, {"book": "sagas"})["asked"] == {"book": "sagas"}
        with pytest.raises(Malformed, match="saga_id"):
            client.show("not an id")
        with pytest.raises(Malformed, match="no shard 7"):
            client.books(7, {"book": "sagas"})
        for bad in ({"saga_id": 7}, {}, {"saga_id": AT_0, "price": 1.5}):
            with pytest.raises(Malformed):
                client.start(bad)
        assert client.show(AT_0)["saga_id"] == AT_0


def test_the_client_raises_what_a_shard_refuses(world: World) -> None:
    """Code, text and the keys that come with it."""
    shard, _, _ = world.served()
    stop = threading.Event()
    error = Conflict("other content", fingerprint="ab")

    def refuse(item: Request) -> Reply:
        return Reply(item.request, error.code, wire.pack(error.body()))

    thread = threading.Thread(target=serve, args=(shard, stop, refuse))
    thread.start()
    with world.client() as client, pytest.raises(Conflict) as caught:
        client.show(AT_0)
    stop.set()
    thread.join()
    assert (caught.value.text, caught.value.fingerprint) == ("other content", "ab")


def test_the_client_gives_up_after_its_wait(world: World) -> None:
    """11 where nobody was reached, 0 where somebody was and said nothing."""
    with Client(world.url, timeout_s=0.2) as client, pytest.raises(NotTaken, match="no connection"):
        client.show(AT_0)
    world.served()
    with Client(world.url, timeout_s=0.3) as client, pytest.raises(NoOutcome):
        client.show(AT_0)


def test_many_wait_at_once_under_asyncio(echoing: World) -> None:
    """One socket, one frame a turn; each gets its own answer, and a cancelled one is forgotten."""

    async def ask_all() -> list[str]:
        async with AsyncClient(echoing.url, timeout_s=PATIENCE_S) as client:
            cancelled = asyncio.ensure_future(client.show(AT_0))
            await asyncio.sleep(0)
            cancelled.cancel()
            shown = await asyncio.gather(*[client.show(f"id-{n}") for n in range(900)])
            checkout = await client.checkout(
                user_id="u", items=[{"sku": "a", "quantity": 1}], shipping_address="x"
            )
            assert checkout["kind"] == wire.START
            assert (await client.cancel(AT_0, "r"))["kind"] == wire.CANCEL
            assert (await client.status())["kind"] == wire.STATUS
            with pytest.raises(Malformed):
                await client.show("not an id")
            return [body["saga_id"] for body in shown]

    assert asyncio.run(ask_all()) == [f"id-{n}" for n in range(900)]


def test_an_asyncio_client_gives_up_and_closes_what_waits() -> None:
    """Timers run although nothing ever arrives; closing ends every wait."""

    async def wait() -> None:
        with tempfile.TemporaryDirectory(prefix="sg-") as empty:
            client = AsyncClient(f"ipc://{empty}/nobody.sock", timeout_s=0.1)
            with pytest.raises(NotTaken):
                await client.show(AT_0)
            waiting = asyncio.ensure_future(client.show(AT_0))
            await asyncio.sleep(0)
            await client.close()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(wait())


def test_a_loop_of_ones_own_waits_for_the_descriptor_and_misses_nothing(echoing: World) -> None:
    """ZeroMQ's descriptor tells an arrival once: `wait_s` is asked anew before each wait."""
    connection = echoing.connection()
    poller = zmq.Poller()
    poller.register(connection.fd, zmq.POLLIN)
    for round_ in range(300):
        token = connection.ask(wire.SHOW, f"id-{round_}")
        found: dict[int, Reply] = {}
        while token not in found:
            found.update(connection.poll())
            wait_s = 0.0 if found else connection.wait_s()
            before = time.monotonic()
            poller.poll(int((PATIENCE_S if wait_s is None else wait_s) * 1000))
            assert time.monotonic() - before < 0.9, "an arrival was not told"
    assert len(connection) == 0


def test_a_full_window_of_requests_is_answered(echoing: World) -> None:
    """1 024 in flight is what a client may have; more are refused and asked again."""
    connection = echoing.connection(timeout_s=20)
    body = msgspec.msgpack.encode({"type": "checkout"})
    tokens = {connection.ask(wire.START, f"id-{n}", body) for n in range(3000)}
    found = settle(connection, 3000)
    assert set(found) == tokens
    assert all(reply.code is None for reply in found.values())
