"""docs/errors.md: every code, refusal and reason has its section, and the docs lead there."""

import re

import pytest

from cluster.metrics import SHARD_DUPLICATES, SHARD_FAULTS
from sagacity.errors import BY_CODE
from sagacity.wire import OUTCOMES, REFUSED
from tests.architecture.floors import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text()
HEADINGS = re.findall(r"^#{2,3} (.+)$", PAGE, flags=re.MULTILINE)
REFUSALS = [name.removeprefix("refused_") for name in OUTCOMES[REFUSED:]]


REASONS = (
    *("Directory in use", "Another number of shards", "No data directory", "Damaged"),
    *("Another version", "Another cluster", "An old backup", "Another definition"),
    "A configuration with faults",
    *("Versions known to be bad", "An address that is not ours"),
)


def anchor(heading: str) -> str:
    """Give a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def section(heading: str) -> str:
    return PAGE.partition(f"### {heading}\n")[2].partition("\n##")[0]


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_code_has_a_section_that_says_what_it_is(code: int) -> None:
    """What happened, what is true, what to do; definite or not and the exit code as they are."""
    text, kind = section(f"Code {code}"), BY_CODE[code]
    for part in ("*What happened:*", "*True now:*", "*To do:*"):
        assert part in text
    assert ("Definite" if kind.definite else "Indefinite") in text
    assert f"xit code {kind.exit_code}" in text


@pytest.mark.parametrize("refusal", REFUSALS)
def test_every_refusal_has_a_section(refusal: str) -> None:
    """Whoever sees it in a metric finds out whether to worry."""
    text = section(f"Refused: {refusal}")
    assert "*What happened:*" in text
    assert "*To do:*" in text
    assert f"refused_{refusal}" in (*SHARD_DUPLICATES, *SHARD_FAULTS)


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_not_to_run_has_a_section(reason: str) -> None:
    """The words of a refusal name the file; the page says what that means."""
    assert "*To do:*" in section(reason)
    assert f"](#{anchor(reason)})" in PAGE


def test_every_link_within_the_page_arrives() -> None:
    """Its table at the top is how one finds a section."""
    anchors = {anchor(heading) for heading in HEADINGS}
    links = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert links - anchors == set()
    wanted = {f"code-{code}" for code in BY_CODE} | {f"refused-{name}" for name in REFUSALS}
    assert wanted - links == set()


@pytest.mark.parametrize("page", ["README.md", "docs/protocol.md"])
def test_the_docs_lead_there(page: str) -> None:
    """Who meets an error starts at one of these."""
    text = (ROOT / page).read_text()
    assert f"({'docs/' if page == 'README.md' else ''}errors.md)" in text
