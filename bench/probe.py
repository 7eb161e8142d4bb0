"""What a run costs the machine: CPU and memory by process, commits by journal and service.

CPU is read from each process's own clock, to the microsecond; /proc counts in hundredths of a
second. Knows `status`, the kernel and the text that /metrics serves.
"""

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from cluster.fleet import AUDITOR, ROUTER, SHARD, SUPERVISOR

_PATIENCE_S: Final = 5.0
_MODULE: Final = {
    AUDITOR: b"cluster.auditor",
    ROUTER: b"router",
    SHARD: b"shard",
    SUPERVISOR: b"cluster",
}
_SERIES: Final = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)

COMMITS: Final = "saga_journal_commit_duration_seconds_count"
ENTRIES: Final = "saga_journal_records_total"
BATCHES: Final = "saga_worker_queue_wait_seconds_count"  # one for each transaction of a worker


class Counted(Struct, frozen=True):
    """What processes have counted since each of them started.

    Args:
        commits: of all journals.
        entries: in them.
        batches: transactions of all workers.
        missing: processes that did not tell.
    """

    commits: int
    entries: int
    batches: int
    missing: tuple[str, ...] = ()


class Probe:
    """Watches the processes of a cluster on this machine; for one phase of a run.

    Look at its begin, a few times meanwhile, and at its end: what a process has used that ended
    between two looks is missing, and `lost` says so.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._role: dict[int, str] = {}
        self._peaks: dict[str, float] = {}
        self.lost: set[str] = set()

    def look(self, processes: Sequence[Mapping[str, Any]], *, begin: bool = False) -> None:
        """Read the clocks and memory of these processes, rows of `status`.

        Args:
            processes: as `status` has them.
            begin: of the phase: later processes are counted from their start.
        """
        for row in processes:
            pid, role, name = row["pid"], row["role"], f"{row['role']}-{row['index']}"
            if not pid:
                continue
            used = cpu_ns(pid) if _is_ours(pid, role) else None
            if used is None:
                self.lost.add(name)
                continue
            self._role[pid] = role
            self._first.setdefault(pid, used if begin else 0)
            self._last[pid] = used
            self._peaks[name] = max(self._peaks.get(name, 0.0), peak_rss_mb(pid))

    @property
    def peaks(self) -> dict[str, float]:
        """Peak resident memory by process, MB."""
        return dict(self._peaks)

    @property
    def pids(self) -> frozenset[int]:
        """Every process that was seen."""
        return frozenset(self._last)

    def cpu_ns(self) -> dict[str, int]:
        """Give the CPU used since the begin, by role."""
        used: dict[str, int] = defaultdict(int)
        for pid, last in self._last.items():
            used[self._role[pid]] += last - self._first[pid]
        return dict(used)


def cpu_ns(pid: int) -> int | None:
    """Give the CPU that a process has used, all its threads; None if it has ended."""
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)  # as clock_getcpuclockid(3) makes it
    except OSError:
        return None


def peak_rss_mb(pid: int) -> float:
    """Give the most memory that a process has had resident since its start; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def count(processes: Sequence[Mapping[str, Any]]) -> Counted:
    """Ask every process of a cluster what it has counted."""
    sums: dict[str, float] = defaultdict(float)
    missing = []
    for row in processes:
        if row["role"] in {ROUTER, SUPERVISOR} or not row["pid"]:
            continue
        url = f"http://127.0.0.1:{row['metrics_port']}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=_PATIENCE_S) as answer:
                text = answer.read().decode()
        except (OSError, ValueError):
            missing.append(f"{row['role']}-{row['index']}")
            continue
        for name, value in _SERIES.findall(text):
            if name in {COMMITS, ENTRIES, BATCHES}:
                sums[name] += float(value)
    return Counted(int(sums[COMMITS]), int(sums[ENTRIES]), int(sums[BATCHES]), tuple(missing))


def _is_ours(pid: int, role: str) -> bool:
    """Whether that process is on this machine and what `status` says it is."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    module = _MODULE.get(role, b"services")
    return module in words or any(word.endswith(b"sagacity") for word in words)
