"""Books: the pages that an audit reads of a service's tables.

Holds how a page is asked, read and cut to a body's size; whatever is asked, the worker lives. Which
tables there are is the service's to say. Knows nothing of sockets, nor of a shard's own books.

A page is what comes after a key; or, with `within`, what a table that is audited continuously has
of certain sagas. What that costs is bounded by what may be asked: it is asked again and again.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Final

import apsw
from msgspec import Meta, Struct

from sagacity.barrier import Log
from sagacity.errors import InternalError, Malformed, NoOutcome, SagacityError, places
from sagacity.ids import SHARDS_MAX, number_of
from sagacity.service import Database, Rows, Service, Within
from sagacity.sqlite import INTEGER_MIN
from sagacity.wire import (
    BODY_BYTES_MAX,
    CONTAINER_MAX,
    BodyReader,
    BooksAsked,
    BooksPage,
    Int64,
    encode,
    pack,
    pack_error,
)

ROWS_MAX: Final = 5_000  # of one page
# Sagas of one shard that may be asked for at once. Those of the others stand between them in the
# index: 50 ns each to pass over, so that a page takes 50 ms for each shard at most.
COUNTS_MAX: Final = 1 << 20
EVERY_SHARD: Final = -1  # in a place of `within`: its rows are not passed over, `limit` bounds them

_Count = Annotated[int, Meta(ge=0, le=1 << 50)]  # so that their numbers fit
_Place = tuple[Annotated[int, Meta(ge=EVERY_SHARD, le=SHARDS_MAX - 1)], _Count, _Count]


class BooksRequest(Struct, frozen=True, omit_defaults=True):
    """Asks for a page of a table; with `within` for what it has of certain sagas."""

    book: str
    table: str
    after: Int64 | str
    limit: Annotated[int, Meta(ge=1, le=ROWS_MAX)]
    within: Annotated[list[_Place], Meta(max_length=CONTAINER_MAX)] | None = None


class Page(Struct):
    """A page of a table that is audited: no table of a stranger, so written as it is."""

    type: str
    book: str
    table: str
    rows: Rows
    next: Any  # the key after which there may be more


_read: BodyReader[BooksRequest] = BodyReader(BooksRequest)


def page_of(
    service: Service, connection: apsw.Connection, asked: BooksAsked, log: Log
) -> BooksPage:
    """Give a page of a service's books, or an error.

    Args:
        service: whose books they are.
        connection: of its database.
        asked: its body is {"book", "table", "after", "limit"}, and perhaps {"within"}.
        log: for what the service's code does wrong.

    Returns:
        A page; or, with its code, an error: 12 for what is wrong with the request, 0 where the
        table cannot be read, 13 where the service's code breaks.
    """
    try:
        return BooksPage(asked.token, _page(service, connection.cursor(), asked.body))
    except SagacityError as error:
        refusal = error
    except (apsw.Error, UnicodeDecodeError) as error:
        refusal = NoOutcome(f"unreadable now: {error!a:.200}")
    except (OverflowError, ValueError, TypeError) as error:
        refusal = Malformed(f"no such page: {error!a:.200}")
    except Exception as error:
        kind = type(error).__name__  # not its words: they may quote a row
        log.error("books_failed", service=service.name, error=kind, at=places(error))
        refusal = InternalError("the books cannot be read")
    return BooksPage(asked.token, pack_error(refusal), refusal.code)


def _page(service: Service, db: Database, asked: bytes) -> bytes:
    request, _ = _read.read(asked)
    if request.within is not None:
        return _audited(service, db, request, request.within)
    rows_of = service.books.get(request.table)
    if request.book != service.name or rows_of is None:
        tables = ", ".join(service.books)
        raise Malformed(f"{service.name} has the tables {tables}")
    rows = rows_of(db, request.after, request.limit)
    if _of_other_kind(rows_of, db, request.after, rows):
        raise Malformed(f"{request.after!r:.80} is no key of {request.table}")
    more = len(rows) == request.limit
    while True:
        page = {
            "type": "books",
            "book": request.book,
            "table": request.table,
            "rows": [list(row) for row in rows],
            "next": rows[-1][0] if more and rows else None,
        }
        try:
            body = pack(page)
        except Malformed as error:  # what another wrote into the table: not the asker's fault
            raise NoOutcome(f"unreadable now: {error.text}") from None
        if len(body) <= BODY_BYTES_MAX or len(rows) <= 1:
            return body
        rows, more = rows[: len(rows) // 2], True


def _audited(service: Service, db: Database, request: BooksRequest, within: Within) -> bytes:
    rows_of = service.audited.get(request.table)
    if request.book != service.name or rows_of is None:
        tables = ", ".join(service.audited)
        raise Malformed(f"of {service.name} the tables {tables} are audited")
    if sum(high - low + 1 for shard, low, high in within if shard != EVERY_SHARD) > COUNTS_MAX:
        raise Malformed(f"a page is asked for {COUNTS_MAX} sagas at most")
    rows = rows_of(db, within, request.after, request.limit)
    more = len(rows) == request.limit
    while True:
        key = rows[-1][0] if more and rows else None
        body = encode(Page("books", request.book, request.table, rows, key))
        if len(body) <= BODY_BYTES_MAX or len(rows) <= 1:
            return body
        rows, more = rows[: len(rows) // 2], True


def rows_within(db: Database, sql: str, within: Within, after: int, limit: int) -> Rows:
    """Give a row for each saga that a table knows of; for the tables that a service has audited.

    Args:
        db: of the service.
        sql: gives rows whose first column is a number, ascending, with a place for each of: the
            lowest number, the highest, a mask, what a number is under it, how many rows.
        within: ascending.
        after: numbers up to this one are left out.
        limit: of the rows.
    """
    rows: list[Any] = []
    for shard, low, high in within:
        one = shard != EVERY_SHARD
        first = max(number_of(low, shard if one else 0), after + 1)
        last = number_of(high, shard if one else SHARDS_MAX - 1)
        mask = SHARDS_MAX - 1 if one else 0
        if first <= last and len(rows) < limit:
            asked = (first, last, mask, shard if one else 0, limit - len(rows))
            rows += db.execute(sql, asked).fetchall()
    return rows


def _of_other_kind(
    rows_of: Callable[[Database, Any, int], Rows], db: Database, after: int | str, rows: Rows
) -> bool:
    """Say whether a table's keys are texts and `after` is an integer, or the other way round.

    SQLite compares the two without a word. Where it gave nothing, the table is asked once more
    for a key of the other kind.
    """
    if not rows:
        with suppress(TypeError, ValueError):  # the service's own code takes one kind only
            rows = rows_of(db, INTEGER_MIN if isinstance(after, str) else "", 1)
    return bool(rows) and not isinstance(rows[0][0], type(after))
