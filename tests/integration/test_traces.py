"""Traces and logs of a whole cluster: in at the command line, out at a collector; a quiet burst."""

import asyncio
import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.request import urlopen

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cluster.private import ClusterProcess, start_private
from sagacity.client import AsyncClient, Client
from tests.integration.faces import COMMAND, run

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
USER, ADDRESS = "mark-user", "mark-address"
BURST = 200
ORDER = ("--user", USER, "--item", "abc123=1", "--address", ADDRESS)


class Collector:
    """What stands at the other end of OTLP over HTTP."""

    def __init__(self) -> None:
        taken = self.spans = []  # type: list[Any]
        came = self.came = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        taken.extend(scope.spans)
                came.set()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


class Traced:
    """A cluster at the default level, and what it has said."""

    def __init__(self, cluster: ClusterProcess, stderr: Any) -> None:
        self.cluster, self.url = cluster, cluster.url
        self._stderr = stderr

    def lines(self) -> list[str]:
        """Give what all processes have said so far."""
        self._stderr.seek(0)
        found: list[str] = self._stderr.read().decode().splitlines()
        return found


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with tempfile.TemporaryFile() as stderr:
        arguments = ("--shards", "2", "--workers", "1")
        env = {"SAGACITY_LOG": "info"}
        with start_private(arguments=arguments, env=env, stderr=stderr.fileno()) as cluster:
            yield Traced(cluster, stderr)


def test_a_trace_goes_in_at_the_command_line_and_out_at_a_collector(
    traced: Traced, collector: Collector
) -> None:
    """Through router, shard, journal and history; spans beneath the client's own."""
    ended = run(traced.url, "checkout", *ORDER, "--id", "in-a-trace", "--traceparent", PARENT)
    assert ended.returncode == 0
    with Client(traced.url) as client:
        client.checkout(
            user_id="u999",
            items=[{"sku": "abc123", "quantity": 1}],
            shipping_address=ADDRESS,
            saga_id="turned-back",
            headers={"traceparent": PARENT.replace(SPAN, "1" * 16)},
        )
        unsampled = {"traceparent": PARENT[:-1] + "0"}
        body: dict[str, Any] = {"type": "checkout", "saga_id": "unsampled", "user_id": USER}
        body |= {"items": [{"sku": "abc123", "quantity": 1}], "shipping_address": ADDRESS}
        client.start(body, unsampled)
    assert f"\ntrace {TRACE}\n" in run(traced.url, "show", "in-a-trace").stdout.decode()
    ended = run(traced.url, "spans", "--once", "--json", "--endpoint", collector.url)
    assert (ended.returncode, ended.stderr) == (0, b"")
    counts = {"type": "spans", "sagas": 2, "spans": 8, "dropped": 0, "lost": 0}
    assert json.loads(ended.stdout) == counts
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    roots = {span.parent_span_id.hex(): span for span in collector.spans if span.kind == 2}
    assert set(roots) == {SPAN, "1" * 16}
    children = [each.name for each in collector.spans if each.parent_span_id == roots[SPAN].span_id]
    assert children == ["ReserveInventory", "ChargePayment", "CreateShipment"]
    text = repr(collector.spans)
    assert USER not in text
    assert ADDRESS not in text


def test_it_follows_what_ends_until_it_is_told_to_stop(
    traced: Traced, collector: Collector
) -> None:
    """As a service beside the cluster; in the end it says what it did."""
    command = [*COMMAND, "spans", "--all", "--connect", traced.url, "--endpoint", collector.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        ended = run(traced.url, "checkout", *ORDER, "--traceparent", PARENT)
        assert ended.returncode == 0
        assert collector.came.wait(30)
        process.terminate()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, b"")
    assert b"0 sagas dropped, 0 lost" in out


@pytest.mark.parametrize("text", ["nonsense", "0" * 5_000 + "\u2603"])
def test_a_malformed_trace_fails_no_checkout(traced: Traced, text: str) -> None:
    """From the command line; whoever made it has another problem."""
    ended = run(traced.url, "checkout", *ORDER, "--traceparent", text)
    assert (ended.returncode, b"COMPLETED" in ended.stdout) == (0, True)


def test_a_malformed_trace_is_counted(traced: Traced) -> None:
    """So that somebody sees that traces break off here."""
    before = dropped(traced)
    with Client(traced.url) as client:
        client.checkout(
            user_id=USER,
            items=[{"sku": "abc123", "quantity": 1}],
            shipping_address=ADDRESS,
            headers={"traceparent": "x" * 5_000},
        )
    assert dropped(traced) == before + 1


def dropped(traced: Traced) -> float:
    """Give how many traces the shards have dropped."""
    with Client(traced.url) as client:
        processes = client.status()["processes"]
    found = 0.0
    for process in processes:
        if process["role"] == "shard":
            with urlopen(f"http://127.0.0.1:{process['metrics_port']}/metrics") as answer:
                lines = answer.read().decode().splitlines()
            sample = 'saga_faults_total{what="traceparent"} '
            found += sum(float(line.split()[-1]) for line in lines if line.startswith(sample))
    return found


async def burst(url: str) -> list[str]:
    """Run many checkouts at once, each way in which one ends; give how they ended."""
    users = (USER, "u999", USER, "u_flaky_3")
    addresses = (ADDRESS, ADDRESS, "no_carrier", ADDRESS)
    async with AsyncClient(url) as client:
        answers = await asyncio.gather(
            *(
                client.checkout(
                    user_id=users[at % 4],
                    items=[{"sku": "abc123", "quantity": 1}],
                    shipping_address=addresses[at % 4],
                    saga_id=f"burst-{at}",
                    headers={"traceparent": PARENT} if at % 2 else None,
                )
                for at in range(BURST)
            )
        )
    return [str(answer["status"]) for answer in answers]


def test_a_burst_with_declines_is_no_line_a_saga_and_tells_nobodys_name(traced: Traced) -> None:
    """At the default level: a log of a thousand checkouts a second fills disks and helps nobody."""
    before = len(traced.lines())
    ended = asyncio.run(burst(traced.url))
    assert {ended.count(each) for each in ("COMPLETED", "ABORTED")} == {BURST // 2}
    lines = traced.lines()
    events = [json.loads(line) for line in lines]
    assert {event["role"] for event in events} >= {"router", "shard", "inventory", "payment"}
    assert len(lines) - before < BURST // 20
    for event, line in zip(events, lines, strict=True):
        assert "saga_id" not in event
        assert not any(mark in line for mark in ("burst-", USER, ADDRESS))
