"""Lists of forgotten sagas between real processes: killed workers, late commands, a cluster."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from cluster.directory import DataDirectory
from cluster.private import start_private
from config.load import load_catalog
from sagacity import wire
from sagacity.client import Client
from sagacity.executor import make_tables, open_file
from sagacity.forgotten import ROWS_MAX
from sagacity.ids import count_of, number_of
from sagacity.messages import ChargePayment
from sagacity.ranges import ranges_of
from sagacity.wire import Answers, Forget, Forgot, Witness
from services.payment import service as payment
from shard.entries import Entry, Finished, ForgetTaken, Forgotten
from shard.journal import SqliteJournal
from tests.integration.test_supervisor import wait_until
from tests.integration.twin_shard import PATIENCE_S, Place, TwinShard, command, place
from tests.unit.world import order

SERVICES = ("inventory", "payment", "shipping")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path / "data") as made:
        yield made


def charge(count: int, attempt: int = 1) -> wire.Command:
    return command(count, 2, ChargePayment(f"checkout{count}-0", 2, "u42", 500), attempt=attempt)


def send_list(here: Place, peer: bytes, high: int, list_number: int = 1, epoch: int = 1) -> None:
    """Have counts 1 to `high` forgotten."""
    witness = Witness(here.cluster.cluster_id, 0, epoch, 1, bytes(16), number_of(high, 0))
    here.shards[0].send_frame(peer, wire.encode(Forget(witness, list_number, [(1, high)])))


def until_forgot(shard: TwinShard, list_number: int = 1) -> None:
    shard.until(lambda seen: Forgot(0, list_number) in seen.forgot, "answer to the list")


def remembered(file: Path) -> set[int]:
    """Give the numbers of the sagas that a service's database remembers."""
    with closing(apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READONLY)) as db:
        return {row[0] for row in db.execute("SELECT DISTINCT key >> 5 FROM barrier")}


def test_a_worker_forgets_what_a_list_names_and_refuses_it_for_good(here: Place) -> None:
    """B4: also the next worker, which was not there when the list came."""
    shard = here.shards[0]
    process = here.start("payment")
    peer = shard.worker()
    shard.ask(peer, charge(1), charge(2), charge(3))
    send_list(here, peer, 2)
    until_forgot(shard)
    late = [wire.OUTCOMES[answer.outcome] for answer in shard.ask(peer, charge(1), charge(3))]
    assert late == ["refused_forgotten", "ok"]
    process.kill()
    process.wait(PATIENCE_S)
    here.start("payment")
    answers = shard.ask(shard.worker(seen_before=1), charge(2, attempt=2), charge(4))
    assert [wire.OUTCOMES[answer.outcome] for answer in answers] == ["refused_forgotten", "ok"]
    assert remembered(here.directory.service("payment")) == {3 << 10, 4 << 10}


@pytest.fixture
def long_list(here: Place) -> int:
    """A database that remembers many sagas already; gives how many."""
    sagas = 20 * ROWS_MAX
    with closing(open_file(here.directory.service("payment"))) as connection:
        make_tables(connection, payment, here.cluster.cluster_id, load_catalog())
        with connection:
            connection.executemany(
                "INSERT INTO barrier VALUES (?, 's', 0, x'80')",
                ((number_of(count, 0) << 5 | 4,) for count in range(1, sagas + 1)),
            )
    return sagas


def test_commands_pass_while_a_long_list_is_forgotten(here: Place, long_list: int) -> None:
    """It is done in turns: who charges now does not wait for what was years ago."""
    shard = here.shards[0]
    process = here.start("payment")
    peer = shard.worker()
    process.send_signal(signal.SIGSTOP)  # so that both are there when it looks
    send_list(here, peer, long_list)
    shard.send(peer, charge(long_list + 1))
    process.send_signal(signal.SIGCONT)
    until_forgot(shard)
    assert shard.answers[0].outcome == wire.OK
    assert shard.kinds.index(Answers) < shard.kinds.index(Forgot)
    assert remembered(here.directory.service("payment")) == {number_of(long_list + 1, 0)}


def test_a_list_is_answered_only_when_all_of_it_is_durable(here: Place, long_list: int) -> None:
    """The worker ends in the middle: half is forgotten, nothing is said, the list comes again."""
    shard = here.shards[0]
    file = here.directory.service("payment")
    with closing(apsw.Connection(str(file))) as db:
        db.execute(
            f"CREATE TRIGGER stumble BEFORE DELETE ON barrier WHEN old.key >> 15 = {long_list // 2}"
            " BEGIN SELECT RAISE(ABORT, 'here'); END"
        )
    process = here.start("payment")
    send_list(here, shard.worker(), long_list)
    assert process.wait(PATIENCE_S) != 0
    shard.receive()
    assert shard.forgot == []
    left = remembered(file)
    assert 0 < len(left) < long_list
    with closing(apsw.Connection(str(file))) as db:
        db.execute("DROP TRIGGER stumble")
    here.start("payment")
    peer = shard.worker(seen_before=1)
    lowest = count_of(min(left))
    send_list(here, peer, long_list)
    send_list(here, peer, long_list)  # twice: the shard repeats it after 5 s
    answers = shard.ask(peer, charge(lowest - 1), charge(long_list + 1))
    assert [wire.OUTCOMES[answer.outcome] for answer in answers] == ["refused_forgotten", "ok"]
    until_forgot(shard)
    assert remembered(file) == {number_of(long_list + 1, 0)}


def test_lists_of_others_are_dropped_and_the_worker_lives(here: Place) -> None:
    """Another cluster's, and one of an owner that was taken over since."""
    shard = here.shards[0]
    here.start("payment")
    peer = shard.worker()
    shard.ask(peer, charge(1), charge(2))
    foreign = Witness("f" * 32, 0, 9, 9, b"", number_of(9, 0))
    shard.send_frame(peer, wire.encode(Forget(foreign, 1, [(1, 2)])))
    send_list(here, peer, 2, list_number=2, epoch=0)
    send_list(here, peer, 1, list_number=3)
    until_forgot(shard, 3)
    assert shard.forgot == [Forgot(0, 3)]
    assert remembered(here.directory.service("payment")) == {2 << 10}


# -- a whole cluster ------------------------------------------------------------------------------


@pytest.fixture
def data() -> Iterator[Path]:
    """A short path: sockets live below it."""
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    yield path / "data"
    shutil.rmtree(path)


def journal_of(directory: DataDirectory, shard: int) -> tuple[SqliteJournal, list[Entry]]:
    """Open the journal of a cluster at rest; give its entries too."""
    journal = SqliteJournal(directory.journal(shard), directory.read().cluster_id, shard)
    journal.checkpoint()
    return journal, [entry for _, batch in journal.replay() for entry in batch.entries]


def test_a_whole_cluster_forgets_a_list_once_for_good(data: Path) -> None:
    """From a shard's journal to every service and back; what no list names is as it was."""
    env = {**os.environ, "SAGACITY_LOG": "warning"}
    flags = ["--shards", "1", "--workers", "1"]
    directory = DataDirectory(data)
    with start_private(data, arguments=flags, env=env) as cluster, Client(cluster.url) as client:
        for at in range(6):
            user = "u999" if at == 2 else "u42"
            client.start(order(f"s{at}", user_id=user))
    journal, entries = journal_of(directory, 0)
    final = [entry.number for entry in entries if isinstance(entry, Finished)]
    assert len(final) == 6
    named = ranges_of(count_of(number) for number in final[:4])
    journal.commit([Forgotten(1, named, 4)], 1, int(time.time() * 1000))
    journal.close()
    files = [directory.service(name) for name in SERVICES]
    with start_private(data, arguments=flags, env=env) as cluster, Client(cluster.url) as client:
        kept = set(final[4:])
        assert wait_until(lambda: all(remembered(file) == kept for file in files), PATIENCE_S)
        told = client.start(order("again"))
        assert told["status"] == "COMPLETED"
        assert client.start(order("s5"))["saga_id"] == "s5"
    journal, entries = journal_of(directory, 0)
    journal.close()
    taken = [entry for entry in entries if isinstance(entry, ForgetTaken)]
    assert sorted(taken, key=lambda each: each.service) == [ForgetTaken(n, 1) for n in SERVICES]
