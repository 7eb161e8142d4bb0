"""sagacity.testing: a saga in memory with chosen failures, as its users will meet it."""

import re
import textwrap
from typing import Any

import pytest

import sagacity.testing
from sagacity.saga import Retry
from sagacity.testing import FOREVER, Decline, Fail, Ok, Played, SagaInMemory, Silent, play
from services.checkout import checkout
from shard.entries import Finished, TurnedBack

REQUEST = {
    "type": "checkout",
    "saga_id": "s1",
    "user_id": "u1",
    "items": [{"sku": "tea", "quantity": 2}],
    "shipping_address": "123 Main St",
}
PRICES = {"tea": 450}


def played(outcomes: dict[str, Any] | None = None, **more: Any) -> Played:
    return play(checkout, {**REQUEST, **more}, outcomes, prices=PRICES)


def test_the_example_in_the_docstring_runs() -> None:
    """What a newcomer copies must work."""
    text = sagacity.testing.__doc__ or ""
    example = re.search(r"\n\n((?:    .*\n|\n)+)", text)
    assert example is not None
    exec(textwrap.dedent(example[1]), {})


def test_without_chosen_failures_it_completes() -> None:
    """Ok is what happens to every command that nobody named."""
    run = played()
    assert run.answer["type"] == "checkout_complete"
    assert run.types == [
        "ReserveInventory",
        "ReserveInventory_ok",
        "ChargePayment",
        "ChargePayment_ok",
        "CreateShipment",
        "CreateShipment_ok",
        "checkout_complete",
    ]
    assert run.messages[2] == {
        "type": "ChargePayment",
        "saga_id": "s1",
        "step": 2,
        "user_id": "u1",
        "amount": 900,
    }


def test_the_history_holds_exactly_the_messages_that_travelled() -> None:
    """`--trace` prints the bodies of command, answer and finished events: these are they."""
    for outcomes in (
        {},
        {"ChargePayment": Decline()},
        {"CreateShipment": [Silent(), Decline()]},
        {"ReserveInventory": Silent(FOREVER), "ReleaseReservation": Silent(2)},
    ):
        run = played(outcomes)
        told = ("command", "answer", "finished")
        assert [each["body"] for each in run.history if each["event"] in told] == run.messages


def test_a_body_can_be_given() -> None:
    """What is left out is filled in; what is given travels and comes back in the compensation."""
    run = played({"ChargePayment": Ok({"payment_id": "p7"}), "CreateShipment": Decline()})
    refund = next(each for each in run.messages if each["type"] == "RefundPayment")
    assert refund["payment_id"] == "p7"


def test_a_failure_is_retried_so_many_times() -> None:
    """Fail(times=2) costs two attempts; the third succeeds."""
    run = played({"ChargePayment": Fail(times=2, text="gateway is down")})
    assert run.types.count("ChargePayment") == 3
    texts = [each["text"] for each in run.history if each["event"] == "attempt_ended"]
    assert texts == ["gateway is down"] * 2


def test_silence_ends_by_the_deadline() -> None:
    """The deadline turns back what attempts alone would not."""
    run = SagaInMemory(checkout, PRICES, deadline_ms=2_000).play(
        REQUEST, {"ChargePayment": Silent(FOREVER)}
    )
    turned = [each for each in run.entries if isinstance(each, TurnedBack)]
    assert [each.cause for each in turned] == ["deadline"]
    assert run.answer["reason"] == "Timed out: ChargePayment"


def test_a_compensation_that_never_succeeds_is_stuck() -> None:
    """Never ABORTED before every compensation has succeeded."""
    run = play(
        checkout,
        REQUEST,
        {"ChargePayment": Decline(), "ReleaseReservation": Fail(FOREVER)},
        prices=PRICES,
        retry=Retry(stuck_after=3),
    )
    assert run.answer["code"] == 0
    assert run.answer["text"].startswith("stuck: ReleaseReservation")
    assert not any(isinstance(each, Finished) for each in run.entries)


def test_one_outcome_after_the_other() -> None:
    """A list is used up in order; then the command succeeds."""
    run = played({"ReserveInventory": [Silent(), Fail(), Fail()]})
    attempts = [each for each in run.history if each["event"] == "attempt_ended"]
    assert [each["outcome"] for each in attempts] == ["timed_out", "failed", "failed"]
    assert run.answer["status"] == "COMPLETED"


def test_plays_do_not_know_of_each_other() -> None:
    """Each is a cluster of its own: the same id twice is no repeat."""
    saga = SagaInMemory(checkout, PRICES)
    assert saga.play(REQUEST, {"ChargePayment": Decline()}).answer["status"] == "ABORTED"
    assert saga.play(REQUEST).answer["status"] == "COMPLETED"


def test_a_malformed_request_is_told() -> None:
    """The client's error, and nothing that travelled."""
    run = played(user_id="")
    assert (run.answer["code"], run.messages, run.history) == (12, [], [])


def test_msg_id_stays_out_of_the_messages() -> None:
    """As in SPEC 6: bodies without msg_id and in_reply_to."""
    run = played(msg_id=7)
    assert run.answer["in_reply_to"] == 7
    assert "in_reply_to" not in run.messages[-1]


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ({"ChargePaymnet": Decline()}, "checkout has no ChargePaymnet"),
        ({"RefundPayment": Decline()}, "cannot be declined"),
        ({"ChargePayment": Ok({"payment_id": 7})}, "ChargePayment_ok: Expected `str`, got `int`"),
        ({"ChargePayment": Ok({"fee": 1.5})}, "a number is an integer"),
    ],
)
def test_an_outcome_that_cannot_be_is_refused(outcomes: dict[str, Any], told: str) -> None:
    """A test with a typing error must fail, not pass."""
    with pytest.raises(ValueError, match=told):
        played(outcomes)
