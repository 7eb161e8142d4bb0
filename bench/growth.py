"""Scenario `growth`: what a directory costs when it has grown, against an empty one.

    sagacity bench growth [--finished 3000000] [--sagas 20000] [--runs 5] [--part F] [--data DIR]
                          [--keep] [--no-audit] [--json FILE]

Real checkouts through a real cluster fill a directory: random ids, every tenth declined. Then:
bytes on disk after a clean stop; seconds from a start to serving, after clean stops and after
kill -9 of everything under load; memory of idle shards; repeats of finished ids drawn at random,
one at a time, each compared with its first answer; checkouts a second on it, alternated with new
empty directories; the audit. Prints what was asked, what was measured and whether it is met; the
exit code is 1 if something is not.

With --data the directory is kept and used again; its sample of finished ids stands beside it, in
DIR.sample.json. Without, it is made under TMPDIR and removed, unless --keep.
"""

import argparse
import random
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from bench import outside, place
from bench.figures import Figures
from bench.load import Known, alone, body_of, checkout, closed_loop
from bench.scenarios import NoResult, add_result_arguments, check_runs, judged, loaded, part_of
from bench.staged import staged
from cluster.private import ClusterProcess, start_private
from sagacity import wire
from sagacity.client import Client
from sagacity.connection import Connection
from sagacity.errors import Malformed, SagacityError

FINISHED: Final = 3_000_000
SAGAS: Final = 20_000
IN_FLIGHT: Final = 1024
FILL_IN_FLIGHT: Final = 2048  # larger batches: filling is no measurement
FILL_STEP: Final = 50_000
SAMPLE: Final = 4000  # finished ids that are remembered
REPEATS: Final = 2000
SHOWS: Final = 100
IDLE_S: Final = 5.0
SERVES_S: Final = 900.0  # a start that takes longer is no figure but a fault
MB: Final = 1_000_000
QUIET: Final = {"SAGACITY_LOG": "error"}  # processes that end are no news here

# What is asked of three million finished sagas.
THROUGHPUT_AT_LEAST: Final = 0.9  # of an empty directory's
IDLE_MB_AT_MOST: Final = 150.0
FOUND_P99_MS_AT_MOST: Final = 5.0
RESTART_S_AT_MOST: Final = 2.0
BYTES_AT_MOST: Final = 1200.0
SHARDS_BYTES_AT_MOST: Final = 250.0


class Sample(Struct):
    """What is remembered of a directory: how many sagas are finished in it, and some of them."""

    finished: int = 0
    known: list[Known] = []


class Grown:
    """A directory that grows, with its sample.

    Args:
        data: the directory; made when the first cluster runs on it.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self._file = data.with_name(data.name + ".sample.json")
        self.sample = Sample()
        if self._file.exists():
            self.sample = msgspec.json.decode(self._file.read_bytes(), type=Sample)
        elif (data / "cluster.json").exists():
            raise Malformed(f"{data} was not filled by this command: there is no {self._file.name}")

    def start(self) -> tuple[ClusterProcess, float]:
        """Start a cluster on it; give it with the seconds until it serves."""
        begun = time.monotonic()
        cluster = start_private(self.data, env=QUIET, timeout_s=SERVES_S)
        return cluster, time.monotonic() - begun

    def run(self, connection: Connection, sagas: int, in_flight: int, every: int) -> float:
        """Finish so many sagas, remember one of `every`; give the seconds."""
        seconds, outcomes = closed_loop(
            connection, sagas, in_flight, sample=self.sample.known, every=every
        )
        if errors := {name: n for name, n in outcomes.items() if name.startswith("error")}:
            raise NoResult(f"of {sagas} checkouts some were not finished: {errors}")
        self.sample.finished += sagas
        return seconds

    def save(self) -> None:
        """Write the sample beside the directory."""
        self._file.write_bytes(msgspec.json.encode(self.sample))


def fill(grown: Grown, finished: int, figures: Figures) -> None:
    """Fill the directory up to so many finished sagas; tell the rate, and memory at its end."""
    missing = finished - grown.sample.finished
    if missing <= 0:
        return
    every = max(1, missing // SAMPLE)
    # Larger than asked by default: the limits of one client are not what is measured here.
    env = {**QUIET, "SAGACITY_ROUTER__CLIENT_INFLIGHT_MAX": str(4 * FILL_IN_FLIGHT)}
    rates = []
    with (
        start_private(grown.data, env=env, timeout_s=SERVES_S) as cluster,
        outside.connection(cluster) as connection,
    ):
        for _ in range(0, missing, FILL_STEP):
            step = min(FILL_STEP, finished - grown.sample.finished)
            rates.append(step / grown.run(connection, step, FILL_IN_FLIGHT, every))
            print(f"  filled {grown.sample.finished}: {rates[-1]:.0f}/s", flush=True)
        figures.add("checkouts/s while filling", "1/s", rates)
        idle(cluster, "idle shard, after filling", figures)
    grown.save()


def idle(cluster: ClusterProcess, what: str, figures: Figures) -> None:
    """Measure the shards' memory after a time without anything to do."""
    time.sleep(IDLE_S)
    resident = [size / MB for size in outside.shards_resident(cluster.url)]
    # The largest counts: each shard has to stay below.
    figures.add(what, "MB", max(resident), at_most=IDLE_MB_AT_MOST)


def disk(grown: Grown, figures: Figures) -> None:
    """Measure bytes on disk for each finished saga; the cluster is stopped."""
    found = outside.disk_bytes(grown.data)
    each = {name: taken / grown.sample.finished for name, taken in found.items()}
    figures.add("disk, all", "bytes/saga", each.pop("all"), at_most=BYTES_AT_MOST)
    figures.add("disk, shards", "bytes/saga", each.pop("shards"), at_most=SHARDS_BYTES_AT_MOST)
    for name, taken in sorted(each.items()):
        figures.add(f"disk, {name}", "bytes/saga", taken)


def restarts(grown: Grown, runs: int, figures: Figures) -> None:
    """Measure starts after clean stops, and after kill -9 of everything under load."""
    clean, killed = [], []
    for _ in range(runs):
        cluster, seconds = grown.start()
        cluster.stop()
        clean.append(seconds)
    figures.add("restart to serving, stopped", "s", clean, at_most=RESTART_S_AT_MOST)
    cluster, _ = grown.start()
    try:
        for _ in range(runs):
            _kill_under_load(grown, cluster)
            cluster, seconds = grown.start()
            killed.append(seconds)
        figures.add("restart to serving, killed", "s", killed, at_most=RESTART_S_AT_MOST)
        outside.wait_until(lambda: not outside.in_flight(cluster.url), 120.0, "the end of all")
    finally:
        cluster.stop()


def _kill_under_load(grown: Grown, cluster: ClusterProcess) -> None:
    with outside.connection(cluster) as connection:
        grown.run(connection, 4 * IN_FLIGHT, IN_FLIGHT, 1 << 30)
        for _ in range(IN_FLIGHT):
            connection.ask(wire.START, *checkout(False))
        connection.poll(0.05)  # some are answered, the rest is somewhere on its way
        outside.kill_everything(cluster)


def finished_ids(grown: Grown, cluster: ClusterProcess, figures: Figures) -> None:
    """Ask finished ids again, one at a time; each must give its first answer."""
    drawn = random.sample(grown.sample.known, min(REPEATS, len(grown.sample.known)))
    took, wrong = [], []
    with outside.connection(cluster) as connection:
        alone(connection, 50)  # warm: the first of a connection pays for it
        grown.sample.finished += 50
        for known in drawn:
            begun = time.perf_counter()
            connection.ask(wire.START, known.saga_id, body_of(known.saga_id, known.declined))
            while not (settled := connection.poll(1.0)):
                pass
            took.append((time.perf_counter() - begun) * 1000)
            reply = settled[0][1]
            if (reply.code, reply.body) != (None, known.answer):
                wrong.append(known.saga_id)
    figures.add("finished id found, p50", "ms", _part(took, 0.5))
    figures.add("finished id found, p99", "ms", _part(took, 0.99), at_most=FOUND_P99_MS_AT_MOST)
    figures.add("finished ids with another answer", "", len(wrong), at_most=0)
    _shows(drawn[:SHOWS], cluster, figures)


def _shows(drawn: Sequence[Known], cluster: ClusterProcess, figures: Figures) -> None:
    took, wrong = [], 0
    with Client(cluster.url, timeout_s=outside.PATIENCE_S) as client:
        for known in drawn:
            begun = time.perf_counter()
            try:
                told = client.show(known.saga_id)
            except SagacityError as error:
                print(f"  show {known.saga_id}: {error.text}", flush=True)
                wrong += 1
                continue
            took.append((time.perf_counter() - begun) * 1000)
            wrong += told.get("status") != ("ABORTED" if known.declined else "COMPLETED")
    if took:
        figures.add("history shown, p50", "ms", _part(took, 0.5))
        figures.add("history shown, p99", "ms", _part(took, 0.99))
    figures.add("histories that are wrong", "", wrong, at_most=0)


def _part(took: list[float], part: float) -> float:
    return sorted(took)[int(len(took) * part)]


def throughput(grown: Grown, sagas: int, runs: int, figures: Figures) -> None:
    """Alternate the grown directory with empty ones; the ratio of each pair counts."""
    ratios, grown_rates, empty_rates = [], [], []
    for number in range(runs):
        # Which comes first alternates too: a machine that gets slower favours neither.
        rates: dict[bool, float] = {}
        for is_grown in (number % 2 == 0, number % 2 == 1):
            rates[is_grown] = _rate(grown if is_grown else None, sagas, figures)
        grown_rates.append(rates[True])
        empty_rates.append(rates[False])
        ratios.append(rates[True] / rates[False])
        print(f"  pair {number + 1}: {rates[True]:.0f}/s grown, {rates[False]:.0f}/s empty")
    figures.add("checkouts/s, grown", "1/s", grown_rates)
    figures.add("checkouts/s, empty", "1/s", empty_rates)
    figures.add("grown / empty", "", ratios, at_least=THROUGHPUT_AT_LEAST)


def _rate(grown: Grown | None, sagas: int, figures: Figures) -> float:
    """Put a load on it, or on an empty one, with the generator of `bench run`."""
    words = ["--in-flight", str(IN_FLIGHT), "--sagas", str(sagas), "--decline", "10"]
    words += ["--generators", "1"] + ([] if grown is None else ["--data", str(grown.data)])
    with staged(loaded("growth", words), figures) as stage:
        name = "empty" if grown is None else "grown"
        found, run = stage.load(name, loaded("growth", words))
    if grown is not None:
        told = [*run.warmed, *run.told]
        grown.sample.finished += sum(each.completed + each.aborted for each in told)
    return found.sagas_per_second


def books(grown: Grown, figures: Figures) -> None:
    """Audit the grown directory; tell what the audit itself took."""
    cluster, _ = grown.start()
    with cluster:
        report, seconds = outside.audited(cluster.url)
    figures.add("audit", "s", seconds)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures.add("audit, memory of the reader", "MB", peak_kib * 1024 / MB)
    for fault in report["faults"][:5]:
        print(f"  {fault}", flush=True)
    sagas = report["sagas"]
    faults = len(report["faults"]) + (not report["balanced"]) + sagas["running"] + sagas["stuck"]
    figures.add("audit, faults and sagas not final", "", faults, at_most=0)
    # Those that were in flight at a kill came to their end uncounted: more may be there, not fewer.
    missing = max(0, grown.sample.finished - sagas["completed"] - sagas["aborted"])
    figures.add("finished sagas missing in the books", "", missing, at_most=0)


def measure(
    grown: Grown, finished: int, sagas: int, args: argparse.Namespace, figures: Figures
) -> None:
    """Do all of it; what cannot be measured is told in the table, and the rest goes on."""

    def served() -> None:
        cluster, _ = grown.start()
        with cluster:
            idle(cluster, "idle shard, after a restart", figures)
            finished_ids(grown, cluster, figures)

    fill(grown, finished, figures)
    stages: dict[str, Callable[[], None]] = {
        "disk": lambda: disk(grown, figures),
        "restart to serving": lambda: restarts(grown, args.runs, figures),
        "finished id found": served,
        "grown / empty": lambda: throughput(grown, sagas, args.runs, figures),
        "audit": lambda: None if args.no_audit else books(grown, figures),
    }
    for name, stage in stages.items():
        try:
            stage()
        except (outside.TooLate, SagacityError) as error:
            figures.missing(name, "", str(error), at_most=0)
    grown.save()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "What a directory costs when it has grown, beside an empty one."
    parser.add_argument(
        "--finished", type=int, default=FINISHED, metavar="N", help=f"sagas in it ({FINISHED})"
    )
    parser.add_argument(
        "--sagas", type=int, default=SAGAS, metavar="N", help=f"of each run of a pair ({SAGAS})"
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="pairs (5)")
    parser.add_argument("--part", type=float, default=1.0, metavar="F", help="of the sagas (1)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="kept, and used again")
    parser.add_argument("--keep", action="store_true", help="keep what was made under TMPDIR")
    parser.add_argument("--no-audit", action="store_true")
    add_result_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Measure, print, remove what was made; give the exit code.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    check_runs(given.runs)
    part = part_of(given.part)
    finished, sagas = round(given.finished * part), round(given.sagas * part)
    if min(finished, sagas, given.runs) < 1:
        raise Malformed("--finished, --sagas and --runs are at least 1")
    made = None if given.data else place.new_directory()
    if given.data is not None:
        place.require_disk(given.data.absolute())

    def play(figures: Figures) -> None:
        grown = Grown(given.data.absolute() if made is None else made / "data")
        measure(grown, finished, sagas, given, figures)

    try:
        title = f"growth: {finished} finished sagas, {given.runs} runs"
        return judged(given, title, play)
    finally:
        if made is not None and given.keep:
            print(f"kept: {made / 'data'}", flush=True)
        elif made is not None:
            shutil.rmtree(made, ignore_errors=True)
