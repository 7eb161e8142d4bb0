"""Forgetting at a shard: lists reach every service, and name nothing that is not final.

The conversation itself is transcript 23.
"""

import pytest
from msgspec import structs

from sagacity import wire
from sagacity.errors import InvariantBroken
from sagacity.ids import count_of
from sagacity.saga import Retry
from sagacity.wire import FORGET_RANGES_MAX
from shard.codec import pack_checkpoint, unpack_checkpoint
from shard.effects import Effects
from shard.entries import Entry, ForgetTaken, Forgotten, Opened
from shard.events import ListApplied, WorkerLives
from shard.finished import FinishedInMemory
from shard.forgetting import LISTS_MAX, LISTS_OUT_MAX
from shard.sagas import Definition
from shard.state import Checkpoint, State
from tests.unit.loop_rig import DEFINITIONS, Rig
from tests.unit.toy_sagas import chain
from tests.unit.world import CLUSTER_ID, Rules, World, bodies, commands

SERVICES = ("inventory", "payment", "shipping")
DAY_MS = 24 * 3_600_000


def finished(sagas: int, rules: Rules | None = None) -> World:
    """Give a world in which so many sagas are final."""
    world = World(rules)
    world.step(*world.came(*SERVICES))
    for at in range(1, sagas + 1):
        world.step(world.start(f"s{at}"))
        world.drive(f"s{at}", wire.OK, wire.OK, wire.OK)
    return world


def sent(effects: Effects) -> dict[bytes, list[int]]:
    """Give the numbers of the lists that each worker gets."""
    found: dict[bytes, list[int]] = {}
    for each in effects.lists:
        found.setdefault(each.worker, []).append(each.list_number)
    return found


def taken(world: World, list_number: int, *services: str) -> Effects:
    return world.step(*(ListApplied(name.encode(), 0, list_number) for name in services))


# -- what a list may name -------------------------------------------------------------------------


def test_a_list_that_names_an_open_saga_stops_the_shard() -> None:
    """Its barrier rows would go while a command may still be on its way."""
    world = finished(2)
    world.step(world.start("open"))
    with pytest.raises(InvariantBroken, match="not final"):
        world.step(forget=([(1, 3)], 2))


@pytest.mark.parametrize(
    "ranges", [[(1, 4)], [(0, 1)], [(2, 1)], [(1, 1), (2, 2)]], ids=["high", "low", "back", "touch"]
)
def test_a_list_of_numbers_that_were_never_given_stops_the_shard(
    ranges: list[tuple[int, int]],
) -> None:
    """Or one whose ranges no service would take: it would be repeated for ever."""
    world = finished(3)
    with pytest.raises(InvariantBroken, match="not the next list"):
        world.step(forget=(ranges, 3))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_lists_are_numbered_without_a_gap(number: int) -> None:
    """A number given twice would be answered for the other list."""
    state = State(DEFINITIONS, FinishedInMemory())
    state.count = 9
    state.forget(Forgotten(1, [(1, 1)], 0), 1)
    with pytest.raises(InvariantBroken, match="not the next list"):
        state.forget(Forgotten(number, [(2, 2)], 0), 2)


def test_a_refund_that_is_mended_after_eight_days_still_refunds() -> None:
    """B19: a saga whose compensation is retried is not final, however old; the others go."""
    world = finished(1, Rules(retry=Retry(stuck_after=1)))
    world.step(world.start("old"))
    world.drive("old", wire.OK, wire.OK, wire.DECLINED, wire.FAILED)
    assert world.engine.state.stuck == 1
    world.step(world.start("new"))
    world.drive("new", wire.OK, wire.OK, wire.OK)
    world.after(8 * DAY_MS)
    with pytest.raises(InvariantBroken):
        world.engine.forget([(1, 3)], 2, Effects())
    (refund,) = commands(world.step(*world.beats(), forget=([(1, 1), (3, 3)], 2)))
    assert wire.unpack(refund.body)["type"] == "RefundPayment"
    assert count_of(refund.number) == 2
    world.drive("old", wire.OK, wire.OK)
    (answer,) = bodies(world.step(world.start("old")))
    assert answer["status"] == "ABORTED"
    world.step(forget=([(2, 2)], 3))  # now it is final


def test_more_cannot_be_forgotten_than_has_ended_and_nothing_comes_back() -> None:
    """The order in which sagas ended is a shard's own; an ordinal that falls is a bug."""
    world = finished(2)
    for ordinal in (3, -1):
        with pytest.raises(InvariantBroken, match="more forgotten than finished"):
            world.engine.forget([(1, 1)], ordinal, Effects())
    world.step(forget=([(1, 2)], 2))
    with pytest.raises(InvariantBroken, match="more forgotten than finished"):
        world.engine.forget([(1, 1)], 1, Effects())
    (told,) = bodies(world.step(world.start("s1")))
    assert told["code"] == 22


def test_a_checkpoint_keeps_what_is_not_taken() -> None:
    """A list whose row is compacted away is repeated all the same, and its number not reused."""
    world = finished(3)
    world.step(forget=([(1, 1)], 1))
    world.step(forget=([(2, 3)], 3))
    taken(world, 2, *SERVICES)
    taken(world, 1, "payment")
    state = world.engine.state
    kept = unpack_checkpoint(pack_checkpoint(Checkpoint(1, b"", state.counts()))).counts
    taken(world, 1, "inventory")  # changes nothing of what was kept
    fresh = State(world.definitions, FinishedInMemory())
    fresh.restore([], structs.replace(kept, finished=0))  # which the twin keeps elsewhere
    assert (fresh.lists, fresh.lists_open, fresh.lists_takers, fresh.forgotten) == (
        2,
        {1: [(1, 1)]},
        {1: ["payment"]},
        3,
    )


# -- until every service has taken it -------------------------------------------------------------


def test_a_long_list_becomes_several_in_one_row() -> None:
    """Each fits into a frame; a crash between them is none."""
    world = finished(1)
    world.engine.state.count = world.replica.count = 3 * FORGET_RANGES_MAX
    ranges = [(2 * at, 2 * at) for at in range(1, FORGET_RANGES_MAX + 2)]
    effects = world.step(forget=(ranges, 1))
    assert effects.entries == [
        Forgotten(1, ranges[:FORGET_RANGES_MAX], 1),
        Forgotten(2, ranges[FORGET_RANGES_MAX:], 1),
    ]
    assert world.engine.state.forgotten == 1


def test_a_service_has_few_lists_at_once_and_gets_the_next_when_it_took_one() -> None:
    """One that comes back after long is not flooded; its sisters do not wait for it."""
    world = finished(LISTS_OUT_MAX + 3)
    for at in range(1, LISTS_OUT_MAX + 4):
        world.step(forget=([(at, at)], at))
    world.step()
    assert {len(lists) for lists in sent(world.restart()).values()} == set()
    first = list(range(1, LISTS_OUT_MAX + 1))
    assert sent(world.step(*world.came(*SERVICES))) == {name.encode(): first for name in SERVICES}
    effects = taken(world, 2, "payment")
    assert effects.entries == [ForgetTaken("payment", 2)]
    assert sent(effects) == {b"payment": [LISTS_OUT_MAX + 1]}


def test_lists_are_taken_in_any_order_each_for_itself() -> None:
    """One that was lost on its way is not taken because a later one is."""
    world = finished(2)
    world.step(forget=([(1, 1)], 1))
    world.step(forget=([(2, 2)], 2))
    taken(world, 2, *SERVICES)
    assert world.engine.state.lists_open == {1: [(1, 1)]}
    world.restart()
    assert sent(world.step(*world.came(*SERVICES))) == {name.encode(): [1] for name in SERVICES}
    taken(world, 1, *SERVICES)
    assert world.engine.state.lists_open == {}
    assert world.engine.state.lists_takers == {}


def test_a_list_is_sent_to_one_worker_of_each_service() -> None:
    """They share a database; and one whose database does not work is asked later."""
    world = finished(1)
    world.step(*world.came(*SERVICES))
    world.step(WorkerLives(b"inventory", 0), forget=([(1, 1)], 1))
    assert sent(world.step()) == {b"payment": [1], b"shipping": [1]}
    world.after(5_000)
    assert sent(world.step(WorkerLives(b"inventory", 256))) == {
        name.encode(): [1] for name in SERVICES
    }


def test_a_service_that_is_no_more_holds_no_list_for_ever() -> None:
    """Its pool was taken out of the configuration: only those that are there count."""
    other = chain("trip", 2)
    both = {**DEFINITIONS, other.name: Definition(other, Retry())}
    entries: list[Entry] = [
        Forgotten(1, [(1, 1)], 0),
        *(ForgetTaken(name, 1) for name in SERVICES),
        Forgotten(2, [(2, 2)], 0),
        ForgetTaken("inventory", 2),
    ]
    states = [State(definitions, FinishedInMemory()) for definitions in (both, DEFINITIONS)]
    for state in states:
        state.count = 9
        for entry in entries:
            state.apply(entry, 1)
    assert [sorted(state.lists_open) for state in states] == [[1, 2], [2]]
    # What a checkpoint kept of the time before is looked at when the shard is taken over.
    fewer = states[1]
    fewer.lists_open, fewer.lists_takers = states[0].lists_open, states[0].lists_takers
    fewer.opened(Opened(CLUSTER_ID, 0, 1), 2)
    assert fewer.lists_open == {2: [(2, 2)]}
    assert fewer.lists_takers == {2: ["inventory"]}


def test_retention_waits_while_a_service_is_away_for_long() -> None:
    """What waits for it is bounded."""
    world = finished(1)
    world.step(forget=([(1, 1)], 1))
    effects = Effects()
    for _ in range(LISTS_MAX - 1):
        assert world.engine.may_forget
        world.engine.forget([(1, 1)], 1, effects)
    assert not world.engine.may_forget


def test_a_list_leaves_only_when_it_is_durable_and_after_a_restart_too() -> None:
    """The twins of the loop check each thing that leaves against the journal's rows."""
    rig = Rig()
    rig.turn(*rig.workers())
    rig.turn(rig.start("s1"))
    for step in (1, 2, 3):
        rig.turn(rig.answered(step))
    rig.journal.commit([Forgotten(1, [(1, 1)], 1)], 1, 0)
    rig.start_over()
    assert sent(rig.turn(*rig.workers())) == {name.encode(): [1] for name in SERVICES}
    rig.turn(ListApplied(b"payment", 0, 1))
    assert rig.journal.entries()[-1] == ForgetTaken("payment", 1)
    assert rig.turn().lists == []


def test_a_service_that_was_removed_takes_a_list_that_is_dropped_already() -> None:
    """Its word stands in the journal, of a time at which the configuration named it."""
    state = State(DEFINITIONS, FinishedInMemory())
    state.count = 9
    state.forget(Forgotten(1, [(1, 1)], 0), 1)
    for name in ("inventory", "payment", "shipping"):
        assert state.lists_open == {1: [(1, 1)]}
        state.apply(ForgetTaken(name, 1), 2)
    state.apply(ForgetTaken("insurance", 1), 3)
    assert (state.lists_open, state.lists_takers, state.lists) == ({}, {}, 1)
