"""A round of the continuous audit: what is read when. Knows no socket and no rule of the judgement.

The order is part of the proof, as in `audit`: a journal says first that a saga is final, then the
services are asked what they hold of it. One round:

    each shard    sagas that ended since the last round                compared, once
                  a slice of those that ended before                   compared, again and again
    suspects      of earlier rounds                                    compared again
    the stock     beside what the sagas hold that are in no sum yet
    open numbers  that no saga has had for rounds                      nobody's: no row may have one

A page counts when all that was read for it has come; what fails meanwhile is asked again in the
next round, and nothing is concluded from it.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import msgspec
from msgspec import Struct

from cluster.balance import (
    CHECKOUT,
    FORGOTTEN,
    NOBODY,
    NONE,
    NOTHING,
    OTHER,
    Balance,
    Effects,
    Ended,
    Sums,
    common,
    gaps,
    imbalance,
)
from sagacity.errors import NotTaken, SagacityError
from sagacity.ids import count_of, number_of, shard_of
from sagacity.ranges import Range, Ranges, ranges_of
from sagacity.service import Within

T = TypeVar("T")

INVENTORY: Final = "inventory"
PAYMENT: Final = "payment"
SHIPPING: Final = "shipping"
# What a service has to give in `Service.audited`.
TABLES: Final = {
    INVENTORY: {"sagas", "pieces", "stock"},
    PAYMENT: {"sagas"},
    SHIPPING: {"sagas"},
}

LOOK_SAGAS: Final = 1_200  # compared at once: a page of a shard; keeps a worker for 2 to 4 ms
# Of history, in one round: little beside what ends, since it never ends; all the more until it was
# read for the first time, and while the stock is off, which an old row may be the cause of.
HISTORY_LOOKS: Final = 1  # of each shard
HISTORY_LOOKS_FIRST: Final = 6
STOCK_ROWS: Final = 2_000  # SKUs looked at in one round
ROWS_MAX: Final = 5_000
STARTS_AHEAD: Final = 8_192  # sagas that may start in a shard while the stock is read, at most
OPEN_COUNTS_MAX: Final = 1 << 19  # in no sum; more than that cannot be read at once
OPEN_RANGES_MAX: Final = 9_000
AGED_ROUNDS: Final = 3  # after which it is asked whose an open number is
BEYOND_MAX: Final = 100  # rows above all numbers that are looked at
_COUNTS_END: Final = 1 << 50


class Head(Struct):
    """Where a shard's journal is."""

    highest: int
    finished: int
    snapshot: int = 0
    running: int = 0


class Cards(Struct):
    """A page of finished sagas: [number, saga_id, phase, amount, saga]."""

    rows: list[tuple[int, str, str, int, str]]
    start: int = msgspec.field(name="from")


class Running(Struct):
    """A page of sagas that run: [number, saga_id, phase, stuck, amount, saga]."""

    rows: list[tuple[int, str, str, bool, int, str]]


class Gone(Struct):
    """A page of ranges of counts that are past retention."""

    rows: list[tuple[int, int]]


class OfSagas(Struct):
    """A page of what a service holds of sagas: a number and three sums."""

    rows: list[tuple[int, int, int, int]]
    next: int | None


class OfPieces(Struct):
    """A page of SKUs and pieces."""

    rows: list[tuple[str, int]]
    next: str | None


class OfStock(Struct):
    """A page of SKUs: initial, available, pieces held by the sagas that were asked for."""

    rows: list[tuple[str, int, int, int]]
    next: str | None


class Reader(Protocol):
    """What a round needs of a cluster."""

    def ask(self, shard: int, body: dict[str, Any], kind: type[T]) -> T:
        """Ask a shard for a page of its books, or of a service's.

        Raises:
            SagacityError: it cannot be had now.
        """


class StartedOver(Exception):
    """What was summed up is worth nothing: a journal is behind what it had said, or sagas went past
    retention before they were read."""


class _Place(Struct):
    """How far a shard was read.

    Args:
        head: sagas that had ended when it was read last; None before the first time.
        at: of history, so many were read this time.
        end: where history ends, this time.
        highest: counts, of the last rounds, the newest last.
        unowned: how many had ended then, and open counts that none had that ran.
    """

    head: int | None = None
    at: int = 0
    end: int = 0
    highest: list[int] = []
    unowned: tuple[int, list[Range]] = (0, [])


class Rounds:
    """Audits a cluster, round by round.

    Args:
        reader: to ask.
        shards: their indices.
        others: the journals may hold sagas of other definitions than `CHECKOUT`.
    """

    def __init__(self, reader: Reader, shards: Sequence[int], *, others: bool) -> None:
        self.balance = Balance()
        self.read_through = 0  # how often the whole history was, since somebody set this to 0
        self._reader = reader
        self._places = {shard: _Place() for shard in shards}
        self._sku = ""  # the stock is looked at from here on
        self._ahead = min(STARTS_AHEAD, OPEN_COUNTS_MAX // (2 * max(1, len(self._places))))
        # Past retention it is not known any more which definition a saga is of.
        self._forgotten = OTHER if others else FORGOTTEN

    def round(self) -> None:
        """Make a round.

        Raises:
            SagacityError: something could not be read; all else was.
            StartedOver: make another one.
        """
        suspects = list(self.balance.suspects)  # those that this round finds wait for the next
        parts: list[Callable[[], None]] = [
            *(partial(self._shard, shard, place) for shard, place in self._places.items()),
            self._history,
            lambda: self._again(suspects),
        ]
        missed: SagacityError | None = None
        for part in parts:
            try:
                part()
            except SagacityError as error:
                missed = error
        if missed is not None:
            raise missed
        if self.balance.summed is not None:
            self._open()

    # -- sagas that ended -----------------------------------------------------------------------

    def _shard(self, shard: int, place: _Place) -> None:
        told = self._head(shard)
        highest = count_of(told.highest)
        if place.head is None:
            place.head = place.end = told.finished
        elif told.finished < place.head or highest < place.highest[-1]:
            raise StartedOver(f"the journal of shard {shard} is behind what it was")
        place.highest = [*place.highest, highest][-AGED_ROUNDS - 1 :]
        while place.head < told.finished:
            place.head = self._look_at_cards(shard, place.head, told.finished, fresh=True)
        eager = self.balance.summed is None or self.balance.goods
        for _ in range(HISTORY_LOOKS_FIRST if eager else HISTORY_LOOKS):
            if place.at < place.end:
                place.at = self._look_at_cards(shard, place.at, place.end, fresh=False)
            elif not self._look_at_forgotten(shard):
                break

    def _head(self, shard: int) -> Head:
        # With a snapshot that nobody has: none is taken, which would push out another audit's.
        return self._reader.ask(shard, {"book": "sagas", "snapshot": 1}, Head)

    def _look_at_cards(self, shard: int, at: int, upto: int, *, fresh: bool) -> int:
        """Compare a page of finished sagas; give where the next one begins."""
        ask = {"book": "finished", "from": at, "upto": min(upto, at + LOOK_SAGAS)}
        page = self._reader.ask(shard, ask, Cards)
        sagas = [
            Ended(number, saga_id, phase if saga == CHECKOUT else OTHER, amount)
            for number, saga_id, phase, amount, saga in page.rows
        ]
        if fresh and page.start > at:
            raise StartedOver(f"sagas of shard {shard} went past retention unread")
        self._look(shard, sagas, fresh=fresh)
        if not sagas:  # past retention by now: they are found among the forgotten
            return min(upto, max(page.start, at + LOOK_SAGAS))
        return page.start + len(sagas)

    def _look_at_forgotten(self, shard: int) -> bool:
        """Compare some past retention that were not read as cards; False: there are none."""
        start = 0
        while True:
            page = self._reader.ask(shard, {"book": "forgotten", "from": start}, Gone)
            for low, high in page.rows:
                missing = self._unread(shard, low, high)
                if missing:
                    numbers = (number_of(each, shard) for each in missing)
                    gone = [Ended(number, "", self._forgotten, 0) for number in numbers]
                    self._look(shard, gone, fresh=False)
                    return True
            start += len(page.rows)
            if not page.rows:
                return False

    def _unread(self, shard: int, low: int, high: int) -> list[int]:
        """Give the first counts of a range that were not read this time, as many as a page has."""
        known = self.balance.building.counts.get(shard, Ranges())
        suspects = self.balance.suspects
        found: list[int] = []
        at = known.first_missing(low)
        while at <= high and len(found) < LOOK_SAGAS:
            if number_of(at, shard) not in suspects:
                found.append(at)
            at = known.first_missing(at + 1)
        return found

    def _history(self) -> None:
        """See whether history was read through; then it is read again from its beginning."""
        places = self._places
        if any(place.head is None or place.at < place.end for place in places.values()):
            return
        if any(self._look_at_forgotten(shard) for shard in places):
            return
        self.balance.history_read()
        self.read_through += 1
        for place in places.values():
            place.at, place.end = 0, place.head or 0

    def _look(self, shard: int, sagas: Sequence[Ended], *, fresh: bool) -> None:
        """Compare sagas of one shard, and keep their sums."""
        balance = self.balance
        if not sagas:
            return
        effects = self._effects(shard, _within(shard, (each.number for each in sagas)))
        balance.compare(sagas, effects)
        sound = [each.number for each in sagas if each.number not in balance.suspects]
        mended = [number for number in sound if balance.is_taken(number, fresh=fresh)]
        if mended:  # while this page was still to come
            sound = sorted({*sound} - {*mended})
        pieces = self._pieces(shard, _within(shard, sound))
        balance.take(shard, map(count_of, sound), pieces, fresh=fresh)
        for number in mended:
            balance.take_mended(number, self._pieces(shard, _within(shard, [number])))

    # -- what the services hold -----------------------------------------------------------------

    def _effects(self, shard: int, within: Within) -> dict[int, Effects]:
        inventory = self._of_sagas(shard, INVENTORY, within)
        payment = self._of_sagas(shard, PAYMENT, within)
        shipping = self._of_sagas(shard, SHIPPING, within)
        return {
            number: Effects(
                inventory.get(number, NONE), payment.get(number, NONE), shipping.get(number, NONE)
            )
            for number in {*inventory, *payment, *shipping}
        }

    def _of_sagas(self, shard: int, service: str, within: Within) -> dict[int, Sums]:
        found: dict[int, Sums] = {}
        key: int | None = 0 if within else None
        while key is not None:
            body = _body(service, "sagas", key, ROWS_MAX, within)
            page = self._reader.ask(shard, body, OfSagas)
            found.update({number: (rows, a, b) for number, rows, a, b in page.rows})
            key = page.next
        return found

    def _pieces(self, shard: int, within: Within) -> dict[str, int]:
        found: dict[str, int] = {}
        key: str | None = "" if within else None
        while key is not None:
            page = self._reader.ask(
                shard, _body(INVENTORY, "pieces", key, ROWS_MAX, within), OfPieces
            )
            found.update(page.rows)
            key = page.next
        return found

    def _again(self, numbers: Iterable[int]) -> None:
        """Look at suspects again."""
        balance = self.balance
        of: dict[int, list[int]] = {}
        for number in numbers:
            if number in balance.suspects:
                shard = shard_of(number)
                of.setdefault(shard if shard in self._places else 0, []).append(number)
        for shard, suspected in of.items():
            for at in range(0, len(suspected), LOOK_SAGAS):
                some = suspected[at : at + LOOK_SAGAS]
                within = [(shard_of(n), count_of(n), count_of(n)) for n in sorted(some)]
                effects = self._effects(shard, within)
                for number in some:
                    self._judge_again(shard, number, effects.get(number, NOTHING))

    def _judge_again(self, shard: int, number: int, effects: Effects) -> None:
        ended = self.balance.suspects[number].ended
        mended = ended.phase != NOBODY and not imbalance(ended, effects)
        # Before it is no suspect any more: it must be in the sums then.
        pieces = self._pieces(shard, _within(shard, [number])) if mended else {}
        self.balance.again(number, effects)
        if mended:
            self.balance.take_mended(number, pieces)

    # -- the others -----------------------------------------------------------------------------

    def _open(self) -> None:
        """Look at the stock, and at numbers that no saga has."""
        upto = {s: count_of(self._head(s).highest) + self._ahead for s in self._places}
        open_ = [
            (shard, low, high)
            for shard in self._places
            for low, high in self.balance.open_ranges(shard, upto[shard])
        ]
        counts = sum(high - low + 1 for _, low, high in open_)
        is_bounded = counts <= OPEN_COUNTS_MAX and len(open_) <= OPEN_RANGES_MAX
        if is_bounded:
            self._stock(open_, upto)
        for shard, place in self._places.items():
            self._nobody(shard, place)
        self._beyond(upto)
        if not is_bounded:
            text = f"the stock was not judged: {counts} numbers are open, in {len(open_)} ranges"
            raise NotTaken(text)

    def _stock(self, open_: Within, upto: dict[int, int]) -> None:
        first = next(iter(self._places))
        page = self._reader.ask(
            first, _body(INVENTORY, "stock", self._sku, STOCK_ROWS, open_), OfStock
        )
        for shard in self._places:
            if count_of(self._head(shard).highest) > upto[shard]:
                return  # so many started meanwhile that some were not asked for
        for sku, initial, available, held in page.rows:
            self.balance.stock(sku, initial - available, held)
        self._sku = page.next or ""

    def _nobody(self, shard: int, place: _Place) -> None:
        """See to numbers that stay open: of sagas that run, or of nobody."""
        ended, unowned = place.unowned
        place.unowned = (0, [])
        if len(place.highest) <= AGED_ROUNDS:
            return
        aged = self._aged(shard, place.highest[0])
        if unowned and place.head is not None and place.head >= ended:
            # Nobody ran them, and who had ended by then is in the sums.
            self._no_saga(shard, list(common(unowned, aged)))
            aged = self._aged(shard, place.highest[0])
        if aged:
            told = self._reader.ask(shard, {"book": "sagas"}, Head)
            try:
                live = self._live(shard, told)
            finally:
                ask = {"book": "sagas", "snapshot": told.snapshot}
                self._reader.ask(shard, ask, Head)  # lets go of it
            place.unowned = (told.finished, list(gaps(aged, live)))

    def _aged(self, shard: int, upto: int) -> list[Range]:
        suspected = {count_of(n) for n in self.balance.suspects if shard_of(n) == shard}
        return list(gaps(self.balance.open_ranges(shard, upto), suspected))

    def _live(self, shard: int, told: Head) -> set[int]:
        live: set[int] = set()
        while len(live) < told.running:
            ask = {"book": "running", "snapshot": told.snapshot, "from": len(live)}
            rows = self._reader.ask(shard, ask, Running).rows
            live.update(count_of(row[0]) for row in rows)
            if not rows:
                break
        return live

    def _no_saga(self, shard: int, ranges: Sequence[Range]) -> None:
        """What services hold under these counts is nobody's."""
        for low, high in ranges:
            for first in range(low, high + 1, OPEN_COUNTS_MAX):
                last = min(high, first + OPEN_COUNTS_MAX - 1)
                effects = self._effects(shard, [(shard, first, last)])
                self.balance.compare([Ended(n, "", NOBODY, 0) for n in sorted(effects)], effects)
                self.balance.take_nobody(shard, [(first, last)], map(count_of, effects))

    def _beyond(self, upto: dict[int, int]) -> None:
        """Look for rows above all numbers that were given."""
        from_ = max(upto.values()) + 1
        within = [(-1, from_, _COUNTS_END)]
        first = next(iter(self._places))
        effects: dict[int, Effects] = {}
        for service, name in (
            (INVENTORY, "inventory"),
            (PAYMENT, "payment"),
            (SHIPPING, "shipping"),
        ):
            body = _body(service, "sagas", 0, BEYOND_MAX, within)
            for number, rows, a, b in self._reader.ask(first, body, OfSagas).rows:
                known = effects.get(number, NOTHING)
                effects[number] = msgspec.structs.replace(known, **{name: (rows, a, b)})
        if effects and all(count_of(self._head(s).highest) < from_ for s in self._places):
            self.balance.compare([Ended(n, "", NOBODY, 0) for n in sorted(effects)], effects)


def _body(service: str, table: str, after: int | str, limit: int, within: Within) -> dict[str, Any]:
    """Give what asks for a page; in the order in which the service writes it down, too."""
    return {"book": service, "table": table, "after": after, "limit": limit, "within": within}


def _within(shard: int, numbers: Iterable[int]) -> Within:
    return [(shard, low, high) for low, high in ranges_of(map(count_of, numbers))]
