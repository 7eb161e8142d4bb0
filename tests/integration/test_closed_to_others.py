"""A cluster that runs is closed to other users and other machines, whatever the umask."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.private import ClusterProcess, start_private
from sagacity.client import Client
from tests.integration.test_up import free_port

LISTEN = "0A"  # of /proc/net/tcp
LOOPBACK = "0100007F"


@pytest.fixture(scope="module", params=[0o022, 0o000], ids=["umask022", "umask000"])
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterProcess]:
    """A cluster on TCP that has done a checkout; made as somebody with this umask would."""
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    (base / "runtime").mkdir(mode=0o700)
    before = os.umask(request.param)
    try:
        started = start_private(
            base / "new" / "data",
            arguments=("--shards", "2", "--workers", "2", "--port", str(free_port())),
            env={"XDG_RUNTIME_DIR": str(base / "runtime"), "SAGACITY_LOG": "error"},
        )
    finally:
        os.umask(before)
    with started:
        with Client(started.url) as client:
            client.checkout(
                user_id="u42",
                items=[{"sku": "abc123", "quantity": 1}],
                shipping_address="1 Main St",
            )
        yield started
    shutil.rmtree(base)


def made_in(directory: Path) -> dict[str, int]:
    """Give the mode of everything in a directory that is no link, and of itself."""
    found = [directory, *directory.rglob("*")]
    return {str(path.relative_to(directory)): path.lstat().st_mode for path in found}


def looser(modes: dict[str, int]) -> dict[str, str]:
    """Give what is no directory of mode 0700, nor anything else of mode 0600 (0700: a socket)."""
    allowed = {stat.S_IFDIR: {0o700}, stat.S_IFREG: {0o600}, stat.S_IFSOCK: {0o600, 0o700}}
    return {
        name: stat.filemode(mode)
        for name, mode in modes.items()
        if stat.S_IMODE(mode) not in allowed.get(stat.S_IFMT(mode), set())
    }


def test_whatever_a_cluster_makes_is_for_its_user_alone(cluster: ClusterProcess) -> None:
    """Journals, WALs, databases, locks, sockets, up.json, new parents: 0600 in 0700."""
    kept = made_in(cluster.data.parent)
    assert set(kept) >= {
        *("data/cluster.json", "data/lock"),
        *("data/shard-1/journal.db", "data/shard-1/journal.db-wal", "data/shard-1/lock"),
        *("data/services/payment.db", "data/services/payment.db-wal", "data/services/payment.lock"),
    }
    assert looser(kept) == {}
    met = made_in(cluster.data.parents[1] / "runtime")
    assert {Path(name).name for name in met} >= {"up.json", "lock", "reports.sock", "shard-0.sock"}
    assert looser(met) == {}


def test_the_walk_finds_what_is_open_to_others(tmp_path: Path) -> None:
    """Else it shows nothing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o750)
    (tmp_path / "b").touch()
    (tmp_path / "b").chmod(0o640)
    tmp_path.chmod(0o700)
    assert looser(made_in(tmp_path)) == {"a": "drwxr-x---", "b": "-rw-r-----"}


def test_every_process_listens_on_the_loopback_alone(cluster: ClusterProcess) -> None:
    """The router's port and each process's metrics; nothing listens on IPv6 or another address."""
    with Client(cluster.url) as client:
        rows: list[dict[str, Any]] = client.status()["processes"]
    heard = {row["pid"]: listening(row["pid"]) for row in rows}
    assert all(len(addresses) >= 1 for addresses in heard.values()), "each serves metrics"
    assert {address for addresses in heard.values() for address, _ in addresses} == {LOOPBACK}
    router = next(row["pid"] for row in rows if row["role"] == "router")
    assert int(cluster.url.rpartition(":")[2]) in {port for _, port in heard[router]}


def listening(pid: int) -> list[tuple[str, int]]:
    """Give address and port of each TCP socket on which a process listens."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found
