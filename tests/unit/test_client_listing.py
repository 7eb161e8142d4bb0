"""What the client makes of the shards' pages: every saga once, newest first, no more than asked."""

from collections.abc import Callable
from typing import Any

import pytest

from sagacity import listing
from sagacity.errors import Malformed
from sagacity.listing import LIMIT_MAX
from shard.phases import PHASES, RUNNING

Rows = list[list[Any]]
Place = int | None


def row(saga_id: str, started_ms: int, ended_ms: int | None = None) -> list[Any]:
    status = "RUNNING" if ended_ms is None else "COMPLETED"
    return [saga_id, status, False, "checkout", 100, "o1", started_ms, ended_ms, ""]


class Shards:
    """Shards of which each part is a list of rows, newest first; a place is an index into it."""

    def __init__(self, *shards: dict[str, Rows], page_rows: int = 2) -> None:
        self.shards = shards
        self.page_rows = page_rows
        self.asked: list[tuple[int, str, Place]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def answer(self, ask: listing.Ask) -> dict[str, Any]:
        """Give a page, as a shard does."""
        shard, body = ask
        self.asked.append((shard, body["part"], body["before"]))
        rows = self.shards[shard][body["part"]]
        begin = body["before"] or 0
        end = begin + min(self.page_rows, body["limit"])
        page = {"rows": rows[begin:end], "next": end if end < len(rows) else None}
        self.meanwhile()
        return page

    def list(self, *statuses: str, limit: int = 50) -> list[str]:
        """Give the ids of a whole list."""
        asking = listing.pages(range(len(self.shards)), statuses, 0, limit)
        ask = next(asking)
        while True:
            try:
                ask = asking.send(self.answer(ask))
            except StopIteration as end:
                return [saga["saga_id"] for saga in end.value]


def test_the_sagas_of_all_shards_come_newest_first() -> None:
    """By their end, or by their start while they have none."""
    shards = Shards(
        {"live": [row("a", 50)], "finished": [row("b", 1, 90), row("c", 1, 30), row("d", 1, 10)]},
        {"live": [row("e", 70), row("f", 20)], "finished": [row("g", 1, 40)]},
    )
    assert shards.list() == ["b", "e", "a", "g", "c", "f", "d"]


def test_no_more_is_given_and_asked_than_the_limit() -> None:
    """Who wants two of a million is not kept waiting for the others."""
    rows = [row(f"s{index}", 1, 1000 - index) for index in range(9)]
    shards = Shards({"live": [], "finished": rows}, {"live": [], "finished": []})
    assert shards.list(limit=3) == ["s0", "s1", "s2"]
    assert [each for each in shards.asked if each[1] == "finished"] == [
        (0, "finished", None),
        (0, "finished", 2),
        (1, "finished", None),
    ]


def test_a_saga_that_ends_meanwhile_is_told_once_with_its_end() -> None:
    """The live part is read first, so none falls between the two."""
    one: dict[str, Rows] = {"live": [row("a", 5), row("b", 4), row("c", 3)], "finished": []}
    shards = Shards(one)

    def end_a() -> None:
        one["finished"] = [row("a", 5, 99)]

    shards.meanwhile = end_a
    assert shards.list() == ["a", "b", "c"]


def test_an_empty_page_is_not_the_end() -> None:
    """A shard looks at a bounded number of sagas a page, whether they are wanted or not."""
    asking = listing.pages([0], ["ABORTED"], 0, 5)
    assert next(asking)[1]["before"] is None
    assert asking.send({"rows": [], "next": 17})[1]["before"] == 17
    with pytest.raises(StopIteration) as end:
        asking.send({"rows": [row("a", 1, 2)], "next": None})
    assert [saga["saga_id"] for saga in end.value.value] == ["a"]


@pytest.mark.parametrize(
    ("statuses", "parts"),
    [
        ((), {"live", "finished"}),
        (("STUCK",), {"live"}),
        (("ABORTED", "COMPLETED"), {"finished"}),
        (("ABORTED", "RUNNING"), {"live", "finished"}),
    ],
)
def test_only_the_part_that_can_hold_a_status_is_asked(
    statuses: tuple[str, ...], parts: set[str]
) -> None:
    shards = Shards({"live": [], "finished": []})
    shards.list(*statuses)
    assert {part for _, part, _ in shards.asked} == parts


def test_statuses_are_those_of_the_shards() -> None:
    """A phase that is not among them could not be asked for."""
    assert set(listing.STATUSES) == {*PHASES[RUNNING:], listing.STUCK}
    assert len(set(listing.STATUSES)) == len(listing.STATUSES)


def test_case_and_repetition_of_a_status_do_not_matter() -> None:
    assert listing.checked(["stuck", " Running", "STUCK"], 0, 1) == ["STUCK", "RUNNING"]


@pytest.mark.parametrize(
    ("statuses", "since_ms", "limit"),
    [
        (["NEW"], 0, 1),
        ([""], 0, 1),
        (["stuck,running"], 0, 1),
        ([], -1, 1),
        ([], 1 << 63, 1),
        ([], 0, 0),
        ([], 0, -1),
        ([], 0, LIMIT_MAX + 1),
    ],
)
def test_what_cannot_be_asked_is_refused(statuses: list[str], since_ms: int, limit: int) -> None:
    """Code 12, before anything travels."""
    with pytest.raises(Malformed):
        listing.checked(statuses, since_ms, limit)
