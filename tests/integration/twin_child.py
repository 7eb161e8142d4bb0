"""A child that only lives: the twin of router, shards and workers for tests of the supervisor.

It behaves as the word after --behave says, and appends a line to --diary when it ends in order.
"""

import os
import select
import sys
from pathlib import Path

from cluster.child import Child, arguments
from cluster.clock import SystemClock
from cluster.directory import RunDirectory


def main() -> int:
    args = arguments("twin", role=str, index=int, behave=str, diary=Path).parse_args()
    if args.behave == "refuse":
        return 2
    if args.behave == "crash":
        return 3
    clock = SystemClock()
    run = RunDirectory(args.run)
    child = Child(args.role, args.index, run, args.parent, clock, heartbeat_ms=20)
    child.metrics_port = 7_000 + args.index
    child.report("standby" if args.behave == "standby" else "up", {"turns": 0})
    turns = 0
    while not child.stopping or args.behave == "stubborn":
        select.select([child.wakeup_fd], [], [], 0.02 if args.behave != "sleepy" else 60)
        child.woken()
        turns += 1
        child.beat(clock.monotonic_ns(), {"turns": turns})
    if args.behave == "slow":
        select.select([], [], [], 0.3)
    with args.diary.open("a") as diary:
        diary.write(f"{args.role}-{args.index} {os.getpid()}\n")
    child.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
