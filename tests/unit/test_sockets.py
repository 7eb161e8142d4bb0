"""Sockets: what the options promise, shown on real ZeroMQ sockets in one process."""

import os
import select
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import zmq

from sagacity import sockets
from sagacity.errors import Malformed
from sagacity.sockets import CONNECTED, DISCONNECTED, Context, Monitor, Outbox, PeerGone, Socket
from sagacity.wire import FRAME_BYTES_MAX


@pytest.fixture
def ctx() -> Iterator[Context]:
    context = sockets.context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def run() -> Iterator[Path]:
    """A short path: a socket's may have 107 bytes, pytest's own directories are long."""
    with tempfile.TemporaryDirectory(prefix="sg-") as directory:
        yield Path(directory)


T = TypeVar("T")

UNHURRIED = {"pause_ms": 1000}


def put(found: list[T], more: Iterable[T]) -> list[T]:
    found.extend(more)
    return found


def until(holds: Callable[[], object], *watched: Socket) -> None:
    """Poll until something holds; 5 s at most."""
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, "did not come true"
        zmq.select(list(watched), [], [], 0.005)


def await_frame(socket: Socket) -> bytes:
    assert socket.poll(5000), "no frame came"
    frames, _ = sockets.receive_all(socket, 1)
    return frames[0]


def await_frame_from(socket: Socket) -> tuple[bytes, bytes]:
    assert socket.poll(5000), "no frame came"
    frames, _ = sockets.receive_all_from(socket, 1)
    return frames[0]


def connected(ctx: Context, address: str) -> Socket:
    socket = sockets.dealer(ctx, address)
    assert socket.poll(5000, zmq.POLLOUT)
    return socket


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5555",
        "tcp://*:5555",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:99999999",
        "tcp://localhost:5555",
        "tcp://[::1]:5555",
        "ipc://@abstract",
        "ipc://*",
        "ipc://relative.sock",
        "ipc://",
        "inproc://here",
        "udp://127.0.0.1:5555",
        "",
        "nonsense",
    ],
)
def test_a_bind_where_strangers_could_connect_is_refused(ctx: Context, address: str) -> None:
    """ZeroMQ authenticates nobody: the address is the only lock there is."""
    with pytest.raises(Malformed):
        sockets.router(ctx, address)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777])
def test_an_ipc_socket_in_a_directory_that_others_may_enter_is_refused(
    ctx: Context, run: Path, mode: int
) -> None:
    """A socket's own mode depends on the umask; its directory's mode is what keeps others out."""
    run.chmod(mode)
    with pytest.raises(Malformed, match="0700"):
        sockets.pull(ctx, f"ipc://{run}/a.sock")
    run.chmod(0o700)
    with pytest.raises(Malformed, match="No such file"):
        sockets.pull(ctx, f"ipc://{run}/missing/a.sock")


def test_a_socket_path_may_have_107_bytes_and_no_more(ctx: Context, run: Path) -> None:
    """One byte more would be cut off or refused by the kernel, long after the configuration."""
    room = sockets.IPC_PATH_BYTES_MAX - len(f"{run}/")
    longest = f"ipc://{run}/{'s' * room}"
    bound = sockets.router(ctx, longest)
    peer = connected(ctx, longest)
    assert sockets.send(peer, b"x")
    assert await_frame_from(bound)[1] == b"x"
    for open_one in (sockets.router, sockets.dealer):
        with pytest.raises(Malformed, match="107"):
            open_one(ctx, longest + "s")


@pytest.mark.parametrize(
    "address",
    [
        *("", "http://127.0.0.1:1", "tcp://127.0.0.1:port", "tcp://", "tcp://127.0.0.1"),
        *("tcp://127.0.0.1:0", "tcp://127.0.0.1:65536", "tcp://*:5555", "tcp://127.0.0.1:*"),
        *("tcp://0.0.0.0:5555", "tcp://192.0.2.1:5555", "tcp://example.com:5555"),
        *("tcp://127.0.0.1.example.com:5555", "tcp://127.0.0.1:1;127.0.0.1:2", "tcp://[::1]:1"),
        *("ipc://", "ipc://@abstract", "ipc://relative.sock", "inproc://here", "pgm://eth0;x:5"),
    ],
)
def test_what_is_no_address_of_ours_is_refused_when_connecting(ctx: Context, address: str) -> None:
    """A user's --connect comes here: the one error table at once, and nothing goes in clear."""
    with pytest.raises(Malformed, match=r"is no address of ours|a socket's path has"):
        sockets.dealer(ctx, address)


def test_a_client_may_name_the_loopback_as_it_likes(ctx: Context) -> None:
    """What `up --port` prints, and what people type."""
    bound = sockets.router(ctx, "tcp://127.0.0.1:*")
    port = bound.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        assert sockets.dealer(ctx, f"tcp://{host}:{port}").poll(5000, zmq.POLLOUT)


def test_a_tcp_port_that_is_taken_is_refused(ctx: Context) -> None:
    """Two routers on one port would share clients at random."""
    bound = sockets.router(ctx, "tcp://127.0.0.1:*")
    address = bound.getsockopt_string(zmq.LAST_ENDPOINT)
    with pytest.raises(Malformed, match="in use"):
        sockets.router(ctx, address)


def test_frames_travel_both_ways_and_a_drained_socket_says_so(ctx: Context, run: Path) -> None:
    """Timers may fire only after a receive that found the sockets empty (DESIGN 3)."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    for frame in (b"1", b"2", b"3"):
        assert sockets.send(peer, frame)
    taken: list[tuple[bytes, bytes]] = []
    until(lambda: len(put(taken, sockets.receive_all_from(bound, 2)[0])) == 3, bound)
    assert [frame for _, frame in taken] == [b"1", b"2", b"3"]
    assert sockets.receive_all_from(bound, 2) == ([], True)
    assert sockets.send_to(bound, taken[0][0], b"answer")
    assert await_frame(peer) == b"answer"
    assert sockets.receive_all(peer, 2) == ([], True)
    sockets.send(peer, b"4")
    assert bound.poll(5000)
    assert sockets.receive_all_from(bound, 1)[1] is False


def test_a_message_of_other_parts_reads_as_an_empty_frame(ctx: Context, run: Path) -> None:
    """A REQ client, or a hostile one, must not shift the parts of those that follow."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    peer.send_multipart([b"", b"payload"])
    peer.send_multipart([b"part"] * 100_000)
    peer.send(b"good")
    identity, first = await_frame_from(bound)
    assert [first, await_frame_from(bound)[1], await_frame_from(bound)[1]] == [b"", b"", b"good"]
    bound.send_multipart([identity, b"one", b"two"])
    bound.send_multipart([identity, b"good"])
    assert [await_frame(peer), await_frame(peer)] == [b"", b"good"]


def test_a_dealer_queues_for_nobody(ctx: Context, run: Path) -> None:
    """What is queued for an absent shard would be neither forwarded nor refused."""
    lonely = sockets.dealer(ctx, f"ipc://{run}/nobody.sock")
    assert sockets.send(lonely, b"x") is False


def test_a_router_tells_a_peer_that_is_gone_from_one_that_is_full(ctx: Context, run: Path) -> None:
    """The one is forgotten, the other is tried again; ZeroMQ's default drops both in silence."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    sockets.send(peer, b"hello")
    identity, _ = await_frame_from(bound)
    sent = 0
    while sockets.send_to(bound, identity, bytes(100_000)):
        sent += 1
        assert sent < 10_000, "the queue has no end"
    with pytest.raises(PeerGone):
        sockets.send_to(bound, b"\x00none", b"x")


def test_a_frame_over_the_limit_closes_the_connection_that_sent_it(ctx: Context, run: Path) -> None:
    """Nothing over the limit is ever in memory; the sender's own later frames still come."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    monitor = Monitor(peer)
    assert monitor.events() == [CONNECTED]
    assert sockets.send(peer, bytes(FRAME_BYTES_MAX))
    assert len(await_frame_from(bound)[1]) == FRAME_BYTES_MAX
    assert sockets.send(peer, bytes(FRAME_BYTES_MAX + 1))
    seen: list[str] = []
    until(lambda: len(put(seen, monitor.events())) == 2, monitor.socket)
    assert seen == [DISCONNECTED, CONNECTED]
    assert sockets.send(peer, b"later")
    assert await_frame_from(bound)[1] == b"later"


def test_a_monitor_tells_each_connection_and_each_loss_once(ctx: Context, run: Path) -> None:
    """What was forwarded to a shard that went away is answered 0: this is how one knows."""
    address = f"ipc://{run}/a.sock"
    peer = sockets.dealer(ctx, address)
    monitor = Monitor(peer)
    assert monitor.events() == []
    seen: list[str] = []
    for _ in range(3):
        bound = sockets.router(ctx, address)
        until(lambda: put(seen, monitor.events()) and monitor.connected, monitor.socket)
        bound.close()
        until(lambda: put(seen, monitor.events()) and not monitor.connected, monitor.socket)
    assert seen == [CONNECTED, DISCONNECTED] * 3


def test_a_connection_that_garbage_ended_is_made_again(ctx: Context, run: Path) -> None:
    """ZeroMQ gives up for ever what did not speak its protocol; a worker would never be back."""
    address = f"ipc://{run}/a.sock"
    bound = sockets.router(ctx, f"ipc://{run}/far.sock")
    with socket.socket(socket.AF_UNIX) as between, socket.socket(socket.AF_UNIX) as far:
        between.bind(f"{run}/a.sock")
        between.listen()
        peer = sockets.dealer(ctx, address)
        monitor = Monitor(peer)
        near, _ = between.accept()
        far.connect(f"{run}/far.sock")
        with near:
            while not monitor.connected:
                pass_on(near, far)
                monitor.events()
            near.sendall(b"\xff" * 64)
            until(lambda: monitor.events() == [DISCONNECTED], monitor.socket)
    bound.close()
    bound = sockets.router(ctx, address)
    until(monitor.events, monitor.socket)
    assert monitor.connected
    assert sockets.send(peer, b"here again")
    assert await_frame_from(bound)[1] == b"here again"


def pass_on(*pair: socket.socket) -> None:
    """Give to each of two what has come from the other."""
    for each in select.select(pair, [], [], 0.005)[0]:
        other = pair[1 - pair.index(each)]
        other.sendall(each.recv(4096))


def test_a_monitor_made_late_tells_the_connection_that_was_there(ctx: Context, run: Path) -> None:
    """Connecting happens in another thread: it must not matter who is first."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    monitor = Monitor(peer)
    assert monitor.events() == [CONNECTED]
    bound.close()
    seen: list[str] = []
    until(lambda: put(seen, monitor.events()), monitor.socket)
    assert seen == [DISCONNECTED]
    monitor.close()
    assert sockets.send(peer, b"x") is False


def test_an_outbox_keeps_order_and_delivers_what_waited(ctx: Context, run: Path) -> None:
    """A slow client gets its answers late, not in another order."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    sockets.send(peer, b"hello")
    identity, _ = await_frame_from(bound)
    outbox = Outbox(bound, peer_bytes_max=100_000_000, bytes_max=100_000_000)
    frames = [index.to_bytes(4) + bytes(100_000) for index in range(700)]
    for frame in frames:
        outbox.send(identity, frame)
    assert outbox.frames > 0
    assert outbox.bytes == outbox.frames * len(frames[0])
    got: list[bytes] = []

    def turn() -> bool:
        assert outbox.flush() == []
        got.extend(sockets.receive_all(peer, 1000)[0])
        return len(got) == len(frames)

    until(turn, peer)
    assert got == frames
    assert (outbox.frames, outbox.bytes, outbox.dropped) == (0, 0, 0)


def test_an_outbox_is_bounded_and_drops_the_oldest(ctx: Context, run: Path) -> None:
    """A client that never reads costs its bound and no more; the newest answer is worth most."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    sockets.send(peer, b"hello")
    identity, _ = await_frame_from(bound)
    outbox = Outbox(bound, peer_bytes_max=1_000_000, bytes_max=2_000_000)
    count = 0
    while outbox.dropped < 5:
        outbox.send(identity, count.to_bytes(4) + bytes(99_996))
        count += 1
        assert outbox.bytes <= 1_000_000
        assert count < 10_000
    assert outbox.frames == 10
    got: list[int] = []

    def turn() -> bool:
        outbox.flush()
        got.extend(int.from_bytes(frame[:4]) for frame in sockets.receive_all(peer, 1000)[0])
        return got[-1:] == [count - 1]

    until(turn, peer)
    assert len(got) == count - 5
    outbox.send(identity, bytes(1_000_001))
    assert outbox.bytes == 0


def test_an_outbox_over_its_whole_bound_shortens_who_holds_most(ctx: Context, run: Path) -> None:
    """PROOF G4: a client that never reads must not cost a slow one its answers."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peers = [connected(ctx, f"ipc://{run}/a.sock") for _ in range(2)]
    outbox = Outbox(bound, peer_bytes_max=3_000_000, bytes_max=4_000_000)
    names: list[bytes] = []
    for peer, kept in zip(peers, (40, 15), strict=True):
        sockets.send(peer, b"hello")
        names.append(await_frame_from(bound)[0])
        before = outbox.frames
        while outbox.frames == before:
            outbox.send(names[-1], bytes(100_000))
        for _ in range(kept - 1):
            outbox.send(names[-1], bytes(100_000))
    _, slow = names
    assert (outbox.bytes, outbox.dropped) == (4_000_000, 15)
    outbox.forget(slow)
    assert outbox.bytes == 2_500_000, "the slow one has kept its 15, the deaf one has lost 5 more"


def test_an_outbox_forgets_a_peer_that_is_gone(ctx: Context, run: Path) -> None:
    """Else every client that went away while full would cost its bound for ever."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    sockets.send(peer, b"hello")
    identity, _ = await_frame_from(bound)
    outbox = Outbox(bound)
    while not outbox.frames:
        outbox.send(identity, bytes(100_000))
    peer.close()

    def is_gone() -> bool:
        outbox.flush()
        try:
            outbox.send(identity, b"x")
        except PeerGone:
            return True
        return False

    until(is_gone, bound)
    assert (outbox.frames, outbox.bytes) == (0, 0)


def test_push_and_pull_carry_single_frames(ctx: Context, run: Path) -> None:
    """Children report to their supervisor this way."""
    bound = sockets.pull(ctx, f"ipc://{run}/a.sock")
    assert stat.S_IMODE(os.stat(run).st_mode) == 0o700
    peer = sockets.push(ctx, f"ipc://{run}/a.sock", frames_queued_max=16)
    assert sockets.send(peer, b"report")
    assert await_frame(bound) == b"report"


def test_what_a_push_sends_before_anybody_listens_arrives_within_its_bound(
    ctx: Context, run: Path
) -> None:
    """A child's first report must not be lost; reports that nobody reads must not pile up."""
    address = f"ipc://{run}/a.sock"
    child = sockets.push(ctx, address, frames_queued_max=2)
    assert [sockets.send(child, b"%d" % each) for each in range(3)] == [True, True, False]
    ear = sockets.pull(ctx, address)
    assert [await_frame(ear), await_frame(ear)] == [b"0", b"1"]


def test_a_polite_close_lets_the_last_frames_arrive(ctx: Context, run: Path) -> None:
    """A shard or router that drains gives its last answers; a plain close loses most of them."""
    bound = sockets.router(ctx, f"ipc://{run}/a.sock")
    peer = connected(ctx, f"ipc://{run}/a.sock")
    sockets.send(peer, b"hello")
    identity, _ = await_frame_from(bound)
    for _ in range(20):
        sockets.send_to(bound, identity, bytes(500))
    closing = threading.Thread(target=sockets.close_politely, args=(bound,), kwargs=UNHURRIED)
    closing.start()
    got: list[bytes] = []
    until(lambda: len(put(got, sockets.receive_all(peer, 100)[0])) == 20, peer)
    closing.join()
