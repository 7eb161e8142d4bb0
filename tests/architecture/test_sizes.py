"""Files and functions stay small enough to be read in one go."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.floors import BESIDE, PACKAGES, ROOT

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70


def files() -> Iterator[Path]:
    """Give every Python file of the repository."""
    for package in (*PACKAGES, *BESIDE):
        for file in sorted((ROOT / package).rglob("*.py")):
            # Hidden folders are environments, and others' code.
            if not any(part.startswith(".") for part in file.relative_to(ROOT).parts):
                yield file
    yield from sorted(ROOT.glob("*.py"))


def long_functions(text: str) -> Iterator[tuple[str, int]]:
    """Give (name, lines) of each function over the limit; decorators do not count."""
    for found in ast.walk(ast.parse(text)):
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (found.end_lineno or found.lineno) - found.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield found.name, lines


def test_no_file_is_longer_than_600_lines() -> None:
    """Most are far under; one that grows past it holds two things."""
    long = {
        str(file.relative_to(ROOT)): lines
        for file in files()
        if (lines := len(file.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert long == {}


def test_no_function_is_longer_than_70_lines() -> None:
    """A function fits on a screen."""
    long = {
        f"{file.relative_to(ROOT)}:{name}": lines
        for file in files()
        for name, lines in long_functions(file.read_text())
    }
    assert long == {}


def test_a_long_function_is_seen() -> None:
    """Inside a class, too, and at exactly one line over."""
    fits = "class A:\n    def f(self):\n" + "        pass\n" * (FUNCTION_LINES_MAX - 1)
    assert list(long_functions(fits)) == []
    assert list(long_functions(fits + "        pass\n")) == [("f", FUNCTION_LINES_MAX + 1)]


def test_the_walk_finds_the_repository() -> None:
    """A walk that starts in the wrong directory finds nothing wrong."""
    names = {str(file.relative_to(ROOT)) for file in files()}
    assert {"sagacity/wire.py", "config/load.py", "tests/architecture/test_sizes.py"} <= names
