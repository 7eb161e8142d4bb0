"""`sagacity check` on what a real cluster left, killed at once with everything and gone on since.

Reading alone is shown too: no byte of the evidence changes, neither its WALs. And the self-test on
files: a row of any table, changed behind the cluster's back, is seen or refused.
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw
import pytest
from msgspec.structs import replace

from cluster import checking
from cluster.cli import main
from cluster.directory import DataDirectory
from cluster.resting import opened, service_rows
from sagacity.checker.evidence import Evidence
from sagacity.checker.rules import judge
from sagacity.checker.verdict import HOLDS
from sagacity.errors import EXIT_UNBALANCED, Malformed
from services.checkout import checkout
from shard.evidence import read
from shard.sagas import Definition
from tests.integration.checked_world import KILL, SHARDS, contents, made
from tests.unit.checked import RETRY

SEED: Final = 1
# A shard's fold needs them; how often an attempt is made again changes none of it here.
DEFINITIONS: Final = {"checkout": Definition(checkout, RETRY)}
# What nothing speaks against: docs/checker.md says why.
BLIND: Final = {"origin.trials"}
GONE: Final = {"witness.seq", "witness.chain"}  # of a row that is gone with the checkpoint
ONLY_FAR: Final = {"fence.epoch"}  # one more may have come with a command that was never answered


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A folder of evidence with a short path: sockets live below it."""
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    made(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def evidence(base: Path) -> Evidence:
    """All of it, read once."""
    return checking.gather(base)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run `sagacity check`; give its exit code, stdout and stderr."""
    code = main(["check", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_all_invariants_hold_after_everything_was_killed(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """E6: from the client's record, journals, databases and metrics; and the checker can fail."""
    before = contents(base)
    code, out, _ = run(capsys, base, "--json", "--self-test", "1")
    report = json.loads(out)
    verdicts = {each["number"]: (each["verdict"], each["why"]) for each in report["invariants"]}
    assert verdicts == {number: ("holds", []) for number in range(1, 13)}, report
    assert report["self_test"]["unseen"] == []
    assert report["self_test"]["changes"] > 200
    assert (code, report["holds"], report["sagas"]) == (0, True, 44)
    assert contents(base) == before


def test_looking_changes_no_byte_of_what_a_kill_left(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last rows stand in WALs that nobody has copied back; they count, and stay there."""
    killed = base / "killed"
    wals = [file for file in killed.rglob("*-wal") if file.stat().st_size]
    assert len(wals) == SHARDS + 3
    before = contents(killed)
    code, out, _ = run(capsys, killed, "--only", "3,4,6-10")
    assert code == 0, out
    assert "NOT ALL" not in out
    assert contents(killed) == before


def test_what_cannot_be_told_is_no_success(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a client's record nobody knows what was acknowledged."""
    code, out, _ = run(capsys, base / "data")
    assert code == EXIT_UNBALANCED
    assert "1: cannot tell: there is no client's record" in out
    given = ["--record", base / "client.jsonl"]
    assert run(capsys, base / "data", *given)[0] == 0
    code, out, _ = run(capsys, base / "killed", *given, "--findings", "1")
    assert code == EXIT_UNBALANCED  # what was acknowledged after the copy is not in it
    assert "violated" in out


def test_a_damaged_row_is_a_finding(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage is what the checker is for: no bad input, but a violated invariant, and said where."""
    data = Path(shutil.copytree(base / "data", tmp_path / "data"))
    change(DataDirectory(data).journal(1), "UPDATE checkpoint SET counts = zeroblob(40)")
    code, out, _ = run(capsys, data, "--json")
    assert code == EXIT_UNBALANCED
    found = {each["number"]: each for each in json.loads(out)["invariants"]}
    assert found[3]["verdict"] == "violated"
    assert found[3]["findings"][0]["where"] == "journal 1"
    assert found[6]["verdict"] == "cannot tell"


# -- bad input ----------------------------------------------------------------------------------


def change(file: Path, statement: str, *values: Any) -> None:
    """Change a database behind everybody's back."""
    with closing(apsw.Connection(str(file))) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute(statement, values)
        assert db.changes() or not statement.startswith(("UPDATE", "DELETE"))


def _truncated(base: Path, data: Path) -> list[object]:
    text = (base / "client.jsonl").read_bytes()
    (data.parent / "cut.jsonl").write_bytes(text[: len(text) // 2])
    return [data, "--record", data.parent / "cut.jsonl"]


def _foreign_record(base: Path, data: Path) -> list[object]:
    return [data, "--record", data / "cluster.json"]


def _no_record(base: Path, data: Path) -> list[object]:
    return [data, "--record", data / "nothing"]


def _no_cluster(base: Path, data: Path) -> list[object]:
    return [data / "services"]


def _foreign_journal(base: Path, data: Path) -> list[object]:
    change(DataDirectory(data).journal(0), "PRAGMA application_id = 7")
    return [data]


def _old_journal(base: Path, data: Path) -> list[object]:
    change(DataDirectory(data).journal(0), "PRAGMA user_version = 1")
    return [data]


def _old_cluster(base: Path, data: Path) -> list[object]:
    file = data / "cluster.json"
    file.write_bytes(file.read_bytes().replace(b'"format":1', b'"format":0'))
    return [data]


def _old_service(base: Path, data: Path) -> list[object]:
    change(DataDirectory(data).service("payment"), "UPDATE origin SET format = 1")
    return [data]


def _foreign_service(base: Path, data: Path) -> list[object]:
    change(DataDirectory(data).service("payment"), "DROP TABLE origin")
    return [data]


def _no_database(base: Path, data: Path) -> list[object]:
    DataDirectory(data).service("payment").write_bytes(b"no database" * 1_000)
    return [data]


def _future_journal(base: Path, data: Path) -> list[object]:
    change(DataDirectory(data).journal(0), "PRAGMA user_version = 99")
    return [data]


def _future_cluster(base: Path, data: Path) -> list[object]:
    file = data / "cluster.json"
    file.write_bytes(file.read_bytes().replace(b'"format":1', b'"format":2,"more":1'))
    return [data]


def _future_service(base: Path, data: Path) -> list[object]:
    change(DataDirectory(data).service("payment"), "UPDATE origin SET format = 99")
    return [data]


def _future_record(base: Path, data: Path) -> list[object]:
    text = (base / "client.jsonl").read_bytes()
    (data.parent / "new.jsonl").write_bytes(text.replace(b'"format":1', b'"format":2', 1))
    return [data, "--record", data.parent / "new.jsonl"]


def _strange_request(base: Path, data: Path) -> list[object]:
    lines = (base / "client.jsonl").read_bytes().replace(b'"kind":"start"', b'"kind":"dance"')
    (data.parent / "strange.jsonl").write_bytes(lines)
    return [data, "--record", data.parent / "strange.jsonl"]


def _missing_path(base: Path, data: Path) -> list[object]:
    return [data / "nowhere"]


def _file_for_a_directory(base: Path, data: Path) -> list[object]:
    return [base / "client.jsonl"]


def _too_long(base: Path, data: Path) -> list[object]:
    return [data / ("x" * 300)]


def _directory_for_a_record(base: Path, data: Path) -> list[object]:
    return [data, "--record", data]


def _cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def _half_journal(base: Path, data: Path) -> list[object]:
    file = DataDirectory(data).journal(1)
    _cut(file, file.stat().st_size // 2)
    return [data]


def _start_of_a_journal(base: Path, data: Path) -> list[object]:
    _cut(DataDirectory(data).journal(0), 10)
    return [data]


def _empty_journal(base: Path, data: Path) -> list[object]:
    _cut(DataDirectory(data).journal(0), 0)
    return [data]


def _half_service(base: Path, data: Path) -> list[object]:
    file = DataDirectory(data).service("shipping")
    _cut(file, file.stat().st_size - 1)
    return [data]


def _text_for_a_journal(base: Path, data: Path) -> list[object]:
    DataDirectory(data).journal(0).write_text("no journal\n" * 1_000)
    return [data]


def _directory_for_a_journal(base: Path, data: Path) -> list[object]:
    file = DataDirectory(data).journal(0)
    file.unlink()
    file.mkdir()
    return [data]


def _no_such_invariant(base: Path, data: Path) -> list[object]:
    return [data, "--only", "3,13"]


BAD: Final = {
    "truncated record": (_truncated, "truncated"),
    "foreign record": (_foreign_record, "no client's record"),
    "no record": (_no_record, "cannot read"),
    "no cluster": (_no_cluster, "holds no cluster"),
    "foreign journal": (_foreign_journal, "no journal of Sagacity"),
    "old journal": (_old_journal, "format version 1; this version reads"),
    "old directory": (_old_cluster, "has format 0; this version reads 1"),
    "old service": (_old_service, "has format 1; this version reads"),
    "foreign service": (_foreign_service, "no database of a service of ours"),
    "no database": (_no_database, "is no database"),
    "future journal": (_future_journal, "format version 99; this version reads"),
    "future directory": (_future_cluster, "has format 2; this version reads 1"),
    "future service": (_future_service, "has format 99; this version reads"),
    "future record": (_future_record, "has format 2; this version reads 1"),
    "strange request": (_strange_request, "there is no kind of request 'dance'"),
    "missing path": (_missing_path, "there is no "),
    "file for a directory": (_file_for_a_directory, "is no directory"),
    "name too long": (_too_long, "cannot read"),
    "directory for a record": (_directory_for_a_record, "Is a directory"),
    "half a journal": (_half_journal, "is truncated"),
    "start of a journal": (_start_of_a_journal, "is truncated"),
    "empty journal": (_empty_journal, "is truncated: it is empty"),
    "service without its last byte": (_half_service, "is truncated"),
    "text for a journal": (_text_for_a_journal, "is no database"),
    "directory for a journal": (_directory_for_a_journal, "Is a directory"),
    "no such invariant": (_no_such_invariant, "the invariants are 1 to 12"),
}


@pytest.mark.parametrize("name", BAD)
def test_evidence_that_cannot_be_used_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A clear message, exit code 2, and everything stays as it was."""
    spoil, says = BAD[name]
    data = Path(shutil.copytree(base / "data", tmp_path / "data"))
    words = spoil(base, data)
    before = contents(tmp_path)
    code, _, err = run(capsys, *words)
    assert (code, contents(tmp_path) == before) == (2, True)
    assert says in err


def test_a_pipe_among_the_databases_is_refused_and_not_waited_for(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody writes to it: whoever opens it waits for ever."""
    data = Path(shutil.copytree(base / "data", tmp_path / "data"))
    os.mkfifo(data / "services" / "pipe.db")
    code, _, err = run(capsys, data)
    assert (code, "pipe.db is no file" in err) == (2, True)


def test_a_pipe_in_place_of_a_record_is_refused_and_not_waited_for(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the folder of the evidence or named by itself."""
    os.mkfifo(tmp_path / "c1.jsonl")
    code, _, err = run(capsys, base / "data", "--record", tmp_path / "c1.jsonl")
    assert (code, "c1.jsonl is no file" in err) == (2, True)
    shutil.copytree(base / "data", tmp_path / "data")
    code, _, err = run(capsys, tmp_path)
    assert (code, "c1.jsonl is no file" in err) == (2, True)


@pytest.mark.parametrize("file", ["lock", "shard-1/lock", "services/payment.lock"])
def test_a_directory_in_use_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    """What is read while somebody writes shows nothing: exit code 2, for scripts as JSON too."""
    import fcntl

    data = Path(shutil.copytree(base / "data", tmp_path / "data"))
    with (data / file).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, out, err = run(capsys, data, "--json")
    assert code == 2
    assert "is in use by process" in err
    assert json.loads(out)["code"] == Malformed.code


# -- the self-test on files ---------------------------------------------------------------------


def is_red(evidence: Evidence) -> bool:
    """Say whether the rules find something, or cannot tell what they could."""
    return any(verdict.verdict != HOLDS for verdict in judge(evidence))


def with_service(evidence: Evidence, file: Path) -> Evidence:
    """Give evidence with one service read anew."""
    with opened(file) as db:
        rows = service_rows(db, file.stem)
    return replace(evidence, services={**evidence.services, file.stem: rows})


def with_journal(evidence: Evidence, data: DataDirectory, shard: int) -> Evidence:
    """Give evidence with one journal read anew."""
    journal = read(data.journal(shard), evidence.cluster_id, shard, DEFINITIONS)
    journals = [*evidence.journals]
    journals[shard] = journal
    return replace(evidence, journals=journals)


def columns(file: Path) -> dict[str, list[str]]:
    """Give the columns of each table that has rows."""
    with closing(apsw.Connection(str(file))) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE sql <> ''")]
        return {
            str(table): [str(row[1]) for row in db.execute(f"PRAGMA table_info({table})")]
            for table in tables
            if db.execute(f"SELECT count(*) FROM {table}").get
        }


_OTHER: Final = (
    "CASE typeof({0}) WHEN 'integer' THEN {0} + 1 WHEN 'text' THEN {0} || 'x'"
    " WHEN 'blob' THEN CAST(substr({0}, 1, length({0}) - 1)"
    # A checksum ends so in one of 256 rows: then nothing would be changed.
    " || CASE WHEN substr({0}, -1) = x'01' THEN char(2) ELSE char(1) END AS BLOB) ELSE 'x' END"
)


def changes_of(file: Path, rng: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Give what to do to a random row of each table: change each column, and leave it out."""
    for table, names in columns(file).items():
        with closing(apsw.Connection(str(file))) as db:
            count: Any = db.execute(f"SELECT count(*) FROM {table}").get
        row = f"LIMIT 1 OFFSET {rng.randrange(count)}"
        key = names[0]
        where = f"WHERE {key} = (SELECT {key} FROM {table} ORDER BY {key} {row})"
        for name in names:
            if f"{table}.{name}" not in BLIND:
                set_to = _OTHER.format(name)
                far = f"{name} = CASE typeof({name}) WHEN 'integer' THEN {name} + 99999 END"
                near = [f"UPDATE {table} SET {name} = {set_to} {where}"]
                near = [] if f"{table}.{name}" in ONLY_FAR else near
                yield f"{table}.{name}", [*near, f"UPDATE {table} SET {far} {where}"]
        yield f"{table} gone", [f"DELETE FROM {table} {where}"]


def apply(file: Path, statements: list[str]) -> None:
    """Do the first of these that the table's own constraints let through."""
    for statement in statements:
        try:
            change(file, statement)
        except apsw.ConstraintError:
            continue
        return
    raise AssertionError(f"nothing could be changed: {statements}")


def test_one_changed_row_of_a_services_database_is_seen(
    base: Path, evidence: Evidence, tmp_path: Path
) -> None:
    """PROOF 12, on files: each column of each table, and each row left out."""
    rng = random.Random(SEED)
    unseen = []
    tried = 0
    for name in evidence.services:
        whole = DataDirectory(base / "data").service(name)
        for what, statements in changes_of(whole, rng):
            file = tmp_path / whole.name
            shutil.copyfile(whole, file)
            apply(file, statements)
            tried += 1
            try:
                red = is_red(with_service(evidence, file))
            except Malformed:
                red = True
            gone = what in GONE and _is_before_checkpoint(evidence, name)
            if not red and not gone:
                unseen.append(f"{name}.{what}")
    assert unseen == []
    assert tried > 60


def _is_before_checkpoint(evidence: Evidence, name: str) -> bool:
    """Say whether a service has seen a row that is gone: nobody knows its chain any more."""
    return any(
        seen.seq < evidence.journals[seen.shard].checkpoint
        for seen in evidence.services[name].witnesses
    )


def test_one_changed_row_of_a_journal_is_seen(
    base: Path, evidence: Evidence, tmp_path: Path
) -> None:
    """PROOF 12, on files; rows, checkpoint, records, blocks and segments."""
    rng = random.Random(SEED)
    unseen = []
    tables = set()
    for shard in range(SHARDS):
        whole = DataDirectory(base / "data").journal(shard)
        for what, statements in changes_of(whole, rng):
            data = DataDirectory(tmp_path)
            data.shard(shard).mkdir(exist_ok=True)
            shutil.copyfile(whole, data.journal(shard))
            apply(data.journal(shard), statements)
            tables.add(what.partition(".")[0])
            if not is_red(with_journal(evidence, data, shard)):
                unseen.append(f"{shard}: {what}")
    assert unseen == []
    # A compaction may have taken the last row of a journal.
    assert {"identity", "checkpoint", "block", "segment", "part"} <= tables


def test_a_fault_that_was_planned_is_in_the_record(evidence: Evidence) -> None:
    """The round is void unless everybody was really killed."""
    assert evidence.record is not None
    assert [(each.fault, each.hit >= 9) for each in evidence.record.struck] == [(KILL, True)]
