"""A trial: a cluster under load to which something is done, and the checks that end it.

The kill rounds' sister for what is measured: who uses it does one thing after the other by `load`
and `status`, then `finish`. Leaves no process and no file, whatever happens.
"""

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cluster.checking import check
from sagacity.checker.verdict import HOLDS
from tests.chaos import processes
from tests.chaos.cluster import SHARDS, OwnCluster, RoundFailed
from tests.chaos.load import WAIT_S, Load

BACK_S: Final = 30.0  # for everything to be up again
IN_FLIGHT_MAX: Final = 20_000  # the backlog of any rate here is far below
PLAIN: Final = ("completes", "declined", "no_carrier")  # endings for which no worker has to die
WITHOUT_RECORD: Final = (3, 4, 6, 7, 8, 9, 10)  # invariants that need no client's record


class Trial:
    """A cluster of its own, and its load. A context: what is in it runs in the block.

    Args:
        seed: of ids and carts.
        rate: checkouts a second, whatever becomes of the earlier ones.
        endings: those that are asked for.
        env: more of the cluster's environment.
        base: an empty directory with a short path; a temporary one if left out. The cluster's
            directory is `base/data` and may be there already.
        arguments: more flags of `up`.
        through: gives the address that the load uses in place of the router's.

    Attributes:
        data: the cluster's directory.
        violations: what was not as it has to be.
        load: what was asked and answered.
        url: the router's address.
    """

    def __init__(
        self,
        seed: str,
        *,
        rate: float,
        endings: Collection[str] = PLAIN,
        env: Mapping[str, str] | None = None,
        base: Path | None = None,
        arguments: Sequence[str] = (),
        through: Callable[[str], str] | None = None,
    ) -> None:
        self.violations: list[str] = []
        self._stack = ExitStack()
        env = {"SAGACITY_ROUTER__CLIENT_INFLIGHT_MAX": str(IN_FLIGHT_MAX), **(env or {})}
        arguments = ["--shards", str(SHARDS), *arguments]
        self._cluster = OwnCluster(base, arguments=arguments, env=env)
        self.data = self._cluster.data
        self._seed = seed
        self._rate = rate
        self._endings = endings
        self._through = through

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.url = stack.enter_context(self._cluster).url
            rng = random.Random(self._seed)
            self.load = Load(
                self._through(self.url) if self._through else self.url,
                rng,
                self.violations,
                IN_FLIGHT_MAX,
                rate=self._rate,
                endings=self._endings,
            )
            stack.callback(self.load.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def rows(self, role: str = "") -> list[dict[str, Any]]:
        """Give the processes that `status` knows, all or of a role; the load goes on meanwhile."""
        found: list[dict[str, Any]] = self.load.status()["processes"]
        return [row for row in found if role in {"", row["role"]}]

    def worker(self, service: str) -> processes.Process:
        """Give the worker of a service that works, once there is one and another stands by.

        Raises:
            RoundFailed: it does not come to this.
        """
        found: list[processes.Process] = []

        def both() -> bool:
            rows = self.rows(service)
            at_work = [processes.look(row["pid"]) for row in rows if row["state"] == "up"]
            found[:] = [process for process in at_work if process is not None]
            return bool(found) and any(row["state"] == "standby" for row in rows)

        self.load.turn_until(both, BACK_S, f"one {service} working and one standing by")
        return found[0]

    def finish(self) -> dict[str, Any]:
        """End the load; check every answer, every repeat, the books.

        Returns:
            The audit's report.
        """
        load = self.load
        load.finish(WAIT_S)
        load.ask_all_again(WAIT_S)
        load.judge()
        return load.check_books(self.url)

    def stop(self) -> None:
        """Stop the cluster as its user would; a violation if it does not end well."""
        if (code := self._cluster.stop()) != 0:
            self.load.violation(f"the cluster ended with {code}")

    def check_disk(self) -> int:
        """Have the invariants judged on what it has left on disk; give how many sagas that are."""
        report = check(self.data, (), WITHOUT_RECORD)
        for each in report["invariants"]:
            if each["verdict"] != HOLDS:
                told = f"{each['findings'][:3]} {each['why']}"
                self.load.violation(f"invariant {each['number']} {each['verdict']}: {told}")
        sagas: int = report["sagas"]
        return sagas


def since(trial: Trial, begun: float, seconds: float, what: str) -> float:
    """Go on until a checkout that was asked after an instant is answered.

    Args:
        trial: under load.
        begun: the instant, time.monotonic.
        seconds: to wait for it.
        what: the answer is of, for people.

    Returns:
        The instant of that answer.

    Raises:
        RoundFailed: none came in time.
    """
    load = trial.load
    mark = len(load.answered)

    def answered() -> float | None:
        fresh = load.answered[mark:]
        return next((at for at, saga_id in fresh if load.asked[saga_id].at >= begun), None)

    load.turn_until(answered, seconds, f"an answer {what}")
    found = answered()
    if found is None:
        raise RoundFailed(f"no answer {what} after {time.monotonic() - begun:.1f} s")
    return found
