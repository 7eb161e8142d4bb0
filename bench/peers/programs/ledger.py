"""The three services of a peer, as plain dictionaries: inventory, payment, shipping.

Each effect is also a line in a file of this process, written when it happens, so that a run can be
checked however the process ends; about 3 us each. Nothing is synced here: what these services
would cost if they wrote databases, as ours do, no peer is charged for. Runs in the peer's own
environment: imports the standard library alone.
"""

import os
from pathlib import Path
from typing import Final

PRICES: Final = {"abc123": 10000, "xyz789": 4999}  # minor units, as in config/catalog.toml
CART: Final = (("abc123", 2), ("xyz789", 1))
ADDRESS: Final = "123 Main St"
BUYER: Final = "u42"
BROKE: Final = "u999"  # has no funds: every charge is declined


class Declined(Exception):
    """A business no: nothing happened, and the saga turns back."""


class Ledger:
    """What the services of this process have done.

    Args:
        folder: takes the file of this process, `effects-PID`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = -1
        self._reserved: dict[str, dict[str, int]] = {}
        self._charged: dict[str, int] = {}
        self._shipped: dict[str, str] = {}

    def reserve(self, saga_id: str, items: list[tuple[str, int]]) -> str:
        """Reserve all lines; give the reservation's id. A repeat changes nothing."""
        if saga_id not in self._reserved:
            self._reserved[saga_id] = dict(items)
            self._note("reserve", saga_id)
        return f"r-{saga_id}"

    def release(self, saga_id: str) -> bool:
        """Release what was reserved, wherever that was done."""
        self._reserved.pop(saga_id, None)
        self._note("release", saga_id)
        return True

    def charge(self, saga_id: str, user_id: str, amount: int) -> str:
        """Charge a user; give the payment's id.

        Raises:
            Declined: the user has no funds.
        """
        if user_id == BROKE:
            raise Declined("insufficient_funds")
        if saga_id not in self._charged:
            self._charged[saga_id] = amount
            self._note("charge", saga_id, amount)
        return f"p-{saga_id}"

    def refund(self, saga_id: str) -> bool:
        """Refund what was charged, wherever that was done."""
        self._charged.pop(saga_id, None)
        self._note("refund", saga_id)
        return True

    def ship(self, saga_id: str, address: str) -> str:
        """Create a shipment; give its id."""
        if saga_id not in self._shipped:
            self._shipped[saga_id] = address
            self._note("ship", saga_id)
        return f"s-{saga_id}"

    def cancel(self, saga_id: str) -> bool:
        """Cancel the shipment, wherever it was created."""
        self._shipped.pop(saga_id, None)
        self._note("cancel", saga_id)
        return True

    def _note(self, effect: str, saga_id: str, amount: int = 0) -> None:
        if self._file < 0:  # not in __init__: the process may fork after that
            path = self._folder / f"effects-{os.getpid()}"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._file, f"{effect} {saga_id} {amount}\n".encode())


def price(items: list[tuple[str, int]]) -> int:
    """Give what a cart costs, minor units."""
    return sum(PRICES[sku] * quantity for sku, quantity in items)


def from_environment() -> Ledger:
    """Give the ledger whose folder PEER_BOOKS names."""
    return Ledger(Path(os.environ["PEER_BOOKS"]))
