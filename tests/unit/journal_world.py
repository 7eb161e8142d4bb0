"""What the tests of the journal share: entries that tell rows apart, files opened and abandoned."""

from pathlib import Path

from shard.entries import AttemptEnded, Entry, TurnedBack
from shard.journal import Journal, SqliteJournal

CLUSTER = "0123456789abcdef" * 2


def entries_of(index: int, size: int = 10) -> list[Entry]:
    """Give entries that differ for each index."""
    return [
        AttemptEnded(index << 10, 1, 0, index + 1, "failed", "x" * size),
        TurnedBack(index << 10, 1, "cancelled", f"Cancelled: {index}"),
    ]


def filled(journal: Journal, count: int, *, begin: int = 0) -> None:
    for index in range(begin, begin + count):
        journal.commit(entries_of(index), 1, 1000 + index)


def replayed(journal: Journal) -> list[list[Entry]]:
    return [batch.entries for _, batch in journal.replay()]


def open_at(path: Path, *, vfs: str | None = None) -> SqliteJournal:
    return SqliteJournal(path, CLUSTER, 0, vfs)


def abandon(journal: SqliteJournal) -> None:
    """Let go of a file as a killed process does: nothing is copied, nothing removed."""
    journal._db.close()


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")
