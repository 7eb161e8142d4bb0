"""Links: a shard's two sockets, with workers and routers that are sockets in this process."""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import zmq

from sagacity import sockets
from sagacity.errors import InvariantBroken
from sagacity.sockets import Socket
from sagacity.wire import (
    FRAME_BYTES_MAX,
    OK,
    PROTOCOL,
    SHOW,
    Answer,
    Answers,
    Beat,
    BooksAsked,
    BooksPage,
    Command,
    Commands,
    Hello,
    Rejected,
    Reply,
    Request,
    Unknown,
    Witness,
    encode,
    pack,
    read_replies,
    read_to_worker,
    unpack,
)
from shard.effects import BooksForwarded, Effects
from shard.events import Answered, Event, Requests, WorkerCame, WorkerLives, WorkerWent
from shard.journal import Receipt
from shard.links import FRAMES_MAX, OPEN_BOOKS_MAX, PROBE_PAUSE_NS, Links

CLUSTER = "0123456789abcdef" * 2
RECEIPT = Receipt(7, b"c" * 16)
WITNESS = Witness(CLUSTER, 0, 3, RECEIPT.seq, RECEIPT.chain, 1024)
MS = 1_000_000
PATIENCE_S = 10.0

T = TypeVar("T", bound=Event)


class Shard:
    """Links, what came through them, and the other ends."""

    def __init__(self, run: Path) -> None:
        self.ours, self.theirs = sockets.context(), sockets.context()
        self.run = run
        self.wakeup, self.wake = os.pipe2(os.O_NONBLOCK)
        self.links = Links(
            self.ours,
            f"ipc://{run}/routers",
            f"ipc://{run}/workers",
            CLUSTER,
            frozenset({"inventory", "payment"}),
            self.wakeup,
        )
        self.came: list[Event] = []
        self.closed = False

    def close_links(self) -> None:
        """Close what is tested; the other ends stay."""
        if not self.closed:
            self.closed = True
            self.links.close()

    def close(self) -> None:
        self.close_links()
        for ctx in (self.ours, self.theirs):
            assert isinstance(ctx, zmq.Context)
            ctx.destroy(linger=0)
        os.close(self.wakeup)
        os.close(self.wake)

    def connect(self, where: str) -> Socket:
        """Give a socket that is connected to "workers" or "routers"."""
        socket = sockets.dealer(self.theirs, f"ipc://{self.run}/{where}")
        assert socket.poll(5000, zmq.POLLOUT)
        return socket

    def receive(self, timeout_ms: int = 20) -> list[Event]:
        """Receive once, and send what that needs sent, as the loop does."""
        events = self.links.receive(timeout_ms * MS).events
        self.came += events
        self.links.send(RECEIPT, WITNESS, Effects())
        return events

    def until(self, holds: Callable[[], object]) -> None:
        """Receive until something holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, f"did not come true; came: {self.came}"
            self.receive()

    def next(self, kind: type[T]) -> T:
        """Receive until an event of a kind has come, and take it."""
        self.until(lambda: any(isinstance(event, kind) for event in self.came))
        event = next(event for event in self.came if isinstance(event, kind))
        self.came.remove(event)
        return event

    def worker(self, service: str = "inventory", capacity: int = 8) -> tuple[Socket, bytes]:
        """Give a worker's socket after its HELLO, and its name here."""
        socket = self.connect("workers")
        sockets.send(socket, hello(service=service, capacity=capacity))
        return socket, self.next(WorkerCame).worker

    def asker(self) -> tuple[Socket, bytes]:
        """Give a router's socket after its first request, and its name here."""
        socket = self.connect("routers")
        sockets.send(socket, encode([Request(SHOW, "s", 1, {}, b"")]))
        return socket, self.next(Requests).origin

    def send(self, effects: Effects) -> None:
        """Send effects."""
        self.links.send(RECEIPT, WITNESS, effects)


@pytest.fixture
def shard() -> Iterator[Shard]:
    """Links with nobody connected; a socket's path is short, pytest's own directories are not."""
    with tempfile.TemporaryDirectory(prefix="sg-") as directory:
        made = Shard(Path(directory))
        yield made
        made.close()


def hello(
    *,
    protocol: int = PROTOCOL,
    cluster: str = CLUSTER,
    service: str = "inventory",
    capacity: int = 8,
) -> bytes:
    return encode(Hello(protocol, cluster, service, 1, capacity, []))


def command(number: int, body: bytes = b"\x80") -> Command:
    return Command(f"s{number}", 1, 0, 3, number, 1, {}, body)


def commands_to(peer: bytes, *commands: Command) -> Effects:
    effects = Effects()
    effects.commands[peer] = list(commands)
    return effects


def an_answer(number: int) -> Answer:
    return Answer(f"s{number}", 1, 0, 3, number, 1, OK, b"\x80")


def frame_from(socket: Socket) -> bytes:
    assert socket.poll(5000), "no frame came"
    return socket.recv()


# -- workers ---------------------------------------------------------------------------------------


def test_a_worker_says_hello_gets_commands_and_answers_them(shard: Shard) -> None:
    """The whole conversation; a batch is one frame and carries the witness once."""
    socket, peer = shard.worker(capacity=5)
    batch = [command(1), command(2)]
    shard.send(commands_to(peer, *batch))
    assert read_to_worker(frame_from(socket)) == Commands(WITNESS, batch)
    sockets.send(socket, encode(Answers([an_answer(1), an_answer(2)])))
    assert shard.next(Answered) == Answered(peer, [an_answer(1), an_answer(2)])
    sockets.send(socket, encode(Beat(1, 0)))
    assert shard.next(WorkerLives) == WorkerLives(peer, 0)


def test_a_hello_tells_service_incarnation_and_capacity(shard: Shard) -> None:
    """What the engine needs to give out credit; a second HELLO with another too."""
    socket = shard.connect("workers")
    for capacity in (5, 0):
        sockets.send(socket, encode(Hello(PROTOCOL, CLUSTER, "payment", 77, capacity, [WITNESS])))
        came = shard.next(WorkerCame)
        assert (came.service, came.incarnation, came.capacity) == ("payment", 77, capacity)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (hello(protocol=PROTOCOL + 1), "protocol"),
        (hello(cluster="f" * 32), "cluster"),
        (hello(service="shipping"), "shipping"),
        (hello(service=""), "service"),
    ],
    ids=["protocol", "cluster", "service", "nameless"],
)
def test_a_worker_that_does_not_belong_here_is_told_why(
    shard: Shard, said: bytes, why: str
) -> None:
    """It would answer for other data, or in another language; it gets no command."""
    socket = shard.connect("workers")
    sockets.send(socket, said)
    sockets.send(socket, encode(Answers([an_answer(1)])))
    shard.until(lambda: shard.links.dropped.strangers == 1)
    rejected = read_to_worker(frame_from(socket))
    assert isinstance(rejected, Rejected)
    assert why in rejected.text
    assert shard.came == []


def test_a_hello_that_comes_again_is_not_heard_again(shard: Shard) -> None:
    """Late, its witness is below what its worker has answered for: the database would look old."""
    socket, _ = shard.worker()
    sockets.send(socket, hello())
    sockets.send(socket, encode(Beat(1, 3)))
    assert shard.next(WorkerLives).capacity == 3  # it came behind the HELLO
    assert not any(isinstance(event, WorkerCame) for event in shard.came)


def test_who_does_not_say_hello_is_nobody(shard: Shard) -> None:
    """B9: answers and heartbeats of a stranger are dropped and counted."""
    stranger = shard.connect("workers")
    for said in (Answers([an_answer(1)]), Beat(1, 9), BooksPage(1, b"\x80")):
        sockets.send(stranger, encode(said))
    shard.until(lambda: shard.links.dropped.strangers == 3)
    assert shard.came == []


def test_a_worker_whose_hello_came_broken_is_told_to_say_it_again(shard: Shard) -> None:
    """Nothing else would ever bring it back: it says HELLO once on each connection."""
    socket = shard.connect("workers")
    said = bytearray(hello())
    said[1] ^= 0x40
    sockets.send(socket, bytes(said))
    sockets.send(socket, encode(Beat(1, 9)))
    shard.until(lambda: shard.links.dropped.strangers == 1)
    assert read_to_worker(frame_from(socket)) == Unknown(1)
    sockets.send(socket, hello())
    shard.until(lambda: shard.came)


def test_a_worker_that_goes_is_noticed_at_once(shard: Shard) -> None:
    """Its commands go to another: nobody waits for a heartbeat that will not come."""
    stays, staying = shard.worker()
    took_ms = []
    for _ in range(15):
        socket, peer = shard.worker()
        socket.close()
        closed = time.monotonic()
        assert shard.next(WorkerWent) == WorkerWent(peer)
        took_ms.append((time.monotonic() - closed) * 1000)
    assert statistics.median(took_ms) < 100
    shard.send(commands_to(staying, command(1)))
    while not (said := read_to_worker(frame_from(stays))).items:  # type: ignore[union-attr]  # asserted below
        assert isinstance(said, Commands)
        assert said.witness.cluster_id == CLUSTER  # what a worker checks, of probes too
    assert isinstance(said, Commands)
    assert said.items == [command(1)]


def test_a_departure_that_was_missed_is_found_at_the_next_heartbeat_of_another(
    shard: Shard,
) -> None:
    """Else what that worker had would wait for ever: it is not live, so no attempt ends there."""
    other, _ = shard.worker()
    socket, peer = shard.worker()
    socket.close()
    deadline = time.monotonic() + PATIENCE_S
    while not shard.links._departures.any():  # stolen: told, and not acted upon
        assert time.monotonic() < deadline
        zmq.select([shard.links._departures.socket], [], [], 0.01)
    sockets.send(other, encode(Beat(1, 8)))
    assert shard.next(WorkerWent) == WorkerWent(peer)


def test_heartbeats_do_not_have_all_workers_asked_again_and_again(shard: Shard) -> None:
    """Each beat of n workers would else send n frames: a hundred of them, ten thousand a second."""
    other, _ = shard.worker()
    socket, _ = shard.worker()
    shard.until(lambda: not shard.links._probes)
    while socket.poll(20):
        socket.recv()
    began = time.monotonic_ns()
    for beat in range(30):
        sockets.send(other, encode(Beat(1, beat)))
        assert shard.next(WorkerLives).capacity == beat
    took = time.monotonic_ns() - began
    asked = 0
    while socket.poll(20):
        socket.recv()
        asked += 1
    assert asked <= 1 + took // PROBE_PAUSE_NS


def test_a_command_for_a_worker_that_has_gone_tells_that_it_went(shard: Shard) -> None:
    """The command is not lost: the engine gives it to another, and does so without a wait."""
    socket, peer = shard.worker()
    socket.close()
    deadline = time.monotonic() + PATIENCE_S
    while peer in shard.links._known:
        shard.send(commands_to(peer, command(1)))
        # As the loop does between two sends: a queue that is full before its end looks hung.
        shard.links._workers.poll(5)
        assert time.monotonic() < deadline
    began = time.monotonic()
    assert shard.links.receive(5_000 * MS).events == [WorkerWent(peer)]
    assert time.monotonic() - began < 2
    shard.send(commands_to(peer, command(2)))
    assert shard.links.receive(0).events == []


def test_a_worker_that_goes_and_comes_back_is_another(shard: Shard) -> None:
    """Its connection is new, and what the old one had is told to be lost."""
    first, old = shard.worker()
    first.close()
    _, new = shard.worker()
    assert new != old
    assert shard.next(WorkerWent) == WorkerWent(old)
    assert shard.receive() == []


def test_a_worker_that_does_not_read_blocks_nobody(shard: Shard) -> None:
    """A stopped process fills its queue; the others are served, and its end is seen."""
    hung, peer = shard.worker(capacity=10_000)
    healthy, other = shard.worker()
    body = pack({"pad": "x" * 200_000})
    for number in range(5_000):
        shard.send(commands_to(peer, command(number, body)))
        if shard.links.dropped.commands_unsent:
            break
    assert shard.links.dropped.commands_unsent == 1
    shard.send(commands_to(other, command(1)))
    assert read_to_worker(frame_from(healthy)) == Commands(WITNESS, [command(1)])
    assert [event for event in shard.came if isinstance(event, WorkerWent)] == []
    hung.close()
    assert shard.next(WorkerWent) == WorkerWent(peer)


def test_a_batch_over_the_frame_limit_travels_in_several_frames(shard: Shard) -> None:
    """One frame over the limit would close the worker's connection, again and again."""
    socket, peer = shard.worker()
    batch = [command(number, bytes(100_000)) for number in range(30)]
    shard.send(commands_to(peer, *batch))
    got: list[Command] = []
    while len(got) < len(batch):
        frame = frame_from(socket)
        assert len(frame) <= FRAME_BYTES_MAX
        said = read_to_worker(frame)
        assert isinstance(said, Commands)
        assert said.witness == WITNESS
        got += said.items
    assert got == batch


# -- routers ---------------------------------------------------------------------------------------


def test_requests_come_with_their_origin_and_replies_go_back_there(shard: Shard) -> None:
    """Two routers may use the same numbers."""
    first, one = shard.asker()
    second, two = shard.asker()
    effects = Effects()
    effects.reply(one, Reply(1, None, b"one"))
    effects.reply(two, Reply(1, 11, b"two"))
    effects.reply(two, Reply(2, None, b"more"))
    shard.send(effects)
    assert read_replies(frame_from(first)) == [Reply(1, None, b"one")]
    assert read_replies(frame_from(second)) == [Reply(1, 11, b"two"), Reply(2, None, b"more")]


def test_replies_to_a_router_that_has_gone_are_dropped_and_counted(shard: Shard) -> None:
    """The client behind it asks again, with the same id."""
    socket, origin = shard.asker()
    socket.close()
    effects = Effects()
    effects.reply(origin, Reply(1, None, b"late"))
    deadline = time.monotonic() + PATIENCE_S
    while not shard.links.dropped.replies_unsent:
        shard.send(effects)
        shard.links._routers.poll(5)  # as above
        assert time.monotonic() < deadline
    assert shard.links.dropped.replies_unsent == 1


def test_replies_to_a_router_that_reads_late_wait_for_it(shard: Shard) -> None:
    """Bounded, in order, and tried again by the loop's own turns."""
    socket, origin = shard.asker()
    sent = 0
    while not shard.links._outbox.frames:
        effects = Effects()
        effects.reply(origin, Reply(sent, None, bytes(100_000)))
        shard.send(effects)
        sent += 1
        assert sent < 5_000
    got: list[Reply] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < sent:
        assert time.monotonic() < deadline
        for frame in sockets.receive_all(socket, 1000)[0]:
            got += read_replies(frame)
        shard.receive()
    assert [reply.request for reply in got] == list(range(sent))
    assert shard.links.dropped.replies_unsent == 0


# -- books -----------------------------------------------------------------------------------------


def books_from(worker: bytes, origin: bytes, request: int = 5) -> Effects:
    effects = Effects()
    effects.books.append(BooksForwarded(origin, request, worker, pack({"book": "inventory"})))
    return effects


def test_a_page_of_books_is_asked_of_a_worker_and_given_to_the_asker(shard: Shard) -> None:
    """It passes through as bytes; a page that nobody asked for, or a second one, is dropped."""
    worker, peer = shard.worker()
    asker, origin = shard.asker()
    shard.send(books_from(peer, origin))
    asked = read_to_worker(frame_from(worker))
    assert isinstance(asked, BooksAsked)
    assert unpack(asked.body) == {"book": "inventory"}
    for token in (asked.token + 1, asked.token, asked.token):
        sockets.send(worker, encode(BooksPage(token, b"page")))
    shard.until(lambda: asker.poll(0))
    assert read_replies(frame_from(asker)) == [Reply(5, None, b"page")]
    shard.receive()
    assert asker.poll(50) == 0


def test_an_error_in_place_of_a_page_is_an_error_to_the_asker(shard: Shard) -> None:
    """Its code travels with it: a reply without one is an answer, and would be read as a page."""
    worker, peer = shard.worker()
    asker, origin = shard.asker()
    shard.send(books_from(peer, origin))
    asked = read_to_worker(frame_from(worker))
    assert isinstance(asked, BooksAsked)
    sockets.send(worker, encode(BooksPage(asked.token, b"error", 0)))
    shard.until(lambda: asker.poll(0))
    assert read_replies(frame_from(asker)) == [Reply(5, 0, b"error")]


def test_books_of_a_worker_that_has_gone_are_refused_at_once(shard: Shard) -> None:
    """Code 11: not taken, ask again."""
    worker, peer = shard.worker()
    asker, origin = shard.asker()
    worker.close()
    assert shard.next(WorkerWent) == WorkerWent(peer)
    shard.send(books_from(peer, origin))
    (reply,) = read_replies(frame_from(asker))
    assert (reply.request, reply.code) == (5, 11)


def test_pages_that_are_never_given_are_forgotten(shard: Shard) -> None:
    """A worker that hangs costs a bound; who asked has stopped waiting long ago."""
    worker, peer = shard.worker()
    asker, origin = shard.asker()
    tokens = []
    for request in range(OPEN_BOOKS_MAX + 10):
        shard.send(books_from(peer, origin, request))
        asked = read_to_worker(frame_from(worker))
        assert isinstance(asked, BooksAsked)
        tokens.append(asked.token)
    assert len(shard.links._books) == OPEN_BOOKS_MAX
    for token in tokens:
        assert worker.poll(5000, zmq.POLLOUT)
        sockets.send(worker, encode(BooksPage(token, b"page")))
    got: list[int] = []

    def all_given() -> bool:
        for frame in sockets.receive_all(asker, 1000)[0]:
            got.extend(reply.request for reply in read_replies(frame))
        return len(got) == OPEN_BOOKS_MAX

    shard.until(all_given)
    assert sorted(got) == list(range(10, OPEN_BOOKS_MAX + 10))
    assert shard.links._books == {}


# -- limits ----------------------------------------------------------------------------------------

GARBAGE = [
    b"",
    b"\xc1",
    b"\x00",
    b"garbage",
    encode({}),
    encode([99]),
    encode([1]),
    encode([[1, "s", 1, {}]]),
    encode([[1, "s", "1", {}, b""]]),
    encode([[1, "s", 1, {"a": 1}, b""]]),
    encode([Request(SHOW, "s", 1, {}, b"")])[:-1],
    encode([Request(SHOW, "s", 1, {}, b"")]) + b"\x00",
    b"\x91" * 5_000,
    b"\x91\x95\x01\xa2\xff\xfe\x01\x80\xc4\x00",
    hello()[:-1],
    encode(Beat(1, 1)) + b"\x00",
]


@pytest.mark.parametrize("where", ["workers", "routers"])
def test_garbage_is_counted_and_what_follows_is_read(shard: Shard, where: str) -> None:
    """G5: nobody is thrown out for it, and nothing of it becomes an event."""
    socket = shard.connect(where)
    for frame in GARBAGE:
        sockets.send(socket, frame)
    socket.send_multipart([b"", hello()])
    good = hello() if where == "workers" else encode([Request(SHOW, "s", 1, {}, b"")])
    sockets.send(socket, good)
    shard.until(lambda: shard.came)
    assert len(shard.came) == 1
    assert isinstance(shard.came[0], WorkerCame | Requests)
    assert shard.links.dropped.garbage == len(GARBAGE) + 1


def test_one_turn_takes_a_bounded_number_of_frames_and_says_that_more_are_there(
    shard: Shard,
) -> None:
    """A flood from workers does not keep the loop from its timers, nor routers from their turn."""
    socket, peer = shard.worker()
    asker = shard.connect("routers")
    flood = FRAMES_MAX + 50
    for _ in range(flood):
        assert socket.poll(5000, zmq.POLLOUT)
        sockets.send(socket, encode(Beat(1, 8)))
    sockets.send(asker, encode([Request(SHOW, "s", 1, {}, b"")]))
    beats, drained, most = 0, [], 0
    deadline = time.monotonic() + PATIENCE_S
    while beats < flood:
        assert time.monotonic() < deadline
        received = shard.links.receive(20 * MS)
        lives = sum(isinstance(event, WorkerLives) for event in received.events)
        most = max(most, lives)
        drained.append((lives, received.drained))
        beats += lives
    assert most <= FRAMES_MAX
    assert all(done == (lives < FRAMES_MAX) for lives, done in drained)
    assert peer in shard.links._known


def test_a_receive_waits_no_longer_than_it_is_told_and_wakes_for_a_signal(shard: Shard) -> None:
    """SIGTERM must not wait for the next message."""
    began = time.monotonic()
    received = shard.links.receive(30 * MS)
    assert (received.events, received.drained) == ([], True)
    assert 0.02 < time.monotonic() - began < 2
    os.write(shard.wake, b"\x0f")
    began = time.monotonic()
    assert shard.links.receive(5_000 * MS).events == []
    assert time.monotonic() - began < 2


def test_nothing_is_sent_with_a_receipt_of_another_commit(shard: Shard) -> None:
    """The receipt is the proof; one that does not fit the witness stops the process."""
    _, peer = shard.worker()
    with pytest.raises(InvariantBroken):
        shard.links.send(Receipt(8, b""), WITNESS, commands_to(peer, command(1)))


def test_the_last_replies_leave_when_the_shard_closes(shard: Shard) -> None:
    """A drained shard has answered; closing at once would drop what it said last."""
    socket, origin = shard.asker()
    effects = Effects()
    for request in range(20):
        effects.reply(origin, Reply(request, None, bytes(100_000)))
    shard.send(effects)
    got: list[Reply] = []

    def read() -> None:
        while len(got) < 20 and socket.poll(5000):
            got.extend(read_replies(socket.recv()))

    reader = threading.Thread(target=read)
    reader.start()
    shard.close_links()
    reader.join()
    assert [reply.request for reply in got] == list(range(20))
