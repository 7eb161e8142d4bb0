"""Cases: what a search is of: how many sagas, how many faults, what services may answer.

Attempts, stock and times are as small as their rules allow: an action has two attempts, a
compensation is STUCK after one, and two sagas want a SKU of which there is one.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from config.load import Catalog
from sagacity import wire
from sagacity.ids import ACTION, number_of
from sagacity.saga import Retry
from sagacity.wire import Request
from services.checkout import checkout
from shard.sagas import Definition

SHARD: Final = 0
SAGA_IDS: Final = ("s1", "s2")
NUMBERS: Final = tuple(number_of(count, SHARD) for count in (1, 2))
SERVICES: Final = tuple(step.service for step in checkout.steps)
STEPS: Final = len(SERVICES)
SKU: Final = "abc123"
PRICE: Final = 10_000
CATALOG: Final = Catalog({SKU: PRICE}, {SKU: 1}, {})
RETRY: Final = Retry(attempts=2, timeout_ms=3_000, backoff_ms=50, backoff_max_ms=50, stuck_after=1)
DEFINITIONS: Final[Mapping[str, Definition]] = {checkout.name: Definition(checkout, RETRY)}

# What a service may say of a command that it has not answered before.
OK: Final = "ok"
DECLINED: Final = "declined"
FAILED: Final = "failed"

# What a budget counts, each at most three.
CRASH: Final = 0
LOSS: Final = 1
DUPLICATE: Final = 2
CANCEL: Final = 3
FAULTS: Final = ("crash", "loss", "duplicate", "cancel")
FAULT_BITS: Final = 3  # of a state, each; the highest of them stays free for `search`


class Wrong(Exception):
    """A rule is broken; the text names it and says how."""


class Case(Struct, frozen=True, kw_only=True):
    """A search's bounds.

    Args:
        name: on the command line.
        sagas: 1 or 2; two of them want the last piece of one SKU.
        crashes, losses, duplicates, cancels: how many of each fault there may be.
        declines: steps whose services may say no though they could say yes.
        fails: services may fail for no reason.
        deadlines: they may pass.
        absences: a worker's death is seen late, and the next one comes late; else at once.
    """

    name: str
    sagas: int = 1
    crashes: int = 0
    losses: int = 0
    duplicates: int = 0
    cancels: int = 0
    declines: tuple[int, ...] = ()
    fails: bool = True
    deadlines: bool = True
    absences: bool = False

    def budget(self) -> int:
        """Give the faults that are left at the start, packed as states hold them."""
        amounts = (self.crashes, self.losses, self.duplicates, self.cancels)
        return sum(amount << (FAULT_BITS * kind) for kind, amount in enumerate(amounts))

    def choices(self, step: int, direction: int) -> tuple[str, ...]:
        """Give what a step's service may say of a command."""
        declined = (DECLINED,) if direction == ACTION and step in self.declines else ()
        return (OK, *declined, *((FAILED,) if self.fails else ()))


# Of two sagas: what alone turns them back are declines, cancels, and attempts that are used up.
_CALM: Final = {"fails": False, "deadlines": False}

CASES: Final = {
    case.name: case
    for case in (
        Case(name="one", crashes=2, losses=2, duplicates=2, cancels=1, declines=(1, 2, 3)),
        Case(name="absences", crashes=2, cancels=1, declines=(1, 2, 3), absences=True),
        Case(name="pair", sagas=2, crashes=1, losses=1, duplicates=1, declines=(3,), **_CALM),
        Case(name="cancelled", sagas=2, crashes=1, losses=1, cancels=1, declines=(3,), **_CALM),
    )
}


def start_of(saga: int, address: str = "123 Main St") -> Request:
    """Give the start of a saga; with another address it has other content."""
    body = {
        "type": "checkout",
        "saga_id": SAGA_IDS[saga],
        "user_id": "u42",
        "items": [{"sku": SKU, "quantity": 1}],
        "shipping_address": address,
    }
    return Request(wire.START, SAGA_IDS[saga], saga, {}, wire.pack(body))


def cancel_of(saga: int) -> Request:
    """Give the cancel of a saga."""
    body = {"type": "cancel", "saga_id": SAGA_IDS[saga], "reason": "changed my mind"}
    return Request(wire.CANCEL, SAGA_IDS[saga], len(SAGA_IDS) + saga, {}, wire.pack(body))
