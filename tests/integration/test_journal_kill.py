"""Journal: kill -9 of a real process while it commits."""

import subprocess
import sys
from pathlib import Path

from shard.entries import AttemptEnded
from shard.journal import SqliteJournal

CLUSTER = "0123456789abcdef" * 2
COMMITTING = Path(__file__).with_name("committing.py")


def commit_until_killed(path: Path, after: int) -> int:
    """Have a process commit, kill it once it has acknowledged `after` more commits.

    Returns:
        The last sequence that it acknowledged.
    """
    command = [sys.executable, "-P", str(COMMITTING), str(path), CLUSTER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for _ in range(after):
                assert process.stdout.readline(), "it ended by itself"
        finally:
            process.kill()
        # What it had acknowledged before the signal came is in the pipe; a line may be torn.
        rest = process.stdout.read()
    acknowledged = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert process.returncode == -9
    return int(acknowledged[-1]) if acknowledged else 0


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    """Each round begins with the recovery of the one before; the process dies wherever it is."""
    path = tmp_path / "journal.db"
    before = 0
    for after in (1, 40, 150, 3, 90):
        acknowledged = commit_until_killed(path, after)
        journal = SqliteJournal(path, CLUSTER, 0)
        rows = list(journal.replay())
        journal._db.close()
        found = [entry for _, batch in rows for entry in batch.entries]
        assert found == [
            AttemptEnded(seq, 1, 0, 1, "failed", "x" * (seq * 37 % 9000))
            for seq in range(1, len(rows) + 1)
        ]
        assert len(rows) >= before + after, "the round was void"
        assert acknowledged <= len(rows) <= max(acknowledged, before + after) + 1
        before = len(rows)
