"""kill -9 of real processes under load, round after round (PROOF, layer K).

    python -m tests.chaos.kill_rounds [--rounds 10] [--roles router,shard,...] [--seed S]
                                      [--seconds 2] [--kills 1]
    python -m tests.chaos.kill_rounds --random [--rounds 200] [--each 10] [--seed S]

A round (`one_round`) starts a cluster on a new directory. A client that asks again keeps 256
checkouts in flight: most complete, some are declined, out of stock, without a carrier, crash their
worker or fail three times; some ids are asked again. At a random moment the target is killed. The
load goes on, ends, and then: every id has a final answer, the one that its content demands; asked
again all answer the same bytes, other content is refused; the books balance; everything is up
again; after the stop no process and no socket is left; and what is left satisfies the invariants
(`sagacity check`, which takes a kept directory again). A role is each of its processes: both
shards, and of a pool the one that works and the one that stands by.

With --random the rounds (`random_rounds`) are what chance brings: several roles at once, two kills
a few milliseconds apart, a process that stands still for a moment; ten of them on one cluster, with
the checks after each. Two clusters of three compact their journals all the time.

One line a round, a summary for each process; a failed round's directory is kept and named.
"""

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.chaos.commands import add_list, add_seed
from tests.chaos.one_round import TARGETS, Round, Seen, Target
from tests.chaos.random_rounds import TAILS_BYTES, Hit, RandomRounds, plan, reached, summary
from tests.reached import tell

TOLD_MAX: Final = 400  # characters; the directory is kept


def main(argv: Sequence[str] | None = None) -> int:
    """Run rounds, print them, print a summary for each target.

    Returns:
        0 if every round was good, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kill_rounds")
    parser.add_argument(
        "--rounds", type=int, help="of each process of a role (10), or --random (200)"
    )
    add_list(parser, "--roles", TARGETS)
    add_seed(parser)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load before the first kill")
    parser.add_argument("--kills", type=int, default=1, help="of the target, in each round")
    parser.add_argument("--random", action="store_true", help="what chance brings")
    parser.add_argument("--each", type=int, default=10, help="rounds of one cluster, with --random")
    args = parser.parse_args(argv)
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds is at least 1")
    if args.random:
        return _at_random(args.rounds or 200, args.each, args.seed, args.seconds)
    rounds = args.rounds or 10
    print(f"seed {args.seed}", flush=True)
    failed = 0
    summary = []
    for target in [target for role in args.roles for target in TARGETS[role]]:
        done = [
            _one([target] * args.kills, f"{args.seed}/{number}", number, args.seconds)
            for number in range(1, rounds + 1)
        ]
        failed += sum(bool(seen.violations) for seen in done)
        summary.append(_summary(target, done))
    print("\n".join(summary))
    return 1 if failed else 0


def _one(targets: Sequence[Target], seed: str, number: int, seconds: float) -> Seen:
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    seen = Round(targets, seed, base, seconds).run()
    print(f"{number:3} {seen.line()}", flush=True)
    _tell(seen.violations, base)
    return seen


def _at_random(rounds: int, each: int, seed: str, seconds: float) -> int:
    """Run rounds of what chance brings, `each` on one cluster, until there are enough."""
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    hits: list[Hit] = []
    checkouts = failed = number = 0
    begun = time.monotonic()
    while len(hits) < rounds:
        number += 1
        tail = TAILS_BYTES[number % len(TAILS_BYTES)]
        told = f", compacts after {tail} bytes" if tail else ""
        print(f"cluster {number}, from round {len(hits) + 1}{told}", flush=True)
        base = Path(tempfile.mkdtemp(prefix="sg-"))
        plans = [plan(rng, seconds) for _ in range(min(each, rounds - len(hits)))]
        some = RandomRounds(plans, f"{seed}/{number}", base, tail)
        violations = some.run_all()
        hits += some.hits
        checkouts += len(some.load.asked) if some.hits else 0
        failed += bool(violations)
        _tell(violations, base)
        if not some.hits:
            print("the cluster does not start: given up")
            break
    tell(reached(hits))
    print(summary(hits))
    print(
        f"{failed} of {number} clusters with violations; {checkouts} checkouts; "
        f"{time.monotonic() - begun:.0f} s"
    )
    return 1 if failed else 0


def _tell(violations: Sequence[str], base: Path) -> None:
    """Print the violations; keep the directory of a round that has some, and say so."""
    for text in violations:
        print(f"      {text[:TOLD_MAX]}", flush=True)
    if violations:
        print(f"      kept: {base}", flush=True)
    else:
        shutil.rmtree(base)


def _summary(target: Target, done: list[Seen]) -> str:
    good = [seen for seen in done if not seen.violations]
    told = f"{target}: {len(good)} of {len(done)} rounds good"
    if not good:
        return told
    kills = [kill for seen in good for kill in seen.kills]
    middle = statistics.median
    return (
        f"{told}; median in flight {middle(kill.in_flight for kill in kills):.0f}, "
        f"next answer {middle(kill.answer_ms for kill in kills):.0f} ms, "
        f"longest silence {middle(kill.silence_ms for kill in kills):.0f} ms "
        f"(worst {max(kill.silence_ms for kill in kills):.0f}), "
        f"all up {middle(kill.up_ms for kill in kills):.0f} ms "
        f"(worst {max(kill.up_ms for kill in kills):.0f}), "
        f"children gone {max(kill.gone_ms for kill in kills):.0f} ms at worst; "
        f"{sum(seen.checkouts for seen in good)} checkouts, "
        f"{sum(seen.repeats + seen.again for seen in good)} repeats"
    )


if __name__ == "__main__":
    sys.exit(main())
