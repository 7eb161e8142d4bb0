"""Listing: pages of a shard's sagas, newest first."""

from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from sagacity import wire
from sagacity.saga import Retry, Saga
from shard.finished import FinishedInMemory
from shard.listing import LOOKED_AT_MAX
from shard.sagas import Card
from tests.unit.toy_sagas import booking, chain
from tests.unit.world import WALL_MS, Rules, World, bodies

SERVICES = ("inventory", "payment", "shipping")
UNKNOWN_SKU = [{"sku": "zzz", "quantity": 1}]


def page(world: World, part: str, **asked: Any) -> dict[str, Any]:
    """Ask for a page; its rows as their first members, the ids."""
    return bodies(world.step(world.ask(wire.LIST, "0", {"part": part, **asked})))[0]


def ids(world: World, part: str, **asked: Any) -> list[str]:
    """Give the ids of all pages of a part."""
    found: list[str] = []
    place = None
    while True:
        got = page(world, part, before=place, **asked)
        found += [row[0] for row in got["rows"]]
        place = got["next"]
        if place is None:
            return found


def ended(world: World, *saga_ids: str) -> None:
    """Start sagas that end at once, a second apart."""
    for saga_id in saga_ids:
        world.after(1_000)
        world.step(world.start(saga_id, items=UNKNOWN_SKU))


def test_a_row_tells_what_is_known_of_a_live_saga() -> None:
    """The end is not known; the reason is, once it turns back."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"))
    assert page(world, "live") == {
        "type": "list",
        "shard": 0,
        "part": "live",
        "rows": [["a", "RUNNING", False, "checkout", 24_999, "o1603", WALL_MS, None, ""]],
        "next": None,
    }
    world.drive("a", wire.OK, wire.DECLINED)
    [row] = page(world, "live")["rows"]
    assert (row[1], row[-1]) == ("COMPENSATING", "Payment declined: DECLINED")


def test_a_row_tells_what_is_known_of_a_finished_saga() -> None:
    """Start and end are wall times of its rows; the reason is the one that its client read."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"), world.start("b"))
    world.after(700)
    world.drive("a", wire.OK, wire.OK, wire.OK)
    world.after(300)
    world.drive("b", wire.OK, wire.DECLINED, wire.OK)
    began = WALL_MS
    assert page(world, "finished")["rows"] == [
        [
            *("b", "ABORTED", False, "checkout", 24_999, "o2041", began, began + 1000),
            "Payment declined: DECLINED",
        ],
        ["a", "COMPLETED", False, "checkout", 24_999, "o1603", began, began + 700, ""],
    ]


def test_times_are_the_same_after_a_restart() -> None:
    """They come from the journal's rows, not from the clock of whoever reads them."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"), world.start("b"))
    world.after(700)
    world.drive("a", wire.OK, wire.OK, wire.OK)
    before = page(world, "live"), page(world, "finished")
    world.after(5_000)
    world.restart()
    assert (page(world, "live"), page(world, "finished")) == before


def test_pages_are_newest_first_and_join_without_a_gap() -> None:
    """A place names where the next page goes on."""
    world = World()
    world.step(*world.came(*SERVICES))
    for saga_id in "abcde":
        world.step(world.start(saga_id))
    ended(world, "v", "w", "x", "y", "z")
    assert ids(world, "live", limit=2) == list("edcba")
    assert ids(world, "finished", limit=2) == list("zyxwv")


def test_a_saga_that_ends_between_two_pages_is_in_the_other_part() -> None:
    """Who reads the live part first misses none."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("a"), world.start("b"))
    first = page(world, "live", limit=1)
    assert [row[0] for row in first["rows"]] == ["b"]
    world.drive("a", wire.OK, wire.OK, wire.OK)
    assert page(world, "live", before=first["next"])["rows"] == []
    assert ids(world, "finished") == ["a"]


@pytest.mark.parametrize(
    ("statuses", "live", "finished"),
    [
        ([], ["d", "c", "b"], ["e", "a"]),
        (["RUNNING"], ["d"], []),
        (["COMPENSATING"], ["c", "b"], []),
        (["STUCK"], ["b"], []),
        (["STUCK", "RUNNING"], ["d", "b"], []),
        (["COMPLETED"], [], ["a"]),
        (["ABORTED"], [], ["e"]),
        (["ABORTED", "COMPLETED", "STUCK"], ["b"], ["e", "a"]),
    ],
)
def test_only_the_statuses_that_were_asked_for_are_told(
    statuses: list[str], live: list[str], finished: list[str]
) -> None:
    """STUCK is a mark: a stuck saga is compensating, too."""
    world = World(Rules(retry=Retry(stuck_after=1)))
    world.step(*world.came(*SERVICES))
    for saga_id in "abcd":
        world.step(world.start(saga_id))
    world.drive("a", wire.OK, wire.OK, wire.OK)
    world.drive("b", wire.OK, wire.DECLINED, wire.FAILED)
    world.drive("c", wire.OK, wire.DECLINED)
    ended(world, "e")
    assert ids(world, "live", statuses=statuses) == live
    assert ids(world, "finished", statuses=statuses) == finished


def test_since_counts_the_end_or_the_start_of_what_has_not_ended() -> None:
    """The two instants that a shard keeps of every saga."""
    world = World()
    world.step(*world.came(*SERVICES), world.start("old"), world.start("long"))
    world.after(10_000)
    world.step(world.start("new"))
    world.after(10_000)
    world.drive("long", wire.OK, wire.OK, wire.OK)
    since = WALL_MS + 5_000
    assert ids(world, "live", since_ms=since) == ["new"]
    assert ids(world, "finished", since_ms=since) == ["long"]
    assert ids(world, "finished", since_ms=WALL_MS + 20_001) == []


def test_a_page_looks_at_a_bounded_number_of_sagas() -> None:
    """A shard answers in between; an empty page says where to go on."""
    world = World(Rules(inflight_max=10_000))
    for index in range(LOOKED_AT_MAX + 1):
        world.engine.state.finished.add(card(index))
    first = glance(world, "finished", statuses=["COMPLETED"])
    assert (first["rows"], first["next"]) == ([], 1)
    assert glance(world, "finished", statuses=["COMPLETED"], before=1)["next"] is None
    starts = [world.start(f"s{index}") for index in range(LOOKED_AT_MAX + 1)]
    world.engine.step(list(starts), world.now, 3, 0)
    first = glance(world, "live", statuses=["STUCK"])
    assert first["rows"] == []
    assert glance(world, "live", statuses=["STUCK"], before=first["next"])["next"] is None


def glance(world: World, part: str, **asked: Any) -> dict[str, Any]:
    """Ask for a page without the world's own checks, which look at every saga."""
    request = world.ask(wire.LIST, "0", {"part": part, **asked})
    return bodies(world.engine.step([request], world.now, 4, 0))[0]


def card(index: int, saga_id: str = "", reason: str = "R") -> Card:
    answer = wire.pack({"type": "checkout_failed", "reason": reason})
    name = saga_id or f"f{index}"
    return Card(index << 10, name, "checkout", 4, bytes(16), answer, 1, "o1", False, b"", 1, 2)


def test_the_longest_rows_have_room_in_a_body() -> None:
    """A longer reply would be no reply."""
    world = World()
    for index in range(400):
        long = f"{index:04}" + "s" * 124
        world.engine.state.finished.add(card(index, long, "\U0001f6d2" * 10_000))
    seen, place = 0, None
    while True:
        asked = world.ask(wire.LIST, "0", {"part": "finished", "before": place})
        effects = world.engine.step([asked], world.now, 2, 0)
        [reply] = effects.replies[b"client"]
        assert len(reply.body) <= wire.BODY_BYTES_MAX
        got = wire.unpack(reply.body)
        seen, place = seen + len(got["rows"]), got["next"]
        if place is None:
            break
    assert seen == 400


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"part": "all"},
        {"part": "live", "statuses": ["running"]},
        {"part": "live", "statuses": ["NEW"]},
        {"part": "live", "statuses": ["RUNNING"] * 17},
        {"part": "live", "limit": 0},
        {"part": "live", "limit": LOOKED_AT_MAX + 1},
        {"part": "live", "before": "1"},
        {"part": "live", "before": 2**63},
        {"part": "live", "since_ms": None},
        {"part": "live", "colour": "red"},
    ],
)
def test_a_malformed_request_is_refused(asked: dict[str, Any]) -> None:
    """Code 12, before anything is looked at."""
    world = World()
    assert bodies(world.step(world.ask(wire.LIST, "0", asked)))[0]["code"] == 12


def test_a_list_ends_where_retention_begins() -> None:
    """What is past retention is not told, and nobody asks for it for ever."""
    world = World()
    for index in range(5):
        world.engine.state.finished.add(card(index))
    world.engine.state.finished.forget(3)
    first = glance(world, "finished", limit=1)
    assert ([row[0] for row in first["rows"]], first["next"]) == (["f4"], 4)
    rest = glance(world, "finished", before=4)
    assert ([row[0] for row in rest["rows"]], rest["next"]) == (["f3"], None)


@pytest.mark.parametrize("before", [-1, 0, 1 << 62, -(2**63)])
def test_a_place_that_no_page_named_does_no_harm(before: int) -> None:
    """It comes from outside."""
    world = World()
    ended(world, "a")
    for part in ("live", "finished"):
        assert page(world, part, before=before)["next"] is None


def test_newest_gives_cards_below_a_place() -> None:
    """The port's promise, which its implementations share."""
    finished = FinishedInMemory()
    for index in range(5):
        finished.add(card(index))
    assert [each.saga_id for each in finished.newest(5, 2)] == ["f4", "f3"]
    assert [each.saga_id for each in finished.newest(3, 9)] == ["f2", "f1", "f0"]
    assert [each.saga_id for each in finished.newest(99, 1)] == ["f4"]
    assert finished.newest(0, 9) == finished.newest(-7, 9) == []


class Refused(Struct, frozen=True, tag_field="type", tag="trip_refused"):
    """A final body whose reason is no text."""

    reason: int = 7


@pytest.mark.parametrize(
    "plan", [chain("trip", 2), replace(chain("trip", 2), aborted=lambda *_: Refused())]
)
def test_an_aborted_saga_whose_answer_gives_no_reason_is_listed_without_one(plan: Saga) -> None:
    """A user's final body carries what its definition likes."""
    world = World(Rules(plans=(plan,)))
    world.step(*world.came("trip_1", "trip_2"), world.ask(wire.START, "t", booking("trip", "t")))
    world.drive("t", wire.DECLINED)
    [row] = page(world, "finished")["rows"]
    assert (row[0], row[1], row[-1]) == ("t", "ABORTED", "")
