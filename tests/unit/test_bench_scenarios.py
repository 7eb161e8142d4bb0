"""Scenarios: sides by turns, verdicts of medians, and nothing quietly left out."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench import __main__ as bench
from bench import failover, options, overload, scenarios, soak
from bench.figures import Figures
from bench.options import Options
from bench.result import Percentiles, Result
from bench.scenarios import FLOOR, OURS, NoResult, by_turns
from bench.soak import Looked
from bench.tally import Told
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


def test_a_scenario_that_is_interrupted_keeps_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An hour of runs must not be lost with the last one, nor taken for all of them."""
    rates = iter([100.0, 0.0])

    def ours(_: Options) -> Result:
        if rate := next(rates):
            return a_run(rate)
        raise NoResult("interrupted", 130)

    monkeypatch.setattr(scenarios, "our_run", ours)
    monkeypatch.setattr(scenarios, "floor_run", lambda _: a_run(100.0))
    file = tmp_path / "peak.json"
    assert bench.main(["peak", "--runs", "3", "--json", str(file)]) == 130
    told = msgspec.json.decode(file.read_bytes())
    assert told["partial"] is True
    assert [len(told["runs"][side]) for side in (OURS, FLOOR)] == [1, 1]
    assert any("interrupted" in row["why"] for row in told["figures"])


def test_shards_are_judged_by_what_a_checkout_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a box with two cores eight shards are no faster: they must not be much dearer either."""
    asked: list[Options] = []
    cpu = {1: 100.0, 2: 104.0, 4: 110.0, 8: 126.0}

    def ours(options_of: Options) -> Result:
        asked.append(options_of)
        used = cpu[options_of.shards or 0]
        return some(cpu_us_per_saga={"shard": used / 2, "total": used})

    monkeypatch.setattr(scenarios, "our_run", ours)
    assert bench.main(["shards", "--runs", "1"]) == 1
    cpu[8] = 124.0
    assert bench.main(["shards", "--runs", "1"]) == 0
    assert [each.shards for each in asked] == [1, 2, 4, 8] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["flash-sale", "--part", "0"], "--part"),
        (["flash-sale", "--buyers", "0"], "--sagas"),
        (["flash-sale", "--units", "-1"], "--hot-units"),
        (["flash-sale", "--runs", "0"], "--runs"),
        (["failover", "--runs", "0"], "--runs"),
        (["failover", "--rate", "-1"], "--rate"),
        (["failover", "--victim", "nobody"], "--victim"),
        (["overload", "--times", "0"], "--times"),
        (["overload", "--rate", "nan"], "--rate"),
        (["overload", "--in-flight", "0"], "--in-flight"),
        (["soak", "--slices", "1"], "--slices"),
        (["soak", "--duration", "long"], "--duration"),
        (["in-flight", "--shards", "0"], "--shards"),
        (["growth", "--finished", "0"], "--finished"),
        (["growth", "--data", "/dev/shm/sagacity"], "tmpfs"),
        (["floor", "--decline", "60", "--out-of-stock", "60"], "impossible mix"),
        (["floor", "--connect", "ipc://x"], "--connect"),
        (["run", "--hot-units", "5"], "--hot-sku"),
        (["soak", "--force"], "--json"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(
    words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Words that name the option, exit code 2; not an hour and then a traceback."""
    assert bench.main(words) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    "name", ["floor", "overload", "flash-sale", "failover", "growth", "soak", "in-flight", "shards"]
)
def test_a_result_that_exists_is_not_replaced(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Said before the runs, not after them; --force is for who means it."""
    file = tmp_path / "r.json"
    file.write_text("kept")
    assert bench.main([name, "--json", str(file)]) == 2
    assert "exists already" in capfd.readouterr().err
    assert file.read_text() == "kept"


def test_overload_is_judged_by_the_cpu_that_refusals_leave() -> None:
    """A tenth of two cores for refusals leaves nine tenths of what they can serve."""
    figures = Figures("x")
    best = some(sagas_per_second=10_000.0, cpu_us_per_saga={"total": 200.0})
    latency = Percentiles(1.0, 2.0, 900.0, 950.0, 999.0)
    found = some(
        goodput_per_second=0.9 * 0.9 * options.cores() * 1e6 / 200.0 + 1,
        refused=20_000 * options.cores(),
        wall_seconds=2.0,
        latency_ms=latency,
        refusal_ms=Percentiles(1.0, 2.0, 101.0, 102.0, 103.0),
    )
    overload._judge(best, found, 10.0, figures)
    met = {row.what: row.met for row in figures.rows if row.met is not None}
    assert met["goodput / what CPU allows"] is True
    assert met["accepted, p99"] is True
    assert met["refusals, p99"] is False
    again = Figures("x")
    overload._judge(best, found, 9.0, again)
    assert {row.what: row.met for row in again.rows}["goodput / what CPU allows"] is False


def test_back_after_overload_is_when_seconds_together_are() -> None:
    """One good second between two bad ones is a lump, not being back."""
    assert overload.back_after_s([10, 150, 10, 100, 100, 100, 100, 3], 95) == 3.0
    assert overload.back_after_s([10, 20, 30, 3], 95) is None
    assert overload.back_after_s([], 95) is None


def test_a_soak_judges_the_process_that_grew_most() -> None:
    """An average over ten processes hides the one that leaks."""
    first = {"shard-0 (1)": Looked(40.0, 20, 4), "router-0 (2)": Looked(30.0, 20, 4)}
    last = {"shard-0 (1)": Looked(41.0, 20, 4), "router-0 (2)": Looked(40.0, 23, 4)}
    figures = Figures("x")
    soak.drift([first, last], figures)
    met = {row.what: row.met for row in figures.rows}
    assert met["memory, the last / the first: router-0 (2)"] is False
    assert met["open files more: router-0 (2)"] is False
    assert met["processes that were replaced"] is True
    replaced = Figures("x")
    soak.drift([first, {"shard-0 (3)": last["shard-0 (1)"]}], replaced)
    assert replaced.rows[0].met is False


def test_others_are_compared_with_as_long_a_time_before() -> None:
    """Ten tenths before the kill and ten after, whatever the ramp and the drain do."""
    steady = Told(per_tenth=[0] * 5 + [10] * 40)
    assert failover._share(steady, at=20, span=10) == 1.0
    halved = Told(per_tenth=[10] * 20 + [5] * 10)
    assert failover._share(halved, at=20, span=10) == 0.5
    assert failover._share(Told(), at=20, span=10) is None
