"""The mix: which share of the checkouts ends how, and wants what. Pure but for the seeded chance.

A deck of ten thousand kinds holds the shares to a hundredth of a percent; it is shuffled once and
dealt round and round, so that the shares are those that were asked for and not nearly those.
"""

import math
import random
from typing import Final

from msgspec import Struct

from sagacity.errors import Malformed

DECK: Final = 10_000

COMPLETES: Final = "completes"
DECLINE: Final = "decline"
OUT_OF_STOCK: Final = "out-of-stock"
NO_CARRIER: Final = "no-carrier"


class Mix(Struct, frozen=True):
    """Shares of all checkouts, percent.

    Args:
        decline: the payment is declined.
        out_of_stock: there is no stock.
        no_carrier: nobody ships there; the payment is refunded.
        hot_sku: want one unit of the same thing; the others spread over many then.
    """

    decline: float = 0.0
    out_of_stock: float = 0.0
    no_carrier: float = 0.0
    hot_sku: float = 0.0


class Kind(Struct, frozen=True):
    """One checkout of the deck: how it ends, and whether it wants the hot SKU."""

    fate: str = COMPLETES
    hot: bool = False


def check(mix: Mix) -> None:
    """Refuse a mix that cannot be.

    Raises:
        Malformed: saying which shares contradict each other.
    """
    shares = {"--" + name.replace("_", "-"): getattr(mix, name) for name in mix.__struct_fields__}
    for option, share in shares.items():
        if not (math.isfinite(share) and 0 <= share <= 100):
            raise Malformed(f"{option} is a share in percent, 0 to 100, not {share:g}")
        if abs(share * DECK / 100 - round(share * DECK / 100)) > 1e-6:
            raise Malformed(f"{option} is a share in percent with two decimals at most")
    turned = mix.decline + mix.out_of_stock + mix.no_carrier
    if turned > 100 + 1e-9:
        raise Malformed(
            "an impossible mix: --decline, --out-of-stock and --no-carrier are different "
            f"checkouts, and together {turned:g} % of all"
        )
    if mix.hot_sku + mix.out_of_stock > 100 + 1e-9:
        raise Malformed(
            "an impossible mix: what is hot is in stock, and --hot-sku and --out-of-stock are "
            f"together {mix.hot_sku + mix.out_of_stock:g} % of all"
        )


def deck(mix: Mix, seed: int) -> list[Kind]:
    """Give the kinds in the order in which they are dealt; the same for the same seed."""
    chance = random.Random(seed)
    fates = [
        *[OUT_OF_STOCK] * _cards(mix.out_of_stock),
        *[DECLINE] * _cards(mix.decline),
        *[NO_CARRIER] * _cards(mix.no_carrier),
    ]
    fates += [COMPLETES] * (DECK - len(fates))
    in_stock = range(_cards(mix.out_of_stock), DECK)
    hot = set(chance.sample(in_stock, _cards(mix.hot_sku)))
    kinds = [Kind(fate, at in hot) for at, fate in enumerate(fates)]
    chance.shuffle(kinds)
    return kinds


def _cards(share: float) -> int:
    return round(share * DECK / 100)
