"""Death and errors in every system call: at the K-th call of a kind, for every K.

    python -m tests.chaos.syscalls [--roles shard,payment,inventory,shipping]
                                   [--kinds kill,power,EIO,ENOSPC] [--calls pwrite64,…]
                                   [--every N] [--fault KIND:CALL:K …] [--lying-syncs]
    python -m tests.chaos.syscalls --quick

One real process, a shard or a worker, does some tens of checkouts, declined ones among them,
between twins of its neighbours: it starts on a new directory, works, compacts its journal and is
stopped. strace ends it at the K-th call, which is not carried out (kill); or with the power of its
machine, so that what was not synced is gone, all of it or some (power); or has it fail (EIO,
ENOSPC). Started again without strace it finishes the work, and then: every acknowledged start
is final, no answer has changed, what took effect is what was answered, the journal or the database
is whole. K goes on until a whole life passes without that call.

Calls on the journal's or database's files: pwrite64, fdatasync, fsync, ftruncate, fallocate,
unlink, openat, pread64. On all sockets: sendto, recvfrom; those are counted for each thread.

--quick is a spread: one directory for each role, on which life follows life, each ended in its way,
so that recovery itself is met by faults; what must hold is looked at once, after the last.

With --lying-syncs the power's failures have to show violations: they take what a sync that was not
carried out had promised.

Counts by role, kind and call; exit code 1 on a violation, with the command that repeats it, 2
without strace or a C compiler.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.chaos import unsynced
from tests.chaos.commands import add_list
from tests.chaos.injected import CALLS, KINDS, POWER, Fault, NoStrace, fault_of, require
from tests.chaos.traced_shard import TracedShard
from tests.chaos.traced_worker import TracedWorker
from tests.integration.shard_world import opened
from tests.integration.twin_shard import place
from tests.reached import Reached, tell

ROLES: Final = ("shard", "payment", "inventory", "shipping")
TOLD_MAX: Final = 5
QUICK: Final = {  # of each role, in a row
    "shard": (
        # The first life makes the journal, the others recover; the last calls are of the stop.
        "kill:pwrite64:2 kill:pwrite64:19 kill:fdatasync:2 kill:fdatasync:7 kill:sendto:3 "
        "kill:recvfrom:4 kill:openat:2 kill:pread64:5 kill:pwrite64:45 kill:unlink:1 "
        "EIO:fdatasync:5 EIO:pwrite64:11"
    ),
    "payment": (
        "kill:pwrite64:3 kill:pwrite64:33 kill:fdatasync:2 kill:fdatasync:4 kill:sendto:3 "
        "kill:recvfrom:3 kill:openat:2 kill:pread64:2 kill:pwrite64:24 kill:unlink:1 "
        "EIO:fdatasync:3 EIO:pwrite64:9"
    ),
}


class Series(NamedTuple):
    """What became of a series of lives on one directory.

    Args:
        struck: the faults that happened.
        passed: those whose call was never made.
        checkouts: that were asked.
        violations: what was not as it has to be.
    """

    struck: list[Fault]
    passed: list[Fault]
    checkouts: int
    violations: list[str]


@contextmanager
def traced(
    role: str, library: Path | None = None, *, lies: bool = False
) -> Iterator[TracedShard | TracedWorker]:
    """Give a role's process between its twins, on a new directory; nothing is left of it."""
    if role == "shard":
        with opened() as world:
            yield TracedShard(world, library, lies=lies)
    else:
        with tempfile.TemporaryDirectory(prefix="sg-") as base, place(Path(base) / "data") as here:
            yield TracedWorker(here, role, library, lies=lies)


def series(process: TracedShard | TracedWorker, faults: Sequence[Fault]) -> Series:
    """Live one life for each fault, then one without; say what was seen."""
    struck: list[Fault] = []
    passed: list[Fault] = []
    try:
        for fault in faults:
            (struck if process.live(fault) else passed).append(fault)
        found = process.end()
    except AssertionError as error:  # the twins' own: what has to come did not
        found = [f"{type(error).__name__}: {error}"]
    return Series(struck, passed, process.checkouts, found)


class Campaign:
    """Runs series, counts, prints.

    Args:
        library: that takes back what was not synced, where the power fails.
        lies: syncs are not carried out.
    """

    def __init__(self, library: Path | None = None, *, lies: bool = False) -> None:
        self._library = library
        self._lies = lies
        self.lost_bytes = 0
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.checkouts = 0
        self.violations = 0

    def run(self, role: str, faults: Sequence[Fault]) -> Series:
        """Run a series; tell of it if it shows a violation."""
        with traced(role, self._library, lies=self._lies) as process:
            done = series(process, faults)
            self.lost_bytes += process.injector.lost_bytes
        self.checkouts += done.checkouts
        for fault in done.struck:
            self.counts[role, fault.kind, fault.call] += 1
        if done.violations:
            self.violations += 1
            print(f"VIOLATION {role} {' '.join(map(str, faults))}", flush=True)
            for text in done.violations[:TOLD_MAX]:
                print(f"    {text}", flush=True)
            again = " ".join(f"--fault {fault}" for fault in faults)
            print(f"    again: python -m tests.chaos.syscalls --roles {role} {again}", flush=True)
        return done

    def every(self, role: str, kind: str, call: str, step: int) -> None:
        """Have every K, or every so-many-th, on a directory of its own each."""
        at = 1
        while self.run(role, [Fault(kind, call, at)]).struck:
            at += step
        times = self.counts[role, kind, call]
        print(f"{role:9} {kind:6} {call:9} {times:4} struck, none at K = {at}", flush=True)

    def reached(self) -> list[Reached]:
        """Give which anomalies were met."""

        def struck(kind: str, roles: Sequence[str] = ROLES, calls: str = "") -> int:
            return sum(
                times
                for (role, how, call), times in self.counts.items()
                if how == kind and role in roles and (not calls or call in calls.split())
            )

        return [
            Reached("D1", struck("kill", ["shard"]), "a shard dies at a call"),
            Reached("D5", struck(POWER), "what was not synced is lost"),
            Reached("D6", struck("EIO", calls="fdatasync fsync"), "a sync fails"),
            Reached("D7", struck("ENOSPC"), "a call finds no room"),
            Reached("E4", struck("kill", ROLES[1:]), "a worker dies at a call"),
        ]

    def summary(self) -> str:
        """Give it as lines."""
        kinds: Counter[str] = Counter()
        for (_, kind, _), times in self.counts.items():
            kinds[kind] += times
        told = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS)
        lost = f" ({self.lost_bytes} bytes lost)" if kinds[POWER] else ""
        return f"{told}{lost}; {self.checkouts} checkouts; {self.violations} violations"


def faults_of(words: str) -> list[Fault]:
    """Read faults that stand in a row."""
    return [fault_of(word) for word in words.split()]


def quick(campaign: Campaign) -> None:
    """Have the spread, one directory for each role."""
    for role, words in QUICK.items():
        faults = faults_of(words)
        done = campaign.run(role, faults)
        missed = f"; not reached: {' '.join(map(str, done.passed))}" if done.passed else ""
        print(f"{role:9} {len(done.struck)} of {len(faults)} struck{missed}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign.

    Returns:
        0 if all held, 1 if something did not, 2 without strace.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.syscalls")
    add_list(parser, "--roles", ROLES)
    add_list(parser, "--kinds", KINDS)
    parser.add_argument("--calls", default="", help="all that make sense, if left out")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th K")
    parser.add_argument("--fault", action="append", metavar="KIND:CALL:K", help="these, in a row")
    parser.add_argument(
        "--lying-syncs", action="store_true", help="with power: has to show violations"
    )
    parser.add_argument("--quick", action="store_true", help="a spread, in seconds")
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error("--every is at least 1")
    try:
        faults = [fault_of(text) for text in args.fault or ()]
    except ValueError as error:
        parser.error(str(error))
    plain = args.quick or (POWER not in args.kinds and not faults)
    with tempfile.TemporaryDirectory(prefix="sg-") as folder:
        try:
            require()
            library = None if plain else unsynced.build(unsynced.SOURCE, Path(folder))
        except (NoStrace, unsynced.NoCompiler) as error:
            print(error, file=sys.stderr)
            return 2
        return _run(args, faults, Campaign(library, lies=args.lying_syncs))


def _run(args: argparse.Namespace, faults: Sequence[Fault], campaign: Campaign) -> int:
    begun = time.monotonic()
    if args.quick:
        quick(campaign)
    elif faults:
        for role in args.roles:
            done = campaign.run(role, faults)
            print(f"{role:9} {len(done.struck)} of {len(faults)} struck", flush=True)
    else:
        for role in args.roles:
            for kind in args.kinds:
                chosen = args.calls.split(",") if args.calls else CALLS[kind]
                for call in [each for each in CALLS[kind] if each in chosen]:
                    campaign.every(role, kind, call, args.every)
    tell(each for each in campaign.reached() if each.count)
    print(f"{campaign.summary()}; {time.monotonic() - begun:.0f} s")
    return 1 if campaign.violations else 0


if __name__ == "__main__":
    sys.exit(main())
