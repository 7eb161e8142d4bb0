"""Scenario `flash-sale`: a hundred thousand buyers, sixty thousand units of one thing.

On each turn a new cluster: as many as it can of the usual mix first, then the sale. All buyers want
one unit of the same SKU, 1 024 of them at any time; exactly as many complete as there are units.
"""

import argparse
from typing import Final

from msgspec import structs

from bench import options
from bench.figures import Figures
from bench.mix import Mix
from bench.scenarios import add_result_arguments, check_runs, judged, loaded, part_of
from bench.staged import staged

BUYERS: Final = 100_000
UNITS: Final = 60_000
RUNS: Final = 3
OF_PEAK: Final = 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "A sale of one thing that cannot be enough for all who want it."
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"turns ({RUNS})")
    parser.add_argument("--buyers", type=int, default=BUYERS, metavar="N", help=f"({BUYERS})")
    parser.add_argument("--units", type=int, default=UNITS, metavar="N", help=f"({UNITS})")
    parser.add_argument("--part", type=float, default=1.0, metavar="F", help="of both (1)")
    parser.add_argument("--in-flight", type=int, default=options.IN_FLIGHT, metavar="N")
    add_result_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Run it; give the exit code.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    check_runs(given.runs)
    part = part_of(given.part)
    buyers, units = round(given.buyers * part), round(given.units * part)
    words = ["--in-flight", str(given.in_flight), "--sagas", str(buyers)]
    words += ["--hot-sku", "100", "--hot-units", str(units), "--warm-up", "0"]
    sale = loaded("flash-sale", words)
    title = f"flash sale: {buyers} buyers, {units} units"
    return judged(given, title, lambda figures: _turns(sale, given.runs, figures))


def _turns(sale: options.Options, runs: int, figures: Figures) -> None:
    buyers = sale.sagas or 1
    warm_up_s = options.WARM_UP_S * min(1.0, buyers / BUYERS)
    usual = structs.replace(sale, mix=Mix(decline=10.0), warm_up_s=warm_up_s)
    usual = structs.replace(usual, sagas=max(1, buyers // 4))
    completed, aborted, ratios = [], [], []
    for _ in range(runs):
        with staged(sale, figures) as stage:
            before, _ = stage.load("usual", usual)
            found, _ = stage.load("sale", sale, audits=True)
        completed.append(found.completed)
        aborted.append(found.aborted)
        ratios.append(found.sagas_per_second / before.sagas_per_second)
    bought = min(buyers, sale.hot_units)
    # The least and the greatest: of an exact number no median is judged.
    figures.add("completed, the fewest", "", min(completed), at_least=bought, at_most=bought)
    figures.add("completed, the most", "", max(completed), at_least=bought, at_most=bought)
    figures.add("turned away", "", aborted)
    figures.add("sale / peak", "", ratios, at_least=OF_PEAK)
