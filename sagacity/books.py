"""Books: the pages that an audit reads of a service's tables.

Holds how a page is asked, read and cut to a body's size; whatever is asked, the worker lives. Which
tables there are is the service's to say. Knows nothing of sockets, nor of a shard's own books.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Final

import apsw
from msgspec import Meta, Struct

from sagacity.barrier import Log
from sagacity.errors import InternalError, Malformed, NoOutcome, SagacityError, places
from sagacity.service import Database, Rows, Service
from sagacity.sqlite import INTEGER_MIN
from sagacity.wire import BODY_BYTES_MAX, BodyReader, BooksAsked, BooksPage, Int64, pack, pack_error

ROWS_MAX: Final = 5_000  # of one page


class BooksRequest(Struct, frozen=True):
    """Asks for a page of a table."""

    book: str
    table: str
    after: Int64 | str
    limit: Annotated[int, Meta(ge=1, le=ROWS_MAX)]


_read: BodyReader[BooksRequest] = BodyReader(BooksRequest)


def page_of(
    service: Service, connection: apsw.Connection, asked: BooksAsked, log: Log
) -> BooksPage:
    """Give a page of a service's books, or an error.

    Args:
        service: whose books they are.
        connection: of its database.
        asked: its body is {"book", "table", "after", "limit"}.
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
