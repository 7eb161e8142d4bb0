"""A shard on a disk in memory: what it wrote, what it was promised, and whether a crash kept it.

    JournalWorld   a shard at work; each receipt is noted beside the disk's log
    Recovered      the shard that starts from what a crash left, and goes on to the end

Every promise is checked against the twin of `disk_world`: a journal in memory, and a state that no
row ever leaves. Recovery is the production code: store, journal, generations, compaction, state,
and the checks of `verify`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import apsw
from msgspec import Struct
from msgspec.structs import replace

from sagacity import wire
from sagacity.errors import InvariantBroken
from sagacity.ids import count_of
from sagacity.simulation.vfs import Image, MemoryDisk, Op
from sagacity.wire import Command, Witness
from shard.codec import unpack_batch
from shard.compaction import Compaction
from shard.effects import Effects
from shard.entries import Entry
from shard.events import Event, Instant, ListApplied
from shard.generations import Generations
from shard.journal import Receipt, SqliteJournal
from shard.records import Record
from shard.sagas import Card, Live, Tombstone
from shard.state import FinishedSagas
from shard.store import JournalFailed, JournalRefused
from shard.verify import Found, faults_of
from tests.unit.disk_world import DiskWorld
from tests.unit.world import CLUSTER_ID, Rules, given, order, replies, snapshot

PATH: Final = Path("/shard/journal.db")
TAIL_BYTES: Final = 1_500
TURNS_MAX: Final = 200  # after a crash, until nothing runs
NEVER: Final = "never-used"

PHASES: Final = {
    "_compact": "compaction",
    "_merge": "merge",
    "_sweep_rows": "sweep of rows",
    "_sweep_segment": "sweep of a segment",
    "_sweep_blocks": "sweep of blocks",
}


class Violation(AssertionError):
    """A promise was broken."""


class Ack(Struct, frozen=True):
    """From `at` operations on, somebody may know of row `seq`."""

    at: int
    seq: int


class Story(Struct):
    """What a shard did on a disk.

    Args:
        image: from which it began.
        log: of the disk since then.
        acks: of its rows since then.
        rows: of its whole life: seq, chain, packed batch; those without a receipt too.
        floor: somebody knew of this row when it began.
        wall_ms: when it ended.
    """

    image: Image
    log: list[Op]
    acks: list[Ack]
    rows: list[tuple[int, bytes, bytes]]
    floor: int
    wall_ms: int

    def floor_at(self, operations: int) -> int:
        """Give the row that somebody may know of when so many operations were done."""
        return max([self.floor, *(ack.seq for ack in self.acks if ack.at <= operations)])


class NotingJournal(SqliteJournal):
    """A journal that notes each receipt beside the disk's log."""

    def __init__(self, disk: MemoryDisk, acks: list[Ack]) -> None:
        self._disk, self._acks = disk, acks
        super().__init__(PATH, CLUSTER_ID, 0, disk.name)

    def note(self) -> None:
        """Everything up to the last row may be known from now on."""
        self._acks.append(Ack(len(self._disk.log), self.last.seq))

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        receipt = super().commit(entries, epoch, wall_ms)
        self.note()
        return receipt


class NotingCompaction(Compaction):
    """A compaction that tells the disk what it is about."""

    disk: MemoryDisk

    def _rows_due(self) -> Iterator[None] | None:
        return self._told(super()._rows_due())

    def _rest_due(self) -> Iterator[None] | None:
        return self._told(super()._rest_due())

    def _told(self, work: Iterator[None] | None) -> Iterator[None] | None:
        return None if work is None else self._telling(work, PHASES[work.__name__])  # type: ignore[attr-defined]  # a generator has one

    def _telling(self, work: Iterator[None], phase: str) -> Iterator[None]:
        while True:
            before, self.disk.phase = self.disk.phase, phase
            try:
                next(work)
            except StopIteration:
                return
            finally:
                self.disk.phase = before
            yield


def order_of(saga_id: str) -> dict[str, Any]:
    """Give the checkout that a saga is; one whose id begins with u cannot be priced."""
    unpriced = {"items": [{"sku": "unknown", "quantity": 1}]}
    return order(saga_id, **(unpriced if saga_id.startswith("u") else {}))


class JournalWorld(DiskWorld):
    """A shard at work on a disk in memory."""

    def __init__(
        self,
        disk: MemoryDisk,
        rules: Rules | None = None,
        *,
        slices: int = 1,
        tail_bytes: int = TAIL_BYTES,
    ) -> None:
        self.memory = disk
        self.acks: list[Ack] = []
        self.witnesses: dict[str, Witness] = {}  # that each service has, as it had to take it
        self._compacts_at = tail_bytes
        self.base, self.floor = disk.image, 0
        self.memory.phase = "opening"
        super().__init__(PATH, rules, slices=slices)
        self.memory.phase = "commit"

    def _open(self) -> SqliteJournal:
        self.disk = self.noting = NotingJournal(self.memory, self.acks)
        return self.disk

    def _finished(self) -> FinishedSagas:
        self.generations = Generations(self.disk.store)
        self.compaction = NotingCompaction(
            self.disk, self.generations, self._counts, self._compacts_at
        )
        self.compaction.disk = self.memory
        return self.generations

    def story(self) -> Story:
        """Tell what happened."""
        rows, wall_ms = list(self.twin_journal.rows), self.now.wall_ms
        return Story(self.base, list(self.memory.log), self.acks, rows, self.floor, wall_ms)

    # -- work -----------------------------------------------------------------------------------

    def answer_all(self, outcomes: "dict[tuple[str, int], int] | None" = None) -> bool:
        """Answer all commands that workers hold, in one batch; say whether there were any.

        `outcomes`: by the first letter of the saga's id and step; the others are ok.
        """
        events: list[Event] = []
        for peer in list(self.held):
            for command in self.held.pop(peer):
                outcome = self._outcome(command, outcomes or {})
                events.append(self.reply(peer, command, outcome))
        if events:
            self.step(*events)
        return bool(events)

    @staticmethod
    def _outcome(command: Command, outcomes: "dict[tuple[str, int], int]") -> int:
        ends = outcomes.get((command.saga_id[0], command.step), wire.OK)
        return wire.OK if command.direction and ends == wire.DECLINED else ends

    def step(self, *events: Event, **options: object) -> Effects:
        """Take a batch; lists of forgotten sagas are taken by whom they are sent to."""
        effects = super().step(*events, **options)  # type: ignore[arg-type]  # passed on
        for peer, _ in given(effects):
            last, state = self.disk.last, self.engine.state
            self.witnesses[peer.decode()] = Witness(
                CLUSTER_ID, 0, state.epoch, last.seq, last.chain, state.number
            )
        taken = [ListApplied(sent.worker, 0, sent.list_number) for sent in effects.lists]
        if taken:
            super().step(*taken)
        return effects

    def to_the_end(self) -> None:
        """Answer whatever is asked, until nothing runs."""
        for _ in range(TURNS_MAX):
            if not self.engine.inflight:
                return
            if not self.answer_all():
                self.after(1_000)
                self.step(*self.beats())
        raise Violation(f"sagas do not end: {list(self.engine.state.live.values())}")


class Recovered(JournalWorld):
    """A shard that starts from what a crash left of a story.

    Args:
        disk: loaded with it.
        story: of the shard before it.
        floor: the row that somebody may know of.
    """

    verifies = True  # whether `verify` must find no fault, either

    def __init__(self, disk: MemoryDisk, story: Story, floor: int) -> None:
        self._story, self._least = story, floor
        super().__init__(disk)

    def _begin(self) -> None:
        """Read what is there, compare, and take the shard over."""
        self.memory.phase = "recovery"
        checkpoint = self.disk.checkpoint()
        if checkpoint is not None:
            self.engine.state.restore(self.disk.kept(), checkpoint.counts)
        for seq, batch in self.disk.replay():
            self.engine.replay(batch, seq)
        last, rows = self.disk.last, self._story.rows
        if not self._least <= last.seq <= len(rows):
            raise Violation(f"row {last.seq} is the last; known: {self._least} of {len(rows)}")
        self._fold(rows[: last.seq])
        if last != self.twin_journal.last:
            raise Violation(f"row {last.seq} is another than was written")
        self.noting.note()  # reads are answered from what was replayed
        self.floor, self.now = self._least, Instant(0, self._story.wall_ms)
        self.compare()
        self._perform(self.engine.resume(CLUSTER_ID, self.now, last.seq + 1))

    def _fold(self, rows: list[tuple[int, bytes, bytes]]) -> None:
        self.twin_journal.rows = list(rows)
        for seq, chain, packed in rows:
            batch = unpack_batch(packed)
            self.replica.wall_ms = batch.wall_ms
            for entry in batch.entries:
                self.replica.apply(entry, seq)
            self.twin_journal.last = Receipt(seq, chain)

    def compare(self) -> None:
        """Compare what the file says with what the twin says: answers, histories, what is gone."""
        if snapshot(self.engine.state) != snapshot(self.replica):
            raise Violation("the state is another than the rows give")
        self.compare_sagas()
        for saga_id in self.past_retention():
            if not isinstance(self.generations.find(saga_id), Tombstone):
                raise Violation(f"{saga_id} is past retention and has no tombstone")
        if self.generations.find(NEVER) is not None:
            raise Violation("an id that was never used is known")
        faults = list(faults_of(self.disk.store.db, CLUSTER_ID, 0, Found(0)))
        if faults and self.verifies:
            raise Violation(f"verify: {faults}")

    def compare_sagas(self) -> None:
        """Compare each saga's card and history with the twin's.

        As `assert_alike` does, without telling the histories in words: three times as fast.
        """
        live, twin = self.engine.state, self.replica
        pairs: list[tuple[Live | Card, Live | Card]] = []
        for card in twin.finished.page(0, len(twin.finished), len(twin.finished)):
            found = live.finished.find(card.saga_id)
            if not isinstance(found, Card) or _untied(found) != _untied(card):
                raise Violation(f"{card.saga_id} ended as {card}, and {found} is found")
            pairs.append((found, card))
        pairs += [(live.by_id[saga_id], saga) for saga_id, saga in twin.by_id.items()]
        for one, known in pairs:
            number = known.number
            expected = self.twin_journal.history(number, known.dossier().seqs)
            if _of(number, self.record(one.dossier())) != _of(number, expected):
                raise Violation(f"the history of {known.saga_id} is another")

    def ids_finished(self) -> list[str]:
        """Give the ids of all finished sagas, in the order of their ends."""
        return [card.saga_id for card in self.replica.finished._in_order]  # type: ignore[attr-defined]  # the twin's

    def past_retention(self) -> list[str]:
        """Give the ids of those whose answers are no longer kept."""
        return self.ids_finished()[: self.replica.forgotten]

    def go_on(self) -> None:
        """Work on, and finish: what ran ends, what ended stays, and a new saga runs."""
        self.memory.phase = "commit"
        highest = self.engine.state.number
        self.step(*self.came("inventory", "payment", "shipping"))
        new = f"new-{self.disk.last.seq}"
        self.step(self.start(new))
        if count_of(self.replica.by_id[new].number) <= count_of(highest):
            raise Violation("a number was given twice")
        self.to_the_end()
        self.ask_again()
        self.settle()
        self.compare()

    def ask_again(self) -> None:
        """Start each finished saga again: the same answer, and nothing runs."""
        finished, past = self.ids_finished(), set(self.past_retention())
        asked = [self.ask(wire.START, saga_id, order_of(saga_id)) for saga_id in finished]
        effects = self.step(*asked)
        if effects.entries:
            raise Violation(f"a finished saga ran again: {effects.entries}")
        for saga_id, (_, code, body) in zip(finished, replies(effects), strict=True):
            known = self.replica.finished.find(saga_id)
            if saga_id in past:
                if code != 22:
                    raise Violation(f"{saga_id} is past retention and was told {code}")
            elif code is not None or not isinstance(known, Card):
                raise Violation(f"{saga_id} was told {code}: {body}")
            elif body != wire.unpack(known.answer):
                raise Violation(f"{saga_id} was told another answer: {body}")


def _untied(card: Card) -> Card:
    """Leave out where a saga's rows are."""
    return replace(card, seqs=b"")


def _of(number: int, record: Record) -> list[tuple[int, int, list[Entry]]]:
    """Give what rows say of one saga."""
    return [
        (row.seq, row.wall_ms, [e for e in row.entries if getattr(e, "number", 0) == number])
        for row in record
    ]


def survive(disk: MemoryDisk, image: Image, story: Story, floor: int) -> Story:
    """Start a shard from what a crash left, check all promises, go on and finish.

    Returns:
        What it did, for a crash of that.

    Raises:
        Violation: a promise is broken.
    """
    if image.is_lost_by_name(str(PATH)):
        raise Violation("a WAL is there without its file: a shard would refuse it")
    disk.load(image)
    world: Recovered | None = None
    try:
        world = Recovered(disk, story, floor)
        world.go_on()
        return world.story()
    except Violation:
        raise
    except (AssertionError, JournalFailed, JournalRefused, InvariantBroken, apsw.Error) as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    finally:
        if world is not None:
            world.disk._db.close()


__all__ = ["Ack", "JournalWorld", "Recovered", "Story", "Violation", "survive"]
