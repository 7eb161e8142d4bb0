"""`sagacity bench compare A B`: two results beside each other, load by load.

Compared are runs with the same product and load; what differs beside is said. What would compare
different things is refused: other machines, other loads, runs that are no result.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from bench import intervals, result, samples
from bench.intervals import CANNOT_TELL, RUNS_MIN, WORSE, Ratio
from bench.samples import FLOOR, OURS, Group, Load, Sample, Shelf
from sagacity.errors import Malformed

YARDSTICK_OFF: Final = 0.03  # more is said: the machine was another one then
EXIT_BELOW: Final = 1

# Figure, its name in words, unit, whether more of it is better.
FIGURES: Final = (
    ("sagas_per_second", "throughput", "sagas/s", True),
    ("goodput_per_second", "goodput", "sagas/s", True),
    ("latency_ms.p50", "p50", "ms", False),
    ("latency_ms.p99", "p99", "ms", False),
    ("latency_ms.p999", "p999", "ms", False),
    ("cpu_us_per_saga.total", "CPU a checkout", "us", False),
)
BESIDE_FLOOR: Final = "throughput / floor's"
# Settings that say what was compared already, or when.
_SAID: Final = frozenset({"command", "in_flight", "rate", "mix", "loop"})
_VERSIONS: Final = ("version", "commit")
_MACHINE: Final = ("cpu", "cores")


class Row(Struct, frozen=True):
    """One figure of both sides."""

    what: str
    unit: str
    more_is_better: bool
    a: list[float]
    b: list[float]
    ratio: Ratio | None
    verdict: str

    @property
    def line(self) -> str:
        """It in words: medians, ratio with its interval, verdict."""
        medians = [_number(statistics.median(side)) for side in (self.a, self.b)]
        told = "no ratio" if self.ratio is None else f"{self.ratio.middle:.3f}"
        if self.ratio is not None and self.ratio.low is not None and self.ratio.high is not None:
            told += f" ({self.ratio.low:.3f} - {self.ratio.high:.3f})"
        runs = f"{len(self.a)}, {len(self.b)} runs"
        few = min(len(self.a), len(self.b)) < RUNS_MIN
        why = f": too few runs, {RUNS_MIN} of each are needed" * few
        what = f"{self.what}, {self.unit}" if self.unit else self.what
        return (
            f"  {what:22} {medians[0]:>9} {medians[1]:>9}  {told:24} {runs:13} {self.verdict}{why}"
        )


class Pair(Struct, frozen=True):
    """A product under a load, on both sides."""

    who: str
    load: str
    rows: list[Row]


class Comparison(Struct, frozen=True, kw_only=True):
    """All of it.

    Args:
        a, b: files of the sides, with their versions.
        differing: settings, versions and places that are not the same, with A's values and B's.
        notes: what else a reader must know.
    """

    a: list[str]
    b: list[str]
    differing: dict[str, tuple[str, str]]
    pairs: list[Pair]
    notes: list[str]
    confidence: float = intervals.CONFIDENCE

    def text(self) -> str:
        """Give it as a table."""
        lines = [f"A  {', '.join(self.a)}", f"B  {', '.join(self.b)}"]
        lines += [f"differs: {name}: {a} | {b}" for name, (a, b) in self.differing.items()]
        for pair in self.pairs:
            head = f"{pair.who}, {pair.load}"
            lines += ["", f"{head}", f"  {'medians':22} {'A':>9} {'B':>9}  B / A"]
            lines += [row.line for row in pair.rows]
        lines += ["", *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines).rstrip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `compare`."""
    parser.description = (
        "Compare result files of `bench run`, a scenario or a sweep: medians, B / A with its 95 % "
        f"interval over runs, and a verdict where there are {RUNS_MIN} runs of each or more. "
        "A folder stands for all its *.json."
    )
    parser.add_argument("a", type=Path, metavar="A", help="before: a file, or a folder of them")
    parser.add_argument("b", type=Path, metavar="B", help="after")
    parser.add_argument(
        "--fail-below",
        type=float,
        metavar="R",
        help="exit code 1 where throughput (open loop: goodput) is worse, and below R times A's",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there, too")
    parser.add_argument(
        "--force",
        action="store_true",
        help="compare other machines, other loads and runs that are no result; replace FILE",
    )


def run(given: argparse.Namespace) -> int:
    """Compare; give the exit code: 0, or 1 below what was asked.

    Raises:
        Malformed: the files cannot be compared, or --fail-below could not tell.
    """
    below = given.fail_below
    if below is not None and not (math.isfinite(below) and 0 < below <= 1):
        raise Malformed(f"--fail-below is above 0 and at most 1, not {below:g}")
    if given.json is not None:
        result.require_new(given.json, force=given.force)
    a, b = (samples.read_all(samples.files_of(path)) for path in (given.a, given.b))
    _require_two(a, b)
    found = compare(a, b, force=given.force)
    print(found.text(), flush=True)
    if given.json is not None:
        result.write(msgspec.to_builtins(found), given.json)
    return 0 if below is None else _judged(found, below)


def compare(a: Shelf, b: Shelf, *, force: bool = False) -> Comparison:
    """Compare two shelves.

    Raises:
        Malformed: they are not of the same kind, and `force` is not given.
    """
    sides = [shelf.samples if force else _results(shelf) for shelf in (a, b)]
    if not force:
        _require_one_machine(sides)
    groups = [_by_load(side, shelf, force=force) for side, shelf in zip(sides, (a, b), strict=True)]
    keys = [key for key in groups[0] if key in groups[1]]
    both = [(groups[0][key], groups[1][key]) for key in keys]
    notes = [
        f"{_words(key)}: in {name} alone"
        for name, mine, other in (("A", groups[0], groups[1]), ("B", groups[1], groups[0]))
        for key in mine
        if key not in other
    ]
    if not both:
        if not force or len(groups[0]) != 1 or len(groups[1]) != 1:
            loads = (" and ".join(map(_words, side)) or "no runs" for side in groups)
            raise Malformed(f"nothing to compare: A has {next(loads)}; B has {next(loads)}")
        both = [(next(iter(groups[0].values())), next(iter(groups[1].values())))]
    pairs = [
        Pair(mine[0].who, _both_loads(mine[0], other[0]), _rows(mine, other))
        for mine, other in both
    ]
    _beside_floor(pairs, both)
    _require_figures(pairs)
    return Comparison(
        a=a.files,
        b=b.files,
        differing=_differing(both),
        pairs=pairs,
        notes=[*_yardsticks(sides), *notes, *_chance(pairs)],
    )


def _judged(found: Comparison, below: float) -> int:
    judged = [
        (pair, row)
        for pair in found.pairs
        for row in pair.rows
        if pair.who != FLOOR
        and row.what
        == ("goodput" if any(each.what == "goodput" for each in pair.rows) else "throughput")
    ]
    few = [pair for pair, row in judged if min(len(row.a), len(row.b)) < RUNS_MIN]
    if few or not judged:
        raise Malformed(
            f"--fail-below cannot tell: it needs {RUNS_MIN} runs of each"
            + "".join(f"; too few of {pair.who}, {pair.load}" for pair in few[:3])
        )
    failed = [
        f"{pair.who}, {pair.load}: {row.what} is {row.ratio.middle:.3f} of A's"
        for pair, row in judged
        if row.ratio is not None and row.verdict == WORSE and row.ratio.middle < below
    ]
    print("\n".join(f"BELOW {below:g}: {each}" for each in failed) or f"nothing below {below:g}")
    return EXIT_BELOW if failed else 0


_Key = tuple[str, str, Load]


def _words(key: _Key) -> str:
    return ", ".join(filter(None, (key[0], key[1], key[2].words)))


def _require_two(a: Shelf, b: Shelf) -> None:
    mine = {Path(file).resolve(): file for file in a.files}
    for file in b.files:
        if Path(file).resolve() in mine:
            raise Malformed(f"{file} is on both sides: it would be compared with itself")
    same = [each for each in a.samples for other in b.samples if _same_run(each, other)]
    if same:
        raise Malformed(f"a run of {same[0].file} is on both sides: one file is a copy of another")


def _same_run(one: Sample, other: Sample) -> bool:
    """Say whether they are one run: no two have the same wall clock and histogram."""
    return (
        bool(one.latency_histogram)
        and one.latency_histogram == other.latency_histogram
        and one.wall_seconds == other.wall_seconds
        and one.sagas_per_second == other.sagas_per_second
    )


def _results(shelf: Shelf) -> list[Sample]:
    for each in shelf.samples:
        if each.left_out:
            raise Malformed(
                f"{each.file} has a run that is no result, {each.left_out}; --force takes it as one"
            )
    return shelf.samples


def _require_one_machine(sides: Sequence[Sequence[Sample]]) -> None:
    mine, other = (
        {tuple(each.facts[name] for name in _MACHINE) for each in side if "cpu" in each.facts}
        for side in sides
    )
    if mine != other and mine and other:
        told = (
            " and ".join(f"{cpu}, {cores} cores" for cpu, cores in side) for side in (mine, other)
        )
        raise Malformed(
            f"they are from different machines: {next(told)} | {next(told)}; or --force"
        )


def _by_load(side: Sequence[Sample], shelf: Shelf, *, force: bool) -> dict[_Key, list[Sample]]:
    found: dict[_Key, list[Sample]] = {}
    groups: dict[_Key, Group] = {}
    for group in samples.grouped(side):
        key = (group.who, group.variant, group.load)
        if key in groups and not force:
            apart = samples.differing([groups[key], group])
            told = "; ".join(f"{name} {' and '.join(values)}" for name, values in apart.items())
            raise Malformed(
                f"{', '.join(shelf.files)}: runs of {_words(key)} differ in {told or 'settings'}; "
                "or --force"
            )
        groups[key] = group
        found.setdefault(key, []).extend(group.samples)
    return found


def _rows(a: Sequence[Sample], b: Sequence[Sample]) -> list[Row]:
    rows = []
    for name, what, unit, more in FIGURES:
        if what == "goodput" and not a[0].load.rate:
            continue  # in the closed loop it is the throughput once more
        values = [
            [value for each in side if (value := samples.value_of(each, name)) is not None]
            for side in (a, b)
        ]
        if all(values):
            rows.append(_row(what, unit, values[0], values[1], more_is_better=more))
    return rows


def _row(what: str, unit: str, a: list[float], b: list[float], *, more_is_better: bool) -> Row:
    ratio = intervals.ratio_of_medians(a, b)
    told = intervals.verdict(ratio, more_is_better=more_is_better)
    return Row(what, unit, more_is_better, a, b, ratio, told)


def _beside_floor(
    pairs: Sequence[Pair], both: Sequence[tuple[Sequence[Sample], Sequence[Sample]]]
) -> None:
    """Add ours as a share of the floor's of the same turn: what the machine did meets both."""
    floors = {mine[0].load: (mine, other) for mine, other in both if mine[0].who == FLOOR}
    for pair, (mine, other) in zip(pairs, both, strict=True):
        beside = floors.get(mine[0].load)
        if mine[0].who != OURS or beside is None:
            continue
        shares = [_shares(*each) for each in ((mine, beside[0]), (other, beside[1]))]
        if all(shares):
            pair.rows.append(_row(BESIDE_FLOOR, "", shares[0], shares[1], more_is_better=True))


def _shares(ours: Sequence[Sample], floor: Sequence[Sample]) -> list[float]:
    if len(ours) != len(floor):
        return []  # turns that are not whole
    return [
        mine.sagas_per_second / under.sagas_per_second
        for mine, under in zip(ours, floor, strict=True)
        if mine.sagas_per_second is not None and under.sagas_per_second
    ]


def _require_figures(pairs: Sequence[Pair]) -> None:
    if not any(pair.rows for pair in pairs):
        raise Malformed("nothing to compare: no figure was measured on both sides")


def _differing(
    both: Sequence[tuple[Sequence[Sample], Sequence[Sample]]],
) -> dict[str, tuple[str, str]]:
    """Give what is not the same on both sides, with the values of each."""
    seen: list[dict[str, dict[str, None]]] = [{}, {}]
    for pair in both:
        for values, side in zip(seen, pair, strict=True):
            for each in side:
                told = {**each.facts, **each.settings}
                for name in told.keys() - _SAID:
                    values.setdefault(name, {})[_said(told[name])] = None
    names = sorted({*seen[0], *seen[1]}, key=lambda name: (name not in _VERSIONS, name))
    return {
        name: (_values(seen[0].get(name)), _values(seen[1].get(name)))
        for name in names
        if (seen[0].get(name) or {}).keys() != (seen[1].get(name) or {}).keys()
    }


def _values(found: dict[str, None] | None) -> str:
    return ", ".join(sorted(found)) if found else "not said"


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _yardsticks(sides: Sequence[Sequence[Sample]]) -> list[str]:
    means = [
        statistics.median(found)
        for side in sides
        if (found := [each.machine.yardstick_ns for each in side if each.machine])
    ]
    if len(means) < len(sides) or means[0] <= 0:
        return []
    off = means[1] / means[0] - 1
    if abs(off) <= YARDSTICK_OFF:
        return []
    slower = "slower" if off > 0 else "faster"
    by = f"{abs(off) * 100:.0f} % {slower}"
    return [f"the machine itself was {by} in B, by the yardstick: a difference may be its"]


def _chance(pairs: Sequence[Pair]) -> list[str]:
    told = sum(
        row.ratio is not None and row.ratio.low is not None for each in pairs for row in each.rows
    )
    seen = sum(row.verdict != CANNOT_TELL for each in pairs for row in each.rows)
    if told < 20 or not seen:
        return []
    return [f"{told} comparisons, {seen} differ: one in twenty-five would by chance alone"]


def _both_loads(a: Sample, b: Sample) -> str:
    loads = dict.fromkeys(
        ", ".join(filter(None, (each.variant, each.load.words))) for each in (a, b)
    )
    return " | ".join(loads)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
