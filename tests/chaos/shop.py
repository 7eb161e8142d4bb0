"""A shop: a cluster of its own whose payment has a known limit, and customers who come by schedule.

For campaigns of load. Customers do not wait for each other: so many a second come, whatever became
of the earlier ones; each asks as the client library does and waits as long. What a customer costs
here is 20 us, since cluster and customers share the machine. Leaves no process and no file.
"""

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bench.figures import Figures
from bench.load import body_of
from cluster.audit import audit
from cluster.directory import DataDirectory
from sagacity import wire
from sagacity.asks import WAIT_S
from sagacity.client import Client
from sagacity.connection import Connection
from sagacity.errors import NotTaken
from tests.chaos import processes
from tests.chaos.cluster import OwnCluster, RoundFailed
from tests.chaos.paced import FAILS, RUN

TOP: Final = Path(__file__).parents[2]
# Between two looks at what is answered. Seldom, since a connection that gives up a request looks
# at all of them: for the 40 000 that one stands for here, 2 ms each time.
TURN_S: Final = 0.025
ASKED_MAX: Final = 500  # in one turn: who came late must not keep answers waiting
MANY: Final = 1_000_000  # customers that one connection stands for
BACK_S: Final = 60.0
CALIBRATED_S: Final = 5.0
FAULTS_TOLD_MAX: Final = 5
CONFIG: Final = """
[services.pools]
inventory = "services.inventory:service"
payment = "tests.chaos.paced:service"
shipping = "services.shipping:service"
"""


class Customers:
    """Those who come through one connection.

    Args:
        url: the router's address.
        rng: of ids.
        wanted: which ids they take; all, if left out.

    Attributes:
        came: the instant at which each came, in order.
        served: of those whose checkout completed: the instant, and the seconds that it took.
        refused: who was told 11 to the end.
        unsure: who was told nothing, or another error, to the end.
    """

    def __init__(
        self, url: str, rng: random.Random, wanted: Callable[[str], bool] | None = None
    ) -> None:
        self.came: list[float] = []
        self.served: list[tuple[float, float]] = []
        self.refused = 0
        self.unsure = 0
        self._rng = rng
        self._wanted = wanted
        self._connection = Connection(url, timeout_s=WAIT_S)
        self._open: dict[int, float] = {}

    def __len__(self) -> int:
        """Give how many wait."""
        return len(self._open)

    def come(self, count: int) -> None:
        """Let so many more come."""
        for _ in range(count):
            saga_id = f"shop-{self._rng.getrandbits(96):024x}"
            while self._wanted is not None and not self._wanted(saga_id):
                saga_id = f"shop-{self._rng.getrandbits(96):024x}"
            token = self._connection.ask(wire.START, saga_id, body_of(saga_id, declined=False))
            now = time.monotonic()
            self.came.append(now)
            self._open[token] = now

    def hear(self, wait_s: float) -> None:
        """Take what is answered."""
        for token, reply in self._connection.poll(wait_s):
            came = self._open.pop(token)
            now = time.monotonic()
            if reply.code is None and b"COMPLETED" in reply.body:
                self.served.append((now, now - came))
            elif reply.code == NotTaken.code:
                self.refused += 1
            else:
                self.unsure += 1

    def close(self) -> None:
        """Go away; what was asked goes on without them."""
        self._connection.close()


class Stretch:
    """A stretch of time, and what became of customers in it.

    Args:
        came: as of customers.
        served: likewise; more are when it is over.
        begun: instant, time.monotonic.
        ended: likewise.
    """

    def __init__(
        self,
        came: Sequence[float],
        served: Sequence[tuple[float, float]],
        begun: float,
        ended: float,
    ) -> None:
        self._served, self._begun, self._ended = served, begun, ended
        self.seconds = ended - begun
        self.came = sum(begun <= at < ended for at in came)
        waits = sorted(wait for at, wait in served if begun <= at < ended)
        self.served = len(waits)
        self.p99_s = waits[int(len(waits) * 0.99)] if waits else 0.0

    @property
    def goodput(self) -> float:
        """Checkouts that were completed, for each that came."""
        return self.served / self.came if self.came else 0.0

    def served_in_time(self, within_s: float) -> float:
        """Give the share of those who came in it whose checkout was completed within some seconds.

        Ask when nobody waits any more. Unlike `goodput` it has no batches: a service that answers
        five hundred at once does so once in a stretch of five seconds, or three times.
        """
        served = sum(
            self._begun <= at - wait < self._ended and wait <= within_s for at, wait in self._served
        )
        return served / self.came if self.came else 0.0

    @property
    def rate(self) -> float:
        """Checkouts that were completed, a second."""
        return self.served / self.seconds


class Shop:
    """A cluster and its customers. A context.

    Args:
        seed: of ids.
        pace_ms: that payment takes for a charge; 0: as long as it takes.
        env: more of the cluster's environment.
        arguments: more flags of `up`.

    Attributes:
        cluster: itself.
        data: its directory.
        config: its configuration file.
        url: the router's address.
        slots: which shard has which id.
    """

    def __init__(
        self,
        seed: str,
        *,
        pace_ms: float = 0.0,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._rng = random.Random(seed)
        self._stack = ExitStack()
        base = Path(tempfile.mkdtemp(prefix="sg-"))
        self._stack.callback(shutil.rmtree, base, ignore_errors=True)
        self.config = base / "shop.toml"
        self.config.write_text(CONFIG)
        paths = [str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {
            "PYTHONPATH": os.pathsep.join(paths),
            "SAGACITY_ROUTER__CLIENT_INFLIGHT_MAX": str(MANY),
            **(env or {}),
        }
        flags = ["--config", str(self.config), *arguments]
        self.cluster = OwnCluster(base, arguments=flags, env=env, logs=True)
        self.data = self.cluster.data
        self._pace = self.data / "services" / "pace"
        self._first_pace = pace_ms

    def __enter__(self) -> Self:
        with self._stack as stack:
            self.url = stack.enter_context(self.cluster).url
            self.slots = DataDirectory(self.data).read().slots
            self.pace(self._first_pace)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    # -- customers ------------------------------------------------------------------------------

    def customers(self, shard: int | None = None) -> Customers:
        """Give new customers, all of one shard's ids if one is named."""
        wanted = None if shard is None else lambda saga_id: self.slots.owner(saga_id) == shard
        made = Customers(self.url, self._rng, wanted)
        self._stack.callback(made.close)
        return made

    def run(self, seconds: float, *rates: tuple[Customers, float]) -> list[Stretch]:
        """Let so many come a second, of each kind; give what became of each kind meanwhile."""
        begun = time.monotonic()
        asked = [0] * len(rates)
        while (passed := time.monotonic() - begun) < seconds:
            for at, (customers, rate) in enumerate(rates):
                owed = min(int(passed * rate) - asked[at], ASKED_MAX)
                asked[at] += owed
                customers.come(owed)
            for customers, _ in rates:
                customers.hear(0.0)
            time.sleep(TURN_S)  # customers come by schedule, whatever is answered
        ended = time.monotonic()
        return [Stretch(each.came, each.served, begun, ended) for each, _ in rates]

    def until_served(self, *some: Customers, seconds: float = BACK_S) -> None:
        """Let nobody come until nobody waits.

        Raises:
            RoundFailed: somebody waits on.
        """
        give_up = time.monotonic() + seconds
        while any(map(len, some)):
            if time.monotonic() > give_up:
                raise RoundFailed(f"{sum(map(len, some))} customers wait for {seconds:g} s")
            for customers in some:
                customers.hear(TURN_S)

    def capacity(self, customers: Customers, guess: float) -> float:
        """Give how many checkouts a second are completed of too many; wait until all are over."""
        self.run(CALIBRATED_S / 2, (customers, guess))  # queues fill
        [seen] = self.run(CALIBRATED_S, (customers, guess))
        self.until_served(customers)
        return seen.rate

    # -- the service with a limit ---------------------------------------------------------------

    def pace(self, pace_ms: float) -> None:
        """Have payment take so long for a charge from now on."""
        self._say(f"{pace_ms:g}" if pace_ms else "")

    def fail(self) -> None:
        """Have payment fail from now on."""
        self._say(FAILS)

    def runs(self) -> list[tuple[float, int, int]]:
        """Give each time that payment did something: instant, number, direction."""
        file = self._pace.with_name("runs")
        raw = file.read_bytes() if file.exists() else b""
        return list(RUN.iter_unpack(raw[: len(raw) // RUN.size * RUN.size]))

    def _say(self, text: str) -> None:
        new = self._pace.with_name("pace.new")
        new.write_text(text)
        new.replace(self._pace)

    # -- processes ------------------------------------------------------------------------------

    def rows(self, role: str = "") -> list[dict[str, Any]]:
        """Give the processes that `status` knows, all or of a role."""
        with Client(self.url, timeout_s=BACK_S) as client:
            found: list[dict[str, Any]] = client.status()["processes"]
        return [row for row in found if role in {"", row["role"]}]

    def processes(self, role: str) -> list[processes.Process]:
        """Give the processes of a role that are there."""
        seen = [processes.look(row["pid"]) for row in self.rows(role) if row["pid"]]
        return [process for process in seen if process is not None]

    def everyone(self) -> dict[str, int]:
        """Give the process id of each process, by name."""
        return {f"{row['role']}-{row['index']}": row["pid"] for row in self.rows()}

    def logged(self, *events: str) -> list[dict[str, Any]]:
        """Give the lines that processes have logged of some events."""
        lines = self.cluster.log.read_text(errors="replace").splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in told if line.get("event") in events]

    def check_books(self, figures: Figures, what: str = "") -> None:
        """Audit the cluster, once nothing runs in it; tell the faults and enter how many.

        Args:
            figures: where they are counted.
            what: the books are of, before the figure's name.

        Raises:
            RoundFailed: something runs on.
        """
        report = self._audited()
        faults = report["faults"] or ([] if report["balanced"] else ["not balanced"])
        for fault in faults[:FAULTS_TOLD_MAX]:
            print(f"    {fault}", flush=True)
        count = len(faults) + report["sagas"]["stuck"]
        figures.add(f"{what}faults of the books", "", count, at_most=0)

    def _audited(self) -> dict[str, Any]:
        give_up = time.monotonic() + BACK_S
        with Client(self.url, timeout_s=BACK_S) as client:
            while True:
                report = audit(client)
                if not report["sagas"]["running"]:
                    return report
                if time.monotonic() > give_up:
                    raise RoundFailed(f"sagas run on: {report['sagas']}")
                time.sleep(0.2)  # between two looks: each asks every shard
