"""Shrink: the shortest plan found that still goes wrong in the same way.

Faults, weather and requests are left out, in halves, then quarters, then one by one, as long as the
same invariant breaks (Zeller's delta debugging). Bounded by a number of runs.
"""

from collections.abc import Callable

from msgspec import structs

from sagacity.simulation.outcome import Outcome, run
from sagacity.simulation.plan import Plan
from sagacity.simulation.scenario import Scenario

RUNS_MAX = 400


def kind_of(outcome: Outcome) -> str:
    """Give which invariant broke first; empty where none did."""
    return outcome.violations[0].partition(":")[0] if outcome.violations else ""


def shrink(scenario: Scenario, plan: Plan) -> Plan:
    """Give the shortest plan found that breaks the same invariant."""
    broken = kind_of(run(scenario, plan))
    left = RUNS_MAX

    def breaks(candidate: Plan) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and kind_of(run(scenario, candidate)) == broken

    for kind in list(plan.weather):
        fairer = {name: weather for name, weather in plan.weather.items() if name != kind}
        candidate = structs.replace(plan, weather=fairer)
        if breaks(candidate):
            plan = candidate
    before = None
    while before != plan and left > 0:
        before = plan
        plan = _fewer(plan, "faults", breaks)
        plan = _fewer(plan, "asks", breaks)
    return _compact(plan)


def _compact(plan: Plan) -> Plan:
    """Leave out the starts that nobody asks for."""
    wanted = sorted({ask.start for ask in plan.asks})
    asks = [structs.replace(ask, start=wanted.index(ask.start)) for ask in plan.asks]
    starts = tuple(plan.starts[start] for start in wanted)
    return structs.replace(plan, asks=tuple(asks), starts=starts)


def _fewer(plan: Plan, what: str, breaks: Callable[[Plan], bool]) -> Plan:
    """Leave out what can be left out of a tuple of a plan."""
    size = max(1, len(getattr(plan, what)) // 2)
    while True:
        at = 0
        while at < len(kept := getattr(plan, what)):
            candidate = structs.replace(plan, **{what: kept[:at] + kept[at + size :]})
            if breaks(candidate):
                plan = candidate
            else:
                at += size
        if size == 1:
            return plan
        size //= 2
