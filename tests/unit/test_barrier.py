"""The barrier's rules (DESIGN 5), one test each. A is an action, C its compensation."""

from collections.abc import Iterator

import pytest
from apsw import ConstraintError
from msgspec import Struct

from sagacity import wire
from sagacity.barrier import TOMBSTONE
from sagacity.ids import ACTION, STEPS_MAX, number_of
from sagacity.service import Call, Database, Ok, Result, Service
from sagacity.slots import slot_of
from sagacity.wire import Command
from tests.unit.service_world import (
    Put,
    Take,
    World,
    put_command,
    take,
    take_command,
    toy,
    world_of,
)


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(toy) as made:
        yield made


def puts(world: World) -> list[tuple[int, int]]:
    """Give (amount, taken) of each row."""
    return [(row[0], row[1]) for row in world.rows("SELECT amount, taken FROM put ORDER BY id")]


def barrier(world: World) -> list[tuple[int, int]]:
    """Give (direction, outcome) of each row."""
    return [(row[0], row[1]) for row in world.rows("SELECT key & 1, outcome FROM barrier")]


def test_an_action_takes_effect_and_its_reply_is_stored(world: World) -> None:
    """A: the row that remembers is committed with the effect."""
    answer = world.send(put_command(attempt=3, epoch=2))[0]
    assert answer == wire.Answer(
        "s1", 1, ACTION, 2, number_of(1, 0), 3, wire.OK, wire.pack({"type": "Put_ok", "at": 1})
    )
    assert puts(world) == [(7, 0)]
    assert barrier(world) == [(0, wire.OK)]


def test_a_row_of_the_barrier_is_written_without_a_table_of_its_own(world: World) -> None:
    """A CHECK with IN and more than two values makes a table each time: a fifth of a command."""
    insert = "EXPLAIN INSERT INTO barrier (key, saga_id, outcome, reply) VALUES (?, ?, ?, ?)"
    program = [row[1] for row in world.connection.execute(insert, (1, "s1", 0, b""))]
    assert "Insert" in program
    assert "OpenEphemeral" not in program


@pytest.mark.parametrize("outcome", [-2, 2])
def test_a_row_of_the_barrier_has_an_outcome_that_there_is(world: World, outcome: int) -> None:
    """Whatever writes it: a reply under another outcome would be given again for ever."""
    insert = "INSERT INTO barrier (key, saga_id, outcome, reply) VALUES (1, 's1', ?, x'')"
    with pytest.raises(ConstraintError):
        world.connection.execute(insert, (outcome,))


def test_an_action_again_gets_the_stored_reply_and_has_no_second_effect(world: World) -> None:
    """AA: the shard that heard no answer asks again, perhaps as another attempt."""
    first = world.send(put_command())[0]
    second = world.send(put_command(attempt=2))[0]
    assert (second.outcome, second.body, second.attempt) == (wire.OK, first.body, 2)
    assert puts(world) == [(7, 0)]
    assert world.executor.repeated == 1


def test_a_compensation_of_an_action_that_never_came_leaves_a_tombstone(world: World) -> None:
    """C: nothing to undo; the action must find that it is too late."""
    assert world.outcomes(take_command()) == ["ok"]
    assert puts(world) == []
    assert barrier(world) == [(0, TOMBSTONE), (1, wire.OK)]


def test_an_action_after_its_compensation_is_refused(world: World) -> None:
    """CA: a command that was on its way for minutes must not take effect."""
    assert world.each(take_command(), put_command(), put_command(attempt=2)) == [
        "ok",
        "refused_compensated",
        "refused_compensated",
    ]
    assert puts(world) == []


def test_a_compensation_undoes_its_action(world: World) -> None:
    """AC: the usual order."""
    assert world.each(put_command(), take_command()) == ["ok", "ok"]
    assert puts(world) == [(7, 1)]
    assert barrier(world) == [(0, wire.OK), (1, wire.OK)]


def test_an_action_again_after_its_compensation_is_refused_not_answered(world: World) -> None:
    """ACA: the stored reply says ok, but the effect is gone; the compensation's row wins."""
    assert world.each(put_command(), take_command(), put_command()) == [
        "ok",
        "ok",
        "refused_compensated",
    ]
    assert puts(world) == [(7, 1)]


def test_a_compensation_again_gets_the_stored_reply(world: World) -> None:
    """CC: compensations are retried for ever, so they come often."""
    first, second = world.send(take_command())[0], world.send(take_command(attempt=2))[0]
    assert (second.outcome, second.body) == (wire.OK, first.body)
    assert world.executor.repeated == 1


def test_a_decline_is_stored_and_answers_the_late_first_attempt(world: World) -> None:
    """B17: an attempt that comes after the decline must not take effect."""
    declined = put_command(how="declined_clean")
    late = put_command(attempt=2)  # this one would succeed
    assert world.each(declined, late) == ["declined", "declined"]
    assert puts(world) == []


def test_a_decline_after_a_write_undoes_the_write_and_is_stored(world: World) -> None:
    """Only the effect is undone; the decline is a fact like a success."""
    assert world.outcomes(put_command(how="declined")) == ["declined"]
    assert puts(world) == []
    assert barrier(world) == [(0, wire.DECLINED)]


def test_a_declined_action_compensated_undoes_nothing(world: World) -> None:
    """B18: the shard does not ask for this, but what is refunded must have been charged."""
    assert world.each(put_command(how="declined_clean"), take_command()) == ["declined", "ok"]
    assert puts(world) == []


@pytest.mark.parametrize("how", ["failed", "raise"])
def test_a_failed_action_stores_nothing_and_may_succeed_later(world: World, how: str) -> None:
    """Failed means that nothing happened, so the next attempt starts afresh."""
    assert world.outcomes(put_command(how=how)) == ["failed"]
    assert (puts(world), barrier(world)) == ([], [])
    assert world.outcomes(put_command(attempt=2)) == ["ok"]
    assert puts(world) == [(7, 0)]


@pytest.mark.parametrize("how", ["failed", "raise", "declined"])
def test_a_failed_compensation_leaves_no_tombstone(world: World, how: str) -> None:
    """Everything is undone, the tombstone too. A compensation cannot decline: that is a failure."""
    assert world.outcomes(take_command(how=how)) == ["failed"]
    assert barrier(world) == []
    assert world.each(put_command(), take_command(how=how)) == ["ok", "failed"]
    assert puts(world) == [(7, 0)]
    assert world.outcomes(take_command(attempt=2)) == ["ok"]
    assert puts(world) == [(7, 1)]


@pytest.mark.parametrize("direction", ["action", "compensation"])
def test_another_saga_under_a_number_is_a_fault_and_undoes_nothing(
    world: World, direction: str
) -> None:
    """A number is given once; who comes with a used one must touch nothing."""
    world.send(put_command())
    make = put_command if direction == "action" else take_command
    assert world.outcomes(make(saga_id="stranger")) == ["failed"]
    assert puts(world) == [(7, 0)]
    assert "command_faulty" in world.log.told
    assert world.outcomes(put_command()) == ["ok"]


def test_a_stranger_is_told_of_the_fault_even_after_the_compensation(world: World) -> None:
    """A refusal would keep the fault quiet."""
    world.each(put_command(), take_command())
    assert world.outcomes(put_command(saga_id="stranger")) == ["failed"]


def test_duplicates_in_one_batch_take_effect_once(world: World) -> None:
    """The second sees the first's row, in the same transaction."""
    answers = world.send(put_command(), put_command(attempt=2), put_command(count=2))
    assert [answer.outcome for answer in answers] == [wire.OK] * 3
    assert answers[0].body == answers[1].body != answers[2].body
    assert puts(world) == [(7, 0), (7, 0)]


def test_action_and_compensation_in_one_batch_keep_their_order(world: World) -> None:
    """B3 inside a batch, in both orders."""
    assert world.outcomes(take_command(1), put_command(1), put_command(2), take_command(2)) == [
        "ok",
        "refused_compensated",
        "ok",
        "ok",
    ]
    assert puts(world) == [(7, 1)]


def test_steps_of_one_saga_do_not_meet(world: World) -> None:
    """The key holds the step; the same service may perform several."""
    one = put_command()
    fifteen = Command(one.saga_id, STEPS_MAX, ACTION, 1, one.number, 1, {}, one.body)
    assert world.outcomes(one, fifteen) == ["ok", "ok"]
    assert len(puts(world)) == 2


@pytest.mark.parametrize(("step", "direction"), [(0, 0), (16, 0), (-1, 0), (1, 2), (1, -1)])
def test_a_step_that_no_key_can_hold_is_a_fault(world: World, step: int, direction: int) -> None:
    """Such a key would be another saga's."""
    made = put_command()
    wrong = Command(made.saga_id, step, direction, 1, made.number, 1, {}, made.body)
    assert world.outcomes(wrong) == ["failed"]
    assert (puts(world), barrier(world)) == ([], [])


@pytest.mark.parametrize("number", [2**60, 2**63, -1])
def test_a_number_that_no_key_can_hold_is_a_fault(world: World, number: int) -> None:
    """No other command of the batch suffers."""
    made = put_command()
    wrong = Command(made.saga_id, 1, ACTION, 1, number, 1, {}, made.body)
    assert world.outcomes(wrong, put_command(2)) == ["failed", "ok"]
    assert len(puts(world)) == 1


def test_a_body_of_another_shape_fails_and_stores_nothing(world: World) -> None:
    """A compensation's body in an action, and no body at all."""
    made, other = put_command(), take_command()
    for body in (other.body, b"", b"\xc1"):
        wrong = Command(made.saga_id, 1, ACTION, 1, made.number, 1, {}, body)
        assert world.outcomes(wrong) == ["failed"]
    assert (puts(world), barrier(world)) == ([], [])


def test_a_lower_epoch_is_refused_and_told_the_known_one(world: World) -> None:
    """E1: a shard that was taken over while it slept must not act."""
    assert world.outcomes(put_command(epoch=3)) == ["ok"]
    answer = world.send(put_command(epoch=2))[0]
    assert answer.outcome == wire.REFUSED_FENCED
    assert answer.body == wire.encode(3)
    assert answer.epoch == 2


def test_the_fence_stands_before_the_stored_replies(world: World) -> None:
    """An old owner learns nothing, whatever else is stored."""
    world.each(put_command(epoch=1), take_command(epoch=2))
    assert world.outcomes(take_command(epoch=1)) == ["refused_fenced"]


def test_the_fence_is_kept_per_slot(world: World) -> None:
    """Slots move one by one."""
    assert slot_of("s1") != slot_of("s2")
    assert world.each(put_command(1, epoch=5), put_command(2, epoch=1)) == ["ok", "ok"]


def test_a_higher_epoch_is_durable_with_the_command_that_brought_it(world: World) -> None:
    """A worker that takes over must refuse what the last one refused."""
    world.send(put_command(epoch=4))
    assert world.rows("SELECT slot, epoch FROM fence") == [(slot_of("s1"), 4)]
    again = World(toy, connection=world.connection)
    assert again.outcomes(put_command(epoch=3)) == ["refused_fenced"]


@pytest.mark.parametrize("how", ["failed", "raise", "declined"])
def test_a_higher_epoch_stays_though_its_command_is_undone(world: World, how: str) -> None:
    """Memory and database agree after a batch was rolled back and replayed."""
    world.send(put_command(epoch=4, how=how))
    assert world.rows("SELECT epoch FROM fence") == [(4,)]
    assert world.outcomes(put_command(epoch=3)) == ["refused_fenced"]


def test_a_reply_that_no_frame_has_room_for_is_a_failure_and_leaves_nothing() -> None:
    """A handler's bug: stored, it would close its worker's connection each time it is given."""

    def tells_all(db: Database, call: Call[Put]) -> Result:
        db.execute("INSERT INTO put (number, step, amount) VALUES (1, 1, 1)")
        return Ok(Told("x" * wire.BODY_BYTES_MAX))

    service = Service("toy", toy.schema, actions={Put: tells_all}, compensations={Take: take})
    with world_of(service) as talkative:
        answer = talkative.send(put_command())[0]
        assert wire.OUTCOMES[answer.outcome] == "failed"
        assert "at most" in answer.body.decode(errors="replace")
        assert (puts(talkative), barrier(talkative)) == ([], [])


class Told(Struct, frozen=True, tag_field="type", tag="Put_ok"):
    """A reply of any length."""

    text: str
