"""`sagacity bench sweep`: runs over one thing that varies, by turns, for a curve.

Each turn has every value once, and the floor beside each where asked, so that a machine that slows
down in the meantime bends no curve. What was measured before an interruption is kept, and said to
be part of it.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bench import options, place, result
from bench.figures import Figures
from bench.options import Options
from bench.result import Result
from bench.scenarios import FLOOR, RUNS, RUNS_MAX, NoResult, Side, Turns, floor_run, our_run
from sagacity.errors import Malformed

OVER: Final = {"in_flight": "in flight", "rate": "a second", "decline": "%"}
VALUES_MAX: Final = 100
_FIXED: Final = ("duration", "warm_up", "out_of_stock", "no_carrier", "hot_sku", "shards")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `sweep`."""
    parser.description = (
        "Runs over one of --in-flight, --rate, --decline with several values, the others fixed: "
        "every value once, then all again, --runs times. `bench report` draws the curve."
    )
    numbers = "N,N,..."
    parser.add_argument("--in-flight", default="", metavar=numbers, help="closed loop")
    parser.add_argument("--rate", default="", metavar=numbers, help="open loop, a second")
    parser.add_argument("--decline", default="", metavar=numbers, help="percent declined")
    parser.add_argument("--floor", action="store_true", help="the floor beside each")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"of each ({RUNS})")
    parser.add_argument("--duration", default="10s", metavar="T", help="of each run (10s)")
    parser.add_argument("--warm-up", default="2s", metavar="T", help="before each (2s)")
    for name in _FIXED[2:]:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help="as for `bench run`")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="all runs")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(given: argparse.Namespace) -> int:
    """Run the sweep; give the exit code: 0, 1 if a run was no result, 130 or 143 interrupted.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    if not 1 <= given.runs <= RUNS_MAX:
        raise Malformed(f"--runs is 1 to {RUNS_MAX}, not {given.runs}")
    over, asked = plan(given)
    result.require_new(given.json, force=given.force)
    sides = [side for each in asked for side in _sides(over, each, floor=given.floor)]
    figures = Figures(f"sweep over {over.replace('_', ' ')}, {given.runs} turns")
    found: Turns = defaultdict(list)
    try:
        whole = by_turns(sides, given.runs, found, _say)
    finally:
        _keep(given.json, figures, sides, found, given.runs)
    return 0 if whole else 1


def plan(given: argparse.Namespace) -> tuple[str, list[Options]]:
    """Give what varies, and each run that is asked for.

    Raises:
        Malformed: none or more than one of the three has several values, or a value cannot be.
    """
    lists = {name: _numbers(f"--{name.replace('_', '-')}", getattr(given, name)) for name in OVER}
    several = [name for name, values in lists.items() if len(values) > 1]
    if len(several) != 1:
        raise Malformed(
            "a sweep is over one thing: give several values, like 1,8,64, to one of --in-flight, "
            f"--rate, --decline; {len(several) or 'none'} of them has"
        )
    if lists["in_flight"] and lists["rate"]:
        raise Malformed("--rate is the open loop and --in-flight the closed one: one of them")
    over = several[0]
    parser = argparse.ArgumentParser(prog="sagacity bench sweep", allow_abbrev=False)
    options.add_arguments(parser)
    found = []
    for value in lists[over]:
        words = []
        for name, values in lists.items():
            if values:
                number = value if name == over else values[0]
                words += [f"--{name.replace('_', '-')}", number]
        for name in _FIXED:
            if (fixed := getattr(given, name)) is not None:
                words += [f"--{name.replace('_', '-')}", str(fixed)]
        found.append(options.checked(parser.parse_args(words)))
    return over, found


def by_turns(sides: Sequence[Side], runs: int, found: Turns, tell: Callable[[str], None]) -> bool:
    """Run all sides, then all again; give whether all were results.

    Args:
        sides: names, and what runs them once.
        runs: so many of each.
        found: takes each result as soon as it is there, so that an end before the last loses none.
        tell: says what was measured.
    """
    for turn in range(runs):
        for name, measure in sides:
            try:
                told = measure()
            except NoResult as why:
                tell(f"turn {turn + 1}, {name}: no result: {why}; ended there")
                return False
            found[name].append(told)
            tell(
                f"  {turn + 1} of {runs}, {name}: {told.sagas_per_second:.0f}/s, p50 "
                f"{told.latency_ms.p50:.2f}, p99 {told.latency_ms.p99:.2f} ms"
            )
    return True


def _numbers(option: str, text: str) -> list[str]:
    """Read `1,8,64`; what a number may be is checked where `bench run` checks it."""
    values = [word.strip() for word in text.split(",")] if text else []
    if len(values) > VALUES_MAX or not all(values):
        raise Malformed(f"{option} takes 1 to {VALUES_MAX} numbers like 1,8,64, not {text!r}")
    twice = {value for value in values if values.count(value) > 1}
    if twice:
        raise Malformed(f"{option}: {', '.join(sorted(twice))} is named twice")
    return values


def _sides(over: str, asked: Options, *, floor: bool) -> list[Side]:
    value = asked.mix.decline if over == "decline" else getattr(asked, over)
    name = f"{value:g} {OVER[over]}"
    sides: list[Side] = [(name, lambda: our_run(asked))]
    return [*sides, (f"{name}, {FLOOR}", lambda: floor_run(asked))] if floor else sides


def _keep(file: Path, figures: Figures, sides: Sequence[Side], found: Turns, runs: int) -> None:
    """Write what there is, with a figure for each side; runs that are missing show."""
    for name, _ in sides:
        rates = [each.sagas_per_second for each in found[name]]
        if len(rates) < runs:
            why = f"{len(rates)} of {runs}"
            figures.missing(f"{name}, all runs", "", why, at_least=float(runs))
        if rates:
            figures.add(name, "1/s", rates)
    if not any(found.values()):
        _say("nothing was measured; no file is written")
        return
    runs_of: dict[str, list[Result]] = {name: each for name, each in found.items() if each}
    told: dict[str, Any] = {**figures.json(), "format": result.FORMAT}
    result.write({**told, "command": place.command_line(), "runs": runs_of}, file)
    _say(f"{file}: {sum(map(len, runs_of.values()))} runs")


def _say(text: str) -> None:
    print(text, flush=True)
