"""A small cluster that was killed and has gone on, and all the evidence that this left.

Every way to end is there, two attempts of a third of a second, and journals that compact all the
time. What its client asked and heard is recorded.
"""

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from checker.record import Catalog, Recorder
from cluster.directory import DataDirectory
from cluster.private import ClusterProcess, start_private
from config.load import load_catalog
from sagacity import wire
from sagacity.connection import Connection
from sagacity.wire import Reply
from tests.chaos import processes, scrape

WAIT_S: Final = 30.0
SHARDS: Final = 2
SETTINGS: Final = {
    "SAGACITY_LOG": "error",
    "SAGACITY_SAGA__ATTEMPTS": "2",
    "SAGACITY_SAGA__ATTEMPT_TIMEOUT_MS": "300",
    "SAGACITY_SHARD__TAIL_BYTES": "4096",
}
KILL: Final = "kill -9 of all"
# Users, SKUs and addresses of SPEC 1, and how often each is asked.
ENDINGS: Final = (
    ("u42", "abc123", "123 Main St", 8),
    ("u999", "abc123", "1 Elm St", 3),
    ("u42", "sku_out_of_stock", "2 Elm St", 2),
    ("u42", "no_such_sku", "3 Elm St", 1),
    ("u42", "xyz789", "no_carrier", 3),
    ("u_timeout", "xyz789", "4 Elm St", 2),
    ("u_flaky_3", "xyz789", "5 Elm St", 2),
    ("u_crash", "abc123", "6 Elm St", 1),
)


class Asker:
    """A client that records; it goes on through kills, as the library does."""

    def __init__(self, url: str, recorder: Recorder) -> None:
        self.recorder = recorder
        self.answers: dict[int, Reply] = {}
        self._connection = Connection(url, timeout_s=WAIT_S)
        self._open: set[int] = set()

    def ask(self, kind: int, saga_id: str, body: Mapping[str, Any]) -> int:
        packed = wire.pack(dict(body))
        token = self._connection.ask(kind, saga_id, packed)
        self.recorder.sent(token, kind, saga_id, packed)
        self._open.add(token)
        return token

    def wait(self, left: int = 0) -> None:
        """Wait until only so many requests are not answered."""
        give_up = time.monotonic() + WAIT_S
        while len(self._open) > left:
            assert time.monotonic() < give_up, f"{len(self._open)} are not answered"
            for token, reply in self._connection.poll(0.02):
                self._open.discard(token)
                self.recorder.heard(token, reply.code, reply.body)
                self.answers[token] = reply

    def status(self) -> list[dict[str, Any]]:
        token = self._connection.ask(wire.STATUS, "", b"")
        while True:
            for got, reply in self._connection.poll(0.02):
                if got == token:
                    rows: list[dict[str, Any]] = wire.unpack(reply.body)["processes"]
                    return rows

    def close(self) -> None:
        self._connection.close()


def checkouts(name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Give new checkouts, of every ending."""
    for user, sku, address, times in ENDINGS:
        for at in range(times):
            saga_id = f"{name}-{user}-{sku}-{address[:5].strip().replace(' ', '.')}-{at}"
            items = [{"sku": sku, "quantity": 1 + at % 3}, {"sku": "abc123", "quantity": 1}]
            yield (
                saga_id,
                {
                    "type": "checkout",
                    "saga_id": saga_id,
                    "user_id": user,
                    "items": items,
                    "shipping_address": address,
                },
            )


def made(base: Path) -> Path:
    """Run the cluster; `base` is a folder of evidence then. Give what the kill had left."""
    runtime = base / "runtime"
    runtime.mkdir(mode=0o700)
    data, killed = base / "data", base / "killed"
    env = {**SETTINGS, "XDG_RUNTIME_DIR": str(runtime)}
    cluster = start_private(data, arguments=["--shards", str(SHARDS)], env=env)
    lines = (base / "client.jsonl").open("wb")
    try:
        cluster_id = DataDirectory(data).read().cluster_id
        recorder = Recorder(lines.write, "asker", lambda: time.time_ns() // 1_000_000, cluster_id)
        catalog = load_catalog()
        recorder.line(Catalog(catalog.prices, catalog.stock, catalog.accounts))
        asker = Asker(cluster.url, recorder)
        try:
            cluster = _all(base, cluster, asker, env, killed)
        finally:
            asker.close()
        recorder.end()
    finally:
        lines.close()
        cluster.stop()
        processes.kill(processes.of_cluster(data))
    return killed


def _all(
    base: Path, cluster: ClusterProcess, asker: Asker, env: Mapping[str, str], killed: Path
) -> ClusterProcess:
    data = base / "data"
    _measure(asker)
    first = dict(checkouts("first"))
    for saga_id, body in first.items():
        asker.ask(wire.START, saga_id, body)
    asker.wait(len(first) // 2)
    second = dict(checkouts("second"))
    for saga_id, body in second.items():
        asker.ask(wire.SUBMIT, saga_id, body)
    asker.wait(len(second) + 4)
    for saga_id in [each for each in second if "u_timeout" in each]:
        asked = {"type": "cancel", "saga_id": saga_id, "reason": "changed my mind"}
        asker.ask(wire.CANCEL, saga_id, asked)
    asker.recorder.planned(KILL)
    asker.recorder.struck(KILL, processes.kill(processes.of_cluster(data)))
    shutil.copytree(data, killed)
    cluster.stop()
    cluster = ClusterProcess(data, env=env)
    cluster.wait_ready()
    asker.recorder.quiet()
    asker.wait()
    for saga_id, body in {**first, **second}.items():
        asker.ask(wire.START, saga_id, body)
        asker.ask(wire.SHOW, saga_id, {})
    saga_id, body = next(iter(first.items()))
    asker.ask(wire.START, saga_id, {**body, "shipping_address": "elsewhere"})
    asker.wait()
    _measure(asker)
    return cluster


def _measure(asker: Asker) -> None:
    """Measure everyone, once everyone is up."""
    give_up = time.monotonic() + WAIT_S
    while True:
        rows = asker.status()
        states = [row["state"] for row in rows if row["role"] not in ("router", "supervisor")]
        if states.count("up") == SHARDS + 3 and states.count("standby") == 3:
            break
        assert time.monotonic() < give_up, rows
    assert list(scrape.record(rows, asker.recorder)) == []


def contents(folder: Path) -> dict[str, bytes]:
    """Give what every file below a folder holds, and its time."""
    found = {}
    for file in sorted(folder.rglob("*")):
        seen = file.lstat()
        held = file.read_bytes() if file.is_file() else b""
        found[os.fspath(file.relative_to(folder))] = held + str(seen.st_mtime_ns).encode()
    return found
