"""What the floor keeps: its databases, the finished sagas of a shard, the books compared."""

from bisect import bisect_right
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import apsw

from sagacity import wire
from sagacity.sqlite import set_pragma

BLOCK: Final = 1024  # finished sagas that leave the journal together, at least

SHARD_TABLES: Final = """
CREATE TABLE journal(seq INTEGER PRIMARY KEY, chain BLOB NOT NULL, batch BLOB NOT NULL) STRICT;
CREATE TABLE finished(first INTEGER PRIMARY KEY, ids BLOB NOT NULL, answers BLOB NOT NULL) STRICT;
"""

_read_answers = wire.decoder(list[bytes])


def database(path: Path, schema: str, *, exclusive: bool = False) -> apsw.Connection:
    """Open a database as ours are: WAL, synced at every commit; a shard's for itself alone."""
    db = apsw.Connection(str(path))
    if exclusive:
        set_pragma(db, "locking_mode", "exclusive")
    set_pragma(db, "journal_mode", "wal")
    set_pragma(db, "synchronous", "FULL", expect=2)
    list(db.execute(schema))
    return db


class Used:
    """Which ids were used, and what each was answered. Hashes in memory, all of it in the file.

    Args:
        db: of the shard.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._ordinals: dict[bytes, int] = {}
        self._hashes: list[bytes] = []  # of those that are in no block yet
        self._answers: list[bytes] = []
        self._firsts: list[int] = []  # of the blocks
        self._written = 0

    def answer(self, saga_id: str) -> bytes | None:
        """Give a finished saga's answer; None for an id that is new."""
        ordinal = self._ordinals.get(blake2b(saga_id.encode(), digest_size=16).digest())
        if ordinal is None:
            return None
        if ordinal >= self._written:
            return self._answers[ordinal - self._written]
        first = self._firsts[bisect_right(self._firsts, ordinal) - 1]
        packed: Any = self._db.execute("SELECT answers FROM finished WHERE first = ?", (first,)).get
        found: bytes = _read_answers(packed)[ordinal - first]
        return found

    def add(self, saga_id: str, answer: bytes) -> None:
        """Keep the answer of a saga that has ended."""
        hashed = blake2b(saga_id.encode(), digest_size=16).digest()
        self._ordinals[hashed] = self._written + len(self._answers)
        self._hashes.append(hashed)
        self._answers.append(answer)

    def block(self) -> tuple[int, bytes, bytes] | None:
        """Give the next row of the table `finished`, once there are enough for one."""
        if len(self._answers) < BLOCK:
            return None
        row = self._written, b"".join(sorted(self._hashes)), wire.encode(self._answers)
        self._firsts.append(self._written)
        self._written += len(self._answers)
        self._hashes, self._answers = [], []
        return row


def faults(directory: Path) -> list[str]:
    """Compare what the services hold, once nothing runs: each finished saga is in all or in none.

    Returns:
        What does not fit; nothing where the books balance.
    """
    held = "SELECT count(DISTINCT number) FROM reservation WHERE released = 0"
    taken = "SELECT coalesce(sum(quantity), 0) FROM reservation WHERE released = 0"
    paid = "SELECT count(*) FROM payment WHERE refunded < amount"
    sent = "SELECT count(*) FROM shipment WHERE cancelled = 0"
    gone = "SELECT sum(initial - available) FROM stock"
    found = {
        "sagas with goods held": _number(directory / "inventory.db", held),
        "sagas that paid": _number(directory / "payment.db", paid),
        "sagas with goods sent": _number(directory / "shipping.db", sent),
    }
    left = _number(directory / "inventory.db", gone), _number(directory / "inventory.db", taken)
    said = [] if left[0] == left[1] else [f"{left[0]} units are gone, {left[1]} are held"]
    return said + ([] if len(set(found.values())) == 1 else [str(found)])


def _number(file: Path, query: str) -> int:
    db = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        found: Any = db.execute(query).get
    finally:
        db.close()
    return int(found)
