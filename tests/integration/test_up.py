"""`sagacity up` and private clusters, with the real processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from msgspec.structs import replace

from cluster.directory import DataDirectory, find_running, running
from cluster.private import ClusterProcess, start_private
from sagacity.client import Client
from sagacity.errors import Conflict, Malformed, NotTaken
from tests.integration.test_supervisor import is_gone, wait_until
from tests.unit.world import order

UP = [sys.executable, "-P", "-m", "cluster", "up"]


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def env(base: Path) -> dict[str, str]:
    """An environment in which no other cluster of this user runs."""
    (base / "runtime").mkdir(mode=0o700)
    return {**os.environ, "XDG_RUNTIME_DIR": str(base / "runtime"), "SAGACITY_LOG": "warning"}


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


class Up:
    """A cluster that `sagacity up` runs, as a person would have started it.

    Where its test fails before `stop`, it is killed at the end of the block: nothing is left.
    """

    def __init__(self, data: Path, env: dict[str, str], *flags: str) -> None:
        self.process = subprocess.Popen(
            [*UP, "--json", "--data", str(data), *flags],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        try:
            self.line = self.process.stdout.readline()
            self.said: dict[str, Any] = json.loads(self.line)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # its children end with it
        err = self.process.communicate()[1]
        sys.stderr.write(err)  # shown where a test fails

    def stop(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def up(base: Path, env: dict[str, str]) -> Iterator[Up]:
    """One cluster for the tests that only look: TCP, three shards, one worker each."""
    port = str(free_port())
    with Up(base / "data", env, "--shards", "3", "--workers", "1", "--port", port) as started:
        yield started
        code, out, _ = started.stop(signal.SIGINT)
    assert (code, out) == (0, ""), "one line, once"
    assert running(env) == []


def refused(env: dict[str, str], *flags: str) -> tuple[int, str]:
    """Run an `up` that must not start; give its exit code and what it says."""
    done = subprocess.run(
        [*UP, *flags], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def processes_of(url: str) -> list[dict[str, Any]]:
    with Client(url, timeout_s=10) as client:
        found: list[dict[str, Any]] = client.status()["processes"]
        return found


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_one_line_says_that_it_serves(up: Up, base: Path) -> None:
    """SPEC 6, for scripts: these keys, in this order."""
    assert list(up.said) == ["ready", "router", "metrics", "data", "pid"]
    assert up.said["ready"] is True
    assert up.said["router"].startswith("tcp://127.0.0.1:")
    assert up.said["data"] == str(base / "data")
    assert up.said["pid"] == up.process.pid


def test_a_checkout_goes_through_and_status_names_every_process(up: Up) -> None:
    """The cluster serves when it says so: no retry is needed."""
    with Client(up.said["router"], timeout_s=10) as client:
        done = client.checkout(
            user_id="u42", items=[{"sku": "abc123", "quantity": 1}], shipping_address="1 Main St"
        )
    assert done["status"] == "COMPLETED"
    places = [("supervisor", 0), ("router", 0), ("shard", 0), ("shard", 1), ("shard", 2)]
    places += [("inventory", 0), ("payment", 0), ("shipping", 0), ("auditor", 0)]

    def states() -> dict[tuple[str, int], str]:
        rows = processes_of(up.said["router"])
        return {(row["role"], row["index"]): row["state"] for row in rows}

    # The auditor starts when the cluster serves.
    assert wait_until(lambda: states() == dict.fromkeys(places, "up"), 10), states()


def test_service_discovery_names_every_process_and_each_serves_metrics(up: Up) -> None:
    """SPEC 7: Prometheus finds all of them through /sd."""
    beside = up.said["metrics"].rsplit("/", 1)[0]
    assert wait_until(lambda: len(json.loads(get(f"{beside}/sd")[1])) == 9, 10)  # the auditor, too
    code, text = get(f"{beside}/sd")
    found = json.loads(text)
    labels = [frozenset(each["labels"].items()) for each in found]
    assert code == 200
    assert len(found) == len(set(labels)) == 9
    assert frozenset({("role", "shard"), ("shard", "2")}) in labels
    assert frozenset({("role", "auditor")}) in labels
    assert frozenset({("role", "worker"), ("service", "payment"), ("index", "0")}) in labels
    for each in found:
        code, text = get(f"http://{each['targets'][0]}/metrics")
        assert code == 200
        assert b"saga_build_info{" in text
    assert get(f"{beside}/healthz") == (200, b"ready\n")
    assert get(f"{beside}/elsewhere")[0] == 404


def test_a_second_up_is_refused_and_names_the_first(up: Up, env: dict[str, str]) -> None:
    """D12: one directory, one supervisor."""
    code, said = refused(env, "--data", up.said["data"], "--metrics-port", str(free_port()))
    assert code == 4
    assert f"process {up.said['pid']}" in said


def test_commands_find_the_cluster_of_this_user(up: Up, env: dict[str, str]) -> None:
    """Without --connect and SAGACITY_URL; another user's runtime directory has none."""
    assert find_running(env) == up.said["router"]
    with pytest.raises(NotTaken):
        find_running({**env, "XDG_RUNTIME_DIR": up.said["data"]})


def test_a_taken_port_is_refused_before_anything_is_written(
    up: Up, base: Path, env: dict[str, str]
) -> None:
    """The router's port and a metrics port that was asked for: exit 2."""
    taken = up.said["router"].rsplit(":", 1)[1]
    metrics = up.said["metrics"].split(":")[2].split("/")[0]
    for flags, port in (
        (("--port", taken), taken),
        (("--metrics-port", metrics), metrics),
        (("--metrics-port", taken), taken),
    ):
        code, said = refused(env, "--data", str(base / "never"), *flags)
        assert code == 2
        assert f"port {port}" in said
    assert not (base / "never").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--port", "0"), "a port is 1..65535"),
        (("--port", "65536"), "a port is 1..65535"),
        (("--port", "x"), "--port"),
        (("--shards", "0"), "cluster.shards"),
        (("--shards", "1025"), "cluster.shards"),
        (("--workers", "0"), "services.workers"),
        (("--config", "/none.toml"), "cannot read"),
        (("--data", "/dev/null/x"), "Not a directory"),
        (("--data", "/dev/null"), "Not a directory"),
        (("--data", "a\x07b"), "supervisor.data"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    base: Path, env: dict[str, str], flags: Sequence[str], says: str
) -> None:
    """SPEC 4: exit 2, the reason on stderr, nothing half-written, no traceback."""
    code, said = refused(env, "--data", str(base / "never"), *flags)
    assert code == 2, said
    assert says in said
    assert "Traceback" not in said
    assert not (base / "never").exists()


POOLS = (
    '{{inventory = "services.inventory:service", payment = "{payment}:service",'
    ' shipping = "services.shipping:service"}}'
)


@pytest.mark.parametrize(
    ("key", "value", "says", "made"),
    [
        ("CLUSTER__CATALOG", "/none.toml", "cannot read /none.toml", False),
        ("LOG", "bogus", "SAGACITY_LOG is one of", False),
        ("CLUSTER__SAGAS", '["nowhere:saga"]', "nowhere", False),
        ("CLUSTER__SAGAS", '["services.payment:service"]', "is no Saga", False),
        ("SERVICES__POOLS", '{payment = "nowhere:service"}', "needs a service 'inventory'", False),
        ("SERVICES__POOLS", POOLS.format(payment="nowhere"), "services.pools.payment", True),
    ],
)
def test_a_wrong_place_in_the_configuration_ends_up_instead_of_a_loop(
    base: Path, env: dict[str, str], key: str, value: str, says: str, made: bool
) -> None:
    """Exit 2 and the words of who found it; what `up` can see itself is seen first."""
    data = base / f"wrong-{key}"
    code, said = refused({**env, f"SAGACITY_{key}": value}, "--data", str(data))
    assert code == 2, said
    assert says in said
    assert "Traceback" not in said
    assert data.exists() == made
    assert str(data) not in [found.data for found in running(env)]


def test_the_demo_ends_quietly_when_nobody_reads_on(env: dict[str, str]) -> None:
    """`make demo | head -3`: no traceback, and no cluster is left."""
    demo = subprocess.Popen(
        [sys.executable, "-P", "-m", "cluster.demo"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        assert demo.stdout.readline().startswith(b"Starting")
        demo.stdout.close()
        said = demo.stderr.read()
        assert demo.wait(30) == 0
    assert said == b""
    assert [found for found in running(env) if found.kind == "private"] == []


def test_another_number_of_shards_is_refused_but_only_if_it_was_asked_for(
    base: Path, env: dict[str, str]
) -> None:
    """A12; who does not say a number gets the directory's."""
    data = DataDirectory(base / "one")
    made = data.open_or_create(1, sagas=[("checkout", 1)])
    asked = {**env, "SAGACITY_CLUSTER__SHARDS": "3"}
    for flags, environment in ((("--shards", "2"), env), ((), asked)):
        code, said = refused(environment, "--data", str(data.path), *flags)
        assert code == 4
        assert "holds 1 shards, asked for" in said
    with Up(data.path, env, "--workers", "1") as started:
        rows = processes_of(started.said["router"])
        assert [row["role"] for row in rows].count("shard") == 1
        found = data.read()
        assert replace(found, made=()) == replace(made, sagas=(("checkout", 1),))
        assert found.made[-1] == "shard-0/journal.db", "what it has begun it will miss"
        assert started.stop(signal.SIGTERM)[0] == 0


def test_a_taken_default_metrics_port_gives_way_and_says_so(
    base: Path, env: dict[str, str]
) -> None:
    """SPEC 6: taken and not asked for: a free one, said on stderr."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", 9464))
            holder.listen()
        except OSError:
            pass  # somebody else has it: as good
        with Up(base / "default-port", env, "--shards", "1", "--workers", "1") as started:
            code, _, err = started.stop(signal.SIGTERM)
    port = started.said["metrics"].split(":")[2].split("/")[0]
    assert code == 0
    assert port != "9464"
    assert f"port 9464 is taken: metrics are on port {port}" in err


def test_all_end_with_a_killed_supervisor_and_come_back_at_the_same_address(
    base: Path, env: dict[str, str]
) -> None:
    """kill -9: nobody is left after 2 s; clients of before find the cluster again."""
    data = base / "killed"
    flags = ["--shards", "1", "--workers", "2"]
    with start_private(data, arguments=flags, env=env) as first:
        pids = [row["pid"] for row in processes_of(first.url)]
        assert len(pids) == 9
        first.process.kill()
        assert wait_until(lambda: all(is_gone(pid) for pid in pids), 2.0)
    assert first.stop() == -9
    with start_private(data, arguments=flags, env=env) as again:
        assert again.url == first.url
        assert len(processes_of(again.url)) == 9
    assert again.stop() == 0


def test_a_private_cluster_ends_with_its_owner_and_takes_its_directory_along(
    env: dict[str, str],
) -> None:
    """A killed Maelstrom node or test must leave nothing: no process, no file."""
    program = (
        "import os, signal, json\n"
        "from cluster.private import start_private\n"
        "from sagacity.client import Client\n"
        "cluster = start_private(arguments=['--shards', '1', '--workers', '1'])\n"
        "with Client(cluster.url) as client: rows = client.status()['processes']\n"
        "print(json.dumps([str(cluster.data), [row['pid'] for row in rows]]), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    owner = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=env,
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert owner.returncode == -9
    data, pids = json.loads(owner.stdout)
    assert len(pids) == 6
    assert wait_until(lambda: all(is_gone(pid) for pid in pids), 10.0)
    assert not Path(data).exists()


def test_a_private_cluster_that_cannot_start_says_why(base: Path, env: dict[str, str]) -> None:
    """The one error table, through another process."""
    data = DataDirectory(base / "two")
    data.open_or_create(2)
    with pytest.raises(Conflict, match="exit code 4"):
        start_private(data.path, arguments=["--shards", "1"], stderr=subprocess.DEVNULL)
    with pytest.raises(Malformed, match="exit code 2"):
        start_private(arguments=["--workers", "0"], stderr=subprocess.DEVNULL)


def test_a_private_cluster_is_started_without_waiting_and_found_by_nobody_else(
    base: Path, env: dict[str, str]
) -> None:
    """The Maelstrom node answers `init` long before the cluster serves."""
    flags = ["--shards", "1", "--workers", "1"]
    (base / "own").mkdir(mode=0o700)
    env = {**env, "XDG_RUNTIME_DIR": str(base / "own")}
    with ClusterProcess(arguments=flags, env=env) as cluster:
        assert not cluster.ready
        assert not cluster.read_ready()
        cluster.wait_ready()
        assert cluster.read_ready()
        assert cluster.ready
        assert [found.kind for found in running(env)] == ["private"]
        with pytest.raises(NotTaken):
            find_running(env)
        run = Path(cluster.url.removeprefix("ipc://")).parent
        assert run.is_dir()
    assert not cluster.data.exists()
    assert not run.exists()


def with_an_old_copy(data: Path, env: dict[str, str], name: str) -> None:
    """Have a cluster buy, copy one of its files, have it buy more, and put the copy back."""
    file = data / name
    for index in range(2):
        with Up(data, env, "--shards", "1", "--workers", "1") as started:
            with Client(started.said["router"], timeout_s=15) as client:
                assert client.start(order(f"{file.stem}-{index}"))["status"] == "COMPLETED"
            assert started.stop(signal.SIGTERM)[0] == 0
        if index == 0:
            yesterday = file.read_bytes()
    file.write_bytes(yesterday)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("shard-0/journal.db", "the journal of shard 0 is old"),
        ("services/payment.db", "the database of payment is old"),
    ],
)
def test_an_old_copy_is_refused_until_the_loss_is_accepted(
    base: Path, env: dict[str, str], name: str, says: str
) -> None:
    """D11, end to end: named and untouched, however often; then it runs, and audit can be asked."""
    data = base / f"copy-{Path(name).stem}"
    with_an_old_copy(data, env, name)
    before = (data / "shard-0" / "journal.db").read_bytes()
    for _ in range(2):
        code, said = refused(env, "--data", str(data), "--workers", "1")
        assert code == 2, said
        assert says in said
        assert (data / "shard-0" / "journal.db").read_bytes() == before
    with Up(data, env, "--workers", "1", "--accept-data-loss") as started:
        router = started.said["router"]
        with Client(router, timeout_s=15) as client:
            assert client.start(order("after"))["status"] == "COMPLETED"
        asked = subprocess.run(
            [sys.executable, "-P", "-m", "cluster", "audit", "--json", "--connect", router],
            env=env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert asked.returncode == 12, "what was lost shows in the books"
        assert json.loads(asked.stdout)["faults"]
        assert started.stop(signal.SIGTERM)[0] == 0
    with Up(data, env, "--workers", "1") as started:  # once is enough
        assert started.stop(signal.SIGTERM)[0] == 0


def test_lost_files_are_made_anew_once_that_is_accepted(base: Path, env: dict[str, str]) -> None:
    """What is lost is lost knowingly: the cluster serves, under numbers that nobody has seen."""
    data = base / "lost"
    for flag, saga_id in (("--json", "before"), ("--accept-data-loss", "after")):
        with Up(data, env, "--workers", "1", "--shards", "1", flag) as started:
            with Client(started.said["router"], timeout_s=15) as client:
                assert client.start(order(saga_id))["status"] == "COMPLETED"
            assert started.stop(signal.SIGTERM)[0] == 0
        for name in ("shard-0/journal.db", "services/payment.db"):
            (data / name).unlink()


VERSIONS = """
from msgspec.structs import replace
from services.checkout import checkout
second = replace(checkout, version=2)
"""


def test_a_new_version_of_a_saga_runs_once_those_of_before_have_ended(
    base: Path, env: dict[str, str]
) -> None:
    """Else an upgrade would need a new directory. What has ended answers as ever."""
    data, place = base / "versions", base / "place"
    place.mkdir()
    (place / "shop.py").write_text(VERSIONS)
    newer = {
        **env,
        "PYTHONPATH": str(place),
        "SAGACITY_CLUSTER__SAGAS": '["shop:second"]',
        "SAGACITY_SUPERVISOR__DRAIN_MS": "0",
    }
    flags = ("--workers", "1", "--shards", "1")
    with Up(data, env, *flags) as started:
        with Client(started.said["router"], timeout_s=15) as client:
            first = client.start(order("first"))
        assert started.stop(signal.SIGTERM)[0] == 0
    with Up(data, newer, *flags) as started:
        with Client(started.said["router"], timeout_s=15) as client:
            assert client.start(order("first")) == first
            assert client.start(order("second"))["status"] == "COMPLETED"
            client.submit(order("slow", user_id="u_slow_2s"))
        assert DataDirectory(data).read().sagas == (("checkout", 2),)
        assert started.stop(signal.SIGTERM)[0] == 0
    code, said = refused(env, "--data", str(data), *flags)
    assert (code, "1 saga of checkout version 2 that has not ended" in said) == (2, True), said
