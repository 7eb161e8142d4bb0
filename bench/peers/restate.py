"""Restate: its server binary from npm, services in Python under granian.

One node with all roles, replicated log of one copy, RocksDB's log synced for every batch: the
server's defaults, written down in a file of the run and read back from what the server counts.
"""

import json
import re
import signal
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from bench.peers.environment import Environment
from bench.peers.errors import PeerError
from bench.peers.peer import Deployed, Site, Told
from bench.peers.processes import Process, http, ports, wait_until
from bench.peers.result import Settings

SERVER: Final = "1.7.12"
_NPM: Final = (
    f"@restatedev/restate-server@{SERVER}",
    f"@restatedev/restate-server-linux-x64@{SERVER}",
)
_BINARY: Final = "node_modules/@restatedev/restate-server-linux-x64/bin/restate-server"
_SYNCED: Final = re.compile(r"^(restate_rocksdb_wal_synced\w*)(\{[^}]*\})? ([0-9.e+]+)$", re.M)


class Restate:
    """The peer."""

    name = "restate"
    title = "Restate"
    best: ClassVar[Settings] = {"workers": 2, "partitions": 4, "streams": 128}
    in_flight = 256
    grid: tuple[Settings, ...] = (
        {},
        {"workers": 1},
        {"workers": 3},
        {"partitions": 2},
        {"partitions": 24},
        {"streams": 32},
        {"streams": 512},
    )
    flights: tuple[int, ...] = (64, 128, 256, 512, 1024)
    sagas = 6000

    def environment(self, folder: Path) -> Environment:
        """Give its environment."""
        return Environment(folder, self.name, _NPM)

    def set_up(self, environment: Environment) -> None:
        """Make it."""
        environment.make()

    def versions(self, environment: Environment) -> dict[str, str]:
        """Give the versions of server, SDK and web server."""
        known = environment.versions()
        shown = {name: known[name] for name in ("restate-sdk", "granian")}
        return {"restate-server": SERVER, **shown}

    def deploy(self, environment: Environment, site: Site) -> Deployed:
        """Start server and services, register them, start the loader."""
        ingress, admin, node, services = ports(4, site.plan.port)
        config = site.data / "restate.toml"
        config.write_text(_config(site, ingress, admin, node))
        granian: list[str | Path] = [environment.program("granian"), "--interface", "asgi"]
        granian += ["--http", "2"]
        granian += ["--host", "127.0.0.1", "--port", str(services), "--no-ws"]
        granian += ["--workers", str(site.settings["workers"]), "--log-level", "warning"]
        granian += ["--http2-max-concurrent-streams", str(site.settings["streams"])]
        granian += ["--backlog", "4096", "bench.peers.programs.restate_services:app"]
        # Its workers wait for Restate's connections, which stay; SIGTERM, so that they end with it.
        granian[1:1] = ["--workers-kill-timeout", "1"]
        served = site.processes.start(
            "services", granian, {"PEER_BOOKS": str(site.books)}, end=signal.SIGTERM
        )
        server = site.processes.start(
            "server", [environment.folder / _BINARY, "--config-file", config, "--no-logo"]
        )
        wait_until(lambda: http(f"http://127.0.0.1:{admin}/health") is not None, server, "Restate")
        _register(admin, services, served)
        counters = f"http://127.0.0.1:{node}/metrics"
        marked = [0.0]

        def mark() -> None:
            marked[0] = _syncs(counters)

        def durability(_: Sequence[Told]) -> dict[str, str]:
            synced = _syncs(counters) - marked[0]
            if synced <= 0:
                raise PeerError("Restate's RocksDB counted no synced log while it was measured")
            return _read_back(environment, config, site.data) | {
                "rocksdb_wal_synced_per_saga": f"{synced / site.plan.sagas:.2f}"
            }

        program = "bench.peers.programs.restate_load"
        load: list[str | Path] = [environment.python, "-m", program, "--port", str(ingress)]
        loader = site.loader("client", load)
        return Deployed([loader], mark, durability)


def _config(site: Site, ingress: int, admin: int, node: int) -> str:
    """Give the server's file: where it listens, what is swept, what it syncs."""
    return f"""
node-name = "peer"
cluster-name = "peers"
base-dir = "{site.data}"
bind-ip = "127.0.0.1"
bind-port = {node}
advertised-host = "127.0.0.1"
listen-mode = "tcp"
default-num-partitions = {site.settings["partitions"]}
default-replication = 1
disable-telemetry = true
log-filter = "warn"
log-disable-ansi-codes = true
[ingress]
bind-address = "127.0.0.1:{ingress}"
[admin]
bind-address = "127.0.0.1:{admin}"
disable-web-ui = true
[worker.invoker]
concurrent-invocations-limit = 4096
http2-streams-per-connection-limit = {site.settings["streams"]}
[bifrost.local]
rocksdb-disable-wal = false
rocksdb-disable-wal-fsync = false
[log-server]
rocksdb-disable-wal-fsync = false
"""


def _register(admin: int, services: int, served: Process) -> None:
    body = json.dumps({"uri": f"http://127.0.0.1:{services}"}).encode()

    def registered() -> bool:
        return http(f"http://127.0.0.1:{admin}/deployments", body) is not None

    wait_until(registered, served, "registering Restate's services")


def _syncs(counters: str) -> float:
    """Give how often the server's RocksDB has synced its log, all databases together."""
    return sum(float(found[2]) for found in _SYNCED.findall(http(counters) or ""))


def _read_back(environment: Environment, config: Path, data: Path) -> dict[str, str]:
    """Give how the server reads its file, and the options that the log's database wrote down.

    Raises:
        PeerError: it does not sync.
    """
    asked = [environment.folder / _BINARY, "--config-file", config, "--dump-config"]
    dumped = tomllib.loads(
        subprocess.run(
            [str(part) for part in asked], capture_output=True, text=True, check=True
        ).stdout
    )
    off = str(dumped["log-server"]["rocksdb-disable-wal-fsync"]).lower()
    if off != "false":
        raise PeerError(f"Restate's log server says rocksdb-disable-wal-fsync = {off}")
    found = {"log": dumped["bifrost"]["default-provider"], "rocksdb-disable-wal-fsync": off}
    for file in sorted(data.rglob("log-store/OPTIONS-*")):
        for line in file.read_text().splitlines():
            key, _, value = line.strip().partition("=")
            if key == "manual_wal_flush":
                found[key] = value
    return found
