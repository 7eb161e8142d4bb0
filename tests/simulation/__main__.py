"""Plays seeds of the simulation; the command behind `make prove`.

    python -m tests.simulation --seeds 1000 --start 1 [--sagas 50] [--jobs 2]
    python -m tests.simulation --replay FILE

Prints how often each fault and each way of a saga was reached. For the first seed that breaks an
invariant the shortest plan found is written beside the tests, with the command that replays it.
Exit code 1 where an invariant broke, 2 for a file that is no plan.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path

import msgspec

from tests.simulation.plan import Plan, plan_of
from tests.simulation.run import Outcome, run
from tests.simulation.shrink import shrink

REGRESSIONS = Path(__file__).parent / "regressions"
CHUNK = 16  # seeds given to a process at a time


def _play(job: tuple[int, int]) -> tuple[int, Outcome]:
    seed, sagas = job
    return seed, run(plan_of(seed, sagas))


def prove(seeds: range, sagas: int, jobs: int) -> int:
    """Play seeds; give the exit code."""
    figures: Counter[str] = Counter()
    broken: list[int] = []
    begun = time.monotonic()
    with Pool(jobs) as pool:
        asked = ((seed, sagas) for seed in seeds)
        for done, (seed, outcome) in enumerate(pool.imap_unordered(_play, asked, CHUNK), 1):
            figures.update(outcome.figures)
            if outcome.violations:
                broken.append(seed)
                print(f"seed {seed}: {len(outcome.violations)} violations", flush=True)
                for violation in outcome.violations[:3]:
                    print(f"  {violation:.400}", flush=True)
            if done % 1_000 == 0:
                print(f"{done} seeds, {len(broken)} broken", flush=True)
    took = time.monotonic() - begun
    for name, count in sorted(figures.items()):
        print(f"{count:12,} {name}")
    print(f"{len(seeds)} seeds of {sagas} sagas in {took:.0f} s, {len(seeds) / took:.1f} a second")
    if not broken:
        print("no violation")
        return 0
    seed = min(broken)
    file = REGRESSIONS / f"seed-{seed}.json"
    REGRESSIONS.mkdir(exist_ok=True)
    file.write_bytes(msgspec.json.encode(shrink(plan_of(seed, sagas))) + b"\n")
    print(f"{len(broken)} seeds broken; the shortest plan found for seed {seed}:")
    print(f"  python -m tests.simulation --replay {file}")
    return 1


def replay(file: Path) -> int:
    """Play a plan from a file; give the exit code."""
    try:
        plan = msgspec.json.decode(file.read_bytes(), type=Plan)
    except (OSError, ValueError) as error:
        print(f"{file} is no plan of a simulation: {error}", file=sys.stderr)
        return 2
    outcome = run(plan)
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
    return prove(range(args.start, args.start + args.seeds), args.sagas, args.jobs)


if __name__ == "__main__":
    sys.exit(main())
