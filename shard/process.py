"""The shard's process: configuration to objects to run. The one file of the shard that knows all.

python -P -m shard --data DIR --run DIR --index N [--config FILE] [--parent PID]
"""

import gc
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NoReturn

from cluster.child import Child, arguments
from cluster.clock import Clock, SystemClock
from cluster.directory import DataDirectory, RunDirectory
from cluster.telemetry import Log, MetricsServer, ShardMeters, configure_logging
from config.load import load, load_catalog
from config.schema import Config
from sagacity.errors import InternalError, InvariantBroken, Malformed, SagacityError
from sagacity.ids import DIRECTIONS
from sagacity.saga import Retry, Saga
from sagacity.sockets import context
from shard.admission import Admission
from shard.compaction import Compaction
from shard.engine import Engine
from shard.generations import Generations
from shard.journal import JournalFailed, SqliteJournal
from shard.links import Links
from shard.loop import Fenced, Loop
from shard.retries import RetryBudget
from shard.sagas import MS, Definition
from shard.state import State

FAULTS_PER_LINE = 1_000  # of one kind: the first is logged, then one in so many


class MeteredTally:
    """The engine's tally and the loop's observer, counted in the process's meters."""

    def __init__(self, meters: ShardMeters, log: Log) -> None:
        self._meters = meters
        self._log = log
        self._faults: Counter[str] = Counter()

    def started(self, _saga: str) -> None:
        """A saga was accepted."""
        self._meters.started.add()

    def finished(self, saga: str, outcome: str, duration_ns: int) -> None:
        """A saga is final."""
        self._meters.finished.add((saga, outcome))
        self._meters.duration.observe_ns(duration_ns)

    def attempted(self, step: str, direction: int, outcome: str, duration_ns: int) -> None:
        """An attempt of a command ended."""
        self._meters.step_attempts.add((step, DIRECTIONS[direction], outcome))
        self._meters.step_duration.observe_ns(duration_ns, (step, DIRECTIONS[direction]))

    def compensated(self, saga: str, step: str, cause: str) -> None:
        """A step was compensated."""
        self._meters.compensations.add((saga, step, cause))

    def absorbed(self, where: str) -> None:
        """A message had no effect."""
        self._meters.duplicates.add((where,))

    def faulted(self, what: str, text: str = "") -> None:
        """Something happened that never should."""
        self._meters.faults.add((what,))
        self._faults[what] += 1
        if self._faults[what] % FAULTS_PER_LINE == 1:
            self._log.warning("fault_put_aside", what=what, text=text, count=self._faults[what])

    def recovered(self, sagas: int) -> None:
        """Sagas go on."""
        self._meters.recovered.add(by=sagas)

    def committed(self, took_ns: int, entries: int) -> None:
        """A group commit is durable."""
        self._meters.journal_commit_duration.observe_ns(took_ns)
        self._meters.journal_records.add(by=entries)

    def turned(self, took_ns: int) -> None:
        """A turn worked this long."""
        self._meters.event_loop_lag.observe_ns(took_ns)


class Gauges:
    """What the metrics' thread may read: written by the loop's thread, each heartbeat."""

    def __init__(self, meters: ShardMeters) -> None:
        self.active = {"running": 0, "compensating": 0, "stuck": 0}
        self.oldest_s = 0.0
        self.at_risk = 0
        self.journal_bytes = 0
        meters.active.source = lambda: {(state,): float(n) for state, n in self.active.items()}
        meters.oldest_active_timestamp.source = lambda: self.oldest_s
        meters.amount_at_risk.source = lambda: float(self.at_risk)
        meters.journal_size.source = lambda: float(self.journal_bytes)

    def read(self, engine: Engine, journal: SqliteJournal) -> None:
        """Take the values of now."""
        state = engine.state
        self.active = {
            "running": len(state.live) - state.compensating,
            "compensating": state.compensating - state.stuck,
            "stuck": state.stuck,
        }
        oldest = next(iter(state.live.values()), None)
        self.oldest_s = (oldest.deadline_ms - engine.deadline_ms) / 1000 if oldest else 0.0
        self.at_risk = state.at_risk
        self.journal_bytes = journal.size_bytes()


def load_sagas(config: Config) -> dict[str, Definition]:
    """Import the definitions that the configuration names.

    Raises:
        Malformed: a place holds no Saga, or two have the same name.
    """
    saga = config.saga
    retry = Retry(
        attempts=saga.attempts,
        timeout_ms=saga.attempt_timeout_ms,
        backoff_ms=saga.backoff_ms,
        backoff_max_ms=saga.backoff_max_ms,
        stuck_after=saga.stuck_after,
    )
    found: dict[str, Definition] = {}
    for place in config.cluster.sagas:
        module, _, name = place.partition(":")
        try:
            plan = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # whatever a user's module raises
            hint = "is it installed, or its folder on PYTHONPATH?"
            raise Malformed(f"cluster.sagas: {place}: {error!r}; {hint}") from None
        if not isinstance(plan, Saga):
            raise Malformed(f"cluster.sagas: {place} is no Saga")
        if plan.name in found or any(
            other.saga.request_type == plan.request_type for other in found.values()
        ):
            raise Malformed(f"cluster.sagas: two sagas are called or started like {plan.name}")
        found[plan.name] = Definition(plan, retry)
    return found


class Shard:
    """One shard's objects, wired.

    Args:
        config: of the process.
        data: the cluster's directory.
        run: where its sockets are.
        index: of the shard.
        clock: tells the time.
        child: its life as a process.
        log: for what happens to it.
    """

    def __init__(
        self,
        config: Config,
        data: DataDirectory,
        run: RunDirectory,
        index: int,
        clock: Clock,
        child: Child,
        log: Log,
    ) -> None:
        cluster = data.read()
        if index >= cluster.shards:
            raise Malformed(f"there is no shard {index}: the cluster has {cluster.shards}")
        self._log, self._clock, self._child, self._index = log, clock, child, index
        self._lock = data.own_shard(index)
        definitions = load_sagas(config)
        self._meters = ShardMeters([each.saga for each in definitions.values()])
        self._tally = tally = MeteredTally(self._meters, log)
        self._gauges = Gauges(self._meters)
        self._journal = SqliteJournal(data.journal(index), cluster.cluster_id, index)
        generations = Generations(self._journal.store)
        shard = config.shard
        self._admission = Admission(shard.inflight_max)
        self._engine = Engine(
            index,
            cluster.slots.slots_of(index),
            State(definitions, generations),
            load_catalog(config.cluster.catalog or None).prices,
            self._admission,
            RetryBudget(
                shard.retry_per_success_permille, shard.retry_burst, shard.retry_per_second
            ),
            tally,
            config.saga.deadline_ms,
            config.supervisor.worker_live_ms * MS,
        )
        self._ctx = context()
        self._links = Links(
            self._ctx,
            run.shard(index),
            run.workers(index),
            cluster.cluster_id,
            self._engine.services(),
            child.wakeup_fd,
        )
        upkeep = Compaction(self._journal, generations, self._engine.state.counts, shard.tail_bytes)
        self._loop = Loop(
            self._engine, self._journal, self._links, clock, cluster.cluster_id, tally, upkeep
        )
        self._drain_ns = config.supervisor.drain_ms * MS
        self._garbage = 0  # frames that were counted as faults already

    def run(self) -> None:
        """Recover, serve until told to stop, finish what is in flight, close."""
        begun = self._clock.monotonic_ns()
        recovered = self._loop.recover(lambda: self._child.beat(self._clock.monotonic_ns()))
        took = self._clock.monotonic_ns() - begun
        self._meters.recovery_duration.source = lambda: took / 1e9
        self._child.metrics_port = MetricsServer(self._meters).start()
        self._log.info(
            "shard_serves",
            epoch=self._engine.state.epoch,
            seq=self._journal.last.seq,
            recovered=recovered,
            took_ms=took // MS,
        )
        self._child.report("up", self._facts)
        # What a saga leaves behind has no cycles: reference counts free it. The collector's visits
        # cost a quarter of the shard's time, so they come rarely, and never to what is here now.
        gc.freeze()
        gc.set_threshold(50_000, 100, 100)
        stop_at: int | None = None
        while not self._is_over(stop_at):
            self._loop.turn()
            self._child.beat(self._clock.monotonic_ns(), self._facts)
            if self._child.stopping and self._child.woken() and stop_at is None:
                self._admission.draining = True
                stop_at = self._clock.monotonic_ns() + self._drain_ns
        self._log.info("shard_drained", in_flight=self._engine.inflight)
        self._close()

    def _is_over(self, stop_at: int | None) -> bool:
        if stop_at is None:
            return False
        return self._engine.inflight == 0 or self._clock.monotonic_ns() >= stop_at

    def _facts(self) -> dict[str, int]:
        """Give what `status` shows of this shard; also the moment to refresh the gauges."""
        self._gauges.read(self._engine, self._journal)
        garbage = self._links.counts.garbage
        while self._garbage < garbage:
            self._garbage += 1
            self._tally.faulted("frame")
        state, meters = self._engine.state, self._meters
        finished = meters.finished.read()
        return {
            "epoch": state.epoch,
            "in_flight": len(state.live),
            "stuck": state.stuck,
            "started": sum(meters.started.read().values()),
            "completed": sum(n for key, n in finished.items() if key[1] == "completed"),
            "aborted": sum(n for key, n in finished.items() if key[1] == "aborted"),
            "seq": self._journal.last.seq,
        }

    def _close(self) -> None:
        self._links.close()
        self._ctx.term()
        self._journal.close()
        self._lock.release()


def serve(make: Callable[[], Shard], log: Log) -> int:
    """Run a shard and give the process's exit code."""
    try:
        make().run()
    except SagacityError as error:
        log.error("shard_refused", text=error.text, code=error.code)
        return error.exit_code
    except (JournalFailed, Fenced) as error:
        # What became of the last commit is unknown: the next start reads what is there.
        log.error("shard_ended", cause=type(error).__name__, text=str(error))
        _end_at_once(1)
    except (InvariantBroken, Exception) as error:
        log.error("bug_found", text=f"{type(error).__name__}: {error}", exc_info=True)
        _end_at_once(InternalError.exit_code)
    return 0


def _end_at_once(code: int) -> NoReturn:
    """End without closing anything: closing a journal whose state is unknown would write to it."""
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one shard until it is told to stop.

    Returns:
        An exit code of SPEC 4.
    """
    args = arguments("python -m shard", index=int).parse_args(argv)
    clock = SystemClock()
    run = RunDirectory(args.run)
    child = Child("shard", args.index, run, args.parent, clock)
    try:
        log = configure_logging("shard", args.index)
    except SagacityError as error:
        print(error.text, file=sys.stderr)  # noqa: T201 - there is no log
        return error.exit_code
    child.report("starting")

    def make() -> Shard:
        config = load(args.config)
        child.set_heartbeat(config.supervisor.heartbeat_ms)
        return Shard(config, DataDirectory(args.data), run, args.index, clock, child, log)

    return serve(make, log)
