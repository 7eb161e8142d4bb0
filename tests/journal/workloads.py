"""Workloads: what a shard does while its disk's log is taken, crash by crash.

small     every kind of operation once or twice, in as few operations as that takes
seed N    a schedule of `tests.unit.schedule`: whatever the bytes of a seed decide
"""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Final

from sagacity import wire
from sagacity.ids import count_of
from sagacity.ranges import ranges_of
from sagacity.simulation.vfs import Image, MemoryDisk
from shard import segments, store
from tests.journal.world import JournalWorld, Story
from tests.unit.test_forgetting_schedules import OnDisk

SEED_BYTES: Final = 250  # of a schedule
WAL_PAGES_MAX: Final = 24  # so that the WAL is written back now and then
SEGMENTS_PER_LEVEL: Final = 2  # so that segments are merged after a few sagas
OUTCOMES: Final = {("d", 2): wire.DECLINED, ("c", 1): wire.DECLINED}


@contextmanager
def small_limits() -> Iterator[None]:
    """Let everything happen after a few sagas that else happens after thousands."""
    pages, level = store.WAL_PAGES_MAX, segments.SEGMENTS_PER_LEVEL
    store.WAL_PAGES_MAX, segments.SEGMENTS_PER_LEVEL = WAL_PAGES_MAX, SEGMENTS_PER_LEVEL
    try:
        yield
    finally:
        store.WAL_PAGES_MAX, segments.SEGMENTS_PER_LEVEL = pages, level


def small(disk: MemoryDisk, make: type[JournalWorld] = JournalWorld) -> Story:
    """Give the story of a shard that does everything that a shard's file can meet."""
    disk.load(Image({}))
    world = make(disk)
    hello(world)
    world.step(world.start("runs-on"))  # it is kept by every compaction
    for at in range(4):
        batch(world, at)
    forget_some(world)
    world.restart()
    hello(world)
    batch(world, 4)
    world.settle()
    close(world)
    hello(world)
    batch(world, 5)
    forget_some(world)
    world.settle()
    story = world.story()
    world.disk._db.close()
    return story


def of_seed(disk: MemoryDisk, seed: int) -> Story:
    """Give the story of a shard to which a seed's bytes happen: faults, restarts, retention."""
    disk.load(Image({}))
    random = Random(seed)
    world = JournalWorld(disk, slices=random.randrange(1, 4))
    schedule = OnDisk(random.randbytes(SEED_BYTES), world)
    schedule.play()
    story = world.story()
    world.disk._db.close()
    return story


def hello(world: JournalWorld) -> None:
    """Let the workers come."""
    world.step(*world.came("inventory", "payment", "shipping"))


def batch(world: JournalWorld, at: int) -> None:
    """Run three sagas side by side: one completes, one is declined, one is cancelled."""
    world.step(*(world.start(f"{letter}{at}") for letter in "adc"))
    world.answer_all({**OUTCOMES, ("r", 1): wire.FAILED})
    cancel = {"type": "cancel", "saga_id": f"a{at}", "reason": "x"}
    if at % 2:
        world.step(world.ask(wire.CANCEL, f"a{at}", cancel))
    while world.answer_all({**OUTCOMES, ("r", 1): wire.FAILED}):
        pass


def forget_some(world: JournalWorld) -> None:
    """Let the oldest finished sagas be past retention."""
    found = world.generations.expired(len(world.generations))
    if found is not None:
        end, numbers = found
        world.step(forget=(ranges_of(count_of(number) for number in numbers), end))


def close(world: JournalWorld) -> None:
    """Stop the shard as it stops when it is told to, and start it again."""
    world.memory.phase = "close"
    world.disk.close()
    world.memory.phase = "opening"
    world.restart()
    world.memory.phase = "commit"
