"""Generations: the finished sagas on disk, and the ids that were ever used.

    block    64 records side by side, squeezed; found by ordinal
    segment  sorted hashes of ids, each with its ordinal; found by arithmetic (`segments`)

A compaction closes a generation: blocks and one segment, entered in the transaction that moves the
checkpoint, before the rows they come from are deleted. Blocks go when their sagas are past
retention; what stays of an id for ever are 16 bytes, and two in memory.

Knows the shard's file through its `store`. Reads when asked, writes only inside a transaction that
somebody else opened; `compaction` says when.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from apsw import Cursor

from shard.codec import (
    Unreadable,
    pack_block,
    pack_segment,
    seal,
    unpack_block,
    unpack_prints,
    unpack_record,
    unpack_segment,
    unseal,
)
from shard.entries import Started
from shard.records import Record, card_of_record
from shard.sagas import Card, Tombstone
from shard.segments import (
    ENTRY_BYTES,
    HASH_BYTES,
    Prints,
    Segment,
    Sieve,
    cut,
    find_in,
    hash_of,
    mark_of,
    part_bits,
    sifted,
    top_of,
)
from shard.store import JournalFailed, Store

T = TypeVar("T")

BLOCK_RECORDS: Final = 64
FORGOTTEN_AT_ONCE: Final = 8  # blocks, about 3 ms

_PART: Final = "SELECT entries FROM part WHERE key = ?"
_BLOCK: Final = "SELECT first, records FROM block WHERE first <= ? ORDER BY first DESC LIMIT 1"
_BLOCKS: Final = "SELECT first, records FROM block WHERE first > ? AND first < ? ORDER BY first"
_OLDEST: Final = "SELECT first, records FROM block WHERE first >= ? ORDER BY first LIMIT ?"
_DELETE_OLDEST: Final = (
    "DELETE FROM block WHERE first IN"
    " (SELECT first FROM block WHERE first < ? ORDER BY first LIMIT ?)"
)


class Generations:
    """What is on disk of finished sagas; and, until their generation closes, their cards.

    Args:
        store: the shard's file.

    Raises:
        JournalFailed: it cannot be read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.forgotten = 0  # ordinals below are past retention
        self.segments: list[tuple[Segment, Prints]] = []
        self._sieves: list[Sieve] = []  # of all segments
        self.dead: list[Segment] = []  # half made, or merged into another: their parts can go
        self._last_id = 0
        self._base = 0  # ordinals below stand in blocks
        self._blocks_from = 0  # of the oldest block; 0 also where that is not known yet
        self._recent: dict[str, Card] = {}
        self._in_order: list[Card] = []

    def restore(self, base: int, forgotten: int) -> None:
        """Read what the checkpoint has: the segments' descriptions and prints; forget all else.

        Args:
            base: sagas that had ended by the checkpoint.
            forgotten: of these, how many are past retention.
        """
        self.segments, self.dead, self._last_id = [], [], 0
        self._recent, self._in_order = {}, []
        self._base, self._blocks_from, self.forgotten = base, 0, forgotten
        for head, prints in self._store.rows("SELECT head, prints FROM segment ORDER BY id"):
            segment = self._sound(unpack_segment, head)
            self._last_id = segment.id
            if segment.live:
                self.segments.append((segment, self._sound(unpack_prints, prints)))
            else:
                self.dead.append(segment)
        self._sieves = sifted(self.segments)
        known = sum(segment.size for segment, _ in self.segments)
        if known != base:  # an id that no segment knows would run again
            raise JournalFailed(
                f"{self._store.path} is damaged: its segments know {known} ids of {base}"
            )

    # -- the port of the decisions --------------------------------------------------------------

    def find(self, saga_id: str) -> Card | Tombstone | None:
        """Give a finished saga's card; a tombstone once it is past retention."""
        card = self._recent.get(saga_id)
        if card is not None or not self.segments:
            return card
        ordinal = self._ordinal(saga_id)
        if ordinal is None:
            return None
        if ordinal < self.forgotten:
            return Tombstone()
        return card_of_record(self._record(ordinal, saga_id))

    def add(self, card: Card) -> None:
        """Keep the next card, until its generation closes."""
        self._recent[card.saga_id] = card
        self._in_order.append(card)

    def page(self, start: int, upto: int, limit: int) -> list[Card]:
        """Give cards with an ordinal of start .. upto, in that order, at most `limit`."""
        start = max(self.forgotten, start)
        end = min(upto, len(self), start + limit)
        found = [card_of_record(record) for record in self._records(start, min(end, self._base))]
        at = max(0, start - self._base)
        found += self._in_order[at : max(at, end - self._base)]
        return found

    def newest(self, before: int, limit: int) -> list[Card]:
        """Give cards with an ordinal below `before`, newest first, at most `limit`."""
        end = min(max(before, 0), len(self))
        return self.page(end - limit, end, limit)[::-1]

    def __len__(self) -> int:
        return self._base + len(self._in_order)

    # -- histories ------------------------------------------------------------------------------

    def record(self, saga_id: str) -> Record | None:
        """Give the record of a finished saga; None where its generation is still open."""
        if saga_id in self._recent or not self.segments:
            return None
        ordinal = self._ordinal(saga_id)
        if ordinal is None or ordinal < self.forgotten:
            return None
        return self._record(ordinal, saga_id)

    # -- what a compaction writes ---------------------------------------------------------------

    def enter(self, cursor: Cursor, records: Sequence[bytes]) -> None:
        """Write the blocks of the next finished sagas."""
        for at in range(0, len(records), BLOCK_RECORDS):
            block = pack_block(list(records[at : at + BLOCK_RECORDS]))
            cursor.execute("INSERT INTO block VALUES(?, ?)", (self._base + at, block))

    def entered(self, count: int) -> None:
        """The blocks of the next `count` sagas are durable: their cards leave memory."""
        for card in self._in_order[:count]:
            del self._recent[card.saga_id]
        del self._in_order[:count]
        self._base += count

    @property
    def base(self) -> int:
        """How many finished sagas stand in blocks, or stood there."""
        return self._base

    def next_segment(self) -> int:
        """Give an id that no segment has had since the start, nor any that is still there."""
        self._last_id += 1
        return self._last_id

    def write_segment(self, cursor: Cursor, entries: list[bytes]) -> tuple[Segment, Prints]:
        """Write a segment of level 0; `entries` are sorted, of sagas that stand in blocks."""
        size, bits = len(entries), part_bits(len(entries))
        high = max(int.from_bytes(entry[HASH_BYTES:], "big") for entry in entries)
        segment = Segment(self.next_segment(), 0, bits, ENTRY_BYTES, size, high, True)
        prints = Prints.empty(size)
        buckets = 1 << (prints.bits - bits)
        for part, found in enumerate(cut(entries, 0, 1 << bits, bits)):
            prints.grow(found, part * buckets, buckets)
            write_part(cursor, segment.part_keys()[part], found)
        write_head(cursor, segment, prints)
        return segment, prints

    def took(self, segment: Segment, prints: Prints) -> None:
        """A segment is durable: what stands in it is found from now on."""
        self.segments.append((segment, prints))
        for sieve in self._sieves:
            if sieve.bits == prints.bits:
                sieve.add(segment, prints)
                return
        self._sieves += sifted([(segment, prints)])

    def merged(self, segments: Sequence[Segment], made: Segment, prints: Prints) -> None:
        """A segment that stands for others is durable: those can go."""
        gone = {segment.id for segment in segments}
        self.segments = [each for each in self.segments if each[0].id not in gone]
        kept: list[Sieve] = []
        for sieve in self._sieves:
            left = [each for each in sieve.segments if each[0].id not in gone]
            kept += [sieve] if len(left) == len(sieve.segments) else sifted(left)
        self._sieves = kept
        self.took(made, prints)

    def part(self, key: int) -> bytes:
        """Give a part's entries."""
        rows = self._store.rows(_PART, key)
        if not rows:
            raise JournalFailed(f"{self._store.path} is damaged: part {key} is missing")
        return self._sound(unseal, rows[0][0])

    # -- retention ------------------------------------------------------------------------------

    def forget(self, below: int) -> None:
        """From now on what has a lower ordinal is past retention."""
        self.forgotten = max(self.forgotten, below)

    def expired(self, below: int) -> tuple[int, list[int]] | None:
        """Give the next sagas to forget: the ordinal behind them, and their numbers.

        Args:
            below: those with this ordinal or a higher one are left alone.
        """
        end, numbers = self.forgotten, []
        for first, sealed in self._store.rows(_OLDEST, self.forgotten, FORGOTTEN_AT_ONCE):
            records = self._sound(unpack_block, sealed)
            if first + len(records) > below:
                break
            if first != end:  # the column is not sealed: a flipped bit there forgets nothing
                raise JournalFailed(f"{self._store.path} is damaged: saga {end} has no block")
            numbers += [card_of_record(self._sound(unpack_record, r)).number for r in records]
            end += len(records)
        return (end, numbers) if numbers else None

    def has_expired_blocks(self) -> bool:
        """Say whether blocks are past retention and still there."""
        return self._blocks_from < self.forgotten

    def delete_expired_blocks(self, cursor: Cursor, limit: int) -> None:
        """Delete the oldest blocks that are past retention, at most `limit`."""
        cursor.execute(_DELETE_OLDEST, (self.forgotten, limit))

    def deleted_expired_blocks(self) -> None:
        """Some are gone for certain: see which is the oldest now."""
        oldest = self._store.rows("SELECT min(first) FROM block")[0][0]
        self._blocks_from = self._base if oldest is None else oldest

    # -- reading --------------------------------------------------------------------------------

    def _ordinal(self, saga_id: str) -> int | None:
        """Give the ordinal of a saga that stands in a segment; 0 where that has none any more."""
        hashed = hash_of(saga_id)
        top, mark = top_of(hashed), mark_of(hashed)
        for sieve in self._sieves:
            if sieve.may_hold(top, mark):
                for segment, prints in sieve.segments:
                    if prints.may_hold(top, mark):
                        entry = find_in(self.part(segment.part_of(top)), segment.width, hashed)
                        if entry is not None:
                            return int.from_bytes(entry[HASH_BYTES:], "big")
        return None

    def _record(self, ordinal: int, saga_id: str) -> Record:
        for _, record in self._from(ordinal, self._store.rows(_BLOCK, ordinal)):
            started = record[0].entries[0]
            # Where a block begins is not sealed with it.
            if isinstance(started, Started) and started.saga_id == saga_id:
                return record
            raise JournalFailed(f"{self._store.path} is damaged: saga {ordinal} is another")
        raise JournalFailed(f"{self._store.path} is damaged: saga {ordinal} has no block")

    def _records(self, start: int, end: int) -> Iterator[Record]:
        """Give the records of start .. end; those past retention are gone."""
        if start >= end:
            return
        blocks = self._store.rows(_BLOCK, start)
        blocks += self._store.rows(_BLOCKS, blocks[0][0] if blocks else -1, end)
        wanted = start
        for ordinal, record in self._from(start, blocks):
            if ordinal != wanted or ordinal >= end:
                break
            yield record
            wanted += 1
        if wanted != end:
            raise JournalFailed(f"{self._store.path} is damaged: saga {wanted} has no block")

    def _from(self, start: int, blocks: list[Any]) -> Iterator[tuple[int, Record]]:
        for first, sealed in blocks:
            records = self._sound(unpack_block, sealed)
            for at in range(max(0, start - first), len(records)):
                yield first + at, self._sound(unpack_record, records[at])

    def _sound(self, read: Callable[[bytes], T], sealed: bytes) -> T:
        try:
            return read(sealed)
        except Unreadable as error:
            raise JournalFailed(f"{self._store.path} is damaged: {error}") from None


def write_part(cursor: Cursor, key: int, entries: Sequence[bytes]) -> None:
    """Write a part of a segment."""
    cursor.execute("INSERT INTO part VALUES(?, ?)", (key, seal(b"".join(entries))))


def write_head(cursor: Cursor, segment: Segment, prints: Prints) -> None:
    """Write what is known of a segment, in place of what was."""
    packed = seal(prints.pack()) if segment.live else b""
    cursor.execute(
        "INSERT OR REPLACE INTO segment VALUES(?, ?, ?)",
        (segment.id, pack_segment(segment), packed),
    )
