"""DBOS: a library on PostgreSQL, or on SQLite; each process is server and client at once."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from bench.peers import postgres
from bench.peers.environment import Environment
from bench.peers.errors import PeerError
from bench.peers.peer import Deployed, Site, Told
from bench.peers.result import Settings

# What must be read back from a connection of the run; anything else is no durable run.
_DURABLE: Final = {
    "postgres": {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"},
    "sqlite": {"synchronous": "2"},
}


class Dbos:
    """What both have in common.

    Args:
        store: "postgres" or "sqlite".
    """

    def __init__(self, store: str) -> None:
        self.store = store
        self.name = f"dbos-{store}"

    def environment(self, folder: Path) -> Environment:
        """Give the environment; both share it."""
        return Environment(folder, "dbos")

    def versions(self, environment: Environment) -> dict[str, str]:
        """Give the versions of the library and of its store."""
        known = environment.versions()
        shown = {name: known[name] for name in ("dbos", "SQLAlchemy")}
        if self.store == "sqlite":
            return shown | {"sqlite": sqlite3.sqlite_version}
        return shown | {"psycopg": known["psycopg"], "postgresql": postgres.version()}

    def start(self, environment: Environment, site: Site, url: str) -> Deployed:
        """Start the processes that serve and load at once."""
        # None without work: one in flight is one process.
        count = min(site.number("processes"), site.plan.in_flight, site.plan.sagas)
        program: list[str | Path] = [
            environment.python,
            "-m",
            "bench.peers.programs.dbos_app",
            "--url",
            url,
        ]
        program += ["--pool", str(site.settings["pool"])]
        program += ["--style", str(site.settings["style"])]
        loaders = []
        for index in range(count):
            named = [*program, "--executor", f"executor-{index}"]
            loaders.append(site.loader("app", named, count, index))
            loaders[-1].hear("launched")  # the first one makes the tables
        return Deployed(loaders, lambda: None, self._durability)

    def _durability(self, told: Sequence[Told]) -> dict[str, str]:
        for each in told:
            for key, wanted in _DURABLE[self.store].items():
                if each.get(key) != wanted:
                    raise PeerError(f"{self.name} ran with {key} = {each.get(key)}, not {wanted}")
        return dict(told[0])


class DbosPostgres(Dbos):
    """DBOS on PostgreSQL."""

    title = "DBOS on PostgreSQL"
    best: ClassVar[Settings] = {"processes": 2, "pool": 20, "style": "async"}
    in_flight = 64
    grid: tuple[Settings, ...] = (
        {},
        {"style": "threads"},
        {"processes": 1},
        {"processes": 3},
        {"pool": 5},
        {"pool": 50},
    )
    flights: tuple[int, ...] = (16, 32, 64, 128)
    sagas = 1200

    def __init__(self) -> None:
        super().__init__("postgres")

    def set_up(self, environment: Environment) -> None:
        """Make it, with Debian's PostgreSQL."""
        environment.make()
        postgres.set_up()

    def deploy(self, environment: Environment, site: Site) -> Deployed:
        """Start PostgreSQL, then DBOS."""
        return self.start(environment, site, postgres.start(site.processes, site.data)[1])


class DbosSqlite(Dbos):
    """DBOS on SQLite."""

    title = "DBOS on SQLite"
    best: ClassVar[Settings] = {"processes": 1, "pool": 20, "style": "async", "journal": "wal"}
    in_flight = 16
    grid: tuple[Settings, ...] = (
        {},
        {"journal": "delete"},
        {"style": "threads"},
        {"processes": 2},
        {"pool": 1},
        {"pool": 5},
    )
    flights: tuple[int, ...] = (1, 4, 16, 64)
    sagas = 600

    def __init__(self) -> None:
        super().__init__("sqlite")

    def set_up(self, environment: Environment) -> None:
        """Make it."""
        environment.make()

    def deploy(self, environment: Environment, site: Site) -> Deployed:
        """Make the file in the journal mode of the settings, which stays with it; start DBOS."""
        file = site.data / "dbos.sqlite"
        database = sqlite3.connect(file)
        database.execute(f"PRAGMA journal_mode={site.settings['journal']}")
        database.execute("VACUUM")  # writes the header
        database.close()
        return self.start(environment, site, f"sqlite:///{file}")
