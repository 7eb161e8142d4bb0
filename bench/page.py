"""`sagacity bench report`: one page with plots and tables, made from result files alone.

The page stands for itself: no script, nothing that is fetched; light, dark and on paper. What is
not in the files is said, and every run stands in the last table.
"""

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from bench import curves, plots, result, samples
from bench.curves import Chart, Labels
from bench.samples import Group, Sample, Shelf, Verdicts
from sagacity.errors import Malformed

PAGE: Final = "report.html"
Table = Sequence[Sequence[str]]

# Columns: head, figure, digits after the point.
FIGURES: Final = (
    ("sagas/s", "sagas_per_second", 1),
    ("goodput/s", "goodput_per_second", 1),
    ("offered/s", "offered_per_second", 1),
    ("p50 ms", "latency_ms.p50", 2),
    ("p99 ms", "latency_ms.p99", 2),
    ("p999 ms", "latency_ms.p999", 2),
    ("CPU us each", "cpu_us_per_saga.total", 1),
    ("syncs each", "fsyncs_per_saga", 3),
    ("refused", "refused", 0),
    ("errors", "errors", 0),
)
ALSO_OF_A_RUN: Final = (
    ("wall s", "wall_seconds", 2),
    ("p90 ms", "latency_ms.p90", 2),
    ("max ms", "latency_ms.max", 2),
    ("completed", "completed", 0),
    ("aborted", "aborted", 0),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `report`."""
    parser.description = (
        "Make one self-contained HTML page from files that `bench run`, a scenario, `bench sweep` "
        "or `python -m bench.peers` wrote with --json: plots, medians with their spread, settings, "
        "machine, and what was not measured. docs/bench.md shows one."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results, or folders")
    parser.add_argument("-o", "--output", type=Path, default=Path(PAGE), metavar="FILE", help=PAGE)
    parser.add_argument("--png", type=Path, metavar="DIR", help="the plots also as PNG, there")
    parser.add_argument("--title", default="", help="of the page")
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def run(given: argparse.Namespace) -> int:
    """Make the page; give the exit code.

    Raises:
        Malformed: a file holds no result, or one that would be written exists.
    """
    files = [file for path in given.files for file in samples.files_of(path)]
    result.require_new(given.output, force=given.force, option="-o")
    shelf = samples.read_all(files)
    charts = curves.charts(shelf)
    drawn = [chart for chart in charts if not chart.missing]
    pictures = {} if given.png is None else {f"{each.name}.png": each for each in drawn}
    if given.png is not None:
        _require_folder(given.png)
        for name in pictures:
            result.require_new(given.png / name, force=given.force, option="--png")
    result.write_whole(page(shelf, charts, given.title).encode(), given.output)
    for name, chart in pictures.items():
        result.write_whole(plots.png(chart), given.png / name)
    print(f"{given.output}: {len(shelf.samples)} runs, {len(drawn)} plots", flush=True)
    for what, why in not_measured(shelf, charts):
        print(f"  not there: {what}: {why}", flush=True)
    return 0


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Malformed(f"--png {folder}: {error.strerror}") from None


def page(shelf: Shelf, charts: Sequence[Chart], title: str = "") -> str:
    """Give the page."""
    groups = samples.grouped(shelf.counted)
    labels = Labels(groups)
    named = title or "Sagacity, measured"
    figures = [_figure(chart) for chart in charts if not chart.missing]
    missing = [
        f"<li><b>{escape(what)}</b>: {escape(why)}" for what, why in not_measured(shelf, charts)
    ]
    parts = [
        f"<h1>{escape(named)}</h1>",
        f"<p>{escape(_opening(shelf))}</p>",
        *(_verdicts(each) for each in shelf.verdicts if each.figures),
        *(["<h2>Plots</h2>", f'<div class="plots">{"".join(figures)}</div>'] if figures else []),
        "<h2>Figures</h2>",
        "<p>Median (least - greatest) of the runs of a row; an empty cell was not measured.</p>",
        _table(_medians(groups, labels)),
        *(
            ["<h2>Not measured, or left out</h2>", f"<ul>{''.join(missing)}</ul>"]
            if missing
            else []
        ),
        "<h2>Where and how</h2>",
        _table(_places(shelf)),
        "<h2>Settings and commands</h2>",
        *_commands(shelf),
        "<h2>Every run</h2>",
        _table(_every(shelf)),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(named)}</title>\n<style>\n{_style()}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def not_measured(shelf: Shelf, charts: Sequence[Chart]) -> list[tuple[str, str]]:
    """Give what a reader would look for and not find, with the reasons."""
    found = [(chart.title, chart.missing) for chart in charts if chart.missing]
    who = {each.who for each in shelf.counted}
    if samples.FLOOR not in who:
        found.append(
            ("The floor", "no run of it in the files: how near to the machine's best is open")
        )
    if not who - {samples.OURS, samples.FLOOR}:
        found.append(("Peers", "no run of them in the files: python -m bench.peers table --json"))
    for at, each in enumerate(shelf.samples):
        if each.left_out:
            found.append(
                (f"Run {at + 1} of {each.file}", f"in no median, no plot: {each.left_out}")
            )
        if each.rate_reached is False:
            found.append((f"Run {at + 1} of {each.file}", "the generator did not reach the rate"))
    lone = sum(len(group.samples) == 1 for group in samples.grouped(shelf.counted))
    if lone:
        found.append(("Spread", f"{lone} rows are single runs: chance and figure look the same"))
    return found


def _opening(shelf: Shelf) -> str:
    runs = f"{len(shelf.samples)} runs from {', '.join(shelf.files)}."
    left = len(shelf.samples) - len(shelf.counted)
    loads = sorted({each.machine.load_1m for each in shelf.samples if each.machine})
    told = [runs] + ([f"{left} of them give no figure."] if left else [])
    if loads:
        ends = dict.fromkeys((loads[0], loads[-1]))
        span = " to ".join(f"{at:g}" for at in ends)
        told.append(
            f"The machine's load before a run was {span}: where it did other things as well, those "
            "are in the figures."
        )
    return " ".join(told)


def _figure(chart: Chart) -> str:
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>" if chart.caption else ""
    label = escape(chart.title, quote=True)
    drawn = plots.svg(chart).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure>{drawn}{caption}</figure>"


def _verdicts(told: Verdicts) -> str:
    rows = [["", "asked", "median", "values", "met"]]
    for each in told.figures:
        bounds = [f"≥ {each.at_least:g}"] if each.at_least is not None else []
        bounds += [f"≤ {each.at_most:g}"] if each.at_most is not None else []
        middle = (
            f"no figure: {each.why}" if each.median is None else f"{each.median:.4g} {each.unit}"
        )
        met = {True: "yes", False: "NO", None: ""}[each.met]
        values = " ".join(f"{value:.4g}" for value in each.values)
        rows.append([each.what, " ".join(bounds), middle, values, met])
    return f"<h2>{escape(told.title)}</h2>{_table(rows)}"


def _medians(groups: Sequence[Group], labels: Labels) -> Table:
    columns = [column for column in FIGURES if any(group.values(column[1]) for group in groups)]
    rows = [["", "runs", *(head for head, _, _ in columns)]]
    for group in groups:
        cells = [_spread(group.values(name), digits) for _, name, digits in columns]
        rows.append([labels.of(group), str(len(group.samples)), *cells])
    return rows


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    middle = curves.point(0, values)
    told = _number(middle.middle, digits)
    if middle.low == middle.high:
        return told
    return f"{told} ({_number(middle.low, digits)} - {_number(middle.high, digits)})"


def _places(shelf: Shelf) -> Table:
    """Give machine, version and file system; a row for each that differs."""
    heads = ["of", "version", "commit", "cpu", "cores", "kernel", "python", "data_fs"]
    found: dict[tuple[str, ...], list[Sample]] = {}
    for each in shelf.samples:
        row = (each.who, *(str(each.facts.get(name, "not said")) for name in heads[1:]))
        found.setdefault(row, []).append(each)
    rows = [[*heads, "memory", "load before", "yardstick ns"]]
    for row, runs in found.items():
        machines = [each.machine for each in runs if each.machine is not None]
        memory = f"{machines[0].memory_mb} MB" if machines else "not said"
        loads = _spread([each.load_1m for each in machines], 2)
        rows.append([*row, memory, loads, _spread([each.yardstick_ns for each in machines], 1)])
    return rows


def _commands(shelf: Shelf) -> list[str]:
    """Give each command once, with the settings that all its runs have and those that vary."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in shelf.samples:
        told = dict(each.settings)
        command = str(told.pop("command", "")) or "command not said"
        found.setdefault((each.file, f"{each.who}: {command}"), []).append(told)
    parts = []
    for (file, command), settings in found.items():
        values = {
            key: dict.fromkeys(_value(each[key]) for each in settings if key in each)
            for key in dict.fromkeys(key for each in settings for key in each)
        }
        words = ", ".join(f"{key} {' | '.join(seen)}" for key, seen in values.items())
        said = escape(f"{file}: {words or 'no settings'}")
        parts.append(f"<p><code>{escape(command)}</code><br>{said}</p>")
    return parts


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={each:g}" for key, each in value.items() if each) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _every(shelf: Shelf) -> Table:
    roles = dict.fromkeys(
        role for each in shelf.samples for role in each.cpu_us_per_saga if role != "total"
    )
    columns = [
        *FIGURES,
        *ALSO_OF_A_RUN,
        *((f"{role} us", f"cpu_us_per_saga.{role}", 1) for role in roles),
    ]
    shown = [
        column
        for column in columns
        if any(samples.value_of(each, column[1]) is not None for each in shelf.samples)
    ]
    rows = [["file", "of", "load", "books", *(head for head, _, _ in shown), "notes"]]
    books = {True: "balanced", False: "NOT BALANCED", None: "none"}
    for each in shelf.samples:
        values = [samples.value_of(each, name) for _, name, _ in shown]
        digits = [digits for _, _, digits in shown]
        cells = ["" if v is None else _number(v, d) for v, d in zip(values, digits, strict=True)]
        who = ", ".join(filter(None, [each.who, each.variant]))
        notes = "; ".join(filter(None, [each.left_out, *each.notes]))
        rows.append([each.file, who, each.load.words, books[each.balanced], *cells, notes])
    return rows


def _table(rows: Table) -> str:
    """Give a table; the first row is its head, numbers stand to the right."""
    head, *body = rows
    right = [any(_is_number(row[at]) for row in body) and at > 0 for at in range(len(head))]
    heads = "".join(_cell("th", cell, number=n) for cell, n in zip(head, right, strict=True))
    lines = [
        "<tr>"
        + "".join(
            _cell("td", cell, number=at > 0 and _is_number(cell)) for at, cell in enumerate(row)
        )
        + "</tr>"
        for row in body
    ]
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _cell(tag: str, text: str, *, number: bool) -> str:
    kind = ' class="n"' if number else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit()


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", "\N{NO-BREAK SPACE}")


def _style() -> str:
    light = dict(zip(plots.NAMES, plots.LIGHT, strict=True))
    dark = dict(zip(plots.NAMES, plots.DARK, strict=True))
    light |= {name: both[0] for name, both in plots.INKS.items()}
    dark |= {name: both[1] for name, both in plots.INKS.items()}
    day, night = (
        ":root{" + "".join(f"{name}:{value};" for name, value in of.items()) + "}"
        for of in (light, dark)
    )
    return f"{day}\n@media screen and (prefers-color-scheme:dark){{{night}}}\n{_SHEET}"


_SHEET: Final = """\
:root{color-scheme:light dark}
@media print{:root{color-scheme:light}}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--paper);color:var(--ink);
 font:1rem/1.5 "DejaVu Sans",system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2}
h2{font-size:1.2rem;margin-top:2rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr));gap:1.5rem;
 align-items:start}
figure{margin:0;break-inside:avoid}
figure svg{width:100%;height:auto;display:block}
figcaption{color:var(--grey);font-size:.85rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--faint);text-align:left;white-space:nowrap;
 overflow-wrap:normal}
td:first-child{white-space:normal;min-width:11rem}
th.n,td.n{text-align:right;font-variant-numeric:tabular-nums}
tr{break-inside:avoid}
code{font-size:.9rem}
@page{size:A4 landscape;margin:1cm}
@media print{body{max-width:none;padding:0;font-size:.8rem}.wide{overflow:visible}
 table{font-size:.55rem}th,td{padding:.15rem .25rem;white-space:normal}
 .plots{grid-template-columns:1fr 1fr}h2{break-after:avoid}}
"""
