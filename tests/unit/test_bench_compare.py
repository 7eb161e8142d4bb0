"""`sagacity bench compare`: tells a difference from chance, and never compares different things."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import __main__ as bench
from bench import compare, intervals, samples
from bench.compare import Comparison, Row
from bench.intervals import BETTER, CANNOT_TELL, WORSE
from bench.result import Percentiles, Result
from tests.unit import bench_files
from tests.unit.bench_files import MACHINE, a_floor, a_run

SEEDS = range(30)


def scattered(middle: float, seed: int, runs: int = 5, by: float = 0.015) -> list[float]:
    chance = random.Random(seed)
    return [middle * chance.gauss(1.0, by) for _ in range(runs)]


def file_of(file: Path, rates: list[float], **changed: Any) -> Path:
    """Write a file with a run for each rate, its latencies the other way round."""
    runs = [
        a_run(rate, seed=at, **{"latency_ms": Percentiles(*[4e5 / rate] * 5)} | changed)
        for at, rate in enumerate(rates)
    ]
    told = {"title": "x", "figures": [], "runs": {"ours": runs}}
    bench_files.write(file.parent, **{file.stem: told})
    return file


def compared(folder: Path, a: list[float], b: list[float]) -> Comparison:
    files = [file_of(folder / "a.json", a), file_of(folder / "b.json", b, wall_seconds=10.5)]
    return compare.compare(*(samples.read_all([file]) for file in files))


def row_of(found: Comparison, what: str) -> Row:
    return next(row for pair in found.pairs for row in pair.rows if row.what == what)


def test_a_real_difference_of_5_percent_is_told_from_noise() -> None:
    """Runs of the same program scatter by 1.5 %; five of each must be enough to see 5 %."""
    told = [
        intervals.verdict(
            intervals.ratio_of_medians(scattered(100, seed), scattered(105, seed + 1000)),
            more_is_better=True,
        )
        for seed in SEEDS
    ]
    assert WORSE not in told
    assert told.count(BETTER) >= 0.9 * len(SEEDS)


def test_equal_sides_are_not_called_different() -> None:
    """Who cries at noise is not believed at a regression."""
    told = [
        intervals.verdict(
            intervals.ratio_of_medians(scattered(100, seed), scattered(100, seed + 1000)),
            more_is_better=True,
        )
        for seed in SEEDS
    ]
    assert told.count(CANNOT_TELL) >= 0.9 * len(SEEDS)


def test_the_interval_holds_the_ratio_and_grows_with_the_scatter() -> None:
    """An interval that is always as wide says nothing of the runs."""
    widths = []
    for by in (0.005, 0.05):
        a, b = (scattered(100, seed, runs=9, by=by) for seed in (1, 2))
        ratio = intervals.ratio_of_medians(a, b)
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        assert ratio.low <= ratio.middle <= ratio.high
        widths.append(ratio.high - ratio.low)
    assert widths[1] > 4 * widths[0]


def test_fewer_than_five_runs_tell_nothing(tmp_path: Path) -> None:
    """Two runs of each that differ by 30 % are four numbers."""
    found = compared(tmp_path, [100.0] * 5, [130.0] * 4)
    assert row_of(found, "throughput").verdict == CANNOT_TELL
    assert "5, 4 runs" in found.text()
    assert "too few runs, 5 of each are needed" in found.text()


def test_more_throughput_is_better_and_more_latency_is_worse(tmp_path: Path) -> None:
    """A table of ratios alone lets the reader guess which way is good."""
    found = compared(tmp_path, scattered(100, 1), scattered(120, 2))
    assert row_of(found, "throughput").verdict == BETTER
    assert row_of(found, "p99").verdict == BETTER
    ratio = row_of(found, "p99").ratio
    assert ratio is not None
    assert ratio.middle < 1
    found = compared(tmp_path, scattered(120, 1), scattered(100, 2))
    assert {row_of(found, what).verdict for what in ("throughput", "p50")} == {WORSE}


def test_nothing_divided_by_nothing_is_no_ratio(tmp_path: Path) -> None:
    """A run without latencies has zeros there."""
    zeros = Percentiles()
    files = [
        file_of(tmp_path / f"{name}.json", scattered(100, seed), latency_ms=zeros)
        for seed, name in enumerate("ab")
    ]
    found = compare.compare(*(samples.read_all([file]) for file in files))
    assert row_of(found, "p50").ratio is None
    assert "no ratio" in found.text()


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    """Twice as many shards explain what a commit is praised for."""
    a = file_of(tmp_path / "a.json", [100.0] * 5)
    b = file_of(tmp_path / "b.json", [200.0] * 5, commit="def456", settings={"shards": 4})
    found = compare.compare(*(samples.read_all([file]) for file in (a, b)))
    assert found.differing == {"commit": ("abc123", "def456"), "shards": ("2", "4")}
    assert "differs: shards: 2 | 4" in found.text()


def test_ours_is_compared_with_the_floor_of_its_turn(tmp_path: Path) -> None:
    """In B the machine did half of everything: ours is as good as before."""
    files = []
    for name, speed in (("a", 1.0), ("b", 0.5)):
        ours, floor = scattered(5000 * speed, 3), scattered(6000 * speed, 4)
        runs = {
            "ours": [a_run(rate, seed=at) for at, rate in enumerate(ours)],
            "floor": [a_floor(rate, seed=at) for at, rate in enumerate(floor)],
        }
        told = {"title": "peak", "figures": [], "runs": runs}
        files += bench_files.write(tmp_path, **{name: told})
    found = compare.compare(*(samples.read_all([file]) for file in files))
    assert row_of(found, "throughput").verdict == WORSE
    assert row_of(found, compare.BESIDE_FLOOR).verdict == CANNOT_TELL


def test_a_machine_that_was_slower_is_said(tmp_path: Path) -> None:
    """The yardstick is there for this."""
    slow = msgspec.structs.replace(MACHINE, yardstick_ns=60.0)
    a = file_of(tmp_path / "a.json", [100.0] * 5)
    b = file_of(tmp_path / "b.json", [90.0] * 5, machine=slow)
    found = compare.compare(*(samples.read_all([file]) for file in (a, b)))
    assert "20 % slower in B" in found.text()


def test_loads_that_only_one_side_has_are_named(tmp_path: Path) -> None:
    """What is left out in silence is taken for the same."""
    a = bench_files.write(tmp_path, one=a_run(), two=a_run(settings={"in_flight": 8}))
    b = bench_files.write(tmp_path, other=a_run(5100.0, settings={"in_flight": 8}))
    found = compare.compare(samples.read_all(a), samples.read_all(b))
    assert "Sagacity, 1024 in flight, 10 % declined: in A alone" in found.notes
    assert [pair.load for pair in found.pairs] == ["8 in flight, 10 % declined"]


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    """`bench run --json` writes one file a run; five of them are a side."""
    for name, rate in (("before", 100.0), ("after", 130.0)):
        (tmp_path / name).mkdir()
        runs = {
            f"r{at}": a_run(each, seed=at) for at, each in enumerate(scattered(rate, int(rate)))
        }
        bench_files.write(tmp_path / name, **runs)
    out = tmp_path / "c.json"
    words = ["compare", str(tmp_path / "before"), str(tmp_path / "after"), "--json", str(out)]
    assert bench.main(words) == 0
    told = msgspec.json.decode(out.read_bytes())
    (row,) = [row for row in told["pairs"][0]["rows"] if row["what"] == "throughput"]
    assert (row["verdict"], len(row["a"]), len(row["b"])) == (BETTER, 5, 5)


@pytest.mark.parametrize(
    ("rate", "below", "code"),
    [(90.0, "0.97", 1), (90.0, "0.8", 0), (100.0, "0.97", 0), (100.0, "1", 0), (110.0, "0.97", 0)],
)
def test_fail_below_fails_where_it_is_worse_by_more(
    rate: float, below: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A build is broken by a regression, not by a noisy neighbour."""
    file_of(tmp_path / "a.json", scattered(100, 1))
    file_of(tmp_path / "b.json", scattered(rate, 2), wall_seconds=10.5)
    words = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert bench.main(["compare", *words, "--fail-below", below]) == code
    assert ("BELOW" in capfd.readouterr().out) is bool(code)


def test_fail_below_does_not_fail_by_chance(tmp_path: Path) -> None:
    """A median that is 5 % lower among runs that scatter by 20 % is no regression."""
    file_of(tmp_path / "a.json", [90.0, 95.0, 100.0, 105.0, 110.0])
    file_of(tmp_path / "b.json", [85.0, 90.0, 95.0, 100.0, 115.0], wall_seconds=10.5)
    words = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert bench.main(["compare", *words, "--fail-below", "0.97"]) == 0


def test_fail_below_that_could_never_fail_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A gate with one run of each lets everything pass, for ever."""
    file_of(tmp_path / "a.json", [100.0])
    file_of(tmp_path / "b.json", [50.0])
    words = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert bench.main(["compare", *words, "--fail-below", "0.97"]) == 2
    assert "it needs 5 runs of each" in capfd.readouterr().err


def changed(says: str, force: int, **change: Any) -> tuple[Result, str, int]:
    return a_run(5100.0, **change), says, force


OTHER_CPU = msgspec.structs.replace(MACHINE, cpu="other")


@pytest.mark.parametrize(
    ("run", "says", "forced"),
    [
        changed("different machines", 0, machine=OTHER_CPU),
        changed("books do not balance", 0, balanced=False),
        changed("not audited", 0, balanced=None),
        changed("partial: interrupted", 0, partial=True, partial_why="interrupted"),
        changed("nothing to compare: A has", 0, settings={"in_flight": 8}),
        changed("5/s offered", 0, settings={"loop": "open", "in_flight": 0, "rate": 5.0}),
    ],
)
def test_different_things_are_compared_with_force_alone(
    run: Result, says: str, forced: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who knows better can have it; who does not is told."""
    files = [str(file) for file in bench_files.write(tmp_path, a=a_run(), b=run)]
    assert bench.main(["compare", *files]) == 2
    assert says in capfd.readouterr().err
    assert bench.main(["compare", *files, "--force"]) == forced


def test_a_side_of_two_versions_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A median over before and after compares neither."""
    (tmp_path / "a").mkdir()
    bench_files.write(tmp_path / "a", one=a_run(), two=a_run(5001.0, commit="def456"))
    (b,) = bench_files.write(tmp_path, b=a_run(5100.0))
    assert bench.main(["compare", str(tmp_path / "a"), str(b)]) == 2
    assert "differ in commit abc123 and def456" in capfd.readouterr().err


def itself(folder: Path) -> list[str]:
    return [str(bench_files.write(folder, a=a_run())[0])] * 2


def a_copy(folder: Path) -> list[str]:
    return [str(file) for file in bench_files.write(folder, a=a_run(), b=a_run())]


def cut(folder: Path) -> list[str]:
    files = bench_files.write(folder, a=a_run(), b=a_run(5100.0))
    files[1].write_bytes(files[1].read_bytes()[:200])
    return [str(file) for file in files]


def newer(folder: Path) -> list[str]:
    return [str(file) for file in bench_files.write(folder, a=a_run(), b=a_run(5100.0, format=9))]


def json_is_there(folder: Path) -> list[str]:
    (folder / "c.json").write_text("mine")
    return [*two(folder), "--json", str(folder / "c.json")]


def two(folder: Path) -> list[str]:
    return [str(file) for file in bench_files.write(folder, a=a_run(), b=a_run(5100.0))]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (itself, "on both sides"),
        (a_copy, "a copy of another"),
        (cut, "no JSON, or was cut off"),
        (newer, "newer Sagacity"),
        (json_is_there, "exists already"),
        (lambda folder: [*two(folder)[:1], str(folder / "none.json")], "cannot be read"),
        (lambda folder: [*two(folder), "--fail-below", "0"], "--fail-below is above 0"),
        (lambda folder: [*two(folder), "--fail-below", "nan"], "--fail-below is above 0"),
        (lambda folder: two(folder)[:1], "required: B"),
    ],
)
def test_bad_input_of_a_comparison_is_refused(
    given: Callable[[Path], list[str]],
    says: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In words, and nothing is overwritten."""
    words = given(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert bench.main(["compare", *words]) == 2
    told = capfd.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}
