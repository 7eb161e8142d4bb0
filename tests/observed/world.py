"""A world that is observed: a cluster under a steady load, and the real Prometheus that watches it.

Rules and alerts are those of config/prometheus, with the intervals and `for`s that they have. What
is done to it is for who uses it. Leaves no process and no file.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import apsw

from bench.in_flight import pool_stopped
from cluster.directory import DataDirectory, Lock
from cluster.observe import DECK, Customers
from cluster.prometheus import Prometheus
from sagacity.client import Client
from sagacity.errors import Conflict
from tests.chaos import injected, processes
from tests.chaos.cluster import OwnCluster, RoundFailed
from tests.observed.sick import FILE

TOP: Final = Path(__file__).parents[2]
RATE: Final = 20.0
ANSWER_S: Final = 30.0
SEEN_S: Final = 40.0  # for all processes to be scraped the first time; usually 10
PROCESSES: Final = 11  # supervisor, auditor, router, two shards, two workers of each service
CONFIG: Final = """
[services.pools]
inventory = "services.inventory:service"
payment = "tests.observed.sick:service"
shipping = "services.shipping:service"
"""

Deck = tuple[tuple[str, str, str], ...]


class World:
    """A cluster, its customers, and Prometheus. A context.

    Args:
        env: more of the cluster's environment.
        rate: checkouts a second.
        deck: how they end, in turn.

    Attributes:
        rate: of the steady customers.
        prometheus: that watches it.
        customers: the steady ones.
    """

    def __init__(
        self, env: Mapping[str, str] | None = None, *, rate: float = RATE, deck: Deck = DECK
    ) -> None:
        self.rate, self._deck = rate, deck
        self._all: list[Customers] = []
        self._stack = ExitStack()
        base = Path(tempfile.mkdtemp(prefix="sg-"))
        self._stack.callback(shutil.rmtree, base, ignore_errors=True)
        config = base / "observed.toml"
        config.write_text(CONFIG)
        paths = [str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {"PYTHONPATH": os.pathsep.join(paths), **(env or {})}
        self._cluster = OwnCluster(base, arguments=["--config", str(config)], env=env, logs=True)

    def __enter__(self) -> Self:
        with self._stack as stack:
            stack.enter_context(self._cluster)
            self.prometheus = stack.enter_context(Prometheus(self._cluster.up.metrics))
            self.customers = self.customers_of(self.rate, self._deck)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    # -- time -------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Let customers come who are due; about 50 ms."""
        for customers in self._all:
            customers.turn()

    def turn_for(self, seconds: float) -> None:
        """Go on for a time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn()

    def turn_until(self, holds: Callable[[], object], seconds: float, what: str) -> None:
        """Go on until something holds.

        Raises:
            RoundFailed: it does not, in this time.
        """
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until:
                raise RoundFailed(f"{what} did not happen within {seconds:g} s")
            self.turn()

    def settle(self, seconds: float) -> None:
        """Go on until Prometheus has seen every process, and then for a time."""
        what = f"a scrape of {PROCESSES} processes"
        self.turn_until(lambda: self.prometheus.scraped() == PROCESSES, SEEN_S, what)
        self.turn_for(seconds)

    # -- what is done to it -----------------------------------------------------------------------

    def customers_of(self, rate: float, deck: Deck = DECK) -> Customers:
        """Let more come, besides; with rate 0 those alone who are sent."""
        made = Customers(self._cluster.url, rate, deck)
        self._stack.callback(made.close)
        self._all.append(made)
        return made

    def sicken(self, how: str) -> None:
        """Make payment sick (`sick`); empty: well again."""
        file = self._cluster.data / "services" / FILE
        new = file.with_name("sick.new")
        new.write_text(how)
        new.replace(file)

    def status(self) -> dict[str, Any]:
        """Ask for the cluster's status."""
        with Client(self._cluster.url, timeout_s=ANSWER_S) as client:
            return client.status()

    def client(self) -> Client:
        """Give a client; close it."""
        return Client(self._cluster.url, timeout_s=ANSWER_S)

    def process(self, role: str, index: int = 0) -> processes.Process:
        """Give a process that runs."""
        rows = self.status()["processes"]
        (pid,) = [row["pid"] for row in rows if (row["role"], row["index"]) == (role, index)]
        found = processes.look(pid)
        if found is None:
            raise RoundFailed(f"{role} {index} is not there")
        return found

    def kill(self, role: str, index: int = 0) -> None:
        """Kill a process with SIGKILL; the supervisor starts it again."""
        processes.kill([self.process(role, index)])

    def keep_down(self, shard: int) -> None:
        """Kill a shard and take its lock: nobody can own it until this world ends."""
        directory = DataDirectory(self._cluster.data)
        self.kill("shard", shard)
        until = time.monotonic() + ANSWER_S
        while True:
            try:
                lock: Lock = directory.own_shard(shard)
                break
            except Conflict:
                if time.monotonic() > until:
                    raise RoundFailed(f"nobody lets go of shard {shard}") from None
                self.kill("shard", shard)
        self._stack.callback(lock.release)

    def change(self, service: str, sql: str) -> None:
        """Change one row of a service's database behind its back."""
        path = self._cluster.data / "services" / f"{service}.db"
        with closing(apsw.Connection(str(path))) as db:
            db.set_busy_timeout(5_000)
            db.execute(sql)
            if db.changes() != 1:
                raise RoundFailed(f"{db.changes()} rows were changed: {sql}")

    def stop_payment(self) -> None:
        """Let no worker of payment work, until this world ends."""
        self._stack.enter_context(pool_stopped(self._cluster.up))

    def slow_syncs(self, shard: int, ms: int) -> None:
        """Have each sync of a shard take longer, until this world ends.

        Raises:
            NoStrace: it cannot be done here; the text says what to do.
        """
        injected.require()
        syncs = "fdatasync,fsync"
        tracer = subprocess.Popen(
            [
                *("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={syncs}"),
                *("-e", f"inject={syncs}:delay_enter={ms * 1000}"),
                *("-p", str(self.process("shard", shard).pid)),
            ],
            stdin=subprocess.DEVNULL,
        )
        self._stack.callback(tracer.wait)
        self._stack.callback(tracer.terminate)

    def kill_all(self) -> None:
        """Kill the supervisor, with which everything ends."""
        self._cluster.up.process.kill()
        self._cluster.up.process.wait()
