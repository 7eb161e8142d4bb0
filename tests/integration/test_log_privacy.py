"""A whole cluster at SAGACITY_LOG=debug, asked for everything: what clients sent is in no line."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from cluster.private import start_private
from cluster.requests import checkout
from sagacity import sockets, wire
from sagacity.client import Client, Connection
from sagacity.errors import SagacityError
from tests.integration.faces import Node, run

USER, ADDRESS, REASON, SKU, POISON = (
    "mark-user",
    "mark-address",
    "mark-reason",
    "mark-sku",
    "mark-x",
)
MARKS = (USER, ADDRESS, REASON, SKU, POISON)
DEBUG = {"SAGACITY_LOG": "debug"}


def ordered(saga_id: str, **change: Any) -> dict[str, Any]:
    return {
        "type": "checkout",
        "saga_id": saga_id,
        "user_id": USER,
        "items": [{"sku": "abc123", "quantity": 1}],
        "shipping_address": ADDRESS,
        **change,
    }


CHECKOUTS: dict[str, dict[str, Any]] = {
    "completed": {},
    "declined": {"user_id": "u999"},
    "no-carrier": {"shipping_address": "no_carrier"},
    "unknown-sku": {"items": [{"sku": SKU, "quantity": 1}]},
    "out-of-stock": {"items": [{"sku": "sku_out_of_stock", "quantity": 1}]},
    "failing": {"user_id": "u_flaky_3"},
    "crashing": {"user_id": "u_crash"},
    "blank-user": {"user_id": "   "},
    "control-character": {"shipping_address": f"{ADDRESS}\x07"},
    "too-long": {"shipping_address": ADDRESS * 100},
    "unknown-key": {POISON: POISON},
    "too-many": {"items": [{"sku": SKU, "quantity": 1001}]},
}


def ask_everything(url: str) -> None:
    """Every way in which a checkout ends or is refused, through the client library."""
    with Client(url, timeout_s=20) as client:
        codes = [
            code_of(client.start, ordered(saga_id, **change))
            for saga_id, change in CHECKOUTS.items()
        ]
        assert codes == [None] * 7 + [12] * 5
        client.status()
        client.show("completed")
        assert code_of(client.start, ordered("completed", user_id=POISON)) == 22
        assert code_of(client.cancel, "completed", REASON) == 22
        assert code_of(client.cancel, "nobody", REASON) == 20
        client.submit(ordered("cancelled", user_id="u_slow_2s"))
        assert code_of(client.cancel, "cancelled", REASON) is None


def code_of(call: Callable[..., object], *said: object) -> int | None:
    try:
        call(*said)
    except SagacityError as error:
        return error.code
    return None


def ask_what_no_client_asks(url: str) -> None:
    """Poison: bodies of other shapes, behind the checks of the client library."""
    good = wire.unpack(checkout(ordered("poison")).body)
    bodies = [
        wire.pack(POISON),
        wire.pack({**good, "user_id": {POISON: POISON}}),
        wire.pack({**good, "items": [POISON]}),
        wire.pack({**good, "saga_id": f"{POISON}-other"}),
        wire.pack({"type": POISON}),
        POISON.encode(),
    ]
    connection = Connection(url, timeout_s=20)
    for body in bodies:
        for kind in (wire.START, wire.SUBMIT, wire.CANCEL, wire.RETRY, wire.SHOW):
            connection.ask(kind, "poison", body)
    left = len(connection)
    while left:
        left -= len(connection.poll(1.0))
    connection.close()


def send_garbage(directory: Path) -> None:
    """Frames that are none, to every socket of the cluster."""
    ctx = sockets.context()
    frames = (POISON.encode(), wire.pack({POISON: POISON}), wire.pack([POISON, [POISON]]))
    for file in sorted(directory.glob("*.sock")):
        kind = zmq.PUSH if file.name == "reports.sock" else zmq.DEALER
        with ctx.socket(kind) as socket:
            socket.connect(f"ipc://{file}")
            for frame in frames:
                socket.send(frame)
            socket.close(linger=1000)
    ctx.term()


def talk_maelstrom(url: str) -> bytes:
    """Lines that are skipped, and bodies that are refused; give the node's stderr."""
    with Node("--connect", url, env=DEBUG) as node:
        for line in (
            POISON,
            f'{{"{POISON}": ',
            f'["{POISON}"]',
            f'{{"body": {{"x": "{POISON}"}}}}',
        ):
            node.write(line.encode() + b"\n")
        for body in (POISON, {"type": POISON}, ordered("bad", user_id=7), ordered("completed")):
            node.say(body)
        _, left, log = node.end()
    assert [body.get("code") for body in left] == [12, 10, 12, None]
    assert log.count(b"line_skipped") == 4
    return log


@pytest.fixture(scope="module")
def logs() -> Iterator[list[str]]:
    with tempfile.TemporaryFile() as stderr:
        with start_private(
            arguments=("--shards", "2", "--workers", "2"), env=DEBUG, stderr=stderr.fileno()
        ) as cluster:
            ask_everything(cluster.url)
            ask_what_no_client_asks(cluster.url)
            send_garbage(Path(cluster.url.removeprefix("ipc://")).parent)
            node = talk_maelstrom(cluster.url)
            assert run(cluster.url, "audit", env=DEBUG).returncode == 0
            serves_still(cluster.url)
        stderr.seek(0)
        yield (stderr.read() + node).decode(errors="replace").splitlines()


def serves_still(url: str) -> None:
    with Client(url, timeout_s=20) as client:
        assert client.start(ordered("after"))["status"] == "COMPLETED"


def test_nothing_that_clients_send_is_in_any_log(logs: list[str]) -> None:
    """Users, addresses, carts and reasons are theirs: not even debug or a fault tells them."""
    found = [line for line in logs if any(mark in line for mark in MARKS)]
    assert found == []


def test_every_process_has_logged_and_the_faults_are_told(logs: list[str]) -> None:
    """Else there was nothing to look at: the level is debug, each role speaks, faults are seen."""
    events = [json.loads(line) for line in logs if line.startswith("{")]
    assert [line for line in logs if not line.startswith("{")] == []
    assert {event["role"] for event in events} >= {
        *("supervisor", "router", "shard", "inventory", "payment", "shipping", "maelstrom")
    }
    told = {event["event"] for event in events}
    assert told >= {"process_state_changed", "process_ended", "report_dropped", "line_skipped"}
    facts = {"saga_started", "step_succeeded", "step_declined", "saga_turned_back", "saga_finished"}
    assert told >= {*facts, "step_compensated", "attempt_ended"}
    assert all(event["saga_id"] for event in events if event["event"] in facts)
    assert {event["level"] for event in events} >= {"debug", "info", "warning"}
