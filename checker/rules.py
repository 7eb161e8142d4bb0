"""Rules: the twelve invariants by their numbers in the proof, and the judgement over all. Pure."""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from checker.effects import (
    effects_have_commands,
    money_adds_up,
    shipments_are_single,
    stock_adds_up,
)
from checker.evidence import Evidence
from checker.faults import faults_really_happened
from checker.journals import (
    counts_agree,
    ends_are_right,
    entries_are_lawful,
    journals_are_whole,
)
from checker.starts import acknowledged_starts, everything_ends, final_answers
from checker.verdict import KEPT, Case, Told, Verdict


class Invariant(NamedTuple):
    """One of the twelve.

    Args:
        name: in a few words.
        rule: says what is wrong with a case.
        of_sagas: it needs every saga's whole story.
    """

    name: str
    rule: Callable[[Case, Told], None]
    of_sagas: bool = True


INVARIANTS: Final = {
    1: Invariant("acknowledged starts", acknowledged_starts),
    2: Invariant("final answers", final_answers),
    3: Invariant("journals whole", journals_are_whole, False),
    4: Invariant("lawful entries", entries_are_lawful),
    5: Invariant("everything ends", everything_ends),
    6: Invariant("right ends", ends_are_right),
    7: Invariant("effects and commands", effects_have_commands),
    8: Invariant("stock", stock_adds_up),
    9: Invariant("money", money_adds_up),
    10: Invariant("shipments", shipments_are_single),
    11: Invariant("counts", counts_agree),
    12: Invariant("faults happened", faults_really_happened, False),
}


def judge(
    evidence: Evidence, numbers: Iterable[int] = INVARIANTS, kept: int = KEPT
) -> list[Verdict]:
    """Judge evidence.

    Args:
        evidence: of a cluster that stands still.
        numbers: of the invariants that are asked for.
        kept: findings of each that are kept; the others are counted.

    Returns:
        A verdict for each number, in order.
    """
    case = Case(evidence)
    unread = [journal.shard for journal in evidence.journals if journal.unread]
    verdicts = []
    for number in sorted(set(numbers)):
        invariant = INVARIANTS[number]
        told = Told(kept)
        if invariant.of_sagas and unread:
            told.cannot(f"journal {unread[0]} cannot be read to its end")
        else:
            invariant.rule(case, told)
        if invariant.of_sagas and case.unplanned:
            names = ", ".join(sorted(case.unplanned))
            told.cannot(f"the configuration names no such definition: {names}")
        verdicts.append(told.verdict(number, invariant.name))
    return verdicts
