"""What fuzzing has found, each with its cause: see docs/proof/fuzz.md."""

import fcntl
import os
from pathlib import Path

import apsw
import msgpack
import msgspec
import pytest
import zstandard

from cluster.directory import DataDirectory, running
from config.load import ConfigError, load
from sagacity import client, wire
from sagacity.asks import Asks
from sagacity.errors import InternalError, Malformed, NoOutcome, from_body
from sagacity.forgotten import read_rows
from sagacity.wire import Reply, Witness
from shard import codec
from shard.codec import Unreadable
from shard.entries import Started
from shard.journal import JournalFailed, JournalRefused, SqliteJournal
from shard.records import Row
from shard.segments import Prints, Segment
from shard.verify import Found, verify
from tests.unit.journal_world import CLUSTER, abandon, filled, open_at
from tests.unit.service_world import World, toy, world_of

ANSWER = {"type": "checkout_complete", "saga_id": "s1", "status": "COMPLETED"}


@pytest.mark.parametrize(
    "body",
    [
        {**ANSWER, "order_id": b"o1"},
        {**ANSWER, "more": [{"deep": b""}]},
        dict([(b"order_id", "o1"), *ANSWER.items()]),
        {**ANSWER, "more": {b"k": 1}},
    ],
)
def test_a_body_with_bytes_is_malformed(body: dict[object, object]) -> None:
    """JSON has none: a node that was answered so died when it wrote its line."""
    packed = msgpack.packb(body)
    with pytest.raises(Malformed):
        wire.unpack(packed)
    with pytest.raises(Malformed):
        wire.pack(body)
    with pytest.raises(InternalError):
        client.answer(Reply(1, None, packed))


@pytest.mark.parametrize("body", [{}, {"saga_id": "s1"}, {"type": 7}, {"type": None}])
def test_an_answer_without_a_type_is_a_bug_of_ours(body: dict[str, object]) -> None:
    """Code 13 of the table; a node died of it."""
    with pytest.raises(InternalError):
        client.answer(Reply(1, None, wire.pack(body)))


@pytest.mark.parametrize("code", [{}, [], "0", None])
def test_an_error_whose_code_is_no_integer_is_a_bug_of_ours(code: object) -> None:
    """A client that looked for a stuck saga in such an answer ended with a TypeError."""
    body = wire.pack({"type": "error", "code": code, "text": "stuck: RefundPayment"})
    asks = Asks("a router")
    token = asks.ask(wire.START, "s1", b"", now=0, wait_ns=1_000)
    asks.take()
    asks.on_reply(Reply(token, NoOutcome.code, body), 1)
    assert isinstance(from_body(wire.unpack(body)), InternalError)


def test_an_environment_that_is_no_utf_8_is_a_fault_of_the_configuration() -> None:
    """With the variable's name, and beside the other faults; it was an exception of Python's."""
    pools = os.fsdecode(b"{inventory='services.inventory:service\xdf")
    env = {"SAGACITY_SERVICES__POOLS": pools, "SAGACITY_SAGA__ATTEMPTS": "0"}
    with pytest.raises(ConfigError) as found:
        load(None, env)
    assert len(found.value.faults) == 2
    assert "it is not UTF-8 (environment SAGACITY_SERVICES__POOLS)" in found.value.text


@pytest.mark.parametrize("damage", [b"\xff", b'"\x80"', b'{"a":' * 100_000])
def test_a_cluster_json_that_is_no_utf_8_or_too_deep_is_damaged(
    tmp_path: Path, damage: bytes
) -> None:
    """What is wrong is said, and what to do; it was an exception of Python's."""
    directory = DataDirectory(tmp_path / "data")
    directory.open_or_create(2)
    file = directory.path / "cluster.json"
    bad = file.read_bytes().replace(b'"cluster_id":"', b'"more":' + damage + b',"cluster_id":"\xff')
    file.write_bytes(bad)
    with pytest.raises(Malformed, match="is damaged"):
        directory.read()
    assert file.read_bytes() == bad


@pytest.mark.parametrize("said", [b'{"router": "\xff"}', b"[" * 100_000])
def test_an_up_json_that_cannot_be_read_hides_no_other_cluster(tmp_path: Path, said: bytes) -> None:
    """Who looks for running clusters passes by what is none of ours."""
    base = tmp_path / f"sagacity-{os.getuid()}"
    run = base / "01234567"
    run.mkdir(parents=True, mode=0o700)
    (run / "lock").touch(mode=0o600)
    (run / "up.json").write_bytes(said)
    holder = os.open(run / "lock", os.O_RDWR)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert running({"XDG_RUNTIME_DIR": str(tmp_path)}) == []
    finally:
        os.close(holder)


# -- damaged files --------------------------------------------------------------------------------


def judged(path: Path) -> Found:
    """Verify a file, which stays as it is."""
    before = path.read_bytes()
    found = verify(path, CLUSTER, 0)
    assert path.read_bytes() == before
    assert found.faults
    return found


def changed(path: Path, statement: str, *values: object) -> None:
    """Make a journal, and change it behind its shard's back."""
    journal = open_at(path)
    filled(journal, 3)
    journal.close()
    db = apsw.Connection(str(path))
    list(db.execute(statement, values))
    db.close()


def test_a_journal_whose_owner_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    """One byte of a damaged page is enough; `verify` and the shard ended with an exception."""
    path = tmp_path / "journal.db"
    changed(path, "UPDATE identity SET cluster_id = CAST(x'ff' AS TEXT)")
    before = path.read_bytes()
    with pytest.raises(JournalRefused):
        SqliteJournal(path, CLUSTER, 0)
    assert path.read_bytes() == before
    assert "cannot be read" in judged(path).faults[0]


def read_whole(journal: SqliteJournal) -> None:
    """Read what a shard reads when it starts."""
    journal.checkpoint()
    list(journal.kept())
    list(journal.replay())
    journal.store.rows("SELECT head, prints FROM segment")


@pytest.mark.parametrize("table", ["segment", "kept", "checkpoint", "journal"])
def test_a_text_where_bytes_were_is_damage(tmp_path: Path, table: str) -> None:
    """Its bytes may be no UTF-8; the shard ended with an exception of Python's."""
    path = tmp_path / "journal.db"
    columns = {"segment": "prints", "kept": "record", "checkpoint": "counts", "journal": "batch"}
    changed(path, "SELECT 1")
    db = apsw.Connection(str(path))
    row = "1, x'6161', x'aa00aa00aa'" if table in ("segment", "journal") else "1, x'aa00aa00aa'"
    row = f"1, {row}" if table == "checkpoint" else row
    db.execute(f"DELETE FROM {table}")
    db.execute(f"INSERT INTO {table} VALUES ({row})")
    db.close()
    # A blob of five bytes has the type 22 in its row's header, a text of five bytes 23.
    image = path.read_bytes()
    at = image.rindex(b"\xaa\x00\xaa\x00\xaa")
    header = image.rindex(b"\x16", at - 16, at)
    path.write_bytes(image[:header] + b"\x17" + image[header + 1 :])
    with pytest.raises(UnicodeDecodeError):
        apsw.Connection(str(path)).execute(f"SELECT {columns[table]} FROM {table}").fetchall()
    judged(path)
    if table == "journal":  # its pages are looked at before anything is read
        with pytest.raises(JournalRefused):
            SqliteJournal(path, CLUSTER, 0)
        return
    journal = SqliteJournal(path, CLUSTER, 0)
    with pytest.raises((JournalRefused, JournalFailed)):
        read_whole(journal)
    abandon(journal)


def test_a_second_checkpoint_is_a_fault(tmp_path: Path) -> None:
    """A damaged page may show one, CHECK or not."""
    path = tmp_path / "journal.db"
    changed(path, "SELECT 1")
    db = apsw.Connection(str(path))
    db.execute("PRAGMA ignore_check_constraints=1")
    db.execute("INSERT INTO checkpoint VALUES (1, 1, x'00')")
    db.execute("INSERT INTO checkpoint VALUES (2, 1, x'00')")
    db.close()
    assert any("checkpoint" in fault for fault in judged(path).faults)


def test_a_kept_record_without_an_entry_is_a_fault(tmp_path: Path) -> None:
    """It was an IndexError of `journal verify`."""
    path = tmp_path / "journal.db"
    empty = codec.seal(codec.pack_record([Row(1, 1, [])]))
    changed(path, "INSERT INTO kept VALUES (1024, ?)", empty)
    assert "what is kept of saga 1024 does not begin with its start" in judged(path).faults


SOUND = Segment(1, 0, 4, 20, 100, 99, True)


@pytest.mark.parametrize(
    "damage",
    [{"bits": -1}, {"bits": 33}, {"id": -1}, {"id": 1 << 40}, {"width": 0}, {"width": 21}],
)
def test_a_segment_that_no_rows_can_hold_is_unreadable(
    tmp_path: Path, damage: dict[str, int]
) -> None:
    """Its fields say which rows are read; a negative shift, a key of 72 bits came of them."""
    segment = msgspec.structs.replace(SOUND, **damage)
    with pytest.raises(Unreadable):
        codec.unpack_segment(codec.pack_segment(segment))
    assert codec.unpack_segment(codec.pack_segment(SOUND)) == SOUND
    path = tmp_path / "journal.db"
    head = codec.pack_segment(segment)
    changed(path, "INSERT INTO segment VALUES (1, ?, ?)", head, codec.seal(b""))
    assert any("segment 1 is not what was written" in each for each in judged(path).faults)


@pytest.mark.parametrize(
    "packed", [b"", b"\x00", b"\xff", b"\x04" + bytes(67), b"\x20" + bytes(99)]
)
def test_prints_of_another_length_are_unreadable(packed: bytes) -> None:
    """The first byte says how many offsets follow."""
    with pytest.raises(Unreadable):
        codec.unpack_prints(codec.seal(packed))
    assert codec.unpack_prints(codec.seal(Prints.empty(0).pack() + bytes(4))).bits == 0


def test_a_block_that_states_a_huge_length_takes_no_memory() -> None:
    """Its length is what the library makes room for: 16 GiB here, the maximum notwithstanding."""
    squeezed = zstandard.ZstdCompressor(level=1).compress(b"a" * 1000)
    huge = squeezed[:4] + b"\xe0" + (16 << 30).to_bytes(8, "little") + squeezed[6:]
    with pytest.raises(Unreadable, match="longer than any"):
        codec.unpack_block(codec.seal(huge))


def test_a_record_or_description_that_is_no_utf_8_is_unreadable() -> None:
    """As a row of the journal was already."""
    started = Started(1024, "s1", "checkout", 1, b"", 1, "USD", 1, 1, 1, 1, {}, b"")
    row = codec.pack_record([Row(1, 1, [started])])
    with pytest.raises(Unreadable):
        codec.unpack_record(row.replace(b"checkout", b"checkou\xff"))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("NULL, 1", tuple[int, int]),
        ("1", tuple[int, int]),
        ("1, CAST(x'ff' AS TEXT)", tuple[int, str]),
        ("'c', 0, 1, NULL, x'', 1", Witness),
        ("'c', 0, 1, 1, 'text', 1", Witness),
    ],
)
def test_rows_of_the_kit_that_nobody_wrote_say_that_the_database_is_damaged(
    row: str, kind: type[object]
) -> None:
    """A damaged page gives NULL where the table says NOT NULL: a worker ended with a TypeError."""
    rows = apsw.Connection(":memory:").cursor()
    with pytest.raises(Malformed, match="the database is damaged"):
        read_rows(rows, f"SELECT {row}", kind)


@pytest.mark.parametrize(
    "rows", ["(0, 5, 3)", "(0, 1, 4), (0, 3, 9)", "(1024, 1, 2)", "(-1, 1, 2)"]
)
def test_forgotten_ranges_that_nobody_wrote_say_that_the_database_is_damaged(rows: str) -> None:
    """A worker that took them would refuse the wrong sagas."""
    with world_of(toy) as world:
        world.connection.execute(f"INSERT INTO forgotten (shard, low, high) VALUES {rows}")
        with pytest.raises(Malformed, match="the database is damaged"):
            World(toy, connection=world.connection)


def test_a_service_database_whose_origin_is_no_utf_8_is_refused() -> None:
    """As one that is another service's."""
    with world_of(toy) as world:
        world.connection.execute("UPDATE origin SET service = CAST(x'ff' AS TEXT)")
        with pytest.raises(Malformed, match="cannot make the tables of toy"):
            World(toy, connection=world.connection)
