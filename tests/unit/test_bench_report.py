"""`sagacity bench report`: one page that stands for itself, and says nothing that no file says."""

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from bench import __main__ as bench
from bench import curves, page, plots, samples
from bench.result import Mark, Percentiles, Result
from tests.unit import bench_files
from tests.unit.bench_files import a_floor, a_run

KILL = [Mark(2.0, "kill -9 shard-0")]


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page and the pictures of every kind of file there is."""
    folder = tmp_path_factory.mktemp("report")
    files = bench_files.write(
        folder,
        sweep=bench_files.sweep_in_flight(runs=2),
        rate=bench_files.sweep_rate(runs=2),
        declines=bench_files.declines(runs=2),
        failover=bench_files.failover(),
        peers=bench_files.peers(runs=2),
    )
    words = ["report", *map(str, files), "-o", str(folder / "r.html"), "--png", str(folder / "png")]
    assert bench.main(words) == 0
    return folder


def tables(folder: Path, *runs: Result, **files: Any) -> str:
    """Give the page of some files without its plots."""
    named = {f"r{at}": run for at, run in enumerate(runs)} | files
    return page.page(samples.read_all(bench_files.write(folder, **named)), [])


def shelf_of(folder: Path, **files: Any) -> samples.Shelf:
    return samples.read_all(bench_files.write(folder, **files))


def chart_of(shelf: samples.Shelf, name: str) -> curves.Chart:
    return next(chart for chart in curves.charts(shelf) if chart.name == name)


def test_the_page_fetches_nothing_and_runs_nothing(whole: Path) -> None:
    """It is read where there is no network, in ten years, and from people one does not know."""
    text = (whole / "r.html").read_text()
    elements = Elements(text)
    names = {tag for tag, _ in elements.found}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "img", "image"}
    for tag, attrs in elements.found:
        assert not {name for name in attrs if name.startswith("on") or name == "src"}, tag
        href = attrs.get("href")
        assert href is None or href.startswith("#"), tag
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert "//" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def test_nothing_in_the_page_has_an_id_of_another(whole: Path) -> None:
    """Eight drawings of one library on a page: a marker of the second must not be the first's."""
    elements = Elements((whole / "r.html").read_text())
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids)) > 100
    named = {attrs["href"] for _, attrs in elements.found if "href" in attrs}
    assert {f"#{each}" for each in ids} >= named
    assert len(named) > 5


def test_colours_of_drawings_follow_the_readers_light_or_dark(whole: Path) -> None:
    """Black letters on a dark page cannot be read."""
    text = (whole / "r.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        assert re.findall(r"#[0-9a-f]{6}", drawing) == []
        assert "var(--ink)" in drawing
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text


def test_lines_can_be_told_from_the_paper_in_light_and_dark() -> None:
    """Three to one is what WCAG asks of graphics (1.4.11)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for row, paper in ((plots.LIGHT, "#ffffff"), (plots.DARK, plots.INKS["--paper"][1])):
        for colour in row:
            low, high = sorted((luminance(colour), luminance(paper)))
            assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_every_plot_is_a_picture_of_more_than_paper(whole: Path) -> None:
    """A file that opens and shows nothing looks like a success."""
    files = sorted((whole / "png").iterdir())
    assert len(files) == 8
    for file in files:
        with Image.open(file) as image:
            image.load()
            assert (image.format, image.width) == ("PNG", 900)
            colours = image.convert("RGB").getcolors(1 << 20) or []
            ours = tuple(bytes.fromhex(plots.LIGHT[0][1:]))
            assert len(colours) > 50
            assert sum(times for times, colour in colours if colour == ours) > 200, file.name


def test_ours_the_floor_and_peers_stand_side_by_side(whole: Path) -> None:
    """A figure alone says nothing; peers at 1 % of it must still be there."""
    shelf = samples.read_all(sorted(whole.glob("*.json")))
    for name in ("side-by-side", "in-flight", "latency"):
        chart = chart_of(shelf, name)
        named = {line.who for line in chart.lines} | {bar.who for bar in chart.bars}
        assert named == {"Sagacity", "floor", "restate", "temporal"}, name
    assert {bar.who for bar in chart_of(shelf, "cpu-side-by-side").bars} >= {"restate", "Sagacity"}


@pytest.mark.parametrize(
    "change",
    [
        {"sagas_per_second": 5000.3},
        {"goodput_per_second": 4321.0},
        {"offered_per_second": 4999.9},
        {"wall_seconds": 10.07},
        {"latency_ms": Percentiles(1.01, 2, 3, 4, 5)},
        {"latency_ms": Percentiles(1, 2, 3, 4, 5.55)},
        {"cpu_us_per_saga": {**bench_files.CPU, "total": 130.0, "router": 9.0}},
        {"fsyncs_per_saga": 0.061},
        {"completed": 44_999},
        {"aborted": 5001},
        {"refused": 3},
        {"errors": 1},
        {"commit": "abc124"},
        {"data_fs": "xfs"},
        {"machine": msgspec.structs.replace(bench_files.MACHINE, yardstick_ns=50.4)},
        {"machine": msgspec.structs.replace(bench_files.MACHINE, load_1m=3.0)},
        {"settings": {"shards": 4}},
        {"settings": {"command": "sagacity bench run --x"}},
        {"notes": ["a note"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_number_that_changes_in_a_file_changes_the_page(
    change: dict[str, Any], tmp_path: Path
) -> None:
    """A figure that is not from the file is from somewhere else."""
    both = []
    for told in ({"latency_ms": Percentiles(1, 2, 3, 4, 5)}, change):
        both.append(tables(tmp_path, a_run(**{"latency_ms": Percentiles(1, 2, 3, 4, 5)} | told)))
    assert both[0] != both[1]


def test_a_number_that_changes_in_a_file_changes_the_plot(tmp_path: Path) -> None:
    """The plot is drawn from the same files as the table."""
    told = bench_files.sweep_in_flight(runs=1)
    before = chart_of(shelf_of(tmp_path, a=told), "in-flight")
    told["runs"]["64 in flight"][0].sagas_per_second *= 1.1
    after = chart_of(shelf_of(tmp_path, a=told), "in-flight")
    assert plots.svg(before) == plots.svg(before)
    assert plots.svg(before) != plots.svg(after)


def test_medians_and_spread_of_runs_stand_in_the_table(tmp_path: Path) -> None:
    """The mean of one good and one bad run is a run that never was."""
    rates = (4000.0, 5000.0, 5100.0)
    text = tables(tmp_path, *(a_run(rate, seed=at) for at, rate in enumerate(rates)))
    assert "5 000.0 (4 000.0 - 5 100.0)" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert '<td class="n">3</td>' in text


def test_what_was_not_measured_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A page without a plot of declines reads as if nobody had asked."""
    (file,) = bench_files.write(tmp_path, alone=a_run())
    out = tmp_path / "r.html"
    assert bench.main(["report", str(file), "-o", str(out)]) == 0
    told = Elements(out.read_text()).text
    for words in (
        "Throughput against in flight: it needs runs with several",
        "Goodput against offered load: it needs",
        "Throughput against declined payments: it needs",
        "Timeline of a failover: no run",
        "The floor: no run",
        "Peers: no run",
        "single runs",
    ):
        assert words in told
    assert "Throughput against in flight: it needs runs" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (a_run(9000.0, partial=True, partial_why="interrupted"), "partial: interrupted"),
        (a_run(9000.0, balanced=False), "books do not balance"),
        (a_run(9000.0, balanced=None), "not audited"),
        (a_run(9000.0, completed=0, aborted=0), "nothing was finished"),
    ],
)
def test_a_run_that_gives_no_figure_is_in_no_median_and_said(
    run: Result, says: str, tmp_path: Path
) -> None:
    """One good figure of a cluster that lost money would be the best of all."""
    told = Elements(tables(tmp_path, a_run(5000.0), run)).text
    assert says in told
    shelf = samples.read_all(sorted(tmp_path.glob("*.json")))
    assert [each.sagas_per_second for each in shelf.counted] == [5000.0]
    assert len(shelf.samples) == 2


def test_runs_of_two_versions_are_not_one_median(tmp_path: Path) -> None:
    """Before and after in one folder: a median over both is of neither."""
    shelf = shelf_of(tmp_path, a=a_run(5000.0), b=a_run(6000.0, commit="def456"))
    groups = samples.grouped(shelf.counted)
    labels = {curves.Labels(groups).of(group) for group in groups}
    assert labels == {
        "Sagacity, 1024 in flight, commit abc123",
        "Sagacity, 1024 in flight, commit def456",
    }


def test_what_files_say_is_shown_and_never_run(tmp_path: Path) -> None:
    """A result file may come from anybody."""
    evil = '<script>alert(1)</script> $\\frac{1}{$ & "'
    run = a_run(notes=[evil], commit=evil, settings={"command": evil})
    shelf = shelf_of(tmp_path, evil=run, other=a_run(6000.0, commit="b"), f=a_floor())
    text = page.page(shelf, curves.charts(shelf), title=evil)
    assert "<script" not in text
    assert evil in Elements(text).text


@pytest.mark.parametrize(
    ("counts", "gap"),
    [
        ([100] * 20 + [40] + [0] * 5 + [180] + [100] * 20, (2.0, 2.6)),
        ([100] * 20 + [40, 0, 0, 100, 0, 0, 100, 100, 100], (2.0, 2.6)),  # one tenth is no return
        ([100] * 60, None),
        ([100] * 20 + [0] * 10, (2.0, 3.0)),  # never back: to the end of the record
        ([100] * 21, None),
    ],
)
def test_the_gap_of_a_failover_is_from_the_kill_until_it_finishes_again(
    counts: list[int], gap: tuple[float, float] | None, tmp_path: Path
) -> None:
    """Marked in the plot; the promise about it is in tenths of a second."""
    run = a_run(marks=KILL, per_tenth=counts)
    shelf = shelf_of(tmp_path, killed=run)
    assert curves.gap_of(shelf.samples[0]) == gap
    assert chart_of(shelf, "failover").gap == gap


def test_of_several_failovers_the_worst_is_drawn(tmp_path: Path) -> None:
    """The best of five is what an advertisement would show."""
    runs = {f"r{tenths}": bench_files.failover(tenths) for tenths in (4, 9, 6)}
    chart = chart_of(shelf_of(tmp_path, **runs), "failover")
    assert chart.gap == (8.02, 8.9)
    assert "worst of 3 runs" in chart.caption


def test_percentiles_go_as_far_as_there_are_sagas(tmp_path: Path) -> None:
    """A 99.999th percentile of two thousand is the maximum under another name."""
    shelf = shelf_of(tmp_path, a=a_run())
    (line,) = chart_of(shelf, "latency").lines
    assert line.points[0].x == 0.0
    assert 3.2 < line.points[-1].x <= 3.31  # of 2006
    told = shelf.samples[0].latency_ms
    assert next(point.middle for point in line.points if point.x == 2.0) == told["p99"]
    assert [point.middle for point in line.points] == sorted(each.middle for each in line.points)


def broken(text: bytes) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / "bad.json").write_bytes(text)
        return [str(folder / "bad.json")]

    return write


def twice(folder: Path) -> list[str]:
    files = bench_files.write(folder, good=a_run())
    return [str(files[0]), f"{folder}/../{folder.name}/good.json"]


def named_twice(folder: Path) -> list[str]:
    return [str(bench_files.write(folder, good=a_run())[0])] * 2


def there_already(folder: Path) -> list[str]:
    (folder / "r.html").write_text("mine")
    return [str(bench_files.write(folder, good=a_run())[0])]


def png_is_a_file(folder: Path) -> list[str]:
    (folder / "png").write_text("mine")
    return [str(bench_files.write(folder, good=a_run())[0]), "--png", str(folder / "png")]


def picture_is_there(folder: Path) -> list[str]:
    (folder / "png").mkdir()
    (folder / "png" / "cpu.png").write_text("mine")
    return [str(bench_files.write(folder, good=a_run())[0]), "--png", str(folder / "png")]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda folder: [str(folder / "none.json")], "cannot be read: No such file"),
        (lambda folder: [str(folder)], "without result files"),
        (broken(b""), "no JSON, or was cut off"),
        (broken(a_run().json()[:-300]), "no JSON, or was cut off"),
        (broken(b"\xff\xfe"), "no JSON, or was cut off"),
        (broken(b"[" * 100_000), "no JSON, or was cut off"),
        (broken(b'{"a": 1}'), "no result of `sagacity bench`"),
        (broken(b"7"), "no result of `sagacity bench`"),
        (broken(b"[]"), "no result of `sagacity bench`"),
        (broken(b'{"sagas_per_second": "fast", "machine": 1}'), "no result of `sagacity bench`"),
        (broken(a_run(settings={"mix": 7}).json()), "no result of `sagacity bench`"),
        (broken(a_run(latency_histogram="HISTFAAA").json()), "cannot be read"),
        (broken(a_run(format=2).json()), "written by a newer Sagacity: format 2"),
        (broken(b'{"title": "x", "figures": [], "runs": {"a": []}}'), "no runs in"),
        (broken(b'{"title": "x", "figures": [], "runs": {"a": [1]}}'), "no result"),
        (twice, "holds the same as"),
        (named_twice, "is named twice"),
        (there_already, "exists already"),
        (png_is_a_file, "--png"),
        (picture_is_there, "exists already"),
    ],
)
def test_bad_input_is_refused_in_words_and_nothing_is_written(
    given: Callable[[Path], list[str]],
    says: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A page of half of the files would be read as one of all."""
    words = given(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert bench.main(["report", *words, "-o", str(tmp_path / "r.html")]) == 2
    told = capfd.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_with_force_what_is_there_is_replaced(tmp_path: Path) -> None:
    """And only with it."""
    words = there_already(tmp_path)
    assert bench.main(["report", *words, "-o", str(tmp_path / "r.html"), "--force"]) == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_a_file_of_an_older_program_has_a_page(tmp_path: Path) -> None:
    """Keys are only added: what was measured last year is still a result."""
    told = msgspec.json.decode(a_run().json())
    for key in ("per_tenth", "marks", "latency_histogram", "notes", "faults"):
        del told[key]
    (tmp_path / "old.json").write_bytes(msgspec.json.encode(told))
    shelf = samples.read_all([tmp_path / "old.json"])
    (line,) = chart_of(shelf, "latency").lines
    assert len(line.points) == 4
    assert "<svg" in page.page(shelf, curves.charts(shelf))


def test_a_png_is_what_its_bytes_say() -> None:
    """Drawn without a screen, and without a file."""
    chart = curves.Chart(
        name="x",
        title="t",
        kind=curves.LINES,
        x="x",
        y="y",
        lines=[curves.Line("only", "Sagacity", [curves.Point(0.0, 0.0, 0.0, 0.0)])],
    )
    with Image.open(io.BytesIO(plots.png(chart))) as image:
        assert image.format == "PNG"


def test_a_scenario_without_runs_has_a_page_of_its_verdicts(tmp_path: Path) -> None:
    """What `growth` measures is no load; that it was broken off must show."""
    told = {"title": "growth", "figures": [{"what": "size", "median": 877.5}], "runs": {}}
    shelf = shelf_of(tmp_path, growth=told | {"partial": True})
    text = Elements(page.page(shelf, curves.charts(shelf))).text
    assert "growth, PARTIAL" in text
    assert "877.5" in text


def test_a_share_of_the_mix_that_is_new_makes_runs_different_ones(tmp_path: Path) -> None:
    """Keys are added to results without a new format: they must neither fail nor be passed over."""
    runs = {f"r{new}": a_run(5000.0 + new, settings={"mix": {"new": new}}) for new in (0, 1, 2)}
    assert len(samples.grouped(shelf_of(tmp_path, **runs).counted)) == 3
