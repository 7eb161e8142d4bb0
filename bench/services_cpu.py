"""What a checkout costs each service: CPU of handlers, barrier, frames and commits, by batch size.

    python -m bench.services_cpu [--checkouts N]

One process, real files, synced commits, no sockets. Prints microseconds of CPU (user and system)
per command beside the budget of DESIGN 8.
"""

import argparse
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from config.load import load_catalog
from sagacity import wire
from sagacity.executor import BatchExecutor, make_tables, open_file
from sagacity.ids import ACTION, number_of
from sagacity.messages import ChargePayment, CreateShipment, Line, ReserveInventory
from sagacity.service import Service
from sagacity.wire import Answers, Command, Commands, Witness
from services.inventory import service as inventory
from services.payment import service as payment
from services.shipping import service as shipping

CLUSTER_ID = "0" * 32
BUDGET_US = {"inventory": 35, "payment": 20, "shipping": 20}
LINES = [Line("abc123", 2), Line("xyz789", 1)]  # the example's cart


def bodies(name: str, saga_id: str) -> tuple[int, wire.Headers, bytes]:
    """Give the step and the packed action of a service for one checkout."""
    if name == "inventory":
        return 1, {}, wire.encode(ReserveInventory(saga_id, 1, LINES))
    if name == "payment":
        return 2, {}, wire.encode(ChargePayment(saga_id, 2, "u42", 24999))
    return 3, {}, wire.encode(CreateShipment(saga_id, 3, LINES, "123 Main St"))


def frames_of(name: str, checkouts: int, batch: int) -> list[bytes]:
    """Give the frames that shards would send, `batch` commands each, random saga ids."""
    commands = []
    for count in range(1, checkouts + 1):
        saga_id = f"saga-{secrets.token_hex(16)}"
        step, headers, body = bodies(name, saga_id)
        number = number_of(count, count % 2)
        commands.append(Command(saga_id, step, ACTION, 1, number, 1, headers, body))
    frames = []
    for at in range(0, checkouts, batch):
        witness = Witness(CLUSTER_ID, 0, 1, at + 1, bytes(16), commands[at].number)
        frames.append(wire.encode(Commands(witness, commands[at : at + batch])))
    return frames


def measure(service: Service, frames: Sequence[bytes], directory: Path) -> tuple[float, float]:
    """Give seconds of CPU and of wall time that a service takes for the frames."""
    connection = open_file(directory / f"{service.name}.db")
    make_tables(connection, service, CLUSTER_ID, load_catalog())
    executor = BatchExecutor(connection, service, structlog.get_logger())
    cpu, wall = time.process_time(), time.perf_counter()
    for frame in frames:
        batch = wire.read_to_worker(frame)
        assert isinstance(batch, Commands)
        for answers in executor.execute([batch]):
            assert all(answer.outcome == wire.OK for answer in answers)
            wire.encode(Answers(answers))
        executor.tidy()
    spent = time.process_time() - cpu, time.perf_counter() - wall
    executor.close()
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.services_cpu")
    parser.add_argument("--checkouts", type=int, default=20_000)
    checkouts = parser.parse_args().checkouts
    print(f"{'service':<10} {'batch':>6} {'cpu us':>8} {'wall us':>8} {'budget us':>10}")
    for service in (inventory, payment, shipping):
        for batch in (1, 50, 256):
            count = checkouts if batch > 1 else checkouts // 20
            frames = frames_of(service.name, count, batch)
            with tempfile.TemporaryDirectory(prefix="sagacity-bench-") as directory:
                cpu, wall = measure(service, frames, Path(directory))
            print(
                f"{service.name:<10} {batch:>6} {cpu / count * 1e6:>8.1f}"
                f" {wall / count * 1e6:>8.1f} {BUDGET_US[service.name]:>10}"
            )


if __name__ == "__main__":
    main()
