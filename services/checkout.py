"""The checkout saga: which step asks which service for what, and how each is undone.

    checkout --> [1 inventory]     --> [2 payment]     --> [3 shipping]     --> checkout_complete
                 ReserveInventory      ChargePayment       CreateShipment
                        |                    |                   |
                        | declined,          | declined,         | declined,
                        | timed out          | timed out         | timed out
                        v                    v                   v
    checkout_failed <-- ReleaseReservation <-- RefundPayment <-- CancelShipment

A step that is declined has had no effect: its own compensation is left out, those before it run.
Messages and reasons are SPEC 1's. Knows no service's code, no tables, no sockets.
"""

from typing import Any

from msgspec import UNSET

from sagacity.messages import (
    CancelShipment,
    CancelShipmentOk,
    ChargePayment,
    ChargePaymentFailed,
    ChargePaymentOk,
    Checkout,
    CheckoutComplete,
    CheckoutFailed,
    CreateShipment,
    CreateShipmentFailed,
    CreateShipmentOk,
    Order,
    RefundPayment,
    RefundPaymentOk,
    ReleaseReservation,
    ReleaseReservationOk,
    ReserveInventory,
    ReserveInventoryFailed,
    ReserveInventoryOk,
    merge,
)
from sagacity.saga import Priced, Prices, Run, Saga, Step, Unstartable


def price_cart(order: Order | Checkout, prices: Prices) -> Priced | Unstartable:
    """Price an order.

    Args:
        order: accepted, lines merged.
        prices: minor units of one piece, by SKU.

    Returns:
        The total, or why the cart cannot be bought: the first SKU that has no price.
    """
    amount = 0
    for line in order.items:
        price = prices.get(line.sku)
        if price is None:
            return Unstartable(f"Unknown SKU: {line.sku}")
        amount += price * line.quantity
    return Priced(amount)


def _reserve(run: Run, step: int) -> ReserveInventory:
    return ReserveInventory(run.saga_id, step, run.order.items)


def _release(run: Run, step: int, held: ReserveInventoryOk | None) -> ReleaseReservation:
    return ReleaseReservation(run.saga_id, step, True, held.reservations if held else UNSET)


def _charge(run: Run, step: int) -> ChargePayment:
    return ChargePayment(run.saga_id, step, run.order.user_id, run.amount)


def _refund(run: Run, step: int, charged: ChargePaymentOk | None) -> RefundPayment:
    return RefundPayment(run.saga_id, step, True, charged.payment_id if charged else UNSET)


def _ship(run: Run, step: int) -> CreateShipment:
    return CreateShipment(run.saga_id, step, run.order.items, run.order.shipping_address)


def _cancel(run: Run, step: int, sent: CreateShipmentOk | None) -> CancelShipment:
    return CancelShipment(run.saga_id, step, True, sent.shipment_id if sent else UNSET)


def _completed(run: Run) -> CheckoutComplete:
    return CheckoutComplete(run.saga_id, "COMPLETED", run.order_id)


def _aborted(run: Run, reason: str) -> CheckoutFailed:
    return CheckoutFailed(run.saga_id, "ABORTED", reason)


def _out_of_stock(said: Any) -> str:
    return f"Out of stock: {said.sku}"


def _payment_declined(said: Any) -> str:
    return f"Payment declined: {said.decline_code}"


def _shipment_refused(said: Any) -> str:
    return f"Shipment refused: {said.decline_code}"


checkout = Saga(
    name="checkout",
    version=1,
    request=Checkout,
    order=Order,
    accept=merge,
    price=price_cart,
    steps=(
        Step(
            service="inventory",
            action=ReserveInventory,
            ok=ReserveInventoryOk,
            declined=ReserveInventoryFailed,
            compensation=ReleaseReservation,
            compensated=ReleaseReservationOk,
            command=_reserve,
            undo=_release,
            reason=_out_of_stock,
        ),
        Step(
            service="payment",
            action=ChargePayment,
            ok=ChargePaymentOk,
            declined=ChargePaymentFailed,
            compensation=RefundPayment,
            compensated=RefundPaymentOk,
            command=_charge,
            undo=_refund,
            reason=_payment_declined,
            charges=True,
        ),
        Step(
            service="shipping",
            action=CreateShipment,
            ok=CreateShipmentOk,
            declined=CreateShipmentFailed,
            compensation=CancelShipment,
            compensated=CancelShipmentOk,
            command=_ship,
            undo=_cancel,
            reason=_shipment_refused,
        ),
    ),
    completed=_completed,
    aborted=_aborted,
)
