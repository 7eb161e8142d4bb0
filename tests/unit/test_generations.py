"""Generations while a shard serves: pages, slices, and a file that is damaged under it."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from sagacity.wire import OK
from shard import segments
from shard.journal import JournalFailed
from tests.unit.disk_world import DiskWorld
from tests.unit.world import replies


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DiskWorld]:
    """A shard on a file, with three workers."""
    made = DiskWorld(tmp_path / "journal.db")
    made.step(*made.came("inventory", "payment", "shipping"))
    yield made
    made.close()


def finish(world: DiskWorld, *saga_ids: str) -> None:
    for saga_id in saga_ids:
        world.step(world.start(saga_id))
        world.drive(saga_id, OK, OK, OK)


def forged(world: DiskWorld, statement: str) -> None:
    """Change the file as a flipped bit may: also what its tables would not take."""
    db = world.disk.store.db
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_schema SET sql = replace(replace(sql, 'BLOB', 'ANY'), 'STRICT', '')")
    db.execute("PRAGMA writable_schema=RESET")
    db.execute(statement)


@pytest.mark.parametrize(
    "damage",
    ["UPDATE journal SET batch = x'c1'", "UPDATE journal SET batch = 7", "DELETE FROM journal"],
)
def test_a_row_that_is_damaged_while_its_shard_serves_is_told_as_no_history(
    world: DiskWorld, damage: str
) -> None:
    """Nor taken apart into records: a compaction would keep what nobody wrote."""
    world.step(world.start("a"))
    world.drive("a", OK)
    forged(world, damage)
    saga = world.engine.state.by_id["a"]
    with pytest.raises(JournalFailed, match="cannot be read"):
        world.disk.history(saga.number, saga.rows())
    if not damage.startswith("DELETE"):
        with pytest.raises(JournalFailed, match="is damaged"):
            list(world.disk.slices(world.disk.last.seq, 1))


def test_slices_are_all_rows_once_whatever_their_size(world: DiskWorld) -> None:
    """And of those alone that were there when the compaction began."""
    world.slices = 0
    finish(world, "a", "b")
    begun, upto = world.disk.checkpoint_seq, world.disk.last.seq
    for size in (1, 400, 1 << 30):
        found = []
        for some in world.disk.slices(upto, size):
            assert some
            found += [seq for seq, _ in some]
            world.step(world.start(f"meanwhile-{size}-{len(found)}"))
        assert found == list(range(begun + 1, upto + 1))


def test_what_is_kept_of_a_saga_is_not_told_of_another(world: DiskWorld) -> None:
    """Its number is not sealed with the record; the record says whose it is."""
    world.step(world.start("runs"))
    saga = world.engine.state.by_id["runs"]
    finish(world, *(f"s{at}" for at in range(20)))
    world.settle()
    assert world.disk.kept_record(saga.number)
    assert world.disk.kept_record(saga.number + 1) == []
    world.disk.store.db.execute("UPDATE kept SET number = number + 1")
    with pytest.raises(JournalFailed, match="is of another saga"):
        world.disk.kept_record(saga.number + 1)


def test_a_block_that_is_gone_is_missed_by_who_asks_for_its_answers(world: DiskWorld) -> None:
    """Its ids are known, so it is no saga that is new; nor one without an answer."""
    finish(world, *(f"s{at}" for at in range(20)))
    world.settle()
    world.disk.store.db.execute("DELETE FROM block WHERE first = 0")
    with pytest.raises(JournalFailed, match="has no block"):
        world.generations.find("s0")


def test_a_part_that_is_gone_is_missed_by_who_asks_for_its_ids(world: DiskWorld) -> None:
    """A11: without it an id that was used would be new."""
    finish(world, *(f"s{at}" for at in range(20)))
    world.settle()
    world.disk.store.db.execute("DELETE FROM part")
    with pytest.raises(JournalFailed, match="is missing"):
        world.generations.find("s0")


def test_an_id_whose_prints_stand_there_by_chance_is_new(world: DiskWorld) -> None:
    """Prints err towards yes; the segment itself has the last word."""
    finish(world, *(f"s{at}" for at in range(40)))
    world.settle()
    for at in range(1_000_000):
        hashed = segments.hash_of(f"new-{at}")
        top, mark = segments.top_of(hashed), segments.mark_of(hashed)
        if any(prints.may_hold(top, mark) for _, prints in world.generations.segments):
            break
    assert world.generations.find(f"new-{at}") is None
    assert replies(world.step(world.start(f"new-{at}"))) == []


def test_pages_go_from_blocks_over_to_memory_without_a_gap(world: DiskWorld) -> None:
    """`list` and the audit read them, oldest first or newest first."""
    finish(world, *(f"s{at}" for at in range(20)))
    world.settle()
    world.slices = 0
    finish(world, *(f"s{at}" for at in range(20, 25)))
    base, everything = world.generations.base, [f"s{at}" for at in range(25)]
    assert 0 < base < 25
    for start in range(0, 26, 5):
        found = world.generations.page(start, 25, 5)
        assert [card.saga_id for card in found] == everything[start : start + 5]
    newest = world.generations.newest(base + 2, 4)
    assert [card.saga_id for card in newest] == everything[base + 1 : base - 3 : -1]
    assert world.generations.newest(0, 4) == []


def test_a_transaction_that_is_given_up_leaves_nothing_and_the_next_one_begins(
    world: DiskWorld,
) -> None:
    """Whatever ends it: half a compaction would be ids without their answers."""
    store = world.disk.store

    def give_up() -> None:
        with store.transaction() as cursor:
            cursor.execute("INSERT INTO kept VALUES(1, x'00')")
            raise JournalFailed("as told")

    with pytest.raises(JournalFailed, match="as told"):
        give_up()
    assert store.rows("SELECT count(*) FROM kept") == [(0,)]
    with store.transaction() as cursor:
        cursor.execute("INSERT INTO kept VALUES(2, x'00')")
    assert store.rows("SELECT number FROM kept") == [(2,)]
