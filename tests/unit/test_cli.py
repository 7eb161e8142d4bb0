"""The command line without a cluster: usage, exit codes, what goes to which stream."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cli

CHECKOUT = ["checkout", "--user", "u42", "--item", "abc123=1", "--address", "a", "--id", "x"]
NOWHERE = ["--connect", "ipc:///nonexistent/router.sock"]


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cluster that runs on this machine is found by these tests."""
    monkeypatch.delenv("SAGACITY_URL", raising=False)
    with tempfile.TemporaryDirectory(prefix="sg-") as short:  # sockets' paths are bounded
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        yield


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["--nonsense"],
        ["status", "--nonsense"],
        ["status", "extra"],
        ["status", "--js"],  # no abbreviations: a later option would change their meaning
        ["show"],
        ["cancel", "x"],
        ["checkout"],
        ["checkout", "--user", "u42", "--item", "abc123=1"],
        [*CHECKOUT, "--no-wait", "--trace"],
        ["maelstrom", "--drain", "x"],
        ["maelstrom", "--drain", "-1"],
        ["maelstrom", "--drain", "nan"],
        ["maelstrom", "--data", "d", "--connect", "u"],
        ["list"],  # comes with a later issue; not offered before it works
        ["retry", "x", "--reason", "r"],
        ["top"],
    ],
)
def test_a_wrong_usage_ends_with_two(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert "usage: sagacity" in said.err


@pytest.mark.parametrize("words", [["--help"], ["up", "--help"], ["checkout", "--help"]])
def test_help_is_no_error(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert "usage: sagacity" in capfd.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        ["--item", "abc123"],
        ["--item", "abc123="],
        ["--item", "abc123=x"],
        ["--item", "abc123=1.0"],
        ["--item", "abc123=0"],
        ["--item", "abc123=-1"],
        ["--item", "abc123=1001"],
        ["--item", f"abc123={2**63}"],
        ["--item", "abc123=" + "9" * 5000],
        ["--item", "abc123=\u0663"],
        ["--item", "=1"],
        ["--item", "a=b=1"],
        ["--item", "s" * 65 + "=1"],
        ["--item", "a b=1"],
        ["--item", *["abc123=1"] * 101],
        ["--user", ""],
        ["--user", " "],
        ["--user", "u" * 129],
        ["--user", "u\x00"],
        ["--user", "\udcff"],  # an argument that is no UTF-8
        ["--address", ""],
        ["--address", "a" * 513],
        ["--address", "a\nb"],
        ["--id", ""],
        ["--id", "../x"],
        ["--id", "x" * 129],
        ["--id", "é"],
        ["--id", "\udcff"],
    ],
)
def test_a_malformed_checkout_is_refused_before_it_is_sent(
    change: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """SPEC 2; nothing is connected to yet."""
    assert cli.main([*CHECKOUT, *change, *NOWHERE, "--json"]) == 2
    said = capfd.readouterr()
    assert json.loads(said.out)["code"] == 12
    assert said.err.startswith("sagacity: ")


@pytest.mark.parametrize(
    "words",
    [
        ["show", "../x"],
        ["show", ""],
        ["cancel", "x", "--reason", ""],
        ["cancel", "x", "--reason", "r" * 257],
        ["cancel", "x", "--reason", "\x1b[2J"],
        ["cancel", "a b", "--reason", "r"],
        ["status", "--connect", "nonsense"],
        ["status", "--connect", "tcp://"],
        ["audit", "--data", "d", "--connect", "u"],
        ["audit", "--data", "/nonexistent"],
    ],
)
def test_a_malformed_command_is_refused(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    where = [] if words[0] in {"audit", "status"} else NOWHERE
    assert cli.main([*words, *where]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("sagacity: ")


def test_an_audit_makes_no_directory(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert cli.main(["audit", "--data", str(missing)]) == 2
    assert not missing.exists()


@pytest.mark.parametrize("command", [["status"], CHECKOUT, ["show", "x"], ["audit"]])
def test_without_a_cluster_it_says_how_to_start_one(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == 5
    assert "start one with: sagacity up" in capfd.readouterr().err


def test_without_json_an_error_leaves_stdout_empty(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "../x"]) == 2
    assert capfd.readouterr().out == ""


def test_a_broken_pipe_ends_quietly() -> None:
    """`sagacity … | head -1` is nobody's mistake."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-P", "-m", "cluster", *CHECKOUT, "--user", "", "--json", *NOWHERE]
    ended = subprocess.run(
        command,
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(write)
    assert b"Traceback" not in ended.stderr
    assert b"Broken" not in ended.stderr


def test_light_commands_import_nothing_heavy() -> None:
    """SPEC 5: the Maelstrom node answers `init` at once."""
    script = (
        "import sys, cluster.cli, cluster.maelstrom\n"
        "heavy = {'zmq', 'msgspec', 'msgpack', 'structlog', 'asyncio', 'prometheus_client'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))))"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", script], stderr=subprocess.PIPE, timeout=30, check=False
    )
    assert ended.stderr.decode().strip() == ""
