"""The engine under schedules that nobody wrote: whatever happens, sagas end, and end right.

Numbers in the docstrings are the invariants of docs/proof.md.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sagacity import wire
from sagacity.errors import InvariantBroken, Malformed
from sagacity.ids import ACTION, COMPENSATION, barrier_key
from sagacity.saga import Retry
from sagacity.wire import Answer
from shard import phases
from shard.entries import (
    OF_NO_SAGA,
    AttemptEnded,
    Entry,
    Finished,
    Quarantined,
    RetryAsked,
    Started,
    TurnedBack,
)
from shard.finished import FinishedInMemory
from shard.phases import COMPENSATING, NEW, RUNNING, TRANSITIONS
from shard.sagas import Card, Definition
from shard.state import State
from tests.unit.schedule import Schedule
from tests.unit.script import Player, above
from tests.unit.world import CLIENT, Rules, World, snapshot

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

schedules = st.binary(max_size=60) | st.binary(min_size=150, max_size=300)


def played(thrown: bytes, rules: Rules | None = None) -> Schedule:
    schedule = Schedule(thrown, rules)
    schedule.play()
    schedule.settle()
    return schedule


@settings(max_examples=120, deadline=None)
@given(schedules)
def test_every_saga_ends_once_faults_stop(thrown: bytes) -> None:
    """2, 4, 5, 7, 11: World and Schedule check replay, answers and commands at each step."""
    schedule = played(thrown)
    counts = schedule.world.tally.counts
    ended = counts["finished", "checkout", "completed"] + counts["finished", "checkout", "aborted"]
    assert counts["started", "checkout"] == ended == len(schedule.world.engine.state.finished)
    for key in counts:
        assert key[0] != "faulted" or key[1].startswith("refused_")


@settings(max_examples=120, deadline=None)
@given(schedules)
def test_what_services_hold_is_what_the_outcomes_say(thrown: bytes) -> None:
    """6, 7: COMPLETED has each action once and nothing undone; ABORTED has nothing left."""
    schedule = played(thrown)
    done = Counter(schedule.twin.done)
    assert all(times == 1 for times in done.values())
    state = schedule.world.engine.state
    for card in state.finished.page(0, len(state.finished), 1_000):
        for step in (1, 2, 3):
            acted = done[barrier_key(card.number, step, ACTION)]
            undone = done[barrier_key(card.number, step, COMPENSATION)]
            if card.phase == phases.COMPLETED:
                assert (acted, undone) == (1, 0)
            else:
                assert acted == undone
        if card.saga_id in schedule.told.cancelled:
            assert card.phase == phases.ABORTED


@settings(max_examples=60, deadline=None)
@given(schedules)
def test_compensations_run_in_strict_reverse(thrown: bytes) -> None:
    """6, B11: each step that was commanded and not declined, the last one first, none left out."""
    schedule = played(thrown)
    state = schedule.world.engine.state
    answers: dict[int, list[Answer]] = {}
    turned: dict[int, TurnedBack] = {}
    for _, batch in schedule.world.journal.replay():
        for entry in batch.entries:
            if isinstance(entry, Answer):
                answers.setdefault(entry.number, []).append(entry)
            elif isinstance(entry, TurnedBack):
                turned[entry.number] = entry
    for card in state.finished.page(0, len(state.finished), 1_000):
        told = answers.get(card.number, [])
        undone = [each.step for each in told if each.direction == COMPENSATION]
        if card.phase == phases.COMPLETED:
            assert undone == []
            continue
        back = turned[card.number]
        last = back.step - 1 if back.cause == "declined" else back.step
        assert undone == list(range(last, 0, -1))


@settings(max_examples=40, deadline=None)
@given(schedules)
@example(b"")
def test_a_whole_replay_gives_the_live_state(thrown: bytes) -> None:
    """4: World folds row by row; here the journal is read from its start, in one go."""
    schedule = Schedule(thrown)
    schedule.play()
    state = State(schedule.world.definitions, FinishedInMemory())
    for seq, batch in schedule.world.journal.replay():
        state.wall_ms = batch.wall_ms
        for entry in batch.entries:
            state.apply(entry, seq)
    assert snapshot(state) == snapshot(schedule.world.engine.state)


@settings(max_examples=40, deadline=None)
@given(schedules, st.booleans())
@example(b"", True)
def test_a_new_version_reads_the_sagas_of_before_to_their_end(thrown: bytes, settles: bool) -> None:
    """Their answers stay; while one has not ended the shard does not run: nobody could end it."""
    schedule = played(thrown) if settles else Schedule(thrown)
    if not settles:
        schedule.play()
    before = schedule.world.engine.state
    newer = {
        name: Definition(replace(each.saga, version=each.version + 1), schedule.world.rules.retry)
        for name, each in before.definitions.items()
    }
    state = State(newer, FinishedInMemory())
    for seq, batch in schedule.world.journal.replay():
        state.wall_ms = batch.wall_ms
        for entry in batch.entries:
            state.apply(entry, seq)
    known, found = snapshot(before), snapshot(state)
    assert found["finished"] == known["finished"]
    assert (found["live"], set(state.bygone)) == ([], set(before.live))
    assert (state.number, state.order_counts) == (before.number, before.order_counts)
    if before.live:
        with pytest.raises(Malformed, match=f"{len(before.live)} sagas? of .* ha(s|ve) not ended"):
            state.require_named()
    else:
        state.require_named()


def test_two_hash_seeds_give_the_same_bytes() -> None:
    """DESIGN 3: the engine is deterministic; no set's order reaches an effect."""
    said = set()
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-m", "tests.unit.schedule", "7"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=60,
        )
        said.add(run.stdout)
    assert len(said) == 1


# -- the table -------------------------------------------------------------------------------------


def fact_of(entry: Entry) -> int:
    """Name the fact that an entry is."""
    match entry:
        case Started():
            fact = phases.STARTED
        case Answer():
            ok = phases.STEP_COMPENSATED if entry.direction else phases.STEP_SUCCEEDED
            fact = ok if entry.outcome == wire.OK else phases.STEP_DECLINED
        case AttemptEnded():
            fact = phases.ATTEMPT_ENDED
        case TurnedBack():
            fact = phases.TURNED_BACK
        case Quarantined():
            fact = phases.COMMAND_QUARANTINED
        case RetryAsked():
            fact = phases.RETRY_ASKED
        case Finished():
            completed = entry.phase == phases.COMPLETED
            fact = phases.ALL_SUCCEEDED if completed else phases.ALL_COMPENSATED
        case _:
            raise AssertionError(entry)
    return fact


def moves(world: World) -> set[tuple[int, int, int]]:
    """Give each (phase, fact, phase) that a journal holds."""
    found = set()
    state = State(world.definitions, FinishedInMemory())
    for seq, batch in world.journal.replay():
        for entry in batch.entries:
            if isinstance(entry, OF_NO_SAGA):
                state.apply(entry, seq)
                continue
            before = state.live.get(entry.number)
            was = before.phase if before else NEW
            state.apply(entry, seq)
            after = state.live.get(entry.number)
            now = after.phase if after else state.finished.page(0, 1 << 20, 1 << 20)[-1].phase
            found.add((was, fact_of(entry), now))
    return found


def test_every_transition_of_the_table_is_reached_and_no_other() -> None:
    """A line of the table that nothing reaches would be a promise without a meaning."""
    found = set()
    for path in sorted((HERE / "transcripts").glob("*.txt")):
        player = Player()
        for lines in above(path.read_text()):
            player.play(lines)
        assert player.world is not None
        found |= moves(player.world)
    for seed in range(20):
        found |= moves(played(Random(seed).randbytes(200)).world)
    assert found == {(was, fact, now) for (was, fact), now in TRANSITIONS.items()}


def in_phase(phase: int) -> World:
    """Give a World whose one saga is in a phase, at step 2, or has ended."""
    world = World(Rules(retry=Retry()))
    world.step(*world.came("inventory", "payment", "shipping"), world.start("a"))
    if phase == RUNNING:
        world.drive("a", wire.OK)
    elif phase == COMPENSATING:
        world.drive("a", wire.OK, wire.OK, wire.DECLINED)
    elif phase == phases.COMPLETED:
        world.drive("a", wire.OK, wire.OK, wire.OK)
    else:
        world.drive("a", wire.DECLINED)
    return world


def entry_of(fact: int) -> Entry:
    """Give an entry about step 2 that is a fact."""
    body = b"\x80"
    made: dict[int, Entry] = {
        phases.STARTED: Started(
            1024, "a", "checkout", 1, bytes(16), 1, "USD", 1, 579, 1, 0, {}, body
        ),
        phases.STEP_SUCCEEDED: Answer("a", 2, ACTION, 1, 1024, 1, wire.OK, body),
        phases.STEP_DECLINED: Answer("a", 2, ACTION, 1, 1024, 1, wire.DECLINED, body),
        phases.ATTEMPT_ENDED: AttemptEnded(1024, 2, ACTION, 1, "failed", ""),
        phases.TURNED_BACK: TurnedBack(1024, 2, "cancelled", "x"),
        phases.STEP_COMPENSATED: Answer("a", 2, COMPENSATION, 1, 1024, 1, wire.OK, body),
        phases.RETRY_ASKED: RetryAsked(1024, 2, "x"),
        phases.COMMAND_QUARANTINED: Quarantined(1024, 2, COMPENSATION, 1, 3),
        phases.ALL_SUCCEEDED: Finished(1024, phases.COMPLETED, body),
        phases.ALL_COMPENSATED: Finished(1024, phases.ABORTED, body),
    }
    return made[fact]


@pytest.mark.parametrize("phase", range(RUNNING, len(phases.PHASES)))
@pytest.mark.parametrize("fact", range(len(phases.FACTS)))
def test_what_the_table_does_not_allow_stops_the_process(phase: int, fact: int) -> None:
    """B14 and others: such an entry leaves the saga untouched."""
    if (phase, fact) in TRANSITIONS:
        return
    state = in_phase(phase).engine.state
    before = snapshot(state)
    with pytest.raises((InvariantBroken, KeyError)):  # one that ended is not there any more
        state.apply(entry_of(fact), 99)
    assert snapshot(state) == before


def test_a_final_answer_is_the_same_after_a_restart() -> None:
    """2: the card that the journal gives is the one that answered."""
    world = in_phase(phases.COMPLETED)
    card = world.engine.state.finished.find("a")
    assert isinstance(card, Card)
    world.restart()
    effects = world.step(world.start("a"))
    assert effects.replies[CLIENT][0].body == card.answer
