"""What fuzzing has found, each with its cause: see docs/proof/fuzz.md."""

import pytest

from sagacity import client, wire
from sagacity.errors import InternalError, Malformed
from sagacity.wire import Reply

ANSWER = {"type": "checkout_complete", "saga_id": "s1", "status": "COMPLETED"}


@pytest.mark.parametrize(
    "body",
    [
        {**ANSWER, "order_id": b"o1"},
        {**ANSWER, "more": [{"deep": b""}]},
        {**ANSWER, b"order_id": "o1"},
        {**ANSWER, "more": {b"k": 1}},
    ],
)
def test_a_body_with_bytes_is_malformed(body: dict[object, object]) -> None:
    """JSON has none: a node that was answered so died when it wrote its line."""
    packed = wire.msgpack.packb(body)
    with pytest.raises(Malformed):
        wire.unpack(packed)
    with pytest.raises(Malformed):
        wire.pack(body)
    with pytest.raises(InternalError):
        client.answer(Reply(1, None, packed))


@pytest.mark.parametrize("body", [{}, {"saga_id": "s1"}, {"type": 7}, {"type": None}])
def test_an_answer_without_a_type_is_a_bug_of_ours(body: dict[str, object]) -> None:
    """Code 13 of the table; a node died of it."""
    with pytest.raises(InternalError):
        client.answer(Reply(1, None, wire.pack(body)))
