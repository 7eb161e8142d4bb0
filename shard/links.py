"""Links: the shard's sockets, one for routers and one for workers. Frames to events and back.

Knows connections and frames; decides nothing but who may not work with us. Everything is sent
without waiting; what a router cannot take yet is kept within bounds, what it cannot take for long
is dropped: the client behind it asks again.
"""

from time import monotonic_ns

import zmq
from msgspec import Struct, structs

from sagacity.errors import Malformed, NotTaken, check
from sagacity.sockets import (
    OUTBOX_RETRY_MS,
    Context,
    Departures,
    Outbox,
    PeerGone,
    close_politely,
    receive_all_from,
    router,
    send_to,
)
from sagacity.wire import (
    PROTOCOL,
    Answers,
    Beat,
    Begun,
    BooksAsked,
    BooksPage,
    Commands,
    Forget,
    Forgot,
    Hello,
    Rejected,
    Reply,
    Unknown,
    Witness,
    command_frames,
    encode,
    frames,
    pack_error,
    read_requests,
    read_to_shard,
)
from shard.effects import BooksForwarded, Effects
from shard.events import (
    Answered,
    CommandBegun,
    Event,
    ListApplied,
    Peer,
    Requests,
    WorkerCame,
    WorkerLives,
    WorkerWent,
)
from shard.journal import Receipt
from shard.loop import Received
from shard.sagas import MS

FRAMES_MAX = 256  # of one socket in one turn
REPROBE_TURNS = 3  # a peer's end is told a moment before its connection is gone
PROBE_PAUSE_NS = 500 * MS  # between heartbeats that have all workers probed: n of them send n
OPEN_BOOKS_MAX = 256  # pages asked of workers and not answered


class Dropped(Struct):
    """What was dropped since the start.

    Args:
        garbage: frames that nobody can read.
        strangers: frames of who said no HELLO, or was known to be gone.
        commands_unsent: frames for a worker that does not read.
        replies_unsent: replies to a router that is gone; those that waited for it count as one.
    """

    garbage: int = 0
    strangers: int = 0
    commands_unsent: int = 0
    replies_unsent: int = 0


class Links:
    """The sockets of one shard.

    Args:
        ctx: of the process.
        routers_address: where routers connect.
        workers_address: where workers connect.
        cluster_id: that workers must be of.
        services: that this shard's sagas need.
        wakeup_fd: readable when the process was told something by a signal.
    """

    def __init__(
        self,
        ctx: Context,
        routers_address: str,
        workers_address: str,
        cluster_id: str,
        services: frozenset[str],
        wakeup_fd: int,
    ) -> None:
        self._routers = router(ctx, routers_address)
        self._workers = router(ctx, workers_address)
        self._departures = Departures(self._workers)
        self._outbox = Outbox(self._routers)
        self._cluster_id = cluster_id
        self._services = services
        self._known: dict[Peer, Hello] = {}  # and what it said
        self._probes = 0
        self._probed_at = 0  # by `monotonic_ns`; when all workers were asked last
        self._went: list[Peer] = []
        self._books: dict[int, tuple[Peer, int]] = {}
        self._pages: dict[Peer, list[Reply]] = {}
        self._token = 0
        self.dropped = Dropped()
        self.waited_ns = 0  # for something to come; all other time of the loop is work
        self._poller = ctx.poller()
        for socket in (self._routers, self._workers, self._departures.socket):
            self._poller.register(socket, zmq.POLLIN)
        self._poller.register(wakeup_fd, zmq.POLLIN)

    # -- in -------------------------------------------------------------------------------------

    def receive(self, timeout_ns: int) -> Received:
        """Wait for something to come, at most `timeout_ns`; then take all that is there."""
        if self._probes or self._outbox.frames:
            timeout_ns = min(timeout_ns, OUTBOX_RETRY_MS * MS)
        if self._went or self._pages:
            timeout_ns = 0
        began = monotonic_ns()
        ready = {found for found, _ in self._poller.poll(-(-timeout_ns // MS))}
        self.waited_ns += monotonic_ns() - began
        events: list[Event] = []
        workers_empty = routers_empty = True  # as the poll has just found those that are not ready
        if self._workers in ready:
            frames_in, workers_empty = receive_all_from(self._workers, FRAMES_MAX)
            for peer, frame in frames_in:
                self._from_worker(peer, frame, events)
        if self._routers in ready:
            frames_in, routers_empty = receive_all_from(self._routers, FRAMES_MAX)
            for peer, frame in frames_in:
                try:
                    events.append(Requests(peer, read_requests(frame)))
                except Malformed:
                    self.dropped.garbage += 1
        if self._departures.socket in ready and self._departures.any():
            self._probes = REPROBE_TURNS
        if self._probes:
            self._probe()
        events.extend(WorkerWent(peer) for peer in self._went)
        self._went.clear()
        return Received(events, workers_empty and routers_empty)

    def _from_worker(self, peer: Peer, frame: bytes, events: list[Event]) -> None:
        try:
            said = read_to_shard(frame)
        except Malformed:
            self.dropped.garbage += 1
            return
        if isinstance(said, Hello):
            if _is_same(self._known.get(peer), said):
                return  # the same again: what its database held then says nothing of now
            why = self._objection(said)
            if why is None:
                self._known[peer] = said
                events.append(
                    WorkerCame(
                        peer,
                        said.service,
                        said.incarnation,
                        said.capacity,
                        tuple(said.witnesses),
                    )
                )
            else:
                self.reject(peer, why)
        elif peer not in self._known:
            self.dropped.strangers += 1  # who does not say HELLO, or is known to be gone, is nobody
            if isinstance(said, Beat):  # else its HELLO would be missing for as long as it lives
                self._to_worker(peer, encode(Unknown(said.incarnation)))
        elif isinstance(said, Answers):
            events.append(Answered(peer, said.items))
        elif isinstance(said, Beat):
            events.append(WorkerLives(peer, said.capacity))
            # A departure that was told long before its connection was gone is found here.
            if monotonic_ns() - self._probed_at >= PROBE_PAUSE_NS:
                self._probes = max(self._probes, 1)
        elif isinstance(said, Begun):
            events.append(CommandBegun(peer, said))
        elif isinstance(said, Forgot):
            events.append(ListApplied(peer, said.shard, said.list_number))
        elif isinstance(said, BooksPage):
            asked = self._books.pop(said.token, None)
            if asked is not None:
                origin, request = asked
                self._pages.setdefault(origin, []).append(Reply(request, said.code, said.body))

    def reject(self, worker: Peer, text: str) -> None:
        """Tell a worker that it may not work here, and know it no more."""
        self._known.pop(worker, None)
        self._to_worker(worker, encode(Rejected(text)))

    def _objection(self, hello: Hello) -> str | None:
        if hello.protocol != PROTOCOL:
            return f"this shard speaks protocol {PROTOCOL}, not {hello.protocol}"
        if hello.cluster_id != self._cluster_id:
            return f"this shard is of cluster {self._cluster_id}, not {hello.cluster_id}"
        if hello.service not in self._services:
            return f"no saga of this shard needs a service {hello.service!r}"
        return None

    def _probe(self) -> None:
        """Ask every worker's connection whether it is still there: an empty batch of commands."""
        self._probes -= 1
        self._probed_at = monotonic_ns()
        nothing = encode(Commands(Witness(self._cluster_id, 0, 0, 0, b"", 0), []))
        for peer in list(self._known):
            self._to_worker(peer, nothing)

    # -- out ------------------------------------------------------------------------------------

    def send(self, receipt: Receipt, witness: Witness, effects: Effects) -> None:
        """Send what the durable entries caused. The receipt is the proof that they are durable."""
        check(receipt.seq == witness.seq, "a receipt of another commit", receipt=receipt)
        for peer, commands in effects.commands.items():
            for frame in command_frames(witness, commands):
                self._to_worker(peer, frame)
        for peer, command in effects.alone.items():
            self._to_worker(peer, encode(Commands(witness, [command], alone=True)))
        for peer, proceed in effects.proceeds:
            self._to_worker(peer, encode(proceed))
        for each in effects.lists:
            # One that cannot leave is repeated by the engine.
            self._to_worker(each.worker, encode(Forget(witness, each.list_number, each.ranges)))
        for forwarded in effects.books:
            self._ask_books(forwarded, effects)
        for origin, pages in self._pages.items():
            effects.replies.setdefault(origin, []).extend(pages)
        self._pages.clear()
        for origin, replies in effects.replies.items():
            self._to_router(origin, replies)
        for _ in self._outbox.flush() if self._outbox.frames else ():
            self.dropped.replies_unsent += 1

    def _to_worker(self, peer: Peer, frame: bytes) -> bool:
        try:
            if send_to(self._workers, peer, frame):
                return True
            # Credit bounds what is on its way, so its reader hangs: it will be judged by its
            # heartbeat, and its commands are given out again when it ends or their time does.
            self.dropped.commands_unsent += 1
        except PeerGone:
            if peer in self._known:
                self._known.pop(peer, None)
                self._went.append(peer)
        return False

    def _to_router(self, origin: Peer, replies: list[Reply]) -> None:
        try:
            for frame in frames(replies):
                self._outbox.send(origin, frame)
        except PeerGone:
            self.dropped.replies_unsent += len(replies)

    def _ask_books(self, asked: BooksForwarded, effects: Effects) -> None:
        if len(self._books) >= OPEN_BOOKS_MAX:
            self._books.pop(next(iter(self._books)))  # who asked it asks again
        self._token += 1
        self._books[self._token] = (asked.origin, asked.request)
        if not self._to_worker(asked.worker, encode(BooksAsked(self._token, asked.body))):
            del self._books[self._token]
            error = NotTaken("the worker went away, or hangs", retry_after_ms=250)
            effects.reply(asked.origin, Reply(asked.request, error.code, pack_error(error)))

    def close(self) -> None:
        """Close the sockets, after a moment for the replies that are on their way."""
        self._departures.close()
        close_politely(self._routers)
        self._workers.close(linger=0)


def _is_same(known: Hello | None, said: Hello) -> bool:
    """Whether a worker says again what it is; its database has more since."""
    return known is not None and structs.replace(known, witnesses=said.witnesses) == said
