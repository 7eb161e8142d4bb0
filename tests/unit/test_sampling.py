"""Sampling: what `top` asks of whom, how often, and what happens when nobody answers."""

import http.server
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.figures import Place, Scrape
from cluster.meters import ShardMeters
from cluster.sampling import (
    LIST_AGAIN_NS,
    STUCK_AGAIN_NS,
    STUCK_ASKED_MAX,
    STUCK_TOLD_MAX,
    Watcher,
    read_metrics,
    scrape_all,
)
from cluster.telemetry import render
from sagacity import wire
from sagacity.errors import NotTaken, SagacityError
from sagacity.saga import Retry
from services.checkout import checkout
from tests.unit.test_timeline import begun, drive, shown
from tests.unit.top_world import SECOND, WALL_MS, Made
from tests.unit.world import Rules


class Cluster:
    """The twin of a running cluster and of the client that asks it."""

    def __init__(self) -> None:
        self.made = Made()
        self.sagas: list[str] = []  # stuck ones, newest first
        self.asked: list[str] = []
        self.fault: SagacityError | None = None
        self.faulty_list = False
        self.urls = ["ipc:///a"]
        self.open = 0
        self.history = stuck_history()

    def watcher(self) -> Watcher:
        return Watcher(
            lambda: self.urls[-1],
            connect=self._connect,
            scrape=self._scraped,
            monotonic_ns=lambda: self.made.now_ns,
            wall_ns=lambda: WALL_MS * 1_000_000 + self.made.now_ns,
        )

    def get_stuck(self, *saga_ids: str) -> None:
        self.sagas = list(saga_ids)
        self.made.facts["stuck"] = len(saga_ids)

    def _connect(self, url: str) -> "Cluster":
        self.asked.append(url)
        self.open += 1
        return self

    def _scraped(self, ports: Mapping[Place, int]) -> Mapping[Place, Scrape]:
        return {place: s for place, s in self.made.scrapes().items() if place in ports}

    def status(self) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        self.asked.append("status")
        return self.made.status()

    def list(
        self, *, statuses: Iterable[str] = (), since_ms: int = 0, limit: int = 0
    ) -> dict[str, Any]:
        self.asked.append("list")
        if self.faulty_list:
            raise NotTaken("a shard is down")
        assert list(statuses) == ["stuck"]
        row = {"status": "COMPENSATING", "stuck": True, "amount": 24_999, "reason": "R"}
        return {"sagas": [{"saga_id": saga_id, **row} for saga_id in self.sagas]}

    def show(self, saga_id: str) -> dict[str, Any]:
        self.asked.append(f"show {saga_id}")
        return self.history

    def close(self) -> None:
        self.open -= 1


def stuck_history() -> dict[str, Any]:
    rules = Rules(retry=Retry(stuck_after=2, backoff_ms=1, backoff_max_ms=1))
    world = drive(begun(rules), (1, wire.OK), (1, wire.DECLINED))
    for _ in range(3):
        world.drive("a", wire.FAILED)
        world.after(1_000)
        world.step(*world.beats())
    return shown(world)


def test_a_second_look_gives_rates() -> None:
    cluster = Cluster()
    with cluster.watcher() as watcher:
        assert watcher.look().started is None
        cluster.made.count(("shard", 0), "saga_started_total", 8)
        cluster.made.after(2_000)
        assert watcher.look().started == 4.0
    assert cluster.open == 0
    # One more at first, to warm up; no list: nothing is stuck.
    assert cluster.asked == ["ipc:///a", "status", "status", "status"]


def test_stuck_sagas_are_told_with_the_step_that_does_not_succeed() -> None:
    cluster = Cluster()
    cluster.get_stuck("newer", "older")
    [older, newer] = cluster.watcher().look().stuck_sagas
    assert (older.saga_id, newer.saga_id) == ("older", "newer")
    assert (older.step, older.attempts, older.amount) == ("ReleaseReservation", 3, 24_999)
    assert older.since_ms == WALL_MS + 2


def test_watching_asks_little() -> None:
    """A list walks over all that is not final, a history is read from disk: both by the one thread
    that serves customers."""
    cluster = Cluster()
    cluster.get_stuck(*(f"s{n}" for n in range(50)))
    watcher = cluster.watcher()

    def asked(kind: str) -> int:
        return sum(each.startswith(kind) for each in cluster.asked)

    assert len(watcher.look().stuck_sagas) == STUCK_TOLD_MAX
    assert (asked("list"), asked("show")) == (1, STUCK_ASKED_MAX)
    cluster.made.after(1_000)
    watcher.look()
    assert asked("list") == 1
    while cluster.made.now_ns < STUCK_AGAIN_NS - 2 * LIST_AGAIN_NS:
        cluster.made.after(LIST_AGAIN_NS // 1_000_000)
        watcher.look()
    assert asked("show") == STUCK_TOLD_MAX  # each once
    cluster.made.after(STUCK_AGAIN_NS // 1_000_000)
    watcher.look()
    assert asked("show") == STUCK_TOLD_MAX + STUCK_ASKED_MAX  # its step may be another by now


def test_stuck_sagas_that_have_ended_are_forgotten() -> None:
    cluster = Cluster()
    cluster.get_stuck("a")
    watcher = cluster.watcher()
    assert len(watcher.look().stuck_sagas) == 1
    cluster.get_stuck()
    assert watcher.look().stuck_sagas == []


@pytest.mark.parametrize("how", ["a shard is down", "the list fails"])
def test_a_shard_that_is_down_does_not_hide_the_rest(how: str) -> None:
    """A list asks every shard and would wait for that one; the page does not."""
    cluster = Cluster()
    cluster.get_stuck("a")
    watcher = cluster.watcher()
    watcher.look()
    cluster.made.after(2 * LIST_AGAIN_NS // 1_000_000)
    if how == "a shard is down":
        cluster.made.rows["shard", 1]["state"] = "starting"
    else:
        cluster.faulty_list = True
    found = watcher.look()
    assert [saga.saga_id for saga in found.stuck_sagas] == ["a"]  # as last known
    assert any(need.text.startswith("shard 1 is starting") for need in found.needs) == (
        how == "a shard is down"
    )


def test_a_cluster_that_goes_away_is_an_error_and_looked_for_anew() -> None:
    """It may come back at another address; rates over the gap would be made up."""
    cluster = Cluster()
    watcher = cluster.watcher()
    watcher.look()
    cluster.fault = NotTaken("no cluster runs here")
    for _ in range(2):
        with pytest.raises(NotTaken):
            watcher.look()
    assert cluster.open == 0
    cluster.fault = None
    cluster.urls.append("ipc:///b")
    cluster.made.after(60_000)
    cluster.made.count(("shard", 0), "saga_started_total", 8)
    assert watcher.look().started is None
    cluster.made.after(1_000)
    assert watcher.look().started == 0.0
    assert cluster.asked[-4:] == ["ipc:///b", "status", "status", "status"]


def test_memory_does_not_grow_with_time() -> None:
    """A view may stand open for weeks."""
    cluster = Cluster()
    watcher = cluster.watcher()
    for _ in range(200):
        cluster.made.after(200)
        watcher.look()
    held = watcher._samples
    assert held[-1].at_ns - held[0].at_ns <= 11 * SECOND
    assert len(held) <= 53


# -- /metrics ------------------------------------------------------------------------------------


def test_what_a_process_serves_is_read_as_it_is() -> None:
    """The other way round than `telemetry` writes it."""
    meters = ShardMeters([checkout])
    meters.started.add(by=7)
    meters.finished.add(("checkout", "completed"), 5)
    meters.duration.observe(20_000_000)
    meters.shard_mode.source = lambda: {("serving",): 1}
    found = read_metrics(render(meters).decode())
    assert found.total("saga_started_total") == 7
    assert found.total("saga_finished_total", outcome="completed") == 5
    assert found.total("saga_finished_total", outcome="aborted") == 0
    assert found.total("saga_duration_seconds_bucket", le="0.01") == 0
    assert found.total("saga_duration_seconds_bucket", le="0.025") == 1
    assert found.total("saga_duration_seconds_bucket", le="+Inf") == 1
    assert found.total("saga_shard_mode", mode="serving") == 1
    assert found.total("saga_build_info") is None  # not wanted


@contextmanager
def serving(status: int, content: bytes) -> Iterator[int]:
    """Serve an answer on some port of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_who_serves_no_metrics_is_left_out_and_the_others_are_not() -> None:
    """A port may be another program's by now, or nobody's."""
    with (
        serving(200, b"saga_started_total 3.0\n") as good,
        serving(500, b"saga_started_total 3.0\n") as broken,
        serving(200, b"saga_started_total{ what\n") as garbage,
        serving(200, b"\xff\xfe") as binary,
    ):
        ports = {("shard", at): port for at, port in enumerate((good, broken, garbage, binary, 1))}
        found = scrape_all(ports)
    assert list(found) == [("shard", 0)]
    assert found["shard", 0].total("saga_started_total") == 3
    assert scrape_all({}) == {}
