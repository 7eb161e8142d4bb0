"""How often a layer of the proof has really reached an anomaly, as a line that a campaign adds up.

Each command of a layer prints, at its end, a line for each anomaly that it can meet:

    reached B6          1,234  the success of an older attempt

A count of zero means that nothing was shown. The letters and numbers are those of
`docs/proof/anomalies.md`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec import Struct

from bench.figures import Figure

_LINE: Final = re.compile(r"^reached ([A-G]\d{1,2}) +([\d,]+)  (.+)$")
_CODE: Final = re.compile(r"^([A-G]\d{1,2})(?:, G\d)?:?\s+(.+)$")


class Reached(Struct, frozen=True):
    """An anomaly, and how often it was reached."""

    code: str
    count: int
    what: str

    def __str__(self) -> str:
        return f"reached {self.code:4}{self.count:>14,}  {self.what}"


def tell(reached: Iterable[Reached]) -> None:
    """Print a line for each."""
    for each in reached:
        print(each, flush=True)


def read(lines: Iterable[str]) -> Iterator[Reached]:
    """Give what a layer has told, from all that it has printed."""
    for line in lines:
        if found := _LINE.match(line):
            code, count, what = found.groups()
            yield Reached(code, int(count.replace(",", "")), what.strip())


def of_figures(rows: Sequence[Figure], code: str = "") -> Iterator[Reached]:
    """Give what figures count: those of which one at least is asked, or their round is void.

    Args:
        rows: named `G4 what: …` or `G4: …`.
        code: of those whose names begin with none.
    """
    for row in rows:
        if row.at_least == 1 and row.values:
            found = _CODE.match(row.what)
            its, what = (found[1], found[2]) if found else (code, row.what)
            if its:
                yield Reached(its, int(row.values[0]), what)


def named(name: str, count: int) -> Reached | None:
    """Give a count whose name begins with the anomaly, `B6  the success of…`; None without one."""
    found = _CODE.match(name)
    return Reached(found[1], count, found[2]) if found else None
