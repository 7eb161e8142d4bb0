"""What a live Prometheus answers to every panel's query and every rule, and what is wrong with it.

An answer is wrong where there is none, where it is no number, negative, or a share above 1.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from cluster.dashboards import DASHBOARDS
from cluster.panels import SHARE, Dashboard, Graph, Numbers, filled
from cluster.prometheus import Prometheus, Series

STEP_S: Final = 5.0
WINDOW: Final = "20s"  # as Grafana makes it of such a step: four scrapes
CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "shard": ["0", "1"],
    "service": ["inventory", "payment", "shipping"],
}
ROUNDED: Final = 1e-9


class Answer(Struct, frozen=True):
    """What one query gave.

    Args:
        where: dashboard and panel; or the file of a rule.
        what: legend, or the rule's name.
        unit: of the values.
        series: that it gave.
        wrong: what is wrong with them; empty if nothing.
    """

    where: str
    what: str
    unit: str
    series: list[Series]
    wrong: str = ""

    @property
    def values(self) -> list[float]:
        """All values of all series."""
        return [value for series in self.series for _, value in series.points]

    @property
    def last(self) -> float:
        """The greatest of the last values; NaN where there is none."""
        return max((series.points[-1][1] for series in self.series), default=math.nan)


def panels_of(
    prometheus: Prometheus, dashboard: Dashboard, begin: float, end: float
) -> Iterator[tuple[Numbers | Graph, list[Answer]]]:
    """Run the queries of a dashboard's panels, as Grafana would for this span.

    Args:
        prometheus: that has watched a cluster.
        dashboard: whose panels.
        begin: instant, seconds since 1970; graphs show from here on.
        end: likewise; numbers are of this instant.
    """
    for panel in dashboard.panels:
        answers = []
        for at, (legend, expr) in enumerate(panel.queries.items()):
            asked = filled(expr, WINDOW, CHOICES)
            if isinstance(panel, Numbers):
                unit, series = panel.values[at].unit, prometheus.now(asked, end)
            else:
                unit, series = panel.unit, prometheus.over(asked, begin, end, STEP_S)
            wrong = fault(series, unit)
            if not wrong and isinstance(panel, Numbers) and len(series) != 1:
                wrong = f"{len(series)} numbers where one is shown"
            answers.append(Answer(f"{dashboard.uid}: {panel.title}", legend, unit, series, wrong))
        yield panel, answers


def panels(prometheus: Prometheus, begin: float, end: float) -> Iterator[Answer]:
    """Run the queries of all dashboards."""
    for dashboard in DASHBOARDS:
        for _, answers in panels_of(prometheus, dashboard, begin, end):
            yield from answers


def rules(prometheus: Prometheus, begin: float, end: float) -> Iterator[Answer]:
    """Look at every rule: it is evaluated without an error, and a recorded one has values."""
    for rule in prometheus.rules():
        name, wrong = rule["name"], ""
        if rule["health"] != "ok" or rule.get("lastError"):
            wrong = f"{rule['health']}: {rule.get('lastError', '')}"
        if rule["type"] == "alerting":
            # It has a value while it fires alone; that it does is shown alert by alert.
            yield Answer("alerts.yml", f"{name} ({rule['labels']['severity']})", "", [], wrong)
            continue
        unit = SHARE if "ratio" in name else ""
        series = prometheus.over(name, begin, end, STEP_S)
        yield Answer("rules.yml", name, unit, series, wrong or fault(series, unit))


def fault(series: Sequence[Series], unit: str) -> str:
    """Say what is wrong with values; empty if nothing."""
    values = [value for each in series for _, value in each.points]
    if not values:
        return "empty"
    if not all(math.isfinite(value) for value in values):
        return "no number"
    if min(values) < 0:
        return f"negative: {min(values):g}"
    if unit == SHARE and max(values) > 1 + ROUNDED:
        return f"a share above 1: {max(values):g}"
    return ""


def named(legend: str, labels: Mapping[str, str]) -> str:
    """Give a series' legend."""
    for name, value in labels.items():
        legend = legend.replace(f"{{{{{name}}}}}", value)
    return legend


def shown(value: float, unit: str) -> str:
    """Write a value as Grafana would, nearly."""
    if math.isnan(value):
        return "no value"
    if unit == SHARE:
        return f"{value:.1%}"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "locale":
        return f"{value:,.2f}"
    if unit == "bytes":
        return f"{value / 1024:,.0f} KiB" if value < 1 << 20 else f"{value / (1 << 20):.1f} MiB"
    number = f"{value:.0f}" if value == round(value) else f"{value:.3g}"
    return f"{number} /s" if unit.startswith("suffix") else number
