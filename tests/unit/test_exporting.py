"""Exporting: every traced saga that ends is handed on once; nothing needs the extra but this."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from cluster import exporting
from cluster.exporting import Counts, Follower, Stopped
from cluster.spans import SagaSpans
from cluster.telemetry import configure_logging, get_logger
from sagacity import listing, wire
from sagacity.errors import Conflict, NoOutcome, NotTaken, SagacityError
from tests.unit.test_listing import card
from tests.unit.traced import PARENT, ended, shop
from tests.unit.world import World, bodies


class Shards:
    """A cluster of Worlds, asked as AsyncClient asks; it refuses what it is told to refuse."""

    def __init__(self, *worlds: World) -> None:
        self.worlds = worlds
        self.refusals: list[SagacityError] = []  # of pages
        self.histories_refused: list[SagacityError] = []
        self.most = 0
        self._open = 0

    async def traced(self, shard: int, place: int | None = None) -> dict[str, Any]:
        if self.refusals:
            raise self.refusals.pop(0)
        body = {"part": listing.TRACED, "before": place, "limit": 3}
        return self._ask(self.worlds[shard], wire.LIST, "0", wire.pack(body))

    async def show(self, saga_id: str) -> dict[str, Any]:
        self._open += 1
        self.most = max(self.most, self._open)
        await asyncio.sleep(0)  # others are asked meanwhile: how many are open is what is counted
        self._open -= 1
        if self.histories_refused:
            raise self.histories_refused.pop(0)
        (world,) = [each for each in self.worlds if each.engine.state.finished.find(saga_id)]
        return self._ask(world, wire.SHOW, saga_id, b"")

    def _ask(self, world: World, kind: int, target: str, body: bytes) -> dict[str, Any]:
        return bodies(world.step(world.ask(kind, target, body)))[0]


class Collector:
    """Takes sagas, or refuses so many times."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.ids: list[str] = []

    def send(self, sagas: Sequence[SagaSpans]) -> bool:
        if self.refuses:
            self.refuses -= 1
            return False
        self.ids += [str(each.saga.attributes["sagacity.saga.id"]) for each in sagas]
        return True


def follower(shards: Shards, collector: Collector, *, from_start: bool = True) -> Follower:
    indices = range(len(shards.worlds))
    log = get_logger()
    send = collector.send
    return Follower(shards, indices, send, log, from_start=from_start, again_s=0.0)


def test_every_traced_saga_that_ends_is_exported_once() -> None:
    """Page by page, of all shards, those of before and those that end meanwhile."""

    async def run() -> tuple[list[str], Counts]:
        left, right = shop("a", "b", "c", "d", "e"), shop("v")
        collector = Collector()
        following = follower(Shards(left, right), collector)
        while await following.turn():
            ended(right, f"w{len(collector.ids)}")
        ended(left, "f")
        assert not await following.turn()
        assert not await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert sorted(ids) == ["a", "b", "c", "d", "e", "f", "v", "w4"]
    assert counts == Counts(sagas=8, spans=16)


def test_without_more_it_begins_with_what_ends_from_now_on() -> None:
    """A cluster of years has millions behind it."""

    async def run() -> list[str]:
        world, collector = shop("old"), Collector()
        following = follower(Shards(world), collector, from_start=False)
        await following.turn()
        ended(world, "new")
        await following.turn()
        return collector.ids

    assert asyncio.run(run()) == ["new"]


def test_what_a_client_does_not_record_is_not_exported() -> None:
    """The flag is the client's decision for the whole trace; without a trace there is none."""

    async def run() -> list[str]:
        world, collector = shop("a"), Collector()
        ended(world, "unsampled", parent=PARENT[:-1] + "0")
        world.step(world.start("untraced"))
        world.drive("untraced", wire.DECLINED)
        ended(world, "b")
        following = follower(Shards(world), collector)
        while await following.turn():
            pass
        return collector.ids

    assert asyncio.run(run()) == ["a", "b"]


def test_a_shard_that_is_away_costs_time_and_no_saga() -> None:
    """The journal is the queue: what was not read is read later, and once."""

    async def run() -> tuple[list[str], Counts]:
        shards, collector = Shards(shop("a", "b")), Collector()
        following = follower(shards, collector)
        shards.refusals = [NoOutcome("away")]
        assert await following.turn()  # there may be more
        assert collector.ids == []
        await following.turn()
        await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert ids == ["a", "b"]
    assert (counts.sagas, counts.dropped, counts.lost) == (2, 0, 0)


def test_a_history_that_is_refused_is_asked_again_and_one_that_is_gone_is_counted() -> None:
    """Between page and history a shard may restart, or retention pass."""

    async def run() -> tuple[list[str], Counts]:
        shards, collector = Shards(shop("a", "b")), Collector()
        following = follower(shards, collector)
        shards.histories_refused = [NotTaken("busy"), Conflict("gone")]
        await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert ids == ["a"]
    assert (counts.sagas, counts.lost) == (1, 1)


def test_what_retention_has_taken_is_counted() -> None:
    """A collector that was away for a week."""

    async def run() -> Counts:
        world = shop()
        for index in range(5):
            world.engine.state.finished.add(card(index))
        world.engine.state.finished.forget(3)
        world.engine.state.forgotten = 3
        asked = world.ask(wire.LIST, "0", {"part": listing.TRACED, "before": 1})
        body = bodies(world.engine.step([asked], world.now, 9, 0))[0]
        assert (body["rows"], body["next"], body["lost"], body["left"]) == ([], 5, 2, 0)
        return Counts(lost=body["lost"])

    assert asyncio.run(run()) == Counts(lost=2)


def test_a_collector_that_is_back_in_time_gets_everything() -> None:
    """An export that is refused is tried again, with the same ids."""

    async def run() -> tuple[list[str], Counts]:
        collector = Collector(refuses=exporting.TRIES - 1)
        following = follower(Shards(shop("a")), collector)
        await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert (ids, counts) == (["a"], Counts(sagas=1, spans=2))


def test_an_exporter_that_raises_has_taken_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """It is another's code; the run goes on, and its saga with the next try."""

    class Raising(Collector):
        def send(self, sagas: Sequence[SagaSpans]) -> bool:
            if self.refuses:
                self.refuses -= 1
                raise RuntimeError("mark-user")
            return super().send(sagas)

    configure_logging("spans", 0)

    async def run() -> list[str]:
        collector = Raising(refuses=2)
        await follower(Shards(shop("a")), collector).turn()
        return collector.ids

    assert asyncio.run(run()) == ["a"]
    said = capfd.readouterr().err
    assert said.count("exporter_raised") == 2
    assert "mark-user" not in said


def test_what_no_try_could_export_is_dropped_and_counted() -> None:
    """And the run goes on with the next."""

    async def run() -> tuple[list[str], Counts]:
        world, collector = shop("a"), Collector(refuses=exporting.TRIES)
        following = follower(Shards(world), collector)
        await following.turn()
        ended(world, "b")
        await following.turn()
        return collector.ids, following.counts

    ids, counts = asyncio.run(run())
    assert (ids, counts) == (["b"], Counts(sagas=1, spans=2, dropped=1))


def test_a_run_says_what_it_has_done() -> None:
    """Dropped and lost ones, too: who reads traces must know what is not there."""
    counts = Counts(sagas=2, spans=8, dropped=1, lost=3)
    said = exporting.summary(counts, as_json=False)
    assert said == "2 sagas exported, 8 spans; 1 sagas dropped, 3 lost"
    assert json.loads(exporting.summary(counts, as_json=True)) == {
        "type": "spans",
        "sagas": 2,
        "spans": 8,
        "dropped": 1,
        "lost": 3,
    }


def test_what_it_holds_and_asks_at_once_is_bounded() -> None:
    """A shard tells four histories a turn: checkouts go on in between."""

    async def run() -> int:
        shards = Shards(shop(*(f"s{at}" for at in range(9))))
        following = follower(shards, Collector())
        while await following.turn():
            pass
        return shards.most

    assert asyncio.run(run()) <= exporting.ASKED_AT_ONCE


def test_it_ends_when_it_is_told_to_wherever_it_is() -> None:
    """SIGTERM while a collector is away must not wait for it."""

    async def run() -> None:
        following = follower(Shards(shop("a")), Collector(refuses=10**9))
        following.stopping.set()
        with pytest.raises(Stopped):
            await following.turn()
        with pytest.raises(Stopped):
            await following.wait(0)

    asyncio.run(run())


@pytest.mark.parametrize("before", [-1, 1 << 62, -(2**63)])
def test_a_place_that_no_page_named_does_no_harm(before: int) -> None:
    """It comes from outside, or from before a loss that was accepted."""
    world = shop("a")
    asked = {"part": listing.TRACED, "before": before}
    page = bodies(world.step(world.ask(wire.LIST, "0", asked)))[0]
    assert (page["next"], page["left"], page["lost"]) == (1, 0, 0)


def test_pages_after_a_restart_go_on_where_they_were() -> None:
    """An ordinal is a saga's place for ever."""
    world = shop("a", "b")
    before = bodies(world.step(world.ask(wire.LIST, "0", {"part": "traced", "before": 1})))
    world.restart()
    again = bodies(world.step(world.ask(wire.LIST, "0", {"part": "traced", "before": 1})))
    assert again == before
    assert before[0]["rows"] == ["b"]


# -- without the extra -----------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from cluster.cli import main
"""


def test_without_the_extra_the_command_says_what_to_install() -> None:
    """Exit code 2, as all that its caller can mend."""
    code = WITHOUT + "sys.exit(main(['spans', '--once']))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert b"pip install 'sagacity[otel]'" in done.stderr
    assert b"Traceback" not in done.stderr


def test_nothing_else_needs_the_extra() -> None:
    """Nor loads it where it is there: a process starts in a blink."""
    code = (
        WITHOUT
        + "import cluster.exporting, cluster.commands, shard.process, services.pool, router\n"
        "import sagacity.client, sagacity.worker, sagacity.testing, json\n"
        "print(json.dumps([n for n in sys.modules if n.startswith('opentelemetry.')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []
