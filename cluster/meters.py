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

from cluster.fleet import AUDITOR, ROUTER, SHARD, SUPERVISOR
from cluster.metrics import (
    ACTIVE_STATES,
    ATTEMPT_OUTCOMES,
    BOOKS,
    BY_NAME,
    COMPENSATION_CAUSES,
    FINISHED_OUTCOMES,
    METRICS,
    PROCESS_STATES,
    ROUTER_DUPLICATES,
    ROUTER_FAULTS,
    ROUTER_OUTCOMES,
    ROUTER_REFUSALS,
    SHARD_DUPLICATES,
    SHARD_FAULTS,
    SHARD_MODES,
    SHARD_REFUSALS,
    TURNING_CAUSES,
    WORKER,
    WORKER_DUPLICATES,
    WORKER_FAULTS,
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
        # A list of one integer each, so that who counts often keeps the list.
        self._cells: dict[Labels, list[int]] = {
            labels: [0] for labels in (zeros if metric.labels else [()])
        }

    def add(self, labels: Labels = (), by: int = 1) -> None:
        """Count; for the one thread that owns the meters."""
        self.cell(labels)[0] += by

    def cell(self, labels: Labels = ()) -> list[int]:
        """Give what a combination of label values is counted in: its first item."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = [0]
        return cell

    def read(self) -> dict[Labels, int]:
        """Give a copy; any thread may."""
        return {labels: cell[0] for labels, cell in self._cells.copy().items()}


class Durations:
    """A histogram, of durations mostly: bucket counts and a sum, of nanoseconds or as `scale` says.

    Args:
        metric: what is measured.
        zeros: combinations of label values that are served before anything is measured.
    """

    __slots__ = ("_cells", "edges", "metric")

    def __init__(self, metric: Metric, zeros: Iterable[Labels] = ()) -> None:
        self.metric = metric
        self.edges = metric.edges
        # One list each, buckets first, then what is above the last edge, then the sum: a copy
        # of it is taken in one piece while the owner goes on.
        self._cells: dict[Labels, list[int]] = {
            labels: self._empty() for labels in (zeros if metric.labels else [()])
        }

    def _empty(self) -> list[int]:
        return [0] * (len(self.edges) + 2)

    def observe(self, value: int, labels: Labels = ()) -> None:
        """Count a value, nanoseconds mostly; for the one thread that owns the meters."""
        cell = self.cell(labels)
        cell[bisect_left(self.edges, value)] += 1
        cell[-1] += value

    def cell(self, labels: Labels = ()) -> list[int]:
        """Give what a combination of label values is counted in, as `observe` does it.

        Who counts often keeps it, and saves two calls.
        """
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = self._empty()
        return cell

    def read(self) -> dict[Labels, tuple[list[int], int]]:
        """Give, for each combination, the counts per bucket (one more than edges) and the sum.

        Any thread may; the sum may be one duration behind the counts.
        """
        copies = {labels: cell.copy() for labels, cell in self._cells.copy().items()}
        return {labels: (cell[:-1], cell[-1]) for labels, cell in copies.items()}


Reading = float | Mapping[Labels, float]


class Gauge:
    """A value that is asked for when somebody scrapes; a counter, too, that another object counts.

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
    """What every process serves."""

    role = ""

    def __init__(self) -> None:
        self.event_loop_lag = _durations("saga_event_loop_lag_seconds")
        python = ".".join(str(part) for part in sys.version_info[:3])
        self.build_info = _gauge("saga_build_info")
        self.build_info.source = lambda: {(__version__, python): 1}

    def holders(self) -> list[Holder]:
        """Give every holder of this process, in the table's order."""
        own: Any = vars(self)
        return [own[metric.attribute] for metric in METRICS if self.role in metric.roles]


class SupervisorMeters(Meters):
    """What the supervisor serves.

    Args:
        processes: the roles of those that it starts.
    """

    role = SUPERVISOR

    def __init__(self, processes: Iterable[str] = ()) -> None:
        super().__init__()
        roles = list(dict.fromkeys(processes))
        self.processes = _gauge("saga_processes", _every(roles, PROCESS_STATES))
        self.process_exits = _counts("saga_process_exits_total", _every(roles))


class ShardMeters(Meters):
    """What a shard serves.

    Args:
        sagas: the definitions that it runs; their zeros are served from the start.
    """

    role = SHARD

    def __init__(self, sagas: Iterable["Saga"] = ()) -> None:
        super().__init__()
        plans = list(sagas)
        names = {saga.name: [step.name for step in saga.steps] for saga in plans}
        steps = dict.fromkeys(step for each in names.values() for step in each)
        pools = dict.fromkeys(step.service for saga in plans for step in saga.steps)
        self.started = _counts("saga_started_total")
        self.finished = _counts("saga_finished_total", _every(names, FINISHED_OUTCOMES))
        self.duration = _durations("saga_duration_seconds")
        self.exposure = _durations("saga_exposure_seconds", _every(FINISHED_OUTCOMES))
        self.active = _gauge("saga_active", _every(ACTIVE_STATES))
        self.oldest_active_timestamp = _gauge("saga_oldest_active_timestamp_seconds")
        self.oldest_stuck_timestamp = _gauge("saga_oldest_stuck_timestamp_seconds")
        self.step_attempts = _counts(
            "saga_step_attempts_total", _every(steps, DIRECTIONS, ATTEMPT_OUTCOMES)
        )
        self.step_duration = _durations("saga_step_duration_seconds", _every(steps, DIRECTIONS))
        self.retries = _counts("saga_retries_total", _every(steps, DIRECTIONS))
        self.turned_back = _counts("saga_turned_back_total", _every(names, TURNING_CAUSES))
        self.compensations = _counts(
            "saga_compensations_total",
            [
                (name, step, cause)
                for name, steps_of in names.items()
                for step in steps_of
                for cause in COMPENSATION_CAUSES
            ],
        )
        self.refused = _counts("saga_refused_total", _every(SHARD_REFUSALS))
        self.duplicates = _counts("saga_duplicates_total", _every(SHARD_DUPLICATES))
        self.faults = _counts("saga_faults_total", _every(SHARD_FAULTS))
        self.amount_at_risk = _gauge("saga_amount_at_risk")
        self.journal_commit_duration = _durations("saga_journal_commit_duration_seconds")
        self.journal_commit_entries = _durations("saga_journal_commit_entries")
        self.journal_records = _counts("saga_journal_records_total")
        self.journal_size = _gauge("saga_journal_size_bytes")
        self.recovery_duration = _gauge("saga_recovery_duration_seconds")
        self.recovered = _counts("saga_recovered_total")
        self.shard_mode = _gauge("saga_shard_mode", _every(SHARD_MODES))
        self.shard_epoch = _gauge("saga_shard_epoch")
        self.shard_slots = _gauge("saga_shard_slots")
        self.pool_workers = _gauge("saga_pool_workers", _every(pools))
        self.pool_credit = _gauge("saga_pool_credit", _every(pools))
        self.pool_outstanding = _gauge("saga_pool_outstanding", _every(pools))
        self.pool_waiting = _gauge("saga_pool_waiting", _every(pools))
        self.pool_commands = _gauge("saga_pool_commands_total", _every(pools))
        self.pool_wait = _gauge("saga_pool_wait_seconds_total", _every(pools))
        self.event_loop_busy = _gauge("saga_event_loop_busy_seconds_total")


class RouterMeters(Meters):
    """What the router serves.

    Args:
        shards: how many there are.
    """

    role = ROUTER

    def __init__(self, shards: int = 0) -> None:
        super().__init__()
        self.refused = _counts("saga_refused_total", _every(ROUTER_REFUSALS))
        self.duplicates = _counts("saga_duplicates_total", _every(ROUTER_DUPLICATES))
        self.faults = _counts("saga_faults_total", _every(ROUTER_FAULTS))
        self.router_requests = _counts(
            "saga_router_requests_total", _every(KINDS.values(), ROUTER_OUTCOMES)
        )
        self.router_shard_inflight = _gauge(
            "saga_router_shard_inflight", _every([str(shard) for shard in range(shards)])
        )
        self.event_loop_busy = _busy_by(self.event_loop_lag)


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
        self.duplicates = _counts("saga_duplicates_total", _every(WORKER_DUPLICATES))
        self.faults = _counts("saga_faults_total", _every(WORKER_FAULTS))
        self.worker_busy = _gauge("saga_worker_busy")
        self.worker_capacity = _gauge("saga_worker_capacity")
        self.worker_queue_wait = _durations("saga_worker_queue_wait_seconds")
        self.event_loop_busy = _busy_by(self.event_loop_lag)


class AuditorMeters(Meters):
    """What the auditor serves."""

    role = AUDITOR

    def __init__(self) -> None:
        super().__init__()
        self.books_imbalance = _gauge("saga_books_imbalance", _every(BOOKS))
        self.books_round_timestamp = _gauge("saga_books_round_timestamp_seconds")
        self.books_round_duration = _gauge("saga_books_round_duration_seconds")
        self.books_history_timestamp = _gauge("saga_books_history_timestamp_seconds")
        self.books_sagas = _counts("saga_books_sagas_total")


def _counts(name: str, zeros: Iterable[Labels] = ()) -> Counts:
    return Counts(BY_NAME[name], zeros)


def _durations(name: str, zeros: Iterable[Labels] = ()) -> Durations:
    return Durations(BY_NAME[name], zeros)


def _gauge(name: str, zeros: Iterable[Labels] = ()) -> Gauge:
    return Gauge(BY_NAME[name], zeros)


def _busy_by(lag: Durations) -> Gauge:
    """Give the time that a loop works whose every turn, reading included, stands in its lag."""
    gauge = _gauge("saga_event_loop_busy_seconds_total")
    gauge.source = lambda: sum(total for _, total in lag.read().values()) / 1e9
    return gauge


def _every(*values: Collection[str]) -> list[Labels]:
    """Give every combination of the labels' values."""
    found: list[Labels] = [()]
    for each in values:
        found = [(*labels, value) for labels in found for value in each]
    return found
