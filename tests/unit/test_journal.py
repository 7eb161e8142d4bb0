"""Journal and codec: the same promises of both implementations. The file: test_journal_file.py."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagacity.wire import Answer, encode
from shard.codec import CHAIN_BYTES, GENESIS, Unreadable, link, unpack_batch
from shard.entries import (
    CAUSES,
    FORMAT,
    AttemptEnded,
    Batch,
    Entry,
    Finished,
    ForgetTaken,
    Forgotten,
    Opened,
    Quarantined,
    Ran,
    RetryAsked,
    Started,
    TurnedBack,
)
from shard.journal import Journal, JournalRefused, MemoryJournal
from shard.records import Row
from tests.unit.journal_world import entries_of, filled, open_at, replayed

Reopen = Callable[[], Journal]


@pytest.fixture(params=["sqlite", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Journal, Reopen]]:
    """An empty journal, and how to let go of it and open it again."""
    if request.param == "memory":
        memory = MemoryJournal()

        def again() -> Journal:
            memory.close()
            kept = MemoryJournal()
            kept.rows = memory.rows
            return kept

        yield memory, again
        return
    current = [open_at(tmp_path / "journal.db")]

    def reopen() -> Journal:
        current[0].close()
        current[0] = open_at(tmp_path / "journal.db")
        return current[0]

    yield current[0], reopen
    current[0].close()


# -- both -----------------------------------------------------------------------------------------


def test_sequences_are_dense_from_one_and_each_chain_covers_the_row_before(
    opened: tuple[Journal, Reopen],
) -> None:
    """Invariant 3: a hole or an exchanged row must be visible to everyone who replays."""
    journal, _ = opened
    assert (journal.last.seq, journal.last.chain) == (0, GENESIS)
    chain = GENESIS
    for index in range(5):
        receipt = journal.commit(entries_of(index), 1, 1000 + index)
        chain = link(chain, index + 1, encode(Batch(FORMAT, 1, 1000 + index, entries_of(index))))
        assert (receipt.seq, receipt.chain) == (index + 1, chain)
        assert journal.last == receipt
        assert len(receipt.chain) == CHAIN_BYTES


def test_a_replay_gives_what_was_written(opened: tuple[Journal, Reopen]) -> None:
    """Recovery is the fold of this; it may be read more than once."""
    journal, reopen = opened
    for index in range(4):
        journal.commit(entries_of(index), 7, 2000 + index)
    last = journal.last
    journal = reopen()
    for _ in range(2):
        rows = list(journal.replay())
        assert [seq for seq, _ in rows] == [1, 2, 3, 4]
        assert [b.entries for _, b in rows] == [entries_of(index) for index in range(4)]
        assert [(b.version, b.epoch, b.wall_ms) for _, b in rows] == [
            (FORMAT, 7, 2000 + index) for index in range(4)
        ]
        assert journal.last == last


def test_a_reopened_journal_continues_where_it_ended(opened: tuple[Journal, Reopen]) -> None:
    """Numbers and epochs of the next process stand on top of those of the last."""
    journal, reopen = opened
    filled(journal, 3)
    for begin in (3, 6, 9):
        journal = reopen()
        list(journal.replay())
        filled(journal, 3, begin=begin)
    journal = reopen()
    assert replayed(journal) == [entries_of(index) for index in range(12)]


def test_rows_are_read_by_sequence_in_the_order_asked(opened: tuple[Journal, Reopen]) -> None:
    """`show` asks for the rows of one saga, and is told when each was written."""
    journal, _ = opened
    filled(journal, 5)
    assert journal.history(1, [4, 1, 5]) == [
        Row(seq, 1000 + seq - 1, entries_of(seq - 1)) for seq in (4, 1, 5)
    ]
    assert journal.history(1, []) == []


def test_a_commit_without_entries_gives_the_old_receipt(opened: tuple[Journal, Reopen]) -> None:
    """A turn that decided nothing costs no sync, and its sends have a receipt all the same."""
    journal, _ = opened
    first = journal.last
    assert journal.commit([], 1, 1) == first
    filled(journal, 1)
    size = journal.size_bytes()
    assert journal.commit([], 1, 1) == journal.last
    assert journal.size_bytes() == size
    assert replayed(journal) == [entries_of(0)]


def test_a_journal_says_how_much_room_it_takes(opened: tuple[Journal, Reopen]) -> None:
    """D13: growth is watched by its operator before it is bounded by us."""
    journal, _ = opened
    before = journal.size_bytes()
    journal.commit(entries_of(1, size=100_000), 1, 1)
    assert journal.size_bytes() >= before + 100_000


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
small = st.integers(0, 2**31)
headers = st.dictionaries(texts, texts, max_size=3)
entries: st.SearchStrategy[Entry] = st.one_of(
    st.builds(Opened, texts, small, small),
    st.builds(
        Started,
        number=st.integers(0, 2**63),
        saga_id=texts,
        saga=texts,
        version=small,
        fingerprint=st.binary(max_size=16),
        amount=st.integers(0, 2**63),
        currency=texts,
        order_count=small,
        slot=small,
        slot_epoch=small,
        deadline_ms=st.integers(-(2**63), 2**63),
        headers=headers,
        order=st.binary(max_size=300),
    ),
    st.builds(
        Answer,
        saga_id=texts,
        step=small,
        direction=small,
        epoch=small,
        number=small,
        attempt=small,
        outcome=small,
        body=st.binary(max_size=300),
    ),
    st.builds(AttemptEnded, small, small, small, small, texts, texts),
    st.builds(TurnedBack, small, small, st.sampled_from(CAUSES), texts),
    st.builds(RetryAsked, small, small, texts),
    st.builds(Quarantined, small, small, small, small, small),
    st.builds(Finished, small, small, st.binary(max_size=300)),
    st.builds(Forgotten, small, st.lists(st.tuples(small, small), max_size=4), small),
    st.builds(ForgetTaken, texts, small),
    st.builds(Ran, small),
)
commits = st.lists(st.tuples(st.lists(entries, max_size=6), small, small), max_size=8)


@settings(deadline=None, max_examples=40)
@given(commits)
def test_any_batches_come_back_as_they_were_written(
    batches: list[tuple[list[Entry], int, int]],
) -> None:
    """An entry that changed on its way to disk would be another fact; both journals agree."""
    memory = MemoryJournal()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.db"
        journal = open_at(path)
        for each in batches:
            assert memory.commit(*each) == journal.commit(*each)
        journal.close()
        journal = open_at(path)
        expected = [Batch(FORMAT, epoch, at, rows) for rows, epoch, at in batches if rows]
        assert [batch for _, batch in journal.replay()] == expected
        assert [batch for _, batch in memory.replay()] == expected
        assert journal.last == memory.last
        journal.close()


# -- codec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        encode([]),
        encode({}),
        encode([FORMAT, 1, 1]),
        encode([FORMAT, 1, 1, [[99, 1]]]),
        encode([FORMAT, 1, 1, [[12, 1, 1, "declined"]]]),
        encode([FORMAT, "1", 1, []]),
        encode(Batch(FORMAT, 1, 1, entries_of(1)))[:-1],
        encode(Batch(FORMAT, 1, 1, entries_of(1))) + b"\x00",
    ],
)
def test_bytes_that_are_no_batch_are_unreadable(packed: bytes) -> None:
    """Never a batch with fewer entries, never another exception."""
    with pytest.raises(Unreadable):
        unpack_batch(packed)


@pytest.mark.parametrize("version", [0, FORMAT + 1, 2**40])
def test_a_batch_of_another_format_version_is_unreadable(version: int) -> None:
    """D11: a newer version's facts, read as ours, would be other facts."""
    with pytest.raises(Unreadable, match="version"):
        unpack_batch(encode(Batch(version, 1, 1, entries_of(1))))


def test_a_chain_depends_on_all_that_stands_before_it() -> None:
    """Golden: another hash would refuse every journal that exists."""
    chain = link(GENESIS, 1, b"first")
    assert chain.hex() == "210d3d8511ea5fa15df245f9c5ac5aac"
    assert len({link(chain, 2, b"x"), link(GENESIS, 2, b"x"), link(chain, 3, b"x")}) == 3


def test_a_row_that_was_changed_is_not_replayed_from_memory_either() -> None:
    """The twin says what the file says, so that tests which use it can fail."""
    journal = MemoryJournal()
    filled(journal, 3)
    seq, chain, packed = journal.rows[1]
    for row, says in (
        ((seq, chain, packed + b"x"), "is not what was written"),
        ((seq + 1, chain, packed), "is not what was written"),
        ((seq, link(journal.rows[0][1], seq, b"\xc1"), b"\xc1"), "damaged at row 2"),
    ):
        journal.rows[1] = row
        with pytest.raises(JournalRefused, match=says):
            list(journal.replay())


def test_a_journal_without_a_checkpoint_keeps_no_records(opened: tuple[Journal, Reopen]) -> None:
    """All that it knows are its rows."""
    journal, reopen = opened
    filled(journal, 3)
    journal = reopen()
    assert journal.checkpoint() is None
    assert list(journal.kept()) == []
