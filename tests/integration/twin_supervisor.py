"""A supervisor of twin children, as a process of its own: `twin_supervisor.py BASE BEHAVIOUR …`.

Prints "ready" and the process ids of all children; runs until it is told to stop, or killed.
"""

import sys
from pathlib import Path

from cluster.clock import SystemClock
from cluster.directory import RunDirectory
from cluster.fleet import Patience
from cluster.meters import Meters
from cluster.supervisor import Supervisor
from cluster.telemetry import configure_logging
from sagacity.sockets import context
from tests.integration.twins import twin_commands


def main() -> int:
    base = Path(sys.argv[1])
    places = dict(word.split("=") for word in sys.argv[2:])
    run = RunDirectory(base / "run")
    lock = run.lock()
    ctx = context()
    supervisor = Supervisor(
        twin_commands(base, places),
        run,
        SystemClock(),
        ctx,
        patience=Patience(),
        drain_ms=5_000,
        about={},
        meters=Meters(),
        log=configure_logging("supervisor", 0),
    )
    supervisor.run(
        lambda: print("ready", *(m.pid for m in supervisor.fleet.running()), flush=True)
    )
    supervisor.close()
    ctx.term()
    lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
