"""The books judged: a right set of books balances, one wrong row anywhere turns it red."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.audit import AGAIN_MAX, PAGE_ROWS, audit
from cluster.judge import FAULTS_MAX
from sagacity import wire
from sagacity.errors import Conflict, NoOutcome, NotTaken
from sagacity.ids import number_of, shard_of
from shard.books import PAGE_MAX
from tests.unit.audit_world import SHARDS, Books


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
    books.finished[0] = [
        [done, "a", "COMPLETED", 30000, "checkout"],
        [undone, "b", "ABORTED", 500, "checkout"],
    ]
    books.running[1] = [[moving, "c", "COMPENSATING", True, 700, "checkout"]]
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
    """SPEC 6: a saga that is final in the first reading is judged exactly.

    The highest numbers come last: what a row may have was given before it was read.
    """
    books = Books(1)
    books.page = 1000
    audit(books)
    assert [table for _, table in books.asked] == [
        *["sagas"] * SHARDS,
        *["finished", "forgotten"] * SHARDS,
        "reservations",
        "stock",
        "reservations",
        "payments",
        "shipments",
        *["sagas"] * SHARDS,
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
                number = fresh.pop()
                shard = shard_of(number)
                books.latest[shard] = max(books.latest[shard], number)
                books.reserve(number, 0, chance.choice(["abc123", "xyz789"]))

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


def above(books: Books, chance: random.Random) -> int:
    """Give a number that its shard has not given yet, the next one or a much later one."""
    shard = chance.randrange(SHARDS)
    return books.latest[shard] + number_of(chance.choice([1, 1000]), 0)


@planted
def charge_above_every_number(books: Books, chance: random.Random) -> None:
    row = [len(books.payments) + 1, above(books, chance), 2, "u42", 5000, 0]
    books.payments.append(row)


@planted
def shipment_above_every_number(books: Books, chance: random.Random) -> None:
    row = [len(books.shipments) + 1, above(books, chance), 3, False]
    books.shipments.append(row)


@planted
def reservation_above_every_number(books: Books, chance: random.Random) -> None:
    books.reserve(above(books, chance), 0, "abc123", released=chance.random() < 0.5)


@planted
def reservation_above_every_number_while_read(books: Books, chance: random.Random) -> None:
    number = above(books, chance)

    def between(table: str) -> None:
        if table == "stock" and not any(row[1] == number for row in books.reservations):
            books.reserve(number, 0, "abc123")

    books.between = between


@planted
def journals_gone(books: Books, chance: random.Random) -> None:
    books.highest, books.latest = [0] * SHARDS, [0] * SHARDS
    books.finished = [[] for _ in range(SHARDS)]
    books.running = [[] for _ in range(SHARDS)]


@planted
def numbers_set_back(books: Books, chance: random.Random) -> None:
    """A journal that was exchanged for an older one while the audit ran."""
    first = [*books.highest]
    books.between = lambda _: books.highest.__setitem__(0, first[0] - number_of(1, 0))
    books.latest[0] = 0


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
    books.finished[shard].append([number_of(9999, shard), "late", "ABORTED", 1, "checkout"])


@planted
def number_of_another_shard(books: Books, chance: random.Random) -> None:
    books.finished[0].append([number_of(0, 1), "stray", "ABORTED", 1, "checkout"])


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


def test_a_row_that_no_journal_caused_is_named() -> None:
    """Whoever reads the report can find the row."""
    books = Books(3)
    books.payments.append([10**6, 1_024_000, 2, "u42", 5000, 0])
    [fault] = audit(books)["faults"]
    assert fault == (
        "a payment has number 1024000, which shard 0 has not given: "
        f"its highest is {books.latest[0]}"
    )


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
    books.running[0] = [[number, "a", "RUNNING", False, 500, "checkout"]]
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


def test_a_table_that_cannot_be_read_ends_the_audit_with_its_error() -> None:
    """Code 0, exit 6; not a trace, and not a report."""
    for table in PAGE_ROWS:
        books = Books(1)
        books.unreadable = table
        with pytest.raises(NoOutcome, match=f"unreadable now: {table}"):
            audit(books)


def test_an_audit_whose_snapshot_made_room_begins_again() -> None:
    """A shard keeps four; a fifth audit does not end the first. It has a bound all the same."""
    books = Books(1, running=3)
    books.conflicts = AGAIN_MAX
    report = audit(books)
    assert (report["faults"], report["sagas"]["running"]) == ([], 3)
    books.conflicts = AGAIN_MAX + 1
    with pytest.raises(Conflict):
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
    pages.append([[2**45, "x" * 128, "COMPENSATING", False, 10**14, "x" * 32]] * PAGE_MAX)
    for rows in pages:
        assert len(wire.pack({"type": "books", "rows": rows})) < wire.BODY_BYTES_MAX


def test_a_users_own_saga_is_counted_and_not_judged_as_a_checkout() -> None:
    """It reserves, charges and ships nothing here; a false alarm would hide the next true one."""
    books = Books(1)
    books.highest[0] += 2 << 10
    books.latest[0] = books.highest[0]
    books.finished[0].append([books.highest[0] - (1 << 10), "trip1", "COMPLETED", 9900, "trip"])
    books.running[0].append([books.highest[0], "trip2", "RUNNING", False, 9900, "trip"])
    before = audit(Books(1))["sagas"]
    report = audit(books)
    assert report["faults"] == []
    assert report["sagas"]["completed"] == before["completed"] + 1
    assert report["sagas"]["running"] == before["running"] + 1


def test_a_cluster_without_the_demos_services_is_counted_too() -> None:
    """Its shards know no such books. A checkout that stands in a journal all the same is seen."""
    books = Books(1, finished=0)
    books.services = ["travel"]
    books.highest[0] = books.latest[0] = 1 << 10
    books.finished[0].append([1 << 10, "trip1", "COMPLETED", 9900, "trip"])
    report = audit(books)
    assert (report["balanced"], report["sagas"]["completed"]) == (True, 1)
    assert {book for book, _ in books.asked} == {"sagas", "finished", "forgotten"}
    books.finished[0][0][-1] = "checkout"
    assert not audit(books)["balanced"]


@pytest.mark.parametrize("seed", range(12))
def test_sagas_past_retention_are_still_in_the_books(seed: int) -> None:
    """Business rows stay; of their sagas a journal gives no more than the numbers."""
    books = Books(seed, finished=20, running=4, newer=2)
    whole = audit(books)
    for shard, rows in enumerate(books.finished):
        books.forget(shard, len(rows) - seed % 3)
    report = audit(books)
    assert report["faults"] == []
    assert report["sagas"]["forgotten"] == sum(len(numbers) for numbers in books.forgotten)
    for book in ("stock", "money", "shipments"):
        assert report[book] == whole[book]


def test_sagas_that_are_forgotten_while_one_reads_are_counted_once() -> None:
    """A page begins later then: what was read before stays read."""
    books = Books(3, finished=30)
    given = books.books

    def forgetting(shard: int, body: dict[str, Any]) -> dict[str, Any]:
        page = given(shard, body)
        if body["book"] == "finished":
            books.forget(shard, body["from"] + 2 * books.page)
        return page

    books.books = forgetting  # type: ignore[method-assign]  # a book that moves while it is read
    assert audit(books)["faults"] == []


def test_a_saga_past_retention_whose_effects_are_half_turns_the_audit_red() -> None:
    """Charged and not shipped is what shops lose money by, however long ago."""
    for table in ("payments", "shipments", "reservations"):
        books = Books(1, finished=20)
        for shard, rows in enumerate(books.finished):
            books.forget(shard, len(rows))
        assert audit(books)["balanced"]
        completed = next(row[0] for rows in books.finished for row in rows if row[2] == "COMPLETED")
        rows = getattr(books, table)
        rows[:] = [row for row in rows if row[1] != completed]
        assert any("neither whole nor undone" in fault for fault in audit(books)["faults"])
