"""The kill rounds' evidence, of journals whose rows are gone."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest
from tests.chaos.evidence import JournalRead, read_journal

from cluster.directory import DataDirectory
from sagacity.wire import DECLINED, OK
from shard.entries import OF_NO_SAGA, Entry
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


def read(directory: DataDirectory, world: DiskWorld) -> JournalRead:
    world.close()
    return read_journal(directory, CLUSTER, 0)


def test_what_a_compacted_journal_tells_is_what_all_its_rows_told(
    directory: DataDirectory, world: DiskWorld
) -> None:
    """A checker that saw only what is young would find every old fault unproven."""
    expected = told_by_every_row(world)
    assert len(expected) == 42
    found = read(directory, world)
    assert found.checkpoint > 0
    stories = {number: [each.started, *each.entries] for number, each in found.stories.items()}
    assert stories == expected
    assert (found.gaps, found.strays) == ([], [])


def test_a_block_that_is_gone_is_a_gap(directory: DataDirectory, world: DiskWorld) -> None:
    """Finished sagas that vanish must not pass for sagas that never were."""
    world.disk.store.db.execute("DELETE FROM block WHERE first = (SELECT max(first) FROM block)")
    assert read(directory, world).gaps != []
