"""How long a service is away when its working worker dies, or hangs.

    python -m tests.chaos.takeover [--runs 5] [--services inventory,payment,shipping]
                                   [--how kill,hang] [--rate 200] [--seed S] [--json FILE]

Under a steady load of checkouts that all complete, whatever becomes of the earlier ones:

* kill: kill -9 of the worker that works. The time from the kill to the first answer of a checkout
  that was asked after its end; only the standby can have done it. The checkout's own way is in it.
* hang: SIGSTOP of the worker that works. The time from the stop until every checkout that it was
  given in the second after it is answered; somebody has to find out that it hangs and kill it.

In both nobody may turn back: every checkout completes, repeats answer the same, books balance. The
exit code is 1 if something that is asked is not met.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from bench.figures import Figures
from sagacity.errors import SagacityError
from tests.chaos import processes
from tests.chaos.cluster import SERVICES, RoundFailed
from tests.chaos.commands import add_json, add_list, add_seed
from tests.chaos.trial import Trial, since
from tests.reached import Reached, tell

RATE: Final = 200.0
STEADY_S: Final = 1.0  # of load before the first, and between two
FED_S: Final = 1.0  # a stopped worker is given commands for so long
TAKEN_OVER_MAX_S: Final = 15.0  # then it is a violation, not a figure
HUNG_DONE_MAX_S: Final = 25.0

TAKEOVER_MS_AT_MOST: Final = 200.0
HUNG_S_AT_MOST: Final = 12.0


def kill(trial: Trial, service: str) -> float:
    """Kill the worker of a service; give the milliseconds until its standby has answered."""
    victim = trial.worker(service)
    begun = time.monotonic()
    if not processes.kill([victim]):
        raise RoundFailed(f"the working {service} had ended by itself")
    what = f"through the standby of {service}"
    return (since(trial, time.monotonic(), TAKEN_OVER_MAX_S, what) - begun) * 1000


def hang(trial: Trial, service: str) -> float:
    """Stop the worker of a service; give the seconds until what it had is done."""
    victim = trial.worker(service)
    load = trial.load
    os.kill(victim.pid, signal.SIGSTOP)
    begun = time.monotonic()
    load.turn_for(FED_S)
    had = load.open_ids
    if not had:
        raise RoundFailed(f"the stopped {service} was given nothing")
    load.turn_until(
        lambda: not had & load.open_ids,
        HUNG_DONE_MAX_S,
        f"the end of the {len(had)} checkouts that the stopped {service} had",
    )
    took = max(at for at, saga_id in load.answered if saga_id in had) - begun
    if processes.is_alive(victim):
        load.violation(f"{service}: what it had is done, and the stopped worker was not killed")
    return took


def trial_of(
    service: str,
    one: Callable[[Trial, str], float],
    args: argparse.Namespace,
    figures: Figures,
) -> int:
    """Measure one service in one way, several times on one cluster; give how often it went."""
    how = one.__name__
    seed = f"{args.seed}/{service}/{how}"
    trial = Trial(seed, rate=args.rate, endings=("completes",))
    took: list[float] = []
    unit, at_most = ("ms", TAKEOVER_MS_AT_MOST) if how == "kill" else ("s", HUNG_S_AT_MOST)
    what = f"{service}, {how}"
    aborted: list[int] = []  # as the audit counts them, if it comes to that
    try:
        with trial:
            for _ in range(args.runs):
                trial.load.turn_for(STEADY_S)
                took.append(one(trial, service))
            report = trial.finish()
            aborted.append(report["sagas"]["aborted"])
            trial.stop()
    except (RoundFailed, SagacityError) as error:
        trial.violations.append(str(error))
    if len(took) == args.runs:
        figures.add(what, unit, took, at_most=at_most)
    else:
        why = f"run {len(took) + 1} of {args.runs}: {trial.violations[-1]}"
        figures.missing(what, unit, why, at_most=at_most)
    if aborted:
        figures.add(f"{what}: sagas turned back", "", aborted, at_most=0)
    for text in trial.violations[:5]:
        print(f"    {text}", flush=True)
    figures.add(f"{what}: violations", "", len(trial.violations), at_most=0)
    return len(took)


HOW: Final = {"kill": kill, "hang": hang}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each service in each way.

    Returns:
        0 if everything that is asked is met, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.takeover")
    parser.add_argument("--runs", type=int, default=5)
    add_list(parser, "--services", SERVICES)
    add_list(parser, "--how", HOW)
    parser.add_argument("--rate", type=float, default=RATE)
    add_seed(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    figures = Figures(f"takeover: {args.runs} runs each, {args.rate:g} checkouts/s")
    met = dict.fromkeys(HOW, 0)
    for way in args.how:
        for service in args.services:
            met[way] += trial_of(service, HOW[way], args, figures)
    tell(
        [
            Reached("E3", met["hang"], "a worker hangs with commands out"),
            Reached("E4", met["kill"], "a worker dies with commands out"),
        ]
    )
    return figures.end(args.json)


if __name__ == "__main__":
    sys.exit(main())
