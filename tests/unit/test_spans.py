"""Spans: a trace shows of a saga what its history says, once, and nothing that it carried."""

import json
import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cluster.otel import Sender, heard
from cluster.spans import ERROR, OK, UNSET, SagaSpans, Span, spans_of
from cluster.telemetry import configure_logging
from sagacity import wire
from sagacity.saga import Retry
from tests.unit.traced import PARENT, SERVICES, SPAN, TRACE, traced
from tests.unit.world import WALL_MS, Rules, World, bodies

QUICK = Rules(retry=Retry(attempts=2, backoff_ms=1, backoff_max_ms=1))


def begun(rules: Rules | None = None, saga_id: str = "a", parent: str = PARENT) -> World:
    world = World(rules)
    world.step(*world.came(*SERVICES), traced(world, saga_id, parent))
    return world


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
