"""Disks: twins of a shard's journal and of a service's database, with what can go wrong there.

A journal keeps its rows when its process dies, all that were durable and no other. A database is a
real SQLite in memory that outlives its workers: a death rolls back what was not committed. A disk
can be slow, full, or fail a sync, of which it then stays unknown whether it took place. Each
statement is a place to die at.
"""

from typing import Any

import apsw
from msgspec import Struct

from sagacity.executor import make_tables
from sagacity.service import Service
from sagacity.simulation.world import MS, Process, World
from shard.entries import Entry
from shard.journal import JournalFailed, JournalFull, MemoryJournal, Receipt


class Disk(Struct):
    """What is wrong with a disk.

    Args:
        full_until: no write finds room before that instant.
        slow_until: a sync takes a second before that instant.
        failing: the next sync fails: False for one that did not take place, True for one that did.
    """

    full_until: int = 0
    slow_until: int = 0
    failing: bool | None = None
    failed: int = 0  # syncs, since the start
    refused: int = 0  # writes for room, since the start

    def sync_ns(self, world: World) -> int:
        """Draw how long a sync takes."""
        if world.now < self.slow_until:
            return 1_000 * MS
        return 100_000 + int(world.random.random() * world.sync_ns)


class TwinJournal(MemoryJournal):
    """A journal whose rows outlive its process.

    Args:
        process: that writes.
        disk: that it lies on.
        rows: that are there.
        decided_at: when each was decided, in the world's time.
    """

    def __init__(
        self,
        process: Process,
        disk: Disk,
        rows: list[tuple[int, bytes, bytes]],
        decided_at: list[int],
    ) -> None:
        super().__init__()
        self.rows = rows
        self._decided_at = decided_at
        self._process = process
        self._disk = disk

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Keep entries as one row, or fail, or die before or after."""
        if not entries:
            return self.last
        world, disk = self._process.world, self._disk
        decided_at = world.now
        self._process.point()
        world.pause(disk.sync_ns(world))
        if world.now < disk.full_until:
            disk.refused += 1
            raise JournalFull("the disk is full")
        if disk.failing is not None:
            took_place, disk.failing = disk.failing, None
            disk.failed += 1
            if took_place:
                super().commit(entries, epoch, wall_ms)
                self._decided_at.append(decided_at)
            raise JournalFailed("the sync failed")
        receipt = super().commit(entries, epoch, wall_ms)
        self._decided_at.append(decided_at)
        self._process.point()
        return receipt


_execute = apsw.Cursor.execute  # to find it by `super` takes as long as a short statement


class _Cursor(apsw.Cursor):
    """Passes each statement through the disk's faults."""

    def __init__(self, connection: apsw.Connection) -> None:
        super().__init__(connection)
        assert isinstance(connection, TwinDatabase)
        self._database = connection

    def execute(self, statements: str, *args: Any, **more: Any) -> Any:
        if self._database.owner is not None:
            self._database.meet(statements)
        return _execute(self, statements, *args, **more)


class TwinDatabase(apsw.Connection):
    """A service's database. Closing it does nothing: the next worker goes on with it."""

    def __init__(self, world: World, disk: Disk) -> None:
        super().__init__(":memory:")
        self.world = world
        self.disk = disk
        self.owner: Process | None = None
        self._changes = 0
        self.cursor_factory = _Cursor

    def open_by(self, process: Process) -> "TwinDatabase":
        """Give it to a worker; whatever the last one had begun is gone."""
        self.owner = None
        if self.in_transaction:
            self.execute("ROLLBACK")
        self.owner = process
        process.at_death.append(self._abandon)
        return self

    def meet(self, statement: str) -> None:
        """Meet what the disk does with a statement."""
        process = self.owner
        if process is None:
            return
        process.point()
        if statement == "BEGIN IMMEDIATE":
            self._changes = self.total_changes()
        elif statement == "COMMIT" and self.total_changes() != self._changes:
            self._sync()  # what changed nothing writes nothing

    def _sync(self) -> None:
        disk = self.disk
        self.world.pause(disk.sync_ns(self.world))
        if self.world.now < disk.full_until:
            disk.refused += 1
            raise apsw.FullError("the disk is full")
        if disk.failing is not None:
            took_place, disk.failing = disk.failing, None
            disk.failed += 1
            self.owner = None
            self.execute("COMMIT" if took_place else "ROLLBACK")
            raise apsw.IOError("the sync failed")

    def _abandon(self) -> None:
        self.owner = None

    def close(self, *_: object, **__: object) -> None:
        """Stay open."""


def made(world: World, disk: Disk, service: Service, cluster_id: str, catalog: object) -> Any:
    """Make a service's database."""
    database = TwinDatabase(world, disk)
    make_tables(database, service, cluster_id, catalog)
    return database
