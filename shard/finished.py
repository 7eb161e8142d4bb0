"""Finished sagas: what their ids must still answer. In memory, rebuilt from the journal at a start.

The door for generations on disk (DESIGN 4): the engine asks `find`, `add` and `page` alone.
"""

from shard.sagas import Card


class FinishedInMemory:
    """Cards by id, and in the order in which sagas ended."""

    def __init__(self) -> None:
        self._by_id: dict[str, Card] = {}
        self._in_order: list[Card] = []

    def find(self, saga_id: str) -> Card | None:
        """Give a finished saga's card; None when no saga of this id has finished."""
        return self._by_id.get(saga_id)

    def add(self, card: Card) -> None:
        """Keep a card."""
        self._by_id[card.saga_id] = card
        self._in_order.append(card)

    def page(self, start: int, upto: int, limit: int) -> list[Card]:
        """Give cards `start` .. `upto`, at most `limit`, in the order in which they were added."""
        start = max(0, start)
        return self._in_order[start : max(start, min(upto, start + limit))]

    def __len__(self) -> int:
        return len(self._in_order)
