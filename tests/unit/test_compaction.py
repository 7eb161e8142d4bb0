"""Compaction and generations: a file that forgets its rows says what one says that keeps them."""

import gc
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from sagacity import wire
from sagacity.saga import Retry
from sagacity.wire import DECLINED, FAILED, OK
from services.checkout import checkout
from shard import segments
from shard.compaction import Compaction
from shard.generations import Generations
from shard.journal import JournalFailed, JournalFull, SqliteJournal
from shard.sagas import Card, Definition, Tombstone
from shard.state import State
from shard.store import JournalRefused
from tests.unit.disk_world import TAIL_BYTES, DiskWorld, assert_alike
from tests.unit.failing_disk import disk_that_fails
from tests.unit.journal_world import abandon, open_at, wal_of
from tests.unit.schedule import Schedule
from tests.unit.world import Rules, bodies, order, replies, snapshot

DEFINITIONS = {"checkout": Definition(checkout, Retry())}
schedules = st.binary(max_size=60) | st.binary(min_size=150, max_size=300)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DiskWorld]:
    """A shard on a file, with three workers."""
    made = DiskWorld(tmp_path / "journal.db")
    made.step(*made.came("inventory", "payment", "shipping"))
    yield made
    made.close()


TEN_YEARS_MS = 3_650 * 86_400_000


def finish(world: DiskWorld, *saga_ids: str) -> None:
    for saga_id in saga_ids:
        world.step(world.start(saga_id))
        world.drive(saga_id, OK, OK, OK)


def rows(world: DiskWorld, table: str) -> int:
    found = world.disk.store.rows(f"SELECT count(*) FROM {table}")
    return int(found[0][0])


@settings(max_examples=60, deadline=None)
@given(schedules, st.integers(0, 3))
def test_whatever_happens_the_file_says_what_a_twin_says_that_keeps_every_row(
    thrown: bytes, slices: int
) -> None:
    """4: checkpoint + tail gives the state that all rows gave; restarts stand in the schedule."""
    with tempfile.TemporaryDirectory() as directory:
        world = DiskWorld(Path(directory) / "journal.db", slices=slices)
        schedule = Schedule(thrown, world=world)
        schedule.play()
        assert_alike(world)
        schedule.settle()
        world.settle()
        world.restart()
        assert_alike(world)
        world.close()


def test_a_finished_id_never_runs_again_once_its_rows_are_gone(world: DiskWorld) -> None:
    """A11: the same answer for the same content, 22 for other content, from the generation."""
    finish(world, *(f"s{at}" for at in range(40)))
    world.settle()
    assert rows(world, "journal") < 10
    assert world.generations.base > 20
    again = world.step(world.start("s3"))
    assert again.entries == []
    assert bodies(again)[0]["status"] == "COMPLETED"
    other = world.step(world.start("s3", user_id="u7"))
    assert replies(other)[0][1] == 22
    assert other.entries == []
    unknown = world.step(world.ask(wire.SHOW, "s99"))
    assert replies(unknown)[0][1] == 20


def test_the_file_stays_bounded_while_sagas_end(world: DiskWorld) -> None:
    """D13: rows go with the checkpoint; what stays of a thousand sagas are blocks and segments."""
    highest = 0
    for at in range(150):
        finish(world, f"s{at}")
        world.settle()
        highest = max(highest, rows(world, "journal"))
    assert highest <= 20
    assert rows(world, "kept") <= 1  # the one that ran when the checkpoint moved
    assert world.generations.base >= 140
    assert len(world.generations.segments) < 2 * segments.SEGMENTS_PER_LEVEL
    assert rows(world, "segment") == len(world.generations.segments)
    assert_alike(world)


def test_segments_are_merged_level_by_level_and_every_id_is_still_found(world: DiskWorld) -> None:
    """The cost of a new id does not grow with finished sagas: there are few segments."""
    for at in range(300):
        finish(world, f"s{at}")
        world.settle()
    levels = {segment.level for segment, _ in world.generations.segments}
    assert max(levels) >= 1
    keys = world.disk.store.rows("SELECT key FROM part ORDER BY key")
    wanted = sorted(key for segment, _ in world.generations.segments for key in segment.part_keys())
    assert [key for (key,) in keys] == wanted
    world.restart()
    for at in range(300):
        assert isinstance(world.generations.find(f"s{at}"), Card)
    assert world.generations.find("s300") is None


def test_a_stuck_saga_is_kept_bounded_through_many_compactions(tmp_path: Path) -> None:
    """A compensation that is tried for ever must not make the file grow, nor lose its place."""
    retry = Retry(stuck_after=3, backoff_ms=1, backoff_max_ms=1)
    world = DiskWorld(tmp_path / "journal.db", Rules(retry=retry, budget=(100, 100, 100_000)))
    world.step(*world.came("inventory", "payment", "shipping"))
    world.step(world.start("stuck"))
    world.drive("stuck", OK, DECLINED)
    for at in range(400):
        world.drive("stuck", FAILED)
        world.after(25)
        world.step(*world.beats())
        if at % 3 == 0:
            finish(world, f"s{at}")
        world.settle()
    attempt = world.engine.state.by_id["stuck"].attempt
    assert attempt == 401
    assert rows(world, "kept") == 1
    record = world.disk.kept_record(world.engine.state.by_id["stuck"].number)
    assert len(record) <= 70
    assert_alike(world)
    world.restart()
    assert world.engine.state.by_id["stuck"].attempt == attempt
    assert world.engine.state.by_id["stuck"].stuck
    world.step(*world.came("inventory", "payment", "shipping"))
    world.after(25)
    world.step(*world.beats())
    world.drive("stuck", OK)
    world.settle()
    card = world.generations.find("stuck")
    assert isinstance(card, Card)
    world.close()


def test_sagas_behind_a_stopped_pool_are_kept_and_go_on_after_a_restart(world: DiskWorld) -> None:
    """Rows go even while their sagas run: each is taken out of them once."""
    for at in range(60):
        world.step(world.start(f"s{at}"))
        world.settle()
    assert rows(world, "journal") < 12
    assert rows(world, "kept") > 40
    world.restart()
    assert world.engine.inflight == 60
    world.step(*world.came("inventory", "payment", "shipping"))
    for at in range(60):
        world.drive(f"s{at}", OK, OK, OK)
        world.settle()
    assert world.engine.inflight == 0
    assert rows(world, "kept") < 6
    assert_alike(world)


def test_what_an_interrupted_merge_left_is_swept_at_the_next_start(world: DiskWorld) -> None:
    """A crash between two slices leaves parts that no segment speaks of: they go, the ids stay."""
    at = 0
    while rows(world, "segment") == len(world.generations.segments):
        finish(world, f"s{at}")
        at += 1
    world.slices = 0
    world.restart()
    assert world.generations.dead
    for saga in range(at):
        found = world.generations.find(f"s{saga}")
        assert isinstance(found, Card)
    world.settle()
    assert not world.generations.dead
    assert rows(world, "segment") == len(world.generations.segments)
    assert_alike(world)


def to_the_end(compaction: Compaction) -> None:
    while compaction.turn():
        pass


def test_what_a_merge_without_room_left_is_swept_when_there_is_room(tmp_path: Path) -> None:
    """D7: it begins again every 5 s; else each time would leave its parts on the full disk."""
    due_for_everything(tmp_path / "journal.db")
    with disk_that_fails() as disk:
        shard = opened(tmp_path / "journal.db", disk.name)
        generations, store = shard.generations, shard.journal.store
        while len(generations.segments) < segments.SEGMENTS_PER_LEVEL or shard.compaction._rows:
            shard.compaction.turn()
        for _ in range(3):
            while store.rows("SELECT count(*) FROM segment")[0][0] == len(generations.segments):
                shard.compaction.turn()
            disk.begin_again(apsw.FullError, ("xWrite", 0), once=True)
            with pytest.raises(JournalFull):
                to_the_end(shard.compaction)
            disk.fails = None
        to_the_end(shard.compaction)
        assert len(generations.segments) == 1
        assert store.rows("SELECT count(*) FROM segment") == [(1,)]
        keys = [key for (key,) in store.rows("SELECT key FROM part ORDER BY key")]
        assert keys == list(generations.segments[0][0].part_keys())
        abandon(shard.journal)


def test_nothing_stays_of_a_compaction_that_is_left_half_done(world: DiskWorld) -> None:
    """Beside a full disk: its state holds every saga, and the collector comes rarely."""
    world.slices = 0
    finish(world, *(f"s{at}" for at in range(20)))
    assert world.compaction.turn()
    left = weakref.ref(world.compaction)
    gc.disable()
    try:
        world.compaction.let_go()
        world.restart()
        assert left() is None
    finally:
        gc.enable()


def test_sagas_past_retention_leave_a_tombstone_of_sixteen_bytes(world: DiskWorld) -> None:
    """SPEC 2: an old id never runs again; its outcome is no longer kept."""
    finish(world, *(f"s{at}" for at in range(60)))
    world.settle()
    found = world.generations.expired(60)
    assert found is not None
    ordinal, numbers = found
    assert ordinal == len(numbers) > 20
    assert numbers == [card.number for card in world.generations.page(0, ordinal, ordinal)]
    for finished in (world.generations, world.replica.finished):
        finished.forget(ordinal)
    world.engine.state.forgotten = world.replica.forgotten = ordinal
    world.settle()
    assert rows(world, "block") < 60 - len(numbers)
    assert {
        segment.width for segment, _ in world.generations.segments if segment.high < ordinal
    } == {16}
    assert isinstance(world.generations.find("s0"), Tombstone)
    assert isinstance(world.generations.find("s59"), Card)
    for kind in (wire.START, wire.SHOW):
        body = order("s0") if kind == wire.START else b""
        told = replies(world.step(world.ask(kind, "s0", body)))
        assert told[0][1] == 22
        assert told[0][2]["text"] == "id was used; its outcome is no longer kept"
    assert world.generations.page(0, 60, 100)[0].saga_id != "s0"


def test_a_flipped_bit_in_where_a_block_begins_forgets_nothing_early(world: DiskWorld) -> None:
    """SPEC 2: never under 24 h. The column is not sealed; what it says is checked."""
    finish(world, *(f"s{at}" for at in range(60)))
    world.settle()
    firsts = [first for (first,) in world.disk.store.rows("SELECT first FROM block ORDER BY first")]
    there = world.generations.page(0, firsts[1], firsts[1])
    sound = (firsts[1], [card.number for card in there])
    flips = [firsts[1] ^ 1 << bit for bit in range(12)]
    for flipped in set(flips).difference(firsts):  # SQLite has no two rows of one key
        moved = "UPDATE block SET first = ? WHERE first = ?"
        world.disk.store.db.execute(moved, (flipped, firsts[1]))
        assert world.generations.expired(firsts[1]) == sound
        with pytest.raises(JournalFailed, match=f"damaged: saga {firsts[1]} has no block"):
            world.generations.expired(60)
        world.disk.store.db.execute(moved, (firsts[1], flipped))


def test_a_block_is_forgotten_when_all_of_it_is_past_retention(world: DiskWorld) -> None:
    """Half of one stays readable: kept longer is no harm."""
    finish(world, *(f"s{at}" for at in range(20)))
    world.settle()
    ((behind,),) = world.disk.store.rows("SELECT first FROM block ORDER BY first LIMIT 1 OFFSET 1")
    assert world.generations.expired(behind - 1) is None
    assert world.generations.expired(behind) == world.generations.expired(behind + 1)
    found = world.generations.expired(behind)
    assert found is not None
    assert (found[0], len(found[1])) == (behind, behind)


def test_what_ends_after_the_clock_was_set_back_is_kept(world: DiskWorld) -> None:
    """E2, SPEC 2: never under 24 h. Eight days back, what ends now is dated before retention."""
    world.after(10, wall_ms=-8 * 86_400_000)
    finish(world, *(f"s{at}" for at in range(20)))
    world.settle()
    world.after(1_001)
    world.step(*world.beats())
    assert world.engine.state.forgotten == 0
    assert bodies(world.step(world.start("s0")))[0]["type"] == "checkout_complete"


@pytest.mark.parametrize("table", ["block", "part", "segment", "kept"])
def test_a_flipped_bit_in_what_was_taken_out_of_the_rows_is_noticed(
    world: DiskWorld, table: str
) -> None:
    """D4: SQLite gives other content without a word; a wrong "new" would run a checkout twice."""
    finish(world, *(f"s{at}" for at in range(40)))
    world.step(world.start("running"))
    for at in range(8):
        finish(world, f"t{at}")
    world.settle()
    column = {"block": "records", "part": "entries", "segment": "prints", "kept": "record"}[table]
    packed = world.disk.store.rows(f"SELECT {column} FROM {table} LIMIT 1")[0][0]
    flipped = bytearray(packed)
    flipped[len(flipped) // 2] ^= 4
    world.disk.store.db.execute(f"UPDATE {table} SET {column} = ?", (bytes(flipped),))
    with pytest.raises((JournalFailed, JournalRefused), match="damaged"):
        _read_everything(world)


def _read_everything(world: DiskWorld) -> None:
    world.restart()
    for at in range(40):
        world.generations.find(f"s{at}")
    world.generations.page(0, 40, 40)


def test_a_checkpoint_that_was_changed_is_refused(world: DiskWorld) -> None:
    """D11: what it stands for is gone, so it must be what was written."""
    finish(world, *(f"s{at}" for at in range(20)))
    world.settle()
    world.disk.store.db.execute("UPDATE checkpoint SET seq = seq + 1")
    with pytest.raises(JournalRefused, match="checkpoint"):
        world.restart()
    world.disk.store.db.execute("UPDATE checkpoint SET counts = zeroblob(length(counts))")
    with pytest.raises(JournalRefused, match="checkpoint"):
        world.restart()


HIDDEN = {
    "kept": ("DELETE FROM kept", "it keeps 0 sagas of 2 that had not ended"),
    "segment": (
        "DELETE FROM segment WHERE id = (SELECT min(id) FROM segment)",
        "its segments know",
    ),
    "last block": (
        "DELETE FROM block WHERE first = (SELECT max(first) FROM block)",
        "has no block",
    ),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_rows_that_a_flipped_bit_hides_are_missed(world: DiskWorld, what: str) -> None:
    """D4: one bit says how many rows a page has. A saga that runs would be forgotten, or an id be
    new again."""
    world.step(world.start("running"))
    finish(world, *(f"s{at}" for at in range(40)))
    world.settle()
    statement, says = HIDDEN[what]
    world.disk.store.db.execute(statement)
    with pytest.raises((JournalFailed, JournalRefused), match=says):
        _read_everything(world)


def test_a_block_whose_place_was_changed_gives_no_other_sagas_answer(world: DiskWorld) -> None:
    """D4: where a block begins is not sealed with it; the record says whose it is."""
    finish(world, *(f"s{at}" for at in range(40)))
    world.settle()
    [(second,)] = world.disk.store.rows("SELECT first FROM block ORDER BY first LIMIT 1 OFFSET 1")
    world.disk.store.db.execute("UPDATE block SET first = first - 1 WHERE first = ?", (second,))
    for ask in (world.generations.find, world.generations.record):
        with pytest.raises(JournalFailed, match="is another"):
            ask(f"s{second}")


# -- crashes --------------------------------------------------------------------------------------


class _Kept(Struct):
    """What was opened of a shard's file."""

    journal: SqliteJournal
    generations: Generations
    compaction: Compaction
    state: State


def opened(path: Path, vfs: str | None = None) -> _Kept:
    """Recover from a file as a shard does, and write nothing."""
    journal = open_at(path, vfs=vfs)
    generations = Generations(journal.store)
    state = State(DEFINITIONS, generations)
    checkpoint = journal.checkpoint()
    if checkpoint is not None:
        state.restore(journal.kept(), checkpoint.counts)
    for seq, batch in journal.replay():
        state.wall_ms = batch.wall_ms
        for entry in batch.entries:
            state.apply(entry, seq)
    upkeep = Compaction(journal, generations, state.counts, TAIL_BYTES)
    return _Kept(journal, generations, upkeep, state)


def due_for_everything(path: Path) -> State:
    """Make a file whose next upkeep is a compaction, a sweep and a merge; give what it says."""
    world = DiskWorld(path)
    world.step(*world.came("inventory", "payment", "shipping"))
    at = 0
    while len(world.generations.segments) < segments.SEGMENTS_PER_LEVEL - 1:
        finish(world, f"s{at}")
        world.settle()
        at += 1
    world.slices = 0
    world.step(world.start("running"))
    while world.disk.tail_bytes < 2 * TAIL_BYTES:
        finish(world, f"s{at}")
        at += 1
    abandon(world.disk)
    return world.replica


@pytest.mark.parametrize("operation", ["xWrite", "xSync"])
def test_a_compaction_or_merge_that_dies_at_any_write_loses_and_doubles_nothing(
    tmp_path: Path, operation: str
) -> None:
    """D9, D10: at each write and sync; the next start goes on, and dies at the same one again."""
    replica = due_for_everything(tmp_path / "journal.db")
    with disk_that_fails() as disk:
        at, died = 0, True
        while died:
            path = tmp_path / f"{operation}-{at}" / "journal.db"
            path.parent.mkdir()
            for file in (tmp_path / "journal.db", wal_of(tmp_path / "journal.db")):
                shutil.copyfile(file, path.parent / file.name)
            for _ in range(2):
                disk.begin_again(apsw.IOError, (operation, at), once=False)
                died = dies(path, disk.name)
            assert_says(path, replica)
            shutil.rmtree(path.parent)
            at += 1
    assert at > 8  # the set-up is no empty one


def dies(path: Path, vfs: str) -> bool:
    """Do all upkeep; say whether it met an error."""
    try:
        kept = opened(path, vfs)
    except JournalRefused:
        return True
    try:
        while kept.compaction.turn():
            pass
    except JournalFailed:
        return True
    finally:
        abandon(kept.journal)
    return False


def assert_says(path: Path, replica: State) -> None:
    """Compare a file with what it must say, before and after the upkeep that is left."""
    kept = opened(path)
    for _ in range(2):
        assert snapshot(kept.state) == snapshot(replica)
        for card in replica.finished.page(0, len(replica.finished), 1_000):
            assert isinstance(kept.generations.find(card.saga_id), Card)
        assert kept.generations.find("running") is None
        while kept.compaction.turn():
            pass
    live = [each for each, _ in kept.generations.segments]
    assert {each.level for each in live} == {1}
    for table, wanted in (("segment", len(live)), ("part", sum(1 << s.bits for s in live))):
        assert kept.journal.store.rows(f"SELECT count(*) FROM {table}") == [(wanted,)]
    kept.journal.close()


def test_a_clock_that_is_wrong_when_a_shard_starts_again_forgets_nothing_early(
    tmp_path: Path,
) -> None:
    """Never under 24 h. It jumps ten years ahead, a row is written, the shard is restarted: what
    the journal and the clock say is equally wrong then."""
    world = DiskWorld(tmp_path / "journal.db")
    try:
        world.step(*world.came("inventory", "payment", "shipping"))
        finish(world, *(f"s{at}" for at in range(20)))
        world.settle()
        world.after(1_000, wall_ms=TEN_YEARS_MS)
        finish(world, "after")
        world.restart()
        world.after(1_001)
        world.step(*world.beats())
        assert bodies(world.step(world.start("s0")))[0]["type"] == "checkout_complete"
    finally:
        world.close()
