"""Listing: what `list` asks of which shard, in which words, and what it makes of the pages. Pure.

A shard is asked for its live sagas first and for its finished ones after: one that ends meanwhile
is told twice then, and here once, with its end; the other way round it would be told by nobody.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Final

from sagacity.errors import Malformed

LIMIT: Final = 50
LIMIT_MAX: Final = 10_000  # sagas of one answer, all of which are held in memory
PAGE_ROWS: Final = 500
LIVE: Final = "live"  # the parts of a shard's sagas
FINISHED: Final = "finished"
TRACED: Final = "traced"  # of the finished ones, those whose client records a trace; oldest first
STUCK: Final = "STUCK"  # a mark, not a phase: who asks for COMPENSATING gets the stuck ones too
STATUSES_OF: Final = {
    LIVE: ("RUNNING", "COMPENSATING", STUCK),
    FINISHED: ("COMPLETED", "ABORTED"),
}
STATUSES: Final = (*STATUSES_OF[LIVE], *STATUSES_OF[FINISHED])
FIELDS: Final = (
    *("saga_id", "status", "stuck", "saga", "amount", "order_id"),
    *("started_ms", "ended_ms", "reason"),
)

Told = dict[str, Any]
Ask = tuple[int, dict[str, Any]]  # a shard, and the body of what is asked of it


def checked(statuses: Iterable[str], since_ms: int, limit: int) -> list[str]:
    """Check what a list is asked with; give the statuses as the shards call them.

    Raises:
        Malformed: an unknown status, an instant that no clock has, or a limit past LIMIT_MAX.
    """
    found = list(dict.fromkeys(status.strip().upper() for status in statuses))
    for status in found:
        if status not in STATUSES:
            known = ", ".join(STATUSES).lower()
            raise Malformed(f"there is no status {status.lower()!r}; there are {known}")
    if not 1 <= limit <= LIMIT_MAX:
        raise Malformed(f"limit is 1..{LIMIT_MAX}, not {limit}")
    if not 0 <= since_ms < 1 << 63:
        raise Malformed("since is milliseconds since 1970")
    return found


def pages(
    shards: Sequence[int], statuses: Sequence[str], since_ms: int, limit: int
) -> Generator[Ask, dict[str, Any], list[Told]]:
    """Give what is to be asked, take each answer, return the sagas, newest first.

    Args:
        shards: the indices of all.
        statuses: as `checked` gives them; none for all.
        since_ms: wall time; a saga counts by its end, or by its start before that.
        limit: how many sagas at most.
    """
    found: dict[str, Told] = {}
    for part, of_part in STATUSES_OF.items():
        if statuses and not set(statuses) & set(of_part):
            continue
        for shard in shards:
            place: int | None = None
            left = limit
            while left:
                ask = {"part": part, "before": place, "statuses": list(statuses)}
                ask |= {"since_ms": since_ms, "limit": min(left, PAGE_ROWS)}
                page = yield shard, ask
                rows = page["rows"]
                found.update((row[0], dict(zip(FIELDS, row, strict=False))) for row in rows)
                left, place = left - len(rows), page["next"]
                if place is None:
                    break
    newest = sorted(found.values(), key=changed_ms, reverse=True)
    return newest[:limit]


def changed_ms(saga: Told) -> int:
    """Give the instant by which a saga is listed: its end, its start before that."""
    ended_ms: int | None = saga["ended_ms"]
    started_ms: int = saga["started_ms"]
    return started_ms if ended_ms is None else ended_ms
