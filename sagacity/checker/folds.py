"""Folds: a shard's own state, as the rules compare it. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

from sagacity.checker.evidence import Fold, Journal, Plan, Standing
from sagacity.errors import InvariantBroken, SagacityError
from sagacity.ids import count_of
from sagacity.ranges import Ranges
from shard.entries import AttemptEnded, Batch, Entry, Quarantined
from shard.records import Record
from shard.sagas import Card, Definition, Tombstone
from shard.state import Checkpoint, State

LIVE: Final = "the live shard"
REPLAY: Final = "a replay of checkpoint and rows"
WHOLE: Final = "a replay of every saga's record"

_BREAKS: Final = (InvariantBroken, SagacityError, LookupError, AssertionError, ValueError)


class Ended:
    """Finished sagas as a fold needs them: how many there are."""

    def __init__(self) -> None:
        self._count = 0

    def find(self, saga_id: str) -> Card | Tombstone | None:
        """Give nothing."""
        return None

    def record(self, saga_id: str) -> Record | None:
        """Give nothing."""
        return None

    def add(self, card: Card) -> None:
        """Count it."""
        self._count += 1

    def expired(self, below: int) -> tuple[int, list[int]] | None:
        """Give nothing."""
        return None

    def forget(self, below: int) -> None:
        """They were counted, and stay so."""

    def restore(self, base: int, forgotten: int) -> None:
        """Begin with those that had ended."""
        self._count = base

    def page(self, start: int, upto: int, limit: int) -> list[Card]:
        """Give nothing."""
        return []

    def newest(self, before: int, limit: int) -> list[Card]:
        """Give nothing."""
        return []

    def __len__(self) -> int:
        return self._count


def fold_of(way: str, state: State) -> Fold:
    """Give what a state says, in a form that can be compared.

    Args:
        way: how the state was got, for people.
        state: it is left as it is.
    """
    counts = {
        "finished": len(state.finished),
        "running": len(state.live),
        "compensating": state.compensating,
        "stuck": state.stuck,
        "number": state.number,
        "epoch": state.epoch,
        "at risk": state.at_risk,
        "forgotten": state.forgotten,
        "lists": state.lists,
        "orders": sum(state.order_counts),
        "ran": state.ran_ms,
    }
    running = {
        number: Standing(
            saga.phase, saga.step, saga.direction, saga.attempt, saga.stuck, list(saga.states)
        )
        for number, saga in state.live.items()
    }
    return Fold(way, counts, running)


def replayed(
    checkpoint: Checkpoint | None,
    kept: Iterable[Record],
    rows: Iterable[tuple[int, Batch]],
    definitions: Mapping[str, Definition],
) -> Fold:
    """Replay what a start would: the checkpoint, then the rows behind it."""
    state = State(definitions, Ended())
    seq = 0
    try:
        if checkpoint is not None:
            seq = checkpoint.seq
            state.restore(kept, checkpoint.counts)
        for seq, batch in rows:
            state.wall_ms = batch.wall_ms
            for entry in batch.entries:
                state.apply(entry, seq)
    except _BREAKS as error:
        return Fold(REPLAY, broken=f"breaks at row {seq}: {type(error).__name__}: {error}")
    return fold_of(REPLAY, state)


def refolded(journal: Journal, definitions: Mapping[str, Definition]) -> Fold:
    """Replay every saga's own record from its start, as if there were no checkpoint.

    What the checkpoint alone knows is left out of what is compared.
    """
    state = State(definitions, Ended())
    entries: list[tuple[int, int, int, Entry]] = [
        (seq, number, at, entry)
        for number, story in journal.stories.items()
        for at, (seq, entry) in enumerate([(story.seq, story.started), *story.told()])
    ]
    entries.sort(key=lambda each: each[:3])
    at_row = 0
    try:
        for at_row, number, _, entry in entries:
            if isinstance(entry, AttemptEnded | Quarantined):  # a record leaves some of them out
                saga = state.live.get(number)
                if saga is not None:
                    saga.attempt = entry.attempt
            state.apply(entry, at_row)
    except _BREAKS as error:
        return Fold(WHOLE, broken=f"breaks at row {at_row}: {type(error).__name__}: {error}")
    fold = fold_of(WHOLE, state)
    forgotten = Ranges(journal.forgotten)
    gone = sum(high - low + 1 for low, high in journal.forgotten)
    kept = sum(1 for number in journal.stories if count_of(number) in forgotten)
    fold.counts["finished"] += gone - kept
    for name in ("epoch", "forgotten", "lists", "orders", "number", "ran"):
        del fold.counts[name]
    return fold


def plans_of(definitions: Mapping[str, Definition]) -> dict[str, Plan]:
    """Give what the rules need of definitions."""
    return {
        name: Plan(each.version, list(each.services), list(each.names))
        for name, each in definitions.items()
    }
