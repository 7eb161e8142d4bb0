"""Bad neighbours of a normal load, and what stays behind (PROOF G1, G4, G6), on real processes.

    python -m tests.chaos.neighbours [--which grown,deaf,vanishing,half,silent,garbage,trickle]
                                     [--seconds 8] [--finished 30000] [--seed S] [--json FILE]

* grown (G1): sagas finish, tens of thousands; no process serves a series more than before, and its
  memory grows by less than a stretch of them could leave behind.
* deaf (G4): clients that ask for histories, as fast as they can, and never read one.
* vanishing (G4): clients that start checkouts and are gone.
* half (G4, G6): hundreds of connections with half a frame of the longest kind.
* silent (G6): hundreds of connections that never say a word, opened and closed all the time.
* garbage (G6): hundreds of connections that say no ZeroMQ.
* trickle (G6): connections that say a good request, one byte at a time.

Beside each, a hundred checkouts a second have to be served as ever, within a second at the 99th
percentile; every process is the one that it was, and none has grown by more than 64 MiB. Who did
nothing bad: void. Two minutes at full size.
"""

import argparse
import secrets
import socket as plain
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Final

import zmq

from bench.figures import Figures
from bench.load import body_of
from bench.outside import resident_bytes
from sagacity import sockets, wire
from sagacity.client import Client
from sagacity.errors import SagacityError
from tests.chaos.cluster import RoundFailed
from tests.chaos.commands import add_json, add_list, add_seed, end
from tests.chaos.scrape import samples
from tests.chaos.shop import Customers, Shop

RATE: Final = 100.0
MIB: Final = 1 << 20
GROWN_MIB_AT_MOST: Final = 64.0
P99_S_AT_MOST: Final = 1.0
GOODPUT_AT_LEAST: Final = 0.95
CONNECTIONS: Final = 300
DEAF: Final = 4
KNOWN: Final = "known"  # a saga that neighbours ask about
SHOWS: Final = 200  # in one frame
STARTS: Final = 300  # of one who vanishes
TURN_S: Final = 0.1
TRICKLING: Final = 20
BYTES_A_TURN: Final = 4  # who has not said its greeting after 5 s is closed, rightly
FILL_RATE: Final = 1_500.0
# A saga that stayed would be some hundred bytes; its id leaves 2 behind in a shard's memory.
BYTES_A_SAGA_AT_MOST: Final = 100.0
ROOM_MIB: Final = 16.0  # that any process may take for buffers and caches

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\x00") + bytes(32)
READY: Final = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
HELLO: Final = GREETING + b"\x04" + bytes([len(READY)]) + READY  # as ZeroMQ says it (ZMTP 3.0)
HALF: Final = b"\x02" + wire.FRAME_BYTES_MAX.to_bytes(8) + bytes(1000)

Deeds = Generator[int, None, None]  # gives, each turn, how much was done


def _connect(shop: Shop, said: bytes) -> plain.socket:
    made = plain.socket(plain.AF_UNIX, plain.SOCK_STREAM)
    made.settimeout(5)
    try:
        made.connect(shop.url.removeprefix("ipc://"))
        if said:
            made.sendall(said)
    except OSError:
        made.close()
        raise
    return made


def _crowd(shop: Shop, said: bytes, *, anew: bool) -> Deeds:
    """Hold many connections that say something; each turn some more, or some of them anew."""
    made: list[plain.socket] = []
    try:
        while True:
            done = 0
            for _ in range(CONNECTIONS // 10):
                if len(made) >= CONNECTIONS:
                    if not anew:
                        break
                    made.pop(0).close()
                with suppress(OSError):  # ours was closed: it is not welcome
                    made.append(_connect(shop, said))
                    done += 1
            yield done
    finally:
        for each in made:
            each.close()


def deaf(shop: Shop, known: str) -> Deeds:
    """Ask for histories without end, and read nothing."""
    ctx = zmq.Context()
    made: list[zmq.Socket[bytes]] = []
    try:
        for _ in range(DEAF):
            dealer = ctx.socket(zmq.DEALER)
            for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 1), (zmq.RCVBUF, 4096)):
                dealer.setsockopt(option, value)
            dealer.connect(shop.url)
            made.append(dealer)
        number = 0
        while True:
            done = 0
            for dealer in made:
                asked = [
                    wire.Request(wire.SHOW, known, number + at, {}, b"") for at in range(SHOWS)
                ]
                number += SHOWS
                for frame in wire.frames(asked):
                    with suppress(zmq.Again):
                        dealer.send(frame, zmq.DONTWAIT)
                        done += SHOWS
            yield done
    finally:
        ctx.destroy(linger=0)


def vanishing(shop: Shop, _known: str) -> Deeds:
    """Start checkouts and go away before they are answered."""
    while True:
        ctx = sockets.context()
        try:
            dealer = sockets.dealer(ctx, shop.url)
            dealer.poll(1000, zmq.POLLOUT)
            ids = [f"gone-{secrets.token_hex(12)}" for _ in range(STARTS // 10)]
            asked = [
                wire.Request(wire.START, saga_id, at, {}, body_of(saga_id, declined=False))
                for at, saga_id in enumerate(ids)
            ]
            done = sum(sockets.send(dealer, frame) for frame in wire.frames(asked)) * len(ids)
        finally:
            ctx.destroy(linger=100)
        yield done


def half(shop: Shop, _known: str) -> Deeds:
    """Say half a frame."""
    return _crowd(shop, HELLO + HALF, anew=False)


def silent(shop: Shop, _known: str) -> Deeds:
    """Say nothing, again and again."""
    return _crowd(shop, b"", anew=True)


def garbage(shop: Shop, _known: str) -> Deeds:
    """Say what is no ZeroMQ."""
    return _crowd(shop, b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 8, anew=True)


def trickle(shop: Shop, known: str) -> Deeds:
    """Say a good request, some bytes in each turn, each by itself."""
    asked = wire.encode([wire.Request(wire.SHOW, known, 1, {}, b"")])
    said = HELLO + b"\x00" + bytes([len(asked)]) + asked
    made: list[plain.socket] = []
    at = 0
    try:
        while True:
            if not made or at == len(said):  # a second greeting would be another connection's
                while made:
                    made.pop().close()
                made = [_connect(shop, b"") for _ in range(TRICKLING)]
                at = 0
            for byte in said[at : at + BYTES_A_TURN]:
                for each in made:
                    each.sendall(bytes([byte]))
                at += 1
            yield len(made)
    finally:
        for each in made:
            each.close()


NEIGHBOURS: Final[dict[str, tuple[str, Callable[[Shop, str], Deeds]]]] = {
    "deaf": ("G4", deaf),
    "vanishing": ("G4", vanishing),
    "half": ("G4, G6", half),
    "silent": ("G6", silent),
    "garbage": ("G6", garbage),
    "trickle": ("G6", trickle),
}


def memory(shop: Shop) -> dict[str, float]:
    """Give what each process takes, MiB, by name."""
    return {name: resident_bytes(pid) / MIB for name, pid in shop.everyone().items() if pid}


def beside(name: str, shop: Shop, customers: Customers, seconds: float, figures: Figures) -> None:
    """Have a neighbour do what it does, while customers come as ever."""
    codes, neighbour = NEIGHBOURS[name]
    [before] = shop.run(2, (customers, RATE))
    held, pids = memory(shop), shop.everyone()
    deeds = neighbour(shop, KNOWN)
    done, begun, most = 0, time.monotonic(), dict(held)
    served, came = len(customers.served), len(customers.came)
    try:
        while time.monotonic() - begun < seconds:
            done += next(deeds)
            shop.run(TURN_S, (customers, RATE))
        for each, now in memory(shop).items():
            most[each] = max(most.get(each, 0.0), now)
    finally:
        deeds.close()
    waits = sorted(wait for _, wait in customers.served[served:])
    goodput = len(waits) / (len(customers.came) - came)
    shop.until_served(customers)
    grown = max(most[each] - held.get(each, 0.0) for each in most)
    what = f"{codes} {name}"
    figures.add(f"{what}: done", "", done, at_least=1)
    figures.add(f"{what}: goodput beside it", "", goodput, at_least=GOODPUT_AT_LEAST)
    p99 = waits[int(len(waits) * 0.99)] if waits else seconds
    figures.add(f"{what}: p99 before", "s", before.p99_s)
    figures.add(f"{what}: p99 beside it", "s", p99, at_most=P99_S_AT_MOST)
    figures.add(f"{what}: a process has grown by", "MiB", grown, at_most=GROWN_MIB_AT_MOST)
    ended = sum(pid != pids.get(each) for each, pid in shop.everyone().items())
    figures.add(f"{what}: processes that ended", "", ended, at_most=0)


def series(shop: Shop) -> dict[str, int]:
    """Give how many series each process serves, by name."""
    return {
        f"{row['role']}-{row['index']}": len(samples(row))
        for row in shop.rows()
        if row["metrics_port"]
    }


def grown(shop: Shop, finished: int, figures: Figures) -> None:
    """G1: nothing grows with what is finished."""
    customers = shop.customers()
    third = finished / 3
    shop.run(third / FILL_RATE, (customers, FILL_RATE))  # every buffer has its size by then
    shop.until_served(customers)
    before, held, done = series(shop), memory(shop), len(customers.served)
    shop.run(2 * third / FILL_RATE, (customers, FILL_RATE))
    shop.until_served(customers)
    time.sleep(2.0)  # a heartbeat, for gauges
    after, now = series(shop), memory(shop)
    more = len(customers.served) - done
    figures.add("G1: sagas finished before", "", done, at_least=1)
    figures.add("G1: sagas finished meanwhile", "", more, at_least=1)
    figures.add("G1: series before", "", sum(before.values()))
    figures.add("G1: series more", "", sum(after.values()) - sum(before.values()), at_most=0)
    at_most = ROOM_MIB + BYTES_A_SAGA_AT_MOST * more / MIB
    for name in sorted(held):
        role_grown = now[name] - held[name]
        figures.add(f"G1: {name} has grown by", "MiB", role_grown, at_most=at_most)


def main(argv: Sequence[str] | None = None) -> int:
    """Do each of them on one cluster.

    Returns:
        0 if everything that is asked is met, else 1.
    """
    known = ["grown", *NEIGHBOURS]
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.neighbours")
    add_list(parser, "--which", known)
    parser.add_argument("--seconds", type=float, default=8.0, help="beside each neighbour")
    parser.add_argument("--finished", type=int, default=30_000, help="sagas, for grown")
    add_seed(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    figures = Figures("neighbours")
    try:
        with Shop(args.seed) as shop:
            if "grown" in args.which:
                grown(shop, args.finished, figures)
            customers = shop.customers()
            _one_known(shop)
            for name in args.which:
                if name in NEIGHBOURS:
                    beside(name, shop, customers, args.seconds, figures)
            shop.check_books(figures)
    except (RoundFailed, SagacityError) as error:
        figures.missing("to its end", "", str(error), at_most=0)
    return end(figures, args.json)


def _one_known(shop: Shop) -> None:
    """Have the saga be there that neighbours ask about."""
    items = [{"sku": "abc123", "quantity": 1}]
    with Client(shop.url) as client:
        client.checkout(user_id="u42", items=items, shipping_address="1 Elm St", saga_id=KNOWN)


if __name__ == "__main__":
    sys.exit(main())
