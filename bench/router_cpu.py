"""What router and client library cost: microseconds of CPU per checkout.

    python -m bench.router_cpu [--checkouts 100000] [--inflight 1024] [--turn-ms 10]

The real router process and the real Connection; shards are twins that answer everything at once,
every `--turn-ms` (a shard's turn with its commit), so that batches have their usual size. A line
of JSON on stdout.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster.directory import DataDirectory, RunDirectory
from sagacity import messages, sockets, wire
from sagacity.connection import Connection

SHARDS = 2
TICKS = os.sysconf("SC_CLK_TCK")


def twin(address: str, turn_ms: int) -> None:
    """Answer all that came, every turn, until killed."""
    socket = sockets.router(sockets.context(), address)
    final = wire.pack(
        {"type": "checkout_complete", "saga_id": "x", "status": "COMPLETED", "order_id": "o123"}
    )
    turn_at = time.monotonic()
    while True:
        turn_at = max(turn_at + turn_ms / 1000, time.monotonic())
        time.sleep(max(0.0, turn_at - time.monotonic()))
        replies: dict[bytes, list[wire.Reply]] = {}
        for identity, frame in sockets.receive_all_from(socket, 1000)[0]:
            said = [wire.Reply(item.request, None, final) for item in wire.read_requests(frame)]
            replies.setdefault(identity, []).extend(said)
        for identity, items in replies.items():
            for frame in wire.frames(items):
                sockets.send_to(socket, identity, frame)


def body() -> tuple[str, bytes]:
    """Give a random id and a checkout under it."""
    saga_id = secrets.token_hex(8)
    order = messages.Order(
        saga_id,
        "u42",
        [messages.Line("abc123", 2), messages.Line("xyz789", 1)],
        "123 Main St",
    )
    return saga_id, wire.pack(order)


def cpu_s(pid: int) -> float:
    """Give the CPU seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def load(connection: Connection, checkouts: int, inflight: int) -> float:
    """Keep `inflight` open until so many are answered; give the seconds of wall time."""
    bodies = [body() for _ in range(checkouts)]
    upcoming = iter(bodies)
    begun = time.perf_counter()
    for saga_id, packed in bodies[:inflight]:
        connection.ask(wire.START, saga_id, packed)
        next(upcoming)
    left = checkouts
    while left:
        settled = connection.poll(1.0)
        left -= len(settled)
        for _, reply in settled:
            if reply.code is not None:
                raise SystemExit(f"refused: {wire.unpack(reply.body)}")
        for _ in settled:
            following = next(upcoming, None)
            if following is not None:
                connection.ask(wire.START, *following)
    return time.perf_counter() - begun


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkouts", type=int, default=100_000)
    parser.add_argument("--inflight", type=int, default=1024)
    parser.add_argument("--turn-ms", type=int, default=10)
    parser.add_argument("--twin", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.twin:
        twin(options.twin, options.turn_ms)
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="sg-") as base:
        run = RunDirectory(Path(base) / "run")
        run.path.mkdir(mode=0o700)
        DataDirectory(Path(base) / "data").open_or_create(SHARDS)
        try:
            for shard in range(SHARDS):
                command = [sys.executable, "-m", "bench.router_cpu", "--twin", run.shard(shard)]
                command += ["--turn-ms", str(options.turn_ms)]
                children.append(subprocess.Popen(command))
            command = [sys.executable, "-P", "-m", "router", "--data", f"{base}/data"]
            children.append(subprocess.Popen([*command, "--run", str(run.path)]))
            with Connection(run.router) as connection:
                load(connection, 4 * options.inflight, options.inflight)
                router = children[-1].pid
                router_s, client_s = cpu_s(router), time.process_time()
                prepared = time.process_time()
                [body() for _ in range(options.checkouts)]
                bodies_s = time.process_time() - prepared
                client_s = time.process_time()
                wall_s = load(connection, options.checkouts, options.inflight)
                client_s = time.process_time() - client_s - bodies_s
                router_s = cpu_s(router) - router_s
        finally:
            for child in children:
                child.kill()
                child.wait()
    each = 1e6 / options.checkouts
    print(
        json.dumps(
            {
                "checkouts": options.checkouts,
                "inflight": options.inflight,
                "checkouts_per_s": round(options.checkouts / wall_s),
                "router_us": round(router_s * each, 2),
                "client_us": round(client_s * each, 2),
                "body_us": round(bodies_s * each, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
