"""Every state of small cases, as deep as a default run has time for.

To the end: `python -m tests.exhaustive`; what it counted is in docs/proof/exhaustive.md.
"""

from collections import Counter
from typing import Any

import pytest
from msgspec import structs

from sagacity.errors import InvariantBroken
from tests.exhaustive.__main__ import main
from tests.exhaustive.cases import CASES, SERVICES, Wrong
from tests.exhaustive.model import Model, Tables
from tests.exhaustive.planted import BUGS
from tests.exhaustive.planted import DEPTH as BUG_DEPTH
from tests.exhaustive.rules import PROBES, RULES, SOMETIMES
from tests.exhaustive.search import EVERYTHING, Report, Search, replay

DEPTH = 10  # moves; of each case
WHOLE = structs.replace(CASES["one"], crashes=1, losses=0, duplicates=0)
BUG_STATES_MAX = 2_000  # of the dearest, twice over


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """Search each case once for all tests."""
    tables = {sagas: Tables(sagas) for sagas in (1, 2)}  # what one has asked the next looks up
    found = {
        name: Search(Model(case, tables[case.sagas]), DEPTH).run() for name, case in CASES.items()
    }
    return {**found, "whole": Search(Model(WHOLE, tables[WHOLE.sagas])).run()}


@pytest.mark.parametrize("name", [*CASES, "whole"])
def test_no_schedule_breaks_an_invariant(name: str, reports: dict[str, Report]) -> None:
    """Invariants 2, 4 to 10: after every sequence of so many events, faults and choices."""
    report = reports[name]
    assert report.violation is None, report.violation
    assert report.whole if name == "whole" else report.depth == DEPTH


def test_from_every_state_everything_finishes(reports: dict[str, Report]) -> None:
    """Invariant 5: no dead end and no live-lock, whatever happened before the faults stop."""
    report = reports["whole"]
    assert report.whole
    assert report.finished > 0


def test_each_invariant_and_anomaly_is_met(reports: dict[str, Report]) -> None:
    """What is never reached is not shown: every count is above zero."""
    met: Counter[str] = Counter()
    for report in reports.values():
        for counts in (report.judged, report.probed, report.sometimes):
            met.update(counts)
    assert [name for name in (*RULES, *PROBES, *SOMETIMES) if not met[name]] == []


def test_what_a_state_stands_for_shows_nothing_else() -> None:
    """One with fewer faults left or fewer old letters is left out; gone into, it adds nothing."""
    case = structs.replace(CASES["one"], crashes=0, losses=1, duplicates=0)
    tables = Tables(case.sagas)
    short, long = (Search(Model(case, tables), stands_in=flag) for flag in (True, False))
    fewer, more = short.run().states, long.run().states
    assert fewer < more
    assert short.seen() == long.seen()


@pytest.mark.parametrize("name", list(BUGS))
def test_a_planted_bug_is_found_and_replayed(name: str) -> None:
    """A proof that cannot fail proves nothing. The way is short, and leads there again."""
    bug = BUGS[name]
    report = Search(bug.make(), BUG_DEPTH).run()
    found = report.violation
    assert found is not None
    assert bug.breaks in found.text
    assert report.states <= BUG_STATES_MAX
    again: list[str] = []
    if "once faults stop" not in found.text:  # that is seen from all states alone
        with pytest.raises((Wrong, InvariantBroken)) as wrong:
            again.extend(replay(bug.make(), found.choices))
        assert str(wrong.value) == found.text
    else:
        again.extend(replay(bug.make(), found.choices))
    assert len(again) >= len(found.moves) - 1


def test_the_shortest_way_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Who finds a violation reads what happened, and goes that way with one command."""
    assert main(["one", "--replay", "0.0.0"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("the client asks for s1")
    assert told[-1] == "nothing is wrong there"


@pytest.mark.parametrize(
    "arguments",
    [
        ["one", "--depth", "0"],
        ["one", "--depth", "-1"],
        ["one", "--replay", "0.99"],
        ["one", "--replay", "x"],
        ["one", "--replay", "0.-1"],
        ["one", "--replay", ""],
        ["--replay", "0"],
        ["three"],
        ["one", "--crashes", "4"],
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and a line that says why."""
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_a_search_to_a_depth_prints_its_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """States, depth, and each invariant by its name."""
    assert main(["pair", "--depth", "2", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "depth 2, not to the end" in told
    assert all(name in told for name in (*RULES, *PROBES, *SOMETIMES))


def test_the_same_search_sees_the_same() -> None:
    """Nothing of it is left to chance."""
    first, second = (Search(Model(CASES["one"]), 4).run() for _ in range(2))
    assert _plain(first) == _plain(second)


def _plain(report: Report) -> dict[str, Any]:
    return {**structs.asdict(report), "seconds": None}


def test_cases_name_services_in_the_order_of_their_steps() -> None:
    """A state holds the databases in this order."""
    assert SERVICES == ("inventory", "payment", "shipping")
    assert DEPTH < EVERYTHING
