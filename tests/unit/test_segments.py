"""Segments: an id that was used is found, whatever stands there; prints err only towards yes."""

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shard import segments
from shard.segments import ENTRY_BYTES, HASH_BYTES, Prints, Segment

SIZES = [0, 1, 2, 11, 12, 13, 399, 400, 401, 800, 5_000]


def made(size: int, seed: int = 1) -> tuple[list[str], Segment, Prints, dict[int, bytes]]:
    chance = Random(seed)
    ids = [chance.randbytes(9).hex() for _ in range(size)]
    entries = sorted(segments.entry_of(saga_id, at) for at, saga_id in enumerate(ids))
    segment = Segment(7, 0, segments.part_bits(size), ENTRY_BYTES, size, max(0, size - 1), True)
    prints = Prints.empty(size)
    buckets = 1 << (prints.bits - segment.bits)
    parts = {}
    for part, found in enumerate(segments.cut(entries, 0, 1 << segment.bits, segment.bits)):
        prints.grow(found, part * buckets, buckets)
        parts[segment.part_keys()[part]] = b"".join(found)
    return ids, segment, prints, parts


@pytest.mark.parametrize("size", SIZES)
def test_every_id_of_a_run_is_found_with_its_ordinal(size: int) -> None:
    """A11: a wrong no would run a checkout twice."""
    ids, segment, prints, parts = made(size)
    prints = Prints.unpack(prints.pack())
    assert prints.size == size
    for at, saga_id in enumerate(ids):
        hashed = segments.hash_of(saga_id)
        top = segments.top_of(hashed)
        assert prints.may_hold(top, segments.mark_of(hashed))
        entry = segments.find_in(parts[segment.part_of(top)], segment.width, hashed)
        assert entry == segments.entry_of(saga_id, at)


def test_a_new_id_is_seldom_looked_for_in_vain() -> None:
    """Two bytes and twelve entries a bucket: some 12 in 65 536."""
    _, segment, prints, parts = made(5_000)
    yes = 0
    for at in range(20_000):
        hashed = segments.hash_of(f"new-{at}")
        top = segments.top_of(hashed)
        yes += prints.may_hold(top, segments.mark_of(hashed))
        assert segments.find_in(parts[segment.part_of(top)], segment.width, hashed) is None
    assert yes <= 20


@settings(max_examples=50, deadline=None)
@example([1, 900, 20_000], 0)  # units finer than the parts of the small ones
@given(st.lists(st.sampled_from([0, 1, 3, 150, 900]), min_size=1, max_size=8), st.integers(0, 9))
def test_units_of_runs_of_any_size_put_together_are_all_their_entries(
    sizes: list[int], seed: int
) -> None:
    """A merge goes unit by unit: nothing falls between two of them, nothing is met twice."""
    built = [made(size, seed + at) for at, size in enumerate(sizes)]
    bits = segments.unit_bits(sum(sizes))
    found = []
    for unit in range(1 << bits):
        entries: list[bytes] = []
        for _, segment, _, parts in built:
            entries += segments.entries_of_unit(segment, unit, bits, parts.__getitem__)
        assert all(segments.top_of(entry) >> (32 - bits) == unit for entry in entries)
        found += sorted(entries)
    assert found == sorted(
        entry
        for _, segment, _, parts in built
        for part in parts.values()
        for entry in segments.entries_in(part, segment.width)
    )


def test_an_entry_loses_its_ordinal_and_gets_one_that_is_past_retention() -> None:
    """A merge of old and young segments is as wide as the young ones."""
    entry = segments.entry_of("s1", 77)
    assert segments.as_wide([entry], HASH_BYTES) == [segments.hash_of("s1")]
    assert segments.as_wide([segments.hash_of("s1")], ENTRY_BYTES) == [segments.entry_of("s1", 0)]
    assert segments.as_wide([], ENTRY_BYTES) == []


def test_a_hash_that_stands_across_two_entries_is_not_one() -> None:
    """Bytes are searched, entries are meant."""
    hashed = segments.hash_of("s1")
    across = b"\0" * 10 + hashed + b"\0" * 14
    assert segments.find_in(across, ENTRY_BYTES, hashed) is None
    assert (
        segments.find_in(across + hashed + b"\0\0\0\5", ENTRY_BYTES, hashed) == hashed + b"\0\0\0\5"
    )


def test_a_level_is_merged_when_it_is_full_and_an_old_run_when_it_is_past_retention() -> None:
    """Few segments however many sagas: each new id is looked for in all of them."""

    def segment(at: int, level: int, width: int = ENTRY_BYTES) -> Segment:
        return Segment(at, level, 0, width, 1, at, True)

    few = [segment(at, 0) for at in range(segments.SEGMENTS_PER_LEVEL - 1)]
    assert segments.due(few, 0) == []
    full = [*few, segment(98, 1), segment(99, 0)]
    assert [each.id for each in segments.due(full, 0)] == [0, 1, 2, 3, 4, 5, 6, 99]
    assert segments.due([segment(5, 1), segment(6, 1)], 6) == [segment(5, 1)]
    assert segments.due([segment(5, 1, HASH_BYTES)], 6) == []
