"""One fault in one system call of one process, put there by strace; and whether it really struck.

strace counts calls per thread, those alone that match its paths. The call that is killed is not
carried out; one that is given an error is not either. A process that loses its power is killed, and
what it had not synced is taken back (`unsynced`). Knows no process of ours.
"""

import random
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.chaos import unsynced

KILL: Final = "kill"
POWER: Final = "power"
DEATHS: Final = (KILL, POWER)
ERRORS: Final = ("EIO", "ENOSPC")
KINDS: Final = (*DEATHS, *ERRORS)

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
    # What is lost changes with writes and syncs, and what was answered with what was sent.
    POWER: ("pwrite64", "fdatasync", "ftruncate", "sendto"),
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
    kind, call, at = [*text.split(":"), "", ""][:3]
    known = text.count(":") == 2 and kind in KINDS and call in CALLS[kind]
    if not known or not at.isdecimal() or int(at) < 1:
        raise ValueError(f"no such fault: {text!r}; one is KIND:CALL:K, K at least 1")
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


class Injector:
    """Puts faults into the lives of one process, one after the other.

    Args:
        paths: of the files whose calls count, if a call is one of files.
        logs: a folder for what strace and the preloaded library note.
        under: a directory; what is not synced below it is lost with the power.
        library: `unsynced`, built; needed where the power fails.
        lies: syncs are not carried out, so that a test can see what that does.

    Attributes:
        lost_bytes: that were not synced and were taken back.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        logs: Path,
        under: Path,
        library: Path | None = None,
        *,
        lies: bool = False,
    ) -> None:
        self._paths = paths
        self._logs = logs
        self._under = under
        self._library = library
        self._lies = lies
        self._lives = 0
        self.lost_bytes = 0

    def command(self, fault: Fault) -> list[str]:
        """Give the command line that the program's own follows, for its next life."""
        self._lives += 1
        what = f"error={fault.kind}" if fault.kind in ERRORS else "signal=SIGKILL"
        argv = ["strace", "-D", "-f", "-q", "-o", str(self._log("strace"))]
        if fault.kind in ERRORS:
            argv.append("--seccomp-bpf")  # faster; with it strace 6.1 sends no signal
        if fault.call in FILE_CALLS:
            for path in self._paths:
                argv += ["-P", str(path)]
        if fault.kind == POWER:
            if self._library is None:
                raise ValueError("the library that keeps what is not synced was not built")
            log = self._log("unsynced")
            env = unsynced.environment(self._library, self._under, log, lies=self._lies)
            for name, value in env.items():
                argv += ["-E", f"{name}={value}"]
        argv += ["-e", "signal=none", "-e", f"trace={fault.call}"]
        return [*argv, "-e", f"inject={fault.call}:{what}:when={fault.at}"]

    def ended(self, fault: Fault, code: int) -> bool:
        """Take back what is lost of a life that ended with this code; say whether it was struck."""
        if fault.kind in ERRORS:
            return "(INJECTED)" in self._log("strace").read_text(errors="replace")
        if code != -signal.SIGKILL:
            return False
        if fault.kind == POWER:
            rng = random.Random(f"{fault} {self._lives}")
            self.lost_bytes += unsynced.lose(self._log("unsynced"), rng)
        return True

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}-{self._lives}.log"


def odd_end(code: int, *, struck: bool) -> Iterator[str]:
    """Say what of the end of a life, by its exit code, no fault explains."""
    if code != 0 and not struck:
        yield f"it ended with {code}, and nothing had struck"
    if code < 0 and not (struck and code == -signal.SIGKILL):
        yield f"it ended by the signal {-code}"
