"""Hunts: how each layer looks for a bug, and what a hunt cost."""

from sagacity.simulation import plan_of, run
from tests.simulation.checkout import SCENARIO

SEEDS_MAX = 400  # a hunt
SAGAS = 20
STRIDE = 1_000_003  # between the first seeds of two hunts


def in_simulation(hunt: int) -> int | None:
    """Play seeds until one breaks; give how many it took."""
    first = hunt * STRIDE
    for tried in range(SEEDS_MAX):
        if run(SCENARIO, plan_of(SCENARIO, first + tried, SAGAS)).violations:
            return tried + 1
    return None
