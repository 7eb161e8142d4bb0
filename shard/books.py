"""Books: the pages that an audit reads of a shard. Pure.

"sagas" takes a snapshot: at that instant every saga of the shard with a number up to `highest` is
among the running, whose pages the snapshot keeps, or among the first `finished` cards, which never
move. A service's books are asked of one of its workers.
"""

import msgspec
from msgspec import Struct

from sagacity.errors import Conflict, NotTaken
from sagacity.wire import BodyReader, Reply, Request, pack
from shard.course import Course
from shard.effects import BooksForwarded, Effects
from shard.events import Peer
from shard.phases import PHASES

PAGE_MAX = 1_500  # rows of one page: with the longest ids still under wire.BODY_BYTES_MAX
SNAPSHOTS_MAX = 4  # audits that may read one shard at once


class BooksRequest(Struct, forbid_unknown_fields=True):
    """Which page of which books: "sagas", "running", "finished", or a service's, with a table."""

    book: str
    snapshot: int = 0
    start: int = msgspec.field(default=0, name="from")
    upto: int = 0
    table: str | None = None
    after: int | str | None = None
    limit: int | None = None


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
            Malformed: the body is no such request.
            Conflict: the snapshot has made room for later ones.
            NotTaken: the service has no worker now.
        """
        asked, _ = _read.read(request.body)
        page: dict[str, object]
        if asked.book == "sagas":
            page = self._snapshot()
        elif asked.book == "running":
            rows = self._snapshots.get(asked.snapshot)
            if rows is None:
                raise Conflict("other audits have begun since this one: begin again")
            start = max(0, asked.start)
            page = {"from": asked.start, "rows": rows[start : start + PAGE_MAX]}
        elif asked.book == "finished":
            cards = self._state.finished.page(asked.start, asked.upto, PAGE_MAX)
            finished = [[c.number, c.saga_id, PHASES[c.phase], c.amount] for c in cards]
            page = {"from": asked.start, "rows": finished}
        else:
            worker = self._course.any_worker(asked.book)
            if worker is None:
                raise NotTaken(f"no worker of {asked.book!r} is here", retry_after_ms=250)
            fx.books.append(BooksForwarded(origin, request.request, worker, request.body))
            return
        body = pack({"type": "books", "book": asked.book, **page})
        fx.reply(origin, Reply(request.request, None, body))

    def _snapshot(self) -> dict[str, object]:
        state = self._state
        self._asked += 1
        self._snapshots[self._asked] = [
            [saga.number, saga.saga_id, PHASES[saga.phase], saga.stuck, saga.amount]
            for saga in state.live.values()
        ]
        if len(self._snapshots) > SNAPSHOTS_MAX:
            del self._snapshots[next(iter(self._snapshots))]
        return {
            "shard": self._course.shard,
            "highest": state.number,
            "finished": len(state.finished),
            "snapshot": self._asked,
            "running": len(state.live),
        }
