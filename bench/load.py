"""Load: checkouts with random ids, in a closed loop or one after the other; for all benches."""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence

import zmq
from msgspec import Struct

from sagacity import sockets, wire
from sagacity.client import answer
from sagacity.connection import Connection
from sagacity.messages import Checkout, Item
from sagacity.wire import Reply

CART = [Item("abc123", 2), Item("xyz789", 1)]


class Known(Struct, frozen=True):
    """A checkout that is finished: its id, whether it was declined, the final body."""

    saga_id: str
    declined: bool
    answer: bytes


def new_id() -> str:
    """Make a random id: sequential ones flatter an index."""
    return "bench-" + secrets.token_hex(12)


def body_of(saga_id: str, declined: bool) -> bytes:
    """Give the packed body of a checkout; always the same for the same id."""
    user = "u999" if declined else "u42"
    return wire.pack(Checkout(saga_id, user, CART, "123 Main St"))


def checkout(declined: bool) -> tuple[str, bytes]:
    """Make a checkout with a random id."""
    saga_id = new_id()
    return saga_id, body_of(saga_id, declined)


def closed_loop(
    connection: Connection,
    sagas: int,
    in_flight: int,
    *,
    sample: list[Known] | None = None,
    every: int = 1,
) -> tuple[float, Counter[str]]:
    """Keep `in_flight` checkouts going until `sagas` are final; give seconds and outcomes.

    Args:
        connection: to the router.
        sagas: to be finished.
        in_flight: of them at any time.
        sample: takes some of them, with their answers.
        every: one in so many, at random, goes there.
    """
    outcomes: Counter[str] = Counter()
    asked = settled = 0
    drawn: dict[int, tuple[str, bool]] = {}
    begun = time.perf_counter()
    while settled < sagas:
        while asked < sagas and len(connection) < in_flight:
            declined = asked % 10 == 9
            saga_id, body = checkout(declined)
            token = connection.ask(wire.START, saga_id, body)
            asked += 1
            if sample is not None and not secrets.randbelow(every):
                drawn[token] = (saga_id, declined)
        for token, reply in connection.poll(1.0):
            settled += 1
            if token in drawn:
                place = drawn.pop(token)
                if sample is not None and reply.code is None:
                    sample.append(Known(*place, reply.body))
            if reply.code is None:
                outcomes["completed" if b"COMPLETED" in reply.body else "aborted"] += 1
            else:
                outcomes[f"error {reply.code}"] += 1
    return time.perf_counter() - begun, outcomes


def alone(connection: Connection, sagas: int) -> list[float]:
    """Check out one after the other; give milliseconds, ascending."""
    took = []
    for _ in range(sagas):
        begun = time.perf_counter()
        connection.ask(wire.START, *checkout(False))
        while not (settled := connection.poll(1.0)):
            pass
        took.append((time.perf_counter() - begun) * 1000)
        answer(settled[0][1])
    return sorted(took)


def ask_each(
    connection: Connection,
    kind: int,
    sagas: Sequence[tuple[str, bytes]],
    in_flight: int,
    settled: Callable[[str, Reply], None],
) -> float:
    """Ask all of these, `in_flight` at a time, and hand on each reply; give the seconds."""
    opened: dict[int, str] = {}
    left = iter(sagas)
    begun = time.perf_counter()
    more = True
    while more or opened:
        while more and len(opened) < in_flight:
            following = next(left, None)
            if following is None:
                more = False
            else:
                opened[connection.ask(kind, *following)] = following[0]
        for token, reply in connection.poll(1.0):
            settled(opened.pop(token), reply)
    return time.perf_counter() - begun


def single_tries(
    url: str, kind: int, sagas: Sequence[tuple[str, bytes]], timeout_s: float
) -> list[tuple[Reply, float] | None]:
    """Ask all of these in one go, each once: the client library would ask again by itself.

    Returns:
        For each its first reply and the milliseconds until then; None where none came in time.
    """
    found: list[tuple[Reply, float] | None] = [None] * len(sagas)
    requests = [wire.Request(kind, each[0], at, {}, each[1]) for at, each in enumerate(sagas)]
    ctx = sockets.context()
    try:
        socket = sockets.dealer(ctx, url)
        begun = time.monotonic()
        frames = list(wire.frames(requests))
        missing = len(sagas)
        while missing and (left := begun + timeout_s - time.monotonic()) > 0:
            while frames and sockets.send(socket, frames[0]):
                del frames[0]
            # Not connected yet: nothing can be sent, and no event says when it can.
            socket.poll(1 if frames else max(1, int(left * 1000)), zmq.POLLIN)
            for frame in sockets.receive_all(socket, 1000)[0]:
                took_ms = (time.monotonic() - begun) * 1000
                for reply in wire.read_replies(frame):
                    missing -= found[reply.request] is None
                    found[reply.request] = found[reply.request] or (reply, took_ms)
    finally:
        ctx.destroy(linger=0)
    return found
