"""What the checkout's three services would answer, made up: for tests that have no services."""

from typing import Any

from sagacity.ids import count_of
from sagacity.wire import DECLINED, FAILED, OK, Answer, Command, answer_to, pack, unpack

SERVICES = ("inventory", "payment", "shipping")  # of steps 1, 2, 3


def answer(command: Command, outcome: int = OK) -> Answer:
    """Answer a command as its service would; ids are made from the saga's number."""
    asked = unpack(command.body)
    body: dict[str, Any] = {"saga_id": asked["saga_id"], "step": asked["step"]}
    if outcome == FAILED:
        body = {"error": "no luck"}
    elif outcome == DECLINED:
        body = {"type": f"{asked['type']}_failed", **body, **_decline(command.step)}
    elif outcome == OK:
        body = {"type": f"{asked['type']}_ok", **body, **_ids(asked, command)}
    return answer_to(command, outcome, pack(body))


def _decline(step: int) -> dict[str, str]:
    if step == 1:
        return {"error": "out_of_stock", "sku": "abc123"}
    return {"error": "business", "decline_code": "DECLINED"}


def _ids(asked: dict[str, Any], command: Command) -> dict[str, Any]:
    if command.direction:
        return {}
    at = count_of(command.number)
    if command.step == 1:
        held = [{"sku": line["sku"], "reservation_id": f"r{at}"} for line in asked["items"]]
        return {"reservations": held}
    if command.step == 2:
        return {"payment_id": f"p{at}", "transaction_id": f"txn_{at}"}
    return {"shipment_id": f"s{at}", "tracking_number": f"1Z{at}"}
