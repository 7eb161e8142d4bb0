"""Messages: every limit of SPEC 2 at its edge and one past it, by JSON and by msgpack."""

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagacity import messages, wire
from sagacity.errors import Malformed
from sagacity.messages import (
    LINES_MAX,
    MERGED_QUANTITY_MAX,
    Cancel,
    Checkout,
    Line,
    Order,
    ReserveInventory,
    RetryNow,
    check_text,
    from_json,
    merge,
)
from sagacity.wire import BodyReader

BODY: dict[str, Any] = {
    "type": "checkout",
    "msg_id": 1,
    "saga_id": "checkout42",
    "user_id": "u42",
    "items": [{"sku": "abc123", "quantity": 2}, {"sku": "xyz789", "quantity": 1}],
    "shipping_address": "123 Main St",
}
read = BodyReader[Checkout](Checkout).read


def item(sku: object = "abc123", quantity: object = 1, **more: object) -> dict[str, object]:
    return {"sku": sku, "quantity": quantity, **more}


def accepted_both_ways(body: dict[str, Any]) -> Order | Checkout:
    """Accept a body as it comes from the node and as it comes from the wire."""
    one = merge(from_json(body, Checkout))
    other = merge(read(wire.pack(body))[0])
    assert one == other
    return one


def test_the_example_of_the_spec_is_accepted() -> None:
    """SPEC 1; without msg_id in the order."""
    order = accepted_both_ways(BODY)
    assert msgspec.to_builtins(order) == {
        key: value for key, value in BODY.items() if key != "msg_id"
    }
    assert list(msgspec.to_builtins(order)) == [
        "type",
        "saga_id",
        "user_id",
        "items",
        "shipping_address",
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"saga_id": "x"},
        {"saga_id": "x" * 128},
        {"saga_id": "AZaz09._:-"},
        {"user_id": "u"},
        {"user_id": "é" * 128},
        {"user_id": " u "},
        {"user_id": "नमस्ते 👩‍👩‍👧"},
        {"shipping_address": "x"},
        {"shipping_address": "x" * 512},
        {"items": [item(quantity=1)]},
        {"items": [item(quantity=1000)]},
        {"items": [item(sku="x" * 64)]},
        {"items": [item()] * 100},
        {"msg_id": 0},
        {"msg_id": 2**63 - 1},
        {"msg_id": -(2**63)},
    ],
    ids=repr,
)
def test_what_is_at_a_limit_is_accepted(fields: dict[str, Any]) -> None:
    """SPEC 2, each from the inside."""
    accepted_both_ways({**BODY, **fields})


SCRAPS: dict[str, list[object]] = {
    "saga_id": ["", "x" * 129, "a b", "a\n", "é", "a/b", 7, None, ["a"]],
    "user_id": [
        *("", "x" * 129, " ", "\u3000 ", "\xa0", 7, None, True),
        *(f"u{each}" for each in "\x00\n\t\x1f\x7f\x80\x9f"),
    ],
    "shipping_address": ["", "x" * 513, "a\x00b", "a\nb", 7, None],
    "items": [
        *([], [item()] * 101, {}, None, "abc123", [None], [[]], [1]),
        *([item(quantity=each)] for each in (0, -1, 1001, 2**63, 2**64 - 1, -(2**63))),
        *([item(quantity=each)] for each in [True, False, "1", None, [1], {}]),
        *([item(sku=each)] for each in ["", "x" * 65, "a b", "a\n", "é", 7, None]),
        *([item(price=1)], [{"sku": "abc123"}], [{"quantity": 1}]),
    ],
    "msg_id": [2**63, -(2**63) - 1, "1", True, None],
    "type": ["Checkout", "", 7, None],
    "coupon": ["x"],
    "in_reply_to": [1],
}
PAST = [{name: value} for name, values in SCRAPS.items() for value in values]


@pytest.mark.parametrize("fields", PAST, ids=repr)
def test_what_is_past_a_limit_is_malformed(fields: dict[str, Any]) -> None:
    """SPEC 2: code 12, before anything is written."""
    body = {**BODY, **fields}
    with pytest.raises(Malformed):
        merge(from_json(body, Checkout))
    with pytest.raises(Malformed):
        merge(read(wire.pack(body))[0])


@pytest.mark.parametrize("name", [name for name in BODY if name != "msg_id"])
def test_a_key_that_is_missing_is_malformed(name: str) -> None:
    """All but msg_id."""
    body = {key: value for key, value in BODY.items() if key != name}
    with pytest.raises(Malformed):
        read(wire.pack(body))
    with pytest.raises(Malformed):
        from_json(body, Checkout)


@pytest.mark.parametrize(
    "fields",
    [
        {"items": [item(quantity=1.0)]},
        {"items": [item(quantity=float("nan"))]},
        {"items": [item(quantity=float("inf"))]},
        {"msg_id": 1.0},
        {"user_id": 1.5},
    ],
    ids=repr,
)
def test_no_float_comes_in(fields: dict[str, Any]) -> None:
    """F6, F7: 1.0 is no quantity."""
    body = {**BODY, **fields}
    with pytest.raises(Malformed):
        from_json(body, Checkout)
    with pytest.raises(Malformed):
        read(msgpack.packb(body))


@pytest.mark.parametrize("where", ["saga_id", "user_id", "shipping_address"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udcff\ud800"])
def test_half_a_character_is_malformed(where: str, text: str) -> None:
    """JSON can say it; no bytes can."""
    with pytest.raises(Malformed):
        merge(from_json({**BODY, where: text}, Checkout))
    with pytest.raises(Malformed):
        wire.pack({**BODY, where: text})


def test_deep_nesting_is_malformed() -> None:
    """By JSON it comes as Python values already."""
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    with pytest.raises(Malformed):
        from_json({**BODY, "items": deep}, Checkout)


def test_lines_of_one_sku_are_merged_in_order_of_first_appearance() -> None:
    """SPEC 2: limits hold before merging."""
    items = [item("b", 1), item("a", 1000), item("b", 2), item("a", 1000)]
    order = accepted_both_ways({**BODY, "items": items})
    assert order.items == [Line("b", 3), Line("a", 2000)]


def test_a_merged_quantity_reaches_100_000_inside_too() -> None:
    """What services are sent must be readable by them."""
    order = accepted_both_ways({**BODY, "items": [item(quantity=1000)] * LINES_MAX})
    assert order.items == [Line("abc123", MERGED_QUANTITY_MAX)]
    assert isinstance(order, Order)
    command = ReserveInventory("s", 1, order.items)
    assert wire.decoder(ReserveInventory)(wire.encode(command)) == command


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 1000)), min_size=1, max_size=100),
    st.randoms(use_true_random=False),
)
def test_merging_loses_nothing(lines: list[tuple[str, int]], chance: Any) -> None:
    """F1, F7: the sum of each SKU stays."""
    body = {**BODY, "items": [item(*line) for line in lines]}
    order = merge(from_json(body, Checkout))
    for sku in "abc":
        wanted = sum(quantity for name, quantity in lines if name == sku)
        assert sum(line.quantity for line in order.items if line.sku == sku) == wanted
    assert len({line.sku for line in order.items}) == len(order.items)


@pytest.mark.parametrize("kind", [Cancel, RetryNow])
@pytest.mark.parametrize(
    ("reason", "fits"),
    [("x", True), ("x" * 256, True), ("", False), ("x" * 257, False), (7, False), (None, False)],
)
def test_a_reason_has_1_to_256_characters(kind: type[Any], reason: object, fits: bool) -> None:
    """It is journalled and read by people."""
    body = {"type": kind.__struct_config__.tag, "saga_id": "s", "reason": reason}
    if fits:
        assert from_json(body, kind).reason == reason
    else:
        with pytest.raises(Malformed):
            from_json(body, kind)


@pytest.mark.parametrize("text", ["\x00", "a\x85", "\x7f", "\ud800", " ", "\t", "\u2003"])
def test_text_is_checked_by_name(text: str) -> None:
    """The error says which field."""
    with pytest.raises(Malformed, match=r"^reason: "):
        check_text("reason", text)


EXAMPLES = {
    messages.ReserveInventoryOk: (1, [messages.Reservation("abc123", "r1")]),
    messages.ReserveInventoryFailed: (1, "out_of_stock", "abc123"),
    messages.ReleaseReservation: (1, True, [messages.Reservation("abc123", "r3")]),
    messages.ReleaseReservationOk: (1,),
    messages.ChargePayment: (2, "u42", 24_999),
    messages.ChargePaymentOk: (2, "p1", "txn_12345"),
    messages.ChargePaymentFailed: (2, "insufficient_funds", "DECLINED"),
    messages.RefundPayment: (2, True, "p1"),
    messages.CreateShipment: (3, [Line("abc123", 2)], "123 Main St"),
    messages.CreateShipmentOk: (3, "s1", "1Z999AA1"),
    messages.CheckoutComplete: ("COMPLETED", "o123"),
    messages.CheckoutFailed: ("ABORTED", "Payment declined: DECLINED"),
}
KEYS = {
    messages.ReserveInventoryOk: "type saga_id step reservations",
    messages.ReserveInventoryFailed: "type saga_id step error sku",
    messages.ReleaseReservation: "type saga_id step compensating reservations",
    messages.ReleaseReservationOk: "type saga_id step",
    messages.ChargePayment: "type saga_id step user_id amount",
    messages.ChargePaymentOk: "type saga_id step payment_id transaction_id",
    messages.ChargePaymentFailed: "type saga_id step error decline_code",
    messages.RefundPayment: "type saga_id step compensating payment_id",
    messages.CreateShipment: "type saga_id step items address",
    messages.CreateShipmentOk: "type saga_id step shipment_id tracking_number",
    messages.CheckoutComplete: "type saga_id status order_id",
    messages.CheckoutFailed: "type saga_id status reason",
}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_body_carries_its_keys_in_the_specs_order(kind: Any) -> None:
    """SPEC 1: these keys and no others, in this order, by both packers."""
    packed = wire.encode(kind("checkout42", *EXAMPLES[kind]))
    body = wire.unpack(packed)
    assert list(body) == KEYS[kind].split()
    assert wire.pack(body) == packed


@pytest.mark.parametrize(
    ("kind", "step"), [(messages.ReleaseReservation, 1), (messages.RefundPayment, 2)]
)
def test_a_compensation_of_the_unknown_carries_compensating_alone(kind: Any, step: int) -> None:
    """SPEC 1: no id that nobody gave."""
    body = wire.unpack(wire.encode(kind("s", step, True)))
    assert list(body) == ["type", "saga_id", "step", "compensating"]
