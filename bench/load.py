"""Load: checkouts with random ids, in a closed loop or one after the other; for all benches."""

import secrets
import time
from collections import Counter

from sagacity import wire
from sagacity.client import answer
from sagacity.connection import Connection
from sagacity.messages import Checkout, Item

CART = [Item("abc123", 2), Item("xyz789", 1)]


def checkout(declined: bool) -> tuple[str, bytes]:
    """Make a checkout with a random id."""
    saga_id = "bench-" + secrets.token_hex(12)
    user = "u999" if declined else "u42"
    return saga_id, wire.pack(Checkout(saga_id, user, CART, "123 Main St"))


def closed_loop(connection: Connection, sagas: int, in_flight: int) -> tuple[float, Counter[str]]:
    """Keep `in_flight` checkouts going until `sagas` are final; give seconds and outcomes."""
    outcomes: Counter[str] = Counter()
    asked = settled = 0
    begun = time.perf_counter()
    while settled < sagas:
        while asked < sagas and len(connection) < in_flight:
            connection.ask(wire.START, *checkout(asked % 10 == 9))
            asked += 1
        for _, reply in connection.poll(1.0):
            settled += 1
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
