"""Scenarios with a verdict: `peak`, `alone`, `steady`, `declines`, `shards`; what all have.

Each runs its sides by turns in one call, so that both have the same minutes of a shared machine,
and judges medians: of the ratio within a turn where a ratio is asked for. Every run of ours is a
whole `bench run` on a new directory, audited; one that is no result is no figure. The exit code is
1 if something asked is not met.
"""

import argparse
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec import structs

from bench import floored, options, outside, result
from bench.figures import Figures
from bench.mix import Mix
from bench.options import Options
from bench.result import Result
from bench.run import Interrupts, measure
from sagacity.errors import Malformed, SagacityError

RUNS: Final = 5
RUNS_MAX: Final = 1000
PART_MIN: Final = 0.0001
OURS, FLOOR, PEAK = "ours", "floor", "peak"
SPREAD: Final = (1, 2, 4, 8)  # shards
SHARES: Final = (0, 10, 20, 30, 40, 50)  # of declines, percent

# What is asked.
PEAK_OF_FLOOR: Final = 0.9
FLOOR_IS_ONE: Final = 11_000.0  # a second, on the machine of the promises with nothing else on it
CPU_US: Final = {"total": 140.0, "router": 8.0, "shard": 56.0}
ALONE_P50, ALONE_P99 = 1.25, 1.5  # times the floor's
STEADY_P99, STEADY_P999 = 2.0, 3.0
# A checkout that is declined has as many commands as one that completes (reserve, charge, and
# release instead of ship): more of them explain no fall. What is left is for noise.
DECLINES_AT_LEAST: Final = 0.95
SPREAD_CPU: Final = 1.25  # times that of one shard


class NoResult(Exception):
    """A run that gives no figure.

    Args:
        why: in words.
        exit_code: of the signal that broke it off; 0 where none did.
    """

    def __init__(self, why: str, exit_code: int = 0) -> None:
        super().__init__(why)
        self.exit_code = exit_code


Side = tuple[str, Callable[[], Result]]  # its name, and what runs it once
Turns = dict[str, list[Result]]  # by side, one for each turn


def floor_run(asked: Options) -> Result:
    """Put the same load on the floor, with the same generators; on a new directory.

    Raises:
        NoResult: likewise.
    """
    with Interrupts() as interrupts:
        return counting(floored.measure(asked, interrupts), interrupts)


def our_run(asked: Options) -> Result:
    """Put the load on a new cluster; give a result that counts.

    Raises:
        NoResult: it was broken off, or its books do not balance.
    """
    with Interrupts() as interrupts:
        return counting(measure(asked, interrupts), interrupts)


def counting(found: Result | str, interrupts: Interrupts, *, audited: bool = True) -> Result:
    """Give a result that counts.

    Raises:
        NoResult: there is none, or it is no figure.
    """
    why = ""
    if isinstance(found, str):
        raise NoResult(found, interrupts.exit_code)
    if found.partial:
        why = found.partial_why
    elif audited and not found.balanced:
        why = f"the books do not balance: {found.faults}"
    elif not found.finished or found.errors:
        why = f"not all checkouts were finished: {found.errors_by}"
    if why:
        raise NoResult(why, interrupts.exit_code)
    return found


def by_turns(sides: Sequence[Side], runs: int, figures: Figures) -> Turns:
    """Run all sides, then all again, and so on; what came out before a side failed is kept."""
    found: Turns = defaultdict(list)
    for turn in range(runs):
        row: list[tuple[str, Result]] = []
        try:
            for name, run in sides:
                row.append((name, run()))
                told = row[-1][1]
                print(
                    f"  {turn + 1} of {runs}, {name}: {told.sagas_per_second:.0f}/s, "
                    f"p50 {told.latency_ms.p50:.2f}, p99 {told.latency_ms.p99:.2f}, "
                    f"p999 {told.latency_ms.p999:.2f} ms, yardstick "
                    f"{told.machine.yardstick_ns:.1f} ns",
                    flush=True,
                )
        except NoResult as why:
            figures.missing("all turns", "", f"turn {turn + 1}: {why}", at_least=float(runs))
            figures.broken_off = why.exit_code
            break
        for name, told in row:  # whole turns alone: a ratio needs both sides
            found[name].append(told)
            figures.runs.setdefault(name, []).append(told)
    return found


def peak(asked: Options, runs: int, figures: Figures) -> Turns:
    """As many as it can, 1 024 in flight, every tenth declined."""
    found = by_turns(_both(asked), runs, figures)
    ours, floor = found[OURS], found[FLOOR]
    if not ours:
        return found
    figures.add("ours", "1/s", [each.sagas_per_second for each in ours])
    figures.add("floor", "1/s", [each.sagas_per_second for each in floor], at_least=FLOOR_IS_ONE)
    ratios = [a.sagas_per_second / b.sagas_per_second for a, b in zip(ours, floor, strict=True)]
    figures.add("ours / floor", "", ratios, at_least=PEAK_OF_FLOOR)
    for role, at_most in CPU_US.items():
        used = [each.cpu_us_per_saga[role] for each in ours]
        figures.add(f"CPU a checkout, {role}", "us", used, at_most=at_most)
    for role in sorted({*ours[0].cpu_us_per_saga} - {*CPU_US}):
        figures.add(f"CPU a checkout, {role}", "us", [each.cpu_us_per_saga[role] for each in ours])
    for role in sorted(floor[0].cpu_us_per_saga):
        used = [each.cpu_us_per_saga[role] for each in floor]
        figures.add(f"CPU a checkout, {role} of the floor", "us", used)
    return found


def alone(asked: Options, runs: int, figures: Figures) -> Turns:
    """One after the other."""
    found = by_turns(_both(asked), runs, figures)
    _latencies(found, figures, {"p50": ALONE_P50, "p99": ALONE_P99})
    return found


def steady(asked: Options, runs: int, figures: Figures) -> Turns:
    """Half of what it can, open loop: the peak is measured first, in the same call."""
    closed = structs.replace(asked, rate=0.0, in_flight=options.IN_FLIGHT, sagas=None)
    first = by_turns([(PEAK, lambda: our_run(closed))], 1, figures)
    if not first[PEAK]:
        return first
    rate = round(first[PEAK][0].sagas_per_second / 2, 1)
    figures.add("peak", "1/s", first[PEAK][0].sagas_per_second)
    figures.add("rate", "1/s", rate)
    half = structs.replace(asked, rate=rate, in_flight=0)
    found = by_turns(_both(half), runs, figures)
    _latencies(found, figures, {"p99": STEADY_P99, "p999": STEADY_P999})
    for name, runs_of in found.items():
        missed = sum(not each.rate_reached for each in runs_of)
        figures.add(f"runs that did not keep the rate, {name}", "", missed, at_most=0)
    return found


def declines(asked: Options, runs: int, figures: Figures) -> Turns:
    """What a growing share of declines costs, 0 to 50 %."""

    def side(share: int) -> Side:
        mixed = structs.replace(asked, mix=Mix(decline=float(share)))
        return f"{share} %", lambda: our_run(mixed)

    found = by_turns([side(share) for share in SHARES], runs, figures)
    none = found["0 %"]
    for name, each in found.items():
        figures.add(f"{name} declined", "1/s", [one.sagas_per_second for one in each])
        if name != "0 %" and each:
            ratios = [
                one.sagas_per_second / base.sagas_per_second
                for one, base in zip(each, none, strict=True)
            ]
            figures.add(f"{name} / 0 %", "", ratios, at_least=DECLINES_AT_LEAST)
    return found


def shards(asked: Options, runs: int, figures: Figures) -> Turns:
    """What a checkout costs with 1, 2, 4, 8 shards on the same machine."""

    def side(many: int) -> Side:
        spread = structs.replace(asked, shards=many)
        return f"{many} shards", lambda: our_run(spread)

    found = by_turns([side(many) for many in SPREAD], runs, figures)
    least = found[f"{SPREAD[0]} shards"]
    for name, each in found.items():
        figures.add(name, "1/s", [one.sagas_per_second for one in each])
        cpu = [one.cpu_us_per_saga["total"] for one in each]
        figures.add(f"{name}, CPU a checkout", "us", cpu)
        figures.add(
            f"{name}, CPU a checkout / {SPREAD[0]} shards",
            "",
            [a / b.cpu_us_per_saga["total"] for a, b in zip(cpu, least, strict=True)],
            at_most=SPREAD_CPU if name == f"{SPREAD[-1]} shards" else None,
        )
    return found


def _both(asked: Options) -> list[Side]:
    return [(OURS, lambda: our_run(asked)), (FLOOR, lambda: floor_run(asked))]


def _latencies(found: Turns, figures: Figures, at_most: dict[str, float]) -> None:
    """Judge percentiles as multiples of the floor's in the same turn."""
    if not found[OURS]:
        return
    for name in ("p50", "p99", "p999"):
        ours, floor = (
            [float(getattr(each.latency_ms, name)) for each in found[side]]
            for side in (OURS, FLOOR)
        )
        figures.add(f"{name}, ours", "ms", ours)
        figures.add(f"{name}, floor", "ms", floor)
        ratios = [a / b for a, b in zip(ours, floor, strict=True)]
        figures.add(f"{name}, ours / floor", "", ratios, at_most=at_most.get(name))


Scenario = Callable[[Options, int, Figures], Turns]

# The scenario, and its load where nothing else is asked for: words of `bench run`.
SCENARIOS: Final[dict[str, tuple[Scenario, tuple[str, ...]]]] = {
    "peak": (peak, ("--in-flight", "1024", "--decline", "10")),
    "alone": (alone, ("--in-flight", "1")),
    "steady": (steady, ("--decline", "10")),
    "declines": (declines, ("--in-flight", "1024")),
    "shards": (shards, ("--in-flight", "1024", "--decline", "10")),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that every scenario has."""
    parser.description = (
        "Runs of ours and of the floor by turns, each on a new directory under TMPDIR; medians, "
        "and whether what is asked is met: exit code 1 if not. docs/bench.md says what is asked."
    )
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"turns ({RUNS})")
    parser.add_argument("--duration", default="10s", metavar="T", help="of each run (10s)")
    parser.add_argument("--warm-up", default="2s", metavar="T", help="before each (2s)")
    add_result_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Run the scenario that was chosen; give the exit code.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    check_runs(given.runs)
    play, words = SCENARIOS[given.scenario]
    load = [*words, "--duration", given.duration, "--warm-up", given.warm_up]
    asked = loaded(given.scenario, load)
    title = f"{given.scenario}, {given.runs} turns"
    return judged(given, title, lambda figures: play(asked, given.runs, figures))


def check_runs(runs: int) -> None:
    """Refuse a number of turns that makes no sense.

    Raises:
        Malformed: it is none.
    """
    if not 1 <= runs <= RUNS_MAX:
        raise Malformed(f"--runs is 1 to {RUNS_MAX}, not {runs}")


def loaded(scenario: str, words: Sequence[str]) -> Options:
    """Give a load, checked, of words of `bench run`.

    Raises:
        SagacityError: there is none such.
    """
    parser = argparse.ArgumentParser(prog=f"sagacity bench {scenario}")
    options.add_arguments(parser)
    return options.checked(parser.parse_args(words))


def add_result_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the figures of a scenario go."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures and all runs")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def part_of(part: float) -> float:
    """Check a part of the full size.

    Raises:
        Malformed: it is none.
    """
    if not PART_MIN <= part <= 1:
        raise Malformed(f"--part is {PART_MIN:g} to 1 of the full size, not {part:g}")
    return part


def judged(given: argparse.Namespace, title: str, play: Callable[[Figures], object]) -> int:
    """Play a scenario; print its figures and write them, with the runs that they were made of.

    What was measured before it was broken off is kept, and called partial.

    Returns:
        0 if everything asked is met, 1 if not, 130 or 143 if it was interrupted.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    if given.json is not None:
        result.require_new(given.json, force=given.force)
    elif given.force:
        raise Malformed("--force replaces the file of --json: there is none")
    figures = Figures(title)
    try:
        play(figures)
    except NoResult as why:
        figures.missing("all of it", "", str(why), at_least=1.0)
        figures.broken_off = why.exit_code
    except (outside.TooLate, SagacityError) as why:
        if isinstance(why, SagacityError) and not figures.rows:
            raise  # nothing was measured: it could not be done as asked
        figures.missing("all of it", "", str(why), at_least=1.0)
    except (KeyboardInterrupt, SystemExit) as ended:
        figures.missing("all of it", "", "interrupted", at_least=1.0)
        code = ended.code if isinstance(ended, SystemExit) else None
        figures.broken_off = code if isinstance(code, int) else 128 + signal.SIGINT
    code = figures.end()
    if given.json is not None:
        partial = bool(figures.broken_off)
        told = {**figures.json(), "partial": partial, "runs": figures.runs}
        result.write(told, given.json)
    return figures.broken_off or code
