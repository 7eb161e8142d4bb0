"""Verify: what a stopped shard's journal says of itself, and that looking changes no byte."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from cluster.directory import DataDirectory
from sagacity.ids import count_of
from sagacity.ranges import ranges_of
from sagacity.wire import OK
from shard.codec import link, pack_batch, pack_block, pack_record
from shard.entries import FORMAT, Opened, Ran, Started
from shard.journal import SqliteJournal
from shard.records import Row
from shard.segments import ENTRY_BYTES
from shard.verify import FAULTS_MAX, Found, main, verify
from tests.unit.disk_world import DiskWorld
from tests.unit.journal_world import CLUSTER, abandon, entries_of, filled, open_at, wal_of

ROWS = 8


def written(path: Path, *, killed: bool = False) -> SqliteJournal:
    """Write a journal of two epochs, and let go of it."""
    journal = open_at(path)
    journal.commit([Opened(CLUSTER, 0, 1)], 1, 1)
    filled(journal, ROWS - 2)
    journal.commit([Opened(CLUSTER, 0, 2)], 2, 2)
    if killed:
        abandon(journal)
    else:
        journal.close()
    return journal


def content(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def looked_at(path: Path) -> Found:
    """Verify, and check that the directory is as it was."""
    before = content(path.parent)
    found = verify(path, CLUSTER, 0)
    assert content(path.parent) == before
    return found


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_a_journal_as_it_was_written_has_no_fault(tmp_path: Path, killed: bool) -> None:
    """After kill -9 the last rows are in the WAL alone; they count, and stay there."""
    journal = written(tmp_path / "journal.db", killed=killed)
    assert wal_of(tmp_path / "journal.db").exists() == killed
    assert looked_at(tmp_path / "journal.db") == Found(
        shard=0, rows=ROWS, last_seq=ROWS, chain=journal.last.chain.hex(), epoch=2, faults=[]
    )


def test_what_was_verified_still_opens(tmp_path: Path) -> None:
    """Looking left nothing that a shard would stumble over."""
    path = tmp_path / "journal.db"
    written(path, killed=True)
    looked_at(path)
    journal = open_at(path)
    assert len(list(journal.replay())) == ROWS
    journal.close()


def forged(path: Path, statement: str, *values: Any) -> None:
    """Change a journal behind its shard's back."""
    db = apsw.Connection(str(path))
    db.execute(statement, values)
    db.close()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a row is gone": (
        lambda path: forged(path, "DELETE FROM journal WHERE seq = 4"),
        "rows are missing: row 5 follows row 3",
    ),
    "the first row is gone": (
        lambda path: forged(path, "DELETE FROM journal WHERE seq = 1"),
        "rows are missing: row 2 follows row 0",
    ),
    "another batch": (
        lambda path: forged(
            path, "UPDATE journal SET batch = ? WHERE seq = 3", pack_batch(entries_of(99), 1, 1)
        ),
        "row 3 is not what was written",
    ),
    "no batch": (
        lambda path: forged(path, "UPDATE journal SET batch = x'c1' WHERE seq = 3"),
        "row 3 cannot be read",
    ),
    "another chain": (
        lambda path: forged(path, "UPDATE journal SET chain = zeroblob(16) WHERE seq = 3"),
        "row 3 is not what was written",
    ),
    "another format": (
        lambda path: forged(path, "PRAGMA user_version = 99"),
        f"format version 99; this version of Sagacity reads {FORMAT}",
    ),
    "another file": (
        lambda path: forged(path, "PRAGMA application_id = 7"),
        "no journal of Sagacity",
    ),
    "another cluster": (
        lambda path: forged(path, "UPDATE identity SET cluster_id = 'f'"),
        "it belongs to [('f', 0)]",
    ),
    "no identity": (lambda path: forged(path, "DELETE FROM identity"), "it belongs to []"),
    "no table": (lambda path: forged(path, "DROP TABLE journal"), "cannot be read after row 0"),
    "no database": (lambda path: _overwrite(path, b"not a database" * 500), "cannot be read"),
    "empty": (lambda path: _overwrite(path, b""), "it is empty"),
    "gone": (lambda path: path.unlink(), "cannot be read: No such file"),
    "half": (lambda path: _overwrite(path, path.read_bytes()[:-4096]), ""),
}


def _overwrite(path: Path, held: bytes) -> None:
    path.write_bytes(held)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    """Issue 3: what is wrong is said in words; nothing is mended behind anybody's back."""
    path = tmp_path / "journal.db"
    written(path)
    do, says = DAMAGES[damage]
    do(path)
    faults = looked_at(path).faults
    assert faults
    assert says in " ".join(faults)


def test_a_row_that_was_changed_is_one_fault(tmp_path: Path) -> None:
    """The rows after it are whole: who restores wants to know which are not."""
    path = tmp_path / "journal.db"
    written(path)
    forged(path, "UPDATE journal SET batch = ? WHERE seq = 3", pack_batch(entries_of(99), 1, 1))
    assert len(looked_at(path).faults) == 1


def test_a_flipped_bit_anywhere_is_found_or_changed_nothing(tmp_path: Path) -> None:
    """Issue 3: at 200 places; some bytes of a file hold nothing, but none holds a lie unseen."""
    path = tmp_path / "journal.db"
    whole = written(path).last.chain.hex()
    held = path.read_bytes()
    missed = 0
    for place in range(200):
        at = len(held) * place // 200
        path.write_bytes(held[:at] + bytes([held[at] ^ 1 << place % 8]) + held[at + 1 :])
        found = looked_at(path)
        if not found.faults:
            missed += 1
            assert (found.rows, found.chain) == (ROWS, whole), at
    assert missed < 200


def appended(path: Path, entries: list[object], epoch: int) -> None:
    """Write a row that its chain fits and whose entries do not."""
    db = apsw.Connection(str(path))
    [(seq, chain)] = db.execute("SELECT seq, chain FROM journal ORDER BY seq DESC LIMIT 1")
    packed = pack_batch(entries, epoch, 1)  # type: ignore[arg-type]  # some are foreign
    row = (seq + 1, link(chain, seq + 1, packed), packed)
    db.execute("INSERT INTO journal VALUES(?, ?, ?)", row)
    db.close()


def started(number: int) -> Started:
    return Started(number, "a", "checkout", 1, bytes(16), 1, "USD", 1, 1, 1, 1, {}, b"")


@pytest.mark.parametrize(
    ("entries", "epoch", "says"),
    [
        ([Opened(CLUSTER, 0, 2)], 2, "epoch 2 follows epoch 2"),
        ([Opened("f" * 32, 0, 3)], 3, "was written for " + "f" * 32),
        ([], 7, "was written in epoch 7, not in 2"),
        ([started(1 << 10), started(1 << 10)], 2, "number 1024 was given after 1024"),
        ([started(1 << 10 | 5)], 2, "number 1029 was given after 0"),
        ([Ran(5), Ran(4)], 2, "the shard had run 4 ms, after 5 ms"),
    ],
)
def test_a_row_that_cannot_follow_is_a_fault(
    tmp_path: Path, entries: list[object], epoch: int, says: str
) -> None:
    """Whole rows of another history: two processes wrote, or a file was put together."""
    path = tmp_path / "journal.db"
    written(path)
    appended(path, entries, epoch)
    assert says in " ".join(looked_at(path).faults)


def test_faults_are_bounded(tmp_path: Path) -> None:
    """A file full of faults is told in an answer of bounded length."""
    path = tmp_path / "journal.db"
    journal = open_at(path)
    filled(journal, FAULTS_MAX + 50)
    journal.close()
    forged(path, "UPDATE journal SET batch = x'c1'")
    assert len(looked_at(path).faults) == FAULTS_MAX + 1


def test_a_journal_of_another_shard_is_a_fault(tmp_path: Path) -> None:
    """Two directories were mixed."""
    path = tmp_path / "journal.db"
    written(path)
    assert verify(path, CLUSTER, 1).faults[0].startswith("it belongs to")


def test_a_directory_that_cannot_be_written_is_verified(tmp_path: Path) -> None:
    """A backup on a medium that is read only."""
    place = tmp_path / "shard-0"
    place.mkdir()
    path = place / "journal.db"
    written(path, killed=True)
    path.chmod(0o400)
    place.chmod(0o500)
    try:
        assert looked_at(path).faults == []
    finally:
        place.chmod(0o700)
        shutil.rmtree(place)


# -- after compactions ----------------------------------------------------------------------------


def compacted(path: Path) -> tuple[int, int]:
    """Write a journal with checkpoint, generations and merged segments; a saga goes on in it.

    Returns:
        How many sagas have ended by the checkpoint, and the last row.
    """
    world = DiskWorld(path)
    world.step(*world.came("inventory", "payment", "shipping"), world.start("runs"))
    for at in range(100):
        world.step(world.start(f"s{at}"))
        world.drive(f"s{at}", OK, OK, OK)
        world.settle()
    ended, last = world.generations.base, world.disk.last.seq
    assert max(segment.level for segment, _ in world.generations.segments) >= 1
    world.close()
    return ended, last


def test_a_compacted_journal_has_no_fault(tmp_path: Path) -> None:
    """Rows that are gone are no rows that are missing."""
    path = tmp_path / "journal.db"
    ended, last = compacted(path)
    found = verify(path, CLUSTER, 0)
    assert found.faults == []
    assert (found.finished, found.last_seq) == (ended, last)
    assert found.rows == last - found.checkpoint < 100


def test_blocks_past_retention_are_not_missing(tmp_path: Path) -> None:
    """Their ids stay, their records do not."""
    path = tmp_path / "journal.db"
    world = DiskWorld(path)
    world.step(*world.came("inventory", "payment", "shipping"))
    for at in range(100):
        world.step(world.start(f"s{at}"))
        world.drive(f"s{at}", OK, OK, OK)
        world.settle()
    world.generations.forget(70)
    world.settle()
    [(oldest,)] = world.disk.store.rows("SELECT min(first) FROM block")
    world.close()
    assert oldest > 0
    assert verify(path, CLUSTER, 0).faults == []


def test_segments_without_ordinals_beside_blocks_that_are_still_there_are_no_fault(
    tmp_path: Path,
) -> None:
    """Past retention a segment loses its ordinals first, and the blocks go after; a shard that
    stopped between the two has a whole file."""
    path = tmp_path / "journal.db"
    world = DiskWorld(path)
    world.step(*world.came("inventory", "payment", "shipping"))
    for at in range(40):
        world.step(world.start(f"s{at}"))
        world.drive(f"s{at}", OK, OK, OK)
    world.settle()
    world.slices = 0
    expired = world.generations.expired(len(world.generations))
    assert expired is not None
    end, numbers = expired
    world.step(forget=(ranges_of(count_of(number) for number in numbers), end))
    while all(segment.width == ENTRY_BYTES for segment, _ in world.generations.segments):
        assert world.compaction.turn()
    assert world.generations.has_expired_blocks()
    world.close()
    assert verify(path, CLUSTER, 0).faults == []


GENERATION_DAMAGES = {
    "segment under another id": (
        "UPDATE segment SET id = id + 100000 WHERE id = (SELECT max(id) FROM segment)",
        "says that it is segment",
    ),
    "prints of another": (
        "UPDATE segment SET prints = (SELECT prints FROM segment LIMIT 1) WHERE id > 5",
        " prints of ",
    ),
    "checkpoint gone": ("DELETE FROM checkpoint", "rows are missing"),
    "checkpoint moved": ("UPDATE checkpoint SET seq = seq + 1", "the checkpoint is not"),
    "kept changed": ("UPDATE kept SET record = zeroblob(20)", "what is kept of saga"),
    "kept of another": ("UPDATE kept SET number = number + 1024", "is of another saga"),
    "kept gone": ("DELETE FROM kept", "0 sagas are kept, and 2 had not ended"),
    "block changed": (
        "UPDATE block SET records = zeroblob(20) WHERE first = (SELECT max(first) FROM block)",
        "are not what was written",
    ),
    "last block gone": (
        "DELETE FROM block WHERE first = (SELECT max(first) FROM block)",
        "finished sagas are missing: the last one is",
    ),
    "block gone": (
        "DELETE FROM block WHERE first = (SELECT first FROM block ORDER BY first LIMIT 1 OFFSET 3)",
        "finished sagas are missing",
    ),
    "segment gone": (
        "DELETE FROM segment WHERE id = (SELECT min(id) FROM segment)",
        "and they are not the same",
    ),
    "part gone": (
        "DELETE FROM part WHERE key = (SELECT min(key) FROM part)",
        " is missing",
    ),
    "part changed": ("UPDATE part SET entries = zeroblob(24)", "a checksum does not fit"),
    "prints changed": ("UPDATE segment SET prints = zeroblob(24)", "is not what was written"),
}


@pytest.mark.parametrize("damage", GENERATION_DAMAGES)
def test_damage_to_what_stands_for_rows_is_named(tmp_path: Path, damage: str) -> None:
    """An id that a segment does not know would run a checkout twice."""
    path = tmp_path / "journal.db"
    compacted(path)
    statement, says = GENERATION_DAMAGES[damage]
    forged(path, statement)
    before = content(tmp_path)
    assert says in " ".join(verify(path, CLUSTER, 0).faults)
    assert content(tmp_path) == before


def test_a_flipped_bit_in_a_compacted_journal_is_found_or_changed_nothing(tmp_path: Path) -> None:
    """Issue 3: at 200 places; what is found without a fault is what was written."""
    path = tmp_path / "journal.db"
    compacted(path)
    held, whole = path.read_bytes(), verify(path, CLUSTER, 0)
    said = dumped(path)
    seen = 0
    for place in range(200):
        at = len(held) * place // 200
        path.write_bytes(held[:at] + bytes([held[at] ^ 1 << place % 8]) + held[at + 1 :])
        found = verify(path, CLUSTER, 0)
        if found.faults:
            seen += 1
        else:
            assert found == whole, at
            assert dumped(path) == said, at
    assert seen > 50  # the other bits are of pages that hold nothing now


def dumped(path: Path) -> list[Any]:
    """Give all that a start reads of a file."""
    db = apsw.Connection(
        f"file:{path}?immutable=1", apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    queries = (
        "SELECT * FROM journal WHERE seq > (SELECT seq FROM checkpoint) ORDER BY seq",
        "SELECT * FROM checkpoint",
        "SELECT * FROM kept ORDER BY number",
        "SELECT first, records FROM block ORDER BY first",
        "SELECT * FROM segment ORDER BY id",
        "SELECT * FROM part ORDER BY key",
    )
    said = [db.execute(query).fetchall() for query in queries]
    db.close()
    return said


def test_a_block_in_which_a_saga_has_no_end_is_damaged(tmp_path: Path) -> None:
    """Sealed and squeezed like a block; but a record goes from a start to an end."""
    path = tmp_path / "journal.db"
    compacted(path)
    block = pack_block([pack_record([Row(1, 1, [Ran(5)])])])
    forged(path, "UPDATE block SET records = ? WHERE first = 0", block)
    assert "does not go from a start to an end" in " ".join(verify(path, CLUSTER, 0).faults)


# -- the program ----------------------------------------------------------------------------------


def test_the_program_prints_a_line_for_each_shard_and_refuses_what_is_no_directory(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """`sagacity journal verify` draws them; faults are lines, not an exit code."""
    cluster = DataDirectory(tmp_path).open_or_create(2)
    for shard in range(cluster.shards):
        journal = SqliteJournal(DataDirectory(tmp_path).journal(shard), cluster.cluster_id, shard)
        journal.commit([Opened(cluster.cluster_id, shard, 1)], 1, 1)
        journal.close()
    forged(DataDirectory(tmp_path).journal(1), "DELETE FROM journal")
    assert main(["--data", str(tmp_path)]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    found = [msgspec.json.decode(line, type=Found) for line in lines]
    assert [(each.shard, each.rows) for each in found] == [(0, 1), (1, 0)]
    assert main(["--data", str(tmp_path / "gone")]) == 2
    assert capfdbinary.readouterr().err.count(b"\n") == 1
