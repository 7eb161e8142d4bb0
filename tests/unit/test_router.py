"""The router's decisions, without sockets: where a request goes, whose a reply is, what is refused.

The anomalies are those of PROOF A10, G4, G5.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest

from cluster.meters import RouterMeters
from router import FORWARD_AGAIN_NS, OPEN_NS_MAX, REPLY_BODY_BYTES_MAX, SECOND, Router
from sagacity import wire
from sagacity.slots import SlotMap
from sagacity.wire import Reply, Request

ALICE, BOB = b"\x00alice", b"\x00bob"
SLOTS = SlotMap.even(2)
SUPERVISOR = 2
AT_0 = next(f"s{n}" for n in range(99) if SLOTS.owner(f"s{n}") == 0)
AT_1 = next(f"s{n}" for n in range(99) if SLOTS.owner(f"s{n}") == 1)


def request(
    number: int, saga_id: str = AT_0, kind: int = wire.START, body: bytes = b"body"
) -> Request:
    return Request(kind, saga_id, number, {}, body)


@dataclass
class World:
    """A router of two shards, its meters, and what it says in plain values."""

    client_max: int = 4
    shard_max: int = 8
    meters: RouterMeters = field(default_factory=lambda: RouterMeters(2))

    def __post_init__(self) -> None:
        self.router = Router(
            SLOTS,
            self.meters,
            client_inflight_max=self.client_max,
            shard_inflight_max=self.shard_max,
        )

    def ask(self, identity: bytes, *items: Request, now: int = 0) -> None:
        self.router.requests(identity, items, now)

    def forwards(self) -> dict[int, list[Request]]:
        return self.router.take_forwards()

    def forwarded(self, peer: int = 0) -> list[Request]:
        return self.forwards().get(peer, [])

    def replies(self) -> dict[bytes, list[tuple[int, int | None]]]:
        """Give, for each client, numbers with codes."""
        taken = self.router.take_replies().items()
        return {who: [(reply.request, reply.code) for reply in said] for who, said in taken}

    def told(self, identity: bytes) -> dict[str, object]:
        """Give the body of the one reply to a client."""
        [reply] = self.router.take_replies()[identity]
        return wire.unpack(reply.body)

    def counted(self, kind: str, outcome: str) -> int:
        return self.meters.router_requests.read()[kind, outcome]


@pytest.fixture
def world() -> World:
    return World()


def test_a_request_goes_to_the_shard_that_owns_its_slot(world: World) -> None:
    """The body and headers travel untouched; the number becomes the router's own."""
    asked = Request(wire.CANCEL, AT_1, 77, {"traceparent": "t"}, b"opaque")
    world.ask(ALICE, request(5), asked)
    sent = world.forwards()
    assert [item.saga_id for item in sent[0]] == [AT_0]
    [forwarded] = sent[1]
    assert (forwarded.kind, forwarded.saga_id) == (wire.CANCEL, AT_1)
    assert (forwarded.headers, forwarded.body) == ({"traceparent": "t"}, b"opaque")
    assert forwarded.request != sent[0][0].request
    assert world.forwards() == {}


def test_a_reply_goes_to_who_asked_under_the_number_it_was_asked_with(world: World) -> None:
    """Two clients count from one, both."""
    world.ask(ALICE, request(1))
    world.ask(BOB, request(1))
    for_alice, for_bob = world.forwarded()
    world.router.replies(0, [Reply(for_bob.request, None, b"bob's")])
    world.router.replies(0, [Reply(for_alice.request, 22, b"alice's")])
    assert world.router.take_replies() == {
        BOB: [Reply(1, None, b"bob's")],
        ALICE: [Reply(1, 22, b"alice's")],
    }
    assert len(world.router) == world.router.clients == 0
    assert world.router.inflight == [0, 0, 0]
    assert world.counted("start", "answered") == world.counted("start", "error") == 1


def test_a_reply_that_nobody_waits_for_is_dropped_and_counted(world: World) -> None:
    """Double ones, late ones, and a shard that answers what another was asked."""
    world.ask(ALICE, request(1))
    [item] = world.forwarded()
    world.router.replies(1, [Reply(item.request, None, b"not yours")])
    assert world.replies() == {}
    world.router.replies(0, [Reply(item.request, None, b""), Reply(item.request, None, b"")])
    world.router.replies(0, [Reply(999, None, b"")])
    assert world.replies() == {ALICE: [(1, None)]}
    assert world.meters.duplicates.read()[("reply",)] == 3


@pytest.mark.parametrize("kind", [0, 6, 15, 19, 255, -1, 2**63])
def test_an_unknown_kind_is_not_supported(world: World, kind: int) -> None:
    """Code 10; nothing is forwarded."""
    world.ask(ALICE, request(1, kind=kind))
    assert world.replies() == {ALICE: [(1, 10)]}
    assert world.forwards() == {}
    assert world.router.clients == 0


@pytest.mark.parametrize(
    "saga_id", ["", "x" * 129, "a b", "a\n", "\x00", "../x", "\u00e9", "e\u0301", "a/b"]
)
def test_a_hostile_saga_id_is_malformed(world: World, saga_id: str) -> None:
    """PROOF A6."""
    world.ask(ALICE, request(1, saga_id))
    assert world.replies() == {ALICE: [(1, 12)]}
    assert world.forwards() == {}


def test_limits_of_headers_and_body_hold_at_their_edge(world: World) -> None:
    """A body at a frame's limit, under a longer number, would close the shard's connection."""
    fits = {"k": "v" * (wire.HEADERS_BYTES_MAX - 1)}
    over = {"k": "v" * wire.HEADERS_BYTES_MAX}
    world.ask(ALICE, Request(wire.START, AT_0, 1, fits, bytes(wire.BODY_BYTES_MAX)))
    world.ask(ALICE, Request(wire.START, AT_0, 2, over, b""))
    world.ask(ALICE, request(3, body=bytes(wire.BODY_BYTES_MAX + 1)))
    assert len(world.forwarded()) == 1
    assert world.replies() == {ALICE: [(2, 12), (3, 12)]}


def test_status_goes_to_the_supervisor_and_books_to_the_named_shard(world: World) -> None:
    """Cluster kinds name a target where the others name a saga."""
    books, listed = request(2, "1", wire.BOOKS), request(3, "1", wire.LIST)
    world.ask(ALICE, request(1, "", wire.STATUS), books, listed)
    sent = world.forwards()
    assert [item.kind for item in sent[SUPERVISOR]] == [wire.STATUS]
    assert [item.kind for item in sent[1]] == [wire.BOOKS, wire.LIST]
    world.router.replies(SUPERVISOR, [Reply(sent[SUPERVISOR][0].request, None, b"")])
    assert world.replies() == {ALICE: [(1, None)]}


@pytest.mark.parametrize("target", ["", "2", "-1", "x", "1.0", "\u0661", "99999999999", " 1"])
def test_books_of_no_shard_are_malformed(world: World, target: str) -> None:
    """The target is a decimal below the number of shards."""
    world.ask(ALICE, request(1, target, wire.BOOKS), request(2, target, wire.LIST))
    assert world.replies() == {ALICE: [(1, 12), (2, 12)]}


def kinds(sent: list[Request]) -> Counter[int]:
    return Counter(item.kind for item in sent)


def test_a_client_has_a_bound_and_its_reads_a_room_of_their_own(world: World) -> None:
    """One client cannot fill the shards; its cancels and reads are not refused for its starts."""
    world.ask(ALICE, *[request(n) for n in range(21)])
    assert kinds(world.forwarded()) == {wire.START: 4, wire.RECALL: 16}
    [reply] = world.router.take_replies()[ALICE]
    assert (reply.request, reply.code) == (20, 11)
    assert wire.unpack(reply.body)["retry_after_ms"] == 250
    world.ask(ALICE, *[request(30 + n, kind=wire.SHOW) for n in range(5)])
    assert kinds(world.forwarded()) == {wire.SHOW: 4}
    assert world.replies() == {ALICE: [(34, 11)]}
    world.ask(BOB, request(1, AT_1))
    assert len(world.forwarded(1)) == 1
    assert world.counted("start", "not_taken") == world.counted("show", "not_taken") == 1


def test_what_is_answered_gives_its_room_back(world: World) -> None:
    """Else a client that has asked often enough would be refused for ever."""
    for first in (0, 100, 200):
        world.ask(ALICE, *[request(first + n) for n in range(20)])
        world.ask(ALICE, *[request(first + 30 + n, kind=wire.SHOW) for n in range(4)])
        world.ask(ALICE, request(first + 40), request(first + 41, kind=wire.SHOW))
        sent = world.forwarded()
        assert kinds(sent) == {wire.START: 4, wire.RECALL: 16, wire.SHOW: 4}
        assert world.replies() == {ALICE: [(first + 40, 11), (first + 41, 11)]}
        world.router.replies(0, [Reply(item.request, None, b"") for item in sent[1:]])
        world.ask(ALICE, *[request(first + 50 + n) for n in range(19)])  # one start is still open
        sent = [sent[0], *world.forwarded()]
        assert kinds(sent) == {wire.START: 4, wire.RECALL: 16}
        world.router.replies(0, [Reply(item.request, None, b"") for item in sent])
        world.router.take_replies()


def test_a_shard_has_a_bound_and_the_others_serve_on() -> None:
    """PROOF A8: a full shard costs the others nothing."""
    world = World(client_max=100, shard_max=8)
    world.ask(ALICE, *[request(n) for n in range(42)], request(50, AT_1))
    sent = world.forwards()
    assert (kinds(sent[0]), len(sent[1])) == ({wire.START: 8, wire.RECALL: 32}, 1)
    assert world.replies() == {ALICE: [(40, 11), (41, 11)]}
    world.router.replies(0, [Reply(sent[0][0].request, None, b"")])
    world.ask(BOB, request(1))
    assert kinds(world.forwarded()) == {wire.START: 1}
    cancel = request(2, kind=wire.CANCEL)
    world.ask(BOB, cancel)
    assert kinds(world.forwarded()) == {wire.CANCEL: 1}


def test_a_start_without_room_is_recalled_not_refused(world: World) -> None:
    """SPEC 2: it may be a repeat, and those are never refused for load. The shard can tell."""
    world.ask(ALICE, *[request(n) for n in range(4)])
    world.forwards()
    traced = Request(wire.SUBMIT, AT_0, 5, {"traceparent": "t"}, b"opaque")
    world.ask(ALICE, request(4), traced)
    recalled, submitted = world.forwarded()
    assert (recalled.kind, recalled.saga_id, recalled.body) == (wire.RECALL, AT_0, b"body")
    assert (recalled.headers, submitted.headers) == ({}, wire.RECALLS_SUBMIT)
    assert (submitted.kind, submitted.body) == (wire.RECALL, b"opaque")
    world.router.replies(0, [Reply(recalled.request, None, b""), Reply(submitted.request, 11, b"")])
    assert world.replies() == {ALICE: [(4, None), (5, 11)]}
    assert world.counted("start", "answered") == world.counted("submit", "not_taken") == 1
    assert world.router.inflight == [4, 0, 0]


def test_what_was_recalled_is_recalled_again(world: World) -> None:
    """Under an open number nothing else may leave: a start then would be one too many."""
    world.ask(ALICE, *[request(n) for n in range(5)])
    *starts, recall = world.forwarded()
    world.router.replies(0, [Reply(item.request, None, b"") for item in starts])
    world.ask(ALICE, request(4), now=FORWARD_AGAIN_NS)
    assert world.forwarded() == [recall]
    world.ask(ALICE, request(9))
    assert kinds(world.forwarded()) == {wire.START: 1}


def test_reads_take_no_room_of_starts(world: World) -> None:
    """Each room is bounded for itself, by client and by peer."""
    world.ask(ALICE, *[request(n, kind=wire.SHOW) for n in range(4)], request(9))
    assert kinds(world.forwarded()) == {wire.SHOW: 4, wire.START: 1}


@pytest.mark.parametrize("seed", range(20))
def test_11_is_answered_only_for_what_was_never_forwarded(seed: int) -> None:
    """Bug eleven_after_forward: whatever comes in whatever order, with peers that come and go."""
    random = Random(seed)
    world = World(client_max=2, shard_max=3)
    sent: set[tuple[bytes, int]] = set()  # open, and some try of it has left
    numbers: dict[int, tuple[bytes, int]] = {}
    elevens = 0
    for now in range(0, 600 * FORWARD_AGAIN_NS // 2, FORWARD_AGAIN_NS // 2):
        who = random.choice((ALICE, BOB))
        kind = random.choice((wire.START, wire.SUBMIT, wire.SHOW))
        asked = request(random.randrange(30), random.choice((AT_0, AT_1)), kind)
        world.ask(who, asked, now=now)
        world.router.draining = random.random() < 0.2
        answered: list[int] = []
        for peer, items in world.forwards().items():
            for item in items:
                numbers.setdefault(item.request, (who, asked.request))
            if random.random() < 0.3:
                world.router.not_forwarded(peer, items, connected=random.random() < 0.5)
            else:
                sent |= {numbers[item.request] for item in items}
                if random.random() < 0.6:
                    answered += [item.request for item in items]
                    world.router.replies(peer, [Reply(each, None, b"") for each in answered])
        if random.random() < 0.05:
            world.router.peer_gone(random.randrange(2))
        for client, said in world.replies().items():
            for number, code in said:
                assert code != 11 or (client, number) not in sent
                elevens += code == 11
                sent.discard((client, number))
    assert elevens > 10


def test_what_was_never_forwarded_is_answered_11(world: World) -> None:
    """PROOF A10: definite, so the caller may go elsewhere."""
    world.ask(ALICE, request(1))
    world.router.not_forwarded(0, world.forwarded(), connected=False)
    told = world.told(ALICE)
    assert (told["code"], told["text"], told["retry_after_ms"]) == (11, "shard 0 is down", 250)
    assert len(world.router) == 0
    assert world.router.inflight == [0, 0, 0]


def test_what_was_forwarded_to_a_shard_that_went_away_is_answered_0(world: World) -> None:
    """PROOF A10: it may have been taken. The other shard's requests stay open."""
    world.ask(ALICE, request(1), request(2, AT_1))
    sent = world.forwards()
    assert [world.router.peer_gone(0) for _ in range(2)] == [1, 0]
    assert world.replies() == {ALICE: [(1, 0)]}
    world.router.replies(0, [Reply(sent[0][0].request, None, b"late")])
    assert world.replies() == {}
    world.router.replies(1, [Reply(sent[1][0].request, None, b"")])
    assert world.replies() == {ALICE: [(2, None)]}
    assert world.counted("start", "no_outcome") == 1


def test_a_repeat_that_cannot_be_forwarded_is_no_11_for_what_was(world: World) -> None:
    """Bug eleven_after_forward: the first try may have been taken."""
    world.ask(ALICE, request(1))
    world.forwards()
    world.ask(ALICE, request(1), now=SECOND)
    world.router.not_forwarded(0, world.forwarded(), connected=False)
    assert world.replies() == {}
    world.router.peer_gone(0)
    assert world.replies() == {ALICE: [(1, 0)]}


def test_a_repeat_is_forwarded_under_the_same_number_but_not_in_a_flood(world: World) -> None:
    """The answer may be lost, so it is asked again; the bound of what is in flight must hold."""
    world.ask(ALICE, request(1))
    [first] = world.forwarded()
    world.ask(ALICE, *[request(1)] * 100, now=FORWARD_AGAIN_NS - 1)
    assert world.forwarded() == []
    world.ask(ALICE, *[request(1)] * 100, now=FORWARD_AGAIN_NS)
    assert world.forwarded() == [first]
    assert len(world.router) == world.router.inflight[0] == 1
    world.router.replies(0, [Reply(first.request, None, b""), Reply(first.request, None, b"")])
    assert world.replies() == {ALICE: [(1, None)]}


@pytest.mark.parametrize(
    "other", [request(1, AT_1), request(1, kind=wire.SHOW), request(1, "not an id"), request(1, "")]
)
def test_another_request_under_an_open_number_is_dropped(world: World, other: Request) -> None:
    """An answer to it would be taken for an answer to the first."""
    world.ask(ALICE, request(1))
    [first] = world.forwarded()
    world.ask(ALICE, other, now=SECOND)
    assert world.forwards() == {}
    assert world.replies() == {}
    assert world.meters.faults.read()[("request",)] == 1
    world.router.replies(0, [Reply(first.request, None, b"")])
    assert world.replies() == {ALICE: [(1, None)]}


def test_a_client_that_is_gone_leaves_nothing_behind(world: World) -> None:
    """PROOF G4: memory is bounded by who is there."""
    world.ask(ALICE, request(1), request(2, AT_1))
    world.ask(BOB, request(1))
    sent = world.forwards()
    world.router.client_gone(ALICE)
    world.router.client_gone(ALICE)
    assert len(world.router) == world.router.clients == 1
    assert world.router.inflight == [1, 0, 0]
    world.router.replies(0, [Reply(item.request, None, b"") for item in sent[0]])
    assert world.replies() == {BOB: [(1, None)]}


def test_what_is_open_for_too_long_is_answered_0(world: World) -> None:
    """A reply that was lost would else hold a place for ever."""
    world.ask(ALICE, request(1), now=0)
    world.ask(ALICE, request(2), now=SECOND)
    world.ask(ALICE, request(1), now=2 * SECOND)
    world.router.expire(OPEN_NS_MAX - 1)
    assert world.replies() == {}
    world.router.expire(OPEN_NS_MAX)
    assert world.replies() == {ALICE: [(1, 0)]}
    assert len(world.router) == 1


def test_while_draining_starts_are_refused_and_the_rest_is_served(world: World) -> None:
    """SPEC 4: a definite no, by the shard, which tells a start from a repeat."""
    world.ask(ALICE, request(1))
    world.forwards()
    world.router.draining = True
    world.ask(ALICE, request(2), request(3, kind=wire.SUBMIT), request(4, kind=wire.SHOW))
    start, submit, show = world.forwarded()
    assert (start.kind, submit.kind, show.kind) == (wire.RECALL, wire.RECALL, wire.SHOW)
    world.router.replies(0, [Reply(item.request, 11, b"") for item in (start, submit)])
    assert world.replies() == {ALICE: [(2, 11), (3, 11)]}
    world.router.give_up()
    assert world.replies() == {ALICE: [(1, 0), (4, 0)]}


def test_an_answer_too_long_for_a_frame_is_a_bug_and_is_told_as_one(world: World) -> None:
    """It would close the client's connection, who would ask again, for ever."""
    world.ask(ALICE, request(2**63), request(2, AT_0))
    first, second = world.forwarded()
    world.router.replies(
        0,
        [
            Reply(first.request, None, bytes(REPLY_BODY_BYTES_MAX)),
            Reply(second.request, None, bytes(REPLY_BODY_BYTES_MAX + 1)),
        ],
    )
    replies = world.router.take_replies()[ALICE]
    assert [reply.code for reply in replies] == [None, 13]
    assert all(len(frame) <= wire.FRAME_BYTES_MAX for frame in wire.frames(replies))


def test_the_gauge_shows_what_is_in_flight_of_each_shard(world: World) -> None:
    """Zeros from the start; the supervisor is no shard."""
    gauge = world.meters.router_shard_inflight
    assert gauge.read() == {("0",): 0, ("1",): 0}
    world.ask(ALICE, request(1), request(2, "", wire.STATUS))
    assert gauge.read() == {("0",): 1, ("1",): 0}
