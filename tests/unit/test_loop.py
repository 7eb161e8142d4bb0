"""Loop: durable before visible, answers before timers, time that could not be used is nobody's.

The ports are twins: the journal can be slow or fail, the links check each thing that they are
asked to send against the rows that are durable by then.
"""

from collections import deque
from random import Random
from typing import Any

import pytest

from cluster.clock import ManualClock
from sagacity.saga import Retry
from sagacity.slots import SLOTS
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
    Command,
    Reply,
    Request,
    Witness,
    encode,
    pack,
    unpack,
)
from services.checkout import checkout
from shard.admission import Admission
from shard.effects import Effects
from shard.engine import Engine
from shard.entries import AttemptEnded, Entry, Opened, TurnedBack
from shard.events import Answered, Event, Requests, WorkerCame, WorkerLives
from shard.finished import FinishedInMemory
from shard.journal import JournalFailed, JournalRefused, MemoryJournal, Receipt
from shard.loop import RECEIVES_BEFORE_TIMERS, WAIT_MAX_NS, Fenced, Loop, Received
from shard.retries import RetryBudget
from shard.sagas import MS, Definition
from shard.state import State
from shard.tally import PlainTally
from tests.unit.canned import SERVICES, answer
from tests.unit.world import CLIENT, CLUSTER_ID, PRICES, answer_to, order

ATTEMPT_MS = 3_000
DEADLINE_MS = 30_000
DEFINITIONS = {checkout.name: Definition(checkout, Retry(timeout_ms=ATTEMPT_MS))}
PEERS = [name.encode() for name in SERVICES]


class TwinJournal(MemoryJournal):
    """Takes its time, or fails."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self.slow_ms = 0
        self.fails = False
        self.commits = 0

    def commit(self, entries: list[Entry], epoch: int, wall_ms: int) -> Receipt:
        """Keep entries, late, or not at all."""
        self._clock.advance(self.slow_ms)
        if self.fails:
            raise JournalFailed("as told")
        self.commits += 1
        return super().commit(entries, epoch, wall_ms)

    def entries(self) -> list[Entry]:
        """Give every entry that is durable."""
        return [entry for _, batch in self.replay() for entry in batch.entries]

    def state(self) -> State:
        """Give what the durable rows say."""
        state = State(DEFINITIONS, FinishedInMemory())
        for seq, batch in self.replay():
            for entry in batch.entries:
                state.apply(entry, seq)
        return state


class TwinLinks:
    """Gives what a test put in, and checks that what leaves was durable before."""

    def __init__(self, clock: ManualClock, journal: TwinJournal) -> None:
        self._clock = clock
        self._journal = journal
        self.coming: deque[tuple[list[Event], bool, int]] = deque()
        self.waits: list[int] = []
        self.sent: list[Effects] = []
        self.held: dict[bytes, list[Command]] = {peer: [] for peer in PEERS}
        self.replies: list[Reply] = []

    def receive(self, timeout_ns: int) -> Received:
        """Give the next batch, after the time that it is said to take; or wait in vain."""
        self.waits.append(timeout_ns)
        events, drained, took_ms = (
            self.coming.popleft() if self.coming else ([], True, -(-timeout_ns // MS))
        )
        self._clock.advance(took_ms)
        return Received(events, drained)

    def send(self, receipt: Receipt, witness: Witness, effects: Effects) -> None:
        """Check every single thing."""
        durable = self._journal.state()
        last = self._journal.last
        assert receipt == last, "a receipt for what is not durable"
        assert witness == Witness(
            CLUSTER_ID, 0, durable.epoch, last.seq, last.chain, durable.number
        )
        for peer, commands in effects.commands.items():
            for command in commands:
                saga = durable.live[command.number]
                assert (command.saga_id, command.step, command.direction, command.attempt) == (
                    saga.saga_id,
                    saga.step,
                    saga.direction,
                    saga.attempt,
                ), "no durable entry says that this command is due"
                assert command.body == saga.command_body()
                assert command.epoch == durable.epoch
            self.held[peer] += commands
        for reply in (each for batch in effects.replies.values() for each in batch):
            if reply.code is None:
                _assert_true_of(durable, unpack(reply.body))
            self.replies.append(reply)
        self.sent.append(effects)


def _assert_true_of(durable: State, said: dict[str, Any]) -> None:
    """Check that a reply says nothing that a crash could undo."""
    found = durable.by_id.get(said["saga_id"]) or durable.finished.find(said["saga_id"])
    assert found is not None, "a reply about a saga that is not durable"
    if said["type"] in {"checkout_complete", "checkout_failed"}:
        card = durable.finished.find(said["saga_id"])
        assert card is not None
        assert unpack(card.answer) == said
    elif said["type"] == "cancel_ok":
        assert found.cancelled


class Watch:
    """The observer's twin."""

    def __init__(self) -> None:
        self.commits: list[tuple[int, int]] = []
        self.turns: list[int] = []

    def committed(self, took_ns: int, entries: int) -> None:
        """Keep it."""
        self.commits.append((took_ns, entries))

    def turned(self, took_ns: int) -> None:
        """Keep it."""
        self.turns.append(took_ns)


class Rig:
    """A loop between twins."""

    def __init__(self) -> None:
        self.clock = ManualClock(monotonic_ns=5_000_000_000_000)
        self.journal = TwinJournal(self.clock)
        self.requests = 0
        self.start_over()

    def start_over(self) -> int:
        """Lose everything but the journal; give how many sagas go on."""
        self.links = TwinLinks(self.clock, self.journal)
        self.tally = PlainTally()
        self.watch = Watch()
        self.engine = Engine(
            0,
            frozenset(range(SLOTS)),
            State(DEFINITIONS, FinishedInMemory()),
            PRICES,
            Admission(4096),
            RetryBudget(100, 100, 10),
            self.tally,
            DEADLINE_MS,
        )
        self.loop = Loop(self.engine, self.journal, self.links, self.clock, CLUSTER_ID, self.watch)
        return self.loop.recover()

    def turn(self, *events: Event, drained: bool = True, took_ms: int = 0) -> Effects:
        """Do one turn in which these events come; give what it sent."""
        self.links.coming.append((list(events), drained, took_ms))
        self.loop.turn()
        return self.links.sent[-1]

    def workers(self, capacity: int = 256) -> list[Event]:
        """Give the events of a worker's HELLO for each service."""
        return [
            WorkerCame(peer, name, 1, capacity) for peer, name in zip(PEERS, SERVICES, strict=True)
        ]

    def beats(self) -> list[Event]:
        """Give a heartbeat of each worker that is known."""
        return [WorkerLives(peer, 256) for peer in self.engine.workers()]

    def ask(self, kind: int, saga_id: str, body: bytes = b"") -> Requests:
        """Give the event of a request."""
        self.requests += 1
        return Requests(CLIENT, [Request(kind, saga_id, self.requests, {}, body)])

    def start(self, saga_id: str, kind: int = START) -> Requests:
        """Give the event of a start."""
        return self.ask(kind, saga_id, pack(order(saga_id)))

    def answered(self, step: int, outcome: int = OK) -> Answered:
        """Give the event in which a step's worker answers the oldest command that it holds."""
        peer = PEERS[step - 1]
        return Answered(peer, [answer(self.links.held[peer].pop(0), outcome)])

    def ended(self) -> list[Entry]:
        """Give the entries that only time can have caused."""
        return [e for e in self.journal.entries() if isinstance(e, AttemptEnded | TurnedBack)]


@pytest.fixture
def rig() -> Rig:
    """A loop that serves, with three workers and one saga whose first command is out."""
    made = Rig()
    made.turn(*made.workers())
    made.turn(made.start("s1"))
    assert [command.step for command in made.links.held[b"inventory"]] == [1]
    return made


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


# -- time -----------------------------------------------------------------------------------------


def work_until(rig: Rig, usable_ms: int, step_ms: int = 250) -> None:
    """Let time pass that the loop can use, its workers alive."""
    for _ in range(0, usable_ms, step_ms):
        rig.turn(*rig.beats(), took_ms=step_ms)


PAUSES = ["in the wait", "between turns", "in the commit", "twice"]


def pause(rig: Rig, where: str, *events: Event) -> None:
    """Stand still for 30 s somewhere in a turn; then these events are in the sockets."""
    if where == "in the wait":
        rig.turn(*events, took_ms=30_000)
    elif where == "between turns":
        rig.clock.advance(30_000)
        rig.turn(*events)
    elif where == "in the commit":
        rig.journal.slow_ms = 30_000
        rig.turn(rig.start("another"))
        rig.journal.slow_ms = 0
        rig.turn(*events)
    else:
        rig.clock.advance(30_000)
        rig.turn(*events, took_ms=30_000)


@pytest.mark.parametrize("where", PAUSES)
def test_after_a_pause_the_answers_in_the_socket_come_before_the_timers(
    rig: Rig, where: str
) -> None:
    """B20: all deadlines are past by the wall, and nobody turns back."""
    pause(rig, where, rig.answered(1))
    assert rig.ended() == []
    assert [command.step for command in rig.links.held[b"payment"]] == [1 + 1]


@pytest.mark.parametrize("where", PAUSES)
def test_a_pause_is_added_to_every_attempt_and_deadline(rig: Rig, where: str) -> None:
    """Answers that come a moment later count as well: the attempt has what was left of it."""
    work_until(rig, 1_000)
    pause(rig, where, *rig.beats())
    work_until(rig, 1_500)
    assert rig.ended() == []
    work_until(rig, 1_000)
    assert [type(entry) for entry in rig.ended()][:1] == [AttemptEnded]


def test_a_slow_disk_is_no_reason_to_turn_back(rig: Rig) -> None:
    """D8: each sync takes 5 s, and a saga with three steps takes as long as it takes."""
    rig.journal.slow_ms = 5_000
    for index in range(8):
        rig.turn(*rig.beats(), rig.start(f"load{index}"))
    for step in (1, 2, 3):
        rig.turn(*rig.beats(), rig.answered(step))
    assert rig.ended() == []
    assert [unpack(reply.body)["status"] for reply in rig.links.replies] == ["COMPLETED"]


def test_time_that_passes_in_ordinary_turns_counts(rig: Rig) -> None:
    """Else a busy shard would wait for ever: only what is more than half a second late is free."""
    rig.journal.slow_ms = 400
    for index in range(8):
        rig.turn(*rig.beats(), rig.start(f"load{index}"))
    assert rig.ended() == []
    rig.turn(*rig.beats())
    assert [type(entry) for entry in rig.ended()] == [AttemptEnded] * 2  # s1 and load0


def test_a_timer_fires_after_a_receive_that_found_the_sockets_empty(rig: Rig) -> None:
    """One look is enough then: whatever was sent before has been read."""
    work_until(rig, 2_750)
    rig.turn(*rig.beats(), took_ms=300)
    assert [type(entry) for entry in rig.ended()] == [AttemptEnded]


def test_a_timer_fires_under_load_after_three_receives_that_began_after_it_was_due(
    rig: Rig,
) -> None:
    """Answers before timers, and timers at all: without a gap, three looks are the bound."""
    due_ns = rig.clock.monotonic_ns() + (ATTEMPT_MS + 10) * MS  # the wheel's tick is 10 ms
    began_after = 0
    for _ in range(100):
        began_after += rig.clock.monotonic_ns() >= due_ns
        rig.turn(*rig.beats(), drained=False, took_ms=70)
        if rig.ended():
            break
    assert began_after == RECEIVES_BEFORE_TIMERS
    assert rig.clock.monotonic_ns() - due_ns < 4 * 70 * MS


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_an_answer_that_is_found_late_under_load_comes_before_its_timer(
    rig: Rig, looks: int
) -> None:
    """It lay in the socket, behind others: its attempt has not timed out."""
    due_ns = rig.clock.monotonic_ns() + (ATTEMPT_MS + 10) * MS
    while rig.clock.monotonic_ns() < due_ns:
        rig.turn(*rig.beats(), drained=False, took_ms=70)
    for _ in range(looks - 1):
        rig.turn(*rig.beats(), drained=False, took_ms=70)
    rig.turn(rig.answered(1), drained=False, took_ms=70)
    assert rig.ended() == []
    assert len(rig.links.held[b"payment"]) == 1


def test_a_saga_that_nobody_works_on_turns_back_at_its_deadline(rig: Rig) -> None:
    """The loop wakes for it by itself, without an event."""
    rig.start_over()
    begun = rig.clock.monotonic_ns()
    while not rig.ended():
        rig.loop.turn()
    assert (rig.clock.monotonic_ns() - begun) // MS == pytest.approx(DEADLINE_MS, abs=20)
    assert [e.cause for e in rig.ended() if isinstance(e, TurnedBack)] == ["deadline"]


def test_the_wait_ends_at_the_next_timer_and_never_later_than_half_a_second(rig: Rig) -> None:
    """A child must tell its supervisor that it lives, and a timer must not be late."""
    idle = Rig()
    idle.loop.turn()
    assert idle.links.waits == [WAIT_MAX_NS]
    work_until(rig, 2_750)
    rig.turn(*rig.beats())
    assert rig.links.waits[-1] <= 270 * MS
    assert all(0 <= wait <= WAIT_MAX_NS for wait in rig.links.waits)


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000, 10 * 365 * 86_400_000])
def test_a_wall_clock_that_jumps_moves_no_timer(rig: Rig, jump_ms: int) -> None:
    """E2: wall time is written down and shown; nothing is decided by it."""
    rig.clock.set_wall(rig.clock.wall_ms() + jump_ms)
    rig.turn(*rig.beats(), took_ms=100)
    rig.turn(rig.answered(1), took_ms=100)
    assert rig.ended() == []
    assert rig.links.held[b"payment"]


def test_how_long_turns_and_commits_took_is_told(rig: Rig) -> None:
    """A gauge for how busy the loop is: waiting is left out."""
    rig.journal.slow_ms = 30
    rig.turn(rig.start("s2"), took_ms=200)
    assert rig.watch.commits[-1] == (30 * MS, 1)
    assert rig.watch.turns[-1] == 30 * MS


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
