"""Records: a saga as the rows that speak of it, taken out of the journal. Pure.

A record is all that is kept of a saga once its rows are gone from the journal: its history, and
therefore its answer. Of a finished one `card_of_record` makes what its id must still answer.
"""

from collections import deque

from msgspec import Struct

from sagacity.errors import check
from sagacity.ids import order_id
from sagacity.traces import TRACEPARENT
from shard.entries import CANCELLED, AttemptEnded, Entry, Finished, RetryAsked, Started, TurnedBack
from shard.sagas import LATE_ROWS_TOLD, ROWS_TOLD, Card


class Row(Struct, frozen=True, array_like=True, gc=False):
    """What one row of the journal says, of all sagas or of one.

    Args:
        seq: of the row.
        wall_ms: when it was written.
        entries: in the order in which they happened.
    """

    seq: int
    wall_ms: int
    entries: list[Entry]


Record = list[Row]


def thinned(rows: Record) -> Record:
    """Leave out the middle of a compensation that is tried for ever, as `Live.rows` does.

    A record stays bounded so: the first rows, the last attempts, and all that is no attempt.
    """
    if len(rows) <= ROWS_TOLD:
        return rows
    told: Record = []
    late: deque[Row] = deque(maxlen=LATE_ROWS_TOLD)
    for row in rows:
        endless = all(isinstance(entry, AttemptEnded | RetryAsked) for entry in row.entries)
        if endless and len(told) >= ROWS_TOLD:
            late.append(row)
        else:
            told.append(row)
    return sorted((*told, *late), key=lambda row: row.seq) if late else told


def is_of(record: Record, number: int) -> bool:
    """Say whether every entry of a record is of this saga."""
    return all(getattr(entry, "number", None) == number for row in record for entry in row.entries)


def card_of_record(record: Record) -> Card:
    """Make the card of a finished saga; nothing but its record is needed."""
    started, finished = record[0].entries[0], record[-1].entries[-1]
    check(isinstance(started, Started), "a record begins with the start", row=record[0].seq)
    check(isinstance(finished, Finished), "a record ends with the outcome", row=record[-1].seq)
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    cancelled = any(
        isinstance(entry, TurnedBack) and entry.cause == CANCELLED
        for row in record
        for entry in row.entries
    )
    return Card(
        started.number,
        started.saga_id,
        started.saga,
        finished.phase,
        started.fingerprint,
        finished.answer,
        started.amount,
        order_id(started.order_count, started.slot),
        cancelled,
        b"",
        record[0].wall_ms,
        record[-1].wall_ms,
        started.headers.get(TRACEPARENT, ""),
    )
