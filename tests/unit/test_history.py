"""History: `show` tells the messages that travelled, rebuilt from facts alone."""

import pytest

from sagacity import wire
from shard.events import Answered, Instant
from shard.loop import WAIT_MAX_NS
from tests.unit.world import Rules, World, answer_to, bodies

MESSAGES = ("command", "answer", "finished")
SERVICES = ("inventory", "payment", "shipping")

ENDS = {
    "completed": [wire.OK] * 3,
    "step 1 declined": [wire.DECLINED],
    "step 2 declined": [wire.OK, wire.DECLINED, wire.OK],
    "step 3 declined": [wire.OK, wire.OK, wire.DECLINED, wire.OK, wire.OK],
}


def shown(world: World, saga_id: str) -> dict[str, object]:
    return bodies(world.step(world.ask(wire.SHOW, saga_id)))[0]


def told(world: World, saga_id: str) -> list[object]:
    history = shown(world, saga_id)["history"]
    assert isinstance(history, list)
    return [event["body"] for event in history if event["event"] in MESSAGES]


@pytest.mark.parametrize("outcomes", ENDS.values(), ids=ENDS)
def test_it_holds_exactly_the_messages_that_travelled(outcomes: list[int]) -> None:
    """`--trace` prints these; the client's line is not among them, its answer is."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a", msg_id=1))
    final = bodies(world.drive("a", *outcomes))[-1]
    del final["in_reply_to"]
    assert told(world, "a") == [*world.travelled["a"], final]


def test_each_attempt_is_told() -> None:
    """A command that is sent again travels again."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    world.drive("a", wire.FAILED)
    world.after(10_000)
    world.step()
    world.drive("a", wire.OK)
    types = [body["type"] for body in world.travelled["a"]]
    assert types[:3] == ["ReserveInventory", "ReserveInventory", "ReserveInventory_ok"]
    assert told(world, "a") == world.travelled["a"]


def test_other_sagas_of_the_same_rows_are_left_out() -> None:
    """A row is a batch; a thousand sagas may share it."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"), world.start("b"))
    a, b = (world.reply(b"inventory", world.take(b"inventory", each), wire.OK) for each in "ab")
    world.step(a, b)
    assert told(world, "a") == world.travelled["a"]
    assert told(world, "b") == world.travelled["b"]


def test_it_is_the_same_after_a_restart() -> None:
    """Nothing of it lives in memory alone."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    world.drive("a", wire.OK, wire.DECLINED, wire.OK)
    before = shown(world, "a")
    world.restart()
    assert shown(world, "a") == before


def test_a_replys_own_keys_are_not_told() -> None:
    """SPEC 1: a body carries these keys and no others; a newer service may say more."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    command = world.take(b"inventory", "a")
    world.step(world.reply(b"inventory", command, wire.OK, {"warehouse": ["north", 7]}))
    assert world.travelled["a"][1].pop("warehouse") == ["north", 7]
    assert told(world, "a") == world.travelled["a"]


@pytest.mark.parametrize(
    "beside",
    [
        b"\xa1x\xcb?\xf8\x00\x00\x00\x00\x00\x00",
        b"\xa1x" + b"\x91" * 100_000 + b"\xc0",
        b"\xa4step\x01",
        b"\xa1x\xd4\x05\x00",
    ],
    ids=["float", "depth", "twice", "ext"],
)
@pytest.mark.parametrize("outcome", [wire.OK, wire.FAILED])
def test_a_reply_with_what_no_body_carries_does_no_harm(outcome: int, beside: bytes) -> None:
    """Nobody can look at it later either: what is told is read by its type."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    command = world.take(b"inventory", "a")
    body = world.body_of(command, wire.OK)
    crooked = bytes([body[0] + 1]) + body[1:] + beside
    world.step(Answered(b"inventory", [answer_to(command, outcome, crooked)]))
    world.after(1)
    assert shown(world, "a")["status"] == "RUNNING"


def test_time_that_is_shown_is_wall_time() -> None:
    """For people; it decides nothing."""
    world = World(Rules(deadline_ms=60_000))
    world.step(*world.came(*SERVICES), world.start("a"))
    world.now = Instant(world.now.ns + WAIT_MAX_NS, world.now.wall_ms - 3_600_000)
    world.step(world.reply(b"inventory", world.take(b"inventory", "a"), wire.OK))
    history = shown(world, "a")["history"]
    assert isinstance(history, list)
    assert history[2]["at_ms"] == history[0]["at_ms"] - 3_600_000
