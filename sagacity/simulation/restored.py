"""Restored: what a shard knows that has read its disk, beside every row that was ever committed.

A fold of all rows in memory, from which nothing is ever taken away, says what it has to know.
"""

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from sagacity.simulation.drive import PATH, Drive
from shard.codec import unpack_batch
from shard.entries import Started
from shard.finished import FinishedInMemory
from shard.generations import Generations
from shard.journal import JournalFailed, JournalRefused, SqliteJournal
from shard.sagas import Card, Definition, Tombstone
from shard.state import State

Rows = list[tuple[int, bytes, bytes]]


def differences(
    state: State, rows: Rows, definitions: Mapping[str, Definition], *, closely: bool = True
) -> Iterator[str]:
    """Say where a state is another than its rows give: what is counted, what runs, what ended.

    Args:
        state: of a shard.
        rows: that were committed, all of them.
        definitions: by name.
        closely: look at each finished saga as well.
    """
    twin, ids = State(definitions, FinishedInMemory()), []
    for seq, _, packed in rows:
        batch = unpack_batch(packed)
        twin.wall_ms = batch.wall_ms
        for entry in batch.entries:
            twin.apply(entry, seq)
            if isinstance(entry, Started):
                ids.append(entry.saga_id)
    if state.counts() != twin.counts():
        yield f"A11: its disk says {state.counts()}, its rows {twin.counts()}"
    if list(state.live) != list(twin.live):
        yield f"A1: on disk {list(state.live)} run, in the rows {list(twin.live)}"
    if not closely:
        return
    for saga_id in ids:
        found, known = _untied(state.finished.find(saga_id)), _untied(twin.finished.find(saga_id))
        if found != known:
            yield f"A11: {saga_id} ended as {known}, and {found} is found"


def faults(
    drive: Drive, definitions: Mapping[str, Definition], cluster_id: str, shard: int
) -> list[str]:
    """Take the power from a shard that has nothing to do, start from its disk, and compare."""
    drive.owner = None
    drive.lose_power(0, "drop")
    try:
        journal = SqliteJournal(PATH, cluster_id, shard, drive.name)
    except JournalRefused as error:
        return [f"D5: shard {shard}: {error.text}"]
    drive.opened.append(journal.store.db)
    generations = Generations(journal.store)
    state = State(definitions, generations)
    try:
        checkpoint = journal.checkpoint()
        if checkpoint is not None:
            state.restore(journal.kept(), checkpoint.counts)
        for seq, batch in journal.replay():
            state.wall_ms = batch.wall_ms
            for entry in batch.entries:
                state.apply(entry, seq)
        drive.took(journal.last)
        drive.reached["sagas found by their ids on disk"] += generations.base
        return list(differences(state, drive.rows, definitions))
    except (JournalRefused, JournalFailed) as error:
        return [f"D5: shard {shard}: {error}"]


def _untied(found: Card | Tombstone | None) -> Card | str | None:
    """Leave out where a saga's rows are, which a generation does not know."""
    if isinstance(found, Tombstone):
        return "a tombstone"
    return found and replace(found, seqs=b"")
