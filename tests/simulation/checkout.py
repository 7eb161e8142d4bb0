"""The checkout saga as a scenario: what is sold, and who wants what of it.

The checker knows its books.
"""

from collections.abc import Callable, Sequence
from random import Random

from config.load import Catalog
from sagacity.service import Service
from sagacity.simulation import Body, Scenario
from services.checkout import checkout
from services.inventory import service as inventory
from services.payment import payment_service
from services.shipping import NOWHERE
from services.shipping import service as shipping

SCARCE = "sku_scarce"
GONE = "sku_out_of_stock"
UNKNOWN = "zzz"
CATALOG = Catalog(
    {"abc123": 10_000, "xyz789": 4_999, SCARCE: 500, GONE: 1_000},
    {"abc123": 10**9, "xyz789": 10**9, SCARCE: 6, GONE: 0},
    {"u999": 0, "u43": 40_000},
)
USERS = ("u42", "u43", "u999", "u_flaky_3", "u_slow_2s", "u_timeout", "u_crash")
_WEIGHTS = (120, 40, 20, 1, 1, 1, 1)
_SKUS = ("abc123", "xyz789", SCARCE, GONE, UNKNOWN)
_SKU_WEIGHTS = (60, 30, 15, 1, 1)


def services(kill: Callable[[], None]) -> Sequence[Service]:
    """Give the three services."""
    return inventory, payment_service(kill), shipping


def request(random: Random, saga_id: str) -> Body:
    """Draw a cart."""
    skus = random.choices(_SKUS, _SKU_WEIGHTS, k=random.randint(1, 2))
    return {
        "type": "checkout",
        "saga_id": saga_id,
        "user_id": random.choices(USERS, _WEIGHTS)[0],
        "items": [{"sku": sku, "quantity": random.randint(1, 3)} for sku in skus],
        "shipping_address": NOWHERE if random.random() < 0.05 else "123 Main St",
    }


def other(body: Body) -> Body:
    """Give a cart of the same id for another address."""
    return {**body, "shipping_address": "321 Side St"}


SCENARIO = Scenario(
    saga=checkout,
    services=services,
    request=request,
    prices=CATALOG.prices,
    catalog=CATALOG,
    other=other,
)
