"""Plan: what a seed stands for, all of it drawn before anything runs.

Starts, requests, faults and weather; then the faults end. A plan is plain values: it can be written
to a file, shortened, and played again. Knows nothing of how it is played.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from msgspec import Struct

from sagacity import wire
from sagacity.simulation.drive import WAYS
from sagacity.simulation.moods import POISON
from sagacity.simulation.network import Weather
from sagacity.simulation.scenario import Scenario

FORMAT = 1
CLIENTS = 3
SHARDS = 2
DRIVES_SHARE = 0.3  # of seeds, in which journals are on disks
RETAINED_MS = 3_000  # after retention, until it is noticed: a look a second, a list, its answer

KILL = "kill"  # a process
KILL_ALL = "kill_all"  # processes
DIE_AT_POINT = "die_at_point"  # between two effects
HANG = "hang"  # a process, as by SIGSTOP
RESET = "reset"  # the connections between two
PART = "part"  # two: nothing gets through
FULL = "full"  # a disk
SLOW = "slow"  # a disk
SYNC_FAILS = "sync_fails"  # on a disk, once
CLOCK = "clock"  # the wall clock jumps
SICK = "sick"  # a service fails
ASKED = (wire.START, wire.SUBMIT, wire.CANCEL, wire.SHOW)
WEATHERS = ("client", "shard", "worker")  # kinds of connections
POWER = "power"  # of a shard's machine, where its journal is on a disk
FAULTS = (KILL, KILL_ALL, DIE_AT_POINT, HANG, RESET, PART, FULL, SLOW, SYNC_FAILS, CLOCK, SICK)


class Ask(Struct, frozen=True, forbid_unknown_fields=True):
    """A request of a client.

    Args:
        at_ms: when.
        client: whose.
        kind: of wire.KINDS.
        start: index of the start whose saga it is about.
        other: with content that is not that start's.
    """

    at_ms: int
    client: int
    kind: int
    start: int
    other: bool = False


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """A fault. `number` is of the point to die at, or by how many ms a clock jumps, or 0 and 1."""

    at_ms: int
    kind: str
    target: str
    other: str = ""
    span_ms: int = 0
    number: int = 0


class Drives(Struct, frozen=True, forbid_unknown_fields=True):
    """Shards keep their journals on disks in memory, and the limits of these are small.

    Args:
        tail_bytes: of rows after which a compaction begins.
        per_level: segments that are merged into one.
        wal_pages_max: in the WAL, before they are copied into the file.
        retention_ms: how long a finished saga is kept; 0 for longer than a run lasts.
    """

    tail_bytes: int
    per_level: int
    wal_pages_max: int
    retention_ms: int = 0


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole run. `starts` are the bodies of the starts; each saga has one."""

    seed: int
    starts: tuple[dict[str, Any], ...]
    asks: tuple[Ask, ...]
    faults: tuple[Fault, ...]
    weather: dict[str, Weather]
    calm_ms: int
    timeout_ms: int = 3_000
    deadline_ms: int = 30_000
    stuck_after: int = 10
    patience_s: float = 35.0  # of clients
    restart_ms: int = 300  # longest time until what died is started again
    turn_us: int = 500  # longest turn of a process
    sync_us: int = 2_000  # longest sync of a disk
    format: int = FORMAT  # of a plan in a file
    drives: Drives | None = None  # None: journals are twins in memory

    @property
    def retained_ms(self) -> int:
        """After the faults, until sagas that ended with them may be forgotten; 0 if none is."""
        keep_ms = self.drives.retention_ms if self.drives else 0
        return keep_ms + RETAINED_MS if keep_ms else 0


def plan_of(scenario: Scenario, seed: int, sagas: int = 50) -> Plan:
    """Draw a plan.

    Args:
        scenario: gives the bodies.
        seed: the same gives the same.
        sagas: how many.
    """
    random = Random(seed * 2 + 1)
    span_ms = random.choice((1, 20, 100, 400, 2_000))
    calm_ms = span_ms + random.choice((300, 1_000, 4_000))
    poison = 0.02 if random.random() < 0.15 else 0.0
    ids = [_saga_id(random, index, poison) for index in range(sagas)]
    starts = tuple(dict(scenario.request(random, saga_id)) for saga_id in ids)
    asks = _asks(random, span_ms, ids)
    faults = _faults(random, calm_ms, pools_of(scenario))
    apart = Random(f"drives/{seed}")  # so that all else of a seed is what it was without them
    drives = _drives(apart) if apart.random() < DRIVES_SHARE else None
    if drives is not None:
        faults += _power(apart, span_ms + 100)
        asks += _late(apart, calm_ms + drives.retention_ms, sagas) if drives.retention_ms else []
    return Plan(
        seed,
        starts,
        tuple(sorted(asks, key=lambda ask: ask.at_ms)),
        tuple(sorted(faults, key=lambda each: each.at_ms)),
        _weather(random),
        calm_ms,
        timeout_ms=random.choice((3_000, 3_000, 1_000)),
        deadline_ms=random.choice((30_000, 30_000, 4_000)),
        stuck_after=random.choice((2, 10)),
        patience_s=random.choice((0.3, 1.0, 35.0)),
        restart_ms=random.choice((50, 300, 3_000)),
        turn_us=random.choice((100, 1_000, 5_000)),
        sync_us=random.choice((500, 5_000, 20_000)),
        drives=drives,
    )


def pools_of(scenario: Scenario) -> tuple[str, ...]:
    """Give the names of the services that a scenario needs, each once."""
    return tuple(dict.fromkeys(step.service for step in scenario.saga.steps))


def places_of(scenario: Scenario) -> frozenset[str]:
    """Give the names of all that a fault can be of."""
    shards = [f"shard-{index}" for index in range(SHARDS)]
    clients = [f"client-{index}" for index in range(CLIENTS)]
    return frozenset(["router", *shards, *clients, *pools_of(scenario)])


def _saga_id(random: Random, index: int, poison: float) -> str:
    saga_id = f"{random.getrandbits(48):012x}-{index}"
    if random.random() < poison:
        saga_id += POISON + random.choice(("10", "20", "30", "11", "21"))
    return saga_id


def _asks(random: Random, span_ms: int, ids: Sequence[str]) -> list[Ask]:
    asks = []
    for start, saga_id in enumerate(ids):
        at_ms = random.randrange(span_ms)
        client = random.randrange(CLIENTS)
        asks.append(Ask(at_ms, client, random.choice((wire.START, wire.START, wire.SUBMIT)), start))
        if POISON in saga_id:
            asks.append(Ask(at_ms + 5, client, wire.CANCEL, start))
        while random.random() < 0.2:
            later = at_ms + random.choice((0, 1, random.randrange(span_ms)))
            kind = random.choice((wire.START, wire.START, wire.CANCEL, wire.SHOW))
            other = kind == wire.START and random.random() < 0.2
            asks.append(Ask(later, random.randrange(CLIENTS), kind, start, other))
    return asks


def _weather(random: Random) -> dict[str, Weather]:
    weather = {}
    for kind in WEATHERS:
        latency_us = random.choice((100, 300, 2_000))
        if random.random() < 0.4:
            weather[kind] = Weather(latency_us=latency_us)
        else:
            weather[kind] = Weather(
                loss=random.choice((0.0, 0.01, 0.1)),
                duplication=random.choice((0.0, 0.05, 0.3)),
                reordering=random.choice((0.0, 0.05, 0.3)),
                latency_us=latency_us,
                delay_ms=random.choice((5, 100, 4_000)),
            )
    return weather


def _faults(random: Random, calm_ms: int, pools: Sequence[str]) -> list[Fault]:
    kinds = [kind for kind in FAULTS if random.random() < 0.35]
    return [
        _fault(random, kind, random.randrange(calm_ms), pools)
        for kind in kinds
        for _ in range(random.choice((1, 2, 2, 5)))
    ]


def _drives(random: Random) -> Drives:
    return Drives(
        tail_bytes=random.choice((600, 1_500, 4_000)),
        per_level=random.choice((2, 2, 3)),
        wal_pages_max=random.choice((8, 24, 1_000)),
        retention_ms=random.choice((0, 0, 400, 2_000)),
    )


def _power(random: Random, until_ms: int) -> list[Fault]:
    """Draw losses of power: at once, or some operations of the disk later; and in the recovery."""
    faults = []
    for _ in range(random.choice((0, 1, 2, 4, 6))):
        at_ms, target = random.randrange(until_ms), f"shard-{random.randrange(SHARDS)}"
        after = random.choice((0, random.randrange(1, 8), random.randrange(1, 40)))
        faults.append(Fault(at_ms, POWER, target, random.choice(WAYS), number=after))
        if after == 0 and random.random() < 0.5:
            again = random.randrange(1, 4)
            faults.append(Fault(at_ms + 1, POWER, target, random.choice(WAYS), number=again))
    return faults


def _late(random: Random, from_ms: int, sagas: int) -> list[Ask]:
    """Draw repeats of starts whose sagas may be past retention."""
    return [
        Ask(from_ms + random.randrange(RETAINED_MS), random.randrange(CLIENTS), wire.START, start)
        for start in range(sagas)
        if random.random() < 0.3
    ]


def _fault(random: Random, kind: str, at_ms: int, pools: Sequence[str]) -> Fault:
    shards = [f"shard-{index}" for index in range(SHARDS)]
    disks = [*shards, *pools]
    target = random.choice(["router", *disks])
    if kind in {FULL, SLOW, SYNC_FAILS}:
        target = random.choice(disks)
    other, span_ms, number = "", 0, 0
    if kind in {RESET, PART}:
        shard = random.choice(shards)
        target, other = random.choice(
            [("client-0", "router"), ("router", shard), (random.choice(pools), shard)]
        )
    if kind == SICK:
        target = random.choice(pools)
    if kind in {HANG, PART, FULL, SLOW, SICK}:
        span_ms = random.choice((100, 700, 2_000, 12_000))
    if kind == DIE_AT_POINT:
        number = random.randrange(random.choice((10, 50, 200)))
    elif kind == SYNC_FAILS:
        number = random.randrange(2)
    elif kind == CLOCK:
        number = random.choice((-1, 1)) * random.choice((3_600_000, 315_360_000_000))
    return Fault(at_ms, kind, target, other, span_ms, number)
