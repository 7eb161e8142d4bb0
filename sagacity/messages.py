"""The message bodies of SPEC 1 and 2, key order included, validated on the way in. Pure.

A field's type is its limit. A Struct's fields stand in the order in which the body carries them.
"""

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from sagacity.errors import Malformed
from sagacity.ids import SAGA_ID_PATTERN, check_saga_id
from sagacity.wire import Int64, refuse_foreign

LINES_MAX = 100  # lines of a cart
QUANTITY_MAX = 1000  # pieces in a line, before lines of one SKU are merged
MERGED_QUANTITY_MAX = LINES_MAX * QUANTITY_MAX

SKU_PATTERN = r"\A[A-Za-z0-9._:-]{1,64}\Z"
SagaId = Annotated[str, Meta(pattern=SAGA_ID_PATTERN)]
Sku = Annotated[str, Meta(pattern=SKU_PATTERN)]
UserId = Annotated[str, Meta(min_length=1, max_length=128)]
Address = Annotated[str, Meta(min_length=1, max_length=512)]
Reason = Annotated[str, Meta(min_length=1, max_length=256)]

_skus = re.compile(r"\A[A-Za-z0-9._:-]{1,64}(?:,[A-Za-z0-9._:-]{1,64})*\Z")
# Control characters and surrogates: what no text of ours may hold.
_foreign = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Item(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A line of a cart as the client sends it."""

    sku: str  # checked by `merge`, all lines at once
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]


class Line(Struct, frozen=True, gc=False):
    """A line of a cart as services get it: lines of one SKU merged, up to MERGED_QUANTITY_MAX."""

    sku: str
    quantity: int


class Checkout(Struct, frozen=True, tag_field="type", tag="checkout", forbid_unknown_fields=True):
    """A client's request to check out; `merge` checks what the types do not say.

    A pattern in a type costs 1 us each; one look at all of them together costs half of that.
    """

    saga_id: str
    user_id: UserId
    items: Annotated[list[Item], Meta(min_length=1, max_length=LINES_MAX)]
    shipping_address: Address
    msg_id: Int64 | UnsetType = UNSET


class Order(Struct, frozen=True, tag_field="type", tag="checkout"):
    """An accepted checkout: lines merged by SKU in order of first appearance, no msg_id.

    It and what follows are written by our own processes out of what was checked here, so their
    types carry no limits: a pattern costs 1 us at each of the twenty texts of a checkout's way.
    """

    saga_id: str
    user_id: str
    items: list[Line]
    shipping_address: str


class Cancel(Struct, frozen=True, tag_field="type", tag="cancel", forbid_unknown_fields=True):
    """A client's request to turn a saga back."""

    saga_id: SagaId
    reason: Reason
    msg_id: Int64 | UnsetType = UNSET


class RetryNow(Struct, frozen=True, tag_field="type", tag="retry", forbid_unknown_fields=True):
    """An operator's request to send a stuck compensation again now."""

    saga_id: SagaId
    reason: Reason
    msg_id: Int64 | UnsetType = UNSET


class Reservation(Struct, frozen=True, gc=False):
    """Stock held for one line."""

    sku: str
    reservation_id: str


class ReserveInventory(Struct, frozen=True, tag_field="type", tag="ReserveInventory"):
    """Step 1's action."""

    saga_id: str
    step: int
    items: list[Line]


class ReserveInventoryOk(Struct, frozen=True, tag_field="type", tag="ReserveInventory_ok"):
    """Every line is held."""

    saga_id: str
    step: int
    reservations: list[Reservation]


class ReserveInventoryFailed(Struct, frozen=True, tag_field="type", tag="ReserveInventory_failed"):
    """Too little stock of one SKU; nothing is held."""

    saga_id: str
    step: int
    error: str
    sku: str


class ReleaseReservation(Struct, frozen=True, tag_field="type", tag="ReleaseReservation"):
    """Step 1's compensation; without reservations where the outcome is unknown."""

    saga_id: str
    step: int
    compensating: bool
    reservations: list[Reservation] | UnsetType = UNSET


class ReleaseReservationOk(Struct, frozen=True, tag_field="type", tag="ReleaseReservation_ok"):
    """Nothing is held any more."""

    saga_id: str
    step: int


class ChargePayment(Struct, frozen=True, tag_field="type", tag="ChargePayment"):
    """Step 2's action."""

    saga_id: str
    step: int
    user_id: str
    amount: int  # minor units


class ChargePaymentOk(Struct, frozen=True, tag_field="type", tag="ChargePayment_ok"):
    """The amount is charged."""

    saga_id: str
    step: int
    payment_id: str
    transaction_id: str


class ChargePaymentFailed(Struct, frozen=True, tag_field="type", tag="ChargePayment_failed"):
    """Declined; nothing is charged."""

    saga_id: str
    step: int
    error: str
    decline_code: str


class RefundPayment(Struct, frozen=True, tag_field="type", tag="RefundPayment"):
    """Step 2's compensation; without payment_id where the outcome is unknown."""

    saga_id: str
    step: int
    compensating: bool
    payment_id: str | UnsetType = UNSET


class RefundPaymentOk(Struct, frozen=True, tag_field="type", tag="RefundPayment_ok"):
    """What was charged is refunded."""

    saga_id: str
    step: int


class CreateShipment(Struct, frozen=True, tag_field="type", tag="CreateShipment"):
    """Step 3's action."""

    saga_id: str
    step: int
    items: list[Line]
    address: str


class CreateShipmentOk(Struct, frozen=True, tag_field="type", tag="CreateShipment_ok"):
    """The shipment is under way."""

    saga_id: str
    step: int
    shipment_id: str
    tracking_number: str


class CreateShipmentFailed(Struct, frozen=True, tag_field="type", tag="CreateShipment_failed"):
    """No carrier takes it; nothing ships."""

    saga_id: str
    step: int
    error: str
    decline_code: str


class CancelShipment(Struct, frozen=True, tag_field="type", tag="CancelShipment"):
    """Step 3's compensation; without shipment_id where the outcome is unknown."""

    saga_id: str
    step: int
    compensating: bool
    shipment_id: str | UnsetType = UNSET


class CancelShipmentOk(Struct, frozen=True, tag_field="type", tag="CancelShipment_ok"):
    """Nothing ships any more."""

    saga_id: str
    step: int


class CheckoutComplete(Struct, frozen=True, tag_field="type", tag="checkout_complete"):
    """The outcome of a checkout that succeeded."""

    saga_id: str
    status: str
    order_id: str


class CheckoutFailed(Struct, frozen=True, tag_field="type", tag="checkout_failed"):
    """The outcome of a checkout that was turned back; every compensation has succeeded."""

    saga_id: str
    status: str
    reason: str


def check_text(name: str, text: str, *, blank: bool = False) -> None:
    """Refuse a text with control characters or surrogates; a blank one unless `blank`.

    Raises:
        Malformed: naming the field.
    """
    if not text.isprintable() and _foreign.search(text):
        raise Malformed(f"{name}: control characters and surrogates are not allowed")
    if not blank and text.isspace():
        raise Malformed(f"{name}: must not be blank")


def merge(request: Checkout) -> Order | Checkout:
    """Accept a checkout: lines of one SKU merged, in order of first appearance.

    Returns:
        The order; the request itself where it has no msg_id and nothing is to be merged, since it
        is packed like its order then.

    Raises:
        Malformed: an id has other characters than SPEC 2 allows, a text holds control characters
            or the user is blank.
    """
    check_saga_id(request.saga_id)
    check_text("user_id", request.user_id)
    check_text("shipping_address", request.shipping_address, blank=True)
    quantities: dict[str, int] = {}
    for item in request.items:
        quantities[item.sku] = quantities.get(item.sku, 0) + item.quantity
    joined = ",".join(quantities)
    if _skus.match(joined) is None or joined.count(",") != len(quantities) - 1:
        raise Malformed("sku: 1 to 64 characters of A-Z a-z 0-9 . _ : -")
    if len(quantities) == len(request.items) and request.msg_id is UNSET:
        return request
    lines = [Line(sku, quantity) for sku, quantity in quantities.items()]
    return Order(request.saga_id, request.user_id, lines, request.shipping_address)


T = TypeVar("T")


def from_json(value: dict[str, Any], kind: type[T]) -> T:
    """Read a body that came as JSON.

    Raises:
        Malformed: it does not have the shape, or is over a limit.
    """
    try:
        refuse_foreign(value)
        if "type" not in value:  # which msgspec does not ask of a single kind
            raise Malformed("Object missing required field `type`")
        return msgspec.convert(value, kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise Malformed(str(error)) from None
