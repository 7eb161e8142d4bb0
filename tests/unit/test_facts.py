"""Facts: at level debug every entry of a saga is one line with its ids, and nothing else of it."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.telemetry import Log
from sagacity import wire
from sagacity.ids import COMPENSATION
from sagacity.saga import Retry
from shard.entries import Quarantined, Ran, TurnedBack
from shard.facts import ToldJournal, told_of
from shard.journal import Journal, MemoryJournal
from shard.records import Record, Row
from tests.unit.world import Rules, World, order

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
SERVICES = ("inventory", "payment", "shipping")


class Lines(Log):
    """A log that keeps its lines."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        super().__init__({})
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))


class ToldWorld(World):
    """A shard whose journal is told."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.log = Lines()
        super().__init__(rules)

    def _open(self) -> Journal:
        return ToldJournal(MemoryJournal(), self.log)

    def told(self) -> list[str]:
        """Give the events and the fields beside ids and rows, since the last call."""
        lines, self.log.lines = self.log.lines, []
        return [
            " ".join([event, *(str(v) for k, v in fields.items() if k not in _IDS)])
            for event, fields in lines
        ]


_IDS = ("saga_id", "trace_id", "seq")


def begun(rules: Rules | None = None) -> ToldWorld:
    world = ToldWorld(rules)
    headers = {"traceparent": PARENT}
    start = world.ask(wire.START, "a", order("a"), headers=headers)
    world.step(*world.came(*SERVICES), start)
    return world


def test_each_fact_is_one_line_with_the_sagas_ids() -> None:
    """Found by either of them, also after a restart."""
    world = begun()
    world.drive("a", wire.OK)
    world.restart()
    world.step(*world.came(*SERVICES))
    world.drive("a", wire.DECLINED, wire.OK)
    ids = [(fields["saga_id"], fields["trace_id"]) for _, fields in world.log.lines]
    assert ids == [("a", TRACE)] * len(ids)
    assert world.told() == [
        "saga_started checkout",
        "step_succeeded 1 1",
        "step_declined 2 1",
        "saga_turned_back 2 declined",
        "step_compensated 1 1",
        "saga_finished aborted",
    ]


def test_a_saga_without_a_trace_has_its_own_id_alone() -> None:
    """No empty field."""
    world = ToldWorld()
    world.step(*world.came(*SERVICES), world.start("b"))
    ((_, fields),) = world.log.lines
    assert fields == {"saga_id": "b", "seq": 2, "saga": "checkout"}


def test_attempts_that_end_and_what_a_person_asks_are_told() -> None:
    """Without the texts: a handler's words quote what it was given, a reason is its writer's."""
    world = begun(Rules(retry=Retry(stuck_after=1, backoff_ms=1, backoff_max_ms=1)))
    world.drive("a", wire.FAILED)
    world.after(5_000)
    world.step(*world.beats())
    world.step(world.ask(wire.CANCEL, "a", cancel("a")))
    world.drive("a", wire.FAILED)
    retry = {"type": "retry", "saga_id": "a", "reason": "mended"}
    world.step(world.ask(wire.RETRY, "a", retry))
    assert world.told() == [
        "saga_started checkout",
        "attempt_ended 1 1 action failed",
        "saga_turned_back 1 cancelled",
        "attempt_ended 1 1 compensation failed",
        "retry_asked 1",
    ]


def test_a_command_that_kills_its_workers_is_told() -> None:
    """A person looks for it by its saga."""
    entry = Quarantined(1 << 10, 2, COMPENSATION, 4, 3)
    assert told_of(entry) == (
        "command_quarantined",
        {"step": 2, "attempt": 4, "direction": "compensation", "deaths": 3},
    )


class Checkpointed(MemoryJournal):
    """A journal whose first rows a compaction has taken apart."""

    def kept(self) -> Iterator[Record]:
        batches = [batch for _, batch in self.replay()]
        yield [Row(seq, batch.wall_ms, batch.entries) for seq, batch in enumerate(batches[1:2], 2)]


def test_a_saga_that_a_compaction_keeps_is_known_by_its_ids() -> None:
    """Its start stands in no row any more."""
    inner, log = Checkpointed(), Lines()
    world = begun()
    for row in world.journal.replay():
        inner.commit(row[1].entries, row[1].epoch, row[1].wall_ms)
    journal = ToldJournal(inner, log)
    assert len(list(journal.kept())) == 1
    number = next(iter(world.engine.state.live))
    journal.commit([TurnedBack(number, 1, "cancelled", "R"), Ran(7)], 1, 1)
    assert log.lines == [
        (
            "saga_turned_back",
            {"saga_id": "a", "trace_id": TRACE, "seq": 3, "step": 1, "cause": "cancelled"},
        )
    ]


def cancel(saga_id: str) -> dict[str, Any]:
    return {"type": "cancel", "saga_id": saga_id, "reason": "changed my mind"}


def test_nothing_is_kept_of_a_final_saga() -> None:
    """A shard that is looked at for days must not grow."""
    world = begun()
    world.drive("a", wire.OK, wire.OK, wire.OK)
    journal = world.journal
    assert isinstance(journal, ToldJournal)
    assert journal._ids == {}


@pytest.mark.parametrize("ask", ["size_bytes", "checkpoint", "kept", "last"])
def test_it_is_the_journal_for_all_else(ask: str) -> None:
    """A port's twin: what it does not tell it passes on."""
    inner = MemoryJournal()
    outer = ToldJournal(inner, Lines())
    got, expected = getattr(outer, ask), getattr(inner, ask)
    if ask == "kept":
        assert list(got()) == list(expected())
    elif callable(got):
        assert got() == expected()
    else:
        assert got == expected
    assert outer.chain_at(0) == inner.chain_at(0)
    outer.close()
