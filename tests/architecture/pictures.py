"""Pictures that the docs print from the code's own tables.

python -m tests.architecture.pictures          write them into the docs
"""

from shard.phases import FACTS, PHASES, TRANSITIONS
from tests.architecture.floors import ROOT, picture

PLACES = {"docs/protocol.md": "phases", "ARCHITECTURE.md": "floors"}


def phases() -> str:
    """Give the transition table, a line each."""
    lines = [
        f"{PHASES[before]:<13} {FACTS[fact]:<17} {PHASES[after]}"
        for (before, fact), after in TRANSITIONS.items()
    ]
    return "\n".join(["phase         fact              next phase", *lines])


def printed(text: str, name: str) -> str:
    """Give a page with a picture's place filled."""
    head, mark, rest = text.partition(f"<!-- {name}: ")
    assert mark, f"the page has no place for {name}"
    opening, _, rest = rest.partition("-->")
    _, end, tail = rest.partition("<!-- end -->")
    drawn = {"phases": phases, "floors": picture}[name]()
    return f"{head}{mark}{opening}-->\n```\n{drawn}\n```\n{end}{tail}"


def main() -> None:
    """Write every picture."""
    for place, name in PLACES.items():
        page = ROOT / place
        page.write_text(printed(page.read_text(), name))


if __name__ == "__main__":
    main()
