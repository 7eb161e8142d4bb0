"""The client library against a real router process: every method, every way to wait."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from sagacity import wire
from sagacity.client import AsyncClient, Client
from sagacity.errors import Conflict, Malformed, NoOutcome, NotTaken
from sagacity.wire import Reply, Request
from tests.integration.router_world import (
    AT_0,
    AT_1,
    PATIENCE_S,
    World,
    echo,
    opened,
    serve,
    settle,
)
from tests.unit.world import order


@pytest.fixture
def world() -> Iterator[World]:
    with opened() as made:
        yield made


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


def test_starts_that_wait_for_their_turn_all_get_it_under_asyncio(echoing: World) -> None:
    """An answer makes room for the next one, and that leaves at once."""
    begun = time.monotonic()

    async def start_all() -> list[int]:
        async with AsyncClient(echoing.url, timeout_s=PATIENCE_S, starts_max=3) as client:
            bodies = [order(f"id-{n}") for n in range(60)]
            told = await asyncio.gather(*[client.start(body) for body in bodies])
            return [body["kind"] for body in told]

    assert asyncio.run(start_all()) == [wire.START] * 60
    assert time.monotonic() - begun < PATIENCE_S, "no turn waits for a timer"


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
            wait_ms = int((PATIENCE_S if wait_s is None else wait_s) * 1000)
            assert poller.poll(wait_ms) or wait_ms < 900, "an arrival was not told"
    assert len(connection) == 0


def test_a_full_window_of_requests_is_answered(echoing: World) -> None:
    """1 024 in flight is what a client may have; more are refused and asked again."""
    connection = echoing.connection(timeout_s=20)
    body = msgspec.msgpack.encode({"type": "checkout"})
    tokens = {connection.ask(wire.START, f"id-{n}", body) for n in range(3000)}
    found = settle(connection, 3000)
    assert set(found) == tokens
    assert all(reply.code is None for reply in found.values())
