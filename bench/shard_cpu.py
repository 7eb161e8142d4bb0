"""CPU of the shard's pure part per checkout: decode, engine, journal packing, encode; no sockets.

    python -m bench.shard_cpu [SAGAS]

Prints microseconds of CPU per checkout for batches as they occur at 1 024 in flight (10 % of the
checkouts are declined), median of seven rounds.
"""

import secrets
import statistics
import sys
import time

from config.load import load_catalog
from sagacity import wire
from sagacity.messages import (
    ChargePaymentFailed,
    ChargePaymentOk,
    Checkout,
    CreateShipmentOk,
    Item,
    ReleaseReservationOk,
    Reservation,
    ReserveInventoryOk,
)
from sagacity.saga import Retry
from services.checkout import checkout
from shard.admission import Admission
from shard.codec import link, pack_batch
from shard.engine import Engine
from shard.events import Answered, Event, Instant, Requests, WorkerCame
from shard.finished import FinishedInMemory
from shard.retries import RetryBudget
from shard.sagas import Definition
from shard.state import State
from shard.tally import PlainTally

BATCH = 128


def engine() -> Engine:
    """Make an engine that owns every slot."""
    state = State({"checkout": Definition(checkout, Retry())}, FinishedInMemory())
    return Engine(
        0,
        frozenset(range(1024)),
        state,
        load_catalog(None).prices,
        Admission(1_000_000),
        RetryBudget(100, 100, 10),
        PlainTally(),
    )


def answer(command: wire.Command) -> wire.Answer:
    """Answer as the demo's services would; every tenth charge is declined."""
    saga, step = command.saga_id, command.step
    outcome, body = wire.OK, b""
    if command.direction:
        body = wire.pack(ReleaseReservationOk(saga, step))
    elif step == 1:
        held = [Reservation("abc123", "r1"), Reservation("xyz789", "r2")]
        body = wire.pack(ReserveInventoryOk(saga, step, held))
    elif step == 2 and command.number >> 10 & 7 == 0:
        outcome = wire.DECLINED
        body = wire.pack(ChargePaymentFailed(saga, step, "insufficient_funds", "DECLINED"))
    elif step == 2:
        body = wire.pack(ChargePaymentOk(saga, step, "p1", "txn_12345"))
    else:
        body = wire.pack(CreateShipmentOk(saga, step, "s1", "1Z999AA1"))
    return wire.Answer(
        saga, step, command.direction, command.epoch, command.number, command.attempt, outcome, body
    )


def round_of(sagas: int) -> float:
    """Run checkouts through; give microseconds of the shard's CPU for each."""
    it = engine()
    it.resume("0" * 32, Instant(0, 0), 1)
    workers = {b"i": "inventory", b"p": "payment", b"s": "shipping"}
    it.step([WorkerCame(w, s, 1, 100_000) for w, s in workers.items()], Instant(1, 0), 2, 1)
    cart = [Item("abc123", 2), Item("xyz789", 1)]
    frames = []
    for start in range(0, sagas, BATCH):
        ids = [secrets.token_hex(12) for _ in range(start, min(sagas, start + BATCH))]
        frames.append(
            wire.encode(
                [
                    wire.Request(
                        wire.START, i, n, {}, wire.pack(Checkout(i, "u42", cart, "123 Main St"))
                    )
                    for n, i in enumerate(ids)
                ]
            )
        )
    spent, seq, chain, now = 0, 2, b"", 1
    pending: list[tuple[bytes, bytes]] = []
    while frames or pending:
        begun = time.process_time_ns()
        events: list[Event] = [
            Answered(peer, answers.items)
            for peer, frame in pending
            if isinstance(answers := wire.read_to_shard(frame), wire.Answers)
        ]
        if frames:
            events.append(Requests(b"r", wire.read_requests(frames.pop())))
        seq, now = seq + 1, now + 5_000_000
        fx = it.step(events, Instant(now, now // 1_000_000), seq, now)
        chain = link(chain, seq, pack_batch(fx.entries, 1, 0))
        witness = wire.Witness("0" * 32, 0, 1, seq, chain, 0)
        out = {w: list(wire.command_frames(witness, c)) for w, c in fx.commands.items()}
        for replies in fx.replies.values():
            list(wire.frames(replies))
        spent += time.process_time_ns() - begun
        pending = []
        for peer, sent in out.items():
            for frame in sent:
                commands = wire.read_to_worker(frame)
                assert isinstance(commands, wire.Commands)
                answers_frame = wire.encode(wire.Answers([answer(c) for c in commands.items]))
                pending.append((peer, answers_frame))
    assert len(it.state.finished) == sagas
    return spent / 1000 / sagas


def main() -> None:
    """Print the median."""
    sagas = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    rounds = [round_of(sagas) for _ in range(7)]
    print(f"{statistics.median(rounds):.1f} us CPU a checkout (7 rounds of {sagas} checkouts)")


if __name__ == "__main__":
    main()
