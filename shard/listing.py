"""Listing: one page of what `list` tells of a shard's sagas, newest first. Pure.

Two parts, each with a place from which the next page goes on: the live sagas by their numbers, the
finished ones by their ordinals, the order in which they ended. Who wants all reads the live part
first: a saga that ends meanwhile is in the other part then, and in none it is missing. A page looks
at a bounded number of sagas, so a page may be empty and not the last.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from sagacity import traces
from sagacity.errors import Malformed
from sagacity.listing import FINISHED, LIVE, PAGE_ROWS, STATUSES, STUCK, TRACED
from sagacity.wire import BODY_BYTES_MAX, BodyReader, Int64, decoder, encode
from shard import phases
from shard.sagas import Card, Live
from shard.state import State

LOOKED_AT_MAX = PAGE_ROWS  # sagas of one page, told or not: 0.5 ms of a shard, cards in memory
ROWS_BYTES_MAX = BODY_BYTES_MAX - (8 << 10)  # of one page
REASON_MAX = 512  # characters; `show` tells a longer one whole
_ROW_BYTES = 160  # of a row beside its id and reason

_Name = Annotated[str, Meta(max_length=16)]

Row = list[Any]


class ListRequest(Struct, forbid_unknown_fields=True):
    """Which page.

    Args:
        part: LIVE, FINISHED or TRACED.
        before: the place that a page before this one named; None for the first page, of TRACED for
            where the next saga to end will stand.
        statuses: of STATUSES; none of them for all.
        since_ms: wall time; sagas that ended before it, or live ones that started before it, are
            left out.
        limit: rows.
    """

    part: _Name
    before: Int64 | None = None
    statuses: Annotated[list[_Name], Meta(max_length=16)] = msgspec.field(default_factory=list)
    since_ms: Int64 = 0
    limit: Annotated[int, Meta(ge=1, le=LOOKED_AT_MAX)] = LOOKED_AT_MAX


class _Reasoned(Struct):
    """The one key of a final body that says why."""

    reason: str = ""


_read: BodyReader[ListRequest] = BodyReader(ListRequest)
_reasoned = decoder(_Reasoned)


def page_of(state: State, shard: int, request: bytes) -> bytes:
    """Give the packed answer to `list`.

    Its rows: saga_id, status, stuck, name of the definition, amount, order id, start, end (None
    before it), reason (empty where none is known). `next` is the place of the next page, None after
    the last one.

    Raises:
        Malformed: the body is no such request.
    """
    asked, _ = _read.read(request)
    for status in asked.statuses:
        if status not in STATUSES:
            raise Malformed(f"there is no status {status!r}: {', '.join(STATUSES)}")
    if asked.part == TRACED:
        return encode({"type": "list", "shard": shard, "part": TRACED, **_traced(state, asked)})
    if asked.part == LIVE:
        rows, place = _live(state, asked)
    elif asked.part == FINISHED:
        rows, place = _finished(state, asked)
    else:
        parts = f"{LIVE}, {FINISHED} and {TRACED}"
        raise Malformed(f"a list has the parts {parts}, not {asked.part!r}")
    body = {"type": "list", "shard": shard, "part": asked.part, "rows": rows, "next": place}
    return encode(body)  # every row is ours: `pack` would look for what no body holds, 6 us a row


def _live(state: State, asked: ListRequest) -> tuple[list[Row], int | None]:
    wanted, page = frozenset(asked.statuses), _Page(asked.limit)
    place = None
    for looked_at, number in enumerate(_numbers(state, asked.before)):
        saga = state.live[number]
        if saga.started_ms < asked.since_ms:
            return page.rows, None
        if looked_at == LOOKED_AT_MAX or page.full:
            return page.rows, place
        place = number
        if not wanted or phases.PHASES[saga.phase] in wanted or (saga.stuck and STUCK in wanted):
            page.add(_row_of(saga))
    return page.rows, None


def _numbers(state: State, before: int | None) -> Iterator[int]:
    """Give the live sagas' numbers, newest first: they stand in the order of their starts."""
    if before is None:
        return reversed(state.live)
    return (number for number in reversed(state.live) if number < before)


def _finished(state: State, asked: ListRequest) -> tuple[list[Row], int | None]:
    wanted, page = frozenset(asked.statuses), _Page(asked.limit)
    place = len(state.finished)
    if asked.before is not None:
        place = min(max(asked.before, 0), place)
    cards = state.finished.newest(place, LOOKED_AT_MAX)
    for card in cards:
        if card.ended_ms < asked.since_ms:
            return page.rows, None
        if page.full:
            return page.rows, place
        place -= 1
        if not wanted or phases.PHASES[card.phase] in wanted:
            page.add(_row_of_card(card))
    return page.rows, place if place and len(cards) == LOOKED_AT_MAX else None


def _traced(state: State, asked: ListRequest) -> dict[str, Any]:
    """Give the ids of finished sagas whose client records a trace, in the order of their ends.

    Whoever asks from place to place is told of each once. `lost` are those, traced or not, that
    went past retention before they were asked for, `left` those behind this page.
    """
    end = len(state.finished)
    start = end if asked.before is None else min(max(asked.before, 0), end)
    kept_from = max(start, state.forgotten)
    cards = state.finished.page(kept_from, end, min(asked.limit, LOOKED_AT_MAX))
    place = kept_from + len(cards)
    rows = [card.saga_id for card in cards if card.traceparent and _is_sampled(card)]
    return {"rows": rows, "next": place, "lost": kept_from - start, "left": end - place}


def _is_sampled(card: Card) -> bool:
    parent = traces.read(card.traceparent)  # older journals hold whatever came
    return parent is not None and parent.sampled


class _Page:
    """Rows, until there are enough of them or no more have room in a body."""

    def __init__(self, limit: int) -> None:
        self.rows: list[Row] = []
        self.full = False
        self._limit = limit
        self._bytes = 0

    def add(self, row: Row) -> None:
        """Add a row; the next one may be as long as a row can be."""
        self.rows.append(row)
        self._bytes += _ROW_BYTES + len(row[0]) + 4 * len(row[-1])  # id and reason
        self.full = len(self.rows) == self._limit or self._bytes > ROWS_BYTES_MAX


def _row_of(saga: Live) -> Row:
    return [
        saga.saga_id,
        phases.PHASES[saga.phase],
        saga.stuck,
        saga.definition.name,
        saga.amount,
        saga.order_id,
        saga.started_ms,
        None,
        saga.reason[:REASON_MAX],
    ]


def _row_of_card(card: Card) -> Row:
    return [
        card.saga_id,
        phases.PHASES[card.phase],
        False,
        card.saga,
        card.amount,
        card.order_id,
        card.started_ms,
        card.ended_ms,
        _reason(card.answer)[:REASON_MAX] if card.phase == phases.ABORTED else "",
    ]


def _reason(answer: bytes) -> str:
    """Give why a saga was aborted, where its final body has a text for it."""
    try:
        found: str = _reasoned(answer).reason
    except (ValueError, RecursionError):
        return ""
    return found
