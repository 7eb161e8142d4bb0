"""A disk that is full for a while, under load, and then is not.

    python -m tests.chaos.disk_full [--seconds 30] [--which all,shards,services] [--size-mib 128]
                                    [--rate 200] [--greedy] [--seed S] [--json FILE]

Needs root: makes a small disk in a file. All of a cluster's directory lies on it, or the shards'
part, or the services'. Under a load that asks again by itself the disk is filled to the last byte,
held so, and freed. Meanwhile a second client asks each checkout only once, every other one to be
acknowledged alone. That must be answered: with an acknowledgement while there is room in what the
files have already, else with 11; where the shards' disk is full, 11 must come.

After: the time until one of its checkouts completes; every id that was acknowledged, or of which
nothing was heard, completes, and all repeats answer the same; what was refused with 11 was never
started; the books balance; no process was restarted. With --greedy what the cluster gives back
while the disk is full is taken too, each second. The exit code is 1 if something that is asked is
not met.

The sagas' deadline is ten minutes: who waits for a disk of the services must not turn back.
"""

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench.figures import Figures
from bench.load import single_tries
from cluster.directory import DataDirectory
from sagacity import wire
from sagacity.client import Client
from sagacity.errors import NotTaken, SagacityError, UnknownSaga
from sagacity.messages import Checkout, Item
from tests.chaos.cluster import SHARDS, RoundFailed
from tests.chaos.commands import add_json, add_list, add_seed
from tests.chaos.disk import MIB, NoDisk, SmallDisk
from tests.chaos.load import WAIT_S
from tests.chaos.trial import Trial
from tests.reached import Reached, tell

WHICH: Final = ("all", "shards", "services")
DEADLINE_MS: Final = 600_000
RATE: Final = 200.0
SECONDS_MAX: Final = 45.0  # clients wait for a minute, then they give up
STEADY_S: Final = 3.0  # of load before
AFTER_S: Final = 5.0  # of load after
NOTICED_S: Final = 2.0  # whoever has not noticed the full disk by then never will
PROBE_S: Final = 1.0  # for the answer to a single try
SERVES_MAX_S: Final = 30.0  # then it is a violation, not a figure

SERVES_S_AT_MOST: Final = 2.0


class Probes:
    """Checkouts that are asked once each; who was told what.

    Args:
        trial: whose load takes over all that may have been started.
    """

    def __init__(self, trial: Trial) -> None:
        self.refused: list[Checkout] = []
        self.acknowledged = 0
        self.unheard = 0
        self.meanwhile = 0  # checkouts of the load that were answered while the disk was full
        self._trial = trial

    def ask(self, kind: int, timeout_s: float = PROBE_S) -> int | None:
        """Ask for one new checkout; give the code, 0 for an answer, None for silence."""
        saga_id = f"disk-{secrets.token_hex(12)}"
        checkout = Checkout(saga_id, "u42", [Item("abc123", 1)], "123 Main St")
        found = single_tries(self._trial.url, kind, [(saga_id, wire.pack(checkout))], timeout_s)[0]
        if found is None:
            self.unheard += 1
            self._trial.load.adopt(checkout)
            return None
        reply = found[0]
        if reply.code == NotTaken.code:
            self.refused.append(checkout)
            return NotTaken.code
        if reply.code is None:
            self.acknowledged += 1
            self._trial.load.adopt(checkout, reply.body if kind == wire.START else None)
            return 0
        if reply.code != 0:  # 0: it may have been taken
            self._trial.load.violation(f"{saga_id} was answered {reply.code}: {reply.body!r}")
        self._trial.load.adopt(checkout)
        return None

    def check_refused(self) -> None:
        """A code 11 is definite: what got one must not have been started."""
        with Client(self._trial.url, timeout_s=WAIT_S) as client:
            for checkout in self.refused:
                try:
                    told = client.show(checkout.saga_id)
                except UnknownSaga:
                    continue
                self._trial.load.violation(
                    f"{checkout.saga_id} was refused with 11 and runs: {told}"
                )


def alive(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Give the process id of each process, by name."""
    return {f"{row['role']}-{row['index']}": row["pid"] for row in rows}


def hold(trial: Trial, disk: SmallDisk, which: str, args: argparse.Namespace) -> Probes:
    """Keep the disk full for the time that was asked, under load; probe each second."""
    probes = Probes(trial)
    load = trial.load
    taken = disk.fill()
    print(f"  {which}: {taken / MIB:.0f} MiB filled, {disk.left} bytes left", flush=True)
    begun = time.monotonic()
    # Writers that were at work have given back a little, or nobody has noticed yet: once more.
    load.turn_for(0.2)
    disk.fill()
    answered = len(load.answered)
    kinds = [wire.START, wire.SUBMIT]
    while (now := time.monotonic() - begun) < args.seconds:
        kinds.reverse()
        # A start that waits for its outcome may have been taken; an acknowledgement must not wait.
        if probes.ask(kinds[0]) is None and kinds[0] == wire.SUBMIT and now > NOTICED_S:
            load.violation(f"{now:.1f} s after the disk was full a start got no definite answer")
        if args.greedy:
            disk.fill()
        load.turn_for(min(1.0, max(0.0, args.seconds - now)))
    probes.meanwhile = len(load.answered) - answered
    # A shard goes on for a while in room that it frees itself; hardly anybody else does.
    if probes.meanwhile > args.rate * args.seconds * 0.9:
        load.violation(f"void: {probes.meanwhile} were answered, so nobody missed the room")
    return probes


def serves_again(trial: Trial, probes: Probes) -> float:
    """Ask new checkouts until one completes; give the seconds.

    Raises:
        RoundFailed: none does.
    """
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < SERVES_MAX_S:
        if probes.ask(wire.START) == 0:
            return time.monotonic() - begun
        trial.load.turn_for(0.05)
    rows = trial.rows()
    states = " ".join(f"{row['role']}-{row['index']}:{row['state']}" for row in rows)
    raise RoundFailed(f"no checkout completed within {passed:.0f} s after the room; {states}")


def lay(which: str, base: Path, disk: SmallDisk) -> None:
    """Put a cluster's directory, or a part of it, on the disk; `base/data` is the directory."""
    data = base / "data"
    if which == "all":
        data.mkdir(mode=0o700)
        disk.show_at(data, "data")
        return
    directory = DataDirectory(data)
    with ExitStack() as stack:
        stack.callback(directory.lock().release)
        directory.open_or_create(SHARDS)
    if which == "services":
        disk.show_at(data / "services", "services")
    else:
        for index in range(SHARDS):
            disk.show_at(directory.shard(index), f"shard-{index}")


def one(which: str, args: argparse.Namespace, figures: Figures) -> None:
    """Do it with one part of the directory on the disk."""
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    serves = f"{which}: serving again"
    try:
        with SmallDisk(base, args.size_mib * MIB) as disk:
            lay(which, base, disk)
            trial = Trial(
                f"{args.seed}/{which}",
                rate=args.rate,
                env={"SAGACITY_SAGA__DEADLINE_MS": str(DEADLINE_MS)},
                base=base,
            )
            try:
                _on(disk, trial, which, args, figures)
            except (RoundFailed, SagacityError) as error:
                trial.violations.append(str(error))
                if all(row.what != serves for row in figures.rows):
                    figures.missing(serves, "s", str(error), at_most=SERVES_S_AT_MOST)
            for text in trial.violations[:8]:
                print(f"    {text}", flush=True)
            figures.add(f"{which}: violations", "", len(trial.violations), at_most=0)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _on(
    disk: SmallDisk, trial: Trial, which: str, args: argparse.Namespace, figures: Figures
) -> None:
    with trial:
        load = trial.load
        load.turn_for(STEADY_S)
        before = alive(trial.rows())
        try:
            probes = hold(trial, disk, which, args)
        finally:
            disk.free()
        asked = None if which == "services" else 1
        figures.add(f"{which}: starts refused with 11", "", len(probes.refused), at_least=asked)
        figures.add(f"{which}: starts acknowledged", "", probes.acknowledged)
        figures.add(f"{which}: answered while it was full", "", probes.meanwhile)
        figures.add(
            f"{which}: serving again",
            "s",
            serves_again(trial, probes),
            at_most=SERVES_S_AT_MOST,
        )
        load.turn_for(AFTER_S)
        after = alive(trial.rows())
        new = sorted(name for name in after if after[name] != before.get(name))
        if new:
            load.violation(f"restarted: {', '.join(new)}")
        figures.add(f"{which}: processes restarted", "", len(new), at_most=0)
        trial.finish()
        probes.check_refused()
        trial.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Fill each part in its turn.

    Returns:
        0 if everything that is asked is met, else 1; 2 where no such disk can be made.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.disk_full")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which the disk is full")
    add_list(parser, "--which", WHICH)
    parser.add_argument("--size-mib", type=int, default=128)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--greedy", action="store_true")
    add_seed(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    if not 0 < args.seconds <= SECONDS_MAX:
        parser.error(f"--seconds is at most {SECONDS_MAX:g}")
    print(f"seed {args.seed}", flush=True)
    figures = Figures(f"disk full for {args.seconds:g} s, {args.rate:g} checkouts/s")
    try:
        for which in args.which:
            one(which, args, figures)
    except NoDisk as error:
        print(error, file=sys.stderr)
        return 2
    full = sum(row.what.endswith(": processes restarted") for row in figures.rows)
    tell([Reached("D7", full, "a disk is full under load, and freed")])
    return figures.end(args.json)


if __name__ == "__main__":
    sys.exit(main())
