"""Scenario `in-flight`: what sagas cost that wait, a hundred thousand behind a stopped pool.

    sagacity bench in-flight [--sagas 100000] [--shards 2] [--part F] [--json FILE]

Starts a cluster of its own whose limits are exactly as many sagas, each shard its part, and whose
deadline is ten minutes. This process takes the lock of the payment pool, so that its workers stand
by: nobody charges. Then: starts, acknowledged as durable; the shards' memory before and after;
starts past the limit, each asked once, which must be refused at once; the lock is let go, and all
must come to their end. Every acknowledged id is asked again and must be COMPLETED; the books are
audited. The exit code is 1 if something that is asked is not met.
"""

import argparse
import fcntl
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bench import outside, place
from bench.figures import Figures
from bench.load import ask_each, body_of, closed_loop, new_id, single_tries
from bench.scenarios import add_result_arguments, judged, part_of
from cluster.directory import DataDirectory
from cluster.private import ClusterProcess, start_private
from config.schema import ShardConfig
from sagacity import wire
from sagacity.errors import Malformed, NotTaken, SagacityError
from sagacity.slots import SlotMap
from sagacity.wire import Reply

POOL: Final = "payment"
DEADLINE_MS: Final = 600_000
IN_FLIGHT: Final = 1024
WARM: Final = 4096
PAST_THE_LIMIT: Final = 300
SETTLE_S: Final = 5.0  # for reports to come and memory to be given back
GRABS_MAX: Final = 20

# What is asked of a hundred thousand.
BYTES_AT_MOST: Final = 1536.0
REFUSED_MS_AT_MOST: Final = 1000.0


def environment(sagas: int, shards: int) -> dict[str, str]:
    """Give the limits of such a cluster."""
    each = -(-sagas // shards)
    env = {
        "SAGACITY_SAGA__DEADLINE_MS": str(DEADLINE_MS),
        "SAGACITY_SHARD__INFLIGHT_MAX": str(each),
        "SAGACITY_LOG": "error",
    }
    if "queue_age_max_ms" in ShardConfig.__struct_fields__:
        # A pool that stands still makes every command old: here the number alone is the limit.
        env["SAGACITY_SHARD__QUEUE_AGE_MAX_MS"] = str(DEADLINE_MS)
    return env


def ids(sagas: int, slots: SlotMap, shards: int) -> list[str]:
    """Make random ids, for each shard its exact part."""
    each = -(-sagas // shards)
    left = dict.fromkeys(range(shards), each)
    found: list[str] = []
    while len(found) < sagas:
        saga_id = new_id()
        owner = slots.owner(saga_id)
        if left[owner]:
            left[owner] -= 1
            found.append(saga_id)
    return found


@contextmanager
def pool_stopped(cluster: ClusterProcess) -> Iterator[None]:
    """Hold the pool's lock: none of its workers works until the end of the block.

    Who has the lock is killed, and the lock taken before the standby asks for it again.

    Raises:
        TooLate: the standby was quicker each time.
    """
    descriptor = os.open(DataDirectory(cluster.data).service_lock(POOL), os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(GRABS_MAX):
            for row in outside.processes(cluster.url, POOL):
                if row["state"] == "up":
                    with suppress(ProcessLookupError):
                        os.kill(row["pid"], signal.SIGKILL)
            if _grab(descriptor, 1.0):
                break
        else:
            raise outside.TooLate(f"the lock of {POOL} could not be had: another was quicker")
        yield
    finally:
        os.close(descriptor)


def _grab(descriptor: int, seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.0001)  # the standby asks every 25 ms
    return False


def submit(cluster: ClusterProcess, wanted: list[str], figures: Figures) -> list[str]:
    """Start all of these; give those that were acknowledged."""
    acknowledged: list[str] = []
    codes: Counter[int] = Counter()

    def settled(saga_id: str, reply: Reply) -> None:
        if reply.code is None:
            acknowledged.append(saga_id)
        else:
            codes[reply.code] += 1

    with outside.connection(cluster) as connection:
        sagas = [(saga_id, body_of(saga_id, False)) for saga_id in wanted]
        seconds = ask_each(connection, wire.SUBMIT, sagas, IN_FLIGHT, settled)
    figures.add("starts/s, acknowledged as durable", "1/s", len(acknowledged) / seconds)
    figures.add("starts not acknowledged", "", sum(codes.values()), at_most=0)
    if codes:
        print(f"  starts were answered with the codes {dict(codes)}", flush=True)
    return acknowledged


def past_the_limit(cluster: ClusterProcess, figures: Figures) -> list[str]:
    """Ask for more, each once: all must be refused with 11 at once; give those that were not."""
    wanted = [new_id() for _ in range(PAST_THE_LIMIT)]
    sagas = [(saga_id, body_of(saga_id, False)) for saga_id in wanted]
    replies = single_tries(cluster.url, wire.SUBMIT, sagas, 10.0)
    others = []
    took = []
    for saga_id, found in zip(wanted, replies, strict=True):
        if found is None or found[0].code != NotTaken.code:
            others.append(saga_id)
            continue
        took.append(found[1])
        if "retry_after_ms" not in wire.unpack(found[0].body):
            figures.missing("retry_after_ms of a refusal", "", "it has none", at_most=0)
    figures.add("starts past the limit, not refused with 11", "", len(others), at_most=0)
    if took:
        figures.add("refused after, the slowest", "ms", max(took), at_most=REFUSED_MS_AT_MOST)
    return others


def all_finish(cluster: ClusterProcess, sagas: int, figures: Figures) -> None:
    """Wait for the end of all; the pool has just come back."""
    seconds = outside.wait_until(
        lambda: not outside.in_flight(cluster.url), DEADLINE_MS / 1000, "the end of all"
    )
    figures.add("until all are finished", "s", seconds)
    figures.add("finished/s, after the pool is back", "1/s", sagas / seconds)


def ask_again(cluster: ClusterProcess, acknowledged: list[str], figures: Figures) -> None:
    """Ask every acknowledged id again: each must be COMPLETED."""
    ends: Counter[str] = Counter()

    def settled(_: str, reply: Reply) -> None:
        told = wire.unpack(reply.body)
        ends[str(told.get("status", f"code {reply.code}"))] += 1

    with outside.connection(cluster) as connection:
        sagas = [(saga_id, body_of(saga_id, False)) for saga_id in acknowledged]
        ask_each(connection, wire.START, sagas, IN_FLIGHT, settled)
    others = len(acknowledged) - ends["COMPLETED"]
    figures.add("acknowledged and not COMPLETED", "", others, at_most=0)
    if others:
        print(f"  {dict(ends)}", flush=True)


def measure(data: Path, sagas: int, shards: int, figures: Figures) -> None:
    """Do all of it in a new directory."""
    env = environment(sagas, shards)
    arguments = ["--shards", str(shards)]
    with start_private(data, arguments=arguments, env=env) as cluster:
        with outside.connection(cluster) as connection:
            closed_loop(connection, WARM, min(IN_FLIGHT, sagas))
        slots = DataDirectory(data).read().slots
        with pool_stopped(cluster):
            time.sleep(SETTLE_S)
            before = sum(outside.shards_resident(cluster.url))
            acknowledged = submit(cluster, ids(sagas, slots, shards), figures)
            time.sleep(SETTLE_S)
            after = sum(outside.shards_resident(cluster.url))
            figures.add("in flight, as the shards say", "", outside.in_flight(cluster.url))
            each = (after - before) / max(1, len(acknowledged))
            figures.add("shard memory", "bytes/saga", each, at_most=BYTES_AT_MOST)
            others = past_the_limit(cluster, figures)
        all_finish(cluster, len(acknowledged), figures)
        ask_again(cluster, acknowledged, figures)
        report, _ = outside.audited(cluster.url)
        for fault in report["faults"][:5]:
            print(f"  {fault}", flush=True)
        found = report["sagas"]
        strays = found["completed"] + found["aborted"] - WARM - len(acknowledged)
        figures.add("sagas that nobody was told of", "", max(0, strays - len(others)), at_most=0)
        faults = len(report["faults"]) + (not report["balanced"]) + found["running"]
        figures.add("audit, faults and sagas not final", "", faults, at_most=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "What sagas cost that wait behind a stopped pool."
    parser.add_argument("--sagas", type=int, default=100_000, metavar="N", help="(100000)")
    parser.add_argument("--shards", type=int, default=2, metavar="N", help="(2)")
    parser.add_argument("--part", type=float, default=1.0, metavar="F", help="of the sagas (1)")
    add_result_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Measure and print; give the exit code.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    sagas = round(given.sagas * part_of(given.part))
    if sagas < given.shards or given.shards < 1:
        raise Malformed("--sagas: at least one for each shard, and --shards is at least 1")

    def play(figures: Figures) -> None:
        with tempfile.TemporaryDirectory(prefix="sagacity-in-flight-") as base:
            place.require_disk(Path(base))
            try:
                measure(Path(base) / "data", sagas, given.shards, figures)
            except SagacityError as error:
                figures.missing("the rest", "", str(error), at_most=0)

    return judged(given, f"in flight: {sagas} sagas behind a stopped pool", play)
