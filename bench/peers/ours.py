"""Ours, as a peer is measured: the one place that calls our own bench.

Its services write databases and sync them, those of the peers are dictionaries.
"""

import argparse
from typing import Final

from msgspec import Struct

from bench import first_light

TITLE: Final = "Sagacity"
IN_FLIGHT: Final = 1024
SAGAS: Final = 40_000


class Ours(Struct, frozen=True):
    """One run.

    Args:
        sagas_per_second: with so many in flight.
        p50_ms: of one alone.
        p99_ms: likewise.
        cpu_us: per checkout, all processes.
    """

    sagas_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def measure(sagas: int, alone: int) -> Ours:
    """Do one run: a new cluster of two shards, its books audited."""
    args = argparse.Namespace(sagas=sagas, in_flight=IN_FLIGHT, shards=2, alone=alone)
    found = first_light.run(args)
    return Ours(
        sagas_per_second=found["checkouts/s"],
        p50_ms=found["alone p50 ms"],
        p99_ms=found["alone p99 ms"],
        cpu_us=sum(value for name, value in found.items() if name.startswith("us ")),
    )
