"""The load of a bench: what is dealt, when it starts, what its latency is counted from."""

from collections import Counter
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from bench.carts import COLD, HOT, Carts, CartsOfShard, catalog
from bench.generator import play
from bench.histogram import Histogram
from bench.mix import COMPLETES, DECK, DECLINE, NO_CARRIER, OUT_OF_STOCK, Mix, check, deck
from bench.schedule import EVEN, POISSON, ClosedLoop, Loop, OpenLoop, arrivals
from bench.tally import Tally, Told, together
from config.load import load_catalog
from sagacity import wire
from sagacity.errors import Malformed
from sagacity.messages import Checkout
from sagacity.slots import SlotMap
from tests.unit.stalling import MS, SECOND, StallingCluster

RATE = 1000.0
BEGIN = SECOND
STALL = (BEGIN + SECOND, BEGIN + 2 * SECOND)


def open_loop(duration_s: float, *, grace: int = 10 * SECOND) -> OpenLoop:
    end = BEGIN + round(duration_s * SECOND)
    return OpenLoop(arrivals(RATE, EVEN), begin=BEGIN, sagas=None, end=end, grace=grace)


def played(loop: Loop, cluster: StallingCluster, *, stops: int | None = None) -> Told:
    """Play a loop against a cluster; broken off at an instant, if one is given."""
    tally = Tally(BEGIN, SECOND, open_loop=isinstance(loop, OpenLoop))
    play(
        loop,
        cluster,
        Carts(Mix(), 1),
        tally,
        clock=cluster.clock,
        stopping=lambda: stops is not None and cluster.now >= stops,
    )
    return tally.end(0, 0.0, 0)


def test_the_deck_holds_the_shares_exactly() -> None:
    """A tenth declined that is 9.7 % in this run and 10.4 in the next cannot be compared."""
    kinds = deck(Mix(decline=10, out_of_stock=2.5, no_carrier=1, hot_sku=30), seed=7)
    assert len(kinds) == DECK
    fates = Counter(kind.fate for kind in kinds)
    assert fates == {COMPLETES: 8650, DECLINE: 1000, OUT_OF_STOCK: 250, NO_CARRIER: 100}
    assert sum(kind.hot for kind in kinds) == 3000
    assert not any(kind.hot and kind.fate == OUT_OF_STOCK for kind in kinds)


def test_the_same_seed_deals_the_same_deck_and_another_another() -> None:
    """A run is repeated by its seed; two generators must not go in step."""
    mix = Mix(decline=10)
    assert deck(mix, 1) == deck(mix, 1) != deck(mix, 2)


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        (Mix(decline=-1), "--decline is a share"),
        (Mix(out_of_stock=100.5), "--out-of-stock is a share"),
        (Mix(no_carrier=float("nan")), "--no-carrier is a share"),
        (Mix(hot_sku=float("inf")), "--hot-sku is a share"),
        (Mix(decline=12.345), "two decimals"),
        (Mix(decline=60, out_of_stock=30, no_carrier=10.01), "together 100.01 %"),
        (Mix(hot_sku=70, out_of_stock=40), "together 110 %"),
    ],
)
def test_an_impossible_mix_is_refused_with_words(mix: Mix, says: str) -> None:
    """A mix that is quietly made into another one gives figures of something else."""
    with pytest.raises(Malformed) as refused:
        check(mix)
    assert says in refused.value.text


@pytest.mark.parametrize("mix", [Mix(), Mix(100), Mix(50, 30, 20), Mix(hot_sku=100), Mix(0.07)])
def test_a_mix_at_its_edges_is_taken(mix: Mix) -> None:
    """All declined is a question that people ask."""
    check(mix)
    assert len(deck(mix, 1)) == DECK


def test_every_checkout_that_is_dealt_is_well_formed_and_has_an_id_of_its_own() -> None:
    """Bodies are cut together from bytes: a wrong length would be malformed at the shard."""
    carts = Carts(Mix(decline=10, out_of_stock=10, no_carrier=10, hot_sku=50), 3)
    dealt = [carts.deal() for _ in range(DECK + 10)]
    read = [wire.BodyReader[Checkout](Checkout).decode(body) for _, body in dealt]
    assert [body.saga_id for body in read] == [saga_id for saga_id, _ in dealt]
    assert len({body.saga_id for body in read}) == len(dealt)
    skus = Counter(item.sku for body in read for item in body.items)
    assert skus[HOT] in range(4990, 5011)
    assert set(skus) <= {HOT, "sku_out_of_stock", *COLD}
    assert {"u42", "u999"} == {body.user_id for body in read}


def test_without_a_hot_sku_everyone_buys_the_examples_cart() -> None:
    """Figures of other carts are not those that the table compares."""
    _, body = Carts(Mix(), 1).deal()
    read = wire.BodyReader[Checkout](Checkout).decode(body)
    assert [(item.sku, item.quantity) for item in read.items] == [("abc123", 2), ("xyz789", 1)]


def test_the_catalog_holds_all_that_is_bought(tmp_path: Path) -> None:
    """A SKU that is missing is out of stock, and the run one of declines."""
    file = tmp_path / "catalog.toml"
    file.write_text(catalog())
    stock = load_catalog(file).stock
    assert {HOT, "abc123", "xyz789", *COLD} == {sku for sku, units in stock.items() if units}


def test_even_arrivals_of_several_generators_lie_between_each_other() -> None:
    """Three generators that start in step are bursts of three, not the rate that was asked for."""
    parts = [list(islice(arrivals(300.0, EVEN, part=part, parts=3), 100)) for part in range(3)]
    every = sorted(at for part in parts for at in part)
    assert every == list(islice(arrivals(300.0, EVEN), 300))


def test_poisson_arrivals_keep_the_rate_and_are_fixed_by_the_seed() -> None:
    """Arrivals that depend on the run are not fixed beforehand."""
    first = list(islice(arrivals(RATE, POISSON, seed=5), 20_000))
    assert first == list(islice(arrivals(RATE, POISSON, seed=5), 20_000))
    assert first != list(islice(arrivals(RATE, POISSON, seed=6), 20_000))
    assert 0.97 < first[-1] / (20 * SECOND) < 1.03


def test_a_stall_shows_in_the_latencies_of_the_open_loop() -> None:
    """Coordinated omission: all who come during the stall wait for its end, not one of them."""
    cluster = StallingCluster(STALL)
    told = played(open_loop(4.0), cluster)
    assert told.completed == 4000
    found = Histogram.decode(told.latency).percentiles()
    assert found.p50 < 2.0
    # A quarter of all arrivals fell into the second that nothing was answered in: p90 is 600 ms.
    assert 590 < found.p90 < 610
    assert 950 < found.p99 < 1000
    # They were started in time all the same: the generator waited for nobody.
    assert told.late_starts == 0


def test_the_closed_loop_hides_the_same_stall() -> None:
    """Why there is an open one: one in flight is stalled once, and p99 says nothing of it."""
    told = played(ClosedLoop(1, sagas=None, end=BEGIN + 4 * SECOND), StallingCluster(STALL))
    found = Histogram.decode(told.latency).percentiles()
    assert found.p99 < 2.0
    assert found.max > 990


def test_a_late_start_counts_from_the_instant_that_was_meant() -> None:
    """A generator that is late itself must not make the cluster look faster."""
    cluster = StallingCluster()
    loop = open_loop(1.0)
    cluster.now = BEGIN + SECOND // 2  # the generator begins half a second late
    told = played(loop, cluster)
    assert told.completed == 1000
    assert told.late_starts in range(480, 510)
    assert Histogram.decode(told.late).percentiles().max > 490
    assert Histogram.decode(told.latency).percentiles().max > 490


def test_arrivals_that_the_generator_never_reached_are_said() -> None:
    """A rate that could not be made must not pass for one that was."""
    loop = open_loop(1.0, grace=SECOND)
    assert loop.due(BEGIN + 3 * SECOND, 0) == []
    assert (loop.over, loop.left_out) == (True, 1000)


def test_the_closed_loop_never_has_more_in_flight_than_asked() -> None:
    """`--in-flight 7` is seven."""
    loop = ClosedLoop(7, sagas=20, end=None)
    assert len(loop.due(1, 0)) == 7
    assert loop.due(1, 7) == []
    assert len(loop.due(2, 4)) == 3
    assert len(loop.due(3, 0)) == 7
    assert len(loop.due(4, 0)) == 3
    assert loop.over


def test_a_refusal_is_counted_and_its_place_rests_for_as_long_as_it_says() -> None:
    """A closed loop that asks again at once measures how fast a cluster says no."""
    cluster = StallingCluster(refuses=4)
    told = played(ClosedLoop(1, sagas=8, end=None), cluster)
    assert (told.completed, told.refused, told.errors_by) == (6, 2, {})
    gaps = [after - before for before, after in zip(cluster.asked, cluster.asked[1:], strict=False)]
    assert [gap // MS for gap in gaps] == [51, 1, 1, 1, 51, 1, 1]
    assert Histogram.decode(told.refusal).percentiles().max < 2.0


def test_a_run_that_is_broken_off_drains_and_keeps_what_it_measured() -> None:
    """Ctrl-C after an hour must not throw the hour away."""
    told = played(open_loop(60.0), StallingCluster(), stops=BEGIN + SECOND)
    assert 990 <= told.completed <= 1010
    assert told.errors_by == {}


def test_what_never_comes_back_is_given_up_and_said() -> None:
    """A cluster that is gone ends the run; what was open is an error, not forgotten."""
    never = StallingCluster((BEGIN, BEGIN + 1000 * SECOND))
    told = played(ClosedLoop(5, sagas=100, end=None), never, stops=BEGIN + SECOND)
    assert told.errors_by == {"given up": 5}
    assert told.last == 0  # waiting for them is no part of the run


def test_histograms_of_several_generators_add_up_to_one_of_all() -> None:
    """Percentiles cannot be averaged; a merged histogram must be what one alone would hold."""
    whole = Histogram()
    tallies = []
    for part in range(3):
        tally = Tally(0, SECOND, open_loop=False)
        for at in range(1000):
            took = (1 + at * (part + 1)) * MS // 10
            whole.record_ns(took)
            tally.finished([0], [], took)
        tallies.append(msgspec.json.decode(msgspec.json.encode(tally.end(5, 1.0, 0)), type=Told))
    told = together(tallies)
    assert Histogram.decode(told.latency).percentiles() == whole.percentiles()
    assert (told.completed, told.cpu_ns, told.within) == (3000, 15, 3000)
    assert sum(told.per_second.finished) == 3000


def test_a_gap_shows_in_tenths_of_a_second_of_the_first_ten_minutes() -> None:
    """300 ms without an outcome are none in whole seconds; a week in tenths is no file to read."""
    tallies = [Tally(BEGIN, SECOND, open_loop=False) for _ in range(2)]
    for after_ms in (0, 99, 100, 950, 1000, 599_950, 601_000, 602_000):
        for tally in tallies:
            tally.finished([BEGIN], [], BEGIN + after_ms * MS)
    told = together([tally.end(5, 1.0, 0) for tally in tallies])
    assert told.per_tenth[:11] == [4, 2, 0, 0, 0, 0, 0, 0, 0, 2, 2]
    assert (len(told.per_tenth), told.per_tenth[-2:]) == (6001, [2, 4])
    assert told.gap_ns == 598_950 * MS


def test_a_histogram_keeps_each_value_to_a_thousandth_and_takes_what_is_absurd() -> None:
    """A percentile that is off by its bucket makes two good runs differ."""
    for value_us in (1, 17, 4_321, 999_999, 59_000_000):
        alone = Histogram()
        alone.record_ns(value_us * 1000)
        assert value_us <= alone.percentiles().p99 * 1000 <= value_us * 1.001 + 1
    absurd = Histogram()
    for duration in (-5, 0, 10**18):
        absurd.record_ns(duration)
    assert len(absurd) == 3
    assert Histogram().percentiles().max == 0.0


def test_a_generator_of_one_shard_asks_that_shard_alone() -> None:
    """So that each shard has its own timeline: whose outcomes stopped is seen, not guessed."""
    slots = SlotMap.even(3)
    carts = CartsOfShard(Mix(decline=10), 1, shard=2, shards=3)
    assert {slots.owner(carts.deal()[0]) for _ in range(200)} == {2}


def test_the_longest_time_without_an_outcome_is_told() -> None:
    """A gap is what clients see of a killed process; a mean over a second hides one of 0.9."""
    tally = Tally(0, SECOND, open_loop=False)
    for at_ms in (100, 150, 900, 950):
        tally.finished([0], [], at_ms * MS)
    told = tally.end(0, 0.0, 0)
    assert told.gap_ns == 750 * MS
    assert told.per_tenth == [0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    other = Told(per_tenth=[1], gap_ns=5)
    both = together([told, other])
    assert (both.gap_ns, both.per_tenth[:2]) == (750 * MS, [1, 2])
