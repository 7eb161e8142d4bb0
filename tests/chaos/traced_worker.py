"""A real worker beside a twin shard, its life cut short in a system call, again and again.

What it leads to is told by its answers, the same at each repeat, and by its database. See
`syscalls`.
"""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from cluster.resting import opened, service_rows
from sagacity.ids import ACTION, COMPENSATION, count_of
from sagacity.messages import (
    CancelShipment,
    ChargePayment,
    CreateShipment,
    Line,
    RefundPayment,
    ReleaseReservation,
    ReserveInventory,
)
from sagacity.sockets import PeerGone
from sagacity.wire import DECLINED, OK, REFUSED_COMPENSATED, Answer, Command
from tests.chaos.injected import LIFE_S, Fault, Injector, odd_end
from tests.integration import twin_shard
from tests.integration.twin_shard import Place, TwinShard

BURSTS: Final = 4  # of a life; the next comes when the last is answered
BURST: Final = 8  # sagas: one of them is declined, three compensated
AMOUNT: Final = 500
STEPS: Final = {"inventory": 1, "payment": 2, "shipping": 3}
EFFECTS: Final = {"inventory": "reservation", "payment": "payment", "shipping": "shipment"}

Key = tuple[int, int]  # number, direction


def _action(service: str, name: str, declined: bool) -> Struct:
    if service == "inventory":
        line = Line("sku_out_of_stock" if declined else "abc123", 2)
        return ReserveInventory(name, 1, [line])
    if service == "payment":
        return ChargePayment(name, 2, "u999" if declined else "u42", AMOUNT)
    address = "no_carrier" if declined else "123 Main St"
    return CreateShipment(name, 3, [Line("abc123", 2)], address)


def _compensation(service: str, name: str) -> Struct:
    if service == "inventory":
        return ReleaseReservation(name, 1, True)
    if service == "payment":
        return RefundPayment(name, 2, True)
    return CancelShipment(name, 3, True)


class TracedWorker:
    """A worker of a service and its twin shard; `live` once for each fault, then `end`.

    Args:
        place: on a new directory.
        service: which.
        library: that takes back what was not synced, where the power fails.
        lies: its syncs are not carried out.
    """

    def __init__(
        self, place: Place, service: str, library: Path | None = None, *, lies: bool = False
    ) -> None:
        self.role = service
        self.checkouts = 0
        self._place = place
        self._shard = place.shards[0]
        self.database = database = place.directory.service(service)
        names = ("", "-wal", "-shm", "-journal")
        paths = [database.with_name(database.name + name) for name in names]
        paths.append(database.parent)
        data = place.directory.path
        self.injector = Injector(paths, place.run.path, data, library, lies=lies)
        self._lives = 0
        self._open: dict[Key, Command] = {}
        self._finals: dict[Key, Answer] = {}
        self._commands: dict[Key, Command] = {}
        self._ends: dict[Key, Answer] = {}  # what each came to, before all was asked again
        self._read = 0  # of the answers that came
        self._hellos = 0
        self._peer = b""
        self._violations: list[str] = []

    def live(self, fault: Fault) -> bool:
        """Run the worker under a fault until it ends, or the work does; say whether it struck."""
        process = self._place.start(self.role, under=self.injector.command(fault))
        bursts = self._bursts()
        self._lives += 1
        stopped = False
        give_up = time.monotonic() + LIFE_S
        while process.poll() is None:
            assert time.monotonic() < give_up, f"{len(self._open)} commands without an answer"
            if not stopped and not self._open and next(bursts, None) is None:
                process.send_signal(signal.SIGTERM)
                stopped = True
            self._turn()
        hit = self.injector.ended(fault, process.returncode)
        self._violations += odd_end(process.returncode, struck=hit)
        return hit

    def end(self) -> list[str]:
        """Run it without a fault until all is answered, stop it; give what is not as it should be.

        Returns:
            Violations, as sentences.
        """
        process = self._place.start(self.role)
        self._settle()
        finals = dict(self._finals)
        for key, asked in self._commands.items():
            self._ask(key, replace(asked, attempt=asked.attempt + 1))
        self._settle(again=True)
        for key, first in finals.items():
            if (key[0], COMPENSATION) in finals and key[1] == ACTION:
                wanted: tuple[int, bytes | None] = (REFUSED_COMPENSATED, None)
            else:
                wanted = (first.outcome, first.body)
            now = self._finals[key]
            if now.outcome != wanted[0] or wanted[1] not in {None, now.body}:
                self._violations.append(f"{first.saga_id}: answered {first}, then {now}")
        process.send_signal(signal.SIGTERM)
        if (code := process.wait(LIFE_S)) != 0:
            self._violations.append(f"the last life ended with {code}")
        self._ends = finals
        self._violations += self.books()
        return self._violations

    # -- conversation ---------------------------------------------------------------------------

    def _bursts(self) -> Iterator[int]:
        for burst in range(BURSTS):
            for at in range(BURST):
                self.checkouts += 1
                name = f"checkout{self.checkouts}-0"
                body = _action(self.role, name, declined=at == 1)
                self._new(twin_shard.command(self.checkouts, STEPS[self.role], body))
            yield burst

    def _new(self, asked: Command) -> None:
        key = (asked.number, asked.direction)
        self._commands[key] = asked
        self._ask(key, asked)

    def _ask(self, key: Key, asked: Command) -> None:
        self._open[key] = asked
        self._send([asked])

    def _send(self, commands: list[Command]) -> None:
        if self._peer and commands:
            try:
                self._shard.send(self._peer, *commands)
            except PeerGone:
                self._peer = b""

    def _settle(self, *, again: bool = False) -> None:
        def settled(_: TwinShard) -> bool:
            self._turn(again=again)
            return not self._open

        self._shard.until(settled, "answers to all commands")

    def _turn(self, *, again: bool = False) -> None:
        self._shard.receive()
        if len(self._shard.hellos) > self._hellos:
            self._hellos = len(self._shard.hellos)
            self._peer = self._shard.hellos[-1][0]
            self._repeat(list(self._open))
        refused = []
        while self._read < len(self._shard.answers):
            answer = self._shard.answers[self._read]
            self._read += 1
            key = (answer.number, answer.direction)
            if key not in self._open:
                continue
            if answer.outcome in {OK, DECLINED} or (
                again and answer.outcome == REFUSED_COMPENSATED
            ):
                self._settled(key, answer)
            else:
                refused.append(key)
        self._repeat(refused)

    def _repeat(self, keys: list[Key]) -> None:
        for key in keys:
            self._open[key] = replace(self._open[key], attempt=self._open[key].attempt + 1)
        self._send([self._open[key] for key in keys])

    def _settled(self, key: Key, answer: Answer) -> None:
        del self._open[key]
        self._finals[key] = answer
        number, direction = key
        is_due = direction == ACTION and count_of(number) % 3 == 0
        if is_due and (number, COMPENSATION) not in self._commands:
            body = _compensation(self.role, answer.saga_id)
            self._new(twin_shard.command(count_of(number), STEPS[self.role], body))

    # -- what must hold -------------------------------------------------------------------------

    def books(self) -> Iterator[str]:
        """Each action that was done is there once; undone exactly where it was compensated."""
        finals = self._ends
        with opened(self.database) as db:
            rows = service_rows(db, self.role)
        yield from rows.faults
        effects = rows.tables[EFFECTS[self.role]]
        wanted = {
            number: (number, COMPENSATION) in finals
            for (number, direction), answer in finals.items()
            if direction == ACTION and answer.outcome == OK
        }
        found: dict[int, Any] = {row[1]: bool(row[-1]) for row in effects}
        if found != wanted or len(effects) != len(found):
            odd = {key: (found.get(key), wanted.get(key)) for key in found.keys() | wanted.keys()}
            odd = {key: each for key, each in odd.items() if each[0] != each[1]}
            yield f"{len(effects)} effects for {len(wanted)} successes; found and due: {odd}"
        if len(rows.barrier) != len(finals):
            yield f"{len(rows.barrier)} rows of the barrier for {len(finals)} commands"
        if self.role == "payment":
            odd_sums = [row for row in effects if row[4] != AMOUNT or row[5] not in {0, AMOUNT}]
            if odd_sums:
                yield f"charged or refunded otherwise: {odd_sums[:3]}"
        held = sum(row[5] for row in effects if not row[6]) if self.role == "inventory" else 0
        for sku, initial, available in rows.tables.get("stock", ()):
            if initial - available != (held if sku == "abc123" else 0):
                yield f"{sku}: {initial} - {available} left, {held} held"
