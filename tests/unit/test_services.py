"""The three services: SPEC 1 to the byte, and F1 to F4 of what can go wrong."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from config.load import Catalog
from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION, number_of
from sagacity.messages import (
    CancelShipment,
    ChargePayment,
    CreateShipment,
    Line,
    RefundPayment,
    ReleaseReservation,
    Reservation,
    ReserveInventory,
)
from sagacity.wire import Command
from services.inventory import service as inventory
from services.payment import SLOW_S, answer_delay, payment_service
from services.payment import service as payment
from services.shipping import service as shipping
from tests.unit.service_world import World, world_of

LINES = [Line("abc123", 2), Line("xyz789", 1)]


@pytest.fixture
def stock() -> Iterator[World]:
    with world_of(inventory) as made:
        yield made


@pytest.fixture
def money() -> Iterator[World]:
    with world_of(payment, Catalog({}, {}, {"u999": 0, "rich": 1000})) as made:
        yield made


@pytest.fixture
def parcels() -> Iterator[World]:
    with world_of(shipping) as made:
        yield made


def reserve(count: int, *lines: Line) -> ReserveInventory:
    return ReserveInventory(f"checkout{count}", 1, list(lines))


def release(count: int, *held: Reservation) -> ReleaseReservation:
    if not held:
        return ReleaseReservation(f"checkout{count}", 1, True)
    return ReleaseReservation(f"checkout{count}", 1, True, list(held))


def charge(count: int, user: str = "u42", amount: int = 500) -> ChargePayment:
    return ChargePayment(f"checkout{count}", 2, user, amount)


def refund(count: int, payment_id: str = "") -> RefundPayment:
    if not payment_id:
        return RefundPayment(f"checkout{count}", 2, True)
    return RefundPayment(f"checkout{count}", 2, True, payment_id)


def ship(count: int, address: str = "123 Main St") -> CreateShipment:
    return CreateShipment(f"checkout{count}", 3, LINES, address)


def available(world: World) -> dict[str, int]:
    return {row[0]: row[1] for row in world.rows("SELECT sku, available FROM stock")}


# -- SPEC 1 to the byte -------------------------------------------------------------------------


def test_the_first_checkouts_on_a_new_directory_get_the_ids_of_the_example(
    stock: World, money: World, parcels: World
) -> None:
    """r1, r2, p1, txn_12345, s1, 1Z999AA1; then r3 for the one that is declined."""
    head: dict[str, Any] = {"saga_id": "checkout42"}
    assert stock.ask(42, 1, reserve(42, *LINES)).body == wire.pack(
        {
            "type": "ReserveInventory_ok",
            **head,
            "step": 1,
            "reservations": [
                {"sku": "abc123", "reservation_id": "r1"},
                {"sku": "xyz789", "reservation_id": "r2"},
            ],
        }
    )
    ids = {"payment_id": "p1", "transaction_id": "txn_12345"}
    assert money.ask(42, 2, charge(42, "u42", 24999)).body == wire.pack(
        {"type": "ChargePayment_ok", **head, "step": 2, **ids}
    )
    numbers = {"shipment_id": "s1", "tracking_number": "1Z999AA1"}
    assert parcels.ask(42, 3, ship(42)).body == wire.pack(
        {"type": "CreateShipment_ok", **head, "step": 3, **numbers}
    )
    head = {"saga_id": "checkout43"}
    held = [{"sku": "abc123", "reservation_id": "r3"}]
    assert stock.ask(43, 1, reserve(43, Line("abc123", 1))).body == wire.pack(
        {"type": "ReserveInventory_ok", **head, "step": 1, "reservations": held}
    )
    answer = money.ask(43, 2, charge(43, "u999", 10000))
    why = {"error": "insufficient_funds", "decline_code": "DECLINED"}
    assert answer.outcome == wire.DECLINED
    assert answer.body == wire.pack({"type": "ChargePayment_failed", **head, "step": 2, **why})
    assert stock.ask(43, 1, release(43, Reservation("abc123", "r3"))).body == wire.pack(
        {"type": "ReleaseReservation_ok", **head, "step": 1}
    )


def test_the_other_answers_are_those_of_the_spec(
    stock: World, money: World, parcels: World
) -> None:
    """Out of stock, no carrier, refund, cancellation."""
    head: dict[str, Any] = {"saga_id": "checkout5"}
    answer = stock.ask(5, 1, reserve(5, Line("abc123", 1), Line("sku_out_of_stock", 1)))
    why = {"error": "out_of_stock", "sku": "sku_out_of_stock"}
    assert answer.outcome == wire.DECLINED
    assert answer.body == wire.pack({"type": "ReserveInventory_failed", **head, "step": 1, **why})
    answer = parcels.ask(5, 3, ship(5, "no_carrier"))
    why = {"error": "no_carrier", "decline_code": "NO_CARRIER"}
    assert answer.outcome == wire.DECLINED
    assert answer.body == wire.pack({"type": "CreateShipment_failed", **head, "step": 3, **why})
    assert money.ask(5, 2, refund(5)).body == wire.pack(
        {"type": "RefundPayment_ok", **head, "step": 2}
    )
    head = {"saga_id": "checkout6"}
    parcels.ask(6, 3, ship(6))
    cancel = CancelShipment("checkout6", 3, True, "s1")
    assert parcels.ask(6, 3, cancel).body == wire.pack(
        {"type": "CancelShipment_ok", **head, "step": 3}
    )
    assert parcels.rows("SELECT cancelled FROM shipment") == [(1,)]


# -- inventory ----------------------------------------------------------------------------------


def test_half_a_reservation_cannot_be(stock: World) -> None:
    """F1: one line that is out of stock leaves no other line held, and nothing written at all."""
    before = available(stock)
    stock.ask(1, 1, reserve(1, Line("abc123", 1), Line("sku_out_of_stock", 1)))
    stock.ask(2, 1, reserve(2, Line("abc123", 1), Line("nobody_sells_this", 1)))
    assert available(stock) == before
    assert stock.rows("SELECT count(*) FROM reservation") == [(0,)]
    assert stock.executor.replays == 0


@pytest.mark.parametrize("one_by_one", [True, False])
def test_no_sku_is_oversold(one_by_one: bool) -> None:
    """F2: sixty-four want one of the ten that are left, in one batch or each alone."""
    with world_of(inventory, Catalog({}, {"hot": 10}, {})) as world:
        commands = [
            Command(
                f"checkout{count}",
                1,
                ACTION,
                1,
                number_of(count, 0),
                1,
                {},
                wire.encode(reserve(count, Line("hot", 1))),
            )
            for count in range(1, 65)
        ]
        outcomes = world.each(*commands) if one_by_one else world.outcomes(*commands)
        assert outcomes == ["ok"] * 10 + ["declined"] * 54
        assert available(world) == {"hot": 0}


def test_a_sku_twice_in_one_command_is_summed_before_it_is_checked() -> None:
    """F7: the shard merges lines, but the service does not rely on it."""
    with world_of(inventory, Catalog({}, {"hot": 3}, {})) as world:
        twice = (Line("hot", 2), Line("hot", 2))
        assert world.ask(1, 1, reserve(1, *twice)).outcome == wire.DECLINED
        assert world.ask(2, 1, reserve(2, Line("hot", 2), Line("hot", 1))).outcome == wire.OK
        assert available(world) == {"hot": 0}


def test_a_release_gives_back_all_lines_once(stock: World) -> None:
    """However often it is asked for."""
    before = available(stock)
    stock.ask(1, 1, reserve(1, *LINES))
    held = (Reservation("abc123", "r1"), Reservation("xyz789", "r2"))
    for attempt in (1, 2, 3):
        assert stock.ask(1, 1, release(1, *held), attempt=attempt).outcome == wire.OK
    assert available(stock) == before
    assert stock.rows("SELECT released FROM reservation") == [(1,), (1,)]


def test_a_release_without_ids_gives_back_what_is_held(stock: World) -> None:
    """The shard did not know the outcome; the service does."""
    before = available(stock)
    stock.ask(1, 1, reserve(1, *LINES))
    assert stock.ask(1, 1, release(1)).outcome == wire.OK
    assert stock.ask(2, 1, release(2)).outcome == wire.OK
    assert available(stock) == before


@pytest.mark.parametrize(
    "named",
    [
        Reservation("abc123", "r3"),  # another saga's
        Reservation("xyz789", "r1"),  # another SKU
        Reservation("abc123", "r99"),
        Reservation("abc123", "1"),
    ],
)
def test_a_release_of_ids_that_are_not_held_fails(stock: World, named: Reservation) -> None:
    """Ids are compared with the service's own rows, never acted on."""
    stock.ask(1, 1, reserve(1, *LINES))
    stock.ask(2, 1, reserve(2, Line("abc123", 1)))
    after = available(stock)
    answer = stock.ask(1, 1, release(1, Reservation("xyz789", "r2"), named))
    assert answer.outcome == wire.FAILED
    assert stock.ask(3, 1, release(3, named)).outcome == wire.FAILED
    assert available(stock) == after
    assert stock.ask(1, 1, release(1)).outcome == wire.OK


def test_stock_beyond_its_bounds_is_impossible(stock: World) -> None:
    """The CHECK stands even against a handler that is wrong."""
    for available_now in (-1, 10**9 + 1):
        with pytest.raises(Exception, match="CHECK"):
            stock.connection.execute("UPDATE stock SET available = ?", (available_now,))


# -- payment ------------------------------------------------------------------------------------


def test_a_user_is_charged_once(money: World) -> None:
    """F3: however often the command comes."""
    for attempt in (1, 1, 2):
        assert money.ask(1, 2, charge(1, "rich", 400), attempt=attempt).outcome == wire.OK
    assert money.rows("SELECT user_id, amount, refunded FROM payment") == [("rich", 400, 0)]
    assert money.rows("SELECT balance FROM account WHERE user_id = 'rich'") == [(600,)]


def test_an_account_is_never_overdrawn(money: World) -> None:
    """To the last cent, and no further."""
    outcomes = [
        money.ask(count, 2, charge(count, "rich", amount)).outcome
        for count, amount in ((1, 1001), (2, 999), (3, 2), (4, 1), (5, 1), (6, 0))
    ]
    expected = [wire.DECLINED, wire.OK, wire.DECLINED, wire.OK, wire.DECLINED, wire.OK]
    assert outcomes == expected


def test_a_refund_gives_back_what_was_charged_once(money: World) -> None:
    """F4: never twice, never more; the account gets it back."""
    money.ask(1, 2, charge(1, "rich", 400))
    for attempt in (1, 2):
        assert money.ask(1, 2, refund(1, "p1"), attempt=attempt).outcome == wire.OK
    assert money.rows("SELECT amount, refunded FROM payment") == [(400, 400)]
    assert money.rows("SELECT balance FROM account WHERE user_id = 'rich'") == [(1000,)]


def test_a_refund_of_a_declined_or_unknown_charge_refunds_nothing(money: World) -> None:
    """B18: without an id it is fine, with one it is a fault."""
    money.ask(1, 2, charge(1, "u999", 400))
    assert money.ask(1, 2, refund(1)).outcome == wire.OK
    assert money.ask(2, 2, refund(2)).outcome == wire.OK
    assert money.ask(3, 2, refund(3, "p1")).outcome == wire.FAILED
    assert money.rows("SELECT * FROM payment") == []


def test_a_refund_of_another_sagas_payment_fails(money: World) -> None:
    """Ids are never acted on."""
    money.ask(1, 2, charge(1))
    money.ask(2, 2, charge(2))
    assert money.ask(2, 2, refund(2, "p1")).outcome == wire.FAILED
    assert money.rows("SELECT refunded FROM payment") == [(0,), (0,)]
    assert money.ask(2, 2, refund(2, "p2")).outcome == wire.OK


def test_refunding_more_than_was_charged_is_impossible(money: World) -> None:
    """The CHECK stands even against a handler that is wrong."""
    money.ask(1, 2, charge(1))
    for refunded in (-1, 501):
        with pytest.raises(Exception, match="CHECK"):
            money.connection.execute("UPDATE payment SET refunded = ?", (refunded,))


def test_u_flaky_3_fails_on_three_attempts(money: World) -> None:
    """Technically: nothing is stored, so the fourth is served."""
    outcomes = [
        money.ask(1, 2, charge(1, "u_flaky_3"), attempt=attempt).outcome for attempt in range(1, 5)
    ]
    assert outcomes == [wire.FAILED, wire.FAILED, wire.FAILED, wire.OK]
    assert money.executor.replays == 0


@pytest.mark.parametrize(("user", "delay"), [("u_timeout", math.inf), ("u_slow_2s", SLOW_S)])
def test_answers_to_two_users_charges_are_held_back(user: str, delay: float) -> None:
    """Theirs, and nobody's who only mentions them; their refunds are answered at once."""

    def command(body: object, direction: int = ACTION) -> Command:
        return Command("u_timeout-u_slow_2s", 2, direction, 1, 1, 1, {}, wire.encode(body))

    assert answer_delay(command(charge(1, user))) == delay
    assert answer_delay(command(charge(1, f"{user}x"))) == 0
    assert answer_delay(command(charge(1, "u42"))) == 0
    back = RefundPayment("u_timeout-u_slow_2s", 2, True)
    assert answer_delay(command(back, COMPENSATION)) == 0
    assert answer_delay(Command("s", 2, ACTION, 1, 1, 1, {}, b"u_timeout u_slow_2s")) == 0


def test_u_crash_ends_its_worker_once_and_is_then_charged_once() -> None:
    """The mark outlives the process; what the batch had not committed does not."""

    class Ended(BaseException):
        """Stands for the end of the process."""

    def crash() -> None:
        raise Ended

    with world_of(payment_service(crash)) as world:
        commands = [
            Command("other", 2, ACTION, 1, number_of(1, 0), 1, {}, wire.encode(charge(1))),
            Command("c2", 2, ACTION, 1, number_of(2, 0), 1, {}, wire.encode(charge(2, "u_crash"))),
        ]
        with pytest.raises(Ended):
            world.send(*commands)
        restarted = World(world.service, connection=world.connection)
        assert restarted.rows("SELECT * FROM payment") == []
        assert restarted.rows("SELECT number FROM crash") == [(number_of(2, 0),)]
        assert restarted.outcomes(*commands) == ["ok", "ok"]
        again = Command("c3", 2, ACTION, 1, number_of(3, 0), 1, {}, commands[1].body)
        with pytest.raises(Ended):
            restarted.send(again)


# -- shipping -----------------------------------------------------------------------------------


def test_one_shipment_leaves_per_saga_and_is_cancelled_once(parcels: World) -> None:
    """F5: a cancelled one stays cancelled, and its action comes too late."""
    assert parcels.ask(1, 3, ship(1)).outcome == wire.OK
    assert parcels.ask(1, 3, ship(1), attempt=2).outcome == wire.OK
    for attempt in (1, 2):
        cancel = CancelShipment("checkout1", 3, True, "s1")
        assert parcels.ask(1, 3, cancel, attempt=attempt).outcome == wire.OK
    assert parcels.ask(1, 3, ship(1), attempt=3).outcome == wire.REFUSED_COMPENSATED
    assert parcels.rows("SELECT cancelled FROM shipment") == [(1,)]


@pytest.mark.parametrize("named", ["s2", "s9", "1", "sNone", "s"])
def test_a_cancellation_of_a_shipment_that_is_not_the_steps_fails(
    parcels: World, named: str
) -> None:
    """Where there is one, and where there is none."""
    parcels.ask(1, 3, ship(1))
    parcels.ask(2, 3, ship(2))
    for count in (1, 3):
        wrong = CancelShipment(f"checkout{count}", 3, True, named)
        assert parcels.ask(count, 3, wrong).outcome == wire.FAILED
    assert parcels.rows("SELECT cancelled FROM shipment") == [(0,), (0,)]
    assert parcels.ask(3, 3, CancelShipment("checkout3", 3, True)).outcome == wire.OK
