"""Retention: nothing is forgotten early, whatever the clocks do; and in time, all is."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagacity import wire
from sagacity.errors import InvariantBroken
from shard.codec import pack_checkpoint, unpack_checkpoint
from shard.entries import Forgotten, Ran
from shard.events import Instant
from shard.finished import FinishedInMemory
from shard.retention import LOOK_NS, MARKS_MAX, NOTE_MS, Mark, Retention
from shard.sagas import MS, Card, Tombstone
from shard.state import Checkpoint, State
from tests.unit.disk_world import DiskWorld
from tests.unit.loop_rig import DEFINITIONS
from tests.unit.world import WALL_MS, Rules, World, bodies

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
TEN_YEARS_MS = 3_650 * DAY_MS
JUMPS = [TEN_YEARS_MS, -TEN_YEARS_MS, 8 * DAY_MS, -8 * DAY_MS, 3_600_000, -3_600_000]


def later(ms: int, wall_ms: int = WALL_MS) -> Instant:
    return Instant(ms * MS, wall_ms)


def ended(state: State, number: int) -> None:
    """Have so many sagas be final, in a state that knows nothing else of them."""
    while len(state.finished) < number:
        at = len(state.finished)
        state.finished.add(Card(at, f"s{at}", "checkout", 3, b"", b"", 1, "o1", False, b""))


# -- what is due ----------------------------------------------------------------------------------


def test_it_looks_once_a_second_and_sooner_while_there_is_more() -> None:
    """What is past retention is no hurry, and looking costs a read."""
    retention = Retention(WEEK_MS)
    retention.begin(0, later(5_000))
    assert retention.look_at == later(6_000).ns
    retention.ended([], later(6_100))
    assert retention.look_at == later(7_100).ns
    retention.look_again(later(6_100))
    assert later(6_100).ns < retention.look_at < later(6_200).ns


def test_nothing_is_forgotten_before_the_shard_was_taken_over() -> None:
    """A shard that waits for its services writes nothing."""
    assert Retention(WEEK_MS).look_at > later(TEN_YEARS_MS).ns


@pytest.mark.parametrize("jump_ms", [0, *JUMPS])
def test_what_had_ended_by_a_mark_is_past_retention_when_the_shard_has_run_long_enough(
    jump_ms: int,
) -> None:
    """E2: time is what the shard has run, not what a clock was set to; never a millisecond early.

    Loop time is counted in whole milliseconds, so that one more must have passed.
    """
    retention = Retention(WEEK_MS)
    retention.begin(1_000, later(0))
    marks = [Mark(1_000, 3), Mark(61_000, 7)]
    assert retention.ended(marks, later(WEEK_MS, WALL_MS + jump_ms)) == 0
    assert retention.ended(marks, later(WEEK_MS + 1, WALL_MS + jump_ms)) == 3
    assert retention.ended(marks, later(WEEK_MS + 60_000, WALL_MS + jump_ms)) == 3
    assert retention.ended(marks, later(WEEK_MS + 60_001, WALL_MS + jump_ms)) == 7


@pytest.mark.parametrize("booted_ms", [0, 1_000, 3 * WEEK_MS])
@pytest.mark.parametrize("jump_ms", [0, *JUMPS])
def test_a_start_goes_on_from_what_was_noted(booted_ms: int, jump_ms: int) -> None:
    """Kept longer than promised is no harm; forgotten early is. Loop time begins anywhere."""
    retention = Retention(WEEK_MS)
    retention.begin(DAY_MS, later(booted_ms, WALL_MS + jump_ms))
    assert retention.ran_ms(later(booted_ms)) == DAY_MS
    assert retention.ran_ms(later(booted_ms + 5, WALL_MS - jump_ms)) == DAY_MS + 5


@pytest.mark.parametrize(("keep_ms", "every_ms"), [(WEEK_MS, NOTE_MS), (64_000, 2_000)])
def test_how_long_the_shard_has_run_is_noted_every_minute(keep_ms: int, every_ms: int) -> None:
    """So much a crash takes back; more often where little is kept long."""
    retention = Retention(keep_ms)
    retention.begin(500, later(0))
    assert not retention.is_due(500, later(every_ms - 1))
    assert retention.is_due(500, later(every_ms))


# -- marks ----------------------------------------------------------------------------------------


def test_a_mark_is_made_only_when_more_sagas_have_ended() -> None:
    """An idle shard's checkpoint does not grow."""
    state = State(DEFINITIONS, FinishedInMemory())
    for ran_ms, number in ((1, 0), (2, 2), (3, 2), (4, 5)):
        ended(state, number)
        state.apply(Ran(ran_ms), 1)
    assert state.marks == [Mark(2, 2), Mark(4, 5)]
    assert state.ran_ms == 4


def test_a_saga_that_runs_stands_in_no_mark() -> None:
    """It has not ended: what it will be kept for has not begun."""
    world = World(Rules(deadline_ms=2 * NOTE_MS))
    world.step(*world.came(*SERVICES))
    for saga_id in ("a", "b"):
        world.step(world.start(saga_id))
    world.drive("b", wire.OK, wire.OK, wire.OK)
    world.after(NOTE_MS)
    world.step(timers=False)
    assert world.engine.state.marks == [Mark(NOTE_MS, 1)]


def test_marks_go_with_the_sagas_that_they_are_about() -> None:
    """What is forgotten is not looked for again; half of what a mark is about keeps it."""
    state = State(DEFINITIONS, FinishedInMemory())
    state.count = 9
    for ran_ms, number in ((1, 2), (2, 5), (3, 8)):
        ended(state, number)
        state.apply(Ran(ran_ms), 1)
    state.apply(Forgotten(1, [(1, 4)], 4), 2)
    assert state.marks == [Mark(2, 5), Mark(3, 8)]
    state.apply(Forgotten(2, [(5, 8)], 8), 3)
    state.apply(Ran(4), 4)
    assert state.marks == []


def test_running_time_that_falls_stops_the_shard() -> None:
    """A mark of before would be old at once."""
    state = State(DEFINITIONS, FinishedInMemory())
    state.apply(Ran(5), 1)
    with pytest.raises(InvariantBroken, match="running time fell"):
        state.apply(Ran(4), 2)


def test_a_checkpoint_keeps_the_marks() -> None:
    """Their rows are compacted away; what comes later changes nothing of what was kept."""
    state = State(DEFINITIONS, FinishedInMemory())
    ended(state, 2)
    state.apply(Ran(7), 1)
    counts = state.counts()
    ended(state, 3)
    state.apply(Ran(9), 2)
    kept = unpack_checkpoint(pack_checkpoint(Checkpoint(1, b"", counts))).counts
    assert (kept.ran_ms, kept.marks) == (7, [Mark(7, 2)])


@given(st.lists(st.integers(1, 10**9), min_size=MARKS_MAX, max_size=MARKS_MAX + 200))
@settings(max_examples=8, deadline=None)
def test_however_long_nothing_can_be_forgotten_the_marks_stay_few(gaps: list[int]) -> None:
    """A service may be away for a year. The newest mark stays: it is about all that has ended."""
    state = State(DEFINITIONS, FinishedInMemory())
    made = []
    for gap in gaps:
        ended(state, len(state.finished) + 1)
        state.apply(Ran(state.ran_ms + gap), 1)
        made.append(state.marks[-1])
    assert len(state.marks) == min(len(gaps), MARKS_MAX)
    assert (state.marks[0], state.marks[-1]) == (made[0], made[-1])
    assert set(state.marks) <= set(made)
    assert state.marks == sorted(state.marks, key=lambda mark: mark.ran_ms)


def test_marks_that_go_leave_gaps_that_are_small_beside_the_retention() -> None:
    """SPEC 2: 7 days are that and little more; here 1 500 notes within what is kept."""
    keep = 1_500
    state = State(DEFINITIONS, FinishedInMemory())
    state.count = 1 << 20
    late = 0
    for ran_ms in range(1, 3 * keep):
        ended(state, ran_ms)
        state.apply(Ran(ran_ms), 1)
        below = max(
            (mark.ordinal for mark in state.marks if mark.ran_ms < ran_ms - keep), default=0
        )
        if below > state.forgotten:
            late = max(late, below - state.forgotten)
            state.apply(Forgotten(state.lists + 1, [], below), 1)
    assert 2 <= late <= keep / 250


# -- a shard's lives ------------------------------------------------------------------------------

KEEP_MS = 32 * NOTE_MS
STEP_MS = NOTE_MS
SERVICES = ("inventory", "payment", "shipping")
RUNS = [1, 900, NOTE_MS // 2, NOTE_MS, KEEP_MS // 3]
MOVES = [
    *[("end", 0)] * 10,
    *[("run", ms) for ms in (*RUNS, NOTE_MS, NOTE_MS)],
    *[("clock", ms) for ms in JUMPS],
    *[("restart", booted_ms) for booted_ms in (0, 70_000, KEEP_MS)],
]


class Lives:
    """A shard that runs, dies and is started again, while the wall clock is set to anything."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ran_ms = 0  # what it has truly run
        self.restarts = 0
        self.ended: dict[str, int] = {}  # saga_id -> what the shard had run by its end
        world.step(*world.came(*SERVICES))

    def play(self, kind: str, number: int) -> None:
        """Do one move."""
        if kind == "run":
            self.run(number)
        elif kind == "clock":
            self.world.after(0, wall_ms=number)
        elif kind == "restart":
            self.restart(number)
        else:
            self.end(f"s{len(self.ended)}")

    def run(self, ms: int) -> None:
        """Let the shard run; what is forgotten then has been kept long enough."""
        self.world.after(ms)
        self.ran_ms += ms
        self.world.step(*self.world.beats())
        for saga_id in self.forgotten():
            assert self.ran_ms - self.ended[saga_id] >= KEEP_MS

    def end(self, saga_id: str) -> None:
        """Have a saga end."""
        self.world.step(self.world.start(saga_id))
        self.world.drive(saga_id, wire.OK, wire.DECLINED, wire.OK)
        self.ended[saga_id] = self.ran_ms

    def restart(self, booted_ms: int) -> None:
        """Lose the process; another one begins, on a machine that has been up for so long."""
        self.world.now = later(booted_ms, self.world.now.wall_ms)
        self.world.restart()
        self.restarts += 1
        self.world.step(*self.world.came(*SERVICES))

    def forgotten(self) -> list[str]:
        """Give the ids of which no more is known than that they were used."""
        find = self.world.engine.state.finished.find
        return [saga_id for saga_id in self.ended if isinstance(find(saga_id), Tombstone)]

    def run_out(self) -> None:
        """Run as long as anything may be kept: its retention, two notes, one more a restart."""
        left_ms = KEEP_MS + (2 + self.restarts) * NOTE_MS + LOOK_NS // MS
        for _ in range(left_ms // STEP_MS + 1):
            self.run(STEP_MS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(MOVES), min_size=10, max_size=40))
def test_no_clock_and_no_restart_makes_a_saga_be_forgotten_early_or_kept_for_ever(
    moved: list[tuple[str, int]],
) -> None:
    """SPEC 2, E2: jumps of ten years to and fro, and lives of any length, in any order."""
    world = World(Rules(retention_ms=KEEP_MS))
    lives = Lives(world)
    for each in moved:
        lives.play(*each)
    lives.run_out()
    assert lives.forgotten() == list(lives.ended)
    for saga_id in lives.ended:
        assert bodies(world.step(world.start(saga_id)))[0]["code"] == 22


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(MOVES), min_size=10, max_size=20), st.integers(1, 4))
def test_no_clock_and_no_restart_does_so_where_rows_are_compacted_away(
    moved: list[tuple[str, int]], slices: int
) -> None:
    """The same on a file: a restart reads a checkpoint and the rows behind it.

    What no generation holds yet is kept until its rows are compacted away.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.db"
        world = DiskWorld(path, Rules(retention_ms=KEEP_MS), slices=slices)
        lives = Lives(world)
        for each in [*moved, *[("end", 0)] * 4]:
            lives.play(*each)
        world.settle()
        held = world.generations.base
        assert held > 0
        lives.run_out()
        assert lives.forgotten()[:held] == list(lives.ended)[:held]
        world.close()


def test_a_saga_that_ends_after_the_clock_fell_behind_is_kept_for_the_whole_retention() -> None:
    """SPEC 2: a client that repeats its start gets the same answer, a week later too."""
    world = World()
    world.step(*world.came(*SERVICES))
    world.after(1_000, wall_ms=-8 * DAY_MS)
    world.step(world.start("a"))
    world.drive("a", wire.OK, wire.OK, wire.OK)
    world.after(2_000)
    world.step(*world.beats())
    for jump_ms in (-TEN_YEARS_MS, 2 * TEN_YEARS_MS):  # with a restart after each
        world.after(60_000, wall_ms=jump_ms)
        world.step(*world.beats())
        world.restart()
        world.step(*world.came(*SERVICES))
    world.after(WEEK_MS - 61_000)
    world.step(*world.beats())
    assert bodies(world.step(world.start("a")))[0]["status"] == "COMPLETED"
    world.after(2 * 60_000)
    world.step(*world.beats())
    assert bodies(world.step(world.start("a")))[0]["code"] == 22


def test_a_shard_of_which_nothing_is_kept_notes_nothing() -> None:
    """An idle cluster does not write for nobody; nor does one whose sagas are all forgotten."""
    world = World(Rules(retention_ms=KEEP_MS))
    world.step(*world.came(*SERVICES))
    world.step(world.start("runs"))
    world.after(10 * NOTE_MS)
    assert not [each for each in world.step(timers=False).entries if isinstance(each, Ran)]
    world.drive("runs", wire.OK, wire.OK, wire.OK)
    world.after(1_000)
    assert world.step().entries == [Ran(10 * NOTE_MS + 1_000)]
    world.after(NOTE_MS - 1_000)
    assert world.step().entries == []
    world.after(1_000)
    assert world.step().entries == [Ran(11 * NOTE_MS + 1_000)]
    world.after(2 * KEEP_MS)
    assert [type(entry) for entry in world.step().entries] == [Ran, Forgotten]
    world.after(2 * NOTE_MS)
    assert world.step().entries == []
