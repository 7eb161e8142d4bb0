"""Planted bugs: what a search must find. Each puts another component in the place of ours.

Nothing of this is in production code, and no switch leads there.
"""

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from sagacity.barrier import TOMBSTONE, Barrier
from sagacity.ids import ACTION, COMPENSATION, barrier_key
from sagacity.slots import slot_of
from sagacity.wire import DECLINED, Answer, Command
from shard.effects import Effects
from shard.engine import Engine
from shard.entries import Entry, TurnedBack
from shard.events import Instant
from shard.finished import FinishedInMemory
from shard.outcomes import Outcomes
from shard.pools import Worker
from shard.sagas import OUT, SUCCEEDED, UNKNOWN, UNTOUCHED, Card, Live, Tombstone
from shard.state import State
from tests.exhaustive.cases import Case
from tests.exhaustive.model import Model, Tables
from tests.exhaustive.shard_table import Parts

CASE: Final = Case(name="planted", crashes=1, losses=1, duplicates=1, cancels=1, declines=(1, 2, 3))


NO_FAULTS: Final = Case(name="planted", declines=(1, 2, 3))
DEPTH: Final = 40  # to the end of NO_FAULTS; of CASE no bug needs more than ten


class _Folding(State):
    """Takes in what it overrides from the journal, too."""

    def apply(self, entry: Entry, seq: int) -> None:
        if isinstance(entry, TurnedBack):
            self.turned_back(entry, seq)
        elif isinstance(entry, Answer):
            self.answered(entry, seq)
        else:
            super().apply(entry, seq)


class ForwardOrder(_Folding):
    """Compensates the first step first."""

    def turned_back(self, entry: TurnedBack, seq: int) -> None:
        super().turned_back(entry, seq)
        _point_forward(self.live[entry.number])

    def answered(self, entry: Answer, seq: int) -> None:
        super().answered(entry, seq)
        if entry.direction == COMPENSATION:
            _point_forward(self.live[entry.number])


def _point_forward(saga: Live) -> None:
    open_steps = [at for at, state in enumerate(saga.states) if state in (UNKNOWN, SUCCEEDED)]
    saga.step = open_steps[0] + 1 if open_steps else 0


class UnknownForgotten(_Folding):
    """Takes a step of which nothing is known for one that never happened."""

    def turned_back(self, entry: TurnedBack, seq: int) -> None:
        states = self.live[entry.number].states
        for at, state in enumerate(states):
            if state == UNKNOWN:
                states[at] = UNTOUCHED
        super().turned_back(entry, seq)


class WrongNo(FinishedInMemory):
    """Says of a finished id that it is new."""

    def find(self, saga_id: str) -> Card | Tombstone | None:
        return None


class OldFailureDecides(Outcomes):
    """Takes a failure of any attempt for one of the current."""

    def _is_latest(self, saga: Live, got: Answer) -> bool:
        return True


class RefusalIsOutcome(Outcomes):
    """Takes a refusal for a failure."""

    def _refused(
        self, worker: Worker, saga: Live, got: Answer, current: bool, now: Instant, fx: Effects
    ) -> None:
        if current and saga.where == OUT:
            self._course.attempt_ended(saga, "failed", "refused", now, fx)


class DeafToCompensations(Outcomes):
    """Never hears that a compensation has succeeded."""

    def _compensation_succeeded(self, saga: Live, got: Answer, now: Instant, fx: Effects) -> None:
        pass


def _deaf(engine: Engine) -> None:
    engine._outcomes = DeafToCompensations(engine._course)


def _with_old_failures(engine: Engine) -> None:
    engine._outcomes = OldFailureDecides(engine._course)


def _with_refusals(engine: Engine) -> None:
    engine._outcomes = RefusalIsOutcome(engine._course)


def _never_armed(saga: Live, at_ns: int) -> None:
    """Forget a timer."""


def _without_timers(engine: Engine) -> None:
    engine._course.arm = _never_armed  # type: ignore[method-assign]  # planted


class NoDedupe(Barrier):
    """Forgets that an action was done."""

    def answer(self, command: Command, *, alone: bool = False) -> Answer:
        if command.direction == ACTION and not _is_fenced(self, command):
            _delete(self, command, ACTION)
        return super().answer(command, alone=alone)


class NoTombstone(Barrier):
    """Keeps nothing of a compensation whose action never came."""

    def answer(self, command: Command, *, alone: bool = False) -> Answer:
        answer = super().answer(command, alone=alone)
        if _outcome(self, command) == TOMBSTONE:
            _delete(self, command, ACTION)
            _delete(self, command, COMPENSATION)
        return answer


class DeclineForgotten(Barrier):
    """Keeps nothing of a decline."""

    def answer(self, command: Command, *, alone: bool = False) -> Answer:
        answer = super().answer(command, alone=alone)
        if _outcome(self, command) == DECLINED:
            _delete(self, command, ACTION)
        return answer


class ActionAfterAll(Barrier):
    """Lets an action in though its compensation is there."""

    def answer(self, command: Command, *, alone: bool = False) -> Answer:
        late = command.direction == ACTION and _outcome(self, command) == TOMBSTONE
        if late and not _is_fenced(self, command):
            _delete(self, command, ACTION)
            _delete(self, command, COMPENSATION)
        return super().answer(command, alone=alone)


class NoFence(Barrier):
    """Knows no epochs."""

    def answer(self, command: Command, *, alone: bool = False) -> Answer:
        self._fence.clear()
        return super().answer(command, alone=alone)


def _is_fenced(barrier: Barrier, command: Command) -> bool:
    return command.epoch < barrier._fence.get(slot_of(command.saga_id), 0)


def _outcome(barrier: Barrier, command: Command) -> int | None:
    key = barrier_key(command.number, command.step, ACTION)
    found: int | None = barrier._rows.execute(
        "SELECT outcome FROM barrier WHERE key = ?", (key,)
    ).get
    return found


def _delete(barrier: Barrier, command: Command, direction: int) -> None:
    key = barrier_key(command.number, command.step, direction)
    barrier._rows.execute("DELETE FROM barrier WHERE key = ?", (key,))


class Bug(Struct, frozen=True):
    """A bug: a model that has it, and the rule that it breaks."""

    make: Callable[[], Model]
    breaks: str


def _of_engine(parts: Parts, breaks: str) -> Bug:
    return Bug(lambda: Model(CASE, Tables(CASE.sagas, parts)), breaks)


def _of_barrier(barrier: type[Barrier], breaks: str) -> Bug:
    return Bug(lambda: Model(CASE, Tables(CASE.sagas, barrier=barrier)), breaks)


BUGS: Final[Mapping[str, Bug]] = {
    "forward_order_compensation": _of_engine(Parts(state=ForwardOrder), "strict reverse"),
    "unknown_not_compensated": _of_engine(
        Parts(state=UnknownForgotten), "an aborted saga holds none"
    ),
    "filter_says_wrong_no": _of_engine(Parts(finished=WrongNo), "never runs again"),
    "old_timeout_decides": _of_engine(Parts(mend=_with_old_failures), "moves nothing"),
    "refusal_is_outcome": _of_engine(Parts(mend=_with_refusals), "moves nothing"),
    "compensation_unheard": Bug(
        lambda: Model(NO_FAULTS, Tables(NO_FAULTS.sagas, Parts(mend=_deaf))),
        "once faults stop everything finishes",
    ),
    "timer_lost": _of_engine(Parts(mend=_without_timers), "in the wheel"),
    "no_dedupe": _of_barrier(NoDedupe, "its service's barrier says"),
    "no_tombstone": _of_barrier(NoTombstone, "at most one effect"),
    "action_after_compensation": _of_barrier(ActionAfterAll, "an aborted saga holds none"),
    "decline_not_stored": _of_barrier(DeclineForgotten, "an aborted saga holds none"),
    "epoch_unchecked_in_service": _of_barrier(NoFence, "older epoch is refused"),
    "send_before_commit": Bug(lambda: Model(CASE, sends_first=True), "the journal knows"),
}
