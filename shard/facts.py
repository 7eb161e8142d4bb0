"""Facts: each entry of a saga as a line of the log, for who looks for a mistake at level debug.

Stands before the journal and tells what is durable; at any other level it is not there at all, so
that sagas cost no line and no look. Ids are bound to every line: the saga's, and its trace's where
it has one. Never a body, a reason or a text: they hold what clients and services have sent.
"""

from collections.abc import Iterable, Iterator

from cluster.telemetry import Log
from sagacity import traces
from sagacity.ids import ACTION, DIRECTIONS
from sagacity.wire import DECLINED, Answer
from shard.entries import (
    OF_NO_SAGA,
    AttemptEnded,
    Batch,
    Entry,
    Finished,
    Quarantined,
    RetryAsked,
    Started,
    TurnedBack,
)
from shard.journal import Journal, Receipt
from shard.phases import PHASES
from shard.records import Record
from shard.state import Checkpoint

Ids = dict[str, str]


class ToldJournal:
    """A journal whose commits are told.

    Args:
        journal: that keeps.
        log: at level debug.
    """

    def __init__(self, journal: Journal, log: Log) -> None:
        self._journal = journal
        self._log = log
        self._ids: dict[int, Ids] = {}  # by number, of sagas that are not final

    @property
    def last(self) -> Receipt:
        """The last commit."""
        return self._journal.last

    def checkpoint(self) -> Checkpoint | None:
        """Give the checkpoint; see Journal."""
        return self._journal.checkpoint()

    def kept(self) -> Iterator[Record]:
        """Give what is kept of sagas, and note whose they are."""
        for record in self._journal.kept():
            for row in record:
                self._note(row.entries)
            yield record

    def replay(self) -> Iterator[tuple[int, Batch]]:
        """Give the rows, and note which sagas they speak of; they were told by who wrote them."""
        for seq, batch in self._journal.replay():
            self._note(batch.entries)
            yield seq, batch

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Commit, then tell."""
        receipt = self._journal.commit(entries, epoch, wall_ms)
        for entry in entries:
            self._note([entry])
            if not isinstance(entry, OF_NO_SAGA):
                event, fields = told_of(entry)
                ids = self._ids.get(entry.number, {})
                self._log.debug(event, **ids, seq=receipt.seq, **fields)
            if isinstance(entry, Finished):
                self._ids.pop(entry.number, None)
        return receipt

    def chain_at(self, seq: int) -> bytes | None:
        """Give the chain at a row; see Journal."""
        return self._journal.chain_at(seq)

    def history(self, number: int, seqs: Iterable[int]) -> Record:
        """Give a saga's rows; see Journal."""
        return self._journal.history(number, seqs)

    def size_bytes(self) -> int:
        """Give the size of the files."""
        return self._journal.size_bytes()

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _note(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if isinstance(entry, Started):
                self._ids[entry.number] = traces.bound(entry.saga_id, entry.headers)


def told_of(entry: Entry) -> tuple[str, dict[str, object]]:
    """Give the event that an entry of a saga is, and what may be said of it."""
    if isinstance(entry, Started):
        return "saga_started", {"saga": entry.saga}
    if isinstance(entry, Finished):
        return "saga_finished", {"outcome": PHASES[entry.phase].lower()}
    if isinstance(entry, TurnedBack):
        return "saga_turned_back", {"step": entry.step, "cause": entry.cause}
    assert isinstance(entry, Answer | AttemptEnded | Quarantined | RetryAsked)
    fields: dict[str, object] = {"step": entry.step}
    if isinstance(entry, RetryAsked):
        return "retry_asked", fields
    fields["attempt"] = entry.attempt
    if isinstance(entry, Answer):
        if entry.direction != ACTION:
            return "step_compensated", fields
        return ("step_declined" if entry.outcome == DECLINED else "step_succeeded"), fields
    fields["direction"] = DIRECTIONS[entry.direction]
    if isinstance(entry, AttemptEnded):
        return "attempt_ended", {**fields, "cause": entry.cause}
    return "command_quarantined", {**fields, "deaths": entry.deaths}
