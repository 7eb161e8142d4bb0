"""The data directory and the run directory: made whole, refused clearly, found again."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.directory import (
    SOCKET_PATH_MAX,
    DataDirectory,
    RunDirectory,
    Running,
    find_running,
    running,
)
from sagacity.errors import Conflict, Malformed, NotTaken, SagacityError
from sagacity.slots import SlotMap

ID = "0123456789abcdef0123456789abcdef"
OTHER_ID = "fedcba9876543210fedcba9876543210"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def snapshot(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "lock"
    }


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Root may write anywhere, whatever the modes say."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An XDG_RUNTIME_DIR of this test's own, short enough for sockets."""
    base = tempfile.mkdtemp(prefix="sg-")
    yield {"XDG_RUNTIME_DIR": base}
    shutil.rmtree(base)


def test_a_new_directory_holds_a_cluster_that_is_the_same_at_each_opening(tmp_path: Path) -> None:
    """Cluster id and slot map are given once: witnesses and services compare them for ever."""
    directory = DataDirectory(tmp_path / "deep" / "er")
    with_lock = directory.lock()
    made = directory.open_or_create(3)
    assert made.shards == 3
    assert made.slots == SlotMap.even(3)
    assert len(made.cluster_id) == 32
    assert directory.open_or_create(3) == made
    assert DataDirectory(directory.path).read() == made
    assert mode(directory.path) == 0o700
    assert mode(directory.path / "cluster.json") == 0o600
    assert mode(directory.shard(2)) == 0o700
    assert directory.service("inventory").parent.is_dir()
    with_lock.release()


def test_two_directories_are_two_clusters(tmp_path: Path) -> None:
    """A worker of one must never serve the other."""
    one = DataDirectory(tmp_path / "one").open_or_create(1)
    other = DataDirectory(tmp_path / "other").open_or_create(1)
    assert one.cluster_id != other.cluster_id


def test_another_number_of_shards_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    """A12: sagas would be looked for in the wrong journal."""
    directory = DataDirectory(tmp_path)
    directory.open_or_create(2)
    before = snapshot(tmp_path)
    with pytest.raises(Conflict, match="holds 2 shards, asked for 3") as refused:
        directory.open_or_create(3)
    assert refused.value.exit_code == 4
    assert directory.open_or_create(3, insist=False).shards == 2
    assert snapshot(tmp_path) == before


def test_a_directory_is_not_served_without_the_sagas_that_it_holds(tmp_path: Path) -> None:
    """SPEC 6: its journals could not be read; new sagas are welcome and kept in mind."""
    directory = DataDirectory(tmp_path / "data")
    assert directory.open_or_create(1, sagas=[("checkout", 1)]).sagas == (("checkout", 1),)
    both = [("transfer", 2), ("checkout", 1)]
    assert directory.open_or_create(1, sagas=both).sagas == (("checkout", 1),)
    directory.name(both)
    assert directory.read().sagas == (("checkout", 1), ("transfer", 2))
    before = (directory.path / "cluster.json").read_bytes()
    for lacking in ([("checkout", 1)], []):
        with pytest.raises(Conflict, match=r"holds sagas of .*transfer, which") as refused:
            directory.open_or_create(1, sagas=lacking)
        assert refused.value.exit_code == 4
    newer = [("checkout", 1), ("transfer", 3)]  # of before one may run: each shard sees for itself
    assert directory.open_or_create(1, sagas=newer).sagas == (("checkout", 1), ("transfer", 2))
    assert (directory.path / "cluster.json").read_bytes() == before
    assert len(directory.open_or_create(1).sagas) == 2


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_file_that_was_made_is_missed(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    """D11: in place of a lost journal a new one would give old numbers to new sagas."""
    directory = DataDirectory(tmp_path / "data")
    directory.open_or_create(2, sagas=[("checkout", 1)])
    journal, other = directory.journal(0), directory.service("payment")
    directory.require(journal)  # nobody has made it
    journal.write_bytes(b"facts")
    directory.note(journal)
    directory.require(journal)
    directory.require(other)
    assert directory.open_or_create(2, sagas=[("checkout", 1)]).made == ("shard-0/journal.db",)
    harm(journal)
    with pytest.raises(
        Malformed, match=r"has served with it: restore .* --accept-data-loss"
    ) as why:
        directory.require(journal)
    assert str(journal) in why.value.text


def test_processes_that_note_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """Each notes its own file at the first start, and all start together."""
    directory = DataDirectory(tmp_path / "data")
    directory.open_or_create(20)
    files = [directory.journal(index) for index in range(20)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(directory.note, files))
    assert len(directory.read().made) == 20
    before = (directory.path / "cluster.json").stat()
    directory.note(files[7])
    assert (directory.path / "cluster.json").stat() == before, "it is noted once"


@pytest.mark.parametrize("shards", [0, -1, 1025])
def test_an_impossible_number_of_shards_writes_nothing(tmp_path: Path, shards: int) -> None:
    """Limits hold before anything is written."""
    with pytest.raises(Malformed, match=r"shards is an integer 1\.\.1024"):
        DataDirectory(tmp_path / "new").open_or_create(shards)
    assert not (tmp_path / "new").exists()


def cut(upto: int) -> Callable[[bytes], bytes]:
    return lambda text: text[:upto]


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut(0), "damaged"),
        (cut(1), "damaged"),
        (cut(1_000), "damaged"),
        (replaced(b"{", b"\xff{"), "damaged"),
        (replaced(b'{"', b'[{"'), "damaged"),
        (replaced(b'"format":1', b'"format":2'), "has format 2; this version reads 1"),
        (replaced(b'"format":1', b'"format":"1"'), "damaged"),
        (replaced(b'"shards":2', b'"shards":0'), "damaged"),
        (replaced(b'"shards":2', b'"shards":true'), "damaged"),
        (replaced(b'"shards":2', b'"shards":1'), "belongs to shard 1"),
        (replaced(b'"slots":[0,', b'"slots":['), "damaged"),
        (replaced(b'"slots":[0,', b'"slots":[-1,'), "damaged"),
        (replaced(b'"cluster_id":"', b'"cluster_id":"x'), "damaged"),
        (replaced(b'"format":1', b'"format":1,"new":1'), "damaged"),
    ],
)
def test_a_damaged_cluster_file_is_refused_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    """To make a new cluster over it would run finished checkouts twice."""
    directory = DataDirectory(tmp_path)
    directory.open_or_create(2)
    file = tmp_path / "cluster.json"
    file.write_bytes(damage(file.read_bytes()))
    before = snapshot(tmp_path)
    uses: list[Callable[[], object]] = [lambda: directory.open_or_create(2), directory.read]
    for use in uses:
        with pytest.raises(Malformed, match=says) as refused:
            use()
        assert refused.value.exit_code == 2
    assert snapshot(tmp_path) == before


def test_a_missing_shard_or_cluster_file_is_damage_not_a_new_beginning(tmp_path: Path) -> None:
    """An empty journal in place of a lost one would give old numbers to new sagas."""
    directory = DataDirectory(tmp_path)
    directory.open_or_create(2)
    directory.shard(1).rmdir()
    with pytest.raises(Malformed, match="shard-1 is missing"):
        directory.open_or_create(2)
    directory.journal(0).write_bytes(b"rows")
    (tmp_path / "cluster.json").unlink()
    for use in (lambda: directory.open_or_create(2), directory.lock):
        with pytest.raises(Malformed, match=r"shard-0 is there, cluster\.json is missing"):
            use()
    assert directory.journal(0).read_bytes() == b"rows"


def test_what_a_crash_left_before_the_first_cluster_file_is_no_obstacle(tmp_path: Path) -> None:
    """cluster.json is the last thing written: without it nothing has begun."""
    for name in ("shard-0", "shard-1", "services"):
        (tmp_path / name).mkdir()
    (tmp_path / "lock").touch()
    (tmp_path / "cluster.json.new").write_bytes(b'{"form')
    assert DataDirectory(tmp_path).open_or_create(2).shards == 2
    assert not (tmp_path / "cluster.json.new").exists()


def test_a_directory_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    """`--data ~` is a slip; nothing of ours may be strewn there."""
    (tmp_path / "thesis.tex").write_text("x")
    for use in (lambda: DataDirectory(tmp_path).open_or_create(1), DataDirectory(tmp_path).lock):
        with pytest.raises(Malformed, match=r"it holds 'thesis\.tex'"):
            use()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_or_a_place_below_a_file_is_no_directory(tmp_path: Path) -> None:
    """The operating system's refusal becomes one sentence and exit code 2."""
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below"):
        with pytest.raises(Malformed, match="Not a directory") as refused:
            DataDirectory(path).lock()
        assert refused.value.exit_code == 2
    with pytest.raises(Malformed, match="holds no cluster"):
        DataDirectory(tmp_path / "none").read()


def test_a_read_only_directory_is_refused_and_nothing_is_written() -> None:
    """Nothing half-written, and the reason in one sentence."""
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    (base / "data").mkdir()
    (base / "data").chmod(0o555)
    base.chmod(0o755)
    directory = DataDirectory(base / "data")
    try:
        with as_an_ordinary_user():
            for use in (directory.lock, lambda: directory.open_or_create(2)):
                with pytest.raises(Malformed, match=r"cannot .* (denied|not permitted)") as refused:
                    use()
                assert refused.value.exit_code == 2
        assert list(directory.path.iterdir()) == []
    finally:
        directory.path.chmod(0o755)
        shutil.rmtree(base)


def test_the_second_supervisor_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    """D12: two processes on one directory would both write."""
    directory = DataDirectory(tmp_path)
    lock = directory.lock()
    with pytest.raises(Conflict, match=f"process {os.getpid()}") as refused:
        DataDirectory(tmp_path).lock()
    assert refused.value.exit_code == 4
    lock.release()
    lock.release()
    directory.lock().release()


def test_a_stopped_cluster_is_kept_still_and_nothing_is_written(tmp_path: Path) -> None:
    """Who reads its files wants them as they are, locks included."""
    data = DataDirectory(tmp_path)
    data.open_or_create(2)
    data.lock().release()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with data.kept_still() as cluster:
        assert cluster.shards == 2
        with pytest.raises(Conflict):
            DataDirectory(tmp_path).lock()
    data.lock().release()
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_runs_is_not_kept_still(tmp_path: Path) -> None:
    """Neither a supervisor's directory nor one of which a shard has not ended yet."""
    data = DataDirectory(tmp_path)
    data.open_or_create(2)
    for lock in (data.lock, lambda: data.own_shard(1)):
        held = lock()
        with pytest.raises(Conflict, match=str(os.getpid())), data.kept_still():
            pass
        held.release()
    with data.kept_still():
        pass


def test_addresses_stay_the_same_and_fit_a_unix_socket(tmp_path: Path) -> None:
    """Clients reconnect by address after a restart; the kernel takes 107 bytes."""
    for base in ("/run/user/1000", "/" + "x" * 200, "relative", "", str(tmp_path)):
        env = {"XDG_RUNTIME_DIR": base} if base else {}
        run = RunDirectory.of(ID, env)
        assert run.path == RunDirectory.of(ID, env).path
        assert run.path != RunDirectory.of(OTHER_ID, env).path
        longest = run.workers(1023).removeprefix("ipc://")
        assert longest.startswith("/")
        assert len(os.fsencode(longest)) <= SOCKET_PATH_MAX
    addresses = {run.router, run.reports, run.supervisor, run.shard(0), run.shard(1)}
    assert len(addresses | {run.workers(0), run.workers(1)}) == 7


def test_a_run_directory_is_private_and_cleared_of_what_a_killed_one_left(
    env: dict[str, str],
) -> None:
    """A stale socket file would make a bind fail or a client wait."""
    run = RunDirectory.of(ID, env)
    run.lock().release()
    assert (mode(run.path), mode(run.path.parent)) == (0o700, 0o700)
    for name in ("router.sock", "shard-0.sock", "up.json"):
        (run.path / name).touch()
    held = run.lock()
    assert [file.name for file in run.path.iterdir()] == ["lock"]
    with pytest.raises(Conflict, match=f"process {os.getpid()} runs this cluster"):
        RunDirectory.of(ID, env).lock()
    held.release()


def test_a_run_directory_that_others_can_enter_is_refused(env: dict[str, str]) -> None:
    """Who can enter could bind our addresses."""
    run = RunDirectory.of(ID, env)
    run.path.parent.mkdir(mode=0o700)
    run.path.mkdir(mode=0o755)
    with pytest.raises(Malformed, match="open to other users"):
        run.lock()
    run.path.rmdir()
    run.path.symlink_to(env["XDG_RUNTIME_DIR"])
    with pytest.raises(Malformed, match="no directory"):
        run.lock()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_run_directory_of_somebody_else_is_refused(env: dict[str, str]) -> None:
    """In /tmp anybody may make our directory first."""
    run = RunDirectory.of(ID, env)
    run.path.parent.mkdir(mode=0o700)
    os.chown(run.path.parent, 65534, 65534)
    with pytest.raises(Malformed, match="belongs to another user"):
        run.lock()


def announced(run: RunDirectory, kind: str) -> Running:
    said = Running(os.getpid(), run.router, "http://127.0.0.1:1/metrics", "/data", ID, kind)
    run.announce(said)
    return said


def test_discovery_finds_the_one_cluster_that_lives(env: dict[str, str]) -> None:
    """None, one, a dead one, a private one, two: each has its own answer."""
    with pytest.raises(NotTaken, match="start one with: sagacity up") as none:
        find_running(env)
    assert none.value.exit_code == 5

    one, two, three = (RunDirectory.of(digit * 32, env) for digit in "abc")
    held = one.lock()
    said = announced(one, "up")
    private = two.lock()
    announced(two, "private")
    assert find_running(env) == one.router
    assert said in running(env)
    assert len(running(env)) == 2

    second = three.lock()
    announced(three, "up")
    with pytest.raises(Malformed) as several:
        find_running(env)
    assert several.value.exit_code == 2
    assert one.router in str(several.value)
    assert three.router in str(several.value)

    held.release()  # as when its process was killed: up.json is still there
    assert find_running(env) == three.router
    three.remove()
    with pytest.raises(NotTaken):
        find_running(env)
    private.release()
    second.release()


@pytest.mark.parametrize("left", [("up.json", "router.sock"), ("up.json.new",), ()])
def test_what_a_killed_cluster_left_is_removed_by_who_looks(
    env: dict[str, str], left: tuple[str, ...]
) -> None:
    """Private clusters have an id of their own each time: what they leave would add up."""
    run = RunDirectory.of(ID, env)
    run.lock().release()  # as when its process was killed
    for name in left:
        (run.path / name).touch()
    assert running(env) == []
    assert not run.path.exists()


def test_a_run_directory_that_is_removed_meanwhile_is_made_again(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may look in the moment in which a cluster starts."""
    run = RunDirectory.of(ID, env)
    real = fcntl.flock
    times = iter((True, False))

    def slow(descriptor: int, operation: int) -> None:
        if next(times, False):
            run.remove()  # between the opening of the file and its lock
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    held = run.lock()
    announced(run, "up")
    assert [found.cluster_id for found in running(env)] == [ID]
    held.release()


def test_every_directory_that_was_made_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal whose directory is not there after a crash was never durable."""
    synced: set[str] = set()
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    directory = DataDirectory(tmp_path / "a" / "b" / "c")
    directory.lock().release()
    directory.open_or_create(1)
    expected = [tmp_path, tmp_path / "a", tmp_path / "a" / "b", directory.path]
    assert {str(path) for path in expected} <= synced
    assert str(tmp_path.parent) not in synced


def test_discovery_passes_over_what_it_cannot_read(env: dict[str, str]) -> None:
    """A half-written file of another program is no cluster and no crash."""
    run = RunDirectory.of(ID, env)
    held = run.lock()
    for text in (b"", b"[]", b'{"pid": 1}', b"\xff"):
        (run.path / "up.json").write_bytes(text)
        assert running(env) == []
    held.release()


def test_every_refusal_belongs_to_the_one_table() -> None:
    """The command line prints SagacityError and nothing else."""
    with pytest.raises(SagacityError):
        DataDirectory("/proc/none").lock()
