"""The bug museum: plants each bug and sees whether its layer finds it.

    python -m tests.museum [--bugs a,b] [--hunts 10] [--jobs 2]

Prints a line a bug, `name layer found 10/10 median_cost`; the cost is in seeds for the simulation,
in runs of the named tests for the others. Before any bug is planted each layer has to be green, or
its red would prove nothing. Exit code 1 where a bug was found fewer than nine times in ten.
"""

import argparse
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from statistics import median

from tests.museum.bugs import BUGS, Bug, by_name
from tests.museum.hunts import HUNTS

FOUND_AT_LEAST = 0.9


def _hunt(asked: tuple[str, int]) -> tuple[str, int | None]:
    name, hunt = asked
    bug = by_name(name)
    return name, HUNTS[bug.layer](bug, hunt)


def visit(bugs: Sequence[Bug], hunts: int, jobs: int) -> int:
    """Hunt bugs; give the exit code."""
    escaped = 0
    with get_context("fork").Pool(jobs) as pool:
        for bug in bugs:
            asked = [(bug.name, hunt) for hunt in range(1, hunts + 1)]
            costs = [cost for _, cost in pool.imap_unordered(_hunt, asked) if cost is not None]
            cost = f"{median(costs):g}" if costs else "-"
            print(f"{bug.name} {bug.layer} found {len(costs)}/{hunts} {cost}", flush=True)
            escaped += len(costs) < FOUND_AT_LEAST * hunts
    print(f"{len(bugs) - escaped} of {len(bugs)} bugs are found")
    return 1 if escaped else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.museum", allow_abbrev=False)
    parser.add_argument("--bugs", default="", metavar="A,B", help="all, if left out")
    parser.add_argument("--hunts", type=int, default=10, metavar="N", help="a bug")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    args = parser.parse_args(argv)
    if min(args.hunts, args.jobs) < 1:
        parser.error("--hunts and --jobs are at least 1")
    try:
        bugs = [by_name(name) for name in args.bugs.split(",") if name] or BUGS
    except KeyError as error:
        parser.error(f"no bug {error}; there are {', '.join(bug.name for bug in BUGS)}")
    return visit(bugs, args.hunts, args.jobs)


if __name__ == "__main__":
    sys.exit(main())
