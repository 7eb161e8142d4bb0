"""Workers that misbehave in a whole cluster: commands that kill them, and workers that hang."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.private import ClusterProcess, start_private
from sagacity.client import Client

TOP = Path(__file__).parents[2]
CONFIG = """
[services]
workers = 2
[services.pools]
inventory = "services.inventory:service"
payment = "tests.integration.poison:service"
shipping = "services.shipping:service"
[supervisor]
heartbeat_ms = 200
worker_live_ms = 600
worker_hung_ms = 1500
"""


@pytest.fixture
def cluster() -> Iterator[ClusterProcess]:
    """A cluster whose payment service can be harmed, and that kills hung workers soon."""
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    config = base / "own.toml"
    config.write_text(CONFIG)
    paths = [str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])]
    started = start_private(
        base / "data",
        arguments=["--config", str(config)],
        env={"PYTHONPATH": os.pathsep.join(paths), "SAGACITY_LOG": "error"},
    )
    yield started
    started.stop()
    shutil.rmtree(base)


def checkout(client: Client, saga_id: str, user: str, *, wait: bool) -> dict[str, Any]:
    items = [{"sku": "abc123", "quantity": 1}]
    return client.checkout(
        user_id=user, items=items, shipping_address="1 Main St", saga_id=saga_id, wait=wait
    )


def told_of(client: Client, saga_id: str) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = client.show(saga_id)["history"]
    return history


def active(client: Client, service: str) -> int:
    """Give the process id of the worker that works."""
    rows = client.status()["processes"]
    (pid,) = [row["pid"] for row in rows if (row["role"], row["state"]) == (service, "up")]
    return int(pid)


def all_complete(client: Client, saga_ids: list[str], user: str) -> None:
    """Ask again for each saga's outcome, and see that no attempt of it has counted."""
    for saga_id in saga_ids:
        assert checkout(client, saga_id, user, wait=True)["status"] == "COMPLETED"
        assert "attempt_ended" not in [event["event"] for event in told_of(client, saga_id)]


def test_a_command_that_kills_three_workers_is_quarantined_and_its_neighbours_complete(
    cluster: ClusterProcess,
) -> None:
    """B16: each death is real; its saga turns back, and what it had reserved is free again."""
    with Client(cluster.url, timeout_s=30) as client:
        for at in range(20):
            checkout(client, f"before{at}", "u42", wait=False)
        checkout(client, "bad", "u_poison", wait=False)
        for at in range(20):
            checkout(client, f"after{at}", "u42", wait=False)
        done = checkout(client, "bad", "u_poison", wait=True)
        assert (done["status"], done["reason"]) == ("ABORTED", "Timed out: ChargePayment")
        (told,) = [e for e in told_of(client, "bad") if e["event"] == "quarantined"]
        assert (told["step"], told["direction"], told["deaths"]) == (2, "action", 3)
        assert client.show("bad")["cause"] == "quarantined"
        all_complete(
            client, [f"{when}{at}" for when in ("before", "after") for at in range(20)], "u42"
        )


def test_a_stopped_worker_is_killed_and_another_does_its_commands(cluster: ClusterProcess) -> None:
    """E3: nobody turns back for it, and no attempt is counted: it may never have had them."""
    with Client(cluster.url, timeout_s=30) as client:
        hung = active(client, "payment")
        os.kill(hung, signal.SIGSTOP)
        stopped = time.monotonic()
        ids = [f"s{at}" for at in range(20)]
        for saga_id in ids:
            checkout(client, saga_id, "u42", wait=False)
        all_complete(client, ids, "u42")
        assert time.monotonic() - stopped < 10
        assert active(client, "payment") != hung


def test_a_worker_stopped_inside_its_transaction_frees_its_lock(cluster: ClusterProcess) -> None:
    """E3: a stopped writer keeps SQLite's lock for ever; killed, its transaction never was."""
    with Client(cluster.url, timeout_s=30) as client:
        hung = active(client, "payment")
        checkout(client, "bad", "u_stopped", wait=False)
        ids = [f"s{at}" for at in range(20)]
        for saga_id in ids:
            checkout(client, saga_id, "u42", wait=False)
        all_complete(client, [*ids], "u42")
        all_complete(client, ["bad"], "u_stopped")
        assert active(client, "payment") != hung
