"""Spans: a trace shows of a saga what its history says, once, and nothing that it carried."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cluster import exporting
from cluster.exporting import Counts, Follower, Stopped
from cluster.otel import Sender, heard
from cluster.spans import ERROR, OK, UNSET, SagaSpans, Span, spans_of
from cluster.telemetry import configure_logging, get_logger
from sagacity import listing, wire
from sagacity.errors import Conflict, NoOutcome, NotTaken, SagacityError
from sagacity.saga import Retry
from tests.unit.test_listing import card
from tests.unit.world import CLIENT, WALL_MS, Rules, World, bodies, order

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SERVICES = ("inventory", "payment", "shipping")
QUICK = Rules(retry=Retry(attempts=2, backoff_ms=1, backoff_max_ms=1))


def begun(rules: Rules | None = None, saga_id: str = "a", parent: str = PARENT) -> World:
    world = World(rules)
    world.step(*world.came(*SERVICES), traced(world, saga_id, parent))
    return world


def traced(world: World, saga_id: str, parent: str = PARENT) -> Any:
    """Give the event of a start in a trace; what it carries must not be seen again."""
    body = order(saga_id, user_id="mark-user", shipping_address="mark-address")
    return world.ask(wire.START, saga_id, body, CLIENT, {"traceparent": parent})


def answered(world: World, saga_id: str, *outcomes: int, every_ms: int = 100) -> None:
    for outcome in outcomes:
        world.after(every_ms)
        world.step(*world.beats())
        world.drive(saga_id, outcome)


def shown(world: World, saga_id: str = "a") -> dict[str, Any]:
    return bodies(world.step(world.ask(wire.SHOW, saga_id)))[0]


def spans(world: World) -> SagaSpans:
    found = spans_of(shown(world))
    assert found is not None
    return found


def brief(span: Span) -> tuple[str, int, int, str, str]:
    """Give name, beginning and end since the start, outcome, status."""
    since = [at_ms - WALL_MS for at_ms in (span.start_ms, span.end_ms)]
    told = span.attributes.get("sagacity.outcome") or span.attributes["sagacity.saga.outcome"]
    return span.name, since[0], since[1], str(told), span.status


# -- from a history --------------------------------------------------------------------------------


def test_a_saga_that_completes_has_a_span_and_one_for_each_step() -> None:
    """Beneath the client's, with the times of the rows."""
    world = begun()
    answered(world, "a", wire.OK, wire.OK, wire.OK)
    found = spans(world)
    assert found.parent.text() == PARENT
    assert brief(found.saga) == ("checkout", 0, 300, "completed", OK)
    assert [brief(each) for each in found.attempts] == [
        ("ReserveInventory", 0, 100, "ok", OK),
        ("ChargePayment", 100, 200, "ok", OK),
        ("CreateShipment", 200, 300, "ok", OK),
    ]
    assert found.saga.attributes == {
        "sagacity.saga.id": "a",
        "sagacity.saga.name": "checkout",
        "sagacity.saga.outcome": "completed",
    }
    assert found.attempts[1].attributes == {
        "sagacity.saga.id": "a",
        "sagacity.step": 2,
        "sagacity.direction": "action",
        "sagacity.attempt": 1,
        "sagacity.outcome": "ok",
    }


def test_a_decline_is_an_outcome_and_its_compensations_have_spans() -> None:
    """As in the metrics: no error; why it turned back, and when, is told."""
    world = begun()
    answered(world, "a", wire.OK, wire.DECLINED, wire.OK)
    found = spans(world)
    assert brief(found.saga) == ("checkout", 0, 300, "aborted", UNSET)
    assert found.saga.attributes["sagacity.saga.cause"] == "declined"
    assert [brief(each) for each in found.attempts] == [
        ("ReserveInventory", 0, 100, "ok", OK),
        ("ChargePayment", 100, 200, "declined", UNSET),
        ("ReleaseReservation", 200, 300, "ok", OK),
    ]
    assert found.attempts[2].attributes["sagacity.direction"] == "compensation"
    [event] = found.saga.events
    assert (event.name, event.at_ms - WALL_MS) == ("turned_back", 200)
    assert event.attributes == {"sagacity.cause": "declined"}


def test_each_attempt_has_a_span_and_attempts_used_up_are_an_error() -> None:
    """Failed, timed out: what went wrong by itself."""
    world = begun(QUICK)
    answered(world, "a", wire.FAILED)
    for _ in range(4):
        world.after(2_000)
        world.step(*world.beats())
    answered(world, "a", wire.OK)
    found = spans(world)
    assert [(each.name, each.attributes["sagacity.attempt"]) for each in found.attempts] == [
        ("ReserveInventory", 1),
        ("ReserveInventory", 2),
        ("ReleaseReservation", 1),
    ]
    assert [brief(each)[3:] for each in found.attempts] == [
        ("failed", ERROR),
        ("timed_out", ERROR),
        ("ok", OK),
    ]
    assert found.attempts[1].start_ms == found.attempts[0].end_ms
    assert (found.saga.status, found.saga.attributes["sagacity.saga.cause"]) == (ERROR, "timed_out")


def test_a_step_that_a_cancel_overtakes_is_unknown_and_its_late_answer_is_told() -> None:
    """Nobody knows then whether it happened; the compensation's span begins."""
    world = begun()
    command = world.take(b"inventory", "a")
    world.after(50)
    cancel = {"type": "cancel", "saga_id": "a", "reason": "mark-reason"}
    world.step(world.ask(wire.CANCEL, "a", cancel))
    world.after(50)
    world.step(world.reply(b"inventory", command, wire.OK))
    answered(world, "a", wire.OK)
    found = spans(world)
    assert [brief(each) for each in found.attempts] == [
        ("ReserveInventory", 0, 50, "unknown", UNSET),
        ("ReleaseReservation", 50, 200, "ok", OK),
    ]
    assert [event.name for event in found.saga.events] == ["turned_back", "late_answer"]
    assert found.saga.status == UNSET
    assert "mark-" not in repr(found)


def test_the_answer_of_an_attempt_that_was_given_up_counts_for_the_step() -> None:
    """SPEC 3: a success of whatever attempt; the span says whose it was."""
    world = begun(Rules(retry=Retry(backoff_ms=1, backoff_max_ms=1)))
    first = world.take(b"inventory", "a")
    for _ in range(3):
        world.after(2_000)
        world.step(*world.beats())
    world.take(b"inventory", "a")  # its second attempt stays unanswered
    world.step(world.reply(b"inventory", first, wire.OK))
    answered(world, "a", wire.OK, wire.OK)
    timed_out, late, *_ = spans(world).attempts
    assert brief(timed_out)[3] == "timed_out"
    assert brief(late)[3] == "ok"
    assert late.attributes["sagacity.attempt"] == 2
    assert late.attributes["sagacity.answered_attempt"] == 1


def test_what_is_not_final_or_in_no_trace_has_no_spans() -> None:
    """A span has an end; and whoever records no trace has nowhere to put it."""
    world = begun()
    assert spans_of(shown(world)) is None
    world.step(world.start("b"))
    answered(world, "b", wire.OK, wire.OK, wire.OK)
    assert spans_of(shown(world, "b")) is None


def test_ids_are_the_same_whoever_exports_and_no_two_are_alike() -> None:
    """A saga that is exported by two runs is one saga to who collects."""
    world = begun(QUICK)
    answered(world, "a", wire.OK, wire.DECLINED, wire.FAILED)
    world.after(5_000)
    world.step(*world.beats())
    answered(world, "a", wire.OK)
    found = spans(world)
    assert spans(world) == found
    ids = [each.span_id for each in (found.saga, *found.attempts)]
    assert len(set(ids)) == len(ids) == 5
    assert all(len(each) == 16 and each.strip("0") for each in ids)


def test_a_clock_that_was_set_back_makes_no_span_end_before_it_begins() -> None:
    """Times are wall times; who collects refuses such a span."""
    body = shown_final()
    for at, event in enumerate(body["history"]):
        event["at_ms"] -= 3_600_000 * (at > 2)
    found = spans_of(body)
    assert found is not None
    assert all(each.start_ms <= each.end_ms for each in (found.saga, *found.attempts))


def shown_final() -> dict[str, Any]:
    world = begun()
    answered(world, "a", wire.OK, wire.DECLINED, wire.OK)
    return shown(world)


def test_a_history_without_commands_has_spans_all_the_same() -> None:
    """Of a definition that has another version by now the facts are told, and no commands."""
    body = shown_final()
    body["history"] = [each for each in body["history"] if each["event"] != "command"]
    found = spans_of(body)
    assert found is not None
    assert [brief(each)[:3] for each in found.attempts] == [
        ("step 1 action", 0, 100),
        ("step 2 action", 100, 200),
        ("step 1 compensation", 200, 300),
    ]


def test_attempts_that_are_not_kept_and_what_a_person_asked_are_told() -> None:
    """A compensation that was tried for days."""
    body = shown_final()
    at = {"at_ms": body["history"][-1]["at_ms"], "step": 1}
    more = [
        {**at, "event": "left_out", "attempts": 70},
        {**at, "event": "asked", "reason": "mark-reason"},
        {**at, "event": "quarantined", "direction": "compensation", "attempt": 72, "deaths": 3},
        {**at, "event": "of a later version"},
    ]
    body["history"][-1:-1] = more
    found = spans_of(body)
    assert found is not None
    assert [event.name for event in found.saga.events] == [
        *("turned_back", "attempts_left_out", "retry_asked"),
    ]
    assert found.saga.events[1].attributes == {"sagacity.attempts": 70}
    assert brief(found.attempts[-1])[3:] == ("quarantined", ERROR)
    assert "mark-" not in repr(found)


# -- to OpenTelemetry ------------------------------------------------------------------------------


def exported(*found: SagaSpans) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    sender = Sender(exporter)
    assert sender.send(found)
    spans = list(exporter.get_finished_spans())
    sender.close()
    assert not sender.send(found)
    return spans


def test_spans_of_the_sdk_say_the_same() -> None:
    """Parent, trace, times in nanoseconds, status, attributes, events."""
    world = begun()
    answered(world, "a", wire.OK, wire.DECLINED, wire.OK)
    saga, *attempts = exported(spans(world))
    assert saga.parent is not None
    assert (f"{saga.parent.trace_id:032x}", f"{saga.parent.span_id:016x}") == (TRACE, SPAN)
    assert saga.parent.is_remote
    assert (saga.name, saga.kind) == ("checkout", SpanKind.SERVER)
    assert [each.name for each in attempts] == [
        *("ReserveInventory", "ChargePayment", "ReleaseReservation"),
    ]
    context = saga.get_span_context()
    assert context is not None
    for each in attempts:
        assert each.parent is not None
        assert (each.parent.trace_id, each.parent.span_id) == (context.trace_id, context.span_id)
        assert each.kind == SpanKind.CLIENT
    assert (saga.start_time, saga.end_time) == (WALL_MS * 10**6, (WALL_MS + 300) * 10**6)
    codes = [each.status.status_code for each in (saga, *attempts)]
    assert codes == [StatusCode.UNSET, StatusCode.OK, StatusCode.UNSET, StatusCode.OK]
    assert [event.name for event in saga.events] == ["turned_back"]
    assert saga.resource.attributes["service.name"] == "sagacity"


def test_no_span_carries_what_a_client_has_sent() -> None:
    """A collector is another's house."""
    world = begun()
    answered(world, "a", wire.OK, wire.DECLINED, wire.OK)
    text = "".join(each.to_json() for each in exported(spans(world)))
    for mark in ("mark-user", "mark-address", "abc123", "249", "Payment declined"):
        assert mark not in text


def test_the_service_is_called_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME is how one names it everywhere."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    world = begun()
    answered(world, "a", wire.DECLINED)
    [saga, _] = exported(spans(world))
    assert saga.resource.attributes["service.name"] == "shop"


def test_what_opentelemetry_says_is_a_line_of_our_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Its own handler would write bare words; and as few of them as of any other event."""
    log = configure_logging("spans", 0)
    with heard(log):
        logging.getLogger("opentelemetry.exporter").error("no %s there", "collector")
    (line,) = capfd.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["text"]) == ("opentelemetry_said", "no collector there")
    assert logging.getLogger("opentelemetry").propagate


# -- from a cluster --------------------------------------------------------------------------------


class Shards:
    """A cluster of Worlds, asked as AsyncClient asks; it refuses what it is told to refuse."""

    def __init__(self, *worlds: World) -> None:
        self.worlds = worlds
        self.refusals: list[SagacityError] = []  # of pages
        self.histories_refused: list[SagacityError] = []
        self.most = 0
        self._open = 0

    async def traced(self, shard: int, place: int | None = None) -> dict[str, Any]:
        if self.refusals:
            raise self.refusals.pop(0)
        body = {"part": listing.TRACED, "before": place, "limit": 3}
        return self._ask(self.worlds[shard], wire.LIST, "0", wire.pack(body))

    async def show(self, saga_id: str) -> dict[str, Any]:
        self._open += 1
        self.most = max(self.most, self._open)
        await asyncio.sleep(0)
        self._open -= 1
        if self.histories_refused:
            raise self.histories_refused.pop(0)
        (world,) = [each for each in self.worlds if each.engine.state.finished.find(saga_id)]
        return self._ask(world, wire.SHOW, saga_id, b"")

    def _ask(self, world: World, kind: int, target: str, body: bytes) -> dict[str, Any]:
        return bodies(world.step(world.ask(kind, target, body)))[0]


class Collector:
    """Takes sagas, or refuses so many times."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.ids: list[str] = []

    def send(self, sagas: Sequence[SagaSpans]) -> bool:
        if self.refuses:
            self.refuses -= 1
            return False
        self.ids += [str(each.saga.attributes["sagacity.saga.id"]) for each in sagas]
        return True


def ended(world: World, *saga_ids: str, parent: str = PARENT) -> None:
    """Start sagas in a trace, and have them end."""
    for saga_id in saga_ids:
        world.step(traced(world, saga_id, parent))
        world.drive(saga_id, wire.DECLINED)


def shop(*saga_ids: str) -> World:
    world = World()
    world.step(*world.came(*SERVICES))
    ended(world, *saga_ids)
    return world


def follower(shards: Shards, collector: Collector, *, from_start: bool = True) -> Follower:
    indices = range(len(shards.worlds))
    log = get_logger()
    send = collector.send
    return Follower(shards, indices, send, log, from_start=from_start, again_s=0.0)


def test_every_traced_saga_that_ends_is_exported_once() -> None:
    """Page by page, of all shards, those of before and those that end meanwhile."""

    async def run() -> tuple[list[str], Counts]:
        left, right = shop("a", "b", "c", "d", "e"), shop("v")
        collector = Collector()
        following = follower(Shards(left, right), collector)
        while await following.turn():
            ended(right, f"w{len(collector.ids)}")
        ended(left, "f")
        assert not await following.turn()
        assert not await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert sorted(ids) == ["a", "b", "c", "d", "e", "f", "v", "w4"]
    assert counts == Counts(sagas=8, spans=16)


def test_without_more_it_begins_with_what_ends_from_now_on() -> None:
    """A cluster of years has millions behind it."""

    async def run() -> list[str]:
        world, collector = shop("old"), Collector()
        following = follower(Shards(world), collector, from_start=False)
        await following.turn()
        ended(world, "new")
        await following.turn()
        return collector.ids

    assert asyncio.run(run()) == ["new"]


def test_what_a_client_does_not_record_is_not_exported() -> None:
    """The flag is the client's decision for the whole trace; without a trace there is none."""

    async def run() -> list[str]:
        world, collector = shop("a"), Collector()
        ended(world, "unsampled", parent=PARENT[:-1] + "0")
        world.step(world.start("untraced"))
        world.drive("untraced", wire.DECLINED)
        ended(world, "b")
        following = follower(Shards(world), collector)
        while await following.turn():
            pass
        return collector.ids

    assert asyncio.run(run()) == ["a", "b"]


def test_a_shard_that_is_away_costs_time_and_no_saga() -> None:
    """The journal is the queue: what was not read is read later, and once."""

    async def run() -> tuple[list[str], Counts]:
        shards, collector = Shards(shop("a", "b")), Collector()
        following = follower(shards, collector)
        shards.refusals = [NoOutcome("away")]
        assert await following.turn()  # there may be more
        assert collector.ids == []
        await following.turn()
        await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert ids == ["a", "b"]
    assert (counts.sagas, counts.dropped, counts.lost) == (2, 0, 0)


def test_a_history_that_is_refused_is_asked_again_and_one_that_is_gone_is_counted() -> None:
    """Between page and history a shard may restart, or retention pass."""

    async def run() -> tuple[list[str], Counts]:
        shards, collector = Shards(shop("a", "b")), Collector()
        following = follower(shards, collector)
        shards.histories_refused = [NotTaken("busy"), Conflict("gone")]
        await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert ids == ["a"]
    assert (counts.sagas, counts.lost) == (1, 1)


def test_what_retention_has_taken_is_counted() -> None:
    """A collector that was away for a week."""

    async def run() -> Counts:
        world = shop()
        for index in range(5):
            world.engine.state.finished.add(card(index))
        world.engine.state.finished.forget(3)
        world.engine.state.forgotten = 3
        asked = world.ask(wire.LIST, "0", {"part": listing.TRACED, "before": 1})
        body = bodies(world.engine.step([asked], world.now, 9, 0))[0]
        assert (body["rows"], body["next"], body["lost"], body["left"]) == ([], 5, 2, 0)
        return Counts(lost=body["lost"])

    assert asyncio.run(run()) == Counts(lost=2)


def test_a_collector_that_is_back_in_time_gets_everything() -> None:
    """An export that is refused is tried again, with the same ids."""

    async def run() -> tuple[list[str], Counts]:
        collector = Collector(refuses=exporting.TRIES - 1)
        following = follower(Shards(shop("a")), collector)
        await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert (ids, counts) == (["a"], Counts(sagas=1, spans=2))


def test_an_exporter_that_raises_has_taken_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """It is another's code; the run goes on, and its saga with the next try."""

    class Raising(Collector):
        def send(self, sagas: Sequence[SagaSpans]) -> bool:
            if self.refuses:
                self.refuses -= 1
                raise RuntimeError("mark-user")
            return super().send(sagas)

    async def run() -> list[str]:
        collector = Raising(refuses=2)
        await follower(Shards(shop("a")), collector).turn()
        return collector.ids

    assert asyncio.run(run()) == ["a"]
    said = capfd.readouterr().err
    assert said.count("exporter_raised") == 2
    assert "mark-user" not in said


def test_what_no_try_could_export_is_dropped_and_counted() -> None:
    """And the run goes on with the next."""

    async def run() -> tuple[list[str], Counts]:
        world, collector = shop("a"), Collector(refuses=exporting.TRIES)
        following = follower(Shards(world), collector)
        await following.turn()
        ended(world, "b")
        await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert (ids, counts) == (["b"], Counts(sagas=1, spans=2, dropped=1))


def test_a_run_says_what_it_has_done() -> None:
    """Dropped and lost ones, too: who reads traces must know what is not there."""
    counts = Counts(sagas=2, spans=8, dropped=1, lost=3)
    said = exporting.summary(counts, as_json=False)
    assert said == "2 sagas exported, 8 spans; 1 sagas dropped, 3 lost"
    assert json.loads(exporting.summary(counts, as_json=True)) == {
        "type": "spans",
        **{"sagas": 2, "spans": 8, "dropped": 1, "lost": 3},
    }


def test_what_it_holds_and_asks_at_once_is_bounded() -> None:
    """A shard tells four histories a turn: checkouts go on in between."""

    async def run() -> int:
        shards = Shards(shop(*(f"s{at}" for at in range(9))))
        following = follower(shards, Collector())
        while await following.turn():
            pass
        return shards.most

    assert asyncio.run(run()) <= exporting.ASKED_AT_ONCE


def test_it_ends_when_it_is_told_to_wherever_it_is() -> None:
    """SIGTERM while a collector is away must not wait for it."""

    async def run() -> None:
        following = follower(Shards(shop("a")), Collector(refuses=10**9))
        following.stopping.set()
        with pytest.raises(Stopped):
            await following.turn()
        with pytest.raises(Stopped):
            await following.wait(0)

    asyncio.run(run())


@pytest.mark.parametrize("before", [-1, 1 << 62, -(2**63)])
def test_a_place_that_no_page_named_does_no_harm(before: int) -> None:
    """It comes from outside, or from before a loss that was accepted."""
    world = shop("a")
    asked = {"part": listing.TRACED, "before": before}
    page = bodies(world.step(world.ask(wire.LIST, "0", asked)))[0]
    assert (page["next"], page["left"], page["lost"]) == (1, 0, 0)


def test_pages_after_a_restart_go_on_where_they_were() -> None:
    """An ordinal is a saga's place for ever."""
    world = shop("a", "b")
    before = bodies(world.step(world.ask(wire.LIST, "0", {"part": "traced", "before": 1})))
    world.restart()
    again = bodies(world.step(world.ask(wire.LIST, "0", {"part": "traced", "before": 1})))
    assert again == before
    assert before[0]["rows"] == ["b"]


# -- without the extra -----------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from cluster.cli import main
"""


def test_without_the_extra_the_command_says_what_to_install() -> None:
    """Exit code 2, as all that its caller can mend."""
    code = WITHOUT + "sys.exit(main(['spans', '--once']))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert b"pip install 'sagacity[otel]'" in done.stderr
    assert b"Traceback" not in done.stderr


def test_nothing_else_needs_the_extra() -> None:
    """Nor loads it where it is there: a process starts in a blink."""
    code = (
        WITHOUT
        + "import cluster.exporting, cluster.commands, shard.process, services.pool, router\n"
        "import sagacity.client, sagacity.worker, sagacity.testing, json\n"
        "print(json.dumps([n for n in sys.modules if n.startswith('opentelemetry.')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []
