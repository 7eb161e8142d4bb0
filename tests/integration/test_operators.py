"""What operators ask: list, retry, show, status, journal verify, audit of a stopped cluster."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from cluster.directory import DataDirectory, running
from cluster.private import ClusterProcess, start_private
from cluster.resting import opened
from sagacity.client import AsyncClient, Client
from sagacity.errors import Conflict
from sagacity.slots import SlotMap, slot_of
from sagacity.wire import encode
from shard.codec import unpack_batch
from shard.entries import Finished, Started
from tests.integration.faces import run

Ended = subprocess.CompletedProcess[bytes]
PATIENCE_S = 30.0
ADDRESS = ("--address", "123 Main St")
ITEM = ("--item", "abc123=1")
AT_ONCE_S = 10.0  # less than the library waits for an outcome

# An inventory whose compensations fail until a file is there.
SICK = """
import os
from pathlib import Path

import msgspec

from sagacity.messages import ReleaseReservation
from sagacity.service import Failed
from services.inventory import release, service as healthy


def sick(db, call):
    if not Path(os.environ["MENDED"]).exists():
        return Failed("the warehouse is closed")
    return release(db, call)


service = msgspec.structs.replace(healthy, compensations={ReleaseReservation: sick})
"""
# The next attempt would come tomorrow: only `retry` ends it today.
CONFIG = """
[saga]
stuck_after = 1
backoff_ms = 86_400_000
backoff_max_ms = 86_400_000

[services.pools]
inventory = "sick:service"
payment = "services.payment:service"
shipping = "services.shipping:service"
"""


class Operated:
    """A cluster of two shards: six sagas completed, then one aborted, then one stuck."""

    def __init__(self, cluster: ClusterProcess, mended: Path) -> None:
        self.url, self.data, self._mended = cluster.url, cluster.data, mended
        for index in range(6):
            self.checkout(f"done{index}", "u42", 0)
        self.checkout("broke", "u42", 10, "--item", "sku_out_of_stock=1")
        self.checkout("stuck", "u999", 0, *ITEM, "--no-wait")
        until(lambda: self.listed("--status", "stuck") != [], "it does not get stuck")

    def mend(self) -> None:
        """Open the warehouse."""
        self._mended.touch()

    def checkout(self, saga_id: str, user: str, code: int, *words: str) -> None:
        ended = self.run("checkout", "--id", saga_id, "--user", user, *(words or ITEM), *ADDRESS)
        assert ended.returncode == code, ended.stderr

    def run(self, *words: str) -> Ended:
        return run(self.url, *words)

    def json(self, *words: str) -> tuple[int, Any]:
        ended = self.run(*words, "--json")
        [line] = ended.stdout.splitlines()
        return ended.returncode, json.loads(line)

    def listed(self, *words: str) -> list[str]:
        code, body = self.json("list", *words)
        assert code == 0
        return [saga["saga_id"] for saga in body["sagas"]]


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    place = tmp_path_factory.mktemp("operated")
    (place / "sick.py").write_text(SICK)
    (place / "own.toml").write_text(CONFIG)
    env = {
        "SAGACITY_LOG": "error",
        "PYTHONPATH": str(place),
        "MENDED": str(place / "mended"),
    }
    arguments = ("--config", str(place / "own.toml"))
    with start_private(place / "cluster", arguments=arguments, env=env) as cluster:
        yield Operated(cluster, place / "mended")


def until(happens: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < give_up, what


EVERY = ["stuck", "broke", "done5", "done4", "done3", "done2", "done1", "done0"]


def test_list_gives_the_sagas_of_all_shards_newest_first(operated: Operated) -> None:
    """SPEC 6; by their end, or by their start before that."""
    code, body = operated.json("list")
    assert code == 0
    assert [saga["saga_id"] for saga in body["sagas"]] == EVERY
    stuck, broke, done = body["sagas"][:3]
    assert (stuck["status"], stuck["stuck"], stuck["ended_ms"]) == ("COMPENSATING", True, None)
    assert (broke["status"], broke["reason"]) == ("ABORTED", "Out of stock: sku_out_of_stock")
    assert (done["status"], done["amount"], done["saga"]) == ("COMPLETED", 100.0, "checkout")
    assert done["ended_ms"] >= done["started_ms"] > 1_700_000_000_000
    owners = SlotMap.even(2).owners
    assert {owners[slot_of(saga_id)] for saga_id in EVERY} == {0, 1}


def test_list_keeps_to_what_was_asked_for(operated: Operated) -> None:
    assert operated.listed("--status", "stuck") == ["stuck"]
    assert operated.listed("--status", "Aborted,STUCK") == ["stuck", "broke"]
    assert operated.listed("--status", "compensating", "--status", "aborted") == ["stuck", "broke"]
    assert operated.listed("--status", "completed", "--limit", "2") == ["done5", "done4"]
    assert operated.listed("--status", "running") == []
    assert operated.listed("--since", "1h") == EVERY
    assert operated.listed("--since", "2999-01-01") == []


def test_a_list_that_was_cut_says_so_beside_the_data(operated: Operated) -> None:
    """Data on stdout, talk on stderr."""
    cut = operated.run("list", "--limit", "3")
    assert len(cut.stdout.splitlines()) == 4
    assert b"there may be more" in cut.stderr
    whole = operated.run("list", "--limit", "100")
    assert len(whole.stdout.splitlines()) == len(EVERY) + 1
    assert whole.stderr == b""
    assert b"\x1b" not in whole.stdout


def test_the_client_library_lists_too(operated: Operated) -> None:
    """Both clients, the same."""

    async def listed() -> dict[str, Any]:
        async with AsyncClient(operated.url) as client:
            with pytest.raises(Conflict):
                await client.retry("done0", "r")
            return await client.list(statuses=["completed"], limit=3)

    with Client(operated.url) as client:
        body = client.list(statuses=["completed"], limit=3)
        with pytest.raises(Conflict):
            client.retry("done0", "r")
    assert [saga["saga_id"] for saga in body["sagas"]] == ["done5", "done4", "done3"]
    assert asyncio.run(listed()) == body


def test_status_tells_rates_pools_and_shards(operated: Operated) -> None:
    """SPEC 6: shards, epochs, in flight, pools, rates."""
    code, body = operated.json("status")
    assert code == 0
    assert set(body["rates"]) == {"started", "completed", "aborted"}
    assert [set(shard["rates"]) for shard in body["shards"]] == [set(body["rates"])] * 2
    assert sum(shard["stuck"] for shard in body["shards"]) == 1
    told = operated.run("status").stdout.decode()
    for line in ("shard  state  epoch  in flight", "pool       active", "router  requests"):
        assert line in told
    assert "inventory-" in told
    assert "0/256" in told


def test_top_tells_figures_and_what_needs_a_person(operated: Operated) -> None:
    """Issue 6, for scripts: through the doors of status and list, and /metrics of each process."""
    code, found = operated.json("top", "--once", "--interval", "0.2")
    assert code == 0
    assert (found["ready"], found["stuck"], found["in_flight"]) == (True, 1, 1)
    assert found["started"] is not None
    assert found["interval_ms"] >= 200
    [saga] = found["stuck_sagas"]
    assert (saga["saga_id"], saga["step"]) == ("stuck", "ReleaseReservation")
    assert saga["amount"] == 100.0
    assert saga["since_ms"] > 1_700_000_000_000
    assert [need["kind"] for need in found["needs"]] == ["stuck"]
    assert [shard["mode"] for shard in found["shards"]] == ["serving"] * 2
    assert [pool["service"] for pool in found["pools"]] == ["inventory", "payment", "shipping"]
    assert all(pool["active"] == 1 and pool["credit"] for pool in found["pools"])


def test_top_off_a_terminal_is_one_plain_page(operated: Operated) -> None:
    """Like --once: `sagacity top | cat` ends."""
    ended = operated.run("top", "--interval", "0.2")
    assert (ended.returncode, ended.stderr) == (0, b"")
    told = ended.stdout.decode()
    assert "\x1b" not in told
    assert all(len(line) <= 100 for line in told.splitlines())
    assert "stuck 100.00 ReleaseReservation for" in told
    assert "latency p50" in told


def test_show_says_what_a_person_can_do(operated: Operated) -> None:
    """Read at night: the page of a stuck saga names the command and the runbook."""
    told = " ".join(operated.run("show", "stuck").stdout.decode().split())
    assert (
        "Payment was declined (DECLINED), so the reservation r7 is not released yet "
        "(attempt 1 failed: the warehouse is closed)"
    ) in told
    assert "sagacity retry stuck --reason WHY" in told
    assert "docs/runbooks/Stuck.md" in told


def test_show_draws_a_timeline_and_events_where_asked(operated: Operated) -> None:
    told = operated.run("show", "done0").stdout.decode().splitlines()
    assert told[0].startswith("done0  COMPLETED  order o")
    assert [line.split()[1] for line in told if "|" in line] == [
        "ReserveInventory",
        "ChargePayment",
        "CreateShipment",
    ]
    assert told[-1] == "It completed: every step succeeded."
    assert all(len(line) <= 100 for line in told)
    events = operated.run("show", "done0", "--events").stdout.decode()
    assert "after     event     step" in events
    assert operated.json("show", "done0", "--events") == operated.json("show", "done0")


def test_the_journals_of_a_running_cluster_are_not_read(operated: Operated) -> None:
    """Exit code 4, and the cluster goes on."""
    code, body = operated.json("journal", "verify", "--data", str(operated.data))
    assert (code, body["code"]) == (4, 22)
    assert operated.run("status").returncode == 0


def test_who_waits_for_a_stuck_saga_is_told_at_once(operated: Operated) -> None:
    """SPEC 4: exit 11 is for a person who has to look; the 35 s are for what may still come."""
    begun = time.monotonic()
    operated.checkout("stuck", "u999", 11)
    assert time.monotonic() - begun < AT_ONCE_S


def test_retry_ends_what_was_stuck_when_its_cause_is_gone(operated: Operated) -> None:
    """Sent now, not tomorrow; the reason is journalled. Comes after those that list it as stuck."""
    assert operated.json("retry", "nobody", "--reason", "r")[0] == 3
    code, body = operated.json("retry", "done0", "--reason", "r")
    assert (code, body["code"]) == (4, 22)
    operated.mend()
    ended = operated.run("retry", "stuck", "--reason", "the warehouse is open")
    assert (ended.returncode, ended.stdout) == (0, b"stuck: COMPENSATING\n")
    until(lambda: operated.listed("--status", "stuck") == [], "it is stuck still")
    operated.checkout("stuck", "u999", 10)
    history = operated.json("show", "stuck")[1]["history"]
    [asked] = [event for event in history if event["event"] == "asked"]
    assert asked["reason"] == "the warehouse is open"
    assert operated.listed("--limit", "1") == ["stuck"]  # it has ended last now
    assert operated.json("audit")[0] == 0


# -- of a stopped cluster -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster that was killed with one saga on its way: its last rows are in the WALs alone."""
    data = tmp_path_factory.mktemp("killed") / "cluster"
    with start_private(data, env={"SAGACITY_LOG": "error"}) as cluster:
        for saga_id in ("paid0", "paid1", "done0", "done1"):  # two of each shard
            words = ("--id", saga_id, "--user", "u42", *ITEM, *ADDRESS)
            assert run(cluster.url, "checkout", *words).returncode == 0
        slow = ("--id", "slow", "--user", "u_slow_2s", *ITEM, *ADDRESS, "--no-wait")
        assert run(cluster.url, "checkout", *slow).returncode == 0
        cluster.process.kill()
        cluster.process.wait()
        until(lambda: _is_still(data), "its processes live on")
    return data


def _is_still(data: Path) -> bool:
    try:
        with DataDirectory(data).kept_still():
            return True
    except Conflict:
        return False


def content(data: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(data)): file.read_bytes()
        for file in sorted(data.rglob("*"))
        if file.is_file()
    }


def copy_of(data: Path, place: Path) -> Path:
    return Path(shutil.copytree(data, place / "copy"))


def damage(data: Path, shard: int) -> None:
    """Take a row out of a journal."""
    journal = apsw.Connection(str(data / f"shard-{shard}" / "journal.db"))
    journal.execute("DELETE FROM journal WHERE seq = 2")
    journal.close()


def verified(data: Path) -> tuple[int, Any]:
    """Verify, and check that no byte of the directory has changed."""
    before = content(data)
    ended = run(None, "journal", "verify", "--data", str(data), "--json")
    assert content(data) == before
    [line] = ended.stdout.splitlines()
    return ended.returncode, json.loads(line)


def test_verify_reads_every_row_and_changes_no_byte(killed: Path) -> None:
    """The rows that are in the WAL alone count; the WAL stays as it is."""
    assert any(name.endswith("-wal") and held for name, held in content(killed).items())
    code, report = verified(killed)
    assert (code, report["verified"]) == (0, True)
    assert [shard["shard"] for shard in report["shards"]] == [0, 1]
    for shard in report["shards"]:
        assert shard["rows"] == shard["last_seq"] > 1
        assert (shard["epoch"], shard["faults"], len(shard["chain"])) == (1, [], 32)
    told = run(None, "journal", "verify", "--data", str(killed))
    assert told.stdout.endswith(b"Every journal is what its shard wrote.\n")
    assert (told.returncode, told.stderr) == (0, b"")


def test_verify_says_what_is_wrong_and_what_to_do(killed: Path, tmp_path: Path) -> None:
    data = copy_of(killed, tmp_path)
    damage(data, 1)
    code, report = verified(data)
    assert (code, report["verified"]) == (2, False)
    whole, damaged = report["shards"]
    assert whole["faults"] == []
    assert damaged["faults"][0] == "rows are missing: row 3 follows row 1"
    told = run(None, "journal", "verify", "--data", str(data))
    assert b"shard 1: rows are missing: row 3 follows row 1" in told.stdout
    assert b"backup" in told.stderr


@pytest.mark.parametrize("what", ["empty", "no directory", "damaged"])
def test_verify_refuses_what_holds_no_cluster(killed: Path, tmp_path: Path, what: str) -> None:
    """Exit code 2; nothing is made there."""
    data = tmp_path / "data"
    if what != "no directory":
        data.mkdir()
    if what == "damaged":
        (data / "cluster.json").write_bytes(b"{")
    ended = run(None, "journal", "verify", "--data", str(data), "--json")
    assert (ended.returncode, json.loads(ended.stdout)["code"]) == (2, 12)
    assert data.exists() == (what != "no directory")
    assert b"Traceback" not in ended.stderr


def test_an_audit_of_a_stopped_cluster_changes_no_outcome(killed: Path, tmp_path: Path) -> None:
    """It runs the cluster: sagas go on as after every start, none begins, no answer changes."""
    data = copy_of(killed, tmp_path)
    ended = run(None, "audit", "--data", str(data), "--json")
    report = json.loads(ended.stdout)
    assert (ended.returncode, report["balanced"]) == (0, True), report["faults"]
    assert sum(report["sagas"][name] for name in ("completed", "aborted", "running")) == 5
    assert not any(each.data == str(data) for each in running())
    code, verdict = verified(data)
    assert (code, [shard["epoch"] for shard in verdict["shards"]]) == (0, [2, 2])
    assert _told(data, Started) == _told(killed, Started)
    first, then = _told(killed, Finished), _told(data, Finished)
    assert {number: then[number] for number in first} == first
    assert set(then) <= set(_told(killed, Started))


def _told(data: Path, kind: type[Started | Finished]) -> dict[int, bytes]:
    """Give the entries of a kind in a stopped cluster's journals, by the number of their saga."""
    found = {}
    for index in range(2):
        with opened(DataDirectory(data).journal(index)) as db:
            for (batch,) in db.execute("SELECT batch FROM journal"):
                for entry in unpack_batch(batch).entries:
                    if isinstance(entry, kind):
                        found[entry.number] = encode(entry)
    return found


def test_an_audit_of_a_damaged_directory_ends_cleanly(killed: Path, tmp_path: Path) -> None:
    """Exit code 2 in words; no process is left, and the journals stay as they are."""
    data = copy_of(killed, tmp_path)
    damage(data, 0)
    journal = data / "shard-0" / "journal.db"
    held = journal.read_bytes()
    ended = run(None, "audit", "--data", str(data), "--json", env={"SAGACITY_LOG": "error"})
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["code"] == 12
    assert b"Traceback" not in ended.stderr
    assert not any(each.data == str(data) for each in running())
    assert journal.read_bytes() == held
    assert _is_still(data)
