"""A supervisor of twin children. Also a process of its own, run from the repository's top:

    python -m tests.integration.twin_supervisor BASE router-0=up shard-0=up payment-0=crash

prints "ready" and the process ids of all children, and runs until it is told to stop, or killed.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.clock import SystemClock
from cluster.directory import RunDirectory
from cluster.fleet import Patience
from cluster.meters import SupervisorMeters
from cluster.supervisor import Supervisor
from cluster.telemetry import configure_logging
from sagacity.sockets import Context

TWIN = Path(__file__).with_name("twin_child.py")
PATIENCE = Patience(
    restart_ms=5, restart_max_ms=40, quarantine_exits=4, quarantine_within_ms=60_000
)


def make(
    base: Path,
    places: Mapping[str, str],
    ctx: Context,
    *,
    drain_ms: int,
    patience: Patience = PATIENCE,
) -> Supervisor:
    """Make a supervisor of twins: "shard-0" -> how it behaves."""
    commands = {}
    for place, behaviour in places.items():
        role, _, index = place.partition("-")
        command = [sys.executable, "-P", str(TWIN), "--role", role, "--index", index]
        command += ["--data", str(base), "--run", str(base / "run"), "--parent", str(os.getpid())]
        command += ["--behave", behaviour, "--diary", str(base / "diary")]
        commands[role, int(index)] = command
    return Supervisor(
        commands,
        RunDirectory(base / "run"),
        SystemClock(),
        ctx,
        patience=patience,
        drain_ms=drain_ms,
        about={"cluster_id": "c" * 32},
        meters=SupervisorMeters(),
        log=configure_logging("supervisor", 0),
    )


def main() -> int:
    from sagacity.sockets import context

    base = Path(sys.argv[1])
    lock = RunDirectory(base / "run").lock()
    ctx = context()
    places = dict(word.split("=") for word in sys.argv[2:])
    supervisor = make(base, places, ctx, drain_ms=5_000)
    members = supervisor.fleet.members
    supervisor.run(lambda: print("ready", *(m.pid for m in members.values()), flush=True))
    supervisor.close()
    ctx.term()
    lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
