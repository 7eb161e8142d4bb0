"""The command line without a cluster: usage, exit codes, what goes to which stream."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cli, commands
from config.schema import SECTIONS
from sagacity.errors import Conflict

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
        ["list", "extra"],
        ["list", "--limit", "x"],
        ["list", "--limit", "1.5"],
        ["list", "--limit"],
        ["retry", "x"],
        ["retry", "--reason", "r"],
        ["journal"],
        ["journal", "mend", "--data", "d"],
        ["journal", "verify"],
        ["journal", "verify", "--da", "d"],
        ["config"],
        ["config", "set"],
        ["config", "show", "--connect", "u"],
        ["top", "extra"],
        ["top", "--interval"],
        ["top", "--interval", "0"],
        ["top", "--interval", "nan"],
        ["top", "--interval", "fast"],
        ["top", "--onc"],
        ["show", "x", "--html"],
    ],
)
def test_a_wrong_usage_ends_with_two(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert "usage: sagacity" in said.err


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["up", "--help"],
        ["checkout", "--help"],
        ["list", "--help"],
        ["audit", "--help"],
        ["show", "--help"],
        ["top", "--help"],
        ["journal", "--help"],
        ["journal", "verify", "--help"],
        ["config", "show", "--help"],
    ],
)
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
        ["retry", "x", "--reason", ""],
        ["retry", "x", "--reason", "\x1b[2J"],
        ["retry", "a b", "--reason", "r"],
        ["list", "--status", "finished"],
        ["list", "--status", "running,"],
        ["list", "--status", ""],
        ["list", "--since", "soon"],
        ["list", "--since=-1h"],
        ["list", "--limit", "0"],
        ["list", "--limit", "-1"],
        ["list", "--limit", "10001"],
        ["list", "--limit", "9" * 40],
        ["journal", "verify", "--data", "/nonexistent"],
        ["config", "show", "--config", "/nonexistent.toml"],
        ["status", "--connect", "nonsense"],
        ["status", "--connect", "tcp://"],
        ["top", "--connect", "tcp://"],
        ["audit", "--data", "d", "--connect", "u"],
        ["audit", "--data", "/nonexistent"],
    ],
)
def test_a_malformed_command_is_refused(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    where = NOWHERE if words[0] in {"show", "cancel", "retry", "list"} else []
    assert cli.main([*words, *where]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("sagacity: ")


class Forgetful:
    """The client of a cluster in which every saga is past retention."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.asked: list[str] = []

    def __enter__(self) -> "Forgetful":
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.clear()

    def show(self, saga_id: str) -> dict[str, object]:
        self.asked.append(saga_id)
        raise Conflict("id was used; its outcome is no longer kept")


@pytest.mark.parametrize("json_wanted", [False, True])
def test_what_is_past_retention_is_explained(
    json_wanted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit code 4 and one line for scripts; for people what is true of it now. No page is made."""
    monkeypatch.setattr(commands, "Client", Forgetful)
    page = tmp_path / "page.html"
    words = ["show", "x", "--html", str(page), *NOWHERE, *(["--json"] if json_wanted else [])]
    assert cli.main(words) == 4
    said = capfd.readouterr()
    assert [json.loads(line)["code"] for line in said.out.splitlines()] == [22] * json_wanted
    assert "completed or aborted, longer ago than outcomes are kept" in said.err
    assert "The id never runs again" in said.err
    assert not page.exists()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--html", "there.html"], "exists already"),
        (["--html", "missing/page.html"], "no folder that can be written to"),
        (["--html", "."], "is a folder"),
        (["--force"], "there is none"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_asked(
    flags: list[str],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nothing is connected to, nothing is overwritten."""
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("mine")
    assert cli.main(["show", "x", *flags, *NOWHERE]) == 2
    assert why in capfd.readouterr().err
    assert Path("there.html").read_text() == "mine"


def test_an_audit_makes_no_directory(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert cli.main(["audit", "--data", str(missing)]) == 2
    assert not missing.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["top"],
        ["top", "--once"],
        CHECKOUT,
        ["show", "x"],
        ["audit"],
        ["list"],
        ["retry", "x", "--reason", "r"],
    ],
)
def test_without_a_cluster_it_says_how_to_start_one(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == 5
    assert "start one with: sagacity up" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list", "--limit", "0"], 12),
        (["list", "--status", "nonsense"], 12),
        (["list"], 11),
        (["top", "--once"], 11),
        (["top", "--connect", "\udcff"], 12),
        (["retry", "a b", "--reason", "r"], 12),
        (["journal", "verify", "--data", "/nonexistent"], 12),
        (["config", "show", "--config", "/nonexistent.toml"], 12),
        (["audit", "--data", "/nonexistent"], 12),
    ],
)
def test_with_json_an_error_is_its_body(
    words: list[str], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, whatever happened."""
    assert cli.main([*words, "--json"]) == {12: 2, 11: 5}[code]
    [line] = capfd.readouterr().out.splitlines()
    assert json.loads(line)["code"] == code


def test_the_configuration_is_shown_with_the_source_of_each_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """SPEC 6: built-in < file < environment."""
    file = tmp_path / "own.toml"
    file.write_text("[saga]\nattempts = 7\nstuck_after = 8\n")
    monkeypatch.setenv("SAGACITY_SAGA__STUCK_AFTER", "9")
    assert cli.main(["config", "show", "--config", str(file), "--json"]) == 0
    keys = json.loads(capfd.readouterr().out)["keys"]
    assert keys["saga.attempts"] == {"value": 7, "source": f"file {file}"}
    assert keys["saga.stuck_after"] == {
        "value": 9,
        "source": "environment SAGACITY_SAGA__STUCK_AFTER",
    }
    assert keys["cluster.shards"] == {"value": 2, "source": "built-in"}
    assert set(keys) == {
        f"{name}.{key}" for name, kind in SECTIONS.items() for key in kind.__struct_fields__
    }
    assert cli.main(["config", "show", "--config", str(file)]) == 0
    assert f"file {file}" in capfd.readouterr().out


def test_every_fault_of_a_configuration_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who mends one after the other starts three times."""
    file = tmp_path / "own.toml"
    file.write_text("[saga]\natempts = 7\nstuck_after = 0\n[nonsense]\n")
    monkeypatch.setenv("SAGACITY_SHARD__INFLIGHT_MAX", "many")
    assert cli.main(["config", "show", "--config", str(file)]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert "4 faults in the configuration" in said.err
    for word in ("saga.atempts", "saga.stuck_after", "[nonsense]", "shard.inflight_max"):
        assert word in said.err


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


def test_a_stdout_that_takes_nothing_is_said_in_a_sentence() -> None:
    """A full disk behind `sagacity … > file`: exit 1, for the outcome is not told; no traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cluster", "config", "show"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "sagacity: cannot write: No space left on device\n",
    )


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_the_exit_code_stands_where_stderr_takes_nothing(redirection: str) -> None:
    """Talk is talk: what was asked for is done, and its end is told, where nobody hears it."""
    command = [sys.executable, "-P", "-m", "cluster", *CHECKOUT, "--connect", "bogus"]
    shell = ["/bin/sh", "-c", f'"$@" {redirection}', "sh"]
    assert subprocess.run([*shell, *command], timeout=30, check=False).returncode == 2
