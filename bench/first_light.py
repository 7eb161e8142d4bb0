"""How fast a cluster is: checkouts a second in a closed loop, and the latency of one alone.

    python -m bench.first_light [--runs 5] [--sagas 40000] [--in-flight 1024] [--floor]

Starts a cluster of its own in a new directory under TMPDIR for each run, everything synced to disk,
the load generator on the same machine; random ids, the example's cart, every tenth payment
declined. After each run the books are audited; a run whose books do not balance is no result.
Prints each run and the medians, CPU per checkout by role included. A shared machine is not the
same from minute to minute: the yardstick, the nanoseconds of CPU that one turn of a fixed loop
takes just before and after, says in which minute a run was.
"""

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from typing import Any

from bench import floor
from bench.load import alone, closed_loop
from bench.place import yardstick_ns
from cluster.audit import audit
from cluster.private import ClusterProcess, start_private
from sagacity.client import Client
from sagacity.connection import Connection

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(processes: list[dict[str, Any]]) -> dict[str, float]:
    """Give the CPU that each role has used."""
    used: dict[str, float] = defaultdict(float)
    for process in processes:
        with open(f"/proc/{process['pid']}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        used[process["role"]] += (int(fields[11]) + int(fields[12])) / TICKS
    return used


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do one run on a new cluster; give its figures."""
    found: dict[str, Any] = {"yardstick ns": yardstick_ns()}
    with start_private(arguments=["--shards", str(args.shards)]) as cluster:
        with Connection(cluster.url, timeout_s=120) as connection:
            if args.alone:
                closed_loop(connection, 200, 1)  # warm
                took = alone(connection, args.alone)
                found["alone p50 ms"] = took[len(took) // 2]
                found["alone p99 ms"] = took[int(len(took) * 0.99)]
            if args.sagas:
                closed_loop(connection, 4 * args.in_flight, args.in_flight)  # warm
                before, mine = processes_cpu(cluster), time.process_time()
                seconds, outcomes = closed_loop(connection, args.sagas, args.in_flight)
                mine, after = time.process_time() - mine, processes_cpu(cluster)
                found["checkouts/s"] = args.sagas / seconds
                found["yardstick ns"] = (found["yardstick ns"] + yardstick_ns()) / 2
                found |= outcomes
                found["us client"] = mine / args.sagas * 1e6
                for role, used in after.items():
                    found[f"us {role}"] = (used - before[role]) / args.sagas * 1e6
        with Client(cluster.url) as client:
            report = audit(client)
        if not report["balanced"]:
            sys.exit(f"no result: the books do not balance: {report['faults'][:5]}")
    return found


def processes_cpu(cluster: ClusterProcess) -> dict[str, float]:
    """Give the CPU that a cluster's processes have used, by role."""
    with Client(cluster.url) as client:
        return cpu_seconds(client.status()["processes"])


def main() -> None:
    """Run, print, print medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_light")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sagas", type=int, default=40_000)
    parser.add_argument("--in-flight", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--alone", type=int, default=300)
    parser.add_argument("--floor", action="store_true", help="alternate with bench.floor")
    args = parser.parse_args()
    runs = []
    for number in range(args.runs):
        found = run(args)
        if args.floor:
            found |= floor.run(args.sagas, args.in_flight, args.alone)
            found |= {
                f"{name} / floor": found[name] / found[f"floor {name}"]
                for name in ("checkouts/s", "alone p50 ms")
                if name in found
            }
        runs.append(found)
        shown = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
        print(f"run {number + 1}: {shown}", flush=True)
    print(f"median of {len(runs)}:")
    for name in runs[0]:
        print(f"  {name:24} {statistics.median(each.get(name, 0) for each in runs):12.2f}")


if __name__ == "__main__":
    main()
