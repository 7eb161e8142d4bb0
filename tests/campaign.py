"""The campaign: every layer of the proof at its full size, one after the other.

    python -m tests.campaign [--only simulation,fuzz] [--part 0.1] [--jobs 2]

Prints what each layer prints, and at the end a table for `docs/proof.md`, with the commit that it
is of. `--part` makes the sizes smaller. Exit code 1 where a layer found a violation.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

ROOT: Final = Path(__file__).parents[1]


class Layer(Struct, frozen=True):
    """A layer of the proof.

    Args:
        name: for `--only`, and in the table.
        command: of Python, without the interpreter; {n} stands for `size`, {jobs} for processes.
        size: at `--part 1`; 0 where it has none.
        unit: of the size.
    """

    name: str
    command: str
    size: int = 0
    unit: str = ""


LAYERS: Final = (
    Layer(
        "simulation",
        "-m tests.simulation --seeds {n} --start 1000000 --jobs {jobs}",
        200_000,
        "seeds",
    ),
    Layer("exhaustive", "-m tests.exhaustive"),
    Layer("journal", "-m tests.journal.campaign"),
    Layer("kills", "-m tests.chaos.kill_rounds --random --rounds {n}", 1_100, "rounds"),
    Layer("syscalls", "-m tests.chaos.syscalls"),
    Layer("proxy", "-m tests.chaos.proxy"),
    Layer("fuzz", "-m tests.fuzz --cases {n} --seed 1", 20_000_000, "cases"),
    Layer("museum", "-m tests.museum --jobs {jobs}"),
)


class Row(Struct, frozen=True):
    """What came of a layer."""

    layer: Layer
    size: int
    seconds: float
    code: int


def run(layer: Layer, part: float, jobs: int) -> Row:
    """Run a layer to its end."""
    size = max(1, int(layer.size * part)) if layer.size else 0
    command = layer.command.format(n=size, jobs=jobs).split()
    print(f"== {layer.name}: python {' '.join(command)}", flush=True)
    begun = time.monotonic()
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    return Row(layer, size, time.monotonic() - begun, code)


def table(rows: Sequence[Row]) -> str:
    """Give the table, in Markdown."""
    lines = ["| layer | size | minutes | result |", "|---|---|---|---|"]
    for row in rows:
        size = f"{row.size:,} {row.layer.unit}" if row.size else "all"
        result = "no violation" if row.code == 0 else f"exit code {row.code}"
        lines.append(f"| {row.layer.name} | {size} | {row.seconds / 60:.1f} | {result} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code."""
    known = [layer.name for layer in LAYERS]
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", allow_abbrev=False)
    parser.add_argument("--only", default=",".join(known), metavar="A,B")
    parser.add_argument("--part", type=float, default=1.0, metavar="F", help="of the full size")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    args = parser.parse_args(argv)
    wanted = [name for name in args.only.split(",") if name]
    unknown = sorted(set(wanted) - set(known))
    if unknown or not 0 < args.part <= 1 or args.jobs < 1:
        parser.error(f"layers are {', '.join(known)}; 0 < part <= 1; jobs are at least 1")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    rows = [run(layer, args.part, args.jobs) for layer in LAYERS if layer.name in wanted]
    print(f"\ncommit {commit or 'unknown'}\n\n{table(rows)}")
    return 1 if any(row.code for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
