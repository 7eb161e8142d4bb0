"""The JSON edge and the tables."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import render
from sagacity import money


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (24999, "249.99"),
        (20000, "200.00"),
        (5, "0.05"),
        (0, "0.00"),
        (-1, "-0.01"),
        (10**14, "1000000000000.00"),
        (9_007_199_254_740_993, "90071992547409.93"),  # one past what a double holds
    ],
)
def test_money_has_two_decimals_and_is_a_number(amount: int, text: str) -> None:
    assert render.json_line({"amount": amount}) == f'{{"amount": {text}}}'


def test_a_line_looks_as_in_the_specification() -> None:
    """SPEC 1, byte for byte."""
    body = {
        "type": "ChargePayment",
        "saga_id": "checkout42",
        "step": 2,
        "user_id": "u42",
        "amount": 24999,
    }
    assert render.json_line(body) == (
        '{"type": "ChargePayment", "saga_id": "checkout42", "step": 2, "user_id": "u42", '
        '"amount": 249.99}'
    )


def test_amounts_inside_are_found_and_other_integers_are_left() -> None:
    body = {"history": [{"body": {"amount": 100, "step": 100}}], "money": {"charged": 100}}
    assert render.json_line(body) == (
        '{"history": [{"body": {"amount": 1.00, "step": 100}}], "money": {"charged": 100}}'
    )


def test_an_amount_that_is_no_integer_is_left_as_it_is() -> None:
    assert render.json_line({"amount": True, "a": {"amount": None}}) == (
        '{"amount": true, "a": {"amount": null}}'
    )


def test_text_stays_text() -> None:
    """A line is a line: what would end it is escaped, what is foreign stays readable."""
    assert render.json_line({"a": 'Zürich \U0001f6d2 "\n'}) == '{"a": "Zürich \U0001f6d2 \\"\\n"}'


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_a_line_reads_as_what_was_written(value: Any) -> None:
    line = render.json_line({"value": value})
    assert "\n" not in line
    expected = json.loads(json.dumps({"value": _edge(value)}))
    assert json.loads(line, parse_float=str) == expected


def _edge(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: money.show(member) if key == "amount" and type(member) is int else _edge(member)
            for key, member in value.items()
        }
    return [_edge(member) for member in value] if isinstance(value, list) else value


def test_a_table_lines_up() -> None:
    assert render.table(("sku", "held"), [("abc", 7), ("longer", 1000)]) == (
        "sku     held\nabc        7\nlonger  1000"
    )


def test_a_table_without_rows_is_its_head() -> None:
    assert render.table(("a", "b"), []) == "a  b"


def test_text_cannot_steer_a_terminal() -> None:
    """Ids, reasons and addresses come from clients."""
    assert render.plain("red \x1b[31m\u202e") == "red \\x1b[31m\\u202e"
    assert "\x1b" not in render.table(("a",), [("\x1b[2J",)])


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"saga_id": "a", "status": "COMPLETED", "order_id": "o1"}, "a: COMPLETED, order o1"),
        ({"saga_id": "a", "status": "ABORTED", "reason": "R"}, "a: ABORTED, R"),
        ({"saga_id": "a", "status": "COMPENSATING"}, "a: COMPENSATING"),
    ],
)
def test_an_outcome_is_one_readable_line(body: dict[str, str], line: str) -> None:
    assert render.outcome(body) == line


def command(direction: str = "action", name: str = "ReserveInventory") -> dict[str, Any]:
    return {
        "at_ms": 1500,
        "event": "command",
        "step": 1,
        "direction": direction,
        "attempt": 1,
        "body": {"type": name},
    }


STARTED = {"at_ms": 1000, "event": "started", "body": {"type": "checkout"}}
UNDONE = command("compensation", "ReleaseReservation")


@pytest.mark.parametrize(
    ("change", "history", "last"),
    [
        ({"status": "COMPLETED"}, [STARTED, command()], "It completed: every step succeeded."),
        (
            {"status": "ABORTED", "reason": "Unknown SKU: zzz"},
            [STARTED],
            "It ended before any command was sent: Unknown SKU: zzz.",
        ),
        (
            {"status": "ABORTED", "reason": "R"},
            [STARTED, command(), UNDONE],
            "It was turned back (R), and everything it had done is undone.",
        ),
        (
            {"status": "ABORTED", "reason": "R"},
            [STARTED, command()],
            "It was turned back (R); nothing had been done that had to be undone.",
        ),
        (
            {"status": "COMPENSATING", "reason": "R", "stuck": True},
            [STARTED, command(), UNDONE],
            "It is stuck: ReleaseReservation does not succeed; a person has to look (R).",
        ),
        (
            {"status": "COMPENSATING", "reason": "R"},
            [STARTED, command(), UNDONE],
            "It is turning back (R); last sent: ReleaseReservation.",
        ),
        ({"status": "RUNNING"}, [STARTED], "It is running; last sent: nothing yet."),
    ],
)
def test_a_history_ends_with_why(
    change: dict[str, Any], history: list[dict[str, Any]], last: str
) -> None:
    body = {"type": "saga", "saga_id": "a", "order_id": "o7", "amount": 500, "history": history}
    lines = render.saga({**body, **change}).splitlines()
    assert lines[0].startswith(f"a  {change['status']}")
    assert lines[0].endswith("order o7  amount 5.00")
    assert lines[3].startswith("+0.000 s  started")
    assert lines[-1] == last


def test_a_clock_that_was_set_back_shows() -> None:
    """Times are wall times, as journalled; they may go backwards."""
    early = {**command(), "at_ms": 400}
    body = {"saga_id": "a", "status": "RUNNING", "amount": 0, "history": [STARTED, early]}
    assert "-0.600 s  sent" in render.saga(body)


def test_an_audit_that_does_not_balance_says_each_fault() -> None:
    report = {
        "balanced": False,
        "stock": {"abc123": {"initial": 9, "available": 1, "held": 2, "shipped": 5}},
        "money": {"charged": 700, "refunded": 100},
        "shipments": {"live": 3, "cancelled": 4},
        "sagas": {"completed": 5, "aborted": 6, "stuck": 1, "running": 2},
        "faults": ["one", "two"],
    }
    assert render.audit(report).splitlines() == [
        "sku     initial  available  held  shipped",
        "abc123        9          1     2        5",
        "",
        "money: 7.00 charged, 1.00 refunded",
        "shipments: 3 live, 4 cancelled",
        "sagas: 5 completed, 6 aborted, 2 running (1 stuck)",
        "",
        "THE BOOKS DO NOT BALANCE:",
        "  one",
        "  two",
    ]


def listed(saga_id: str = "a", **change: Any) -> dict[str, Any]:
    """Give a saga as `list` tells it."""
    return {
        "saga_id": saga_id,
        "status": "ABORTED",
        "stuck": False,
        "saga": "checkout",
        "amount": 24_999,
        "order_id": "o7",
        "started_ms": 1_700_000_000_123,
        "ended_ms": 1_700_000_001_165,
        "reason": "Payment declined: DECLINED",
        **change,
    }


def test_a_list_is_a_line_a_saga() -> None:
    """What an operator looks for: what it is now, since when, and why."""
    live = listed("b", status="COMPENSATING", stuck=True, ended_ms=None)
    head, first, second = render.sagas({"sagas": [listed(), live]}).splitlines()
    assert head.split() == ["saga", "status", "started", "took", "amount", "order", "why"]
    assert first.split()[:2] == ["a", "ABORTED"]
    assert first.endswith("1.042 s  249.99  o7     Payment declined: DECLINED")
    assert second.split()[:2] == ["b", "STUCK"]
    assert "  -  " in second


def test_a_list_without_sagas_is_its_head() -> None:
    assert len(render.sagas({"sagas": []}).splitlines()) == 1


def test_an_instant_that_no_calendar_has_is_shown_as_it_is() -> None:
    """A wall clock may have said anything when a row was written."""
    assert render.moment(1 << 62) == f"{1 << 62} ms"
    assert render.seconds(-1_500) == "-1.500 s"


def shard_facts(**change: int) -> dict[str, Any]:
    facts = {"epoch": 3, "in_flight": 9, "compensating": 2, "stuck": 1}
    counted = {"started_in_window": 125, "completed_in_window": 100, "aborted_in_window": 5}
    return {"shard": 0, "state": "up", **facts, "window_ms": 10_000, **counted, **change}


def test_rates_are_sagas_a_second_of_each_shard_and_of_all() -> None:
    """A shard that does not serve has none, and does not hide the others'."""
    down = {"shard": 1, "state": "starting"}
    body = render.rated({"shards": [shard_facts(), shard_facts(shard=2, window_ms=5_000), down]})
    assert body["rates"] == {"started": 37.5, "completed": 30.0, "aborted": 1.5}
    assert [shard["rates"] for shard in body["shards"]] == [
        {"started": 12.5, "completed": 10.0, "aborted": 0.5},
        {"started": 25.0, "completed": 20.0, "aborted": 1.0},
        {},
    ]


def test_a_status_shows_shards_pools_and_the_router() -> None:
    """SPEC 6: shards, epochs, in flight, pools, rates."""

    def process(role: str, index: int, state: str, **facts: int) -> dict[str, Any]:
        return {"role": role, "index": index, "pid": 7, "state": state, "facts": facts}

    body = {
        "cluster_id": "c",
        "router": "ipc:///r",
        "shards": [shard_facts(), {"shard": 1, "state": "starting"}],
        "processes": [
            process("router", 0, "up", requests=4, clients=2, shards_connected=1),
            process("shard", 0, "up"),
            process("payment", 0, "up", busy=3, capacity=256),
            process("payment", 1, "standby"),
            process("shipping", 0, "starting"),
        ],
    }
    told = [line.split() for line in render.status(render.rated(body)).splitlines()]
    assert ["0", "up", "3", "9", "2", "1", "12.5", "10.0", "0.5"] in told
    assert ["1", "starting", "-", "-", "-", "-", "-", "-", "-"] in told
    assert ["payment", "payment-0", "1", "3/256"] in told
    assert ["shipping", "nobody", "0", "0/0"] in told
    assert ["up", "4", "2", "1", "-", "-"] in told
    assert ["shipping", "0", "7", "starting", "-", "-"] in told


def test_a_configuration_is_a_line_a_key_with_its_source() -> None:
    keys = {
        "b.two": {"value": ["x:y"], "source": "file /f"},
        "a.one": {"value": 7, "source": "built-in"},
        "a.text": {"value": "", "source": "environment SAGACITY_A__TEXT"},
    }
    told = render.config({"keys": keys}).splitlines()
    assert [line.split() for line in told] == [
        ["key", "from", "value"],
        ["a.one", "built-in", "7"],
        ["a.text", "environment", "SAGACITY_A__TEXT", '""'],
        ["b.two", "file", "/f", '["x:y"]'],
    ]


def test_a_look_at_the_journals_names_each_fault() -> None:
    rows = {"finished": 5, "checkpoint": 7, "rows": 8, "last_seq": 15}
    whole = {"shard": 0, **rows, "epoch": 2, "chain": "ab", "faults": []}
    damaged = {**whole, "shard": 1, "faults": ["one \x1b[2J", "two"]}
    told = render.journal({"verified": False, "shards": [whole, damaged]}).splitlines()
    assert told[1].split() == ["0", "5", "7", "8", "15", "2", "0", "ab"]
    assert told[-3:] == [
        "NOT EVERY JOURNAL IS WHAT ITS SHARD WROTE:",
        "  shard 1: one \\x1b[2J",
        "  shard 1: two",
    ]
    assert render.journal({"verified": True, "shards": [whole]}).endswith("what its shard wrote.")
