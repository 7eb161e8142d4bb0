"""Databases of processes that do not run, read without changing a byte of their directory.

A file without a WAL is read as it stands, as immutable; one with a WAL is copied first, since
SQLite would write to the directory to read both.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import apsw

from checker.evidence import ServiceRows
from sagacity.errors import Malformed
from sagacity.executor import FORMAT
from sagacity.wire import Witness

# Tables that every service's database has; all others are its own.
KIT: Final = frozenset({"origin", "barrier", "fence", "witness", "forgotten"})


@contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    """Give a connection to what is committed in a database; its directory stays as it is.

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
    with tempfile.TemporaryDirectory(prefix="sagacity-read-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(wal, copy.with_name(wal.name))
        with closing(apsw.Connection(str(copy))) as db:
            yield db


def service_rows(db: apsw.Connection, name: str) -> ServiceRows:
    """Read every row of a service's database.

    Args:
        db: on disk or in memory.
        name: of the service.

    Raises:
        Malformed: it is another program's, or of another version.
        apsw.Error: it cannot be read.
    """
    tables = {each for (each,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    found = ServiceRows(name)
    if not tables:
        return found  # made, and never served
    if "origin" not in tables:
        raise Malformed(f"{name}.db is no database of a service of ours: it has other tables")
    origin: Any = db.execute("SELECT format, service, cluster_id FROM origin")
    found.origin = list(origin)
    for version, _, _ in found.origin:
        if version != FORMAT:
            raise Malformed(f"{name}.db has format {version}; this version reads {FORMAT}")
    found.faults += [
        f"the file is damaged: {line}"
        for (line,) in db.execute("PRAGMA quick_check(20)")
        if line != "ok"
    ]
    barrier: Any = db.execute("SELECT key, saga_id, outcome, reply FROM barrier")
    found.barrier = {key: (saga_id, outcome, reply) for key, saga_id, outcome, reply in barrier}
    fence: Any = db.execute("SELECT slot, epoch FROM fence")
    found.fence = dict(fence)
    witnesses: Any = db.execute("SELECT cluster_id, shard, epoch, seq, chain, number FROM witness")
    found.witnesses = [Witness(*row) for row in witnesses]
    forgotten: Any = db.execute("SELECT shard, low, high FROM forgotten ORDER BY shard, low")
    found.forgotten = list(forgotten)
    for table in sorted(tables - KIT):
        if not table.startswith("sqlite_"):
            rows: Any = db.execute(f'SELECT * FROM "{table}" ORDER BY 1')  # noqa: S608 - its own
            found.tables[table] = list(rows)
    return found
