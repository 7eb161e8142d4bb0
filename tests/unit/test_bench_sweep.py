"""`sagacity bench sweep`: every value in every turn, and nothing lost that was measured."""

from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import curves, samples, sweep
from bench.options import Options
from bench.result import Result
from bench.scenarios import NoResult
from tests.unit.bench_files import a_floor, a_run


class Runs:
    """Stands for runs of ours and of the floor: notes what was asked, ends at one if told to."""

    def __init__(self, ends_with: BaseException | None = None, after: int = 0) -> None:
        self.asked: list[tuple[str, Options]] = []
        self._ends_with, self._after = ends_with, after

    def ours(self, asked: Options) -> Result:
        if self._ends_with is not None and len(self.asked) == self._after:
            raise self._ends_with
        self.asked.append(("ours", asked))
        return a_run(1000.0 + len(self.asked), settings=asked.settings())

    def floor(self, asked: Options) -> Result:
        self.asked.append(("floor", asked))
        return a_floor(2000.0 + len(self.asked), settings=asked.settings())


def swept(monkeypatch: pytest.MonkeyPatch, runs: Runs, *words: str) -> int:
    monkeypatch.setattr(sweep, "our_run", runs.ours)
    monkeypatch.setattr(sweep, "floor_run", runs.floor)
    return bench.main(["sweep", *words])


def test_each_turn_has_every_value_and_the_floor_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All runs of one value first would put the machine's slow hour into one point."""
    runs, file = Runs(), tmp_path / "s.json"
    words = ["--in-flight", "1,8,64", "--decline", "10", "--runs", "2", "--floor"]
    assert swept(monkeypatch, runs, *words, "--json", str(file)) == 0
    assert [(who, asked.in_flight) for who, asked in runs.asked] == [
        (who, many) for many in (1, 8, 64) for who in ("ours", "floor")
    ] * 2
    assert {asked.mix.decline for _, asked in runs.asked} == {10.0}
    shelf = samples.read_all([file])
    chart = next(each for each in curves.charts(shelf) if each.name == "in-flight")
    assert [(line.who, [point.x for point in line.points]) for line in chart.lines] == [
        ("Sagacity", [1, 8, 64]),
        ("floor", [1, 8, 64]),
    ]


@pytest.mark.parametrize(
    ("words", "name"),
    [(["--rate", "1000,2000"], "goodput"), (["--decline", "0,50", "--in-flight", "8"], "declines")],
)
def test_a_sweep_makes_the_curve_of_the_report(
    words: list[str], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The report names the sweep that a missing curve needs: it must give it."""
    file = tmp_path / "s.json"
    assert swept(monkeypatch, Runs(), *words, "--runs", "1", "--json", str(file)) == 0
    chart = next(each for each in curves.charts(samples.read_all([file])) if each.name == name)
    assert chart.missing == ""
    assert len(chart.lines[0].points) == 2


@pytest.mark.parametrize(
    ("ends_with", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (NoResult("the books"), 1)],
)
def test_an_interrupted_sweep_keeps_what_it_measured_and_says_what_is_missing(
    ends_with: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An hour of runs is not thrown away for the last of them."""
    file = tmp_path / "s.json"
    words = ["--in-flight", "1,8", "--runs", "3", "--json", str(file)]
    assert swept(monkeypatch, Runs(ends_with, after=3), *words) == code
    shelf = samples.read_all([file])
    assert [each.load.in_flight for each in shelf.samples] == [1, 1, 8]
    (told,) = shelf.verdicts
    assert [each.why for each in told.figures if each.met is False] == ["2 of 3", "1 of 3"]


def test_a_sweep_that_measured_nothing_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An empty file would be taken for a result."""
    words = ["--in-flight", "1,8", "--json", str(tmp_path / "s.json")]
    assert swept(monkeypatch, Runs(NoResult("it does not start")), *words) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--in-flight", "8"], "a sweep is over one thing"),
        ([], "a sweep is over one thing"),
        (["--in-flight", "1,8", "--decline", "0,10"], "2 of them"),
        (["--in-flight", "8", "--rate", "1,2"], "one of them"),
        (["--in-flight", "1,,8"], "--in-flight takes"),
        (["--in-flight", "1,8,1"], "named twice"),
        (["--in-flight", "0,8"], "--in-flight is 1 to"),
        (["--in-flight", "1,x"], "invalid int value"),
        (["--decline", "10,110"], "--decline is a share"),
        (["--decline", "10,20", "--no-carrier", "90"], "an impossible mix"),
        (["--rate", "1,2", "--runs", "0"], "--runs is 1 to"),
        (["--rate", "1,2", "--json", "/"], "is a folder"),
    ],
)
def test_bad_input_of_a_sweep_is_refused_before_anything_runs(
    words: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The last value of ten would be refused after an hour else."""
    runs = Runs()
    assert swept(monkeypatch, runs, "--json", str(tmp_path / "s.json"), *words) == 2
    assert says in capfd.readouterr().err
    assert runs.asked == []
