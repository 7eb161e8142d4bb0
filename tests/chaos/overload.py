"""More than a cluster can do, and a service that is sick (PROOF A8, B12, G3), on real processes.

    python -m tests.chaos.overload [--which one_shard,storm,metastable] [--pace 2]
                                   [--credit 256] [--part 1] [--seed S] [--json FILE]

Payment takes `--pace` milliseconds for each charge, so that it and not the machine is the limit;
what the cluster completes then is measured first, and everything is offered as a part of that.

* one_shard (A8): ids of shard 0 alone come at 3 x capacity; those of the others, at a fifth of it,
  are served as before: 95 % and more.
* storm (B12): payment fails, then is slow beyond every attempt's time, at a load that it could do.
  Meanwhile it gets at most 1.1 commands for each checkout that is offered; and until all is over no
  more again than the retry budgets of all shards give: a tenth of what succeeds, a hundred, and ten
  a second.
* metastable (G3): 60 s at 3 x capacity, then 10 s in which payment is stopped. 30 s later, at 0.8 x
  capacity, as many checkouts are completed in 20 s as come, 95 % and more, whoever came before: a
  shorter time would hold more or less of the batches of a second in which payment answers.

A round in which nobody was refused, nothing failed, nobody was stopped is void. `--part` makes the
times shorter. Four minutes at full size.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from bench.figures import Figures
from config.schema import ServicesConfig, ShardConfig
from sagacity.errors import SagacityError
from tests.chaos import processes
from tests.chaos.cluster import SHARDS, RoundFailed
from tests.chaos.commands import add_json, add_list, add_seed, end
from tests.chaos.scrape import samples
from tests.chaos.shop import Shop

PACE_MS: Final = 2.0
GOODPUT_AT_LEAST: Final = 0.95
COMMANDS_AT_MOST: Final = 1.1
OVER: Final = 3.0
SERVED_S: Final = 10.0  # two of `shard.queue_age_max_ms`
WITHIN: Final = 0.8  # what it can do, also in a minute in which the machine does other things
SLOW_MS: Final = 14.0  # a credit of 2 x 256 takes 7 s: every attempt's time is over by then
BUDGET: Final = ShardConfig()
CREDIT: Final = ServicesConfig().credit


def one_shard(shop: Shop, part: float, figures: Figures) -> None:
    """A8: all the load is on one shard, and the other one does not notice."""
    everyone = shop.customers()
    capacity = shop.capacity(everyone, OVER * 1000 / PACE_MS)
    figures.add("A8: capacity", "/s", capacity)
    crowd, others = shop.customers(0), shop.customers(1)
    [calm] = shop.run(10 * part, (others, capacity / 5))
    shop.run(3, (crowd, OVER * capacity), (others, capacity / 5))
    seen, beside = shop.run(20 * part, (crowd, OVER * capacity), (others, capacity / 5))
    waiting = len(crowd)
    figures.add("A8: goodput of the others, alone", "", calm.goodput)
    figures.add(
        "A8: goodput of the others beside it", "", beside.goodput, at_least=GOODPUT_AT_LEAST
    )
    figures.add("A8: their p99", "s", beside.p99_s)
    figures.add("A8: customers of the one shard", "", seen.came)
    figures.add("A8: of them not served", "", waiting + crowd.refused, at_least=1)
    figures.add("A8: of them served", "/s", seen.rate)
    crowd.close()


def storm(shop: Shop, part: float, figures: Figures) -> None:
    """B12: a service that fails, or is slow, gets hardly more than it would get healthy."""
    seconds = 30 * part
    for how in ("fails", "is slow"):
        customers = shop.customers()
        rate = 1000 / PACE_MS * WITHIN
        shop.run(3, (customers, rate))
        before, begun = counted(shop), time.monotonic()
        if how == "fails":
            shop.fail()
        else:
            shop.pace(SLOW_MS)
        [offered] = shop.run(seconds, (customers, rate))
        mended = time.monotonic()
        shop.pace(0.0)
        shop.until_served(customers, seconds=120)
        after, took = counted(shop), time.monotonic() - begun
        noted = [each for each in shop.runs() if each[0] >= begun]
        runs = [(number, way) for _, number, way in noted]
        repeated, succeeded, ended = (now - then for now, then in zip(after, before, strict=True))
        meanwhile = sum(at < mended for at, _, _ in noted) + repeated
        again = len(runs) - len(set(runs)) + repeated
        budget = SHARDS * (BUDGET.retry_burst + BUDGET.retry_per_second * took)
        budget += succeeded * BUDGET.retry_per_success_permille / 1000
        figures.add(f"B12: {how}: attempts that ended badly", "", ended, at_least=1)
        figures.add(f"B12: {how}: checkouts offered", "", offered.came)
        figures.add(
            f"B12: {how}: commands of that, meanwhile",
            "",
            meanwhile / offered.came,
            at_most=COMMANDS_AT_MOST,
        )
        figures.add(f"B12: {how}: commands that had to be, in all", "", len(set(runs)))
        figures.add(f"B12: {how}: commands again, in all", "", again, at_most=budget)
        shop.pace(PACE_MS)


def counted(shop: Shop) -> tuple[int, int, int]:
    """Give what came to payment again and was answered from its rows, what succeeded, what did not.

    The first two are what its workers count, the third what the shards do.
    """
    repeated = succeeded = bad = 0
    for row in shop.rows():
        if row["role"] not in {"payment", "shard"} or not row["metrics_port"]:
            continue
        for (name, labels), value in samples(row).items():
            said = dict(labels)
            if name == "saga_duplicates_total" and said["where"] == "command":
                repeated += int(value)
            elif name != "saga_step_attempts_total":
                continue
            elif row["role"] == "payment":
                succeeded += int(value) * (said["outcome"] == "ok")
            elif said["step"] == "ChargePayment" and said["outcome"] in {"failed", "timed_out"}:
                bad += int(value)
    return repeated, succeeded, bad


def metastable(shop: Shop, part: float, figures: Figures) -> None:
    """G3: overload and an outage leave nothing behind for long."""
    customers = shop.customers()
    capacity = shop.capacity(customers, OVER * 1000 / PACE_MS)
    figures.add("G3: capacity", "/s", capacity)
    [over] = shop.run(60 * part, (customers, OVER * capacity))
    figures.add("G3: served at 3 x load, of capacity", "", over.rate / capacity)
    figures.add("G3: customers who wait after it", "", len(customers), at_least=1)
    pool = shop.processes("payment")
    stopped = processes.send(pool, signal.SIGSTOP)
    [away] = shop.run(10 * part, (customers, OVER * capacity))
    processes.send(pool, signal.SIGCONT)
    figures.add("G3: processes of payment stopped", "", stopped, at_least=1)
    figures.add("G3: served meanwhile", "/s", away.rate)
    mended = time.monotonic()
    rate = WITHIN * capacity
    stretches = [shop.run(5, (customers, rate))[0] for _ in range(6)]
    [later] = shop.run(20, (customers, rate))
    shop.until_served(customers)
    figures.add("G3: all over after", "s", time.monotonic() - mended)
    figures.add("G3: goodput from 30 s on", "", later.goodput, at_least=GOODPUT_AT_LEAST)
    figures.add("G3: goodput of each 5 s before", "", [each.goodput for each in stretches])
    # Those who came before and still wait are served, too.
    served = [each.served_in_time(SERVED_S) for each in (*stretches, later)]
    figures.add("G3: who came is served within 10 s", "", served)


WHICH: Final[dict[str, Callable[[Shop, float, Figures], None]]] = {
    "one_shard": one_shard,
    "storm": storm,
    "metastable": metastable,
}


def one(name: str, args: argparse.Namespace, figures: Figures) -> None:
    """Do one of them on a cluster of its own; its books balance afterwards."""
    try:
        env = {"SAGACITY_SERVICES__CREDIT": str(args.credit)}
        with Shop(f"{args.seed}/{name}", pace_ms=args.pace, env=env) as shop:
            WHICH[name](shop, args.part, figures)
            shop.pace(0.0)
            shop.check_books(figures, f"{name}: ")
    except (RoundFailed, SagacityError) as error:
        figures.missing(f"{name}: to its end", "", str(error), at_most=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Do each of them.

    Returns:
        0 if everything that is asked is met, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.overload")
    add_list(parser, "--which", WHICH)
    parser.add_argument("--pace", type=float, default=PACE_MS, help="of a charge, milliseconds")
    parser.add_argument("--credit", type=int, default=CREDIT, help="of a worker, per shard")
    parser.add_argument("--part", type=float, default=1.0, help="of the full times")
    add_seed(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    figures = Figures(f"overload, {args.pace:g} ms a charge")
    for name in args.which:
        one(name, args, figures)
    return end(figures, args.json)


if __name__ == "__main__":
    sys.exit(main())
