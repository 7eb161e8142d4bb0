"""`sagacity bench`: hands over to the benches, which stand beside the house (DESIGN 2).

They import what they measure and nothing imports them, so they are run and not imported.
"""

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take all words: the benches have parsers of their own."""
    parser.description = (
        "Measure how fast a cluster is, and what it costs. `sagacity bench` alone lists what there "
        "is; `sagacity bench run --help` its options."
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...")


def run_bench(options: argparse.Namespace) -> int:
    """Become the bench: its exit code, its signals and its terminal are this process's."""
    words = [sys.executable, "-P", "-m", "bench", *options.words]
    os.execv(sys.executable, words)  # noqa: S606 - no shell, and the program is our own
