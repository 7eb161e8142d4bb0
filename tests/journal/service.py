"""A service's database on a disk that crashes: every answer that a worker gave is given again.

A script of acts, each one transaction: a batch of commands, a list of forgotten sagas. After a
crash the database must hold what it held after some act, none below the last that was answered;
then all acts are done again, and each answer is that of a twin in memory.
"""

from collections.abc import Iterator
from typing import Any, Final

import apsw
from msgspec import Struct

from sagacity.errors import InvariantBroken, SagacityError
from sagacity.executor import BatchExecutor, make_tables, open_file
from sagacity.simulation.vfs import Image, MemoryDisk
from sagacity.wire import Answer, Commands, Forget, Witness
from tests.journal.world import PATH, Ack, Story, Violation
from tests.unit.service_world import (
    CLUSTER_ID,
    Events,
    a_list,
    put_command,
    take_command,
    toy,
)

CHECKPOINT_PAGES: Final = 12
CLOSE: Final = "close"

Act = Commands | Forget


def script() -> list[Act]:
    """Give what is done: effects, declines, failures, tombstones, repeats, lists, a new epoch."""
    batches: list[Any] = [
        [put_command(1), put_command(2)],
        [put_command(3, how="declined"), put_command(4, how="failed"), put_command(5)],
        [take_command(1), take_command(9)],
        [put_command(9), put_command(1), put_command(2, attempt=2)],
        [put_command(count) for count in range(10, 60)],
        a_list((1, 9)),
        [put_command(60, how="raise"), put_command(61), take_command(5), take_command(60)],
        [put_command(count, epoch=2) for count in range(62, 70)],
        [put_command(62), take_command(63, epoch=2)],
        a_list((10, 40), list_number=2, epoch=2),
        [put_command(count, epoch=2) for count in range(70, 120)],
        [take_command(count, epoch=2) for count in range(70, 90)],
    ]
    return [
        Commands(Witness(CLUSTER_ID, 0, 1 + (seq > 7), seq, bytes(16), 1 << 20), batch)
        if isinstance(batch, list)
        else batch
        for seq, batch in enumerate(batches, 1)
    ]


class Served(Struct):
    """A database that is open."""

    connection: apsw.Connection
    executor: BatchExecutor

    @classmethod
    def on(cls, connection: apsw.Connection) -> "Served":
        """Make the tables where there are none, as a worker does at its start."""
        make_tables(connection, toy, CLUSTER_ID)
        executor = BatchExecutor(connection, toy, Events(), checkpoint_pages=CHECKPOINT_PAGES)
        return cls(connection, executor)

    def do(self, act: Act) -> list[list[Answer]] | list[tuple[int, int]] | None:
        """Do an act; give what is answered."""
        if isinstance(act, Forget):
            return self.executor.forget(act)
        return self.executor.execute([act])

    def content(self) -> list[Any]:
        """Give all that the database holds."""
        tables = self.connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return [
            (name, self.connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall())
            for (name,) in sorted(tables.fetchall())
        ]


def twin_after(acts: int) -> Served:
    """Give a database in memory to which the first acts have happened."""
    twin = Served.on(apsw.Connection(":memory:"))
    for act in script()[:acts]:
        twin.do(act)
    return twin


def contents() -> Iterator[list[Any]]:
    """Give what a database holds after no act, after the first, after the second, …"""
    twin = twin_after(0)
    yield twin.content()
    for act in script():
        twin.do(act)
        yield twin.content()


CONTENTS: Final = list(contents())


def small(disk: MemoryDisk, vfs_option: str = "") -> Story:
    """Give the story of a worker; `vfs_option` is a pragma that breaks it on purpose."""
    disk.load(Image({}))
    disk.phase = "opening"
    acks: list[Ack] = []
    served = _open(disk, vfs_option)
    for at, act in enumerate(script(), 1):
        disk.phase = "list" if isinstance(act, Forget) else "commit"
        served.do(act)
        acks.append(Ack(len(disk.log), at))
        served.executor.tidy()
        if at == len(CONTENTS) // 2:
            disk.phase = "close"
            served.executor.close()
            disk.phase = "opening"
            served = _open(disk, vfs_option)
    story = Story(disk.image, list(disk.log), acks, [], 0, 0)
    served.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    served.connection.close()
    return story


def _open(disk: MemoryDisk, pragma: str = "") -> Served:
    connection = open_file(PATH, disk.name)
    if pragma:
        list(connection.execute(f"PRAGMA {pragma}"))
    return Served.on(connection)


def survive(disk: MemoryDisk, image: Image, story: Story, floor: int) -> Story:
    """Start a worker from what a crash left, check what is there, and do every act again.

    Returns:
        What it did, for a crash of that.

    Raises:
        Violation: a promise is broken.
    """
    disk.load(image)
    disk.phase = "recovery"
    served: Served | None = None
    try:
        served = _open(disk)
        found = served.content()
        done = max((at for at, held in enumerate(CONTENTS) if held == found), default=-1)
        if done < floor:
            raise Violation(f"it holds what it held after act {done}; act {floor} was answered")
        disk.phase = "commit"
        twin, acks = twin_after(done), []
        for at, act in enumerate(script(), 1):
            if served.do(act) != twin.do(act):
                raise Violation(f"act {at} is answered otherwise, after {done} acts and a crash")
            acks.append(Ack(len(disk.log), max(at, done)))
            served.executor.tidy()
        if served.content() != twin.content():
            raise Violation("in the end it holds what it should not")
        return Story(image, list(disk.log), acks, [], floor, 0)
    except Violation:
        raise
    except (SagacityError, InvariantBroken, apsw.Error) as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    finally:
        if served is not None:
            served.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            served.connection.close()
