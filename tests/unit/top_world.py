"""What tests of `top` share: samples of a made-up cluster whose counters a test moves."""

from collections.abc import Mapping
from typing import Any

from cluster.figures import Place, Sample, Scrape, StuckSaga
from cluster.metrics import BY_NAME

WALL_MS = 1_700_000_000_000
SECOND = 1_000_000_000
SERVICES = ("inventory", "payment", "shipping")


class Made:
    """A cluster of two shards: what it would say now. Everything may be changed between samples."""

    def __init__(self, shards: int = 2) -> None:
        self.now_ns = 0
        self.stuck: list[StuckSaga] = []
        self.rows: dict[Place, dict[str, Any]] = {}
        self.values: dict[Place, dict[str, dict[tuple[tuple[str, str], ...], float]]] = {}
        self.facts = {"epoch": 1, "in_flight": 0, "compensating": 0, "stuck": 0}
        places = [("supervisor", 0), ("router", 0), *(("shard", n) for n in range(shards))]
        places += [(service, index) for service in SERVICES for index in (0, 1)]
        for at, (role, index) in enumerate(places):
            state = "standby" if role in SERVICES and index else "up"
            self.rows[role, index] = {
                "role": role,
                "index": index,
                "pid": 100 + at,
                "state": state,
                "silent_ms": 0,
                "metrics_port": 9000 + at,
            }
            self.values[role, index] = {}
        for index in range(shards):
            place = ("shard", index)
            self.gauge(place, "saga_shard_mode", 1, mode="serving")
            self.count(place, "saga_started_total", 0)
            self.count(place, "saga_event_loop_busy_seconds_total", 0)
            self.gauge(place, "saga_amount_at_risk", 0)
            for outcome in ("completed", "aborted"):
                self.count(place, "saga_finished_total", 0, saga="checkout", outcome=outcome)
            self.took(place, "saga_duration_seconds")
            self.took(place, "saga_journal_commit_duration_seconds")

    def after(self, ms: int) -> None:
        """Let time pass."""
        self.now_ns += ms * 1_000_000

    def gauge(self, place: Place, name: str, value: float, **labels: str) -> None:
        """Set what a process serves."""
        self.values[place].setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def count(self, place: Place, name: str, by: float, **labels: str) -> None:
        """Have a counter of a process grow."""
        cells, key = self.values[place].setdefault(name, {}), tuple(sorted(labels.items()))
        cells[key] = cells.get(key, 0) + by

    def took(self, place: Place, name: str, *values_s: float) -> None:
        """Have a process measure durations."""
        metric = BY_NAME[name]
        for edge in (*(edge / metric.scale for edge in metric.edges), float("inf")):
            below = sum(value <= edge for value in values_s)
            label = "+Inf" if edge == float("inf") else repr(edge)
            self.count(place, f"{name}_bucket", below, le=label)

    def restarted(self, place: Place) -> None:
        """Have another process fill a place: its counters begin at zero."""
        self.rows[place]["pid"] += 1000
        for cells in self.values[place].values():
            cells.update(dict.fromkeys(cells, 0))

    def status(self) -> dict[str, Any]:
        """Give what `status` would answer."""
        rows = list(self.rows.values())
        shards = [row for row in rows if row["role"] == "shard"]
        return {
            "type": "status",
            "ready": all(row["state"] in ("up", "standby") for row in rows),
            "cluster_id": "c0ffee1234567890",
            "router": "ipc:///run/router.sock",
            "processes": rows,
            "shards": [
                {
                    "shard": row["index"],
                    "state": row["state"],
                    **(self.facts if row["state"] == "up" else {}),
                }
                for row in shards
            ],
        }

    def scrapes(self, silent: tuple[Place, ...] = ()) -> dict[Place, Scrape]:
        """Give what its processes would serve; standbys are not asked."""
        return {
            place: scrape_of(self.values[place])
            for place, row in self.rows.items()
            if place not in silent and row["state"] == "up"
        }

    def sample(self, silent: tuple[Place, ...] = ()) -> Sample:
        """Give a sample of it now."""
        wall_ms = WALL_MS + self.now_ns // 1_000_000
        status = {**self.status()}
        status["processes"] = [dict(row) for row in status["processes"]]
        return Sample(self.now_ns, wall_ms, status, self.scrapes(silent), self.stuck)


def scrape_of(values: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]) -> Scrape:
    """Give what a process serves."""
    return Scrape(
        {name: {frozenset(key): value for key, value in of.items()} for name, of in values.items()}
    )


def stuck(saga_id: str = "checkout43", since_ms: int | None = WALL_MS - 182_000) -> StuckSaga:
    """Give a saga that is stuck."""
    return StuckSaga(saga_id, "RefundPayment", since_ms, 31, 24_999, "Shipment refused: NO_CARRIER")
