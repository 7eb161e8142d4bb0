"""Forgotten: which finished sagas a service no longer remembers, so that it can refuse them.

A shard says by a list that sagas are final and past retention (DESIGN 5); only then their barrier
rows go, and never by their age: a refund that is mended after eight days still refunds. In the
transaction that deletes them stands which sagas they were. Knows nothing of sockets and neither
begins nor commits: `executor` does.

    shard 0    1..9000, 9002..9377     9001 is running, or stuck, and stays as it is
"""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec
from apsw import Connection, Cursor

from sagacity.errors import Malformed
from sagacity.ids import (
    COMPENSATION,
    SHARD_BITS,
    SHARDS_MAX,
    STEP_BITS,
    STEPS_MAX,
    barrier_key,
    count_of,
    number_of,
    shard_of,
)
from sagacity.ranges import Range, Ranges, are_normal

T = TypeVar("T")

TABLES: Final = """
CREATE TABLE forgotten (
    shard INTEGER NOT NULL,
    low INTEGER NOT NULL,  -- counts of sagas, both ends included; ranges never overlap or touch
    high INTEGER NOT NULL,
    PRIMARY KEY (shard, low)
) STRICT, WITHOUT ROWID;
"""

ROWS_MAX: Final = 2_000  # barrier rows that one transaction looks at: 5 to 7 ms
COUNTS_MAX: Final = (1 << 63) - 1 >> (SHARD_BITS + STEP_BITS + 1)  # so that their keys fit
RANGE_ROWS: Final = 4  # rows whose time a range takes, however short

_KEYS: Final = "SELECT key FROM barrier WHERE key BETWEEN ? AND ? LIMIT ?"
# Between a shard's rows stand those of the others, under the same counts: a key holds its shard in
# the ten bits above step and direction.
_DELETE: Final = "DELETE FROM barrier WHERE key BETWEEN ? AND ? AND (key >> 5) & 1023 = ?"
_KEEP: Final = "INSERT OR REPLACE INTO forgotten (shard, low, high) VALUES (?, ?, ?)"
_MERGED: Final = "DELETE FROM forgotten WHERE shard = ? AND low = ?"


class Forgotten:
    """The sagas that one service's database has forgotten; its owner holds the transaction.

    Args:
        connection: of the database.

    `upto` is the highest number forgotten, of any shard: a command above it, as they usually are,
    needs no look. `load` after a rollback, and after another connection has written.
    """

    def __init__(self, connection: Connection) -> None:
        self.upto = -1
        self._rows = connection.cursor()
        self._of: dict[int, Ranges] = {}

    def load(self) -> None:
        """Read what is in the database now.

        Raises:
            Malformed: it is not what was written.
        """
        found: dict[int, list[Range]] = {}
        sql = "SELECT shard, low, high FROM forgotten ORDER BY shard, low"
        for shard, low, high in read_rows(self._rows, sql, tuple[int, int, int]):
            found.setdefault(shard, []).append((low, high))
        for shard, ranges in found.items():
            if not (0 <= shard < SHARDS_MAX and are_normal(ranges, 0, COUNTS_MAX)):
                raise Malformed("the database is damaged in its table forgotten")
        self._of = {shard: Ranges(ranges) for shard, ranges in found.items()}
        self.upto = max(
            (number_of(known.highest, shard) for shard, known in self._of.items()), default=-1
        )

    def holds(self, number: int) -> bool:
        """Say whether a saga is forgotten."""
        known = self._of.get(shard_of(number))
        return known is not None and count_of(number) in known

    def forget(self, shard: int, ranges: Sequence[Range]) -> list[Range]:
        """Forget sagas of a shard, as many as one transaction should take.

        Args:
            shard: whose they are.
            ranges: normal ranges of their counts.

        Returns:
            What is left of the ranges.
        """
        known = self._of.setdefault(shard, Ranges())
        room = ROWS_MAX
        for at, (given, high) in enumerate(ranges):
            low = known.first_missing(given)
            if low > high:
                continue  # a list that came before
            if room <= 0:
                return [(low, high), *ranges[at + 1 :]]
            upto, seen = self._delete(shard, low, high, room)
            self._keep(shard, known, low, upto)
            room -= seen + RANGE_ROWS
            if upto < high:
                return [(upto + 1, high), *ranges[at + 1 :]]
        return []

    def _delete(self, shard: int, low: int, high: int, rows_max: int) -> tuple[int, int]:
        """Delete barrier rows; give the last count that has none any more, and the rows seen."""
        first = barrier_key(number_of(low, shard), 0, 0)
        found: Any = self._rows.execute(_KEYS, (first, _last_key(high, shard), rows_max)).fetchall()
        upto = high
        if len(found) == rows_max:  # there may be more, of the last one seen too
            upto = min(max(low, count_of(found[-1][0] >> (STEP_BITS + 1)) - 1), high)
        self._rows.execute(_DELETE, (first, _last_key(upto, shard), shard))
        return upto, len(found)

    def _keep(self, shard: int, known: Ranges, low: int, high: int) -> None:
        gone, (low, high) = known.add(low, high)
        for each in gone:
            if each != low:
                self._rows.execute(_MERGED, (shard, each))
        self._rows.execute(_KEEP, (shard, low, high))
        self.upto = max(self.upto, number_of(high, shard))


def read_rows(rows: Cursor, sql: str, kind: type[T]) -> list[T]:
    """Read rows that the kit has written itself.

    Raises:
        Malformed: they are not what was written: a damaged page gives anything.
    """
    try:
        found = rows.execute(sql).fetchall()
        return msgspec.convert(found, list[kind], builtin_types=(bytes,))  # type: ignore[valid-type]  # a type given as a value
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise Malformed(f"the database is damaged: {error}") from None


def _last_key(count: int, shard: int) -> int:
    return barrier_key(number_of(count, shard), STEPS_MAX, COMPENSATION)
