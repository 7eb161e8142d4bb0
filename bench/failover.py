"""Scenario `failover`: kill -9 of a shard, of a worker, of the router, at half load.

For each of them a new cluster, and half of what it can in the open loop; each shard has its own
generator, so that each has its own timeline. Shortly before the kill some sagas are submitted and
acknowledged as durable: each must be COMPLETED at the end. What the clients were told, what was
acknowledged and what the books hold must be the same number.
"""

import argparse
import os
import signal
import time
from collections import Counter
from typing import Any, Final

from msgspec import structs

from bench import outside
from bench.figures import Figures
from bench.load import ask_each, checkout
from bench.options import Options
from bench.result import Mark
from bench.run import Run
from bench.scenarios import NoResult, add_result_arguments, check_runs, judged, loaded, part_of
from bench.staged import Stage, books_fit, staged
from bench.tally import Told
from cluster.fleet import ROUTER, SHARD
from sagacity import wire
from sagacity.connection import Connection
from sagacity.wire import Reply

VICTIMS: Final = (SHARD, "inventory", ROUTER)
RUNS: Final = 3
DURATION_S: Final = 20.0
KILL_AT: Final = 0.5  # of it
SHARDS: Final = 2
ACKNOWLEDGED: Final = 100
GAP_MS: Final = 1500.0
OTHERS: Final = 0.9  # of what they did before
_WINDOW_MIN: Final = 10  # tenths of a second that the others are looked at


class Blow:
    """What happens in the middle of a load: sagas acknowledged, then somebody killed.

    Args:
        stage: where.
        role: whose process is killed.
        at_s: when, from the begin.
    """

    def __init__(self, stage: Stage, role: str, at_s: float) -> None:
        self._stage, self._role, self._at_s = stage, role, at_s
        self.acknowledged: list[tuple[str, bytes]] = []
        self.killed_at = 0.0  # seconds from the begin; 0 before

    def during(self, passed_s: float) -> None:
        """Strike, once it is time."""
        if self.killed_at or passed_s < self._at_s:
            return
        pid = self._pid()
        begun = time.monotonic()
        sagas = [checkout(False) for _ in range(ACKNOWLEDGED)]
        bodies = dict(sagas)

        def settled(saga_id: str, reply: Reply) -> None:
            if reply.code is None:
                self.acknowledged.append((saga_id, bodies[saga_id]))

        with Connection(self._stage.host.url) as connection:
            ask_each(connection, wire.SUBMIT, sagas, ACKNOWLEDGED, settled)
        os.kill(pid, signal.SIGKILL)
        self.killed_at = passed_s + time.monotonic() - begun

    def asked_again(self) -> int:
        """Ask for the end of each that was acknowledged; give how many are not COMPLETED."""
        ends: Counter[str] = Counter()

        def settled(_: str, reply: Reply) -> None:
            ends[str(wire.unpack(reply.body).get("status", f"code {reply.code}"))] += 1

        with Connection(self._stage.host.url) as connection:
            ask_each(connection, wire.START, self.acknowledged, ACKNOWLEDGED, settled)
        return len(self.acknowledged) - ends["COMPLETED"]

    def _pid(self) -> int:
        rows: list[dict[str, Any]] = outside.processes(self._stage.host.url, self._role)
        up = [row for row in rows if row["state"] == "up"]
        if not up:
            raise NoResult(f"no {self._role} is up")
        return int(up[0]["pid"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "What clients see of a process that is killed at half load."
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"each ({RUNS})")
    parser.add_argument("--rate", type=float, metavar="R", help="instead of half of peak")
    parser.add_argument("--part", type=float, default=1.0, metavar="F", help="of all times (1)")
    parser.add_argument("--victim", choices=VICTIMS, action="append", help="only this one")
    add_result_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Run it; give the exit code.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    check_runs(given.runs)
    part = part_of(given.part)
    words = ["--warm-up", str(2 * part), "--duration", str(DURATION_S * part)]
    load = loaded("failover", [*words, "--shards", str(SHARDS)])
    if given.rate is not None:
        loaded("failover", ["--rate", str(given.rate)])  # refused before anything runs
    title = f"failover: {given.runs} kills each, {DURATION_S * part:g} s"
    return judged(given, title, lambda figures: _play(load, given, figures))


def _play(load: Options, given: argparse.Namespace, figures: Figures) -> None:
    rate = given.rate
    if rate is None:
        with staged(load, figures) as stage:
            best, _ = stage.load("peak", load)
        rate = best.sagas_per_second / 2
    figures.add("rate", "1/s", rate)
    half = structs.replace(load, in_flight=0, rate=rate, generators=SHARDS, by_shard=True)
    for victim in given.victim or VICTIMS:
        gaps, others, lost, strays, refused = [], [], 0, 0, 0
        for _ in range(given.runs):
            with staged(half, figures) as stage:
                seen = _blow(stage, half, victim, figures)
            gaps.append(seen[0])
            others += seen[1]
            lost, strays, refused = lost + seen[2], strays + seen[3], refused + seen[4]
        figures.add(f"{victim}: gap", "ms", gaps, at_most=GAP_MS)
        if others:
            what = f"{victim}: the others, during / before"
            figures.add(what, "", others, at_least=OTHERS)
        figures.add(f"{victim}: acknowledged and not COMPLETED", "", lost, at_most=0)
        figures.add(f"{victim}: books less what clients know", "", strays, at_most=0)
        figures.add(f"{victim}: refused meanwhile", "", refused)


def _blow(
    stage: Stage, half: Options, victim: str, figures: Figures
) -> tuple[float, list[float], int, int, int]:
    """Kill one; give gap (ms), the others' shares, lost, strays, refused."""
    blow = Blow(stage, victim, (half.duration_s or 0.0) * KILL_AT)
    found, run = stage.load(victim, half, during=blow.during, audits=True)
    if not blow.killed_at:
        raise NoResult("the load was over before anybody was killed")
    found.marks = [Mark(round(blow.killed_at, 3), f"kill -9 {victim}")]
    books_fit(figures, found)
    hit = run.told[:1] if victim == SHARD else run.told
    gap_ms = max(each.gap_ns for each in hit) / 1_000_000
    at = round(blow.killed_at * 10)
    span = max(_WINDOW_MIN, round(gap_ms / 100))
    others = [share for told in run.told[len(hit) :] if (share := _share(told, at, span))]
    return gap_ms, others, blow.asked_again(), _strays(run, blow), found.refused


def _share(told: Told, at: int, span: int) -> float | None:
    """Give what was finished in a span after an instant, of what was in one before."""
    before = sum(told.per_tenth[max(0, at - span) : at])
    span = min(span, at)
    return sum(told.per_tenth[at : at + span]) / before if before else None


def _strays(run: Run, blow: Blow) -> int:
    """Give by how many the books' finished sagas and those that clients know of differ."""
    known = sum(each.completed + each.aborted for each in [*run.warmed, *run.told])
    books = run.books
    return abs(books["completed"] + books["aborted"] - known - len(blow.acknowledged))
