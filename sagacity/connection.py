"""A connection to a router: many open requests on one socket, everything asked as one frame.

What is asked again, and when, is decided in `asks`; here are the socket and the clock. `client`
stands on it, as do front-ends with a loop of their own.
"""

import select
from types import TracebackType
from typing import Final, Self

import zmq

from sagacity import sockets, wire
from sagacity.asks import MILLISECOND, SECOND, WAIT_S, Asks
from sagacity.errors import Malformed, SagacityError
from sagacity.machine import Machine, SystemMachine
from sagacity.wire import Headers, Reply

_FRAMES_PER_TURN: Final = 64
_FULL_AGAIN_NS: Final = 5 * MILLISECOND  # the router's queue is full: try to send again after this


class Connection:
    """Many open requests on one socket. For one thread.

    Ask, then `poll` for what is settled. In a loop of one's own: call `poll`, then wait for `fd` to
    be readable, for `wait_s()` at most. Ask for `wait_s` anew before each wait: `fd` tells an
    arrival once, and what arrived while something was sent makes `wait_s` 0 instead.

    Args:
        url: the router's address.
        timeout_s: after this a request is given up.
        starts_max: starts that are asked at once and not settled; None: all of them.
        again_when_refused: ask again what was not taken (code 11), as a client wants; a load
            generator wants to see it.
        machine: None for this one.

    Raises:
        Malformed: the url is none.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = WAIT_S,
        starts_max: int | None = None,
        again_when_refused: bool = True,
        machine: Machine | None = None,
    ) -> None:
        self.url = url
        self._wait_ns = int(timeout_s * SECOND)
        self._asks = Asks(url, starts_max=starts_max, again_when_refused=again_when_refused)
        machine = machine or SystemMachine()
        self._now_ns = machine.monotonic_ns
        self._ctx = machine.context()
        try:
            self._socket = sockets.dealer(self._ctx, url)
        except SagacityError:
            self._ctx.term()
            raise
        self._monitor = sockets.Monitor(self._socket)
        self._poller = self._ctx.poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor.socket, zmq.POLLIN)
        self._epoll: select.epoll | None = None  # made for who asks for `fd`
        self._full = False
        self.malformed = 0  # frames that were no replies, since the start
        self._on_events()

    def __repr__(self) -> str:
        state = "connected" if self.connected else "not connected"
        return f"<Connection {self.url} {state}, {len(self)} open>"

    def __len__(self) -> int:
        """Give how many requests are open."""
        return len(self._asks)

    @property
    def connected(self) -> bool:
        """Whether the router was there at the last `poll`."""
        return self._monitor.connected

    @property
    def fd(self) -> int:
        """A descriptor that becomes readable when `poll` has something to do."""
        if self._epoll is None:
            self._epoll = select.epoll()
            for watched in (self._socket, self._monitor.socket):
                self._epoll.register(watched.fileno(), select.EPOLLIN)
        return self._epoll.fileno()

    def fileno(self) -> int:
        """Give `fd`, so that pollers and selectors take the connection itself."""
        return self.fd

    def ask(
        self,
        kind: int,
        saga_id: str,
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
        headers: Headers | None = None,
    ) -> int:
        """Ask; the request leaves with the next `poll`.

        Args:
            kind: one of wire.KINDS.
            saga_id: of the saga, or a cluster kind's target.
            body: packed.
            timeout_s: the connection's, if left out.
            headers: for the envelope.

        Returns:
            A token, by which `poll` names it.

        Raises:
            Malformed: it cannot travel.
        """
        wait_ns = self._wait_ns if timeout_s is None else int(timeout_s * SECOND)
        now = self._now_ns()
        if headers is None:
            return self._asks.ask(kind, saga_id, body, now=now, wait_ns=wait_ns)
        return self._asks.ask(kind, saga_id, body, now=now, wait_ns=wait_ns, headers=headers)

    def forget(self, token: int) -> None:
        """Give up a request; nothing is reported of it."""
        self._asks.forget(token)

    def poll(self, timeout_s: float = 0.0) -> list[tuple[int, Reply]]:
        """Send what was asked, take what came, ask again what is due.

        Args:
            timeout_s: wait so long for something to be settled; 0 does not wait.

        Returns:
            Tokens with their replies, each token once. `Reply.code` is None for an answer.
        """
        now = self._now_ns()
        end = now + int(timeout_s * SECOND)
        while True:
            self._asks.due(now)
            settled = self._asks.settled()
            self._send()
            wait_ns = 0 if settled else max(0, min(end, self._next_ns(end)) - now)
            for ready, _ in self._poller.poll(-(-wait_ns // MILLISECOND)):
                if ready is self._socket:
                    self._receive(settled)
                else:
                    self._on_events()
            now = self._now_ns()
            if settled or now >= end:
                self._send()  # who waits for `fd` does not come back before something happens
                return settled

    def wait_s(self) -> float | None:
        """Give how long one may wait for `fd` before `poll` has to be called; None: for ever."""
        if self._socket.poll(0) or self._monitor.socket.poll(0):
            return 0.0
        due = self._next_ns(0)
        return max(0, due - self._now_ns()) / SECOND if due else None

    def close(self) -> None:
        """Close; open requests are forgotten here and go on at their shards."""
        if self._epoll is not None:
            self._epoll.close()
        self._ctx.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _next_ns(self, never: int) -> int:
        if self._full:
            return self._now_ns() + _FULL_AGAIN_NS
        return self._asks.next_due() or never

    def _send(self) -> None:
        self._full = False
        if not self._asks.waiting or not self._monitor.connected:
            return
        requests = self._asks.take()
        for frame in wire.frames(requests):
            if not self._full and sockets.send(self._socket, frame):
                continue
            # Later frames stay behind too: requests leave in the order in which they were asked.
            self._full = True
            self._asks.untake(wire.read_requests(frame))

    def _receive(self, settled: list[tuple[int, Reply]]) -> None:
        frames, _ = sockets.receive_all(self._socket, _FRAMES_PER_TURN)
        now = self._now_ns()
        on_reply = self._asks.on_reply
        for frame in frames:
            try:
                replies = wire.read_replies(frame)
            except Malformed:
                self.malformed += 1
                continue
            for reply in replies:
                found = on_reply(reply, now)
                if found is not None:
                    settled.append(found)

    def _on_events(self) -> None:
        for event in self._monitor.events():
            if event == sockets.CONNECTED:
                self._asks.on_connected(self._now_ns())
