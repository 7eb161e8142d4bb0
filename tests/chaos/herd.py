"""Many who come back at the same moment (PROOF G2, A9, A10), on real processes.

    python -m tests.chaos.herd [--which pool,shard,failed,router] [--part 1] [--seed S]
                               [--json FILE]

Two thousand and more sagas are in flight, or customers wait, when what they wait for comes back:

* pool: both payment processes stand still for some seconds, then go on. What a worker has at one
  time stays under the credit that it gave, and it gets hardly a command twice.
* shard: both shards are killed. What they had given out is given out once more, at most the credit
  of all; nothing that waited was ever out.
* failed: everything has failed at payment, which is sick; both shards are killed. A restart is no
  licence: in the first second payment gets again what was out, and what the retry budgets give.
* router: it is killed. Customers ask again at once, all of them; each is answered (A9). While one
  shard is stopped and killed beside it, the other's customers are served (A10).

Who had nothing in flight at that moment: void. A minute and a half at full size.
"""

import argparse
import signal
import sys
import threading
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
from tests.chaos.shop import Customers, Shop

RATE: Final = 800.0
PACE_MS: Final = 2.0
IN_FLIGHT_AT_LEAST: Final = 1_000
CREDIT: Final = ServicesConfig().credit
BUDGET: Final = ShardConfig()
COMMANDS_AT_MOST: Final = 1.1
SAMPLED_S: Final = 0.05


class Busy(threading.Thread):
    """Looks again and again how many commands payment's workers have; the greatest is `most`."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self.looks = 0
        self._rows = [row for row in shop.rows("payment") if row["metrics_port"]]
        self._over = threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.wait(SAMPLED_S):
            for row in self._rows:
                try:
                    found = samples(row)
                except OSError:
                    continue
                self.looks += 1
                self.most = max(self.most, found.get(("saga_worker_busy", ()), 0.0))

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join()


def in_flight(shop: Shop, customers: Customers, seconds: float) -> int:
    """Let customers come for a time; give how many sagas are in flight then.

    Raises:
        RoundFailed: too few.
    """
    shop.run(seconds, (customers, RATE))
    if len(customers) < IN_FLIGHT_AT_LEAST:
        raise RoundFailed(f"void: {len(customers)} in flight")
    return len(customers)


def again(shop: Shop, begun: float, seconds: float = 1e9) -> tuple[int, int]:
    """Give how many commands payment ran since an instant, and how many it had run before."""
    seen: set[tuple[int, int]] = set()
    ran = repeated = 0
    for at, number, way in shop.runs():
        if begun <= at < begun + seconds:
            ran += 1
            repeated += (number, way) in seen
        seen.add((number, way))
    return ran, repeated


def pool(shop: Shop, customers: Customers, part: float, figures: Figures) -> None:
    """The whole pool stands still, then goes on."""
    shop.run(2, (customers, RATE / 4))
    stopped = processes.send(shop.processes("payment"), signal.SIGSTOP)
    open_then = in_flight(shop, customers, 5 * part)
    busy = Busy(shop)
    begun = time.monotonic()
    processes.send(shop.processes("payment"), signal.SIGCONT)
    busy.start()
    shop.until_served(customers)
    busy.end()
    ran, repeated = again(shop, begun)
    figures.add("G2 pool: processes stopped", "", stopped, at_least=1)
    figures.add("G2 pool: in flight behind it", "", open_then, at_least=IN_FLIGHT_AT_LEAST)
    figures.add("G2 pool: commands at a worker at one time", "", busy.most, at_most=SHARDS * CREDIT)
    figures.add("G2 pool: looks at that", "", busy.looks, at_least=1)
    figures.add("G2 pool: commands for each", "", ran / (ran - repeated), at_most=COMMANDS_AT_MOST)


def shard(shop: Shop, customers: Customers, _part: float, figures: Figures) -> None:
    """Both shards are killed with much in flight."""
    open_then = in_flight(shop, customers, 3)
    killed = processes.kill(shop.processes("shard"))
    begun = time.monotonic()
    busy = Busy(shop)
    busy.start()
    shop.until_served(customers)
    busy.end()
    ran, repeated = again(shop, begun)
    figures.add("G2 shard: shards killed", "", killed, at_least=SHARDS)
    figures.add("G2 shard: in flight then", "", open_then, at_least=IN_FLIGHT_AT_LEAST)
    figures.add(
        "G2 shard: commands at a worker at one time", "", busy.most, at_most=2 * SHARDS * CREDIT
    )
    figures.add("G2 shard: commands run", "", ran, at_least=1)
    figures.add("G2 shard: of them again", "", repeated, at_most=SHARDS * CREDIT)


def failed(shop: Shop, customers: Customers, part: float, figures: Figures) -> None:
    """Both shards are killed while all that is in flight has failed."""
    shop.pace(0.0)
    shop.run(2, (customers, RATE / 4))
    shop.fail()
    open_then = in_flight(shop, customers, 5 * part)
    killed = processes.kill(shop.processes("shard"))
    begun = time.monotonic()
    time.sleep(6.0)  # recovery, and what follows; customers ask nothing meanwhile
    runs = [at for at, _, _ in shop.runs() if at >= begun]
    first = min(runs, default=begun)
    _, repeated = again(shop, first, 1.0)
    shop.pace(0.0)
    shop.until_served(customers)
    once_more = SHARDS * (CREDIT + BUDGET.retry_burst + BUDGET.retry_per_second)
    figures.add("G2 failed: shards killed", "", killed, at_least=SHARDS)
    figures.add("G2 failed: in flight then", "", open_then, at_least=IN_FLIGHT_AT_LEAST)
    figures.add("G2 failed: commands since", "", len(runs), at_least=1)
    figures.add("G2 failed: again in the first second", "", repeated, at_most=once_more)


def router(shop: Shop, customers: Customers, part: float, figures: Figures) -> None:
    """The router is killed; then one shard is."""
    open_then = in_flight(shop, customers, 3 * part)
    killed = processes.kill(shop.processes("router"))
    begun = time.monotonic()
    served = len(customers.served)
    while len(customers.served) == served:
        customers.hear(0.01)
        if time.monotonic() - begun > 30:
            raise RoundFailed("nobody was served by the next router")
    figures.add("A9: routers killed", "", killed, at_least=1)
    figures.add("A9: customers who waited", "", open_then, at_least=IN_FLIGHT_AT_LEAST)
    figures.add("A9: first answer after", "s", time.monotonic() - begun, at_most=5)
    shop.until_served(customers)
    figures.add("A9: customers not answered", "", customers.unsure, at_most=0)
    here, there = shop.customers(0), shop.customers(1)
    pids = [row["pid"] for row in shop.rows("shard") if row["index"] == 0]
    downed = [process for pid in pids if (process := processes.look(pid)) is not None]
    stopped = processes.send(downed, signal.SIGSTOP)
    _, beside = shop.run(8 * part, (here, 50.0), (there, 50.0))
    waiting = len(here)
    processes.kill(downed)
    shop.until_served(here, there)
    figures.add("A10: shards down", "", stopped, at_least=1)
    figures.add("A10: their customers who waited", "", waiting, at_least=1)
    figures.add("A10: goodput of the others", "", beside.goodput, at_least=0.95)
    unsure = here.unsure + there.unsure + here.refused + there.refused
    figures.add("A10: customers not served in the end", "", unsure, at_most=0)


WHICH: Final[dict[str, Callable[[Shop, Customers, float, Figures], None]]] = {
    "pool": pool,
    "shard": shard,
    "failed": failed,
    "router": router,
}


def one(name: str, args: argparse.Namespace, figures: Figures) -> None:
    """Do one of them on a cluster of its own; its books balance afterwards."""
    try:
        with Shop(f"{args.seed}/{name}", pace_ms=PACE_MS) as shop:
            WHICH[name](shop, shop.customers(), args.part, figures)
            shop.check_books(figures, f"{name}: ")
    except (RoundFailed, SagacityError) as error:
        figures.missing(f"{name}: to its end", "", str(error), at_most=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Do each of them.

    Returns:
        0 if everything that is asked is met, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.herd")
    add_list(parser, "--which", WHICH)
    parser.add_argument("--part", type=float, default=1.0, help="of the full times")
    add_seed(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    figures = Figures("herds")
    for name in args.which:
        one(name, args, figures)
    return end(figures, args.json)


if __name__ == "__main__":
    sys.exit(main())
