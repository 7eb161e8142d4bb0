"""What is observed live can fail: answers are judged, each alert has a fault, all is drawn."""

import math
import re
from pathlib import Path

import pytest

from cluster.dashboards import DASHBOARDS
from cluster.panels import COUNT, SHARE, Numbers
from cluster.prometheus import FILES, Series
from tests.observed import answers, drawing
from tests.observed.answers import Answer
from tests.observed.faults import FAULTS, INTERVAL_S, declared


def test_every_alert_has_a_fault_that_is_planted_live() -> None:
    """One that was never seen to fire may be one that cannot."""
    assert sorted((fault.alert, fault.severity) for fault in FAULTS) == sorted(declared())
    assert all(bool(fault.needs_s) == bool(fault.why) for fault in FAULTS), "time without a reason"


def test_the_time_that_an_alert_has_is_that_of_the_configuration() -> None:
    """Two evaluation intervals: those with which operators run it."""
    said = re.findall(
        r"(?:scrape|evaluation)_interval: (\d+)s", (FILES / "prometheus.yml").read_text()
    )
    assert [float(each) for each in said] == [INTERVAL_S, INTERVAL_S]


@pytest.mark.parametrize(
    ("values", "unit", "wrong"),
    [
        ([0.0, 2.5], COUNT, ""),
        ([0.0, 1.0], SHARE, ""),
        ([], COUNT, "empty"),
        ([1.0, math.nan], COUNT, "no number"),
        ([math.inf], COUNT, "no number"),
        ([1.0, -0.5], COUNT, "negative: -0.5"),
        ([0.5, 1.5], SHARE, "a share above 1: 1.5"),
    ],
)
def test_an_absurd_answer_is_found(values: list[float], unit: str, wrong: str) -> None:
    """Else a run over all panels shows only that nobody fell over."""
    series = [Series({}, list(enumerate(values)))] if values else []
    assert answers.fault(series, unit) == wrong


def test_a_dashboard_is_drawn_from_any_answers(tmp_path: Path) -> None:
    """Quiet series, broken ones and none at all: the pictures are of whatever was answered."""
    labels = {"shard": "0", "state": "running", "cause": "declined"}
    broken = Series(labels, [(1000.0 + at, float(at)) for at in (0, 5, 10, 60, 65)])
    quiet = Series(labels, [(1000.0, 0.0), (1005.0, 0.0)])
    dashboard = DASHBOARDS[0]
    drawn = []
    for at, panel in enumerate(dashboard.panels):
        given = [[broken], [quiet], [quiet, broken], []][at % 4]
        if isinstance(panel, Numbers):
            given = [broken]
        drawn.append((panel, [Answer("", legend, COUNT, given) for legend in panel.queries]))
    file = tmp_path / "dashboard.png"
    drawing.draw(dashboard, drawn, (1000.0, 1065.0), "a test", file)
    assert file.read_bytes().startswith(b"\x89PNG")
