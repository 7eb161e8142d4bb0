"""A process that commits to a journal for as long as it lives: `committing.py PATH CLUSTER`.

Prints, for each commit, the sequence that it acknowledges; runs until it is killed.
"""

import sys
from pathlib import Path

from shard import store as store_room
from shard.entries import AttemptEnded
from shard.journal import SqliteJournal


def main() -> None:
    store_room.WAL_PAGES_MAX = 64  # so that some kills meet a checkpoint
    journal = SqliteJournal(Path(sys.argv[1]), sys.argv[2], 0)
    for _ in journal.replay():
        pass
    while True:
        seq = journal.last.seq + 1
        journal.commit([AttemptEnded(seq, 1, 0, 1, "failed", "x" * (seq * 37 % 9000))], 1, seq)
        print(seq, flush=True)


if __name__ == "__main__":
    main()
