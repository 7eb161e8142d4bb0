"""Outcome: plays a plan and says what came of it."""

import gc
from collections.abc import Mapping

from msgspec import Struct

from sagacity.simulation.clients import Clients
from sagacity.simulation.cluster import Cluster
from sagacity.simulation.judge import judge
from sagacity.simulation.plan import Plan
from sagacity.simulation.scenario import Scenario
from sagacity.simulation.world import MS, SECOND

BOUND_S = 150  # after the faults, by which everything has finished


class Outcome(Struct, frozen=True):
    """What came of a run.

    Args:
        violations: sentences; none where all held.
        trace: hash of all that was sent.
        figures: how often what happened.
        sim_ms: how long it took, in its own time.
    """

    violations: tuple[str, ...]
    trace: str
    figures: Mapping[str, int]
    sim_ms: int


def run(scenario: Scenario, plan: Plan) -> Outcome:
    """Play a plan to its end.

    Cyclic garbage is collected when the run is over: while it runs there is little of it, and to
    look for it again and again takes 3 % of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return _run(scenario, plan)
    finally:
        if collects:
            gc.enable()


def _run(scenario: Scenario, plan: Plan) -> Outcome:
    cluster = Cluster(scenario, plan)
    try:
        clients = Clients(cluster)
        begin = cluster.world.now
        calm = begin + plan.calm_ms * MS
        over = calm + plan.retained_ms * MS

        def done() -> bool:
            return bool(cluster.violations) or (
                clients.done and cluster.world.now >= over and cluster.idle
            )

        if not cluster.world.run(calm + BOUND_S * SECOND, done):
            cluster.violations.append(f"5: not finished in time: {clients.missing()[:5]}")
        violations = [*cluster.violations, *judge(cluster, clients)]
        sim_ms = (cluster.world.now - begin) // MS
        return Outcome(tuple(violations), cluster.world.trace(), cluster.figures(), sim_ms)
    finally:
        cluster.close()
