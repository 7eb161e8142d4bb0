"""Trace context: what is read of it, what is dropped and counted, and where it travels."""

from typing import Any

import pytest
from apsw import Connection
from hypothesis import given
from hypothesis import strategies as st

from cluster.commands import checkout_arguments
from cluster.render import saga as events
from cluster.requests import checkout as asked_of_node
from cluster.story import page
from cluster.storypage import html
from sagacity import client, traces, wire
from sagacity.client import AsyncClient, Client
from sagacity.errors import Malformed
from sagacity.executor import BatchExecutor, make_tables
from sagacity.service import Call, Database, Ok, Result, Service
from sagacity.traces import TraceParent
from sagacity.wire import Commands, Witness
from shard.entries import Started
from tests.unit.service_world import CLUSTER_ID, Events, Put, PutOk, Take, put_command, toy
from tests.unit.world import World, bodies, commands, order

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SERVICES = ("inventory", "payment", "shipping")

MALFORMED = {
    "empty": "",
    "a word": "trace",
    "capitals": PARENT.upper(),
    "no trace": f"00-{'0' * 32}-{SPAN}-01",
    "no span": f"00-{TRACE}-{'0' * 16}-01",
    "version ff": f"ff-{TRACE}-{SPAN}-01",
    "too short": PARENT[:-1],
    "too long for version 00": PARENT + "-x",
    "a newline behind": PARENT + "\n",
    "a later version without a dash": f"01-{TRACE}-{SPAN}-01x",
    "other digits": PARENT.replace("4", "\u0664"),
    "a list": f"{PARENT},{PARENT}",
    "very long": "0" * 900,
}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (PARENT, PARENT),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03"),
        (f"cc-{TRACE}-{SPAN}-01", PARENT),
        (f"01-{TRACE}-{SPAN}-09-what-comes-later", PARENT),
    ],
)
def test_what_the_standard_allows_is_kept_as_the_version_that_we_speak(
    text: str, kept: str
) -> None:
    """W3C Trace Context 1: of a later version the known beginning, flags that we do not know 0."""
    headers = {"traceparent": text, "tracestate": "vendor=1", "tenant": "t"}
    assert traces.accepted(headers) == {**headers, "traceparent": kept}
    found = traces.of(headers)
    assert found is not None
    assert (found.trace_id, found.span_id, found.text()) == (TRACE, SPAN, kept)
    assert found.sampled == (kept[-1] in "13")


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_left_out_with_what_hangs_on_it(text: str) -> None:
    """A tracestate says nothing without its traceparent; what else there is stays."""
    headers = {"traceparent": text, "tracestate": "vendor=1", "tenant": "t"}
    assert traces.accepted(headers) == {"tenant": "t"}
    assert traces.of(headers) is None
    assert traces.bound("s1", headers) == {"saga_id": "s1"}
    assert headers["traceparent"] == text


@given(st.one_of(st.text(), st.text("0123456789abcdef-", min_size=50, max_size=70)))
def test_any_text_is_read_or_left_out(text: str) -> None:
    """It comes from outside; what is read is written as it was or as version 00."""
    found = traces.read(text)
    if found is not None:
        assert traces.read(found.text()) == found
        assert found.text()[3:53] == text[3:53]
    sent = traces.sendable(text)
    assert len(sent) <= traces.TEXT_MAX
    assert sent.isascii()
    assert traces.read(sent) == found


@pytest.mark.parametrize("value", [None, 7, b"00", [PARENT]])
def test_what_is_no_text_is_no_trace(value: object) -> None:
    """An answer to SHOW comes from outside, too."""
    assert traces.read(value) is None


# -- in a shard ------------------------------------------------------------------------------------


def started(headers: dict[str, str]) -> tuple[World, Started]:
    """Start one saga with headers; give its entry."""
    world = World()
    effects = world.step(
        *world.came(*SERVICES), world.ask(wire.START, "a", order("a"), headers=headers)
    )
    (entry,) = effects.entries
    assert isinstance(entry, Started)
    return world, entry


def test_a_trace_is_journalled_and_travels_with_every_command() -> None:
    """Actions, retries and compensations, before a restart and after."""
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    world, entry = started(headers)
    assert entry.headers == headers
    seen = [command.headers for command in world.held[b"inventory"]]
    world.drive("a", wire.FAILED)
    world.after(10_000)
    seen += [each.headers for each in commands(world.step(*world.beats()))]
    world.restart()
    world.step(*world.came(*SERVICES))
    world.after(10_000)
    seen += [each.headers for each in commands(world.step(*world.beats()))]
    seen += [each.headers for each in commands(world.drive("a", wire.OK))]
    seen += [each.headers for each in commands(world.drive("a", wire.DECLINED))]
    assert seen == [headers] * 5


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_trace_is_dropped_and_counted_and_fails_no_order(text: str) -> None:
    """Somebody's broken proxy must not cost a sale."""
    world, entry = started({"traceparent": text, "tenant": "t"})
    assert entry.headers == {"tenant": "t"}
    assert world.tally.counts["faulted", "traceparent"] == 1
    final = bodies(world.drive("a", wire.OK, wire.OK, wire.OK))
    assert final[0]["status"] == "COMPLETED"


def test_a_good_trace_and_none_are_no_fault() -> None:
    """Else the counter says nothing."""
    for headers in ({"traceparent": PARENT}, {"tenant": "t"}, {}):
        world, _ = started(headers)
        assert world.tally.counts["faulted", "traceparent"] == 0


def test_a_repeat_changes_no_trace() -> None:
    """The first accepted start stands, with all that came with it; a client that asks again has
    another span."""
    world, _ = started({"traceparent": PARENT})
    again = PARENT.replace(SPAN, "1" * 16)
    effects = world.step(world.ask(wire.START, "a", order("a"), headers={"traceparent": again}))
    assert effects.entries == []
    assert shown(world)["traceparent"] == PARENT


def shown(world: World) -> dict[str, Any]:
    return bodies(world.step(world.ask(wire.SHOW, "a")))[0]


def test_show_tells_the_trace() -> None:
    """From the journal: also after a restart, and of a saga that is final."""
    world, _ = started({"traceparent": PARENT})
    assert (shown(world)["saga"], shown(world)["traceparent"]) == ("checkout", PARENT)
    world.drive("a", wire.OK, wire.OK, wire.OK)
    world.restart()
    body = shown(world)
    assert body["traceparent"] == PARENT
    for written in (page, events, html):
        assert f"trace {TRACE}" in written(body)
        assert TRACE not in written({**body, "traceparent": None})


# -- at its ends -----------------------------------------------------------------------------------


def test_a_handler_can_read_the_trace() -> None:
    """So that its own spans stand in it."""
    seen: list[dict[str, str]] = []

    def put(_: Database, call: Call[Put]) -> Result:
        seen.append(call.headers)
        return Ok(PutOk(1))

    service = Service("toy", toy.schema, {Put: put}, {Take: toy.compensations[Take]})
    connection = Connection(":memory:")
    make_tables(connection, service, CLUSTER_ID)
    executor = BatchExecutor(connection, service, Events())
    asked = put_command()
    traced = wire.Command(
        *(asked.saga_id, asked.step, asked.direction, asked.epoch, asked.number, asked.attempt),
        {"traceparent": PARENT},
        asked.body,
    )
    executor.execute([Commands(Witness(CLUSTER_ID, 0, 1, 1, bytes(16), 0), [traced])])
    assert seen == [{"traceparent": PARENT}]
    executor.close()


@pytest.mark.parametrize("text", [PARENT, "x" * 100_000, "caf\u00e9", "\udcff", ""])
def test_the_client_sends_any_traceparent_and_no_order_fails_for_it(text: str) -> None:
    """What it is, the shard says and counts; a longer one would not fit into an envelope."""
    body = order("a")
    call = client._start(wire.START, body, {"traceparent": text})
    assert wire.headers_fit(call.headers)
    wire.encode(call.headers)
    assert (traces.of(call.headers) is None) == (text != PARENT)


def test_headers_that_are_no_texts_are_refused_by_the_client() -> None:
    """They could not travel, and would take those in their frame with them."""
    wrong: Any = {"traceparent": 7}
    with pytest.raises(Malformed, match="texts"):
        client._start(wire.START, order("a"), wrong)


def test_both_clients_take_headers_with_every_start() -> None:
    """One would be forgotten otherwise."""
    for kind in (Client, AsyncClient):
        for name in ("checkout", "start", "submit"):
            assert "headers" in getattr(kind, name).__annotations__


def test_a_body_carries_no_trace() -> None:
    """SPEC 1: a body carries its keys and no others, the Maelstrom node's too."""
    with pytest.raises(Malformed):
        asked_of_node({**order("a"), "traceparent": PARENT})


def test_the_command_line_takes_a_trace() -> None:
    """For scripts that stand in one."""
    import argparse

    parser = argparse.ArgumentParser()
    checkout_arguments(parser)
    words = ["--user", "u", "--item", "a=1", "--address", "x", "--traceparent", PARENT]
    assert parser.parse_args(words).traceparent == PARENT


def test_a_record_of_a_trace_is_plain() -> None:
    """Its text is what was read."""
    assert TraceParent(TRACE, SPAN, 1).text() == PARENT
