"""docs/proof/anomalies.md: every anomaly has its line, and every test that it names is there."""

import ast
import re
from functools import cache

import pytest

from tests import named
from tests.architecture.floors import ROOT
from tests.campaign import LAYERS
from tests.named import anomalies

PAGE = named.PAGE.read_text()
# How many the proof's list has under each letter.
LISTED = {"A": 12, "B": 20, "D": 13, "E": 6, "F": 8, "G": 6}
CODES = [f"{letter}{at + 1}" for letter, count in LISTED.items() for at in range(count)]
LINES = {each.code: each for each in anomalies(PAGE)}
NAMED = sorted(set(named.TEST.findall(PAGE)))


@cache
def names_in(file: str) -> frozenset[str]:
    """Give the names of a file's tests."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return frozenset(node.name for node in found if node.name.startswith("test_"))


def test_every_anomaly_has_a_line_and_no_other_has() -> None:
    """What is left out is what nobody looks for."""
    assert sorted(LINES) == sorted(CODES)
    assert len(re.findall(r"^\| [A-G]\d+ ", PAGE, flags=re.MULTILINE)) == len(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_line_says_what_shows_the_anomaly_and_who_counts_it(code: str) -> None:
    """A test at least; and a campaign's count, or in words that there is none."""
    line = LINES[code]
    assert line.what
    assert line.tests
    assert line.counted


def test_every_test_that_the_page_names_is_there() -> None:
    """A test that was renamed or removed shows nothing any more."""
    assert len(NAMED) > len(CODES)
    gone = [f"{file}::{name}" for file, name in NAMED if name not in names_in(file)]
    assert gone == []


def test_the_page_gives_the_commands_that_the_campaign_runs() -> None:
    """At their sizes: a count is of the command beside it."""
    rows = re.findall(r"^\| \w+ \| `(python -m tests[^`]*)`", PAGE, flags=re.MULTILINE)
    for layer in LAYERS:
        module = layer.arguments(1, 2)[1]
        if module == "tests.museum":  # it counts bugs, no anomalies
            continue
        row = next(row for row in rows if row.split()[2] == module)
        if layer.size:
            assert str(layer.size) in row.split(), row
