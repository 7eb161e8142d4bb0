"""Rounds of what chance brings, several on one cluster (PROOF, layer K).

A round is a burst of load in which, at a random moment, one thing happens: processes of one or of
several roles are killed together; two one after the other, a few milliseconds apart; or one is
stopped by SIGSTOP for a moment, alone or while another is killed. Then everything comes back, every
checkout of the burst ends as it has to, the books balance, no process counts a fault. At the end of
a cluster's rounds come the checks of `one_round`: all repeats, the stop, the rows on disk.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from sagacity.errors import SagacityError
from tests.chaos import processes
from tests.chaos.cluster import SERVICES, RoundFailed
from tests.chaos.load import WAIT_S
from tests.chaos.one_round import BACK_S, TARGETS, Round, Target
from tests.reached import Reached

KINDS: Final = {"kill": 35, "several": 25, "twice": 20, "pause": 10, "pause and kill": 10}
TOGETHER_MAX: Final = 3
APART_MS: Final = (0.5, 60.0)
# Beside the default: so small that a shard takes its rows apart all the time, also when it dies.
TAILS_BYTES: Final = (None, 64 << 10, 256 << 10)
PAUSE_S: Final = (0.02, 1.0)  # shorter than any patience: nobody may take it for the end
EVERYONE: Final = [target for each in TARGETS.values() for target in each]


class Plan(Struct):
    """What is to happen in a round.

    Args:
        kind: one of KINDS.
        targets: who is hit; the first one is stopped where there is a pause.
        after_s: of load, before it happens.
        apart_s: between the first and the second.
        pause_s: how long the stopped one stands still.
    """

    kind: str
    targets: list[Target]
    after_s: float
    apart_s: float
    pause_s: float

    def __str__(self) -> str:
        names = " + ".join(map(str, self.targets))
        if self.kind == "twice":
            return f"{names}, {self.apart_s * 1000:.1f} ms apart"
        if self.kind.startswith("pause"):
            return f"{names}, {self.kind} of {self.pause_s * 1000:.0f} ms"
        return names


class Hit(Struct):
    """What a round saw; times in milliseconds after the blow."""

    plan: Plan
    processes: int = 0  # that were alive and were hit
    in_flight: int = 0  # checkouts, at that moment
    before: int = 0  # answers until then
    answer_ms: float = 0.0  # the next answer
    up_ms: float = 0.0  # everything is up again
    violations: int = 0

    @property
    def killed(self) -> int:
        """How many processes kill -9 has ended."""
        return self.processes - self.plan.kind.startswith("pause")

    def line(self) -> str:
        """Give it as one line."""
        return (
            f"{self.plan}: {self.processes} hit, {self.in_flight} in flight; next answer "
            f"{self.answer_ms:.0f} ms, all up {self.up_ms:.0f} ms; "
            + (f"{self.violations} VIOLATIONS" if self.violations else "ok")
        )


def plan(rng: random.Random, seconds: float) -> Plan:
    """Draw what is to happen in a round of so much load."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    several = {"kill": 1, "several": rng.randint(2, TOGETHER_MAX), "pause": 1}.get(kind, 2)
    targets = rng.sample(EVERYONE, several)
    if kind.startswith("pause") and targets[0].role == "all":
        targets[0] = Target("shard", rng.randrange(2))  # a whole cluster is stopped by nobody
    return Plan(
        kind,
        targets,
        seconds * rng.uniform(0.2, 1.0),
        rng.uniform(*APART_MS) / 1000,
        rng.uniform(*PAUSE_S),
    )


class RandomRounds(Round):
    """Several rounds on one cluster.

    Args:
        plans: what is to happen, round by round.
        seed: of ids, carts and endings.
        base: an empty directory with a short path.
        tail_bytes: of journal rows, after which a shard compacts; the default's if left out.

    Attributes:
        hits: what each round saw, in order.
    """

    def __init__(
        self, plans: Sequence[Plan], seed: str, base: Path, tail_bytes: int | None = None
    ) -> None:
        env = {} if tail_bytes is None else {"SAGACITY_SHARD__TAIL_BYTES": str(tail_bytes)}
        super().__init__([], seed, base, 0.0, env)
        self._plans = plans
        self.hits: list[Hit] = []

    def run_all(self) -> list[str]:
        """Do all of it; no process is left afterwards, whatever happened.

        Returns:
            The violations, as sentences.
        """
        violations = self.seen.violations
        try:
            with ExitStack() as stack:
                self._start(stack)
                for planned in self._plans:
                    self._one(planned)
                self.seen.again = self.load.ask_all_again(WAIT_S)
                self.load.ask_other_content(20)
                self._check_running()
                self.recorder.quiet()
                self.recorder.end()
                self._stop()
            self.seen.checkouts, self.seen.repeats = len(self.load.asked), self.load.repeats
            self._judge()
        except (RoundFailed, SagacityError) as error:
            violations.append(f"{type(error).__name__}: {error}")
        return violations

    def _one(self, planned: Plan) -> None:
        hit = Hit(planned)
        before = len(self.seen.violations)
        self.hits.append(hit)
        self.recorder.planned(str(planned))
        try:
            self.load.resume()
            self.load.turn_for(planned.after_s)
            begun = self._strike(hit)
            self.recorder.struck(str(planned), hit.processes)
            self.load.finish(WAIT_S)
            fresh = (at for at, _ in self.load.answered[hit.before :])
            hit.answer_ms = (next(fresh, begun) - begun) * 1000
            self.seen.endings = dict(self.load.judge())
            self._check_running()
        finally:
            hit.violations = len(self.seen.violations) - before
            print(f"    {hit.line()}", flush=True)

    def _strike(self, hit: Hit) -> float:
        """Do what is planned, and go on until everything is up; give the instant of the blow."""
        planned, load = hit.plan, self.load
        groups: list[list[processes.Process]] = []

        def there() -> bool:
            rows = load.status()["processes"]
            groups[:] = [self._victims(target, rows) for target in planned.targets]
            return all(groups)

        load.turn_until(there, BACK_S, f"{planned} being there")
        hit.in_flight, hit.before = load.open, len(load.answered)
        if not hit.in_flight:
            raise RoundFailed("the round is void: nothing was in flight")
        begun = time.monotonic()
        dead = self._blow(hit, groups)
        if not hit.processes:
            raise RoundFailed("the round is void: no live process was hit")
        if any(process.pid == self._cluster.up.pid for process in dead):
            self._restart(begun)
        pids = {process.pid for process in dead}
        load.turn_until(lambda: self._all_up(pids), BACK_S, "everything being up again")
        hit.up_ms = (time.monotonic() - begun) * 1000
        return begun

    def _blow(self, hit: Hit, groups: list[list[processes.Process]]) -> list[processes.Process]:
        """Kill and stop; give who was killed."""
        planned = hit.plan
        if planned.kind == "twice":
            hit.processes = processes.kill(groups[0])
            time.sleep(planned.apart_s)  # not a turn of the load: it may take longer than that
            hit.processes += processes.kill(groups[1])
            return groups[0] + groups[1]
        if not planned.kind.startswith("pause"):
            together = _distinct(groups)
            hit.processes = processes.kill(together)
            return together
        paused = groups[0][0]
        victims = _distinct(groups[1:])
        hit.processes = processes.send([paused], signal.SIGSTOP)
        try:
            hit.processes += processes.kill(victims)
            self.load.turn_for(planned.pause_s)
        finally:
            processes.send([paused], signal.SIGCONT)
        return victims


def summary(hits: Sequence[Hit]) -> str:
    """Tell how often each kind and each role was really hit, and the slowest return."""
    kinds = Counter(hit.plan.kind for hit in hits)
    kills = sum(hit.plan.kind != "pause" for hit in hits)
    killed = sum(hit.killed for hit in hits)
    roles = Counter(target.role for hit in hits for target in hit.plan.targets)
    worst: dict[str, Any] = {
        "next answer": max((hit.answer_ms for hit in hits), default=0),
        "all up": max((hit.up_ms for hit in hits), default=0),
    }
    told = [
        " ".join(f"{name} {times}" for name, times in sorted(each.items()))
        for each in (kinds, roles)
    ]
    return (
        f"{len(hits)} rounds, {kills} with kill -9, {killed} processes; {told[0]}; "
        f"roles: {told[1]}; worst "
        + ", ".join(f"{name} {value:.0f} ms" for name, value in worst.items())
    )


def reached(hits: Sequence[Hit]) -> list[Reached]:
    """Give which anomalies the rounds have met."""

    def killed(*roles: str) -> int:
        return sum(
            any(target.role in roles for target in _killed(hit.plan)) and hit.killed > 0
            for hit in hits
        )

    paused = sum(hit.plan.kind.startswith("pause") and hit.processes > 0 for hit in hits)
    return [
        Reached("A1", killed("shard", "all"), "kill -9 of a shard with checkouts in flight"),
        Reached("A9", killed("router", "all"), "kill -9 of the router with checkouts in flight"),
        Reached("A10", killed("shard"), "a shard is down, the rest serves"),
        Reached("E4", killed(*SERVICES, "all"), "kill -9 of a worker with commands out"),
        Reached("E6", killed("all"), "all processes killed at once"),
        Reached("B20", paused, "a process stands still under load"),
    ]


def _killed(planned: Plan) -> Sequence[Target]:
    return planned.targets[planned.kind.startswith("pause") :]


def _distinct(groups: Sequence[Sequence[processes.Process]]) -> list[processes.Process]:
    """Give each process once, in order: `all` has the others in it."""
    return list(dict.fromkeys(process for group in groups for process in group))
