"""kill -9 of real processes under load, round after round (PROOF, layer K).

    python -m tests.chaos.kill_rounds [--rounds 10] [--roles router,shard,...] [--seed S]
                                      [--seconds 2] [--kills 1]

A round (`one_round`) starts a cluster on a new directory. A client that asks again keeps 256
checkouts in flight: most complete, some are declined, out of stock, without a carrier, crash their
worker or fail three times; some ids are asked again. At a random moment the target is killed. The
load goes on, ends, and then: every id has a final answer, the one that its content demands; asked
again all answer the same bytes, other content is refused; the books balance; everything is up
again; after the stop no process and no socket is left; and the rows on disk satisfy the invariants
(`checker`). A role is each of its processes: both shards, and of a pool the one that works and the
one that stands by.

One line a round, a summary for each process; a failed round's directory is kept and named.
"""

import argparse
import secrets
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.one_round import TARGETS, Figures, Round, Target


def main(argv: Sequence[str] | None = None) -> int:
    """Run rounds, print them, print a summary for each target.

    Returns:
        0 if every round was good, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kill_rounds")
    parser.add_argument("--rounds", type=int, default=10, help="of each process of a role")
    parser.add_argument("--roles", default=",".join(TARGETS))
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--seconds", type=float, default=2.0, help="of load before the first kill")
    parser.add_argument("--kills", type=int, default=1, help="of the target, in each round")
    args = parser.parse_args(argv)
    roles = args.roles.split(",")
    if unknown := set(roles) - set(TARGETS):
        parser.error(f"no such role: {', '.join(sorted(unknown))}")
    print(f"seed {args.seed}", flush=True)
    failed = 0
    summary = []
    for target in [target for role in roles for target in TARGETS[role]]:
        done = [
            _one([target] * args.kills, f"{args.seed}/{number}", number, args.seconds)
            for number in range(1, args.rounds + 1)
        ]
        failed += sum(bool(figures.faults) for figures in done)
        summary.append(_summary(target, done))
    print("\n".join(summary))
    return 1 if failed else 0


def _one(targets: Sequence[Target], seed: str, number: int, seconds: float) -> Figures:
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    figures = Round(targets, seed, base, seconds).run()
    print(f"{number:3} {figures.line()}", flush=True)
    for fault in figures.faults:
        print(f"      {fault}", flush=True)
    if figures.faults:
        print(f"      kept: {base}", flush=True)
    else:
        shutil.rmtree(base)
    return figures


def _summary(target: Target, done: list[Figures]) -> str:
    good = [figures for figures in done if not figures.faults]
    told = f"{target}: {len(good)} of {len(done)} rounds good"
    if not good:
        return told
    kills = [kill for figures in good for kill in figures.kills]
    middle = statistics.median
    return (
        f"{told}; median in flight {middle(kill.in_flight for kill in kills):.0f}, "
        f"next answer {middle(kill.answer_ms for kill in kills):.0f} ms, "
        f"longest silence {middle(kill.silence_ms for kill in kills):.0f} ms "
        f"(worst {max(kill.silence_ms for kill in kills):.0f}), "
        f"all up {middle(kill.up_ms for kill in kills):.0f} ms "
        f"(worst {max(kill.up_ms for kill in kills):.0f}), "
        f"children gone {max(kill.gone_ms for kill in kills):.0f} ms at worst; "
        f"{sum(figures.checkouts for figures in good)} checkouts, "
        f"{sum(figures.repeats + figures.again for figures in good)} repeats"
    )


if __name__ == "__main__":
    sys.exit(main())
