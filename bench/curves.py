"""Curves: what each plot of a report shows, or why there is nothing to show. Pure; draws nothing.

A point is the median of the runs of one group, with the least and the greatest. What does not fit
into a plot is named in its caption.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct, structs

from bench.histogram import Histogram, merged
from bench.result import ROLES
from bench.samples import FLOOR, OURS, Group, Load, Sample, Shelf, differing, grouped
from sagacity.errors import Malformed

LINES_MAX: Final = 7  # more cannot be told apart
BARS_MAX: Final = 6
TIMELINES_MAX: Final = 6
SETTLES: Final = 20  # tenths before a mark that tell how much was finished then
BACK: Final = 0.75  # of it, twice in a row, is back
AROUND: Final = (30, 60)  # tenths drawn before and after a mark

_CHOSEN: Final = "Each where it does most, and one alone; the tables have all loads."

# How a chart is drawn.
LINES, PERCENTILES, STACK, TIMELINE, BARS = "lines", "percentiles", "stack", "timeline", "bars"


class Point(Struct, frozen=True):
    """A median and its spread; `runs` of them."""

    x: float
    low: float
    middle: float
    high: float


class Line(Struct, frozen=True):
    """A line with its name; `who` decides the colour."""

    label: str
    who: str
    points: list[Point]


class Bar(Struct, frozen=True):
    """A bar: its parts by name, medians, and the median and spread of the whole."""

    label: str
    who: str
    parts: dict[str, float]
    total: Point


class Chart(Struct, frozen=True, kw_only=True):
    """One plot.

    Args:
        name: of its file.
        missing: why it cannot be drawn; empty if it can.
        marks: instants, seconds, and what was done then.
        gap: seconds from and to; None if there is none.
        peers: of the whole report, so that each has its colour in every plot.
    """

    name: str
    title: str
    kind: str
    x: str
    y: str
    caption: str = ""
    missing: str = ""
    lines: list[Line] = []
    bars: list[Bar] = []
    powers_of_two: bool = False
    diagonal: bool = False
    marks: list[tuple[float, str]] = []
    gap: tuple[float, float] | None = None
    peers: list[str] = []


class Labels:
    """Names of groups: as short as tells them apart.

    Args:
        groups: all that a report shows.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._apart = differing(groups)
        self._mixes = {group.load.mixed for group in groups}

    def of(self, group: Group, *, amount: bool = True, mix: bool = True) -> str:
        """Give the name; without the amount or the mix where an axis says it."""
        words = [group.who, group.variant]
        words += [group.load.amount] if amount else []
        words += [group.load.mixed or "all complete"] if mix and len(self._mixes) > 1 else []
        words += [
            f"{name} {group.facts[name]}" for name in sorted(self._apart) if name in group.facts
        ]
        return ", ".join(filter(None, words))


def charts(shelf: Shelf) -> list[Chart]:
    """Give all plots of a report, in order; those without data say why."""
    groups = grouped(shelf.counted)
    labels = Labels(groups)
    usual = [group for group in groups if not group.samples[0].marks] or groups
    peers = sorted({group.who for group in groups} - {OURS, FLOOR})
    found = [
        side_by_side(usual, labels),
        against_in_flight(usual, labels),
        percentiles(usual, labels),
        cpu(usual, labels),
        cpu_beside(usual, labels),
        *timelines(groups, labels),
        against_offered(usual, labels),
        against_declines(usual, labels),
    ]
    return [structs.replace(chart, peers=peers) for chart in found]


def point(x: float, values: Sequence[float]) -> Point:
    """Give median and spread."""
    return Point(x, min(values), statistics.median(values), max(values))


def side_by_side(groups: Sequence[Group], labels: Labels) -> Chart:
    """Each product at the load at which it does most."""
    best: dict[tuple[Any, ...], tuple[Group, Point]] = {}
    for group in groups:
        values = group.values("sagas_per_second")
        if group.load.rate or not values:
            continue
        key = (group.who, group.variant, *map(str, group.facts.items()))
        found = point(0, values)
        if key not in best or found.middle > best[key][1].middle:
            best[key] = (group, found)
    chart = Chart(
        name="side-by-side",
        title="Each at its best",
        kind=BARS,
        x="sagas a second",
        y="",
        caption="Closed loop, each at the load at which its median is greatest.",
    )
    if len({group.who for group, _ in best.values()}) < 2:
        return structs.replace(
            chart, missing="only one product is in the files: neither a floor nor a peer beside it"
        )
    bars = [Bar(labels.of(group), group.who, {}, total) for group, total in best.values()]
    bars.sort(key=lambda bar: -bar.total.middle)
    return _with_bars(chart, bars)


def against_in_flight(groups: Sequence[Group], labels: Labels) -> Chart:
    """Throughput over checkouts in flight."""
    chart = Chart(
        name="in-flight",
        title="Throughput against in flight",
        kind=LINES,
        x="checkouts in flight (closed loop)",
        y="sagas a second",
        powers_of_two=True,
    )
    closed = [group for group in groups if group.load.in_flight]
    lines = _curves(
        closed,
        lambda group: float(group.load.in_flight),
        "sagas_per_second",
        lambda load: structs.replace(load, in_flight=0),
        lambda group: labels.of(group, amount=False),
    )
    return _with_lines(
        chart, lines, "it needs runs with several numbers in flight: bench sweep --in-flight 1,8,64"
    )


def against_offered(groups: Sequence[Group], labels: Labels) -> Chart:
    """What finished in time, over what was offered."""
    chart = Chart(
        name="goodput",
        title="Goodput against offered load",
        kind=LINES,
        x="checkouts offered a second (open loop)",
        y="finished in time, a second",
        diagonal=True,
        caption="The thin line is all that was offered.",
    )
    opened = [group for group in groups if group.load.rate]
    lines = _curves(
        opened,
        lambda group: statistics.median(group.values("offered_per_second") or [group.load.rate]),
        "goodput_per_second",
        lambda load: structs.replace(load, rate=0.0),
        lambda group: labels.of(group, amount=False),
    )
    return _with_lines(
        chart, lines, "it needs runs at several rates: bench sweep --rate 1000,2000,4000"
    )


def against_declines(groups: Sequence[Group], labels: Labels) -> Chart:
    """Throughput over the share of declined payments."""
    chart = Chart(
        name="declines",
        title="Throughput against declined payments",
        kind=LINES,
        x="declined, % of all checkouts",
        y="sagas a second",
    )
    closed = [group for group in groups if group.load.in_flight]
    lines = _curves(
        closed,
        lambda group: group.load.decline,
        "sagas_per_second",
        lambda load: structs.replace(load, decline=0.0),
        lambda group: labels.of(group, mix=False),
        points_too=False,
    )
    return _with_lines(
        chart, lines, "it needs runs with several shares: bench declines, bench sweep --decline"
    )


def percentiles(groups: Sequence[Group], labels: Labels) -> Chart:
    """The whole distribution of latencies, the tail drawn as large as the rest."""
    chart = Chart(
        name="latency",
        title="Latency by percentile",
        kind=PERCENTILES,
        x="percentile",
        y="latency, ms",
        caption=f"All runs of a line together. {_CHOSEN}",
    )
    with_latency = [group for group in groups if group.values("latency_ms.p50")]
    lines = [
        Line(labels.of(group), group.who, points)
        for group in _chosen(with_latency)
        if (points := _distribution(group))
    ]
    return _with_lines(chart, lines, "no run in the files has latencies")


def cpu(groups: Sequence[Group], labels: Labels) -> Chart:
    """CPU of a checkout, by kind of process."""
    chart = Chart(
        name="cpu",
        title="CPU of a checkout, by process",
        kind=STACK,
        x="microseconds of CPU a checkout",
        y="",
        caption=f"Medians; 'client' is the load generator. {_CHOSEN}",
    )
    bars = []
    own = [each for each in groups if each.who in (OURS, FLOOR)]
    for group in _chosen([each for each in own if {*each.samples[0].cpu_us_per_saga} & {*ROLES}]):
        parts = {
            role: statistics.median(group.values(f"cpu_us_per_saga.{role}"))
            for role in _roles(group.samples)
        }
        totals = group.values("cpu_us_per_saga.total")
        if totals:
            bars.append(Bar(labels.of(group), group.who, parts, point(0, totals)))
    if not bars:
        return structs.replace(chart, missing="no run of ours in the files has CPU by process")
    return _with_bars(chart, bars)


def cpu_beside(groups: Sequence[Group], labels: Labels) -> Chart:
    """CPU of a checkout in total, each product at its best: peers have other processes."""
    chart = Chart(
        name="cpu-side-by-side",
        title="CPU of a checkout, each at its best",
        kind=BARS,
        x="microseconds of CPU a checkout, all processes",
        y="",
    )
    with_total = [each for each in groups if each.values("cpu_us_per_saga.total")]
    firsts = _chosen(with_total)[: len({each.who for each in with_total})]
    if len(firsts) < 2:
        return structs.replace(chart, missing="only one product in the files has its CPU counted")
    bars = [
        Bar(labels.of(each), each.who, {}, point(0, each.values("cpu_us_per_saga.total")))
        for each in firsts
    ]
    return _with_bars(chart, sorted(bars, key=lambda bar: bar.total.middle))


def timelines(groups: Sequence[Group], labels: Labels) -> list[Chart]:
    """What was finished in each 100 ms around a kill: of each kind of kill its worst run."""
    chart = Chart(
        name="failover",
        title="Timeline of a failover",
        kind=TIMELINE,
        x="seconds of the run",
        y="finished in 100 ms",
    )
    marked = [group for group in groups if group.samples[0].marks]
    found = []
    for at, group in enumerate(marked[:TIMELINES_MAX]):
        told = [each for each in group.samples if any(each.per_tenth)]
        if told:
            worst = max(told, key=lambda each: _length(gap_of(each)))
            name = chart.name if at == 0 else f"{chart.name}-{at + 1}"
            base = structs.replace(chart, name=name)
            found.append(_timeline(base, worst, labels.of(group), len(told)))
    why = "no run in the files has something killed in it and completions per 100 ms"
    return found or [structs.replace(chart, missing=why)]


def gap_of(sample: Sample) -> tuple[float, float] | None:
    """Give from when until when, seconds, less was finished after the first mark; None if never.

    It ends with the first two tenths in a row that have `BACK` of the median of those before the
    mark; with the record, if there are none.
    """
    counts, at_s = sample.per_tenth, sample.marks[0].at_s
    struck = int(at_s * 10)
    before = counts[max(0, struck - SETTLES) : struck]
    if not before:
        return None
    enough = statistics.median(before) * BACK
    after = struck + 1
    for tenth in range(after, len(counts) - 1):
        if counts[tenth] >= enough and counts[tenth + 1] >= enough:
            return None if tenth == after else (at_s, tenth / 10)
    return (at_s, len(counts) / 10) if len(counts) > after else None


def _timeline(chart: Chart, sample: Sample, label: str, runs: int) -> Chart:
    counts, first = sample.per_tenth, int(sample.marks[0].at_s * 10)
    last = int(sample.marks[-1].at_s * 10)
    span = range(max(0, first - AROUND[0]), min(len(counts), last + AROUND[1]))
    points = [point(tenth / 10, [counts[tenth]]) for tenth in span]
    gap = gap_of(sample)
    told = "no gap" if gap is None else f"{gap[1] - gap[0]:.1f} s"
    return structs.replace(
        chart,
        title=f"{chart.title}: {sample.marks[0].what}",
        caption=(
            f"{label}; the worst of {runs} run{'s' * (runs > 1)}. Gap: {told}, from the kill until "
            f"two tenths in a row have {BACK * 100:g} % of the median of the "
            f"{SETTLES / 10:g} s before."
        ),
        lines=[Line(label, sample.who, points)],
        marks=[(mark.at_s, mark.what) for mark in sample.marks],
        gap=gap,
    )


def _length(gap: tuple[float, float] | None) -> float:
    return 0.0 if gap is None else gap[1] - gap[0]


def _curves(
    groups: Iterable[Group],
    x_of: Callable[[Group], float],
    what: str,
    without_x: Callable[[Load], Load],
    label: Callable[[Group], str],
    *,
    points_too: bool = True,
) -> list[Line]:
    """Give lines through groups that differ in x alone.

    Args:
        points_too: who has no line is there with lone points of the same mix.
    """
    rows: dict[tuple[Any, ...], list[tuple[Group, Point]]] = {}
    for group in groups:
        if values := group.values(what):
            facts = map(str, sorted(group.facts.items()))
            key = (group.who, group.variant, without_x(group.load), *facts)
            rows.setdefault(key, []).append((group, point(x_of(group), values)))
    curved = [row[0][0] for row in rows.values() if len(row) > 1]
    named = {group.who for group in curved}
    mixes = {without_x(group.load) for group in curved}
    lines = []
    for row in rows.values():
        first = row[0][0]
        alone = first.who not in named and without_x(first.load) in mixes
        if len(row) > 1 or (points_too and alone):
            points = sorted((each for _, each in row), key=lambda each: each.x)
            lines.append(Line(label(first), first.who, points))
    return lines


def _distribution(group: Group) -> list[Point]:
    """Give (decades of nines, ms): x is 0 at 0 %, 1 at 90 %, 2 at 99 % and so on."""
    texts = [each.latency_histogram for each in group.samples if each.latency_histogram]
    if len(texts) < len(group.samples):
        names = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        return [
            point(-math.log10(1 - share), values)
            for name, share in names.items()
            if (values := group.values(f"latency_ms.{name}"))
        ]
    counted = _decoded(texts, group.samples[0].file)
    if not len(counted):
        return []
    steps = int(20 * math.log10(len(counted)))
    return [
        point(step / 20, [counted.at_ms(100 * (1 - 10 ** (-step / 20)))])
        for step in range(steps + 1)
    ]


def _decoded(texts: Sequence[str], file: str) -> Histogram:
    try:
        return merged(texts)
    except Exception as error:  # whatever base64, zlib and the library say of garbage
        raise Malformed(f"{file} has a latency_histogram that cannot be read: {error}") from None


def _chosen(groups: Sequence[Group]) -> list[Group]:
    """Give the groups that are worth room: of each product the load at which it does most, and one
    alone; all of them where nothing was measured in the closed loop.
    """
    best: dict[str, tuple[float, Group]] = {}
    for group in groups:
        does = statistics.median(group.values("sagas_per_second") or [0.0])
        if group.load.in_flight and does > best.get(group.who, (0.0, group))[0]:
            best[group.who] = (does, group)
    firsts = [group for _, group in best.values()]

    alone = [each for each in groups if each.load.in_flight == 1 and each not in firsts]
    return [*firsts, *alone] or list(groups)


def _roles(samples: Sequence[Sample]) -> list[str]:
    named = {role for each in samples for role in each.cpu_us_per_saga if role != "total"}
    return [*(role for role in ROLES if role in named), *sorted(named - {*ROLES})]


def _with_lines(chart: Chart, lines: Sequence[Line], why: str) -> Chart:
    if not lines:
        return structs.replace(chart, missing=why)
    caption = _left_out(chart.caption, len(lines) - LINES_MAX)
    return structs.replace(chart, lines=list(lines[:LINES_MAX]), caption=caption)


def _with_bars(chart: Chart, bars: Sequence[Bar]) -> Chart:
    caption = _left_out(chart.caption, len(bars) - BARS_MAX)
    return structs.replace(chart, bars=list(bars[:BARS_MAX]), caption=caption)


def _left_out(caption: str, left: int) -> str:
    return f"{caption} No room for {left} more.".strip() if left > 0 else caption
