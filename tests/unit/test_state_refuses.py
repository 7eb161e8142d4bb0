"""State: an entry that cannot follow stops the shard; memory that contradicts itself does too.

A journal that its chain vouches for was written by us: what makes no sense in it is a bug of ours,
and whoever went on would make it worse.
"""

import pytest

from sagacity import wire
from sagacity.errors import InvariantBroken
from shard.entries import Entry, Finished
from shard.phases import ABORTED, COMPLETED
from shard.sagas import UNKNOWN
from tests.unit.test_engine_edges import serving
from tests.unit.world import World

NUMBER = 1 << 10


def reserving() -> World:
    """Give a world with one saga, whose first command is out."""
    world = serving()
    world.step(world.start("a"))
    return world


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (Finished(NUMBER, COMPLETED, b"\x80"), "a step is open"),
        (wire.Answer("a", 1, 0, 1, NUMBER, 1, wire.FAILED, b"\x80"), "not an outcome"),
    ],
)
def test_a_running_saga_takes_no_entry_that_cannot_follow(entry: Entry, says: str) -> None:
    """Invariants 4 and 6: completed is where every step succeeded; failed settles nothing."""
    world = reserving()
    with pytest.raises(InvariantBroken, match=says):
        world.engine.state.apply(entry, 9)


def test_a_saga_is_not_aborted_while_a_compensation_is_open() -> None:
    """SPEC 3: never before every compensation has succeeded."""
    world = reserving()
    world.drive("a", wire.OK, wire.DECLINED)
    with pytest.raises(InvariantBroken, match="a compensation is open"):
        world.engine.state.apply(Finished(NUMBER, ABORTED, b"\x80"), 9)


def test_a_running_saga_with_two_unknown_steps_stops_its_shard() -> None:
    """Steps run one after the other: who knows less of an earlier one has lost a fact."""
    world = reserving()
    reserve = world.held[b"inventory"][-1]
    world.drive("a", wire.OK)
    world.engine.state.by_id["a"].states[0] = UNKNOWN  # which no entry has said
    with pytest.raises(InvariantBroken, match="not current"):
        world.step(world.reply(b"inventory", reserve, wire.OK))
