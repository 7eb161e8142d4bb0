"""Telemetry: what each role serves is what the table says; log lines are JSON; ports are honest."""

import errno
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from cluster import telemetry
from cluster.meters import (
    AuditorMeters,
    Meters,
    RouterMeters,
    ShardMeters,
    SupervisorMeters,
    WorkerMeters,
)
from cluster.metrics import COUNTER, HISTOGRAM, METRICS
from cluster.telemetry import (
    LINES_MAX,
    MetricsServer,
    PortTaken,
    RateLimit,
    configure_logging,
    get_logger,
    guarded,
    render,
)
from sagacity.errors import Malformed, broken
from sagacity.saga import Retry, Saga
from services.checkout import checkout
from shard.process import MeteredTally
from shard.sagas import Definition, Live

COMMANDS = [("ReserveInventory", "action"), ("ReserveInventory", "compensation")]

PROMISED = """
    saga_started_total saga_finished_total{saga,outcome} saga_duration_seconds
    saga_active{state} saga_oldest_active_timestamp_seconds
    saga_step_attempts_total{step,direction,outcome} saga_step_duration_seconds{step,direction}
    saga_compensations_total{saga,step,cause} saga_duplicates_total{where}
    saga_amount_at_risk saga_journal_commit_duration_seconds saga_journal_records_total
    saga_journal_size_bytes saga_recovery_duration_seconds saga_recovered_total
    saga_router_requests_total{kind,outcome} saga_router_shard_inflight{shard}
    saga_worker_busy saga_worker_capacity saga_worker_queue_wait_seconds
    saga_event_loop_lag_seconds saga_build_info{version,python} saga_faults_total{what}
    saga_exposure_seconds{outcome} saga_oldest_stuck_timestamp_seconds
    saga_retries_total{step,direction} saga_turned_back_total{saga,cause} saga_refused_total{cause}
    saga_journal_commit_entries saga_shard_mode{mode} saga_shard_epoch saga_shard_slots
    saga_pool_workers{service} saga_pool_credit{service} saga_pool_outstanding{service}
    saga_pool_waiting{service} saga_pool_commands_total{service}
    saga_pool_wait_seconds_total{service} saga_event_loop_busy_seconds_total
    saga_processes{process,state} saga_process_exits_total{process}
    saga_books_imbalance{book} saga_books_round_timestamp_seconds saga_books_round_duration_seconds
    saga_books_history_timestamp_seconds saga_books_sagas_total
"""


def meters_of(role: str) -> Meters:
    """Make the meters that a role serves."""
    sagas: list[Saga] = [checkout]
    made = (
        SupervisorMeters(["router", "shard"]),
        ShardMeters(sagas),
        RouterMeters(shards=2),
        WorkerMeters(COMMANDS),
        AuditorMeters(),
    )
    return next(meters for meters in made if meters.role == role)


def families_of(meters: Meters) -> dict[str, Family]:
    """Scrape, and read with the reader of the format's own library."""
    families = text_string_to_metric_families(render(meters).decode())
    return {family.name: family for family in families}


def value(meters: Meters, name: str, **labels: str) -> float:
    """Scrape one sample."""
    for family in families_of(meters).values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    raise AssertionError(f"{name}{labels} is not served")


@pytest.fixture
def server() -> Iterator[tuple[MetricsServer, str]]:
    """Serve a shard's metrics and two routes."""
    made = MetricsServer(
        ShardMeters([checkout]),
        {
            "/healthz": lambda: (503, "text/plain", b"starting\n"),
            "/broken": lambda: 1 // 0,  # type: ignore[dict-item,return-value]  # a bug
        },
    )
    url = f"http://127.0.0.1:{made.start()}"
    yield made, url
    made.stop()


@pytest.mark.parametrize("role", ["shard", "router", "worker", "supervisor", "auditor"])
def test_each_role_serves_exactly_what_the_table_says(role: str) -> None:
    """Dashboards and alerts are written against SPEC 7, not against what happens to be served."""
    served = families_of(meters_of(role))
    promised = [metric for metric in METRICS if role in metric.roles]
    assert sorted(served) == sorted(metric.name.removesuffix("_total") for metric in promised)
    for metric in promised:
        family = served[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.label_names)
            for label in metric.labels:
                assert label.known_from or sample.labels[label.name] in label.values
        if metric.kind == HISTOGRAM:
            edges = {s.labels["le"] for s in family.samples if s.name.endswith("_bucket")}
            assert edges == {*(repr(edge / metric.scale) for edge in metric.edges), "+Inf"}


def test_the_table_has_every_name_and_label_of_the_specification() -> None:
    """SPEC 7 word for word; what is more must be said here, too."""
    stated = [m.name + f"{{{','.join(m.label_names)}}}" if m.labels else m.name for m in METRICS]
    promised = PROMISED.split()
    assert sorted(stated) == sorted(promised)


def test_counters_end_in_total_and_edges_ascend() -> None:
    """Conventions that queries rely on; one second is an edge wherever sagas are timed."""
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == COUNTER)
        assert list(metric.edges) == sorted(set(metric.edges))
        assert bool(metric.edges) == (metric.kind == HISTOGRAM)
        assert not metric.name.endswith("_seconds") or not metric.edges or 10**9 in metric.edges
        for label in metric.labels:
            assert bool(label.values) != bool(label.known_from)
            assert len(label.values) == len(set(label.values))


def test_zeros_are_served_from_the_start() -> None:
    """A rate over a series that appears with its first event misses that event."""
    shard, router, worker = (meters_of(role) for role in ("shard", "router", "worker"))
    assert value(shard, "saga_started_total") == 0
    assert value(shard, "saga_finished_total", saga="checkout", outcome="aborted") == 0
    assert value(shard, "saga_active", state="stuck") == 0
    labels = {"step": "ChargePayment", "direction": "compensation"}
    assert value(shard, "saga_step_attempts_total", **labels, outcome="timed_out") == 0
    assert value(shard, "saga_step_duration_seconds_count", **labels) == 0
    labels = {"saga": "checkout", "step": "CreateShipment", "cause": "cancelled"}
    assert value(shard, "saga_compensations_total", **labels) == 0
    assert value(router, "saga_router_requests_total", kind="show", outcome="answered") == 0
    assert value(router, "saga_router_shard_inflight", shard="1") == 0
    assert value(worker, "saga_duplicates_total", where="command") == 0


def test_what_is_counted_is_served() -> None:
    """Counts, durations and gauges, with and without labels."""
    meters = ShardMeters([checkout])
    meters.started.add()
    meters.started.add(by=2)
    meters.finished.add(("checkout", "completed"))
    meters.active.source = lambda: {("running",): 5}
    meters.journal_size.source = lambda: 4096
    assert value(meters, "saga_started_total") == 3
    assert value(meters, "saga_finished_total", saga="checkout", outcome="completed") == 1
    assert value(meters, "saga_active", state="running") == 5
    assert value(meters, "saga_active", state="compensating") == 0
    assert value(meters, "saga_journal_size_bytes") == 4096
    python = ".".join(str(part) for part in sys.version_info[:3])
    assert value(meters, "saga_build_info", version="0.1.0", python=python) == 1


def test_what_was_decided_and_found_no_room_is_not_counted() -> None:
    """11: started + recovered = finished + running, also after a full disk."""
    meters = ShardMeters([checkout])
    tally = MeteredTally(meters, get_logger())
    tally.started("checkout")
    tally.finished("checkout", "completed", 1_000, 900)
    assert value(meters, "saga_started_total") == 0
    tally.forgot()
    tally.started("checkout")
    tally.committed(10, 1)
    tally.finished("checkout", "completed", 1_000, 900)
    tally.committed(10, 1)
    assert value(meters, "saga_started_total") == 1
    assert value(meters, "saga_finished_total", saga="checkout", outcome="completed") == 1
    assert value(meters, "saga_duration_seconds_count") == 1


def test_a_duration_on_an_edge_is_below_it() -> None:
    """`le` means less or equal: a saga of exactly one second has met the objective."""
    meters = ShardMeters([checkout])
    for duration in (1_000_000_000, 1_000_000_001, 10**15):
        meters.duration.observe(duration)
    assert value(meters, "saga_duration_seconds_bucket", le="0.5") == 0
    assert value(meters, "saga_duration_seconds_bucket", le="1.0") == 1
    assert value(meters, "saga_duration_seconds_bucket", le="2.5") == 2
    assert value(meters, "saga_duration_seconds_bucket", le="+Inf") == 3
    assert value(meters, "saga_duration_seconds_count") == 3
    assert value(meters, "saga_duration_seconds_sum") == pytest.approx(1_000_002.000000001)


def test_a_scrape_while_counting_goes_on_is_consistent() -> None:
    """The loop never waits for a scrape; a scrape may see any moment, but one that was."""
    meters = ShardMeters([checkout])
    begun, done = threading.Event(), threading.Event()

    def count() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            meters.started.add()
            meters.duplicates.add((f"place_{turn % 50}",))
            meters.duration.observe(turn % 3 * 10**9)
            meters.step_duration.observe(turn, (f"step_{turn % 50}", "action"))
            begun.set()

    owner = threading.Thread(target=count)
    owner.start()
    try:
        assert begun.wait(10)
        seen = 0.0
        for _ in range(5):
            families = families_of(meters)
            started = families["saga_started"].samples[0].value
            assert started >= seen
            seen = started
            buckets = [s for s in families["saga_duration_seconds"].samples if "le" in s.labels]
            counts = [bucket.value for bucket in buckets]
            assert counts == sorted(counts)
    finally:
        done.set()
        owner.join()


def test_metrics_and_routes_are_served_over_http(server: tuple[MetricsServer, str]) -> None:
    """A scraper needs the content type; /healthz needs a status of its own."""
    _, url = server
    with urlopen(f"{url}/metrics?x=1") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b"saga_started_total 0.0" in answer.read()
    for path, status in (("/healthz", 503), ("/nothing", 404)):
        with pytest.raises(HTTPError) as refused:
            urlopen(url + path)
        assert refused.value.code == status
        refused.value.close()


def test_a_gauge_that_fails_fails_the_scrape_and_not_the_process(
    server: tuple[MetricsServer, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The scraper sees `up == 0`, the log says why, the next scrape is tried."""
    _, url = server
    configure_logging("shard", 0)
    for _ in range(2):
        with pytest.raises(HTTPError) as refused:
            urlopen(url + "/broken")
        assert refused.value.code == 500
        refused.value.close()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["scrape_failed"] * 2
    assert "ZeroDivisionError" in lines[0]["exception"]


def test_garbage_on_the_port_does_no_harm(
    server: tuple[MetricsServer, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Port scanners exist; nothing of theirs belongs on our stderr."""
    _, url = server
    port = int(url.rpartition(":")[2])
    for garbage in (
        b"\x00\xff" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /metrics HTTP/1.0\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass
    with urlopen(f"{url}/metrics") as answer:
        assert answer.status == 200
    assert capfd.readouterr().err == ""


def test_a_taken_port_is_refused_clearly(server: tuple[MetricsServer, str]) -> None:
    """`up` takes a free one instead, or exits with 2: it must be able to tell."""
    _, url = server
    port = int(url.rpartition(":")[2])
    with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is taken") as caught:
        MetricsServer(Meters()).start(port)
    assert (caught.value.errno, caught.value.exit_code) == (errno.EADDRINUSE, 2)


def test_a_stopped_server_gives_its_port_back() -> None:
    """Also when it is stopped before it has served anything, or never started."""
    server = MetricsServer(Meters())
    server.stop()
    port = server.start()
    server.stop()
    server.stop()
    again = MetricsServer(Meters())
    assert again.start(port) == port
    again.stop()


def test_log_lines_are_json_with_who_and_when(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten processes write to one stderr: each line must say whose it is."""
    monkeypatch.delenv("SAGACITY_LOG", raising=False)
    early = get_logger(room="journal")
    log = configure_logging("shard", 3)
    log.info("journal_replayed", entries=7, body=b"\x00")
    early.bind(seq=9).warning("tail\ntorn")
    log.debug("unseen")
    captured = capfd.readouterr()
    first, second = (json.loads(line) for line in captured.err.splitlines())
    assert captured.out == ""
    assert first.pop("timestamp").endswith("Z")
    assert first.pop("pid") > 0
    assert first == {
        "event": "journal_replayed",
        "level": "info",
        "role": "shard",
        "index": 3,
        "entries": 7,
        "body": "b'\\x00'",
    }
    assert (second["event"], second["room"], second["seq"]) == ("tail\ntorn", "journal", 9)


def test_the_level_comes_from_the_environment(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debug is for looking for a mistake, without another build or file."""
    for level, seen in (("debug", 4), ("INFO", 3), ("", 3), ("warning", 2), ("error", 1)):
        monkeypatch.setenv("SAGACITY_LOG", level)
        log = configure_logging("router", 0)
        for say in (log.debug, log.info, log.warning, log.error):
            say("said")
        assert len(capfd.readouterr().err.splitlines()) == seen
    monkeypatch.setenv("SAGACITY_LOG", "loud")
    with pytest.raises(Malformed, match="debug, info, warning, error, not 'loud'"):
        configure_logging("router", 0)


def test_a_lost_stderr_kills_nobody() -> None:
    """A supervisor that died has closed the pipe; its children have work to finish."""
    code = (
        "import os\n"
        "from cluster.telemetry import configure_logging\n"
        "log = configure_logging('shard', 0)\n"
        "os.close(2)\n"
        "log.info('said')\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert done.stdout == b"alive\n"


def test_the_heavy_libraries_are_loaded_only_when_needed() -> None:
    """Ten processes start at once on two cores: 300 ms each would be seen by every user."""
    code = (
        "import sys\n"
        "from cluster.meters import ShardMeters\n"
        "from cluster.telemetry import configure_logging, MetricsServer\n"
        "log = configure_logging('shard', 0)\n"
        "log.debug('unseen')\n"
        "ShardMeters().started.add()\n"
        "print({'structlog', 'prometheus_client', 'http.server'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert done.stdout == b"set()\n"


def test_of_one_event_a_bounded_number_of_lines_is_written_and_the_rest_counted() -> None:
    """A handler that raises at each command must not fill a disk; what was left out is told."""
    limit = RateLimit(lines_max=3, window_s=10.0)
    assert [limit.admit("raised", at) for at in (100.0, 101.0, 109.9)] == [0, 0, 0]
    assert [limit.admit("raised", 109.9) for _ in range(5)] == [None] * 5
    assert limit.admit("raised", 110.0) == 5
    assert [limit.admit("raised", 111.0) for _ in range(3)] == [0, 0, None]
    assert limit.admit("raised", 500.0) == 1
    assert limit.admit("raised", 501.0) == 0


def test_one_event_does_not_take_the_lines_of_another() -> None:
    """The one that matters comes in the middle of a storm."""
    limit = RateLimit(lines_max=1, window_s=10.0)
    assert [limit.admit("raised", 1.0) for _ in range(3)] == [0, None, None]
    assert limit.admit("disk_full", 1.0) == 0


def test_every_process_limits_its_lines_but_not_who_looks_for_a_mistake(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debug is asked for by a person, for a while."""
    monkeypatch.setenv("SAGACITY_LOG", "debug")
    log = configure_logging("shard", 0)
    for _ in range(LINES_MAX + 50):
        log.error("handler_raised")
        log.debug("step_succeeded")
    told = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert told.count("handler_raised") == LINES_MAX
    assert told.count("step_succeeded") == LINES_MAX + 50
    configure_logging("shard", 0).error("handler_raised")
    assert "held_back" not in capfd.readouterr().err


def test_the_line_after_a_storm_says_how_many_were_held_back(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads a log later must not take a hundred for all."""
    monkeypatch.delenv("SAGACITY_LOG", raising=False)
    log = configure_logging("shard", 0)
    monkeypatch.setattr(telemetry._root, "limit", RateLimit(lines_max=1, window_s=0.0))
    log.warning("first")
    monkeypatch.setattr(telemetry._root, "limit", Late(7))
    log.warning("second", text="x")
    first, second = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert "held_back" not in first
    assert (second["held_back"], second["text"]) == (7, "x")


class Late(RateLimit):
    """A limit that has held back so many."""

    def __init__(self, held: int) -> None:
        super().__init__()
        self._held = held

    def admit(self, event: str, now_s: float) -> int:
        return self._held


@pytest.mark.parametrize("error", [ValueError("mark-user"), KeyError("mark-user")])
def test_a_bug_that_ends_a_process_is_one_line_without_the_words_of_an_exception(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    """They may quote an order; type and place are what helps. And no line is other than JSON."""
    configure_logging("router", 0)

    def main() -> int:
        raise error

    assert guarded(main) == 1
    (line,) = capfd.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["error"]) == ("bug_found", type(error).__name__)
    assert said["at"][-1].endswith(" main")
    assert "mark-user" not in line
    assert guarded(lambda: 7) == 7


def test_a_broken_invariant_tells_its_words(capfd: pytest.CaptureFixture[str]) -> None:
    """They are ours, and hold numbers and ids alone."""
    configure_logging("router", 0)

    def main() -> int:
        broken("a hole", seq=7)

    assert guarded(main) == 1
    assert json.loads(capfd.readouterr().err)["text"] == "a hole seq=7"


def test_a_fault_names_its_saga_and_its_trace(capfd: pytest.CaptureFixture[str]) -> None:
    """Who finds the line wants to see the saga; `show` and the collector know both ids."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    saga = Live(
        Definition(checkout, Retry()), 1, "s1", b"", b"", 1, 1, 1, 0, {"traceparent": parent}
    )
    tally = MeteredTally(ShardMeters([checkout]), configure_logging("shard", 0))
    tally.faulted("answer_contradicts", about=saga)
    tally.faulted("frame")
    first, second = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert (first["saga_id"], first["trace_id"]) == ("s1", parent[3:35])
    assert "saga_id" not in second
