"""Targets: frames to a shard, from routers and from workers; bodies in good envelopes.

The shard's loop, engine and reader of frames are the real ones; its sockets are lists.
"""

from cluster.clock import ManualClock
from sagacity import wire
from sagacity.errors import Malformed
from sagacity.saga import Retry
from sagacity.slots import SLOTS
from sagacity.wire import (
    Answers,
    Beat,
    Begun,
    BooksPage,
    Command,
    Forgot,
    Hello,
    Reply,
    Request,
    Witness,
)
from services.checkout import checkout
from shard.admission import Admission
from shard.effects import Effects
from shard.engine import Engine
from shard.events import Answered, Event, Requests, WorkerLives, WorkerWent
from shard.finished import FinishedInMemory
from shard.guard import OldCopy
from shard.journal import MemoryJournal, Receipt
from shard.links import Dropped, Links
from shard.loop import SERVING, Fenced, Loop, NoUpkeep, Received
from shard.retries import RetryBudget
from shard.sagas import Definition
from shard.state import State
from shard.tally import PlainTally
from tests.fuzz.target import ACCEPTED, DROPPED, Target, code_of, told
from tests.fuzz.to_router import requests
from tests.unit.canned import SERVICES, answer

CLUSTER_ID = "c0ffee" + "0" * 26
ROUTER = b"\x00router"
PRICES = {"abc123": 10_000, "xyz789": 4_999}
DEFINITION = Definition(checkout, Retry())
PEERS = {name: name.encode() for name in SERVICES}
TURNS_MAX = 32


class ListLinks(Links):
    """A shard's links whose sockets are lists."""

    def __init__(self) -> None:
        self._cluster_id = CLUSTER_ID
        self._services = frozenset(SERVICES)
        self._known = {}
        self._books = {}
        self._pages = {}
        self._token = self._probes = self._probed_at = 0
        self.dropped = Dropped()
        self.coming: list[Event] = []
        self.commands: dict[bytes, list[Command]] = {}
        self.replies: list[Reply] = []

    def receive(self, timeout_ns: int) -> Received:
        coming, self.coming = self.coming, []
        return Received(coming, True)

    def from_router(self, frame: bytes) -> int | None:
        """Take a frame of a router; give how many requests it had, None for garbage."""
        try:
            items = wire.read_requests(frame)
        except Malformed:
            self.dropped.garbage += 1
            return None
        self.coming.append(Requests(ROUTER, items))
        return len(items)

    def from_worker(self, peer: bytes, frame: bytes) -> None:
        self._from_worker(peer, frame, self.coming)

    def lose(self, peer: bytes) -> None:
        """A worker's connection has ended."""
        self._known.pop(peer, None)
        self.coming.append(WorkerWent(peer))

    def send(self, receipt: Receipt, witness: Witness, effects: Effects) -> None:
        assert receipt.seq == witness.seq
        for peer, commands in effects.commands.items():
            self.commands.setdefault(peer, []).extend(commands)
        for peer, command in effects.alone.items():
            self.commands.setdefault(peer, []).append(command)
        for each in effects.books:
            self._ask_books(each, effects)
        for pages in self._pages.values():
            self.replies += pages
        self._pages.clear()
        for replies in effects.replies.values():
            for frame in wire.frames(replies):
                self.replies += wire.read_replies(frame)

    def _to_worker(self, peer: bytes, frame: bytes) -> bool:
        wire.read_to_worker(frame)  # whatever we say, a worker can read
        return peer in self._known


class Quiet:
    """An observer that does not look."""

    def committed(self, took_ns: int, entries: int) -> None:
        pass

    def turned(self, took_ns: int) -> None:
        pass

    def forgot(self) -> None:
        """Not of interest."""

    def turned_away(self, service: str, text: str) -> None:
        pass


def _fresh() -> tuple[Engine, NoUpkeep]:
    engine = Engine(
        0,
        frozenset(range(SLOTS)),
        State({checkout.name: DEFINITION}, FinishedInMemory()),
        PRICES,
        Admission(4096),
        RetryBudget(100, 100, 10),
        PlainTally(),
        30_000,
    )
    return engine, NoUpkeep()


class Shard:
    """One shard in memory, with a worker of each service that does as it is asked."""

    def __init__(self) -> None:
        self.clock = ManualClock(monotonic_ns=5_000_000_000_000)
        self.links = ListLinks()
        self.journal = MemoryJournal()
        self.engine, _ = _fresh()
        self.loop = Loop(
            self.engine, self.journal, self.links, self.clock, CLUSTER_ID, Quiet(), fresh=_fresh
        )
        self.loop.recover()
        self.hello()
        self.turn()
        assert self.loop.mode == SERVING

    def hello(self) -> None:
        """A worker of each service comes; its database has seen all that we sent."""
        state, last = self.engine.state, self.journal.last
        seen = Witness(CLUSTER_ID, 0, state.epoch, last.seq, last.chain, state.number)
        for name, peer in PEERS.items():
            hello = Hello(1, CLUSTER_ID, name, 1, 256, [seen] if state.number else [])
            self.links.from_worker(peer, wire.encode(hello))

    def turn(self) -> list[Reply]:
        """Do one turn; give the replies."""
        self.clock.advance(1)
        self.loop.turn()
        replies, self.links.replies = self.links.replies, []
        return replies

    def settle(self) -> list[Reply]:
        """Have the workers do what they were asked; give all replies."""
        replies: list[Reply] = []
        for _ in range(TURNS_MAX):
            asked, self.links.commands = self.links.commands, {}
            if not asked:
                return replies
            for peer, commands in asked.items():
                done = [answer(command) for command in commands]
                self.links.coming += [WorkerLives(peer, 256), Answered(peer, done)]
            replies += self.turn()
        raise AssertionError("sagas have no end")

    def ask(self, request: Request) -> list[Reply]:
        """Ask, and have it done; give all replies."""
        self.links.from_router(wire.encode([request]))
        return self.turn() + self.settle()


def start(saga_id: str, request: int = 1) -> Request:
    body = {
        "type": "checkout",
        "saga_id": saga_id,
        "user_id": "u42",
        "items": [{"sku": "abc123", "quantity": 2}],
        "shipping_address": "123 Main St",
    }
    return Request(wire.START, saga_id, request, {}, wire.pack(body))


class RequestsToShard(Target):
    """A router's frames: each request is answered, and one that is refused writes nothing."""

    name = "shard-requests"

    def corpus(self) -> list[bytes]:
        items = [start("s1"), start("s3", 9), *requests()]
        return [wire.encode([item]) for item in items] + [wire.encode(items), wire.encode([])]

    def fresh(self) -> None:
        self.shard = Shard()
        self._probes = 0
        assert told(self.shard.ask(start("s1"))[0]) == ACCEPTED

    def take(self, case: bytes) -> str:
        shard = self.shard
        rows = len(shard.journal.rows)
        count = shard.links.from_router(case)
        replies = shard.turn()
        said = [told(reply) for reply in replies]
        refused = count is None or (count == len(said) and ACCEPTED not in said)
        if refused:
            assert len(shard.journal.rows) == rows, "a refused request has written something"
            assert not shard.links.commands
        if count is None:
            assert not said
            return DROPPED
        said += [told(reply) for reply in shard.settle()]
        assert len(said) <= count or count == 0, "a request is answered twice"
        return said[0] if said else ACCEPTED

    def probe(self) -> None:
        self._probes += 1
        [reply] = self.shard.ask(start(f"probe-{self._probes}"))
        assert wire.unpack(reply.body)["status"] == "COMPLETED"


class Bodies(RequestsToShard):
    """Bodies of requests in a good envelope, of each kind that has one."""

    name = "bodies"
    share = 1.0

    def corpus(self) -> list[bytes]:
        bodies = [
            start("s1").body,
            wire.pack(
                {
                    "type": "checkout",
                    "saga_id": "s1",
                    "user_id": "u999",
                    "items": [
                        {"sku": "abc123", "quantity": 2},
                        {"sku": "xyz789", "quantity": 1000},
                        {"sku": "abc123", "quantity": 1},
                    ],
                    "shipping_address": "no_carrier",
                    "msg_id": 7,
                }
            ),
            wire.pack({"type": "cancel", "saga_id": "s1", "reason": "why not", "msg_id": 1}),
            wire.pack({"type": "retry", "saga_id": "s1", "reason": "mended"}),
            wire.pack({"part": "live", "before": 99, "statuses": ["RUNNING"], "limit": 10}),
            wire.pack({"part": "finished", "since_ms": 5}),
            wire.pack({"book": "sagas"}),
            wire.pack({"book": "running", "snapshot": 1, "from": 0}),
            wire.pack({"book": "finished", "from": 0, "upto": 10}),
            wire.pack({"book": "stock", "table": "stock", "after": "", "limit": 10}),
        ]
        # The first byte says of which kind the request is.
        kinds = [wire.START, wire.SUBMIT, wire.CANCEL, wire.RETRY, wire.LIST, wire.LIST]
        kinds += [wire.BOOKS] * 4
        return [wire.encode([kind, body]) for kind, body in zip(kinds, bodies, strict=True)]

    def take(self, case: bytes) -> str:
        return super().take(self.enveloped(case))

    @staticmethod
    def enveloped(case: bytes, number: int = 1) -> bytes:
        """Give the frame in which a body travels."""
        try:
            kind, body = wire.decoder(tuple[int, bytes])(case)
        except ValueError:
            kind, body = wire.START, case
        if kind not in wire.KINDS:
            kind = wire.START
        saga_id = "s1"
        try:
            found = wire.unpack(body).get("saga_id")
            saga_id = found if isinstance(found, str) else saga_id
        except Malformed:
            pass
        return wire.encode([Request(kind, saga_id, number, {}, body)])


class AnswersToShard(Target):
    """A worker's frames: what moves no saga is absorbed; the sagas all end, and rightly."""

    name = "shard-answers"
    block = 32

    def corpus(self) -> list[bytes]:
        self.fresh()
        commands = self.shard.links.commands[PEERS["inventory"]]
        answers = [answer(command) for command in commands]
        answers += [answer(commands[0], wire.DECLINED), answer(commands[1], wire.FAILED)]
        fenced = wire.answer_to(commands[0], wire.REFUSED_FENCED, wire.encode(1))
        forgotten = wire.answer_to(commands[1], wire.REFUSED_FORGOTTEN, b"")
        seen = Witness(CLUSTER_ID, 0, 1, 1, bytes(16), 1024)
        first = commands[0]
        return [
            *(wire.encode(Answers([each])) for each in answers),
            wire.encode(Answers(answers)),
            wire.encode(Answers([fenced, forgotten])),
            wire.encode(Hello(1, CLUSTER_ID, "inventory", 7, 256, [seen])),
            wire.encode(Hello(1, CLUSTER_ID, "payment", 7, 256, [])),
            wire.encode(Beat(1, 256)),
            wire.encode(Begun(first.number, first.step, first.direction, first.attempt)),
            wire.encode(BooksPage(1, wire.pack({"type": "books", "rows": []}))),
            wire.encode(Forgot(0, 1)),
        ]

    def fresh(self) -> None:
        self.shard = Shard()
        for at in range(4):
            self.shard.links.from_router(wire.encode([start(f"s{at}", at + 1)]))
        self.shard.turn()

    def take(self, case: bytes) -> str:
        shard = self.shard
        garbage, strangers = shard.links.dropped.garbage, shard.links.dropped.strangers
        rows = len(shard.journal.rows)
        shard.links.from_worker(PEERS["inventory"], case)
        try:
            for reply in shard.turn():
                told(reply)
        except Fenced:
            self.fresh()  # SPEC 3: a refusal that shows a higher epoch ends the shard
            return "fenced"
        except OldCopy as error:
            self.fresh()  # DESIGN 4: a witness of what we never wrote ends it, too
            return code_of(error)
        if shard.links.dropped.garbage > garbage:
            assert len(shard.journal.rows) == rows
            return DROPPED
        if shard.links.dropped.strangers > strangers:
            assert len(shard.journal.rows) == rows
            return "stranger"
        return ACCEPTED if len(shard.journal.rows) > rows else "absorbed"

    def probe(self) -> None:
        """Workers that are well come, and every saga ends."""
        shard = self.shard
        for peer in PEERS.values():
            shard.links.lose(peer)
        shard.links.commands.clear()
        shard.turn()
        shard.hello()
        shard.turn()
        for _ in range(TURNS_MAX):
            for peer in PEERS.values():
                shard.links.from_worker(peer, wire.encode(Beat(1, 256)))
            shard.turn()
            shard.settle()
            if not shard.engine.inflight:
                break
            shard.clock.advance(400)
        assert shard.engine.inflight == 0, "a saga has no end"
        [reply] = shard.ask(start("probe"))
        assert wire.unpack(reply.body)["status"] == "COMPLETED"
