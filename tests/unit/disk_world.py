"""A World whose journal is a file with generations and compactions, beside a twin that keeps all.

The twin is what the file would be if no row ever went: a State in memory and a journal in memory,
fed with the same entries. Whatever one is asked, the other must say the same.
"""

from pathlib import Path

from shard.compaction import Compaction
from shard.effects import Effects
from shard.generations import Generations
from shard.history import tell
from shard.journal import MemoryJournal, SqliteJournal
from shard.sagas import Card, Live
from shard.state import Counts, FinishedSagas, State
from tests.unit.journal_world import CLUSTER, abandon
from tests.unit.world import Rules, World

TAIL_BYTES = 2_000  # a few sagas: compactions all the time
SLICE_BYTES = 500  # and something happens while one is under way


class Twinned(World):
    """A World beside a journal that keeps all rows."""

    twin_journal: MemoryJournal


class DiskWorld(Twinned):
    """A World on a file; after each step the upkeep gets `slices` slices."""

    def __init__(self, path: Path, rules: Rules | None = None, *, slices: int = 1) -> None:
        self._path = path
        self.slices = slices
        self.twin_journal = MemoryJournal()
        super().__init__(rules)

    def _open(self) -> SqliteJournal:
        self.disk = SqliteJournal(self._path, CLUSTER, 0)
        return self.disk

    def _finished(self) -> FinishedSagas:
        self.generations = Generations(self.disk.store)
        self.compaction = Compaction(
            self.disk, self.generations, self._counts, TAIL_BYTES, SLICE_BYTES
        )
        return self.generations

    def _counts(self) -> Counts:
        return self.engine.state.counts()

    def _perform(self, effects: Effects) -> None:
        if effects.entries:
            epoch = self.engine.state.epoch
            self.twin_journal.commit(effects.entries, epoch, self.now.wall_ms)
        super()._perform(effects)
        for _ in range(self.slices):
            self.compaction.turn()

    def restart(self) -> Effects:
        """Lose the process: nothing is closed; what the file says goes on."""
        abandon(self.disk)
        self.journal = self._open()
        return super().restart()

    def close(self) -> None:
        """Let go of the file."""
        self.disk.close()

    def settle(self) -> None:
        """Do all the upkeep that is due."""
        while self.compaction.turn():
            pass


def assert_alike(world: Twinned) -> None:
    """Compare what the file says of every saga with what the twin says, histories included."""
    live: State = world.engine.state
    twin: State = world.replica
    assert len(live.finished) == len(twin.finished)
    for card in twin.finished.page(0, len(twin.finished), len(twin.finished)):
        found = live.finished.find(card.saga_id)
        assert isinstance(found, Card)
        expected = [getattr(card, name) for name in Card.__struct_fields__ if name != "seqs"]
        assert [getattr(found, n) for n in Card.__struct_fields__ if n != "seqs"] == expected
        _assert_same_history(world, found, card)
    for saga_id, saga in twin.by_id.items():
        _assert_same_history(world, live.by_id[saga_id], saga)


def _assert_same_history(world: Twinned, one: Live | Card, other: Live | Card) -> None:
    kept, whole = one.dossier(), other.dossier()
    expected = world.twin_journal.history(whole.number, whole.seqs)
    assert tell(kept, world.record(kept), world.definitions) == tell(
        whole, expected, world.definitions
    )
