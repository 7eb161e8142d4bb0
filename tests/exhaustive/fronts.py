"""Fronts: what the shard and the letters are, and how a state is packed. Pure.

A state is one integer: a front, the bases of the three services, the faults left.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from tests.exhaustive.cases import FAULT_BITS, FAULTS
from tests.exhaustive.letters import ANSWER, COMMAND, Letter

# What became of a worker.
UP: Final = 0
DEAD: Final = 1  # and the shard has not seen it
GONE: Final = 2

BASE_BITS: Final = 12
BUDGET_BITS: Final = FAULT_BITS * len(FAULTS)
FRONT_AT: Final = BUDGET_BITS + 3 * BASE_BITS
BASE_MASK: Final = (1 << BASE_BITS) - 1
BUDGET_MASK: Final = (1 << BUDGET_BITS) - 1


Words = tuple[str | Letter, ...]


class Front(NamedTuple):
    """All of a state but databases and faults left.

    Args:
        still: of the shard's table.
        letters: that travel, sorted by their place in the model's list.
        workers: what became of each service's.
        knows: for each saga, whether its client has the final answer.
    """

    still: int
    letters: tuple[int, ...]
    workers: tuple[int, ...]
    knows: tuple[bool, ...]


class Move(NamedTuple):
    """Something that can happen.

    Args:
        front: that it leads to.
        base: that its service's database becomes; -1 where none changes.
        cost: which row of `Model.left` says what it leaves of the faults; 0 is no fault.
        reached: what it shows, one bit each (`rules.Reached`).
        plain: it costs no fault and needs no old letter: what stands for less can do it too.
        words: for people; `told` joins them.
    """

    front: int
    base: int
    cost: int
    reached: int
    plain: bool
    words: Words

    def told(self) -> str:
        """Say what happens."""
        return "".join(each if isinstance(each, str) else each.told() for each in self.words)


class Post:
    """The letters of a search, each with a number; tuples of these are sorted."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self._numbers: dict[Letter, int] = {}

    def number(self, letter: Letter) -> int:
        """Give a letter's number."""
        found = self._numbers.get(letter)
        if found is None:
            found = self._numbers[letter] = len(self.letters)
            self.letters.append(letter)
        return found

    def plus(self, letters: tuple[int, ...], letter: Letter) -> tuple[int, ...]:
        """Give letters with another one; old ones are a set."""
        added = self.number(letter)
        if not letter.latest and added in letters:
            return letters
        return tuple(sorted((*letters, added)))

    def aged(self, letters: tuple[int, ...], sagas: frozenset[int]) -> tuple[int, ...]:
        """Give letters as they are when the current command of sagas is another."""
        if not sagas or not letters:
            return letters
        old: set[int] = set()
        others = []
        for each in letters:
            letter = self.letters[each]
            if letter.saga in sagas:
                old.add(self.number(letter._replace(latest=False)) if letter.latest else each)
            else:
                others.append(each)
        return tuple(sorted((*old, *others)))

    def split(self, front: Front) -> tuple[Front, int]:
        """Give a front without what need not arrive, and that as bits."""
        old = {each for each in front.letters if _need_not_arrive(self.letters[each])}
        if not old:
            return front, 0
        return front._replace(letters=but(front.letters, old)), sum(1 << each for each in old)

    def wants_old(self, words: Words) -> bool:
        """Whether a move is about a letter that need not arrive."""
        return any(_need_not_arrive(each) for each in words if isinstance(each, Letter))


def _need_not_arrive(letter: Letter) -> bool:
    return not letter.latest and letter.kind in (COMMAND, ANSWER)


def pack(front: int, bases: Iterable[int], budget: int) -> int:
    """Pack a state."""
    packed = front
    for base in bases:
        packed = packed << BASE_BITS | base
    return packed << BUDGET_BITS | budget


def unpack(state: int) -> tuple[int, list[int], int]:
    """Give a state's front, bases and faults left."""
    bases = [state >> BUDGET_BITS + BASE_BITS * at & BASE_MASK for at in (2, 1, 0)]
    return state >> FRONT_AT, bases, state & BUDGET_MASK


def spent(budget: int, kinds: Sequence[int]) -> int:
    """Give what faults of these kinds leave of a budget; -1 where there are too few."""
    for kind in kinds:
        if not budget >> FAULT_BITS * kind & 3:
            return -1
        budget -= 1 << FAULT_BITS * kind
    return budget


def without(letters: tuple[int, ...], one: int) -> tuple[int, ...]:
    """Give letters without one of them."""
    at = letters.index(one)
    return letters[:at] + letters[at + 1 :]


def but(letters: tuple[int, ...], gone: set[int]) -> tuple[int, ...]:
    """Give letters without some."""
    return tuple(each for each in letters if each not in gone)


def with_status(workers: tuple[int, ...], at: int, status: int) -> tuple[int, ...]:
    """Give what became of the workers when one is so."""
    return (*workers[:at], status, *workers[at + 1 :])
