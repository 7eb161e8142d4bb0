"""A dashboard drawn from what its queries gave, each panel where Grafana would put it.

Needs matplotlib, which the extra `dev` has.
"""

import io
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from bench.plots import LIGHT
from cluster.panels import COUNT, SHARE, Dashboard, Graph, Numbers
from tests.architecture import grafana
from tests.observed.answers import STEP_S, Answer, named, shown

COLUMN_IN: Final = 0.62  # inches of one of Grafana's columns
ROW_IN: Final = 0.38
DPI: Final = 90
COLOURS: Final = 96  # more are not seen, and make a file three times as large
RED, INK, GREY, FAINT = "#c4162a", "#1b1f24", "#5b6470", "#e4e7eb"
GREEN: Final = "#1a7f37"
LINES_MAX: Final = 9  # named in a legend
GAP_S: Final = 2.5 * STEP_S  # a line is broken where nothing was for so long
STYLE: Final[Any] = {  # the library's type has all keys that there are
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "text.color": INK,
    "text.parse_math": False,
}
Drawn = list[tuple[Numbers | Graph, list[Answer]]]


def draw(
    dashboard: Dashboard, answered: Drawn, span: tuple[float, float], told: str, file: Path
) -> None:
    """Draw a dashboard.

    Args:
        dashboard: which.
        answered: its panels, in order, each with what its queries gave.
        span: begin and end of its graphs, seconds since 1970.
        told: a line below its title: of what these answers are.
        file: PNG, written.
    """
    places = grafana.places(dashboard)
    rows = max(place["y"] + place["h"] for place in places)
    width, height = grafana.COLUMNS * COLUMN_IN, rows * ROW_IN + 0.8
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        figure.text(0.012, 1 - 0.25 / height, dashboard.title, fontsize=15, fontweight="bold")
        figure.text(0.012, 1 - 0.5 / height, f"{dashboard.help}  {told}", color=GREY)
        for (panel, answers), place in zip(answered, places, strict=True):
            left, top = place["x"] / grafana.COLUMNS, 0.8 + place["y"] * ROW_IN
            box = (left, 1 - (top + place["h"] * ROW_IN) / height, place["w"] / grafana.COLUMNS)
            tall = place["h"] * ROW_IN / height
            if isinstance(panel, Numbers):
                _numbers(figure, panel, answers, (*box, tall))
            else:
                _graph(figure, panel, answers, (*box, tall)).set_xlim(span)
        written = io.BytesIO()
        figure.savefig(written, format="png")
    with Image.open(written) as drawn:
        drawn.convert("RGB").quantize(COLOURS).save(file, format="PNG", optimize=True)


def _numbers(figure: Figure, panel: Numbers, answers: list[Answer], box: Any) -> None:
    left, bottom, width, tall = box
    figure.text(left + 0.012, bottom + tall * 0.85, panel.title, fontweight="bold")
    each = width / len(panel.values)
    for at, (value, answer) in enumerate(zip(panel.values, answers, strict=True)):
        middle = left + each * (at + 0.5)
        colour = GREEN if value.limit else INK
        if value.limit and answer.last >= value.limit.value:
            colour = RED
        number = f"{answer.last:.0f}" if value.unit == COUNT else shown(answer.last, value.unit)
        figure.text(
            middle,
            bottom + tall * 0.36,
            number,
            ha="center",
            fontsize=19,
            color=colour,
        )
        figure.text(middle, bottom + tall * 0.12, value.legend, ha="center", color=GREY)


def _graph(figure: Figure, panel: Graph, answers: list[Answer], box: Any) -> Axes:
    left, bottom, width, tall = box
    axes = figure.add_axes((left + 0.045, bottom + tall * 0.34, width - 0.06, tall * 0.54))
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    if panel.stacked:
        _stacked(axes, panel, answers)
    else:
        _lines(axes, panel, answers)
    axes.set_ylim(bottom=0)
    if panel.limit is not None:
        axes.axhline(panel.limit.value, color=RED, linewidth=1, linestyle="--")
        axes.set_ylim(top=max(axes.get_ylim()[1], panel.limit.value * 1.1))
    if axes.get_ylim()[1] <= 0:
        axes.set_ylim(top=1)
    if panel.unit == SHARE:
        axes.set_ylim(top=min(1.02, axes.get_ylim()[1]))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: shown(y, panel.unit)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: datetime.fromtimestamp(x).strftime("%H:%M:%S"))
    )
    axes.tick_params(labelsize=7.5, color=GREY)
    if not axes.get_legend_handles_labels()[1]:
        return axes
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.16),
        ncols=3 if width > 0.4 else 2,
        fontsize=7.5,
        frameon=False,
        handlelength=1.2,
        columnspacing=1,
        borderaxespad=0,
    )
    return axes


def _rows(panel: Graph, answers: list[Answer]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Give every line with its name; empty for one that the legend leaves out."""
    found = []
    for answer in answers:
        for series in answer.series:
            quiet = panel.hides_zeros and not any(value for _, value in series.points)
            found.append(("" if quiet else named(answer.what, series.labels), series.points))
    return found


def _label(name: str, seen: int) -> str:
    return name if name and seen < LINES_MAX else "_none"


def _lines(axes: Axes, panel: Graph, answers: list[Answer]) -> None:
    seen = 0
    for name, points in _rows(panel, answers):
        axes.plot(
            *_broken(points),
            color=LIGHT[seen % len(LIGHT)] if name else FAINT,
            linewidth=1.3,
            linestyle="-" if seen < len(LIGHT) else "--",
            label=_label(name, seen),
        )
        seen += bool(name)


def _stacked(axes: Axes, panel: Graph, answers: list[Answer]) -> None:
    rows = [(name, dict(points)) for name, points in _rows(panel, answers) if name]
    xs = sorted({at for _, points in rows for at in points})
    if not rows:
        axes.plot([], [])
        return
    axes.stackplot(
        xs,
        [[points.get(at, 0.0) for at in xs] for _, points in rows],
        labels=[_label(name, at) for at, (name, _) in enumerate(rows)],
        colors=[LIGHT[at % len(LIGHT)] for at in range(len(rows))],
        alpha=0.75,
    )


def _broken(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Give a line's points, with a break where there was nothing."""
    xs: list[float] = []
    ys: list[float] = []
    for at, value in points:
        if xs and at - xs[-1] > GAP_S:
            xs.append(at)
            ys.append(float("nan"))
        xs.append(at)
        ys.append(value)
    return xs, ys
