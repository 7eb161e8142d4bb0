"""Sampling: asks a running cluster for what `top` shows, through the doors that all others use.

`status`, `list` and `show` by the client, /metrics of each process by HTTP on this machine. What it
means is decided in `figures`. Who does not answer is left out; a cluster that does not answer at
all is an error, and the next sample looks for it anew.
"""

import http.client
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, Self

from msgspec import Struct

from cluster.figures import (
    SAMPLES_KEPT_S,
    WANTED,
    Figures,
    Labels,
    Place,
    Sample,
    Scrape,
    StuckSaga,
    figures,
)
from cluster.fleet import STANDBY
from cluster.timeline import lanes_of
from sagacity.client import Client
from sagacity.errors import SagacityError

ASK_S: Final = 3.0  # for the cluster to answer
SCRAPE_S: Final = 1.0  # for a process to answer
SCRAPE_BYTES_MAX: Final = 4 << 20
STUCK_TOLD_MAX: Final = 20
STUCK_ASKED_MAX: Final = 3  # a sample; a history is read from disk by the shard's one thread
STUCK_AGAIN_NS: Final = 60_000_000_000  # after this a saga's step may be another one
LIST_AGAIN_NS: Final = 5_000_000_000  # a list walks over all sagas that are not final
_ASKED_AT_ONCE: Final = 16
_UP: Final = "up"

Ports = Mapping[Place, int]


class Asked(Protocol):
    """What is asked of a client; `sagacity.Client` is one."""

    def status(self) -> dict[str, Any]:
        """Give the cluster's processes and shards."""

    def list(
        self, *, statuses: Iterable[str] = (), since_ms: int = 0, limit: int = 0
    ) -> dict[str, Any]:
        """Give sagas, newest first."""

    def show(self, saga_id: str) -> dict[str, Any]:
        """Give where a saga stands and its history."""

    def close(self) -> None:
        """Close the connection."""


class _Detail(Struct, frozen=True):
    """Which compensation of a stuck saga does not succeed, and when that was asked for."""

    asked_ns: int
    step: str | None
    since_ms: int | None
    attempts: int | None


class Watcher:
    """Takes samples of one cluster, and keeps those of the last seconds.

    Args:
        find: gives the router's address; asked again each time the cluster has not answered.
        connect: makes a client of it.
        scrape: gives what processes serve, by their ports; who does not answer is left out.
        monotonic_ns: a clock.
        wall_ns: wall time.
    """

    def __init__(
        self,
        find: Callable[[], str],
        *,
        connect: Callable[[str], Asked] = lambda url: Client(url, timeout_s=ASK_S),
        scrape: Callable[[Ports], Mapping[Place, Scrape]] | None = None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._find = find
        self._connect = connect
        self._scrape = scrape or scrape_all
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._client: Asked | None = None
        self._samples: list[Sample] = []
        self._details: dict[str, _Detail] = {}
        self._stuck: Sequence[StuckSaga] = ()
        self._listed_ns: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next `look` makes another."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def look(self) -> Figures:
        """Take a sample, and give the figures up to it.

        Raises:
            SagacityError: the cluster does not answer, or none is found.
        """
        try:
            sample = self._sample()
        except SagacityError:
            # What comes back may be another one, at another address; nothing compares with it.
            self.close()
            self._samples.clear()
            self._forget_stuck()
            raise
        kept_ns = sample.at_ns - int(SAMPLES_KEPT_S * 1e9)
        older = [each for each in self._samples if each.at_ns >= kept_ns]
        self._samples = [*(older or self._samples[-1:]), sample]
        return figures(self._samples)

    def _sample(self) -> Sample:
        if self._client is None:
            self._client = self._connect(self._find())
            # Of the first scrape of their lives processes load what serves it, some 0.2 s: their
            # heartbeats would come between `status`, which tells of these, and the gauges.
            self._scrape(_ports(self._client.status()))
        status = self._client.status()
        at_ns = self._monotonic_ns()
        scrapes = self._scrape(_ports(status))
        stuck = self._list_stuck(self._client, status, at_ns)
        return Sample(at_ns, self._wall_ns() // 1_000_000, status, scrapes, stuck)

    def _list_stuck(
        self, client: Asked, status: Mapping[str, Any], now_ns: int
    ) -> Sequence[StuckSaga]:
        """Give the stuck sagas, the oldest first, as far as they are known."""
        shards: Sequence[Mapping[str, Any]] = status.get("shards", ())
        if not any(shard.get("stuck") for shard in shards):
            self._forget_stuck()
            return ()
        if any(shard["state"] != _UP for shard in shards):
            return self._stuck  # a list asks every shard, and would wait for that one
        if self._listed_ns is not None and now_ns - self._listed_ns < LIST_AGAIN_NS:
            return self._stuck
        try:
            rows = client.list(statuses=["stuck"], limit=10_000)["sagas"][::-1][:STUCK_TOLD_MAX]
            self._ask_details(client, [str(row["saga_id"]) for row in rows], now_ns)
        except SagacityError:
            return self._stuck  # asked again with the next sample
        self._listed_ns = now_ns
        self._stuck = [self._told(row) for row in rows]
        return self._stuck

    def _forget_stuck(self) -> None:
        self._stuck, self._listed_ns = (), None
        self._details.clear()

    def _ask_details(self, client: Asked, saga_ids: Sequence[str], now_ns: int) -> None:
        self._details = {each: at for each, at in self._details.items() if each in set(saga_ids)}
        due = [
            saga_id
            for saga_id in saga_ids
            if saga_id not in self._details
            or now_ns - self._details[saga_id].asked_ns >= STUCK_AGAIN_NS
        ]
        for saga_id in due[:STUCK_ASKED_MAX]:
            self._details[saga_id] = _detail(client.show(saga_id), now_ns)

    def _told(self, row: Mapping[str, Any]) -> StuckSaga:
        detail = self._details.get(str(row["saga_id"]), _Detail(0, None, None, None))
        return StuckSaga(
            saga_id=str(row["saga_id"]),
            step=detail.step,
            since_ms=detail.since_ms,
            attempts=detail.attempts,
            amount=int(row["amount"]),
            reason=str(row["reason"]),
        )


def _ports(status: Mapping[str, Any]) -> dict[Place, int]:
    """Give where processes serve their metrics; a standby has nothing to tell."""
    return {
        (str(row["role"]), int(row["index"])): int(row["metrics_port"])
        for row in status.get("processes", ())
        if row.get("metrics_port") and row["state"] != STANDBY
    }


def _detail(body: Mapping[str, Any], now_ns: int) -> _Detail:
    lanes = lanes_of(body.get("history", ()))
    for lane in lanes.compensations.values():
        if lane.outcome != "ok":
            return _Detail(now_ns, lane.name, lane.begun_ms, lane.attempt)
    return _Detail(now_ns, None, None, None)


# -- /metrics ------------------------------------------------------------------------------------


def scrape_all(ports: Ports) -> dict[Place, Scrape]:
    """Ask processes of this machine for their metrics, all at once; who fails is left out."""
    if not ports:
        return {}
    with ThreadPoolExecutor(min(_ASKED_AT_ONCE, len(ports))) as pool:
        found = list(pool.map(_scrape_one, ports.values()))
    return {place: scrape for place, scrape in zip(ports, found, strict=True) if scrape is not None}


def _scrape_one(port: int) -> Scrape | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SCRAPE_S)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        content = answer.read(SCRAPE_BYTES_MAX)
        return read_metrics(content.decode()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):  # gone, hangs, or another program's
        return None
    finally:
        connection.close()


def read_metrics(text: str) -> Scrape:
    """Read what is wanted of a page of metrics, in Prometheus' text format.

    Raises:
        ValueError: a line of it cannot be read.
    """
    from prometheus_client.parser import (  # noqa: PLC0415 - 120 ms, after the first question left
        text_string_to_metric_families,
    )

    wanted = tuple(f"{name}{after}" for name in WANTED for after in ("{", " "))
    lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(wanted))
    values: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            values.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return Scrape(values)
