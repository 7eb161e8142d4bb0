"""The checkout saga's definition: prices, bodies, reasons (SPEC 1)."""

import pytest

from sagacity import wire
from sagacity.messages import (
    ChargePaymentFailed,
    ChargePaymentOk,
    Checkout,
    CreateShipmentFailed,
    CreateShipmentOk,
    Item,
    Order,
    Reservation,
    ReserveInventoryFailed,
    ReserveInventoryOk,
    merge,
)
from sagacity.money import AMOUNT_MAX
from sagacity.saga import Priced, Run, Unstartable
from services.checkout import checkout, price_cart

PRICES = {"abc123": 10000, "xyz789": 4999}


def run_of(*items: tuple[str, int]) -> Run:
    """Give a run of the example's cart, or of another."""
    lines = [Item(*item) for item in items or (("abc123", 2), ("xyz789", 1))]
    order = merge(Checkout("checkout42", "u42", lines, "123 Main St"))
    return Run("checkout42", wire.pack(order), wire.BodyReader[Order](Order).decode, 24999, "o123")


def test_the_example_costs_what_the_example_charges() -> None:
    """SPEC 1: 249.99."""
    assert price_cart(run_of().order, PRICES) == Priced(24999)


def test_an_unknown_sku_ends_the_saga_at_once() -> None:
    """The first one in the cart is named."""
    order = run_of(("abc123", 1), ("zzz", 1), ("yyy", 1)).order
    assert price_cart(order, PRICES) == Unstartable("Unknown SKU: zzz")


def test_the_dearest_cart_is_within_the_limit_of_amounts() -> None:
    """F6: no overflow anywhere: 100 lines of 1000 pieces at 10^9."""
    order = run_of(*[(f"s{at}", 1000) for at in range(100)]).order
    assert price_cart(order, {f"s{at}": 10**9 for at in range(100)}) == Priced(AMOUNT_MAX)


HELD = [Reservation("abc123", "r1"), Reservation("xyz789", "r2")]
ITEMS = [{"sku": "abc123", "quantity": 2}, {"sku": "xyz789", "quantity": 1}]
HEAD = {"saga_id": "checkout42"}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, {"type": "ReserveInventory", **HEAD, "step": 1, "items": ITEMS}),
        (2, {"type": "ChargePayment", **HEAD, "step": 2, "user_id": "u42", "amount": 24999}),
        (
            3,
            {
                "type": "CreateShipment",
                **HEAD,
                "step": 3,
                "items": ITEMS,
                "address": "123 Main St",
            },
        ),
    ],
)
def test_commands_are_byte_for_byte_those_of_the_spec(
    step: int, expected: dict[str, object]
) -> None:
    """Key order included."""
    assert wire.pack(checkout.steps[step - 1].command(run_of(), step)) == wire.pack(expected)


@pytest.mark.parametrize(
    ("step", "ok", "expected"),
    [
        (
            1,
            ReserveInventoryOk("checkout42", 1, HELD),
            {
                "reservations": [
                    {"sku": "abc123", "reservation_id": "r1"},
                    {"sku": "xyz789", "reservation_id": "r2"},
                ]
            },
        ),
        (2, ChargePaymentOk("checkout42", 2, "p1", "txn_12345"), {"payment_id": "p1"}),
        (3, CreateShipmentOk("checkout42", 3, "s1", "1Z999AA1"), {"shipment_id": "s1"}),
    ],
)
def test_compensations_name_what_is_known_and_nothing_where_it_is_not(
    step: int, ok: object, expected: dict[str, object]
) -> None:
    """`compensating` alone where the outcome is unknown."""
    definition = checkout.steps[step - 1]
    head = {
        "type": definition.compensation_name,
        **HEAD,
        "step": step,
        "compensating": True,
    }
    assert wire.pack(definition.undo(run_of(), step, ok)) == wire.pack({**head, **expected})
    assert wire.pack(definition.undo(run_of(), step, None)) == wire.pack(head)


def test_reasons_are_those_that_the_spec_gives_a_client() -> None:
    """One for each business failure."""
    inventory, payment, shipping = checkout.steps
    assert (
        inventory.reason(ReserveInventoryFailed("c", 1, "out_of_stock", "abc123"))
        == "Out of stock: abc123"
    )
    assert (
        payment.reason(ChargePaymentFailed("c", 2, "insufficient_funds", "DECLINED"))
        == "Payment declined: DECLINED"
    )
    assert (
        shipping.reason(CreateShipmentFailed("c", 3, "no_carrier", "NO_CARRIER"))
        == "Shipment refused: NO_CARRIER"
    )


def test_final_bodies_are_those_of_the_spec() -> None:
    """What the client reads."""
    assert wire.unpack(wire.pack(checkout.completed(run_of()))) == {
        "type": "checkout_complete",
        **HEAD,
        "status": "COMPLETED",
        "order_id": "o123",
    }
    assert wire.unpack(wire.pack(checkout.aborted(run_of(), "Cancelled: changed my mind"))) == {
        "type": "checkout_failed",
        **HEAD,
        "status": "ABORTED",
        "reason": "Cancelled: changed my mind",
    }
