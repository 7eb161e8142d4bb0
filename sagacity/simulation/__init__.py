"""A whole cluster in one thread: the production code of every role, between twins of network, disks
and clock, under faults that a seed draws; then everything has to finish, and the books to balance.

    scenario = Scenario(saga=mine, services=lambda kill: [mine_service], request=draw_request)
    holds(scenario, seeds=200)

The rooms, in the order in which to read them: `scenario` what is simulated, `plan` what a seed
stands for, `world` time and processes, `network` and `disk` the twins, `drive` a shard's own
journal on a disk in memory (`vfs`), `moods` what handlers do, `ports` what production code takes
from outside, `cluster` the processes wired, `clients` who asks, `evidence` what a run has left,
`judge` what must hold, `restored` what a disk must tell, `outcome`, `shrink` and `proving`.
"""

from sagacity.simulation.outcome import Outcome, run
from sagacity.simulation.plan import Plan, plan_of
from sagacity.simulation.proving import Proof, holds, prove
from sagacity.simulation.scenario import Body, Fate, Scenario

__all__ = [
    "Body",
    "Fate",
    "Outcome",
    "Plan",
    "Proof",
    "Scenario",
    "holds",
    "plan_of",
    "prove",
    "run",
]
