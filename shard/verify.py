"""Verify: whether a stopped shard's journal is what its shard wrote; changes no byte of it.

python -P -m shard verify --data DIR [--parent PID]

One line of JSON a shard on stdout. The caller keeps the cluster from starting meanwhile. A file
without a WAL is read as it stands, as immutable; one with a WAL is copied first, since SQLite would
write to the directory to read both.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import apsw
import msgspec
from msgspec import Struct

from cluster.child import die_with
from cluster.directory import DataDirectory
from sagacity.errors import SagacityError
from sagacity.ids import shard_of
from shard.codec import GENESIS, Unreadable, link, unpack_batch
from shard.entries import FORMAT, Batch, Opened, Started
from shard.store import APPLICATION_ID

EXIT_INTERRUPTED = 128 + signal.SIGINT  # as shells count
FAULTS_MAX = 100  # told of one shard; the rest is counted as one more


class Found(Struct):
    """What a journal holds.

    Args:
        shard: its index.
        rows: that could be read.
        last_seq: of the last one; 0 without any.
        chain: the hash over all rows, 32 hexadecimal digits.
        epoch: how often the shard was taken over.
        faults: a sentence for each thing that is not as it was written.
    """

    shard: int
    rows: int = 0
    last_seq: int = 0
    chain: str = GENESIS.hex()
    epoch: int = 0
    faults: list[str] = msgspec.field(default_factory=list)


def verify(path: Path, cluster_id: str, shard: int) -> Found:
    """Read a journal from its first byte to its last.

    Args:
        path: of the file.
        cluster_id: that it should belong to.
        shard: index that it should belong to.
    """
    found = Found(shard)
    try:
        with opened(path) as db:
            for fault in faults_of(db, cluster_id, shard, found):
                found.faults.append(fault)
                if len(found.faults) == FAULTS_MAX:
                    found.faults.append(f"more than {FAULTS_MAX} faults: the rest is not told")
                    break
    except apsw.Error as error:
        found.faults.append(f"cannot be read after row {found.last_seq}: {error}")
    except OSError as error:
        found.faults.append(f"cannot be read: {error.strerror} ({error.filename})")
    return found


@contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    """Give a connection to what is committed in a journal; the journal's directory stays as it is.

    Raises:
        OSError: it is not there, or there is no room for a copy ($TMPDIR).
        apsw.Error: it is no database.
    """
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        path.stat()  # SQLite does not say why
        uri = f"file:{quote(str(path))}?immutable=1"
        with closing(apsw.Connection(uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)) as db:
            yield db
        return
    with tempfile.TemporaryDirectory(prefix="sagacity-verify-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(wal, copy.with_name(wal.name))
        with closing(apsw.Connection(str(copy))) as db:
            yield db


def faults_of(db: apsw.Connection, cluster_id: str, shard: int, found: Found) -> Iterator[str]:
    """Give a sentence for each fault, and note what was read; changes nothing.

    Raises:
        apsw.Error: the file cannot be read any further.
    """
    application, version = _pragma(db, "application_id"), _pragma(db, "user_version")
    if application == version == 0 and not _pragma(db, "schema_version"):
        yield "it is empty: its shard never served, or what it held is gone"
        return
    if application != APPLICATION_ID:
        yield "it is no journal of Sagacity"
        return
    if version != FORMAT:
        yield f"it has format version {version}; this version of Sagacity reads {FORMAT}"
        return
    whose = db.execute("SELECT cluster_id, shard FROM identity").fetchall()
    if whose != [(cluster_id, shard)]:
        yield f"it belongs to {whose}, not to cluster {cluster_id}, shard {shard}"
    yield from (
        f"the file is damaged: {line}"
        for (line,) in db.execute("PRAGMA quick_check(20)")
        if line != "ok"
    )
    yield from _rows(db, cluster_id, shard, found)


def _rows(db: apsw.Connection, cluster_id: str, shard: int, found: Found) -> Iterator[str]:
    chain, highest = GENESIS, 0
    for seq, stored, packed in db.execute("SELECT seq, chain, batch FROM journal ORDER BY seq"):
        follows = seq == found.last_seq + 1
        if not follows:
            yield f"rows are missing: row {seq} follows row {found.last_seq}"
        found.rows, found.last_seq = found.rows + 1, seq
        if type(stored) is not bytes or type(packed) is not bytes:  # of a damaged file
            yield f"row {seq} holds no bytes"
            continue
        if follows and stored != link(chain, seq, packed):
            yield f"row {seq} is not what was written: its chain does not fit"
        # From here on the chain is taken as it stands: one flipped bit is one fault.
        chain, found.chain = stored, stored.hex()
        try:
            batch = unpack_batch(packed)
        except Unreadable as error:
            yield f"row {seq} cannot be read: {error}"
            continue
        for entry in batch.entries:
            if isinstance(entry, Opened):
                if (entry.cluster_id, entry.shard) != (cluster_id, shard):
                    yield f"row {seq} was written for {entry.cluster_id}, shard {entry.shard}"
                if entry.epoch <= found.epoch:
                    yield f"row {seq}: epoch {entry.epoch} follows epoch {found.epoch}"
                found.epoch = entry.epoch
            elif isinstance(entry, Started):
                if entry.number <= highest or shard_of(entry.number) != shard:
                    yield f"row {seq}: number {entry.number} was given after {highest}"
                highest = entry.number
        yield from _of_another_epoch(seq, batch, found.epoch)


def _of_another_epoch(seq: int, batch: Batch, epoch: int) -> Iterator[str]:
    if batch.epoch != epoch:
        yield f"row {seq} was written in epoch {batch.epoch}, after epoch {epoch} had begun"


def _pragma(db: apsw.Connection, name: str) -> int:
    row = db.execute(f"PRAGMA {name}").fetchone()
    return int(row[0]) if row else 0


def main(argv: Sequence[str]) -> int:
    """Verify every shard of a directory; an exit code of SPEC 4, 0 also where there are faults."""
    parser = argparse.ArgumentParser(prog="python -m shard verify", allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--parent", type=int, metavar="PID")
    args = parser.parse_args(argv)
    if args.parent is not None:
        die_with(args.parent, signal.SIGINT)  # as from a terminal: the copies are removed
    try:
        return _verify_all(DataDirectory(args.data))
    except SagacityError as error:
        sys.stderr.write(f"{error.text}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _verify_all(data: DataDirectory) -> int:
    cluster = data.read()
    for index in range(cluster.shards):
        found = verify(data.journal(index), cluster.cluster_id, index)
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.buffer.flush()
    return 0
