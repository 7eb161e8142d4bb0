"""A run's result: what `--json` writes and what other benches read back. Knows no cluster.

Every key is always there; what could not be measured is null and `notes` says why. A run that was
broken off is `partial`; one whose books do not balance is no result, and `balanced` says so.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from sagacity.errors import Malformed

FORMAT = 1  # of the file; a key is added without a new one, none is removed or given a new meaning

ROLES = ("client", "router", "shard", "inventory", "payment", "shipping")


class Percentiles(Struct, frozen=True):
    """Milliseconds, each at most 0.1 % above what was measured; all 0 where nothing was."""

    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0


class Seconds(Struct, frozen=True):
    """What happened in each second of the run, from its begin on; ramp and drain included."""

    offered: list[int] = []  # by intended start
    finished: list[int] = []
    refused: list[int] = []


class Mark(Struct, frozen=True):
    """Something that was done to the cluster in the run: `at_s` after its begin."""

    at_s: float
    what: str  # "kill -9 shard-0"


class Machine(Struct, frozen=True):
    """Where it ran. The yardstick is the CPU of one turn of a fixed loop: how fast it was then."""

    cpu: str
    cores: int
    memory_mb: int
    kernel: str
    python: str
    load_1m: float  # before the run
    yardstick_ns: float  # mean of before and after


class Result(Struct, kw_only=True):
    """One run.

    Args:
        what: the product, for tables of several.
        sagas_per_second: finished (completed or aborted) in wall_seconds.
        goodput_per_second: those of them that finished within settings.objective_ms.
        offered_per_second: started, until the last start as it was; null in the closed loop.
        wall_seconds: from the first intended start until the last saga was settled.
        latency_ms: of what finished; in the open loop from the intended start.
        late_ms: how late starts were against the schedule; all 0 in the closed loop.
        refusal_ms: from the intended start until a refusal came.
        late_starts: starts later than settings.late_ms.
        rate_reached: whether the generator kept the schedule; null in the closed loop.
        refused: starts answered with code 11, not asked again.
        errors: neither finished nor refused; errors_by says what they were.
        balanced: whether the audit found the books balanced; null if it could not be made.
        cpu_us_per_saga: by role, all processes of the role together, and "total".
        peak_rss_mb: by process, since it started.
        fsyncs_per_saga: commits of shards and transactions of workers: each syncs once.
        commits: group commits of all journals.
        entries_per_commit: of them.
        latency_histogram: of what finished, microseconds, HdrHistogram V2, base64.
        cpu_s: by role, seconds in all; also where nothing finished.
        per_tenth: finished in each tenth of a second, of ten minutes at most.
        gap_ms: the longest time between two batches of outcomes, of any one generator.
    """

    what: str = "sagacity"
    format: int = FORMAT
    partial: bool = False
    partial_why: str = ""
    sagas_per_second: float
    goodput_per_second: float
    offered_per_second: float | None = None
    wall_seconds: float
    latency_ms: Percentiles
    late_ms: Percentiles = Percentiles()
    refusal_ms: Percentiles = Percentiles()
    late_starts: int = 0
    rate_reached: bool | None = None
    completed: int
    aborted: int
    refused: int = 0
    errors: int = 0
    errors_by: dict[str, int] = {}
    balanced: bool | None
    faults: list[str] = []  # the audit's first ones
    cpu_us_per_saga: dict[str, float]
    peak_rss_mb: dict[str, float]
    fsyncs_per_saga: float | None
    commits: int | None
    entries_per_commit: float | None
    data_fs: str | None
    version: str
    commit: str | None
    machine: Machine
    settings: dict[str, Any]
    per_second: Seconds = Seconds()
    marks: list[Mark] = []
    latency_histogram: str = ""
    cpu_s: dict[str, float] = {}
    per_tenth: list[int] = []
    gap_ms: float = 0.0
    notes: list[str] = []

    @property
    def finished(self) -> int:
        """How many sagas came to their end."""
        return self.completed + self.aborted

    def json(self) -> bytes:
        """Give it as JSON for people and scripts, with a newline at its end."""
        return _for_people(self)


def read(file: Path) -> Result:
    """Read a result back.

    Raises:
        Malformed: the file cannot be read or holds none.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError) as error:
        raise Malformed(f"{file} holds no result of a run: {error}") from None


def require_new(file: Path, *, force: bool, option: str = "--json") -> None:
    """Refuse a file that could not be written later, before anything is measured.

    Raises:
        Malformed: it exists (unless `force`), is a folder, or has no folder to stand in.
    """
    if file.is_dir():
        raise Malformed(f"{option} {file}: is a folder")
    if file.exists() and not force:
        raise Malformed(f"{option} {file}: exists already; another name, or --force to replace it")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise Malformed(f"{option} {file}: {file.parent} is no folder that can be written to")


def write(result: Result | dict[str, Any], file: Path) -> None:
    """Write a result, or a map with several in it, whole or not at all."""
    write_whole(_for_people(result), file)


def write_whole(content: bytes, file: Path) -> None:
    """Write a file whole or not at all."""
    handle, new = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        os.chmod(new, 0o644)
        os.replace(new, file)
    except BaseException:
        os.unlink(new)
        raise


def _for_people(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
