"""The full campaign on journals: every crash point, crashes of recoveries, every bit, the controls.

    python -m tests.journal.campaign                    everything
    python -m tests.journal.campaign --seeds 3 --deep 40 --stride 61        some of it, minutes
    python -m tests.journal.campaign --case small/120-torn-1/11-drop         one crash again
    python -m tests.journal.campaign --case in_the_wal/519501               one flipped bit again

Prints what it reached, and for each violation the command that repeats it; exits 1 if there was
one, or if a control was not found, 2 for a case that there is not.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from typing import Final

from msgspec import Struct

from sagacity.simulation.vfs import MemoryDisk, memory_disk
from tests.journal import flips, service
from tests.journal.controls import CONTROLS
from tests.journal.crashes import ALL, FEW, Campaign, Counts, Survive, crash_at
from tests.journal.flips import Flips, Written
from tests.journal.workloads import of_seed, small, small_limits
from tests.journal.world import Story, Violation, survive
from tests.reached import Reached, tell

COMMAND: Final = "python -m tests.journal.campaign --case"
JOURNALS: Final[dict[str, Callable[[MemoryDisk], Written]]] = {
    "in_the_wal": flips.in_the_wal,
    "in_the_file": flips.in_the_file,
}
SHOWN_MAX: Final = 20  # violations told in full


class Part(Struct, frozen=True):
    """What one process does: a workload's crashes, or some bits of a journal.

    Args:
        name: of the workload or journal.
        deep: of how many recoveries one is crashed at each operation; 0 for none.
        begin: of the bits.
        end: of the bits.
        stride: from one bit to the next; 0 for crashes.
    """

    name: str
    deep: int = 0
    begin: int = 0
    end: int = 0
    stride: int = 0


class Done(Struct):
    """What came of a part."""

    part: Part
    counts: Counts
    flips: Counter[str]
    violations: list[tuple[str, str]]


def workload(disk: MemoryDisk, name: str) -> tuple[Story, Survive]:
    """Give the story of a workload by its name, and who recovers from its crashes.

    Raises:
        LookupError: there is none of that name.
    """
    if name == "service":
        return service.small(disk), service.survive
    if name == "small":
        return small(disk), survive
    if name in CONTROLS:
        return CONTROLS[name](disk), survive
    seed = name.removeprefix("seed-")
    if seed == name or not seed.isdecimal():
        raise LookupError(f"there is no workload {name!r}")
    return of_seed(disk, int(seed)), survive


def do(part: Part) -> Done:
    """Do a part in this process."""
    with memory_disk() as disk, small_limits():
        if part.stride:
            journal = Flips(disk, JOURNALS[part.name](disk))
            journal.run(range(part.begin, part.end, part.stride))
            found = [(f"{part.name}/{bit}", text) for bit, text in journal.violations]
            return Done(part, Counts(), journal.counts, found)
        story, survives = workload(disk, part.name)
        campaign = Campaign(disk, survives, deep=part.deep)
        campaign.run(part.name, story, FEW if part.name in CONTROLS else ALL)
        return Done(part, campaign.counts, Counter(), campaign.counts.violations)


def parts(args: argparse.Namespace) -> Iterator[Part]:
    """Give what is to be done, in pieces for several processes."""
    yield Part("small", args.deep)
    yield Part("service", args.deep)
    for seed in range(args.start, args.start + args.seeds):
        yield Part(f"seed-{seed}", 8 * args.deep)
    for name in CONTROLS:
        yield Part(name)
    with memory_disk() as disk, small_limits():
        sizes = {name: make(disk).bits for name, make in JOURNALS.items()}
    for name, bits in sizes.items():
        piece = 4096 * 8
        for begin in range(0, bits, piece):
            yield Part(name, begin=begin, end=min(bits, begin + piece), stride=args.stride)


def repeat(case: str) -> int:
    """Do one case again; print what breaks, and give the exit code.

    Raises:
        LookupError: there is no such case.
    """
    name, *steps = case.split("/")
    with memory_disk() as disk, small_limits():
        try:
            if name in JOURNALS:
                journal = JOURNALS[name](disk)
                if len(steps) != 1 or not steps[0].isdecimal() or int(steps[0]) >= journal.bits:
                    raise LookupError(f"{name} has the bits 0 to {journal.bits - 1}")
                print(Flips(disk, journal).flip(int(steps[0])))
                return 0
            story, survives = workload(disk, name)
            if not steps:
                raise LookupError(f"{name} is a workload: a case names its crash, too")
            reached = name
            for step in steps:
                crash = crash_at(story, step, reached)
                reached = f"{reached}/{step}"
                story = survives(disk, crash.image, story, crash.floor)
        except Violation as broken:
            print(f"{case}: {broken}")
            return 1
    print(f"{case}: every promise holds")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign, or one case of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.journal.campaign", allow_abbrev=False)
    parser.add_argument("--case", help="one case, by its name")
    parser.add_argument("--seeds", type=int, default=60, help="schedules (default: 60)")
    parser.add_argument("--start", type=int, default=0, help="the first one's seed")
    parser.add_argument("--deep", type=int, default=4, help="crash each so manieth recovery again")
    parser.add_argument(
        "--stride",
        type=int,
        default=1,
        help="from one bit to the next; odd, or it is always the same one of a byte",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args(argv)
    if args.case is not None:
        try:
            return repeat(args.case)
        except LookupError as error:
            print(error, file=sys.stderr)
            return 2
    if min(args.stride, args.jobs) < 1 or min(args.seeds, args.start, args.deep) < 0:
        parser.error("--stride and --jobs are at least 1, --seeds, --start and --deep at least 0")
    begun = time.monotonic()
    crashes, controls = Counts(), dict.fromkeys(CONTROLS, 0)
    bits: dict[str, Counter[str]] = {name: Counter() for name in JOURNALS}
    violations: list[tuple[str, str]] = []
    with get_context("spawn").Pool(args.jobs) as pool:
        for done in pool.imap_unordered(do, parts(args)):
            if done.part.name in controls:
                controls[done.part.name] += len(done.violations)
                continue
            violations += done.violations
            crashes.add(done.counts)
            if done.part.stride:
                bits[done.part.name] += done.flips
    _print(crashes, bits, controls)
    tell(_reached(crashes, bits))
    for case, text in violations[:SHOWN_MAX]:
        print(f"VIOLATION {text}\n    {COMMAND} {case.split(' ')[0]}")
    missed = [name for name, found in controls.items() if not found]
    for name in missed:
        print(f"CONTROL NOT FOUND {name}")
    print(f"{len(violations)} violations, {time.monotonic() - begun:.0f} s")
    return 1 if violations or missed else 0


def _reached(counts: Counts, bits: dict[str, Counter[str]]) -> Iterator[Reached]:
    def operations(*phases: str) -> int:
        return sum(
            times for (phase, _), times in counts.operations.items() if phase.startswith(phases)
        )

    def images(*ways: str, depth: int | None = None) -> int:
        return sum(
            times
            for (deep, way), times in counts.images.items()
            if way.startswith(ways or ("",)) and depth in (None, deep)
        )

    flipped = sum((found for found in bits.values()), Counter[str]())
    yield Reached("D1", operations("commit"), "a crash at a write or sync of a commit")
    yield Reached("D3", images("torn", "part-"), "a write that is torn")
    yield Reached("D4", flipped.total(), "a flipped bit")
    yield Reached("D5", images("drop", "last", "gap", "part-"), "unsynced writes lost, reordered")
    upkeep = operations("write-back", "compaction", "merge", "sweep of")
    yield Reached("D9", upkeep, "a crash in checkpoint, compaction, merge or sweep")
    yield Reached("D10", images(depth=2), "a recovery that crashed")


def _print(counts: Counts, bits: dict[str, Counter[str]], controls: dict[str, int]) -> None:
    print("operations at which it crashed")
    for (phase, kind), times in sorted(counts.operations.items()):
        print(f"    {phase:<24}{kind:<12}{times:>9}")
    print("images recovered from")
    for (depth, way), times in sorted(counts.images.items()):
        of = "of the workload" if depth == 1 else "of a recovery"
        print(f"    {of:<24}{way:<12}{times:>9}")
    print("bits flipped")
    for name, found in bits.items():
        for what, times in sorted(found.items()):
            print(f"    {name:<24}{what:<12}{times:>9}")
    print("controls: violations found in shards that are broken on purpose")
    for name, times in controls.items():
        print(f"    {name:<36}{times:>9}")


if __name__ == "__main__":
    sys.exit(main())
