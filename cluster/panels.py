"""What a dashboard is made of: panels, queries, units, limits; and how queries are written. Pure.

`dashboards` is the table of them. Knows nothing of Grafana's format.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct, field

# Units, as Grafana names them.
COUNT: Final = "none"
EACH_SECOND: Final = "suffix: /s"
SECONDS: Final = "s"
SHARE: Final = "percentunit"
MONEY: Final = "locale"  # major units: what is counted in minor ones is divided by 100
BYTES: Final = "bytes"

WINDOW: Final = (
    "$__rate_interval"  # Grafana's: as wide as a point of the graph, four scrapes at least
)


class Limit(Struct, frozen=True):
    """A value from which on something is red.

    Args:
        value: in the unit of what is shown.
        alert: that looks at the same number; empty for none.
    """

    value: float
    alert: str = ""


class Value(Struct, frozen=True):
    """One number.

    Args:
        legend: what it is.
        unit: of the number.
        expr: PromQL that gives one series.
        limit: from where on it is red; None for never.
    """

    legend: str
    unit: str
    expr: str
    limit: Limit | None = None


class Numbers(Struct, frozen=True):
    """A panel of numbers, as they are now.

    Args:
        title: of the panel.
        help: what it tells, for who looks at it the first time.
        values: the numbers.
    """

    title: str
    help: str
    values: tuple[Value, ...]

    @property
    def queries(self) -> dict[str, str]:
        """The query of each number, by its legend."""
        return {value.legend: value.expr for value in self.values}


class Graph(Struct, frozen=True):
    """A panel of lines over time.

    Args:
        title: of the panel.
        help: what it tells, for who looks at it the first time.
        unit: of all its queries.
        queries: PromQL by the legend of its series, in which {{label}} stands for a value.
        limit: drawn as a line; None for none.
        stacked: the sum means something.
        hides_zeros: a series that is zero all the time is not in the legend.
        down: the dashboard that tells more; empty for none.
    """

    title: str
    help: str
    unit: str
    queries: dict[str, str]
    limit: Limit | None = None
    stacked: bool = False
    hides_zeros: bool = False
    down: str = ""


class Variable(Struct, frozen=True):
    """What can be chosen above a dashboard.

    Args:
        name: as queries name it, after a $; and the label whose values can be chosen.
        metric: that has them.
    """

    name: str
    metric: str

    @property
    def selector(self) -> str:
        """What chooses, in a query."""
        return f'{self.name}=~"${self.name}"'


class Dashboard(Struct, frozen=True):
    """One dashboard.

    Args:
        uid: it is at /d/uid.
        title: for people.
        help: what it answers.
        numbers: its first row.
        above: graphs before the fold, two beside each other.
        below: graphs after it, three beside each other.
        links: uids of the dashboards that are linked above.
        variable: what can be chosen; None for nothing.
    """

    uid: str
    title: str
    help: str
    numbers: Numbers
    above: tuple[Graph, ...]
    below: tuple[Graph, ...]
    links: tuple[str, ...] = field(default=())
    variable: Variable | None = None

    @property
    def panels(self) -> tuple[Numbers | Graph, ...]:
        """All panels, as they are read."""
        return (self.numbers, *self.above, *self.below)


def summed(series: str, by: str = "") -> str:
    """Write a sum over everything but some labels: `shard`, `step, cause`."""
    return f"sum by ({by}) ({series})" if by else f"sum({series})"


def chosen(metric: str, *selectors: str) -> str:
    """Write the series of a metric that are chosen."""
    said = ",".join(selector for selector in selectors if selector)
    return f"{metric}{{{said}}}" if said else metric


def rate(metric: str, by: str = "", *selectors: str) -> str:
    """Write how fast a counter grows, summed."""
    return summed(f"rate({chosen(metric, *selectors)}[{WINDOW}])", by)


def quantile(part: float, histogram: str, by: str = "", *selectors: str) -> str:
    """Write a quantile of a histogram; it has no value while nothing is measured."""
    edges = f"{by}, le" if by else "le"
    buckets, count = f"{histogram}_bucket", f"{histogram}_count"
    found = f"histogram_quantile({part:g}, {rate(buckets, edges, *selectors)})"
    return f"{found} and {rate(count, by, *selectors)} > 0"


def mean(histogram: str, by: str, *selectors: str) -> str:
    """Write the mean of a histogram; it has no value while nothing is measured."""
    total, count = f"{histogram}_sum", f"{histogram}_count"
    return f"{rate(total, by, *selectors)} / ({rate(count, by, *selectors)} > 0)"


def filled(expr: str, window: str, choices: Mapping[str, Sequence[str]]) -> str:
    """Put values for what Grafana would.

    Args:
        expr: a query of a panel.
        window: for WINDOW, such as "20s".
        choices: what is chosen, by the variable's name.
    """
    for name, values in choices.items():
        expr = expr.replace(f'${name}"', f'{"|".join(values)}"')
    return expr.replace(WINDOW, window)
