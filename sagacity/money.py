"""Money: integer minor units inside and on the wire, two decimals at the edge. Never a float."""

import re

PRICE_MAX = 10**9  # minor units, of one piece
AMOUNT_MAX = PRICE_MAX * 1000 * 100  # minor units: dearest piece x pieces a line x lines

_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,15})\.([0-9]{2})")


def parse(text: str) -> int:
    """Read an amount with two decimals, such as "249.99".

    Returns:
        Minor units, 24999.

    Raises:
        ValueError: the text is not digits, a point and two digits.
    """
    found = _DECIMAL.fullmatch(text)
    if found is None:
        raise ValueError(f"an amount is written like 249.99, not {text!r}")
    return int(found[1]) * 100 + int(found[2])


def show(amount: int) -> str:
    """Write minor units with two decimals: 24999 is "249.99"."""
    sign = "-" if amount < 0 else ""
    return f"{sign}{abs(amount) // 100}.{abs(amount) % 100:02d}"
