"""What every peer is to those that measure it, and what a run hands to it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from msgspec import Struct

from bench.peers.environment import Environment
from bench.peers.processes import Process, Processes
from bench.peers.result import Settings

Told = Mapping[str, Any]
"""What one loader knows of the peer."""


class Plan(Struct, frozen=True):
    """What a run does.

    Args:
        sagas: measured.
        warm: before that, not measured.
        in_flight: at any time.
        decline: per cent of them without funds.
        port: first of a row of ports of loopback; None for any that are free.
    """

    sagas: int
    warm: int
    in_flight: int
    decline: int
    port: int | None = None

    def share(self, loaders: int, index: int) -> list[str]:
        """Give the arguments of one of several loaders: its share of each."""

        def part(whole: int) -> str:
            return str(whole // loaders + (index < whole % loaders))

        return [
            *("--sagas", part(self.sagas), "--warm", part(self.warm)),
            *(
                "--in-flight",
                part(self.in_flight),
                "--decline",
                str(self.decline),
            ),
        ]


class Site(Struct, frozen=True):
    """Where a run happens.

    Args:
        data: folder of the peer's own data.
        books: of what its services did, PEER_BOOKS.
        out: of what the loaders measured.
        processes: starts them, and ends them.
        plan: what is to be done.
        settings: of the peer.
    """

    data: Path
    books: Path
    out: Path
    processes: Processes
    plan: Plan
    settings: Settings

    def loader(
        self, role: str, program: Sequence[str | Path], loaders: int = 1, index: int = 0
    ) -> Process:
        """Start a loader of the plan's share."""
        share = self.plan.share(loaders, index)
        command = [*program, *share, "--out", self.out / f"loader-{index}.json"]
        return self.processes.start(role, command, {"PEER_BOOKS": str(self.books)}, spoken=True)

    def number(self, key: str) -> int:
        """Give a setting that is a number."""
        return int(self.settings[key])


class Deployed(Struct, frozen=True):
    """A peer that runs, and its loaders that are about to warm up.

    Args:
        loaders: in the order of their files.
        mark: called just before the measured part, for counters that are read twice.
        durability: reads back what it syncs, from itself and from what loaders were told.
    """

    loaders: list[Process]
    mark: Callable[[], None]
    durability: Callable[[Sequence[Told]], dict[str, str]]


class Peer(Protocol):
    """A peer.

    Attributes:
        name: on the command line.
        title: in the table.
        best: settings and in flight that a sweep found here.
        in_flight: at which it does most.
        grid: settings that a sweep tries, each on top of `best`.
        flights: in flight that a sweep tries.
        sagas: of a run, so that it takes some ten seconds.
    """

    name: str
    title: str
    best: ClassVar[Settings]
    in_flight: int
    grid: tuple[Settings, ...]
    flights: tuple[int, ...]
    sagas: int

    def environment(self, folder: Path) -> Environment:
        """Give its environment."""

    def set_up(self, environment: Environment) -> None:
        """Make it, and look whether all that it needs is there."""

    def versions(self, environment: Environment) -> dict[str, str]:
        """Give the versions of what will run."""

    def deploy(self, environment: Environment, site: Site) -> Deployed:
        """Start it; wait until it serves; start the loaders."""
