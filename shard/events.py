"""Events: what happens to a shard, a closed list. Pure records, one per frame."""

from msgspec import Struct

from sagacity.wire import Answer, Begun, Request, Witness

Peer = bytes  # a connection, as its socket names it


class Instant(Struct, frozen=True, gc=False):
    """A moment.

    Args:
        ns: loop time: monotonic, and standing still while the loop could not work.
        wall_ms: wall time; for what is written and shown, never for a decision but recovery's.
    """

    ns: int
    wall_ms: int


class Requests(Struct, frozen=True):
    """A router sent requests; `origin` is where their replies go."""

    origin: Peer
    items: list[Request]


class Answered(Struct, frozen=True):
    """A worker answered commands."""

    worker: Peer
    items: list[Answer]


class WorkerCame(Struct, frozen=True):
    """A worker said HELLO and takes up to `capacity` commands.

    `witnesses` are the highest of each shard that its service's database holds.
    """

    worker: Peer
    service: str
    incarnation: int
    capacity: int
    witnesses: tuple[Witness, ...] = ()


class WorkerLives(Struct, frozen=True):
    """A worker's heartbeat; `capacity` is 0 while its database does not work."""

    worker: Peer
    capacity: int


class WorkerWent(Struct, frozen=True):
    """A worker's connection closed."""

    worker: Peer


class CommandBegun(Struct, frozen=True):
    """A worker is about to run a command alone, and waits for a word."""

    worker: Peer
    said: Begun


class ListApplied(Struct, frozen=True):
    """A worker said that a list of forgotten sagas is durable in its service's database."""

    worker: Peer
    shard: int
    list_number: int


Event = Requests | Answered | WorkerCame | WorkerLives | WorkerWent | CommandBegun | ListApplied
