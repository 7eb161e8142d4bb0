"""Peers beside ours: runs that alternate, one Markdown table of their medians, and a verdict."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, to_builtins

from bench.figures import Figures
from bench.peers import ours
from bench.peers.ours import Ours
from bench.peers.result import Result, words

OF_FLOOR: Final = 0.9
TIMES_BEST: Final = 10.0  # what the best peer does
HEADS = (
    "",
    "sagas/s, at its best",
    "in flight",
    "ours ÷ it",
    "alone p50 ms",
    "alone p99 ms",
    "CPU us each",
    "services",
    "errors",
)


class Round(Struct, frozen=True):
    """What was measured one right after the other.

    Args:
        ours: one run of ours.
        peers: by name: at its best, then one alone.
    """

    ours: Ours
    peers: dict[str, tuple[Result, Result]]


def rounds(
    runs: int,
    measure_ours: Callable[[], Ours],
    peers: Mapping[str, Callable[[], tuple[Result, Result]]],
    tell: Callable[[str], None],
    found: list[Round],
) -> None:
    """Do the runs: ours and the floor, each peer, ours again: all have the same minutes.

    Args:
        runs: so many of each.
        measure_ours: does one.
        peers: by name, each does two: at its best, and one alone.
        tell: says what was measured.
        found: takes whole rounds, so that an end before the last one loses none.
    """
    for number in range(runs):
        mine = measure_ours()
        tell(
            f"run {number + 1}: {ours.TITLE} {mine.sagas_per_second:.0f} sagas/s, "
            f"the floor {mine.floor_per_second:.0f}"
        )
        others = {}
        for name, measure in peers.items():
            others[name] = measure()
            for result in others[name]:
                tell(f"run {number + 1}: {result.line()}")
        found.append(Round(mine, others))


def ratios(found: Sequence[Round], name: str) -> list[float]:
    """Give how many times as much ours does, run by run."""
    return [each.ours.sagas_per_second / each.peers[name][0].sagas_per_second for each in found]


def judged(found: Sequence[Round], titles: Mapping[str, str]) -> Figures:
    """Judge ours by the floor, and by the peer that does most; ratios are of runs side by side."""
    figures = Figures(f"ours beside peers, {len(found)} turns")
    mine = [each.ours for each in found]
    figures.add("ours", "1/s", [each.sagas_per_second for each in mine])
    figures.add("floor", "1/s", [each.floor_per_second for each in mine])
    of_floor = [each.sagas_per_second / each.floor_per_second for each in mine]
    figures.add("ours / floor", "", of_floor, at_least=OF_FLOOR)
    rates = {
        name: [each.peers[name][0].sagas_per_second for each in found] for name in found[0].peers
    }
    for name, rate in rates.items():
        figures.add(titles[name], "1/s", rate)
    if rates:
        best = max(rates, key=lambda name: statistics.median(rates[name]))
        times = ratios(found, best)
        figures.add(f"ours / {titles[best]}, the best", "", times, at_least=TIMES_BEST)
    return figures


def markdown(found: Sequence[Round], titles: Mapping[str, str]) -> str:
    """Give the table, and below it what each ran with.

    Args:
        found: at least one round.
        titles: of the peers by name, in the order of the rows.
    """
    mine = [each.ours for each in found]
    rows = [
        HEADS,
        tuple("---" for _ in HEADS),
        (
            ours.TITLE,
            spread([each.sagas_per_second for each in mine]),
            str(ours.IN_FLIGHT),
            "1",
            spread([each.p50_ms for each in mine]),
            spread([each.p99_ms for each in mine]),
            spread([each.cpu_us for each in mine]),
            "databases, synced",
            "0",
        ),
    ]
    rows += [_row(found, name, title) for name, title in titles.items()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", f"Median (least - greatest) of {len(found)} alternating runs.", ""]
    for name, title in titles.items():
        one = found[0].peers[name][0]
        lines.append(
            f"- {title}: {words(one.settings)}; read back: {words(one.durability)};"
            f" versions: {words(one.versions)}; data on {one.data_fs}"
        )
    return "\n".join(lines)


def json(found: Sequence[Round]) -> list[Any]:
    """Give all runs for scripts."""
    shown: list[Any] = to_builtins(found)
    return shown


def spread(values: Sequence[float]) -> str:
    """Give the median, with the least and the greatest where there are several."""
    middle = _number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))} - {_number(max(values))})"


def _row(found: Sequence[Round], name: str, title: str) -> tuple[str, ...]:
    best = [each.peers[name][0] for each in found]
    alone = [each.peers[name][1] for each in found]
    return (
        title,
        spread([each.sagas_per_second for each in best]),
        str(best[0].in_flight),
        spread(ratios(found, name)),
        spread([each.latency_ms["p50"] for each in alone]),
        spread([each.latency_ms["p99"] for each in alone]),
        spread([each.cpu_us_per_saga["total"] for each in best]),
        best[0].services,
        str(sum(each.errors for each in (*best, *alone))),
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
