"""One fault in one system call of one process, put there by strace; and whether it really struck.

strace counts calls per thread, those alone that match its paths. The call that is killed is not
carried out; one that is given an error is not either. Knows no process of ours.
"""

import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

KILL: Final = "kill"
ERRORS: Final = ("EIO", "ENOSPC")
KINDS: Final = (KILL, *ERRORS)

# Of a database: what changes it, what reads it, what makes and removes its files.
FILE_CALLS: Final = (
    "pwrite64",
    "fdatasync",
    "fsync",
    "ftruncate",
    "fallocate",
    "unlink",
    "openat",
    "pread64",
)
SOCKET_CALLS: Final = ("sendto", "recvfrom")  # ZeroMQ's, on sockets of every kind
CALLS: Final = {
    KILL: (*FILE_CALLS, *SOCKET_CALLS),
    "EIO": FILE_CALLS,
    "ENOSPC": ("pwrite64", "fdatasync", "ftruncate", "fallocate", "openat"),
}

LIFE_S: Final = 30.0  # of a traced process at most; a life lasts one or two


class NoStrace(Exception):
    """There is no strace, or it may not trace here."""


class Fault(NamedTuple):
    """What happens to a process: it is killed, or a call fails, at the K-th call of a kind."""

    kind: str
    call: str
    at: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.call}:{self.at}"


def fault_of(text: str) -> Fault:
    """Read what `str` gives of a fault.

    Raises:
        ValueError: it is none.
    """
    kind, call, at = text.split(":")
    if kind not in KINDS or call not in CALLS[kind] or int(at) < 1:
        raise ValueError(f"no such fault: {text}")
    return Fault(kind, call, int(at))


def require() -> None:
    """Make sure that strace is there and works.

    Raises:
        NoStrace: with what to do, for people.
    """
    if shutil.which("strace") is None:
        raise NoStrace("strace is not there; on Debian and Ubuntu: apt-get install strace")
    command = ["strace", "-f", "--seccomp-bpf", "-e", "trace=fsync", "true"]
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if tried.returncode != 0:
        said = tried.stderr.decode(errors="replace").strip().splitlines()
        raise NoStrace(f"strace cannot trace here: {said[-1] if said else tried.returncode}")


def command(fault: Fault, paths: Sequence[Path], log: Path) -> list[str]:
    """Give the command line that a traced program's own follows.

    Args:
        fault: that it meets.
        paths: of the files whose calls count, if the call is one of files.
        log: where strace says which calls it saw.
    """
    what = "signal=SIGKILL" if fault.kind == KILL else f"error={fault.kind}"
    argv = ["strace", "-D", "-f", "-q", "-o", str(log)]
    if fault.kind != KILL:  # with it strace 6.1 sends no signal
        argv.append("--seccomp-bpf")
    if fault.call in FILE_CALLS:
        for path in paths:
            argv += ["-P", str(path)]
    argv += ["-e", "signal=none", "-e", f"trace={fault.call}"]
    return [*argv, "-e", f"inject={fault.call}:{what}:when={fault.at}"]


def struck(fault: Fault, log: Path, code: int) -> bool:
    """Say whether the fault happened to a process that has ended with this exit code."""
    if fault.kind == KILL:
        return code == -signal.SIGKILL
    return "(INJECTED)" in log.read_text(errors="replace")
