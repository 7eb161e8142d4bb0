"""The campaign: many cases on every target, on as many processes as asked for.

    python -m tests.fuzz --cases 20000000 --seed 1           mutations, then real processes
    python -m tests.fuzz --cases 100000 --target maelstrom   one target
    python -m tests.fuzz --target maelstrom --seed 1 --index 4711      one case again
    python -m tests.fuzz --engine atheris --cases 1000000    guided by coverage (extra `fuzz`)

Exit code 1 where something was found; it is printed with the command that shows it again, and its
cases are stored in tests/fuzz/regressions/.
"""

import argparse
import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.fuzz.run import Finding, Result, Run, keep, mutations, shows
from tests.fuzz.target import DROPPED
from tests.fuzz.targets import TARGETS, shares
from tests.reached import Reached, tell

CHUNK_S = 600  # a chunk that takes longer hangs in something that no signal ends
CHUNK_CASES = 131_072  # a multiple of every block
PROCESS_CASES = 2_000  # of each target, through real processes and sockets


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign; an exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz every target.")
    parser.add_argument("--cases", type=int, default=1_000_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--engine", choices=("mutation", "process", "atheris"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--index", type=int, help="run this one case of the seed again")
    options = parser.parse_args(argv)
    names = options.target or list(TARGETS)
    if min(options.cases, options.processes, 1 if options.index is None else options.index + 1) < 1:
        parser.error("--cases and --processes are at least 1, --index at least 0")
    if options.index is not None and len(names) != 1:
        parser.error("--index goes with the one --target that it is of")
    if options.index is not None:
        return _replay(names[0], options.seed, options.index)
    results: list[Result] = []
    if options.engine in (None, "mutation"):
        results += _mutate(names, options.cases, options.seed, options.processes)
    if options.engine == "atheris":
        from tests.fuzz.guided import guided

        results += guided(names, options.cases, options.seed)
    if options.engine in (None, "process"):
        from tests.fuzz.real import real

        cases = options.cases if options.engine else PROCESS_CASES * len(names)
        results += real(names, cases // len(names), options.seed)
    return _report(results)


def _mutate(names: list[str], cases: int, seed: int, processes: int) -> list[Result]:
    """Run mutations on several processes, chunk by chunk."""
    chunks = [
        (name, seed, first, min(CHUNK_CASES, whole - first))
        for name, whole in shares(cases, names).items()
        for first in range(0, whole, CHUNK_CASES)
    ]
    chunks.sort(key=lambda chunk: chunk[2])  # every target early
    results: dict[str, Result] = {name: Result(name) for name in names}
    begun = time.monotonic()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_chunk, *chunk) for chunk in chunks]):
            _merge(results[done.result().target], done.result())
            total = sum(result.cases for result in results.values())
            rate = total / (time.monotonic() - begun)
            print(f"\r{total} cases, {rate:.0f} a second ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return list(results.values())


def _chunk(name: str, seed: int, first: int, count: int) -> Result:
    faulthandler.dump_traceback_later(CHUNK_S, exit=True)
    target = TARGETS[name]()
    try:
        return Run(target, seed).run(first, count)
    finally:
        target.close()
        faulthandler.cancel_dump_traceback_later()


def _merge(into: Result, other: Result) -> None:
    into.cases += other.cases
    into.seconds += other.seconds
    into.cpu_s += other.cpu_s
    into.slowest_ms = max(into.slowest_ms, other.slowest_ms)
    into.rss_growth = max(into.rss_growth, other.rss_growth)
    into.outcomes += other.outcomes
    known = {found.cause for found in into.findings}
    into.findings += [found for found in other.findings if found.cause not in known]


def _replay(name: str, seed: int, index: int) -> int:
    """Run one case again: alone, then after those before it in its block."""
    target = TARGETS[name]()
    case = mutations(target, seed)
    try:
        print(f"{name} {seed} {index}: {case(index)!r}")
        first = index - index % target.block
        for cases in ([case(index)], [case(each) for each in range(first, index + 1)]):
            text = shows(cases, target)
            if text is not None:
                print(text)
                return 1
    finally:
        target.close()
    print("nothing comes out that should not")
    return 0


def _report(results: Sequence[Result]) -> int:
    """Print the table and the findings; an exit code."""
    print(f"{'target':<22}{'cases':>10}{'a CPU s':>10}{'slowest':>10}{'memory':>9}  outcomes")
    outcomes: Counter[str] = Counter()
    for result in results:
        rate = result.cases / result.cpu_s if result.cpu_s else 0
        said = ", ".join(f"{name} {count}" for name, count in result.outcomes.most_common())
        print(
            f"{result.target:<22}{result.cases:>10}{rate:>10.0f}{result.slowest_ms:>7.1f} ms"
            f"{result.rss_growth / 2**20:>6.1f} MB  {said}"
        )
        outcomes += result.outcomes
    cpu_s = sum(result.cpu_s for result in results)
    print(f"{'together':<22}{outcomes.total():>10}  in {cpu_s:.0f} s of CPU")
    tell(_reached(results))
    findings = [found for result in results for found in result.findings]
    for found in findings:
        _tell(found)
    return 1 if findings else 0


def _reached(results: Sequence[Result]) -> list[Reached]:
    outcomes: dict[str, Counter[str]] = {}
    for result in results:  # a target may come twice: in memory, and through real processes
        outcomes.setdefault(result.target, Counter()).update(result.outcomes)

    def times(targets: Sequence[str], *wanted: str) -> int:
        return sum(
            count
            for target in targets
            for outcome, count in outcomes.get(target, {}).items()
            if not wanted or outcome in wanted
        )

    with_ids = ("router-requests", "bodies", "maelstrom")
    bodies = ("bodies", "command-bodies")
    frames = [name for name in outcomes if name not in ("config-file", "config-environment")]
    return [
        Reached("A6", times(with_ids), "cases of frames, bodies and lines that hold ids"),
        Reached(
            "B9", times(["shard-answers"], "stranger", "absorbed"), "answers that fit no command"
        ),
        Reached("D4", times(["journal-file", "journal-rows"]), "damaged journals"),
        Reached("F6", times(bodies, "code 12", "failed"), "bodies refused: amounts among them"),
        Reached("F7", times(bodies, "code 12", "failed"), "bodies refused: quantities among them"),
        Reached("G5", times(frames, DROPPED, "unreadable", "code 12"), "garbage dropped, refused"),
    ]


def _tell(found: Finding) -> None:
    print(f"\nfound: {found.cause}\n{found.text}\n  again: {found.replay}")
    if found.cases:
        print(f"  kept:  {keep(found)}")
