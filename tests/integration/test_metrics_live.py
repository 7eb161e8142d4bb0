"""What a live cluster serves is what the one table declares, and nothing else."""

import json
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import (
    METRICS,
    OF_POOLS,
    OF_PROCESSES,
    OF_SAGAS,
    OF_SHARDS,
    OF_STEPS,
    OF_THIS_BUILD,
)
from sagacity.client import Client
from sagacity.errors import Conflict, Malformed, UnknownSaga
from services.checkout import checkout
from tests.integration.test_supervisor import wait_until
from tests.integration.test_up import Up

SERIES_MAX = 300  # of one process; issue 6
POOLS = {"inventory", "payment", "shipping"}
KNOWN = {
    OF_SAGAS: {"checkout"},
    OF_STEPS: {name for s in checkout.steps for name in (s.name, s.compensation_name)},
    OF_POOLS: POOLS,
    OF_SHARDS: {"0", "1"},
    OF_PROCESSES: {"router", "shard", "auditor", *POOLS},
}
SHIPMENTS = 6  # commands to shipping in `do_some_of_everything`
ITEMS = [{"sku": "abc123", "quantity": 1}]


class Scrape(NamedTuple):
    """One process's answer."""

    target: dict[str, str]  # labels of its place in /sd
    families: dict[str, Family]

    @property
    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """The names and labels of its samples."""
        return {
            (sample.name, frozenset(sample.labels.items()))
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Give a sample's value."""
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        raise AssertionError(f"{name}{labels} is not served")


def scrape_all(metrics_url: str) -> list[Scrape]:
    """Scrape every process that /sd names."""
    base = metrics_url.removesuffix("/metrics")
    with urllib.request.urlopen(f"{base}/sd", timeout=5) as answer:
        found = json.load(answer)
    scrapes = []
    for group in found:
        (target,) = group["targets"]
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            scrapes.append(Scrape(group["labels"], {family.name: family for family in families}))
    return scrapes


@pytest.fixture(scope="module")
def scrapes() -> Iterator[tuple[list[Scrape], list[Scrape]]]:
    """All processes of a cluster before it had anything to do, and after some of everything."""
    base = Path(tempfile.mkdtemp(prefix="sg-"))
    (base / "runtime").mkdir(mode=0o700)
    env = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(base / "runtime"),
        "SAGACITY_LOG": "error",
        "SAGACITY_SUPERVISOR__HEARTBEAT_MS": "100",
    }
    try:
        with Up(base / "data", env, "--shards", "2", "--workers", "1") as up:
            assert wait_until(lambda: has_auditor(up.said["metrics"]), 10)
            before = scrape_all(up.said["metrics"])
            do_some_of_everything(up.said["router"])
            yield before, settled(up.said["metrics"])
    finally:
        shutil.rmtree(base)


def has_auditor(metrics_url: str) -> bool:
    """Whether the auditor serves metrics, too: it starts when the cluster serves."""
    return any(scrape.target["role"] == "auditor" for scrape in scrape_all(metrics_url))


def settled(metrics_url: str) -> list[Scrape]:
    """Scrape all when the shards' gauges, which a heartbeat refreshes, have seen the last saga."""
    found: list[Scrape] = []

    def have_seen() -> bool:
        found[:] = scrape_all(metrics_url)
        shards = [scrape for scrape in found if scrape.target["role"] == "shard"]
        given = [s.value("saga_pool_commands_total", service="shipping") for s in shards]
        return sum(given) == SHIPMENTS

    assert wait_until(have_seen, 10)
    return found


def do_some_of_everything(url: str) -> None:
    """Complete, decline, repeat, refuse."""
    with Client(url, timeout_s=20) as client:
        for n in range(8):
            client.checkout(
                saga_id=f"seen-{n % 7}",
                user_id="u999" if n % 7 == 3 else "u_flaky_3" if n == 4 else "u42",
                items=ITEMS,
                shipping_address="no_carrier" if n % 7 == 5 else "1 Main St",
            )
        with pytest.raises(Conflict):
            client.checkout(
                saga_id="seen-0", user_id="u7", items=ITEMS, shipping_address="1 Main St"
            )
        with pytest.raises(UnknownSaga):
            client.show("nobody")
        with pytest.raises(Malformed):
            client.checkout(user_id="", items=ITEMS, shipping_address="1 Main St")


def test_a_live_cluster_serves_what_the_table_declares_and_nothing_else(
    scrapes: tuple[list[Scrape], list[Scrape]],
) -> None:
    """Rules and dashboards are written against the table: names, types, words, labels, edges."""
    _, after = scrapes
    assert {scrape.target["role"] for scrape in after} == {m for d in METRICS for m in d.roles}
    for scrape in after:
        declared = [metric for metric in METRICS if scrape.target["role"] in metric.roles]
        assert sorted(scrape.families) == sorted(m.name.removesuffix("_total") for m in declared)
        for metric in declared:
            family = scrape.families[metric.name.removesuffix("_total")]
            assert (family.type, family.documentation) == (metric.kind, metric.help)
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(metric.label_names), sample


def test_the_values_of_labels_are_known_before_anything_runs(
    scrapes: tuple[list[Scrape], list[Scrape]],
) -> None:
    """A label with words from outside grows without bound, and tells what it must not."""
    for scrape in (each for scraped in scrapes for each in scraped):
        for metric in METRICS:
            family = scrape.families.get(metric.name.removesuffix("_total"))
            for sample in family.samples if family is not None else ():
                for label in metric.labels:
                    if label.known_from != OF_THIS_BUILD:
                        allowed = label.values or KNOWN[label.known_from]
                        assert sample.labels[label.name] in allowed, (sample, label.name)


def test_no_series_appears_with_its_first_event(
    scrapes: tuple[list[Scrape], list[Scrape]],
) -> None:
    """A rate over a series that was not there before its first event misses that event."""
    before, after = scrapes
    for was, now in zip(before, after, strict=True):
        assert was.target == now.target
        assert now.series == was.series
        assert len(now.series) <= SERIES_MAX


def test_what_was_done_is_what_is_counted(scrapes: tuple[list[Scrape], list[Scrape]]) -> None:
    """The new counters, over both shards: each fact once."""
    _, after = scrapes
    shards = [scrape for scrape in after if scrape.target["role"] == "shard"]

    def total(name: str, **labels: str) -> float:
        return sum(shard.value(name, **labels) for shard in shards)

    assert total("saga_started_total") == 7
    assert total("saga_turned_back_total", saga="checkout", cause="declined") == 2
    assert total("saga_exposure_seconds_count", outcome="completed") == 5
    assert total("saga_exposure_seconds_count", outcome="aborted") == 2
    undone = {"saga": "checkout", "cause": "declined"}
    assert total("saga_compensations_total", step="ReserveInventory", **undone) == 2
    assert total("saga_compensations_total", step="ChargePayment", **undone) == 1
    assert total("saga_retries_total", step="ChargePayment", direction="action") == 3
    assert total("saga_refused_total", cause="conflict") == 1
    assert total("saga_refused_total", cause="unknown_saga") == 1
    assert total("saga_duplicates_total", where="start") == 2
    assert total("saga_journal_commit_entries_sum") == total("saga_journal_records_total")
    assert total("saga_shard_slots") == 1024
    assert total("saga_shard_mode", mode="serving") == 2
    assert total("saga_pool_workers", service="payment") == 2
    assert total("saga_pool_commands_total", service="shipping") == SHIPMENTS
    assert all(shard.value("saga_event_loop_busy_seconds_total") > 0 for shard in shards)
    (supervisor,) = [scrape for scrape in after if scrape.target["role"] == "supervisor"]
    assert supervisor.value("saga_processes", process="shard", state="up") == 2
