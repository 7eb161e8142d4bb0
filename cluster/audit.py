"""Reads a cluster's books through a client and has them judged. Knows no rule of the judgement.

The order of reading is part of the proof (SPEC 6): every shard's journal first, then the services;
of these the inventory's reservations, its stock, and again the reservations that may have moved.
Last the journals' highest numbers once more: no row may have a higher one.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from cluster.judge import Judge, Row
from sagacity.errors import Conflict, NotTaken

# Rows asked for at once; with the longest ids, SKUs and users they stay below a body's 256 KiB.
PAGE_ROWS = {"reservations": 2000, "stock": 2000, "payments": 400, "shipments": 2000}
AGAIN_MAX = 3  # times that an audit begins again when others took its snapshot's room


class Reader(Protocol):
    """What an audit needs of a client."""

    def status(self) -> dict[str, Any]:
        """Ask for the cluster's status."""

    def books(self, shard: int, body: dict[str, Any]) -> dict[str, Any]:
        """Ask a shard for a page of its books, or of a service's."""


def audit(reader: Reader) -> dict[str, Any]:
    """Audit a cluster, running or at rest.

    Returns:
        The report of `audit --json`, SPEC 6.

    Raises:
        SagacityError: a book cannot be read; what cannot be told is never called balanced.
    """
    for _ in range(AGAIN_MAX):
        try:
            return _audit(reader)
        except Conflict:  # a shard keeps few snapshots, and others have asked for theirs since
            continue
    return _audit(reader)


def _audit(reader: Reader) -> dict[str, Any]:
    judge = Judge()
    status = reader.status()
    shards = [int(shard["shard"]) for shard in status["shards"]]
    counts = {}
    snapshots = {}
    for shard in shards:
        book = reader.books(shard, {"book": "sagas"})
        snapshots[shard] = book["snapshot"]
        ask = {"book": "running", "snapshot": book["snapshot"]}
        running = _pages(reader, shard, ask, book["running"])
        judge.journal(shard, book["highest"], [row for rows in running for row in rows])
        counts[shard] = book["finished"]
    for shard, upto in counts.items():
        for rows in _pages(reader, shard, {"book": "finished", "upto": upto}, upto):
            judge.finished(shard, rows)
        for ranges in _pages(reader, shard, {"book": "forgotten"}, None):
            judge.forgotten(shard, ranges)
        judge.finished_end(shard, upto)
    services = _Services(reader, shards, {each["role"] for each in status["processes"]})
    for rows in services.pages("inventory", "reservations", 0):
        judge.reservations(rows)
    for rows in services.pages("inventory", "stock", ""):
        judge.stock(rows)
    for rows in services.pages("inventory", "reservations", judge.again_after):
        judge.reservations_again(rows)
    for rows in services.pages("payment", "payments", 0):
        judge.payments(rows)
    for rows in services.pages("shipping", "shipments", 0):
        judge.shipments(rows)
    for shard, snapshot in snapshots.items():
        book = reader.books(shard, {"book": "sagas", "snapshot": snapshot})
        judge.journal_again(shard, book["highest"])
    return judge.report()


def _pages(
    reader: Reader, shard: int, ask: dict[str, Any], count: int | None
) -> Iterator[list[Row]]:
    """Give a shard's book page by page: until its `count` rows, or an empty page."""
    at = 0
    while count is None or at < count:
        page = reader.books(shard, {**ask, "from": at})
        if not page["rows"]:
            return
        yield page["rows"]
        at = page["from"] + len(page["rows"])  # it may begin later: past retention by now


class _Services:
    """Pages of the services' books, through any shard that has a worker of the service.

    Args:
        reader: to ask.
        shards: their indices.
        roles: of the cluster's processes: a service that is not among them has no books here.
    """

    def __init__(self, reader: Reader, shards: list[int], roles: set[str]) -> None:
        self._reader = reader
        self._shards = shards
        self._roles = roles

    def pages(self, service: str, table: str, after: int | str) -> Iterator[list[Row]]:
        """Give a table's rows, page by page, those after an id."""
        key: int | str | None = after if service in self._roles else None
        while key is not None:
            body = {"book": service, "table": table, "after": key, "limit": PAGE_ROWS[table]}
            page = self._ask(body)
            yield page["rows"]
            key = page["next"]

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        refusal = NotTaken("the cluster has no shard")
        for shard in self._shards:
            try:
                return self._reader.books(shard, body)
            except NotTaken as error:
                refusal = error
        raise refusal
