"""Flips: a journal with one bit changed, read as a start reads it (PROOF D4).

    unread       no start reads the page that it stands in
    refused      the file, a witness, or a checksum says that something is wrong
    on asking    the start goes well, and who asks for a saga that stands there ends the shard
    harmless     whatever a start reads is what was written; and work goes on, tried for some
    resumed      the last commit is gone: its saga resumes one entry earlier, ends with its answer

Everything else is a violation: fewer rows than were acknowledged, another answer, an id that is new
again, an error that is a bug's.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import apsw
from msgspec import Struct, field

from sagacity import wire
from sagacity.errors import InvariantBroken, SagacityError
from sagacity.saga import Retry
from sagacity.simulation.vfs import PAGE, Image, Medium, MemoryDisk
from sagacity.wire import Witness
from services.checkout import checkout
from shard.generations import Generations
from shard.guard import Guard
from shard.journal import SqliteJournal
from shard.sagas import Card, Definition
from shard.state import State
from shard.store import JournalFailed, JournalRefused
from tests.journal.workloads import batch, forget_some, hello
from tests.journal.world import PATH, JournalWorld, Recovered, Story, Violation, order_of
from tests.unit.world import CLUSTER_ID, snapshot

GO_ON_EVERY: Final = 31  # bytes: of one in so many a shard goes on with what seems harmless
DEFINITIONS: Final = {"checkout": Definition(checkout, Retry())}
UNREAD, REFUSED, ASKING, HARMLESS, RESUMED = "unread", "refused", "on asking", "harmless", "resumed"


class Written(Struct):
    """A journal whose bits are flipped.

    Args:
        image: its files.
        story: of the shard that wrote it.
        witnesses: that services hold.
        ids: of all sagas that it ever took.
        said: what a start reads of it, whole.
        read: pages that a start reads, by file.
    """

    image: Image
    story: Story
    witnesses: dict[str, Witness]
    ids: list[str]
    said: list[Any] = field(default_factory=list)
    read: set[tuple[str, int]] = field(default_factory=set)

    @property
    def bits(self) -> int:
        """Give how many there are."""
        return 8 * sum(len(held) for held in self.image.files.values())


def in_the_wal(disk: MemoryDisk) -> Written:
    """Write a journal of 64 KiB whose rows all stand in the WAL: its shard was killed.

    The last three rows are of carts that cannot be priced: no command left after them, so that no
    service has a witness of them.
    """
    disk.load(Image({}))
    world = JournalWorld(disk, tail_bytes=1 << 20)
    hello(world)
    batch(world, 0)
    for at in range(3):
        world.step(world.ask(wire.START, f"u{at}", order_of(f"u{at}")))
    return _written(disk, world)


def in_the_file(disk: MemoryDisk) -> Written:
    """Write a journal of 64 KiB with checkpoint, kept sagas, blocks, segments; it was closed."""
    disk.load(Image({}))
    world = JournalWorld(disk)
    hello(world)
    world.step(world.start("runs-on"))
    for at in range(3):
        batch(world, at)
    world.settle()
    forget_some(world)
    batch(world, 3)
    world.settle()
    batch(world, 4)
    world.disk.close()
    return _written(disk, world)


def _written(disk: MemoryDisk, world: JournalWorld) -> Written:
    story = world.story()
    medium = Medium(story.image)
    for op in disk.log:
        medium.take(op)
    world.disk._db.close()
    state = world.replica
    kept = state.finished._in_order  # type: ignore[attr-defined]  # the twin's
    ids = [*(card.saga_id for card in kept), *state.by_id]
    whole = medium.content(medium.unsynced)
    image = Image({name: held for name, held in whole.files.items() if held})
    written = Written(image, story, dict(world.witnesses), ids)
    disk.load(image)
    disk.read = set()
    written.said = _read(disk, written)
    written.read, disk.read = disk.read, None
    return written


def _read(disk: MemoryDisk, written: Written) -> list[Any]:
    """Read all that a start reads, and ask for every saga.

    Returns:
        last receipt, the state, what is told of each saga; the text of who refuses instead.
    """
    journal = SqliteJournal(PATH, CLUSTER_ID, 0, disk.name)
    try:
        generations = Generations(journal.store)
        state = State(DEFINITIONS, generations)
        checkpoint = journal.checkpoint()
        if checkpoint is not None:
            state.restore(journal.kept(), checkpoint.counts)
        for seq, batch_ in journal.replay():
            state.wall_ms = batch_.wall_ms
            for entry in batch_.entries:
                state.apply(entry, seq)
        last = journal.last
        guard = Guard(CLUSTER_ID, 0, state, lambda: last.seq, journal.chain_at)
        for service, witness in written.witnesses.items():
            finding = guard.judge(service, [witness])
            if finding is not None:
                raise JournalRefused(finding.text)
        said: list[Any] = [last]
        try:
            said.append(snapshot(state))
            for saga_id in written.ids:
                found = generations.find(saga_id)
                live = state.by_id.get(saga_id)
                record = None
                if isinstance(found, Card):
                    record = generations.record(saga_id) or journal.history(
                        found.number, found.dossier().seqs
                    )
                elif live is not None:
                    record = journal.history(live.number, live.dossier().seqs)
                said.append((saga_id, found, live is not None, record))
        except JournalFailed:
            said.append(ASKING)
        return said
    finally:
        journal.store.db.close()


class _Unverified(Recovered):
    """A shard on a file of which `verify` may say what is wrong."""

    verifies = False


class Flips:
    """Flips bits of one journal, and counts what comes of it.

    Args:
        disk: on which it is read.
        written: the journal.

    Attributes:
        counts: flips, by what came of them.
        violations: (file, byte, bit), and what broke.
    """

    def __init__(self, disk: MemoryDisk, written: Written) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[tuple[str, str]] = []
        self._disk = disk
        self.written = written
        self._names = sorted(written.image.files)

    def run(self, bits: Iterable[int]) -> None:
        """Flip these bits one after the other, counted through both files."""
        for bit in bits:
            name, at = self._place(bit >> 3)
            case = f"{'wal' if name.endswith('-wal') else 'file'} byte {at} bit {bit & 7}"
            try:
                self.counts[self.flip(bit)] += 1
            except Violation as broken:
                self.violations.append((f"{bit} ({case})", str(broken)))

    def _place(self, byte: int) -> tuple[str, int]:
        for name in self._names:
            size = len(self.written.image.files[name])
            if byte < size:
                return name, byte
            byte -= size
        raise LookupError(f"the journal has no byte {byte}")

    def flip(self, bit: int) -> str:
        """Flip one bit; say what came of it.

        Raises:
            Violation: something that must not.
        """
        name, at = self._place(bit >> 3)
        written = self.written
        if (name, at // PAGE) not in written.read:
            return UNREAD
        held = bytearray(written.image.files[name])
        held[at] ^= 1 << (bit & 7)
        image = Image({**written.image.files, name: bytes(held)})
        self._disk.load(image)
        try:
            said = _read(self._disk, written)
        except (JournalRefused, JournalFailed, SagacityError, InvariantBroken):
            return REFUSED
        except Exception as error:
            raise Violation(f"the start breaks: {type(error).__name__}: {error}") from error
        return self._judge(said, image, at)

    def _judge(self, said: Sequence[Any], image: Image, at: int) -> str:
        known = self.written.said
        if said == known:
            return HARMLESS if at % GO_ON_EVERY else self._go_on(image)
        if said[0] == known[0] and said[-1] == ASKING:
            # What was told before it ended must be true.
            if said[1:-1] == known[1 : len(said) - 1]:
                return ASKING
            raise Violation("another answer was told before the damage was seen")
        if said[0] == known[0]:
            different = [new for new, old in zip(said[1:], known[1:], strict=False) if new != old]
            raise Violation(f"the rows are the same, and it says {str(different)[:500]}")
        lost = known[0].seq - said[0].seq
        if lost != 1:
            raise Violation(f"{lost} commits are gone without a word")
        self._work_on(image)  # what the client of the last commit was told must come again
        return RESUMED

    def _go_on(self, image: Image) -> str:
        """Go on with a bit that changed nothing yet: it may do so when it is written beside."""
        try:
            self._work_on(image)
        except (JournalRefused, JournalFailed, apsw.Error):
            return ASKING
        return HARMLESS

    def _work_on(self, image: Image) -> None:
        self._disk.load(image)
        world: _Unverified | None = None
        try:
            world = _Unverified(self._disk, self.written.story, 0)
            world.go_on()
        except AssertionError as error:
            raise Violation(str(error)) from error
        finally:
            if world is not None:
                world.disk._db.close()
