"""The client of a kill round: keeps checkouts in flight, asks again, records what it was told.

Knows what every checkout has to come to, whatever is killed meanwhile. One thread, one connection,
no clock of the cluster.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

from msgspec import Struct

from cluster.audit import audit
from sagacity import wire
from sagacity.checker.record import Recorder
from sagacity.client import Client
from sagacity.connection import Connection
from sagacity.errors import Conflict
from sagacity.messages import Checkout, Item
from sagacity.wire import Reply
from tests.chaos.cluster import RoundFailed

WAIT_S: Final = 60.0  # for an answer: longer than any deadline, so that giving up is a violation
TURN_S: Final = 0.02
FAULTS_MAX: Final = 50


class Ending(NamedTuple):
    """A way to end: how many of a hundred new checkouts take it, what is asked, what it gives."""

    percent: int
    user: str
    sku: str
    address: str
    status: str
    reason: str


ENDINGS: Final = {
    "completes": Ending(81, "u42", "abc123", "123 Main St", "COMPLETED", ""),
    "declined": Ending(10, "u999", "abc123", "1 Elm St", "ABORTED", "Payment declined: DECLINED"),
    "out_of_stock": Ending(
        3, "u42", "sku_out_of_stock", "2 Elm St", "ABORTED", "Out of stock: sku_out_of_stock"
    ),
    "no_carrier": Ending(
        3, "u42", "xyz789", "no_carrier", "ABORTED", "Shipment refused: NO_CARRIER"
    ),
    "crash": Ending(2, "u_crash", "abc123", "3 Elm St", "COMPLETED", ""),
    "flaky": Ending(1, "u_flaky_3", "abc123", "4 Elm St", "COMPLETED", ""),
}
REPEAT_PERCENT: Final = 1  # of all that is asked: an earlier id again, running or finished
# More at a time, and payment would do little but start again: each costs the commands around it a
# take-over, and what is killed would mostly be a cluster that waits.
CRASHES_OPEN_MAX: Final = 2


class Asked(Struct):
    """A checkout that was asked, and the one answer that it ever got."""

    ending: str
    checkout: Checkout
    answer: bytes | None = None
    at: float = 0.0  # first asked, time.monotonic

    @property
    def body(self) -> bytes:
        """The request's body; the same each time it is asked."""
        return wire.pack(self.checkout)


class Load:
    """A closed loop of checkouts, or an open one of a steady rate.

    Args:
        url: the router's address.
        rng: decides ids, carts and endings.
        violations: where what is not as it has to be is told, in sentences.
        in_flight: checkouts that wait for their answer at any time; at most, where a rate is given.
        rate: checkouts a second that are asked, whatever becomes of the earlier ones.
        endings: which are drawn; all if left out.
        recorder: writes down what is asked and answered; None if nobody does.

    Attributes:
        asked: by saga_id, in the order in which they were first asked.
        answered: instant (time.monotonic) and saga_id of each answer, in order.
        repeats: how often an id was asked again by this client's own will.
    """

    def __init__(
        self,
        url: str,
        rng: random.Random,
        violations: list[str],
        in_flight: int = 256,
        *,
        rate: float | None = None,
        endings: Collection[str] = ENDINGS,
        recorder: Recorder | None = None,
    ) -> None:
        self.asked: dict[str, Asked] = {}
        self.answered: list[tuple[float, str]] = []
        self.repeats = 0
        self._violations = violations
        self._rng = rng
        self._recorder = recorder
        self._in_flight = in_flight
        self._rate = rate
        self._next_at = 0.0  # the next checkout of an open loop
        self._endings = list(endings)
        self._connection = Connection(url, timeout_s=WAIT_S)
        self._open: dict[int, str] = {}
        self._others: dict[int, Reply | None] = {}  # requests that are no checkouts of the load
        self._recorded: set[int] = set()  # requests in the record that are not answered
        self._ids: list[str] = []
        self._asking = True
        self._crashes_open = 0

    @property
    def open(self) -> int:
        """Checkouts that are not answered."""
        return len(self._open)

    def violation(self, text: str) -> None:
        """Note what was not as it has to be."""
        if len(self._violations) < FAULTS_MAX:
            self._violations.append(text)

    @property
    def open_ids(self) -> set[str]:
        """Their ids."""
        return set(self._open.values())

    def turn(self, wait_s: float = TURN_S) -> None:
        """Ask until as many are in flight as should be, then take what is answered."""
        while self._asking and len(self._open) < self._in_flight and self._is_due():
            self._ask_one()
        if self._asking and self._rate is not None:
            wait_s = min(wait_s, max(0.0, self._next_at - time.monotonic()))
        for token, reply in self._connection.poll(wait_s):
            if self._recorder is not None and token in self._recorded:
                self._recorded.discard(token)
                self._recorder.heard(token, reply.code, reply.body)
            if token in self._open:
                self._settled(self._open.pop(token), reply)
            elif token in self._others:
                self._others[token] = reply

    def turn_for(self, seconds: float) -> None:
        """Go on for a time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.turn(min(TURN_S, left))

    def turn_until(self, holds: Callable[[], object], seconds: float, what: str) -> None:
        """Go on until something holds.

        Raises:
            RoundFailed: it does not, in this time.
        """
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until:
                raise RoundFailed(f"{what} did not happen within {seconds:g} s")
            self.turn()

    def finish(self, seconds: float) -> None:
        """Ask nothing new; wait for every answer that is missing."""
        self._asking = False
        self.turn_until(lambda: not self._open, seconds, f"the end of all {len(self._open)}")

    def resume(self) -> None:
        """Ask new ones again, after `finish`."""
        self._asking = True

    def adopt(self, checkout: Checkout, answer: bytes | None = None) -> None:
        """Take a checkout, which completes, as asked: by somebody else, and maybe answered."""
        asked = Asked("completes", checkout, answer, time.monotonic())
        self.asked[checkout.saga_id] = asked
        self._ids.append(checkout.saga_id)

    def ask_all_again(self, seconds: float) -> int:
        """Ask every id again, with the same body; `turn` compares what comes.

        Returns:
            How many were asked.
        """
        for saga_id, asked in self.asked.items():
            while len(self._open) >= self._in_flight:
                self.turn()
            self._ask(saga_id, asked.body)
        self.turn_until(lambda: not self._open, seconds, "the end of all repeats")
        return len(self.asked)

    def ask_other_content(self, times: int) -> None:
        """Ask some ids with another cart: each has to be refused, with the first fingerprint."""
        for saga_id in self._rng.sample(self._ids, min(times, len(self._ids))):
            checkout = self.asked[saga_id].checkout
            items = [*checkout.items, Item("xyz789", 1)]
            other = Checkout(saga_id, checkout.user_id, items, checkout.shipping_address)
            reply = self.other(wire.START, saga_id, wire.pack(other))
            told = wire.unpack(reply.body)
            if reply.code != Conflict.code or len(told.get("fingerprint", "")) != 32:
                self.violation(f"{saga_id} with other content was answered {reply.code}: {told}")

    def status(self) -> dict[str, Any]:
        """Ask for the cluster's status."""
        return wire.unpack(self.other(wire.STATUS, "", b"").body)

    def other(self, kind: int, saga_id: str, body: bytes) -> Reply:
        """Ask something else while the load goes on."""
        token = self._send(kind, saga_id, body)
        self._others[token] = None
        self.turn_until(lambda: self._others[token], WAIT_S, f"an answer to {wire.KINDS[kind]}")
        reply = self._others.pop(token)
        assert reply is not None
        return reply

    def judge(self) -> Counter[str]:
        """Compare each answer with what its checkout has to come to.

        Returns:
            How many took each ending.
        """
        seen: Counter[str] = Counter()
        for saga_id, asked in self.asked.items():
            ending = ENDINGS[asked.ending]
            if asked.answer is None:
                self.violation(f"{saga_id} ({asked.ending}) has no answer")
                continue
            told = wire.unpack(asked.answer)
            result = (told.get("saga_id"), told.get("status"), told.get("reason", ""))
            if result != (saga_id, ending.status, ending.reason):
                self.violation(f"{saga_id} ({asked.ending}) was answered {told}")
            seen[asked.ending] += 1
        return seen

    def check_books(self, url: str) -> dict[str, Any]:
        """Audit the cluster, at rest: the books balance, and every checkout ended as it has to.

        Args:
            url: the router's own address.

        Returns:
            The audit's report.
        """
        with Client(url, timeout_s=WAIT_S) as client:
            report = audit(client)
        ends = [ENDINGS[asked.ending].status for asked in self.asked.values()]
        wanted = {
            "completed": ends.count("COMPLETED"),
            "aborted": ends.count("ABORTED"),
            "stuck": 0,
            "running": 0,
        }
        if not report["balanced"] or report["sagas"] != wanted:
            self.violation(f"audit: {report['sagas']}, not {wanted}; {report['faults'][:3]}")
        return report

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _is_due(self) -> bool:
        if self._rate is None:
            return True
        now = time.monotonic()
        if now < self._next_at:
            return False
        # After a second without a turn the rate goes on; what was missed is not made up for.
        self._next_at = max(self._next_at, now - 1.0) + 1.0 / self._rate
        return True

    def _ask_one(self) -> None:
        if self._ids and self._rng.random() * 100 < REPEAT_PERCENT:
            saga_id = self._rng.choice(self._ids)
            self.repeats += 1
        else:
            saga_id = f"kill-{self._rng.getrandbits(96):024x}"
            self.asked[saga_id] = self._draw(saga_id)
            self._ids.append(saga_id)
        self._ask(saga_id, self.asked[saga_id].body)

    def _draw(self, saga_id: str) -> Asked:
        weights = [ENDINGS[name].percent for name in self._endings]
        name = self._rng.choices(self._endings, weights)[0]
        if name == "crash":
            if self._crashes_open >= CRASHES_OPEN_MAX:
                name = "completes"
            else:
                self._crashes_open += 1
        ending = ENDINGS[name]
        # More than one line, one SKU twice: what is reserved and charged differs from saga to saga.
        items = [Item(ending.sku, self._rng.randint(1, 3))]
        items += [Item("xyz789", self._rng.randint(1, 2)) for _ in range(self._rng.randint(0, 2))]
        checkout = Checkout(saga_id, ending.user, items, ending.address)
        return Asked(name, checkout, at=time.monotonic())

    def _ask(self, saga_id: str, body: bytes) -> None:
        self._open[self._send(wire.START, saga_id, body)] = saga_id

    def _send(self, kind: int, saga_id: str, body: bytes) -> int:
        token = self._connection.ask(kind, saga_id, body)
        if self._recorder is not None and saga_id:
            self._recorder.sent(token, kind, saga_id, body)
            self._recorded.add(token)
        return token

    def _settled(self, saga_id: str, reply: Reply) -> None:
        if reply.code is not None:
            self.violation(f"{saga_id} was answered {reply.code}: {wire.unpack(reply.body)}")
            return
        self.answered.append((time.monotonic(), saga_id))
        asked = self.asked[saga_id]
        if asked.answer is None:
            asked.answer = reply.body
            self._crashes_open -= asked.ending == "crash"
        elif asked.answer != reply.body:
            self.violation(f"{saga_id} was answered {asked.answer!r}, then {reply.body!r}")
