"""The floor: once in effect, every id known, and books of its own; what makes it a floor for us."""

from pathlib import Path

import apsw
import pytest

from bench import floor, floor_files
from bench.floor import FloorService
from bench.floor_files import SHARD_TABLES, Used, database, faults
from config.load import load_catalog
from sagacity import wire
from sagacity.barrier import TOMBSTONE
from sagacity.ids import number_of
from sagacity.messages import ChargePayment, RefundPayment
from sagacity.wire import Command

NUMBER = number_of(1, 0)


@pytest.fixture
def payment(tmp_path: Path) -> FloorService:
    service = FloorService(str(tmp_path), "payment", load_catalog())
    service.begin()
    return service


def charge(attempt: int = 1) -> Command:
    body = wire.encode(ChargePayment("s1", 2, "u42", 100))
    return Command("s1", 2, 0, 1, NUMBER, attempt, {}, body)


def refund() -> Command:
    return Command("s1", 2, 1, 1, NUMBER, 1, {}, wire.encode(RefundPayment("s1", 2, True)))


def rows(tmp_path: Path, query: str) -> list[tuple[object, ...]]:
    db = apsw.Connection(str(tmp_path / "payment.db"))
    try:
        return list(db.execute(query))
    finally:
        db.close()


def test_a_command_of_the_floor_takes_effect_once(payment: FloorService, tmp_path: Path) -> None:
    """A floor whose services do not remember would do less than anybody may."""
    first, again = payment.answer(charge()), payment.answer(charge(attempt=2))
    payment.commit()
    assert (first.outcome, first.body) == (again.outcome, again.body)
    assert rows(tmp_path, "SELECT count(*) FROM payment") == [(1,)]


def test_an_action_after_its_compensation_has_no_effect(
    payment: FloorService, tmp_path: Path
) -> None:
    """The barrier is honest: a tombstone keeps out what comes late."""
    assert payment.answer(refund()).outcome == wire.OK
    assert payment.answer(charge()).outcome == wire.REFUSED_COMPENSATED
    payment.commit()
    assert rows(tmp_path, "SELECT outcome FROM barrier ORDER BY key") == [(TOMBSTONE,), (wire.OK,)]
    assert rows(tmp_path, "SELECT count(*) FROM payment") == [(0,)]


def test_the_floor_knows_every_id_that_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its block is written and after it: else an id could run twice."""
    monkeypatch.setattr(floor_files, "BLOCK", 3)
    db = database(tmp_path / "shard.db", SHARD_TABLES)
    used = Used(db)
    for at in range(10):
        used.add(f"s{at}", b"answer %d" % at)
        block = used.block()
        if block is not None:
            db.execute("INSERT INTO finished VALUES(?, ?, ?)", block)
    assert [used.answer(f"s{at}") for at in range(10)] == [b"answer %d" % at for at in range(10)]
    assert used.answer("s10") is None
    assert db.execute("SELECT count(*) FROM finished").get == 3


def test_books_of_the_floor_that_do_not_fit_are_faults(tmp_path: Path) -> None:
    """A floor that loses what it moves is no floor."""
    for name in floor.SERVICES:
        FloorService(str(tmp_path), name, load_catalog())
    assert faults(tmp_path) == []
    paid = "INSERT INTO payment (number, step, user_id, amount) VALUES (1, 2, 'u', 5)"
    taken = "UPDATE stock SET available = available - 7 WHERE sku = 'abc123'"
    for name, change in (("payment", paid), ("inventory", taken)):
        db = apsw.Connection(str(tmp_path / f"{name}.db"))
        db.execute(change)
        db.close()
    gone, apart = faults(tmp_path)
    assert gone == "7 units are gone, 0 are held"
    assert "'sagas that paid': 1" in apart
