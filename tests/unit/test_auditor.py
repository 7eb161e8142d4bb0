"""The auditor says what a round has found: in the log once, in the metrics as long as it lasts."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster.auditor import LINES_MAX, Auditor
from cluster.clock import ManualClock
from cluster.meters import AuditorMeters
from cluster.up import is_audited, unaudited
from config.load import load
from config.schema import Config
from sagacity.barrier import Log
from tests.unit.rounds_world import SHARDS, Shop, shop_of


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append(("error", event, fields))

    def take(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Give them, once."""
        taken, self.lines = self.lines, []
        return taken


class World(NamedTuple):
    """An auditor of a shop, its clock, what it serves and what it has logged."""

    shop: Shop
    auditor: Auditor
    clock: ManualClock
    meters: AuditorMeters
    log: Lines

    def value(self, name: str, *labels: str) -> float:
        """Give a gauge's value."""
        found: float = getattr(self.meters, name).read()[labels]
        return found


@pytest.fixture
def world() -> Iterator[World]:
    with shop_of() as shop:
        clock, meters, log = ManualClock(), AuditorMeters(), Lines()
        yield World(shop, Auditor(shop, range(SHARDS), clock, meters, log), clock, meters, log)


def test_a_log_is_what_the_kit_asks_for() -> None:
    """The auditor takes any; structlog's and ours are such."""
    log: Log = Lines()
    log.info("x")


def test_what_does_not_balance_is_logged_once_and_served_until_it_is_mended(world: World) -> None:
    numbers = world.shop.some(10)
    world.auditor.round()
    assert world.log.take() == []
    world.shop.spoil("payment", "UPDATE payment SET refunded = 3 WHERE number = ?", numbers[0])
    for _ in range(4):
        world.auditor.round()
    assert world.value("books_imbalance", "payments") == 3
    assert world.value("books_imbalance", "stock") == 0
    about = {"saga_id": f"saga-{numbers[0]}", "number": numbers[0]}
    wrong = {"book": "payments", "amount": 3, **about}
    assert world.log.take() == [("error", "books_do_not_balance", wrong)]
    world.shop.spoil("payment", "UPDATE payment SET refunded = 0 WHERE number = ?", numbers[0])
    world.auditor.round()
    assert world.value("books_imbalance", "payments") == 0
    assert world.log.take() == [("info", "books_mended", wrong)]


def test_stock_is_named_by_its_sku(world: World) -> None:
    world.auditor.round()
    world.shop.spoil("inventory", "UPDATE stock SET available = 7 WHERE sku = 'other'")
    for _ in range(3):
        world.auditor.round()
    [(_, event, said)] = world.log.take()
    assert (event, said["book"], said["sku"]) == ("books_do_not_balance", "stock", "other")
    assert world.value("books_imbalance", "stock") == said["amount"] == 10**6 - 7


def test_a_round_that_could_not_read_all_says_so_once_and_is_not_a_round(world: World) -> None:
    """When the last whole one ended tells how old the gauge is."""
    world.shop.some(10)
    world.auditor.round()
    ended = world.value("books_round_timestamp")
    assert ended == world.clock.wall_ms() / 1000
    assert world.value("books_history_timestamp") == ended
    world.clock.advance(60_000)
    world.shop.down = {"payment"}
    for _ in range(3):
        world.auditor.round()
    assert world.value("books_round_timestamp") == ended
    [(level, event, _)] = world.log.take()
    assert (level, event) == ("warning", "books_unread")
    world.shop.down = set()
    world.auditor.round()
    assert world.value("books_round_timestamp") == ended + 60
    assert world.meters.books_sagas.read()[()] > 10


def test_many_faults_are_logged_in_few_lines(world: World) -> None:
    """Whoever spoils a whole table must not fill the log; the gauge has all of it."""
    world.shop.some(200)
    world.auditor.round()
    world.shop.spoil("shipping", "DELETE FROM shipment")
    for _ in range(3):
        world.auditor.round()
    lines = world.log.take()
    assert len(lines) == LINES_MAX + 1
    assert lines[-1][1] == "books_said_less"
    assert world.value("books_imbalance", "shipments") == 40


def test_a_journal_that_goes_back_is_said_and_audited_anew(world: World) -> None:
    world.shop.some(10)
    world.auditor.round()
    world.shop.finished[0].pop()
    world.auditor.round()
    behind = {"reason": "the journal of shard 0 is behind what it was"}
    assert world.log.take() == [("error", "books_started_over", behind)]
    world.auditor.round()
    assert world.log.take() == []


# -- who is audited -----------------------------------------------------------------------------

OURS = {name: f"services.{name}:service" for name in ("inventory", "payment", "shipping")}
OWN = """
from msgspec.structs import replace
from services.payment import service as ours
service = replace(ours, audited={})
"""


def config_of(pools: dict[str, str], **env: str) -> Config:
    table = ", ".join(f'{name} = "{place}"' for name, place in pools.items())
    return load(env={"SAGACITY_SERVICES__POOLS": f"{{{table}}}", **env})


@pytest.mark.parametrize(
    ("private", "every", "expected"),
    [(False, None, True), (False, "0", False), (True, None, False), (True, "200", True)],
)
def test_books_are_audited_unless_told_otherwise(
    private: bool, every: str | None, expected: bool
) -> None:
    """A private cluster lives for moments, mostly: its books are audited when it asks for it."""
    env = {} if every is None else {"SAGACITY_SUPERVISOR__BOOKS_EVERY_MS": every}
    assert is_audited(config_of(OURS, **env), private=private) == expected


def test_our_services_give_what_an_audit_reads() -> None:
    assert unaudited(config_of(OURS)) is None


@pytest.mark.parametrize(
    ("pools", "lacks"),
    [
        ({**OURS, "payment": "of_a_user:service"}, "its Service.audited has no sagas"),
        ({**OURS, "payment": "of_a_user:nothing"}, "its Service.audited has no sagas"),
        ({name: OURS[name] for name in ("inventory", "shipping")}, "it has no pool"),
    ],
)
def test_a_service_that_cannot_be_audited_is_named_before_an_auditor_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools: dict[str, str], lacks: str
) -> None:
    """A user's own payment: its audit could never end a round, which is an alert for ever."""
    (tmp_path / "of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "of_a_user", raising=False)
    assert unaudited(config_of(pools)) == ("payment", lacks)
