"""The checkout saga as a scenario: carts, and what its books must say when all is over."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import apsw

from config.load import Catalog
from sagacity.service import Service
from sagacity.simulation import Body, Fate, Scenario
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


def judge(databases: Mapping[str, apsw.Connection], fates: Sequence[Fate]) -> Iterator[str]:
    """8 to 10: stock, money and shipments are what completed sagas asked for, each once."""
    stock, held = _stock(databases["inventory"])
    yield from stock
    payments = dict(_read(databases["payment"], "SELECT number, amount - refunded FROM payment"))
    shipments = dict(_read(databases["shipping"], "SELECT number, NOT cancelled FROM shipment"))
    for fate in fates:
        charged, shipped = payments.pop(fate.number, 0), shipments.pop(fate.number, 0)
        lines = held.pop(fate.number, 0)
        if fate.completed != bool(lines):
            yield f"8: {fate.saga_id} holds {lines} lines, completed: {fate.completed}"
        if charged != (fate.amount if fate.completed else 0):
            yield f"9: {fate.saga_id} was charged {charged}, completed: {fate.completed}"
        if fate.completed != bool(shipped):
            yield f"10: {fate.saga_id} was shipped {shipped} times, completed: {fate.completed}"
    for what, left in (("reservations", held), ("payments", payments), ("shipments", shipments)):
        if left:
            yield f"7: {what} of {sorted(left)}, which are no sagas"
    forgotten = {fate.number for fate in fates if fate.is_forgotten}
    yield from _rows_without_barrier(databases, forgotten)
    accounts = _read(databases["payment"], "SELECT user_id, balance FROM account")
    spent = dict(
        _read(
            databases["payment"], "SELECT user_id, sum(amount - refunded) FROM payment GROUP BY 1"
        )
    )
    for user, balance in accounts:
        if balance != CATALOG.accounts[user] - spent.get(user, 0):
            yield f"9: {user} has {balance} and has spent {spent.get(user, 0)}"


def _rows_without_barrier(
    databases: Mapping[str, apsw.Connection], forgotten: set[int]
) -> Iterator[str]:
    """7: what a service wrote stands beside the stored success that says so, until forgotten."""
    for service, table in (
        ("inventory", "reservation"),
        ("payment", "payment"),
        ("shipping", "shipment"),
    ):
        orphans = _read(
            databases[service],
            f"SELECT number, step FROM {table} AS row WHERE NOT EXISTS (SELECT 1 FROM barrier"
            " WHERE key = (row.number << 5) + (row.step << 1) AND outcome = 0)",
        )
        orphans = [(number, step) for number, step in orphans if number not in forgotten]
        if orphans:
            yield f"7: {table} holds {orphans}, which no stored success explains"


def _stock(database: apsw.Connection) -> tuple[list[str], dict[int, int]]:
    faults = []
    held: Counter[int] = Counter()
    reserved: Counter[str] = Counter()
    for number, sku, quantity in _read(
        database, "SELECT number, sku, quantity FROM reservation WHERE NOT released"
    ):
        held[number] += 1
        reserved[sku] += quantity
    for sku, initial, available in _read(database, "SELECT sku, initial, available FROM stock"):
        if initial - available != reserved[sku]:
            faults.append(f"8: {sku}: {initial} is not {available} + {reserved[sku]}")
    return faults, held


def _read(database: apsw.Connection, query: str) -> list[Any]:
    return apsw.Cursor(database).execute(query).fetchall()


SCENARIO = Scenario(
    saga=checkout,
    services=services,
    request=request,
    prices=CATALOG.prices,
    catalog=CATALOG,
    other=other,
    judge=judge,
)
