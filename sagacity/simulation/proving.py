"""Proving: plays many seeds, and says what broke, with the shortest plan that was found for it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path

import msgspec
from msgspec import Struct

from sagacity import wire
from sagacity.errors import Malformed, SagacityError
from sagacity.saga import Readers
from sagacity.simulation.drive import WAYS
from sagacity.simulation.outcome import Outcome, run
from sagacity.simulation.plan import (
    ASKED,
    CLIENTS,
    FAULTS,
    FORMAT,
    POWER,
    WEATHERS,
    Fault,
    Plan,
    places_of,
    plan_of,
)
from sagacity.simulation.scenario import Scenario
from sagacity.simulation.shrink import shrink

CHUNK = 16  # seeds given to a process at a time
TOLD_MAX = 5  # violations of a plan


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

    Raises:
        ValueError: there is nothing to play, which would show nothing.
    """
    _refuse_nothing(len(seeds), sagas)
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
    """Play seeds up to the first that breaks; the one call for a test of one's own saga.

    Raises:
        AssertionError: an invariant broke; it names the seed, what broke, and gives the shortest
            plan found, with what breaks in that.
        ValueError: there is nothing to play.
    """
    _refuse_nothing(seeds, sagas)
    for seed in range(start, start + seeds):
        outcome = run(scenario, plan_of(scenario, seed, sagas))
        if outcome.violations:
            raise AssertionError(_told(scenario, seed, sagas, outcome.violations))


def _refuse_nothing(seeds: int, sagas: int) -> None:
    if min(seeds, sagas) < 1:
        raise ValueError("seeds and sagas are at least 1: of nothing, everything holds")


def _told(scenario: Scenario, seed: int, sagas: int, violations: Sequence[str]) -> str:
    """Say what broke in a seed, and in the shortest plan found for it."""
    plan = shrink(scenario, plan_of(scenario, seed, sagas))
    what = "\n".join(violations[:TOLD_MAX])
    short = "\n".join(run(scenario, plan).violations[:TOLD_MAX])
    text = msgspec.json.encode(plan).decode()
    again = f"holds(…, seeds=1, start={seed}, sagas={sagas})"
    return (
        f"seed {seed}:\n{what}\nthe shortest plan found:\n{text}\nbreaks:\n{short}\n"
        f"the whole seed again: {again}"
    )


class _Kind(Struct):
    seed: int
    format: int = FORMAT


def read_plan(file: Path, scenario: Scenario | None = None) -> Plan:
    """Read a plan.

    Args:
        file: of which nothing is changed.
        scenario: that it has to be of; None: it is not looked at.

    Raises:
        Malformed: there is none, it is of another version, or of another scenario.
    """
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise Malformed(f"{file} is no plan of a simulation: it is no file")  # a pipe waits
        text = file.read_bytes()
        version = msgspec.json.decode(text, type=_Kind).format
        if version != FORMAT:
            raise Malformed(f"{file} has format {version}; this version reads {FORMAT}")
        plan = msgspec.json.decode(text, type=Plan)
    except OSError as error:
        raise Malformed(f"{file} is no plan of a simulation: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{file} is no plan of a simulation: {error}") from None
    why = _unplayable(plan) or (_foreign(plan, scenario) if scenario is not None else "")
    if why:
        raise Malformed(f"{file} is no plan of this simulation: {why}")
    return plan


def _unplayable(plan: Plan) -> str:
    """Say what of a plan means nothing; "" where all of it can be played."""
    if any(fault.kind not in (*FAULTS, POWER) for fault in plan.faults):
        return "it has a fault that there is not"
    if any(fault.kind == POWER and not _is_of_a_disk(fault) for fault in plan.faults):
        return "it loses the power in a way that there is not"
    if any(ask.kind not in ASKED or not 0 <= ask.client < CLIENTS for ask in plan.asks):
        return "it has a request that no client makes"
    if any(not 0 <= ask.start < len(plan.starts) for ask in plan.asks):
        return "it asks for a start that it does not have"
    if any(not isinstance(start.get("saga_id"), str) for start in plan.starts):
        return "it has a start without a saga_id"
    if set(plan.weather) - set(WEATHERS):
        return "it has weather where there is none"
    times = [plan.calm_ms, *(ask.at_ms for ask in plan.asks)]
    times += [time for fault in plan.faults for time in (fault.at_ms, fault.span_ms)]
    return "it has a time before its beginning" if min(times) < 0 else ""


def _is_of_a_disk(fault: Fault) -> bool:
    return fault.target.startswith("shard-") and fault.other in WAYS and fault.number >= 0


def _foreign(plan: Plan, scenario: Scenario) -> str:
    """Say what of a plan is of another scenario; "" where all of it is of this one."""
    places = places_of(scenario)
    for fault in plan.faults:
        other = "" if fault.kind == POWER else fault.other
        for name in (fault.target, other):
            if name and name not in places:
                return f"there is no {name}"
    reader = Readers(scenario.saga).request
    for start in plan.starts:
        try:
            reader.read(wire.pack(start))
        except SagacityError as error:
            return error.text
    return ""


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
