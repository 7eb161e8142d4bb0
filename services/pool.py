"""One worker process of a service's pool: the composition root behind `python -m services`.

Waits, as a standby, for the pool's lock; then opens the service's database and serves until it is
told to stop. The one file here that knows configuration, directories, metrics and signals.

    starting -> standby (another worker has the lock) -> up -> exit 0
"""

import argparse
import fcntl
import os
import select
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import apsw

from cluster.child import Child, arguments
from cluster.clock import Clock, SystemClock
from cluster.directory import MEND, ClusterFile, DataDirectory, RunDirectory
from cluster.meters import WorkerMeters
from cluster.telemetry import Log, MetricsServer, configure_logging
from config.load import Catalog, imported, load, load_catalog
from config.schema import Config
from sagacity.errors import Malformed, SagacityError
from sagacity.ids import ACTION, COMPENSATION, DIRECTIONS
from sagacity.saga import tag_of
from sagacity.service import Service
from sagacity.sockets import LIBZMQ_VERSION
from sagacity.versions import refuse_known_bad
from sagacity.wire import MSGPACK_VERSION, OUTCOMES, Command
from sagacity.worker import EXIT_REJECTED, Served, Watch, Worker

LOCK_RETRY_MS: Final = 25  # a standby takes over within 100 ms (DESIGN 5): measured, 56 ms


class PoolWatch(Watch):
    """Tells the supervisor how the worker is, and counts what it did.

    Args:
        child: this process.
        meters: to count in.
        names: what gives a command's name, for the metrics' label.
    """

    def __init__(self, child: Child, meters: WorkerMeters, names: Callable[[Command], str]) -> None:
        self.wakeup_fd = child.wakeup_fd
        self.worker: Worker | None = None
        self._child = child
        self._meters = meters
        self._names = names
        self._answered = 0
        meters.worker_busy.source = lambda: self.worker.busy if self.worker else 0
        meters.worker_capacity.source = lambda: self.worker.capacity if self.worker else 0

    def woken(self) -> bool:
        """Take a signal; say whether the worker has to stop."""
        return self._child.woken()

    def turned(self, now_ns: int) -> None:
        """Report to the supervisor if a report is due."""
        self._child.beat(now_ns, self.facts)

    def facts(self) -> dict[str, int]:
        """Give the integers that `status` shows."""
        return {
            "answered": self._answered,
            "busy": self.worker.busy if self.worker else 0,
            "capacity": self.worker.capacity if self.worker else 0,
            "replays": self.worker.replays if self.worker else 0,
        }

    def served(self, served: Served) -> None:
        """Count a turn's commands."""
        meters = self._meters
        name = self._names
        attempts = Counter(
            (name(command), answer.direction, answer.outcome)
            for command, answer in zip(served.commands, served.answers, strict=True)
            if ACTION <= answer.direction <= COMPENSATION  # else a fault, logged as one
        )
        for (step, direction, outcome), times in attempts.items():
            meters.step_attempts.add((step, DIRECTIONS[direction], OUTCOMES[outcome]), times)
        self._answered += len(served.answers)
        if served.repeated:
            meters.duplicates.add(("command",), served.repeated)
        # Once for the batch: all its commands waited alike.
        meters.worker_queue_wait.observe(served.waited_ns)
        meters.event_loop_lag.observe(served.turn_ns)

    def garbage(self) -> None:
        """Count a frame that could not be read."""
        self._meters.faults.add(("frame",))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker; give the process's exit code."""
    parser = arguments("python -m services", service=str, index=int)
    parser.add_argument("--accept-data-loss", action="store_true")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except SagacityError as error:
        print(f"services: {error.text}", file=sys.stderr)  # noqa: T201 - a program's last words
        return error.exit_code


def _run(args: argparse.Namespace) -> int:
    name, clock = args.service, SystemClock()
    refuse_known_bad(
        {
            "libzmq": LIBZMQ_VERSION,
            "msgpack": MSGPACK_VERSION,
            "SQLite": apsw.sqlite_lib_version(),
        }
    )
    run = RunDirectory(args.run)
    config = load(args.config)
    child = Child(
        name, args.index, run, args.parent, clock, heartbeat_ms=config.supervisor.heartbeat_ms
    )
    try:
        log = configure_logging(name, args.index)
        service = load_service(config, name)
        meters = WorkerMeters(commands_of(service))
        watch = PoolWatch(child, meters, namer(service))
        child.metrics_port = MetricsServer(meters).start()
        child.report("starting")
        directory = DataDirectory(args.data)
        cluster = directory.read()
        catalog = load_catalog(config.cluster.catalog)  # a standby has it ready when it takes over
        if not _lock(directory.service_lock(name), child, clock):
            return 0
        if not args.accept_data_loss:
            directory.require(directory.service(name))
        try:
            worker = _worker(service, config, catalog, directory, cluster, run, log, watch)
        except Malformed as error:
            file = directory.service(name)
            text = error.text if str(file) in error.text else f"{file}: {error.text}"
            raise Malformed(f"{text}; it is left as it is: {MEND}, see docs/errors.md") from None
        directory.note(directory.service(name))
        watch.worker = worker
        child.report("up", watch.facts)
        log.info("worker_up", service=name)
        code = worker.run()
        log.info("worker_stopped", service=name, exit_code=code)
        # Who is not welcome is no less so when started again: it waits, and is quarantined.
        return Malformed.exit_code if code == EXIT_REJECTED else code
    finally:
        child.close()


def _worker(
    service: Service,
    config: Config,
    catalog: Catalog,
    directory: DataDirectory,
    cluster: ClusterFile,
    run: RunDirectory,
    log: Log,
    watch: Watch,
) -> Worker:
    return Worker(
        service,
        directory.service(service.name),
        [run.workers(index) for index in range(cluster.shards)],
        cluster.cluster_id,
        capacity=config.services.credit,
        heartbeat_ms=config.supervisor.heartbeat_ms,
        catalog=catalog,
        log=log,
        watch=watch,
    )


def _lock(file: Path, child: Child, clock: Clock) -> bool:
    """Wait for the pool's lock, reporting as a standby; False when told to stop meanwhile.

    The lock is the process's until its end. It is asked for again and again, since a call that
    waits for it could not report; that costs 0.1 % of a core.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not child.stopping:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if child.state != "standby":
                child.report("standby")
            child.beat(clock.monotonic_ns())
            select.select([child.wakeup_fd], [], [], LOCK_RETRY_MS / 1000)
            child.woken()
        else:
            return True
    return False


def load_service(config: Config, name: str) -> Service:
    """Load a pool's service by the name that the configuration gives it.

    Raises:
        Malformed: there is no such pool, module or Service, or the module raises.
    """
    place = config.services.pools.get(name)
    if place is None:
        raise Malformed(f"no pool {name!r}; there are {', '.join(config.services.pools)}")
    said = f"services.pools.{name} = {place!r}"
    found = imported(place, said)
    if not isinstance(found, Service) or found.name != name:
        raise Malformed(f"{said} is no Service of that name")
    return found


def commands_of(service: Service) -> list[tuple[str, str]]:
    """Give (name, direction) of each command that a service performs."""
    return [
        (tag_of(kind) or "", DIRECTIONS[direction])
        for direction in (ACTION, COMPENSATION)
        for kind in service.handlers(direction)
    ]


def namer(service: Service) -> Callable[[Command], str]:
    """Give what names a command by its direction and step, for metrics.

    A service with one action and one compensation is told by the direction alone; of others, the
    body is read.
    """
    readers = (service.reader(ACTION), service.reader(COMPENSATION))
    only = [
        [tag_of(kind) or "" for kind in service.handlers(direction)]
        for direction in (ACTION, COMPENSATION)
    ]

    def name(command: Command) -> str:
        names = only[command.direction]
        if len(names) == 1:
            return names[0]
        try:
            return tag_of(type(readers[command.direction](command.body))) or ""
        except ValueError:  # msgspec's errors are ValueErrors
            return ""

    return name
