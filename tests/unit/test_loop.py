"""Loop: durable before visible; recovery and history. Time: test_loop_time.py."""

from random import Random

import pytest

from sagacity.wire import (
    CANCEL,
    DECLINED,
    FAILED,
    OK,
    REFUSED_FENCED,
    SHOW,
    START,
    SUBMIT,
    Answer,
    answer_to,
    encode,
    pack,
    unpack,
)
from shard.entries import Opened
from shard.events import Answered, Event
from shard.journal import JournalFailed, JournalRefused
from shard.loop import HISTORIES_MAX, HISTORIES_PER_TURN, Fenced
from shard.sagas import MS
from tests.unit.canned import answer
from tests.unit.loop_rig import PEERS, Rig, serving
from tests.unit.world import CLUSTER_ID


@pytest.fixture
def rig() -> Rig:
    """A loop that serves a saga whose first command is out."""
    return serving()


# -- durable before visible -----------------------------------------------------------------------


def test_a_saga_travels_and_each_step_follows_its_entry(rig: Rig) -> None:
    """The line through the loop; the twins check each send."""
    for step in (1, 2, 3):
        rig.turn(rig.answered(step))
    assert [unpack(reply.body)["type"] for reply in rig.links.replies] == ["checkout_complete"]
    assert rig.engine.inflight == 0


def any_events(rig: Rig, random: Random) -> list[Event]:
    """Give a batch of anything that can come."""
    events: list[Event] = []
    for _ in range(random.randrange(6)):
        saga_id = f"s{random.randrange(12)}"
        cancel = pack({"type": "cancel", "saga_id": saga_id, "reason": "changed my mind"})
        step = random.choice((1, 2, 3))
        held = rig.links.held[PEERS[step - 1]]
        choice = random.randrange(10)
        if choice < 3:
            events.append(rig.start(saga_id, random.choice((START, SUBMIT))))
        elif choice == 3:
            events.append(rig.ask(CANCEL, saga_id, cancel))
        elif choice == 4:
            events.append(rig.ask(SHOW, saga_id))
        elif held:
            command = held.pop(random.randrange(len(held)))
            outcome = random.choices((OK, DECLINED, FAILED), (8, 1, 1))[0]
            if outcome == DECLINED and command.direction:
                outcome = FAILED
            given = answer(command, outcome)
            events.append(Answered(PEERS[step - 1], [given] * random.choice((1, 1, 1, 2))))
    random.shuffle(events)
    return [*rig.beats(), *events]


@pytest.mark.parametrize("seed", range(25))
def test_nothing_leaves_before_what_it_follows_from_is_durable(seed: int) -> None:
    """D1, D2, invariant 7: whatever comes, in whatever order, with restarts in between."""
    random = Random(seed)
    rig = Rig()
    sent = 0
    for _ in range(60):
        if random.random() < 0.05:
            sent += len(rig.links.sent)
            rig.start_over()
        if not rig.engine.workers():
            rig.turn(*rig.workers(capacity=random.choice((1, 3, 256))))
        rig.journal.slow_ms = random.choice((0, 0, 1, 300, 6_000))
        rig.turn(
            *any_events(rig, random),
            drained=random.random() < 0.8,
            took_ms=random.choice((0, 1, 40, 400, 2_000)),
        )
    rig.journal.slow_ms = 0
    for _ in range(400):
        if not rig.engine.inflight:
            break
        answers = [Answered(p, [answer(c) for c in rig.links.held[p]]) for p in PEERS]
        for peer in PEERS:
            rig.links.held[peer].clear()
        rig.turn(*rig.beats(), *answers, took_ms=100)
    assert rig.engine.inflight == 0, f"seed {seed}: a saga does not end"
    assert len(rig.engine.state.finished) > 3
    assert len(rig.links.sent) + sent > 60
    assert not [key for key in rig.tally.counts if key[0] == "faulted"]


@pytest.mark.parametrize("event", ["start", "answer", "cancel", "timer"])
def test_a_commit_that_fails_lets_nothing_leave(rig: Rig, event: str) -> None:
    """D6: its fate is unknown, so nobody may be told, not even what older entries would allow."""
    before, rows = len(rig.links.sent), list(rig.journal.rows)
    rig.journal.fails = True
    cancel = pack({"type": "cancel", "saga_id": "s1", "reason": "no"})
    events: dict[str, list[Event]] = {
        "start": [rig.start("s2"), rig.start("s1", SUBMIT)],
        "answer": [rig.answered(1)],
        "cancel": [rig.ask(CANCEL, "s1", cancel)],
        "timer": [],
    }
    if event == "timer":
        for _ in range(11):
            rig.turn(*rig.beats(), took_ms=270)
        before = len(rig.links.sent)
    with pytest.raises(JournalFailed):
        rig.turn(*rig.beats(), *events[event], took_ms=100)
    assert len(rig.links.sent) == before
    assert rig.journal.rows == rows


def test_a_turn_that_decides_nothing_costs_no_commit_and_sends_with_the_last_receipt(
    rig: Rig,
) -> None:
    """A repeat, a heartbeat, a late answer: nothing to write, and the answer may still leave."""
    commits = rig.journal.commits
    rig.turn(*rig.beats())
    rig.turn(rig.start("s1", SUBMIT))
    assert rig.journal.commits == commits
    assert [unpack(reply.body)["type"] for reply in rig.links.replies] == ["checkout_accepted"]


def test_one_commit_carries_all_that_came(rig: Rig) -> None:
    """Group commit: a hundred starts share a sync."""
    commits = rig.journal.commits
    effects = rig.turn(*(rig.start(f"many{index}") for index in range(100)), rig.answered(1))
    assert rig.journal.commits == commits + 1
    assert len(effects.commands[b"inventory"]) == 100
    assert len(effects.commands[b"payment"]) == 1
    took_ns, entries = rig.watch.commits[-1]
    assert (took_ns, entries) == (0, 101)


def test_a_fenced_shard_ends_without_writing_or_sending(rig: Rig) -> None:
    """E1: another process owns this shard; whatever this one still says would be a second voice."""
    rows, before = list(rig.journal.rows), len(rig.links.sent)
    command = rig.links.held[b"inventory"][0]
    fenced = answer_to(command, REFUSED_FENCED, encode(2))
    with pytest.raises(Fenced, match="epoch 2"):
        rig.turn(rig.start("s2"), Answered(b"inventory", [fenced]))
    assert rig.journal.rows == rows
    assert len(rig.links.sent) == before


# -- recovery and history -------------------------------------------------------------------------


def test_a_restart_replays_the_journal_and_goes_on_in_the_next_epoch(rig: Rig) -> None:
    """The same command goes out again, under the epoch that services now expect."""
    rig.turn(rig.answered(1))
    before = rig.links.held[b"payment"][0]
    rig.turn(rig.start("s2"))
    assert rig.start_over() == 2
    assert rig.journal.entries()[-1] == Opened(CLUSTER_ID, 0, 2)
    assert rig.links.sent[0].commands == {}
    effects = rig.turn(*rig.workers())
    (again,) = effects.commands[b"payment"]
    assert (before.epoch, again.epoch) == (1, 2)
    assert (again.number, again.step, again.attempt, again.body) == (
        before.number,
        before.step,
        before.attempt,
        before.body,
    )
    assert [command.saga_id for command in effects.commands[b"inventory"]] == ["s2"]
    rig.turn(rig.start("s1"), rig.answered(2))
    rig.turn(rig.answered(3))
    assert [unpack(reply.body)["type"] for reply in rig.links.replies] == ["checkout_complete"]


def test_a_final_answer_is_the_same_after_a_restart(rig: Rig) -> None:
    """Invariant 2: a repeat is answered from the journal, and nothing is commanded again."""
    rig.turn(rig.answered(1))
    rig.turn(rig.answered(2, DECLINED))
    rig.turn(rig.answered(1))
    (first,) = rig.links.replies
    assert unpack(first.body)["reason"] == "Payment declined: DECLINED"
    assert rig.start_over() == 0
    rig.turn(*rig.workers(), rig.start("s1"))
    assert [reply.body for reply in rig.links.replies] == [first.body]
    assert rig.links.held == {peer: [] for peer in PEERS}


@pytest.mark.parametrize(("outage_ms", "left_ms"), [(0, 30_000), (22_000, 10_000), (10**9, 10_000)])
def test_a_deadline_has_what_was_left_of_it_and_10_s_at_least(
    rig: Rig, outage_ms: int, left_ms: int
) -> None:
    """Neither an outage nor a clock that jumped turns sagas back in bulk."""
    rig.clock.advance(outage_ms)
    rig.start_over()
    begun = rig.clock.monotonic_ns()
    while not rig.ended():
        rig.loop.turn()
    assert (rig.clock.monotonic_ns() - begun) // MS == pytest.approx(left_ms, abs=20)


def test_a_damaged_journal_is_refused_before_anything_is_written_or_sent(rig: Rig) -> None:
    """Not even the epoch: what stands there is for a person to look at."""
    seq, chain, packed = rig.journal.rows[1]
    rig.journal.rows[1] = (seq, chain, packed[:-1] + b"\x00")
    rows = list(rig.journal.rows)
    with pytest.raises(JournalRefused):
        rig.start_over()
    assert rig.journal.rows == rows
    assert rig.links.sent == []


def test_a_history_tells_what_was_durable_when_it_was_asked(rig: Rig) -> None:
    """`show` in the very batch that ends a saga reads the row that this batch became."""
    rig.turn(rig.answered(1))
    rig.turn(rig.answered(2))
    rig.turn(rig.ask(SHOW, "s1"), rig.answered(3))
    told = {unpack(reply.body)["type"]: unpack(reply.body) for reply in rig.links.replies}
    assert set(told) == {"saga", "checkout_complete"}
    assert told["saga"]["status"] == "COMPLETED"
    assert told["saga"]["history"][-1]["body"] == told["checkout_complete"]
    assert [event["event"] for event in told["saga"]["history"]] == [
        "started",
        *["command", "answer"] * 3,
        "finished",
    ]
    rig.start_over()
    rig.turn(rig.ask(SHOW, "s1"))
    assert unpack(rig.links.replies[0].body) == told["saga"]


def test_a_history_of_an_unknown_saga_is_an_error_of_the_table(rig: Rig) -> None:
    """And costs nothing."""
    rig.turn(rig.ask(SHOW, "nobody"))
    assert [reply.code for reply in rig.links.replies] == [20]


def test_answers_of_a_batch_are_taken_before_its_cancels_and_starts(rig: Rig) -> None:
    """B14: the last success was there first, so the cancel is too late, whatever came first."""
    rig.turn(rig.answered(1))
    rig.turn(rig.answered(2))
    last: Answer = answer(rig.links.held[b"shipping"].pop())
    cancel = pack({"type": "cancel", "saga_id": "s1", "reason": "no"})
    rig.turn(rig.start("s1"), rig.ask(CANCEL, "s1", cancel), Answered(b"shipping", [last]))
    codes = sorted((reply.code or 0, unpack(reply.body)["type"]) for reply in rig.links.replies)
    assert codes == [(0, "checkout_complete"), (0, "checkout_complete"), (22, "error")]


def test_a_history_that_goes_past_retention_before_it_is_told_is_no_longer_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 1077461: it was told with its status alone; its rows and its record are gone by then."""
    for step in (1, 2, 3):
        rig.turn(rig.answered(step))
    rig.turn(*(rig.ask(SHOW, "s1") for _ in range(HISTORIES_PER_TURN + 1)))
    told = [reply.code for reply in rig.links.replies if unpack(reply.body)["type"] == "saga"]
    assert told == [None] * HISTORIES_PER_TURN
    monkeypatch.setattr(rig.journal, "history", lambda _number, _seqs: [])
    rig.turn()
    assert rig.links.replies[-1].code == 22
    assert unpack(rig.links.replies[-1].body)["text"].endswith("its outcome is no longer kept")


def test_more_histories_than_there_is_room_for_are_asked_for_again(rig: Rig) -> None:
    """G5: who asks for very many at once waits; sagas do not, and every request gets one reply."""
    asked = [rig.ask(SHOW, "s1") for _ in range(HISTORIES_MAX + 3)]
    rig.turn(*asked, rig.start("s2"))
    assert "s2" in rig.engine.state.by_id
    refused = [each for each in rig.links.replies if each.code is not None]
    assert [(each.code, unpack(each.body)["retry_after_ms"]) for each in refused] == [(11, 250)] * 3
    for _ in range(HISTORIES_MAX):
        if len(rig.links.replies) == len(asked):
            break
        rig.turn()
    assert len({each.request for each in rig.links.replies}) == len(asked)
