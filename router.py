"""The router: which shard a request is for, and whose each reply is.

    clients --DEALER--> ROUTER [ Router ] DEALER --> each shard, and the supervisor

Reads kind and saga_id, never a body. Holds only what is open, so a restart loses nothing that the
client library does not ask for again. `Router` decides and knows no socket; `Loop` moves frames;
`main` is the composition root.

What it never forwarded it answers 11; what it had forwarded to a shard that went away, 0 (SPEC 4).
It cannot tell a repeat from a new start: one for which it has no room it forwards as a RECALL. The
shard answers that if it knows the id, else refuses it: repeats are not refused for load.
"""

import sys
from collections.abc import Sequence
from typing import Final, TypeAlias

import zmq

from cluster.child import Child, arguments
from cluster.clock import Clock, SystemClock
from cluster.directory import DataDirectory, RunDirectory
from cluster.meters import RouterMeters
from cluster.telemetry import Log, MetricsServer, configure_logging, guarded
from config.load import load
from sagacity import sockets, wire
from sagacity.errors import (
    InternalError,
    Malformed,
    NoOutcome,
    NotSupported,
    NotTaken,
    SagacityError,
)
from sagacity.ids import check_saga_id
from sagacity.slots import SlotMap, slot_of
from sagacity.sockets import DISCONNECTED, Departures, Monitor, Outbox, PeerGone, Poller, Socket
from sagacity.versions import refuse_known_bad
from sagacity.wire import Reply, Request

MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000

RETRY_AFTER_MS: Final = 250
FORWARD_AGAIN_NS: Final = 100 * MILLISECOND  # a repeat of an open request sooner is dropped
OPEN_NS_MAX: Final = 60 * SECOND  # longer than clients wait: what is older was lost on its way
REPLY_BODY_BYTES_MAX: Final = wire.FRAME_BYTES_MAX - 64  # leaves room for the envelope
RENEW_NS: Final = 2 * SECOND  # without a connection; then a peer's socket is made anew
FRAMES_PER_TURN: Final = 256  # of one socket
FRONT_BYTES_PER_TURN: Final = 64 << 10  # and the frame that reaches it: some 400 checkouts
FRONT_FRAMES_QUEUED_MAX: Final = 16  # in ZeroMQ, per client and direction: 16 MiB at most
PROBES: Final = 2  # a client's end is told a moment before its connection is gone
_NOTHING: Final = wire.encode([])
UP_WITHOUT_SHARDS_NS: Final = 1 * SECOND  # then a shard that is missing no longer holds us back

# What is open is bounded in each room apart, by client and by peer: starts and recalls never take
# the room of cancels and reads. All rooms full are 6 times the configured maximum, 0.25 KB a place.
_STARTING: Final = 0
_ASKING: Final = 1  # cancels, reads, whatever starts nothing
_RECALLING: Final = 2
_RECALLS_PER_START: Final = 4  # how much larger that room is

_STARTS: Final = frozenset({wire.START, wire.SUBMIT})
_OUTCOMES: Final = {None: "answered", NotTaken.code: "not_taken", NoOutcome.code: "no_outcome"}


class _Client:
    """A connection of which something is open."""

    __slots__ = ("beside", "identity", "numbers")

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.numbers: dict[int, int] = {}  # its request -> our number
        self.beside = [0, 0, 0]  # how many of them are in each room but the first


# Client, its request's number, peer, kind, when it was first and last forwarded, room. A tuple:
# 0.05 us.
_Open: TypeAlias = tuple[_Client, int, int, int, int, int, int]


class Router:
    """Routes requests and replies.

    A *peer* is whom it forwards to: a shard by its index, or the supervisor by the next number.

    Args:
        slots: which shard owns what.
        meters: to count in.
        client_inflight_max: starts of one client that are not answered; as many cancels and reads.
        shard_inflight_max: the same of one peer.
    """

    def __init__(
        self,
        slots: SlotMap,
        meters: RouterMeters,
        *,
        client_inflight_max: int,
        shard_inflight_max: int,
    ) -> None:
        self.draining = False
        self.shards = slots.shards
        self.supervisor = slots.shards
        self.inflight = [0] * (slots.shards + 1)  # requests that are open, by peer
        self._owners = slots.owners
        self._meters = meters
        self._client_max = client_inflight_max
        self._peer_max = shard_inflight_max
        self._beside = [[0, 0, 0] for _ in self.inflight]  # by peer, as a client's
        self._number = 0
        self._open: dict[int, _Open] = {}  # by our number, oldest first
        self._clients: dict[bytes, _Client] = {}
        self._forwards: dict[int, list[Request]] = {}
        self._replies: dict[bytes, list[Reply]] = {}
        meters.router_shard_inflight.source = lambda: {
            (str(shard),): self.inflight[shard] for shard in range(self.shards)
        }

    def __len__(self) -> int:
        """Give how many requests are open."""
        return len(self._open)

    @property
    def clients(self) -> int:
        """How many clients have something open."""
        return len(self._clients)

    def waiting(self) -> list[bytes]:
        """Give the identities of those who have something open."""
        return list(self._clients)

    def requests(self, identity: bytes, items: Sequence[Request], now: int) -> None:
        """Route what a client asks.

        Args:
            identity: of its connection.
            items: a frame's.
            now: monotonic, in nanoseconds.
        """
        client = self._clients.get(identity)
        if client is None:
            client = self._clients[identity] = _Client(identity)
        numbers, opened, inflight = client.numbers, self._open, self.inflight
        for item in items:
            try:
                peer = self._peer_of(item)
                known = numbers.get(item.request)
                if known is not None:
                    self._again(known, peer, item, now)
                    continue
                room = _STARTING if item.kind in _STARTS else _ASKING
                if (
                    len(numbers) >= self._client_max
                    or inflight[peer] >= self._peer_max
                    or self.draining
                ):
                    room = self._find_room(client, peer, room)
            except SagacityError as error:
                # A repeat's mistake is no answer to the request whose number it has.
                if item.request in numbers:
                    self._meters.faults.add(("request",))
                else:
                    self._answer(identity, item.request, item.kind, error)
                continue
            self._number = number = self._number + 1
            opened[number] = (client, item.request, peer, item.kind, now, now, room)
            numbers[item.request] = number
            inflight[peer] += 1
            if room:
                client.beside[room] += 1
                self._beside[peer][room] += 1
            self._forward(peer, number, _recall(item) if room == _RECALLING else item)
        if not numbers:
            del self._clients[identity]

    def replies(self, peer: int, items: Sequence[Reply]) -> None:
        """Route what a peer answers; what nobody waits for is dropped and counted."""
        opened, replies = self._open, self._replies
        told: dict[tuple[int, int | None], int] = {}
        for item in items:
            entry = opened.get(item.request)
            if entry is None or entry[2] != peer:
                self._meters.duplicates.add(("reply",))
                continue
            client, request, _, kind, *_ = entry
            self._close(item.request, entry)
            code, body = item.code, item.body
            if len(body) > REPLY_BODY_BYTES_MAX:
                self._answer(client.identity, request, kind, InternalError("answer too long"))
                continue
            told[kind, code] = told.get((kind, code), 0) + 1
            found = replies.get(client.identity)
            if found is None:
                replies[client.identity] = [Reply(request, code, body)]
            else:
                found.append(Reply(request, code, body))
        for (kind, code), count in told.items():
            self._count(kind, code, count)

    def not_forwarded(self, peer: int, items: Sequence[Request], *, connected: bool) -> None:
        """Answer 11 for what could not be sent to a peer, unless an earlier try of it was."""
        state = "overloaded" if connected else "down"
        text = f"{self._name(peer)} is {state}"
        error = NotTaken(text, retry_after_ms=RETRY_AFTER_MS, cause=state)
        for item in items:
            entry = self._open.get(item.request)
            if entry is not None and entry[4] == entry[5]:
                self._end(item.request, entry, error)

    def peer_gone(self, peer: int) -> int:
        """Answer 0 for all that was forwarded to a peer whose connection is lost; count it."""
        error = NoOutcome(f"{self._name(peer)} went away; ask again with the same id")
        lost = [(number, entry) for number, entry in self._open.items() if entry[2] == peer]
        for number, entry in lost:
            self._end(number, entry, error)
        return len(lost)

    def client_gone(self, identity: bytes) -> None:
        """Forget what a client has open; replies to it will be dropped."""
        self._replies.pop(identity, None)
        client = self._clients.get(identity)
        if client is not None:
            for number in list(client.numbers.values()):
                self._close(number, self._open[number])

    def expire(self, now: int) -> None:
        """Answer 0 for what is open for longer than any client waits. Call it each second."""
        error = NoOutcome("no answer in time; ask again with the same id")
        for number, entry in list(self._open.items()):  # the oldest first
            if now - entry[4] < OPEN_NS_MAX:
                break
            self._end(number, entry, error)

    def give_up(self) -> None:
        """Answer 0 for all that is open."""
        error = NoOutcome("the router ends; ask again with the same id")
        for number, entry in list(self._open.items()):
            self._end(number, entry, error)

    def take_forwards(self) -> dict[int, list[Request]]:
        """Give, once, what is to be sent to each peer."""
        taken, self._forwards = self._forwards, {}
        return taken

    def take_replies(self) -> dict[bytes, list[Reply]]:
        """Give, once, what is to be sent to each client."""
        taken, self._replies = self._replies, {}
        return taken

    def _peer_of(self, item: Request) -> int:
        kind, saga_id = item.kind, item.saga_id
        if kind not in wire.KINDS:
            raise NotSupported(f"kind {kind} is not supported")
        if item.headers and not wire.headers_fit(item.headers):
            raise Malformed(f"headers have at most {wire.HEADERS_BYTES_MAX} bytes")
        if len(item.body) > wire.BODY_BYTES_MAX:
            raise Malformed(f"a body has at most {wire.BODY_BYTES_MAX} bytes")
        if kind < wire.STATUS:
            check_saga_id(saga_id)
            return self._owners[slot_of(saga_id)]
        if kind == wire.STATUS:
            return self.supervisor
        if not (saga_id.isascii() and saga_id.isdecimal() and len(saga_id) <= 4):
            raise Malformed(f"{wire.KINDS[kind]}: asked of a shard, by its index")
        if int(saga_id) >= self.shards:
            raise Malformed(f"there are {self.shards} shards, no shard {saga_id}")
        return int(saga_id)

    def _find_room(self, client: _Client, peer: int, room: int) -> int:
        """Give a request its room where much is open, or we drain; a start perhaps the recalls'."""
        times = 1
        if room == _STARTING:
            theirs = len(client.numbers) - sum(client.beside)
            all_ = self.inflight[peer] - sum(self._beside[peer])
            if theirs < self._client_max and all_ < self._peer_max and not self.draining:
                return _STARTING
            room, times = _RECALLING, _RECALLS_PER_START
        if client.beside[room] >= times * self._client_max:
            text = f"more than {times * self._client_max} requests of one client in flight"
            raise NotTaken(text, retry_after_ms=RETRY_AFTER_MS, cause="client_in_flight")
        if self._beside[peer][room] >= times * self._peer_max:
            text = f"{self._name(peer)} is overloaded"
            raise NotTaken(text, retry_after_ms=RETRY_AFTER_MS, cause="overloaded")
        return room

    def _again(self, number: int, peer: int, item: Request, now: int) -> None:
        """Forward a repeat under the number that it has: its answer may have been lost."""
        client, request, known_peer, kind, since, last, room = self._open[number]
        if (peer, item.kind) != (known_peer, kind):
            raise Malformed("this number is open for another request")
        if now - last >= FORWARD_AGAIN_NS:
            self._open[number] = (client, request, peer, kind, since, now, room)
            self._forward(peer, number, _recall(item) if room == _RECALLING else item)

    def _forward(self, peer: int, number: int, item: Request) -> None:
        forwarded = Request(item.kind, item.saga_id, number, item.headers, item.body)
        found = self._forwards.get(peer)
        if found is None:
            self._forwards[peer] = [forwarded]
        else:
            found.append(forwarded)

    def _answer(self, identity: bytes, request: int, kind: int, error: SagacityError) -> None:
        reply = Reply(request, error.code, wire.pack_error(error))
        self._replies.setdefault(identity, []).append(reply)
        self._meters.refused.add((error.cause,))
        if kind in wire.KINDS:
            self._count(kind, error.code, 1)

    def _count(self, kind: int, code: int | None, count: int) -> None:
        outcome = _OUTCOMES.get(code, "error")
        self._meters.router_requests.add((wire.KINDS[kind], outcome), count)

    def _end(self, number: int, entry: _Open, error: SagacityError) -> None:
        self._close(number, entry)
        self._answer(entry[0].identity, entry[1], entry[3], error)

    def _close(self, number: int, entry: _Open) -> None:
        client, request, peer, _, _, _, room = entry
        del self._open[number]
        del client.numbers[request]
        self.inflight[peer] -= 1
        if room:
            client.beside[room] -= 1
            self._beside[peer][room] -= 1
        if not client.numbers:
            self._clients.pop(client.identity, None)

    def _name(self, peer: int) -> str:
        return "the supervisor" if peer == self.supervisor else f"shard {peer}"


def _recall(item: Request) -> Request:
    """Make the recall of a start; it starts nothing, so nobody asks for its own headers."""
    headers = wire.RECALLS_SUBMIT if item.kind == wire.SUBMIT else {}
    return Request(wire.RECALL, item.saga_id, item.request, headers, item.body)


class Peer:
    """The connection to one peer."""

    def __init__(self, ctx: sockets.Context, index: int, address: str) -> None:
        self.index = index
        self.missed_since = 0  # when it was first seen without a connection; 0 with one
        self._ctx = ctx
        self._address = address
        self.open()

    def open(self) -> None:
        """Make the socket."""
        self.socket: Socket = sockets.dealer(self._ctx, self._address)
        self.monitor = Monitor(self.socket)
        self.monitor.events()

    def close(self) -> None:
        """Close the socket."""
        self.monitor.close()
        self.socket.close()


class Loop:
    """Moves frames between sockets and a Router: poll, drain, route, send.

    Args:
        router: decides.
        front: ROUTER where clients connect.
        poller: waits for its sockets.
        peers: connections in the order of their indices, the supervisor's last.
        child: life of this process.
        meters: to count in.
        clock: for what is open.
        log: for the rare events.
    """

    def __init__(
        self,
        router: Router,
        front: Socket,
        poller: Poller,
        peers: Sequence[Peer],
        child: Child,
        meters: RouterMeters,
        clock: Clock,
        log: Log,
    ) -> None:
        self._router = router
        self._front = front
        self._departures = Departures(front)
        self._probes = 0
        self._outbox = Outbox(front)
        self._peers = peers
        self._child = child
        self._meters = meters
        self._clock = clock
        self._log = log
        self._up_at = clock.monotonic_ns() + UP_WITHOUT_SHARDS_NS
        self._expire_at = 0
        self._poller = poller
        self._poller.register(child.wakeup_fd, zmq.POLLIN)
        self._poller.register(self._departures.socket, zmq.POLLIN)
        for peer in peers:
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        self._poller.register(peer.socket, zmq.POLLIN)
        self._poller.register(peer.monitor.socket, zmq.POLLIN)

    def run(self, drain_ns: int) -> None:
        """Route until SIGTERM; then until nothing is open, for `drain_ns` at most."""
        while not self._child.stopping:
            self._turn()
        self._router.draining = True
        self._log.info("router_draining", open=len(self._router))
        give_up = self._clock.monotonic_ns() + drain_ns
        while len(self._router) or self._outbox.frames:
            self._turn()
            if self._clock.monotonic_ns() >= give_up:
                break
        self._router.give_up()
        self._send()

    def _turn(self) -> None:
        ready = dict(self._poller.poll(self._timeout_ms()))
        now = self._clock.monotonic_ns()
        if self._child.wakeup_fd in ready:
            self._child.woken()
        if self._departures.socket in ready and self._departures.any():
            self._probes = PROBES
        for peer in self._peers:
            gone = peer.monitor.socket in ready and DISCONNECTED in peer.monitor.events()
            if gone or peer.socket in ready:
                self._receive(peer, to_the_end=gone)
            if gone:
                lost = self._router.peer_gone(peer.index)  # one that has drained loses nothing
                log = self._log.warning if lost else self._log.info
                log("peer_went_away", peer=peer.index, lost=lost)
        if self._front in ready:
            self._take_requests(now)
        self._send()
        self._keep_house(now)
        self._meters.event_loop_lag.observe(self._clock.monotonic_ns() - now)

    def _timeout_ms(self) -> int:
        if self._outbox.frames:
            return sockets.OUTBOX_RETRY_MS
        if self._child.state != "up" or self._router.draining:
            return 20
        beat_ms = (self._child.beat_due_ns() - self._clock.monotonic_ns()) // MILLISECOND + 1
        return min(max(beat_ms, 0), 500)

    def _receive(self, peer: Peer, *, to_the_end: bool) -> None:
        drained = False
        while not drained:
            frames, drained = sockets.receive_all(peer.socket, FRAMES_PER_TURN)
            for frame in frames:
                try:
                    self._router.replies(peer.index, wire.read_replies(frame))
                except Malformed:
                    self._meters.faults.add(("frame",))
            if not to_the_end:
                return

    def _take_requests(self, now: int) -> None:
        frames, _ = sockets.receive_all_from(
            self._front, FRAMES_PER_TURN, bytes_max=FRONT_BYTES_PER_TURN
        )
        for identity, frame in frames:
            try:
                items = wire.read_requests(frame)
            except Malformed:
                self._meters.faults.add(("frame",))
                continue
            if len(items) > wire.FRAME_ITEMS_MAX:
                self._meters.faults.add(("frame",))
                continue
            self._router.requests(identity, items, now)

    def _send(self) -> None:
        for index, requests in self._router.take_forwards().items():
            peer = self._peers[index]
            for frame in wire.frames(requests):
                if not sockets.send(peer.socket, frame):
                    unsent, connected = wire.read_requests(frame), peer.monitor.connected
                    self._router.not_forwarded(index, unsent, connected=connected)
        for identity, replies in self._router.take_replies().items():
            try:
                for frame in wire.frames(replies):
                    self._outbox.send(identity, frame)
            except PeerGone:
                self._router.client_gone(identity)
        if self._outbox.frames:
            for identity in self._outbox.flush():
                self._router.client_gone(identity)

    def _keep_house(self, now: int) -> None:
        if now >= self._expire_at:
            self._expire_at = now + SECOND
            self._router.expire(now)
            self._probe()
            for peer in self._peers:
                self._renew(peer, now)
        if self._child.state != "up":
            shards = self._peers[: self._router.shards]
            if all(peer.monitor.connected for peer in shards) or now >= self._up_at:
                # Not before: what a herd of clients asks a new router at once would be refused.
                self._poller.register(self._front, zmq.POLLIN)
                self._child.report("up", self._facts)
        self._child.beat(now, self._facts)

    def _probe(self) -> None:
        """Find who went away, by an empty batch of replies: what it has open holds no room then."""
        if self._probes:
            self._probes -= 1
            for identity in self._router.waiting():
                try:
                    sockets.send_to(self._front, identity, _NOTHING)
                except PeerGone:
                    self._outbox.forget(identity)
                    self._router.client_gone(identity)

    def _renew(self, peer: Peer, now: int) -> None:
        """Make a socket anew that has had no connection for long.

        After what ZeroMQ takes for a fault of the protocol, such as a frame over the limit, a
        DEALER never connects again by itself.
        """
        if peer.monitor.connected:
            peer.missed_since = 0
        elif not peer.missed_since:
            peer.missed_since = now
        elif now - peer.missed_since >= RENEW_NS:
            self._poller.unregister(peer.socket)
            self._poller.unregister(peer.monitor.socket)
            peer.close()
            peer.open()
            self._watch(peer)
            peer.missed_since = now

    def _facts(self) -> dict[str, int]:
        shards = self._peers[: self._router.shards]
        return {
            "requests": len(self._router),
            "clients": self._router.clients,
            "shards_connected": sum(peer.monitor.connected for peer in shards),
            "outbox_bytes": self._outbox.bytes,
            "replies_dropped": self._outbox.dropped,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until SIGTERM.

    Returns:
        Exit code: 0, or 2 where it cannot do what it was told.
    """
    parser = arguments("python -m router")
    parser.add_argument("--port", type=int, metavar="P", help="TCP on 127.0.0.1 instead of ipc")
    options = parser.parse_args(argv)
    run, clock = RunDirectory(options.run), SystemClock()
    ctx = sockets.context()
    child = Child("router", 0, run, options.parent, clock, ctx=ctx)
    try:
        log = configure_logging("router", 0)
    except SagacityError as error:
        print(error.text, file=sys.stderr)  # noqa: T201 - there is no log
        return error.exit_code
    try:
        refuse_known_bad({"libzmq": sockets.LIBZMQ_VERSION, "msgpack": wire.MSGPACK_VERSION})
        config = load(options.config)
        child.set_heartbeat(config.supervisor.heartbeat_ms)
        slots = DataDirectory(options.data).read().slots
        address = run.router if options.port is None else f"tcp://127.0.0.1:{options.port}"
        front = sockets.router(ctx, address, frames_queued_max=FRONT_FRAMES_QUEUED_MAX)
    except SagacityError as error:
        log.error("router_refused", text=error.text)
        return error.exit_code
    meters = RouterMeters(slots.shards)
    router = Router(
        slots,
        meters,
        client_inflight_max=config.router.client_inflight_max,
        shard_inflight_max=config.router.shard_inflight_max,
    )
    peers = [Peer(ctx, shard, run.shard(shard)) for shard in range(slots.shards)]
    peers.append(Peer(ctx, router.supervisor, run.supervisor))
    child.metrics_port = MetricsServer(meters).start()
    loop = Loop(router, front, ctx.poller(), peers, child, meters, clock, log)
    log.info("router_started", router=address)
    loop.run(config.supervisor.drain_ms * MILLISECOND)
    sockets.close_politely(front)
    ctx.destroy()
    # The child is not closed: a second SIGTERM from here on must not look like a death.
    log.info("router_stopped")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
