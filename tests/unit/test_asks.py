"""Asks: when a request is asked again and what is reported of it, with time passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagacity import wire
from sagacity.asks import AGAIN_MAX_NS, IDS_KEPT_MAX, MILLISECOND, SECOND, Asks
from sagacity.errors import (
    Conflict,
    InternalError,
    Malformed,
    NoOutcome,
    NotTaken,
    SagacityError,
    Stuck,
)
from sagacity.wire import Reply, Request

WAIT = 35 * SECOND
SLACK = 8 * MILLISECOND  # a tick of the wheel


def begun(kind: int = wire.START, saga_id: str = "s1", now: int = 0) -> tuple[Asks, int]:
    """Give asks of which one is open and sent."""
    asks = Asks("the router")
    token = asks.ask(kind, saga_id, b"body", now=now, wait_ns=WAIT)
    assert [request.request for request in asks.take()] == [token]
    return asks, token


def error_reply(token: int, error: SagacityError) -> Reply:
    return Reply(token, error.code, wire.pack(error.body()))


def refusal(token: int, retry_after_ms: int | None = 250) -> Reply:
    return error_reply(token, NotTaken("overloaded", retry_after_ms=retry_after_ms))


def times_asked(asks: Asks, upto: int, *, start: int = 0, step: int = MILLISECOND) -> list[int]:
    """Let time pass; give the milliseconds at which something was asked again."""
    found: list[int] = []
    for now in range(start, upto, step):
        asks.due(now)
        found.extend(now // MILLISECOND for _ in asks.take())
    return found


def test_a_request_is_asked_with_the_next_frame_and_once() -> None:
    """One frame carries everything asked since the last."""
    asks = Asks("the router")
    tokens = [asks.ask(wire.START, f"s{n}", b"body", now=0, wait_ns=WAIT) for n in range(3)]
    assert asks.waiting == 3
    sent = asks.take()
    assert sent == [Request(wire.START, f"s{n}", tokens[n], {}, b"body") for n in range(3)]
    assert asks.take() == []
    assert len(asks) == 3


def test_an_answer_is_reported_once_and_late_and_double_ones_are_dropped() -> None:
    """SPEC 4: one answer a request."""
    asks, token = begun()
    answer = Reply(token, None, b"final")
    assert asks.on_reply(answer, 1) == (token, answer)
    assert asks.on_reply(answer, 2) is None
    assert asks.on_reply(Reply(999, None, b""), 3) is None
    assert asks.late == 2
    assert len(asks) == 0
    assert times_asked(asks, WAIT, step=SECOND) == []


def test_silence_is_asked_again_after_one_second_doubling_to_five() -> None:
    """SPEC 4 says the times."""
    asks, _ = begun()
    asked = times_asked(asks, WAIT - SECOND, step=4 * MILLISECOND)
    expected = [1000, 2000, 4000, 8000, 13_000, 18_000, 23_000, 28_000, 33_000]
    assert len(asked) == len(expected)
    for got, due in zip(asked, expected, strict=True):
        assert due <= got <= due + 10 * SLACK // MILLISECOND


def test_every_try_has_the_number_of_the_first() -> None:
    """A router knows a second try from a second request by it."""
    asks, token = begun()
    asks.due(SECOND + SLACK)
    assert [request.request for request in asks.take()] == [token]


def test_a_new_connection_asks_everything_open_again_at_once() -> None:
    """What the old connection's peer knew is gone with it."""
    asks = Asks("the router")
    tokens = [asks.ask(wire.START, f"s{n}", b"", now=0, wait_ns=WAIT) for n in range(5)]
    asks.take()
    asks.on_reply(Reply(tokens[0], None, b""), 1)
    asks.on_connected(10 * SECOND)
    assert [request.request for request in asks.take()] == tokens[1:]
    assert times_asked(asks, 12 * SECOND, start=10 * SECOND) == [
        pytest.approx(11_000, abs=9) for _ in tokens[1:]
    ]


def test_what_could_not_be_sent_is_no_try_and_stays_with_the_next_frame() -> None:
    """With no router for the whole wait nothing was taken, and that is what is reported."""
    asks = Asks("ipc://nowhere")
    token = asks.ask(wire.START, "s1", b"", now=0, wait_ns=WAIT)
    asks.untake(asks.take())
    assert asks.waiting == 1
    asks.due(WAIT + SLACK)
    [(settled, reply)] = asks.settled()
    assert (settled, reply.code) == (token, NotTaken.code)
    assert wire.unpack(reply.body)["text"] == "no connection to ipc://nowhere"


def test_a_refusal_is_asked_again_after_its_time_doubling() -> None:
    """Who refuses for load says when to come back; who is refused again comes later."""
    asks, token = begun()
    assert asks.on_reply(refusal(token, 300), 0) is None
    assert times_asked(asks, 900 * MILLISECOND) == [pytest.approx(300, abs=9)]
    now = 900 * MILLISECOND
    asks.on_reply(refusal(token, 300), now)
    assert times_asked(asks, 1600 * MILLISECOND, start=now) == [pytest.approx(1500, abs=9)]


@pytest.mark.parametrize("told", [None, 0, -5, 10**15])
def test_a_refusal_with_a_senseless_time_is_asked_again_within_five_seconds(
    told: int | None,
) -> None:
    """Neither a busy loop nor never."""
    asks, token = begun()
    asks.on_reply(refusal(token, told), 0)
    asked = times_asked(asks, AGAIN_MAX_NS + 2 * SLACK)
    assert 250 <= asked[0] <= 5010


def test_who_does_not_ask_again_sees_the_refusal_of_a_first_try_at_once() -> None:
    """A load generator counts refusals; after a silent try one proves nothing."""
    asks = Asks("the router", again_when_refused=False)
    first, second = (asks.ask(wire.START, f"s{n}", b"", now=0, wait_ns=WAIT) for n in range(2))
    asks.take()
    assert asks.on_reply(refusal(first), 0) == (first, refusal(first))
    assert times_asked(asks, 1500 * MILLISECOND) != []
    assert asks.on_reply(refusal(second), 2 * SECOND) is None
    assert len(asks) == 1


def test_only_refusals_are_reported_as_not_taken() -> None:
    """SPEC 4: 11 only if every try of that id got 11."""
    asks, token = begun()
    now = 0
    while len(asks):
        asks.on_reply(refusal(token), now)
        now += 100 * MILLISECOND
        asks.due(now)
        for request in asks.take():
            asks.on_reply(refusal(request.request), now)
    [(settled, reply)] = asks.settled()
    assert (settled, reply.code) == (token, NotTaken.code)
    assert wire.unpack(reply.body)["retry_after_ms"] == 250
    assert WAIT <= now <= WAIT + 200 * MILLISECOND


@pytest.mark.parametrize("silent", [0, 1])
def test_one_try_without_an_answer_makes_it_unknown(silent: int) -> None:
    """The silent try may have been taken: 11 would promise that nothing happened."""
    asks, token = begun()
    replies = [None, refusal(token)] if silent == 0 else [refusal(token), None]
    if replies[0]:
        asks.on_reply(replies[0], 0)
    asks.due(2 * SECOND)
    assert len(asks.take()) == 1
    if replies[1]:
        asks.on_reply(replies[1], 2 * SECOND)
    asks.due(WAIT + SLACK)
    [(_, reply)] = asks.settled()
    assert reply.code == NoOutcome.code
    assert "same id" in wire.unpack(reply.body)["text"]


def test_a_shard_that_went_away_is_asked_again_and_its_word_is_reported_at_last() -> None:
    """Code 0 from the router is no end: the saga goes on where the shard comes back."""
    asks, token = begun()
    went = error_reply(token, NoOutcome("shard 1 went away"))
    assert asks.on_reply(went, 1) is None
    asks.due(2 * SECOND)
    assert len(asks.take()) == 1
    asks.on_reply(refusal(token), 2 * SECOND)
    asks.due(WAIT + SLACK)
    [(_, reply)] = asks.settled()
    assert reply.code == NoOutcome.code
    assert wire.unpack(reply.body)["text"] == "shard 1 went away"


def test_a_stuck_saga_is_told_as_such_at_once() -> None:
    """A person has to look, the exit code depends on it; who waits for that hears it no later."""
    asks, token = begun()
    stuck = error_reply(token, Stuck(Stuck.prefix + "RefundPayment"))
    assert asks.on_reply(stuck, 1) == (token, stuck)
    assert len(asks) == 0
    assert give_up_refused(asks, "s1", SECOND) == NoOutcome.code, "it was taken"


def test_a_code_0_that_cannot_be_read_is_asked_again() -> None:
    """Only a shard's own word makes a saga stuck."""
    asks, token = begun()
    assert asks.on_reply(Reply(token, NoOutcome.code, b"\xc1"), 1) is None
    assert len(asks) == 1


@pytest.mark.parametrize("error", [Malformed("x"), Conflict("x"), InternalError("x")])
def test_any_other_error_is_reported_at_once(error: SagacityError) -> None:
    """To ask again would give the same."""
    asks, token = begun()
    assert asks.on_reply(error_reply(token, error), 1) is not None
    assert len(asks) == 0


def give_up_refused(asks: Asks, saga_id: str, now: int, kind: int = wire.START) -> int | None:
    """Ask for an id whose every try is refused; give the code that is reported."""
    token = asks.ask(kind, saga_id, b"", now=now, wait_ns=100 * MILLISECOND)
    for request in asks.take():
        asks.on_reply(refusal(request.request, 1000), now)
    asks.due(now + 100 * MILLISECOND + SLACK)
    return dict(asks.settled())[token].code


def test_an_id_once_unknown_is_not_reported_as_not_taken_later() -> None:
    """The rule is about the id, not about the call: the first call may have started it."""
    asks, _ = begun(saga_id="twice")
    asks.due(WAIT + SLACK)
    assert [reply.code for _, reply in asks.settled()] == [NoOutcome.code]
    assert give_up_refused(asks, "twice", WAIT + SECOND) == NoOutcome.code
    assert give_up_refused(asks, "other", WAIT + SECOND) == NotTaken.code
    assert give_up_refused(asks, "twice", WAIT + SECOND, wire.CANCEL) == NotTaken.code
    token = asks.ask(wire.START, "twice", b"", now=WAIT, wait_ns=WAIT)
    asks.take()
    asks.on_reply(Reply(token, None, b"final"), WAIT)
    assert give_up_refused(asks, "twice", 3 * WAIT) == NotTaken.code


def test_an_id_that_another_open_request_may_have_started_is_not_reported_as_not_taken() -> None:
    """Two callers of one library may ask for one saga at once."""
    asks, _ = begun(saga_id="both")
    assert give_up_refused(asks, "both", 0) == NoOutcome.code


def test_giving_up_looks_at_what_else_is_open_only_for_an_id_that_is_open_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 40 000 open and some given up in each tick, a look at all of them takes every tick."""
    looked: list[int] = []
    look = Asks._unsure

    def seen(asks: Asks) -> frozenset[str]:
        looked.append(len(asks))
        return look(asks)

    monkeypatch.setattr(Asks, "_unsure", seen)
    asks = Asks("the router")
    for n in range(100):
        asks.ask(wire.START, f"s{n}", b"body", now=0, wait_ns=WAIT)
    asks.take()
    assert give_up_refused(asks, "once", 0) == NotTaken.code
    assert looked == []
    assert give_up_refused(asks, "s99", 0) == NoOutcome.code
    assert looked == [101]


def test_an_accepted_submit_is_remembered() -> None:
    """Accepted is taken: a later refusal of the same id says nothing against it."""
    asks, token = begun(wire.SUBMIT, "accepted")
    assert asks.on_reply(Reply(token, None, b"accepted"), 1) is not None
    assert give_up_refused(asks, "accepted", SECOND) == NoOutcome.code
    asks, token = begun(wire.SUBMIT, "bad")
    asks.on_reply(error_reply(token, Malformed("x")), 1)
    assert give_up_refused(asks, "bad", SECOND) == NotTaken.code


def test_ids_that_are_remembered_are_bounded() -> None:
    """A client that lives for years with a lossy network must not grow."""
    asks = Asks("the router")
    for n in range(IDS_KEPT_MAX + 10):
        asks.ask(wire.SUBMIT, f"s{n}", b"", now=0, wait_ns=SECOND)
    asks.take()
    asks.due(2 * SECOND)
    assert len(asks.settled()) == IDS_KEPT_MAX + 10
    assert give_up_refused(asks, "s0", 3 * SECOND) == NotTaken.code
    assert give_up_refused(asks, f"s{IDS_KEPT_MAX}", 3 * SECOND) == NoOutcome.code


def test_a_forgotten_request_is_never_asked_again() -> None:
    """Ctrl-C ends the wait; the saga goes on at its shard."""
    asks, token = begun()
    asks.forget(token)
    asks.forget(token)
    asks.on_connected(SECOND)
    assert times_asked(asks, WAIT, step=SECOND) == []
    assert asks.on_reply(Reply(token, None, b""), 1) is None


@pytest.mark.parametrize(
    ("saga_id", "body", "headers"),
    [
        ("\ud800", b"", {}),
        ("\u00e9", b"", {}),
        ("x" * 129, b"", {}),
        ("s1", bytes(wire.BODY_BYTES_MAX + 1), {}),
        ("s1", b"", {"traceparent": "x" * 1100}),
        ("s1", b"", {"traceparent": "\ud800"}),
    ],
)
def test_what_cannot_travel_is_refused_before_it_joins_a_frame(
    saga_id: str, body: bytes, headers: dict[str, str]
) -> None:
    """One such request would take every other request of its frame with it."""
    asks = Asks("the router")
    with pytest.raises(Malformed):
        asks.ask(wire.START, saga_id, body, now=0, wait_ns=WAIT, headers=headers)
    assert len(asks) == asks.waiting == 0


def test_the_next_due_instant_is_never_late_and_none_when_nothing_is_open() -> None:
    """A loop sleeps until then."""
    asks = Asks("the router")
    assert asks.next_due() is None
    token = asks.ask(wire.START, "s1", b"", now=5 * SECOND, wait_ns=WAIT)
    due = asks.next_due()
    assert due is not None
    assert 6 * SECOND <= due <= 6 * SECOND + SLACK
    asks.take()
    asks.due(due)
    assert asks.waiting == 1
    asks.on_reply(Reply(token, None, b""), due)
    asks.due(due + WAIT)
    assert asks.next_due() is None


def test_starts_beyond_the_bound_wait_for_their_turn_and_reads_do_not() -> None:
    """The router would refuse them, and refusals wait for seconds; a turn comes with an answer."""
    asks = Asks("the router", starts_max=2)
    tokens = [asks.ask(wire.START, f"s{n}", b"", now=0, wait_ns=WAIT) for n in range(5)]
    read = asks.ask(wire.SHOW, "s0", b"", now=0, wait_ns=WAIT)
    assert [each.request for each in asks.take()] == [*tokens[:2], read]
    asks.on_reply(Reply(read, None, b""), 1)
    assert asks.waiting == 0
    asks.on_reply(Reply(tokens[1], None, b""), 1)
    assert [each.request for each in asks.take()] == [tokens[2]]
    asks.forget(tokens[3])
    asks.forget(tokens[0])
    assert [each.request for each in asks.take()] == [tokens[4]]
    asks.on_connected(SECOND)
    assert [each.request for each in asks.take()] == [tokens[2], tokens[4]]


def test_a_start_whose_turn_never_came_was_not_taken() -> None:
    """It was not asked: nothing can have happened. One whose turn came is asked again in time."""
    asks = Asks("the router", starts_max=1)
    first = asks.ask(wire.START, "s1", b"", now=0, wait_ns=10 * SECOND)
    asks.ask(wire.START, "s2", b"", now=0, wait_ns=5 * SECOND)
    third = asks.ask(wire.START, "s3", b"", now=0, wait_ns=WAIT)
    asks.take()
    asks.due(5 * SECOND)
    [(_, reply)] = asks.settled()
    assert reply.code == NotTaken.code
    assert "1 others that were asked first" in wire.unpack(reply.body)["text"]
    asks.take()
    asks.on_connected(6 * SECOND)
    assert [each.request for each in asks.take()] == [first]
    asks.on_reply(Reply(first, None, b""), 7 * SECOND)
    assert [each.request for each in asks.take()] == [third]
    assert times_asked(asks, 9 * SECOND, start=7 * SECOND)


@given(st.lists(st.tuples(st.sampled_from(["lost", "11", "0", "connect"]), st.integers(1, 4000))))
def test_code_11_is_reported_exactly_when_every_try_was_refused(
    steps: list[tuple[str, int]],
) -> None:
    """Whatever the order of losses, refusals and reconnections (bug eleven_after_forward)."""
    asks = Asks("the router")
    asks.ask(wire.START, "s1", b"", now=0, wait_ns=20 * SECOND)
    now, sent, refused = 0, 0, 0
    for what, ms in [*steps, ("lost", 21_000)]:
        for request in asks.take():
            sent += 1
            if what == "11":
                refused += 1
                assert asks.on_reply(refusal(request.request), now) is None
            elif what == "0":
                asks.on_reply(error_reply(request.request, NoOutcome("went away")), now)
        if what == "connect":
            asks.on_connected(now)
        now += ms * MILLISECOND
        asks.due(now)
        settled = asks.settled()
        if settled:
            [(_, reply)] = settled
            assert reply.code == (NotTaken.code if sent == refused else NoOutcome.code)
            assert now >= 20 * SECOND
            return
    raise AssertionError("it was neither answered nor given up")
