"""Segments: an id that was used is found, whatever stands there; prints err only towards yes."""

from array import array
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


@settings(max_examples=30, deadline=None)
@example([5_000, 5_000], 1)
@given(st.lists(st.sampled_from([0, 1, 11, 12, 30, 400, 900]), max_size=9), st.integers(0, 9))
def test_a_sieve_lets_every_id_of_its_segments_through(sizes: list[int], seed: int) -> None:
    """A11: it stands before the prints of all segments that are alike."""
    several = [made(size, seed + at) for at, size in enumerate(sizes)]
    sieves = segments.sifted((segment, prints) for _, segment, prints, _ in several)
    assert sorted(len(prints.marks) for sieve in sieves for _, prints in sieve.segments) == sorted(
        2 * size for size in sizes
    )
    for ids, _, prints, _ in several:
        [sieve] = [each for each in sieves if each.bits == prints.bits]
        for saga_id in ids:
            hashed = segments.hash_of(saga_id)
            assert sieve.may_hold(segments.top_of(hashed), segments.mark_of(hashed))


def test_a_sieve_holds_back_what_no_segment_has() -> None:
    """Eight segments' prints in a bucket: some 96 in 65 536 get through."""
    several = [made(5_000, seed)[1:3] for seed in range(8)]
    [sieve] = segments.sifted(several)
    through = 0
    for at in range(20_000):
        hashed = segments.hash_of(f"new-{at}")
        through += sieve.may_hold(segments.top_of(hashed), segments.mark_of(hashed))
    assert 0 < through <= 60


def test_the_prints_of_large_segments_are_held_once() -> None:
    """A sieve of theirs would cost each id two bytes of memory more for ever."""
    prints = Prints(segments.SIEVE_BITS_MAX + 1, array("I", [0]), bytearray(b"\xff" * 8))
    segment = Segment(7, 3, 10, ENTRY_BYTES, 200_000, 1, True)
    [sieve] = segments.sifted([(segment, prints)])
    assert sieve.may_hold(0, b"\0\0")
    assert sieve.segments == [(segment, prints)]


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
