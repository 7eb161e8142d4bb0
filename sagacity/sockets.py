"""Sockets: the one place that makes ZeroMQ sockets, sets their options, sends and receives.

It knows addresses and bytes; it must not know what a frame holds, nor who talks to whom. Nothing
here blocks: a loop polls, then drains, then sends. What each option is for (DESIGN 7):

- a DEALER queues for nobody (IMMEDIATE): a send while its peer is away says so;
- a ROUTER never drops in silence (MANDATORY): a peer that is gone or full is told apart;
- closing loses what is unsent (LINGER 0) and never blocks, unless `close_politely` is asked for;
- a frame over FRAME_BYTES_MAX closes the connection that sent it (MAXMSGSIZE).

Addresses are ipc:// in a directory of mode 0700, or tcp://127.0.0.1: ZeroMQ authenticates nobody.
"""

import errno
import os
import re
import stat
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import zmq

from sagacity.errors import Malformed
from sagacity.wire import FRAME_BYTES_MAX

Socket: TypeAlias = "zmq.Socket[bytes]"
Poller: TypeAlias = zmq.Poller

LIBZMQ_VERSION: Final = zmq.zmq_version()
IPC_PATH_BYTES_MAX: Final = 107  # sun_path, less its closing zero

FRAMES_QUEUED_MAX: Final = 256  # frames waiting in ZeroMQ, per peer and direction
BACKLOG: Final = 1024  # connections not yet accepted: a herd comes back after a restart
RECONNECT_MS: Final = 10
RECONNECT_MAX_MS: Final = 200
HANDSHAKE_MS: Final = 5000  # a connection that says nothing of sense is closed after this

# ZeroMQ's own heartbeat finds only half-open TCP connections: an ended process closes its sockets
# at once. The timeout lies above what the supervisor allows a stopped process (15 s): whether a
# process hangs is the supervisor's judgement, and losing the connection would come before it.
HEARTBEAT_MS: Final = 5000
HEARTBEAT_TIMEOUT_MS: Final = 30_000

OUTBOX_PEER_BYTES_MAX: Final = 4 << 20
OUTBOX_BYTES_MAX: Final = 64 << 20  # over all peers
OUTBOX_RETRY_MS: Final = 5  # a ROUTER is always writable to a poller: try a full peer again so

CONNECTED: Final = "connected"
DISCONNECTED: Final = "disconnected"

_TCP_BIND = re.compile(r"tcp://127\.0\.0\.1:(\*|[0-9]{1,5})")
_TCP_CONNECT = re.compile(r"tcp://(?:localhost|127(?:\.[0-9]{1,3}){3}):([0-9]{1,5})")
_TRIES_AGAIN: Final = "tries again"
_EVENTS = {
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): CONNECTED,
    int(zmq.EVENT_DISCONNECTED): DISCONNECTED,
    int(zmq.EVENT_CONNECT_RETRIED): _TRIES_AGAIN,
}
_TRIES_AGAIN_WITHIN_MS: Final = 100  # of a loss, it is told; measured, less than one


class PeerGone(Exception):
    """A ROUTER's peer is not connected any more; nothing was sent."""


class Context(zmq.Context["zmq.Socket[bytes]"]):
    """What makes a process's sockets, and what waits for them."""

    def poller(self) -> Poller:
        """Make what waits for sockets and descriptors."""
        return zmq.Poller()


def context() -> Context:
    """Make the context of a process: one thread that does the input and output."""
    return Context(io_threads=1)


def dealer(ctx: Context, address: str) -> Socket:
    """Connect a DEALER; it connects again by itself for as long as it is open.

    Raises:
        Malformed: the address is none, or one where nothing of ours can listen.
    """
    _check_connect(address)
    socket = _socket(ctx, zmq.DEALER)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        socket.close()
        raise Malformed(f"{address!r} is no address: {error}") from None
    return socket


def router(ctx: Context, address: str, *, frames_queued_max: int = FRAMES_QUEUED_MAX) -> Socket:
    """Bind a ROUTER. An ipc address is taken from whoever has it: hold the directory's lock first.

    Args:
        ctx: of the process.
        address: to listen on.
        frames_queued_max: waiting in ZeroMQ, per peer and direction.

    Raises:
        Malformed: the address is one where strangers could connect, too long, or taken.
    """
    return _bind(ctx, zmq.ROUTER, address, frames_queued_max)


def pull(ctx: Context, address: str) -> Socket:
    """Bind a PULL.

    Raises:
        Malformed: as `router`.
    """
    return _bind(ctx, zmq.PULL, address, FRAMES_QUEUED_MAX)


def push(ctx: Context, address: str, *, frames_queued_max: int) -> Socket:
    """Connect a PUSH. It queues for who is not there yet: what is sent first is not lost.

    Args:
        ctx: of the process.
        address: of a PULL of ours.
        frames_queued_max: waiting in ZeroMQ; one more is not sent.
    """
    socket = _socket(ctx, zmq.PUSH, frames_queued_max)
    socket.connect(address)
    return socket


def close_politely(socket: Socket, *, pause_ms: int = 100, linger_ms: int = 250) -> None:
    """Close a socket, but let what is on its way arrive.

    A DEALER that queues for nobody (IMMEDIATE) also drops what it has received and not yet read
    when its connection ends: measured, most of what was sent in the last millisecond. So a ROUTER
    stays open for `pause_ms` first. What is still lost is asked for again.

    Args:
        socket: to close.
        pause_ms: for the peers of a ROUTER to read.
        linger_ms: for the rest to leave; the context waits for that when it is terminated.
    """
    if socket.type == zmq.ROUTER:
        time.sleep(pause_ms / 1000)
    socket.close(linger=linger_ms)


def _bind(ctx: Context, kind: int, address: str, frames_queued_max: int) -> Socket:
    _check_bind(address)
    socket = _socket(ctx, kind, frames_queued_max)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close()
        raise Malformed(f"cannot listen on {address}: {error}") from None
    return socket


def _socket(ctx: Context, kind: int, frames_queued_max: int = FRAMES_QUEUED_MAX) -> Socket:
    socket = ctx.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, 0)
    socket.setsockopt(zmq.SNDHWM, frames_queued_max)
    socket.setsockopt(zmq.RCVHWM, frames_queued_max)
    socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    if kind == zmq.DEALER:
        socket.setsockopt(zmq.IMMEDIATE, 1)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return socket


def _check_ipc_length(address: str) -> None:
    path = os.fsencode(address.removeprefix("ipc://"))
    if address.startswith("ipc://") and not 1 <= len(path) <= IPC_PATH_BYTES_MAX:
        raise Malformed(f"a socket's path has 1 to {IPC_PATH_BYTES_MAX} bytes: {address!r}")


def _check_connect(address: str) -> None:
    """Refuse at once what could only be waited for: names, other machines, odd transports.

    What a client sends would go there in clear, to whoever answers.
    """
    if address.startswith("ipc:///"):
        _check_ipc_length(address)
        return
    tcp = _TCP_CONNECT.fullmatch(address)
    if tcp is None or not 1 <= int(tcp[1]) <= 65_535:
        raise Malformed(
            f"{address!r} is no address of ours: they are ipc:///… and tcp://127.0.0.1:PORT alone"
        )


def _check_bind(address: str) -> None:
    if address.startswith("ipc:///"):
        _check_ipc_length(address)
        directory = Path(address.removeprefix("ipc://")).parent
        try:
            found = directory.stat()
        except OSError as error:
            raise Malformed(f"cannot listen on {address}: {error}") from None
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
            raise Malformed(f"cannot listen on {address}: {directory} must be ours, of mode 0700")
        return
    tcp = _TCP_BIND.fullmatch(address)
    if tcp is None or (tcp[1] != "*" and int(tcp[1]) > 65_535):
        raise Malformed(f"we listen on ipc:///… or tcp://127.0.0.1:PORT alone, not on {address!r}")


def receive_all(socket: Socket, frames_max: int) -> tuple[list[bytes], bool]:
    """Take the frames that wait in a DEALER or a PULL.

    A message of more parts than one is given as one empty frame: no reader takes that, so it is
    dropped and counted with all other garbage.

    Args:
        socket: to read.
        frames_max: most frames to take.

    Returns:
        The frames, and whether the socket was found empty.
    """
    frames: list[bytes] = []
    receive = socket.recv
    try:
        while len(frames) < frames_max:
            frame = receive(zmq.DONTWAIT)
            frames.append(b"" if _more_dropped(socket) else frame)
    except zmq.Again:
        return frames, True
    return frames, False


def receive_all_from(
    socket: Socket, frames_max: int, *, bytes_max: int = sys.maxsize
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Take the frames that wait in a ROUTER, each with its sender's identity.

    A message of no part or of more parts than one is given as one empty frame, as by `receive_all`.
    ZeroMQ takes from its peers in turn: one that sends a flood gets no more than its share.

    Args:
        socket: to read.
        frames_max: most frames to take.
        bytes_max: none is taken once they have so many: it bounds a turn's work, too.

    Returns:
        Pairs of identity and frame, and whether the socket was found empty.
    """
    frames: list[tuple[bytes, bytes]] = []
    receive = socket.recv
    size = 0
    try:
        while len(frames) < frames_max and size < bytes_max:
            identity = receive(zmq.DONTWAIT)
            frame = receive(zmq.DONTWAIT) if socket.getsockopt(zmq.RCVMORE) else b""
            size += len(frame)
            frames.append((identity, b"" if _more_dropped(socket) else frame))
    except zmq.Again:
        return frames, True
    return frames, False


def _more_dropped(socket: Socket) -> bool:
    # Part by part: a message of a million parts is never in memory as a list.
    if not socket.getsockopt(zmq.RCVMORE):
        return False
    while socket.getsockopt(zmq.RCVMORE):
        socket.recv(zmq.DONTWAIT)
    return True


def send(socket: Socket, frame: bytes) -> bool:
    """Send by a DEALER or a PUSH; False if its peer is away or its queue is full."""
    try:
        socket.send(frame, zmq.DONTWAIT)
    except zmq.Again:
        return False
    return True


def send_to(socket: Socket, identity: bytes, frame: bytes) -> bool:
    """Send to one peer of a ROUTER; False if that peer's queue is full.

    Raises:
        PeerGone: it is not connected.
    """
    try:
        socket.send_multipart((identity, frame), zmq.DONTWAIT)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno == errno.EHOSTUNREACH:
            raise PeerGone from None
        raise
    return True


class Outbox:
    """Sends to the peers of a ROUTER, and keeps for each, within bounds, what it cannot take yet.

    Over a bound the oldest frames are dropped and counted: those of the peer that is over its own,
    those of the peer that holds most where all together are over theirs, so that one that never
    reads costs the others nothing. Who waits for what was dropped asks again.
    While `frames` is not 0, call `flush` every OUTBOX_RETRY_MS: no poller says when a peer is
    ready again.

    Args:
        socket: a ROUTER.
        peer_bytes_max: kept for one peer.
        bytes_max: kept for all of them.
    """

    def __init__(
        self,
        socket: Socket,
        *,
        peer_bytes_max: int = OUTBOX_PEER_BYTES_MAX,
        bytes_max: int = OUTBOX_BYTES_MAX,
    ) -> None:
        self._socket = socket
        self._peer_bytes_max = peer_bytes_max
        self._bytes_max = bytes_max
        self._queues: dict[bytes, deque[bytes]] = {}
        self._peer_bytes: dict[bytes, int] = {}
        self.bytes = 0
        self.frames = 0
        self.dropped = 0  # frames, since the start

    def send(self, identity: bytes, frame: bytes) -> None:
        """Send a frame to a peer, after those that wait for it.

        Raises:
            PeerGone: the peer is not connected; what was kept for it is forgotten.
        """
        if identity not in self._queues:
            if send_to(self._socket, identity, frame):
                return
            self._queues[identity] = deque()
            self._peer_bytes[identity] = 0
        self._queues[identity].append(frame)
        self._count(identity, 1, len(frame))
        self._shorten(identity)

    def flush(self) -> list[bytes]:
        """Try again what waits.

        Returns:
            Identities of peers that are gone; what was kept for them is forgotten.
        """
        gone = []
        for identity in list(self._queues):
            queue = self._queues[identity]
            try:
                while queue and send_to(self._socket, identity, queue[0]):
                    self._count(identity, -1, -len(queue.popleft()))
            except PeerGone:
                gone.append(identity)
            if not queue or identity in gone:
                self.forget(identity)
        return gone

    def forget(self, identity: bytes) -> None:
        """Drop what is kept for a peer."""
        queue = self._queues.pop(identity, None)
        if queue is not None:
            self.bytes -= self._peer_bytes.pop(identity)
            self.frames -= len(queue)

    def _count(self, identity: bytes, frames: int, size: int) -> None:
        self.frames += frames
        self.bytes += size
        self._peer_bytes[identity] += size

    def _shorten(self, identity: bytes) -> None:
        while self._peer_bytes.get(identity, 0) > self._peer_bytes_max:
            self._drop(identity)
        while self.bytes > self._bytes_max:
            self._drop(max(self._peer_bytes, key=self._peer_bytes.__getitem__))

    def _drop(self, identity: bytes) -> None:
        """Drop the oldest frame that is kept for a peer."""
        queue = self._queues[identity]
        self._count(identity, -1, -len(queue.popleft()))
        self.dropped += 1
        if not queue:
            self.forget(identity)


class Monitor:
    """Tells when a DEALER has a connection, and when it has lost it.

    Register `socket` in the poller; when it is readable, read `events`. Read it once before the
    first poll too: a connection that is older than the monitor is told by that first reading.

    After a loss ZeroMQ connects again, but not where what came was not its protocol: then it gives
    the connection up for ever, and says nothing. The monitor has it connect again.
    """

    def __init__(self, watched: Socket) -> None:
        self.socket: Socket = watched.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
        )
        self.socket.setsockopt(zmq.LINGER, 0)
        self.connected = False
        self._watched = watched
        # ZeroMQ attaches the queue, which makes a socket writable, before it tells the event: a
        # connection is seen by this look or told to the monitor, or both, never neither.
        self._was_connected = watched.poll(0, zmq.POLLOUT) != 0

    def events(self) -> list[str]:
        """Give what happened since the last call, in order: CONNECTED or DISCONNECTED.

        The two alternate: a connection that ended before its handshake was none, and is not told.
        """
        told: list[str] = []
        if self._was_connected:
            self._was_connected = False
            self._tell(CONNECTED, told)
        while (event := self._read()) is not None:
            if event == _TRIES_AGAIN:
                continue
            self._tell(event, told)
            if event == DISCONNECTED and not self._tries_again():
                self._connect_again()
        return told

    def close(self) -> None:
        """Stop watching; the watched socket stays open."""
        self._watched.disable_monitor()
        self.socket.close()

    def _read(self) -> str | None:
        """Give the next event; None where nothing more is there."""
        try:
            description = self.socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        _more_dropped(self.socket)  # the address, always the same one
        return _EVENTS[int.from_bytes(description[:2], sys.byteorder)]

    def _tries_again(self) -> bool:
        """Say whether ZeroMQ does, after a loss: it is the next thing that it tells."""
        event = self._read()
        if event is None and self.socket.poll(_TRIES_AGAIN_WITHIN_MS):
            event = self._read()
        return event == _TRIES_AGAIN

    def _connect_again(self) -> None:
        """Connect anew; where ZeroMQ is merely late to try, what it tries is ended first."""
        address = self._watched.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        with suppress(zmq.ZMQError):  # it knows it no more
            self._watched.disconnect(address)
        self._watched.connect(address)

    def _tell(self, event: str, told: list[str]) -> None:
        if (event == CONNECTED) != self.connected:
            self.connected = event == CONNECTED
            told.append(event)


class Departures:
    """Tells that some peer of a ROUTER lost its connection, not which: ask them all then.

    Register `socket` in the poller.
    """

    def __init__(self, watched: Socket) -> None:
        self.socket: Socket = watched.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.setsockopt(zmq.LINGER, 0)
        self._watched = watched

    def any(self) -> bool:
        """Say whether a peer went since the last call."""
        told = False
        try:
            while True:
                self.socket.recv(zmq.DONTWAIT)
                _more_dropped(self.socket)
                told = True
        except zmq.Again:
            return told

    def close(self) -> None:
        """Stop watching; the watched socket stays open."""
        self._watched.disable_monitor()
        self.socket.close()
