"""The story of `show`: what is said of a saga, for each way in which it can end or stand."""

from typing import Any

import pytest

from cluster.story import page, story_of
from cluster.timeline import lanes_of
from sagacity import wire
from sagacity.saga import Retry
from tests.unit.test_timeline import drive, shown
from tests.unit.world import Rules, World

IMPATIENT = Retry(attempts=2, stuck_after=2, backoff_ms=1, backoff_max_ms=1)


def why(body: dict[str, Any]) -> str:
    return story_of(body, lanes_of(body["history"])).why


def verdict(body: dict[str, Any]) -> str:
    return story_of(body, lanes_of(body["history"])).verdict


def money(body: dict[str, Any]) -> str:
    return story_of(body, lanes_of(body["history"])).money


def advice(body: dict[str, Any]) -> str:
    return " ".join(story_of(body, lanes_of(body["history"])).advice)


def one_line(saga_id: str = "a", **rules: Any) -> World:
    """Begin a checkout of one line, as SPEC 1's second example."""
    world = World(Rules(**rules))
    items = [{"sku": "abc123", "quantity": 2}]
    world.step(*world.came("inventory", "payment", "shipping"), world.start(saga_id, items=items))
    return world


def tried(world: World, *outcomes: int) -> World:
    """Answer one command after the other, with room for the pause between attempts."""
    for outcome in outcomes:
        world.after(1_000)
        world.step(*world.beats())
        world.drive("a", outcome)
    return world


def test_a_decline_is_told_with_its_cause_what_it_undid_and_what_the_customer_heard() -> None:
    """Issue 6, word for word."""
    body = shown(drive(one_line(), (1, wire.OK), (1, wire.DECLINED), (1, wire.OK)))
    assert why(body) == (
        "Payment was declined (DECLINED), so the reservation r1-1 was released; "
        "the customer was told 'Payment declined: DECLINED'."
    )
    assert verdict(body) == "Everything it had done is undone."
    assert money(body) == "Money: price 200.00; nothing taken by ChargePayment."
    assert advice(body) == ""


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        (
            [wire.DECLINED],
            (
                "The stock did not suffice (business, abc123), so nothing had to be undone; "
                "the customer was told 'Out of stock: abc123'."
            ),
        ),
        (
            [wire.OK, wire.OK, wire.DECLINED, wire.OK, wire.OK],
            (
                "Shipping refused (DECLINED), so the payment p1 of 200.00 was refunded and the "
                "reservation r1-1 was released; the customer was told 'Shipment refused: DECLINED'."
            ),
        ),
        (
            [wire.OK, wire.OK, wire.OK],
            (
                "The reservation r1-1 was made, the payment p1 of 200.00 was taken and the "
                "shipment s1 was created; the customer was told order o1603."
            ),
        ),
    ],
    ids=["out of stock", "no carrier", "completed"],
)
def test_each_end_has_its_sentence(outcomes: list[int], told: str) -> None:
    assert why(shown(tried(one_line(), *outcomes))) == told


def test_money_that_was_taken_and_given_back_is_told() -> None:
    body = shown(tried(one_line(), wire.OK, wire.OK, wire.DECLINED, wire.OK))
    assert money(body) == (
        "Money: price 200.00; 200.00 taken by ChargePayment, given back by RefundPayment."
    )


def test_a_cart_without_price_is_told() -> None:
    world = World()
    world.step(world.start("a", items=[{"sku": "zzz", "quantity": 1}]))
    body = shown(world)
    assert why(body) == (
        "The cart could not be priced (Unknown SKU: zzz): no command was sent; "
        "the customer was told 'Unknown SKU: zzz'."
    )
    assert (verdict(body), money(body)) == ("Nothing had been done that had to be undone.", "")


def test_an_outcome_that_stayed_unknown_is_not_called_a_no() -> None:
    """It may have been charged: that is why it is compensated."""
    body = shown(tried(one_line(retry=IMPATIENT), wire.OK, wire.FAILED, wire.FAILED))
    assert why(body) == (
        "ChargePayment used up 2 attempts without an outcome that is known, so whatever "
        "ChargePayment may have done is being undone and the reservation r1-1 is to be released "
        "then; the customer has no final answer yet."
    )
    assert money(body) == "Money: price 200.00; 200.00 may have been taken by ChargePayment."
    assert verdict(body) == "It is turning back."


def test_a_deadline_that_passed_is_told() -> None:
    world = drive(one_line(), (10, wire.OK))
    world.after(31_000)
    world.step(*world.beats())
    assert why(shown(world)).startswith(
        "The saga's deadline passed before ChargePayment had an outcome, so "
    )
    world.drive("a", wire.OK, wire.OK)
    body = shown(world)
    assert why(body).endswith("the customer was told 'Timed out: ChargePayment'.")
    assert money(body).endswith("200.00 if ChargePayment took it, given back by RefundPayment.")


def test_a_late_success_is_named_where_it_is_undone() -> None:
    """It was unknown when the saga turned back; by now it is known what there was to undo."""
    world = drive(one_line(), (10, wire.OK))
    world.after(31_000)
    world.step(*world.beats())
    late = world.take(b"payment", "a", direction=0)
    world.step(world.reply(b"payment", late, wire.OK))
    world.drive("a", wire.OK, wire.OK)
    told = why(shown(world))
    assert told.startswith("The saga's deadline passed before ChargePayment had an outcome, so ")
    assert "the payment p1 of 200.00 was refunded and the reservation r1-1 was released" in told


def test_a_cancel_is_told_with_its_reason() -> None:
    world = drive(one_line(), (5, wire.OK))
    world.step(
        world.ask(
            wire.CANCEL, "a", {"type": "cancel", "saga_id": "a", "reason": "found it cheaper"}
        )
    )
    world.drive("a", wire.OK, wire.OK)
    assert why(shown(world)) == (
        "It was cancelled (found it cheaper), so whatever ChargePayment may have done was undone "
        "and the reservation r1-1 was released; "
        "the customer was told 'Cancelled: found it cheaper'."
    )


def test_a_running_saga_says_what_it_waits_for_and_how_to_stop_it() -> None:
    body = shown(tried(one_line(), wire.OK, wire.FAILED))
    assert why(body) == (
        "The reservation r1-1 was made. "
        "ChargePayment has no answer yet (attempt 1 failed: no luck)."
    )
    assert verdict(body) == "It is running."
    assert "sagacity cancel a --reason WHY" in advice(body)


def test_a_stuck_saga_says_what_a_person_can_do() -> None:
    """The page is read at night: what does not succeed, why, which command, which runbook."""
    world = tried(one_line(retry=IMPATIENT), wire.OK, wire.DECLINED, wire.FAILED, wire.FAILED)
    body = shown(world)
    assert body["stuck"]
    assert why(body) == (
        "Payment was declined (DECLINED), so the reservation r1-1 is not released yet "
        "(attempt 2 failed: no luck); the customer has no final answer yet."
    )
    assert verdict(body) == (
        "It is stuck: ReleaseReservation does not succeed; a person has to look."
    )
    told = advice(body)
    assert "Mend what keeps ReleaseReservation from succeeding (last: attempt 2 failed" in told
    assert "sagacity retry a --reason WHY (it is tried again by itself, too)" in told
    assert "docs/runbooks/Stuck.md" in told
    assert "What a person can do:" in page(body)


def quarantined(body: dict[str, Any], step: int, direction: str) -> dict[str, Any]:
    """Give a history whose current command ended three workers."""
    at = {"at_ms": body["history"][-1]["at_ms"] + 40, "step": step, "direction": direction}
    event = {**at, "event": "quarantined", "attempt": 1, "deaths": 3}
    return {**body, "history": [*body["history"], event]}


def test_a_quarantined_compensation_is_sent_again_by_nobody_else() -> None:
    """Who waits for it to be tried again would wait for ever."""
    body = shown(drive(one_line(), (1, wire.OK), (1, wire.DECLINED)))
    body = {**quarantined(body, 1, "compensation"), "stuck": True}
    assert "quarantined: 3 workers died of it" in why(body)
    assert "nothing else sends it again" in advice(body)


def test_a_quarantined_action_is_an_unknown_outcome() -> None:
    body = quarantined(shown(drive(one_line(), (1, wire.OK))), 2, "action")
    at_ms = body["history"][-1]["at_ms"]
    cause, reason = "quarantined", "Timed out: ChargePayment"
    turn = {"at_ms": at_ms, "event": "turned_back", "cause": cause, "reason": reason}
    body = {**body, "status": "COMPENSATING", "history": [*body["history"], turn]}
    assert why(body).startswith(
        "ChargePayment ended 3 workers, so it is not sent any more and its outcome is unknown, so "
        "whatever ChargePayment may have done is to be undone then and the reservation r1-1"
    )


def test_a_saga_of_ones_own_is_told_by_its_commands_names() -> None:
    """Only the checkout's steps have words of their own."""
    at = {"at_ms": 1, "step": 1, "attempt": 1}
    action, undo = {**at, "direction": "action"}, {**at, "direction": "compensation"}
    hotel = {**action, "step": 2}
    history: list[dict[str, Any]] = [
        {"at_ms": 1, "event": "started", "body": {}},
        {**action, "event": "command", "body": {"type": "BookFlight", "amount": 1250}},
        {**action, "event": "answer", "outcome": "ok", "body": {"type": "BookFlight_ok"}},
        {**hotel, "event": "command", "body": {"type": "BookHotel"}},
        {
            **hotel,
            "event": "answer",
            "outcome": "declined",
            "body": {"type": "BookHotel_failed", "error": "full"},
        },
        {"at_ms": 2, "event": "turned_back", "cause": "declined", "reason": "no bed"},
        {**undo, "event": "command", "body": {"type": "CancelFlight"}},
        {**undo, "event": "answer", "outcome": "ok", "body": {"type": "CancelFlight_ok"}},
        {"at_ms": 3, "event": "finished", "body": {"type": "trip_failed", "reason": "no bed"}},
    ]
    body = {"saga_id": "t", "status": "ABORTED", "amount": 1250, "history": history}
    assert why(body) == (
        "BookHotel was declined (full), so what BookFlight did was undone; "
        "the customer was told 'no bed'."
    )
    assert money(body) == (
        "Money: price 12.50; 12.50 taken by BookFlight, given back by CancelFlight."
    )


def test_a_history_whose_definition_is_gone_tells_the_facts() -> None:
    """Its commands cannot be rebuilt; the answers are named after them."""
    body = shown(drive(one_line(), (1, wire.OK), (1, wire.DECLINED), (1, wire.OK)))
    facts = [event for event in body["history"] if event["event"] != "command"]
    told = why({**body, "history": facts})
    assert told.startswith("Payment was declined (DECLINED), so the reservation r1-1 was released;")
    bare = [{key: event[key] for key in event if key != "body"} for event in facts]
    told = why({**body, "history": bare})
    assert told.startswith("The command of step 2 was declined (no reason is kept), so what the")


def test_a_long_cart_does_not_fill_the_page() -> None:
    """A hundred lines, a hundred reservations."""
    body = shown(drive(one_line(), (1, wire.OK), (1, wire.DECLINED), (1, wire.OK)))
    for event in body["history"]:
        reply = event.get("body") or {}
        if "reservations" in reply:
            reply["reservations"] = [{"sku": "s", "reservation_id": f"r{n}"} for n in range(100)]
    assert "the reservations r0, r1, r2 and 97 more were released" in why(body)


@pytest.mark.parametrize(
    "status", ["RUNNING", "COMPENSATING", "COMPLETED", "ABORTED", "SOMETHING NEW"]
)
@pytest.mark.parametrize("stuck", [False, True])
def test_whatever_is_known_there_is_a_page(status: str, stuck: bool) -> None:
    """A newer shard may say less, or more, than this reader knows."""
    body = {"saga_id": "a", "status": status, "stuck": stuck, "amount": 0, "history": []}
    assert page(body)
    if status == "SOMETHING NEW":
        assert "which this version does not know" in page(body)
    started = {"at_ms": 1, "event": "started", "body": {}}
    strange = {"at_ms": 2, "event": "something new"}
    assert page({**body, "history": [started, strange]})
