"""Meters: the plain integers behind the metrics.

A process owns one `Meters` and counts in it: dicts and lists of integers, changed by one thread.
`telemetry` reads them when somebody scrapes. Which metrics there are, `metrics` says. Knows nothing
of HTTP, nor of any metrics library.

An attribute is named after its metric, without prefix, unit and `_total`: what is served as
`saga_step_attempts_total` is counted by `meters.step_attempts`.
"""

import sys
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cluster.fleet import ROUTER, SHARD, SUPERVISOR
from cluster.metrics import (
    ACTIVE_STATES,
    ATTEMPT_OUTCOMES,
    BY_NAME,
    COMPENSATION_CAUSES,
    FINISHED_OUTCOMES,
    METRICS,
    ROUTER_OUTCOMES,
    SHARD_DUPLICATES,
    SHARD_FAULTS,
    WORKER,
    Metric,
)
from sagacity import __version__
from sagacity.ids import DIRECTIONS
from sagacity.wire import KINDS, OUTCOMES

if TYPE_CHECKING:
    from sagacity.saga import Saga

Labels = tuple[str, ...]  # the values of a metric's labels, in its order


class Counts:
    """A counter: one integer for each combination of label values.

    Args:
        metric: what is counted.
        zeros: combinations that are served before anything is counted.
    """

    __slots__ = ("_cells", "metric")

    def __init__(self, metric: Metric, zeros: Iterable[Labels] = ()) -> None:
        self.metric = metric
        self._cells: dict[Labels, int] = dict.fromkeys(zeros if metric.labels else [()], 0)

    def add(self, labels: Labels = (), by: int = 1) -> None:
        """Count; for the one thread that owns the meters."""
        cells = self._cells
        cells[labels] = cells.get(labels, 0) + by

    def read(self) -> dict[Labels, int]:
        """Give a copy; any thread may."""
        return self._cells.copy()


class Durations:
    """A histogram of durations: bucket counts and a sum of nanoseconds.

    Args:
        metric: what is measured.
        zeros: combinations of label values that are served before anything is measured.
    """

    __slots__ = ("_cells", "_edges", "metric")

    def __init__(self, metric: Metric, zeros: Iterable[Labels] = ()) -> None:
        self.metric = metric
        self._edges = metric.edges_ns
        # One list each, buckets first, then what is above the last edge, then the sum: a copy
        # of it is taken in one piece while the owner goes on.
        self._cells: dict[Labels, list[int]] = {
            labels: self._empty() for labels in (zeros if metric.labels else [()])
        }

    def _empty(self) -> list[int]:
        return [0] * (len(self._edges) + 2)

    def observe_ns(self, duration: int, labels: Labels = ()) -> None:
        """Count a duration, nanoseconds; for the one thread that owns the meters."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = self._empty()
        cell[bisect_left(self._edges, duration)] += 1
        cell[-1] += duration

    def read(self) -> dict[Labels, tuple[list[int], int]]:
        """Give, for each combination, the counts per bucket (one more than edges) and the sum.

        Any thread may; the sum may be one duration behind the counts.
        """
        copies = {labels: cell.copy() for labels, cell in self._cells.copy().items()}
        return {labels: (cell[:-1], cell[-1]) for labels, cell in copies.items()}


Reading = float | Mapping[Labels, float]


class Gauge:
    """A value that is asked for when somebody scrapes.

    Set `source` to a callable that any thread may call: it gives a number or, where the metric has
    labels, a number for each combination of their values. Until then zeros are served.
    """

    __slots__ = ("_zeros", "metric", "source")

    def __init__(self, metric: Metric, zeros: Iterable[Labels] = ()) -> None:
        self.metric = metric
        self._zeros: dict[Labels, float] = dict.fromkeys(zeros if metric.labels else [()], 0)
        self.source: Callable[[], Reading] = dict

    def read(self) -> dict[Labels, float]:
        """Give the number of each combination of label values."""
        reading = self.source()
        if isinstance(reading, Mapping):
            return {**self._zeros, **reading}
        return {(): reading}


Holder = Counts | Durations | Gauge


class Meters:
    """What every process serves; on its own, all that the supervisor serves."""

    role = SUPERVISOR

    def __init__(self) -> None:
        self.event_loop_lag = _durations("saga_event_loop_lag_seconds")
        python = ".".join(str(part) for part in sys.version_info[:3])
        self.build_info = _gauge("saga_build_info")
        self.build_info.source = lambda: {(__version__, python): 1}

    def holders(self) -> list[Holder]:
        """Give every holder of this process, in the table's order."""
        own: Any = vars(self)
        return [own[metric.attribute] for metric in METRICS if self.role in metric.roles]


class ShardMeters(Meters):
    """What a shard serves.

    Args:
        sagas: the definitions that it runs; their zeros are served from the start.
    """

    role = SHARD

    def __init__(self, sagas: Iterable["Saga"] = ()) -> None:
        super().__init__()
        names = {saga.name: [step.name for step in saga.steps] for saga in sagas}
        steps = dict.fromkeys(step for each in names.values() for step in each)
        self.started = _counts("saga_started_total")
        self.finished = _counts("saga_finished_total", _every(names, FINISHED_OUTCOMES))
        self.duration = _durations("saga_duration_seconds")
        self.active = _gauge("saga_active", _every(ACTIVE_STATES))
        self.oldest_active_timestamp = _gauge("saga_oldest_active_timestamp_seconds")
        self.step_attempts = _counts(
            "saga_step_attempts_total", _every(steps, DIRECTIONS, ATTEMPT_OUTCOMES)
        )
        self.step_duration = _durations("saga_step_duration_seconds", _every(steps, DIRECTIONS))
        self.compensations = _counts(
            "saga_compensations_total",
            [
                (name, step, cause)
                for name, steps_of in names.items()
                for step in steps_of
                for cause in COMPENSATION_CAUSES
            ],
        )
        self.duplicates = _counts("saga_duplicates_total", _every(SHARD_DUPLICATES))
        self.faults = _counts("saga_faults_total", _every(SHARD_FAULTS))
        self.amount_at_risk = _gauge("saga_amount_at_risk")
        self.journal_commit_duration = _durations("saga_journal_commit_duration_seconds")
        self.journal_records = _counts("saga_journal_records_total")
        self.journal_size = _gauge("saga_journal_size_bytes")
        self.recovery_duration = _gauge("saga_recovery_duration_seconds")
        self.recovered = _counts("saga_recovered_total")


class RouterMeters(Meters):
    """What the router serves.

    Args:
        shards: how many there are.
    """

    role = ROUTER

    def __init__(self, shards: int = 0) -> None:
        super().__init__()
        self.duplicates = _counts("saga_duplicates_total", _every(("reply",)))
        self.faults = _counts("saga_faults_total", _every(("frame", "request")))
        self.router_requests = _counts(
            "saga_router_requests_total", _every(KINDS.values(), ROUTER_OUTCOMES)
        )
        self.router_shard_inflight = _gauge(
            "saga_router_shard_inflight", _every([str(shard) for shard in range(shards)])
        )


class WorkerMeters(Meters):
    """What a worker serves.

    Args:
        commands: (step, direction) of each command that its service performs.
    """

    role = WORKER

    def __init__(self, commands: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__()
        self.step_attempts = _counts(
            "saga_step_attempts_total",
            [(*command, outcome) for command in commands for outcome in OUTCOMES],
        )
        self.duplicates = _counts("saga_duplicates_total", _every(("command",)))
        self.faults = _counts("saga_faults_total", _every(("frame",)))
        self.worker_busy = _gauge("saga_worker_busy")
        self.worker_capacity = _gauge("saga_worker_capacity")
        self.worker_queue_wait = _durations("saga_worker_queue_wait_seconds")


def _counts(name: str, zeros: Iterable[Labels] = ()) -> Counts:
    return Counts(BY_NAME[name], zeros)


def _durations(name: str, zeros: Iterable[Labels] = ()) -> Durations:
    return Durations(BY_NAME[name], zeros)


def _gauge(name: str, zeros: Iterable[Labels] = ()) -> Gauge:
    return Gauge(BY_NAME[name], zeros)


def _every(*values: Collection[str]) -> list[Labels]:
    """Give every combination of the labels' values."""
    found: list[Labels] = [()]
    for each in values:
        found = [(*labels, value) for labels in found for value in each]
    return found
