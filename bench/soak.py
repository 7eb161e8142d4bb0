"""Scenario `soak`: hours at half of what it can, on one cluster; what grows and what drifts.

The load runs in slices; after each, memory, open files and threads of every process are read. The
first quarter is left out, as everything fills then; the last slice is judged against the first of
the others. The books are audited at the end.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, structs

from bench import outside
from bench.figures import Figures
from bench.options import Options
from bench.scenarios import add_result_arguments, judged, loaded, part_of
from bench.staged import Stage, books_fit, staged
from sagacity.errors import Malformed

DURATION: Final = "1h"
SLICES: Final = 12
SLICES_MIN: Final = 4  # a quarter is left out
# What is asked: nothing says how much a process may grow, so little that hours are safe.
MEMORY: Final = 1.2  # times; a shard keeps two bytes of each id for ever
FILES: Final = 2  # more
THREADS: Final = 0
P99: Final = 1.5  # times


class Looked(Struct, frozen=True):
    """A process as it was after a slice."""

    memory_mb: float
    files: int
    threads: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Half of what it can for hours: memory, files, threads, latency."
    parser.add_argument("--duration", default=DURATION, metavar="T", help=f"in all ({DURATION})")
    parser.add_argument("--slices", type=int, default=SLICES, metavar="N", help=f"({SLICES})")
    parser.add_argument("--rate", type=float, metavar="R", help="instead of half of peak")
    parser.add_argument("--part", type=float, default=1.0, metavar="F", help="of the time (1)")
    add_result_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Run it; give the exit code.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    if given.slices < SLICES_MIN:
        raise Malformed(f"--slices is {SLICES_MIN} at least, not {given.slices}")
    whole = loaded("soak", ["--duration", given.duration, "--decline", "10"])
    seconds = (whole.duration_s or 0.0) * part_of(given.part)
    if given.rate is not None:
        loaded("soak", ["--rate", str(given.rate)])  # refused before anything runs
    slice_ = structs.replace(whole, duration_s=seconds / given.slices, warm_up_s=0.0)
    title = f"soak: {seconds:g} s in {given.slices} slices"
    return judged(given, title, lambda figures: _play(slice_, given, figures))


def _play(slice_: Options, given: argparse.Namespace, figures: Figures) -> None:
    peak = structs.replace(slice_, duration_s=min(10.0, slice_.duration_s or 0.0), warm_up_s=1.0)
    seen: list[Mapping[str, Looked]] = []
    p99s = []
    with staged(slice_, figures) as stage:
        rate = given.rate
        if rate is None:
            best, _ = stage.load("peak", peak)
            rate = best.sagas_per_second / 2
        figures.add("rate", "1/s", rate)
        load = structs.replace(slice_, in_flight=0, rate=rate)
        for at in range(given.slices):
            found, _ = stage.load("slice", load, audits=at == given.slices - 1)
            p99s.append(found.latency_ms.p99)
            seen.append(_look(stage))
        books_fit(figures, found)
    first = given.slices // 4
    drift(seen[first:], figures)
    figures.add("p99 of a slice", "ms", p99s[first:])
    figures.add("p99, the last / the first", "", p99s[-1] / p99s[first], at_most=P99)


def drift(seen: Sequence[Mapping[str, Looked]], figures: Figures) -> None:
    """Judge by how much processes have grown, the one that has most."""
    first, last = seen[0], seen[-1]
    replaced = sorted(set(first) ^ set(last))
    figures.add("processes that were replaced", "", len(replaced), at_most=0)
    both = sorted(set(first) & set(last))
    memory = {name: last[name].memory_mb / first[name].memory_mb for name in both}
    files = {name: last[name].files - first[name].files for name in both}
    threads = {name: last[name].threads - first[name].threads for name in both}
    for what, unit, grown, most in (
        ("memory, the last / the first", "", memory, MEMORY),
        ("open files more", "", files, FILES),
        ("threads more", "", threads, THREADS),
    ):
        name = max(both, key=lambda each: grown[each], default="")
        figures.add(f"{what}: {name}", unit, grown.get(name, 0), at_most=most)
    for name in both:
        if name.startswith("shard"):
            figures.add(f"memory, {name}", "MB", [each[name].memory_mb for each in seen])


def _look(stage: Stage) -> dict[str, Looked]:
    """Read what each process has; its name holds its id, so that another one is no growth."""
    rows: list[dict[str, Any]] = outside.processes(stage.host.url)
    return {f"{row['role']}-{row['index']} ({row['pid']})": look(row["pid"]) for row in rows}


def look(pid: int) -> Looked:
    """Read a process's memory, open files and threads."""
    of = Path(f"/proc/{pid}")
    files = sum(1 for _ in (of / "fd").iterdir())
    threads = sum(1 for _ in (of / "task").iterdir())
    return Looked(outside.resident_bytes(pid) / 1e6, files, threads)
