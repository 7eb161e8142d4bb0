"""The Maelstrom node's conversation, without a cluster: SPEC 5 and the bad input of SPEC 2."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.conversation import LINE_BYTES_MAX, Ask, Lines, Session
from sagacity import wire

CHECKOUT: dict[str, Any] = {
    "type": "checkout",
    "msg_id": 1,
    "saga_id": "checkout42",
    "user_id": "u42",
    "items": [{"sku": "abc123", "quantity": 2}, {"sku": "xyz789", "quantity": 1}],
    "shipping_address": "123 Main St",
}
INIT = b'{"src":"c0","dest":"checkout_orchestrator","body":{"type":"init","msg_id":1}}'


class Log:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def __call__(self, event: str, **fields: object) -> None:
        assert event == "line_skipped"
        self.reasons.append(str(fields["reason"]))


def line_of(body: Any, src: Any = "c1", dest: Any = "n1") -> bytes:
    return json.dumps({"src": src, "dest": dest, "body": body}).encode()


def asked(session: Session, body: dict[str, Any], src: str = "c1") -> Ask:
    found = session.take(line_of(body, src=src))
    assert isinstance(found, Ask)
    return found


def said(session: Session, line: bytes) -> dict[str, Any]:
    """Give the body of the one line that a line is answered with."""
    found = session.take(line)
    assert isinstance(found, bytes)
    assert found.endswith(b"\n")
    assert found.count(b"\n") == 1
    body: dict[str, Any] = json.loads(found)["body"]
    return body


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def session(log: Log) -> Session:
    return Session(log)


def test_init_is_answered_byte_for_byte(session: Session) -> None:
    """SPEC 5 fixes the first line out."""
    assert session.take(INIT) == (
        b'{"src": "checkout_orchestrator", "dest": "c0", '
        b'"body": {"type": "init_ok", "in_reply_to": 1, "msg_id": 0}}\n'
    )


def test_a_second_init_is_answered_with_the_next_msg_id(session: Session) -> None:
    session.take(INIT)
    assert said(session, INIT) == {"type": "init_ok", "in_reply_to": 1, "msg_id": 1}


def test_the_id_is_that_of_the_body_before_that_of_the_receiver(session: Session) -> None:
    body = {"type": "init", "msg_id": 1, "node_id": "n7", "node_ids": ["n7", "n8"]}
    first, later = (
        session.take(line_of(body, dest="x")),
        session.take(line_of({"type": "topology"})),
    )
    assert isinstance(first, bytes)
    assert isinstance(later, bytes)
    assert (json.loads(first)["src"], json.loads(later)["src"]) == ("n7", "n7")


def test_before_init_the_id_is_that_of_the_receiver(session: Session) -> None:
    found = session.take(line_of({"type": "topology", "msg_id": 3}, dest="someone"))
    assert found == (
        b'{"src": "someone", "dest": "c1", "body": '
        b'{"type": "topology_ok", "in_reply_to": 3, "msg_id": 0}}\n'
    )


def test_a_reply_names_no_request_where_the_request_had_no_number(session: Session) -> None:
    assert said(session, line_of({"type": "init"})) == {"type": "init_ok", "msg_id": 0}


def test_echo_gives_back_what_came(session: Session) -> None:
    value = {"a": [1, 2.5, None, True, "Zürich \u2028 \U0001f6d2"]}
    line = line_of({"type": "echo", "msg_id": 5, "echo": value})
    expected = {"type": "echo_ok", "in_reply_to": 5, "msg_id": 0, "echo": value}
    assert said(session, line) == expected


def test_a_checkout_is_asked_and_answered_to_its_sender(session: Session) -> None:
    session.take(INIT)
    ask = asked(session, CHECKOUT, src="c3")
    assert (ask.asked.kind, ask.asked.saga_id) == (wire.START, "checkout42")
    sent = {key: value for key, value in CHECKOUT.items() if key != "msg_id"}
    assert list(wire.unpack(ask.asked.body).items()) == list(sent.items())
    assert session.asking == 1
    answer = {
        "type": "checkout_complete",
        "saga_id": "checkout42",
        "status": "COMPLETED",
        "order_id": "o123",
    }
    assert session.answered(ask.token, answer) == (
        b'{"src": "checkout_orchestrator", "dest": "c3", "body": {"type": "checkout_complete", '
        b'"in_reply_to": 1, "msg_id": 1, "saga_id": "checkout42", "status": "COMPLETED", '
        b'"order_id": "o123"}}\n'
    )
    assert session.asking == 0


def test_an_answer_that_comes_twice_is_written_once(session: Session) -> None:
    ask = asked(session, CHECKOUT)
    answer = {"type": "checkout_failed", "saga_id": "checkout42"}
    assert session.answered(ask.token, answer) is not None
    assert session.answered(ask.token, answer) is None


def test_the_same_saga_asked_twice_is_two_requests(session: Session) -> None:
    """SPEC 2: the answer is the same; each request gets its own."""
    first = asked(session, CHECKOUT, src="c1")
    second = asked(session, {**CHECKOUT, "msg_id": 2}, src="c2")
    assert first.asked == second.asked
    assert session.open == [first.token, second.token]


def test_a_cancel_is_asked(session: Session) -> None:
    ask = asked(session, {"type": "cancel", "msg_id": 2, "saga_id": "s", "reason": "too late"})
    assert ask.asked.kind == wire.CANCEL
    assert wire.unpack(ask.asked.body) == {"type": "cancel", "saga_id": "s", "reason": "too late"}


def test_an_error_of_the_cluster_reads_as_in_the_one_table(session: Session) -> None:
    ask = asked(session, {**CHECKOUT, "msg_id": 7})
    error = {"type": "error", "code": 11, "text": "overloaded", "retry_after_ms": 250}
    line = session.answered(ask.token, error)
    assert line is not None
    assert json.dumps(json.loads(line)["body"]) == (
        '{"type": "error", "in_reply_to": 7, "msg_id": 0, "code": 11, "text": "overloaded", '
        '"retry_after_ms": 250}'
    )


def test_another_type_is_not_supported(session: Session) -> None:
    body = said(session, line_of({"type": "read", "msg_id": 9}))
    assert (body["type"], body["in_reply_to"], body["code"]) == ("error", 9, 10)


def test_two_nodes_do_not_answer_errors_for_ever(session: Session, log: Log) -> None:
    """An answer to an error would be an error again."""
    assert session.take(line_of({"type": "error", "code": 10, "text": "?"})) is None
    assert len(log.reasons) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"{",
        b"[1, 2]",
        b"null",
        b'"text"',
        b"{}",
        b'{"src": "c1", "dest": "n1"}',
        b'{"src": "c1", "dest": "n1", "body": {"type": "echo", "echo": NaN}}',
        b'{"src": "c1", "dest": "n1", "body": {"type": "echo", "echo": Infinity}}',
        b'{"src": "c1", "dest": "n1", "body": {"type": "echo", "echo": -Infinity}}',
        b'{"src": "c1", "dest": "n1", "body": {"type": "echo", "echo": "\xff\xfe"}}',
        b'{"src": "c1", "dest": "n1", "body": {"type": "echo", "echo": "\xed\xa0\x80"}}',
        b'{"src": "c1", "dest": "n1", "body": {"type": "echo", "echo": "a\x01b"}}',
        b'{"src": 1, "dest": "n1", "body": {"type": "echo"}}',
        b'{"src": "\\ud800", "dest": "n1", "body": {"type": "echo"}}',
        b'{"dest": "n1", "body": {"type": "echo"}}',
        b'{"src": "c1", "body": {"type": "echo"}}',
        b'{"src": "c1", "dest": "n1", "body": {"type": "echo"}} trailing',
        b'{"src": "c1", "dest": "n1", "body": {"type": "echo", "echo": ' + b"9" * 5000 + b"}}",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\x00",
    ],
)
def test_what_is_no_json_object_with_a_body_is_logged_and_skipped(
    session: Session, log: Log, line: bytes
) -> None:
    assert session.take(line) is None
    assert len(log.reasons) == 1
    assert said(session, INIT)["msg_id"] == 0  # and the node lives


def test_an_empty_line_is_nothing(session: Session, log: Log) -> None:
    assert [session.take(line) for line in (b"", b"  ", b"\r")] == [None, None, None]
    assert log.reasons == []


@pytest.mark.parametrize(
    "body",
    [
        5,
        None,
        [],
        "init",
        {},
        {"type": 5},
        {"type": None},
        {"type": "init", "msg_id": "1"},
        {"type": "init", "msg_id": 1.0},
        {"type": "init", "msg_id": True},
        {"type": "init", "msg_id": 2**63},
        {"type": "init", "node_id": 5},
        {"type": "init", "node_id": "\ud800"},
        {"type": "echo", "echo": "\udfff"},
        {"type": "echo", "\udfff": 1, "echo": ["\ud800"]},
    ],
)
def test_a_malformed_body_is_answered(session: Session, body: Any) -> None:
    assert said(session, line_of(body))["code"] == 12


def test_a_number_that_json_can_say_and_we_cannot_is_answered(session: Session) -> None:
    """1e400 reads as infinite, which cannot be written again."""
    line = b'{"src": "c1", "dest": "n1", "body": {"type": "echo", "echo": 1e400}}'
    assert said(session, line)["code"] == 12


@pytest.mark.parametrize("depth", [20, 400, 900])
def test_a_deep_cart_is_answered(session: Session, depth: int) -> None:
    items: list[Any] = []
    for _ in range(depth):
        items = [items]
    body = said(session, line_of({**CHECKOUT, "items": items}))
    assert body["code"] == 12


def test_a_doubled_key_is_answered(session: Session) -> None:
    """Two readers of one text must not read two requests."""
    line = (
        b'{"src": "c1", "dest": "n1", "body": {"type": "checkout", "msg_id": 4, '
        b'"saga_id": "a", "saga_id": "b"}}'
    )
    body = said(session, line)
    assert (body["code"], body["in_reply_to"], body["text"]) == (12, 4, "duplicate key: saga_id")


def test_many_doubled_keys_cost_no_time(session: Session) -> None:
    """A line of a megabyte is read in time proportional to its length."""
    pairs = ",".join(f'"k{at}":1' for at in range(60_000)) + ',"k59999":2'
    line = b'{"src": "c1", "dest": "n1", "body": {%s}}' % pairs.encode()
    assert said(session, line)["text"] == "duplicate key: k59999"


def items_of(count: int, quantity: int = 1) -> list[dict[str, Any]]:
    return [{"sku": f"sku{at}", "quantity": quantity} for at in range(count)]


@pytest.mark.parametrize(
    "change",
    [
        {"saga_id": "x" * 128},
        {"user_id": "u" * 128},
        {"user_id": "Zoë \U0001f6d2"},
        {"shipping_address": "a" * 512},
        {"items": items_of(100)},
        {"items": items_of(1, 1000)},
        {"items": [{"sku": "abc123", "quantity": 1000}] * 100},
        {"items": [{"sku": "s" * 64, "quantity": 1}]},
        {"msg_id": 2**63 - 1},
        {"msg_id": -(2**63)},
    ],
)
def test_a_checkout_at_its_limit_is_asked(session: Session, change: dict[str, Any]) -> None:
    asked(session, {**CHECKOUT, **change})


BAD_IDS: list[Any] = [
    "",
    "x" * 129,
    "a b",
    "a\x00b",
    "a\n",
    "../a",
    "é",
    "\u0065\u0301",
    "\ud800",
    5,
    None,
]

BAD_USERS: list[Any] = ["", "u" * 129, " ", "\t", "a\x00", "\x7f", "\ud800", 42]
BAD_ADDRESSES: list[Any] = ["", "a" * 513, "a\nb", "\udc00", []]
BAD_CARTS: list[Any] = [[], items_of(101), {}, None, "abc123", [5], [[]]]


@pytest.mark.parametrize(
    "change",
    [
        *({"saga_id": each} for each in BAD_IDS),
        *({"user_id": each} for each in BAD_USERS),
        *({"shipping_address": each} for each in BAD_ADDRESSES),
        *({"items": each} for each in BAD_CARTS),
        *(
            {"items": [{"sku": "abc123", "quantity": each}]}
            for each in (0, -1, 1001, 2**63, 2**64, 10**30, 1.0, 1.5, True, "1", None, [1])
        ),
        *(
            {"items": [{"sku": each, "quantity": 1}]}
            for each in ("", "s" * 65, "a b", "../", "a\n", 5, None, "\ud800")
        ),
        {"items": [{"sku": "abc123"}]},
        {"items": [{"quantity": 1}]},
        {"items": [{"sku": "abc123", "quantity": 1, "price": 1}]},
        {"note": "unknown key"},
        {"\ud800": 1},
        {"in_reply_to": 1},
        {"msg_id": 2**63},
        {"msg_id": "1"},
        {"msg_id": True},
    ],
)
def test_a_checkout_past_its_limit_is_answered(session: Session, change: dict[str, Any]) -> None:
    body = said(session, line_of({**CHECKOUT, **change}))
    assert body["code"] == 12
    assert session.asking == 0


@pytest.mark.parametrize("missing", ["saga_id", "user_id", "items", "shipping_address"])
def test_a_checkout_that_lacks_a_key_is_answered(session: Session, missing: str) -> None:
    body = {key: value for key, value in CHECKOUT.items() if key != missing}
    assert said(session, line_of(body))["code"] == 12


@pytest.mark.parametrize(
    "change", [{"reason": ""}, {"reason": "r" * 257}, {"reason": "\n"}, {"reason": 5}, {"by": "me"}]
)
def test_a_malformed_cancel_is_answered(session: Session, change: dict[str, Any]) -> None:
    body = {"type": "cancel", "saga_id": "s", "reason": "r", **change}
    assert said(session, line_of(body))["code"] == 12


@given(st.binary(max_size=200))
def test_no_bytes_break_the_node(line: bytes) -> None:
    session = Session(Log())
    session.take(line.replace(b"\n", b""))
    assert said(session, INIT)["type"] == "init_ok"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(body=json_values, kind=st.sampled_from(["checkout", "cancel", "echo", "init", "x"]))
def test_no_body_breaks_the_node(body: Any, kind: str) -> None:
    session = Session(Log())
    session.take(line_of(body))
    session.take(line_of({**body, "type": kind} if isinstance(body, dict) else {"type": kind}))
    assert said(session, INIT)["type"] == "init_ok"


def test_lines_are_cut_wherever_the_reads_end() -> None:
    text = b"one\ntwo\n\nthree\nrest"
    chance = random.Random(7)
    for _ in range(200):
        lines, found, at = Lines(), [], 0
        while at < len(text):
            size = chance.randint(1, 6)
            found += lines.feed(text[at : at + size])
            at += size
        found += lines.end()
        assert found == [b"one", b"two", b"three", b"rest"]


def test_a_line_at_the_limit_is_read_and_one_past_it_is_dropped() -> None:
    lines = Lines()
    assert lines.feed(b"x" * LINE_BYTES_MAX + b"\nshort\n") == [b"x" * LINE_BYTES_MAX, b"short"]
    assert lines.dropped == 0
    assert lines.feed(b"x" * (LINE_BYTES_MAX + 1) + b"\nshort\n") == [b"short"]
    assert lines.dropped == 1


def test_a_line_that_never_ends_is_not_held() -> None:
    """SPEC 2: memory does not grow with what a client sends."""
    lines = Lines(limit=1000)
    for _ in range(1000):
        assert lines.feed(b"x" * 1000) == []
        assert sum(map(len, lines._parts)) <= 1000
    assert lines.feed(b"\nafter\n") == [b"after"]
    assert lines.dropped == 1
