"""`make observe`: a cluster, a steady load with declines, Prometheus with rules and alerts.

For who wants to see the metrics move, or to put Grafana before them. It says where everything is
and what to look at; Ctrl-C ends all of it. Knows the faces, no room behind them.
"""

import argparse
import itertools
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Final

from cluster.dashboards import DASHBOARDS
from cluster.panels import filled
from cluster.private import ClusterProcess, start_private
from cluster.prometheus import PORT, Prometheus, find
from cluster.telemetry import PortTaken
from sagacity import wire
from sagacity.client import Client
from sagacity.connection import Connection
from sagacity.errors import NoOutcome, SagacityError
from sagacity.messages import Checkout, Item

RATE: Final = 20.0
RATE_MAX: Final = 2_000.0
TURN_S: Final = 0.05
TELLS_S: Final = 10.0  # between two lines that say how it goes
LATE_S: Final = 1.0  # what a pause has missed is not made up for

# (user, SKU, address): of twenty checkouts two are declined, one finds no stock, one no carrier.
DECK: Final = (
    *[("u42", "abc123", "123 Main St")] * 8,
    ("u999", "abc123", "1 Elm St"),
    *[("u42", "xyz789", "123 Main St")] * 4,
    ("u42", "sku_out_of_stock", "2 Elm St"),
    *[("u42", "abc123", "123 Main St")] * 4,
    ("u999", "xyz789", "1 Elm St"),
    ("u42", "xyz789", "no_carrier"),
)

_ABOUT: Final = (
    "Run a cluster on a temporary directory, put a steady load with declines on it, and watch it "
    "with Prometheus, our rules and alerts. Ctrl-C ends all of it."
)


class Customers:
    """Customers who come at a steady rate, whatever becomes of the earlier ones.

    Args:
        url: the router's address.
        rate: of them a second; 0 for those alone who are sent by `come`.
        deck: (user, SKU, address) of each in turn.

    Attributes:
        completed: checkouts; so aborted; failed is any that got no outcome.
    """

    def __init__(self, url: str, rate: float, deck: Sequence[tuple[str, str, str]] = DECK) -> None:
        self.asked = self.completed = self.aborted = self.failed = 0
        self._connection = Connection(url)
        self._rate = rate
        self._next_at = time.monotonic()
        self._deck = itertools.cycle(deck)

    def turn(self) -> None:
        """Let come who is due, then take what is answered."""
        now = time.monotonic()
        self._next_at = max(self._next_at, now - LATE_S)
        while self._rate and self._next_at <= now:
            self._next_at += 1 / self._rate
            self.come(*next(self._deck))
        for _, reply in self._connection.poll(TURN_S):
            if reply.code is not None:
                self.failed += 1
            elif b"COMPLETED" in reply.body:
                self.completed += 1
            else:
                self.aborted += 1

    def come(self, user: str, sku: str, address: str, quantity: int = 1) -> str:
        """Let one more come; give the id of the checkout."""
        saga_id = f"observe-{secrets.token_hex(12)}"
        cart = Checkout(saga_id, user, [Item(sku, quantity)], address)
        self._connection.ask(wire.START, saga_id, wire.pack(cart))
        self.asked += 1
        return saga_id

    @property
    def in_flight(self) -> int:
        """Checkouts that are not answered."""
        return len(self._connection)

    def told(self) -> str:
        """Say how it goes."""
        return (
            f"{self.asked} checkouts: {self.completed} completed, {self.aborted} aborted, "
            f"{self.failed} without an outcome, {self.in_flight} in flight"
        )

    def stop(self) -> None:
        """Let nobody come any more; `turn` goes on to take answers."""
        self._rate = 0

    def close(self) -> None:
        """Go away; what was asked goes on without them."""
        self._connection.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it until Ctrl-C or SIGTERM.

    Args:
        argv: without the program's name; those of this process if left out.

    Returns:
        0; 1 if something of it ended by itself; 2 if it cannot be run here, which is said.
    """
    parser = argparse.ArgumentParser(
        prog="python -m cluster.observe", description=_ABOUT, allow_abbrev=False
    )
    parser.add_argument(
        "--rate", type=_rate, default=RATE, metavar="R", help=f"checkouts a second ({RATE:g})"
    )
    parser.add_argument(
        "--port", type=_port, metavar="P", help=f"of Prometheus ({PORT}; if taken, a free one)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep the cluster's directory")
    given = parser.parse_args(argv)
    # SIGINT too: a shell that starts it in the background has had it ignored.
    before = {n: signal.signal(n, _on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _observe(given)
    except SagacityError as error:
        print(error.text, file=sys.stderr)  # noqa: T201 - what the command says
        return error.exit_code
    except KeyboardInterrupt:
        _tell("\nEnded: load, Prometheus and cluster.")
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= RATE_MAX:
        raise argparse.ArgumentTypeError(f"a rate is above 0 and at most {RATE_MAX:g}, not {text}")
    return rate


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"a port is 1..65535, not {port}")
    return port


def _observe(given: argparse.Namespace) -> int:
    find()  # before anything is started
    with ExitStack() as stack:
        cluster = stack.enter_context(start_private(given.data))
        prometheus = stack.enter_context(_prometheus(cluster.metrics, given.port))
        customers = Customers(cluster.url, given.rate)
        stack.callback(customers.close)
        _say_where(cluster, prometheus, given.rate)
        return _watch(cluster, prometheus, customers)


def _prometheus(metrics_url: str, asked: int | None) -> Prometheus:
    """Give one on the port that was asked for, else on the usual one or a free one."""
    if asked is not None:
        return Prometheus(metrics_url, asked)
    try:
        return Prometheus(metrics_url, PORT)
    except PortTaken:
        found = Prometheus(metrics_url)
        told = f"port {PORT} is taken: Prometheus is on {found.url.rpartition(':')[2]}"
        print(told, file=sys.stderr)  # noqa: T201 - what the command says
        return found


def _watch(cluster: ClusterProcess, prometheus: Prometheus, customers: Customers) -> int:
    """Go on until something ends; tell now and then how it goes."""
    begun = tells_at = time.monotonic()
    while True:
        customers.turn()
        for name, process in (("the cluster", cluster.process), ("prometheus", prometheus.process)):
            if process.poll() is not None:
                print(f"{name} ended by itself", file=sys.stderr)  # noqa: T201 - what the command says
                return 1
        now = time.monotonic()
        if now >= tells_at + TELLS_S:
            tells_at = now
            _tell(f"{now - begun:5.0f} s  {customers.told()}; alerts: {_alerts(prometheus)}")


def _alerts(prometheus: Prometheus) -> str:
    try:
        return ", ".join(sorted({name for name, _ in prometheus.firing()})) or "none"
    except NoOutcome as error:
        return error.text


def _say_where(cluster: ClusterProcess, prometheus: Prometheus, rate: float) -> None:
    with Client(cluster.url) as client:
        pools = client.status()["processes"]
    shards = [row for row in pools if row["role"] == "shard"]
    _tell(
        f"A cluster, {rate:g} checkouts a second on it (of twenty two are declined, one finds no "
        "stock, one no carrier), and Prometheus with our rules and alerts.\n\n"
        f"  cluster      {cluster.url}\n"
        f"  metrics      {cluster.metrics}\n"
        f"  Prometheus   {prometheus.url}\n\n"
        "Look at, after some 20 s:\n"
        f"  {prometheus.url}/targets   every process, scraped each 5 s\n"
        f"  {prometheus.url}/alerts    none fires, until you do something\n"
    )
    choices = _choices(pools)
    for graph in DASHBOARDS[0].above:
        *_, expr = graph.queries.values()
        _tell(f"{graph.title}:\n  {prometheus.graph(filled(expr, '1m', choices))}")
    _tell(
        "\n"
        "Grafana draws them better: docs/observing.md has the command.\n\n"
        "Do something to it, in another terminal:\n"
        f"  export SAGACITY_URL={cluster.url}\n"
        "  .venv/bin/sagacity status\n"
        f"  kill -9 {shards[0]['pid']}      # shard 0; it is back within a second\n"
        "  .venv/bin/sagacity list --status aborted --limit 5\n\n"
        "Ctrl-C ends all of it.\n"
    )


def _choices(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Give what Grafana's variables would be, all chosen."""
    roles = {row["role"] for row in rows} - {"router", "shard", "supervisor"}
    shards = [str(row["index"]) for row in rows if row["role"] == "shard"]
    return {"shard": shards, "service": sorted(roles)}


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
