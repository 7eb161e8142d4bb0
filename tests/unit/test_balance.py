"""The rules of the continuous audit and what it remembers, without a cluster to read."""

import random
from collections.abc import Iterable

import pytest

from cluster.balance import SUSPECTS_MAX, Balance, Effects, Ended, common, gaps
from cluster.metrics import BOOKS
from sagacity.ids import number_of
from sagacity.ranges import ranges_of

BALANCED = dict.fromkeys(BOOKS, 0)


def test_open_numbers_are_found_across_the_last_that_is_asked_for() -> None:
    """A gap that begins below it and ends above it is open up to it."""
    balance = Balance()
    balance.take(0, [*range(1, 11), *range(50, 61)], {}, fresh=True)
    balance.history_read()
    assert balance.open_ranges(0, 30) == [(11, 30)]
    assert balance.open_ranges(0, 49) == [(11, 49)]
    assert balance.open_ranges(0, 70) == [(11, 49), (61, 70)]


@pytest.mark.parametrize("seed", range(20))
def test_what_ranges_leave_and_have_in_common_is_what_sets_do(seed: int) -> None:
    """The naive twins."""
    chance = random.Random(seed)
    some, others, without = (set(chance.sample(range(60), chance.randrange(40))) for _ in range(3))

    def numbers(ranges: Iterable[tuple[int, int]]) -> list[int]:
        return [each for low, high in ranges for each in range(low, high + 1)]

    assert numbers(gaps(ranges_of(some), without)) == sorted(some - without)
    assert numbers(common(ranges_of(some), ranges_of(others))) == sorted(some & others)


def test_many_faults_are_bounded() -> None:
    """Whoever spoils every row must not fill the auditor's memory: history finds the rest again."""
    balance = Balance()
    some = [Ended(n, "", "COMPLETED", 1) for n in range(SUSPECTS_MAX + 10)]
    balance.compare(some, {})
    assert len(balance.suspects) == SUSPECTS_MAX


def test_a_number_that_is_given_after_all_is_judged_like_any_other() -> None:
    """A stray above all numbers, until its number is given."""
    balance = Balance()
    number = number_of(7, 0)
    rows = Effects((1, 1, 0), (1, 5, 0), (1, 1, 0))
    balance.compare([Ended(number, "", "NOBODY", 0)], {number: rows})
    balance.again(number, rows)
    assert balance.totals()["strays"] == 3
    balance.compare([Ended(number, "a", "COMPLETED", 5)], {number: rows})
    assert balance.totals() == BALANCED
    assert [each.mended for each in balance.news()] == [False, True]
