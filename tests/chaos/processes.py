"""A cluster's processes as the kernel sees them: found, told apart, stopped, killed.

Found by the data directory on their command line, so that one which nobody knows of is found too;
told apart by their start time, so that a process id that was given again is no match. Knows nothing
of what the processes do.
"""

import os
import select
import signal
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

END_S = 5.0  # for a killed process to be gone; a dead disk alone takes that long


class Process(NamedTuple):
    """One process; equal only to itself, whoever gets its id later.

    Args:
        pid: its id.
        started: clock ticks since the machine's start.
        command: its command line.
    """

    pid: int
    started: int
    command: tuple[str, ...]


def look(pid: int) -> Process | None:
    """Give a process; None where there is none, or one that has ended and was not waited for."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]), tuple(os.fsdecode(command).split("\0")[:-1]))


def of_cluster(data: Path) -> list[Process]:
    """Give the processes that run on a data directory."""
    found = []
    for entry in os.listdir("/proc"):
        process = look(int(entry)) if entry.isdecimal() else None
        if process is not None and _works_on(process, data):
            found.append(process)
    return found


def is_alive(process: Process) -> bool:
    """Say whether this very process still runs."""
    seen = look(process.pid)
    return seen is not None and seen.started == process.started


def kill(victims: Sequence[Process]) -> int:
    """Kill processes with SIGKILL, all in one go and in this order; wait for their end.

    Returns:
        How many of them were alive.
    """
    descriptors = []
    try:
        for process in victims:
            with suppress(ProcessLookupError):
                descriptors.append((os.pidfd_open(process.pid), process))
        # Looked at when the descriptor is had: from then on it can mean no other process.
        alive = [descriptor for descriptor, process in descriptors if is_alive(process)]
        for descriptor in alive:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        for descriptor in alive:
            select.select([descriptor], [], [], END_S)
        return len(alive)
    finally:
        for descriptor, _ in descriptors:
            os.close(descriptor)


def send(victims: Sequence[Process], what: signal.Signals) -> int:
    """Send a signal to each that lives; give to how many."""
    sent = 0
    for process in victims:
        if is_alive(process):
            with suppress(ProcessLookupError):
                os.kill(process.pid, what)
                sent += 1
    return sent


def _works_on(process: Process, data: Path) -> bool:
    words = process.command
    return ("--data", str(data)) in pairwise(words)
