"""Drive: a shard's production journal on a disk in memory, with what can go wrong there.

    a kill            ends the process between two operations; what it wrote stays, unsynced
    a loss of power   likewise, and of what was not synced some is gone, or torn by the sector
    a failed sync     took place or not; the process does not know
    no room           a write fails

Beside the disk stands every row that was ever committed: what has a receipt must be found at each
recovery, and nothing that was not written. Time passes beside operations, never within one: no
process is left inside of SQLite.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final, TypeVar

import apsw

from sagacity.simulation.disk import Disk
from sagacity.simulation.vfs import SYNC, WRITE, Medium, MemoryDisk
from sagacity.simulation.world import Process
from shard.codec import link, pack_batch
from shard.compaction import Compaction
from shard.entries import Batch, Entry
from shard.generations import Generations
from shard.journal import JournalFull, Receipt, SqliteJournal

T = TypeVar("T")

PATH: Final = Path("/shard/journal.db")
WAYS: Final = ("drop", "keep", "torn", "last", "gap", "part-1")
TEARING: Final = frozenset({"torn", "part-1"})  # of a write some sectors


class Died(BaseException):
    """The process ends here, between two operations of its disk."""


class Drive(MemoryDisk):
    """The disk of one shard; it outlives its processes.

    Args:
        disk: what is wrong with it.
        reached: where it is counted what took place.
        violations: where it is told what does not hold.

    Attributes:
        rows: that were committed, all of them.
        decided_at: when each was decided, in the world's time.
        pending: a row that is being written, and when it was decided.
        owner: the process that may use it; None for whoever reads it when all is over.
    """

    def __init__(self, disk: Disk, reached: Counter[str], violations: list[str]) -> None:
        super().__init__()
        self.disk = disk
        self.rows: list[tuple[int, bytes, bytes]] = []
        self.decided_at: list[int] = []
        self.pending: tuple[tuple[int, bytes, bytes], int] | None = None
        self.owner: Process | None = None
        self.opened: list[apsw.Connection] = []
        self.syncs = 0
        self.is_recovering = False
        self.had_error = False  # since it was opened last
        self.is_over = False  # the dead are unwound, and what they do meets nothing
        self._is_cut = False  # the owner has died within an operation
        self._power_left: int | None = None  # operations until it is gone
        self._way = "drop"
        self.reached = reached
        self._violations = violations

    def own(self, process: Process) -> None:
        """Give it to a process that starts."""
        self.owner, self.is_recovering = process, True
        self._is_cut = self.had_error = False

    def work(self, call: Callable[[], T]) -> T:
        """Do what operates on it; where the process dies within, it goes no further."""
        try:
            return call()
        except BaseException:
            owner = self.owner
            if owner is not None and self._is_cut:
                owner.world.kill(owner)
            raise

    def lose_power(self, after: int, way: str) -> None:
        """Lose power after so many operations: at once where that is 0.

        Args:
            after: operations.
            way: what becomes of what was not synced, one of WAYS.
        """
        self._way = way
        if after:
            self._power_left = after
            return
        if self.owner is not None:
            self.owner.world.kill(self.owner)
        self._lose()

    def calm(self) -> None:
        """From now on it does what it should."""
        self._power_left = None

    def note(
        self, kind: int, inode: int, at: int = 0, content: bytes = b"", name: str = ""
    ) -> None:
        """Meet what goes wrong, and add the operation to the log."""
        if self.is_over:
            return
        if self.owner is not None:
            self._meet(self.owner, kind, inode)
        super().note(kind, inode, at, content, name)

    def took(self, last: Receipt) -> None:
        """Compare what a recovery has read with what was committed."""
        if self.pending is not None and self.pending[0][:2] == (last.seq, last.chain):
            self.keep_pending()  # it was read: from now on somebody may know of it
        self.pending = None
        known = self.rows[-1][:2] if self.rows else (0, last.chain)
        if (last.seq, last.chain) != known:
            self._violations.append(f"D5: row {last.seq} is the last, and {known[0]} was written")

    def keep_pending(self) -> None:
        """The row that was being written is there."""
        assert self.pending is not None
        row, decided_at = self.pending
        self.rows.append(row)
        self.decided_at.append(decided_at)
        self.pending = None

    def let_go(self) -> None:
        """Close what dead processes have left open, and be no disk any more."""
        for connection in self.opened:
            connection.close(True)
        self.unregister()

    def _meet(self, owner: Process, kind: int, inode: int) -> None:
        disk = self.disk
        if self._is_cut or not owner.alive:
            raise Died
        if self._power_left is not None:
            self._power_left -= 1
            if self._power_left <= 0:
                self._is_cut = True
                self._lose()
                raise Died
        if owner.dies_at is not None:
            owner.dies_at -= 1
            if owner.dies_at < 0:
                self._is_cut = True
                raise Died
        if kind == WRITE and owner.world.now < disk.full_until:
            disk.refused += 1
            self.had_error = True
            raise apsw.FullError("the disk is full")
        if kind == SYNC:
            self.syncs += 1
            if disk.failing is not None:
                took_place, disk.failing = disk.failing, None
                disk.failed += 1
                self.had_error = True
                if took_place:
                    super().note(SYNC, inode)
                raise apsw.IOError("the sync failed")

    def _lose(self) -> None:
        """Lose power now: what is left is what was synced, and some of the rest."""
        self._power_left = None
        if self.owner is not None:
            self.reached["losses of power"] += 1
            self.reached["losses of power during a recovery"] += self.is_recovering
        medium = Medium(self.image)
        for op in self.log:
            medium.take(op)
        seed = f"{len(self.log)}/{len(self.rows)}"
        waiting = len(medium.unsynced)
        images = [image for _, image in medium.images((self._way,), seed)]
        image = Random(seed).choice(images) if images else medium.dropped()
        if waiting and self._way != "keep":
            self.reached["losses of power that tore what was not synced"] += self._way in TEARING
            self.reached["losses of power that took what was not synced"] += 1
        # Before the first sync of the WAL, which syncs the names as well, nothing was acknowledged.
        if self.rows and image.is_lost_by_name(str(PATH)):
            self._violations.append("D5: a WAL is there without its file")
        self.load(image)


class DriveJournal(SqliteJournal):
    """A shard's own journal, on such a disk.

    Args:
        drive: that it lies on.
        process: that writes.
        cluster_id: that it belongs to.
        shard: index that it belongs to.
    """

    def __init__(self, drive: Drive, process: Process, cluster_id: str, shard: int) -> None:
        self._drive, self._process = drive, process
        super().__init__(PATH, cluster_id, shard, drive.name)
        drive.opened.append(self.store.db)

    @property
    def rows(self) -> list[tuple[int, bytes, bytes]]:
        """Every row that was committed, also those that are gone."""
        return self._drive.rows

    def replay(self) -> Iterator[tuple[int, Batch]]:
        """Read what is there, and compare it with what was committed."""
        yield from super().replay()
        self._drive.took(self.last)

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Commit, or fail, or die before, within or after."""
        if not entries:
            return self.last
        drive, process = self._drive, self._process
        decided_at, seq = process.world.now, self.last.seq + 1
        process.point()
        process.world.pause(drive.disk.sync_ns(process.world))
        packed = pack_batch(entries, epoch, wall_ms)
        drive.pending = (seq, link(self.last.chain, seq, packed), packed), decided_at
        try:
            receipt = drive.work(lambda: super(DriveJournal, self).commit(entries, epoch, wall_ms))
        except JournalFull:
            drive.pending = None
            raise
        drive.keep_pending()
        process.point()
        return receipt


class DriveUpkeep:
    """A shard's compaction: its syncs take time, and it is counted what comes of it."""

    def __init__(
        self, journal: DriveJournal, drive: Drive, generations: Generations, work: Compaction
    ) -> None:
        self._journal = journal
        self._drive = drive
        self._generations = generations
        self._work = work

    def turn(self) -> bool:
        """Do a slice."""
        drive, generations, journal = self._drive, self._generations, self._journal
        syncs, checkpoint = drive.syncs, journal.checkpoint_seq
        segments = len(generations.segments)
        more = drive.work(self._work.turn)
        drive.reached["compactions"] += journal.checkpoint_seq > checkpoint
        drive.reached["merges of segments"] += len(generations.segments) < segments
        owner = drive.owner
        assert owner is not None
        for _ in range(drive.syncs - syncs):
            owner.world.pause(drive.disk.sync_ns(owner.world))
        return more

    def let_go(self) -> None:
        """Leave what is half done."""
        self._work.let_go()
