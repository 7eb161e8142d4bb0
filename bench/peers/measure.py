"""One run of a peer: start it in a new folder, warm up, measure, check its books, end all of it."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench.peers import books
from bench.peers.environment import Environment
from bench.peers.errors import PeerError, Refused
from bench.peers.peer import Deployed, Peer, Plan, Site
from bench.peers.processes import Processes
from bench.peers.result import Result, Settings, per_saga_us, percentiles

SERVICES = "dictionaries"
_EXAMPLES_MAX = 3
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def measure(
    peer: Peer, environment: Environment, plan: Plan, settings: Settings, data: Path | None = None
) -> Result:
    """Do one run.

    Args:
        peer: which.
        environment: its own, set up.
        plan: what to do.
        settings: on top of its best.
        data: takes the run's folder, which is removed afterwards; None for TMPDIR.

    Raises:
        Refused: not set up, an unknown setting, a taken port, a folder in memory.
        PeerError: it did not start, its books do not balance, or it did not sync.
    """
    environment.check()
    known = merged(peer, settings)
    folder = Path(tempfile.mkdtemp(prefix=f"peer-{peer.name}-", dir=data))
    try:
        data_fs = on_disk(folder)
        folder.chmod(0o711)  # PostgreSQL's user goes through it to its own
        parts = [folder / name for name in ("data", "books", "out", "logs")]
        for part in parts:
            part.mkdir()
        with Processes(parts[3]) as processes:
            site = Site(parts[0], parts[1], parts[2], processes, plan, known)
            deployed = peer.deploy(environment, site)
            used = _conduct(deployed, processes)
            written = [
                json.loads((site.out / f"loader-{index}.json").read_text())
                for index in range(len(deployed.loaders))
            ]
            durability = deployed.durability([each["told"] for each in written])
            for loader in deployed.loaders:
                loader.tell()
        _check_books(peer, written, parts[1])
        return _result(peer, environment, plan, known, written, used, durability, data_fs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def merged(peer: Peer, settings: Settings) -> Settings:
    """Give the peer's best settings with these on top.

    Raises:
        Refused: it knows no such setting, or the value is of another kind.
    """
    for key, value in settings.items():
        if key not in peer.best:
            raise Refused(f"{peer.name} has no setting {key}; it has {', '.join(peer.best)}")
        if type(value) is not type(peer.best[key]) or (isinstance(value, int) and value < 1):
            raise Refused(f"{peer.name}: {key}={value} cannot be; its best is {peer.best[key]}")
    return {**peer.best, **settings}


def on_disk(folder: Path) -> str:
    """Give the type of the file system that a folder is on.

    Raises:
        Refused: it is in memory, where a sync costs nothing.
    """
    found = ("", "unknown")
    path = str(folder.resolve())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4]
        if (path + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(found[0]):
            found = (mount, right.split()[0])
    if found[1] in _IN_MEMORY:
        raise Refused(f"{folder} is on {found[1]}: a sync there costs nothing; name another --data")
    return found[1]


def _conduct(deployed: Deployed, processes: Processes) -> tuple[dict[str, float], dict[str, float]]:
    """Let the loaders warm up and measure together; give the CPU before and after."""
    for loader in deployed.loaders:
        loader.hear("warm")
    deployed.mark()
    before = processes.cpu_seconds()
    for loader in deployed.loaders:
        loader.tell()
    for loader in deployed.loaders:
        loader.hear("measured")
    return before, processes.cpu_seconds()


def _check_books(peer: Peer, written: list[Any], folder: Path) -> None:
    outcomes = [
        (row[0], row[1], row[2]) for each in written for row in (*each["warm"], *each["rows"])
    ]
    wrong = books.faults(outcomes, books.read(folder))
    if wrong:
        shown = "\n  ".join(wrong[: books.FAULTS_MAX])
        raise PeerError(
            f"no result: {peer.name}'s books do not balance, {len(wrong)} faults:\n  {shown}"
        )


def _result(
    peer: Peer,
    environment: Environment,
    plan: Plan,
    settings: Settings,
    written: list[Any],
    used: tuple[dict[str, float], dict[str, float]],
    durability: dict[str, str],
    data_fs: str,
) -> Result:
    rows = [row for each in written for row in each["rows"]]
    wall = max(each["ended"] for each in written) - min(each["begun"] for each in written)
    failed = [row[2] for row in rows if row[2] not in ("COMPLETED", "ABORTED")]
    answered = [row[3] for row in rows if row[2] in ("COMPLETED", "ABORTED")]
    if not answered:
        raise PeerError(f"no result: {peer.name} answered nothing; {failed[:_EXAMPLES_MAX]}")
    return Result(
        peer=peer.name,
        services=SERVICES,
        in_flight=plan.in_flight,
        sagas=len(rows),
        decline=plan.decline,
        sagas_per_second=len(answered) / wall,
        wall_seconds=wall,
        latency_ms=percentiles(answered),
        completed=sum(row[2] == "COMPLETED" for row in rows),
        aborted=sum(row[2] == "ABORTED" for row in rows),
        errors=len(failed),
        error_examples=failed[:_EXAMPLES_MAX],
        cpu_us_per_saga=per_saga_us(*used, len(rows)),
        settings=settings,
        durability=durability,
        versions=peer.versions(environment),
        data_fs=data_fs,
        cores=os.cpu_count() or 1,
    )
