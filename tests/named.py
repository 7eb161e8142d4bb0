"""The tests that `docs/proof/anomalies.md` names: runs them, and says how many show each anomaly.

    python -m tests.named

For a campaign, beside what its layers have reached: an anomaly that can only be there or not, such
as a hash that differs between versions, is shown by a test and by nothing else. Exit code 1 where
one of them failed or is not there.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from msgspec import Struct

from tests.reached import Reached, tell

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "proof" / "anomalies.md"
TEST: Final = re.compile(r"`([a-z_/]+\.py)::(\w+)`")


class Anomaly(Struct, frozen=True):
    """A line of the page.

    Args:
        code: such as `A1`.
        what: it is.
        tests: file below `tests/` and name of each that shows it.
        counted: which campaign counts it, or why none does.
    """

    code: str
    what: str
    tests: tuple[tuple[str, str], ...]
    counted: str


def anomalies(page: str) -> Iterator[Anomaly]:
    """Give the lines of the page."""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and re.fullmatch(r"[A-G]\d+", cells[0]):
            code, what, tests, counted, _ = cells
            yield Anomaly(code, what, tuple(TEST.findall(tests)), counted)


class _Passed:
    """Takes note of which tests have passed, all their cases together."""

    def __init__(self) -> None:
        self.cases: Counter[tuple[str, str]] = Counter()
        self.failed: set[tuple[str, str]] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """See the end of a part of a test."""
        file, _, rest = report.nodeid.partition("::")
        test = file.removeprefix("tests/"), rest.partition("[")[0]
        if report.failed or report.skipped:
            self.failed.add(test)
        elif report.when == "call":
            self.cases[test] += 1


def main() -> int:
    """Run them; give the exit code."""
    found = list(anomalies(PAGE.read_text()))
    named = sorted({test for each in found for test in each.tests})
    seen = _Passed()
    code = pytest.main(
        [f"--rootdir={ROOT}", *(str(ROOT / "tests" / file) + f"::{name}" for file, name in named)],
        plugins=[seen],
    )
    good = set(seen.cases) - seen.failed
    tell(
        Reached(each.code, sum(seen.cases[test] for test in each.tests if test in good), "cases")
        for each in found
    )
    print(f"{len(good)} of {len(named)} tests named, {sum(seen.cases.values())} cases, are green")
    return 1 if code or len(good) < len(named) else 0


if __name__ == "__main__":
    sys.exit(main())
