r"""Compaction: keeps a shard's file bounded, a slice of work at a time beside the critical path.

    rows of the journal --> records of sagas that ended --> blocks and a segment (a generation)
                        \-> records of the others       --> kept
    one transaction: generation, kept, checkpoint; then the rows it stands for are deleted

    eight segments of a level --> one of the next        segments past retention --> hashes alone
    blocks past retention --> deleted

What a crash interrupts is found again at the next start: a checkpoint is there or it is not, and
rows, parts and blocks that nothing speaks of any more are deleted then. Knows the shard's file, the
journal and the generations; decides nothing about sagas.
"""

from collections.abc import Callable, Iterator
from typing import Final

from msgspec.structs import replace

from sagacity.errors import check
from shard.codec import pack_checkpoint, pack_record, seal
from shard.entries import OF_NO_SAGA, Batch, Finished, Started
from shard.generations import Generations, write_head, write_part
from shard.journal import JournalFull, SqliteJournal
from shard.records import Record, Row, thinned
from shard.segments import (
    ENTRY_BYTES,
    HASH_BYTES,
    ORDINALS_MAX,
    Prints,
    Segment,
    as_wide,
    cut,
    due,
    entries_of_unit,
    entry_of,
    part_bits,
    unit_bits,
)
from shard.state import Checkpoint, Counts

SLICE_BYTES: Final = 128 << 10  # about 1.5 ms
SWEEP_BYTES: Final = 512 << 10  # of rows deleted in one transaction
SWEEP_PARTS: Final = 64
SWEEP_BLOCKS: Final = 64

_OF_NO_SAGA: Final = frozenset(OF_NO_SAGA)


class Compaction:
    """Does what is due, slice by slice.

    Args:
        journal: whose rows are taken apart; its store is the file.
        generations: where finished sagas go.
        counts: gives what the state counts now.
        tail_bytes: of rows since the checkpoint after which a compaction begins.
        slice_bytes: of rows taken apart in one turn.
        per_level: segments of one level that are merged; as `due` has it where it is not said.
    """

    def __init__(
        self,
        journal: SqliteJournal,
        generations: Generations,
        counts: Callable[[], Counts],
        tail_bytes: int,
        slice_bytes: int = SLICE_BYTES,
        per_level: int | None = None,
    ) -> None:
        self._journal = journal
        self._store = journal.store
        self._generations = generations
        self._counts = counts
        self._tail_bytes = tail_bytes
        self._slice_bytes = slice_bytes
        self._per_level = per_level
        self._rows: Iterator[None] | None = None  # work on rows, which come all the time
        self._rest: Iterator[None] | None = None  # other work, which waits for that
        self._swept = 0  # rows up to this one are gone for certain

    def turn(self) -> bool:
        """Do one slice, if there is something to do; say whether there is more.

        Raises:
            JournalFull: there was no room; what was begun begins again.
            JournalFailed: a commit or sync failed, or the file is damaged.
        """
        self._rows = self._rows or self._rows_due()
        if self._rows is not None:
            self._rows = _advanced(self._rows)
            return True
        self._rest = self._rest or self._rest_due()
        if self._rest is not None:
            self._rest = _advanced(self._rest)
            return True
        return False

    def let_go(self) -> None:
        """Leave what is half done; a state that is replaced must not wait for the collector."""
        self._rows = self._rest = None

    def _rows_due(self) -> Iterator[None] | None:
        if self._journal.tail_bytes >= self._tail_bytes:
            return self._compact()
        if self._swept < self._journal.checkpoint_seq:
            return self._sweep_rows()
        return None

    def _rest_due(self) -> Iterator[None] | None:
        if self._generations.dead:
            return self._sweep_segment(self._generations.dead[0])
        live = [segment for segment, _ in self._generations.segments]
        segments = due(live, self._generations.forgotten, self._per_level)
        if segments:
            return self._merge(segments)
        if self._generations.has_expired_blocks():
            return self._sweep_blocks()
        return None

    # -- rows to records ------------------------------------------------------------------------

    def _compact(self) -> Iterator[None]:
        """Take the rows since the checkpoint apart, and move the checkpoint behind them."""
        last = self._journal.last
        checkpoint = Checkpoint(last.seq, last.chain, self._counts())
        sorting = _Sorting(self._generations.base, self._journal.kept_record)
        for rows in self._journal.slices(last.seq, self._slice_bytes):
            for seq, batch in rows:
                sorting.take(seq, batch)
            yield
        self._enter(sorting, checkpoint)

    def _enter(self, sorting: "_Sorting", checkpoint: Checkpoint) -> None:
        sorting.keep_the_rest()
        ended = len(sorting.records)
        check(self._generations.base + ended < ORDINALS_MAX, "no ordinal is left")
        check(
            self._generations.base + ended == checkpoint.counts.finished,
            "rows tell of other ends than were counted",
            base=self._generations.base,
            ended=ended,
            counted=checkpoint.counts.finished,
        )
        with self._store.transaction() as cursor:
            made = None
            if ended:
                self._generations.enter(cursor, sorting.records)
                made = self._generations.write_segment(cursor, sorted(sorting.entries))
            cursor.executemany("DELETE FROM kept WHERE number = ?", sorting.no_longer_kept)
            cursor.executemany("INSERT OR REPLACE INTO kept VALUES(?, ?)", sorting.kept)
            cursor.execute(
                "INSERT OR REPLACE INTO checkpoint VALUES(1, ?, ?)",
                (checkpoint.seq, pack_checkpoint(checkpoint)),
            )
        if made is not None:
            self._generations.took(*made)
        self._generations.entered(ended)
        self._journal.checkpointed(checkpoint.seq)

    # -- segments to larger ones ----------------------------------------------------------------

    def _merge(self, segments: list[Segment]) -> Iterator[None]:
        """Make one segment of several; those go when it is there."""
        generations = self._generations
        size, high = (
            sum(segment.size for segment in segments),
            max(segment.high for segment in segments),
        )
        width = HASH_BYTES if high < generations.forgotten else ENTRY_BYTES
        level, bits = segments[0].level + (len(segments) > 1), part_bits(size)
        made = Segment(generations.next_segment(), level, bits, width, size, high, False)
        prints = Prints.empty(size)
        with self._store.transaction() as cursor:
            write_head(cursor, made, prints)
        try:
            yield from self._merge_into(made, prints, segments)
        except JournalFull:
            generations.dead.append(made)  # begun again it is another: the parts of this one can go
            raise

    def _merge_into(self, made: Segment, prints: Prints, segments: list[Segment]) -> Iterator[None]:
        generations, size, bits, width = self._generations, made.size, made.bits, made.width
        units = unit_bits(size)
        parts, buckets = 1 << (bits - units), 1 << (prints.bits - bits)
        for unit in range(1 << units):
            entries: list[bytes] = []
            for segment in segments:
                found = entries_of_unit(segment, unit, units, generations.part)
                entries += as_wide(found, width)
            entries.sort()
            with self._store.transaction() as cursor:
                pieces = cut(entries, unit * parts, parts, bits)
                for part, piece in enumerate(pieces, unit * parts):
                    prints.grow(piece, part * buckets, buckets)
                    write_part(cursor, made.part_keys()[part], piece)
            yield
        check(prints.size == size, "entries were lost in a merge", wanted=size, got=prints.size)
        made = _with_life(made, True)
        dead = [_with_life(segment, False) for segment in segments]
        with self._store.transaction() as cursor:
            for segment in (made, *dead):
                write_head(cursor, segment, prints)
        generations.merged(segments, made, prints)
        generations.dead += dead

    # -- what nothing speaks of any more --------------------------------------------------------

    def _sweep_rows(self) -> Iterator[None]:
        """Delete the rows that the checkpoint stands for."""
        upto = self._journal.checkpoint_seq
        found = self._store.rows(
            "SELECT min(seq), count(*), sum(length(batch)) FROM journal WHERE seq <= ?", upto
        )
        low, count, size = found[0]
        if count:
            step = max(1, count * SWEEP_BYTES // max(size, 1))
            for end in range(low + step, upto + step + 1, step):
                with self._store.transaction() as cursor:
                    cursor.execute("DELETE FROM journal WHERE seq < ?", (min(end, upto + 1),))
                yield
        self._swept = upto

    def _sweep_segment(self, segment: Segment) -> Iterator[None]:
        """Delete the parts of a segment that stands in another, or was never finished."""
        keys = segment.part_keys()
        for at in range(0, len(keys), SWEEP_PARTS):
            last = keys[min(at + SWEEP_PARTS, len(keys)) - 1]
            with self._store.transaction() as cursor:
                cursor.execute("DELETE FROM part WHERE key BETWEEN ? AND ?", (keys[at], last))
            yield
        with self._store.transaction() as cursor:
            cursor.execute("DELETE FROM segment WHERE id = ?", (segment.id,))
        self._generations.dead.remove(segment)

    def _sweep_blocks(self) -> Iterator[None]:
        """Delete blocks whose sagas are past retention."""
        while self._generations.has_expired_blocks():
            with self._store.transaction() as cursor:
                self._generations.delete_expired_blocks(cursor, SWEEP_BLOCKS)
            self._generations.deleted_expired_blocks()
            yield


class _Sorting:
    """Entries of the journal, sorted by saga.

    Args:
        base: ordinal of the first saga that ends in these rows.
        kept_record: gives what an earlier compaction has kept of a saga.
    """

    def __init__(self, base: int, kept_record: Callable[[int], Record]) -> None:
        self._base = base
        self._kept_record = kept_record
        self._pending: dict[int, Record] = {}
        self.records: list[bytes] = []  # of those that ended, in that order
        self.entries: list[bytes] = []  # of the segment
        self.kept: list[tuple[int, bytes]] = []
        self.no_longer_kept: list[tuple[int]] = []

    def take(self, seq: int, batch: Batch) -> None:
        """Take in a row."""
        pending, wall_ms = self._pending, batch.wall_ms
        ended: list[int] = []
        for entry in batch.entries:
            kind = type(entry)
            if kind in _OF_NO_SAGA:  # what is of no saga stands in the counts
                continue
            number: int = entry.number  # type: ignore[union-attr]  # as all others have
            record = pending.get(number)
            if record is None:
                pending[number] = [Row(seq, wall_ms, [entry])]
            elif record[-1].seq == seq:
                record[-1].entries.append(entry)
            else:
                record.append(Row(seq, wall_ms, [entry]))
            if kind is Finished:
                ended.append(number)
        for number in ended:
            self._end(number)

    def _end(self, number: int) -> None:
        record, was_kept = self._whole(number, self._pending.pop(number))
        if was_kept:
            self.no_longer_kept.append((number,))
        started = record[0].entries[0]
        assert isinstance(started, Started)
        self.entries.append(entry_of(started.saga_id, self._base + len(self.records)))
        self.records.append(pack_record(record))

    def keep_the_rest(self) -> None:
        """Keep the records of the sagas that have not ended in these rows."""
        for number, record in self._pending.items():
            whole, _ = self._whole(number, record)
            self.kept.append((number, seal(pack_record(whole))))
        self._pending.clear()

    def _whole(self, number: int, record: Record) -> tuple[Record, bool]:
        """Put what was kept of a saga before these rows in front of what they say."""
        if isinstance(record[0].entries[0], Started):
            return thinned(record), False
        return thinned([*self._kept_record(number), *record]), True


def _advanced(work: Iterator[None]) -> Iterator[None] | None:
    """Do a slice of some work; give what is left of it."""
    try:
        next(work)
    except StopIteration:
        return None
    return work


def _with_life(segment: Segment, live: bool) -> Segment:
    return replace(segment, live=live)
