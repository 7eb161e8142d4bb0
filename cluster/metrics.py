"""The one table of all metrics (SPEC 7): names, types, labels and their values, edges, who serves.

Pure; knows nothing of how they are counted (`meters`) or served (`telemetry`). docs/metrics.md is
printed from it (`python -m tests.architecture.pictures`).
"""

from typing import Final

from msgspec import Struct

from cluster.fleet import (
    AUDITOR,
    QUARANTINED,
    ROUTER,
    SHARD,
    STANDBY,
    STARTING,
    STOPPED,
    SUPERVISOR,
    UP,
)
from sagacity.ids import DIRECTIONS
from sagacity.wire import KINDS, OUTCOMES

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"

WORKER: Final = "worker"  # of any service; beside the fleet's roles, who serves a metric
_ALL: Final = (SHARD, ROUTER, WORKER, SUPERVISOR)

_US: Final = 1_000
_MS: Final = 1_000_000
_S: Final = 1_000_000_000

# Upper edges, nanoseconds. The objectives stand among them: 1 s for a saga, 3 s for an attempt,
# 0.5 s for a turn of a loop (a longer one stops the clocks of sagas).
_SAGA_EDGES: Final = tuple(
    ms * _MS for ms in (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
)
# A saga that is stuck over night stands half-done for hours.
_EXPOSURE_EDGES: Final = tuple(
    ms * _MS for ms in (50, 250, 1000, 5000, 30_000, 300_000, 3_600_000, 86_400_000)
)
_STEP_EDGES: Final = tuple(ms * _MS for ms in (1, 5, 10, 50, 100, 250, 500, 1000, 3000, 10_000))
_SHORT_EDGES: Final = tuple(
    tenths * 100 * _US
    for tenths in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 50_000)
)
_ENTRIES_EDGES: Final = (1, 4, 16, 64, 256, 1024)

# Values of labels that are closed lists and belong to no other room.
ACTIVE_STATES: Final = ("running", "compensating", "stuck")
FINISHED_OUTCOMES: Final = ("completed", "aborted")
ATTEMPT_OUTCOMES: Final = ("ok", "declined", "failed", "timed_out", "quarantined")
COMPENSATION_CAUSES: Final = ("declined", "timed_out", "deadline", "cancelled", "quarantined")
TURNING_CAUSES: Final = (*COMPENSATION_CAUSES, "unpriced")  # of such a one nothing is compensated
SHARD_DUPLICATES: Final = (
    "start",
    "answer_late",
    "answer_repeated",
    "answer_unknown_saga",
    "answer_while_waiting",
    "list_repeated",
    "refused_fenced",
    "refused_unavailable",
    "unknown_worker",
)
ROUTER_DUPLICATES: Final = ("reply",)
WORKER_DUPLICATES: Final = ("command",)
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
    "traceparent",
    "worker_turned_away",
)
ROUTER_FAULTS: Final = ("frame", "request")
WORKER_FAULTS: Final = ("frame",)
ROUTER_OUTCOMES: Final = ("answered", "not_taken", "no_outcome", "error")
SHARD_REFUSALS: Final = (
    "bug",
    "conflict",
    "disk_full",
    "draining",
    "in_flight",
    "malformed",
    "no_outcome",
    "no_room",
    "no_worker",
    "not_supported",
    "other_shard",
    "queue",
    "starting",
    "stuck",
    "unknown_saga",
)
ROUTER_REFUSALS: Final = (
    "bug",
    "client_in_flight",
    "down",
    "malformed",
    "no_outcome",
    "not_supported",
    "overloaded",
)
BOOKS: Final = ("stock", "reservations", "payments", "shipments", "strays")
SHARD_MODES: Final = ("starting", "serving", "full")
PROCESS_STATES: Final = (STARTING, STANDBY, UP, QUARANTINED, STOPPED)

# Where the values of the other labels are known from, before anything runs.
OF_SAGAS: Final = "the sagas in cluster.sagas"
OF_STEPS: Final = "the actions of their steps; at a worker the commands of its service"
OF_POOLS: Final = "the pools in services.pools"
OF_SHARDS: Final = "0 to cluster.shards - 1"
OF_PROCESSES: Final = "router, shard, auditor, and the pools in services.pools"
OF_THIS_BUILD: Final = "one: what runs"


class Label(Struct, frozen=True):
    """One label: never an id, never text from outside.

    Args:
        name: as it is served.
        values: all that it may have, whoever serves it; where that is a closed list.
        known_from: otherwise, where they are known from; one of this module's OF_...
    """

    name: str
    values: tuple[str, ...] = ()
    known_from: str = ""


class Metric(Struct, frozen=True):
    """One metric.

    Args:
        name: as it is served.
        kind: COUNTER, GAUGE or HISTOGRAM.
        help: what it counts, and in what unit.
        roles: the processes that serve it.
        labels: none whose values grow with time.
        edges: upper edges of a histogram's buckets, ascending.
        scale: a histogram counts, and has its edges, in such parts of the unit that is served.
    """

    name: str
    kind: str
    help: str
    roles: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    edges: tuple[int, ...] = ()
    scale: int = _S

    @property
    def attribute(self) -> str:
        """The name under which a process counts it."""
        name = self.name.removeprefix("saga_")
        for ending in ("_total", "_seconds", "_bytes"):
            name = name.removesuffix(ending)
        return name

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of its labels, in the order of their values."""
        return tuple(label.name for label in self.labels)


_SAGA: Final = Label("saga", known_from=OF_SAGAS)
_STEP: Final = Label("step", known_from=OF_STEPS)
_DIRECTION: Final = Label("direction", DIRECTIONS)
_SERVICE: Final = Label("service", known_from=OF_POOLS)
_PROCESS: Final = Label("process", known_from=OF_PROCESSES)

METRICS: Final = (
    Metric("saga_started_total", COUNTER, "Sagas accepted.", (SHARD,)),
    Metric(
        "saga_finished_total",
        COUNTER,
        "Sagas that are final.",
        (SHARD,),
        (_SAGA, Label("outcome", FINISHED_OUTCOMES)),
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
        "saga_exposure_seconds",
        HISTOGRAM,
        "How long a saga stood half-done: from its first success to its final answer. Of one whose "
        "first success was unknown, or in an earlier life of the shard: from its start.",
        (SHARD,),
        (Label("outcome", FINISHED_OUTCOMES),),
        _EXPOSURE_EDGES,
    ),
    Metric(
        "saga_active",
        GAUGE,
        "Sagas that are not final, each counted once: a stuck one is not among compensating.",
        (SHARD,),
        (Label("state", ACTIVE_STATES),),
    ),
    Metric(
        "saga_oldest_active_timestamp_seconds",
        GAUGE,
        "Start of the oldest saga that is not final, seconds since 1970; 0 when there is none.",
        (SHARD,),
    ),
    Metric(
        "saga_oldest_stuck_timestamp_seconds",
        GAUGE,
        "When the compensation that is stuck for longest became so, seconds since 1970; 0 when "
        "none is.",
        (SHARD,),
    ),
    Metric(
        "saga_step_attempts_total",
        COUNTER,
        "Attempts of a step: by a shard, as they ended; by a worker, as it answered. "
        "Sums make sense over one role.",
        (SHARD, WORKER),
        (
            _STEP,
            _DIRECTION,
            Label("outcome", tuple(dict.fromkeys((*ATTEMPT_OUTCOMES, *OUTCOMES)))),
        ),
    ),
    Metric(
        "saga_step_duration_seconds",
        HISTOGRAM,
        "From sending a command to a worker until its outcome.",
        (SHARD,),
        (_STEP, _DIRECTION),
        _STEP_EDGES,
    ),
    Metric(
        "saga_retries_total",
        COUNTER,
        "Commands given out again after an attempt that failed or timed out.",
        (SHARD,),
        (_STEP, _DIRECTION),
    ),
    Metric(
        "saga_turned_back_total",
        COUNTER,
        "Sagas that turned back, by why: timed_out is attempts used up, quarantined an outcome "
        "that stays unknown because the command ends its workers.",
        (SHARD,),
        (_SAGA, Label("cause", TURNING_CAUSES)),
    ),
    Metric(
        "saga_compensations_total",
        COUNTER,
        "Steps compensated, by why the saga turned back.",
        (SHARD,),
        (_SAGA, _STEP, Label("cause", COMPENSATION_CAUSES)),
    ),
    Metric(
        "saga_refused_total",
        COUNTER,
        "Requests that got an error, by why, where it was decided: at the router, or at a shard.",
        (SHARD, ROUTER),
        (Label("cause", tuple(sorted({*SHARD_REFUSALS, *ROUTER_REFUSALS}))),),
    ),
    Metric(
        "saga_duplicates_total",
        COUNTER,
        "What came again and had no second effect: starts and answers at a shard, replies at the "
        "router, commands at a worker.",
        (SHARD, ROUTER, WORKER),
        (Label("where", (*SHARD_DUPLICATES, *ROUTER_DUPLICATES, *WORKER_DUPLICATES)),),
    ),
    Metric(
        "saga_faults_total",
        COUNTER,
        "What should never happen and was put aside: contradicting answers, wrong pools, frames "
        "that cannot be read. Not in the list of SPEC 7, but SPEC 3 wants them counted.",
        (SHARD, ROUTER, WORKER),
        (Label("what", tuple(dict.fromkeys((*SHARD_FAULTS, *ROUTER_FAULTS)))),),
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
    Metric(
        "saga_journal_commit_entries",
        HISTOGRAM,
        "Entries of one group commit.",
        (SHARD,),
        (),
        _ENTRIES_EDGES,
        1,
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
        "saga_shard_mode",
        GAUGE,
        "1 for what the shard does: starting, serving, or waiting for room on a full disk.",
        (SHARD,),
        (Label("mode", SHARD_MODES),),
    ),
    Metric("saga_shard_epoch", GAUGE, "How often the shard was taken over.", (SHARD,)),
    Metric("saga_shard_slots", GAUGE, "Slots that the shard owns, of 1024.", (SHARD,)),
    Metric("saga_pool_workers", GAUGE, "Workers that the shard knows.", (SHARD,), (_SERVICE,)),
    Metric(
        "saga_pool_credit",
        GAUGE,
        "Commands that these workers take before one is answered.",
        (SHARD,),
        (_SERVICE,),
    ),
    Metric(
        "saga_pool_outstanding",
        GAUGE,
        "Commands that these workers have and did not answer.",
        (SHARD,),
        (_SERVICE,),
    ),
    Metric(
        "saga_pool_waiting",
        GAUGE,
        "Commands that wait at the shard for a worker with credit.",
        (SHARD,),
        (_SERVICE,),
    ),
    Metric(
        "saga_pool_commands_total",
        COUNTER,
        "Commands given to workers.",
        (SHARD,),
        (_SERVICE,),
    ),
    Metric(
        "saga_pool_wait_seconds_total",
        COUNTER,
        "What these commands waited for credit, all together; over saga_pool_commands_total it is "
        "the mean. The shard's own queue; the worker's is saga_worker_queue_wait_seconds.",
        (SHARD,),
        (_SERVICE,),
    ),
    Metric(
        "saga_router_requests_total",
        COUNTER,
        "Requests answered, by what the client got.",
        (ROUTER,),
        (Label("kind", tuple(KINDS.values())), Label("outcome", ROUTER_OUTCOMES)),
    ),
    Metric(
        "saga_router_shard_inflight",
        GAUGE,
        "Requests forwarded to a shard and not answered.",
        (ROUTER,),
        (Label("shard", known_from=OF_SHARDS),),
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
        "saga_processes",
        GAUGE,
        "Processes that the cluster has places for, by what they do.",
        (SUPERVISOR,),
        (_PROCESS, Label("state", PROCESS_STATES)),
    ),
    Metric(
        "saga_process_exits_total",
        COUNTER,
        "Processes that ended while the cluster did not stop.",
        (SUPERVISOR,),
        (_PROCESS,),
    ),
    Metric(
        "saga_books_imbalance",
        GAUGE,
        "What does not balance, seen twice and not mended yet; 0 when all does. stock: pieces gone "
        "that nobody holds, or held that are not gone; reservations: lines; payments: minor units; "
        "shipments: shipments; strays: rows under a number that no saga has.",
        (AUDITOR,),
        (Label("book", BOOKS),),
    ),
    Metric(
        "saga_books_round_timestamp_seconds",
        GAUGE,
        "When the last round of the continuous audit that could read everything ended, seconds "
        "since 1970; 0 before the first.",
        (AUDITOR,),
    ),
    Metric(
        "saga_books_round_duration_seconds",
        GAUGE,
        "How long that round took.",
        (AUDITOR,),
    ),
    Metric(
        "saga_books_history_timestamp_seconds",
        GAUGE,
        "When the continuous audit had read every finished saga once more, seconds since 1970; 0 "
        "before it has for the first time, and the stock is not judged before it has.",
        (AUDITOR,),
    ),
    Metric(
        "saga_books_sagas_total",
        COUNTER,
        "Finished sagas that the continuous audit compared with the services' books.",
        (AUDITOR,),
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
        "saga_event_loop_busy_seconds_total",
        COUNTER,
        "Time in which the loop did not wait for something to come; its rate is the share of one "
        "core's time, or of the disk's, that is used up.",
        (SHARD, ROUTER, WORKER),
    ),
    Metric(
        "saga_build_info",
        GAUGE,
        "Always 1; the labels say what runs here.",
        (*_ALL, AUDITOR),
        (Label("version", known_from=OF_THIS_BUILD), Label("python", known_from=OF_THIS_BUILD)),
    ),
)

BY_NAME: Final = {metric.name: metric for metric in METRICS}
