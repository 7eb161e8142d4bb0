"""Loop: answers before timers, and time that could not be used is nobody's."""

import pytest

from sagacity.wire import unpack
from shard.entries import AttemptEnded, TurnedBack
from shard.events import Event
from shard.loop import RECEIVES_BEFORE_TIMERS, WAIT_MAX_NS
from shard.sagas import MS
from tests.unit.loop_rig import ATTEMPT_MS, DEADLINE_MS, Rig, serving


@pytest.fixture
def rig() -> Rig:
    """A loop that serves a saga whose first command is out."""
    return serving()


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
