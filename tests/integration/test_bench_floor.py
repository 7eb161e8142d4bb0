"""`sagacity bench floor` on real processes: the record of `bench run`, and books that balance."""

import json
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import result
from bench.floor import Floor
from bench.load import checkout
from bench.result import ROLES
from sagacity import wire
from sagacity.connection import Connection
from sagacity.wire import Reply

MIX = ["--decline", "10", "--out-of-stock", "5", "--no-carrier", "5"]


def test_the_floor_is_measured_as_a_cluster_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same keys, so that one table has both; every way that a checkout can end."""
    file = tmp_path / "floor.json"
    words = ["--in-flight", "50", "--sagas", "300", "--warm-up", "0.1", *MIX]
    assert bench.main(["floor", *words, "--json", str(file)]) == 0
    found = result.read(file)
    assert (found.what, found.finished, found.errors) == ("floor", 300, 0)
    assert found.balanced is True
    assert found.aborted in range(25, 110)
    assert set(found.cpu_us_per_saga) == {*ROLES, "total"}
    assert all(cpu_us > 0 for cpu_us in found.cpu_us_per_saga.values())
    assert found.commits is not None
    assert found.entries_per_commit is not None
    # As of ours: five facts of one that completes, three of one that is turned back at once.
    assert 3 * 300 <= found.commits * found.entries_per_commit <= 9 * 300
    assert set(json.loads(file.read_bytes())) == set(result.Result.__struct_fields__)
    assert "balanced" in capfd.readouterr().out


def test_a_repeat_at_the_floor_gets_the_first_answer() -> None:
    """It moves ids into an index, and is asked it: random ids are nothing without one."""
    saga_id, body = checkout(False)

    def ask(connection: Connection) -> Reply:
        connection.ask(wire.START, saga_id, body)
        while not (settled := connection.poll(1.0)):
            pass
        return settled[0][1]

    with Floor() as url, Connection(url, timeout_s=60) as connection:
        first, again = ask(connection), ask(connection)
    assert first.code is None
    assert b"COMPLETED" in first.body
    assert again.body == first.body
