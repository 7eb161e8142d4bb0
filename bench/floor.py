"""The floor: the least program that moves a checkout through the same hops with the same syncs.

Client, router, two shards and three services as processes of their own, over the same sockets and
frames. A shard accepts, prices and numbers a start, knows every id that was ever used, writes the
entries that ours writes in one row a batch, chained and synced, before it sends; finished sagas
leave its journal for sorted blocks. A service runs our services' own handlers on their own tables,
with the barrier's row, in one synced transaction a batch. There is no engine: no retries, timers,
limits, credit, cancels, histories, retention, recovery, metrics, restarts. What Sagacity costs
beyond this is what its promises cost; docs/bench.md says it hop by hop.

`sagacity bench floor` measures it as `bench run` does ours.
"""

import mmap
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from hashlib import blake2b
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import zmq

from bench.floor_files import SHARD_TABLES, Used, database
from cluster.child import die_with
from config.load import Catalog, load_catalog
from sagacity import wire
from sagacity.barrier import TABLES, TOMBSTONE
from sagacity.errors import check
from sagacity.ids import ACTION, barrier_key, number_of, order_id
from sagacity.messages import Checkout, Order
from sagacity.saga import Priced, Run
from sagacity.service import Call, Declined, Ok, Service
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
from services.checkout import checkout
from services.inventory import service as inventory
from services.payment import service as payment
from services.shipping import service as shipping
from shard.codec import GENESIS, link, pack_batch
from shard.entries import DECLINED, Entry, Finished, Started, TurnedBack
from shard.phases import ABORTED, COMPLETED

SHARDS: Final = 2
SERVICES: Final[dict[str, Service]] = {
    service.name: service for service in (inventory, payment, shipping)
}
FRAMES: Final = 256
CLUSTER_ID: Final = "0" * 32
DEADLINE_MS: Final = 30_000

# What each process counts, for whoever measures: so many places of a file in memory.
COUNTED: Final = ("commits", "entries", "bytes", "frames_in", "items_in", "frames_out", "items_out")
ROLES: Final = ("router", *(f"shard-{index}" for index in range(SHARDS)), *SERVICES)

_NEIGHBOURS: Final = "SELECT key, saga_id, outcome, reply FROM barrier WHERE key BETWEEN ? AND ?"

_checkouts = wire.BodyReader[Checkout](Checkout)
_read_order = wire.decoder(Order)
_OKS: Final = [wire.decoder(step.ok) for step in checkout.steps]
_NOES: Final = [wire.decoder(step.declined) for step in checkout.steps]


class Counts:
    """Counts of the floor's processes, in a file that all of them have in memory.

    Args:
        file: made where it is not there.
    """

    def __init__(self, file: Path) -> None:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, 8 * len(ROLES) * len(COUNTED))
            self._places = memoryview(mmap.mmap(descriptor, 0)).cast("q")
        finally:
            os.close(descriptor)

    def of(self, role: str) -> memoryview:
        """Give the places of a process, in the order of COUNTED."""
        at = ROLES.index(role) * len(COUNTED)
        return self._places[at : at + len(COUNTED)]

    def read(self) -> dict[str, dict[str, int]]:
        """Give what each process has counted."""
        return {role: dict(zip(COUNTED, self.of(role).tolist(), strict=True)) for role in ROLES}


def run_router(run: str) -> None:
    """Forward both ways."""
    ctx = context()
    front = router(ctx, f"ipc://{run}/router.sock")
    shards = [dealer(ctx, f"ipc://{run}/shard-{index}.sock") for index in range(SHARDS)]
    counts = Counts(Path(run) / "counts").of("router")
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
                counts[3] += 1
                for item in wire.read_requests(frame):
                    counts[4] += 1
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
                counts[5] += 1
                send(shard, frame)
        for identity, items in replies.items():
            for frame in wire.frames(items):
                send_to(front, identity, frame)


class Running:
    """A saga on its way: who waits for it, and what its next command is made of."""

    __slots__ = ("asked", "back", "held", "origin", "reason", "run", "saga_id", "seq")

    def __init__(self, origin: bytes, asked: int, run: Run, seq: int) -> None:
        self.origin, self.asked, self.run, self.seq = origin, asked, run, seq
        self.saga_id = run.saga_id
        self.held: list[Any] = []  # what its steps have answered, as it came
        self.back = 0  # the step that is compensated
        self.reason = ""


class FloorShard:
    """A shard without an engine.

    Args:
        run: directory of the sockets and of the shard's file.
        index: of the shard.
        prices: of the goods.
    """

    def __init__(self, run: str, index: int, prices: dict[str, int]) -> None:
        ctx = context()
        self._index, self._prices = index, prices
        self._front = router(ctx, f"ipc://{run}/shard-{index}.sock")
        self._back = router(ctx, f"ipc://{run}/shard-{index}-workers.sock")
        self._db = database(Path(run) / f"shard-{index}.db", SHARD_TABLES, exclusive=True)
        self._used = Used(self._db)
        self._counts = Counts(Path(run) / "counts").of(f"shard-{index}")
        self._poller = zmq.Poller()
        self._poller.register(self._back, zmq.POLLIN)
        self._peers: dict[str, bytes] = {}
        self._running: dict[int, Running] = {}
        self._numbers: dict[str, int] = {}
        self._orders = [0] * 1024  # by slot
        self._count, self._seq, self._chain = 0, 0, GENESIS
        self._entries: list[Entry] = []
        self._commands: dict[str, list[wire.Command]] = {}
        self._replies: dict[bytes, list[wire.Reply]] = {}

    def turn(self) -> None:
        """Take what came, write it as one row, then send what follows."""
        ready = {found for found, _ in self._poller.poll()}
        counts = self._counts
        if self._back in ready:
            for peer, frame in receive_all_from(self._back, FRAMES)[0]:
                counts[3] += 1
                said = wire.read_to_shard(frame)
                if isinstance(said, wire.Answers):
                    counts[4] += len(said.items)
                    self._entries += said.items
                    for got in said.items:
                        self._answered(got)
                elif isinstance(said, wire.Hello):
                    self._peers[said.service] = peer
                    if len(self._peers) == len(SERVICES):
                        self._poller.register(self._front, zmq.POLLIN)
        if self._front in ready:
            now_ms = time.time_ns() // 1_000_000
            for origin, frame in receive_all_from(self._front, FRAMES)[0]:
                counts[3] += 1
                for request in wire.read_requests(frame):
                    counts[4] += 1
                    self._start(origin, request, now_ms)
        if self._entries:
            self._commit()
        self._send()

    def _start(self, origin: bytes, request: wire.Request, now_ms: int) -> None:
        """Accept a start; one that is known is answered, or waits for the first one's end."""
        asked, packed = _checkouts.read(request.body)
        saga_id = asked.saga_id
        check(saga_id == request.saga_id, "the body's saga_id is not the envelope's")
        order = checkout.accept(asked)
        if order is not asked:
            packed = wire.encode(order)
        known = self._numbers.get(saga_id)
        if known is not None:
            self._running[known].origin, self._running[known].asked = origin, request.request
            return
        answer = self._used.answer(saga_id)
        if answer is not None:
            self._replies.setdefault(origin, []).append(wire.Reply(request.request, None, answer))
            return
        priced = checkout.price(order, self._prices)
        check(isinstance(priced, Priced), "every SKU has a price", got=priced)
        amount = priced.amount if isinstance(priced, Priced) else 0
        self._count += 1
        number, slot = number_of(self._count, self._index), slot_of(saga_id)
        self._orders[slot] += 1
        self._entries.append(
            Started(
                number,
                saga_id,
                checkout.name,
                checkout.version,
                blake2b(packed, digest_size=16).digest(),
                amount,
                "USD",
                self._orders[slot],
                slot,
                1,
                now_ms + DEADLINE_MS,
                request.headers,
                packed,
            )
        )
        run = Run(saga_id, packed, _read_order, amount, order_id(self._orders[slot], slot))
        run.keep(order)
        saga = Running(origin, request.request, run, self._seq + 1)
        self._running[number] = saga
        self._numbers[saga_id] = number
        self._act(number, saga, 1)

    def _answered(self, got: wire.Answer) -> None:
        """Go on with a saga: its next action, the next compensation, or its end."""
        number = got.number
        saga, steps = self._running[number], checkout.steps
        if got.direction:
            check(got.outcome == wire.OK, "a compensation does not fail here", got=got)
            self._undo(number, saga, saga.back - 1)
        elif got.outcome == wire.DECLINED:
            saga.reason = steps[got.step - 1].reason(_NOES[got.step - 1](got.body))
            self._entries.append(TurnedBack(number, got.step, DECLINED, saga.reason))
            self._undo(number, saga, got.step - 1)
        else:
            check(got.outcome == wire.OK, "an action does not fail here", got=got)
            saga.held.append(got.body)
            if got.step == len(steps):
                self._end(number, saga, COMPLETED, wire.encode(checkout.completed(saga.run)))
            else:
                self._act(number, saga, got.step + 1)

    def _act(self, number: int, saga: Running, step: int) -> None:
        body = wire.encode(checkout.steps[step - 1].command(saga.run, step))
        self._command(number, saga, step, 0, body)

    def _undo(self, number: int, saga: Running, step: int) -> None:
        saga.back = step
        if step == 0:
            answer = wire.encode(checkout.aborted(saga.run, saga.reason))
            self._end(number, saga, ABORTED, answer)
            return
        held = _OKS[step - 1](saga.held[step - 1])
        body = wire.encode(checkout.steps[step - 1].undo(saga.run, step, held))
        self._command(number, saga, step, 1, body)

    def _command(self, number: int, saga: Running, step: int, direction: int, body: bytes) -> None:
        command = wire.Command(saga.saga_id, step, direction, 1, number, 1, {}, body)
        self._commands.setdefault(checkout.steps[step - 1].service, []).append(command)

    def _end(self, number: int, saga: Running, phase: int, answer: bytes) -> None:
        self._entries.append(Finished(number, phase, answer))
        self._used.add(saga.saga_id, answer)
        del self._running[number], self._numbers[saga.saga_id]
        self._replies.setdefault(saga.origin, []).append(wire.Reply(saga.asked, None, answer))

    def _commit(self) -> None:
        """Write the row; with a block of finished sagas the rows go that nobody needs any more."""
        seq, counts = self._seq + 1, self._counts
        packed = pack_batch(self._entries, 1, time.time_ns() // 1_000_000)
        chain = link(self._chain, seq, packed)
        insert, row = "INSERT INTO journal VALUES(?, ?, ?)", (seq, chain, packed)
        block = self._used.block()
        if block is None:
            self._db.execute(insert, row)
        else:
            needed = min((saga.seq for saga in self._running.values()), default=seq)
            with self._db:
                self._db.execute(insert, row)
                self._db.execute("INSERT INTO finished VALUES(?, ?, ?)", block)
                self._db.execute("DELETE FROM journal WHERE seq < ?", (needed,))
        self._seq, self._chain = seq, chain
        counts[0] += 1
        counts[1] += len(self._entries)
        counts[2] += len(packed)
        self._entries = []

    def _send(self) -> None:
        counts = self._counts
        witness = wire.Witness(CLUSTER_ID, self._index, 1, self._seq, self._chain, self._count)
        for name, items in self._commands.items():
            for frame in wire.command_frames(witness, items):
                counts[5] += 1
                send_to(self._back, self._peers[name], frame)
            counts[6] += len(items)
        for origin, answers in self._replies.items():
            for frame in wire.frames(answers):
                counts[5] += 1
                send_to(self._front, origin, frame)
            counts[6] += len(answers)
        self._commands, self._replies = {}, {}


def run_shard(run: str, index: int, prices: dict[str, int]) -> None:
    """Turn, until killed."""
    shard = FloorShard(run, index, prices)
    while True:
        shard.turn()


class FloorService:
    """A service of ours on its own tables, with a barrier.

    Args:
        run: directory of the sockets and of the service's file.
        name: of the service.
        catalog: of its first rows.
    """

    def __init__(self, run: str, name: str, catalog: Catalog) -> None:
        service = SERVICES[name]
        self._connection = database(Path(run) / f"{name}.db", TABLES + service.schema)
        self._db, self._lent = self._connection.cursor(), self._connection.cursor()
        with self._connection:
            if service.seed is not None:
                service.seed(self._lent, catalog)
        self._readers = [service.reader(direction) for direction in (0, 1)]
        self._handlers = [service.handlers(direction) for direction in (0, 1)]

    def begin(self) -> None:
        """Begin a transaction."""
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make it durable."""
        self._db.execute("COMMIT")

    def answer(self, c: wire.Command) -> wire.Answer:
        """Perform a command once; give the stored reply to one that was performed before."""
        key = barrier_key(c.number, c.step, ACTION)
        rows: Any = self._db.execute(_NEIGHBOURS, (key, key | 1)).fetchall()
        if rows and rows[-1][0] == key | c.direction:
            _, saga_id, outcome, reply = rows[-1]
            check(saga_id == c.saga_id, "a number belongs to one saga")
            return wire.answer_to(c, outcome, reply)
        if rows and not c.direction:
            return wire.answer_to(c, wire.REFUSED_COMPENSATED, b"")
        body = self._readers[c.direction](c.body)
        call = Call(c.saga_id, c.number, c.step, c.attempt, body)
        result = self._handlers[c.direction][type(body)](self._lent, call)
        check(isinstance(result, Ok | Declined), "a handler does not fail here", got=result)
        outcome = wire.OK if type(result) is Ok else wire.DECLINED
        reply = wire.encode(result.body) if isinstance(result, Ok | Declined) else b""
        insert = "INSERT INTO barrier VALUES(?, ?, ?, ?)"
        if c.direction and not rows:
            self._db.execute(insert, (key, c.saga_id, TOMBSTONE, b""))
        self._db.execute(insert, (key | c.direction, c.saga_id, outcome, reply))
        return wire.answer_to(c, outcome, reply)


def run_service(run: str, name: str, catalog: Catalog) -> None:
    """Perform what came in one transaction, then answer."""
    service = FloorService(run, name, catalog)
    ctx = context()
    shards = [dealer(ctx, f"ipc://{run}/shard-{index}-workers.sock") for index in range(SHARDS)]
    counts = Counts(Path(run) / "counts").of(name)
    poller = zmq.Poller()
    hello = wire.encode(wire.Hello(wire.PROTOCOL, CLUSTER_ID, name, 1, 256, []))
    for shard in shards:
        poller.register(shard, zmq.POLLIN)
        while not send(shard, hello):
            shard.poll(10, zmq.POLLOUT)
    while True:
        ready = {found for found, _ in poller.poll()}
        came = [
            (shard, said.items)
            for shard in shards
            if shard in ready
            for frame in receive_all(shard, FRAMES)[0]
            if isinstance(said := wire.read_to_worker(frame), wire.Commands)
        ]
        service.begin()
        answers: dict[Any, list[wire.Answer]] = {}
        for shard, commands in came:
            counts[3] += 1
            counts[4] += len(commands)
            answers.setdefault(shard, []).extend(map(service.answer, commands))
        service.commit()
        counts[0] += 1
        for shard, items in answers.items():
            for frame in wire.answer_frames(items):
                counts[5] += 1
                send(shard, frame)
            counts[6] += len(items)


def child(parent: int, target: Callable[..., None], *args: object) -> None:
    """Run one of the floor's processes, which ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for who started it
    die_with(parent, signal.SIGKILL)
    target(*args)


class Floor:
    """The floor's processes on a new directory; a context manager that gives the router's url.

    Args:
        catalog: what is sold.
    """

    def __init__(self, catalog: Catalog | None = None) -> None:
        goods = load_catalog(None) if catalog is None else catalog
        self.directory = tempfile.mkdtemp(prefix="sg-floor-")
        self.counts = Counts(Path(self.directory) / "counts")
        spawn = multiprocessing.get_context("spawn")
        here, me = self.directory, os.getpid()
        self._processes: dict[str, BaseProcess] = {
            "router": spawn.Process(target=child, args=(me, run_router, here)),
            **{
                f"shard-{at}": spawn.Process(
                    target=child, args=(me, run_shard, here, at, dict(goods.prices))
                )
                for at in range(SHARDS)
            },
            **{
                name: spawn.Process(target=child, args=(me, run_service, here, name, goods))
                for name in SERVICES
            },
        }

    @property
    def ended(self) -> list[str]:
        """Those of them that have ended, which none should."""
        return [role for role, process in self._processes.items() if not process.is_alive()]

    @property
    def pids(self) -> dict[str, int]:
        """The process of each role."""
        return {role: process.pid or 0 for role, process in self._processes.items()}

    def __enter__(self) -> str:
        for process in self._processes.values():
            process.start()
        return f"ipc://{self.directory}/router.sock"

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            if process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        shutil.rmtree(self.directory, ignore_errors=True)
