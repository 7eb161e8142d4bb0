"""Rules: what must hold in every state, and what must be reached sometimes. Pure.

`judge` looks at a shard and its three databases, `probe` at what a shard answers to requests that
must change nothing. The numbers are those of the invariants and anomalies in docs/proof.
"""

from collections.abc import Sequence
from typing import Final

from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION
from sagacity.wire import DECLINED, OK
from shard.phases import ABORTED, COMPENSATING, COMPLETED, NEW
from shard.sagas import COMPENSATED, STEP_DECLINED, SUCCEEDED, UNKNOWN, UNTOUCHED
from tests.exhaustive.cases import SAGA_IDS, Wrong
from tests.exhaustive.letters import Letter
from tests.exhaustive.service_table import Base, Performed, StepFacts
from tests.exhaustive.shard_table import (
    ASK,
    ASK_OTHER,
    BEGAN,
    CANCEL,
    READ,
    Key,
    SagaFacts,
    ShardTable,
    Still,
    Turn,
)

# Invariants of a state; each says in how many states it had something to judge.
RULES: Final = (
    "2  a client that knows the end was told it by a final saga",
    "6  completed: every step has taken effect, and nothing is undone",
    "6  aborted: what was commanded and not declined is compensated",
    "6  compensations run in strict reverse",
    "6  nothing is compensated before the saga has turned back",
    "7  every effect has a command that the journal knows",
    "7  what the journal says of a step, its service's barrier says",
    "8  stock: an aborted saga holds none, a completed one has its own",
    "9  money: an aborted saga has paid nothing, a completed one its price",
    "10 shipments: one for a completed saga, none live for an aborted one",
    "B14 a saga that is cancelled is not completed",
)

# What must change nothing, asked in every still of the shard's table; the last one, of every
# command that is performed.
PROBES: Final = (
    "A2  a repeat of a running saga waits for the same outcome",
    "A3  the same id with other content: code 22",
    "A11 a finished id gives its answer and never runs again",
    "B14 a cancel after the end: code 22",
    "B14 an accepted cancel repeated: the same answer",
    "E1  a command of an older epoch is refused, which moves nothing",
)
FENCED: Final = PROBES[5]

SOMETIMES: Final = (
    "A1  a shard crashes with a saga that has started",
    "A2  a client asks again and gets the answer that was lost",
    "B1  a command comes twice: the stored reply answers",
    "B2  a command is lost",
    "B3  a compensation overtakes its action",
    "B4  an action comes after its compensation and is refused",
    "B6  a success of an older attempt or epoch counts",
    "B6  a failure of an older attempt decides nothing",
    "B7  a success comes after turning back",
    "B10 what timed out had taken effect, and is undone",
    "B11 an unknown step is compensated",
    "B13 a refusal moves nothing",
    "B14 a cancel overtakes the last success",
    "B15 a stuck compensation succeeds in the end",
    "B17 an attempt comes after the decline and has no effect",
    "B18 what was declined or never came is compensated: nothing is undone",
    "    a suspect is run alone",
    "    a suspect is not wanted any more",
)


NO_OUTCOME: Final = "B6, B13 a refusal, or a failure of an older attempt, moves nothing"


class Reached:
    """Bits of what a move or a state shows, in the order of SOMETIMES."""

    A1, A2, B1, B2, B3, B4, B6, B6_FAILED, B7, B10, B11, B13, B14, B15, B17, B18, ALONE, STALE = (
        1 << bit for bit in range(len(SOMETIMES))
    )


def judge(still: Still, bases: Sequence[Base], knows: Sequence[bool]) -> tuple[int, int]:
    """Judge a state.

    Returns:
        Which of RULES had something to judge, and what the state shows (`Reached`).

    Raises:
        Wrong: a rule is broken.
    """
    judged = reached = 0
    for saga, facts in enumerate(still.sagas):
        steps = [base.sagas[saga] for base in bases]
        name = SAGA_IDS[saga]
        if knows[saga]:
            judged |= 1 << 0
            if not facts.is_final:
                raise Wrong(f"{RULES[0]}: {name} is not")
        judged |= _ends(name, facts, steps)
        judged |= _compensations(name, facts, steps)
        judged |= _effects(name, facts, steps)
        if facts.cancelled:
            judged |= 1 << 10
            if facts.phase == COMPLETED:
                raise Wrong(f"{RULES[10]}: {name} is")
        if facts.phase == COMPENSATING and any(
            state == UNKNOWN and step.stands
            for state, step in zip(facts.states, steps, strict=True)
        ):
            reached |= Reached.B10
    return judged, reached


def _ends(name: str, facts: SagaFacts, steps: list[StepFacts]) -> int:
    if not facts.is_final:
        return 0
    completed = facts.phase == COMPLETED
    for rule, step in zip((7, 8, 9), steps, strict=True):
        if step.stands != completed:
            raise Wrong(f"{RULES[rule]}: of {name} stands {step.stands}")
    for at, step in enumerate(steps, 1):
        if completed and (step.action, step.compensation) != (OK, None):
            raise Wrong(f"{RULES[1]}: step {at} of {name} is {step}")
        if not completed and step.action == OK and step.compensation != OK:
            raise Wrong(f"{RULES[2]}: step {at} of {name} is {step}")
    return 1 << (1 if completed else 2) | 1 << 7 | 1 << 8 | 1 << 9


def _compensations(name: str, facts: SagaFacts, steps: list[StepFacts]) -> int:
    undone = [at for at, step in enumerate(steps) if step.compensation is not None]
    if not undone:
        return 0
    if facts.phase not in (COMPENSATING, ABORTED):
        raise Wrong(f"{RULES[4]}: step {undone[0] + 1} of {name} is")
    for at in range(undone[0] + 1, len(steps)):
        open_here = facts.states and facts.states[at] in (UNKNOWN, SUCCEEDED)
        if steps[at].compensation is None and (steps[at].action == OK or open_here):
            raise Wrong(f"{RULES[3]}: step {undone[0] + 1} of {name} before step {at + 1}")
    return 1 << 3 | 1 << 4


def _effects(name: str, facts: SagaFacts, steps: list[StepFacts]) -> int:
    judged = 0
    for at, step in enumerate(steps):
        if facts.is_final:
            continue
        known = facts.states[at] if facts.states else UNTOUCHED
        if step.action is not None or step.compensation is not None or step.stands:
            judged |= 1 << 5
            if known == UNTOUCHED:
                raise Wrong(f"{RULES[5]}: step {at + 1} of {name} has none")
        if known in (SUCCEEDED, STEP_DECLINED, COMPENSATED):
            judged |= 1 << 6
            said: tuple[int | None, ...] = (step.action,)
            wanted: tuple[int | None, ...] = (OK if known == SUCCEEDED else DECLINED,)
            if known == COMPENSATED:
                said, wanted = (step.compensation, step.stands), (OK, 0)
            if said != wanted:
                raise Wrong(f"{RULES[6]}: step {at + 1} of {name} is {step}")
    return judged


def probe(shard: ShardTable, at: int, probed: dict[str, int]) -> None:
    """Ask a shard what must change nothing, and count it.

    Raises:
        Wrong: it changes something, or the answer is another.
    """
    still = shard.stills[at]
    for saga, facts in enumerate(still.sagas):
        if facts.phase == NEW:
            continue
        _probe(shard, at, (ASK_OTHER, saga), 22, probed, PROBES[1])
        if facts.is_final:
            _probe(shard, at, (ASK, saga), None, probed, PROBES[2], facts.answer)
            if not facts.cancelled:
                _probe(shard, at, (CANCEL, saga), 22, probed, PROBES[3])
        elif facts.awaited:
            _probe(shard, at, (ASK, saga), -1, probed, PROBES[0])
        if facts.cancelled:
            _probe(shard, at, (CANCEL, saga), None, probed, PROBES[4])


def _probe(
    shard: ShardTable,
    at: int,
    key: Key,
    code: int | None,
    probed: dict[str, int],
    name: str,
    body: bytes | None = None,
) -> None:
    """`code` is -1 where nothing is to be answered yet."""
    turn = shard.turn(at, key)
    said = [(code_said, body if body is None else said) for _, code_said, said in turn.replies]
    if turn.still != at or turn.wrote or said != ([] if code == -1 else [(code, body)]):
        raise Wrong(f"{name}: {key} gives {turn}")
    probed[name] += 1


def reached_by_service(letter: Letter, done: Performed, before: Base, after: Base) -> int:
    """Give what a command shows that a service performs."""
    was = before.sagas[letter.saga]
    reached = 0
    if not done.first and done.outcome in (OK, DECLINED) and before == after:
        reached |= Reached.B1
        if letter.direction == ACTION and done.outcome == DECLINED and not letter.latest:
            reached |= Reached.B17
    if letter.direction == COMPENSATION and done.first and was.action in (None, DECLINED):
        reached |= Reached.B18
        if was.action is None:
            reached |= Reached.B3
    if done.outcome == wire.REFUSED_COMPENSATED:
        reached |= Reached.B4
    return reached


def reached_by_shard(before: Still, after: Still, key: Key, turn: Turn) -> int:
    """Give what an event shows that a shard takes."""
    kind, about = key
    reached = 0
    if kind == READ:
        was = before.sagas[about.saga]
        if about.outcome == OK and turn.wrote:
            if not about.latest:
                reached |= Reached.B6
            if was.phase == COMPENSATING and about.direction == ACTION:
                reached |= Reached.B7
        if was.stuck and not after.sagas[about.saga].stuck:
            reached |= Reached.B15
    if kind == BEGAN:
        reached |= Reached.ALONE if turn.wanted else Reached.STALE
    for letter in turn.sent:
        facts = after.sagas[letter.saga]
        if letter.direction == COMPENSATION and facts.states[letter.step - 1] == UNKNOWN:
            reached |= Reached.B11
    return reached
