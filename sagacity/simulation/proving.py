"""Proving: plays many seeds, and says what broke, with the shortest plan that was found for it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import msgspec
from msgspec import Struct

from sagacity.errors import Malformed
from sagacity.simulation.outcome import Outcome, run
from sagacity.simulation.plan import Plan, plan_of
from sagacity.simulation.scenario import Scenario
from sagacity.simulation.shrink import shrink

CHUNK = 16  # seeds given to a process at a time


class Proof(Struct):
    """What came of many seeds.

    Args:
        figures: how often what happened, over all of them.
        broken: seeds that broke an invariant, with what broke.
        seconds: how long they took.
    """

    figures: Counter[str]
    broken: dict[int, tuple[str, ...]]
    seconds: float = 0.0


def prove(
    scenario: Scenario,
    seeds: range,
    *,
    sagas: int = 50,
    jobs: int = 1,
    told: Callable[[int, Outcome], None] | None = None,
) -> Proof:
    """Play seeds.

    Args:
        scenario: what is simulated.
        seeds: which.
        sagas: a seed.
        jobs: processes that share the work.
        told: called with each seed and what came of it.
    """
    proof = Proof(Counter(), {})
    begun = time.monotonic()
    for seed, outcome in _played(scenario, seeds, sagas, jobs):
        proof.figures.update(outcome.figures)
        if outcome.violations:
            proof.broken[seed] = outcome.violations
        if told is not None:
            told(seed, outcome)
    proof.seconds = time.monotonic() - begun
    return proof


def holds(scenario: Scenario, seeds: int = 100, *, start: int = 1, sagas: int = 20) -> None:
    """Play seeds; the one call for a test of one's own saga.

    Raises:
        AssertionError: an invariant broke; it names the seed and gives the shortest plan found.
    """
    proof = prove(scenario, range(start, start + seeds), sagas=sagas)
    if proof.broken:
        seed = min(proof.broken)
        plan = shrink(scenario, plan_of(scenario, seed, sagas))
        what = "\n".join(proof.broken[seed][:5])
        raise AssertionError(f"seed {seed}:\n{what}\n{msgspec.json.encode(plan).decode()}")


def read_plan(file: Path) -> Plan:
    """Read a plan.

    Raises:
        Malformed: there is none.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Plan)
    except (OSError, ValueError) as error:
        raise Malformed(f"{file} is no plan of a simulation: {error}") from None


def write_plan(plan: Plan, file: Path) -> None:
    """Write a plan, to be played again."""
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")


def _played(
    scenario: Scenario, seeds: range, sagas: int, jobs: int
) -> Iterator[tuple[int, Outcome]]:
    if jobs == 1:
        for seed in seeds:
            yield seed, run(scenario, plan_of(scenario, seed, sagas))
        return
    # A scenario holds functions, which cannot be sent: a fork has them.
    _Played.scenario, _Played.sagas = scenario, sagas
    with get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_Played.play, seeds, CHUNK)


class _Played:
    scenario: Scenario
    sagas: int

    @classmethod
    def play(cls, seed: int) -> tuple[int, Outcome]:
        return seed, run(cls.scenario, plan_of(cls.scenario, seed, cls.sagas))
