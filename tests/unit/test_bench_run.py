"""`sagacity bench run` without a cluster: its options, its result file, where it may run."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import __main__ as bench
from bench import place, probe, report, result, run
from bench.result import Machine, Percentiles, Result
from cluster import cli
from sagacity.errors import Malformed

MACHINE = Machine("cpu", 2, 8192, "6.1", "3.11", 0.5, 50.0)

# What scripts read, as the promise has it.
KEYS = """
    sagas_per_second goodput_per_second wall_seconds latency_ms completed aborted refused errors
    balanced cpu_us_per_saga peak_rss_mb fsyncs_per_saga commits entries_per_commit data_fs version
    commit machine settings
""".split()  # noqa: SIM905 - a list of words


def some(**changed: Any) -> Result:
    found = Result(
        sagas_per_second=100.0,
        goodput_per_second=99.0,
        wall_seconds=2.0,
        latency_ms=Percentiles(1.0, 2.0, 3.0, 4.0, 5.0),
        completed=180,
        aborted=20,
        balanced=True,
        cpu_us_per_saga={"client": 8.0, "total": 120.0},
        peak_rss_mb={"shard-0": 40.0},
        fsyncs_per_saga=0.5,
        commits=10,
        entries_per_commit=20.0,
        data_fs="ext4",
        version="1",
        commit="abc",
        machine=MACHINE,
        settings={"loop": "closed", "in_flight": 8, "generators": 1, "shards": 2},
    )
    return msgspec.structs.replace(found, **changed)


def test_the_file_has_every_key_that_is_promised_also_where_nothing_was_measured() -> None:
    """A script that finds a key missing cannot tell a fault from an older version."""
    bare = some(fsyncs_per_saga=None, commits=None, entries_per_commit=None, data_fs=None)
    for found in (some(), bare):
        told = json.loads(found.json())
        assert set(KEYS) <= set(told)
        assert list(told["latency_ms"]) == ["p50", "p90", "p99", "p999", "max"]


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Reports are made from files alone."""
    file = tmp_path / "r.json"
    result.write(some(), file)
    assert result.read(file) == some()
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"sagas_per_second": "fast"}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: bytes) -> None:
    """A comparison with half a file would compare nothing."""
    file = tmp_path / "r.json"
    file.write_bytes(text)
    with pytest.raises(Malformed, match="holds no result"):
        result.read(file)


def test_a_partial_run_and_missing_figures_are_said_to_people(tmp_path: Path) -> None:
    """The table is what is pasted into a message; it must not look like a whole run."""
    told = report.text(
        some(partial=True, partial_why="interrupted", commits=None, balanced=None, notes=["why"])
    )
    for words in ("PARTIAL", "interrupted", "no figure", "not audited", "why"):
        assert words in told


@pytest.mark.parametrize(
    ("found", "code", "written"),
    [
        (some(), 0, True),
        (some(partial=True, partial_why="the cluster went away", balanced=None), 1, True),
        (some(completed=0, aborted=0), 1, True),
        (some(balanced=False, faults=["stock of abc123"]), 1, False),
        ("a generator has ended", 1, False),
    ],
)
def test_the_exit_code_says_whether_there_is_a_result(
    found: Result | str, code: int, written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that reads figures of a run that is none would believe them."""
    monkeypatch.setattr(run, "measure", lambda _asked, _interrupts: found)
    file = tmp_path / "r.json"
    assert bench.main(["run", "--json", str(file)]) == code
    assert file.exists() is written


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--in-flight", "0"], "--in-flight is 1 to"),
        (["--rate", "0"], "--rate is 0.001 to"),
        (["--rate", "nan"], "--rate is"),
        (["--sagas", "0"], "--sagas is 1 to"),
        (["--duration", "0"], "--duration is"),
        (["--duration", "5 parsecs"], "a time is like"),
        (["--warm-up", "-1"], "--warm-up"),
        (["--rate", "5", "--in-flight", "5"], "not allowed with"),
        (["--arrivals", "poisson"], "needs --rate"),
        (["--generators", "3", "--in-flight", "2"], "more than are in flight"),
        (["--decline", "90", "--no-carrier", "11"], "an impossible mix"),
        (["--decline", "ten"], "invalid float value"),
        (["--connect", "ipc:///x", "--shards", "4"], "--shards is of a cluster of its own"),
        (["--connect", "ipc:///x", "--data", "d"], "not allowed with"),
        (["--force"], "--force"),
        (["--json", "/no/such/folder/r.json"], "no folder that can be written to"),
        (["--json", "/"], "is a folder"),
        (["--data", "/dev/shm/bench"], "is on tmpfs"),
        (["--infl", "5"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_refused_with_words_before_anything_starts(
    words: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and no cluster, no file, no figure."""
    if "/dev/shm/bench" in words and place.file_system(Path("/dev/shm")) != "tmpfs":
        words, says = ["--rate", "-1"], "--rate"  # this machine has no memory file system there
    assert bench.main(["run", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err


def test_a_result_file_that_exists_is_left_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Yesterday's figures cannot be measured again."""
    file = tmp_path / "r.json"
    file.write_text("yesterday's")
    assert bench.main(["run", "--json", str(file), "--sagas", "1"]) == 2
    assert file.read_text() == "yesterday's"
    assert "exists already" in capfd.readouterr().err
    result.require_new(file, force=True)


def test_a_cluster_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before load is made, not after an hour of errors."""
    monkeypatch.setattr(run, "_PATIENCE_S", 0.1)
    assert bench.main(["run", "--connect", "ipc:///nonexistent/router.sock"]) == 5
    assert "no connection" in capfd.readouterr().err


def test_the_command_line_hands_over_to_the_benches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sagacity bench` is one command among the others; its words are the benches' own."""
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: ran.append(words))
    cli.main(["bench", "run", "--rate", "5", "--json", "x", "--help"])
    assert [words[1:] for words in ran] == [
        ["-P", "-m", "bench", "run", "--rate", "5", "--json", "x", "--help"]
    ]


MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/vdb /tmp/on\\040disk xfs rw 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdc /run ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "ext4"),
        ("/tmp/x", "tmpfs"),
        ("/tmp/on disk/x", "xfs"),
        ("/tmpx", "ext4"),
        ("/run/x", "ext4"),  # of two at one place the later one is seen
    ],
)
def test_the_file_system_of_a_directory_is_told_though_it_does_not_exist(
    path: str, kind: str
) -> None:
    """It is refused before it is made."""
    assert place.file_system(Path(path), MOUNTS) == kind


def test_a_directory_in_memory_is_refused() -> None:
    """A sync that syncs nothing makes every figure a lie."""
    with pytest.raises(Malformed, match="on tmpfs"):
        place.require_disk(Path("/tmp/x"), MOUNTS)
    assert place.require_disk(Path("/home/x"), MOUNTS) == "ext4"


def test_the_clock_of_another_process_is_read_and_its_end_is_no_fault() -> None:
    """CPU by role is read from outside, whatever ends meanwhile."""
    own = probe.cpu_ns(os.getpid())
    assert own is not None
    assert own > 1_000_000
    assert probe.peak_rss_mb(os.getpid()) > 5
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert probe.cpu_ns(child) is None
    assert probe.peak_rss_mb(child) == 0.0


def test_a_pid_that_is_another_programs_is_not_counted() -> None:
    """`status` of a cluster elsewhere names pids that mean something else here."""
    seen = probe.Probe()
    seen.look([{"pid": os.getpid(), "role": "shard", "index": 0}], begin=True)
    assert seen.lost == {"shard-0"}
    assert seen.cpu_ns() == {}
