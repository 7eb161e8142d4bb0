"""Evidence: what a stopped shard's journal holds, told to the checker; changes no byte of it.

python -P -m shard evidence --data DIR [--config FILE] [--parent PID]

Lines of JSON on stdout, of each shard in order: the journal without its sagas, then each of these.
`checker.evidence` says of what shape. The caller keeps the cluster from starting meanwhile. What
is not as it was written is a fault of the journal; what is no journal of ours, or of another
version, is refused.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import apsw
import msgspec

from checker.evidence import Journal, OfSaga, OfShard
from checker.folds import plans_of, refolded, replayed
from cluster.child import die_with
from cluster.directory import OTHER_VERSION, DataDirectory
from cluster.resting import opened
from config.load import load
from sagacity.errors import Malformed, SagacityError
from shard.codec import (
    Unreadable,
    unpack_batch,
    unpack_block,
    unpack_checkpoint,
    unpack_record,
    unpack_segment,
    unseal,
)
from shard.entries import FORMAT, Batch
from shard.process import definitions_of
from shard.records import Record
from shard.sagas import Definition
from shard.segments import ENTRY_BYTES, HASH_BYTES, entries_in
from shard.state import Checkpoint
from shard.store import APPLICATION_ID
from shard.verify import EXIT_INTERRUPTED, FAULTS_MAX, Found, faults_of

_ROWS = "SELECT seq, chain, batch FROM journal WHERE seq > ? ORDER BY seq"
_encode = msgspec.json.Encoder().encode


def read(path: Path, cluster_id: str, shard: int, definitions: Mapping[str, Definition]) -> Journal:
    """Read a journal to its end, or as far as it can be read.

    Args:
        path: of the file.
        cluster_id: that it should belong to.
        shard: index that it should belong to.
        definitions: by name; a replay needs them.

    Raises:
        Malformed: it is no journal of Sagacity, or of another version.
    """
    if not path.exists():
        return Journal(shard)  # its shard never served; whoever has seen it serve says so
    journal = Journal(shard)
    try:
        with opened(path) as db:
            if not _is_made(db, path):
                return journal
            for fault in faults_of(db, cluster_id, shard, Found(shard)):
                journal.faults.append(fault)
                if len(journal.faults) == FAULTS_MAX:
                    break
            _read(db, journal, definitions)
    except (Unreadable, apsw.Error) as error:
        journal.unread = f"after row {journal.last_seq}: {error}"
    except OSError as error:
        journal.unread = f"{error.strerror} ({error.filename})"
    if journal.unread and not journal.faults:
        journal.faults.append(f"cannot be read {journal.unread}")
    return journal


def _is_made(db: apsw.Connection, path: Path) -> bool:
    """Say whether a shard has ever written here; refuse what is not ours or of another version."""
    application, version, schema = (
        int(db.pragma(name) or 0) for name in ("application_id", "user_version", "schema_version")
    )
    if application == version == schema == 0:
        return False
    if application != APPLICATION_ID:
        raise Malformed(f"{path} is no journal of Sagacity")
    if version != FORMAT:
        raise Malformed(
            f"{path} has format version {version}; this version reads {FORMAT}; {OTHER_VERSION}"
        )
    return True


def _read(db: apsw.Connection, journal: Journal, definitions: Mapping[str, Definition]) -> None:
    checkpoint = _checkpoint(db)
    kept: list[Record] = []
    if checkpoint is not None:
        journal.checkpoint, journal.chain = checkpoint.seq, checkpoint.chain
        journal.counts = checkpoint.counts
        journal.forgotten = list(checkpoint.counts.forgotten_counts)
        for record in _blocks(db, checkpoint.counts.forgotten):
            journal.take_record(record)
        rows = db.execute("SELECT record FROM kept ORDER BY number")
        kept = [unpack_record(unseal(sealed)) for (sealed,) in rows]
        for record in kept:
            journal.take_record(record)
        journal.tombstones = set(_tombstones(db, checkpoint.counts.forgotten))
    for seq, batch, chain in _rows(db, journal.checkpoint):
        journal.take(seq, batch, chain)
    tail = ((seq, batch) for seq, batch, _ in _rows(db, journal.checkpoint))
    if all(story.started.saga in definitions for story in journal.stories.values()):
        journal.folds = [
            replayed(checkpoint, kept, tail, definitions),
            refolded(journal, definitions),
        ]


def _checkpoint(db: apsw.Connection) -> Checkpoint | None:
    rows: list[Any] = db.execute("SELECT counts FROM checkpoint").fetchall()
    return unpack_checkpoint(rows[0][0]) if rows else None


def _rows(db: apsw.Connection, checkpoint: int) -> Iterator[tuple[int, Batch, bytes]]:
    for seq, chain, packed in db.execute(_ROWS, (checkpoint,)):
        if type(packed) is not bytes or type(chain) is not bytes:  # a damaged page gives anything
            raise Unreadable(f"row {seq} holds no bytes")
        yield seq, unpack_batch(packed), chain


def _blocks(db: apsw.Connection, forgotten: int) -> Iterator[Record]:
    """Give the records of sagas that had ended; those past retention mean nothing."""
    for first, sealed in db.execute("SELECT first, records FROM block ORDER BY first"):
        records = [unpack_record(packed) for packed in unpack_block(sealed)]
        yield from records[max(0, forgotten - first) :]


def _tombstones(db: apsw.Connection, forgotten: int) -> Iterator[bytes]:
    """Give the hashes of the ids whose sagas are past retention."""
    for (head,) in db.execute("SELECT head FROM segment"):
        segment = unpack_segment(head)
        for key in segment.part_keys() if segment.live else ():
            part = db.execute("SELECT entries FROM part WHERE key = ?", (key,)).fetchone()
            for entry in entries_in(unseal(part[0] if part else b""), segment.width):
                wide = segment.width == ENTRY_BYTES
                if not wide or int.from_bytes(entry[HASH_BYTES:], "big") < forgotten:
                    yield entry[:HASH_BYTES]


def tell(journal: Journal, definitions: Mapping[str, Definition], out: BinaryIO) -> None:
    """Write a journal's lines."""
    head = msgspec.structs.replace(journal, stories={})
    out.write(_encode(OfShard(head, len(journal.stories), plans_of(definitions))) + b"\n")
    for number, story in journal.stories.items():
        out.write(_encode(OfSaga(number, story.record)) + b"\n")
    out.flush()


def main(argv: Sequence[str]) -> int:
    """Tell every journal of a directory; an exit code of SPEC 4, 0 also where there are faults."""
    parser = argparse.ArgumentParser(prog="python -m shard evidence", allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--parent", type=int, metavar="PID")
    args = parser.parse_args(argv)
    if args.parent is not None:
        die_with(args.parent, signal.SIGINT)  # as from a terminal: the copies are removed
    try:
        data = DataDirectory(args.data)
        definitions = definitions_of(load(args.config))
        cluster = data.read()
        for index in range(cluster.shards):
            journal = read(data.journal(index), cluster.cluster_id, index, definitions)
            tell(journal, definitions, sys.stdout.buffer)
    except SagacityError as error:
        sys.stderr.write(f"{error.text}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
