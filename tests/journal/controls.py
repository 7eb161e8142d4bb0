"""Controls: shards that are broken on purpose. A proof that finds nothing in them proves nothing.

synchronous_off       no commit is synced
synchronous_normal    in WAL mode a commit is not synced, a write-back is
receipt_before_sync   a receipt is given, and then the row is committed
rows_swept_early      rows go before the generation that stands for them is there
syncs_do_nothing      the disk says that it has synced, and has not
"""

from collections.abc import Callable
from typing import Any, Final

from sagacity.simulation.vfs import SYNC, MemoryDisk
from shard.entries import Entry
from shard.journal import Receipt, SqliteJournal
from shard.state import FinishedSagas
from shard.store import Store
from tests.journal.workloads import small
from tests.journal.world import JournalWorld, NotingJournal, Story


class _Off(JournalWorld):
    def _open(self) -> SqliteJournal:
        journal = super()._open()
        list(journal.store.db.execute("PRAGMA synchronous=OFF"))
        return journal


class _Normal(JournalWorld):
    def _open(self) -> SqliteJournal:
        journal = super()._open()
        list(journal.store.db.execute("PRAGMA synchronous=NORMAL"))
        return journal


class _Hasty(NotingJournal):
    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        begun = len(self._disk.log)
        receipt = super().commit(entries, epoch, wall_ms)
        self._acks[-1] = type(self._acks[-1])(begun, receipt.seq)
        return receipt


class _HastyWorld(JournalWorld):
    def _open(self) -> SqliteJournal:
        self.disk = _Hasty(self.memory, self.acks)
        return self.disk


class _SweptWorld(JournalWorld):
    def _finished(self) -> FinishedSagas:
        made = super()._finished()
        enter, store = self.compaction._enter, self.disk.store

        def early(sorting: Any, checkpoint: Any) -> None:
            _delete_rows(store, checkpoint.seq)
            enter(sorting, checkpoint)

        self.compaction._enter = early  # type: ignore[method-assign]  # broken on purpose
        return made


def _delete_rows(store: Store, upto: int) -> None:
    with store.transaction() as cursor:
        cursor.execute("DELETE FROM journal WHERE seq <= ?", (upto,))


def _small_of(world: type[JournalWorld]) -> Callable[[MemoryDisk], Story]:
    return lambda disk: small(disk, world)


def syncs_do_nothing(disk: MemoryDisk) -> Story:
    """Give the story of a whole shard on a disk that lies."""
    story = small(disk)
    kept = [op for op in story.log if op.kind < SYNC]
    # The receipts came where they came: as many operations before them as are left.
    left = [sum(op.kind < SYNC for op in story.log[: ack.at]) for ack in story.acks]
    story.log = kept
    story.acks = [type(ack)(at, ack.seq) for at, ack in zip(left, story.acks, strict=True)]
    return story


CONTROLS: Final[dict[str, Callable[[MemoryDisk], Story]]] = {
    "synchronous_off": _small_of(_Off),
    "synchronous_normal": _small_of(_Normal),
    "receipt_before_sync": _small_of(_HastyWorld),
    "rows_swept_early": _small_of(_SweptWorld),
    "syncs_do_nothing": syncs_do_nothing,
}
