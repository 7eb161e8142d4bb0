"""The dashboards as Grafana reads them: its JSON, made from the table. Pure; knows no query.

`python -m tests.architecture.pictures` writes them. The format is Grafana 10's (schemaVersion 39),
which 11 reads as it is.
"""

import json
import string
from typing import Any, Final

from cluster.dashboards import DASHBOARDS
from cluster.panels import MONEY, SHARE, Dashboard, Graph, Limit, Numbers, Value, Variable
from tests.architecture.floors import ROOT

PLACE: Final = ROOT / "config" / "grafana" / "dashboards"
SCHEMA: Final = 39
SOURCE: Final = {"type": "prometheus", "uid": "sagacity-prometheus"}

COLUMNS: Final = 24
FOLD: Final = 18  # rows that a usual screen shows
NUMBERS_ROWS: Final = 4
GRAPH_ROWS: Final = 7
ABOVE_BESIDE: Final = 2  # graphs beside each other
BELOW_BESIDE: Final = 3

_GREEN, _RED = "green", "red"


def files() -> dict[str, str]:
    """Give what each dashboard's file holds, by its name."""
    names = [f"{each.uid.removeprefix('sagacity-')}.json" for each in DASHBOARDS]
    texts = [json.dumps(printed(each), indent=1) + "\n" for each in DASHBOARDS]
    return dict(zip(names, texts, strict=True))


def printed(dashboard: Dashboard) -> dict[str, Any]:
    """Give a dashboard."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.help,
        "tags": ["sagacity"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,  # one crosshair for all graphs
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_link(uid) for uid in dashboard.links],
        "templating": {"list": [_variable(dashboard.variable)] if dashboard.variable else []},
        "panels": _panels(dashboard),
    }


def places(dashboard: Dashboard) -> list[dict[str, int]]:
    """Give where each panel stands, in the order of the dashboard's panels."""
    found = [{"h": NUMBERS_ROWS, "w": COLUMNS, "x": 0, "y": 0}]
    found += _beside(len(dashboard.above), ABOVE_BESIDE, NUMBERS_ROWS)
    return found + _beside(len(dashboard.below), BELOW_BESIDE, FOLD + 1)


def _beside(graphs: int, columns: int, top: int) -> list[dict[str, int]]:
    width = COLUMNS // columns
    return [
        {
            "h": GRAPH_ROWS,
            "w": width,
            "x": at % columns * width,
            "y": top + at // columns * GRAPH_ROWS,
        }
        for at in range(graphs)
    ]


def _panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    for at, (panel, place) in enumerate(zip(dashboard.panels, places(dashboard), strict=True), 1):
        drawn = _numbers(panel) if isinstance(panel, Numbers) else _graph(panel)
        panels.append({"id": at, "gridPos": place, "datasource": SOURCE, **drawn})
    fold = {"h": 1, "w": COLUMNS, "x": 0, "y": FOLD}
    row = {"type": "row", "title": "More", "collapsed": False, "panels": [], "gridPos": fold}
    panels.insert(1 + len(dashboard.above), {"id": len(panels) + 1, **row})
    return panels


def _numbers(panel: Numbers) -> dict[str, Any]:
    overrides = [
        {
            "matcher": {"id": "byFrameRefID", "options": ref},
            "properties": [
                {"id": "unit", "value": value.unit},
                {"id": "decimals", "value": _decimals(value)},
                {"id": "thresholds", "value": _thresholds(value.limit)},
            ],
        }
        for ref, value in zip(string.ascii_uppercase, panel.values, strict=False)
    ]
    return {
        "type": "stat",
        "title": panel.title,
        "description": panel.help,
        "fieldConfig": {
            "defaults": {"thresholds": _thresholds(None), "color": {"mode": "thresholds"}},
            "overrides": overrides,
        },
        "options": {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "center",
            "orientation": "vertical",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value_and_name",
        },
        "targets": _targets(panel.queries, now=True),
    }


def _decimals(value: Value) -> int:
    return 2 if value.unit == MONEY else 0 if value.unit == "none" else 1


def _graph(panel: Graph) -> dict[str, Any]:
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 25 if panel.stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.limit else "off"},
    }
    defaults = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "palette-classic"},
        "custom": custom,
        "thresholds": _thresholds(panel.limit),
    }
    if panel.unit == SHARE:
        defaults["max"] = 1
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": described(panel),
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [_NO_ZEROS] if panel.hides_zeros else [],
        },
        "options": {
            "legend": {
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": _targets(panel.queries, now=False),
        "links": [_link_down(panel.down)] if panel.down else [],
    }


_NO_ZEROS: Final = {
    "matcher": {"id": "byValue", "options": {"reducer": "allIsZero", "op": "gte", "value": 0}},
    "properties": [
        {"id": "custom.hideFrom", "value": {"legend": True, "tooltip": True, "viz": False}}
    ],
}


def described(panel: Graph) -> str:
    """Give what a graph tells, and the alert that looks at the same."""
    if panel.limit is None or not panel.limit.alert:
        return panel.help
    alert = panel.limit.alert
    return f"{panel.help} The line is where the alert {alert} looks: docs/runbooks/{alert}.md."


def _targets(queries: dict[str, str], *, now: bool) -> list[dict[str, Any]]:
    return [
        {
            "refId": ref,
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": expr,
            "legendFormat": legend,
            "instant": now,
            "range": not now,
        }
        for ref, (legend, expr) in zip(string.ascii_uppercase, queries.items(), strict=False)
    ]


def _thresholds(limit: Limit | None) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": _GREEN, "value": None}]
    if limit is not None:
        steps.append({"color": _RED, "value": limit.value})
    return {"mode": "absolute", "steps": steps}


def _title(uid: str) -> str:
    (found,) = [each.title for each in DASHBOARDS if each.uid == uid]
    return found


def _link_down(uid: str) -> dict[str, Any]:
    url = f"/d/{uid}?${{__url_time_range}}"
    return {"title": _title(uid), "url": url, "targetBlank": False}


def _link(uid: str) -> dict[str, Any]:
    return {
        "type": "link",
        "title": _title(uid),
        "url": f"/d/{uid}",
        "keepTime": True,
        "includeVars": False,
        "targetBlank": False,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    query = f"label_values({variable.metric}, {variable.name})"
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.name,
        "datasource": SOURCE,
        "definition": query,
        "query": {
            "qryType": 1,
            "query": query,
            "refId": "PrometheusVariableQueryEditor-VariableQuery",
        },
        "refresh": 2,  # when the time range changes
        "sort": 3,  # by number
        "multi": True,
        "includeAll": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }
