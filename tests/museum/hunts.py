"""Hunts: how each layer looks for a bug, and what a hunt cost.

Each hunt of a bug begins elsewhere: other seeds, another hash seed. The cost is in seeds for the
simulation, in cases for the others.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Final

from sagacity.simulation import plan_of, run
from tests.museum.bugs import SIMULATION, TESTS, Bug
from tests.museum.plant import planted
from tests.simulation.checkout import SCENARIO

SEEDS_MAX: Final = 400  # a hunt
SAGAS: Final = 20
STRIDE: Final = 1_000_003  # between the first seeds of two hunts
TESTS_TIMEOUT_S: Final = 120


def in_simulation(bug: Bug, hunt: int) -> int | None:
    """Play seeds until one breaks."""
    first = hunt * STRIDE
    with planted(*bug.changes):
        for tried in range(SEEDS_MAX):
            if run(SCENARIO, plan_of(SCENARIO, first + tried, SAGAS)).violations:
                return tried + 1
    return None


def in_tests(bug: Bug, hunt: int) -> int | None:
    """Run the tests that have to turn red, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.museum.planted_tests", bug.name],
        env={**os.environ, "PYTHONHASHSEED": str(hunt)},
        capture_output=True,
        text=True,
        timeout=TESTS_TIMEOUT_S,
        check=False,
    )
    if done.returncode not in {0, 1}:  # 1: tests failed; anything else says nothing of the bug
        raise RuntimeError(f"{bug.name}: the tests did not run:\n{done.stdout}{done.stderr}")
    return 1 if done.returncode == 1 else None


HUNTS: Final[Mapping[str, Callable[[Bug, int], int | None]]] = {
    SIMULATION: in_simulation,
    TESTS: in_tests,
}
