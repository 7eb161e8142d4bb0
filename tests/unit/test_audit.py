"""The books judged: a right set of books balances, one wrong row anywhere turns it red."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.audit import PAGE_ROWS, audit
from cluster.judge import FAULTS_MAX
from sagacity import wire
from sagacity.errors import NotTaken
from sagacity.ids import number_of
from shard.books import PAGE_MAX

SHARDS = 2
Rows = list[list[Any]]

# What a saga leaves in the services, by how far it came and how it ended:
# (phase, reserved, charged, shipped), each effect None, "done" or "undone".
ENDS: list[tuple[str, str | None, str | None, str | None]] = [
    ("COMPLETED", "done", "done", "done"),
    ("ABORTED", None, None, None),
    ("ABORTED", "undone", None, None),
    ("ABORTED", "undone", "undone", None),
    ("ABORTED", "undone", "undone", "undone"),
]
MOVING: list[tuple[str, str | None, str | None, str | None]] = [
    ("RUNNING", None, None, None),
    ("RUNNING", "done", None, None),
    ("RUNNING", "done", "done", None),
    ("RUNNING", "done", "done", "done"),
    ("COMPENSATING", "done", "undone", None),
    ("COMPENSATING", "undone", "undone", "undone"),
]


class Books:
    """A twin of a client: books in memory, given out page by page.

    Args:
        seed: chooses the sagas.
        counts: how many are finished, running, and newer than the journals' reading.
    """

    def __init__(self, seed: int, *, finished: int = 12, running: int = 0, newer: int = 0) -> None:
        chance = random.Random(seed)
        self.running: list[Rows] = [[] for _ in range(SHARDS)]
        self.finished: list[Rows] = [[] for _ in range(SHARDS)]
        self.highest = [0] * SHARDS
        self.stock: Rows = [["abc123", 10**6, 10**6], ["none", 0, 0], ["xyz789", 500, 500]]
        self.reservations: Rows = []
        self.payments: Rows = []
        self.shipments: Rows = []
        self.asked: list[tuple[str, str]] = []
        self.between: Callable[[str], None] = lambda _: None  # what happens while one reads
        self.down: set[int] = set()  # shards that have no worker
        self.page = 3
        self.gone = 0  # finished sagas that a shard counts and does not give
        counts = [0] * SHARDS
        for at in range(finished + running + newer):
            shard = chance.randrange(SHARDS)
            counts[shard] += 1
            number = number_of(counts[shard], shard)
            is_final = at < finished
            if is_final and at < len(ENDS):
                end = ENDS[at]
            else:
                end = chance.choice(ENDS if is_final else MOVING)
            amount = chance.randrange(1, 10**6)
            self._effects(number, end, amount, chance)
            if at >= finished + running:
                continue
            self.highest[shard] = number
            if is_final:
                self.finished[shard].append([number, f"saga{at}", end[0], amount])
            else:
                self.running[shard].append([number, f"saga{at}", end[0], False, amount])

    def _effects(self, number: int, end: Any, amount: int, chance: random.Random) -> None:
        _, reserved, charged, shipped = end
        if reserved:
            for line in range(chance.randint(1, 3)):
                self.reserve(number, line, chance.choice(["abc123", "xyz789"]), reserved != "done")
        if charged:
            refunded = amount if charged == "undone" else 0
            self.payments.append([len(self.payments) + 1, number, 2, "u", amount, refunded])
        if shipped:
            self.shipments.append([len(self.shipments) + 1, number, 3, shipped == "undone"])

    def reserve(self, number: int, line: int, sku: str, released: bool = False) -> None:
        """Do what the inventory does for a line of 3 pieces."""
        self.reservations.append([len(self.reservations) + 1, number, 1, line, sku, 3, released])
        if not released:
            self.row_of(sku)[2] -= 3

    def release(self, row: list[Any]) -> None:
        """Do what the inventory does for a release."""
        assert not row[6]
        row[6] = True
        self.row_of(row[4])[2] += row[5]

    def row_of(self, sku: str) -> list[Any]:
        return next(row for row in self.stock if row[0] == sku)

    def status(self) -> dict[str, Any]:
        return {"shards": [{"shard": shard} for shard in range(SHARDS)]}

    def books(self, shard: int, body: dict[str, Any]) -> dict[str, Any]:
        book = body["book"]
        table = body.get("table", book)
        self.asked.append((book, table))
        if book == "sagas":
            finished = len(self.finished[shard]) + self.gone
            return {
                "highest": self.highest[shard],
                "finished": finished,
                "snapshot": 7 + shard,
                "running": len(self.running[shard]),
            }
        if book == "running":
            assert body["snapshot"] == 7 + shard
            return {"rows": self.running[shard][body["from"] :][: self.page]}
        if book == "finished":
            assert body["upto"] <= len(self.finished[shard]) + self.gone
            return {"rows": self.finished[shard][body["from"] : body["upto"]][: self.page]}
        if shard in self.down:
            raise NotTaken("no worker")
        rows = [row for row in getattr(self, table) if row[0] > body["after"]]
        page = [[*row] for row in rows[: self.page]]
        self.between(table)
        return {"rows": page, "next": page[-1][0] if len(rows) > self.page else None}


def test_right_books_balance() -> None:
    books = Books(1)
    report = audit(books)
    assert report["faults"] == []
    assert list(report) == ["balanced", "stock", "money", "shipments", "sagas", "faults"]
    assert report["balanced"] is True


def test_the_report_counts_what_is_there() -> None:
    """SPEC 6: unreleased is shipped if its saga completed, else held; money in minor units."""
    books = Books(0, finished=0)
    done, undone, moving = number_of(1, 0), number_of(2, 0), number_of(1, 1)
    books.highest = [undone, moving]
    books.finished[0] = [[done, "a", "COMPLETED", 30000], [undone, "b", "ABORTED", 500]]
    books.running[1] = [[moving, "c", "COMPENSATING", True, 700]]
    books.reserve(done, 0, "abc123")
    books.reserve(undone, 0, "abc123", released=True)
    books.reserve(moving, 0, "abc123")
    books.payments = [[1, done, 2, "u", 30000, 0], [2, undone, 2, "u", 500, 500]]
    books.shipments = [[1, done, 3, False], [2, undone, 3, True]]
    assert audit(books) == {
        "balanced": True,
        "stock": {
            "abc123": {"initial": 10**6, "available": 10**6 - 6, "held": 3, "shipped": 3},
            "none": {"initial": 0, "available": 0, "held": 0, "shipped": 0},
            "xyz789": {"initial": 500, "available": 500, "held": 0, "shipped": 0},
        },
        "money": {"charged": 30500, "refunded": 500},
        "shipments": {"live": 1, "cancelled": 1},
        "sagas": {"completed": 1, "aborted": 1, "stuck": 1, "running": 1},
        "faults": [],
    }


def test_journals_are_read_before_services_and_reservations_around_the_stock() -> None:
    """SPEC 6: a saga that is final in the first reading is judged exactly."""
    books = Books(1)
    books.page = 1000
    audit(books)
    assert [table for _, table in books.asked] == [
        *["sagas"] * SHARDS,
        *["finished"] * SHARDS,
        "reservations",
        "stock",
        "reservations",
        "payments",
        "shipments",
    ]


@given(
    seed=st.integers(0, 10**6),
    finished=st.integers(0, 30),
    running=st.integers(0, 10),
    newer=st.integers(0, 10),
)
def test_right_books_balance_whatever_runs(
    seed: int, finished: int, running: int, newer: int
) -> None:
    assert audit(Books(seed, finished=finished, running=running, newer=newer))["faults"] == []


@given(seed=st.integers(0, 10**6))
def test_books_that_move_while_they_are_read_balance(seed: int) -> None:
    """Reservations come and go between any two pages; the bounds hold, whatever the order."""
    books = Books(seed, running=8, newer=4)
    chance = random.Random(seed)
    final = {row[0] for rows in books.finished for row in rows}
    fresh = [number_of(1000 + at, at % SHARDS) for at in range(1000)]

    def between(_: str) -> None:
        for _change in range(chance.randrange(3)):
            moving = [r for r in books.reservations if r[1] not in final and not r[6]]
            if moving and chance.random() < 0.6:
                books.release(chance.choice(moving))
            elif len(books.reservations) < 120:
                books.reserve(fresh.pop(), 0, chance.choice(["abc123", "xyz789"]))

    books.between = between
    assert audit(books)["faults"] == []


Planted = Callable[[Books, random.Random], None]
PLANTED: dict[str, Planted] = {}


def planted(plant: Planted) -> Planted:
    PLANTED[plant.__name__] = plant
    return plant


def finished_as(books: Books, phase: str) -> list[Any]:
    """Give a finished row of this phase; of the aborted, one that was charged."""
    charged = {row[1] for row in books.payments}
    rows = [row for rows in books.finished for row in rows]
    return next(row for row in rows if row[2] == phase and row[0] in charged)


@planted
def available_changed(books: Books, chance: random.Random) -> None:
    books.row_of("abc123")[2] += chance.choice([-7, -1, 1, 7])


@planted
def available_negative(books: Books, chance: random.Random) -> None:
    books.row_of("none")[2] = -1


@planted
def initial_changed(books: Books, chance: random.Random) -> None:
    books.row_of("abc123")[1] += chance.choice([-1, 1])


@planted
def stock_row_gone(books: Books, chance: random.Random) -> None:
    used = {row[4] for row in books.reservations if not row[6]}
    books.stock.remove(books.row_of(chance.choice(sorted(used))))


@planted
def quantity_changed(books: Books, chance: random.Random) -> None:
    row = chance.choice([row for row in books.reservations if not row[6]])
    row[5] += 1


@planted
def sku_changed(books: Books, chance: random.Random) -> None:
    row = chance.choice([row for row in books.reservations if not row[6]])
    row[4] = {"abc123": "xyz789", "xyz789": "abc123"}[row[4]]


@planted
def reservation_gone(books: Books, chance: random.Random) -> None:
    books.reservations.remove(chance.choice([r for r in books.reservations if not r[6]]))


@planted
def released_lost(books: Books, chance: random.Random) -> None:
    """An aborted saga that holds stock, even where the stock agrees."""
    final = {row[0] for rows in books.finished for row in rows}
    row = chance.choice([row for row in books.reservations if row[6] and row[1] in final])
    row[6] = False
    books.row_of(row[4])[2] -= 3


@planted
def released_of_a_completed(books: Books, chance: random.Random) -> None:
    books.release(next(row for row in books.reservations if not row[6]))


@planted
def reserved_twice(books: Books, chance: random.Random) -> None:
    row = chance.choice(books.reservations)
    books.reservations.append([len(books.reservations) + 1, *row[1:]])


@planted
def reserved_without_a_saga(books: Books, chance: random.Random) -> None:
    missing = number_of(0, 0)
    books.highest[0] = max(books.highest[0], missing)
    books.reserve(missing, 0, "abc123")


@planted
def reserved_in_no_shard(books: Books, chance: random.Random) -> None:
    books.reserve(number_of(1, 77), 0, "abc123")


@planted
def charged_another_amount(books: Books, chance: random.Random) -> None:
    chance.choice(books.payments)[4] += chance.choice([-1, 1, 10**6])


@planted
def charged_twice(books: Books, chance: random.Random) -> None:
    row = chance.choice(books.payments)
    books.payments.append([len(books.payments) + 1, *row[1:]])


@planted
def charge_gone(books: Books, chance: random.Random) -> None:
    number = finished_as(books, "COMPLETED")[0]
    books.payments = [row for row in books.payments if row[1] != number]


@planted
def refund_of_a_completed(books: Books, chance: random.Random) -> None:
    number = finished_as(books, "COMPLETED")[0]
    next(row for row in books.payments if row[1] == number)[5] = 1


@planted
def refund_lost(books: Books, chance: random.Random) -> None:
    number = finished_as(books, "ABORTED")[0]
    next(row for row in books.payments if row[1] == number)[5] -= 1


@planted
def refund_too_large(books: Books, chance: random.Random) -> None:
    row = chance.choice(books.payments)
    row[5] = row[4] + 1


@planted
def charge_without_a_saga(books: Books, chance: random.Random) -> None:
    books.payments.append([len(books.payments) + 1, number_of(0, 1), 2, "u", 100, 100])


@planted
def shipment_gone(books: Books, chance: random.Random) -> None:
    number = finished_as(books, "COMPLETED")[0]
    books.shipments = [row for row in books.shipments if row[1] != number]


@planted
def shipment_cancelled(books: Books, chance: random.Random) -> None:
    next(row for row in books.shipments if not row[3])[3] = True


@planted
def shipment_twice(books: Books, chance: random.Random) -> None:
    row = chance.choice(books.shipments)
    books.shipments.append([len(books.shipments) + 1, *row[1:]])


@planted
def shipment_of_an_aborted(books: Books, chance: random.Random) -> None:
    number = finished_as(books, "ABORTED")[0]
    books.shipments = [row for row in books.shipments if row[1] != number]
    books.shipments.append([10**6, number, 3, False])


@planted
def shipment_without_a_saga(books: Books, chance: random.Random) -> None:
    books.shipments.append([len(books.shipments) + 1, number_of(0, 0), 3, True])


@planted
def step_changed(books: Books, chance: random.Random) -> None:
    chance.choice([*books.reservations, *books.payments, *books.shipments])[2] += 4


@planted
def completed_read_as_aborted(books: Books, chance: random.Random) -> None:
    finished_as(books, "COMPLETED")[2] = "ABORTED"


@planted
def aborted_read_as_completed(books: Books, chance: random.Random) -> None:
    finished_as(books, "ABORTED")[2] = "COMPLETED"


@planted
def finished_read_as_running(books: Books, chance: random.Random) -> None:
    finished_as(books, "COMPLETED")[2] = "RUNNING"


@planted
def finished_twice(books: Books, chance: random.Random) -> None:
    rows = chance.choice([rows for rows in books.finished if rows])
    rows.append(chance.choice(rows))


@planted
def one_id_in_two_journals(books: Books, chance: random.Random) -> None:
    first, second = (next(iter(rows)) for rows in books.finished)
    second[1] = first[1]


@planted
def finished_gone(books: Books, chance: random.Random) -> None:
    row = finished_as(books, "COMPLETED")
    next(rows for rows in books.finished if row in rows).remove(row)


@planted
def finished_not_given(books: Books, chance: random.Random) -> None:
    books.gone = 1


@planted
def amount_changed(books: Books, chance: random.Random) -> None:
    finished_as(books, "COMPLETED")[3] += 1


@planted
def number_above_the_highest(books: Books, chance: random.Random) -> None:
    shard = chance.randrange(SHARDS)
    books.finished[shard].append([number_of(9999, shard), "late", "ABORTED", 1])


@planted
def number_of_another_shard(books: Books, chance: random.Random) -> None:
    books.finished[0].append([number_of(0, 1), "stray", "ABORTED", 1])


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("moving", [False, True])
def test_one_wrong_row_turns_the_audit_red(kind: str, moving: bool) -> None:
    """PROOF, invariant 12: a checker that cannot fail proves nothing."""
    for seed in range(20):
        books = Books(seed, finished=24, running=6 * moving, newer=3 * moving)
        assert audit(books)["balanced"], f"seed {seed}"
        books = Books(seed, finished=24, running=6 * moving, newer=3 * moving)
        PLANTED[kind](books, random.Random(seed))
        report = audit(books)
        assert not report["balanced"], f"seed {seed}"
        assert report["faults"], f"seed {seed}"


def test_a_fault_names_number_and_saga() -> None:
    books = Books(3)
    row = finished_as(books, "ABORTED")
    refund_lost(books, random.Random(3))
    [fault] = audit(books)["faults"]
    assert f"saga {row[1]} (number {row[0]}) is ABORTED" in fault


def test_faults_are_bounded_and_counted() -> None:
    """A report of a wholly wrong set of books can still be read."""
    books = Books(1, finished=0)
    books.shipments = [[at + 1, number_of(at, 77), 3, True] for at in range(FAULTS_MAX + 50)]
    books.page = 1000
    faults = audit(books)["faults"]
    assert len(faults) == FAULTS_MAX + 1
    assert faults[-1] == "and 50 more"


def test_a_running_saga_is_judged_by_bounds() -> None:
    """It may have been charged or not; it may not have been charged another amount."""
    books = Books(1, finished=0, running=0)
    number = number_of(1, 0)
    books.highest[0] = number
    books.running[0] = [[number, "a", "RUNNING", False, 500]]
    assert audit(books)["balanced"]
    books.payments = [[1, number, 2, "u", 500, 0]]
    assert audit(books)["balanced"]
    books.payments = [[1, number, 2, "u", 501, 0]]
    assert not audit(books)["balanced"]


def test_the_services_are_read_through_any_shard_that_has_a_worker() -> None:
    books = Books(1)
    books.down = {0}
    assert audit(books)["balanced"]


def test_an_audit_that_cannot_read_never_says_balanced() -> None:
    """PROOF: "cannot tell" is a failure."""
    books = Books(1)
    books.down = {0, 1}
    with pytest.raises(NotTaken):
        audit(books)


def test_a_page_of_the_longest_rows_fits_in_a_body() -> None:
    """A body has at most 256 KiB; a larger one would be no answer."""
    longest: dict[str, list[Any]] = {
        "reservations": [2**45, 2**45, 1, 99, "s" * 64, 100_000, False],
        "stock": ["s" * 64, 2**62, 2**62],
        "payments": [2**45, 2**45, 2, "\U0001f6d2" * 128, 10**14, 10**14],
        "shipments": [2**45, 2**45, 3, False],
    }
    pages = [[row] * PAGE_ROWS[table] for table, row in longest.items()]
    pages.append([[2**45, "x" * 128, "COMPENSATING", False, 10**14]] * PAGE_MAX)
    for rows in pages:
        assert len(wire.pack({"type": "books", "rows": rows})) < wire.BODY_BYTES_MAX
