"""Plan: what a seed stands for, all of it drawn before anything runs.

Carts, requests, faults and weather; then the faults end. A plan is plain values: it can be written
to a file, shortened, and played again. Knows nothing of how it is played.
"""

from random import Random

from msgspec import Struct

from sagacity import wire
from tests.simulation.moods import POISON
from tests.simulation.network import Weather

CLIENTS = 3
SHARDS = 2
POOLS = ("inventory", "payment", "shipping")
SCARCE = "sku_scarce"
SCARCE_UNITS = 12
GONE = "sku_out_of_stock"

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
FAULTS = (KILL, KILL_ALL, DIE_AT_POINT, HANG, RESET, PART, FULL, SLOW, SYNC_FAILS, CLOCK, SICK)


class Cart(Struct, frozen=True):
    """What one checkout asks for."""

    saga_id: str
    user: str
    lines: tuple[tuple[str, int], ...]
    address: str

    def body(self, *, other: bool = False) -> bytes:
        """Give the request, or one of the same id with other content."""
        return wire.pack(
            {
                "type": "checkout",
                "saga_id": self.saga_id,
                "user_id": self.user,
                "items": [{"sku": sku, "quantity": quantity} for sku, quantity in self.lines],
                "shipping_address": self.address + (" b" if other else ""),
            }
        )


class Ask(Struct, frozen=True):
    """A request of a client. `other`: with content that is not the cart's."""

    at_ms: int
    client: int
    kind: int
    cart: int
    other: bool = False


class Fault(Struct, frozen=True):
    """A fault. `number` is of the point to die at, or by how many ms a clock jumps, or 0 and 1."""

    at_ms: int
    kind: str
    target: str
    other: str = ""
    span_ms: int = 0
    number: int = 0


class Plan(Struct, frozen=True):
    """A whole run."""

    seed: int
    carts: tuple[Cart, ...]
    asks: tuple[Ask, ...]
    faults: tuple[Fault, ...]
    weather: dict[str, Weather]
    calm_ms: int
    timeout_ms: int = 3_000
    deadline_ms: int = 30_000
    stuck_after: int = 10
    turn_us: int = 500  # longest turn of a process
    sync_us: int = 2_000  # longest sync of a disk


_ORDINARY = (*["u42"] * 60, *["u43"] * 20, *["u999"] * 12)
_ODD = ("u_flaky_3", "u_flaky_3", "u_slow_2s", "u_slow_2s", "u_timeout", "u_crash")


def plan_of(seed: int, sagas: int = 50) -> Plan:
    """Draw a plan.

    Args:
        seed: the same gives the same.
        sagas: how many carts.
    """
    random = Random(seed * 2 + 1)
    span_ms = random.choice((1, 20, 100, 400, 2_000))
    users = _ORDINARY + (_ODD if random.random() < 0.3 else ())
    poison = 0.02 if random.random() < 0.15 else 0.0
    carts = tuple(_cart(random, index, users, poison) for index in range(sagas))
    calm_ms = span_ms + random.choice((300, 1_000, 4_000))
    return Plan(
        seed,
        carts,
        tuple(sorted(_asks(random, span_ms, sagas), key=lambda ask: ask.at_ms)),
        tuple(sorted(_faults(random, calm_ms), key=lambda fault: fault.at_ms)),
        _weather(random),
        calm_ms,
        timeout_ms=random.choice((3_000, 3_000, 1_000)),
        deadline_ms=random.choice((30_000, 30_000, 4_000)),
        stuck_after=random.choice((2, 10)),
        turn_us=random.choice((100, 1_000, 5_000)),
        sync_us=random.choice((500, 5_000, 20_000)),
    )


def _cart(random: Random, index: int, users: tuple[str, ...], poison: float) -> Cart:
    user = random.choice(users)
    skus = random.choices(("abc123", "xyz789", SCARCE, GONE, "zzz"), (60, 30, 8, 1, 1), k=2)
    lines = tuple((sku, random.randint(1, 3)) for sku in skus[: random.randint(1, 2)])
    address = "no_carrier" if random.random() < 0.05 else "123 Main St"
    saga_id = f"{random.getrandbits(48):012x}-{index}"
    if random.random() < poison:
        saga_id += POISON + random.choice(("10", "20", "30", "11", "21"))
        address = "no_carrier" if saga_id.endswith("1") else address
    return Cart(saga_id, user, lines, address)


def _asks(random: Random, span_ms: int, sagas: int) -> list[Ask]:
    asks = []
    for cart in range(sagas):
        at_ms = random.randrange(span_ms)
        client = random.randrange(CLIENTS)
        asks.append(Ask(at_ms, client, random.choice((wire.START, wire.START, wire.SUBMIT)), cart))
        while random.random() < 0.2:
            later = at_ms + random.choice((0, 1, random.randrange(span_ms)))
            kind = random.choice((wire.START, wire.START, wire.CANCEL, wire.SHOW))
            other = kind == wire.START and random.random() < 0.2
            asks.append(Ask(later, random.randrange(CLIENTS), kind, cart, other))
    return asks


def _weather(random: Random) -> dict[str, Weather]:
    weather = {}
    for kind in ("client", "shard", "worker"):
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


def _faults(random: Random, calm_ms: int) -> list[Fault]:
    kinds = [kind for kind in FAULTS if random.random() < 0.35]
    return [
        _fault(random, kind, random.randrange(calm_ms))
        for kind in kinds
        for _ in range(random.choice((1, 1, 2, 4)))
    ]


def _fault(random: Random, kind: str, at_ms: int) -> Fault:
    shards = [f"shard-{index}" for index in range(SHARDS)]
    disks = [*shards, *POOLS]
    target = random.choice(["router", *disks])
    if kind in {FULL, SLOW, SYNC_FAILS}:
        target = random.choice(disks)
    other, span_ms, number = "", 0, 0
    if kind in {RESET, PART}:
        shard = random.choice(shards)
        target, other = random.choice(
            [("client-0", "router"), ("router", shard), (random.choice(POOLS), shard)]
        )
    if kind == SICK:
        target = random.choice(POOLS)
    if kind in {HANG, PART, FULL, SLOW, SICK}:
        span_ms = random.choice((100, 700, 3_000, 12_000))
    if kind == DIE_AT_POINT:
        number = random.randrange(200)
    elif kind == SYNC_FAILS:
        number = random.randrange(2)
    elif kind == CLOCK:
        number = random.choice((-1, 1)) * random.choice((3_600_000, 315_360_000_000))
    return Fault(at_ms, kind, target, other, span_ms, number)
