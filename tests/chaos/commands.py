"""What the campaigns' command lines have in common: lists of names, a seed, a table of figures."""

import argparse
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.figures import Figures
from tests.reached import of_figures, tell


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Give what reads `a,b`, names of those that there are, for argparse."""
    there = list(known)

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := sorted(set(chosen) - set(there)):
            raise argparse.ArgumentTypeError(
                f"not known: {', '.join(unknown)}; there are {', '.join(there)}"
            )
        return chosen

    return read


def add_list(parser: argparse.ArgumentParser, flag: str, known: Iterable[str]) -> None:
    """Add an option that takes some of what there is; all, if it is left out."""
    there = list(known)
    parser.add_argument(
        flag,
        default=",".join(there),
        type=some_of(there),
        metavar="A,B",
        help=f"of {', '.join(there)} (all)",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add `--seed`; another one each time, if it is left out."""
    parser.add_argument("--seed", default=secrets.token_hex(4))


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, for figures."""
    parser.add_argument("--json", type=Path, metavar="FILE")


def end(figures: Figures, json: Path | None, code: str = "") -> int:
    """Tell what was reached and the figures; give the exit code.

    Args:
        figures: of all rounds.
        json: where they go to as well.
        code: of the anomaly of those whose names begin with none.
    """
    tell(of_figures(figures.rows, code))
    return figures.end(json)
