"""Target: bytes to every reader of frames and bodies that there is. The fastest of all."""

from collections.abc import Callable
from typing import Any

from sagacity import wire
from sagacity.errors import Malformed
from sagacity.messages import Cancel, Checkout, RetryNow, from_json, merge
from sagacity.wire import Answer, Answers, BodyReader, Command, Commands, Reply, Report, Witness
from tests.fuzz.target import ACCEPTED, DROPPED, Target
from tests.fuzz.to_router import BODY, requests

_READERS: tuple[Callable[[bytes], Any], ...] = (
    wire.read_requests,
    wire.read_replies,
    wire.read_to_shard,
    wire.read_to_worker,
    wire.read_report,
)
_BODIES: tuple[BodyReader[Any], ...] = (
    BodyReader(Checkout),
    BodyReader(Cancel),
    BodyReader(RetryNow),
)


class Readers(Target):
    """What a reader takes it gives back unchanged; what it does not take is malformed."""

    name = "readers"
    share = 8.0
    block = 4096

    def corpus(self) -> list[bytes]:
        witness = Witness("c0ffee", 1, 2, 3, bytes(16), 4)
        command = Command("s", 1, 0, 2, 1024, 1, {}, BODY)
        items = requests()
        return [
            BODY,
            *(item.body for item in items if item.body),
            wire.encode(items),
            wire.encode([Reply(1, None, BODY), Reply(2, 11, b"\x80")]),
            wire.encode(Commands(witness, [command])),
            wire.encode(Answers([Answer("s", 1, 0, 2, 1024, 1, wire.OK, BODY)])),
            wire.encode(Report("shard", 0, 7, "up", 9000, {"in_flight": 1})),
            b"\x82\xa1a\x01\xa1a\x02",  # a key twice, which is refused
        ]

    def take(self, case: bytes) -> str:
        taken = False
        for read in _READERS:
            try:
                value = read(case)
            except Malformed:
                continue
            taken = True
            assert read(wire.encode(value)) == value
        for body in _BODIES:
            try:
                value, canonical = body.read(case)
            except Malformed:
                continue
            taken = True
            assert body.read(canonical) == (value, canonical)
            assert from_json(wire.unpack(case), type(value)) == value, "JSON says something else"
            if isinstance(value, Checkout):
                _merge(value)
        try:
            value = wire.unpack(case)
        except Malformed:
            return ACCEPTED if taken else DROPPED
        assert wire.unpack(wire.pack(value)) == value
        return ACCEPTED

    def probe(self) -> None:
        assert self.take(BODY) == ACCEPTED


def _merge(request: Checkout) -> None:
    try:
        order = merge(request)
    except Malformed:
        return
    asked: dict[str, int] = {}
    for item in request.items:
        asked[item.sku] = asked.get(item.sku, 0) + item.quantity
    assert {line.sku: line.quantity for line in order.items} == asked
