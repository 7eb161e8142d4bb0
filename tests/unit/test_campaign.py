"""The campaign adds up what its layers have told, and is red where one of them is."""

import shlex
from pathlib import Path

import pytest

from bench.figures import Figure
from tests import campaign, publish, reached
from tests.campaign import ALL_CORES, SIDE_BY_SIDE, Layer
from tests.named import PAGE
from tests.reached import Reached

TOLD = (
    "from tests.reached import Reached, tell\n"
    "tell([Reached('B6', {count}, 'late'), Reached('E4', 7, 'dead')])"
)


def _layer(name: str, code: str, how: str = SIDE_BY_SIDE) -> Layer:
    return Layer(name, f"-c {shlex.quote(code)}", how)


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[Layer]:
    """Put layers of the test in the place of the real ones."""
    made: list[Layer] = []
    monkeypatch.setattr(campaign, "LAYERS", made)
    return made


def _run(logs: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = campaign.main(["--logs", str(logs)])
    return code, capsys.readouterr().out


def test_a_line_of_what_was_reached_is_read_as_it_was_told() -> None:
    """Layers and campaign are processes that share these lines alone."""
    told = [
        Reached("A1", 0, "nothing yet"),
        Reached("B11", 1_234_567, "of unknown outcome, undone"),
    ]
    assert list(reached.read(["other", *map(str, told), "reached X9 4  no anomaly"])) == told


def test_counts_of_all_layers_stand_in_one_table(
    layers: list[Layer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An anomaly is met by several layers; each says how often."""
    layers += [
        _layer("one", TOLD.format(count=3)),
        _layer("two", TOLD.format(count=0)),
        _layer("three", TOLD.format(count=20), ALL_CORES),
    ]
    code, out = _run(tmp_path, capsys)
    assert code == 0
    assert "| B6 | three 20; one 3; two 0 |" in out
    assert out.count("no violation") == len(layers)


def test_a_whole_campaign_is_published(
    layers: list[Layer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tables stand in the documentation, in the place of those before; a part's do not."""
    layers += [_layer("one", TOLD.format(count=3)), _layer("two", TOLD.format(count=4))]
    assert campaign.main(["--logs", str(tmp_path), "--only", "one"]) == 0
    assert publish.main([str(tmp_path)]) == 2
    _run(tmp_path, capsys)
    report = campaign.read_report(tmp_path / campaign.REPORT)
    page = f"above\n{publish.BEGIN}old\n{publish.END}below\n"
    told = publish.with_tables(page, report)
    assert told.startswith("above\n")
    assert told.endswith("below\n")
    assert "old" not in told
    assert told.count("no violation") == len(layers)
    assert publish.with_tables(told, report) == told
    lines = "| B6 | what | tests | by | old |\n| B7 | what | tests | by | |\n"
    counted = publish.with_counts(lines, report.reached)
    assert counted == "| B6 | what | tests | by | one 3; two 4 |\n| B7 | what | tests | by | |\n"


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"commit": 1}'])
def test_a_folder_that_holds_no_campaign_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """The documentation stays as it is."""
    if content is not None:
        (tmp_path / campaign.REPORT).write_bytes(content)
    before = publish.PROOF.read_bytes(), PAGE.read_bytes()
    assert publish.main([str(tmp_path)]) == 2
    assert (publish.PROOF.read_bytes(), PAGE.read_bytes()) == before


def test_what_is_counted_and_was_never_reached_fails_a_whole_campaign(
    layers: list[Layer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PROOF: what a campaign never reached it has not shown."""
    layers.append(_layer("one", TOLD.format(count=0)))
    code, out = _run(tmp_path, capsys)
    assert code == 1
    assert "counted and not reached: B6" in out


@pytest.mark.parametrize("end", ["exit(1)", "raise KeyError", "import os; os.abort()"])
def test_a_layer_that_finds_something_or_dies_fails_the_campaign(
    layers: list[Layer], tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """A layer that could not run has shown nothing."""
    layers += [_layer("good", TOLD.format(count=1)), _layer("bad", end)]
    code, out = _run(tmp_path, capsys)
    assert code == 1
    assert "**exit code" in out
    assert "no violation" in out


@pytest.mark.parametrize("words", [["--only", ""], ["--only", ","], ["--only", "nope"]])
def test_a_campaign_of_no_layers_is_refused(words: list[str]) -> None:
    """It would end with 0 and have shown nothing."""
    with pytest.raises(SystemExit, match="2"):
        campaign.main(words)


def test_what_a_round_needs_not_to_be_void_is_what_it_reached() -> None:
    """Figures that ask for one at least; others say how well it went."""
    rows = [
        Figure("G4 never reads: done", "", (12,), at_least=1),
        Figure("G4 never reads: goodput", "", (0.99,), at_least=0.95),
        Figure("replaced: frames", "", (50,), at_least=1),
        Figure("G1: finished", "", (), at_least=1, why="none"),
    ]
    told = list(reached.of_figures(rows, "E1"))
    assert told == [Reached("G4", 12, "never reads: done"), Reached("E1", 50, "replaced: frames")]
    assert [each.code for each in reached.of_figures(rows)] == ["G4"]
