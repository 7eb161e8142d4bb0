"""`sagacity bench run`: a load on a cluster, measured; the books audited after it.

    options -> cluster -> warm-up -> load, watched -> audit -> result

The composition root: it alone knows generators, probes, cluster and result. What was measured
before a run was broken off is kept, and called partial.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Final

from msgspec import structs

from bench import carts, options, place, probe, report, result
from bench.generator import Plan
from bench.generators import Generators, HowFar
from bench.histogram import Histogram
from bench.host import Host, hosted
from bench.options import Options
from bench.probe import Counted, Probe
from bench.result import Result
from bench.schedule import SECOND
from bench.tally import Told, together
from cluster.audit import audit
from sagacity import __version__
from sagacity.client import Client
from sagacity.errors import Malformed, SagacityError

EXIT_NO_RESULT: Final = 1
BUSY: Final = 0.8  # of a core: then one generator is not enough
TELLS_S: Final = 1.0  # a warm-up of this length tells how busy the generators are
RATE_LATE_MS: Final = 100.0  # p99 of late starts: a generator that is later does not keep the rate

_LOOK_S: Final = 1.0
_LOOK_WAIT_S: Final = 2.0
_WENT_AWAY: Final = "the cluster went away"
_GONE_S: Final = 10.0  # a router's restart takes 1.5
_PATIENCE_S: Final = 60.0  # for what is asked at begin and end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run`."""
    parser.description = (
        "Put a load on a cluster and measure: throughput, latency, CPU, syncs. Without --connect "
        "on a cluster of its own, in a new directory. The books are audited after it: where they "
        "do not balance there is no result, and the exit code is 1. docs/bench.md says what each "
        "figure means."
    )
    options.add_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Run a load; print what was measured, and write it where a file is named.

    Returns:
        0; 1 without a result, or where the cluster went away; 130 or 143 if it was interrupted.

    Raises:
        SagacityError: it cannot be done as asked, or the cluster does not start.
    """
    asked = options.checked(given)
    if asked.json is not None:
        result.require_new(asked.json, force=asked.force)
    with Interrupts() as interrupts:
        found = measure(asked, interrupts)
    if isinstance(found, str):
        _say(f"no result: broken off before anything was measured: {found}")
        return interrupts.exit_code or EXIT_NO_RESULT
    if found.balanced is False:
        _say(f"no result: the books do not balance: {'; '.join(found.faults)}")
        _say("\n".join(found.notes))
        return EXIT_NO_RESULT
    print(report.text(found), flush=True)
    if asked.json is not None:
        result.write(found, asked.json)
    if interrupts.exit_code:
        return interrupts.exit_code
    return EXIT_NO_RESULT if found.partial or not found.finished else 0


class Interrupts:
    """SIGINT and SIGTERM: the first breaks the load off, a second one ends the process."""

    def __init__(self) -> None:
        self.exit_code = 0
        self.playing = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        again, self.exit_code = self.exit_code, 128 + number
        if again or not self.playing:
            _say("interrupted; nothing is kept")
            raise SystemExit(self.exit_code)


def measure(asked: Options, interrupts: Interrupts) -> Result | str:
    """Run a load on a cluster; give what was measured, or why nothing was."""
    with ExitStack() as stack:
        host = stack.enter_context(hosted(asked))
        return Run(asked, host, interrupts).measure()


class Run:
    """One run on a cluster.

    Args:
        asked: what is run.
        host: the cluster.
        interrupts: break it off.
    """

    def __init__(self, asked: Options, host: Host, interrupts: Interrupts) -> None:
        self._asked, self._host, self._interrupts = asked, host, interrupts
        self._why = ""  # it was broken off
        self._notes: list[str] = []
        self._probe = Probe()
        self._before = self._after = Counted(0, 0, 0)
        self._data_fs: str | None = None
        self._pids: frozenset[int] = frozenset()
        self._look_at = 0.0
        self._connected_at = 0.0
        self._progress = report.Progress(asked)

    def measure(self) -> Result | str:
        """Warm up, load, audit; give what was measured, or why it never came to that."""
        asked = self._asked
        status = self._host.status(_PATIENCE_S)
        self._data_fs = place.file_system(Path(status["data"])) if status.get("data") else None
        if self._data_fs in place.MEMORY:
            self._notes.append(f"the cluster's directory is on {self._data_fs}: nothing is synced")
        if asked.mix.hot_sku:
            _require_goods(self._host.url)
        machine = place.machine(place.yardstick_ns())
        with ExitStack() as stack:
            many, generators = self._warmed_up(stack)
            if self._why:
                return self._why
            self._progress.begin("measuring", asked.duration_s)
            told = self._play(generators, shares(asked, many), self._begun)
            self._progress.end()
        if not told:
            return self._why
        self._ended()
        yardstick = (machine.yardstick_ns + place.yardstick_ns()) / 2
        found = self._result(together(told), structs.replace(machine, yardstick_ns=yardstick))
        found.settings |= {"generators": many, "shards": len(status["shards"])}
        found.peak_rss_mb |= {f"client-{at}": each.peak_rss_mb for at, each in enumerate(told)}
        self._audit(found)
        return found

    def _warmed_up(self, stack: ExitStack) -> tuple[int, Generators]:
        """Give generators that have warmed the cluster up, as many as it takes."""
        asked = self._asked
        many = options.generators_of(asked)
        while True:
            generators = stack.enter_context(Generators(plans(asked, self._host.url, many)))
            if not asked.warm_up_s:
                return many, generators
            self._progress.begin("warming up", asked.warm_up_s)
            span = round(asked.warm_up_s * SECOND)
            told = self._play(generators, [(None, span)] * many)
            # Of a blink of a warm-up it says nothing: mostly the first frames are in it.
            busy = max(map(_busy, told), default=0.0) if asked.warm_up_s >= TELLS_S else 0.0
            more = min(2 * many, options.cores(), asked.in_flight or 2 * many)
            if self._why or asked.generators or busy < BUSY or more <= many:
                return many, generators
            generators.close()
            many = more

    def _play(
        self,
        generators: Generators,
        phases: list[tuple[int | None, int | None]],
        begun: Callable[[], None] | None = None,
    ) -> list[Told]:
        self._connected_at = time.monotonic()
        self._interrupts.playing = True
        try:
            told = generators.play(phases, self._turn, begun)
        finally:
            self._interrupts.playing = False
        if len(told) < len(phases):
            self._why = self._why or "a generator has ended or did not answer"
        return told

    def _begun(self) -> None:
        rows = self._host.status(_PATIENCE_S)["processes"]
        self._before = probe.count(rows)
        self._probe.look(rows, begin=True)
        self._pids = self._probe.pids
        self._look_at = time.monotonic() + _LOOK_S

    def _turn(self, far: HowFar) -> bool:
        """Look after the run; say whether it goes on."""
        now = time.monotonic()
        self._progress.show(far)
        if far.connected:
            self._connected_at = now
        if self._interrupts.exit_code:
            self._why = self._why or "interrupted"
        elif self._host.ended:
            self._why = self._why or f"{_WENT_AWAY}: its supervisor has ended"
        elif now - self._connected_at > _GONE_S:
            self._why = self._why or f"{_WENT_AWAY}: no connection for {_GONE_S:g} s"
        if self._why:
            return False
        if self._look_at and now >= self._look_at and far.connected:
            self._look(_LOOK_WAIT_S)
            self._look_at = time.monotonic() + _LOOK_S
        return True

    @property
    def _gone(self) -> bool:
        return self._host.ended or self._why.startswith(_WENT_AWAY)

    def _look(self, wait_s: float) -> list[dict[str, Any]] | None:
        try:
            rows: list[dict[str, Any]] = self._host.status(wait_s)["processes"]
        except SagacityError:
            return None  # its router is busy or being restarted: the next look will tell
        self._probe.look(rows)
        return rows

    def _ended(self) -> None:
        """Read the clocks and counts at the end of the load."""
        rows = None if self._gone else self._look(_PATIENCE_S)
        if rows is None:
            self._notes.append("no counts: the cluster did not answer at the end")
            return
        self._after = probe.count(rows)
        if self._probe.pids != self._pids or self._probe.lost:
            self._notes.append("processes were replaced in the run: their last CPU is missing")
        if self._before.missing or self._after.missing:
            named = ", ".join({*self._before.missing, *self._after.missing})
            self._notes.append(f"no counts: /metrics of {named} could not be read")

    def _audit(self, found: Result) -> None:
        if self._gone:
            self._notes.append("no audit: the cluster is not there")
            self._keep()
            return
        try:
            with Client(self._host.url, timeout_s=_PATIENCE_S) as client:
                said = audit(client)
        except SagacityError as error:
            self._notes.append(f"no audit: {error.text}")
            found.partial, found.partial_why = True, self._why or "the books could not be read"
            return
        found.balanced = bool(said["balanced"])
        found.faults = [str(fault) for fault in said["faults"][:5]]
        if not found.balanced:
            self._keep()

    def _keep(self) -> None:
        """Keep the directory of a cluster of our own: there is something to look into."""
        if self._host.directory is not None:
            self._host.keep = True
            self._notes.append(f"the cluster's directory is kept: {self._host.directory}")

    def _result(self, told: Told, machine: result.Machine) -> Result:
        found = result_of(self._asked, told, machine)
        found.partial, found.partial_why = bool(self._why), self._why
        found.cpu_us_per_saga = self._cpu_us(told, found.finished)
        peaks = sorted(self._probe.peaks.items())
        found.peak_rss_mb = {name: round(mb, 1) for name, mb in peaks}
        found.data_fs = self._data_fs
        self._count(found)
        found.notes = self._notes = [*found.notes, *self._notes]
        return found

    def _cpu_us(self, told: Told, finished: int) -> dict[str, float]:
        if not finished:
            return {}
        used = {"client": told.cpu_ns, **self._probe.cpu_ns()}
        used["total"] = sum(used.values())
        return {role: cpu_ns / finished / 1000 for role, cpu_ns in used.items()}

    def _count(self, found: Result) -> None:
        before, after = self._before, self._after
        replaced = self._probe.pids != self._pids
        if replaced or before.missing or after.missing or after.commits < before.commits:
            return  # a process counts from its start on: the difference means nothing
        commits = after.commits - before.commits
        found.commits = commits
        if commits:
            found.entries_per_commit = (after.entries - before.entries) / commits
        if found.finished:
            found.fsyncs_per_saga = (commits + after.batches - before.batches) / found.finished


def result_of(asked: Options, told: Told, machine: result.Machine) -> Result:
    """Give what the generators alone can tell; the cluster's part is null."""
    finished = told.completed + told.aborted
    wall_s = max(told.last - told.first, 1) / SECOND
    late = Histogram.decode(told.late).percentiles()
    kept = told.left_out == 0 and late.p99 <= RATE_LATE_MS
    found = Result(
        sagas_per_second=finished / wall_s,
        goodput_per_second=told.within / wall_s,
        offered_per_second=_offered(told) if asked.rate else None,
        wall_seconds=wall_s,
        latency_ms=Histogram.decode(told.latency).percentiles(),
        late_ms=late,
        refusal_ms=Histogram.decode(told.refusal).percentiles(),
        late_starts=told.late_starts,
        rate_reached=kept if asked.rate else None,
        completed=told.completed,
        aborted=told.aborted,
        refused=told.refused,
        errors=sum(told.errors_by.values()),
        errors_by=told.errors_by,
        balanced=None,
        cpu_us_per_saga={},
        peak_rss_mb={},
        fsyncs_per_saga=None,
        commits=None,
        entries_per_commit=None,
        data_fs=None,
        version=__version__,
        commit=place.commit(),
        machine=machine,
        settings={**asked.settings(), "command": place.command_line()},
        per_second=told.per_second,
        latency_histogram=told.latency,
        per_tenth=told.per_tenth,
        gap_ms=told.gap_ns / 1_000_000,
    )
    if asked.rate and not kept:
        found.notes.append(
            f"the generator did not reach the rate: {asked.rate:g} a second were asked for, "
            f"starts were {late.p99:g} ms late (p99), {told.left_out} were left out"
        )
    return found


def _require_goods(url: str) -> None:
    """Refuse a cluster that does not have what --hot-sku buys.

    Raises:
        Malformed: its inventory was made from another catalog.
    """
    ask = {"book": "inventory", "table": "stock", "after": "bench-cold-", "limit": 1}
    with Client(url, timeout_s=_PATIENCE_S) as client:
        rows = client.books(0, ask)["rows"]
    if not rows or rows[0][0] != carts.COLD[0]:
        raise Malformed(
            "--hot-sku buys goods that this cluster's inventory does not have: it needs a new "
            "directory of the run's own, without --connect"
        )


def plans(asked: Options, url: str, many: int) -> list[Plan]:
    """Give what each of so many generators does."""
    return [
        Plan(
            url=url,
            parent=os.getpid(),
            part=part,
            parts=many,
            seed=asked.seed,
            mix=asked.mix,
            in_flight=_share(asked.in_flight, part, many),
            rate=asked.rate,
            arrivals=asked.arrivals,
            timeout_s=asked.timeout_s,
            objective_ns=asked.objective_ms * 1_000_000,
        )
        for part in range(many)
    ]


def shares(asked: Options, many: int) -> list[tuple[int | None, int | None]]:
    """Give each generator's part of the measured phase: sagas, nanoseconds."""
    span = None if asked.duration_s is None else round(asked.duration_s * SECOND)
    return [
        (None if asked.sagas is None else _share(asked.sagas, part, many), span)
        for part in range(many)
    ]


def _share(whole: int, part: int, parts: int) -> int:
    return whole // parts + (part < whole % parts)


def _busy(told: Told) -> float:
    """Give how much of a core a generator took."""
    return told.cpu_ns / max(1, told.last - told.first)


def _offered(told: Told) -> float | None:
    """Give what was started a second, from the first intended start to the last one as it was."""
    span = told.last_start - told.first
    return (told.started - 1) * SECOND / span if span > 0 else None


def _say(text: str) -> None:
    if text:
        print(f"sagacity bench: {text}", file=sys.stderr, flush=True)
