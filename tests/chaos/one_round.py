"""One round: a cluster under load, a kill, and what must hold afterwards (PROOF, layer K).

Starts real processes, kills the target at a random moment, goes on, ends, and looks at everything:
answers, repeats, books, metrics, processes, sockets, the log, the rows on disk. Whatever is not as
it has to be is a violation of the round; so is a kill that hit nobody, or nothing in flight.
"""

import json
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec import Struct

from cluster.checking import gather
from cluster.directory import DataDirectory
from config.load import load_catalog
from sagacity.checker.evidence import Evidence
from sagacity.checker.record import Catalog, Recorder
from sagacity.checker.rules import judge
from sagacity.checker.verdict import HOLDS
from sagacity.errors import SagacityError
from tests.chaos import endings, processes, scrape
from tests.chaos.cluster import SERVICES, SHARDS, OwnCluster, RoundFailed
from tests.chaos.load import WAIT_S, Load

ORPHANS_S: Final = 2.0  # children outlive their supervisor by this at most
BACK_S: Final = 30.0  # for everything to be up again
STOPPED_S: Final = 2.0  # for the kernel to forget who was stopped


class Target(NamedTuple):
    """Whom a round kills: a role, and which of its processes, by index or by state."""

    role: str
    which: int | str = 0

    def __str__(self) -> str:
        alone = self.role in {"router", "supervisor", "all"}
        return self.role if alone else f"{self.role}-{self.which}"


TARGETS: Final = {
    "router": [Target("router")],
    "shard": [Target("shard", index) for index in range(SHARDS)],
    **{name: [Target(name, "up"), Target(name, "standby")] for name in SERVICES},
    "supervisor": [Target("supervisor")],
    "all": [Target("all")],
}


class Kill(Struct):
    """One kill; times in milliseconds after it."""

    target: Target
    processes: int = 0  # that were alive and were killed
    in_flight: int = 0  # checkouts, at that moment
    before: int = 0  # answers until then
    gone_ms: float = 0.0  # a killed supervisor's children
    answer_ms: float = 0.0  # the next answer; of a killed shard's, if one was killed
    silence_ms: float = 0.0  # longest time without an answer, from then on
    up_ms: float = 0.0  # everything is up again

    def line(self) -> str:
        """Give it as a part of a line."""
        gone = f"gone {self.gone_ms:.0f} ms, " if self.gone_ms else ""
        return (
            f"{self.target}: {self.processes} killed, {self.in_flight} in flight, {self.before} "
            f"answered before; {gone}next answer {self.answer_ms:.0f} ms, longest silence "
            f"{self.silence_ms:.0f} ms, all up {self.up_ms:.0f} ms"
        )


class Seen(Struct):
    """What a round saw."""

    kills: list[Kill]
    violations: list[str]
    checkouts: int = 0
    repeats: int = 0  # during the load
    again: int = 0  # after it
    endings: dict[str, int] = {}

    def line(self) -> str:
        """Give it as one line."""
        ends = " ".join(f"{name} {times}" for name, times in sorted(self.endings.items()))
        return (
            "; ".join(kill.line() for kill in self.kills)
            + f"; {self.checkouts} checkouts ({ends}), {self.repeats} + {self.again} repeats; "
            + (f"{len(self.violations)} VIOLATIONS" if self.violations else "ok")
        )


class Round:
    """One round, on a directory of its own.

    Args:
        targets: whom to kill, one after the other, each when everything is up again.
        seed: of all that is random in it.
        base: an empty directory with a short path, for the cluster's directory, sockets and log.
        seconds: the first kill comes in the second half of this time.
        env: more of the cluster's environment.

    Attributes:
        data: the cluster's directory.
        load: what was asked and answered, once it has started.
        recorder: of the same, for the checker; `base` is a folder of evidence afterwards.
        evidence: what a good round left.
        seen: what was seen; `seen.violations` is empty after a good round.
    """

    load: Load
    recorder: Recorder
    evidence: Evidence

    def __init__(
        self,
        targets: Sequence[Target],
        seed: str,
        base: Path,
        seconds: float,
        env: Mapping[str, str] | None = None,
    ) -> None:
        env = {"SAGACITY_LOG": "warning", **(env or {})}
        arguments = ["--shards", str(SHARDS)]
        self._cluster = OwnCluster(base, arguments=arguments, env=env, logs=True)
        self.data = self._cluster.data
        self.seen = Seen([], [])
        self._targets = targets
        self._base = base
        self._rng = random.Random(f"{seed}/{'/'.join(map(str, targets))}")
        self._seconds = seconds
        self._killed_at: list[float] = []

    def run(self) -> Seen:
        """Do all of it; no process is left afterwards, whatever happened."""
        seen = self.seen
        try:
            with ExitStack() as stack:
                self._start(stack)
                self.load.turn_for(self._seconds * self._rng.uniform(0.5, 1.0))
                for target in self._targets:
                    self._kill(target)
                    self.load.turn_for(self._seconds * self._rng.uniform(0.2, 0.5))
                self.recorder.quiet()
                self.load.finish(WAIT_S)
                self._measure_answers()
                seen.endings = dict(self.load.judge())
                seen.again = self.load.ask_all_again(WAIT_S)
                self.load.ask_other_content(20)
                self._check_running()
                self.recorder.end()
                self._stop()
            seen.checkouts, seen.repeats = len(self.load.asked), self.load.repeats
            self._judge()
        except (RoundFailed, SagacityError) as error:
            seen.violations.append(f"{type(error).__name__}: {error}")
        return seen

    def _start(self, stack: ExitStack) -> None:
        self.url = stack.enter_context(self._cluster).url
        lines = stack.enter_context((self._base / "client.jsonl").open("wb"))
        cluster_id = DataDirectory(self.data).read().cluster_id
        self.recorder = Recorder(lines.write, "load", _now_ms, cluster_id)
        catalog = load_catalog()
        self.recorder.line(Catalog(catalog.prices, catalog.stock, catalog.accounts))
        self.load = Load(self.url, self._rng, self.seen.violations, recorder=self.recorder)
        stack.callback(self.load.close)
        self.load.finish(WAIT_S)  # nothing is asked yet: everyone is measured at rest
        self.load.turn_until(lambda: self._all_up(set()), BACK_S, "everything being up")
        self._measure()
        self.load.resume()

    def _measure(self) -> None:
        for text in scrape.record(self.load.status()["processes"], self.recorder):
            self.load.violation(text)

    def _judge(self) -> None:
        """Have the rules judge what is left on disk and in the record."""
        self.evidence = gather(self._base)
        for verdict in judge(self.evidence):
            if verdict.verdict != HOLDS:
                told = [
                    *verdict.why,
                    *(f"{one.saga_id} {one.what} ({one.where})" for one in verdict.findings),
                ]
                text = f"invariant {verdict.number} {verdict.verdict}, {verdict.found} findings"
                self.load.violation(f"{text}: {'; '.join(told[:5])}")
        for text in endings.violations(self.evidence, self.load.asked):
            self.load.violation(text)

    # -- the kill -------------------------------------------------------------------------------

    def _kill(self, target: Target) -> None:
        """Kill the target, then go on until everything is up again."""
        give_up = time.monotonic() + BACK_S
        kill = Kill(target)
        self.recorder.planned(f"kill -9 of {target}")
        while not kill.processes:
            if time.monotonic() > give_up:
                raise RoundFailed("the round is void: no live process of the target was hit")
            victims = self._victims(target, self.load.status()["processes"])
            kill.in_flight, kill.before = self.load.open, len(self.load.answered)
            killed_at = time.monotonic()
            kill.processes = processes.kill(victims)
        self.recorder.struck(f"kill -9 of {target}", kill.processes)
        self.seen.kills.append(kill)
        self._killed_at.append(killed_at)
        if not kill.in_flight:
            raise RoundFailed("the round is void: nothing was in flight")
        if target.role in {"supervisor", "all"}:
            kill.gone_ms = self._restart(killed_at)
        dead = {process.pid for process in victims}
        self.load.turn_until(lambda: self._all_up(dead), BACK_S, "everything being up again")
        kill.up_ms = (time.monotonic() - killed_at) * 1000

    def _victims(self, target: Target, rows: list[dict[str, Any]]) -> list[processes.Process]:
        """Give the processes to kill, in order; none if the target is not there at this moment."""
        role, which = target
        if role == "all":
            everyone = processes.of_cluster(self.data)
            self._rng.shuffle(everyone)
            return everyone
        pids = [
            row["pid"]
            for row in rows
            if row["role"] == role and which in {row["index"], row["state"]}
        ]
        seen = [processes.look(pid) for pid in pids if pid]
        return [process for process in seen if process is not None]

    def _restart(self, killed_at: float) -> float:
        """Start the cluster once more; say how long its children outlived their supervisor."""
        self._cluster.up.process.wait()
        self.load.turn_until(
            lambda: not processes.of_cluster(self.data), BACK_S, "the end of the children"
        )
        gone_ms = (time.monotonic() - killed_at) * 1000
        if gone_ms > ORPHANS_S * 1000:
            self.load.violation(f"children outlived their supervisor by {gone_ms:.0f} ms")
        again = self._cluster.start_again()
        self.load.turn_until(again.read_ready, BACK_S, "the cluster serving again")
        if again.url != self.url:
            self.load.violation(f"the address was {self.url}, now it is {again.url}")
        return gone_ms

    def _all_up(self, dead: set[int]) -> bool:
        rows = self.load.status()["processes"]
        states: dict[str, list[str]] = {}
        for row in rows:
            states.setdefault(row["role"], []).append(row["state"])
        wanted = {"supervisor": ["up"], "router": ["up"], "shard": ["up"] * SHARDS}
        wanted |= {name: ["standby", "up"] for name in SERVICES}
        if self.load.open and "up" in states["payment"]:
            states["payment"] = wanted["payment"]  # u_crash goes on ending its workers
        found = {role: sorted(each) for role, each in states.items()}
        return found == wanted and not dead & {row["pid"] for row in rows}

    # -- afterwards -----------------------------------------------------------------------------

    def _measure_answers(self) -> None:
        slots = DataDirectory(self.data).read().slots
        for kill, killed_at in zip(self.seen.kills, self._killed_at, strict=True):
            before = killed_at
            for at, saga_id in self.load.answered[kill.before :]:
                kill.silence_ms = max(kill.silence_ms, (at - before) * 1000)
                shard = kill.target.which if kill.target.role == "shard" else slots.owner(saga_id)
                if not kill.answer_ms and slots.owner(saga_id) == shard:
                    kill.answer_ms = (at - killed_at) * 1000
                before = at
            if not kill.answer_ms:
                self.load.violation(f"nothing was answered after the kill of {kill.target}")

    def _check_running(self) -> None:
        """Look at the cluster at rest: all up, books balanced, no fault counted."""
        self.load.turn_until(lambda: self._all_up(set()), BACK_S, "everything being up")
        rows = self.load.status()["processes"]
        known = {row["pid"] for row in rows}
        there = {process.pid for process in processes.of_cluster(self.data)}
        if known != there:
            self.load.violation(f"status knows the processes {known}, there are {there}")
        self._measure()
        self.load.check_books(self.url)

    def _stop(self) -> None:
        there = processes.of_cluster(self.data)
        sockets = Path(self.url.removeprefix("ipc://")).parent
        code = self._cluster.stop()
        if code != 0:
            self.load.violation(f"the cluster ended with {code}")
        give_up = time.monotonic() + STOPPED_S
        while processes.of_cluster(self.data) or any(map(processes.is_alive, there)):
            if time.monotonic() > give_up:
                self.load.violation(f"left after the stop: {processes.of_cluster(self.data)}")
                break
        if left := list(sockets.glob("*.sock")):
            self.load.violation(f"left after the stop: {left}")
        lines = self._cluster.log.read_text(errors="replace").splitlines()
        if alarming := [line for line in lines if _is_alarming(line)]:
            self.load.violation(f"the log says: {' | '.join(alarming)[:2000]}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _is_alarming(line: str) -> bool:
    """Say whether a line of the log tells of more than a process that ended."""
    try:
        said = json.loads(line)
    except ValueError:
        return bool(line.strip())  # a traceback, an assertion, a library's last words
    return said.get("level") not in {"debug", "info", "warning"}
