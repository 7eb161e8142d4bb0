"""The real router process between the real client library and twins of its shards."""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence

import pytest
import zmq

from sagacity import sockets, wire
from sagacity.errors import Malformed, NoOutcome, NotTaken
from sagacity.wire import Reply, Request
from tests.integration.router_world import (
    AT_0,
    AT_1,
    PATIENCE_S,
    Twin,
    World,
    flush,
    opened,
    ready,
    settle,
)


@pytest.fixture
def world() -> Iterator[World]:
    with opened() as made:
        yield made


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


def test_a_shard_that_leaves_in_order_is_no_warning(world: World) -> None:
    """Only who is answered 0 for it has lost something; what drains has nothing open."""
    idle, busy, _ = world.served()
    idle.close()
    raw = raw_dealer(world)
    raw.send(wire.encode([Request(wire.START, AT_1, 7, {}, b"")]))
    busy.take()
    busy.close()
    [reply] = raw_replies(raw)
    assert reply.code == NoOutcome.code
    _, said = world.end(signal.SIGTERM)
    lines = [json.loads(line) for line in said.splitlines()]
    told = {line["peer"]: line["level"] for line in lines if line["event"] == "peer_went_away"}
    assert told == {0: "info", 1: "warning"}


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
    """What is in flight is answered, what is new may only be a repeat, then it ends with 0."""
    shard, _, connection = world.served()
    old = connection.ask(wire.START, AT_0)
    flush(connection)
    [(router, item)] = shard.take()
    world.send_signal(signal.SIGTERM)
    raw = raw_dealer(world)
    deadline = time.monotonic() + PATIENCE_S
    kind = 0
    while kind != wire.RECALL:  # until the signal has arrived
        assert kind in (0, wire.START)
        raw.send(wire.encode([Request(wire.START, AT_0, 1, {}, b"")]))
        [(_, newer)] = shard.take()
        kind = newer.kind
        shard.answer(router, Reply(newer.request, NotTaken.code, wire.pack({})))
        [reply] = raw_replies(raw)
        assert (reply.request, reply.code) == (1, NotTaken.code)
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


def test_a_shard_that_sent_too_long_a_frame_is_reached_again(world: World) -> None:
    """ZeroMQ ends such a connection and never makes it anew; its sagas would be out of reach."""
    shard, _, connection = world.served()
    token = connection.ask(wire.START, AT_0)
    flush(connection)
    [(router, _)] = shard.take()
    sockets.send_to(shard.socket, router, bytes(wire.FRAME_BYTES_MAX + 1))
    # The library asks again after 1, 3, 7 s; the router has a new socket after some 2.
    deadline = time.monotonic() + 10.0
    while not shard.socket.poll(20):
        assert time.monotonic() < deadline, "the shard was never reached again"
        connection.poll(0.05)
    [(again, item)] = shard.take()
    shard.answer(again, Reply(item.request, None, b"good"))
    assert settle(connection)[token].body == b"good"
