"""Reserve: room that is kept while there is enough, and freed when it is needed."""

import stat
from pathlib import Path

from shard.reserve import ReserveFile

SIZE = 1 << 16


def test_room_is_kept_once_and_freed_once(tmp_path: Path) -> None:
    """D7: what a full disk needs is written, for its owner alone, before the disk is full."""
    path = tmp_path / "reserve"
    reserve = ReserveFile(path, SIZE)
    assert reserve.take()
    assert path.stat().st_blocks * 512 >= SIZE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert reserve.take()  # it is kept already
    assert path.stat().st_size == SIZE
    assert reserve.give_up()
    assert not path.exists()
    assert not reserve.give_up()


def test_a_reserve_that_a_killed_shard_left_half_made_is_made_whole(tmp_path: Path) -> None:
    """What stands there counts only if it is all of it."""
    path = tmp_path / "reserve"
    path.write_bytes(bytes(SIZE // 2))
    assert ReserveFile(path, SIZE).take()
    assert path.stat().st_size == SIZE


def test_no_room_is_kept_that_the_next_commit_needs(tmp_path: Path) -> None:
    """As much again must be left, or the reserve itself would fill the disk."""
    path = tmp_path / "reserve"
    reserve = ReserveFile(path, 1 << 60)
    assert not reserve.take()
    assert path.stat().st_size == 0
    assert not reserve.give_up()  # there was nothing in it


def test_where_no_file_can_be_made_there_is_no_reserve(tmp_path: Path) -> None:
    """A shard serves without one; it says so, and tries again."""
    reserve = ReserveFile(tmp_path / "gone" / "reserve", SIZE)
    assert not reserve.take()
    assert not reserve.give_up()
