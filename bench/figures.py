"""Figures: what was asked, what was measured, whether it is met; as a table and as JSON. Pure but
for the file that it writes.

A figure of several values is judged by their median, as the promises are; the least and the
greatest stand beside it. One that could not be measured is not met, and says why.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct


class Figure(Struct, frozen=True):
    """One figure.

    Args:
        what: its name.
        unit: of its values.
        values: as measured; none if it could not be.
        at_least: what is asked, None if nothing.
        at_most: likewise.
        why: it could not be measured.
    """

    what: str
    unit: str
    values: tuple[float, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    why: str = ""

    @property
    def middle(self) -> float | None:
        """The median; None if nothing was measured."""
        return statistics.median(self.values) if self.values else None

    @property
    def met(self) -> bool | None:
        """Whether it is what was asked; None if nothing was."""
        if self.at_least is None and self.at_most is None:
            return None
        middle = self.middle
        if middle is None:
            return False
        above = self.at_least is None or middle >= self.at_least
        return above and (self.at_most is None or middle <= self.at_most)

    @property
    def asked(self) -> str:
        """What was asked, in words; empty if nothing."""
        words = []
        if self.at_least is not None:
            words.append(f">= {self.at_least:g}")
        if self.at_most is not None:
            words.append(f"<= {self.at_most:g}")
        return " ".join([*words, self.unit]) if words else ""

    @property
    def measured(self) -> str:
        """What was measured, in words."""
        if not self.values:
            return "no figure"
        told = f"{_number(statistics.median(self.values))} {self.unit}"
        if len(self.values) > 1:
            told += f" ({_number(min(self.values))} - {_number(max(self.values))})"
        return told


class Figures:
    """The figures of one command, in the order in which they were measured.

    Args:
        title: of the command.

    Attributes:
        runs: that they were made of, by name.
        broken_off: the exit code of the signal that ended it; 0 where none did.
    """

    def __init__(self, title: str) -> None:
        self.runs: dict[str, list[Any]] = {}
        self.broken_off = 0
        self.title = title
        self.rows: list[Figure] = []

    def add(
        self,
        what: str,
        unit: str,
        values: Sequence[float] | float,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Note a figure; print it, so that who waits sees how far it is."""
        measured = (values,) if isinstance(values, int | float) else tuple(values)
        self._add(Figure(what, unit, measured, at_least, at_most))

    def missing(
        self,
        what: str,
        unit: str,
        why: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Note that a figure could not be measured, and why: it is not met."""
        self._add(Figure(what, unit, (), at_least, at_most, why))

    def table(self) -> str:
        """Give all of them: what, asked, measured, met."""
        heads = ("", "asked", "measured", "met")
        words = {True: "yes", False: "NO", None: ""}
        rows = [(row.what, row.asked, row.measured, words[row.met]) for row in self.rows]
        widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [heads, *rows]
        ]
        whys = [f"{row.what}: no figure, because: {row.why}" for row in self.rows if row.why]
        return "\n".join([self.title, *lines, *whys])

    def end(self, file: Path | None = None) -> int:
        """Print the table, and write it as JSON where a file is named.

        Returns:
            An exit code: 0 if everything asked is met, else 1.
        """
        print(self.table(), flush=True)
        asked = [row for row in self.rows if row.met is not None]
        print(f"{sum(bool(row.met) for row in asked)} of {len(asked)} figures are met", flush=True)
        if file is not None:
            file.write_text(json.dumps(self.json(), indent=1) + "\n")
        return 1 if any(row.met is False for row in self.rows) else 0

    def json(self) -> dict[str, object]:
        """Give all of them for scripts."""
        rows = [
            {
                "what": row.what,
                "unit": row.unit,
                "at_least": row.at_least,
                "at_most": row.at_most,
                "values": list(row.values),
                "median": row.middle,
                "met": row.met,
                "why": row.why,
            }
            for row in self.rows
        ]
        return {"title": self.title, "figures": rows}

    def _add(self, figure: Figure) -> None:
        self.rows.append(figure)
        why = f", because: {figure.why}" if figure.why else ""
        print(f"  {figure.what}: {figure.measured}{why}", flush=True)


def _number(value: float) -> str:
    """Give three digits that mean something, and all before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"
