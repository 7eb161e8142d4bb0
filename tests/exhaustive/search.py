"""Search: every state that a case has, breadth first, each judged; the shortest way to a wrong one.

A search that reaches the end also looks back: from every state some state in which everything is
finished can be reached without another fault. So there is no dead end and no live-lock.
"""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from msgspec import Struct

from sagacity.errors import InvariantBroken
from tests.exhaustive.cases import FAULT_BITS, FAULTS, Wrong
from tests.exhaustive.fronts import BASE_BITS, BUDGET_BITS, FRONT_AT, Move, unpack
from tests.exhaustive.model import Model
from tests.exhaustive.rules import RULES, SOMETIMES, judge
from tests.exhaustive.service_table import Base

LIVE_LOCK: Final = "5  once faults stop everything finishes"
DEAD_END: Final = "5  where nothing can happen any more everything is finished: it is not"
B6_FAILED: Final = SOMETIMES[7]
B13: Final = SOMETIMES[11]
EVERYTHING: Final = 1 << 30  # depth
TELL_EVERY: Final = 50_000  # states
_BASES: Final = (1 << 3 * BASE_BITS) - 1
_GUARDS: Final = sum(4 << FAULT_BITS * kind for kind in range(len(FAULTS)))
_BUDGET: Final = (1 << BUDGET_BITS) - 1


class Violation(Struct, frozen=True):
    """What is wrong, and the shortest way there.

    Args:
        text: names the rule.
        moves: for people.
        choices: the same for `replay`: the place of each move among all, sorted by their texts.
    """

    text: str
    moves: list[str]
    choices: list[int]

    def way(self) -> str:
        """Give the choices as the command line takes them."""
        return ".".join(map(str, self.choices))


class Report(Struct, kw_only=True):
    """What a search has seen.

    Args:
        case: its name.
        states: that were judged.
        transitions: out of those that were gone on from.
        depth: of the deepest.
        whole: whether there was nothing left.
        finished: states in which everything is finished.
        judged: rule -> states in which it had something to judge.
        probed: probe -> stills of the shard that were asked.
        sometimes: what was to be reached -> how often it was.
        tables: how much of what the tables hold.
        seconds: of CPU that it took.
        violation: what ended it, or None.
    """

    case: str
    states: int = 0
    transitions: int = 0
    depth: int = 0
    whole: bool = False
    finished: int = 0
    judged: dict[str, int] = {}
    probed: dict[str, int] = {}
    sometimes: dict[str, int] = {}
    tables: dict[str, int] = {}
    seconds: float = 0.0
    violation: Violation | None = None


class Search:
    """One search.

    Args:
        model: of what.
        depth: moves from the beginning, at most.
        tell: called with a line now and then.
        stands_in: a state stands for those that can do no more than it; else each is gone into.
    """

    def __init__(
        self,
        model: Model,
        depth: int = EVERYTHING,
        tell: Callable[[str], None] | None = None,
        *,
        stands_in: bool = True,
    ) -> None:
        self._stands_in = stands_in
        self._model = model
        self._depth = depth
        self._tell = tell
        self._states: list[int] = []
        self._places: dict[int, int] = {}  # of states in `_states`
        # Places of states that differ in faults left and old letters alone, with these letters.
        self._likes: dict[int, list[tuple[int, int]]] = {}
        self._parents = array("I")
        self._free = array("I")  # states that lead on without another fault, for each state
        self._ends = array("Q")  # where those of a state end
        self._judged: Counter[int] = Counter()
        self._reached: Counter[int] = Counter()
        self._verdicts: dict[tuple[int, tuple[bool, ...], int], tuple[int, int]] = {}
        self._finished = 0
        self._transitions = 0

    def run(self) -> Report:
        """Search until nothing is left, the depth is reached, or something is wrong."""
        began = time.process_time()
        report = Report(case=self._model.case.name)
        at = -1
        try:
            self._add(self._model.root(), 0)
            level_ends = 1
            for at, state in enumerate(self._states):  # grows meanwhile
                if at == level_ends:
                    level_ends = len(self._states)
                    report.depth += 1
                if report.depth == self._depth:
                    break
                self._go_on(state, at)
                if self._tell is not None and at % TELL_EVERY == 0:
                    self._tell(f"{at} of {len(self._states)} states, depth {report.depth}")
            else:
                report.whole = True
                self._look_back()
        except (Wrong, InvariantBroken) as wrong:
            place = wrong.place if isinstance(wrong, _WrongAt) else max(at, 0)
            report.violation = self._violation(place, str(wrong))
        report.seconds = time.process_time() - began
        self._fill(report)
        return report

    def _go_on(self, state: int, at: int) -> None:
        """Make every move that a state has."""
        model, places = self._model, self._places
        front, budget, bases = state >> FRONT_AT, state & _BUDGET, state >> BUDGET_BITS & _BASES
        rest = state & (1 << FRONT_AT) - 1 ^ budget
        left, reached, free = model.left, self._reached, self._free
        moved = False
        for fault in model.may_happen(budget):
            for move in model.of_front(front, fault):
                budget_left = left[move.cost][budget]
                if budget_left < 0:
                    continue
                moved = True
                self._transitions += 1
                to = move.front << FRONT_AT | rest | budget_left
                if move.reached:
                    reached[move.reached] += 1
                place = places.get(to)
                if place is None:
                    place = self._add(to, at)
                if move.plain:
                    free.append(place)
        for service in range(3):
            shift = BASE_BITS * (2 - service)
            base = bases >> shift & (1 << BASE_BITS) - 1
            for move in model.of_service(front, service, base):
                moved = True
                self._transitions += 1
                others = bases ^ (base ^ move.base) << shift
                to = move.front << FRONT_AT | others << BUDGET_BITS | budget
                if move.reached:
                    reached[move.reached] += 1
                place = places.get(to)
                if place is None:
                    place = self._add(to, at)
                if move.plain:
                    free.append(place)
        self._ends.append(len(free))
        if not moved and not model.is_final(front):
            raise Wrong(DEAD_END)

    def _add(self, state: int, parent: int) -> int:
        """Take a state that nobody has seen, and judge it; give its place.

        One that differs from it in having more faults left, or more old letters, stands for it.
        """
        at, budget = state >> FRONT_AT, state & _BUDGET
        core, old = self._model.split(at)
        like = core << FRONT_AT | state & (1 << FRONT_AT) - 1 ^ budget
        likes = self._likes.setdefault(like, [])
        for place, old_there in likes if self._stands_in else ():
            more = (self._states[place] & _BUDGET | _GUARDS) - budget & _GUARDS == _GUARDS
            if more and not old & ~old_there:
                self._places[state] = place
                return place
        place = self._places[state] = len(self._states)
        likes.append((place, old))
        self._states.append(state)
        self._parents.append(parent)
        front = self._model.fronts[at]
        key = (front.still, front.knows, state >> BUDGET_BITS & _BASES)
        verdict = self._verdicts.get(key)
        if verdict is None:
            try:
                verdict = judge(
                    self._model.shard.stills[front.still], self._bases(state), front.knows
                )
            except Wrong as wrong:
                raise _WrongAt(place, str(wrong)) from None
            self._verdicts[key] = verdict
        self._judged[verdict[0]] += 1
        if verdict[1]:
            self._reached[verdict[1]] += 1
        self._finished += self._model.is_final(at)
        return place

    def seen(self) -> set[tuple[Any, ...]]:
        """Give what the shard and the databases say in all states that were judged."""
        found = set()
        for state in self._states:
            front = self._model.fronts[state >> FRONT_AT]
            still = self._model.shard.stills[front.still]
            bases = tuple(base.sagas for base in self._bases(state))
            found.add((still.sagas, still.workers, front.knows, bases))
        return found

    def _bases(self, state: int) -> list[Base]:
        tables = self._model.services
        places = unpack(state)[1]
        return [table.bases[at] for table, at in zip(tables, places, strict=True)]

    def _look_back(self) -> None:
        """Check that from every state everything can still finish."""
        fronts = self._model.fronts
        ends, free = self._ends, self._free
        finishes = bytearray(all(fronts[s >> FRONT_AT].knows) for s in self._states)
        pending = [at for at in range(len(finishes) - 1, -1, -1) if not finishes[at]]
        while pending:
            later = []
            for at in pending:
                if any(finishes[to] for to in free[ends[at - 1] if at else 0 : ends[at]]):
                    finishes[at] = 1
                else:
                    later.append(at)
            if len(later) == len(pending):
                text = (
                    f"5  once faults stop everything finishes: from {len(later)} states it cannot"
                )
                raise _WrongAt(later[-1], text)
            pending = later

    def _violation(self, at: int, text: str) -> Violation:
        way = [at]
        while way[-1]:
            way.append(self._parents[way[-1]])
        states = [self._states[each] for each in reversed(way)]
        moves, choices = [], []
        for here, there in pairwise(states):
            options = sorted(self._model.next(here), key=_text_of)
            chosen = next(i for i, (to, _) in enumerate(options) if to == there)
            moves.append(options[chosen][1].told())
            choices.append(chosen)
        return Violation(text, moves, choices)

    def _fill(self, report: Report) -> None:
        model = self._model
        report.states = len(self._states)
        report.transitions = self._transitions
        report.finished = self._finished
        report.judged = _by_bit(self._judged, RULES)
        report.sometimes = _by_bit(self._reached, SOMETIMES)
        report.sometimes[B13] = model.absorbed["refused"]
        report.sometimes[B6_FAILED] = model.absorbed["failed"]
        report.probed = dict(model.probed)
        report.tables = {
            "fronts": len(model.fronts),
            "stills of the shard": len(model.shard.stills),
            "steps of the engine": model.shard.steps,
            "databases": sum(len(table.bases) for table in model.services),
            "commands performed": sum(table.steps for table in model.services),
        }


class _WrongAt(Wrong):
    """A rule is broken in a state that has a place already."""

    def __init__(self, place: int, text: str) -> None:
        super().__init__(text)
        self.place = place


def replay(model: Model, choices: Sequence[int]) -> Iterator[str]:
    """Give the moves of a violation one by one; what is wrong in the end is raised.

    Raises:
        Wrong, InvariantBroken: as the search found it.
        IndexError: there is no such move.
    """
    state = model.root()
    for chosen in choices:
        state, move = sorted(model.next(state), key=_text_of)[chosen]
        yield move.told()
        front, places, _ = unpack(state)
        bases = [table.bases[at] for table, at in zip(model.services, places, strict=True)]
        here = model.fronts[front]
        judge(model.shard.stills[here.still], bases, here.knows)
    if not model.next(state) and not model.is_final(unpack(state)[0]):
        raise Wrong(DEAD_END)


def _text_of(option: tuple[int, Move]) -> str:
    return option[1].told()


def _by_bit(counted: Mapping[int, int], names: Sequence[str]) -> dict[str, int]:
    return {
        name: sum(count for bits, count in counted.items() if bits >> bit & 1)
        for bit, name in enumerate(names)
    }
