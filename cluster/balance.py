"""What balances, saga by saga: the rules of the continuous audit and what it remembers. Pure.

Knows no socket, no clock and no order of reading; `rounds` says what is read when. A saga that is
final in its journal has left its last row in the services, so it is compared once, exactly, and
what its rows sum up to is kept instead of them: counts as ranges, pieces by SKU. So a round costs
what ended since the one before, not what ever ended.

    pieces gone from the stock  ==  pieces of sagas that are summed up  +  of all others, read anew

Nothing is said on first sight: what does not balance is *suspected*, read again in the next round,
and told only if it still does not. Then it is told until it does. A suspect that was never right is
in no sum: somebody may mend it.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from sagacity.ids import count_of, shard_of
from sagacity.ranges import Range, Ranges, ranges_of

# The books, and the unit of each.
STOCK: Final = "stock"  # pieces that are gone and that nobody holds, or the other way round
RESERVATIONS: Final = "reservations"  # lines
PAYMENTS: Final = "payments"  # minor units
SHIPMENTS: Final = "shipments"  # shipments
STRAYS: Final = "strays"  # rows, of any service, under a number that is no saga's

COMPLETED: Final = "COMPLETED"
ABORTED: Final = "ABORTED"
FORGOTTEN: Final = "FORGOTTEN"  # final and past retention: which of the two is not known any more
OTHER: Final = "OTHER"  # of another definition than `CHECKOUT`, or perhaps: counted, not judged
NOBODY: Final = "NOBODY"  # no saga has this number

CHECKOUT: Final = "checkout"  # the definition whose effects these books hold
# Of sagas, and of strays, so that many of one kind leave room for the other. They are read again in
# each round; reading history, or the open numbers, finds those that there is no room for again.
SUSPECTS_MAX: Final = 5_000

# Of one saga in one service: rows, and two sums of them. Inventory: lines, held, released; payment:
# payments, charged, refunded; shipping: shipments, live, cancelled.
Sums = tuple[int, int, int]
NONE: Final[Sums] = (0, 0, 0)
Pieces = Mapping[str, int]  # by SKU


class Ended(Struct, frozen=True, gc=False):
    """A saga that is final in its journal, or a number that is no saga's."""

    number: int
    saga_id: str
    phase: str
    amount: int


class Effects(Struct, frozen=True, gc=False):
    """What the three services hold of a saga."""

    inventory: Sums = NONE
    payment: Sums = NONE
    shipping: Sums = NONE


NOTHING: Final = Effects()


def imbalance(ended: Ended, effects: Effects) -> dict[str, int]:
    """Give what does not balance of a saga, by book; nothing where it does."""
    (lines, held, released) = effects.inventory
    (payments, charged, refunded) = effects.payment
    (shipments, live, cancelled) = effects.shipping
    phase = ended.phase
    found: dict[str, int] = {}
    if phase == OTHER:
        return found
    if phase == NOBODY:
        rows = lines + payments + shipments
        return {STRAYS: rows} if rows else found
    if phase == FORGOTTEN:  # either of the two; the one that less speaks against
        either = (
            imbalance(Ended(ended.number, "", COMPLETED, charged), effects),
            imbalance(Ended(ended.number, "", ABORTED, 0), effects),
        )
        return min(either, key=len)
    if phase == COMPLETED:
        if released or not held:
            found[RESERVATIONS] = max(released, 1)
        if payments != 1 or charged != ended.amount or refunded:
            found[PAYMENTS] = max(abs(charged - refunded - ended.amount), 1)
        if live != 1 or cancelled:
            found[SHIPMENTS] = max(abs(live - 1), cancelled)
        return found
    if held:
        found[RESERVATIONS] = held
    if charged != refunded:
        found[PAYMENTS] = abs(charged - refunded)
    if live:
        found[SHIPMENTS] = live
    return found


class Summed:
    """Sagas that were compared and are kept as sums: which ones, and the pieces that they hold."""

    def __init__(self) -> None:
        self.counts: dict[int, Ranges] = {}  # by shard
        self.pieces: Counter[str] = Counter()

    def add(self, shard: int, ranges: Iterable[Range], pieces: Pieces) -> None:
        """Take sagas in, by their counts, with the pieces that they hold all together."""
        known = self.counts.setdefault(shard, Ranges())
        for low, high in ranges:
            known.add(low, high)
        self.pieces.update(pieces)

    def holds(self, number: int) -> bool:
        """Say whether a saga is among them."""
        known = self.counts.get(shard_of(number))
        return known is not None and count_of(number) in known


class Suspect(Struct, gc=False):
    """A saga that does not balance.

    Args:
        ended: which.
        found: how much, by book.
        certain: it was seen twice.
    """

    ended: Ended
    found: dict[str, int]
    certain: bool = False


class Told(Struct, frozen=True):
    """Something to be logged: `mended` where it balances again."""

    book: str
    amount: int
    mended: bool
    number: int = 0
    saga_id: str = ""
    sku: str = ""


class Balance:
    """What is known of the books.

    Attributes:
        summed: sagas whose whole history was read; None before it was, for the first time.
        building: the sums that will take its place when history has been read through (again).
        nobody: counts that are no saga's, by shard: lost with a journal, and gone on without it.
        suspects: sagas that do not balance, by number.
        goods: SKUs that do not: how many pieces, and whether that was seen twice.
    """

    def __init__(self) -> None:
        self.summed: Summed | None = None
        self.building = Summed()
        self.nobody: dict[int, Ranges] = {}
        self.suspects: dict[int, Suspect] = {}
        self.goods: dict[str, tuple[int, bool]] = {}
        self.compared = 0  # sagas, since the start
        self._strays = 0  # suspects that are no sagas
        self._told: list[Told] = []

    def compare(self, sagas: Sequence[Ended], effects: Mapping[int, Effects]) -> None:
        """Compare sagas with what the services hold of them; what does not balance is suspected."""
        self.compared += len(sagas)
        for ended in sagas:
            number = ended.number
            found = imbalance(ended, effects.get(number, NOTHING))
            known = self.suspects.get(number)
            if known is not None and known.ended.phase == NOBODY != ended.phase:
                self._drop(known)
                known = None
            if found and known is None and self._has_room(ended.phase):
                self.suspects[number] = Suspect(ended, found)
                self._strays += ended.phase == NOBODY

    def _has_room(self, phase: str) -> bool:
        strays = self._strays
        return (strays if phase == NOBODY else len(self.suspects) - strays) < SUSPECTS_MAX

    def is_taken(self, number: int, *, fresh: bool) -> bool:
        """Say whether a saga is in a sum that `take` would add it to: it was mended meanwhile."""
        in_summed = fresh and self.summed is not None and self.summed.holds(number)
        return in_summed or self.building.holds(number)

    def take(self, shard: int, counts: Iterable[int], pieces: Pieces, *, fresh: bool) -> None:
        """Keep sagas that were compared, and are not suspected, as sums.

        Args:
            shard: whose.
            counts: of them.
            pieces: that they hold.
            fresh: they ended just now; others are read again.
        """
        ranges = ranges_of(counts)
        self.building.add(shard, ranges, pieces)
        if fresh and self.summed is not None:
            self.summed.add(shard, ranges, pieces)

    def take_mended(self, number: int, pieces: Pieces) -> None:
        """Keep one that was suspected; in the sums that it was left out of."""
        at = [(count_of(number), count_of(number))]
        for summed in (self.building, self.summed):
            if summed is not None and not summed.holds(number):
                summed.add(shard_of(number), at, pieces)

    def take_nobody(self, shard: int, ranges: Iterable[Range], strays: Iterable[int]) -> None:
        """Keep in mind that these counts are no saga's; strays, which have rows, stay open."""
        known = self.nobody.setdefault(shard, Ranges())
        for first, last in gaps(ranges, strays):
            known.add(first, last)

    def history_read(self) -> None:
        """All that had ended when `building` began is in it: it is what holds from now on."""
        self.summed, self.building = self.building, Summed()

    def open_ranges(self, shard: int, upto: int) -> list[Range]:
        """Give the counts up to one that are in no sum: they run, are suspected, or nobody's."""
        known = Ranges()
        for each in (self.summed.counts if self.summed else {}, self.nobody):
            for low, high in each.get(shard, Ranges()).all():
                known.add(low, high)
        found, at = [], 1
        for low, high in known.all():
            if at < low and at <= upto:
                found.append((at, min(low - 1, upto)))
            at = high + 1
        return [*found, (at, upto)] if at <= upto else found

    # -- what was seen before -------------------------------------------------------------------

    def again(self, number: int, effects: Effects) -> None:
        """Judge a suspect by what was read of it again; one that balances is none any more."""
        suspect = self.suspects[number]
        was, now = suspect.found, imbalance(suspect.ended, effects)
        suspect.found = now
        if suspect.certain:
            self._tell(suspect.ended, was, now.keys(), mended=True)
            self._tell(suspect.ended, now, was.keys(), mended=False)
        elif now:
            suspect.certain = True
            self._tell(suspect.ended, now, mended=False)
        if not now:
            self._remove(suspect)

    def stock(self, sku: str, gone: int, held: int) -> None:
        """Compare a SKU: pieces gone from its stock, and those that sagas in no sum hold."""
        assert self.summed is not None
        off = gone - held - self.summed.pieces[sku]
        was, certain = self.goods.get(sku, (0, False))
        if off:
            self.goods[sku] = (off, bool(was))
            if was and not certain:
                self._told.append(Told(STOCK, abs(off), False, sku=sku))
        elif was:
            del self.goods[sku]
            if certain:
                self._told.append(Told(STOCK, abs(was), True, sku=sku))

    def totals(self) -> dict[str, int]:
        """Give what certainly does not balance, by book, each in its unit."""
        found = dict.fromkeys((STOCK, RESERVATIONS, PAYMENTS, SHIPMENTS, STRAYS), 0)
        for suspect in self.suspects.values():
            for book, amount in suspect.found.items() if suspect.certain else ():
                found[book] += amount
        found[STOCK] = sum(abs(off) for off, certain in self.goods.values() if certain)
        return found

    def news(self) -> Iterator[Told]:
        """Give, once, what has become certain and what was mended."""
        told, self._told = self._told, []
        yield from told

    def _drop(self, suspect: Suspect) -> None:
        """A number is a saga's after all, which is judged like any other."""
        self._remove(suspect)
        if suspect.certain:
            self._tell(suspect.ended, suspect.found, mended=True)

    def _remove(self, suspect: Suspect) -> None:
        del self.suspects[suspect.ended.number]
        self._strays -= suspect.ended.phase == NOBODY

    def _tell(
        self, ended: Ended, found: Mapping[str, int], but: Iterable[str] = (), *, mended: bool
    ) -> None:
        for book in found.keys() - set(but):
            self._told.append(Told(book, found[book], mended, ended.number, ended.saga_id))


def gaps(ranges: Iterable[Range], without: Iterable[int]) -> Iterator[Range]:
    """Give what is left of some ranges, both ends included, without some numbers."""
    ordered = sorted(without)
    for low, high in ranges:
        at = low
        for each in ordered[bisect_left(ordered, low) : bisect_right(ordered, high)]:
            if at < each:
                yield at, each - 1
            at = each + 1
        if at <= high:
            yield at, high


def common(some: Sequence[Range], others: Sequence[Range]) -> Iterator[Range]:
    """Give what two normal lists of ranges have in common."""
    at = 0
    for low, high in some:
        while at < len(others) and others[at][1] < low:
            at += 1
        found = at
        while found < len(others) and others[found][0] <= high:
            yield max(low, others[found][0]), min(high, others[found][1])
            found += 1
