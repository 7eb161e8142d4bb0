"""SQLite's settings: what it does not take is refused, and is no bug of ours."""

from functools import partial
from pathlib import Path

import apsw
import pytest

from sagacity.errors import Malformed
from sagacity.executor import open_file
from sagacity.sqlite import set_pragma


def test_a_setting_that_is_taken_reads_as_it_was_set(tmp_path: Path) -> None:
    """`synchronous` answers with a number where a word was said."""
    db = apsw.Connection(str(tmp_path / "a.db"))
    set_pragma(db, "journal_mode", "wal")
    set_pragma(db, "synchronous", "FULL", expect=2)
    set_pragma(db, "wal_autocheckpoint", 0)
    assert (db.pragma("journal_mode"), db.pragma("synchronous")) == ("wal", 2)


def test_a_setting_that_sqlite_passes_over_is_refused() -> None:
    """It says nothing of its own: a database in memory has no WAL, an unknown name no meaning."""
    db = apsw.Connection(":memory:")
    with pytest.raises(Malformed, match="journal_mode=wal: it says memory"):
        set_pragma(db, "journal_mode", "wal")
    with pytest.raises(Malformed, match="no_such_pragma=1: it says None"):
        set_pragma(db, "no_such_pragma", 1)


def test_a_file_system_without_wal_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 and why, of a service's database as of a journal: it is no bug of ours."""
    plain = partial(apsw.Connection, vfs="unix-dotfile")  # it has no shared memory, so no WAL
    monkeypatch.setattr("sagacity.executor.Connection", plain)
    with pytest.raises(Malformed, match="does not take journal_mode=wal: it says delete"):
        open_file(tmp_path / "toy.db")
