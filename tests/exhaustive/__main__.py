"""Search cases to the end, print what was counted, and exit 1 if something is wrong.

python -m tests.exhaustive                      every case, to the end
python -m tests.exhaustive one --depth 12       one of them, so far
python -m tests.exhaustive one --crashes 1      with other bounds
python -m tests.exhaustive one --replay 0.3.2   the moves of a violation, and what is wrong
python -m tests.exhaustive --planted no_dedupe  a planted bug; `all` for every one
"""

import argparse
import resource
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import structs

from sagacity.errors import InvariantBroken
from tests import reached
from tests.exhaustive.cases import CASES, Case, Wrong
from tests.exhaustive.model import Model
from tests.exhaustive.planted import BUGS, DEPTH
from tests.exhaustive.search import EVERYTHING, Report, Search, Violation, replay

BOUNDS = ("crashes", "losses", "duplicates", "cancels")


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; give the exit code."""
    options = _parser().parse_args(arguments)
    given = {name: getattr(options, name) for name in BOUNDS if getattr(options, name) is not None}
    if any(not 0 <= amount <= 3 for amount in given.values()):
        print("there are 0 to 3 of a fault", file=sys.stderr)
        return 2
    if options.depth is not None and options.depth < 1:
        print("--depth is at least 1", file=sys.stderr)
        return 2
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        print(f"there is no case {unknown[0]}: {', '.join(CASES)}", file=sys.stderr)
        return 2
    if options.planted is not None:
        return _planted(options.planted)
    cases = [structs.replace(CASES[name], **given) for name in options.cases or CASES]
    if options.replay is not None:
        if len(cases) != 1:
            print("--replay goes with the one case that the way is of", file=sys.stderr)
            return 2
        return _replay(cases[0], options.replay)
    wrong = 0
    met: Counter[str] = Counter()
    for case in cases:
        tell = None if options.quiet else lambda line: print(f"  {line}", file=sys.stderr)
        report = Search(Model(case), options.depth or EVERYTHING, tell).run()
        _print_report(case, report)
        met.update(report.probed)
        met.update(report.sometimes)
        if report.violation is not None:
            _print_violation(report.violation, _command(case, given))
            wrong += 1
    reached.tell(each for name, count in met.items() if (each := reached.named(name, count)))
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.exhaustive", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--depth", type=int, help="moves from the beginning, at most")
    parser.add_argument("--replay", metavar="N.N.N", help="go the way of a violation")
    parser.add_argument("--planted", choices=[*BUGS, "all"], metavar="BUG")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    for name in BOUNDS:
        parser.add_argument(f"--{name}", type=int, metavar="N")
    return parser


def _command(case: Case, given: Mapping[str, int]) -> str:
    bounds = "".join(f" --{name} {amount}" for name, amount in given.items())
    return f"python -m tests.exhaustive {case.name}{bounds} --replay"


def _print_report(case: Case, report: Report) -> None:
    bounds = ", ".join(f"{getattr(case, name)} {name}" for name in BOUNDS)
    ends = "to the end" if report.whole else "not to the end"
    print(f"{case.name}: {case.sagas} saga(s), {bounds}")
    print(
        f"  {report.states} states, depth {report.depth}, {ends};"
        f" {report.transitions} moves, {report.finished} states with everything finished"
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"  {report.seconds:.1f} s of CPU, {memory} MiB at most so far")
    tables = ", ".join(f"{count} {name}" for name, count in report.tables.items())
    print(f"  {tables}")
    for title, counts in (
        ("invariant: states that it judged", report.judged),
        ("must change nothing: how often asked", report.probed),
        ("sometimes: how often reached", report.sometimes),
    ):
        print(f"  {title}")
        for name, count in counts.items():
            print(f"    {count:>9}  {name}")


def _print_violation(found: Violation, command: str) -> None:
    print(f"  WRONG: {found.text}")
    for at, move in enumerate(found.moves, 1):
        print(f"    {at:>3}. {move}")
    print(f"  {command} {found.way()}")


def _replay(case: Case, way: str) -> int:
    steps = way.split(".")
    try:
        if not all(each.isdecimal() for each in steps):
            raise ValueError(way)  # -1 would be taken for the last one
        for at, move in enumerate(replay(Model(case), [int(each) for each in steps]), 1):
            print(f"{at:>3}. {move}")
    except (Wrong, InvariantBroken) as wrong:
        print(f"WRONG: {wrong}")
        return 1
    except (IndexError, ValueError):
        print("there is no such way in this case", file=sys.stderr)
        return 2
    print("nothing is wrong there")
    return 0


def _planted(name: str) -> int:
    missed = 0
    for each, bug in BUGS.items():
        if name in (each, "all"):
            report = Search(bug.make(), DEPTH).run()
            found = report.violation
            missed += found is None
            print(f"{each}: {report.states} states, {'missed' if found is None else found.text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
