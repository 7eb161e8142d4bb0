"""The floor: the least program that moves a checkout through the same hops with the same syncs.

    python -m bench.floor [--runs 3] [--sagas 20000] [--in-flight 1024] [--alone 200]

Client, router, two shards and three services as processes of their own, over the same sockets and
frames; a shard writes one row a batch, chained and synced, before it sends; a service writes its
rows and the barrier's in one synced transaction a batch. There is no engine: no retries, timers,
limits, checks, metrics, restarts. What Sagacity costs beyond this is what its promises cost.
`bench.first_light --floor` alternates the two in one call.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import statistics
import tempfile
from collections.abc import Callable
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import apsw
import zmq

from bench.load import alone, closed_loop
from cluster.child import die_with
from sagacity import messages as m
from sagacity import wire
from sagacity.connection import Connection
from sagacity.ids import barrier_key, number_of
from sagacity.slots import slot_of
from sagacity.sockets import (
    context,
    dealer,
    receive_all,
    receive_all_from,
    router,
    send,
    send_to,
)

SHARDS = 2
SERVICES = ("inventory", "payment", "shipping")
FRAMES = 256


def database(path: Path, schema: str) -> apsw.Connection:
    """Open a database as ours are: WAL, synced at every commit."""
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode=wal").fetchall()
    db.execute("PRAGMA synchronous=full")
    list(db.execute(schema))
    return db


def run_router(run: str) -> None:
    """Forward both ways."""
    ctx = context()
    front = router(ctx, f"ipc://{run}/router.sock")
    shards = [dealer(ctx, f"ipc://{run}/shard-{index}.sock") for index in range(SHARDS)]
    poller = zmq.Poller()
    for socket in (front, *shards):
        poller.register(socket, zmq.POLLIN)
    number = 0
    opened: dict[int, tuple[bytes, int]] = {}
    while True:
        ready = {found for found, _ in poller.poll()}
        forwards: list[list[wire.Request]] = [[] for _ in shards]
        replies: dict[bytes, list[wire.Reply]] = {}
        if front in ready:
            for identity, frame in receive_all_from(front, FRAMES)[0]:
                for item in wire.read_requests(frame):
                    number += 1
                    opened[number] = (identity, item.request)
                    forwards[slot_of(item.saga_id) % SHARDS].append(
                        wire.Request(item.kind, item.saga_id, number, item.headers, item.body)
                    )
        for shard in shards:
            if shard in ready:
                for frame in receive_all(shard, FRAMES)[0]:
                    for reply in wire.read_replies(frame):
                        identity, request = opened.pop(reply.request)
                        replies.setdefault(identity, []).append(
                            wire.Reply(request, None, reply.body)
                        )
        for shard, requests in zip(shards, forwards, strict=True):
            for frame in wire.frames(requests):
                send(shard, frame)
        for identity, items in replies.items():
            for frame in wire.frames(items):
                send_to(front, identity, frame)


_order = wire.decoder(m.Order)
_reserved = wire.decoder(m.ReserveInventoryOk)


def next_body(order: m.Order, got: wire.Answer | None) -> tuple[int, int, Any]:
    """Give step, direction and body of what follows an answer; step 0 is the end."""
    saga = order.saga_id
    if got is None:
        return 1, 0, m.ReserveInventory(saga, 1, order.items)
    if got.direction:
        return 0, 0, m.CheckoutFailed(saga, "ABORTED", "Payment declined: DECLINED")
    if got.outcome:
        return 1, 1, m.ReleaseReservation(saga, 1, True)
    if got.step == 1:
        return 2, 0, m.ChargePayment(saga, 2, order.user_id, 24999)
    if got.step == 2:
        return 3, 0, m.CreateShipment(saga, 3, order.items, order.shipping_address)
    return 0, 0, m.CheckoutComplete(saga, "COMPLETED", "o1")


def run_shard(run: str, data: str, index: int) -> None:
    """Write what came as one row, then send what follows."""
    ctx = context()
    front = router(ctx, f"ipc://{run}/shard-{index}.sock")
    back = router(ctx, f"ipc://{run}/shard-{index}-workers.sock")
    schema = "CREATE TABLE journal(seq INTEGER PRIMARY KEY, chain BLOB, batch BLOB)"
    db = database(Path(data) / f"shard-{index}.db", schema)
    poller = zmq.Poller()
    poller.register(back, zmq.POLLIN)
    count, seq, chain = 0, 0, b""
    peers: dict[int, bytes] = {}
    running: dict[int, tuple[bytes, int, bytes]] = {}
    while True:
        ready = {found for found, _ in poller.poll()}
        entries: list[Any] = []
        commands: dict[int, list[wire.Command]] = {}
        replies: dict[bytes, list[wire.Reply]] = {}
        moved: list[tuple[int, wire.Answer | None]] = []
        if back in ready:
            for peer, frame in receive_all_from(back, FRAMES)[0]:
                said = wire.read_to_shard(frame)
                if isinstance(said, wire.Hello):
                    peers[SERVICES.index(said.service) + 1] = peer
                    if len(peers) == len(SERVICES):
                        poller.register(front, zmq.POLLIN)
                elif isinstance(said, wire.Answers):
                    entries += said.items
                    moved += [(got.number, got) for got in said.items]
        if front in ready:
            for origin, frame in receive_all_from(front, FRAMES)[0]:
                for request in wire.read_requests(frame):
                    count += 1
                    number = number_of(count, index)
                    running[number] = (origin, request.request, request.body)
                    entries.append((number, request.saga_id, request.body))
                    moved.append((number, None))
        for number, got in moved:
            origin, asked, body = running[number]
            order = _order(body)
            step, direction, follows = next_body(order, got)
            packed = wire.encode(follows)
            if step:
                command = wire.Command(order.saga_id, step, direction, 1, number, 1, {}, packed)
                commands.setdefault(step, []).append(command)
            else:
                del running[number]
                replies.setdefault(origin, []).append(wire.Reply(asked, None, packed))
        if entries:
            seq += 1
            batch = wire.encode(entries)
            chain = sha256(chain + batch).digest()[:16]
            db.execute("INSERT INTO journal VALUES(?, ?, ?)", (seq, chain, batch))
        witness = wire.Witness("0" * 32, index, 1, seq, chain, count)
        for step, items in commands.items():
            for frame in wire.command_frames(witness, items):
                send_to(back, peers[step], frame)
        for origin, answers in replies.items():
            for frame in wire.frames(answers):
                send_to(front, origin, frame)


SCHEMAS = {
    "inventory": "CREATE TABLE stock(sku TEXT PRIMARY KEY, initial INT, available INT CHECK "
    "(available BETWEEN 0 AND initial)) WITHOUT ROWID;"
    "CREATE TABLE reservation(id INTEGER PRIMARY KEY, number INT, step INT, line INT, sku TEXT,"
    " quantity INT, released INT DEFAULT 0, UNIQUE(number, step, line));"
    "INSERT INTO stock VALUES('abc123', 1000000000, 1000000000);"
    "INSERT INTO stock VALUES('xyz789', 1000000000, 1000000000);",
    "payment": "CREATE TABLE payment(id INTEGER PRIMARY KEY, number INT, step INT, user_id TEXT,"
    " amount INT, refunded INT DEFAULT 0, UNIQUE(number, step));",
    "shipping": "CREATE TABLE shipment(id INTEGER PRIMARY KEY, number INT, step INT,"
    " cancelled INT DEFAULT 0, UNIQUE(number, step));",
}
BARRIER = "CREATE TABLE barrier(key INTEGER PRIMARY KEY, saga_id TEXT, outcome INT, reply BLOB);"

_bodies = wire.decoder(
    m.ReserveInventory | m.ReleaseReservation | m.ChargePayment | m.CreateShipment
)


def effect(db: apsw.Cursor, command: wire.Command) -> tuple[int, Any]:
    """Write what a command does; give outcome and reply."""
    body = _bodies(command.body)
    saga, number = command.saga_id, command.number
    last = db.connection.last_insert_rowid
    if isinstance(body, m.ReserveInventory):
        held = []
        for at, line in enumerate(body.items):
            db.execute("SELECT available FROM stock WHERE sku = ?", (line.sku,)).fetchone()
            take = "UPDATE stock SET available = available - ? WHERE sku = ?"
            db.execute(take, (line.quantity, line.sku))
            db.execute(
                "INSERT INTO reservation(number, step, line, sku, quantity) VALUES(?, 1, ?, ?, ?)",
                (number, at, line.sku, line.quantity),
            )
            held.append(m.Reservation(line.sku, f"r{last()}"))
        return wire.OK, m.ReserveInventoryOk(saga, 1, held)
    if isinstance(body, m.ReleaseReservation):
        rows = db.execute("SELECT sku, quantity FROM reservation WHERE number = ?", (number,))
        for sku, quantity in rows.fetchall():
            db.execute("UPDATE stock SET available = available + ? WHERE sku = ?", (quantity, sku))
        db.execute("UPDATE reservation SET released = 1 WHERE number = ?", (number,))
        return wire.OK, m.ReleaseReservationOk(saga, 1)
    if isinstance(body, m.ChargePayment):
        if body.user_id == "u999":
            no = m.ChargePaymentFailed(saga, 2, "insufficient_funds", "DECLINED")
            return wire.DECLINED, no
        charge = "INSERT INTO payment(number, step, user_id, amount) VALUES(?, 2, ?, ?)"
        db.execute(charge, (number, body.user_id, body.amount))
        return wire.OK, m.ChargePaymentOk(saga, 2, f"p{last()}", f"txn_{last()}")
    db.execute("INSERT INTO shipment(number, step) VALUES(?, 3)", (number,))
    return wire.OK, m.CreateShipmentOk(saga, 3, f"s{last()}", f"1Z999AA{last()}")


def run_service(run: str, data: str, name: str) -> None:
    """Perform what came in one transaction, then answer."""
    ctx = context()
    connection = database(Path(data) / f"{name}.db", SCHEMAS[name] + BARRIER)
    db = connection.cursor()
    shards = [dealer(ctx, f"ipc://{run}/shard-{index}-workers.sock") for index in range(SHARDS)]
    poller = zmq.Poller()
    hello = wire.encode(wire.Hello(wire.PROTOCOL, "0" * 32, name, 1, 256, []))
    for shard in shards:
        poller.register(shard, zmq.POLLIN)
        while not send(shard, hello):
            shard.poll(10, zmq.POLLOUT)
    while True:
        ready = {found for found, _ in poller.poll()}
        came = [
            (shard, command)
            for shard in shards
            if shard in ready
            for frame in receive_all(shard, FRAMES)[0]
            if isinstance(said := wire.read_to_worker(frame), wire.Commands)
            for command in said.items
        ]
        db.execute("BEGIN IMMEDIATE")
        answers: dict[Any, list[wire.Answer]] = {}
        for shard, c in came:
            key = barrier_key(c.number, c.step, 0)
            db.execute(
                "SELECT key, saga_id, outcome, reply FROM barrier WHERE key BETWEEN ? AND ?",
                (key, key | 1),
            ).fetchall()
            outcome, reply = effect(db, c)
            packed = wire.encode(reply)
            db.execute(
                "INSERT INTO barrier VALUES(?, ?, ?, ?)",
                (key | c.direction, c.saga_id, outcome, packed),
            )
            answers.setdefault(shard, []).append(
                wire.Answer(c.saga_id, c.step, c.direction, 1, c.number, 1, outcome, packed)
            )
        db.execute("COMMIT")
        for shard, items in answers.items():
            for frame in wire.answer_frames(items):
                send(shard, frame)


def child(parent: int, target: Callable[..., None], *args: object) -> None:
    """Run one of the floor's processes, which ends with the one that started it."""
    die_with(parent, signal.SIGKILL)
    target(*args)


class Floor:
    """The floor's processes on a new directory; a context manager that gives the router's url."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="sg-floor-")
        spawn = multiprocessing.get_context("spawn")
        here = self.directory
        self._processes: list[BaseProcess] = [
            spawn.Process(target=child, args=(os.getpid(), run_router, here)),
            *(
                spawn.Process(target=child, args=(os.getpid(), run_shard, here, here, index))
                for index in range(SHARDS)
            ),
            *(
                spawn.Process(target=child, args=(os.getpid(), run_service, here, here, name))
                for name in SERVICES
            ),
        ]

    def __enter__(self) -> str:
        for process in self._processes:
            process.start()
        return f"ipc://{self.directory}/router.sock"

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        shutil.rmtree(self.directory, ignore_errors=True)


def run(sagas: int, in_flight: int, lone: int) -> dict[str, float]:
    """Measure the floor once on a new directory."""
    found: dict[str, float] = {}
    with Floor() as url, Connection(url, timeout_s=120) as connection:
        closed_loop(connection, 500, 16)  # until everybody has found everybody
        if lone:
            took = alone(connection, lone)
            found["floor alone p50 ms"] = took[len(took) // 2]
        if sagas:
            closed_loop(connection, 4 * in_flight, in_flight)
            seconds, _ = closed_loop(connection, sagas, in_flight)
            found["floor checkouts/s"] = sagas / seconds
    return found


def main() -> None:
    """Run, print, print medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.floor")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sagas", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=1024)
    parser.add_argument("--alone", type=int, default=200)
    args = parser.parse_args()
    runs = [run(args.sagas, args.in_flight, args.alone) for _ in range(args.runs)]
    for name in runs[0]:
        print(f"{name:20} {statistics.median(each[name] for each in runs):10.1f}")


if __name__ == "__main__":
    main()
