"""Shrink: the shortest plan found that still goes wrong in the same way.

Faults, weather and requests are left out, in halves, then quarters, then one by one, as long as the
same invariant breaks (Zeller's delta debugging). Bounded by a number of runs.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from msgspec import structs

from tests.simulation.plan import Plan
from tests.simulation.run import Outcome, run

RUNS_MAX = 400

T = TypeVar("T")


def kind_of(outcome: Outcome) -> str:
    """Give which invariant broke first; empty where none did."""
    return outcome.violations[0].partition(":")[0] if outcome.violations else ""


def shrink(plan: Plan, play: Callable[[Plan], Outcome] = run) -> Plan:
    """Give the shortest plan found that breaks the same invariant."""
    broken = kind_of(play(plan))
    left = RUNS_MAX

    def breaks(candidate: Plan) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and kind_of(play(candidate)) == broken

    for kind in list(plan.weather):
        fairer = {name: weather for name, weather in plan.weather.items() if name != kind}
        candidate = structs.replace(plan, weather=fairer)
        if breaks(candidate):
            plan = candidate
    before = None
    while before != plan and left > 0:
        before = plan
        kept = plan
        plan = structs.replace(
            plan,
            faults=_fewer(plan.faults, lambda some: breaks(structs.replace(kept, faults=some))),
        )
        kept = plan
        plan = structs.replace(
            plan, asks=_fewer(plan.asks, lambda some: breaks(structs.replace(kept, asks=some)))
        )
    return plan


def _fewer(items: Sequence[T], breaks: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    kept = tuple(items)
    size = max(1, len(kept) // 2)
    while kept:
        at = 0
        while at < len(kept):
            candidate = kept[:at] + kept[at + size :]
            if breaks(candidate):
                kept = candidate
            else:
                at += size
        if size == 1:
            return kept
        size //= 2
    return kept
