"""Network: a twin of ZeroMQ's sockets, as far as `sagacity.sockets` uses them, between processes
of one simulation.

Connections are made, end and are made again; frames take their time, and while faults are on are
lost, doubled, overtaken, held by a partition. A ROUTER knows no peer that is gone; a DEALER queues
for nobody; both refuse what is over the mark. Knows bytes and addresses, not what a frame holds,
but for one thing: HELLO and its refusal begin a connection, so they come neither twice nor late.
"""

import errno
import sys
from collections import deque
from typing import Any

import zmq
from msgspec import Struct

from sagacity.simulation.world import MS, Process, World

HIGH_WATER = 256  # frames on their way or waiting, per connection and direction
_HELLO, _REJECTED = 1, 18  # wire tags: neither comes twice or late on a connection of a worker
_UP = int(zmq.EVENT_HANDSHAKE_SUCCEEDED).to_bytes(2, sys.byteorder) + bytes(4)
_AGAIN = zmq.Again()  # one for all: to make one takes 7 us
_POLLIN, _ROUTER = int(zmq.POLLIN), int(zmq.ROUTER)  # plain: to look into an enum takes as long
_DOWN = int(zmq.EVENT_DISCONNECTED).to_bytes(2, sys.byteorder) + bytes(4)
_AGAIN_SOON = int(zmq.EVENT_CONNECT_RETRIED).to_bytes(2, sys.byteorder) + bytes(4)


class Weather(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to the frames of one kind of connection.

    Args:
        loss: share of frames that are lost.
        duplication: that come twice.
        reordering: that may be overtaken.
        latency_us: longest time on the way, without reordering.
        delay_ms: longest time on the way of what is overtaken, or comes again.
    """

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    latency_us: int = 300
    delay_ms: int = 50


class Wire:
    """A connection between a DEALER and a ROUTER. `up` is towards the ROUTER."""

    __slots__ = ("alive", "dealer", "down_at", "down_on_way", "identity", "kind", "router", "up_at")
    up_on_way: int

    def __init__(self, dealer: "TwinSocket", router: "TwinSocket", identity: bytes) -> None:
        self.dealer = dealer
        self.router = router
        self.identity = identity
        self.kind = router.kind_of_link
        self.alive = True
        self.up_at = self.down_at = 0  # when the last frame arrives
        self.down_on_way = 0


class Network:
    """All connections.

    Args:
        world: whose time and chance it uses.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.weather: dict[str, Weather] = {}
        self.listeners: dict[str, TwinSocket] = {}
        self.kinds: dict[str, str] = {}  # of link, by address
        # Names of two processes -> until when, and what waits for that.
        self.partitions: dict[frozenset[str], int] = {}
        self._waiting: list[tuple[Wire, bytes, bool]] = []
        self.lost = self.doubled = self.overtaken = self.resets = self.held = 0
        self._identities = 0
        self._fair = Weather()

    def context(self, process: Process) -> "TwinContext":
        """Give what makes a process's sockets."""
        return TwinContext(self, process)

    def calm(self) -> None:
        """Let every frame arrive from now on."""
        self.weather.clear()
        self.partitions.clear()
        self._heal()

    def part(self, one: str, other: str, until: int) -> None:
        """Hold what two processes send each other."""
        self.partitions[frozenset((one, other))] = until
        self.world.at(until, self._heal)

    def reset(self, one: str, other: str) -> bool:
        """End the connections between two processes; say whether there was one."""
        found = False
        for listener in list(self.listeners.values()):
            for wire in list(listener.wires.values()):
                names = {wire.dealer.owner.name, listener.owner.name}
                if names == {one, other}:
                    self.end(wire)
                    self.resets += 1
                    found = True
        return found

    # -- connections ----------------------------------------------------------------------------

    def connect(self, dealer: "TwinSocket") -> None:
        """Try to connect, again and again."""
        if dealer.closed or dealer.wire is not None:
            return
        listener = self.listeners.get(dealer.address)
        if listener is None or self._held(dealer.owner, listener.owner):
            self.world.after(self.world.random.randrange(10 * MS, 200 * MS), self.connect, dealer)
            return
        self._identities += 1
        identity = b"\0" + self._identities.to_bytes(4, "big")
        wire = Wire(dealer, listener, identity)
        dealer.wire = listener.wires[identity] = wire
        dealer.tell(_UP)

    def end(self, wire: Wire) -> None:
        """End a connection: what is on its way is lost; the DEALER connects again."""
        if not wire.alive:
            return
        wire.alive = False
        router, dealer = wire.router, wire.dealer
        router.wires.pop(wire.identity, None)
        router.tell(_DOWN)
        if dealer.wire is wire:
            dealer.wire = None
            if not dealer.closed:
                dealer.inbox.clear()  # IMMEDIATE: what was received and not read goes, too
                dealer.tell(_DOWN)
                dealer.tell(_AGAIN_SOON)
                pause = self.world.random.randrange(1 * MS, 20 * MS)
                self.world.after(pause, self.connect, dealer)

    def gone(self, socket: "TwinSocket") -> None:
        """A socket was closed, or its process died: the others learn so in a moment."""
        if self.listeners.get(socket.address) is socket:
            del self.listeners[socket.address]
        wires = list(socket.wires.values()) if socket.wire is None else [socket.wire]
        for wire in wires:
            self.world.after(self.world.random.randrange(20_000, 2 * MS), self.end, wire)

    def _held(self, one: Process, other: Process) -> bool:
        if not self.partitions:
            return False
        return self.partitions.get(frozenset((one.name, other.name)), 0) > self.world.now

    def _heal(self) -> None:
        """Let go of what no partition holds any more."""
        waiting, self._waiting = self._waiting, []
        for wire, frame, up in waiting:
            if not up:
                wire.down_on_way -= 1
            if wire.alive:
                self.send(wire, frame, up=up)

    # -- frames ---------------------------------------------------------------------------------

    def send(self, wire: Wire, frame: bytes, *, up: bool) -> None:
        """Put a frame on its way."""
        world, random = self.world, self.world.random
        weather = self.weather.get(wire.kind, self._fair)
        arrives = world.now + 20_000 + int(random.random() * weather.latency_us * 1_000)
        if self.partitions and self._held(wire.dealer.owner, wire.router.owner):
            self.held += 1
            self._waiting.append((wire, frame, up))
            if not up:
                wire.down_on_way += 1
            return
        if weather.loss or weather.duplication or weather.reordering:
            once = wire.kind == "worker" and frame[1] in {_HELLO, _REJECTED}
            if random.random() < weather.loss and not (once and frame[1] == _REJECTED):
                self.lost += 1
                return
            if random.random() < weather.duplication and not once:
                self.doubled += 1
                self._arrive_late(wire, frame, up, weather)
            if random.random() < weather.reordering and not once:
                self.overtaken += 1
                self._arrive_late(wire, frame, up, weather)
                return
        if up:
            wire.up_at = arrives = arrives if arrives > wire.up_at else wire.up_at + 1
        else:
            wire.down_at = arrives = arrives if arrives > wire.down_at else wire.down_at + 1
            wire.down_on_way += 1
        world.at(arrives, self._arrive, wire, frame, up)

    def _arrive_late(self, wire: Wire, frame: bytes, up: bool, weather: Weather) -> None:
        if not up:
            wire.down_on_way += 1
        pause = self.world.random.randrange(weather.delay_ms * MS)
        self.world.after(pause, self._arrive if up else self._arrive_anyhow, wire, frame, up)

    def _arrive_anyhow(self, wire: Wire, frame: bytes, up: bool) -> None:
        """Arrive although the connection may be another by now: a DEALER cannot tell."""
        wire.down_on_way -= 1
        socket = wire.dealer
        if not socket.closed and socket.wire is not None:
            socket.inbox.append(frame)
            socket.wake()

    def _arrive(self, wire: Wire, frame: bytes, up: bool) -> None:
        if not up:
            wire.down_on_way -= 1
        socket = wire.router if up else wire.dealer
        if not wire.alive or socket.closed:
            return
        if up:
            socket.inbox.append((wire.identity, frame))
        else:
            socket.inbox.append(frame)
        socket.wake()


class TwinContext:
    """What makes the sockets of one process, in place of `sagacity.sockets.Context`."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network = network
        self.process = process
        self.sockets: list[TwinSocket] = []
        process.at_death.append(self._die)

    def socket(self, kind: int) -> "TwinSocket":
        """Make a socket."""
        made = TwinSocket(self.network, self.process, kind)
        self.sockets.append(made)
        return made

    def poller(self) -> "TwinPoller":
        """Make what waits for sockets."""
        return TwinPoller(self.network.world)

    def term(self) -> None:
        """Nothing has to be waited for."""

    def destroy(self, linger: int | None = None) -> None:
        """Close every socket."""
        self._die()

    def _die(self) -> None:
        for socket in self.sockets:
            socket.close()


class TwinSocket:
    """A DEALER or a ROUTER; `recv` and the others behave as pyzmq's do with DONTWAIT."""

    __slots__ = (
        "_events",
        "_pending",
        "address",
        "closed",
        "inbox",
        "kind_of_link",
        "mandatory",
        "monitor",
        "network",
        "owner",
        "pollers",
        "type",
        "wire",
        "wires",
    )

    def __init__(self, network: Network, owner: Process, kind: int) -> None:
        self.network = network
        self.owner = owner
        self.type = kind
        self.address = ""
        self.kind_of_link = ""
        self.closed = False
        self.mandatory = False
        self.inbox: deque[Any] = deque()
        self.wire: Wire | None = None
        self.wires: dict[bytes, Wire] = {}
        self.pollers: list[TwinPoller] = []
        self.monitor: TwinMonitor | None = None
        self._pending: bytes | None = None

    def setsockopt(self, option: int, value: object) -> None:
        """Take an option; but for one, what matters is built in."""
        if option == zmq.ROUTER_MANDATORY:
            self.mandatory = bool(value)

    def getsockopt(self, option: int) -> int:
        """Say whether more parts of a message are there; nothing else is asked."""
        assert option == zmq.RCVMORE
        return self._pending is not None

    def bind(self, address: str) -> None:
        """Listen."""
        self.address = address
        self.kind_of_link = self.network.kinds[address]
        self.network.listeners[address] = self

    def connect(self, address: str) -> None:
        """Connect as soon as somebody listens."""
        self.address = address
        pause = self.network.world.random.randrange(50_000, 1 * MS)
        self.network.world.after(pause, self.network.connect, self)

    def recv(self, _flags: int) -> bytes:
        """Take a part of a message."""
        part: bytes
        if self._pending is not None:
            part, self._pending = self._pending, None
            return part
        if not self.inbox:
            raise _AGAIN.with_traceback(None)
        taken = self.inbox.popleft()
        if self.type == _ROUTER:
            part, self._pending = taken
        else:
            part = taken
        return part

    def send(self, frame: bytes, _flags: int) -> None:
        """Send by a DEALER."""
        self.owner.point()
        wire = self.wire
        if self.closed or wire is None or not wire.alive:
            raise _AGAIN.with_traceback(None)
        self.network.world.note(frame)
        self.network.send(wire, frame, up=True)

    def send_multipart(self, parts: tuple[bytes, bytes], _flags: int) -> None:
        """Send by a ROUTER."""
        self.owner.point()
        identity, frame = parts
        wire = self.wires.get(identity)
        if self.closed or wire is None:
            if not self.mandatory:
                return  # dropped in silence
            raise zmq.ZMQError(errno.EHOSTUNREACH)
        if wire.down_on_way + len(wire.dealer.inbox) >= HIGH_WATER:
            raise _AGAIN.with_traceback(None)
        self.network.world.note(frame)
        self.network.send(wire, frame, up=False)

    def poll(self, _timeout: int, flags: int = zmq.POLLIN) -> int:
        """Say whether it is readable, or has somebody to write to."""
        if flags == zmq.POLLOUT:
            return flags if self.wire is not None else 0
        return flags if self.inbox else 0

    def get_monitor_socket(self, _events: int) -> "TwinMonitor":
        """Have connections told."""
        self.monitor = TwinMonitor(self.owner)
        return self.monitor

    def disable_monitor(self) -> None:
        """Have them told no more."""
        self.monitor = None

    def close(self, linger: int | None = None) -> None:
        """Close; what is on its way still arrives."""
        if not self.closed:
            self.closed = True
            self.network.gone(self)

    def tell(self, event: bytes) -> None:
        """Tell a connection's beginning or end."""
        if self.monitor is not None and not self.closed:
            self.monitor.inbox.append(event)
            self.monitor.wake()

    def wake(self) -> None:
        """Wake who waits for it."""
        waits_for = self.owner.waits_for
        if waits_for is not None and waits_for in self.pollers:
            self.owner.notify(waits_for)


class TwinMonitor:
    """What a socket's monitor is read from: each event in two parts."""

    __slots__ = ("_more", "inbox", "owner", "pollers")

    def __init__(self, owner: Process) -> None:
        self.owner = owner
        self.inbox: deque[bytes] = deque()
        self.pollers: list[TwinPoller] = []
        self._more = False

    def setsockopt(self, option: int, value: object) -> None:
        """Take an option."""

    def getsockopt(self, _option: int) -> int:
        """Say whether the address follows."""
        return self._more

    def recv(self, _flags: int) -> bytes:
        """Take an event, or the address that follows it."""
        if self._more:
            self._more = False
            return b""
        if not self.inbox:
            raise _AGAIN.with_traceback(None)
        self._more = True
        return self.inbox.popleft()

    def poll(self, _timeout: int) -> int:
        """Say whether it is readable."""
        return zmq.POLLIN if self.inbox else 0

    def wake(self) -> None:
        """Wake who waits for it."""
        for poller in self.pollers:
            self.owner.notify(poller)

    def close(self) -> None:
        """Close."""
        self.pollers.clear()


class TwinPoller:
    """Waits for the sockets of one process, in place of `zmq.Poller`."""

    __slots__ = ("_sockets", "_world")

    def __init__(self, world: World) -> None:
        self._world = world
        self._sockets: list[Any] = []

    def register(self, socket: Any, _flags: int) -> None:
        """Wait for a socket too; descriptors are never readable here."""
        if not isinstance(socket, int) and socket not in self._sockets:
            self._sockets.append(socket)
            socket.pollers.append(self)

    def unregister(self, socket: Any) -> None:
        """Wait for it no more."""
        if socket in self._sockets:
            self._sockets.remove(socket)

    def poll(self, timeout_ms: int | None = None) -> list[tuple[Any, int]]:
        """Wait until a socket is readable; a turn takes its time even where one is already."""
        world = self._world
        world.current.point()
        sockets = self._sockets
        for socket in sockets:
            if socket.inbox:
                world.pause(20_000 + int(world.random.random() * world.turn_ns))
                break
        else:
            if timeout_ms is None or timeout_ms < 0:
                world.wait(self, None)
            elif timeout_ms:
                world.wait(self, timeout_ms * MS)
            else:
                world.pause(5_000 + int(world.random.random() * 50_000))
        return [(socket, _POLLIN) for socket in sockets if socket.inbox]
