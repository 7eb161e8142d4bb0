"""Cases through real processes and real sockets: what the seams in memory leave out.

A cluster, a router, a worker and a node of our own get garbage from a peer that only sends bytes;
between them a valid request must be answered rightly. What needs a process for each case gets as
many as fit into BUDGET_S.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from cluster import cli
from cluster.directory import DataDirectory, RunDirectory
from cluster.private import ClusterProcess, start_private
from sagacity import sockets, wire
from sagacity.client import Client
from sagacity.errors import Malformed
from sagacity.ids import number_of
from sagacity.messages import ReserveInventory
from sagacity.wire import Commands, Rejected, Reply
from shard.verify import main as verify
from tests.fuzz.run import Cases, Finding, Result, mutations
from tests.fuzz.target import ACCEPTED, DROPPED, SKIPPED, told
from tests.fuzz.targets import TARGETS
from tests.fuzz.to_files import JournalFile
from tests.fuzz.to_shard import Bodies
from tests.fuzz.to_worker import CLUSTER_ID, LINES
from tests.integration.router_world import AT_0, flush, opened, ready, settle
from tests.integration.twin_shard import Place, TwinShard, command, place

COMMAND = [sys.executable, "-P", "-m", "cluster"]
BUDGET_S = 20.0  # of one target that starts a process for each case
PROBE_EVERY = 100
PATIENCE_S = 15.0

Real = Callable[[Result, Cases, int], None]


def real(names: list[str], cases: int, seed: int) -> list[Result]:
    """Run cases of each target through what really takes them."""
    results = []
    for name in names:
        target, result = TARGETS[name](), Result(f"{name} (real)")
        begun = time.monotonic()
        try:
            _REAL[name](result, mutations(target, seed), cases)
        except (Exception, AssertionError) as error:
            text = f"{type(error).__name__}: {error}"
            result.findings.append(Finding(name, seed, result.cases, [], text))
        finally:
            target.close()
        result.seconds = result.cpu_s = time.monotonic() - begun
        results.append(result)
        print(f"{result.target}: {result.cases} cases", file=sys.stderr)
    return results


def _took(result: Result, outcome: str) -> None:
    result.cases += 1
    result.outcomes[outcome] += 1


# -- a whole cluster ------------------------------------------------------------------------------


@contextmanager
def _cluster() -> Iterator[tuple[ClusterProcess, RunDirectory, Client]]:
    with start_private() as cluster, Client(cluster.url, timeout_s=PATIENCE_S) as client:
        run = RunDirectory(Path(cluster.url.removeprefix("ipc://")).parent)
        yield cluster, run, client


def _check_out(client: Client) -> None:
    body = client.checkout(
        user_id="u42", items=[{"sku": "abc123", "quantity": 1}], shipping_address="x"
    )
    assert body["status"] == "COMPLETED"


def _to(
    address: Callable[[RunDirectory], str],
    read: Callable[[bytes], object] = wire.read_requests,
    framed: Callable[[bytes, int], bytes] = lambda case, _: case,
) -> Real:
    """Give what sends frames to an address of a cluster, and checks out between them."""

    def send(result: Result, cases: Cases, count: int) -> None:
        with _cluster() as (cluster, run, client):
            pids = _pids(client)
            ctx = sockets.context()
            peer = sockets.dealer(ctx, address(run))
            try:
                for index in range(count):
                    frame = framed(cases(index), index + 1)
                    _sent(peer, frame)
                    _took(result, _kind(read, frame))
                    if index % PROBE_EVERY == 0:
                        result.outcomes.update(_replies(peer))
                        _check_out(client)
                _check_out(client)
                assert _pids(client) == pids, "a process has ended"
                assert cluster.process.poll() is None
            finally:
                peer.close()
                ctx.term()

    return send


def _kind(read: Callable[[bytes], object], frame: bytes) -> str:
    try:
        read(frame)
    except Malformed:
        return DROPPED
    return "sent"


def _sent(peer: sockets.Socket, frame: bytes) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not sockets.send(peer, frame):
        assert time.monotonic() < give_up, "nobody takes a frame"
        _replies(peer)
        time.sleep(0.001)


def _replies(peer: sockets.Socket) -> list[str]:
    """Read what has been answered; each is an answer or an error of the table."""
    said = []
    for frame in sockets.receive_all(peer, 1_000)[0]:
        try:
            replies = wire.read_replies(frame)
        except Malformed:  # a shard's word to a worker
            wire.read_to_worker(frame)
            continue
        said += [f"told {told(reply)}" for reply in replies]
    return said


def _pids(client: Client) -> list[int]:
    return sorted(each["pid"] for each in client.status()["processes"])


# -- one process ----------------------------------------------------------------------------------


def _replies_to_router(result: Result, cases: Cases, count: int) -> None:
    """A router process gets frames from what stands where its shard would."""
    with opened() as world:
        shard, other, connection = world.served()
        for index in range(count):
            token = connection.ask(wire.SHOW, AT_0)
            flush(connection)
            [(router, asked)] = shard.take()
            assert sockets.send_to(shard.socket, router, cases(index))
            _took(result, "sent")
            shard.answer(router, Reply(asked.request, None, b"\x81\xa4type\xa1t"))
            reply = settle(connection)[token]
            assert reply.code is None or reply.code in (0, 11, 12, 13)
        ready(connection, _0=shard, _1=other)
        assert world.serves()


def _replies_to_client(result: Result, cases: Cases, count: int) -> None:
    """A client's connection gets frames from what stands where its router would."""
    with opened() as world:
        router = world.twin(world.url)
        connection = world.connection()
        for index in range(count):
            token = connection.ask(wire.SHOW, AT_0)
            flush(connection)
            [(client, asked)] = router.take()
            before = connection.malformed
            assert sockets.send_to(router.socket, client, cases(index))
            router.answer(client, Reply(asked.request, None, b"\x81\xa4type\xa1t"))
            assert token in settle(connection)
            _took(result, DROPPED if connection.malformed > before else ACCEPTED)


def _frames_to_worker(result: Result, cases: Cases, count: int) -> None:
    """A worker process gets frames from what stands where its shard would."""
    with tempfile.TemporaryDirectory() as folder, place(Path(folder) / "data") as made:
        process = _worker(made, "inventory")
        shard = made.shards[0]
        peer = shard.worker()
        cluster_id = made.cluster.cluster_id.encode()
        for index in range(count):
            frame = cases(index).replace(CLUSTER_ID.encode(), cluster_id)
            try:
                said = wire.read_to_worker(frame)
            except Malformed:
                said = None
            if isinstance(said, Rejected) or (isinstance(said, Commands) and said.alone):
                _took(result, "left out")  # it would end, or wait for a word
                continue
            while not sockets.send_to(shard._socket, peer, frame):
                shard.receive()  # it reads slower than we write
            _took(result, DROPPED if said is None else "sent")
            if index % PROBE_EVERY == 0:
                _reserve(shard, peer, index)
        _reserve(shard, peer, count)
        assert process.poll() is None


def _worker(made: Place, service: str) -> "subprocess.Popen[bytes]":
    """Start a worker whose log goes nowhere: a pipe that nobody reads would stop it."""
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(made.argv(service), stdin=nowhere, stderr=nowhere)
    made._processes.append(process)
    return process


def _reserve(shard: TwinShard, peer: bytes, index: int) -> None:
    count = (1 << 40) + index
    asked = command(count, 1, ReserveInventory("s", 1, LINES))
    shard.send(peer, asked)
    number = number_of(count, 0)
    found = shard.until(
        lambda twin: [each for each in twin.answers if each.number == number], "answer"
    )
    assert found[0].outcome == wire.OK


def _bodies_to_workers(result: Result, cases: Cases, count: int) -> None:
    """Worker processes of all three services get bodies in good envelopes."""
    with tempfile.TemporaryDirectory() as folder, place(Path(folder) / "data") as made:
        shard = made.shards[0]
        peers = []
        for at, name in enumerate(("inventory", "payment", "shipping")):
            _worker(made, name)
            peers.append(shard.worker(seen_before=at))
        for index in range(count):
            try:
                at, body = wire.decoder(tuple[int, bytes])(cases(index))
            except ValueError:
                at, body = 0, cases(index)
            if b"u_crash" in body or b"u_timeout" in body or b"u_slow" in body:
                _took(result, "left out")
                continue
            sent = command(index + 1, at % 3 + 1, ReserveInventory("s", 1, LINES))
            sent = wire.Command(sent.saga_id, sent.step, 0, 1, sent.number, 1, {}, body)
            [answer] = shard.ask(peers[at % 3], sent)
            _took(result, wire.OUTCOMES[answer.outcome])


def _lines(result: Result, cases: Cases, count: int) -> None:
    """A node process in front of a real cluster gets lines; it ends well at their end."""
    with _cluster() as (cluster, _, client):
        words = [*COMMAND, "maelstrom", "--connect", cluster.url]
        node = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        lines = b"".join(cases(index) + b"\n" for index in range(count))
        out, _ = node.communicate(lines, timeout=120)
        assert node.returncode == 0, f"exit code {node.returncode}"
        result.cases = count
        for line in out.splitlines():
            body = json.loads(line)["body"]
            result.outcomes[f"code {body['code']}" if body["type"] == "error" else ACCEPTED] += 1
        result.outcomes[SKIPPED] = count - result.outcomes.total()
        _check_out(client)


# -- a process for each case ----------------------------------------------------------------------


def _run(
    result: Result,
    words: list[str],
    main: Callable[[list[str]], int] = cli.main,
    env: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run a command in a process of its own: an exit code of the table, and no traceback.

    Forked from this one, which has imported all: 10 ms, where an interpreter takes 200.
    """
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _be(main, words, said.fileno(), env)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    assert "Traceback" not in text, text[-1500:]
    assert code in (0, 2, 3, 4, 5, 6, 10, 11, 12), f"exit code {code}: {text[-500:]}"
    _took(result, f"exit {code}")


def _be(
    main: Callable[[list[str]], int], words: list[str], said: int, env: Mapping[str, str]
) -> NoReturn:
    """Be the command, to its end."""
    code = 1
    try:
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
        os.environ.update(env)
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _within_budget(count: int) -> Iterator[int]:
    give_up = time.monotonic() + BUDGET_S
    for index in range(count):
        if time.monotonic() > give_up:
            return
        yield index


def _config_files(result: Result, cases: Cases, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fuzz.toml"
        for index in _within_budget(count):
            file.write_bytes(cases(index))
            _run(result, ["config", "show", "--config", str(file)])


def _environments(result: Result, cases: Cases, count: int) -> None:
    for index in _within_budget(count):
        env = {}
        for line in os.fsdecode(cases(index)).split("\n"):
            name, _, value = line.partition("=")
            if name.startswith("SAGACITY_") and "\x00" not in name + value:
                env[name] = value
        _run(result, ["config", "show", "--json"], env=env)


def _cluster_files(result: Result, cases: Cases, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = DataDirectory(Path(folder) / "data")
        data.open_or_create(2)
        for index in _within_budget(count):
            (data.path / "cluster.json").write_bytes(cases(index))
            _run(result, ["--data", str(data.path)], verify)


def _journals(result: Result, cases: Cases, count: int) -> None:
    target = JournalFile()
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = DataDirectory(Path(folder) / "data")
            data.open_or_create(1)
            for index in _within_budget(count):
                data.journal(0).write_bytes(target.damaged(cases(index)))
                _run(result, ["--data", str(data.path)], verify)
    finally:
        target.close()


def _command_lines(result: Result, cases: Cases, count: int) -> None:
    with _cluster() as (cluster, _, client):
        for index in _within_budget(count):
            words = os.fsdecode(cases(index).replace(b"\x00", b"")).split("\n")
            if words[0] in ("up", "maelstrom", "audit") or "--connect" in words:
                _took(result, "left out")
                continue
            _run(result, words, env={"SAGACITY_URL": cluster.url})
        _check_out(client)


def _nothing(result: Result, _: Cases, __: int) -> None:
    """Rows and databases are read by the processes above; there is no other way in."""
    result.outcomes["see journal-file, worker-frames"] += 0


_REAL: dict[str, Real] = {
    "readers": _to(lambda run: run.router),
    "router-requests": _to(lambda run: run.router),
    "router-replies": _replies_to_router,
    "client-replies": _replies_to_client,
    "shard-requests": _to(lambda run: run.shard(0)),
    "bodies": _to(lambda run: run.router, framed=Bodies.enveloped),
    "shard-answers": _to(lambda run: run.workers(0), wire.read_to_shard),
    "worker-frames": _frames_to_worker,
    "command-bodies": _bodies_to_workers,
    "maelstrom": _lines,
    "config-file": _config_files,
    "config-environment": _environments,
    "cluster-json": _cluster_files,
    "command-line": _command_lines,
    "journal-file": _journals,
    "journal-rows": _nothing,
    "service-file": _nothing,
}
