"""History: `show` tells the messages that travelled, rebuilt from facts alone."""

import pytest
from msgspec.structs import replace

from sagacity import wire
from sagacity.saga import Retry
from sagacity.wire import answer_to
from services.checkout import checkout
from shard.events import Answered, Instant
from shard.finished import FinishedInMemory
from shard.history import tell
from shard.loop import WAIT_MAX_NS
from shard.sagas import LATE_ROWS_TOLD, ROWS_TOLD, Card, Definition
from shard.state import State
from tests.unit.world import Rules, World, bodies

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


def test_a_compensation_that_is_tried_for_ever_is_told_in_a_bounded_answer() -> None:
    """The saga that a person must look at; too long an answer would be no answer."""
    world = World(Rules(deadline_ms=10**9, retry=Retry(backoff_ms=1, backoff_max_ms=1)))
    world.step(*world.came(*SERVICES), world.start("a"))
    world.drive("a", wire.OK, wire.DECLINED)
    for _ in range(500):
        world.drive("a", wire.FAILED)
        world.after(1_000)
        world.step(*world.beats())
    saga = world.engine.state.by_id["a"]
    assert saga.attempt == 501
    assert len(saga.rows()) <= ROWS_TOLD + LATE_ROWS_TOLD
    body = shown(world, "a")
    history = body["history"]
    assert isinstance(history, list)
    (left_out,) = [event for event in history if event["event"] == "left_out"]
    ended = [event["attempt"] for event in history if event["event"] == "attempt_ended"]
    assert ended[0] == 1
    assert ended[-1] == 500
    assert left_out["attempts"] == 500 - len(ended)
    assert len(wire.pack(body)) < wire.BODY_BYTES_MAX


def test_a_retry_that_never_left_is_not_told() -> None:
    """`--trace` prints what travelled: cancelled between two attempts, the second never was."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    world.drive("a", wire.OK, wire.FAILED)
    cancel = {"type": "cancel", "saga_id": "a", "reason": "changed my mind"}
    world.step(world.ask(wire.CANCEL, "a", cancel))
    world.drive("a", wire.OK, wire.OK)
    kinds = [body["type"] for body in told(world, "a") if isinstance(body, dict)]
    assert kinds.count("ChargePayment") == 1
    assert kinds.count("RefundPayment") == 1


def test_a_finished_saga_of_another_version_is_told_by_its_facts() -> None:
    """A new version of a definition must not make the old one's history unreadable, or kill."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    world.drive("a", wire.OK, wire.OK, wire.OK)
    card = world.engine.state.finished.find("a")
    assert isinstance(card, Card)
    dossier = card.dossier()
    newer = replace(checkout, version=2)
    for definitions in ({"checkout": Definition(newer, Retry())}, {}):
        told_now = wire.unpack(tell(dossier, world.record(dossier), definitions))
        assert [event["event"] for event in told_now["history"]] == [
            "started",
            "answer",
            "answer",
            "answer",
            "finished",
        ]
        assert told_now["history"][-1]["body"]["status"] == "COMPLETED"
        assert told_now["history"][1]["body"]["type"] == "ReserveInventory_ok"


def replayed_without_definitions(world: World) -> State:
    """Read a world's journal where no definition of its sagas is configured any more."""
    state = State({}, FinishedInMemory())
    for seq, batch in world.journal.replay():
        state.wall_ms = batch.wall_ms
        for entry in batch.entries:
            state.apply(entry, seq)
    return state


def test_a_restart_without_its_definition_leaves_a_finished_saga_its_whole_history() -> None:
    """Its rows are found by what the replay notes of them; nobody else knows where they are."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    world.drive("a", wire.OK, wire.FAILED)
    world.after(10_000)
    world.step(*world.beats())
    world.drive("a", wire.DECLINED, wire.OK)
    card = world.engine.state.finished.find("a")
    assert isinstance(card, Card)
    assert replayed_without_definitions(world).finished.find("a") == card


def test_without_its_definition_a_saga_that_was_tried_for_ever_is_noted_in_few_rows() -> None:
    """Bounded like the rows of any other; how it began and how it ended is among them."""
    world = World(Rules(deadline_ms=10**9, retry=Retry(backoff_ms=1, backoff_max_ms=1)))
    world.step(*world.came(*SERVICES), world.start("a"))
    world.drive("a", wire.OK, wire.DECLINED)
    for _ in range(2 * ROWS_TOLD):
        world.drive("a", wire.FAILED)
        world.after(1_000)
        world.step(*world.beats())
    world.drive("a", wire.OK)
    card = replayed_without_definitions(world).finished.find("a")
    assert isinstance(card, Card)
    seqs = card.dossier().seqs
    assert (seqs[0], seqs[-1]) == (2, world.journal.last.seq)
    assert ROWS_TOLD < len(seqs) <= ROWS_TOLD + LATE_ROWS_TOLD


def test_a_reply_that_no_definition_here_can_read_is_told_as_far_as_any_body_can() -> None:
    """What a service said beside its promise does no harm when its saga's definition is gone."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    command = world.take(b"inventory", "a")
    body = world.body_of(command, wire.OK)
    crooked = bytes([body[0] + 1]) + body[1:] + b"\xa1x\xcb" + bytes(8)  # a float beside
    world.step(Answered(b"inventory", [answer_to(command, wire.OK, crooked)]))
    dossier = world.engine.state.by_id["a"].dossier()
    told_now = wire.unpack(tell(dossier, world.record(dossier), {}))
    (answered,) = [each for each in told_now["history"] if each["event"] == "answer"]
    assert answered["body"] == {}
