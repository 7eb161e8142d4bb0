"""Plays seeds of the checkout saga; the command behind `make prove`.

    python -m tests.simulation --seeds 1000 --start 1 [--sagas 50] [--jobs 2]
    python -m tests.simulation --replay FILE

Prints how often each fault and each way of a saga was reached. For the first seed that breaks an
invariant the shortest plan found is written beside the tests, with the command that replays it.
Exit code 1 where an invariant broke, 2 for a file that is no plan.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sagacity.errors import Malformed
from sagacity.simulation import Outcome, plan_of, prove, run
from sagacity.simulation.proving import read_plan, write_plan
from sagacity.simulation.shrink import shrink
from tests import reached
from tests.simulation import anomalies
from tests.simulation.checkout import SCENARIO

REGRESSIONS = Path(__file__).parent / "regressions"


def _tell(seed: int, outcome: Outcome) -> None:
    if outcome.violations:
        print(f"seed {seed}: {len(outcome.violations)} violations", flush=True)
        for violation in outcome.violations[:3]:
            print(f"  {violation:.400}", flush=True)


def play(seeds: range, sagas: int, jobs: int) -> int:
    """Play seeds; give the exit code."""
    proof = prove(SCENARIO, seeds, sagas=sagas, jobs=jobs, told=_tell)
    for name, count in sorted(proof.figures.items()):
        print(f"{count:12,} {name}")
    reached.tell(anomalies.reached(proof.figures))
    rate = len(seeds) / proof.seconds
    print(f"{len(seeds)} seeds of {sagas} sagas in {proof.seconds:.0f} s, {rate:.1f} a second")
    if not proof.broken:
        print("no violation")
        return 0
    seed = min(proof.broken)
    file = REGRESSIONS / f"seed-{seed}.json"
    write_plan(shrink(SCENARIO, plan_of(SCENARIO, seed, sagas)), file)
    print(f"{len(proof.broken)} seeds broken; the shortest plan found for seed {seed}:")
    print(f"  python -m tests.simulation --replay {file}")
    return 1


def replay(file: Path) -> int:
    """Play a plan from a file; give the exit code."""
    try:
        outcome = run(SCENARIO, read_plan(file, SCENARIO))
    except Malformed as error:
        print(error.text, file=sys.stderr)
        return error.exit_code
    for violation in outcome.violations:
        print(violation)
    print(f"{len(outcome.violations)} violations; trace {outcome.trace}")
    return 1 if outcome.violations else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=1_000, metavar="N")
    parser.add_argument("--start", type=int, default=1, metavar="S")
    parser.add_argument("--sagas", type=int, default=50, metavar="N", help="a seed")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.replay is not None:
        return replay(args.replay)
    if min(args.seeds, args.sagas, args.jobs) < 1:
        parser.error("--seeds, --sagas and --jobs are at least 1")
    return play(range(args.start, args.start + args.seeds), args.sagas, args.jobs)


if __name__ == "__main__":
    sys.exit(main())
