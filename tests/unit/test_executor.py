"""Batches: one transaction, neighbours unharmed, a database that does not work is no outcome."""

import stat
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from sagacity import wire
from sagacity.books import ROWS_MAX
from sagacity.errors import Malformed
from sagacity.executor import OPEN_PATIENCE_MS, BatchExecutor, make_tables, open_file
from sagacity.service import Call, Database, Ok, Result, Rows, Service
from sagacity.wal import HEADER_BYTES
from sagacity.wire import BooksAsked, Commands, Witness
from services.inventory import service as inventory
from services.payment import service as payment
from tests.unit.failing_disk import FailingDisk
from tests.unit.faulty_disk import faulty_database
from tests.unit.service_world import (
    CLUSTER_ID,
    Events,
    Put,
    PutOk,
    Take,
    TakeOk,
    World,
    a_list,
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


def count_of(world: World) -> int:
    found: int = world.rows("SELECT count(*) FROM put")[0][0]
    return found


# -- one transaction ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "failed", "declined"])
def test_one_bad_command_leaves_its_neighbours_whole(world: World, how: str) -> None:
    """The batch is rolled back and run again one by one; each has its effect once."""
    outcomes = world.outcomes(
        put_command(1), put_command(2, how=how), take_command(3), put_command(4), put_command(4)
    )
    assert outcomes == ["ok", "declined" if how == "declined" else "failed", "ok", "ok", "ok"]
    assert count_of(world) == 2
    assert (world.executor.replays, world.executor.repeated) == (1, 1)


def test_a_handler_that_only_read_costs_no_replay(world: World) -> None:
    """Our services check before they write, so that a decline is cheap."""
    world.send(put_command(1), put_command(2, how="declined_clean"))
    assert world.executor.replays == 0


def test_a_batch_costs_one_sync(tmp_path: Path) -> None:
    """That is what makes it fast; and every batch costs one, that is what makes it durable."""
    with faulty_database(tmp_path / "toy.db") as (disk, connection):
        world = World(toy, connection=connection)
        world.send(put_command(1))
        before = disk.synced
        world.send(*[put_command(count) for count in range(2, 200)])
        assert disk.synced == before + 1


def test_answers_come_per_batch_in_order(world: World) -> None:
    """The worker sends each shard its own."""
    batches = [
        Commands(Witness(CLUSTER_ID, shard, 1, 1, b"", 0), [put_command(c) for c in counts])
        for shard, counts in ((0, (5, 6)), (1, (7,)))
    ]
    answers = world.executor.execute(batches)
    assert [[answer.saga_id for answer in each] for each in answers] == [["s5", "s6"], ["s7"]]


def test_a_handler_that_ends_the_transaction_stops_the_process() -> None:
    """What it had done is durable without its barrier row: nobody may go on from there."""

    def commits(db: Database, call: Call[Put]) -> Result:
        db.execute("COMMIT")
        return Ok(PutOk(1))

    def takes(db: Database, call: Call[Take]) -> Result:
        return Ok(TakeOk())

    service = Service("rogue", "", actions={Put: commits}, compensations={Take: takes})
    with world_of(service) as world, pytest.raises(BaseException, match="leaves transactions"):
        world.send(put_command())


# -- witnesses ----------------------------------------------------------------------------------


def test_the_highest_witness_of_each_shard_is_kept(world: World) -> None:
    """It proves later that a journal was not set back. An epoch outweighs any sequence."""

    def show(shard: int, epoch: int, seq: int) -> None:
        witness = Witness(CLUSTER_ID, shard, epoch, seq, b"chain", 9)
        world.executor.execute([Commands(witness, [put_command()])])

    for shard, epoch, seq in ((0, 1, 5), (0, 1, 4), (1, 1, 2), (0, 2, 1), (0, 1, 9)):
        show(shard, epoch, seq)
    expected = [
        Witness(CLUSTER_ID, 0, 2, 1, b"chain", 9),
        Witness(CLUSTER_ID, 1, 1, 2, b"chain", 9),
    ]
    assert sorted(world.executor.witnesses(), key=lambda seen: seen.shard) == expected
    again = World(toy, connection=world.connection)
    assert sorted(again.executor.witnesses(), key=lambda seen: seen.shard) == expected


def test_a_witness_that_no_row_can_hold_is_not_kept(world: World) -> None:
    """The commands beside it are performed."""
    witness = Witness(CLUSTER_ID, 0, 1, 2**63, b"", 0)
    answers = world.executor.execute([Commands(witness, [put_command()])])
    assert answers[0][0].outcome == wire.OK
    assert world.executor.witnesses() == []


# -- a database that does not work --------------------------------------------------------------


def test_a_full_database_is_no_outcome_and_nothing_is_half_written(tmp_path: Path) -> None:
    """D7 at a service: all refused, nothing there; when there is room again all goes on."""
    with faulty_database(tmp_path / "toy.db") as (disk, connection):
        world = World(toy, connection=connection)
        assert world.outcomes(put_command(1, epoch=1)) == ["ok"]
        disk.writes = apsw.FullError
        assert (
            world.outcomes(put_command(2), put_command(3, epoch=9)) == ["refused_unavailable"] * 2
        )
        assert not world.executor.available
        assert world.outcomes(put_command(1)) == ["refused_unavailable"]
        assert not world.executor.try_write()
        disk.writes = None
        assert world.executor.try_write()
        # Epoch 9 was not durable, so it does not fence.
        assert world.each(put_command(3, epoch=1), put_command(2)) == ["ok", "ok"]
        assert count_of(world) == 3
        assert world.log.told == ["database_unavailable", "database_available"]


def test_a_statement_that_finds_no_room_is_no_failure_of_its_command(world: World) -> None:
    """The handler meets the error; its command is refused all the same, not failed."""
    world.send(put_command(1))
    pages = world.connection.pragma("page_count")
    world.connection.pragma("max_page_count", pages)
    counts = range(2, 500)
    outcomes = world.outcomes(*[put_command(count) for count in counts])
    assert set(outcomes) == {"refused_unavailable"}
    assert count_of(world) == 1
    world.connection.pragma("max_page_count", 1_000_000)
    assert world.executor.try_write()
    assert set(world.outcomes(*[put_command(count) for count in counts])) == {"ok"}


def test_a_lock_that_is_not_given_up_is_no_outcome(tmp_path: Path) -> None:
    """The one who waits decides for how long."""
    connection = open_file(tmp_path / "toy.db")
    make_tables(connection, toy, CLUSTER_ID)
    calls: list[int] = []

    def wait(call: int) -> bool:
        calls.append(call)
        return call < 3

    executor = BatchExecutor(connection, toy, Events(), wait=wait)
    other = apsw.Connection(str(tmp_path / "toy.db"))
    other.execute("BEGIN IMMEDIATE")
    batch = [Commands(Witness(CLUSTER_ID, 0, 1, 1, b"", 0), [put_command()])]
    assert executor.execute(batch)[0][0].outcome == wire.REFUSED_UNAVAILABLE
    assert calls == [0, 1, 2, 3]
    other.execute("COMMIT")
    assert executor.try_write()
    assert executor.execute(batch)[0][0].outcome == wire.OK
    other.close()
    executor.close()


@pytest.mark.parametrize("fault", ["sync", "write"])
def test_a_commit_that_fails_not_for_room_ends_the_process(tmp_path: Path, fault: str) -> None:
    """D6: nobody knows what the file holds, and the next commit would succeed in silence."""
    with faulty_database(tmp_path / "toy.db") as (disk, connection):
        world = World(toy, connection=connection)
        world.send(put_command(1))
        if fault == "sync":
            disk.syncs = apsw.IOError
        else:
            disk.writes = apsw.IOError
        with pytest.raises(apsw.IOError):
            world.send(put_command(2))


def test_another_connection_that_raised_the_fence_is_obeyed(tmp_path: Path) -> None:
    """Two workers of a user may share a file; what one learned the other must not forget."""
    first, second = (World(toy, connection=open_file(tmp_path / "toy.db")) for _ in range(2))
    assert first.outcomes(put_command(1, epoch=1)) == ["ok"]
    assert second.outcomes(put_command(1, epoch=5)) == ["ok"]
    assert first.outcomes(put_command(1, epoch=4)) == ["refused_fenced"]
    assert second.executor.repeated == 1
    for world in (first, second):
        world.executor.close()


def test_a_damaged_database_ends_the_worker(tmp_path: Path) -> None:
    """Refused as unavailable its sagas would wait for ever, and nobody would be told."""
    file = tmp_path / "toy.db"
    made = World(toy, connection=open_file(file))
    made.send(put_command(1))
    root = made.rows("SELECT rootpage FROM sqlite_schema WHERE name = 'barrier'")[0][0]
    size = made.connection.pragma("page_size")
    made.executor.close()
    with file.open("r+b") as stream:
        stream.seek((root - 1) * size)
        stream.write(b"\xff" * size)
    damaged = World(toy, connection=open_file(file))
    with pytest.raises(apsw.CorruptError):
        damaged.send(put_command(2))
    damaged.executor.close()


# -- files --------------------------------------------------------------------------------------


def test_a_new_file_is_private_synced_and_seeded_once(tmp_path: Path) -> None:
    """0600, also what SQLite puts beside it; first rows only where the tables were made."""
    file = tmp_path / "payment.db"
    world = World(payment, connection=open_file(file))
    world.connection.execute("UPDATE account SET balance = 5")
    for each in (file, file.with_name("payment.db-wal"), file.with_name("payment.db-shm")):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert world.connection.pragma("journal_mode") == "wal"
    assert world.connection.pragma("synchronous") == 2
    world.executor.close()
    again = World(payment, connection=open_file(file))
    assert again.rows("SELECT user_id, balance FROM account") == [("u999", 5)]
    again.executor.close()


def test_who_opens_a_database_waits_for_its_lock(tmp_path: Path) -> None:
    """An audit that reads it, or a worker that is about to end, is no reason to give up at once."""
    connection = open_file(tmp_path / "toy.db")
    assert connection.execute("PRAGMA busy_timeout").get == OPEN_PATIENCE_MS
    connection.close()


def test_a_seed_that_breaks_leaves_no_tables(tmp_path: Path) -> None:
    """Else the next start would find tables without their first rows."""

    def breaks(db: Database, catalog: object) -> None:
        db.execute("INSERT INTO put (amount) VALUES (1)")
        raise RuntimeError("the seed breaks")

    broken = Service("toy", toy.schema, toy.actions, toy.compensations, seed=breaks)
    connection = open_file(tmp_path / "toy.db")
    with pytest.raises(RuntimeError):
        make_tables(connection, broken, CLUSTER_ID)
    assert list(connection.execute("SELECT name FROM sqlite_schema")) == []
    assert make_tables(connection, toy, CLUSTER_ID)
    assert not make_tables(connection, toy, CLUSTER_ID)
    connection.close()


def test_another_clusters_database_is_refused(tmp_path: Path) -> None:
    """Its numbers mean other sagas."""
    connection = open_file(tmp_path / "toy.db")
    make_tables(connection, toy, CLUSTER_ID)
    with pytest.raises(Malformed, match="cluster"):
        make_tables(connection, toy, "f" * 32)
    with pytest.raises(Malformed, match="payment"):
        make_tables(connection, payment, CLUSTER_ID)
    connection.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """And left as it is."""
    file = tmp_path / "toy.db"
    file.write_bytes(b"something else, longer than a header of a hundred bytes" * 10)
    with pytest.raises(Malformed, match="cannot open"):
        open_file(file)
    with pytest.raises(Malformed, match="cannot open"):
        open_file(tmp_path / "no such directory" / "toy.db")


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path, mode: str) -> None:
    """Our tables beside a stranger's would make it ours, and its journal mode is a write."""
    file = tmp_path / "toy.db"
    foreign = apsw.Connection(str(file))
    foreign.pragma("journal_mode", mode)
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    before = file.read_bytes()
    with pytest.raises(Malformed, match="has other tables"):
        open_file(file)
    assert file.read_bytes() == before


def test_a_database_cut_to_a_byte_is_refused(tmp_path: Path) -> None:
    """SQLite takes it for an empty one: every effect would be forgotten without a word."""
    file = tmp_path / "toy.db"
    file.write_bytes(b"S")
    with pytest.raises(Malformed, match="is no database"):
        open_file(file)
    assert file.read_bytes() == b"S"


@pytest.mark.parametrize("there", [True, False])
def test_a_wal_without_its_database_is_refused(tmp_path: Path, there: bool) -> None:
    """SQLite would delete it: effects that were answered gone without a word."""
    file, wal = tmp_path / "toy.db", tmp_path / "toy.db-wal"
    held = bytes(HEADER_BYTES) + b"effects"
    wal.write_bytes(held)
    if there:
        file.touch()
    with pytest.raises(Malformed, match="its WAL is there"):
        open_file(file)
    assert (file.exists(), wal.read_bytes()) == (there, held)


def test_a_long_wal_is_written_back(tmp_path: Path) -> None:
    """Else it grows without bound; SQLite's own checkpoints hide their errors and are off."""
    file = tmp_path / "toy.db"
    connection = open_file(file)
    make_tables(connection, toy, CLUSTER_ID)
    executor = BatchExecutor(connection, toy, Events(), checkpoint_pages=50)
    wal = file.with_name("toy.db-wal")
    sizes = []
    for turn in range(60):
        commands = [put_command(turn * 50 + at) for at in range(1, 51)]
        executor.execute([Commands(Witness(CLUSTER_ID, 0, 1, turn + 1, b"", 0), commands)])
        executor.tidy()
        sizes.append(wal.stat().st_size)
    assert max(sizes) == sizes[-1] < 100 * 4200
    assert file.stat().st_size > 50 * 4096
    executor.close()


# -- books --------------------------------------------------------------------------------------


def pay(world: World) -> None:
    world.connection.execute(
        "INSERT INTO payment (number, step, user_id, amount) VALUES (1024, 2, 'u', 5)"
    )


def page(world: World, **asked: object) -> dict[str, object]:
    got = world.executor.read_books(BooksAsked(7, wire.pack(asked)))
    assert got.token == 7
    body = wire.unpack(got.body)
    assert body.get("code") == got.code
    return body


def test_books_are_read_in_pages() -> None:
    """Every row once, in the order of the first column."""
    with world_of(payment) as world:
        for count in range(1, 8):
            world.connection.execute(
                "INSERT INTO payment (number, step, user_id, amount) VALUES (?, 2, 'u', 5)",
                (count,),
            )
        seen: list[object] = []
        after: object = 0
        while after is not None:
            got = page(world, book="payment", table="payments", after=after, limit=3)
            assert (got["type"], got["book"], got["table"]) == ("books", "payment", "payments")
            rows = got["rows"]
            assert isinstance(rows, list)
            seen += rows
            after = got["next"]
        assert seen == [[count, count, 2, "u", 5, 0] for count in range(1, 8)]


def test_a_page_keeps_to_a_bodys_limit() -> None:
    """Long rows make short pages, never a frame that closes the connection."""
    with world_of(payment) as world:
        world.connection.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000)"
            " INSERT INTO payment (number, step, user_id, amount) SELECT i, 2, ?, 5 FROM n",
            ("\N{BEAR FACE}" * 128,),
        )
        got = page(world, book="payment", table="payments", after=0, limit=ROWS_MAX)
        rows = got["rows"]
        assert isinstance(rows, list)
        assert 100 < len(rows) < 1000
        assert got["next"] == len(rows)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"book": "payment", "table": "account", "after": 0, "limit": 5},
        {"book": "inventory", "table": "payments", "after": 0, "limit": 5},
        {"book": "payment", "table": "payments", "after": None, "limit": 5},
        {"book": "payment", "table": "payments", "after": 0, "limit": 0},
        {"book": "payment", "table": "payments", "after": 0, "limit": ROWS_MAX + 1},
        {"book": "payment", "table": "payments", "after": 2**63, "limit": 5},
        {"book": "payment", "table": "payments", "after": 0, "limit": 2**64 - 1},
        {"book": "payment", "table": "payments", "after": "", "limit": 5},
        {"book": "payment", "table": "payments", "after": "x\0y", "limit": 5},
    ],
)
def test_books_that_are_not_there_are_an_error(asked: dict[str, object]) -> None:
    """Code 12; the worker lives."""
    with world_of(payment) as world:
        pay(world)
        got = page(world, **asked)
        assert (got["type"], got["code"]) == ("error", 12)
        assert world.executor.read_books(BooksAsked(7, b"\xc1")).code == 12


@pytest.mark.parametrize("after", [0, 2**63 - 1, -(2**63)])
def test_texts_are_not_read_after_an_integer(after: int) -> None:
    """SQLite would compare them as texts and leave out some."""
    with world_of(inventory) as world:
        asked = {"book": "inventory", "table": "stock", "after": after, "limit": 5}
        assert page(world, **asked)["code"] == 12


@pytest.mark.parametrize("after", ["", "~~~"])
def test_keys_are_read_to_the_end(after: str) -> None:
    """After the last one comes an empty page; so it does in an empty table."""
    with world_of(inventory) as world:
        got = page(world, book="inventory", table="stock", after=after, limit=50)
        assert (got["rows"] == [], got["next"]) == (after != "", None)
        for last in (0, 5, 2**63 - 1):
            got = page(world, book="inventory", table="reservations", after=last, limit=5)
            assert (got["rows"], got["next"]) == ([], None)
    with world_of(payment) as world:
        pay(world)
        got = page(world, book="payment", table="payments", after=1, limit=5)
        assert (got["rows"], got["next"]) == ([], None)


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE payment RENAME TO gone",
        "UPDATE payment SET user_id = CAST(x'ff' AS TEXT)",
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_and_the_worker_lives(damage: str) -> None:
    """Code 0: nothing is wrong with the request. What is not read is no page without rows."""
    with world_of(payment) as world:
        pay(world)
        world.connection.execute(damage)
        got = page(world, book="payment", table="payments", after=0, limit=5)
        assert (got["type"], got["code"]) == ("error", 0)
        assert str(got["text"]).startswith("unreadable now")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverflowError("too \udc80 large"), 12),
        (ValueError("x" * 10**6), 12),
        (TypeError("a text"), 12),
        (apsw.CorruptError("malformed"), 0),
        (KeyError("a bug"), 13),
    ],
)
def test_books_that_raise_are_an_error_and_the_worker_lives(error: Exception, code: int) -> None:
    """A user's own service is no reason to end either."""

    def breaks(db: Database, after: object, limit: int) -> Rows:
        raise error

    broken = Service("toy", toy.schema, toy.actions, toy.compensations, books={"puts": breaks})
    with world_of(broken) as world:
        got = page(world, book="toy", table="puts", after=0, limit=5)
        assert (got["type"], got["code"]) == ("error", code)
        assert len(str(got["text"])) < 300


def test_rows_that_have_no_place_on_the_wire_are_unreadable() -> None:
    """A float in a user's table: the asker did nothing wrong."""

    def floats(db: Database, after: object, limit: int) -> Rows:
        return [[1, 0.5]]

    broken = Service("toy", toy.schema, toy.actions, toy.compensations, books={"puts": floats})
    with world_of(broken) as world:
        assert page(world, book="toy", table="puts", after=0, limit=5)["code"] == 0


@pytest.mark.parametrize("how", ["ok", "raise"], ids=["together", "one by one"])
def test_a_handler_that_finds_no_room_is_not_at_fault(how: str) -> None:
    """Neither failed nor a bug in the log: the shard keeps the command until there is room."""

    def bulky(db: Database, call: Call[Put]) -> Result:
        db.execute("INSERT INTO put VALUES (?, ?, ?, zeroblob(?), 0)", (None, 1, 1, 1 << 20))
        return Ok(PutOk(1))

    schema = "CREATE TABLE put (id INTEGER PRIMARY KEY, number, step, amount, taken)"
    service = Service("toy", schema, actions={Put: bulky}, compensations={Take: take})
    with world_of(service) as world:
        world.connection.pragma("max_page_count", world.connection.pragma("page_count") + 2)
        # A compensation that raises has its batch run again one by one, each in a savepoint.
        outcomes = world.outcomes(take_command(9, how=how), put_command(1), put_command(2))
        assert outcomes == ["refused_unavailable"] * 3
        assert not world.executor.available
        assert world.log.told.count("handler_raised") == (how == "raise")
        world.connection.pragma("max_page_count", 1_000_000)
        assert world.executor.try_write()
        assert world.each(put_command(1)) == ["ok"]


def test_a_standby_tells_what_the_worker_before_it_has_seen(tmp_path: Path) -> None:
    """HELLO carries the witnesses of the database, not those of one connection."""
    worker, standby = (World(toy, connection=open_file(tmp_path / "toy.db")) for _ in range(2))
    assert standby.executor.witnesses() == []
    worker.send(put_command(1))
    assert [each.seq for each in standby.executor.witnesses()] == [1]
    worker.send(put_command(2))
    assert [each.seq for each in standby.executor.witnesses()] == [2]
    for each in (worker, standby):
        each.executor.close()


def test_a_list_is_kept_whole_while_another_has_the_lock(tmp_path: Path) -> None:
    """What is left of it is all of it; nothing is forgotten that was not asked in peace."""
    world = World(toy, connection=open_file(tmp_path / "toy.db"))
    world.connection.set_busy_timeout(0)
    world.send(put_command(1))
    other = apsw.Connection(str(tmp_path / "toy.db"))
    other.execute("BEGIN IMMEDIATE")
    asked = a_list((1, 1))
    assert world.executor.forget(asked) == asked.ranges
    assert not world.executor.available
    assert world.executor.forget(asked) == asked.ranges
    other.execute("COMMIT")
    other.close()
    assert world.executor.try_write()
    assert world.rows("SELECT count(*) FROM barrier") == [(1,)]
    assert world.executor.forget(asked) == []
    assert world.rows("SELECT count(*) FROM barrier") == [(0,)]
    world.executor.close()


def test_a_wal_that_cannot_be_written_back_for_room_is_left_as_long_as_it_is(
    tmp_path: Path,
) -> None:
    """The answers have left already; it is tried again when the WAL has grown as much."""
    disk = FailingDisk("toy-disk")
    connection = apsw.Connection(str(tmp_path / "toy.db"), vfs=disk.name)
    connection.pragma("locking_mode", "exclusive")
    assert connection.pragma("journal_mode", "wal") == "wal"
    make_tables(connection, toy, CLUSTER_ID)
    log = Events()
    executor = BatchExecutor(connection, toy, log, checkpoint_pages=1)
    batch = [Commands(Witness(CLUSTER_ID, 0, 1, 1, b"", 0), [put_command()])]
    executor.execute(batch)
    disk.begin_again(apsw.FullError, ("xWrite", 0), once=False)
    executor.tidy()
    assert (disk.failures, log.told) == (1, ["checkpoint_failed"])
    disk.fails = None
    assert executor.available
    assert executor.execute(batch)[0][0].outcome == wire.OK
    executor.tidy()
    assert log.told == ["checkpoint_failed"]
    executor.close()
    disk.unregister()


def test_a_disk_without_shared_memory_gets_its_wal_all_the_same(tmp_path: Path) -> None:
    """One connection has it then. Else SQLite keeps its old mode without a word."""
    disk = FailingDisk("toy-disk")
    for count in (1, 2):
        connection = open_file(tmp_path / "toy.db", disk.name)
        assert connection.pragma("journal_mode") == "wal"
        assert connection.pragma("locking_mode") == "exclusive"
        world = World(toy, connection=connection)
        assert world.each(put_command(1)) == ["ok"]
        assert (count_of(world), world.executor.repeated) == (1, count - 1)
        world.executor.close()
    disk.unregister()
