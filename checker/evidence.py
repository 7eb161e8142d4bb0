"""Evidence: what a cluster left, as the rules read it. Pure; knows no file and no rule.

Whoever has it in memory builds it as well as `cluster.checking`, which reads a stopped cluster:

    journal = Journal(0)                            of each shard
    journal.take(seq, batch, chain)                 for each row, in order
    rows = ServiceRows("payment", barrier, ...)     of each service
    evidence = Evidence(cluster_id, owners, [journal], {"payment": rows}, plans, record)
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

from checker.record import ClientRecord
from sagacity.ids import count_of
from sagacity.ranges import Range, Ranges
from sagacity.wire import Witness
from shard.entries import OF_NO_SAGA, Batch, Entry, Forgotten, Opened, Started
from shard.records import Record, Row
from shard.state import Counts

CHECKOUT = "checkout"  # the saga whose effects the rules know to the last row

TableRow = tuple[Any, ...]


class Plan(Struct, frozen=True):
    """What the rules need of a saga's definition.

    Args:
        version: of the definition.
        services: of each step, in order.
        names: of each step's action.
    """

    version: int
    services: list[str]
    names: list[str]


class Head(Struct, frozen=True, array_like=True, gc=False):
    """A row of a journal, without what it says: its chain, the epoch that wrote it, when."""

    seq: int
    epoch: int
    wall_ms: int
    chain: bytes


class Story(Struct):
    """A saga as its journal tells it.

    Args:
        shard: whose journal.
        record: the rows that speak of it, its own entries alone; the first is its start.
    """

    shard: int
    record: Record

    @property
    def started(self) -> Started:
        """Its start."""
        first = self.record[0].entries[0]
        assert isinstance(first, Started)
        return first

    @property
    def seq(self) -> int:
        """The row in which it was started."""
        return self.record[0].seq

    def told(self) -> Iterator[tuple[int, Entry]]:
        """Give what came after the start: row and entry, in order."""
        for at, row in enumerate(self.record):
            for entry in row.entries[1:] if at == 0 else row.entries:
                yield row.seq, entry


class Standing(Struct, frozen=True, array_like=True, gc=False):
    """Where a running saga stands, as a fold of its journal says."""

    phase: int
    step: int
    direction: int
    attempt: int
    stuck: bool
    states: list[int]


class Fold(Struct):
    """What one way of reading a journal gives: the live state, or a replay of what is on disk.

    Args:
        way: how it was got, for people.
        counts: by name, what must be alike however it was got.
        running: where each saga stands that has not ended, by number.
        broken: why it could not be got; empty where it could.
    """

    way: str
    counts: dict[str, int] = field(default_factory=dict)
    running: dict[int, Standing] = field(default_factory=dict)
    broken: str = ""


class Journal(Struct):
    """A shard's journal.

    Args:
        shard: its index.
        checkpoint: rows up to this one are gone; 0 where there is no checkpoint.
        chain: at the checkpoint.
        counts: what the checkpoint keeps beside the sagas; None without one.
        heads: the rows after it.
        opened: row and entry of each take-over after it.
        lists: row and entry of each list of forgotten sagas after it.
        stories: by number.
        strays: entries of sagas that were not started before, or were twice, in words.
        forgotten: normal ranges of the counts of the sagas that are past retention.
        tombstones: hashes of the ids of sagas whose record is gone.
        folds: what must give the same.
        faults: what is not as its shard wrote it, in words, as whoever read it found.
        unread: why not all of it could be read; empty where it could.
    """

    shard: int
    checkpoint: int = 0
    chain: bytes = bytes(16)
    counts: Counts | None = None
    heads: list[Head] = field(default_factory=list)
    opened: list[tuple[int, Opened]] = field(default_factory=list)
    lists: list[tuple[int, Forgotten]] = field(default_factory=list)
    stories: dict[int, Story] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    forgotten: list[Range] = field(default_factory=list)
    tombstones: set[bytes] = field(default_factory=set)
    folds: list[Fold] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unread: str = ""

    def take(self, seq: int, batch: Batch, chain: bytes) -> None:
        """Take in the next row after the checkpoint."""
        self.heads.append(Head(seq, batch.epoch, batch.wall_ms, chain))
        for entry in batch.entries:
            if isinstance(entry, Opened):
                self.opened.append((seq, entry))
            elif isinstance(entry, Forgotten):
                self.lists.append((seq, entry))
                known = Ranges(self.forgotten)
                for low, high in entry.ranges:
                    known.add(low, high)
                self.forgotten = known.all()
            elif not isinstance(entry, OF_NO_SAGA):
                self._tell(entry.number, seq, batch.wall_ms, entry)

    def take_record(self, record: Record) -> None:
        """Take in what is kept of a saga from before the checkpoint."""
        for row in record:
            for entry in row.entries:
                number: int = getattr(entry, "number", 0)
                self._tell(number, row.seq, row.wall_ms, entry)

    def _tell(self, number: int, seq: int, wall_ms: int, entry: Entry) -> None:
        story = self.stories.get(number)
        starts = isinstance(entry, Started)
        if starts != (story is None):
            what = "is started twice" if starts else "is told of and was never started"
            self.strays.append(f"number {number} {what}, in row {seq}")
        elif story is None:
            self.stories[number] = Story(self.shard, [Row(seq, wall_ms, [entry])])
        elif story.record[-1].seq == seq:
            story.record[-1].entries.append(entry)
        else:
            story.record.append(Row(seq, wall_ms, [entry]))

    @property
    def last_seq(self) -> int:
        """The last row; 0 without any."""
        return self.heads[-1].seq if self.heads else self.checkpoint

    @property
    def epoch(self) -> int:
        """The last epoch; 0 if it was never taken over."""
        before = self.counts.epoch if self.counts else 0
        return max([before, *(entry.epoch for _, entry in self.opened)])

    def forgets(self, number: int) -> bool:
        """Say whether a saga is past retention."""
        return count_of(number) in Ranges(self.forgotten)


class ServiceRows(Struct):
    """A service's database.

    Args:
        name: of the service.
        origin: rows (format, service, cluster_id).
        barrier: key -> (saga_id, outcome, reply).
        fence: slot -> epoch.
        witnesses: the highest of each shard.
        forgotten: rows (shard, low, high).
        tables: its own tables by name: rows in the order of their columns.
        faults: what is not as it was written, in words, as whoever read it found.
    """

    name: str
    origin: list[tuple[int, str, str]] = field(default_factory=list)
    barrier: dict[int, tuple[str, int, bytes]] = field(default_factory=dict)
    fence: dict[int, int] = field(default_factory=dict)
    witnesses: list[Witness] = field(default_factory=list)
    forgotten: list[tuple[int, int, int]] = field(default_factory=list)
    tables: dict[str, list[TableRow]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def forgets(self) -> Mapping[int, Ranges]:
        """Give, for each shard, the counts of the sagas that it has forgotten."""
        found: dict[int, Ranges] = {}
        for shard, low, high in sorted(self.forgotten):
            found.setdefault(shard, Ranges()).add(low, high)
        return found


class Sent(Struct, frozen=True, gc=False):
    """A command seen on the wire, and the row that its witness named: durable when it left."""

    shard: int
    witness_seq: int
    number: int
    step: int
    direction: int
    attempt: int


class Evidence(Struct):
    """All that is known of a cluster that stands still.

    Args:
        cluster_id: 32 hexadecimal digits.
        owners: which shard owns each slot.
        journals: one of each shard, in order.
        services: by name.
        plans: by the saga's name.
        record: what clients sent and were told, faults, metrics; None where nobody wrote it.
        wire: commands that were seen to leave; None where nobody looked.
        audit: the faults that `sagacity audit` finds in the same books; None where nobody asked.
    """

    cluster_id: str
    owners: tuple[int, ...]
    journals: list[Journal]
    services: dict[str, ServiceRows]
    plans: dict[str, Plan]
    record: ClientRecord | None = None
    wire: list[Sent] | None = None
    audit: list[str] | None = None

    def stories(self) -> Iterable[tuple[int, Story]]:
        """Give every saga of every journal, with its number."""
        for journal in self.journals:
            yield from journal.stories.items()


def read_line(line: bytes) -> Any:
    """Read one line of what `python -m shard evidence` writes: a Journal, then its Stories.

    Raises:
        ValueError: it is none.
    """
    return _read(line)


class OfShard(Struct, tag="journal"):
    """The first line of a shard's evidence; stories follow, one a line."""

    journal: Journal
    stories: int
    plans: dict[str, Plan]


class OfSaga(Struct, tag="saga"):
    """A saga's line."""

    number: int
    record: Record


_read = msgspec.json.Decoder(OfShard | OfSaga).decode
