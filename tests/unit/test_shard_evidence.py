"""What a shard's file tells the checker, of journals whose rows are gone; and of damaged ones."""

import json
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import apsw
import pytest

from checker.evidence import Journal, OfShard, Story, read_line
from checker.folds import LIVE, fold_of
from cluster.directory import DataDirectory
from sagacity.errors import Malformed
from sagacity.wire import DECLINED, OK
from shard.entries import OF_NO_SAGA, Entry
from shard.evidence import read, tell
from tests.unit.disk_world import DiskWorld
from tests.unit.journal_world import CLUSTER


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    """A data directory of one shard."""
    made = DataDirectory(tmp_path / "data")
    made.open_or_create(1)
    return made


@pytest.fixture
def world(directory: DataDirectory) -> Iterator[DiskWorld]:
    """A shard in it that has compacted: most sagas have ended, two have not."""
    made = DiskWorld(directory.journal(0))
    made.step(*made.came("inventory", "payment", "shipping"))
    made.step(made.start("waits"))
    for at in range(40):
        made.step(made.start(f"s{at}"))
        made.drive(f"s{at}", OK, DECLINED if at % 10 == 9 else OK, OK)
    made.settle()
    made.step(made.start("began"))
    yield made
    with suppress(apsw.ConnectionClosedError):  # the tests close it before they read
        made.close()


def told_by_every_row(world: DiskWorld) -> dict[int, list[Entry]]:
    """Give the entries of each saga, as the twin that keeps its rows tells them."""
    told: dict[int, list[Entry]] = {}
    for _, batch in world.twin_journal.replay():
        for entry in batch.entries:
            if not isinstance(entry, OF_NO_SAGA):
                told.setdefault(entry.number, []).append(entry)
    return told


def found(directory: DataDirectory, world: DiskWorld) -> Journal:
    world.close()
    return read(directory.journal(0), CLUSTER, 0, world.definitions)


def test_what_a_compacted_journal_tells_is_what_all_its_rows_told(
    directory: DataDirectory, world: DiskWorld
) -> None:
    """A checker that saw only what is young would find every old fault unproven."""
    expected = told_by_every_row(world)
    assert len(expected) == 42
    journal = found(directory, world)
    assert journal.checkpoint > 0
    stories = {
        number: [each.started, *(entry for _, entry in each.told())]
        for number, each in journal.stories.items()
    }
    assert stories == expected
    assert (journal.faults, journal.strays, journal.unread) == ([], [], "")


def test_both_replays_give_the_live_state(directory: DataDirectory, world: DiskWorld) -> None:
    """PROOF 4: replay gives the live state, and checkpoint + tail gives the same."""
    live = fold_of(LIVE, world.engine.state)
    journal = found(directory, world)
    assert [fold.broken for fold in journal.folds] == ["", ""]
    for fold in journal.folds:
        assert fold.running == live.running
        assert fold.counts == {name: live.counts[name] for name in fold.counts}
    assert journal.folds[0].counts == live.counts


def test_a_block_that_is_gone_is_a_fault(directory: DataDirectory, world: DiskWorld) -> None:
    """Finished sagas that vanish must not pass for sagas that never were."""
    world.disk.store.db.execute("DELETE FROM block WHERE first = (SELECT max(first) FROM block)")
    assert found(directory, world).faults != []


def test_a_journal_that_cannot_be_read_says_so(directory: DataDirectory, world: DiskWorld) -> None:
    """What was read before the damage must not pass for all that there is."""
    world.disk.store.db.execute("UPDATE checkpoint SET counts = zeroblob(length(counts))")
    journal = found(directory, world)
    assert journal.unread
    assert journal.faults


@pytest.mark.parametrize("pragma", ["application_id = 7", "user_version = 1"])
def test_what_is_no_journal_of_this_version_is_refused(
    directory: DataDirectory, world: DiskWorld, pragma: str
) -> None:
    """A foreign file is no evidence, whatever its rows say."""
    world.close()
    with apsw.Connection(str(directory.journal(0))) as db:
        db.execute(f"PRAGMA {pragma}")
    with pytest.raises(Malformed):
        read(directory.journal(0), CLUSTER, 0, world.definitions)


def test_a_shard_that_never_served_has_an_empty_journal(directory: DataDirectory) -> None:
    """A cluster that was killed as it started is no damaged one."""
    assert read(directory.journal(0), CLUSTER, 0, {}) == Journal(0)
    directory.journal(0).touch()
    assert read(directory.journal(0), CLUSTER, 0, {}) == Journal(0)


def test_lines_give_back_what_was_told(directory: DataDirectory, world: DiskWorld) -> None:
    """The journals' reader and the rules live in different processes."""
    journal = found(directory, world)
    out = BytesIO()
    tell(journal, world.definitions, out)
    first, *others = [read_line(line) for line in out.getvalue().splitlines()]
    assert isinstance(first, OfShard)
    assert first.stories == len(others) == len(journal.stories)
    assert first.plans["checkout"].services == ["inventory", "payment", "shipping"]
    first.journal.stories = {each.number: Story(0, each.record) for each in others}
    assert first.journal == journal
    assert all(json.loads(line) for line in out.getvalue().splitlines())
