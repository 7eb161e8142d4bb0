"""`sagacity up` on directories that were made bad: refused in a sentence, and left as they are."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from cluster.directory import MEND, OTHER_VERSION
from cluster.private import start_private
from sagacity.client import Client
from tests.chaos.processes import of_cluster

UP: Final = (sys.executable, "-P", "-m", "cluster", "up", "--json", "--private")
AT_ONCE: Final = 3  # cases
FILE, JOURNAL, SERVICE = "cluster.json", "shard-0/journal.db", "services/payment.db"


ACCEPT: Final = f"{MEND}; if it is lost for good, `sagacity up --accept-data-loss`"


class Case(NamedTuple):
    """One way to be bad.

    Args:
        file: what is bad, and is named.
        harm: does it, given the file and the directory of another cluster.
        says: what else is said.
        hint: what to do.
    """

    file: str
    harm: Callable[[Path, Path], object]
    says: str
    hint: str = MEND


def cut(size: int) -> Callable[[Path, Path], object]:
    return lambda file, _: file.write_bytes(file.read_bytes()[:size])


def gone(file: Path, _: Path) -> None:
    file.unlink()


def garbage(file: Path, _: Path) -> None:
    file.write_bytes(b"something else " * 1000)


def a_directory(file: Path, _: Path) -> None:
    file.unlink()
    file.mkdir()


def a_file(directory: Path, _: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("no directory")


def a_loop(file: Path, _: Path) -> None:
    """Unreadable for anybody, root too."""
    file.unlink()
    file.symlink_to(file)


def by_sql(*statements: str) -> Callable[[Path, Path], object]:
    def harm(file: Path, _: Path) -> None:
        db = sqlite3.connect(file, isolation_level=None)
        for statement in statements:
            db.execute(statement)
        db.close()

    return harm


def another_programs(file: Path, other: Path) -> None:
    file.unlink()
    by_sql("CREATE TABLE theirs (x)")(file, other)


def of_another_cluster(file: Path, other: Path) -> None:
    shutil.copy(other / file.relative_to(file.parents[1]), file)


def renumbered(file: Path, _: Path) -> None:
    file.write_text(file.read_text().replace('"format":1', '"format":2'))


CASES: Final = {
    "file-empty": Case(FILE, cut(0), "is damaged"),
    "file-truncated": Case(FILE, cut(100), "is damaged"),
    "file-foreign": Case(FILE, lambda file, _: file.write_text('{"name": "x"}'), "is damaged"),
    "file-garbage": Case(FILE, garbage, "is damaged"),
    "file-newer": Case(FILE, renumbered, "has format 2", OTHER_VERSION),
    "file-missing": Case(FILE, gone, "cluster.json is missing"),
    "file-unreadable": Case(FILE, a_loop, "", ""),
    "shard-missing": Case("shard-0", lambda path, _: shutil.rmtree(path), "shard-0 is missing"),
    "shard-no-directory": Case("shard-0", a_file, "shard-0 is missing"),
    "services-missing": Case("services", lambda path, _: shutil.rmtree(path), "is missing"),
    "journal-missing": Case(JOURNAL, gone, "is gone, and this cluster has served with it", ACCEPT),
    "journal-empty": Case(JOURNAL, cut(0), "is empty, and this cluster has served", ACCEPT),
    "journal-of-1-byte": Case(JOURNAL, cut(1), "is no database"),
    "journal-of-512-bytes": Case(JOURNAL, cut(512), "malformed"),
    "journal-garbage": Case(JOURNAL, garbage, "not a database"),
    "journal-foreign": Case(JOURNAL, another_programs, "is no journal of Sagacity"),
    "journal-newer": Case(JOURNAL, by_sql("PRAGMA user_version = 99"), "has format version 99"),
    "journal-of-another-cluster": Case(JOURNAL, of_another_cluster, "belongs to"),
    "journal-of-another-shard": Case(JOURNAL, by_sql("UPDATE identity SET shard = 7"), "belongs"),
    "journal-with-a-hole": Case(
        JOURNAL, by_sql("DELETE FROM journal WHERE seq = 3"), "row 3 is missing"
    ),
    "journal-changed": Case(
        JOURNAL,
        by_sql("UPDATE journal SET batch = zeroblob(length(batch)) WHERE seq = 3"),
        "row 3 is not what was written",
    ),
    "service-missing": Case(SERVICE, gone, "is gone, and this cluster has served with it", ACCEPT),
    "service-empty": Case(SERVICE, cut(0), "is empty, and this cluster has served", ACCEPT),
    "service-of-1-byte": Case(SERVICE, cut(1), "is no database"),
    "service-garbage": Case(SERVICE, garbage, "not a database"),
    "service-foreign": Case(SERVICE, another_programs, "has other tables"),
    "service-newer": Case(SERVICE, by_sql("UPDATE origin SET format = 99"), "(99, 'payment'"),
    "service-of-another-cluster": Case(SERVICE, of_another_cluster, "this database is of"),
    "service-of-another-service": Case(
        SERVICE, by_sql("UPDATE origin SET service = 'shipping'"), "'shipping'"
    ),
    "service-no-file": Case(SERVICE, a_directory, "cannot open"),
}


class Found(NamedTuple):
    """What came of a case."""

    data: Path
    exit_code: int
    out: str
    err: str
    before: dict[str, bytes]
    after: dict[str, bytes]


def content(data: Path, file: str) -> dict[str, bytes]:
    """Give the content of every file but locks; a healthy shard beside a bad service may begin."""
    return {
        str(path.relative_to(data)): path.read_bytes()
        for path in sorted(data.rglob("*"))
        if path.is_file()
        and path.suffix != ".lock"
        and path.name != "lock"
        and not (file == SERVICE and path.name.startswith("journal.db"))
    }


def attempt(name: str, good: Path, other: Path, base: Path) -> Found:
    case, data = CASES[name], base / name / "data"
    shutil.copytree(good, data)
    runtime = base / name / "run"
    runtime.mkdir(mode=0o700)
    case.harm(data / case.file, other)
    before = content(data, case.file)
    done = subprocess.run(
        [*UP, "--data", str(data), "--workers", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime), "SAGACITY_LOG": "error"},
        timeout=60,
        check=False,
    )
    after = {file: text for file, text in content(data, case.file).items() if file in before}
    return Found(data, done.returncode, done.stdout, done.stderr, before, after)


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Found]]:
    """All cases, some at a time: each takes a second of mostly waiting."""
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    (base / "run").mkdir(mode=0o700)
    env = {"XDG_RUNTIME_DIR": str(base / "run"), "SAGACITY_LOG": "error"}
    good, other = base / "good", base / "other"
    for data in (good, other):
        flags = ("--shards", "1", "--workers", "1")
        with (
            start_private(data, arguments=flags, env=env) as cluster,
            Client(cluster.url) as client,
        ):
            client.checkout(
                user_id="u42", items=[{"sku": "abc123", "quantity": 1}], shipping_address="Main St"
            )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        attempts = {name: pool.submit(attempt, name, good, other, base) for name in CASES}
    yield {name: each.result() for name, each in attempts.items()}
    shutil.rmtree(base)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_directory_is_refused_in_a_sentence_and_left_as_it_is(
    name: str, found: dict[str, Found]
) -> None:
    """Exit 2; the file and what to do are named; no traceback, no process, no byte changed."""
    case, seen = CASES[name], found[name]
    assert seen.exit_code == 2, seen.err
    assert seen.out == ""
    named = [line for line in seen.err.splitlines() if case.file in line]
    assert len(named) == 1, seen.err
    assert case.says in named[0]
    assert case.hint in named[0]
    assert "Traceback" not in seen.err
    assert seen.err.splitlines()[-1].startswith("sagacity: ")
    assert seen.after == seen.before
    assert of_cluster(seen.data) == []
