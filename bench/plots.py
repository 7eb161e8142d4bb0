"""Plots: charts as SVG for a page and as PNG. The one room that knows matplotlib.

Why this library: docs/decisions/0032-plots.md. In an SVG colours are names that the page's style
gives values to, so that one drawing serves light, dark and print.
"""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from bench.curves import BARS, LINES, PERCENTILES, STACK, TIMELINE, Chart
from bench.samples import FLOOR, OURS

SIZE: Final = (6.0, 4.4)  # inches: at 13 points it can be read across a phone
BAR_INCHES, LINE_INCHES = 0.62, 0.24  # a bar needs so much more, and a line's name
DPI: Final = 150
_CAPTION_COLUMNS: Final = 66
_CAPTION_INCHES: Final = 0.19

# Okabe and Ito's colours, which people of any colour vision tell apart, yellow made darker for
# white paper; a second row for dark screens. Ours first, then peers; the floor is grey and dashed.
LIGHT: Final = ("#0072b2", "#d55e00", "#009e73", "#b8589a", "#c48400", "#3593cc", "#8a7d00")
DARK: Final = ("#4aa8e0", "#ff8a3d", "#2cc79a", "#e39cc4", "#f0b429", "#8fd0f7", "#d8cc4a")
NAMES: Final = tuple(f"--c{at}" for at in range(len(LIGHT)))
INKS: Final = {  # name: light, dark
    "--ink": ("#1b1f24", "#e8eaed"),
    "--faint": ("#c9ced6", "#434a54"),
    "--grey": ("#5b6470", "#aab2bd"),
    "--paper": ("#ffffff", "#16191d"),
    "--shade": ("#f3d9c9", "#4a3021"),
}
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
HATCHES: Final = ("", "//", "", "..", "", "xx", "\\\\")

_STYLE: Final = {
    "font.size": 13,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 13,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "lines.linewidth": 2.2,
    "lines.markersize": 7,
    "hatch.linewidth": 0.8,
    "svg.fonttype": "none",
    "text.parse_math": False,
}


class Colours:
    """Which colour is what: real ones for a picture, stand-ins where a page gives the values.

    Args:
        named: stand-ins.
    """

    def __init__(self, *, named: bool) -> None:
        self._stand_ins = {name: f"#fe01{at:02x}" for at, name in enumerate([*NAMES, *INKS])}
        light = dict(zip(NAMES, LIGHT, strict=True)) | {name: of[0] for name, of in INKS.items()}
        self._values = self._stand_ins if named else light

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def of(self, at: int) -> str:
        """Give the colour of a row."""
        return self._values[NAMES[at % len(NAMES)]]

    def into_names(self, svg: str) -> str:
        """Put names for the stand-ins."""
        for name, stand_in in self._stand_ins.items():
            svg = svg.replace(stand_in, f"var({name})")
        return svg


def svg(chart: Chart) -> str:
    """Give a chart as an element for a page: no address, no script, ids of its own."""
    colours = Colours(named=True)
    told = {"svg.hashsalt": chart.name}
    drawn = _saved(chart, colours, told, format="svg", transparent=True).decode()
    body = drawn[drawn.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(:xlink)?="[^"]*"', "", body).replace("xlink:href", "href")
    body = re.sub(r'( id="|url\(#|href="#)', rf"\1{chart.name}-", body)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    return colours.into_names(body).strip()


def png(chart: Chart) -> bytes:
    """Give a chart as a PNG on white."""
    drawn = _saved(chart, Colours(named=False), {}, format="png", dpi=DPI)
    return _with_caption(drawn, chart.caption) if chart.caption else drawn


def _style_of(colours: Colours) -> Any:  # the library's type has all keys that there are
    ink = colours["--ink"]
    inks = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    inks |= {"axes.edgecolor": colours["--grey"], "grid.color": colours["--faint"]}
    return _STYLE | inks


def _saved(chart: Chart, colours: Colours, told: dict[str, Any], **how: Any) -> bytes:
    with mpl.rc_context(_style_of(colours) | told):
        height = SIZE[1] + LINE_INCHES * max(0, len(chart.lines) - 1)
        if chart.bars:
            height = 1.7 + BAR_INCHES * len(chart.bars) + (0.6 if chart.kind == STACK else 0)
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(chart.title, loc="left", fontweight="bold", fontsize=14, pad=10)
        axes.set_xlabel(chart.x)
        axes.set_ylabel(chart.y)
        _DRAWN[chart.kind](axes, chart, colours)
        written = io.BytesIO()
        metadata: dict[str, Any] = {}
        if how["format"] == "svg":
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, metadata=metadata, **how)
    return written.getvalue()


def _with_caption(picture: bytes, caption: str) -> bytes:
    """Put the caption below a picture, which a page has as text of its own."""
    lines = textwrap.wrap(caption, _CAPTION_COLUMNS)
    with mpl.rc_context(_style_of(Colours(named=False))):
        height = _CAPTION_INCHES * (len(lines) + 1)
        strip = Figure(figsize=(SIZE[0], height), dpi=DPI)
        strip.text(0.02, 0.9, "\n".join(lines), fontsize=10.5, color=INKS["--grey"][0], va="top")
        below = io.BytesIO()
        strip.savefig(below, format="png", dpi=DPI)
    with Image.open(io.BytesIO(picture)) as upper, Image.open(below) as lower:
        whole = Image.new("RGB", (upper.width, upper.height + lower.height), "white")
        whole.paste(upper, (0, 0))
        whole.paste(lower, (0, upper.height))
    written = io.BytesIO()
    whole.save(written, format="PNG", optimize=True)
    return written.getvalue()


def _lines(axes: Axes, chart: Chart, colours: Colours) -> None:
    for line, style in zip(chart.lines, _styles(chart, colours), strict=True):
        xs = [point.x for point in line.points]
        middles = [point.middle for point in line.points]
        spread = (
            [point.middle - point.low for point in line.points],
            [point.high - point.middle for point in line.points],
        )
        axes.errorbar(
            xs,
            middles,
            yerr=spread,
            label=line.label,
            capsize=4,
            elinewidth=1.3,
            clip_on=False,
            **style,
        )
    if chart.powers_of_two:
        axes.set_xscale("log", base=2)
        xs = sorted({point.x for line in chart.lines for point in line.points})
        axes.set_xticks(_apart(xs), [_number(x) for x in _apart(xs)])
        axes.minorticks_off()
    else:
        axes.set_xlim(left=-0.02 * max(point.x for line in chart.lines for point in line.points))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _number(x)))
    _upwards(axes)
    if chart.diagonal:
        end = max(point.x for line in chart.lines for point in line.points)
        axes.plot([0, end], [0, end], color=colours["--grey"], linewidth=1, linestyle=(0, (2, 3)))
        axes.set_ylim(top=end * 1.05)
    _legend(axes)


def _percentiles(axes: Axes, chart: Chart, colours: Colours) -> None:
    values = [point.middle for line in chart.lines for point in line.points if point.middle > 0]
    for line, style in zip(chart.lines, _styles(chart, colours), strict=True):
        few = len(line.points) < 8
        marks: dict[str, Any] = {} if few else {"markevery": 20, "markersize": 6}
        xs = [point.x for point in line.points]
        axes.plot(xs, [point.middle for point in line.points], label=line.label, **style, **marks)
    last = max(point.x for line in chart.lines for point in line.points)
    ticks = [(0.0, "0 %"), (0.30103, "50"), (1.0, "90"), (2.0, "99"), (3.0, "99.9")]
    ticks += [(4.0, "99.99"), (5.0, "99.999"), (6.0, "99.9999")]
    shown = [tick for tick in ticks if tick[0] <= last + 0.01]
    axes.set_xticks([at for at, _ in shown], [text for _, text in shown])
    axes.set_xlim(left=0)
    if values and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.set_ylabel(f"{chart.y} (log)")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.grid(axis="both", linewidth=0.8)
    else:
        _upwards(axes)
    _legend(axes)


def _timeline(axes: Axes, chart: Chart, colours: Colours) -> None:
    (line,) = chart.lines
    xs = [point.x for point in line.points]
    counts = [point.middle for point in line.points]
    if chart.gap is not None:
        begin, end = chart.gap
        axes.axvspan(begin, end, color=colours["--shade"], linewidth=0, zorder=0)
        axes.annotate(
            f"gap {end - begin:.1f} s",
            (end, max(counts) * 1.16),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.stairs(counts, [*xs, xs[-1] + 0.1], color=colours.of(0), linewidth=1.8, baseline=None)
    for at, what in chart.marks:
        axes.axvline(at, color=colours.of(1), linewidth=1.8, linestyle="--")
        axes.annotate(
            what,
            (at, max(counts) * 1.16),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
        )
    axes.set_xlim(xs[0], xs[-1] + 0.1)
    _upwards(axes)
    axes.set_ylim(top=max(counts) * 1.25)


def _stack(axes: Axes, chart: Chart, colours: Colours) -> None:
    names = list(dict.fromkeys(name for bar in chart.bars for name in bar.parts))
    lefts = [0.0] * len(chart.bars)
    for at, name in enumerate(names):
        widths = [bar.parts.get(name, 0.0) for bar in chart.bars]
        axes.barh(
            range(len(widths)),
            widths,
            left=lefts,
            height=0.55,
            label=name,
            color=colours.of(at),
            hatch=HATCHES[at % len(HATCHES)],
            edgecolor=colours["--paper"],
            linewidth=0.8,
        )
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    _bar_words(axes, chart, lefts)
    _legend(axes, columns=3)


def _bars(axes: Axes, chart: Chart, colours: Colours) -> None:
    rows = _rows([bar.who for bar in chart.bars], chart.peers)
    for at, (bar, row) in enumerate(zip(chart.bars, rows, strict=True)):
        total = bar.total
        color = colours["--grey"] if bar.who == FLOOR else colours.of(row)
        axes.barh(at, total.middle, height=0.55, color=color)
        spread = ([total.middle - total.low], [total.high - total.middle])
        axes.errorbar(
            total.middle, at, xerr=spread, color=colours["--ink"], capsize=4, linewidth=1.3
        )
    _bar_words(axes, chart, [bar.total.high for bar in chart.bars])


def _bar_words(axes: Axes, chart: Chart, ends: list[float]) -> None:
    """Write each bar's name above it and its figure behind it: long names fit, and small bars."""
    for at, (bar, end) in enumerate(zip(chart.bars, ends, strict=True)):
        axes.annotate(
            bar.label, (0, at - 0.31), xytext=(2, 2), textcoords="offset points", fontsize=12
        )
        told = f" {_number(bar.total.middle)}"
        axes.annotate(told, (end, at), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, max(ends) * 1.17)
    axes.set_ylim(len(chart.bars) - 0.55, -0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _number(x)))
    axes.grid(axis="x", linewidth=0.8)


_DRAWN: Final[dict[str, Callable[[Axes, Chart, Colours], None]]] = {
    LINES: _lines,
    PERCENTILES: _percentiles,
    TIMELINE: _timeline,
    STACK: _stack,
    BARS: _bars,
}


def _styles(chart: Chart, colours: Colours) -> list[dict[str, Any]]:
    """Give each line a colour, a marker and a dash of its own; the floor's are grey and dashed."""
    found: list[dict[str, Any]] = []
    named = [line.who for line in chart.lines]
    for who, row in zip(named, _rows(named, chart.peers), strict=True):
        dash = ("--", ":")[row % 2] if who == FLOOR else ("-", "-.", (0, (5, 1)), ":")[row % 4]
        color = colours["--grey"] if who == FLOOR else colours.of(row)
        found.append({"color": color, "marker": MARKERS[row % len(MARKERS)], "linestyle": dash})
    return found


def _rows(named: Sequence[str], peers: Sequence[str]) -> list[int]:
    """Give each its row of colours: the first of a product always the same one."""
    own = {OURS: 0} | {peer: 1 + at for at, peer in enumerate(peers)}
    free = [row for row in reversed(range(len(NAMES))) if row not in own.values()]
    seen: Counter[str] = Counter()
    rows = []
    for who in named:
        first = seen[who] == 0
        seen[who] += 1
        if who == FLOOR:
            rows.append(seen[who] - 1)
        else:
            rows.append(own[who] if first else free.pop(0) if free else seen[who])
    return rows


def _upwards(axes: Axes) -> None:
    """Let y begin at zero."""
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _number(y)))
    axes.grid(axis="y", linewidth=0.8)


def _legend(axes: Axes, columns: int = 1) -> None:
    axes.figure.legend(loc="outside lower left", ncols=columns, handlelength=2.6)


def _apart(xs: list[float]) -> list[float]:
    """Leave out ticks that would be written over each other."""
    shown: list[float] = []
    for x in xs:
        if not shown or x >= 1.6 * shown[-1]:
            shown.append(x)
    return shown


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}")
    return f"{value:.3g}"
