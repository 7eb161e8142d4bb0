"""Ids: what may be one, and numbers that fit their bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagacity.errors import Malformed
from sagacity.ids import (
    ACTION,
    COMPENSATION,
    SHARDS_MAX,
    STEPS_MAX,
    barrier_key,
    check_saga_id,
    count_of,
    new_saga_id,
    number_of,
    order_id,
    shard_of,
)


@pytest.mark.parametrize("text", ["a", "A-z_0.9:", "x" * 128, "..", "-"])
def test_a_saga_id_is_1_to_128_allowed_characters(text: str) -> None:
    """SPEC 2."""
    check_saga_id(text)


@pytest.mark.parametrize(
    "text",
    ["", "x" * 129, "a b", "a\n", "\na", "a/b", "a\x00", "é", "e\u0301", "\ud800", "a%", "٣"],
)
def test_hostile_ids_are_none(text: str) -> None:
    """A6: empty, huge, NUL, newline, paths, both forms of é, lone surrogates, other digits."""
    with pytest.raises(Malformed, match="saga_id"):
        check_saga_id(text)


def test_a_new_id_is_an_id_that_nobody_else_has() -> None:
    """128 random bits."""
    ids = {new_saga_id() for _ in range(100)}
    assert len(ids) == 100
    for each in ids:
        check_saga_id(each)


@given(st.integers(1, 1 << 47), st.integers(0, SHARDS_MAX - 1))
def test_a_number_holds_count_and_shard(count: int, shard: int) -> None:
    """No two shards give the same."""
    number = number_of(count, shard)
    assert (count_of(number), shard_of(number)) == (count, shard)


@given(
    st.integers(1, 1 << 47),
    st.integers(0, SHARDS_MAX - 1),
    st.integers(1, STEPS_MAX),
    st.sampled_from((ACTION, COMPENSATION)),
)
def test_a_barrier_key_is_read_back_and_fits_an_integer_of_sqlite(
    count: int, shard: int, step: int, direction: int
) -> None:
    """Below 2^63, and none of its parts runs into another."""
    key = barrier_key(number_of(count, shard), step, direction)
    assert key < 2**63
    assert (key >> 5, key >> 1 & 15, key & 1) == (number_of(count, shard), step, direction)


def test_an_action_and_its_compensation_are_neighbours() -> None:
    """One read finds both."""
    assert barrier_key(1024, 2, COMPENSATION) == barrier_key(1024, 2, ACTION) | 1


def test_order_ids_of_different_slots_never_meet() -> None:
    """SPEC 1: `o` + (count x 1024 + slot)."""
    assert order_id(1, 334) == "o1358"
    assert len({order_id(count, slot) for count in range(1, 9) for slot in range(1024)}) == 8192
