"""A PostgreSQL of a run's own, from Debian's package; it listens on a socket in its folder alone.

Everything that makes it durable is on, as by default. It does not run as root: where we are root,
it gets Debian's user `postgres`.
"""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

from bench.peers.errors import PeerError
from bench.peers.processes import Process, Processes, wait_until

MAJOR: Final = "15"
PROGRAMS: Final = Path(f"/usr/lib/postgresql/{MAJOR}/bin")
_USER: Final = "postgres"
_INSTALL: Final = ("apt-get", "install", "--yes", "--no-install-recommends", f"postgresql-{MAJOR}")
_COMMAND_S: Final = 600.0
# Durable: all of it. The rest is what its handbook advises for more memory than 128 MB.
_CONFIG: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": "300",
    "listen_addresses": "",
    "logging_collector": "off",
}


def set_up() -> None:
    """See that Debian's package is there; install it where we may.

    Raises:
        PeerError: it is not there and cannot be installed.
    """
    if (PROGRAMS / "postgres").exists():
        return
    shown = " ".join(_INSTALL)
    if os.geteuid() != 0 or shutil.which(_INSTALL[0]) is None:
        raise PeerError(f"there is no PostgreSQL {MAJOR} in {PROGRAMS}; as root: {shown}")
    # Debian's package starts a server of its own unless it is told not to.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    _run(list(_INSTALL), env=env)
    if not (PROGRAMS / "postgres").exists():
        raise PeerError(f"{shown} did not bring {PROGRAMS}/postgres")


def version() -> str:
    """Give its version."""
    return _run([str(PROGRAMS / "postgres"), "--version"]).split(") ")[1].split(" ")[0]


def start(processes: Processes, data: Path) -> tuple[Process, str]:
    """Make a database in a folder and serve it.

    Returns:
        The server, and a URL of its database `checkout` for SQLAlchemy.
    """
    user = pwd.getpwnam(_USER).pw_uid if os.geteuid() == 0 else None
    if user is not None:
        os.chown(data, user, user)
    data.chmod(0o700)
    files = data / "pg"
    initdb = [PROGRAMS / "initdb", "-D", files, "-U", _USER, "--auth=trust", "--no-sync"]
    _run([str(part) for part in initdb], user=user)
    options = [part for key, value in _CONFIG.items() for part in ("-c", f"{key}={value}")]
    command: list[str | Path] = [PROGRAMS / "postgres", "-D", files, "-k", data, *options]
    # SIGINT: a fast shutdown; SIGTERM would wait for clients.
    server = processes.start("postgres", command, user=user, end=signal.SIGINT)
    ready = [str(PROGRAMS / "pg_isready"), "-q", "-h", str(data)]
    wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, server, "PostgreSQL")
    _run([str(PROGRAMS / "createdb"), "-h", str(data), "-U", _USER, "checkout"])
    return server, f"postgresql+psycopg://{_USER}@/checkout?host={data}"


def _run(command: list[str], *, user: int | None = None, env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_S,
            check=False,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            env=env,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise PeerError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return done.stdout
