"""The one table of all metrics (SPEC 7): names, types, labels, edges, and who serves them.

Pure; knows nothing of how they are counted (`meters`) or served (`telemetry`).
"""

from typing import Final

from msgspec import Struct

from cluster.fleet import ROUTER, SHARD, SUPERVISOR

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"

WORKER: Final = "worker"  # of any service; beside the fleet's roles, who serves a metric
_ALL: Final = (SHARD, ROUTER, WORKER, SUPERVISOR)

_US: Final = 1_000
_MS: Final = 1_000_000

# Upper edges, nanoseconds. The objectives stand among them: 1 s for a saga, 3 s for an attempt,
# 0.5 s for a turn of a loop (a longer one stops the clocks of sagas).
_SAGA_EDGES: Final = tuple(
    ms * _MS for ms in (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
)
_STEP_EDGES: Final = tuple(
    ms * _MS for ms in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 3000, 10_000)
)
_SHORT_EDGES: Final = tuple(
    tenths * 100 * _US
    for tenths in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 50_000)
)

# Values of labels that are closed lists and belong to no other room.
ACTIVE_STATES: Final = ("running", "compensating", "stuck")
FINISHED_OUTCOMES: Final = ("completed", "aborted")
ATTEMPT_OUTCOMES: Final = ("ok", "declined", "failed", "timed_out", "quarantined")
COMPENSATION_CAUSES: Final = ("declined", "timed_out", "deadline", "cancelled", "quarantined")
SHARD_DUPLICATES: Final = (
    "start",
    "answer_late",
    "answer_repeated",
    "answer_unknown_saga",
    "list_repeated",
    "refused_fenced",
    "refused_unavailable",
    "unknown_worker",
)
SHARD_FAULTS: Final = (
    "answer_contradicts",
    "answer_malformed",
    "answer_out_of_range",
    "answer_wrong_pool",
    "definition_answer",
    "definition_command",
    "definition_reason",
    "definition_undo",
    "frame",
    "refused_compensated",
    "refused_forgotten",
)
ROUTER_OUTCOMES: Final = ("answered", "not_taken", "no_outcome", "error")


class Metric(Struct, frozen=True):
    """One metric.

    Args:
        name: as it is served.
        kind: COUNTER, GAUGE or HISTOGRAM.
        help: what it counts, and in what unit.
        roles: the processes that serve it.
        labels: names; never one whose values grow with time.
        edges_ns: upper edges of a histogram's buckets, ascending; they are served in seconds.
    """

    name: str
    kind: str
    help: str
    roles: tuple[str, ...]
    labels: tuple[str, ...] = ()
    edges_ns: tuple[int, ...] = ()

    @property
    def attribute(self) -> str:
        """The name under which a process counts it."""
        name = self.name.removeprefix("saga_")
        for ending in ("_total", "_seconds", "_bytes"):
            name = name.removesuffix(ending)
        return name


METRICS: Final = (
    Metric("saga_started_total", COUNTER, "Sagas accepted.", (SHARD,)),
    Metric(
        "saga_finished_total",
        COUNTER,
        "Sagas that are final.",
        (SHARD,),
        ("saga", "outcome"),
    ),
    Metric(
        "saga_duration_seconds",
        HISTOGRAM,
        "From the durable start of a saga to its final answer.",
        (SHARD,),
        (),
        _SAGA_EDGES,
    ),
    Metric(
        "saga_active",
        GAUGE,
        "Sagas that are not final, each counted once: a stuck one is not among compensating.",
        (SHARD,),
        ("state",),
    ),
    Metric(
        "saga_oldest_active_timestamp_seconds",
        GAUGE,
        "Start of the oldest saga that is not final, seconds since 1970; 0 when there is none.",
        (SHARD,),
    ),
    Metric(
        "saga_step_attempts_total",
        COUNTER,
        "Attempts of a step: by a shard, as they ended; by a worker, as it answered. "
        "Sums make sense over one role.",
        (SHARD, WORKER),
        ("step", "direction", "outcome"),
    ),
    Metric(
        "saga_step_duration_seconds",
        HISTOGRAM,
        "From sending a command to a worker until its outcome.",
        (SHARD,),
        ("step", "direction"),
        _STEP_EDGES,
    ),
    Metric(
        "saga_compensations_total",
        COUNTER,
        "Steps compensated, by why the saga turned back.",
        (SHARD,),
        ("saga", "step", "cause"),
    ),
    Metric(
        "saga_duplicates_total",
        COUNTER,
        "What came again and had no second effect: starts and answers at a shard, replies at the "
        "router, commands at a worker.",
        (SHARD, ROUTER, WORKER),
        ("where",),
    ),
    Metric(
        "saga_faults_total",
        COUNTER,
        "What should never happen and was put aside: contradicting answers, wrong pools, frames "
        "that cannot be read. Not in the list of SPEC 7, but SPEC 3 wants them counted.",
        (SHARD, ROUTER, WORKER),
        ("what",),
    ),
    Metric(
        "saga_amount_at_risk",
        GAUGE,
        "Minor units charged in sagas that are turning back.",
        (SHARD,),
    ),
    Metric(
        "saga_journal_commit_duration_seconds",
        HISTOGRAM,
        "One group commit of the journal, sync included.",
        (SHARD,),
        (),
        _SHORT_EDGES,
    ),
    Metric("saga_journal_records_total", COUNTER, "Entries written to the journal.", (SHARD,)),
    Metric("saga_journal_size_bytes", GAUGE, "Size of the journal's files.", (SHARD,)),
    Metric(
        "saga_recovery_duration_seconds",
        GAUGE,
        "How long this process read its journal before it served.",
        (SHARD,),
    ),
    Metric(
        "saga_recovered_total",
        COUNTER,
        "Sagas that were not final when this process started.",
        (SHARD,),
    ),
    Metric(
        "saga_router_requests_total",
        COUNTER,
        "Requests answered, by what the client got.",
        (ROUTER,),
        ("kind", "outcome"),
    ),
    Metric(
        "saga_router_shard_inflight",
        GAUGE,
        "Requests forwarded to a shard and not answered.",
        (ROUTER,),
        ("shard",),
    ),
    Metric("saga_worker_busy", GAUGE, "Commands received and not answered.", (WORKER,)),
    Metric(
        "saga_worker_capacity",
        GAUGE,
        "Commands taken before one is answered, per shard; 0 while the database does not work.",
        (WORKER,),
    ),
    Metric(
        "saga_worker_queue_wait_seconds",
        HISTOGRAM,
        "From receiving a command until its transaction begins.",
        (WORKER,),
        (),
        _SHORT_EDGES,
    ),
    Metric(
        "saga_event_loop_lag_seconds",
        HISTOGRAM,
        "How long a turn of the loop kept what came meanwhile waiting.",
        _ALL,
        (),
        _SHORT_EDGES,
    ),
    Metric(
        "saga_build_info",
        GAUGE,
        "Always 1; the labels say what runs here.",
        _ALL,
        ("version", "python"),
    ),
)

BY_NAME: Final = {metric.name: metric for metric in METRICS}
