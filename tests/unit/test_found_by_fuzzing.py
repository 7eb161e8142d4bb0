"""What fuzzing has found, each with its cause: see docs/proof/fuzz.md."""

import fcntl
import os
from pathlib import Path

import pytest

from cluster.directory import DataDirectory, running
from config.load import ConfigError, load
from sagacity import client, wire
from sagacity.errors import InternalError, Malformed
from sagacity.wire import Reply

ANSWER = {"type": "checkout_complete", "saga_id": "s1", "status": "COMPLETED"}


@pytest.mark.parametrize(
    "body",
    [
        {**ANSWER, "order_id": b"o1"},
        {**ANSWER, "more": [{"deep": b""}]},
        {**ANSWER, b"order_id": "o1"},
        {**ANSWER, "more": {b"k": 1}},
    ],
)
def test_a_body_with_bytes_is_malformed(body: dict[object, object]) -> None:
    """JSON has none: a node that was answered so died when it wrote its line."""
    packed = wire.msgpack.packb(body)
    with pytest.raises(Malformed):
        wire.unpack(packed)
    with pytest.raises(Malformed):
        wire.pack(body)
    with pytest.raises(InternalError):
        client.answer(Reply(1, None, packed))


@pytest.mark.parametrize("body", [{}, {"saga_id": "s1"}, {"type": 7}, {"type": None}])
def test_an_answer_without_a_type_is_a_bug_of_ours(body: dict[str, object]) -> None:
    """Code 13 of the table; a node died of it."""
    with pytest.raises(InternalError):
        client.answer(Reply(1, None, wire.pack(body)))


def test_an_environment_that_is_no_utf_8_is_a_fault_of_the_configuration() -> None:
    """With the variable's name, and beside the other faults; it was an exception of Python's."""
    pools = os.fsdecode(b"{inventory='services.inventory:service\xdf")
    env = {"SAGACITY_SERVICES__POOLS": pools, "SAGACITY_SAGA__ATTEMPTS": "0"}
    with pytest.raises(ConfigError) as found:
        load(None, env)
    assert len(found.value.faults) == 2
    assert "it is not UTF-8 (environment SAGACITY_SERVICES__POOLS)" in found.value.text


@pytest.mark.parametrize("damage", [b"\xff", b'"\x80"', b'{"a":' * 100_000])
def test_a_cluster_json_that_is_no_utf_8_or_too_deep_is_damaged(
    tmp_path: Path, damage: bytes
) -> None:
    """What is wrong is said, and what to do; it was an exception of Python's."""
    directory = DataDirectory(tmp_path / "data")
    directory.open_or_create(2)
    file = directory.path / "cluster.json"
    bad = file.read_bytes().replace(b'"cluster_id":"', b'"more":' + damage + b',"cluster_id":"\xff')
    file.write_bytes(bad)
    with pytest.raises(Malformed, match="is damaged"):
        directory.read()
    assert file.read_bytes() == bad


@pytest.mark.parametrize("said", [b'{"router": "\xff"}', b"[" * 100_000])
def test_an_up_json_that_cannot_be_read_hides_no_other_cluster(tmp_path: Path, said: bytes) -> None:
    """Who looks for running clusters passes by what is none of ours."""
    base = tmp_path / f"sagacity-{os.getuid()}"
    run = base / "01234567"
    run.mkdir(parents=True, mode=0o700)
    (run / "lock").touch(mode=0o600)
    (run / "up.json").write_bytes(said)
    holder = os.open(run / "lock", os.O_RDWR)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert running({"XDG_RUNTIME_DIR": str(tmp_path)}) == []
    finally:
        os.close(holder)
