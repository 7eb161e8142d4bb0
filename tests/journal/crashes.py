"""Crashes: at each operation of a story, everything that a crash may leave is recovered from.

A case is named by how to reach it: `small/120-torn-1/11-drop` is the workload `small`, which
crashed before operation 120 and left the last write torn; the shard that recovered from that
crashed before its own operation 11 and left only what was synced.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from msgspec import Struct, field

from sagacity.simulation.vfs import KINDS, SYNC, Image, Medium, MemoryDisk, Op
from tests.journal.world import PATH, Story, Violation, survive

FEW: Final = ("drop", "keep", "part-1")
ALL: Final = ("drop", "keep", "killed", "torn", "last", "gap", "part-1", "part-2", "part-3")
AGAIN: Final = ("drop", "keep", "part-1")  # of a crash of the recovery

Survive = Callable[[MemoryDisk, Image, Story, int], Story]


class Counts(Struct):
    """What was reached.

    Args:
        operations: at which a crash was tried, by phase and kind.
        images: recovered from, by depth and way.
        violations: the case, and what broke.
    """

    operations: Counter[tuple[str, str]] = field(default_factory=Counter)
    images: Counter[tuple[int, str]] = field(default_factory=Counter)
    violations: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: "Counts") -> None:
        """Take in what another process counted."""
        self.operations += other.operations
        self.images += other.images
        self.violations += other.violations


class Crash(Struct, frozen=True):
    """What a crash left.

    Args:
        step: how it is named in a case.
        way: in which a medium may be left.
        image: of it.
        floor: the row that somebody may know of.
    """

    step: str
    way: str
    image: Image
    floor: int


def crashes(
    story: Story, ways: Sequence[str], name: str, upto: int = sys.maxsize
) -> Iterator[Crash]:
    """Give every crash of a story, in every one of these ways; images that are alike once.

    A crash stands before an operation: what was noted until then counts. What is synced is the same
    between two syncs; it is given at the last moment of these, when most may be known of it.
    """
    medium = Medium(story.image)
    for at in range(min(len(story.log) + 1, upto)):
        op = story.log[at] if at < len(story.log) else None
        begun = at >= len(story.image.unsynced)
        if begun:
            floor = story.floor_at(at)
            if "drop" in ways and (op is None or op.kind >= SYNC):
                yield Crash(f"{at}-drop", "drop", medium.content([]), floor)
            if medium.unsynced and (at == 0 or story.log[at - 1].kind < SYNC):
                for way, image in medium.images(ways, f"{name}/{at}"):
                    yield Crash(f"{at}-{way}", way, image, floor)
        if op is not None:
            medium.take(op)


def crash_at(story: Story, step: str, name: str) -> Crash:
    """Give one crash of a story by its name.

    Raises:
        LookupError: it has none of that name.
    """
    way = step.partition("-")[2]
    base = way if way.startswith("part-") else way.partition("-")[0]
    for crash in crashes(story, (base,), name):
        if crash.step == step:
            return crash
    raise LookupError(f"{name} has no crash {step!r}; has the workload changed?")


class Campaign:
    """Tries crashes and counts.

    Args:
        disk: on which shards recover.
        survive: starts a shard from an image and checks all promises.
        deep: how many operations of a recovery lie between two crashes of it; 0 for none.
    """

    def __init__(self, disk: MemoryDisk, survive: Survive = survive, *, deep: int = 0) -> None:
        self.counts = Counts()
        self._disk = disk
        self._survive = survive
        self._deep = deep

    def run(self, name: str, story: Story, ways: Sequence[str]) -> None:
        """Try every crash of a story; and of every `deep`-th recovery every crash."""
        self._count(story)
        for at, crash in enumerate(crashes(story, ways, name)):
            deep = self._deep > 0 and at % self._deep == self._deep - 1
            self._try(f"{name}/{crash.step}", story, crash, upto=sys.maxsize if deep else 0)

    def finds(self, name: str, story: Story, ways: Sequence[str]) -> str | None:
        """Try crashes of a story until one breaks a promise; give that case."""
        for crash in crashes(story, ways, name):
            self._try(f"{name}/{crash.step}", story, crash)
            if self.counts.violations:
                return self.counts.violations[0][0]
        return None

    def follow(self, case: str, story: Story, crash: Crash, upto: int) -> None:
        """Try one crash, and a crash at each of the first `upto` operations of what follows."""
        self._try(case, story, crash, upto=upto)

    def _try(self, case: str, story: Story, crash: Crash, *, upto: int = 0, depth: int = 1) -> None:
        self.counts.images[depth, crash.way] += 1
        try:
            after = self._survive(self._disk, crash.image, story, crash.floor)
        except Violation as broken:
            self.counts.violations.append((case, str(broken)))
            return
        if upto:
            self._count(after)
            for again in crashes(after, AGAIN, case, len(after.image.unsynced) + upto):
                self._try(f"{case}/{again.step}", after, again, depth=depth + 1)

    def _count(self, story: Story) -> None:
        for op in story.log[len(story.image.unsynced) :]:
            self.counts.operations[phase_of(op, story), KINDS[op.kind]] += 1


def phase_of(op: Op, story: Story) -> str:
    """Give what a process was about: the file itself is written by a checkpoint alone."""
    files = {made.inode: made.name for made in story.log if made.name}
    files.update({inode: name for name, inode in story.image.inodes.items()})
    is_file = files.get(op.inode) == str(PATH)
    return "write-back" if is_file and op.phase not in ("opening", "close") else op.phase
