"""D4: a flipped bit outside the last commit is refused, or proven harmless; never cut off."""

from collections.abc import Callable, Iterator

import pytest

from sagacity.simulation.vfs import MemoryDisk, memory_disk
from shard import store, verify
from tests.journal import flips
from tests.journal.flips import ASKING, HARMLESS, REFUSED, RESUMED, Flips, Written
from tests.journal.workloads import small_limits
from tests.journal.world import PATH, Violation

WAL = str(PATH) + "-wal"
FRAME = 24 + 4096
CHOSEN = 64  # bits, of both journals together
SPREAD = 20  # of them from one end of each journal to the other


@pytest.fixture
def disk() -> Iterator[MemoryDisk]:
    with memory_disk() as made, small_limits():
        yield made


def in_wal(journal: Flips, byte: int) -> int:
    """Give the first bit of a byte of the WAL."""
    return 8 * (len(journal.written.image.files[str(PATH)]) + byte)


def spread(journal: Flips) -> list[int]:
    """Give bits from one end of a journal to the other, none in the same place of its byte."""
    return [journal.written.bits * at // SPREAD + at % 8 for at in range(SPREAD)]


def made(disk: MemoryDisk, make: Callable[[MemoryDisk], Written]) -> Flips:
    return Flips(disk, make(disk))


def test_a_flipped_bit_in_a_wal_is_refused_or_in_the_last_commit(disk: MemoryDisk) -> None:
    """Of header, salts, checksums, commit marks and pages; the full campaign flips every one."""
    journal = made(disk, flips.in_the_wal)
    frames = (len(journal.written.image.files[WAL]) - 32) // FRAME
    header = [in_wal(journal, at) for at in (0, 11, 16, 23, 31)]
    marks = [in_wal(journal, 32 + 2 * FRAME + at) for at in (0, 7, 8, 15, 16, 23, 24, 999)]
    first, last = in_wal(journal, 32), in_wal(journal, 32 + (frames - 1) * FRAME)
    chosen = [*header, *marks, first + 8 * 99, last + 8 * 99, *spread(journal)]
    journal.run(chosen)
    assert journal.violations == []
    assert journal.counts[REFUSED] > 20
    assert journal.flip(first + 8 * 99) == REFUSED
    assert journal.flip(last + 8 * 99) == RESUMED
    assert len(chosen) >= CHOSEN // 2
    # A commit's mark is the file's size in pages; of 8 pages one bit takes it away.
    size = journal.written.image.files[WAL][32 + (frames - 2) * FRAME :][4:8]
    assert size == (8).to_bytes(4, "big")
    assert journal.flip(in_wal(journal, 32 + (frames - 2) * FRAME + 7) + 3) == REFUSED


def test_a_flipped_bit_in_a_file_with_generations_is_refused_or_harmless(disk: MemoryDisk) -> None:
    """Of the file's header, of the header of each page, of checkpoint, kept sagas and blocks."""
    journal = made(disk, flips.in_the_file)
    pages = range(1, len(journal.written.image.files[str(PATH)]) // 4096)
    # How many rows a page has: one less hides a saga that runs, or all ids of a segment.
    hidden = [8 * (4096 * page + 4) for page in pages]
    chosen = [8 * 16, 8 * 18, 8 * 60, 8 * 68, 8 * 103, *hidden, *spread(journal)]
    journal.run(chosen)
    assert journal.violations == []
    assert journal.counts[REFUSED] >= len(hidden) // 2
    assert journal.counts[HARMLESS] > 0
    assert journal.counts[REFUSED] + journal.counts[HARMLESS] + journal.counts[ASKING] == len(
        chosen
    )
    assert len(chosen) >= CHOSEN // 2


def test_without_our_own_look_at_the_wal_commits_are_gone_without_a_word(
    disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control, found here: carts that cannot be priced end at once; nobody witnesses that."""
    journal = made(disk, flips.in_the_wal)
    frames = (len(journal.written.image.files[WAL]) - 32) // FRAME
    bit = in_wal(journal, 32 + (frames - 4) * FRAME + 99)
    assert journal.flip(bit) == REFUSED
    for room in (store, verify):
        monkeypatch.setattr(room, "fault_of", lambda db: None)
    with pytest.raises(Violation, match=r"[1-9] commits are gone without a word"):
        journal.flip(bit)
