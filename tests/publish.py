"""Puts what a campaign has found into the documentation.

    python -m tests.publish DIR

DIR is the folder that the campaign wrote (`--logs`). Its tables go between the two marks in
`docs/proof.md`, and what was reached of each anomaly into the last column of
`docs/proof/anomalies.md`. Exit code 2 for a folder that holds no whole campaign.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.campaign import REPORT, Report, read_report
from tests.named import PAGE, ROOT

PROOF: Final = ROOT / "docs" / "proof.md"
BEGIN: Final = "<!-- of `python -m tests.publish` from here -->\n"
END: Final = "<!-- to here -->\n"


def with_tables(page: str, report: Report) -> str:
    """Give `docs/proof.md` with the tables of a campaign."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    told = f"Commit {report.commit}, {report.minutes:.0f} minutes.\n\n{report.layers}\n"
    return f"{before}{BEGIN}{told}{END}{after}"


def with_counts(page: str, reached: Mapping[str, str]) -> str:
    """Give `docs/proof/anomalies.md` with its last column."""

    def counted(line: re.Match[str]) -> str:
        return f"{line[1]} {reached.get(line[2], '')} |".replace("  |", " |")

    return re.sub(r"^(\| ([A-G]\d+) \|.*\|.*\|.*\|)[^|]*\|$", counted, page, flags=re.MULTILINE)


def main(argv: Sequence[str]) -> int:
    """Run the command line; give the exit code."""
    if len(argv) != 1:
        print("usage: python -m tests.publish DIR", file=sys.stderr)
        return 2
    try:
        report = read_report(Path(argv[0]) / REPORT)
    except (OSError, ValueError) as error:
        print(f"{argv[0]} holds no campaign: {error}", file=sys.stderr)
        return 2
    if not report.whole:
        print(f"{argv[0]} is of a part of a campaign", file=sys.stderr)
        return 2
    PROOF.write_text(with_tables(PROOF.read_text(), report))
    PAGE.write_text(with_counts(PAGE.read_text(), report.reached))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
