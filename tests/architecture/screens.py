"""Pictures of screens in the docs: drawn by the code that draws them for people.

python -m tests.architecture.screens                        draw docs/images/top.svg
python -m tests.architecture.screens --record FILE          take other figures first: the line
                                                            of `sagacity top --once --json`
"""

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

from msgspec import convert, to_builtins
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from cluster import render, screen
from cluster.figures import Figures
from sagacity import money
from tests.architecture.floors import ROOT

RECORDED = ROOT / "tests/architecture/top.json"
PICTURE = ROOT / "docs/images/top.svg"
SIZE = (80, 24)
TITLE = "sagacity top"
# Without the fonts that rich would fetch, nor its address: a picture asks nobody for anything.
FORMAT = re.sub(
    r"@font-face \{\{.*?\n    \}\}\n|<!--.*?-->\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL
)


def recorded() -> Figures:
    """Give the figures of a cluster under load, as its line for scripts had them."""
    return figures_of(RECORDED.read_text())


def figures_of(line: str) -> Figures:
    """Read the line of `sagacity top --once --json`; amounts have two decimals there."""
    body: dict[str, Any] = json.loads(line)
    for saga in json.loads(line, parse_float=str)["stuck_sagas"]:
        at = next(
            i for i, each in enumerate(body["stuck_sagas"]) if each["saga_id"] == saga["saga_id"]
        )
        body["stuck_sagas"][at]["amount"] = money.parse(saga["amount"])
    return convert(body, Figures)


def picture(found: Figures) -> str:
    """Draw the page as SVG."""
    width, height = SIZE
    console = Console(
        file=io.StringIO(),
        record=True,
        width=width,
        height=height,
        force_terminal=True,
        color_system="truecolor",
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(screen.page(found, width=width, height=height))
    return console.export_svg(title=TITLE, code_format=FORMAT, unique_id="top")


def main() -> None:
    """Record what was asked for, and draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.architecture.screens")
    parser.add_argument("--record", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.record is not None:
        found = figures_of(asked.record.read_text())
        RECORDED.write_text(f"{render.json_line(to_builtins(found))}\n")
    PICTURE.write_text(picture(recorded()))


if __name__ == "__main__":
    main()
