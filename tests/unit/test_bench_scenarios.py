"""Scenarios: sides by turns, verdicts of medians, and nothing quietly left out."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench import __main__ as bench
from bench import options, scenarios
from bench.figures import Figures
from bench.options import Options
from bench.result import Percentiles, Result
from bench.scenarios import FLOOR, OURS, NoResult, by_turns
from tests.unit.test_bench_run import some

CPU = {"client": 8.0, "router": 7.0, "shard": 50.0, "total": 130.0}


def a_run(rate: float, p99: float = 10.0) -> Result:
    latency = Percentiles(p99 / 2, p99, p99, p99, p99)
    return some(sagas_per_second=rate, latency_ms=latency, cpu_us_per_saga=CPU)


def sides(
    monkeypatch: pytest.MonkeyPatch, ours: list[float], floor: list[float], asked: list[Options]
) -> None:
    """Let runs give these rates, one after the other, and note what was asked."""
    both = {"our_run": iter(ours), "floor_run": iter(floor)}

    def giving(name: str) -> Callable[[Options], Result]:
        def give(options_of: Options) -> Result:
            asked.append(options_of)
            return a_run(next(both[name]))

        return give

    for name in both:
        monkeypatch.setattr(scenarios, name, giving(name))


def test_sides_take_turns() -> None:
    """All of one first and then all of the other would compare two different half hours."""
    ran: list[str] = []

    def side(name: str) -> tuple[str, Callable[[], Result]]:
        def run() -> Result:
            ran.append(name)
            return a_run(1.0)

        return name, run

    found = by_turns([side("a"), side("b")], 3, Figures("x"))
    assert ran == ["a", "b"] * 3
    assert [len(found[name]) for name in ("a", "b")] == [3, 3]


def test_a_run_that_is_no_result_makes_the_verdict_no() -> None:
    """Four good turns and one whose books do not balance are not "four of four"."""
    figures = Figures("x")
    good = iter([True, False])

    def run() -> Result:
        if not next(good):
            raise NoResult("the books do not balance")
        return a_run(1.0)

    found = by_turns([("a", lambda: a_run(2.0)), ("b", run)], 5, figures)
    assert [len(found[name]) for name in ("a", "b")] == [1, 1]  # a turn that is half is no pair
    assert "the books do not balance" in figures.table()
    assert figures.end() == 1


@pytest.mark.parametrize(("ours", "code"), [(11_000.0, 0), (10_000.0, 1)])
def test_peak_judges_the_median_of_ratios_within_turns(
    ours: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slows down between turns must not decide; one outlier neither."""
    asked: list[Options] = []
    sides(monkeypatch, [ours, ours * 2, ours], [12_000.0, 24_000.0, 90_000.0], asked)
    assert bench.main(["peak", "--runs", "3"]) == code
    assert {(each.in_flight, each.mix.decline) for each in asked} == {(1024, 10.0)}


def test_steady_offers_half_of_the_peak_of_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of yesterday's peak is a third of today's."""
    asked: list[Options] = []
    sides(monkeypatch, [8000.0] * 4, [9000.0] * 3, asked)
    bench.main(["steady", "--runs", "3"])
    assert [each.rate for each in asked] == [0.0, *[4000.0] * 6]


def test_declines_go_from_none_to_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """The curve is published; its first point is what the others are compared with."""
    asked: list[Options] = []
    sides(monkeypatch, [100, 99, 98, 97, 96, 95], [], asked)
    assert bench.main(["declines", "--runs", "1"]) == 0
    assert [each.mix.decline for each in asked] == [0, 10, 20, 30, 40, 50]


def test_all_runs_stand_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A verdict without what it was made from cannot be checked."""
    sides(monkeypatch, [100.0, 110.0], [100.0, 100.0], [])
    file = tmp_path / "alone.json"
    bench.main(["alone", "--runs", "2", "--json", str(file)])
    told = msgspec.json.decode(file.read_bytes())
    runs = {name: msgspec.convert(row, list[Result]) for name, row in told["runs"].items()}
    assert [each.sagas_per_second for each in runs[OURS]] == [100.0, 110.0]
    assert len(runs[FLOOR]) == 2
    assert told["figures"][0]["what"] == "p50, ours"


@pytest.mark.parametrize(
    "words",
    [["--runs", "0"], ["--runs", "x"], ["--duration", "0"], ["--warm-up", "-1"], ["--json", "/"]],
)
def test_bad_input_of_a_scenario_is_refused(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Before half an hour of runs."""
    assert bench.main(["peak", *words]) == 2
    assert words[0] in capfd.readouterr().err


def test_scenarios_ask_what_bench_run_understands() -> None:
    """Each scenario's load is words of `bench run`, which another version could take away."""
    for name in scenarios.SCENARIOS:
        assert name in bench.COMMANDS
    assert options.IN_FLIGHT == 1024
