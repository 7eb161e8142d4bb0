"""Money: integers inside, two decimals at the edge, no float in between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagacity.money import AMOUNT_MAX, parse, show


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00"),
        (5, "0.05"),
        (24_999, "249.99"),
        (20_000, "200.00"),
        (-1, "-0.01"),
        (-24_999, "-249.99"),
        (AMOUNT_MAX, "1000000000000.00"),
    ],
)
def test_two_decimals_always(amount: int, text: str) -> None:
    """SPEC 1: 249.99 and 200.00."""
    assert show(amount) == text


@given(st.integers(0, AMOUNT_MAX))
def test_what_is_shown_reads_back(amount: int) -> None:
    """No amount is lost on the way out and in."""
    assert parse(show(amount)) == amount


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1.", "1.0", "1.000", ".50", "01.00", "-1.00", "+1.00", "1,00", "1e2", "NaN"),
        *(" 1.00", "1.00\n", "Infinity", "1_0.00", "٣.00", "10000000000000000.00"),
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    """F6: no guessing about somebody's money."""
    with pytest.raises(ValueError, match=r"like 249\.99"):
        parse(text)
