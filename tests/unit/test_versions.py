"""Versions known to be bad: what is refused, and that every process looks first of all."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sagacity.errors import Malformed
from sagacity.versions import KNOWN_BAD, refuse_known_bad
from tests.architecture.floors import ROOT

GOOD = {"msgpack": "1.2.1", "libzmq": "4.3.3", "SQLite": "3.51.3"}
OURS = {
    "msgpack": "sagacity.wire.MSGPACK_VERSION",
    "libzmq": "sagacity.sockets.LIBZMQ_VERSION",
    "SQLite": "apsw.sqlite_lib_version",
}
PROGRAMS = {
    "up": ("cluster.cli", ["up"], ("libzmq", "msgpack")),
    "router": ("router", [], ("libzmq", "msgpack")),
    "shard": ("shard.process", ["--index", "0"], ("libzmq", "msgpack", "SQLite")),
    "worker": ("services.pool", ["--service", "payment", "--index", "0"], tuple(GOOD)),
}


@pytest.mark.parametrize(
    ("name", "version"),
    [
        *(("msgpack", bad) for bad in ("1.2.0", "1.1.2", "0.6.2", "1.2.0rc1")),
        *(("libzmq", bad) for bad in ("4.3.2", "4.2.5", "2.2.0")),
        *(("SQLite", bad) for bad in ("3.51.2", "3.51", "3.40.1", "3.7.0", "3.6.23.1")),
    ],
)
def test_a_version_that_is_known_to_be_bad_is_refused_in_a_sentence(
    name: str, version: str
) -> None:
    """What is wrong with it, from where on it is right, what to type."""
    with pytest.raises(Malformed) as refused:
        refuse_known_bad({**GOOD, name: version})
    text = refused.value.text
    assert text.startswith(f"{name} {version} is refused, {GOOD[name]} or newer is needed")
    assert text.endswith(f"pip install --upgrade {KNOWN_BAD[name].package}")


@pytest.mark.parametrize(
    ("name", "version"),
    [
        *(("msgpack", good) for good in ("1.2.1", "1.2.2", "1.10.0", "2.0.0")),
        *(("libzmq", good) for good in ("4.3.3", "4.3.5", "4.10.0", "5.0")),
        *(("SQLite", good) for good in ("3.51.3", "3.52.0", "3.100.0", "4.0.0")),
    ],
)
def test_a_version_that_is_mended_is_taken(name: str, version: str) -> None:
    """Numbers are compared as numbers: 1.10 is newer than 1.2."""
    refuse_known_bad({**GOOD, name: version})


def test_all_bad_versions_are_named_at_once() -> None:
    """Who mends one must not find the next one then."""
    with pytest.raises(Malformed, match=r"msgpack 1.0.0 .*; .*SQLite 3.40.1 "):
        refuse_known_bad({"msgpack": "1.0.0", "SQLite": "3.40.1"})


def test_what_is_no_version_is_refused() -> None:
    """What cannot be judged is not taken for good."""
    with pytest.raises(Malformed, match="cannot be compared"):
        refuse_known_bad({"SQLite": "trunk"})


def test_the_versions_here_are_good_and_the_package_asks_for_no_worse() -> None:
    """What pip installs by pyproject.toml must start."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = dict(line.split(">=") for line in asked)
    refuse_known_bad({"msgpack": lowest["msgpack"], "SQLite": lowest["apsw"]})


@pytest.mark.parametrize(
    ("program", "name"),
    [(program, name) for program, (_, _, names) in PROGRAMS.items() for name in names],
)
def test_each_process_refuses_a_bad_version_before_it_makes_anything(
    tmp_path: Path, program: str, name: str
) -> None:
    """The number alone is a twin; the process is the real one. Exit 2, no traceback, no file."""
    module, words, _ = PROGRAMS[program]
    data = tmp_path / "data"
    argv = [*words, "--data", str(data)]
    if program != "up":
        argv += ["--run", str(tmp_path / "run")]
    place, _, attribute = OURS[name].rpartition(".")
    bad = "0.1.0" if name != "SQLite" else "3.40.1"
    said = repr(bad) if name != "SQLite" else f"lambda: {bad!r}"
    code = (
        f"import sys, {place}\n{place}.{attribute} = {said}\n"
        f"from {module} import main\nsys.exit(main({argv!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "SAGACITY_LOG": "error"},
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"{name} {bad} is refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
