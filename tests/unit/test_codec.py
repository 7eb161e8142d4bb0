"""Codec: what was written comes back, everything else is refused, the chain tells rows apart."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagacity import wire
from sagacity.wire import Answer
from shard.codec import (
    BLOCK_BYTES_MAX,
    CHAIN_BYTES,
    GENESIS,
    Unreadable,
    link,
    pack_batch,
    pack_block,
    seal,
    unpack_batch,
    unpack_block,
    unseal,
)
from shard.entries import (
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

ENTRIES: list[Entry] = [
    Opened("c0ffee", 3, 7),
    Started(1027, "s", "checkout", 1, bytes(16), 5, "USD", 2, 9, 7, 123, {"k": "v"}, b"\x80"),
    Answer("s", 1, 0, 7, 1027, 2, wire.OK, b"\x80"),
    AttemptEnded(1027, 1, 0, 1, "failed", "no luck"),
    TurnedBack(1027, 1, "cancelled", "Cancelled: x"),
    RetryAsked(1027, 1, "again"),
    Quarantined(1027, 1, 1, 4, 3),
    Finished(1027, 4, b"\x80"),
    Forgotten(2, [(1, 9000), (9002, 9377)], 9376),
    ForgetTaken("payment", 2),
    Ran(604_800_001),
]


def test_every_entry_comes_back_as_it_was() -> None:
    """The closed list of entries, each with its tag."""
    batch = unpack_batch(pack_batch(ENTRIES, 7, 1_700_000_000_000))
    assert batch == Batch(FORMAT, 7, 1_700_000_000_000, ENTRIES)


def test_tags_never_change() -> None:
    """They are on disks."""
    tags = [type(entry).__struct_config__.tag for entry in ENTRIES]
    assert tags == [1, 10, 2, 11, 12, 13, 15, 14, 16, 17, 18]


def test_another_version_is_refused() -> None:
    """D11: an unknown format is not guessed at."""
    packed = wire.encode(Batch(FORMAT + 1, 1, 1, []))
    with pytest.raises(Unreadable, match=f"version {FORMAT + 1}"):
        unpack_batch(packed)


@given(st.binary(max_size=300))
def test_garbage_is_unreadable(packed: bytes) -> None:
    """Nothing but Unreadable comes out."""
    with suppress(Unreadable):
        unpack_batch(packed)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_breaks_the_chain(at: int, to: int) -> None:
    """D4: a row that decodes all the same is told by its hash."""
    packed = pack_batch(ENTRIES, 7, 1)
    changed = bytearray(packed)
    changed[at % len(changed)] = to
    same = bytes(changed) == packed
    assert (link(GENESIS, 1, bytes(changed)) == link(GENESIS, 1, packed)) == same


def test_the_chain_depends_on_all_before() -> None:
    """Two rows that change places, a row under another sequence."""
    first, second = pack_batch(ENTRIES[:1], 1, 1), pack_batch(ENTRIES[1:], 1, 2)
    ahead = link(link(GENESIS, 1, first), 2, second)
    assert len(ahead) == CHAIN_BYTES
    assert ahead != link(link(GENESIS, 1, second), 2, first)
    assert link(GENESIS, 1, first) != link(GENESIS, 2, first)


def test_the_chain_is_what_disks_hold() -> None:
    """Golden: the first 16 bytes of SHA-256 over chain, sequence (8 bytes, big end first), row."""
    assert link(GENESIS, 1, b"row").hex() == "29a8d497a16e4593f56c6c5ff9068db8"


def test_a_block_comes_back_as_it_was() -> None:
    """64 records side by side."""
    records = [b"%d" % each * each for each in range(64)]
    assert unpack_block(pack_block(records)) == records


def test_a_block_that_says_it_is_too_long_takes_no_memory() -> None:
    """Zstandard makes room for what a frame says of itself, whatever it is told to allow."""
    magic, content_size_in_8_bytes = b"\x28\xb5\x2f\xfd", b"\xe0"
    last_and_empty = b"\x01\x00\x00"
    for size in (BLOCK_BYTES_MAX + 1, 1 << 40):
        frame = magic + content_size_in_8_bytes + size.to_bytes(8, "little") + last_and_empty
        with pytest.raises(Unreadable, match="longer"):
            unpack_block(seal(frame))


@pytest.mark.parametrize("read", [unpack_batch, unpack_block, unseal])
def test_what_a_damaged_page_gives_in_place_of_bytes_is_unreadable(
    read: Callable[[Any], object],
) -> None:
    """D4: SQLite gives a text, a number or nothing without a word."""
    for got in ("text", 7, None):
        with pytest.raises(Unreadable, match="where bytes were written"):
            read(got)


def test_a_block_that_is_no_frame_is_unreadable() -> None:
    """Sealed like a block; but what it holds nobody squeezed."""
    with pytest.raises(Unreadable):
        unpack_block(seal(b"no frame of zstandard"))
