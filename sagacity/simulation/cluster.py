"""Cluster: the production code of every role, wired to the twins of one simulation.

Router, shards, workers and clients run as they are; a supervisor in two lines starts again what
ended. What ends in a way that no process of ours should is a violation.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import apsw

import router
from cluster.meters import RouterMeters
from sagacity import sockets
from sagacity.saga import Retry
from sagacity.service import Service
from sagacity.simulation import plan as plans
from sagacity.simulation.disk import Disk, TwinDatabase, TwinJournal, made
from sagacity.simulation.drive import Drive, DriveJournal, DriveUpkeep
from sagacity.simulation.moods import Moods
from sagacity.simulation.network import Network
from sagacity.simulation.plan import Drives, Fault, Plan
from sagacity.simulation.ports import (
    NO_FD,
    CheckedLinks,
    CheckedWatch,
    Left,
    Log,
    Tally,
    TwinChild,
    TwinClock,
    TwinMachine,
)
from sagacity.simulation.restored import differences
from sagacity.simulation.scenario import Scenario
from sagacity.simulation.world import Process, World
from sagacity.slots import SlotMap
from sagacity.sockets import Context
from sagacity.worker import Worker
from shard.admission import Admission
from shard.compaction import Compaction
from shard.engine import Engine
from shard.finished import FinishedInMemory
from shard.generations import Generations
from shard.guard import OldCopy, StartOver
from shard.journal import JournalFailed, JournalRefused
from shard.loop import SERVING, Fenced, Loop, NoUpkeep, Upkeep
from shard.retries import RetryBudget
from shard.sagas import MS, Definition
from shard.state import FinishedSagas, State

CLUSTER = "5a9ac177" * 4
ROUTER = "tcp://127.0.0.1:1000"
SLOTS = SlotMap.even(plans.SHARDS)
SLOTS_OF = tuple(SLOTS.slots_of(index) for index in range(plans.SHARDS))
KEEP_MS = 604_800_000  # a finished saga, where the plan does not say
HUNG_MS = {"router": 15_000, "shard": 15_000}  # then the supervisor kills; workers after 10 s

Fresh = Callable[[], tuple[Engine, Upkeep]]


def routers_of(shard: int) -> str:
    """Give the address where routers connect to a shard."""
    return f"tcp://127.0.0.1:{2000 + shard}"


def workers_of(shard: int) -> str:
    """Give the address where workers connect to a shard."""
    return f"tcp://127.0.0.1:{3000 + shard}"


class Cluster:
    """Every process and disk of one run.

    Args:
        scenario: what is simulated.
        plan: to play.
    """

    def __init__(self, scenario: Scenario, plan: Plan) -> None:
        self.scenario = scenario
        self.plan = plan
        self.pools = plans.pools_of(scenario)
        self.world = World(
            plan.seed, self._ended, turn_ns=plan.turn_us * 1_000, sync_ns=plan.sync_us * 1_000
        )
        self.network = Network(self.world)
        self.log = Log()
        self.left: list[Left] = []
        self.tallies: dict[int, Tally] = {}  # of each shard's process, as it counts from its start
        self._ended_tallies: Counter[tuple[str, ...]] = Counter()  # of those that have ended
        self.reached: Counter[str] = Counter()  # faults that took place
        self.violations: list[str] = []
        self.loops: dict[int, Loop] = {}
        self.disks = {name: Disk() for name in (*self._shards(), *self.pools)}
        self.journals: dict[int, list[tuple[int, bytes, bytes]]] = {
            index: [] for index in range(plans.SHARDS)
        }
        self.decided_at: dict[int, list[int]] = {index: [] for index in self.journals}
        self.drives: dict[int, Drive] = {}
        if plan.drives is not None:
            for index in self.journals:
                self.drives[index] = self._drive_of(index)
        self.moods = Moods(self.world)
        self.services: dict[str, Service] = {
            each.name: self.moods.moody(each) for each in scenario.services(self._crash)
        }
        self.databases: dict[str, TwinDatabase] = {
            name: made(self.world, self.disks[name], service, CLUSTER, scenario.catalog)
            for name, service in self.services.items()
        }
        retry = Retry(timeout_ms=plan.timeout_ms, stuck_after=plan.stuck_after)
        self.definitions = {scenario.saga.name: Definition(scenario.saga, retry)}
        self._epochs: dict[str, dict[int, int]] = {name: {} for name in self.pools}
        self._mains: dict[str, Callable[[Process], None]] = {"router": self._router}
        self.network.kinds[ROUTER] = "client"
        for index in range(plans.SHARDS):
            self._mains[f"shard-{index}"] = self._shard_of(index)
            self.network.kinds[routers_of(index)] = "shard"
            self.network.kinds[workers_of(index)] = "worker"
        for name in self.pools:
            self._mains[name] = self._worker_of(name)
        self.network.weather.update(plan.weather)
        for name in self._mains:
            self._start(name)
        for fault in plan.faults:
            self.world.after(fault.at_ms * MS, self._strike, fault)
        self.calm_at = self.world.now + plan.calm_ms * MS
        self.world.at(self.calm_at, self._calm)

    @property
    def idle(self) -> bool:
        """Whether every shard serves and waits, with no saga in flight."""
        return all(
            (process := self.world.processes[f"shard-{index}"]).alive
            and process.waits_for is not None
            and self.loops[index].mode == SERVING
            and not self.loops[index].engine.inflight
            for index in range(plans.SHARDS)
        )

    # -- processes ------------------------------------------------------------------------------

    def _shards(self) -> list[str]:
        return [f"shard-{index}" for index in range(plans.SHARDS)]

    def _start(self, name: str) -> None:
        known = self.world.processes.get(name)
        if known is None or not known.alive:
            process = self.world.spawn(name, self._mains[name])
            process.at_death.append(lambda: self._died(name))

    def _died(self, name: str) -> None:
        """What a supervisor does; of a pool it is the standby that goes on."""
        self.reached[f"deaths of {name.partition('-')[0]}"] += 1
        self.world.after(
            self.world.random.randrange(5 * MS, self.plan.restart_ms * MS), self._start, name
        )

    def _ended(self, process: Process, error: BaseException | None) -> None:
        expected: tuple[type[BaseException], ...] = ()
        if process.name.startswith("shard"):
            expected = (JournalFailed, Fenced, StartOver, OldCopy)
            drive = self.drives.get(int(process.name.removeprefix("shard-")))
            if drive is not None and drive.is_recovering and drive.had_error:
                expected += (JournalRefused,)  # it could not be opened
        elif process.name in self.pools:
            expected = (apsw.IOError,)
        if process.name.startswith("client") and error is None:
            return
        if not isinstance(error, expected) or isinstance(error, OldCopy):
            self.violations.append(f"{process.name} ended: {error!r}")
            if error is not None:
                error.add_note(f"at {self.world.now}")
        else:
            self.reached[f"ended by {type(error).__name__}"] += 1

    def _router(self, process: Process) -> None:
        context = cast(Context, self.network.context(process))
        meters = RouterMeters(plans.SHARDS)
        child = cast(Any, TwinChild(self.world))
        decides = router.Router(SLOTS, meters, client_inflight_max=1_024, shard_inflight_max=4_096)
        front = sockets.router(context, ROUTER)
        peers = [router.Peer(context, index, routers_of(index)) for index in range(plans.SHARDS)]
        peers.append(router.Peer(context, decides.supervisor, "tcp://127.0.0.1:4000"))
        clock, log = TwinClock(self.world), cast(Any, self.log)
        poller = context.poller()
        router.Loop(decides, front, poller, peers, child, meters, clock, log).run(0)

    def _drive_of(self, index: int) -> Drive:
        drive = Drive(self.disks[f"shard-{index}"], self.reached, self.violations)
        self.journals[index], self.decided_at[index] = drive.rows, drive.decided_at
        return drive

    def _engine_of(self, index: int, finished: FinishedSagas, retention_ms: int) -> Engine:
        return Engine(
            index,
            SLOTS_OF[index],
            State(self.definitions, finished),
            self.scenario.prices,
            Admission(4_096, 5_000),
            RetryBudget(100, 100, 10),
            self.tallies[index],
            self.plan.deadline_ms,
            retention_ms=retention_ms or KEEP_MS,
        )

    def _kept_in_memory(self, index: int, process: Process) -> tuple[TwinJournal, Fresh]:
        disk = self.disks[process.name]
        journal = TwinJournal(process, disk, self.journals[index], self.decided_at[index])
        return journal, lambda: (self._engine_of(index, FinishedInMemory(), 0), NoUpkeep())

    def _kept_on_disk(
        self, index: int, process: Process, limits: Drives
    ) -> tuple[DriveJournal, Fresh]:
        drive = self.drives[index]
        drive.own(process)
        journal = drive.work(lambda: DriveJournal(drive, process, CLUSTER, index))
        journal.store.wal_pages_max = limits.wal_pages_max

        def fresh() -> tuple[Engine, Upkeep]:
            generations = Generations(journal.store)
            engine = self._engine_of(index, generations, limits.retention_ms)
            work = Compaction(
                journal,
                generations,
                engine.state.counts,
                limits.tail_bytes,
                per_level=limits.per_level,
            )
            return engine, DriveUpkeep(journal, drive, generations, work)

        return journal, fresh

    def _shard_of(self, index: int) -> Callable[[Process], None]:
        def main(process: Process) -> None:
            if index in self.tallies:
                self._ended_tallies += self.tallies[index].counts
            tally = self.tallies[index] = Tally()
            limits = self.plan.drives
            journal, fresh = (
                self._kept_in_memory(index, process)
                if limits is None
                else self._kept_on_disk(index, process, limits)
            )
            links = CheckedLinks(
                self.violations,
                self.left,
                journal,
                cast(Context, self.network.context(process)),
                routers_of(index),
                workers_of(index),
                CLUSTER,
                frozenset(self.pools),
                NO_FD,
            )
            engine, upkeep = fresh()
            clock = TwinClock(self.world)
            loop = Loop(engine, journal, links, clock, CLUSTER, tally, upkeep, fresh=fresh)
            loop.recover()
            if limits is not None:
                self._recovered(index, loop.engine.state, journal)
            self.loops[index] = loop
            while True:
                loop.turn()

        return main

    def _recovered(self, index: int, state: State, journal: TwinJournal | DriveJournal) -> None:
        """See that a shard which starts knows what was committed."""
        self.drives[index].is_recovering = False
        if isinstance(journal, DriveJournal) and journal.checkpoint_seq:
            self.reached["recoveries from a checkpoint"] += 1
        self.violations += differences(state, journal.rows, self.definitions, closely=False)

    def _worker_of(self, name: str) -> Callable[[Process], None]:
        def main(process: Process) -> None:
            worker = Worker(
                self.services[name],
                Path(name),
                [workers_of(index) for index in range(plans.SHARDS)],
                CLUSTER,
                catalog=self.scenario.catalog,
                log=self.log,
                watch=CheckedWatch(self.violations, self._epochs[name], self.reached),
                machine=TwinMachine(self.network, process),
                open_database=lambda _: self.databases[name].open_by(process),
            )
            worker.run()

        return main

    def _crash(self) -> None:
        self.reached["deaths by their own hand"] += 1
        self.world.kill(self.world.current)

    # -- faults ---------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        world, process = self.world, self.world.processes.get(fault.target)
        until = world.now + fault.span_ms * MS
        if fault.kind == plans.KILL_ALL:
            for name in self._mains:
                world.kill(world.processes[name])
        elif fault.kind == plans.PART:
            self.network.part(fault.target, fault.other, until)
        elif fault.kind == plans.RESET:
            if not self.network.reset(fault.target, fault.other):
                return
        elif fault.kind == plans.FULL:
            self.disks[fault.target].full_until = until
        elif fault.kind == plans.SLOW:
            self.disks[fault.target].slow_until = until
        elif fault.kind == plans.SYNC_FAILS:
            self.disks[fault.target].failing = bool(fault.number)
        elif fault.kind == plans.SICK:
            self.moods.sick_until[fault.target] = until
        elif fault.kind == plans.POWER:
            drive = self.drives.get(int(fault.target.removeprefix("shard-")))
            if drive is not None:
                drive.lose_power(fault.number, fault.other)
        elif fault.kind == plans.CLOCK:
            world.wall_jump_ms += fault.number
        elif process is None or not process.alive:
            return
        elif fault.kind == plans.KILL:
            world.kill(process)
        elif fault.kind == plans.DIE_AT_POINT:
            process.dies_at = fault.number
        else:
            self._hang(process, fault.span_ms)
        self.reached[fault.kind] += 1

    def _hang(self, process: Process, span_ms: int) -> None:
        limit_ms = HUNG_MS.get(process.name.partition("-")[0], 10_000)
        self.world.hang(process, span_ms * MS)
        if span_ms > limit_ms:
            self.world.after(limit_ms * MS, self.world.kill, process)

    def _calm(self) -> None:
        """End all faults: from here on everything has to finish."""
        self.network.calm()
        self.moods.end()
        for disk in self.disks.values():
            disk.full_until = disk.slow_until = 0
            disk.failing = None
        for drive in self.drives.values():
            drive.calm()
        for process in self.world.processes.values():
            process.dies_at = None
            if process.alive and process.hung_until > self.world.now:
                process.hung_until = self.world.now

    def close(self) -> None:
        """Let go of everything."""
        for drive in self.drives.values():
            drive.is_over = True
        self.world.close()
        for database in self.databases.values():
            apsw.Connection.close(database)
        for drive in self.drives.values():
            drive.let_go()

    def figures(self) -> Mapping[str, int]:
        """Give what was reached, for the campaign's table."""
        network = self.network
        told = {
            "frames lost": network.lost,
            "frames doubled": network.doubled,
            "frames overtaken": network.overtaken,
            "frames held": network.held,
            "connections reset": network.resets,
            "writes without room": sum(disk.refused for disk in self.disks.values()),
            "failures of a sick service": self.moods.failed,
            "deaths by a poison command": self.moods.killed,
            "failed syncs": sum(disk.failed for disk in self.disks.values()),
        }
        counts = {" ".join(key): value for key, value in self._counted().items()}
        return Counter(told) + self.reached + self.log.events + Counter(counts)

    def counted_faults(self) -> list[str]:
        """Give what shards have counted that never should happen, and how often."""
        return [
            f"{key[1]}: {times} times"
            for key, times in sorted(self._counted().items())
            if key[0] == "faulted"
        ]

    def _counted(self) -> Counter[tuple[str, ...]]:
        return sum((tally.counts for tally in self.tallies.values()), self._ended_tallies)
