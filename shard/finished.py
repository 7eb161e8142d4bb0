"""Finished sagas in memory: the twin of `generations`, for simulations and tests. Pure."""

from sagacity.errors import check
from shard.records import Record
from shard.sagas import Card, Tombstone


class FinishedInMemory:
    """Cards by id, and in the order in which sagas ended."""

    def __init__(self) -> None:
        self._ordinals: dict[str, int] = {}
        self._in_order: list[Card] = []
        self._forgotten = 0

    def restore(self, base: int, forgotten: int) -> None:  # noqa: ARG002 - none is forgotten then
        """Begin again; a twin keeps no checkpoint."""
        check(base == 0, "finished sagas in memory have no checkpoint", base=base)

    def find(self, saga_id: str) -> Card | Tombstone | None:
        """Give a finished saga's card; a tombstone once it is past retention."""
        ordinal = self._ordinals.get(saga_id)
        if ordinal is None:
            return None
        return Tombstone() if ordinal < self._forgotten else self._in_order[ordinal]

    def record(self, saga_id: str) -> Record | None:  # noqa: ARG002 - as below
        """Give none: the journal's rows are all there."""
        return None

    def expired(self, below: int) -> tuple[int, list[int]] | None:
        """Give the next sagas to forget: the ordinal behind them, and their numbers."""
        numbers = [card.number for card in self._in_order[self._forgotten : below]]
        return (self._forgotten + len(numbers), numbers) if numbers else None

    def forget(self, below: int) -> None:
        """From now on what has a lower ordinal is past retention."""
        self._forgotten = max(self._forgotten, below)

    def add(self, card: Card) -> None:
        """Keep the next card."""
        self._ordinals[card.saga_id] = len(self._in_order)
        self._in_order.append(card)

    def page(self, start: int, upto: int, limit: int) -> list[Card]:
        """Give cards with an ordinal of start .. upto, in that order, at most `limit`."""
        start = max(self._forgotten, start)
        return self._in_order[start : max(start, min(upto, start + limit))]

    def newest(self, before: int, limit: int) -> list[Card]:
        """Give cards with an ordinal below `before`, newest first, at most `limit`."""
        end = min(max(before, 0), len(self._in_order))
        return self._in_order[max(self._forgotten, end - limit) : end][::-1]

    def __len__(self) -> int:
        return len(self._in_order)
