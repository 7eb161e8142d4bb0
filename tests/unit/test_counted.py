"""What the engine tells its tally: each fact once, under words that the table of metrics has."""

import re
from pathlib import Path

from msgspec import Struct

from cluster import metrics
from cluster.meters import ShardMeters
from cluster.telemetry import get_logger
from sagacity import errors, wire
from sagacity.saga import Retry
from sagacity.slots import SLOTS
from sagacity.wire import DECLINED, FAILED, OK
from services.checkout import checkout
from shard import entries, loop
from shard.pools import Pool
from shard.process import MeteredTally
from shard.sagas import MS, Definition, Live
from shard.tally import PlainTally
from tests.architecture.floors import ROOT
from tests.unit.world import Rules, World

SERVICES = ("inventory", "payment", "shipping")


class End(Struct):
    """What was told of a saga's end; milliseconds."""

    outcome: str
    took: int
    exposed: int


class Remembering(PlainTally):
    """Keeps what was told of ends, too."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[End] = []

    def finished(self, saga: str, outcome: str, duration_ns: int, exposed_ns: int) -> None:
        super().finished(saga, outcome, duration_ns, exposed_ns)
        self.ends.append(End(outcome, duration_ns // MS, exposed_ns // MS))


class Remembered(World):
    """A world with such a tally."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.told = Remembering()
        super().__init__(rules)

    def _engine(self):  # type: ignore[no-untyped-def]  # as the world's
        self.tally = self.told
        return super()._engine()

    def answer(self, saga_id: str, *outcomes: int, after_ms: int = 10) -> None:
        """Answer a saga's commands, each some time after it was given."""
        for outcome in outcomes:
            self.after(after_ms)
            self.drive(saga_id, outcome)


def world(rules: Rules | None = None) -> Remembered:
    """Make one with a worker of each service."""
    made = Remembered(rules)
    made.after(1)
    made.step(*made.came(*SERVICES))
    return made


def sources(*places: str) -> str:
    """Give the text of our own code."""
    files = [file for place in places for file in sorted(ROOT.glob(place))]
    return "\n".join(Path(file).read_text() for file in files)


# -- words ----------------------------------------------------------------------------------


def test_every_word_under_which_something_is_counted_is_in_the_table() -> None:
    """A word that is not makes a series of its own, which no rule and no dashboard knows."""
    shard, router = sources("shard/*.py"), sources("router.py")
    absorbed = set(re.findall(r'absorbed\("(\w+)"\)', shard))
    faulted = set(re.findall(r'(?:faulted|faults\.add)\(\(?"(\w+)"', shard))
    assert absorbed <= set(metrics.SHARD_DUPLICATES)
    assert faulted <= set(metrics.SHARD_FAULTS)
    assert set(entries.CAUSES) == set(metrics.TURNING_CAUSES)
    assert (loop.STARTING, loop.SERVING, loop.FULL) == metrics.SHARD_MODES
    of_kinds = {kind.cause for kind in errors.BY_CODE.values()} | {errors.Stuck.cause}
    said = set(re.findall(r'cause="(\w+)"', shard))
    # A shard says with what it does not take a request; a router, of what it answers itself.
    assert said | of_kinds - {"not_taken"} == set(metrics.SHARD_REFUSALS)
    said = set(re.findall(r'cause="(\w+)"', router)) | {"down"}
    assert said | {"bug", "malformed", "no_outcome", "not_supported"} == set(
        metrics.ROUTER_REFUSALS
    )


# -- sagas ----------------------------------------------------------------------------------


def test_exposure_is_counted_from_the_first_success() -> None:
    """So long could a customer see half an order."""
    it = world()
    it.step(it.start("a"))
    it.answer("a", OK, OK, OK)
    assert it.told.ends == [End("completed", took=30, exposed=20)]


def test_a_saga_that_was_declined_at_once_was_never_half_done() -> None:
    """Nothing of it ever stood; a zero would make the quick ones look quicker."""
    it = world()
    it.step(it.start("a"))
    it.answer("a", DECLINED)
    assert [end.exposed // 1 < 0 for end in it.told.ends] == [True]
    assert it.told.counts["turned_back", "checkout", "declined"] == 1


def test_an_unknown_step_may_have_stood_from_the_start() -> None:
    """Its effect may be there since the command was sent; less would be a guess in our favour."""
    it = world(Rules(retry=Retry(attempts=1, timeout_ms=1_000)))
    it.step(it.start("a"))
    it.after(1_100)
    it.step(*it.beats())
    it.answer("a", OK)  # the compensation
    (end,) = it.told.ends
    assert end.outcome == "aborted"
    assert end.exposed == end.took == 1_110


def test_a_saga_that_goes_on_after_a_restart_counts_from_its_start() -> None:
    """When its first success came is not journalled."""
    it = world()
    it.step(it.start("a"))
    it.answer("a", OK)
    it.after(5)
    it.restart()
    it.step(*it.came(*SERVICES))
    it.answer("a", OK, OK)
    (end,) = it.told.ends
    assert end.exposed == end.took == 35


def test_a_retry_is_counted_when_it_is_given_out() -> None:
    """Not when it is decided: the budget may hold it back."""
    it = world()
    it.step(it.start("a"))
    it.answer("a", FAILED)
    key = ("retried", "ReserveInventory", "0")
    assert it.told.counts[key] == 0
    it.after(5_000)
    it.step(*it.beats())
    assert it.told.counts[key] == 1


def test_the_oldest_stuck_saga_is_known_by_when_it_became_so_also_after_a_restart() -> None:
    """A person reads its age at three in the morning."""
    it = world(Rules(retry=Retry(attempts=1, stuck_after=1)))
    it.step(it.start("a"))
    it.answer("a", OK, DECLINED, FAILED)
    since = dict(it.engine.state.stuck_since)
    assert list(since.values()) == [it.now.wall_ms]
    it.after(1_000)
    it.restart()
    assert it.engine.state.stuck_since == since
    it.step(*it.came(*SERVICES))
    it.after(5_000)
    it.step(*it.beats())
    it.answer("a", OK)
    assert it.engine.state.stuck_since == {}


def test_refusals_are_counted_by_why() -> None:
    """What a caller reads as code 11 has ten reasons, and each wants another hand."""
    it = world(Rules(inflight_max=1))
    it.step(it.start("a"))
    it.step(it.start("b"))
    it.step(it.start("a", user_id="u7"))
    it.step(it.ask(wire.SHOW, "nobody"))
    it.step(it.ask(wire.START, "a", b"?"))
    refused = {key[1]: n for key, n in it.told.counts.items() if key[0] == "refused"}
    assert refused == {"in_flight": 1, "conflict": 1, "unknown_saga": 1, "malformed": 1}


def test_turning_back_that_found_no_room_is_not_counted() -> None:
    """It is decided again when there is room; counted twice it would be two sagas."""
    meters = ShardMeters([checkout])
    tally = MeteredTally(meters, get_logger())
    tally.turned_back("checkout", "declined")
    tally.compensated("checkout", "ChargePayment", "declined")
    tally.forgot()
    tally.turned_back("checkout", "cancelled")
    assert sum(meters.turned_back.read().values()) == 0
    tally.committed(10, 2)
    assert meters.turned_back.read()["checkout", "cancelled"] == 1
    assert sum(meters.turned_back.read().values()) == 1
    assert sum(meters.compensations.read().values()) == 0
    assert meters.journal_commit_entries.read()[()] == ([0, 1, 0, 0, 0, 0, 0], 2)


def test_a_pool_counts_what_its_queue_waits() -> None:
    """All waits together over all commands is the mean, without an instant kept for each."""
    pool = Pool("inventory")
    definition = Definition(checkout, Retry())
    sagas = [
        Live(definition, n, f"s{n}", b"", b"", 1, 1, 1, 0, {}) for n in (1 << 10, 2 << 10, 3 << 10)
    ]
    pool.measure(1_000)
    pool.offer(sagas[0], 1_000)
    pool.measure(1_400)  # one waited 400
    pool.offer(sagas[1], 1_400)
    pool.offer(sagas[2], 1_400)
    assert pool.take() is sagas[0]
    pool.measure(2_000)  # two waited 600
    assert pool.take() is sagas[1]
    assert pool.take() is sagas[2]
    pool.measure(9_000)
    assert (pool.waited_ns, pool.given_out) == (400 + 2 * 600, 3)


def test_what_is_looked_at_now_and_then_is_the_pools_and_the_slots() -> None:
    """Gauges are read when they are served; the hot path keeps none of them."""
    engine = world().engine
    assert sorted(pool.service for pool in engine.pools()) == sorted(SERVICES)
    assert engine.slots == SLOTS
