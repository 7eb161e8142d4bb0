"""A cluster's books in memory: what an audit's tests read, change and spoil.

Knows the shapes of rows and the order in which they come; knows nothing of the judgement.
"""

import random
from collections.abc import Callable
from typing import Any

from sagacity.errors import Conflict, NoOutcome, NotTaken
from sagacity.ids import count_of, number_of
from sagacity.ranges import ranges_of

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
        self.forgotten: list[list[int]] = [[] for _ in range(SHARDS)]  # numbers, the first ended
        self.highest = [0] * SHARDS
        self.latest = [0] * SHARDS  # the highest numbers when they are read again
        self.stock: Rows = [["abc123", 10**6, 10**6], ["none", 0, 0], ["xyz789", 500, 500]]
        self.reservations: Rows = []
        self.payments: Rows = []
        self.shipments: Rows = []
        self.services = ["inventory", "payment", "shipping"]  # that the cluster has pools of
        self.asked: list[tuple[str, str]] = []
        self.between: Callable[[str], None] = lambda _: None  # what happens while one reads
        self.down: set[int] = set()  # shards that have no worker
        self.page = 3
        self.gone = 0  # finished sagas that a shard counts and does not give
        self.conflicts = 0  # snapshots that make room before they are read
        self.unreadable = ""  # a table
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
            self.latest[shard] = number
            if at >= finished + running:
                continue
            self.highest[shard] = number
            if is_final:
                self.finished[shard].append([number, f"saga{at}", end[0], amount, "checkout"])
            else:
                self.running[shard].append([number, f"saga{at}", end[0], False, amount, "checkout"])

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

    def forget(self, shard: int, upto: int) -> None:
        """Do what retention does: the first finished sagas are no more than their counts."""
        self.forgotten[shard] = [row[0] for row in self.finished[shard][:upto]]

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
        return {
            "shards": [{"shard": shard} for shard in range(SHARDS)],
            "processes": [{"role": role} for role in ("shard", *self.services)],
        }

    def books(self, shard: int, body: dict[str, Any]) -> dict[str, Any]:
        book = body["book"]
        table = body.get("table", book)
        self.asked.append((book, table))
        if book == "sagas" and "snapshot" in body:
            assert body["snapshot"] == 7 + shard
            return {"highest": max(self.highest[shard], self.latest[shard]), "snapshot": 0}
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
            if self.conflicts:
                self.conflicts -= 1
                raise Conflict("other audits have begun since this one: begin again")
            rows = self.running[shard][body["from"] :][: self.page]
            return {"from": body["from"], "rows": rows}
        if book == "finished":
            assert body["upto"] <= len(self.finished[shard]) + self.gone
            start = max(body["from"], len(self.forgotten[shard]))
            return {"from": start, "rows": self.finished[shard][start : body["upto"]][: self.page]}
        if book == "forgotten":
            ranges = ranges_of(count_of(number) for number in self.forgotten[shard])
            return {"from": body["from"], "rows": ranges[body["from"] :][: self.page]}
        if shard in self.down:
            raise NotTaken("no worker")
        if table == self.unreadable:
            raise NoOutcome(f"unreadable now: {table}")
        rows = [row for row in getattr(self, table) if row[0] > body["after"]]
        page = [[*row] for row in rows[: self.page]]
        self.between(table)
        return {"rows": page, "next": page[-1][0] if len(rows) > self.page else None}
