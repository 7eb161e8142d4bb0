"""Suspects: commands that may have killed a worker, where they are when their saga moves on."""

from typing import Any

from msgspec import Struct

from sagacity import wire
from sagacity.saga import Retry
from sagacity.wire import Begun
from shard.effects import Effects
from shard.entries import AttemptEnded, Quarantined, TurnedBack
from shard.events import Answered, CommandBegun, WorkerCame, WorkerWent
from shard.sagas import DEATHS_MAX, HELD
from tests.unit.test_engine_edges import broken, later, serving, trip
from tests.unit.world import Rules, World, bodies, commands, replies

INVENTORY = b"inventory"


def turned_back(stuck_after: int = 10) -> World:
    """Give a world in which the compensation of a reservation is out."""
    world = serving(Rules(retry=Retry(stuck_after=stuck_after)))
    world.step(world.start("a"))
    (undo,) = commands(world.drive("a", wire.OK, wire.DECLINED))
    assert (undo.step, undo.direction) == (1, 1)
    return world


def begins(world: World) -> None:
    """Have the worker of inventory begin the last command that it got."""
    command = world.held[INVENTORY][-1]
    said = Begun(command.number, command.step, command.direction, command.attempt)
    (word,) = world.step(CommandBegun(INVENTORY, said)).proceeds
    assert word[1].wanted


def dies(world: World) -> Effects:
    """Have the worker of inventory die, and another one come."""
    world.step(WorkerWent(INVENTORY))
    return world.step(*world.came("inventory"))


def begun_for_too_long() -> World:
    """Give a world in which the time of a suspect is over that a worker has begun, a last time."""
    world = turned_back()
    dies(world)
    for _ in range(DEATHS_MAX - 1):
        begins(world)
        dies(world)
    begins(world)
    world.after(1_000)
    world.step(*world.beats())
    world.after(2_100)
    return world


def asked_again(world: World) -> Effects:
    body = {"type": "retry", "saga_id": "a", "reason": "mended"}
    return world.step(world.ask(wire.RETRY, "a", body))


def test_a_stuck_compensation_that_kills_its_workers_is_quarantined_and_counted_once() -> None:
    """SPEC 3: `retry` alone sends it again; being STUCK for two reasons is one saga."""
    world = turned_back(stuck_after=1)
    world.drive("a", wire.FAILED)
    assert world.engine.state.stuck == 1
    assert [each.saga_id for each in commands(later(world))] == ["a"]
    dies(world)
    for _ in range(DEATHS_MAX):
        begins(world)
        effects = dies(world)
    assert effects.alone == {}
    assert world.engine.state.stuck == 1
    ((_, code, body),) = replies(world.step(world.start("a")))
    assert code == 0
    assert "`retry` alone sends it again" in body["text"]
    assert commands(later(world)) == []
    world.restart()
    world.step(*world.came("inventory"))
    assert commands(later(world)) == []
    assert [each.saga_id for each in commands(asked_again(world))] == ["a"]
    world.drive("a", wire.OK)
    assert (world.engine.state.stuck, world.engine.state.live) == (0, {})


def test_a_worker_that_dies_of_what_was_settled_meanwhile_is_held_against_nobody() -> None:
    """The answer of one who was given it before came late; the next saga is no suspect for it."""
    world = turned_back()
    late = world.held[INVENTORY][-1]
    dies(world)
    begins(world)
    other = b"inventory-2"
    world.step(WorkerCame(other, "inventory", 2, 256))
    ended = world.step(world.reply(other, late, wire.OK))
    assert bodies(ended)[0]["status"] == "ABORTED"
    gone = world.step(WorkerWent(INVENTORY))
    assert gone.entries == []
    assert world.engine.state.live == {}


def test_a_suspect_that_is_quarantined_while_it_waits_is_given_out_once_when_asked_for() -> None:
    """Its time ran out, so it waits for a worker that may run it; then the one that had it dies."""
    world = begun_for_too_long()
    (ended,) = world.step().entries
    assert isinstance(ended, AttemptEnded)
    world.after(200)
    assert commands(world.step()) == []  # the worker may be dying of it right now
    (held,) = world.step(WorkerWent(INVENTORY)).entries
    assert isinstance(held, Quarantined)
    saga = world.engine.state.by_id["a"]
    assert saga.where == HELD
    asked_again(world)
    effects = world.step(*world.came("inventory"))
    assert [each.saga_id for each in effects.alone.values()] == ["a"]
    assert commands(world.step(*world.beats())) == []
    world.drive("a", wire.OK)
    assert bodies(world.step(world.start("a")))[0]["status"] == "ABORTED"


def test_a_suspect_that_is_quarantined_while_it_waits_is_not_given_out_unasked() -> None:
    """Its place in the queue is passed over."""
    world = begun_for_too_long()
    world.step()
    world.after(200)
    world.step()
    world.step(WorkerWent(INVENTORY))
    assert commands(world.step(*world.came("inventory"))) == []
    assert [each.saga_id for each in commands(asked_again(world))] == ["a"]


def test_a_suspect_whose_command_cannot_be_built_again_is_a_failed_attempt() -> None:
    """A definition's own code may raise at any call; its worker and its neighbours go on."""
    first = broken().plans[0].steps[0]
    built: list[int] = []

    def command(run: Any, step: int) -> Struct:
        if built:
            raise KeyError("not again")
        built.append(step)
        made: Struct = first.command(run, step)
        return made

    world = trip(broken(command=command))
    assert [each.saga_id for each in world.held[b"trip_1"]] == ["t"]
    world.step(WorkerWent(b"trip_1"))
    failed = world.step(*world.came("trip_1"))
    assert failed.alone == {}
    assert [type(entry) for entry in failed.entries] == [AttemptEnded]
    number = world.engine.state.by_id["t"].number
    ours = [each for each in later(world).entries if getattr(each, "number", 0) == number]
    assert [type(entry) for entry in ours] == [AttemptEnded, TurnedBack]
    assert bodies(world.drive("t", wire.OK))[0]["type"] == "trip_refused"
    world.drive("beside", wire.OK, wire.OK, wire.OK)


def test_a_worker_that_nobody_knows_is_given_no_word() -> None:
    """It is told elsewhere that it is unknown, and says HELLO again."""
    world = turned_back()
    command = world.held[INVENTORY][-1]
    said = Begun(command.number, command.step, command.direction, command.attempt)
    assert world.step(CommandBegun(b"nobody", said)).proceeds == []
    assert world.tally.counts["absorbed", "unknown_worker"] == 1


def test_an_attempt_that_is_not_the_current_one_is_not_run() -> None:
    """It was given out before its time ran out, and its worker comes to it only now."""
    world = turned_back()
    dies(world)
    command = world.held[INVENTORY][-1]
    said = Begun(command.number, command.step, command.direction, command.attempt - 1)
    (word,) = world.step(CommandBegun(INVENTORY, said)).proceeds
    assert not word[1].wanted
    begins(world)  # the current one still is


def test_a_refusal_for_room_of_an_old_command_moves_nothing() -> None:
    """SPEC 3: `unavailable` is no outcome; of what its saga no longer asks for it gives up a
    worker's credit alone."""
    world = serving()
    world.step(world.start("a"))
    old = world.take(INVENTORY, "a")
    world.step(world.ask(wire.CANCEL, "a", {"type": "cancel", "saga_id": "a", "reason": "x"}))
    effects = world.step(world.reply(INVENTORY, old, wire.REFUSED_UNAVAILABLE, {}))
    assert (effects.entries, commands(effects)) == ([], [])
    assert commands(world.step(world.start("b"))) == []  # until its heartbeat says otherwise
    assert [each.saga_id for each in commands(world.step(*world.beats()))] == ["b"]
    assert bodies(world.drive("a", wire.OK))[0]["status"] == "ABORTED"


def test_a_fence_whose_epoch_cannot_be_read_ends_no_shard() -> None:
    """Only a higher epoch shows that another has the shard; garbage shows nothing."""
    world = serving()
    world.step(world.start("a"))
    command = world.held[INVENTORY][-1]
    said = wire.answer_to(command, wire.REFUSED_FENCED, b"\xc1")
    effects = world.step(Answered(INVENTORY, [said]))
    assert (effects.fenced_by, effects.entries) == (0, [])
    assert world.tally.counts["absorbed", "refused_fenced"] == 1


def test_a_place_in_a_queue_that_nobody_wants_any_more_is_passed_over() -> None:
    """Its command was given back for want of room, and then its answer came after all."""
    world = serving()
    world.step(world.start("a"), world.start("b"))
    first, second = world.held[INVENTORY]
    for command in (first, second):  # the one that is given back last goes before the other
        world.step(world.reply(INVENTORY, command, wire.REFUSED_UNAVAILABLE, {}))
    (charge,) = commands(world.step(world.reply(INVENTORY, first, wire.OK)))
    assert (charge.saga_id, charge.step) == ("a", 2)
    assert [each.saga_id for each in commands(world.step(*world.beats()))] == ["b"]
    assert commands(world.step(*world.beats())) == []
