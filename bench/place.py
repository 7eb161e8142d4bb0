"""Where a run is: its data directory and file system, the machine, the version."""

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.result import Machine
from sagacity.errors import Malformed

MEMORY: Final = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")  # a sync there is no sync


def file_system(path: Path, mounts: str | None = None) -> str:
    """Give the type of the file system on which a path is, or would be made.

    Args:
        path: it need not exist.
        mounts: as /proc/self/mounts has them; those of this machine if left out.
    """
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    wanted = path.resolve()
    best, found = -1, "unknown"
    for line in text.splitlines():
        _, point, kind, *_ = line.split(" ")
        where = Path(re.sub(r"\\([0-7]{3})", lambda seen: chr(int(seen[1], 8)), point))
        # Of several at one place the last one is seen.
        if wanted.is_relative_to(where) and len(where.parts) >= best:
            best, found = len(where.parts), kind
    return found


def require_disk(path: Path, mounts: str | None = None) -> str:
    """Refuse a directory in memory; give its file system's type.

    Raises:
        Malformed: it is on tmpfs or the like.
    """
    kind = file_system(path, mounts)
    if kind in MEMORY:
        raise Malformed(
            f"{path} is on {kind}: nothing there outlives a power cut, and figures of syncs that "
            "sync nothing are none. Name a directory on a disk: --data DIR, or TMPDIR=DIR"
        )
    return kind


def new_directory() -> Path:
    """Make a directory under TMPDIR.

    Raises:
        Malformed: TMPDIR is in memory.
    """
    parent = Path(tempfile.gettempdir())
    require_disk(parent)
    return Path(tempfile.mkdtemp(prefix="sagacity-bench-", dir=parent))


def machine(yardstick: float) -> Machine:
    """Give the machine; the yardstick as measured."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=model[1] if model else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_mb=pages >> 20,
        kernel=platform.release(),
        python=platform.python_version(),
        load_1m=round(os.getloadavg()[0], 2),
        yardstick_ns=yardstick,
    )


def yardstick_ns() -> float:
    """Give the CPU of one turn of a fixed loop, nanoseconds, median of nine.

    A shared machine is not the same from minute to minute; this says in which one a run was.
    """
    turns, took = 100_000, []
    for _ in range(9):
        begun = time.process_time_ns()
        sum(number * number for number in range(turns))
        took.append((time.process_time_ns() - begun) / turns)
    return statistics.median(took)


def commit() -> str | None:
    """Give the commit of this code, with "-dirty" if it was changed; None outside a repository."""
    here = Path(__file__).parents[1]
    if not (here / ".git").exists():
        return None
    words = [
        "git",
        "-C",
        str(here),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(words, capture_output=True, timeout=10, check=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def command_line() -> str:
    """Give the words with which this process was started."""
    return " ".join(["sagacity bench", *sys.argv[1:]])
