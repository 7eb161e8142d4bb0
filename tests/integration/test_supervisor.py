"""The supervisor with real processes, twins of the real ones: restart, quarantine, order, end."""

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from cluster.directory import RunDirectory
from cluster.fleet import Patience
from cluster.supervisor import Supervisor
from sagacity import wire
from sagacity.errors import Malformed
from sagacity.sockets import Context, context, dealer
from tests.integration.twin_supervisor import PATIENCE, TWIN, make

TOP = Path(__file__).parents[2]
ALL_UP = {"router-0": "up", "shard-0": "up", "shard-1": "up", "payment-0": "up", "payment-1": "up"}


@pytest.fixture
def base() -> Iterator[Path]:
    """A short path of mode 0700: sockets live in it."""
    path = Path(tempfile.mkdtemp(prefix="sg-"))
    yield path
    shutil.rmtree(path)


class World:
    """Supervisors that are closed, whatever a test does to them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.ctx: Context = context()
        self._supervisor: Supervisor | None = None
        self._lock = RunDirectory(base / "run").lock()

    def supervise(
        self, places: dict[str, str], *, drain_ms: int = 5_000, patience: Patience = PATIENCE
    ) -> Supervisor:
        self._supervisor = make(self.base, places, self.ctx, drain_ms=drain_ms, patience=patience)
        return self._supervisor

    def until(self, holds: Callable[[], object], seconds: float = 10.0) -> None:
        """Let the supervisor turn until something holds."""
        assert self._supervisor is not None
        give_up = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < give_up, self._supervisor.fleet.members
            self._supervisor.turn()

    def close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.close()
        self._lock.release()
        self.ctx.term()


@pytest.fixture
def world(base: Path) -> Iterator[World]:
    made = World(base)
    yield made
    made.close()


def diary(base: Path) -> list[str]:
    return [line.split()[0] for line in (base / "diary").read_text().splitlines()]


def is_gone(pid: int) -> bool:
    """Say whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until something was seen to hold, once; say whether it was."""
    give_up = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= give_up:
            return False
        select.select([], [], [], 0.01)
    return True


def test_who_waits_believes_what_was_seen_once() -> None:
    """What was seen may be over at the next look: a killed process is "up" for a moment."""
    looks = [False, True, False]
    assert wait_until(lambda: looks.pop(0), 10.0)
    assert looks == [False]


def test_a_killed_child_is_started_again_at_once(world: World) -> None:
    """K: kill -9 of any process; the others go on."""
    supervisor = world.supervise(ALL_UP)
    world.until(supervisor.fleet.ready)
    shard = supervisor.fleet.members["shard", 1]
    others = {m.pid for m in supervisor.fleet.members.values() if m is not shard}
    old = shard.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    world.until(lambda: shard.pid != old and supervisor.fleet.ready())
    assert shard.restarts == 1
    assert others == {m.pid for m in supervisor.fleet.members.values() if m is not shard}
    assert supervisor.meters.process_exits.read() == {("shard",): 1}
    assert supervisor.meters.processes.read()["shard", "up"] == 2


def test_a_stopped_child_is_killed_and_started_again(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """E3: SIGSTOP leaves a process that neither works nor ends; that is said once."""
    supervisor = world.supervise(ALL_UP, patience=Patience(worker_hung_ms=3_000))
    world.until(supervisor.fleet.ready)
    worker = supervisor.fleet.members["payment", 0]
    others = {m.pid for m in supervisor.fleet.members.values() if m is not worker}
    old = worker.pid
    assert old is not None
    os.kill(old, signal.SIGSTOP)
    world.until(lambda: worker.pid != old and supervisor.fleet.ready())
    assert is_gone(old)
    assert others == {m.pid for m in supervisor.fleet.members.values() if m is not worker}
    assert capfd.readouterr().err.count("process_hung") == 1


def test_a_crash_loop_ends_in_quarantine_and_the_rest_serves(world: World) -> None:
    """E5: one broken place must not take the others with it."""
    supervisor = world.supervise({**ALL_UP, "payment-1": "crash"})
    broken = supervisor.fleet.members["payment", 1]
    world.until(lambda: broken.state == "quarantined")
    world.until(supervisor.fleet.ready)
    assert broken.restarts == 4
    assert len(supervisor.fleet.running()) == 4


def test_a_command_that_cannot_be_started_is_a_crash_loop_too(world: World) -> None:
    """The interpreter may be gone: an upgrade in the middle."""
    supervisor = world.supervise({"router-0": "up", "shard-0": "up"})
    gone = str(world.base / "no-such-python")
    supervisor._commands["shard", 0][0] = gone  # type: ignore[index]  # it only reads them
    world.until(lambda: supervisor.fleet.members["shard", 0].state == "quarantined")
    world.until(lambda: supervisor.fleet.members["router", 0].state == "up")


def test_heartbeats_keep_facts_fresh(world: World) -> None:
    """`status` shows what a process said last, not what it said first."""
    supervisor = world.supervise({"router-0": "up"})
    router = supervisor.fleet.members["router", 0]
    world.until(lambda: router.facts.get("turns", 0) >= 3)
    assert router.metrics_port == 7_000


def test_status_is_answered_in_the_frames_of_a_router(world: World) -> None:
    """The router forwards STATUS as it came; other kinds and garbage do no harm."""
    supervisor = world.supervise({"router-0": "up", "shard-0": "up", "payment-0": "standby"})
    world.until(lambda: supervisor.fleet.members["payment", 0].state == "standby")
    world.until(lambda: supervisor.fleet.members["router", 0].state == "up")
    world.until(lambda: supervisor.fleet.members["shard", 0].facts)
    asker = dealer(world.ctx, RunDirectory(world.base / "run").supervisor)
    try:
        world.until(lambda: asker.poll(0, zmq.POLLOUT))
        asker.send(b"\xc1 no frame")
        asker.send(
            wire.encode(
                [
                    wire.Request(wire.STATUS, "", 5, {}, b""),
                    wire.Request(wire.START, "s", 6, {}, b""),
                ]
            )
        )
        world.until(lambda: asker.poll(0, zmq.POLLIN))
        status, refused = wire.read_replies(asker.recv())
    finally:
        asker.close()
    assert (status.request, status.code, refused.request, refused.code) == (5, None, 6, 10)
    body = wire.unpack(status.body)
    assert body["type"] == "status"
    assert body["cluster_id"] == "c" * 32
    assert body["ready"] is False
    seen = [(row["role"], row["index"], row["state"]) for row in body["processes"]]
    assert seen == [
        ("supervisor", 0, "up"),
        ("router", 0, "up"),
        ("shard", 0, "up"),
        ("payment", 0, "standby"),
    ]
    assert body["processes"][0]["pid"] == os.getpid()
    assert body["shards"][0]["shard"] == 0
    assert body["shards"][0]["turns"] >= 0


def test_garbage_reports_are_dropped(world: World) -> None:
    """The reports' socket lies in a directory of ours, but a bug is enough."""
    supervisor = world.supervise({"router-0": "up"})
    sender = world.ctx.socket(zmq.PUSH)
    sender.setsockopt(zmq.LINGER, 0)
    sender.connect(RunDirectory(world.base / "run").reports)
    for frame in (b"", b"\x00", wire.encode(wire.Report("shard", 9, 1, "up", 0, {}))):
        sender.send(frame)
    world.until(supervisor.fleet.ready)
    sender.close()


def test_a_signal_drains_shards_first_and_leaves_nobody(world: World) -> None:
    """Shards need router and workers to finish what is in flight."""
    places = {**ALL_UP, "shard-0": "slow"}
    supervisor = world.supervise(places)
    pids: list[int] = []

    def on_ready() -> None:
        pids.extend(m.pid for m in supervisor.fleet.members.values() if m.pid)
        os.kill(os.getpid(), signal.SIGTERM)

    supervisor.run(on_ready)
    assert set(diary(world.base)[:2]) == {"shard-0", "shard-1"}
    assert set(diary(world.base)[2:]) == {"router-0", "payment-0", "payment-1"}
    assert len(pids) == 5
    assert all(is_gone(pid) for pid in pids)
    assert {m.state for m in supervisor.fleet.members.values()} == {"stopped"}


def test_who_does_not_end_is_killed_after_the_drain(world: World) -> None:
    """A shard that hangs must not keep the machine from stopping."""
    supervisor = world.supervise({**ALL_UP, "shard-0": "stubborn"}, drain_ms=0)
    stubborn = supervisor.fleet.members["shard", 0]
    pids: list[int] = []

    def on_ready() -> None:
        pids.append(stubborn.pid or 0)
        os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    supervisor.run(on_ready)
    assert 1.9 <= time.monotonic() - began < 8
    assert is_gone(pids[0])
    assert set(diary(world.base)) == {"shard-1", "router-0", "payment-0", "payment-1"}


@pytest.mark.parametrize("places", [["router-0"], ["shard-1"], ["payment-0", "payment-1"]])
def test_who_cannot_do_what_it_was_told_ends_a_cluster_that_has_not_served(
    world: World, places: list[str]
) -> None:
    """A port that is taken, a definition that is not there: no restart helps, exit code 2 does."""
    supervisor = world.supervise({**ALL_UP, **dict.fromkeys(places, "refuse")})
    with pytest.raises(Malformed, match=f"({'|'.join(places)}) cannot serve"):
        supervisor.run(lambda: None)
    assert supervisor.fleet.running() == []


def test_a_cluster_that_has_served_outlives_a_place_that_refuses(world: World) -> None:
    """E5: one place may be damaged; what it is told was good enough for the others."""
    supervisor = world.supervise(ALL_UP)
    world.until(supervisor.fleet.ready)
    broken = supervisor.fleet.members["payment", 1]
    command = supervisor._commands["payment", 1]
    command[command.index("up")] = "refuse"  # type: ignore[index]  # likewise
    os.kill(broken.pid or 0, signal.SIGKILL)
    world.until(lambda: broken.state == "quarantined")
    assert not supervisor.stopping


def test_a_process_that_cannot_be_watched_does_not_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors: nobody would reap, count or stop it, and the next would be a second."""
    real = os.pidfd_open
    unwatched: list[int] = []

    def refuse_once(pid: int) -> int:
        if not unwatched:
            unwatched.append(pid)
            raise OSError(errno.EMFILE, "too many open files")
        return real(pid)

    monkeypatch.setattr(os, "pidfd_open", refuse_once)
    supervisor = world.supervise({"router-0": "up"})
    world.until(supervisor.fleet.ready)
    assert is_gone(unwatched[0])
    assert supervisor.fleet.members["router", 0].restarts == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_supervisor(base: Path, number: signal.Signals) -> None:
    """kill -9 of the supervisor: nothing is left after 2 s."""
    command = [sys.executable, "-m", "tests.integration.twin_supervisor", str(base)]
    command += [f"{place}={behaviour}" for place, behaviour in ALL_UP.items()]
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()[1:]]
        assert len(pids) == 5
        supervisor.send_signal(number)
        assert supervisor.wait(10) == (0 if number == signal.SIGTERM else -9)
    assert wait_until(lambda: all(is_gone(pid) for pid in pids), 2.0)


def twin(base: Path, *, parent: int | None, behave: str = "up") -> "subprocess.Popen[str]":
    """Start one twin alone, without a supervisor's sockets."""
    (base / "run").mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-P", str(TWIN), "--role", "shard", "--index", "0"]
    command += ["--data", str(base), "--run", str(base / "run"), "--diary", str(base / "diary")]
    command += ["--behave", behave] + ([] if parent is None else ["--parent", str(parent)])
    return subprocess.Popen(command, text=True)


def catches(process: "subprocess.Popen[str]", number: signal.Signals) -> bool:
    """Say whether a process handles or ignores a signal, as the kernel sees it."""
    status = dict(
        line.split(":\t")
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith(("SigCgt", "SigIgn"))
    )
    return any(int(mask, 16) >> (number - 1) & 1 for mask in status.values())


def test_a_child_whose_parent_is_gone_before_it_looks_ends_at_once(base: Path) -> None:
    """The signal of the parent's death comes only to who asked for it in time."""
    with twin(base, parent=1) as orphan:
        assert orphan.wait(10) == 71


def test_a_child_wakes_for_sigterm_out_of_a_long_wait(base: Path) -> None:
    """A poller goes on waiting after a signal; the wakeup descriptor ends the wait."""
    with twin(base, parent=os.getpid(), behave="sleepy") as child:
        assert wait_until(lambda: catches(child, signal.SIGTERM), 10)
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0


def test_a_terminals_interrupt_is_left_to_the_supervisor(base: Path) -> None:
    """Ctrl-C reaches the whole group; only the supervisor knows the order of the end."""
    with twin(base, parent=os.getpid()) as child, twin(base, parent=None) as alone:
        assert wait_until(lambda: catches(child, signal.SIGTERM), 10)
        assert wait_until(lambda: catches(alone, signal.SIGTERM), 10)
        child.send_signal(signal.SIGINT)
        alone.send_signal(signal.SIGINT)
        assert alone.wait(5) == 0
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0
