"""The client library: ask a cluster to check out, and read what became of it.

    with Client(url) as client:
        client.checkout(user_id="u42", items=[{"sku": "abc123", "quantity": 2}],
                        shipping_address="123 Main St")

`Client` asks one thing after the other, `AsyncClient` many at once under asyncio. Every request is
idempotent by its saga_id: an answer that was lost is had by asking again, and both do so by
themselves. Bodies are packed and unpacked here; sockets are in `connection`.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from msgspec import Struct

from sagacity import listing, wire
from sagacity.asks import STARTS_MAX, WAIT_S
from sagacity.connection import Connection
from sagacity.errors import InternalError, Malformed, from_body
from sagacity.ids import new_saga_id
from sagacity.traces import TRACEPARENT, sendable
from sagacity.wire import Reply

__all__ = ["AsyncClient", "Body", "Client", "Connection", "answer"]

Body = Mapping[str, Any] | Struct
"""A body of SPEC 1: a map, or a Struct of `sagacity.messages`."""


Headers = Mapping[str, str]
"""What travels beside a body, to every command of its saga: `traceparent`, `tracestate`.

OpenTelemetry's `propagate.inject(headers)` fills such a map. All together they have at most 1 KiB.
"""

_NONE: wire.Headers = {}


class _Call(NamedTuple):
    """What one method asks: the same for both clients."""

    kind: int
    saga_id: str
    body: bytes
    headers: wire.Headers = _NONE


def _start(kind: int, body: Body, headers: Headers | None = None) -> _Call:
    saga_id = getattr(body, "saga_id", None) if isinstance(body, Struct) else body.get("saga_id")
    if not isinstance(saga_id, str):
        raise Malformed("saga_id: a text is required")
    return _Call(kind, saga_id, wire.pack(body), _sendable(headers) if headers else _NONE)


def _sendable(headers: Headers) -> wire.Headers:
    """Give headers that can travel: an order does not fail for a trace that is none."""
    found = dict(headers)
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise Malformed("headers: keys and values are texts")
    if TRACEPARENT in found:
        found[TRACEPARENT] = sendable(found[TRACEPARENT])
    return found


def _checkout(
    user_id: str,
    items: Sequence[Mapping[str, Any]],
    shipping_address: str,
    saga_id: str | None,
    wait: bool,
    headers: Headers | None,
) -> _Call:
    body = {
        "type": "checkout",
        "saga_id": new_saga_id() if saga_id is None else saga_id,
        "user_id": user_id,
        "items": [dict(item) for item in items],
        "shipping_address": shipping_address,
    }
    return _start(wire.START if wait else wire.SUBMIT, body, headers)


def _cancel(saga_id: str, reason: str) -> _Call:
    body = {"type": "cancel", "saga_id": saga_id, "reason": reason}
    return _start(wire.CANCEL, body)


def _retry(saga_id: str, reason: str) -> _Call:
    body = {"type": "retry", "saga_id": saga_id, "reason": reason}
    return _start(wire.RETRY, body)


def _page(ask: listing.Ask) -> _Call:
    shard, body = ask
    return _Call(wire.LIST, str(shard), wire.pack(body))


def _traced(shard: int, place: int | None) -> _Call:
    return _page((shard, {"part": listing.TRACED, "before": place, "limit": listing.PAGE_ROWS}))


def _shards(status: Mapping[str, Any]) -> Sequence[int]:
    return [int(shard["shard"]) for shard in status["shards"]]


def answer(reply: Reply) -> dict[str, Any]:
    """Give a reply's body.

    Raises:
        SagacityError: the one of the reply's code.
    """
    try:
        body = wire.unpack(reply.body)
    except Malformed as error:
        raise InternalError(f"the answer cannot be read: {error.text}") from None
    if reply.code is None:
        if not isinstance(body.get("type"), str):
            raise InternalError("the answer cannot be read: it has no type")
        return body
    raise from_body({**body, "code": reply.code})


class Client:
    """Asks one thing after the other and waits for the answer. For one thread.

    Every method raises a SagacityError: NotTaken if nothing happened (later, same id), NoOutcome
    if something may have (ask again with the same id), the others as SPEC 4 says.

    Args:
        url: the router's address.
        timeout_s: how long each method waits, asking again by itself.
    """

    def __init__(self, url: str, *, timeout_s: float = WAIT_S) -> None:
        self._connection = Connection(url, timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"<Client of {self._connection!r}>"

    def checkout(
        self,
        *,
        user_id: str,
        items: Sequence[Mapping[str, Any]],
        shipping_address: str,
        saga_id: str | None = None,
        wait: bool = True,
        headers: Headers | None = None,
    ) -> dict[str, Any]:
        """Check out.

        Args:
            user_id: who pays.
            items: lines, `{"sku": "abc123", "quantity": 2}`.
            shipping_address: where to.
            saga_id: the idempotency key; a new one if left out.
            wait: for the outcome; else only until the start is durable.
            headers: for the handlers of its commands, such as `{"traceparent": "00-..."}`.

        Returns:
            The body of `checkout_complete` or `checkout_failed`, or of `checkout_accepted`.
        """
        return self._answer(_checkout(user_id, items, shipping_address, saga_id, wait, headers))

    def start(self, body: Body, headers: Headers | None = None) -> dict[str, Any]:
        """Start a saga from its whole body and wait for its outcome; give the final body."""
        return self._answer(_start(wire.START, body, headers))

    def submit(self, body: Body, headers: Headers | None = None) -> dict[str, Any]:
        """Start a saga; answered when the start is durable, finally if it is final already."""
        return self._answer(_start(wire.SUBMIT, body, headers))

    def cancel(self, saga_id: str, reason: str) -> dict[str, Any]:
        """Turn a saga back; the body of `cancel_ok`."""
        return self._answer(_cancel(saga_id, reason))

    def retry(self, saga_id: str, reason: str) -> dict[str, Any]:
        """Have a stuck saga's compensation sent again now; the body of `retry_ok`."""
        return self._answer(_retry(saga_id, reason))

    def show(self, saga_id: str) -> dict[str, Any]:
        """Give where a saga stands and its history."""
        return self._answer(_Call(wire.SHOW, saga_id, b""))

    def status(self) -> dict[str, Any]:
        """Give the cluster's processes and shards."""
        return self._answer(_Call(wire.STATUS, "", b""))

    def books(self, shard: int, body: Body) -> dict[str, Any]:
        """Give a page of a shard's books, or of a service's through that shard."""
        return self._answer(_Call(wire.BOOKS, str(shard), wire.pack(body)))

    def list(
        self, *, statuses: Iterable[str] = (), since_ms: int = 0, limit: int = listing.LIMIT
    ) -> dict[str, Any]:
        """Give sagas of all shards, newest first.

        Args:
            statuses: of running, compensating, stuck, completed, aborted; none for all. A stuck
                saga is compensating, too.
            since_ms: wall time; what ended before it, or has not ended and started before it, is
                left out.
            limit: 1..10000 sagas.

        Returns:
            A body with `sagas`, each a map with the keys `listing.FIELDS`.
        """
        known = listing.checked(statuses, since_ms, limit)
        asking = listing.pages(_shards(self.status()), known, since_ms, limit)
        try:
            ask = next(asking)
            while True:
                ask = asking.send(self._answer(_page(ask)))
        except StopIteration as end:
            return {"type": "list", "sagas": end.value}

    def traced(self, shard: int, place: int | None = None) -> dict[str, Any]:
        """Give the next finished sagas of a shard whose client records a trace.

        Args:
            shard: its index.
            place: `next` of the page before; 0 for the oldest that is kept, None for none of those
                that have ended already.

        Returns:
            A body with `rows`, saga_ids in the order in which they ended, maybe none; `next`; how
            many finished sagas are `left` behind it; how many before it were `lost` to retention.
        """
        return self._answer(_traced(shard, place))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, call: _Call) -> dict[str, Any]:
        token = self._connection.ask(call.kind, call.saga_id, call.body, headers=call.headers)
        try:
            while True:
                for settled, reply in self._connection.poll(3600.0):
                    if settled == token:
                        return answer(reply)
        finally:
            self._connection.forget(token)  # Ctrl-C ends the wait, not the saga


class AsyncClient:
    """`Client` under asyncio: the same methods, as many at once as one likes. For one loop.

    What is asked in one turn of the loop travels in one frame. Of ten thousand starts at once the
    router would refuse most, and they would wait far longer than for their turn here.

    Args:
        url: the router's address.
        timeout_s: how long each method waits, its turn included, asking again by itself.
        starts_max: starts that are asked at once; others wait for their turn.
    """

    def __init__(
        self, url: str, *, timeout_s: float = WAIT_S, starts_max: int = STARTS_MAX
    ) -> None:
        self._connection = Connection(url, timeout_s=timeout_s, starts_max=starts_max)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        self._soon = False  # the timer is a call_soon

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._connection!r}>"

    async def checkout(
        self,
        *,
        user_id: str,
        items: Sequence[Mapping[str, Any]],
        shipping_address: str,
        saga_id: str | None = None,
        wait: bool = True,
        headers: Headers | None = None,
    ) -> dict[str, Any]:
        """Check out, as Client.checkout."""
        call = _checkout(user_id, items, shipping_address, saga_id, wait, headers)
        return await self._answer(call)

    async def start(self, body: Body, headers: Headers | None = None) -> dict[str, Any]:
        """Start a saga and wait for its outcome, as Client.start."""
        return await self._answer(_start(wire.START, body, headers))

    async def submit(self, body: Body, headers: Headers | None = None) -> dict[str, Any]:
        """Start a saga, as Client.submit."""
        return await self._answer(_start(wire.SUBMIT, body, headers))

    async def cancel(self, saga_id: str, reason: str) -> dict[str, Any]:
        """Turn a saga back, as Client.cancel."""
        return await self._answer(_cancel(saga_id, reason))

    async def retry(self, saga_id: str, reason: str) -> dict[str, Any]:
        """Have a stuck saga's compensation sent again now, as Client.retry."""
        return await self._answer(_retry(saga_id, reason))

    async def show(self, saga_id: str) -> dict[str, Any]:
        """Give where a saga stands, as Client.show."""
        return await self._answer(_Call(wire.SHOW, saga_id, b""))

    async def status(self) -> dict[str, Any]:
        """Give the cluster's processes and shards, as Client.status."""
        return await self._answer(_Call(wire.STATUS, "", b""))

    async def books(self, shard: int, body: Body) -> dict[str, Any]:
        """Give a page of books, as Client.books."""
        return await self._answer(_Call(wire.BOOKS, str(shard), wire.pack(body)))

    async def list(
        self, *, statuses: Iterable[str] = (), since_ms: int = 0, limit: int = listing.LIMIT
    ) -> dict[str, Any]:
        """Give sagas of all shards, as Client.list."""
        known = listing.checked(statuses, since_ms, limit)
        asking = listing.pages(_shards(await self.status()), known, since_ms, limit)
        try:
            ask = next(asking)
            while True:
                ask = asking.send(await self._answer(_page(ask)))
        except StopIteration as end:
            return {"type": "list", "sagas": end.value}

    async def traced(self, shard: int, place: int | None = None) -> dict[str, Any]:
        """Give the next finished sagas whose client records a trace, as Client.traced."""
        return await self._answer(_traced(shard, place))

    async def close(self) -> None:
        """Close the connection; what is still awaited is cancelled."""
        if self._loop is not None:
            self._loop.remove_reader(self._connection.fd)
            self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()
        self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _answer(self, call: _Call) -> dict[str, Any]:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
            loop.add_reader(self._connection.fd, self._turn)
        token = self._connection.ask(call.kind, call.saga_id, call.body, headers=call.headers)
        future = self._waiting[token] = loop.create_future()
        self._again(0.0)
        try:
            return answer(await future)
        finally:
            self._waiting.pop(token, None)
            self._connection.forget(token)

    def _turn(self) -> None:
        self._soon = False
        for token, reply in self._connection.poll():
            future = self._waiting.get(token)
            if future is not None and not future.done():
                future.set_result(reply)
        self._again(self._connection.wait_s())

    def _again(self, delay_s: float | None) -> None:
        """Have a turn after a delay, unless one comes at once anyway."""
        if self._soon:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is None or delay_s is None:
            return
        if delay_s:
            self._timer = self._loop.call_later(delay_s, self._turn)
        else:
            self._soon = True
            self._timer = self._loop.call_soon(self._turn)
