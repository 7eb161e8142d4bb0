"""Whatever order commands come in, and however often: the books of a service balance.

A naive twin of the barrier, a few dicts, says what must have happened; the service's tables must
say the same after every batch.
"""

from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.load import Catalog
from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION, number_of
from sagacity.messages import (
    ChargePayment,
    Line,
    RefundPayment,
    ReleaseReservation,
    ReserveInventory,
)
from sagacity.wire import Command
from services.inventory import service as inventory
from services.payment import service as payment
from tests.unit.service_world import World, world_of

SAGAS = 6
INITIAL = {"a": 5, "b": 3, "none": 0}
FUNDS = 10

lines = st.lists(
    st.tuples(st.sampled_from(["a", "b", "none", "unheard_of"]), st.integers(1, 4)),
    min_size=1,
    max_size=3,
)
# What each saga wants never changes: an action that comes again is the same one.
carts = st.lists(lines, min_size=SAGAS, max_size=SAGAS)
prices = st.lists(
    st.tuples(st.sampled_from(["rich", "poor", "u42", "u_flaky_3"]), st.integers(0, 7)),
    min_size=SAGAS,
    max_size=SAGAS,
)
Sent = tuple[int, int, int]  # which saga, direction, attempt
batches = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, SAGAS - 1), st.sampled_from([ACTION, COMPENSATION]), st.integers(1, 5)
        ),
        min_size=1,
        max_size=8,
    ),
    max_size=8,
)
thorough = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large]
)


class Twin:
    """The barrier in five lines: what each saga's action came to, and whether it was undone."""

    def __init__(self) -> None:
        self.actions: dict[int, str] = {}
        self.undone: set[int] = set()

    def first(self, saga: int, direction: int) -> bool:
        """Say whether the handler runs."""
        if saga in self.undone:
            return False
        return direction == COMPENSATION or saga not in self.actions

    def remembered(self, saga: int, direction: int) -> str:
        """Give the outcome of a command whose handler does not run."""
        if direction == COMPENSATION:
            return "ok"
        return "refused_compensated" if saga in self.undone else self.actions[saga]


def commands_of(batch: list[Sent], bodies: list[tuple[bytes, bytes]]) -> Iterator[Command]:
    for saga, direction, attempt in batch:
        number = number_of(saga + 1, 0)
        body = bodies[saga][direction]
        yield Command(f"s{saga}", 1, direction, 1, number, attempt, {}, body)


def wanted(cart: list[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for sku, quantity in cart:
        found[sku] = found.get(sku, 0) + quantity
    return found


@thorough
@given(carts, batches)
def test_stock_balances_after_any_sequence(
    chosen: list[list[tuple[str, int]]], sent: list[list[Sent]]
) -> None:
    """initial = available + held, per SKU, none negative; and each outcome is the twin's."""
    bodies = [
        (
            wire.encode(ReserveInventory(f"s{at}", 1, [Line(*line) for line in cart])),
            wire.encode(ReleaseReservation(f"s{at}", 1, True)),
        )
        for at, cart in enumerate(chosen)
    ]
    twin, available = Twin(), dict(INITIAL)
    with world_of(inventory, Catalog({}, INITIAL, {})) as world:
        for batch in sent:
            expected = []
            for saga, direction, _ in batch:
                if not twin.first(saga, direction):
                    expected.append(twin.remembered(saga, direction))
                    continue
                cart = wanted(chosen[saga])
                if direction == COMPENSATION:
                    held = twin.actions.get(saga) == "ok"
                    twin.undone.add(saga)
                    outcome = "ok"
                    for sku, quantity in cart.items() if held else ():
                        available[sku] += quantity
                else:
                    enough = all(available.get(sku, -1) >= want for sku, want in cart.items())
                    outcome = twin.actions[saga] = "ok" if enough else "declined"
                    for sku, quantity in cart.items() if enough else ():
                        available[sku] -= quantity
                expected.append(outcome)
            assert world.outcomes(*commands_of(batch, bodies)) == expected
            check_stock(world, available)


def check_stock(world: World, available: dict[str, int]) -> None:
    stock = world.rows("SELECT sku, initial, available FROM stock")
    held = dict(
        world.rows("SELECT sku, sum(quantity) FROM reservation WHERE NOT released GROUP BY sku")
    )
    assert {sku: left for sku, _, left in stock} == available
    for sku, initial, left in stock:
        assert initial == left + held.get(sku, 0)


@thorough
@given(prices, batches)
def test_money_balances_after_any_sequence(
    chosen: list[tuple[str, int]], sent: list[list[Sent]]
) -> None:
    """Funds and charges add up, nobody is overdrawn, each refund is its charge."""
    bodies = [
        (
            wire.encode(ChargePayment(f"s{at}", 1, user, amount)),
            wire.encode(RefundPayment(f"s{at}", 1, True)),
        )
        for at, (user, amount) in enumerate(chosen)
    ]
    twin = Twin()
    balances = {"rich": FUNDS, "poor": 0}
    with world_of(payment, Catalog({}, {}, dict(balances))) as world:
        for batch in sent:
            expected = []
            for saga, direction, attempt in batch:
                if not twin.first(saga, direction):
                    expected.append(twin.remembered(saga, direction))
                    continue
                user, amount = chosen[saga]
                if direction == COMPENSATION:
                    if twin.actions.get(saga) == "ok" and user in balances:
                        balances[user] += amount
                    twin.undone.add(saga)
                    expected.append("ok")
                elif user == "u_flaky_3" and attempt <= 3:
                    expected.append("failed")
                else:
                    declined = balances.get(user, amount) < amount
                    twin.actions[saga] = "declined" if declined else "ok"
                    if user in balances and not declined:
                        balances[user] -= amount
                    expected.append(twin.actions[saga])
            assert world.outcomes(*commands_of(batch, bodies)) == expected
            assert dict(world.rows("SELECT user_id, balance FROM account")) == balances
            charged = {
                saga: (chosen[saga][1], chosen[saga][1] if saga in twin.undone else 0)
                for saga, outcome in twin.actions.items()
                if outcome == "ok"
            }
            rows = world.rows("SELECT number, amount, refunded FROM payment")
            assert {(number >> 10) - 1: (paid, back) for number, paid, back in rows} == charged
