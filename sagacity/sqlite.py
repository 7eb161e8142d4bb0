"""SQLite: which integers it holds, how a setting of it is made certain. For journals and services.

Knows no table and no file: `shard/store` and `executor` say which settings their databases have.
"""

from typing import Final

import apsw

from sagacity.errors import Malformed

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1


def set_pragma(
    db: apsw.Connection, name: str, value: str | int, expect: str | int | None = None
) -> None:
    """Set a pragma and read it back: SQLite answers a refusal with silence.

    Args:
        db: without a transaction.
        name: of the pragma.
        value: to set.
        expect: what it says afterwards, where that is not `value`.

    Raises:
        Malformed: SQLite does not take it; a file system without WAL, for example.
    """
    db.execute(f"PRAGMA {name}={value}").fetchall()
    got = db.execute(f"PRAGMA {name}").get
    if got != (value if expect is None else expect):
        raise Malformed(f"SQLite does not take {name}={value}: it says {got}")
