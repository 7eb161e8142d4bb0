"""Journal on disk: what it refuses, which failures and crashes it survives.

The real process that is killed stands in tests/integration/test_journal_kill.py.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from sagacity.wire import encode
from shard import store as store_room
from shard.codec import link
from shard.entries import FORMAT, Batch
from shard.journal import (
    JournalFailed,
    JournalFull,
    JournalRefused,
    MemoryJournal,
    SqliteJournal,
)
from shard.verify import verify
from tests.unit.failing_disk import FailingDisk, disk_that_fails
from tests.unit.faulty_disk import FAULTY_DISK, FaultyDisk
from tests.unit.journal_world import CLUSTER, abandon, entries_of, filled, open_at, replayed, wal_of

WAL_HEADER = 32
WAL_FRAME = 4096 + 24


def content(directory: Path) -> dict[str, bytes]:
    """Give the files' bytes; an empty WAL says nothing, and comes with every look."""
    found = {file.name: file.read_bytes() for file in directory.iterdir()}
    return {name: held for name, held in found.items() if held or not name.endswith("-wal")}


# -- the file -------------------------------------------------------------------------------------


def test_a_commit_is_durable_before_its_receipt(tmp_path: Path) -> None:
    """WAL and FULL are what makes it so; SQLite answers a refused pragma with silence."""
    journal = open_at(tmp_path / "journal.db")

    def pragma(name: str) -> object:
        row = journal._db.execute(f"PRAGMA {name}").fetchone()
        assert row is not None
        return row[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2
    assert pragma("locking_mode") == "exclusive"
    assert pragma("wal_autocheckpoint") == 0
    journal.close()


def test_every_commit_is_synced_once(tmp_path: Path) -> None:
    """The price of a turn is one sync, whatever came in it; and never none."""
    with disk_that_fails() as disk:
        journal = open_at(tmp_path / "journal.db", vfs=disk.name)
        filled(journal, 1)
        for index in range(1, 20):
            before = disk.count("xSync")
            journal.commit(entries_of(index), 1, 1)
            assert disk.count("xSync") == before + 1
        abandon(journal)


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Addresses and amounts of customers stand in them."""
    path = tmp_path / "journal.db"
    before = os.umask(0)
    try:
        journal = open_at(path)
        filled(journal, 1)
    finally:
        os.umask(before)
    for file in (path, wal_of(path)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {file.name for file in tmp_path.iterdir()} == {"journal.db", "journal.db-wal"}
    journal.close()


def test_a_journal_that_another_has_open_is_refused(tmp_path: Path) -> None:
    """D12: the second guard, behind the shard's lock."""
    journal = open_at(tmp_path / "journal.db")
    filled(journal, 1)
    with pytest.raises(JournalRefused, match="locked"):
        open_at(tmp_path / "journal.db")
    filled(journal, 1, begin=1)
    assert len(replayed(journal)) == 2
    journal.close()


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "moved away"])
def test_a_journal_that_was_moved_gives_no_more_receipts(tmp_path: Path, replaced: bool) -> None:
    """E1: an operator moved it while its shard was stopped, and another shard owns the copy."""
    journal = open_at(tmp_path / "journal.db")
    filled(journal, 1)
    last = journal.last
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in (tmp_path / "journal.db", wal_of(tmp_path / "journal.db")):
        file.rename(moved / file.name)
    if replaced:
        shutil.copytree(moved, tmp_path, dirs_exist_ok=True)
        other = open_at(tmp_path / "journal.db")
        filled(other, 1, begin=len(replayed(other)))
        other.close()
    with pytest.raises(JournalFailed, match="not the file"):
        journal.commit(entries_of(1), 1, 1)
    assert journal.last == last
    journal.store.db.close()


def test_a_closed_journal_is_one_file(tmp_path: Path) -> None:
    """What is backed up while the shard stands still is a single file."""
    journal = open_at(tmp_path / "journal.db")
    filled(journal, 3)
    journal.close()
    assert [file.name for file in tmp_path.iterdir()] == ["journal.db"]


@contextmanager
def left_as_found(directory: Path) -> Iterator[None]:
    """Check that a refusal writes nothing, not even later, when the connection is let go."""
    before = content(directory)
    yield
    assert content(directory) == before


def refused(path: Path, match: str, *, cluster: str = CLUSTER, shard: int = 0) -> None:
    """Check that a file is refused by an error of the one table, and left as it was."""
    with left_as_found(path.parent):
        with pytest.raises(JournalRefused, match=match) as error:
            SqliteJournal(path, cluster, shard)
        assert (error.value.code, error.value.exit_code) == (12, 2)


def damaged(path: Path, match: str) -> None:
    """Check that a replay refuses what the file holds, and leaves it as it was."""
    with left_as_found(path.parent):
        journal = open_at(path)
        with pytest.raises(JournalRefused, match=match):
            list(journal.replay())
        del journal


def closed_journal(path: Path, count: int = 5) -> None:
    journal = open_at(path)
    filled(journal, count)
    journal.close()


def edit(path: Path, statement: str) -> None:
    """Change a file as another program could."""
    connection = apsw.Connection(str(path))
    connection.execute(statement).fetchall()
    assert connection.changes() <= 1
    connection.close()


def test_a_journal_of_another_cluster_or_shard_is_refused(tmp_path: Path) -> None:
    """A file copied to the wrong place would give its numbers to other sagas."""
    closed_journal(tmp_path / "journal.db")
    refused(tmp_path / "journal.db", "belongs to", cluster="f" * 32)
    refused(tmp_path / "journal.db", "belongs to", shard=1)


@pytest.mark.parametrize("version", [0, FORMAT + 1, 2**31 - 1])
def test_a_journal_of_another_format_version_is_refused(tmp_path: Path, version: int) -> None:
    """D11: the text names both versions, so that one knows which program to take."""
    closed_journal(tmp_path / "journal.db")
    edit(tmp_path / "journal.db", f"PRAGMA user_version={version}")
    refused(tmp_path / "journal.db", f"version {version}; this version reads {FORMAT}")


@pytest.mark.parametrize(
    "statement",
    ["PRAGMA user_version=1", "CREATE TABLE journal(seq)", "PRAGMA application_id=1"],
)
def test_a_database_of_another_program_is_refused_and_left_as_it_is(
    tmp_path: Path, statement: str
) -> None:
    """Somebody mistyped a directory: their file must not become ours, not even its mode."""
    path = tmp_path / "journal.db"
    edit(path, "CREATE TABLE theirs(x)")
    edit(path, statement)
    refused(path, "no journal of Sagacity")


@pytest.mark.parametrize("held", [b"x", b"SQLite format 3\x00", b"no database " * 1000])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, held: bytes) -> None:
    """Whatever stands there, it is not overwritten."""
    (tmp_path / "journal.db").write_bytes(held)
    refused(tmp_path / "journal.db", "cannot be opened|no database")


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    """The operating system's words come in ours, with the exit code of the table."""
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(JournalRefused, match=r"journal\.db cannot be opened"):
        open_at(tmp_path / "journal.db")
    with pytest.raises(JournalRefused, match="No such file"):
        open_at(tmp_path / "missing" / "journal.db")


@pytest.mark.parametrize(
    ("file_mode", "directory_mode"), [(None, 0o555), (0o444, 0o777), (0o666, 0o555)]
)
def test_what_cannot_be_written_is_refused_at_the_start(
    file_mode: int | None, directory_mode: int
) -> None:
    """Not at the first commit, when somebody waits for an answer."""
    directory = Path(tempfile.mkdtemp(prefix="sg-"))
    path = directory / "journal.db"
    try:
        if file_mode is not None:
            closed_journal(path)
            path.chmod(file_mode)
        directory.chmod(directory_mode)
        with as_an_ordinary_user(), left_as_found(directory), pytest.raises(JournalRefused):
            open_at(path)
    finally:
        directory.chmod(0o700)
        shutil.rmtree(directory)


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Root may write anywhere, whatever the modes say."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET batch = zeroblob(length(batch)) WHERE seq = 3",
        "UPDATE journal SET batch = (SELECT batch FROM journal WHERE seq = 2) WHERE seq = 3",
        "UPDATE journal SET batch = substr(batch, 1, length(batch) - 1) WHERE seq = 3",
        "UPDATE journal SET chain = zeroblob(16) WHERE seq = 3",
        "UPDATE journal SET batch = zeroblob(3) WHERE seq = 5",
    ],
)
def test_a_changed_row_is_refused(tmp_path: Path, statement: str) -> None:
    """D4: SQLite's own integrity check is content with all of these."""
    closed_journal(tmp_path / "journal.db")
    edit(tmp_path / "journal.db", statement)
    damaged(tmp_path / "journal.db", r"row [35] is not what was written")


@pytest.mark.parametrize("seq", [1, 3])
def test_a_missing_row_is_refused(tmp_path: Path, seq: int) -> None:
    """A replay that skipped it would forget what was acknowledged."""
    closed_journal(tmp_path / "journal.db")
    edit(tmp_path / "journal.db", f"DELETE FROM journal WHERE seq = {seq}")
    damaged(tmp_path / "journal.db", f"row {seq} is missing")


def test_a_row_that_was_added_is_refused(tmp_path: Path) -> None:
    """Only who knows the chain can append: two owners cannot both."""
    closed_journal(tmp_path / "journal.db")
    edit(
        tmp_path / "journal.db",
        "INSERT INTO journal SELECT 6, chain, batch FROM journal WHERE seq = 5",
    )
    damaged(tmp_path / "journal.db", "row 6 is not what was written")


def test_a_row_of_another_version_is_refused_with_its_place(tmp_path: Path) -> None:
    """The chain is right and the meaning unknown: written by a newer program."""
    path = tmp_path / "journal.db"
    journal = open_at(path)
    filled(journal, 1)
    packed = encode(Batch(FORMAT + 1, 1, 1, entries_of(1)))
    chain = link(journal.last.chain, 2, packed)
    journal._db.execute("INSERT INTO journal VALUES(2, ?, ?)", (chain, packed))
    journal.close()
    damaged(path, "row 2: format version")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """D4: whatever its new length, it is never read as a shorter journal."""
    path = tmp_path / "journal.db"
    journal = open_at(path)
    for index in range(30):
        journal.commit(entries_of(index, size=1000), 1, 1)
    journal.close()
    whole = path.read_bytes()
    for length in range(1, len(whole) - 1, 1021):
        path.write_bytes(whole[:length])
        with pytest.raises(JournalRefused):
            list(open_at(path).replay())
        assert path.read_bytes() == whole[:length]


@pytest.mark.parametrize("left", [None, b""])
def test_a_wal_without_its_file_is_refused(tmp_path: Path, left: bytes | None) -> None:
    """SQLite deletes such a WAL in silence, with all that was acknowledged in it."""
    path = tmp_path / "journal.db"
    journal = open_at(path)
    filled(journal, 3)
    abandon(journal)
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    refused(path, "WAL is there")


# -- errors and crashes ---------------------------------------------------------------------------


COMMITS = 6


def run_until_it_fails(path: Path, disk: FailingDisk) -> tuple[int, bool]:
    """Open and commit on a disk.

    Returns:
        How many commits were acknowledged, and whether one failed.
    """
    try:
        journal = open_at(path, vfs=disk.name)
    except JournalRefused:
        return 0, True
    for index in range(COMMITS):
        try:
            journal.commit(entries_of(index, size=3000), 1, index)
        except JournalFailed:
            abandon(journal)
            return index, True
    abandon(journal)
    return COMMITS, False


@pytest.mark.parametrize(("error", "once"), [(apsw.IOError, True), (apsw.FullError, False)])
@pytest.mark.parametrize("operation", ["xWrite", "xSync", "xTruncate"])
def test_a_commit_that_fails_says_so_and_loses_nothing_acknowledged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    error: type[apsw.Error],
    once: bool,
) -> None:
    """D6, D9: at every write and sync, those of checkpoints too. The failed one may be there.

    A write-back that finds no room is no failure: the WAL has it all.
    """
    monkeypatch.setattr(store_room, "WAL_PAGES_MAX", 8)
    failed = acknowledged_most = 0
    with disk_that_fails() as disk:
        for before in range(1000):
            path = tmp_path / f"{before}" / "journal.db"
            path.parent.mkdir()
            disk.begin_again(error, (operation, before), once=once)
            acknowledged, failing = run_until_it_fails(path, disk)
            disk.fails = None
            journal = open_at(path)
            rows = replayed(journal)
            assert rows == [entries_of(index, size=3000) for index in range(len(rows))]
            assert len(rows) in ((acknowledged, acknowledged + 1) if failing else (COMMITS,))
            filled(journal, 1)
            journal.close()
            failed += disk.failures > 0
            acknowledged_most = max(acknowledged_most, acknowledged)
            if not disk.failures:
                break
    assert (failed, acknowledged_most) >= (1, COMMITS), "the rounds were void"


def test_a_long_wal_is_copied_into_the_file_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would grow for ever, and with it the time that a start takes. It is not truncated:
    a commit into room that is there already needs no new length on disk."""
    monkeypatch.setattr(store_room, "WAL_PAGES_MAX", 20)
    path = tmp_path / "journal.db"
    journal = open_at(path)
    longest = checkpoints = before = 0
    for index in range(200):
        journal.commit(entries_of(index, size=3000), 1, 1)
        longest = max(longest, wal_of(path).stat().st_size)
        size = path.stat().st_size
        checkpoints += size > before
        before = size
    assert checkpoints > 5
    assert longest <= WAL_HEADER + 30 * WAL_FRAME
    abandon(journal)
    journal = open_at(path)
    assert replayed(journal) == [entries_of(index, size=3000) for index in range(200)]
    journal.close()


def crash_image(path: Path, at: Path) -> tuple[Path, Path]:
    """Copy a journal's files, as a crash would leave them."""
    at.mkdir(exist_ok=True)
    for file in (path, wal_of(path)):
        shutil.copy(file, at / file.name)
    return at / path.name, wal_of(at / path.name)


@pytest.mark.parametrize("tail", ["truncated", "zeros", "noise"])
def test_a_torn_tail_leaves_a_prefix_with_all_commits_but_the_last(
    tmp_path: Path, tail: str
) -> None:
    """D3: the last commit was not acknowledged; it is there whole, or not at all."""
    path = tmp_path / "journal.db"
    journal = open_at(path)
    filled(journal, 6)
    begin = wal_of(path).stat().st_size
    journal.commit(entries_of(6, size=5000), 1, 1)
    image, wal = crash_image(path, tmp_path / "image")
    abandon(journal)
    file, whole = path.read_bytes(), wal.read_bytes()
    assert len(whole) >= begin + 2 * WAL_FRAME
    edges = {begin, len(whole), *range(begin, len(whole), WAL_FRAME)}
    near = {edge + off for edge in edges for off in (-2, -1, 0, 1, 2, 8, 16, 23, 24, 25)}
    offsets = {at for at in near if begin <= at <= len(whole)} | set(range(begin, len(whole), 211))
    outcomes = set()
    for offset in sorted(offsets):
        rest = len(whole) - offset
        lost = {"truncated": b"", "zeros": bytes(rest), "noise": b"\xa5\x5a\x0f" * rest}[tail]
        image.write_bytes(file)
        wal.write_bytes(whole[:offset] + lost[:rest])
        journal = open_at(image)
        rows = replayed(journal)
        assert rows[:6] == [entries_of(index) for index in range(6)]
        assert rows[6:] in ([], [entries_of(6, size=5000)])
        outcomes.add(len(rows))
        filled(journal, 1, begin=7)
        abandon(journal)
    assert outcomes == {6, 7}, "neither side of the edge was seen"


def test_a_replay_does_not_begin_what_it_cannot_finish(tmp_path: Path) -> None:
    """A first commit before the replay would fork the journal; it fails instead."""
    closed_journal(tmp_path / "journal.db")
    journal = open_at(tmp_path / "journal.db")
    with pytest.raises(JournalFailed):
        filled(journal, 1)
    assert len(replayed(journal)) == 5
    filled(journal, 1, begin=5)
    assert len(replayed(journal)) == 6
    journal.close()


def test_a_full_disk_loses_nothing_and_the_same_connection_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: there was no room, for a while: neither a hole nor a row too many, and no reopening."""
    monkeypatch.setattr(store_room, "WAL_PAGES_MAX", 8)
    path = tmp_path / "journal.db"
    disk = FaultyDisk()
    try:
        journal = open_at(path, vfs=FAULTY_DISK)
        filled(journal, 5)
        for turn in range(1, 6):
            disk.writes = apsw.FullError
            for _ in range(3):
                with pytest.raises(JournalFull):
                    journal.commit(entries_of(99, size=20_000), 1, 99)
                with pytest.raises(JournalFull), journal.store.transaction() as cursor:
                    cursor.execute("INSERT INTO kept VALUES(1, zeroblob(20000))")
            assert journal.last.seq == 5 * turn
            disk.writes = None
            filled(journal, 5, begin=5 * turn)
        assert len(journal.store.rows("SELECT * FROM kept")) == 0
        abandon(journal)
    finally:
        disk.unregister()
    journal = open_at(path)
    assert replayed(journal) == [entries_of(index) for index in range(30)]
    journal.close()


def test_the_chain_at_a_row_is_told_as_long_as_the_row_is_there(tmp_path: Path) -> None:
    """What a witness is compared with."""
    for journal in (open_at(tmp_path / "journal.db"), MemoryJournal()):
        filled(journal, 3)
        chains = [journal.chain_at(seq) for seq in range(5)]
        assert chains[0] is None
        assert chains[3] == journal.last.chain
        assert len({*chains[1:4]}) == 3
        assert chains[4] is None
        journal.close()


def test_a_row_without_bytes_is_damage_and_no_bug(tmp_path: Path) -> None:
    """A damaged page can give NULL where the table allows none: the shard refuses, exit code 2."""
    path = tmp_path / "journal.db"
    journal = open_at(path)
    filled(journal, 3)
    db = journal.store.db
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '') WHERE name='journal'")
    db.execute("PRAGMA writable_schema=RESET")
    db.execute("UPDATE journal SET chain = NULL WHERE seq = 2")
    with pytest.raises(JournalRefused, match="row 2 is not what was written"):
        list(journal.replay())
    abandon(journal)


@pytest.mark.parametrize(("table", "column"), [("journal", "batch"), ("checkpoint", "counts")])
def test_bytes_that_a_flipped_bit_made_a_text_are_damage_and_no_bug(
    tmp_path: Path, table: str, column: str
) -> None:
    """D4: the bit that tells a BLOB from a TEXT; Python cannot read it: exit code 2, not 13."""
    path = tmp_path / "journal.db"
    journal = open_at(path)
    filled(journal, 3)
    db = journal.store.db
    if table == "checkpoint":
        db.execute("INSERT INTO checkpoint VALUES(1, 1, x'ff')")
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_schema SET sql = replace(replace(sql, 'BLOB', 'ANY'), 'STRICT', '')")
    db.execute("PRAGMA writable_schema=RESET")
    db.execute(f"UPDATE {table} SET {column} = CAST(x'93ff' AS TEXT)")
    with pytest.raises(JournalRefused, match="is damaged"):
        list(journal.replay())
    abandon(journal)
    assert any("cannot be read" in fault for fault in verify(path, CLUSTER, 0).faults)
