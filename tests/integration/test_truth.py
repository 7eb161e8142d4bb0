"""Real processes on copies that are old: refused, named, untouched; and a loss that is accepted."""

from collections.abc import Iterator

import pytest

from sagacity.wire import SHOW
from shard.guard import LOSS_GAP
from tests.integration.shard_world import ShardWorld, opened


@pytest.fixture
def world() -> Iterator[ShardWorld]:
    """A shard that is not started yet, and its twins."""
    with opened() as made:
        yield made


def journal_of(world: ShardWorld) -> dict[str, bytes]:
    """Give the journal's files; an empty WAL says nothing."""
    files = world.data.shard(0).glob("journal.db*")
    return {file.name: file.read_bytes() for file in files if file.stat().st_size}


def put_back(world: ShardWorld, files: dict[str, bytes]) -> None:
    for file in world.data.shard(0).glob("journal.db*"):
        file.unlink()
    for name, content in files.items():
        (world.data.shard(0) / name).write_bytes(content)


def with_an_old_journal(world: ShardWorld) -> dict[str, bytes]:
    """Run sagas, copy the journal, run more, lose the process; give the copy, which is put back."""
    process = world.started()
    world.answer(world.start_saga("s1"))
    copy = journal_of(world)
    world.answer(world.start_saga("s2"))
    world.kill(process)
    put_back(world, copy)
    return copy


def test_yesterdays_journal_is_refused_again_and_again_and_not_touched(world: ShardWorld) -> None:
    """D11: it looks healthy; the services know better. Exit code 2, and what to do."""
    yesterday = with_an_old_journal(world)
    for _ in range(3):
        process = world.start()
        assert world.ended(process) == 2
        (line,) = [e for e in world.log(process) if e["event"] == "shard_refused"]
        assert "the journal of shard 0 is old" in line["text"]
        assert "--accept-data-loss" in line["text"]
        assert journal_of(world) == yesterday
        world.until(lambda: not world.connected, "the end of the connection")


def test_yesterdays_service_database_is_refused_and_named(world: ShardWorld) -> None:
    """D11: its stock or money would be given out twice."""
    process = world.started()
    world.answer(world.start_saga("s1"))
    payment = world.workers["payment"]
    yesterday = payment.witness
    world.answer(world.start_saga("s2"))
    world.kill(process)
    today, payment.witness = payment.witness, yesterday
    before = journal_of(world)
    for _ in range(2):
        process = world.start()
        assert world.ended(process) == 2
        assert "the database of payment is old" in world.log(process)[-1]["text"]
        assert journal_of(world) == before
        world.until(lambda: not world.connected, "the end of the connection")
    payment.witness = today  # the newer copy is put back
    world.started()
    assert world.answer(world.start_saga("s3"))[1]["status"] == "COMPLETED"


def test_an_accepted_loss_goes_on_and_the_next_start_needs_no_flag(world: ShardWorld) -> None:
    """Explicit, for one start; what was done twice is then in the services' books."""
    with_an_old_journal(world)
    process = world.started("--accept-data-loss")
    assert world.answer(world.ask(SHOW, "s2"))[0] == 20, "it was lost"
    assert world.answer(world.start_saga("s2"))[1]["status"] == "COMPLETED"
    number = max(command.number for command in world.workers["payment"].seen)
    assert number >> 10 > LOSS_GAP
    world.kill(process)
    process = world.started()
    world.until(lambda: world.report(process.pid, "up"), "a report")
    report = world.report(process.pid, "up")
    assert report is not None
    assert LOSS_GAP < report.facts["epoch"] < LOSS_GAP + 10
    assert world.answer(world.start_saga("s3"))[1]["status"] == "COMPLETED"


def test_a_shard_waits_for_a_service_before_it_writes(world: ShardWorld) -> None:
    """Nobody is here who could say that the journal is old. Reads are answered."""
    process = world.started()
    world.answer(world.start_saga("s1"))
    world.kill(process)
    before = journal_of(world)
    for name in list(world.workers):
        world.lose_worker(name)
    process = world.start()
    world.until(lambda: world.connected, "a connection")
    assert world.answer(world.ask(SHOW, "s1"))[1]["status"] == "COMPLETED"
    assert world.report(process.pid, "starting")
    assert not world.report(process.pid, "up")
    assert journal_of(world) == before


def test_a_late_worker_on_an_old_database_is_told_why(world: ShardWorld) -> None:
    """The shard serves the others."""
    process = world.started()
    world.answer(world.start_saga("s1"))
    payment = world.workers["payment"]
    world.lose_worker("payment")
    late = type(payment)(world.ctx, world.run.workers(0), world.cluster.cluster_id, "payment")
    world.add_worker("payment", late)
    world.until(lambda: late.rejected, "a rejection")
    assert "the database of payment is old" in late.rejected
    events = [line["event"] for line in world.log(process)]
    assert "worker_turned_away" in events
    assert process.poll() is None


def test_the_reserve_is_there_and_private(world: ShardWorld) -> None:
    """4 MiB for the sagas in flight."""
    world.started()
    world.answer(world.start_saga("s1"))
    reserve = world.data.shard(0) / "reserve"
    world.until(lambda: reserve.exists() and reserve.stat().st_size == 4 << 20, "a reserve")
    assert reserve.stat().st_mode & 0o777 == 0o600
