"""Edges of the engine that need more than a transcript: bounds, credit, timers under load."""

from typing import Any

import msgspec
import pytest

from sagacity import wire
from sagacity.saga import Retry
from sagacity.wire import BODY_BYTES_MAX, HEADERS_BYTES_MAX, Begun, Request, answer_to
from services.checkout import checkout
from shard.books import PAGE_MAX, SNAPSHOTS_MAX
from shard.effects import Effects
from shard.entries import AttemptEnded, Forgotten, TurnedBack
from shard.events import Answered, CommandBegun, Requests, WorkerWent
from shard.phases import RUNNING
from shard.requests import WAITERS_MAX
from shard.sagas import MS
from tests.unit.toy_sagas import booking, chain
from tests.unit.world import CLIENT, Rules, World, bodies, commands, order, replies

SERVICES = ("inventory", "payment", "shipping")


def serving(rules: Rules | None = None, capacity: int = 256) -> World:
    world = World(rules)
    world.step(*world.came(*SERVICES, capacity=capacity))
    return world


def test_a_timer_that_moved_later_waits_for_its_answers_too() -> None:
    """B20: a saga keeps its old place in the wheel; the new instant is judged by the same rule."""
    world = serving(Rules(retry=Retry(timeout_ms=1_000)))
    world.step(world.start("a"))
    world.after(500)
    world.drive("a", wire.OK)  # payment is due at 1 500 ms, the place stands at 1 000
    world.after(1_100)
    seq = world.journal.last.seq + 1
    late = world.engine.step(world.beats(), world.now, seq, 1_200 * MS)
    assert late.entries == []
    fired = world.engine.step([], world.now, seq, world.now.ns)
    assert isinstance(fired.entries[0], AttemptEnded)


def test_credit_of_an_action_that_was_turned_back_comes_back() -> None:
    """Its compensation is out at the same worker: that is another command."""
    world = serving(capacity=2)
    world.step(world.start("a"))
    cancel = {"type": "cancel", "saga_id": "a", "reason": "x"}
    world.step(world.ask(wire.CANCEL, "a", cancel))
    assert commands(world.step(world.start("b"))) == []  # both are out
    world.after(2_600)
    assert commands(world.step()) == []
    world.after(1_000)
    assert [command.saga_id for command in commands(world.step())] == ["b"]


def test_at_most_64_requests_wait_for_one_saga() -> None:
    """G4: the oldest is told to ask again; every request gets exactly one reply."""
    world = serving()
    world.step(world.start("a"))
    for _ in range(WAITERS_MAX - 1):
        assert replies(world.step(world.start("a"))) == []
    (oldest,) = replies(world.step(world.start("a")))
    assert oldest[:2] == (1, 0)
    assert [request for request, *_ in replies(world.drive("a", wire.DECLINED))] == list(
        range(2, WAITERS_MAX + 2)
    )


def test_a_page_of_the_books_fits_into_a_body() -> None:
    """With the longest ids, or an audit could not read it."""
    world = World()
    items = [{"sku": "zzz", "quantity": 1}]
    ids = [f"{at:0>128}" for at in range(PAGE_MAX + 10)]
    world.step(*(world.start(each, items=items) for each in ids))
    asked = {"book": "finished", "from": 0, "upto": len(ids)}
    (page,) = bodies(world.step(world.ask(wire.BOOKS, "0", asked)))
    assert len(page["rows"]) == PAGE_MAX
    assert len(wire.pack(page)) <= BODY_BYTES_MAX
    asked["from"] = PAGE_MAX
    (rest,) = bodies(world.step(world.ask(wire.BOOKS, "0", asked)))
    assert [row[1] for row in page["rows"] + rest["rows"]] == ids


@pytest.mark.parametrize(("length", "code"), [(HEADERS_BYTES_MAX - 1, None), (1024, 12)])
def test_headers_travel_up_to_their_limit(length: int, code: int | None) -> None:
    """`traceparent` reaches the services; a longer map is refused before anything is written."""
    world = serving()
    headers = {"t": "v" * length}
    request = Request(wire.START, "a", 1, headers, wire.pack(order("a")))
    effects = world.step(Requests(CLIENT, [request]))
    if code is None:
        assert [command.headers for command in commands(effects)] == [headers]
    else:
        assert replies(effects)[0][1] == code
        assert effects.entries == []


def test_each_slot_counts_its_orders() -> None:
    """SPEC 1: count of the slot x 1024 + slot, across restarts, never reused."""
    world = serving()
    ids = [f"s{at}" for at in range(3_000)]
    world.step(*(world.start(each) for each in ids[:2_000]))
    world.restart()
    world.step(*(world.start(each) for each in ids[2_000:]))
    taken = [saga.order_id for saga in world.engine.state.live.values()]
    assert len(set(taken)) == len(ids)


def test_the_deadline_ends_a_wait_between_attempts() -> None:
    """Nobody has the command then; what may have happened is undone."""
    retry = Retry(backoff_ms=60_000, backoff_max_ms=60_000)
    world = serving(Rules(retry=retry, deadline_ms=2_000))
    world.step(world.start("a"))
    world.drive("a", wire.FAILED)
    world.after(2_100)
    (back,) = world.step().entries
    assert isinstance(back, TurnedBack)
    assert (back.cause, back.reason) == ("deadline", "Timed out: ReserveInventory")


def test_a_waiting_command_of_a_saga_that_ended_is_never_given_out() -> None:
    """A late success ends the saga while a retry of its last step waits for a worker."""
    world = serving()
    world.step(world.start("a"))
    world.drive("a", wire.OK, wire.OK)
    command = world.take(b"shipping", "a")
    body = world.body_of(command, wire.OK)
    unavailable = answer_to(command, wire.REFUSED_UNAVAILABLE, b"")
    world.step(Answered(b"shipping", [unavailable]))
    world.step(Answered(b"shipping", [answer_to(command, wire.OK, body)]))
    assert world.engine.inflight == 0
    assert commands(world.step(*world.beats())) == []


def test_money_at_risk_is_what_may_be_charged_in_sagas_that_turn_back() -> None:
    """From turning back after the charge was commanded, until its compensation succeeded."""
    world = serving()
    world.step(world.start("a"), world.start("b"))
    world.drive("a", wire.OK, wire.OK, wire.DECLINED)
    world.drive("b", wire.OK, wire.DECLINED)
    assert world.engine.state.at_risk == 24_999  # b was declined: nothing is charged
    world.drive("a", wire.OK)
    assert world.engine.state.at_risk == 0


def test_a_cancel_right_behind_its_start_turns_the_saga_back() -> None:
    """SPEC 3: until the last step's outcome is known; a batch of both is no race to be lost."""
    world = serving()
    cancel = {"type": "cancel", "saga_id": "a", "reason": "at once"}
    done = world.step(world.ask(wire.CANCEL, "a", cancel), world.start("a"))
    assert {"type": "cancel_ok", "saga_id": "a", "status": "COMPENSATING"} in bodies(done)
    assert [command.direction for command in commands(done)] == [1]


def test_a_definition_that_raises_refuses_the_start_alone() -> None:
    """Its author's bug is code 13 for one client, not the end of the shard."""
    world = serving()
    world.engine._course.prices = {"abc123": "ten"}  # type: ignore[dict-item]  # no price
    ((_, code, body),) = replies(world.step(world.start("a")))
    assert code == 13
    assert "raised TypeError" in body["text"]
    assert world.engine.inflight == 0


def test_a_price_that_changes_after_the_start_changes_no_charge() -> None:
    """F8: it is fixed, and journalled, with the start; a retry and a restart charge what it was."""
    world = serving(Rules(retry=Retry(backoff_ms=1, backoff_max_ms=1)))
    world.step(world.start("a"))
    world.engine._course.prices = {"abc123": 1, "xyz789": 1}
    world.drive("a", wire.OK)
    first = world.take(b"payment", "a")
    world.step(world.reply(b"payment", first, wire.FAILED))
    world.after(10)
    world.step(*world.beats())
    second = world.take(b"payment", "a")
    assert (first.attempt, second.attempt) == (1, 2)
    world.restart()
    world.engine._course.prices = {"abc123": 1, "xyz789": 1}
    world.step(*world.came(*SERVICES))
    world.after(10)
    world.step(*world.beats())
    third = world.take(b"payment", "a")
    charged = [wire.unpack(each.body)["amount"] for each in (first, second, third)]
    assert charged == [24_999] * 3


def test_after_recovery_what_had_failed_is_sent_again_spread_out() -> None:
    """PROOF G2: a restart is no licence to fall upon a sick service with all retries at once."""
    world = serving(Rules(budget=(100, 20, 10)), capacity=1_000)
    world.step(*(world.start(f"s{at}") for at in range(200)))
    failed = [answer_to(each, wire.FAILED, wire.pack({})) for each in world.held[b"inventory"]]
    world.step(Answered(b"inventory", failed))
    world.restart()
    sent = [commands(world.step(*world.came(*SERVICES, capacity=1_000)))]
    for _ in range(50):
        world.after(20)
        sent.append(commands(world.step(*world.beats())))
    assert len(sent[0]) == 0
    assert max(len(each) for each in sent) <= 20
    assert 20 <= sum(len(each) for each in sent) <= 20 + 11  # the burst, and a second's floor


def test_a_slow_pool_refuses_the_sagas_that_need_it_and_no_others() -> None:
    """What would not wait there is taken."""
    rules = Rules(plans=(checkout, chain("trip", 2)), queue_age_max_ms=1_000)
    world = World(rules)
    world.step(world.start("a"))
    world.after(1_100)
    ((_, code, body),) = replies(world.step(world.start("b")))
    assert (code, body["retry_after_ms"]) == (11, 220)
    effects = world.step(world.ask(wire.START, "c", booking("trip", "c")))
    assert (replies(effects), len(effects.entries)) == ([], 1)


def test_what_is_past_retention_is_forgotten_by_the_shard_and_every_service() -> None:
    """SPEC 2: kept for 7 days, then the id alone; a saga that is not final is never named."""
    world = World()
    world.step(*world.came("inventory", "payment", "shipping"))
    for saga_id in ("a", "b", "c"):
        world.step(world.start(saga_id))
        if saga_id != "b":
            world.drive(saga_id, wire.OK, wire.OK, wire.OK)
        world.after(60_000)
    day_ms = 86_400_000
    quiet = world.step()
    assert not [entry for entry in quiet.entries if isinstance(entry, Forgotten)]
    world.after(7 * day_ms - 60_000)
    effects = world.step(*world.beats(), timers=False)
    assert [entry for entry in effects.entries if isinstance(entry, Forgotten)] == [
        Forgotten(1, [(1, 1)], 1)
    ]
    assert {sent.worker for sent in effects.lists} == {b"inventory", b"payment", b"shipping"}
    assert bodies(world.step(world.start("a")))[0]["code"] == 22
    assert bodies(world.step(world.start("c")))[0]["status"] == "COMPLETED"


def broken(**steps: Any) -> Rules:
    """Give a saga of two steps of which the first one's builders are these."""
    plan = chain("trip", 2)
    first = msgspec.structs.replace(
        plan.steps[0], **{name: steps.pop(name) for name in list(steps) if name in STEP_FIELDS}
    )
    retry = Retry(attempts=2, stuck_after=2)
    return Rules(
        plans=(msgspec.structs.replace(plan, steps=(first, plan.steps[1]), **steps), checkout),
        retry=retry,
    )


STEP_FIELDS = ("command", "undo", "reason")
POOLS = ("trip_1", "trip_2", *SERVICES)


def raising(*_: Any) -> Any:
    """Break, as a definition's author did not foresee."""
    raise KeyError("no such \ud800 key")


def trip(rules: Rules) -> World:
    """Start a trip and a checkout beside it, which has to go on."""
    world = World(rules)
    world.step(*world.came(*POOLS))
    world.step(world.ask(wire.START, "t", booking("trip", "t")), world.start("beside"))
    return world


def later(world: World) -> Effects:
    """Let all backoffs pass."""
    world.after(10_000)
    return world.step(*world.beats())


def goes_on(world: World) -> bool:
    """Complete the checkout beside; show the trip; have a restart read it all."""
    world.step(world.ask(wire.SHOW, "t"))
    world.drive("beside", wire.OK, wire.OK, wire.OK)
    world.restart()
    return world.tally.counts["finished", "checkout", "completed"] == 1


def test_a_command_that_cannot_be_built_is_a_failed_attempt_of_its_saga_alone() -> None:
    """It ended the shard, and again after each restart; now its saga turns back and ends."""
    world = trip(broken(command=raising))
    saga = world.engine.state.by_id["t"]
    assert (saga.attempt, saga.phase) == (2, RUNNING)
    done = later(world)
    failed, turned = (e for e in done.entries if getattr(e, "number", None) == saga.number)
    assert isinstance(failed, AttemptEnded)
    assert failed.text == "command raised KeyError: 'no such \\ud800 key'"
    assert isinstance(turned, TurnedBack)
    assert turned.reason == "Timed out: Trip1"
    (undo,) = [each for each in commands(done) if each.number == saga.number]
    assert undo.direction == 1
    assert world.tally.counts["faulted", "definition_command"] == 2
    assert goes_on(world)


def test_a_compensation_that_cannot_be_built_makes_its_saga_stuck() -> None:
    """Its client and its operator hear of it; nobody else does."""
    world = trip(broken(undo=raising))
    world.drive("t", wire.OK)
    told = replies(world.drive("t", wire.DECLINED))
    assert told == []
    told = replies(later(world))
    assert [(code, body["code"]) for _, code, body in told] == [(0, 0)]
    assert world.engine.state.stuck == 1
    assert world.tally.counts["faulted", "definition_undo"] == 2
    assert goes_on(world)


@pytest.mark.parametrize("wrong", [raising, lambda _: 7, lambda _: "\ud800"])
def test_a_reason_that_cannot_be_worded_is_plain(wrong: Any) -> None:
    """The business said no: that stands, whatever the wording does."""
    world = trip(broken(reason=wrong))
    (told,) = bodies(world.drive("t", wire.DECLINED))
    assert told == {"type": "trip_refused", "saga_id": "t", "why": "Declined: Trip1"}
    assert world.tally.counts["faulted", "definition_reason"] == 1
    assert goes_on(world)


@pytest.mark.parametrize("wrong", [raising, lambda *_: None])
def test_a_final_answer_that_cannot_be_built_is_plain(wrong: Any) -> None:
    """What happened has happened, and its client is told which of the two."""
    world = trip(broken(completed=wrong, aborted=wrong))
    (told,) = bodies(world.drive("t", wire.OK, wire.OK))
    assert told == {"type": "trip_complete", "saga_id": "t", "status": "COMPLETED"}
    world.step(world.ask(wire.START, "u", booking("trip", "u")))
    (told,) = bodies(world.drive("u", wire.DECLINED))
    assert told["type"] == "trip_failed"
    assert (told["status"], told["reason"]) == ("ABORTED", "Trip1: why")
    assert world.tally.counts["faulted", "definition_answer"] == 2
    assert goes_on(world)


def test_nobody_is_suspected_when_a_worker_says_hello_again() -> None:
    """The same connection, the same process: it has not died."""
    world = serving()
    world.step(world.start("a"))
    again = world.step(*world.came("inventory"))
    assert [command.saga_id for command in commands(again)] == ["a"]
    assert again.alone == {}


def test_a_worker_gets_one_suspect_at_a_time_and_others_beside_it() -> None:
    """Only so a death is about one command; and a pool goes on while it looks for the bad one."""
    world = serving()
    world.step(*(world.start(f"s{at}") for at in range(5)))
    world.step(WorkerWent(b"inventory"))
    came = world.step(*world.came("inventory"))
    assert [command.saga_id for command in came.alone.values()] == ["s0"]
    assert came.commands == {}
    beside = world.step(world.start("x"))
    assert (beside.alone, [command.saga_id for command in commands(beside)]) == ({}, ["x"])
    for at in range(1, 5):
        done = world.drive(f"s{at - 1}", wire.OK)
        assert [command.saga_id for command in done.alone.values()] == [f"s{at}"]
    assert world.engine.state.by_id["s4"].attempt == 1


def test_a_death_after_the_answer_counts_against_nobody() -> None:
    """Failed is an answer: the worker came out of the handler."""
    world = serving()
    world.step(world.start("a"))
    for _ in range(5):
        world.step(WorkerWent(b"inventory"))
        world.step(*world.came("inventory"))
        (command,) = world.held[b"inventory"][-1:]
        said = Begun(command.number, command.step, command.direction, command.attempt)
        assert world.step(CommandBegun(b"inventory", said)).proceeds[0][1].wanted
        world.step(world.reply(b"inventory", command, wire.REFUSED_UNAVAILABLE, {}))
    suspect = world.engine.state.by_id["a"].suspected()
    assert suspect is not None
    assert suspect.deaths == 0


@pytest.mark.parametrize("kind", [wire.CANCEL, wire.RETRY])
def test_a_request_whose_body_names_another_saga_is_malformed(kind: int) -> None:
    """The router has read the envelope alone: the other one may be another shard's."""
    world = serving()
    world.step(world.start("a"))
    name = {wire.CANCEL: "cancel", wire.RETRY: "retry"}[kind]
    body = {"type": name, "saga_id": "b", "reason": "x", "msg_id": 7}
    effects = world.step(world.ask(kind, "a", body))
    ((_, code, told),) = replies(effects)
    assert (code, told["in_reply_to"], effects.entries) == (12, 7, [])


def test_of_very_many_sagas_orders_are_kept_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 000 in flight: a decoded order is three times as large. What is sent is the same."""
    sent = []
    for most in (0, 1):
        monkeypatch.setattr("shard.requests.DECODED_MAX", most)
        world = serving()
        (command,) = commands(world.step(world.start("a")))
        sent.append(command)
        assert bodies(world.drive("a", wire.OK, wire.OK, wire.OK))[0]["status"] == "COMPLETED"
    assert sent[0] == sent[1]


def test_an_audit_reads_which_numbers_are_forgotten() -> None:
    """Of those a service may hold no barrier rows; of others it must."""
    world = serving()
    for saga_id in ("a", "b", "c"):
        world.step(world.start(saga_id))
        world.drive(saga_id, wire.OK, wire.OK, wire.OK)
    world.step(forget=([(1, 1), (3, 3)], 1))
    asked = {"book": "forgotten", "from": 0}
    (page,) = bodies(world.step(world.ask(wire.BOOKS, "0", asked)))
    assert page["rows"] == [[1, 1], [3, 3]]
    (rest,) = bodies(world.step(world.ask(wire.BOOKS, "0", {**asked, "from": 1})))
    assert (rest["from"], rest["rows"]) == (1, [[3, 3]])


def test_the_oldest_of_too_many_audits_is_told_to_begin_again() -> None:
    """Each holds what ran when it began; an audit that its asker has given up ends by itself."""
    world = serving()
    world.step(world.start("a"))
    begun = [
        bodies(world.step(world.ask(wire.BOOKS, "0", {"book": "sagas"})))[0]["snapshot"]
        for _ in range(SNAPSHOTS_MAX + 1)
    ]
    codes = [
        replies(world.step(world.ask(wire.BOOKS, "0", {"book": "running", "snapshot": each})))[0][1]
        for each in begun
    ]
    assert codes == [22, *[None] * SNAPSHOTS_MAX]


def test_a_request_that_its_router_forwards_twice_gets_one_reply() -> None:
    """It keeps its number on the way: after a reconnect nobody knows whether it had arrived."""
    world = serving()
    asked = world.start("a")
    world.step(asked)
    world.step(asked)
    told = replies(world.drive("a", wire.OK, wire.OK, wire.OK))
    assert [request for request, *_ in told] == [1]


def test_a_start_that_finds_no_room_is_refused_before_it_is_read() -> None:
    """Under overload most are: what reading them costs is taken from those that are served."""
    world = serving(Rules(inflight_max=1))
    world.step(world.start("a"))

    def read(_: bytes) -> Any:
        raise AssertionError("a body was read")

    world.engine.state.definitions["checkout"].readers.request.decode = read
    refused = world.step(world.start("b", msg_id=7), world.ask(wire.START, "c", b"?"))
    assert [(code, body.get("in_reply_to")) for _, code, body in replies(refused)] == [
        (11, 7),
        (11, None),
    ]


def test_what_is_known_is_answered_in_full_where_there_is_no_room() -> None:
    """SPEC 2: repeats of known ids are never refused for load, whatever they are told."""
    world = serving(Rules(inflight_max=1))
    world.step(world.start("a"))
    told = [
        replies(world.step(world.start("a", user_id="other"))),
        replies(world.step(world.ask(wire.START, "a", b"?"))),
        replies(world.step(world.start("a", wire.SUBMIT))),
    ]
    assert [[code for _, code, _ in each] for each in told] == [[22], [12], [None]]
    world.step(world.start("a"))
    done = world.drive("a", wire.OK, wire.OK, wire.OK)
    assert [body["type"] for body in bodies(done)] == ["checkout_complete"] * 2
