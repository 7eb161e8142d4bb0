"""The shard's process: configuration to objects to run. The one file of the shard that knows all.

python -P -m shard --data DIR --run DIR --index N [--config FILE] [--parent PID]
                   [--accept-data-loss]
"""

import gc
import os
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import apsw

from cluster.child import Child, arguments
from cluster.clock import Clock, SystemClock
from cluster.directory import MEND, DataDirectory, RunDirectory
from cluster.meters import Labels, ShardMeters
from cluster.metrics import BY_NAME
from cluster.telemetry import Log, MetricsServer, configure_logging
from config.load import load, load_catalog, load_sagas
from config.schema import Config
from sagacity import traces
from sagacity.errors import InternalError, InvariantBroken, Malformed, SagacityError
from sagacity.ids import DIRECTIONS
from sagacity.saga import Retry
from sagacity.sockets import LIBZMQ_VERSION, context
from sagacity.versions import refuse_known_bad
from sagacity.wire import MSGPACK_VERSION
from shard.admission import Admission
from shard.compaction import Compaction
from shard.engine import Engine
from shard.facts import ToldJournal
from shard.generations import Generations
from shard.guard import StartOver
from shard.journal import JournalFailed, JournalRefused, SqliteJournal
from shard.links import Links
from shard.loop import SERVING, STARTING, Fenced, Loop, Upkeep
from shard.pools import Pool
from shard.rates import Rates
from shard.reserve import ReserveFile
from shard.retries import RetryBudget
from shard.sagas import MS, Definition, Live
from shard.state import State
from shard.tally import Unwritten

_SAGA_EDGES = BY_NAME["saga_duration_seconds"].edges
_STEP_EDGES = BY_NAME["saga_step_duration_seconds"].edges
_EXPOSURE_EDGES = BY_NAME["saga_exposure_seconds"].edges

_POOL_GAUGES = ("workers", "credit", "outstanding", "waiting", "commands", "wait_s")
_NOTHING: dict[Labels, float] = {}

FAULTS_PER_LINE = 1_000  # of one kind: the first is logged, then one in so many


class MeteredTally:
    """The engine's tally and the loop's observer, counted in the process's meters."""

    def __init__(self, meters: ShardMeters, log: Log) -> None:
        self._meters = meters
        self._log = log
        self._faults: Counter[str] = Counter()
        self._unwritten = Unwritten()
        self._attempts: dict[tuple[str, int, str], tuple[list[int], list[int]]] = {}
        self._ends: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self._duration = meters.duration.cell()

    def started(self, saga: str) -> None:
        """A saga was accepted; it counts when that is durable."""
        self._unwritten.starts.append(saga)

    def finished(self, saga: str, outcome: str, duration_ns: int, exposed_ns: int) -> None:
        """A saga is final; likewise."""
        self._unwritten.ends.append((saga, outcome, duration_ns, exposed_ns))

    def attempted(self, step: str, direction: int, outcome: str, duration_ns: int) -> None:
        """An attempt of a command ended; three or four times a saga, hence the kept cells."""
        cells = self._attempts.get((step, direction, outcome))
        if cells is None:
            labels = (step, DIRECTIONS[direction])
            cells = (
                self._meters.step_attempts.cell((*labels, outcome)),
                self._meters.step_duration.cell(labels),
            )
            self._attempts[step, direction, outcome] = cells
        count, durations = cells
        count[0] += 1
        durations[bisect_left(_STEP_EDGES, duration_ns)] += 1
        durations[-1] += duration_ns

    def retried(self, step: str, direction: int) -> None:
        """A command is given out again."""
        self._meters.retries.add((step, DIRECTIONS[direction]))

    def turned_back(self, saga: str, cause: str) -> None:
        """A saga turns back; it counts when that is durable."""
        self._unwritten.backs.append((saga, cause))

    def compensated(self, saga: str, step: str, cause: str) -> None:
        """A step was compensated; likewise."""
        self._unwritten.undone.append((saga, step, cause))

    def refused(self, cause: str) -> None:
        """A request got an error."""
        self._meters.refused.add((cause,))

    def absorbed(self, where: str) -> None:
        """A message had no effect."""
        self._meters.duplicates.add((where,))

    def faulted(self, what: str, text: str = "", about: Live | None = None) -> None:
        """Something happened that never should."""
        self._meters.faults.add((what,))
        self._faults[what] += 1
        if self._faults[what] % FAULTS_PER_LINE == 1:
            ids = {} if about is None else traces.bound(about.saga_id, about.headers)
            said = {"what": what, "text": text, "count": self._faults[what], **ids}
            self._log.warning("fault_put_aside", **said)

    def recovered(self, sagas: int) -> None:
        """Sagas go on."""
        self._meters.recovered.add(by=sagas)

    def committed(self, took_ns: int, entries: int) -> None:
        """A group commit is durable."""
        self._meters.journal_commit_duration.observe(took_ns)
        self._meters.journal_commit_entries.observe(entries)
        self._meters.journal_records.add(by=entries)
        unwritten = self._unwritten
        if unwritten.starts:
            self._meters.started.add(by=len(unwritten.starts))
        for saga, outcome, duration_ns, exposed_ns in unwritten.ends:
            self._count_end(saga, outcome, duration_ns, exposed_ns)
        for back in unwritten.backs:
            self._meters.turned_back.add(back)
        for undone in unwritten.undone:
            self._meters.compensations.add(undone)
        unwritten.clear()

    def _count_end(self, saga: str, outcome: str, duration_ns: int, exposed_ns: int) -> None:
        cells = self._ends.get((saga, outcome))
        if cells is None:
            cells = (
                self._meters.finished.cell((saga, outcome)),
                self._meters.exposure.cell((outcome,)),
            )
            self._ends[saga, outcome] = cells
        count, exposures = cells
        count[0] += 1
        durations = self._duration
        durations[bisect_left(_SAGA_EDGES, duration_ns)] += 1
        durations[-1] += duration_ns
        if exposed_ns >= 0:
            exposures[bisect_left(_EXPOSURE_EDGES, exposed_ns)] += 1
            exposures[-1] += exposed_ns

    def forgot(self) -> None:
        """What was decided is not written."""
        self._unwritten.clear()

    def turned(self, took_ns: int) -> None:
        """A turn worked this long."""
        self._meters.event_loop_lag.observe(took_ns)

    def turned_away(self, service: str, text: str) -> None:
        """A worker may not work here."""
        self._meters.faults.add(("worker_turned_away",))
        self._log.error("worker_turned_away", service=service, text=text)


class Gauges:
    """What the metrics' thread may read: written by the loop's thread, each heartbeat."""

    def __init__(self, meters: ShardMeters) -> None:
        self.active = {"running": 0, "compensating": 0, "stuck": 0}
        self.oldest_s = 0.0
        self.oldest_stuck_s = 0.0
        self.at_risk = 0
        self.journal_bytes = 0
        self.mode = STARTING
        self.epoch = 0
        self.slots = 0
        self.busy_s = 0.0
        self.pools = dict.fromkeys(_POOL_GAUGES, _NOTHING)  # metric -> service -> number
        meters.active.source = lambda: {(state,): float(n) for state, n in self.active.items()}
        meters.oldest_active_timestamp.source = lambda: self.oldest_s
        meters.oldest_stuck_timestamp.source = lambda: self.oldest_stuck_s
        meters.amount_at_risk.source = lambda: float(self.at_risk)
        meters.journal_size.source = lambda: float(self.journal_bytes)
        meters.shard_mode.source = lambda: {(self.mode,): 1}
        meters.shard_epoch.source = lambda: self.epoch
        meters.shard_slots.source = lambda: self.slots
        meters.event_loop_busy.source = lambda: self.busy_s
        meters.pool_workers.source = lambda: self.pools["workers"]
        meters.pool_credit.source = lambda: self.pools["credit"]
        meters.pool_outstanding.source = lambda: self.pools["outstanding"]
        meters.pool_waiting.source = lambda: self.pools["waiting"]
        meters.pool_commands.source = lambda: self.pools["commands"]
        meters.pool_wait.source = lambda: self.pools["wait_s"]

    def read(self, engine: Engine, journal: SqliteJournal, mode: str, busy_ns: int) -> None:
        """Take the values of now.

        Args:
            engine: as it stands between two turns.
            journal: likewise.
            mode: of the loop.
            busy_ns: how long the loop did not wait for something to come, since it began.
        """
        state = engine.state
        self.mode, self.epoch, self.slots = mode, state.epoch, engine.slots
        self.busy_s = busy_ns / 1e9
        self._read_pools(engine.pools())
        self.active = {
            "running": len(state.live) - state.compensating,
            "compensating": state.compensating - state.stuck,
            "stuck": state.stuck,
        }
        oldest = next(iter(state.live.values()), None)
        self.oldest_s = (oldest.deadline_ms - engine.deadline_ms) / 1000 if oldest else 0.0
        # Not the first: after a restart they stand in the order of their numbers.
        self.oldest_stuck_s = min(state.stuck_since.values(), default=0) / 1000
        self.at_risk = state.at_risk
        self.journal_bytes = journal.size_bytes()

    def _read_pools(self, pools: Iterable[Pool]) -> None:
        read: dict[str, dict[Labels, float]] = {name: {} for name in _POOL_GAUGES}
        for pool in pools:
            labels = (pool.service,)
            workers = pool.workers.values()
            read["workers"][labels] = len(workers)
            read["credit"][labels] = sum(worker.capacity for worker in workers)
            read["outstanding"][labels] = sum(len(worker.out) for worker in workers)
            read["waiting"][labels] = pool.queued + len(pool.suspects)
            read["commands"][labels] = pool.given_out
            read["wait_s"][labels] = pool.waited_ns / 1e9
        self.pools = read


def definitions_of(config: Config) -> dict[str, Definition]:
    """Give the definitions that the configuration names, by name.

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
    return {plan.name: Definition(plan, retry) for plan in load_sagas(config)}


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
        accepts_loss: go on although the journal, or a service's database, is an old copy.
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
        *,
        accepts_loss: bool = False,
    ) -> None:
        cluster = data.read()
        if index >= cluster.shards:
            raise Malformed(f"there is no shard {index}: the cluster has {cluster.shards}")
        self._log, self._clock, self._child, self._index = log, clock, child, index
        self._lock = data.own_shard(index)
        definitions = definitions_of(config)
        self._meters = ShardMeters([each.saga for each in definitions.values()])
        self._tally = tally = MeteredTally(self._meters, log)
        self._gauges = Gauges(self._meters)
        if not accepts_loss:
            data.require(data.journal(index))
        self._journal = SqliteJournal(data.journal(index), cluster.cluster_id, index)
        data.note(data.journal(index))
        self._config, self._definitions = config, definitions
        self._slots = cluster.slots.slots_of(index)
        self._prices = load_catalog(config.cluster.catalog).prices
        self._admission = Admission(config.shard.inflight_max, config.shard.queue_age_max_ms)
        engine, upkeep = self._fresh()
        self._ctx = context()
        self._links = Links(
            self._ctx,
            run.shard(index),
            run.workers(index),
            cluster.cluster_id,
            engine.services(),
            child.wakeup_fd,
        )
        self._reserve = ReserveFile(data.shard(index) / "reserve")
        self._loop = Loop(
            engine,
            ToldJournal(self._journal, log) if log.tells_debug else self._journal,
            self._links,
            clock,
            cluster.cluster_id,
            tally,
            upkeep,
            fresh=self._fresh,
            reserve=self._reserve,
            accepts_loss=accepts_loss,
        )
        self._began_ns = clock.monotonic_ns()
        self._mode = STARTING  # that was logged last
        self._drain_ns = config.supervisor.drain_ms * MS
        self._garbage = 0  # frames that were counted as faults already
        self._rates = Rates(clock.monotonic_ns(), self._counts())

    def _fresh(self) -> tuple[Engine, Upkeep]:
        """Make an engine that knows nothing yet, and the upkeep of what it will know."""
        config, shard = self._config, self._config.shard
        generations = Generations(self._journal.store)
        engine = Engine(
            self._index,
            self._slots,
            State(self._definitions, generations),
            self._prices,
            self._admission,
            RetryBudget(
                shard.retry_per_success_permille, shard.retry_burst, shard.retry_per_second
            ),
            self._tally,
            config.saga.deadline_ms,
            config.supervisor.worker_live_ms * MS,
            shard.retention_ms,
        )
        return engine, Compaction(self._journal, generations, engine.state.counts, shard.tail_bytes)

    def run(self) -> None:
        """Recover, serve until told to stop, finish what is in flight, close.

        Raises:
            OldCopy: the journal or a service's database is one; nothing was written.
        """
        begun = self._clock.monotonic_ns()
        recovered = self._loop.recover(lambda: self._child.beat(self._clock.monotonic_ns()))
        took = self._clock.monotonic_ns() - begun
        self._meters.recovery_duration.source = lambda: took / 1e9
        self._child.metrics_port = MetricsServer(self._meters).start()
        self._see_mode(recovered=recovered, took_ms=took // MS)
        # What a saga leaves behind has no cycles: reference counts free it. The collector's visits
        # cost a quarter of the shard's time, so they come rarely, and never to what is here now.
        gc.freeze()
        gc.set_threshold(50_000, 100, 100)
        try:
            self._serve()
        except SagacityError:
            self._leave()
            raise
        self._log.info("shard_drained", in_flight=self._loop.engine.inflight)
        self._close()

    def _serve(self) -> None:
        stop_at: int | None = None
        while not self._is_over(stop_at):
            self._loop.turn()
            if self._loop.mode != self._mode:
                self._see_mode()
            self._child.beat(self._clock.monotonic_ns(), self._facts)
            if self._child.stopping and self._child.woken() and stop_at is None:
                self._admission.draining = True
                stop_at = self._clock.monotonic_ns() + self._drain_ns

    def _see_mode(self, **facts: int) -> None:
        """Log and report what the shard does now."""
        self._mode = mode = self._loop.mode
        said = {"epoch": self._loop.engine.state.epoch, "seq": self._journal.last.seq, **facts}
        if mode == SERVING:
            self._log.info("shard_serves", **said)
        elif mode == STARTING:
            self._log.info("shard_waits_for_services", **said)
        else:
            self._log.error("disk_full", **said)
        self._child.report("up" if mode == SERVING else "starting", self._facts)

    def _is_over(self, stop_at: int | None) -> bool:
        if stop_at is None:
            return False
        done = self._loop.engine.inflight == 0 or self._loop.mode != SERVING
        return done or self._clock.monotonic_ns() >= stop_at

    def _facts(self) -> dict[str, int]:
        """Give what `status` shows of this shard; also the moment to refresh the gauges."""
        busy_ns = self._clock.monotonic_ns() - self._began_ns - self._links.waited_ns
        self._gauges.read(self._loop.engine, self._journal, self._loop.mode, busy_ns)
        dropped = self._links.dropped
        while self._garbage < dropped.garbage:
            self._garbage += 1
            self._tally.faulted("frame")
        state, counts = self._loop.engine.state, self._counts()
        return {
            "epoch": state.epoch,
            "in_flight": len(state.live),
            "compensating": state.compensating - state.stuck,
            "stuck": state.stuck,
            **counts,
            **self._rates.read(self._clock.monotonic_ns(), counts),
            "seq": self._journal.last.seq,
            "strangers": dropped.strangers,
            "commands_unsent": dropped.commands_unsent,
            "replies_unsent": dropped.replies_unsent,
        }

    def _counts(self) -> dict[str, int]:
        """Give how many sagas have started and ended since this process began."""
        finished = self._meters.finished.read()
        return {
            "started": sum(self._meters.started.read().values()),
            "completed": sum(n for key, n in finished.items() if key[1] == "completed"),
            "aborted": sum(n for key, n in finished.items() if key[1] == "aborted"),
        }

    def _leave(self) -> None:
        """Let go of the sockets; the journal stays as it is."""
        self._links.close()
        self._ctx.term()

    def _close(self) -> None:
        self._leave()
        self._reserve.give_up()  # nothing is in flight here until the next start
        self._journal.close()
        self._lock.release()


def serve(make: Callable[[], Shard], log: Log) -> int:
    """Run a shard and give the process's exit code."""
    try:
        make().run()
    except JournalRefused as error:
        # Of which kind it is, the words say; what to do about each, the page.
        text = f"{error.text}; it is left as it is: {MEND}, see docs/errors.md"
        log.error("shard_refused", text=text, code=error.code)
        return error.exit_code
    except SagacityError as error:
        log.error("shard_refused", text=error.text, code=error.code)
        return error.exit_code
    except (JournalFailed, Fenced, StartOver) as error:
        # What became of the last commit is unknown: the next start reads what is there.
        log.error("shard_ended", cause=type(error).__name__, text=str(error))
        _end_at_once(1)
    except (InvariantBroken, Exception) as error:
        log.bug(error)
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
    parser = arguments("python -m shard", index=int)
    parser.add_argument("--accept-data-loss", action="store_true")
    args = parser.parse_args(argv)
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
        refuse_known_bad(
            {
                "libzmq": LIBZMQ_VERSION,
                "msgpack": MSGPACK_VERSION,
                "SQLite": apsw.sqlite_lib_version(),
            }
        )
        config = load(args.config)
        child.set_heartbeat(config.supervisor.heartbeat_ms)
        data = DataDirectory(args.data)
        accepts = args.accept_data_loss
        return Shard(config, data, run, args.index, clock, child, log, accepts_loss=accepts)

    return serve(make, log)
