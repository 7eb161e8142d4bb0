"""Targets: frames to the router, from clients and from shards; frames to a client."""

from typing import Any

from cluster.conversation import Ask, Session
from cluster.meters import RouterMeters
from router import Router
from sagacity import client, wire
from sagacity.asks import SECOND, Asks
from sagacity.errors import Malformed, NotTaken, SagacityError
from sagacity.slots import SlotMap
from sagacity.wire import Reply, Request
from tests.fuzz.target import ACCEPTED, DROPPED, Target, code_of, told

SHARDS = 2
SLOTS = SlotMap.even(SHARDS)
METERS = RouterMeters(SHARDS)
CLIENT, OTHER = b"\x00client", b"\x00other"
BODY = wire.pack(
    {
        "type": "checkout",
        "saga_id": "s1",
        "user_id": "u42",
        "items": [{"sku": "abc123", "quantity": 2}],
        "shipping_address": "123 Main St",
    }
)


def a_router() -> Router:
    return Router(SLOTS, METERS, client_inflight_max=4, shard_inflight_max=6)


def requests() -> list[Request]:
    """Give one valid request of each kind."""
    cancel = wire.pack({"type": "cancel", "saga_id": "s1", "reason": "why not", "msg_id": 1})
    retry = wire.pack({"type": "retry", "saga_id": "s1", "reason": "mended"})
    page = wire.pack({"part": "live", "limit": 10})
    return [
        Request(wire.START, "s1", 1, {"traceparent": "00-1-2-01"}, BODY),
        Request(wire.SUBMIT, "s2", 2, {}, BODY),
        Request(wire.CANCEL, "s1", 3, {}, cancel),
        Request(wire.RETRY, "s1", 4, {}, retry),
        Request(wire.SHOW, "s1", 5, {}, b""),
        Request(wire.STATUS, "", 6, {}, b""),
        Request(wire.BOOKS, "1", 7, {}, wire.pack({"book": "sagas"})),
        Request(wire.LIST, "0", 8, {}, page),
    ]


class RequestsToRouter(Target):
    """A client's frames: each request is forwarded or answered, and nothing stays open."""

    name = "router-requests"
    share = 4.0

    def corpus(self) -> list[bytes]:
        items = requests()
        return [wire.encode([item]) for item in items] + [wire.encode(items), wire.encode([])]

    def fresh(self) -> None:
        self._router = a_router()
        self._now = SECOND

    def take(self, case: bytes) -> str:
        router = self._router
        self._now += SECOND
        try:
            items = wire.read_requests(case)
        except Malformed:
            assert len(router) == 0
            return DROPPED
        if len(items) > wire.FRAME_ITEMS_MAX:
            return DROPPED
        router.requests(CLIENT, items, self._now)
        forwards, replies = router.take_forwards(), router.take_replies()
        said = [told(reply) for reply in replies.pop(CLIENT, [])]
        assert not replies, "a reply to somebody else"
        forwarded = 0
        for peer, sent in forwards.items():
            for frame in wire.frames(sent):
                arrived = wire.read_requests(frame)
                forwarded += len(arrived)
                done = [Reply(item.request, None, b"\x81\xa4type\xa1t") for item in arrived]
                router.replies(peer, done)
        answers = router.take_replies().get(CLIENT, [])
        assert len(answers) == forwarded == sum(map(len, forwards.values()))
        assert forwarded + len(said) <= len(items)
        assert len({item.request for item in items}) <= forwarded + len(said), "one has no answer"
        assert (len(router), router.clients, router.inflight) == (0, 0, [0] * (SHARDS + 1))
        return ACCEPTED if forwarded else said[0] if said else ACCEPTED

    def probe(self) -> None:
        assert self.take(wire.encode(requests()[:1])) == ACCEPTED


class RepliesToRouter(Target):
    """A shard's frames: each reply goes to the one who asked that shard, once."""

    name = "router-replies"
    share = 2.0

    def corpus(self) -> list[bytes]:
        error = NotTaken("later", retry_after_ms=250)
        return [
            wire.encode([Reply(1, None, BODY)]),
            wire.encode([Reply(2, error.code, wire.pack(error.body())), Reply(1, None, BODY)]),
            wire.encode([Reply(number, None, b"") for number in range(1, 8)]),
            wire.encode([]),
        ]

    def take(self, case: bytes) -> str:
        try:
            items = wire.read_replies(case)
        except Malformed:
            return DROPPED
        router = a_router()
        items_of = requests()
        router.requests(CLIENT, items_of[:3], SECOND)
        router.requests(OTHER, items_of[4:7], SECOND)
        asked = {
            item.request: peer for peer, sent in router.take_forwards().items() for item in sent
        }
        before = len(router)
        router.replies(0, items)
        replies = router.take_replies()
        settled = sum(map(len, replies.values()))
        assert len(router) == before - settled
        due = {item.request for item in items if asked.get(item.request) == 0}
        assert settled == len(due), "each open request of this shard is answered once"
        assert set(replies) <= {CLIENT, OTHER}
        router.give_up()
        assert (len(router), router.clients) == (0, 0)
        return ACCEPTED if settled else "absorbed"

    def probe(self) -> None:
        assert self.take(self.corpus()[1]) == ACCEPTED


class RepliesToClient(Target):
    """A router's frames, up to what a node writes: an answer, or an error of the table."""

    name = "client-replies"

    def corpus(self) -> list[bytes]:
        done = wire.pack(
            {"type": "checkout_complete", "saga_id": "s1", "status": "COMPLETED", "order_id": "o1"}
        )
        errors: list[dict[str, Any]] = [
            {"type": "error", "code": 11, "text": "later", "retry_after_ms": 250},
            {"type": "error", "code": 22, "text": "other content", "fingerprint": "00" * 16},
            {"type": "error", "code": 0, "text": "stuck: RefundPayment"},
        ]
        return [
            wire.encode([Reply(1, None, done)]),
            *(wire.encode([Reply(1, each["code"], wire.pack(each))]) for each in errors),
            wire.encode([Reply(2, None, done), Reply(3, 12, b""), Reply(9, 13, done)]),
        ]

    def take(self, case: bytes) -> str:
        try:
            items = wire.read_replies(case)
        except Malformed:
            return DROPPED
        asks = Asks("a router")
        session = Session(_ignore)
        for saga_id in ("s1", "s2", "s3"):
            asks.ask(wire.START, saga_id, BODY, now=0, wait_ns=SECOND)
            assert isinstance(session.take(_line(saga_id)), Ask)
        asks.take()
        became = []
        for item in items:
            settled = asks.on_reply(item, SECOND // 2)
            if settled is not None:
                became.append(self._front(session, *settled))
        asks.due(2 * SECOND)
        left = asks.settled()
        assert len(asks) == 0, "everything is settled in the end"
        for token, reply in left:
            assert self._front(session, token, reply) in ("code 0", "code 11", "code 13")
        return became[0] if became else "absorbed"

    def _front(self, session: Session, token: int, reply: Reply) -> str:
        try:
            body = client.answer(reply)
            became = ACCEPTED
        except SagacityError as error:
            became, body = code_of(error), error.body()
        line = session.answered(token, body)
        assert line is not None
        assert line.endswith(b"\n")
        return became

    def probe(self) -> None:
        assert self.take(self.corpus()[0]) == ACCEPTED


def _ignore(event: str, **fields: Any) -> None:
    pass


def _line(saga_id: str) -> bytes:
    return (
        b'{"src": "c1", "dest": "n1", "body": {"type": "checkout", "msg_id": 1, "saga_id": "%s",'
        b' "user_id": "u", "items": [{"sku": "a", "quantity": 1}], "shipping_address": "x"}}'
        % saga_id.encode()
    )
