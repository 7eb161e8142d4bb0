"""A cluster whose connections are spoiled byte by byte (PROOF, layer N, on real processes).

    python -m tests.chaos.proxy [--links client,worker] [--ways delay,reset,up,down,trickle,flip]
                                [--seconds 5] [--rate 100] [--seed S] [--tcp]

Under a steady load of checkouts a process that passes bytes on (`relay`) stands between the client
and the router, or between both shards and all their workers. For a time it delays each chunk, cuts
every connection again and again, swallows one direction (up: to the router, to the shard), passes
one byte at a time, or flips bits; then it is honest again. What must hold: every checkout ends as
its content demands and answers the same when it is asked again, the books balance, what is on disk
satisfies the invariants, and every process of the cluster is the one that it was. A way that did
nothing makes its round void.

Between client and router any bit is flipped, for a client of its own, of which only that the
cluster is unharmed is asked. Between shard and worker it is one of the first four bytes of a
chunk, where ZeroMQ's lengths and the frame's head stand: a bit of a body that stays readable is
another message, which no sum finds, and which no local socket delivers.

One line for each way; exit code 1 if something is not as it has to be, with the command that
repeats it.
"""

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from cluster.audit import audit
from sagacity.client import Client
from sagacity.errors import SagacityError
from tests.chaos import processes
from tests.chaos.cluster import SERVICES, SHARDS, RoundFailed
from tests.chaos.commands import add_list, add_seed
from tests.chaos.load import WAIT_S, Load
from tests.chaos.trial import Trial, since
from tests.reached import Reached, tell

LINKS: Final = ("client", "worker")
WAYS: Final = {  # and what counts that it really happened
    "delay": "delayed",
    "reset": "reset",
    "up": "swallowed",
    "down": "swallowed",
    "trickle": "trickled",
    "flip": "flipped",
}
RATE: Final = 100.0
STEADY_S: Final = 1.0
# ZeroMQ takes a connection that says nothing for dead after 30 s, and looks each 5 s.
OVER_S: Final = 90.0
TOLD_MAX: Final = 8
# A connection that swallows is found after half a minute: nobody may turn back for that. What was
# on it has timed out by then; ten retries a second, the default, would take another half a minute.
ENV: Final = {
    "SAGACITY_SHARD__RETRY_PER_SECOND": "1000",
    "SAGACITY_SAGA__ATTEMPTS": "100",
    "SAGACITY_SAGA__DEADLINE_MS": "300000",
}


class Between:
    """The process between.

    Args:
        seed: of the bits that are flipped.
        pairs: where it listens, and to whom it passes on.
    """

    def __init__(self, seed: int, pairs: Sequence[tuple[str, str]]) -> None:
        words = [f"{at}={to}" for at, to in pairs]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.relay", str(seed), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._read()

    def turn_to(self, way: str) -> dict[str, int]:
        """Have it do something else; give what it has done until now."""
        assert self._process.stdin is not None
        self._process.stdin.write(way.encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RoundFailed("the process between has ended")
        told: dict[str, int] = json.loads(line)
        return told


class Proxied:
    """A trial whose one link is spoiled in several ways, one after the other.

    Args:
        link: which.
        seed: of ids, carts, bits.
        args: of the command line.
    """

    def __init__(self, link: str, seed: str, args: argparse.Namespace) -> None:
        self._link = link
        self._rng = random.Random(f"{seed}/{link}")
        self._args = args
        self.done: Counter[str] = Counter()  # what each way has really done

    def run(self, ways: Sequence[str]) -> list[str]:
        """Do all of it; no process is left.

        Returns:
            What is not as it has to be, as sentences.
        """
        with ExitStack() as stack:
            self._base = Path(tempfile.mkdtemp(prefix="sg-"))
            stack.callback(shutil.rmtree, self._base, ignore_errors=True)
            self._stack = stack
            arguments: list[str] = []
            if self._args.tcp:
                arguments = ["--port", str(_free_port())]
            trial = self._trial = Trial(
                f"{self._args.seed}/{self._link}",
                rate=self._args.rate,
                env=ENV,
                base=self._base,
                arguments=arguments,
                through=self._between_client if self._link == "client" else None,
            )
            try:
                with trial:
                    if self._link == "worker":
                        self._between_workers()
                    before = set(processes.of_cluster(trial.data))
                    for way in ways:
                        self._spoil(way, before)
                    self._finish(flipped="flip" in ways and self._link == "client")
                    trial.stop()
                sagas = trial.check_disk()
                print(f"{self._link:6} {sagas} checkouts in the journals", flush=True)
            except (RoundFailed, SagacityError) as error:
                trial.violations.append(f"{type(error).__name__}: {error}")
            return trial.violations

    # -- standing between -----------------------------------------------------------------------

    def _between(self, pairs: Sequence[tuple[str, str]]) -> Between:
        between = Between(self._rng.getrandbits(32), pairs)
        self._stack.callback(between.close)
        return between

    def _between_client(self, url: str) -> str:
        self._relay, through = self._to_router(url)
        return through

    def _to_router(self, url: str) -> tuple[Between, str]:
        kind, _, to = url.partition("://")
        if kind == "tcp":
            at = str(_free_port())
            return self._between([(at, to.rpartition(":")[2])]), f"tcp://127.0.0.1:{at}"
        path = str(self._base / f"between-{self._rng.getrandbits(16)}.sock")
        return self._between([(path, to)]), f"ipc://{path}"

    def _between_workers(self) -> None:
        """Take the place of both shards' sockets; then have every worker connect anew."""
        trial = self._trial
        run = next((self._base / "runtime").rglob("shard-0-workers.sock")).parent
        pairs = []
        for index in range(SHARDS):
            path = run / f"shard-{index}-workers.sock"
            far = path.with_suffix(".far")
            path.rename(far)
            pairs.append((str(path), str(far)))
        self._relay = self._between(pairs)
        for service in SERVICES:
            processes.kill([trial.worker(service)])
            trial.worker(service)  # waits until one works and one stands by
        taken = self._relay.turn_to("clean").get("connections", 0)
        if taken < SHARDS * len(SERVICES):
            raise RoundFailed(f"void: {taken} connections go through the process between")

    # -- one way --------------------------------------------------------------------------------

    def _spoil(self, way: str, before: set[processes.Process]) -> None:
        """Spoil the link in a way for a time; go on until what came meanwhile is done."""
        trial, load, relay = self._trial, self._trial.load, self._relay
        load.turn_for(STEADY_S)
        answered = len(load.answered)
        begun = relay.turn_to("clean")
        if way == "flip" and self._link == "client":
            done = self._flip_for_another()
        else:
            relay.turn_to("flip_head" if way == "flip" else way)
            load.turn_for(self._args.seconds)
            done = relay.turn_to("clean")
            done = {key: times - begun.get(key, 0) for key, times in done.items()}
        answered = len(load.answered) - answered
        had, over_at = load.open_ids, time.monotonic()
        since(trial, over_at, OVER_S, f"after {way}")
        load.turn_until(lambda: not had & load.open_ids, OVER_S, f"the end of {len(had)} open")
        took = time.monotonic() - over_at
        count = done.get(WAYS[way], 0)
        self.done[way] += count
        if not count:
            load.violation(f"void: {way} did nothing")
        gone = [each for each in before if not processes.is_alive(each)]
        for each in gone:
            load.violation(f"{way} ended a process: {' '.join(each.command[2:6])}")
        print(
            f"{self._link:6} {way:7} {count:7} {WAYS[way]}, {answered} answered meanwhile, "
            f"{len(had)} open at its end, {took:.1f} s until they were done; "
            f"{len(gone)} processes ended",
            flush=True,
        )

    def _flip_for_another(self) -> dict[str, int]:
        """Flip bits for a client of its own, while the load goes on beside it."""
        relay, url = self._to_router(self._trial.url)
        relay.turn_to("flip")
        victim = Load(url, self._rng, [], 64, endings=("completes", "declined"))
        until = time.monotonic() + self._args.seconds
        try:
            while time.monotonic() < until:
                self._trial.load.turn()
                with suppress(SagacityError):
                    victim.turn()
            return relay.turn_to("clean")
        finally:
            victim.close()

    # -- afterwards -----------------------------------------------------------------------------

    def _finish(self, *, flipped: bool) -> None:
        """End the load and check answers, repeats and books."""
        trial = self._trial
        if not flipped:
            trial.finish()
            return
        load = trial.load
        load.finish(WAIT_S)
        load.ask_all_again(WAIT_S)
        load.judge()
        with Client(trial.url, timeout_s=WAIT_S) as client:
            give_up = time.monotonic() + WAIT_S
            report = audit(client)
            # What the other client asked for goes on without it.
            while report["sagas"]["running"] and time.monotonic() < give_up:
                load.turn_for(0.2)
                report = audit(client)
        if not report["balanced"] or report["sagas"]["running"] or report["sagas"]["stuck"]:
            load.violation(f"audit: {report['sagas']}; {report['faults'][:3]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _tell(link: str, args: argparse.Namespace, violations: Sequence[str]) -> None:
    """Print the violations that were found, and how to see them again."""
    for text in violations[:TOLD_MAX]:
        print(f"    VIOLATION {text}", flush=True)
    if violations:
        tcp = " --tcp" if args.tcp else ""
        print(
            f"    again: python -m tests.chaos.proxy --links {link} --ways {','.join(args.ways)} "
            f"--seconds {args.seconds:g} --rate {args.rate:g} --seed {args.seed}{tcp}",
            flush=True,
        )


def _reached(done: Counter[str]) -> list[Reached]:
    return [
        Reached("B2", done["up"] + done["down"], "bytes that were swallowed"),
        Reached("G5", done["flip"], "flipped bits on a connection"),
        Reached("G6", done["trickle"], "bytes that came one by one"),
        Reached("G6", done["reset"], "connections that were reset"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Spoil each link in each way.

    Returns:
        0 if all held, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.proxy")
    add_list(parser, "--links", LINKS)
    add_list(parser, "--ways", WAYS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each way")
    parser.add_argument("--rate", type=float, default=RATE, help="checkouts a second")
    add_seed(parser)
    parser.add_argument("--tcp", action="store_true", help="the router serves TCP on loopback")
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    violations = 0
    done: Counter[str] = Counter()
    for link in args.links:
        proxied = Proxied(link, args.seed, args)
        found = proxied.run(args.ways)
        done += proxied.done
        _tell(link, args, found)
        violations += len(found)
    tell(_reached(done))
    print(f"{len(args.links) * len(args.ways)} ways, {violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
