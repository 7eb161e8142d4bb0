"""The figures of `top`: rates, percentiles and needs, from samples that are made up."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert, to_builtins

from cluster import figures as room
from cluster.figures import Figures, figures, quantile
from cluster.metrics import BY_NAME
from tests.unit.top_world import WALL_MS, Made, stuck

SHARD = ("shard", 0)
OTHER = ("shard", 1)


def needs(found: Figures) -> list[tuple[str, str]]:
    return [(need.kind, need.text) for need in found.needs]


def two(made: Made, ms: int = 2_000) -> Figures:
    """Give the figures of what was done between the first sample and now."""
    before = Made().sample()
    made.after(ms)
    return figures([before, made.sample()])


def test_rates_are_what_was_counted_in_the_interval_over_all_shards() -> None:
    made = Made()
    made.count(SHARD, "saga_started_total", 100)
    made.count(OTHER, "saga_started_total", 50)
    for place in (SHARD, OTHER):
        made.count(place, "saga_finished_total", 60, saga="checkout", outcome="completed")
        made.count(place, "saga_finished_total", 5, saga="checkout", outcome="aborted")
    found = two(made)
    assert (found.interval_ms, found.at_ms) == (2_000, WALL_MS + 2_000)
    assert (found.started, found.completed, found.aborted) == (75.0, 60.0, 5.0)
    assert [(shard.started, shard.ended) for shard in found.shards] == [(50.0, 32.5), (25.0, 32.5)]


def test_of_one_sample_alone_no_rate_is_made_up() -> None:
    """None, not 0: nothing was measured yet."""
    found = figures([Made().sample()])
    assert (found.interval_ms, found.started, found.latency, found.refused) == (None,) * 4
    assert (found.shards[0].busy, found.pools[0].commands) == (None, None)
    assert found.in_flight == 0


def test_a_process_that_began_again_counts_from_zero() -> None:
    """Else its restart is a rate below zero, or hides what it did since."""
    made = Made()
    made.count(SHARD, "saga_started_total", 1_000)
    before = made.sample()
    made.restarted(SHARD)
    made.count(SHARD, "saga_started_total", 8)
    made.count(OTHER, "saga_started_total", 2)
    made.after(1_000)
    assert figures([before, made.sample()]).started == 10.0


def test_who_does_not_answer_is_left_out_and_said() -> None:
    """The others' figures stand; nothing reads as 0 that is not known."""
    made = Made()
    made.count(OTHER, "saga_started_total", 10)
    before = Made().sample()
    made.after(1_000)
    found = figures([before, made.sample(silent=(SHARD,))])
    assert found.started == 10.0
    assert [shard.started for shard in found.shards] == [None, 10.0]
    assert needs(found) == [
        ("process", "shard-0 says nothing under /metrics: its figures are left out")
    ]
    nobody = figures([before, made.sample(silent=(SHARD, OTHER))])
    assert (nobody.started, nobody.amount_at_risk) == (None, None)


def test_latency_is_of_the_sagas_that_ended_in_the_interval() -> None:
    made = Made()
    made.took(SHARD, "saga_duration_seconds", *[30.0] * 500)  # long ago
    before = made.sample()
    made.took(SHARD, "saga_duration_seconds", *[0.02] * 98)
    made.took(OTHER, "saga_duration_seconds", 0.3, 0.4)
    made.after(2_000)
    found = figures([before, made.sample()]).latency
    assert found is not None
    assert found.ended == 100
    assert found.p50_ms is not None
    assert found.p99_ms is not None
    assert 10 < found.p50_ms <= 25
    assert 250 < found.p99_ms <= 500


def test_where_nothing_ended_there_is_no_latency() -> None:
    found = two(Made()).latency
    assert found is not None
    assert (found.ended, found.p50_ms, found.p99_ms) == (0, None, None)


def test_what_lies_beyond_the_last_edge_is_that_edge() -> None:
    """More than a minute is all that is known."""
    made = Made()
    made.took(SHARD, "saga_duration_seconds", 300.0)
    found = two(made).latency
    assert found is not None
    assert found.p50_ms == BY_NAME["saga_duration_seconds"].edges[-1] / 1e6 == 60_000


@given(
    st.lists(st.floats(0.001, 70), min_size=1, max_size=200),
    st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_is_of(
    values: list[float], share: float
) -> None:
    """Against the exact one: never in another bucket."""
    edges = [edge / 1e9 for edge in BY_NAME["saga_duration_seconds"].edges]
    buckets = {edge: float(sum(v <= edge for v in values)) for edge in (*edges, float("inf"))}
    found = quantile(buckets, share)
    assert found is not None
    at = min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))
    exact = sorted(values)[at]
    above = [edge for edge in edges if edge >= exact]
    upper = above[0] if above else edges[-1]
    below = [edge for edge in edges if edge < exact]
    assert (below[-1] if below else 0.0) <= found <= upper


def test_a_loop_is_as_busy_as_between_its_heartbeats() -> None:
    """The gauge is as old as the beat: by the reader's clock it would be half or twice as much."""
    made = Made()
    made.rows[SHARD]["silent_ms"] = 900
    before = made.sample()
    made.after(2_000)
    made.rows[SHARD]["silent_ms"] = 0
    made.count(SHARD, "saga_event_loop_busy_seconds_total", 1.45)  # in 2.9 s
    made.count(OTHER, "saga_event_loop_busy_seconds_total", 7)  # a clock that cannot be
    busy = [shard.busy for shard in figures([before, made.sample()]).shards]
    assert busy == [0.5, 1.0]


def test_between_two_beats_nothing_is_known_of_a_loop() -> None:
    made = Made()
    before = made.sample()
    made.after(500)
    made.rows[SHARD]["silent_ms"] = 500
    assert figures([before, made.sample()]).shards[0].busy is None


def test_pools_are_seen_by_all_shards_together() -> None:
    made = Made()
    for place in (SHARD, OTHER):
        made.gauge(place, "saga_pool_outstanding", 30, service="payment")
        made.gauge(place, "saga_pool_credit", 256, service="payment")
        made.gauge(place, "saga_pool_waiting", 4, service="payment")
    before = made.sample()
    for place in (SHARD, OTHER):
        made.count(place, "saga_pool_commands_total", 0, service="payment")
        made.count(place, "saga_pool_wait_seconds_total", 0, service="payment")
    before = made.sample()
    for place in (SHARD, OTHER):
        made.count(place, "saga_pool_commands_total", 100, service="payment")
        made.count(place, "saga_pool_wait_seconds_total", 0.5, service="payment")
    made.after(2_000)
    inventory, payment, _ = figures([before, made.sample()]).pools
    assert (payment.active, payment.standbys, payment.gone) == (1, 1, 0)
    assert (payment.busy, payment.credit, payment.waiting) == (60, 512, 8)
    assert (payment.commands, payment.wait_ms) == (100.0, 5.0)
    assert (inventory.busy, inventory.commands, inventory.wait_ms) == (None, None, None)


def test_why_sagas_turned_back_is_told_by_cause() -> None:
    made = Made()
    made.count(SHARD, "saga_turned_back_total", 0, saga="checkout", cause="declined")
    made.count(SHARD, "saga_turned_back_total", 0, saga="checkout", cause="deadline")
    before = made.sample()
    made.count(SHARD, "saga_turned_back_total", 6, saga="checkout", cause="declined")
    made.after(2_000)
    assert figures([before, made.sample()]).turned_back == {"declined": 3.0}


def test_a_cluster_that_is_well_needs_nobody() -> None:
    found = two(Made())
    assert found.needs == []
    assert found.ready
    assert found.processes == {"up": 7, "standby": 3}
    assert found.books is None  # nobody watches them here: unknown, not balanced


def test_what_needs_a_person_is_said_the_most_urgent_first() -> None:
    """Money first, then who does not serve, then single sagas."""
    made = Made()
    made.gauge(("supervisor", 0), "saga_books_imbalance", 0, book="stock")
    made.gauge(("supervisor", 0), "saga_books_imbalance", -250, book="money")
    made.rows[OTHER]["state"] = "starting"
    made.gauge(SHARD, "saga_shard_mode", 0, mode="serving")
    made.gauge(SHARD, "saga_shard_mode", 1, mode="full")
    for index in (0, 1):
        made.rows["shipping", index]["state"] = "quarantined"
    made.facts = {"epoch": 1, "in_flight": 9, "compensating": 1, "stuck": 3}
    made.stuck = [stuck()]
    found = two(made)
    assert found.books == {"stock": 0, "money": 250}
    assert (found.in_flight, found.stuck) == (9, 3)
    assert [(kind, text.split(":")[0]) for kind, text in needs(found)] == [
        ("books", "the books do not balance"),
        ("shard", "shard 0 has no room on its disk, and takes nothing new"),
        ("shard", "shard 1 is starting"),
        ("process", "shipping-0 is quarantined"),
        ("process", "shipping-1 is quarantined"),
        ("pool", "nobody works for shipping"),
        ("stuck", "checkout43 249.99 RefundPayment for 3m4s, since 2023-11-14 22"),
        ("stuck", "2 more sagas are stuck; see"),
    ]
    assert "money by 250" in found.needs[0].text


def test_sagas_that_are_stuck_are_counted_where_they_cannot_be_listed() -> None:
    made = Made()
    made.facts = {**made.facts, "stuck": 1}
    assert needs(two(made)) == [
        ("stuck", "2 sagas are stuck; see: sagacity list --status stuck")  # one of each shard
    ]


@pytest.mark.parametrize(
    ("ms", "told"),
    [
        (-5, "0s"),
        (1_500, "1s"),
        (61_000, "1m1s"),
        (3_600_000, "1h0m"),
        (90_061_000, "1d1h"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(ms: int, told: str) -> None:
    assert room.duration(ms) == told


def test_all_that_is_read_is_declared() -> None:
    """A metric that changes its name would be read as nothing, for ever."""
    not_yet = {room.BOOKS} - set(BY_NAME)  # comes with the audit that runs beside
    for name in set(room.WANTED) - not_yet:
        assert name.removesuffix("_bucket") in BY_NAME, name


def test_what_scripts_get_reads_back_as_the_figures() -> None:
    """`top --once --json`: every figure by its name."""
    made = Made()
    made.facts = {**made.facts, "stuck": 1}
    made.stuck = [stuck(since_ms=None)]
    found = two(made)
    assert convert(json.loads(json.dumps(to_builtins(found))), Figures) == found
