"""Wall clocks that jump, under all processes of a running cluster (PROOF E2).

    python -m tests.chaos.clocks [--jumps +1h,-1h,+10y,-10y,0] [--seconds 3] [--rate 100]
                                  [--seed S]

A small library, preloaded, shifts what the processes read as wall-clock time. Under a steady load
the clock jumps; some seconds later a shard and the working payment are killed with -9, so that
deadlines, leases and what a journal says of time are read again under the new clock; then it jumps
on. Nobody may turn back for it: every checkout ends as its content demands and answers the same
when it is asked again, the books balance, what is on disk satisfies the invariants, and no other
process has ended. A jump of which the journals know no row makes the run void.

(Its sister, the power that fails and takes what was not synced: `syscalls --kinds power`.)

One line for each jump; exit code 1 if something is not as it has to be, with the command that
repeats it; 2 without a C compiler.
"""

import argparse
import mmap
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cluster.checking import gather
from sagacity.errors import SagacityError
from tests.chaos import processes
from tests.chaos.cluster import RoundFailed
from tests.chaos.commands import add_seed
from tests.chaos.trial import BACK_S, Trial, since
from tests.chaos.unsynced import NoCompiler, build
from tests.reached import Reached, tell

SOURCE: Final = Path(__file__).with_name("jumping.c")
UNITS_S: Final = {"h": 3_600, "y": 31_557_600}
JUMPS: Final = "+1h,-1h,+10y,-10y,0"
NEAR_S: Final = 1_000  # a row's time belongs to the clock that it is so near to
RATE: Final = 100.0
TOLD_MAX: Final = 8


def seconds_of(jump: str) -> int:
    """Read a jump, such as -10y: seconds.

    Raises:
        ValueError: it is none.
    """
    if jump == "0":
        return 0
    return int(jump[:-1]) * UNITS_S.get(jump[-1:], 0) or int("no jump")


class Clock:
    """What the processes' wall clocks are off by.

    Args:
        folder: for its file.
        library: preloaded, built.
    """

    def __init__(self, folder: Path, library: Path) -> None:
        path = folder / "jump"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 8)
        self.env = {"LD_PRELOAD": str(library), "JUMP_FILE": str(path)}

    def jump(self, seconds: int) -> None:
        """Be off by so much from now on."""
        self._mapped[:] = (seconds * 10**9).to_bytes(8, sys.byteorder, signed=True)

    def close(self) -> None:
        """Let the file go."""
        self._mapped.close()


class Jumping:
    """A trial whose clocks jump.

    Args:
        args: of the command line.
        jumps: in their order.
        clock: of its processes.
        base: an empty directory with a short path.
    """

    def __init__(
        self, args: argparse.Namespace, jumps: Sequence[str], clock: Clock, base: Path
    ) -> None:
        self._args = args
        self._jumps = jumps
        self._clock = clock
        self._killed: list[processes.Process] = []
        self._trial = Trial(
            args.seed,
            rate=args.rate,
            env=clock.env,
            base=base,
        )

    def run(self) -> list[str]:
        """Do all of it; give what is not as it has to be."""
        trial = self._trial
        began = time.time()
        try:
            with trial:
                trial.worker("payment")
                before = processes.of_cluster(trial.data)
                for jump in self._jumps:
                    self._jump(jump)
                for each in before:
                    if not processes.is_alive(each) and each not in self._killed:
                        trial.load.violation(f"ended: {' '.join(each.command[2:6])}")
                trial.finish()
                trial.stop()
            sagas = trial.check_disk()
            dated = self._dated(began, time.time())
            print(f"{sagas} checkouts; rows by clock: {', '.join(dated)}", flush=True)
        except (RoundFailed, SagacityError) as error:
            trial.violations.append(f"{type(error).__name__}: {error}")
        return trial.violations

    def _jump(self, jump: str) -> None:
        trial, load = self._trial, self._trial.load
        self._clock.jump(seconds_of(jump))
        begun, answered = time.monotonic(), len(load.answered)
        load.turn_for(self._args.seconds)
        plain = len(load.answered) - answered
        since(trial, begun, BACK_S, f"after {jump}")
        shard = next(row["pid"] for row in trial.rows("shard") if row["index"] == 0)
        victims = [processes.look(shard), trial.worker("payment")]
        killed = [each for each in victims if each is not None]
        self._killed += killed
        in_flight, killed_at = load.open, time.monotonic()
        hit = processes.kill(killed)
        if hit != len(victims):
            load.violation(f"void: {hit} processes were killed under {jump}")
        had = load.open_ids
        load.turn_until(lambda: not had & load.open_ids, BACK_S, f"the end of {len(had)} open")
        took = time.monotonic() - killed_at
        trial.worker("payment")
        print(
            f"{jump:>5}: {plain} answered; {hit} killed, {in_flight} in flight, done after "
            f"{took:.1f} s",
            flush=True,
        )

    def _dated(self, began: float, ended: float) -> list[str]:
        """Find the rows that each clock has dated; a clock without any makes the run void."""
        rows = [
            row.wall_ms / 1000
            for journal in gather(self._trial.data).journals
            for story in journal.stories.values()
            for row in story.record
        ]
        dated = []
        for jump in self._jumps:
            off = seconds_of(jump)
            near = sum(began + off - NEAR_S < at < ended + off + NEAR_S for at in rows)
            dated.append(f"{jump} {near}")
            if not near:
                self._trial.load.violation(f"void: no row of a journal was written {jump} off")
        return dated


def main(argv: Sequence[str] | None = None) -> int:
    """Have the clocks jump.

    Returns:
        0 if all held, 1 if something did not, 2 without a compiler.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.clocks")
    parser.add_argument("--jumps", default=JUMPS)
    parser.add_argument("--seconds", type=float, default=3.0, help="before the kills")
    parser.add_argument("--rate", type=float, default=RATE, help="checkouts a second")
    add_seed(parser)
    args = parser.parse_args(argv)
    jumps = args.jumps.split(",")
    try:
        for jump in jumps:
            seconds_of(jump)
    except ValueError:
        parser.error("--jumps is a list such as +1h,-10y,0")
    print(f"seed {args.seed}", flush=True)
    with ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="sg-"))
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        try:
            library = build(SOURCE, base)
        except NoCompiler as error:
            print(error, file=sys.stderr)
            return 2
        clock = Clock(base, library)
        stack.callback(clock.close)
        violations = Jumping(args, jumps, clock, base).run()
    for text in violations[:TOLD_MAX]:
        print(f"    VIOLATION {text}", flush=True)
    if violations:
        print(
            f"    again: python -m tests.chaos.clocks --jumps={args.jumps} "
            f"--seconds {args.seconds:g} --rate {args.rate:g} --seed {args.seed}"
        )
    tell([Reached("E2", len(jumps), "every clock jumps")])
    print(f"{len(jumps)} jumps, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
