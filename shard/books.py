"""Books: the pages that an audit reads of a shard. Pure.

"sagas" takes a snapshot: at that instant every saga of the shard with a number up to `highest` is
among the running, whose pages the snapshot keeps, or among the first `finished` cards, which never
move. Those of them that are past retention are left out of the pages, and stand in the book
"forgotten" as ranges of their counts. Asked with a snapshot it lets go of that one and takes none:
an audit's second reading, which wants `highest` alone. A service's books are asked of one of its
workers.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from sagacity.errors import Conflict, Malformed, NotTaken
from sagacity.wire import CONTAINER_MAX, BodyReader, Int64, Reply, Request, encode, pack
from shard.course import Course
from shard.effects import BooksForwarded, Effects
from shard.events import Peer
from shard.phases import PHASES

PAGE_MAX = 1_200  # rows of one page: with the longest ids still under wire.BODY_BYTES_MAX
SNAPSHOTS_MAX = 4  # audits that may read one shard at once
NAME_MAX = 128  # characters of a book's or a table's name

_Name = Annotated[str, Meta(max_length=NAME_MAX)]


class BooksRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Which page of which book: of the sagas, or of a service's table, which reads it itself."""

    book: _Name
    snapshot: Int64 = 0
    start: Int64 = msgspec.field(default=0, name="from")
    upto: Int64 = 0
    table: _Name | None = None
    after: Int64 | str | None = None
    limit: Int64 | None = None
    within: Annotated[list[tuple[Int64, Int64, Int64]], Meta(max_length=CONTAINER_MAX)] | None = (
        None
    )


class FinishedPage(Struct):
    """A page of the book "finished": ours alone, so written as it is, not as `pack` does it."""

    type: str
    book: str
    start: int = msgspec.field(name="from")
    rows: list[Any]


_read: BodyReader[BooksRequest] = BodyReader(BooksRequest)


class Books:
    """Gives pages of what the course holds."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._state = course.state
        self._snapshots: dict[int, list[list[object]]] = {}  # what ran then
        self._asked = 0

    def take(self, origin: Peer, request: Request, fx: Effects) -> None:
        """Answer a request for a page, or have a worker asked.

        Raises:
            Malformed: the body is no such request, or there is no such book.
            Conflict: the snapshot has made room for later ones.
            NotTaken: the service has no worker now.
        """
        asked, _ = _read.read(request.body)
        page: dict[str, object]
        if asked.book == "sagas":
            page = self._sagas(asked.snapshot)
        elif asked.book == "running":
            rows = self._snapshots.get(asked.snapshot)
            if rows is None:
                raise Conflict("other audits have begun since this one: begin again")
            start = max(0, asked.start)
            page = {"from": asked.start, "rows": rows[start : start + PAGE_MAX]}
        elif asked.book == "finished":
            start = max(asked.start, self._state.forgotten)
            cards = self._state.finished.page(start, asked.upto, PAGE_MAX)
            finished = [[c.number, c.saga_id, PHASES[c.phase], c.amount, c.saga] for c in cards]
            body = encode(FinishedPage("books", "finished", start, finished))
            fx.reply(origin, Reply(request.request, None, body))
            return
        elif asked.book == "forgotten":
            ranges = self._state.forgotten_counts.all()
            start = max(0, asked.start)
            page = {"from": start, "rows": [*map(list, ranges[start : start + PAGE_MAX])]}
        elif asked.book not in self._course.pools:
            raise Malformed(f"there is no book {asked.book!r}")
        else:
            worker = self._course.any_worker(asked.book)
            if worker is None:
                raise NotTaken(
                    f"no worker of {asked.book!r} is here", retry_after_ms=250, cause="no_worker"
                )
            fx.books.append(BooksForwarded(origin, request.request, worker, request.body))
            return
        body = pack({"type": "books", "book": asked.book, **page})
        fx.reply(origin, Reply(request.request, None, body))

    def _sagas(self, done_with: int) -> dict[str, object]:
        state = self._state
        if done_with:
            self._snapshots.pop(done_with, None)
        return {
            "shard": self._course.shard,
            "highest": state.number,
            "finished": len(state.finished),
            "snapshot": 0 if done_with else self._snapshot(),
            "running": len(state.live),
        }

    def _snapshot(self) -> int:
        self._asked += 1
        # None of an earlier process or engine is ours: one epoch has one engine that serves. Those
        # that wait before the next epoch all see the same sagas.
        waits = self._course.seq == 0
        snapshot = self._state.epoch << 32 | waits << 31 | self._asked
        self._snapshots[snapshot] = [
            [s.number, s.saga_id, PHASES[s.phase], s.stuck, s.amount, s.definition.name]
            for s in self._state.live.values()
        ]
        if len(self._snapshots) > SNAPSHOTS_MAX:
            del self._snapshots[next(iter(self._snapshots))]
        return snapshot
