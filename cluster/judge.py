"""The books judged: journals against stock, money and shipments. Pure; knows no socket.

Journals are read first, services after, so that for every saga that was final in its journal the
services' rows are final too, and are judged exactly. The rest is judged by bounds. A row whose
number is above those of the first reading is of a saga that began meanwhile: the journals' highest
numbers are read again at the end, and by then they must have given it. The invariants are 6 and 8
to 10 of the proof, as far as books can show them.

Stock changes while it is read. Reservations are read before it and, from the first one that could
have changed, again after it. A reservation that was unreleased both times was so when the stock
was read, since none is ever taken back; one that was released before it was released. What is
neither makes the bounds. When nothing runs there is none of these, and the judgement is exact.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from sagacity import money
from sagacity.ids import count_of, shard_of
from sagacity.ranges import Ranges

FAULTS_MAX = 200  # sentences in a report; what is more is counted in the last one

CHECKOUT = "checkout"  # the definition whose effects these books hold; other sagas are counted
_OTHER = "OTHER"
_FORGOTTEN = "FORGOTTEN"  # final and past retention: its journal gives no more than its number

# The steps of checkout, as SPEC 1 numbers them.
RESERVE, CHARGE, SHIP = 1, 2, 3

# What the services' books say of a saga; a saga that completed has exactly _WHOLE.
_HELD, _RELEASED, _CHARGED, _SHIPPED, _CANCELLED, _REFUNDED = 1, 2, 4, 8, 16, 32
_WHOLE = _HELD | _CHARGED | _SHIPPED

Row = Sequence[Any]


class _Known(Struct, frozen=True, gc=False):
    """A saga of a journal; `phase` is one of the four, or _OTHER for one that is no checkout.

    Or _FORGOTTEN for one that is past retention: of that nothing but the number is known.
    """

    saga_id: str
    phase: str
    amount: int

    @property
    def final(self) -> bool:
        return self.phase in {"COMPLETED", "ABORTED", _FORGOTTEN}


_GONE = _Known("past retention", _FORGOTTEN, 0)


class _Goods(Struct, gc=False):
    """Pieces of one SKU, summed over reservations of final sagas, and of the others."""

    held: int = 0  # by final sagas that were not completed: a fault as well
    shipped: int = 0
    moving: int = 0  # unreleased when last read, of sagas that are not final
    certain: int = 0  # of these, surely unreleased when the stock was read
    uncertain: int = 0  # perhaps unreleased when the stock was read


class Judge:
    """Takes the rows in the order of its methods, then gives its report, once.

    Rows are those of the wire's BOOKS answers. Nothing is kept of a row but what the judgement
    needs: some 300 bytes a saga.
    """

    def __init__(self) -> None:
        self._sagas: dict[int, _Known] = {}
        self._ids: dict[str, int] = {}
        self._forgotten: dict[int, Ranges] = {}
        self._ended: dict[int, array[int]] = {}  # numbers, by shard
        self._others = False  # sagas that are no checkouts were seen
        self._highest: dict[int, int] = {}
        self._newest: dict[int, tuple[int, str]] = {}  # of rows: above `_highest`, and what it is
        self._counts = {"completed": 0, "aborted": 0, "stuck": 0, "running": 0}
        self._effects: dict[int, int] = {}
        self._lines: set[int] = set()
        self._goods: dict[str, _Goods] = {}
        self._open: dict[int, tuple[str, int, bool]] = {}  # reservations that may change
        self._seen_to = 0
        self._money = {"charged": 0, "refunded": 0}
        self._shipments = {"live": 0, "cancelled": 0}
        self._stock: dict[str, dict[str, int]] = {}
        self._faults: list[str] = []
        self._more = 0

    # Journals

    def journal(self, shard: int, highest: int, running: Iterable[Row]) -> None:
        """Take what ran: rows [number, saga_id, phase, stuck, amount, saga].

        A shard without a saga has `highest` 0.
        """
        if shard in self._highest:
            self._fault(f"shard {shard} was read twice")
        self._highest[shard] = highest
        for number, saga_id, phase, stuck, amount, saga in running:
            self._counts["running"] += 1
            self._counts["stuck"] += bool(stuck)
            if phase not in {"RUNNING", "COMPENSATING"}:
                self._fault(f"{_name(number, saga_id)} is not final but {phase} in its journal")
            judged = phase if saga == CHECKOUT else _OTHER
            self._know(shard, number, _Known(saga_id, judged, amount))

    def finished(self, shard: int, rows: Iterable[Row]) -> None:
        """Take a page of the book "finished": rows [number, saga_id, phase, amount, saga]."""
        for number, saga_id, phase, amount, saga in rows:
            if phase == "COMPLETED":
                self._counts["completed"] += 1
            elif phase == "ABORTED":
                self._counts["aborted"] += 1
            else:
                self._fault(f"{_name(number, saga_id)} is finished but {phase} in its journal")
            self._ended.setdefault(shard, array("q")).append(number)
            judged = phase if saga == CHECKOUT else _OTHER
            self._know(shard, number, _Known(saga_id, judged, amount))

    def forgotten(self, shard: int, ranges: Iterable[Row]) -> None:
        """Take a page of the book "forgotten": ranges [low, high] of counts, both included."""
        known = self._forgotten.setdefault(shard, Ranges())
        for low, high in ranges:
            known.add(low, high)

    def finished_end(self, shard: int, upto: int) -> None:
        """Compare how many finished sagas a shard gave, or has forgotten, with how many it had."""
        forgotten = self._forgotten.get(shard, Ranges())
        given = self._ended.get(shard, array("q"))
        twice = sum(1 for number in given if count_of(number) in forgotten)
        counted = len(given) - twice + sum(high - low + 1 for low, high in forgotten.all())
        if counted != upto:
            self._fault(f"shard {shard} gave {counted} finished sagas and counts {upto}")

    def _know(self, shard: int, number: int, known: _Known) -> None:
        name = _name(number, known.saga_id)
        if number in self._sagas:
            self._fault(f"{name} is in the journals twice")
        if known.saga_id in self._ids:
            other = self._ids[known.saga_id]
            self._fault(f"{name} is in the journals under number {other} too")
        if shard_of(number) != shard or number > self._highest.get(shard, -1):
            self._fault(f"{name} has a number that shard {shard} has not given")
        if known.amount < 0:
            self._fault(f"{name} has a negative amount")
        self._others = self._others or known.phase == _OTHER
        self._sagas[number] = known
        self._ids[known.saga_id] = number

    def _find(self, number: int) -> _Known | None:
        """Give what a journal says of a number; None where it says nothing."""
        known = self._sagas.get(number)
        if known is None and self._forgotten:
            ranges = self._forgotten.get(shard_of(number))
            if ranges is not None and count_of(number) in ranges:
                return _GONE
        return known

    # Services

    def reservations(self, rows: Iterable[Row]) -> None:
        """Take a page of reservations, before the stock.

        Rows [id, number, step, line, sku, quantity, released], ids growing from page to page.
        """
        for id_, number, step, line, sku, quantity, released in rows:
            if self._reservation(id_, number, step, line, quantity):
                known = self._find(number)
                if known is not None and known.final:
                    self._settle(number, known, sku, quantity, released)
                else:
                    self._open[id_] = (sku, quantity, bool(released))
            self._mark(number, _RELEASED if released else _HELD)

    def reservations_again(self, rows: Iterable[Row]) -> None:
        """Take a page of reservations, after the stock; they begin after `again_after`."""
        for id_, number, step, line, sku, quantity, released in rows:
            before = self._open.pop(id_, None)
            if before is None and id_ <= self._seen_to:
                continue  # of a final saga, counted before
            if before is None:
                if not self._reservation(id_, number, step, line, quantity):
                    continue
                known = self._find(number)
                if known is not None and known.final:
                    name = _name(number, known.saga_id)
                    self._fault(f"{name} was {known.phase} and reserved {sku} afterwards")
                self._mark(number, _RELEASED if released else _HELD)
            elif before[:2] != (sku, quantity) or (before[2] and not released):
                self._fault(f"reservation {id_} of {self._name_of(number)} was changed")
            goods = self._goods.setdefault(sku, _Goods())
            goods.moving += 0 if released else quantity
            if before is not None and not before[2] and not released:
                goods.certain += quantity
            elif before is None or not before[2]:
                goods.uncertain += quantity

    @property
    def again_after(self) -> int:
        """The reservation after which they are to be read again, once the stock was read."""
        changing = (id_ for id_, (_, _, released) in self._open.items() if not released)
        return min(changing, default=self._seen_to + 1) - 1

    def stock(self, rows: Iterable[Row]) -> None:
        """Take a page of the stock: rows [sku, initial, available]."""
        for sku, initial, available in rows:
            if sku in self._stock:
                self._fault(f"the stock of {sku} is kept twice")
            if not 0 <= available <= initial:
                self._fault(f"the stock of {sku} is {available} of {initial}")
            self._stock[sku] = {"initial": initial, "available": available}

    def payments(self, rows: Iterable[Row]) -> None:
        """Take a page of payments: rows [id, number, step, user_id, amount, refunded]."""
        for _, number, step, _, amount, refunded in rows:
            self._money["charged"] += amount
            self._money["refunded"] += refunded
            known = self._row("payment", number, step, CHARGE)
            name = self._name_of(number)
            if amount < 0 or not 0 <= refunded <= amount:
                self._fault(
                    f"{name} was charged {money.show(amount)} and refunded {money.show(refunded)}"
                )
            if self._mark(number, _CHARGED | (_REFUNDED if refunded else 0)) & _CHARGED:
                self._fault(f"{name} was charged twice")
            if known is None:
                continue
            if known is _GONE and refunded not in (0, amount):
                self._fault(f"{name} was refunded a part")
            if amount != known.amount and known.phase not in {_OTHER, _FORGOTTEN}:
                self._fault(
                    f"{name} was charged {money.show(amount)}, its price is "
                    f"{money.show(known.amount)}"
                )
            if known.phase == "COMPLETED" and refunded != 0:
                self._fault(f"{name} is COMPLETED and was refunded {money.show(refunded)}")
            if known.phase == "ABORTED" and refunded != amount:
                self._fault(
                    f"{name} is ABORTED and {money.show(amount - refunded)} of its "
                    f"{money.show(amount)} is still charged"
                )

    def shipments(self, rows: Iterable[Row]) -> None:
        """Take a page of shipments: rows [id, number, step, cancelled]."""
        for _, number, step, cancelled in rows:
            self._shipments["cancelled" if cancelled else "live"] += 1
            self._row("shipment", number, step, SHIP)
            before = self._mark(number, _CANCELLED if cancelled else _SHIPPED)
            if before & (_CANCELLED | _SHIPPED):
                self._fault(f"{self._name_of(number)} has two shipments")

    def _reservation(self, id_: int, number: int, step: int, line: int, quantity: int) -> bool:
        """Check what must hold of every reservation; False for one that was read before."""
        if id_ <= self._seen_to:
            self._fault(f"reservation {id_} was read twice")
            return False
        self._seen_to = id_
        self._row("reservation", number, step, RESERVE)
        key = number << 7 | line
        if key in self._lines or not 0 <= line < 1 << 7:
            self._fault(f"{self._name_of(number)} reserved line {line} twice")
        self._lines.add(key)
        if quantity <= 0:
            self._fault(f"{self._name_of(number)} reserved {quantity} pieces in line {line}")
        return True

    def _settle(self, number: int, known: _Known, sku: str, quantity: int, released: bool) -> None:
        goods = self._goods.setdefault(sku, _Goods())
        if known.phase == _FORGOTTEN:
            goods.shipped += 0 if released else quantity
        elif known.phase == "COMPLETED":
            if released:
                self._fault(f"{_name(number, known.saga_id)} is COMPLETED and released {sku}")
            else:
                goods.shipped += quantity
        elif not released:
            goods.held += quantity
            self._fault(f"{_name(number, known.saga_id)} is ABORTED and holds {quantity} {sku}")

    def _row(self, what: str, number: int, step: int, expected: int) -> _Known | None:
        """Check that a journal may have caused a row; give its saga where a journal knows it."""
        known = self._find(number)
        if known is None:
            highest = self._highest.get(shard_of(number))
            if highest is None:
                self._fault(f"a {what} has number {number}, of a shard that does not exist")
            elif number <= highest:
                self._fault(f"a {what} has number {number}, which no journal knows")
            else:
                shard = shard_of(number)
                self._newest[shard] = max(self._newest.get(shard, (0, "")), (number, what))
        if step != expected:
            self._fault(f"a {what} of {self._name_of(number)} has step {step}, not {expected}")
        return known

    def _mark(self, number: int, effect: int) -> int:
        before = self._effects.get(number, 0)
        self._effects[number] = before | effect
        return before

    def _name_of(self, number: int) -> str:
        known = self._find(number)
        return _name(number, known.saga_id if known else "not in the first reading")

    def _fault(self, text: str) -> None:
        if len(self._faults) < FAULTS_MAX:
            self._faults.append(text)
        else:
            self._more += 1

    # Journals again

    def journal_again(self, shard: int, highest: int) -> None:
        """Take a shard's highest number once more, after all rows of the services."""
        first = self._highest.get(shard, 0)
        if highest < first:
            self._fault(f"shard {shard} had given number {first}, then only {highest}")
        newest, what = self._newest.get(shard, (0, ""))
        if newest > highest:
            self._fault(
                f"a {what} has number {newest}, which shard {shard} has not given: its highest is "
                f"{highest}"
            )

    # The judgement

    def report(self) -> dict[str, Any]:
        """Judge what was taken.

        Returns:
            The report of `audit --json`, SPEC 6.
        """
        for number, known in self._sagas.items():
            for fault in _missing(known, self._effects.get(number, 0)):
                self._fault(f"{_name(number, known.saga_id)} {fault}")
        for number, effects in self._effects.items() if self._forgotten else ():
            if self._find(number) is _GONE and not (self._others or _is_consistent(effects)):
                self._fault(f"{self._name_of(number)} is neither whole nor undone")
        for id_ in [id_ for id_, (_, _, released) in self._open.items() if not released]:
            self._fault(f"reservation {id_} was there and is not any more")
        stock = dict(self._goods_report())
        faults = [*self._faults]
        if self._more:
            faults.append(f"and {self._more} more")
        return {
            "balanced": not faults,
            "stock": stock,
            "money": self._money,
            "shipments": self._shipments,
            "sagas": self._counts | self._count_forgotten(),
            "faults": faults,
        }

    def _count_forgotten(self) -> dict[str, int]:
        ranges = [each for known in self._forgotten.values() for each in known.all()]
        count = sum(high - low + 1 for low, high in ranges)
        return {"forgotten": count} if count else {}  # SPEC 6 names the other four

    def _goods_report(self) -> Iterator[tuple[str, dict[str, int]]]:
        for sku in sorted({*self._stock, *self._goods}):
            goods = self._goods.get(sku, _Goods())
            row = self._stock.get(sku)
            if row is None:
                self._fault(f"{sku} is reserved and not in the stock")
                row = {"initial": 0, "available": 0}
            least = goods.shipped + goods.held + goods.certain
            gone = row["initial"] - row["available"]
            if not least <= gone <= least + goods.uncertain:
                wanted = f"{least}" if not goods.uncertain else f"{least} and more"
                self._fault(f"{gone} pieces of {sku} are gone from the stock, reserved: {wanted}")
            yield sku, {**row, "held": goods.held + goods.moving, "shipped": goods.shipped}


def _is_consistent(effects: int) -> bool:
    """Say whether effects of a saga of which no more is known are those of one that ended."""
    undone = not effects & (_HELD | _SHIPPED) and bool(effects & _REFUNDED) == bool(
        effects & _CHARGED
    )
    return effects == _WHOLE or undone


def _missing(known: _Known, effects: int) -> Iterator[str]:
    """Say what a final saga's effects lack, or have too much of, over all its rows."""
    if known.phase == "COMPLETED" and effects & ~_REFUNDED != _WHOLE:
        if not effects & _HELD:
            yield "is COMPLETED and reserved nothing"
        if not effects & _CHARGED:
            yield "is COMPLETED and was never charged"
        if not effects & _SHIPPED:
            yield "is COMPLETED and has no live shipment"
    if known.phase == "ABORTED" and effects & _SHIPPED:
        yield "is ABORTED and has a live shipment"


def _name(number: int, saga_id: str) -> str:
    return f"saga {saga_id} (number {number})"
