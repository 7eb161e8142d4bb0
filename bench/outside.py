"""A cluster seen from outside: memory of its processes, bytes of its directory, its end by force.

For benches and chaos rounds. Knows `status` and the kernel's files; nothing of what is in them.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cluster.audit import audit
from cluster.private import ClusterProcess
from sagacity.client import Client
from sagacity.connection import Connection

PATIENCE_S: Final = 120.0  # for an answer, while the machine is busy with something else
_LOOK_AGAIN_S: Final = 0.05


class TooLate(Exception):
    """What was waited for did not happen in its time."""


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> float:
    """Look again and again until something holds.

    Returns:
        The seconds that it took.

    Raises:
        TooLate: it does not hold, in this time.
    """
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > seconds:
            raise TooLate(f"{what} did not happen within {seconds:g} s")
        time.sleep(_LOOK_AGAIN_S)
    return time.monotonic() - begun


def processes(url: str, role: str = "") -> list[dict[str, Any]]:
    """Give the processes of a cluster as `status` has them: all, or those of a role."""
    with Client(url, timeout_s=PATIENCE_S) as client:
        rows = client.status()["processes"]
    return [row for row in rows if row["pid"] and role in {"", row["role"]}]


def connection(cluster: ClusterProcess) -> Connection:
    """Connect to a cluster that may be slow to answer."""
    return Connection(cluster.url, timeout_s=PATIENCE_S)


def in_flight(url: str) -> int:
    """Give the sagas that are not finished, as the shards last reported them."""
    return sum(row["facts"].get("in_flight", 0) for row in processes(url, "shard"))


def resident_bytes(pid: int) -> int:
    """Give a process's resident memory (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise TooLate(f"process {pid} has ended")


def shards_resident(url: str) -> list[int]:
    """Give the resident memory of each shard, bytes."""
    return [resident_bytes(row["pid"]) for row in processes(url, "shard")]


def disk_bytes(data: Path) -> dict[str, int]:
    """Give what a data directory takes on disk: "shards", each service by name, "all".

    Blocks that are taken count, as `du` counts them; WALs and whatever else stands there included.
    """
    found = {"shards": 0, "all": 0}
    for file in data.rglob("*"):
        if not file.is_file():
            continue
        place = file.relative_to(data).parts
        taken = file.stat().st_blocks * 512
        found["all"] += taken
        if place[0].startswith("shard-"):
            found["shards"] += taken
        elif place[0] == "services":
            service = place[1].partition(".")[0]
            found[service] = found.get(service, 0) + taken
    return found


def kill_everything(cluster: ClusterProcess) -> None:
    """Kill every process of a cluster with SIGKILL, the supervisor first; wait for its end."""
    pids = [row["pid"] for row in processes(cluster.url)]
    for pid in sorted(pids, key=lambda pid: pid != cluster.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    cluster.stop()


def audited(url: str) -> tuple[dict[str, Any], float]:
    """Audit a cluster; give the report and the seconds that it took."""
    begun = time.monotonic()
    with Client(url, timeout_s=PATIENCE_S) as client:
        report = audit(client)
    return report, time.monotonic() - begun
