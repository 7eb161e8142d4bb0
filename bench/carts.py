"""Carts: a kind of checkout made into the bytes that travel, a random id each time.

All but the id is packed once: a generator that packs each checkout anew would take a microsecond
more of the machine that it measures. Ids are random: sequential ones flatter an index.
"""

import os
import random
from typing import Final

from bench.mix import DECLINE, NO_CARRIER, OUT_OF_STOCK, Kind, Mix, deck
from sagacity import wire
from sagacity.messages import Checkout, Item
from sagacity.slots import SlotMap

CART: Final = (Item("abc123", 2), Item("xyz789", 1))  # the example's
PAYS, CANNOT_PAY = "u42", "u999"
ADDRESS, NOWHERE = "123 Main St", "no_carrier"

HOT: Final = "bench-hot"
COLD: Final = tuple(f"bench-cold-{index:04}" for index in range(5000))
STOCK: Final = 1_000_000_000

_RANDOM_BYTES: Final = 12
_DRAWN: Final = 1024  # ids whose bytes are asked of the kernel at once
_PLACE: Final = "bench-" + "0" * (2 * _RANDOM_BYTES)


class Carts:
    """Deals checkouts.

    Args:
        mix: of them.
        seed: of the order of the deck and of what is bought; never of the ids.
    """

    def __init__(self, mix: Mix, seed: int) -> None:
        chance = random.Random(seed)
        self._deck = [_around(kind, mix, chance) for kind in deck(mix, seed)]
        self._at = 0
        self._hex = ""
        self._hex_at = 0

    def deal(self) -> tuple[str, bytes]:
        """Give the next checkout: its new id and its packed body."""
        at = self._at
        before, after = self._deck[at]
        self._at = at + 1 if at + 1 < len(self._deck) else 0
        start = self._hex_at
        if start == len(self._hex):
            self._hex = os.urandom(_RANDOM_BYTES * _DRAWN).hex()
            start = 0
        self._hex_at = end = start + 2 * _RANDOM_BYTES
        saga_id = "bench-" + self._hex[start:end]
        return saga_id, before + saga_id.encode() + after


class CartsOfShard(Carts):
    """Deals checkouts that one shard has. What others have is left out: shares are near ones.

    Args:
        mix: of them.
        seed: as of all carts.
        shard: whose they are.
        shards: of the cluster, whose slots are dealt evenly, as they are in a new one.
    """

    def __init__(self, mix: Mix, seed: int, shard: int, shards: int) -> None:
        super().__init__(mix, seed)
        self._slots, self._shard = SlotMap.even(shards), shard

    def deal(self) -> tuple[str, bytes]:
        """Give the next checkout that is this shard's."""
        while True:
            saga_id, body = super().deal()
            if self._slots.owner(saga_id) == self._shard:
                return saga_id, body


def _around(kind: Kind, mix: Mix, chance: random.Random) -> tuple[bytes, bytes]:
    """Give the bytes of a checkout before and after its id."""
    items = list(CART)
    if kind.fate == OUT_OF_STOCK:
        items = [Item("sku_out_of_stock", 1)]
    elif kind.hot:
        items = [Item(HOT, 1)]
    elif mix.hot_sku:
        items = [Item(sku, 1) for sku in chance.sample(COLD, 2)]
    user = CANNOT_PAY if kind.fate == DECLINE else PAYS
    address = NOWHERE if kind.fate == NO_CARRIER else ADDRESS
    packed = wire.pack(Checkout(_PLACE, user, items, address))
    before, _, after = packed.partition(_PLACE.encode())
    return before, after


def catalog(hot_units: int = STOCK) -> str:
    """Give a catalog with the example's goods, the hot one and the many others, as TOML."""
    goods = {"abc123": ("100.00", STOCK), "xyz789": ("49.99", STOCK)}
    goods |= {"sku_out_of_stock": ("10.00", 0), HOT: ("19.99", hot_units)}
    goods |= dict.fromkeys(COLD, ("9.99", STOCK))
    lines = [
        f'[sku.{name}]\nprice = "{price}"\nstock = {stock}'
        for name, (price, stock) in goods.items()
    ]
    return "\n".join([*lines, f'[account.{CANNOT_PAY}]\nbalance = "0.00"', ""])
