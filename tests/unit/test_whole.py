"""Files for people: whole or not at all, and never over another unasked."""

import os
from pathlib import Path

import pytest

from cluster.whole import require_new, write_whole
from sagacity.errors import Malformed


def test_a_new_file_is_written_for_its_user_alone(tmp_path: Path) -> None:
    """A page may hold what a customer wrote."""
    file = tmp_path / "page.html"
    require_new(file, force=False, option="--html")
    write_whole(b"page", file, force=False, option="--html")
    assert file.read_bytes() == b"page"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_exists_is_replaced_only_where_asked(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_bytes(b"old")
    with pytest.raises(Malformed, match="exists already; another name, or --force"):
        require_new(file, force=False, option="--html")
    with pytest.raises(Malformed, match="exists already"):  # it came after we had looked
        write_whole(b"new", file, force=False, option="--html")
    assert file.read_bytes() == b"old"
    require_new(file, force=True, option="--html")
    write_whole(b"new", file, force=True, option="--html")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_that_leads_nowhere_exists(tmp_path: Path) -> None:
    """Written through, it would make a file where nobody looked."""
    link = tmp_path / "page.html"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Malformed, match="exists already"):
        require_new(link, force=False, option="--html")
    with pytest.raises(Malformed, match="exists already"):
        write_whole(b"new", link, force=False, option="--html")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_place_that_cannot_be_written_to_is_said_before(tmp_path: Path, force: bool) -> None:
    with pytest.raises(Malformed, match="is a folder"):
        require_new(tmp_path, force=force, option="--html")
    with pytest.raises(Malformed, match="is no folder that can be written to"):
        require_new(tmp_path / "missing" / "page.html", force=force, option="--html")
    with pytest.raises(Malformed):
        write_whole(b"", tmp_path / "missing" / "page.html", force=force, option="--html")


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half a page, no file of its own beside it."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(Malformed, match="No space left on device"):
        write_whole(b"new", tmp_path / "page.html", force=False, option="--html")
    assert list(tmp_path.iterdir()) == []
