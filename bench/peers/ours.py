"""Ours and the floor, as a peer is measured: the one place that calls our own bench.

Our services write databases and sync them, those of the peers are dictionaries.
"""

from typing import Final

from msgspec import Struct

from bench.peers.errors import PeerError
from bench.scenarios import NoResult, floor_run, loaded, our_run

TITLE: Final = "Sagacity"
IN_FLIGHT: Final = 1024
SAGAS: Final = 100_000
WARM_UP: Final = "2s"


class Ours(Struct, frozen=True):
    """One run, and one of the floor after it.

    Args:
        sagas_per_second: with so many in flight, every tenth declined.
        p50_ms: of one alone.
        p99_ms: likewise.
        cpu_us: per checkout, all processes.
        floor_per_second: what the floor does under the same load.
    """

    sagas_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    floor_per_second: float


def measure(sagas: int, alone: int) -> Ours:
    """Do one run: new clusters of two shards, their books audited; and the floor.

    Raises:
        PeerError: one of them gave no result.
    """
    words = ["--in-flight", str(IN_FLIGHT), "--decline", "10", "--warm-up", WARM_UP]
    crowd = loaded("peers", [*words, "--sagas", str(sagas)])
    one = loaded("peers", ["--in-flight", "1", "--warm-up", WARM_UP, "--sagas", str(alone)])
    try:
        best, single, floor = our_run(crowd), our_run(one), floor_run(crowd)
    except NoResult as why:
        raise PeerError(f"no result of ours: {why}") from why
    return Ours(
        sagas_per_second=best.sagas_per_second,
        p50_ms=single.latency_ms.p50,
        p99_ms=single.latency_ms.p99,
        cpu_us=best.cpu_us_per_saga["total"],
        floor_per_second=floor.sagas_per_second,
    )
