"""Runs the tests that a bug names, with the bug planted: python -m tests.museum.planted_tests NAME.

The exit code is pytest's: 1 where a test failed, as it should.
"""

import sys

import pytest

from tests.museum.bugs import by_name
from tests.museum.plant import planted


def main() -> int:
    """Plant, run, give pytest's exit code."""
    bug = by_name(sys.argv[1])
    with planted(*bug.changes):
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *bug.tests]))


if __name__ == "__main__":
    sys.exit(main())
