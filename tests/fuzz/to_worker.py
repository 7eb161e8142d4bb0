"""Targets: frames from a shard to a worker; bodies of commands to our three services.

The worker, its executor and its database are the real ones; its socket is a list.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import zmq

from config.load import Catalog
from sagacity import wire
from sagacity.executor import BatchExecutor, make_tables, open_file
from sagacity.ids import ACTION, COMPENSATION, number_of
from sagacity.messages import (
    CancelShipment,
    ChargePayment,
    CreateShipment,
    Line,
    RefundPayment,
    ReleaseReservation,
    Reservation,
    ReserveInventory,
)
from sagacity.service import Service
from sagacity.wire import (
    Answer,
    Answers,
    BooksAsked,
    BooksPage,
    Command,
    Commands,
    Forget,
    Proceed,
    Rejected,
    Witness,
)
from sagacity.worker import EXIT_REJECTED, Watch, Worker
from services.inventory import service as inventory
from services.payment import service as payment
from services.shipping import service as shipping
from tests.fuzz.target import ACCEPTED, DROPPED, Target, told

CLUSTER_ID = "c0ffee" + "0" * 26
WITNESS = Witness(CLUSTER_ID, 0, 1, 5, bytes(16), number_of(9, 0))
CATALOG = Catalog({}, {"abc123": 10**9, "xyz789": 10**9, "few": 3}, {"u999": 0, "rich": 10**6})
LINES = [Line("abc123", 2), Line("xyz789", 1)]
TURNS_MAX = 64
_EFFECTS = {
    "inventory": "SELECT sum(initial - available) + 1000000000000 *"
    " (SELECT count(*) FROM reservation) FROM stock",
    "payment": "SELECT coalesce(sum(amount - refunded), 0) + 1000000000000 * count(*) FROM payment",
    "shipping": "SELECT coalesce(sum(1 - cancelled), 0) + 1000000 * count(*) FROM shipment",
}


class Quiet:
    """A log that nobody reads."""

    def info(self, event: str, **fields: Any) -> None:
        pass

    warning = error = info


class Garbage(Watch):
    """Counts what could not be read."""

    count = 0

    def garbage(self) -> None:
        self.count += 1


class ListSocket:
    """A worker's socket: a list of frames in, a list of frames out."""

    def __init__(self) -> None:
        self.coming: list[bytes] = []
        self.sent: list[bytes] = []

    def recv(self, flags: int) -> bytes:
        if not self.coming:
            raise zmq.Again
        return self.coming.pop(0)

    def getsockopt(self, option: int) -> int:
        return 0

    def send(self, frame: bytes, flags: int) -> None:
        self.sent.append(frame)


class ListMonitor:
    """Tells of one connection, which stays."""

    connected = True
    socket = "monitor"


class ListLink:
    """The worker's side of a shard."""

    def __init__(self) -> None:
        self.socket = ListSocket()
        self.monitor = ListMonitor()
        self.greeted = True


class Folder:
    """A folder for databases, in memory where there is such a file system."""

    def __init__(self) -> None:
        shm = Path("/dev/shm")
        self.path = Path(
            tempfile.mkdtemp(prefix="sagacity-fuzz-", dir=shm if shm.is_dir() else None)
        )

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class FramesToWorker(Target):
    """A shard's frames: each command is answered, and what is refused has no effect."""

    name = "worker-frames"
    share = 2.0
    block = 512

    def __init__(self) -> None:
        self._folder = Folder()
        self._worker: Worker | None = None
        self._made = 0

    def corpus(self) -> list[bytes]:
        commands = [
            Command(f"s{count}", 1, ACTION, 1, number_of(count, 0), 1, {}, body)
            for count, body in enumerate([wire.encode(ReserveInventory("s", 1, LINES))] * 3, 1)
        ]
        released = ReleaseReservation("s1", 1, True, [Reservation("abc123", "r1")])
        undo = Command("s1", 1, COMPENSATION, 1, number_of(1, 0), 1, {}, wire.encode(released))
        page = wire.pack({"book": "inventory", "table": "stock", "after": "", "limit": 10})
        rows = wire.pack({"book": "inventory", "table": "reservations", "after": 0, "limit": 5000})
        return [
            wire.encode(Commands(WITNESS, commands[:1])),
            wire.encode(Commands(WITNESS, [*commands, undo])),
            wire.encode(Commands(WITNESS, [undo])),
            wire.encode(Commands(WITNESS, commands[:1], alone=True)),
            wire.encode(Commands(WITNESS, [])),
            wire.encode(Proceed(number_of(1, 0), 1, ACTION, 1, wanted=True)),
            wire.encode(BooksAsked(1, page)),
            wire.encode(BooksAsked(2, rows)),
            wire.encode(Forget(WITNESS, 1, [(1, 3), (5, 6)])),
            wire.encode(Rejected("another cluster")),
        ]

    def fresh(self) -> None:
        self.close(keep=True)
        self._made += 1
        self.watch = Garbage()
        self._worker = Worker(
            inventory,
            self._folder.path / f"{self._made}.db",
            [],
            CLUSTER_ID,
            catalog=CATALOG,
            log=Quiet(),
            watch=self.watch,
            open_database=_open,
        )
        self.link: Any = ListLink()
        links: list[Any] = self._worker._links
        links.append(self.link)
        self._probes = 0

    def take(self, case: bytes) -> str:
        worker = self._worker
        assert worker is not None
        link, garbage = self.link, self.watch.count
        before = self._effects()
        link.socket.coming.append(case)
        worker._turn({link.socket: zmq.POLLIN})
        for _ in range(TURNS_MAX):
            if worker._next_due() > worker._now_ns() or worker._begun:
                break
            worker._turn({})
        if worker._exit is not None:
            assert worker._exit == EXIT_REJECTED
            worker._exit = None
            return "rejected"
        if self.watch.count > garbage:
            assert self._effects() == before
            return DROPPED
        answers = self._answers()
        if worker._begun is not None:
            while worker._begun is not None:  # else the next commands would wait for a word
                worker._withdraw()
                worker._turn({})
            self._answers()
            return "begun"
        if not answers:
            return "absorbed"
        if all(each.outcome >= wire.FAILED for each in answers):
            assert self._effects() == before, "what failed or was refused has an effect"
            return wire.OUTCOMES[answers[0].outcome]
        return ACCEPTED

    def _answers(self) -> list[Answer]:
        sent, self.link.socket.sent = self.link.socket.sent, []
        answers: list[Answer] = []
        for frame in sent:
            said = wire.read_to_shard(frame)
            if isinstance(said, Answers):
                answers += said.items
            elif isinstance(said, BooksPage):
                told(wire.Reply(1, said.code, said.body))
        return answers

    def _effects(self) -> Any:
        assert self._worker is not None
        connection = self._worker._executor._connection
        return connection.execute(_EFFECTS["inventory"]).get

    def probe(self) -> None:
        """A command of a saga that nobody has named is done."""
        assert self._worker is not None
        self._probes += 1
        body = wire.encode(ReserveInventory("s", 1, LINES))
        epoch = max(self._worker._executor._barrier._fence.values(), default=1)
        number = number_of((1 << 40) + self._probes, 777)
        command = Command(f"probe-{self._probes}", 1, ACTION, epoch, number, 1, {}, body)
        self.link.socket.coming.append(wire.encode(Commands(WITNESS, [command])))
        self._worker._turn({self.link.socket: zmq.POLLIN})
        assert [each.outcome for each in self._answers()] == [wire.OK]

    def close(self, *, keep: bool = False) -> None:
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker._executor.close()
            os.close(worker._wake)
            os.close(worker._woken)
        if not keep:
            self._folder.remove()


def _open(path: Path) -> Any:
    connection = open_file(path)
    connection.pragma("synchronous", "OFF")
    return connection


class CommandBodies(Target):
    """Bodies of actions and compensations in good envelopes, to each of our services."""

    name = "command-bodies"
    share = 0.1
    block = 512

    def __init__(self) -> None:
        self._folder = Folder()
        self._executors: list[BatchExecutor] = []
        self._made = 0

    def corpus(self) -> list[bytes]:
        held = [Reservation("abc123", "r1"), Reservation("xyz789", "r2")]
        bodies = [
            (0, ReserveInventory("s", 1, LINES)),
            (0, ReserveInventory("s", 1, [Line("few", 2), Line("few", 2)])),
            (0, ReleaseReservation("s", 1, True, held)),
            (0, ReleaseReservation("s", 1, True)),
            (1, ChargePayment("s", 2, "u42", 24_999)),
            (1, ChargePayment("s", 2, "rich", 500)),
            (1, ChargePayment("s", 2, "u_flaky_3", 1)),
            (1, RefundPayment("s", 2, True, "p1")),
            (1, RefundPayment("s", 2, True)),
            (2, CreateShipment("s", 3, LINES, "123 Main St")),
            (2, CreateShipment("s", 3, LINES, "no_carrier")),
            (2, CancelShipment("s", 3, True, "s1")),
            (2, CancelShipment("s", 3, True)),
        ]
        return [wire.encode([at, wire.encode(body)]) for at, body in bodies]

    def fresh(self) -> None:
        self.close(keep=True)
        self._made += 1
        self._count = 0
        self._services: list[Service] = [inventory, payment, shipping]
        for service in self._services:
            connection = _open(self._folder.path / f"{service.name}-{self._made}.db")
            make_tables(connection, service, CLUSTER_ID, CATALOG)
            self._executors.append(BatchExecutor(connection, service, Quiet()))

    def take(self, case: bytes) -> str:
        """Have the body be an action's, then a compensation's, of a saga of its own."""
        try:
            at, body = wire.decoder(tuple[int, bytes])(case)
        except ValueError:
            at, body = 0, case
        at %= len(self._services)
        if b"u_crash" in body:
            return "left out"  # it would end this process, as it should
        self._count += 1
        answers = [self._send(at, direction, body) for direction in (ACTION, COMPENSATION)]
        outcomes = [wire.OUTCOMES[answer.outcome] for answer in answers]
        for answer in answers:
            if answer.outcome == wire.FAILED:
                assert isinstance(wire.unpack(answer.body)["text"], str)
        return ACCEPTED if "ok" in outcomes else outcomes[0]

    def _send(self, at: int, direction: int, body: bytes) -> Answer:
        executor, service = self._executors[at], self._services[at]
        connection = executor._connection
        before = connection.execute(_EFFECTS[service.name]).get
        command = Command(
            f"s{self._count}", at + 1, direction, 1, number_of(self._count, 0), 1, {}, body
        )
        [[answer]] = executor.execute([Commands(WITNESS, [command])])
        wire.read_to_shard(wire.encode(Answers([answer])))  # its shard can read it
        assert answer.outcome in (wire.OK, wire.DECLINED, wire.FAILED)
        after = connection.execute(_EFFECTS[service.name]).get
        if answer.outcome != wire.OK:
            assert after == before, "what was declined or failed has an effect"
        return answer

    def probe(self) -> None:
        for at in range(len(self._services)):
            case = next(each for each in self.corpus() if each[1] == at)
            assert self.take(case) == ACCEPTED

    def close(self, *, keep: bool = False) -> None:
        for executor in self._executors:
            executor.close()
        self._executors = []
        if not keep:
            self._folder.remove()
