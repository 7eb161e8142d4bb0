"""Ranges: a set of integers in little room, held against Python's own set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagacity.ranges import Range, Ranges, are_normal, ranges_of

small = st.integers(1, 40)
pieces = st.tuples(small, st.integers(0, 8)).map(lambda each: (each[0], each[0] + each[1]))


def numbers(ranges: list[Range]) -> set[int]:
    return {number for low, high in ranges for number in range(low, high + 1)}


@given(st.lists(small))
def test_numbers_become_the_fewest_ranges_that_hold_them_and_no_others(given_: list[int]) -> None:
    """Retention gathers finished sagas in the order in which they ended."""
    made = ranges_of(given_)
    assert numbers(made) == set(given_)
    assert are_normal(made, 1, 40)


@given(st.lists(pieces), st.lists(small))
def test_ranges_taken_in_any_order_are_one_set(taken: list[Range], asked: list[int]) -> None:
    """Ranges that touch become one, so that what is kept stays small."""
    ranges = Ranges()
    for low, high in taken:
        before = {each[0] for each in ranges.all()}
        gone, merged = ranges.add(low, high)
        after = {each[0] for each in ranges.all()}
        assert after == before - set(gone) | {merged[0]}
        assert merged in ranges.all()
    held = numbers(taken)
    assert ranges.all() == ranges_of(held)
    assert ranges.highest == max(held, default=-1)
    for number in asked:
        assert (number in ranges) == (number in held)
        assert ranges.first_missing(number) == min(set(range(number, 60)) - held)
    assert Ranges(ranges.all()).all() == ranges.all()


@pytest.mark.parametrize(
    "ranges",
    [[(0, 1)], [(5, 4)], [(1, 2), (3, 4)], [(1, 2), (2, 4)], [(4, 5), (1, 2)], [(1, 10)]],
    ids=["too low", "backwards", "touching", "overlapping", "descending", "too high"],
)
def test_ranges_that_are_not_normal_are_told(ranges: list[Range]) -> None:
    """Whoever takes ranges from outside asks first."""
    assert not are_normal(ranges, 1, 9)


def test_no_ranges_and_a_single_number_are_normal() -> None:
    """The edges of the rule."""
    assert are_normal([], 1, 0)
    assert are_normal([(1, 1), (3, 9)], 1, 9)
