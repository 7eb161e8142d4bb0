"""`make observe` with the real Prometheus: it says where things are, and leaves nothing."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.prometheus import PORT
from tests.chaos import processes
from tests.integration.test_supervisor import wait_until


@pytest.fixture
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    for name in ("runtime", "tmp"):
        (path / name).mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def taken() -> Iterator[None]:
    """Somebody listens on the usual port: we, or who did before."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            ours.bind(("127.0.0.1", PORT))
            ours.listen()
        except OSError:
            pass
        yield


def test_one_command_observes_and_ctrl_c_ends_all_of_it(base: Path, taken: None) -> None:
    """Cluster, load and Prometheus answer where it says; a taken port is said, not fatal."""
    places = {"XDG_RUNTIME_DIR": str(base / "runtime"), "TMPDIR": str(base / "tmp")}
    env = {**os.environ, **places, "SAGACITY_LOG": "error"}  # a slow machine is warned of
    observed = subprocess.Popen(
        [sys.executable, "-m", "cluster.observe", "--rate", "50", "--data", str(base / "data")],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert observed.stdout is not None
        said = "".join(iter(observed.stdout.readline, "Ctrl-C ends all of it.\n"))
        (url,) = re.findall(r"Prometheus +(http://127\.0\.0\.1:\d+)\n", said)
        with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=10) as answer:
            assert b"ErrorBudgetBurn" in answer.read()
        (metrics,) = re.findall(r"metrics +(http://\S+)/metrics\n", said)
        with urllib.request.urlopen(f"{metrics}/sd", timeout=10) as answer:
            assert answer.read().count(b"targets") == 10
        assert said.count("/graph?g0.expr=") == 4
        assert processes.of_cluster(base / "data")
        observed.send_signal(signal.SIGINT)
        out, err = observed.communicate(timeout=30)
    finally:
        observed.kill()
        observed.communicate()
    assert (observed.returncode, out.strip()) == (0, "Ended: load, Prometheus and cluster.")
    assert err == f"port {PORT} is taken: Prometheus is on {url.rpartition(':')[2]}\n"
    assert wait_until(lambda: not processes.of_cluster(base / "data"), 5)
    assert list((base / "tmp").iterdir()) == []
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)
