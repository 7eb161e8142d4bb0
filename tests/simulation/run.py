"""Run: plays a plan and says what came of it.

    python -m tests.simulation.run SEED     plays one seed and tells
"""

import sys
from collections.abc import Mapping

from msgspec import Struct

from tests.simulation.clients import Clients
from tests.simulation.cluster import Cluster
from tests.simulation.judge import judge
from tests.simulation.plan import Plan, plan_of
from tests.simulation.world import MS, SECOND

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


def run(plan: Plan) -> Outcome:
    """Play a plan to its end."""
    cluster = Cluster(plan)
    try:
        clients = Clients(cluster)
        begin = cluster.world.now
        calm = begin + plan.calm_ms * MS

        def done() -> bool:
            return bool(cluster.violations) or (
                clients.done and cluster.world.now >= calm and cluster.idle
            )

        if not cluster.world.run(calm + BOUND_S * SECOND, done):
            missing = [c.saga_id for c in plan.carts if c.saga_id not in clients.outcomes]
            cluster.violations.append(f"not finished in time; no outcome of {missing[:5]}")
        violations = [*cluster.violations, *judge(cluster, clients)]
        sim_ms = (cluster.world.now - begin) // MS
        return Outcome(tuple(violations), cluster.world.trace(), cluster.figures(), sim_ms)
    finally:
        cluster.close()


def main() -> int:
    """Play one seed."""
    outcome = run(plan_of(int(sys.argv[1])))
    for name, count in sorted(outcome.figures.items()):
        print(f"{count:8} {name}")
    print(f"{outcome.sim_ms} ms, trace {outcome.trace}")
    for violation in outcome.violations:
        print(violation)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
