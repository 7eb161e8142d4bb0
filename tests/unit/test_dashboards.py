"""Dashboards: they ask for what is served, fit a screen, lead down, are red where alerts are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from cluster.dashboards import DASHBOARDS
from cluster.metrics import COUNTER, HISTOGRAM
from cluster.panels import COUNT, MONEY, Dashboard, Graph, Limit, Numbers, filled
from tests.architecture import grafana
from tests.unit.test_alerts import (
    PROMETHEUS,
    TARGET_LABELS,
    alerts,
    blocks_of,
    metric_of,
    needed,
    promtool,
)

GRAPHS_MAX: Final = 5  # before the fold: what one can take in at a glance
PROVISIONING: Final = grafana.PLACE.parent / "provisioning"
CHOICES: Final = {"shard": ["0", "1"], "service": ["inventory", "payment", "shipping"]}

# What Prometheus itself serves of its alerts.
ALERTS_LABELS: Final = {"alertname", "alertstate", "severity"}
# It is counted once, before the first scrape: a rate would never see it.
COUNTED_ONCE: Final = {"saga_recovered_total"}


class Asked(NamedTuple):
    """One query, and where it stands."""

    panel: str
    legend: str
    expr: str


def asked() -> Iterator[Asked]:
    """Give every query of every dashboard."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for legend, expr in panel.queries.items():
                yield Asked(f"{dashboard.uid}: {panel.title}", legend, expr)


def recorded() -> dict[str, str]:
    """Give the text of each recorded rule, by its name."""
    return blocks_of("rules.yml", "record")[1]


def labels_of(name: str) -> set[str] | None:
    """Give the labels that a series can have; None where there is no such series."""
    if name in {"ALERTS", "up"}:
        return ALERTS_LABELS | TARGET_LABELS
    if ":" in name:
        rule = recorded().get(name)
        if rule is None:
            return None
        grouped = re.search(r"sum by \(([^)]*)\)", rule.split("expr:", 1)[1])
        return set(grouped[1].split(", ")) if grouped else set()
    metric = metric_of(name)
    return None if metric is None else {*metric.label_names, *TARGET_LABELS, "le"}


def faults(expr: str, legend: str = "") -> Iterator[str]:
    """Give what a query asks for that nobody serves."""
    known: set[str] = set()
    for name, selector in re.findall(r"\b(saga[_:][a-z0-9_:]+|ALERTS)\b(\{[^}]*\})?", expr):
        labels = labels_of(name)
        if labels is None:
            yield f"nobody serves {name}"
            continue
        known |= labels
        metric = metric_of(name)
        values = {label.name: label.values for label in metric.labels} if metric else {}
        for label, said in re.findall(r'(\w+)[!=]~?"([^"]*)"', selector):
            if label not in labels:
                yield f"{name} has no label {label}"
            allowed = values.get(label, ())
            if allowed and "$" not in said and not set(said.split("|")) <= set(allowed):
                yield f"{label} of {name} is never {said}"
    for grouped in re.findall(r"by \(([^)]*)\)", expr):
        for label in set(grouped.split(", ")) - known:
            yield f"nothing here has a label {label}"
    grouped_by = re.findall(r"by \(([^)]*)\)", expr)
    shown = set(", ".join(grouped_by).split(", ")) if grouped_by else known
    for label in re.findall(r"\{\{(\w+)\}\}", legend):
        if label not in shown:
            yield f"the legend's {label} is summed away"


def test_every_query_asks_for_what_is_served() -> None:
    """A misspelt name draws an empty graph, and an empty graph looks like a quiet night."""
    for each in asked():
        assert list(faults(each.expr, each.legend)) == [], each


@pytest.mark.parametrize(
    ("expr", "legend"),
    [
        ("sum(saga_actve)", ""),
        ('sum(saga_active{state="stick"})', ""),
        ('sum(saga_active{mode="full"})', ""),
        ("sum by (cause) (saga_active)", ""),
        ("sum by (state) (saga_active)", "{{shard}}"),
        ("saga:slow:ratio_rate1m", ""),
        ('saga:slow:ratio_rate5m{shard="0"}', ""),
    ],
)
def test_a_query_for_what_nobody_serves_is_found(expr: str, legend: str) -> None:
    """Else the test above shows nothing."""
    assert list(faults(expr, legend)) != []


def test_rates_are_taken_of_counters_and_of_nothing_else() -> None:
    """A rate over a gauge is a number without a meaning; a counter without one grows for ever."""
    for each in asked():
        rated = set(re.findall(r"(?:rate|increase)\((\w+)", each.expr))
        for name in set(re.findall(r"\b(saga_[a-z0-9_]+)", each.expr)) - COUNTED_ONCE:
            metric = metric_of(name)
            assert metric is not None
            assert (name in rated) == (metric.kind in {COUNTER, HISTOGRAM}), each


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    """Brackets, selectors, functions: it refuses what it cannot read."""
    rules = [
        {"record": f"panel:{at}", "expr": filled(each.expr, "20s", CHOICES)}
        for at, each in enumerate(asked())
    ]
    assert not [rule for rule in rules if "$" in rule["expr"]]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    code, said = promtool("check", "rules", str(file), cwd=tmp_path)
    assert (code, f"SUCCESS: {len(rules)} rules found" in said) == (0, True), said


# -- how they look --------------------------------------------------------------------------


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)
def test_at_most_five_panels_stand_before_the_fold(dashboard: Dashboard) -> None:
    """Who is woken has to see in one look what it is; the rest is for who scrolls."""
    first = [panel for panel in grafana.printed(dashboard)["panels"] if panel["gridPos"]["y"] == 0]
    assert [panel["type"] for panel in first] == ["stat"]
    before = [place for place in grafana.places(dashboard) if place["y"] < grafana.FOLD]
    assert len(before) <= GRAPHS_MAX
    assert all(place["y"] + place["h"] <= grafana.FOLD for place in before), "cut by the fold"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)
def test_panels_stand_beside_each_other(dashboard: Dashboard) -> None:
    """Grafana moves panels that overlap, and then nothing stands where it was meant to."""
    taken: set[tuple[int, int]] = set()
    for panel in grafana.printed(dashboard)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < grafana.COLUMNS
        taken |= cells


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)
def test_a_panel_can_be_told_from_every_other(dashboard: Dashboard) -> None:
    """Grafana keeps panels by id and queries by letter; people know them by title."""
    panels: list[dict[str, Any]] = grafana.printed(dashboard)["panels"]
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)
    for panel, declared in zip(
        [panel for panel in panels if panel["type"] != "row"], dashboard.panels, strict=True
    ):
        assert panel["description"].startswith(declared.help)
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs)) == len(declared.queries)


# -- where they lead ------------------------------------------------------------------------


def test_every_link_leads_to_a_dashboard_that_is_there() -> None:
    """Of the alerts, and down from the overview."""
    there = {f"/d/{dashboard.uid}" for dashboard in DASHBOARDS}
    named = {place for alert in alerts() for place in re.findall(r"dashboard: (\S+)", alert.text)}
    assert named == there, "each alert leads to one, and to each leads one"
    for dashboard in DASHBOARDS:
        printed = grafana.printed(dashboard)
        links = [link["url"] for link in printed["links"]]
        assert set(links) == there - {f"/d/{dashboard.uid}"}
        for panel in printed["panels"]:
            links += [link["url"] for link in panel.get("links", [])]
        assert {link.partition("?")[0] for link in links} <= there


def numbers_in(text: str) -> set[float]:
    """Give the numbers of an expression, products worked out."""
    text = re.sub(
        r"([\d.]+) \* ([\d.]+)", lambda found: f"{float(found[1]) * float(found[2]):g}", text
    )
    return {float(found) for found in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", text)}


def test_a_panel_is_red_where_its_alert_looks() -> None:
    """Two numbers for one thing: somebody is woken by a graph that is green."""
    rules = recorded()
    texts: dict[str, str] = {}
    for alert in alerts():
        used = "".join(rules[name] for name in sorted(needed(alert.expr, rules)))
        seconds = re.findall(r"for: (\d+)s\n", alert.text)
        texts[alert.name] = texts.get(alert.name, "") + f"{alert.expr} {used} {seconds}"
    for limit, unit in limits():
        if limit.alert:
            said = numbers_in(texts[limit.alert])
            wanted = limit.value * 100 if unit == MONEY else limit.value
            # Of what is counted the alert says `> 0`, and a panel is red from 1 on.
            assert wanted in said or (unit == COUNT and limit.value - 1 in said), (limit, said)


def limits() -> Iterator[tuple[Limit, str]]:
    """Give every limit and its unit."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            if isinstance(panel, Graph):
                if panel.limit:
                    yield panel.limit, panel.unit
            else:
                yield from ((value.limit, value.unit) for value in panel.values if value.limit)


def test_what_needs_a_person_has_a_limit() -> None:
    """The first number of each dashboard is the one that is red when somebody has to come."""
    for dashboard in DASHBOARDS:
        panel = dashboard.panels[0]
        assert isinstance(panel, Numbers)
        assert panel.values[0].limit is not None


def test_grafana_is_told_where_series_and_dashboards_are() -> None:
    """Panels name their source by its uid, and rates need its scrape interval."""
    source = (PROVISIONING / "datasources" / "sagacity.yml").read_text()
    assert f"uid: {grafana.SOURCE['uid']} " in source
    interval = re.findall(r"scrape_interval: (\w+)\n", (PROMETHEUS / "prometheus.yml").read_text())
    assert re.findall(r"timeInterval: (\w+) ", source) == interval
    folder = (PROVISIONING / "dashboards" / "sagacity.yml").read_text()
    assert f"path: $SAGACITY_GRAFANA/{grafana.PLACE.name}\n" in folder
    assert (grafana.PLACE.parent / grafana.PLACE.name).is_dir()
