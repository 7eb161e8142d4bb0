"""Alerts and rules: promtool's tests pass, find planted faults, and speak of metrics that exist."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from cluster.metrics import BY_NAME, COUNTER, HISTOGRAM, WORKER, Metric
from tests.architecture.floors import ROOT

PROMETHEUS: Final = ROOT / "config" / "prometheus"
RUNBOOKS: Final = ROOT / "docs" / "runbooks"
FILES: Final = ("rules.yml", "alerts.yml")
DASHBOARDS: Final = {f"/d/sagacity-{name}" for name in ("overview", "shard", "services")}

# What SPEC 7's discovery and Prometheus itself put on a series.
TARGET_LABELS: Final = {"role", "shard", "service", "index", "job", "instance"}
ROLES: Final = {"shard", "router", "supervisor", WORKER}


class Alert(NamedTuple):
    """One alert, as its lines stand in the file."""

    name: str
    text: str

    @property
    def expr(self) -> str:
        found = re.search(r"expr: (.*?)\n +for: ", self.text, re.DOTALL)
        assert found is not None, self.name
        return found[1]


class Plant(NamedTuple):
    """A fault: in which file, what stands there, and what is put in its place."""

    alert: str
    file: str
    old: str
    new: str


def alerts() -> list[Alert]:
    """Read the alerts; without a YAML reader, which nothing else here needs."""
    blocks = re.split(r"\n +- alert: ", (PROMETHEUS / "alerts.yml").read_text())[1:]
    return [Alert(block.split("\n", 1)[0], block) for block in blocks]


def promtool(*words: str, cwd: Path = PROMETHEUS) -> tuple[int, str]:
    """Run promtool; give its exit code and what it says."""
    if shutil.which("promtool") is None:
        pytest.fail("promtool is not there; on Debian and Ubuntu: apt-get install prometheus")
    done = subprocess.run(
        ["promtool", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # it says on both what belongs together
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "GOMAXPROCS": "1"},  # two of them run side by side
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


# -- what promtool says ---------------------------------------------------------------------


def test_prometheus_takes_the_configuration() -> None:
    """It is what an operator starts it with."""
    code, said = promtool("check", "config", "prometheus.yml")
    assert code == 0, said


def test_every_alert_fires_when_it_should_and_not_before(pool: ThreadPoolExecutor) -> None:
    """One file an alert: below the threshold, within its `for`, when it fires, and afterwards."""
    files = sorted(file.name for file in (PROMETHEUS / "tests").iterdir())
    assert files == sorted({f"{alert.name}.yml" for alert in alerts()} | {"quiet.yml"})
    for code, said in pool.map(lambda name: promtool("test", "rules", f"tests/{name}"), files):
        assert code == 0, said


# fmt: off
# ruff: noqa: E501 - one fault a line
# What may be wrong in an alert or the rule below it; each is planted alone.
PLANTS: Final = [
    Plant("ErrorBudgetBurn", "alerts.yml", "ratio_rate1h > 14.4 *", "ratio_rate1h > 144 *"),
    Plant("ErrorBudgetBurn", "alerts.yml", "ratio_rate1h > 14.4 *", "ratio_rate1h > 1.44 *"),
    Plant("ErrorBudgetBurn", "alerts.yml", " and saga:start_errors:ratio_rate5m > 14.4 * 0.001", ""),
    Plant("ErrorBudgetBurn", "alerts.yml", "ratio_rate6h > 6 *", "ratio_rate6h > 3 *"),
    Plant("ErrorBudgetBurn", "alerts.yml", " and saga:start_errors:ratio_rate30m > 6 * 0.001", ""),
    Plant("ErrorBudgetBurn", "rules.yml", 'cause=~"timed_out|deadline|quarantined"}[6h]', "}[6h]"),
    Plant("ErrorBudgetBurn", "rules.yml", 'outcome=~"not_taken|no_outcome"}[1h]', 'x="y"}[1h]'),
    Plant("Slow", "alerts.yml", "ratio_rate5m > 0.01\n", "ratio_rate5m > 0.1\n"),
    Plant("Slow", "alerts.yml", "ratio_rate5m > 0.01\n", "ratio_rate5m > 0.001\n"),
    Plant("Slow", "rules.yml", 'le="1.0"', 'le="2.5"'),
    Plant("Slow", "rules.yml", 'le="1.0"', 'le="1"'),
    Plant("Stuck", "alerts.yml", '(saga_active{state="stuck"}) > 0', '(saga_active{state="stuck"}) > 1'),
    Plant("Stuck", "alerts.yml", '{state="stuck"}', '{state="Stuck"}'),
    Plant("Stuck", "alerts.yml", 'saga_active{state="stuck"}', 'rate(saga_active{state="stuck"}[1m])'),
    Plant("NotProgressing", "alerts.yml", 'saga_active{state!="stuck"}', "saga_active"),
    Plant("NotProgressing", "alerts.yml", "sum by (shard) (rate(", "sum (rate("),
    Plant("NotProgressing", "alerts.yml", "rate(saga_finished_total[1m])", "saga_finished_total"),
    Plant("CompensationSurge", "alerts.yml", "> 0.3 and", "> 0.5 and"),
    Plant("CompensationSurge", "alerts.yml", "> 0.3 and", "> 0.05 and"),
    Plant("CompensationSurge", "alerts.yml", "[5m])) > 20", "[5m])) > 5"),
    Plant("CompensationSurge", "rules.yml", "sum(rate(saga_turned_back_total[5m])) /", "sum(saga_turned_back_total) /"),
    Plant("AmountAtRisk", "alerts.yml", "> 1000000", "> 10000000"),
    Plant("AmountAtRisk", "alerts.yml", "> 1000000", "> 100000"),
    Plant("AmountAtRisk", "alerts.yml", "sum(saga_amount_at_risk)", "max(saga_amount_at_risk)"),
    Plant("AmountAtRisk", "alerts.yml", "sum(saga_amount_at_risk)", "sum(rate(saga_amount_at_risk[1m]))"),
    Plant("ShardDown", "alerts.yml", 'process="shard",state="up"})', 'process="shard"})'),
    Plant("ShardDown", "alerts.yml", '(saga_processes{process="shard"})', "(saga_processes)"),
    Plant("ShardDown", "alerts.yml", 'state="up"}) > 0', 'state="up"}) > 1'),
    Plant("JournalFailing", "alerts.yml", 'mode="full"', 'mode="serving"'),
    Plant("JournalFailing", "alerts.yml", 'mode="full"', 'mode="disk_full"'),
    Plant("JournalFailing", "alerts.yml", 'total{process="shard"}[5m])) > 2', "total[5m])) > 2"),
    Plant("JournalFailing", "alerts.yml", "[5m])) > 2\n", "[5m])) > 1\n"),
    Plant("JournalFailing", "alerts.yml", "[5m])) > 2\n", "[5m])) > 20\n"),
    Plant("JournalSlow", "alerts.yml", "p99_5m > 0.1", "p99_5m > 1"),
    Plant("JournalSlow", "alerts.yml", "p99_5m > 0.1", "p99_5m > 0.01"),
    Plant("JournalSlow", "rules.yml", "quantile(0.99,", "quantile(0.90,"),
    Plant("JournalSlow", "rules.yml", "sum by (shard, le)", "sum by (le)"),
    Plant("WorkersSaturated", "alerts.yml", "mean1m > 0.5", "mean1m > 5"),
    Plant("WorkersSaturated", "alerts.yml", "mean1m > 0.5", "mean1m > 0.3"),
    Plant("WorkersSaturated", "alerts.yml", "(saga_pool_waiting) > 0", "(saga_pool_waiting) >= 0"),
    Plant("WorkersSaturated", "alerts.yml", "(rate(saga_pool_commands_total[1m])) == 0", "(saga_pool_commands_total) == 0"),
    Plant("WorkersSaturated", "rules.yml", "sum by (service) (rate(saga_pool_wait_seconds", "sum (rate(saga_pool_wait_seconds"),
    Plant("BooksDoNotBalance", "alerts.yml", "(saga_books_imbalance) > 0", "(saga_books_imbalance) > 1"),
    Plant("BooksDoNotBalance", "alerts.yml", "(saga_books_imbalance) > 0", "(saga_books_imbalance) >= 0"),
    Plant("BooksDoNotBalance", "alerts.yml", "sum by (book) (saga", "sum (saga"),
    Plant("BooksDoNotBalance", "alerts.yml", "(saga_books_imbalance)", "(rate(saga_books_imbalance[1m]))"),
    Plant("BooksDoNotBalance", "alerts.yml", "for: 15s", "for: 5m"),
    Plant("BooksUnread", "alerts.yml", "_seconds) > 300", "_seconds) > 3000"),
    Plant("BooksUnread", "alerts.yml", "_seconds) > 300", "_seconds) > 30"),
    Plant("BooksUnread", "alerts.yml", "saga_books_round_timestamp_seconds", "saga_books_history_timestamp_seconds"),
    Plant("TargetMissing", "alerts.yml", "== bool 0", "== bool 1"),
    Plant("TargetMissing", "alerts.yml", '          or sum(absent(up{job="sagacity",role="supervisor"})) > 0\n', ""),
    Plant("TargetMissing", "alerts.yml", "sum(saga_processes) -", 'sum(saga_processes{state="up"}) -'),
    Plant("TargetMissing", "alerts.yml", 'role!="supervisor"', 'role!="x"'),
]
# fmt: on
# fmt: off
QUIET_PLANTS: Final = [  # a guard is gone: without traffic something has a value, or fires
    Plant("quiet", "rules.yml", '/ (sum(rate(saga_router_requests_total{kind=~"start|submit"}[1h])) > 0)', '/ sum(rate(saga_router_requests_total{kind=~"start|submit"}[1h]))'),
    Plant("quiet", "rules.yml", "/ (sum(rate(saga_duration_seconds_count[5m])) > 0)", "/ sum(rate(saga_duration_seconds_count[5m]))"),
    Plant("quiet", "rules.yml", "/ (sum(rate(saga_started_total[5m])) > 0)", "/ sum(rate(saga_started_total[5m]))"),
    Plant("quiet", "rules.yml", "(rate(saga_journal_commit_duration_seconds_count[5m])) > 0)", "(rate(saga_journal_commit_duration_seconds_count[5m])) >= 0)"),
    Plant("quiet", "rules.yml", "(rate(saga_pool_commands_total[1m])) > 0)", "(rate(saga_pool_commands_total[1m])) >= 0)"),
    Plant("quiet", "alerts.yml", 'saga_active{state!="stuck"}) > 0', 'saga_active{state!="stuck"}) >= 0'),
]
# fmt: on


def usual_plants() -> list[Plant]:
    """Give what may be wrong in any alert: no `for`, another severity."""
    return [
        Plant(alert.name, "alerts.yml", old, new)
        for alert in alerts()
        for pattern, new in ((r" +for: \w+\n", ""), (r"severity: \w+", "severity: none"))
        for old in re.findall(pattern, alert.text)
    ]


def blocks_of(file: str, opening: str) -> tuple[str, dict[str, str]]:
    """Give what stands before a file's first rule, and the texts of its rules by their names."""
    head, *blocks = re.split(rf"(?=\n +- {opening}: )", (PROMETHEUS / file).read_text())
    found: dict[str, str] = {}
    for block in blocks:
        name = block.split(f"- {opening}: ", 1)[1].split("\n", 1)[0]
        found[name] = found.get(name, "") + block
    return head, found


def needed(text: str, rules: dict[str, str]) -> set[str]:
    """Give the names of the recorded rules that a text uses, and those that these use."""
    found: set[str] = set()
    for name in set(re.findall(r"saga:[a-z0-9_:]+", text)):
        found |= {name} | needed(rules[name].split("expr:", 1)[1], rules)
    return found


def copies_for(planted: Plant) -> dict[str, str]:
    """Give rules and alerts without those that do not matter to a plant: they cost time."""
    rules_head, rules = blocks_of("rules.yml", "record")
    alerts_head, all_alerts = blocks_of("alerts.yml", "alert")
    kept = {name: text for name, text in all_alerts.items() if planted.alert == name}
    if planted.alert == "quiet":
        kept = {name: text for name, text in all_alerts.items() if planted.old in text}
    used = {
        name for name, text in rules.items() if planted.alert == "quiet" and planted.old in text
    }
    used |= needed("".join([*kept.values(), *(rules[name] for name in used)]), rules)
    texts = "".join(text for name, text in rules.items() if name in used)
    if not texts:
        texts = "\n      - {record: saga:nothing, expr: vector(0)}\n"
    return {"rules.yml": rules_head + texts, "alerts.yml": alerts_head + "".join(kept.values())}


def plant(planted: Plant, at: Path) -> None:
    """Make a copy with a fault, and the test of its alert."""
    files = copies_for(planted)
    assert planted.old in files[planted.file], f"nothing to plant it in: {planted}"
    files[planted.file] = files[planted.file].replace(planted.old, planted.new, 1)
    at.mkdir()
    shutil.copy(PROMETHEUS / "tests" / f"{planted.alert}.yml", at)
    for name, text in files.items():
        (at / name).write_text(text)


def verdicts(said: str) -> dict[str, str]:
    """Give what promtool says of each file, by the file's name."""
    parts = re.split(r"Unit Testing: +(\S+)\n", said)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_planted_faults_are_found(tmp_path: Path) -> None:
    """A wrong threshold, a missing `for`, a wrong label, a rate over a gauge, a lost guard.

    Tests of alerts that would pass with these show nothing of the alerts.
    """
    sound = [Plant(name, "alerts.yml", "", "") for name in {each.alert for each in PLANTS}]
    plants = [*sound, *PLANTS, *QUIET_PLANTS, *usual_plants()]
    for at, planted in enumerate(plants):
        plant(planted, tmp_path / str(at))
    (tmp_path / "tests").mkdir()
    names = []
    for at, planted in enumerate(plants):
        text = (tmp_path / str(at) / f"{planted.alert}.yml").read_text()
        names.append(f"{at}/{planted.alert}.yml")
        (tmp_path / names[-1]).write_text(text.replace("../", ""))
    _, said = promtool("test", "rules", *names, cwd=tmp_path)
    of = verdicts(said)
    assert len(of) == len(plants), said
    for name, planted in zip(names, plants, strict=True):
        if planted in sound:
            assert "SUCCESS" in of[name], of[name]
        else:
            # What Prometheus refuses to load is found by anybody: such a plant shows nothing.
            assert "got:" in of[name], (planted, of[name])


# -- what the files speak of ------------------------------------------------------------------


def test_every_alert_has_a_runbook_a_dashboard_and_a_severity() -> None:
    """At night nobody looks for them; and a page of an alert that is gone misleads."""
    for alert in alerts():
        assert f"runbook: docs/runbooks/{alert.name}.md\n" in alert.text
        assert set(re.findall(r"dashboard: (\S+)", alert.text)) <= DASHBOARDS
        assert re.search(r"severity: (page|ticket)\n", alert.text)
    pages = {page.stem for page in RUNBOOKS.iterdir()} - {"README"}
    assert pages == {alert.name for alert in alerts()}
    index = (RUNBOOKS / "README.md").read_text()
    for page in pages:
        text = (RUNBOOKS / f"{page}.md").read_text()
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert headings == [
            "What it means",
            "First look",
            "Likely causes",
            "What to do",
            "When it is over",
        ], page
        assert f"({page}.md)" in index


def metric_of(name: str) -> Metric | None:
    """Give the metric whose series has this name."""
    plain = re.sub(r"_(bucket|count|sum)$", "", name)
    found = BY_NAME.get(name) or BY_NAME.get(plain)
    if found is not None and found.name != name:
        assert found.kind == HISTOGRAM, name
    return found


def expressions() -> list[str]:
    """Give every expression of the rules and alerts."""
    texts = [alert.expr for alert in alerts()]
    rules = (PROMETHEUS / "rules.yml").read_text()
    texts += re.findall(r"expr: (.*?)(?=\n +- |\n\n|\n +#|\Z)", rules, re.DOTALL)
    return [re.sub(r"\s+", " ", text) for text in texts]


def test_rules_speak_of_metrics_and_labels_that_are_declared() -> None:
    """A misspelt name gives nothing, and nothing is what a quiet alert gives, too."""
    recorded = set(re.findall(r"record: (\S+)", (PROMETHEUS / "rules.yml").read_text()))
    for text in expressions():
        for name, selector in re.findall(r"\b(saga[_:][a-z0-9_:]+)(\{[^}]*\})?", text):
            if ":" in name:
                assert name in recorded, name
                continue
            metric = metric_of(name)
            assert metric is not None, f"{name} is not in the table"
            labels = {label.name: label for label in metric.labels}
            for label, values in re.findall(r'(\w+)[!=]~?"([^"]*)"', selector):
                if label in {"le", *TARGET_LABELS} - set(labels):
                    continue
                assert label in labels, f"{name} has no label {label}"
                known = labels[label].values
                assert not known or set(values.split("|")) <= set(known), (name, label, values)


def test_rates_are_taken_of_counters_and_of_nothing_else() -> None:
    """A rate over a gauge is a number without a meaning; a counter without one grows for ever."""
    for text in expressions():
        rated = set(re.findall(r"(?:rate|increase)\((\w+)", text))
        for name in re.findall(r"\b(saga_[a-z0-9_]+)", text):
            metric = metric_of(name)
            assert metric is not None
            assert (name in rated) == (metric.kind in {COUNTER, HISTOGRAM}), (name, text)
