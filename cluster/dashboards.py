"""What the dashboards show: one table. Pure.

config/grafana/dashboards/*.json is printed from it (`python -m tests.architecture.pictures`).
Queries speak of the metrics of `metrics` and of the rules in config/prometheus/rules.yml; a test
compares. What a dashboard is made of stands in `panels`; knows nothing of Grafana's format.
"""

from typing import Final

from cluster.panels import (
    BYTES,
    COUNT,
    EACH_SECOND,
    MONEY,
    SECONDS,
    SHARE,
    Dashboard,
    Graph,
    Limit,
    Numbers,
    Value,
    Variable,
    chosen,
    mean,
    quantile,
    rate,
    summed,
)

OVERVIEW: Final = "sagacity-overview"
SHARD: Final = "sagacity-shard"
SERVICES: Final = "sagacity-services"

_SHARDS: Final = Variable("shard", "saga_shard_epoch")
_POOLS: Final = Variable("service", "saga_pool_workers")
_SHARD: Final = _SHARDS.selector
_SERVICE: Final = _POOLS.selector
_BY_SHARD: Final = "shard {{shard}}"
_AT_RISK: Final = f"{summed('saga_amount_at_risk')} / 100"

_OVERVIEW: Final = Dashboard(
    OVERVIEW,
    "Sagacity: overview",
    "Do checkouts flow, how many turn back and why, how much money is in between, who has to look.",
    Numbers(
        "What needs a person",
        "Zero, or young, while nobody has to do anything.",
        (
            Value(
                "alerts that fire",
                COUNT,
                'count(ALERTS{alertstate="firing"}) or vector(0)',
                Limit(1),
            ),
            Value("stuck", COUNT, 'sum(saga_active{state="stuck"})', Limit(1, "Stuck")),
            Value(
                "stuck for longest",
                SECONDS,
                "max(time() - (saga_oldest_stuck_timestamp_seconds > 0)) or vector(0)",
                Limit(30, "Stuck"),
            ),
            Value(
                "oldest checkout",
                SECONDS,
                "max(time() - (saga_oldest_active_timestamp_seconds > 0)) or vector(0)",
                Limit(60),
            ),
            Value("money at risk", MONEY, _AT_RISK, Limit(10_000, "AmountAtRisk")),
            Value(
                "processes that do not serve",
                COUNT,
                'sum(saga_processes) - sum(saga_processes{state=~"up|standby"})',
                Limit(1),
            ),
        ),
    ),
    (
        Graph(
            "Checkouts",
            "How many start, and how many end, and how.",
            EACH_SECOND,
            {
                "started": rate("saga_started_total"),
                "{{outcome}}": rate("saga_finished_total", "outcome"),
            },
            down=SHARD,
        ),
        Graph(
            "How long a checkout takes",
            "From its durable start to its final answer; 99 of 100 should take less than 1 s.",
            SECONDS,
            {
                "half of them": quantile(0.5, "saga_duration_seconds"),
                "99 of 100": quantile(0.99, "saga_duration_seconds"),
            },
            Limit(1, "Slow"),
            down=SERVICES,
        ),
        Graph(
            "Checkouts that turn back, by cause",
            "A decline is an outcome, no error; timed_out, deadline and quarantined are errors.",
            EACH_SECOND,
            {"{{cause}}": rate("saga_turned_back_total", "cause")},
            stacked=True,
            hides_zeros=True,
            down=SERVICES,
        ),
        Graph(
            "Money at risk",
            "Charged in checkouts that turn back, and not refunded yet.",
            MONEY,
            {"at risk": _AT_RISK},
            Limit(10_000, "AmountAtRisk"),
            down=SERVICES,
        ),
    ),
    (
        Graph(
            "Starts that go wrong",
            "Refused for load, without an outcome in time, or turned back by a time-out.",
            SHARE,
            {
                "in 5 minutes": "saga:start_errors:ratio_rate5m",
                "in an hour": "saga:start_errors:ratio_rate1h",
            },
            Limit(0.0144, "ErrorBudgetBurn"),
        ),
        Graph(
            "Checkouts that take longer than 1 s",
            "Of those that ended in the last 5 minutes.",
            SHARE,
            {"slow": "saga:slow:ratio_rate5m"},
            Limit(0.01, "Slow"),
            down=SERVICES,
        ),
        Graph(
            "Share of checkouts that turn back",
            "Whatever for, of those that started in the last 5 minutes.",
            SHARE,
            {"turned back": "saga:turned_back:ratio_rate5m"},
            Limit(0.3, "CompensationSurge"),
        ),
        Graph(
            "Steps undone, by cause",
            "Each is work that a service did twice: there and back.",
            EACH_SECOND,
            {"{{step}}, {{cause}}": rate("saga_compensations_total", "step, cause")},
            stacked=True,
            hides_zeros=True,
            down=SERVICES,
        ),
        Graph(
            "How long checkouts stand half-done",
            "From the first success to the final answer, 99 of 100.",
            SECONDS,
            {"{{outcome}}": quantile(0.99, "saga_exposure_seconds", "outcome")},
        ),
        Graph(
            "In flight",
            "Checkouts that are not final; stuck ones are not among compensating.",
            COUNT,
            {"{{state}}": summed("saga_active", "state")},
            stacked=True,
            down=SHARD,
        ),
        Graph(
            "Requests that got an error, by cause",
            "Where it was decided, router or shard; docs/errors.md says what each means.",
            EACH_SECOND,
            {"{{cause}}": rate("saga_refused_total", "cause")},
            hides_zeros=True,
            down=SHARD,
        ),
        Graph(
            "What does not balance, by book",
            "Pieces, minor units or rows; the auditor's log says of which checkout.",
            COUNT,
            {"{{book}}": summed("saga_books_imbalance", "book")},
            Limit(1, "BooksDoNotBalance"),
        ),
        Graph(
            "Alerts that fire",
            "Each has a page in docs/runbooks.",
            COUNT,
            {
                "{{alertname}}, {{severity}}": summed(
                    chosen("ALERTS", 'alertstate="firing"'), "alertname, severity"
                )
            },
            stacked=True,
        ),
        Graph(
            "Processes that ended",
            "In 5 minutes, while the cluster did not stop; each was started again.",
            COUNT,
            {"{{process}}": summed("increase(saga_process_exits_total[5m])", "process")},
            hides_zeros=True,
            down=SHARD,
        ),
    ),
    links=(SHARD, SERVICES),
)

_SHARD_DASHBOARD: Final = Dashboard(
    SHARD,
    "Sagacity: shards",
    "Has a shard more to give, does its disk keep up, was it taken over, what has it in flight.",
    Numbers(
        "Shards",
        "What needs a person stands first.",
        (
            Value(
                "do not serve",
                COUNT,
                'sum(saga_processes{process="shard"})'
                ' - sum(saga_processes{process="shard",state="up"})',
                Limit(1, "ShardDown"),
            ),
            Value("slots that nobody serves", COUNT, "1024 - sum(saga_shard_slots)", Limit(1)),
            Value(
                "ended in an hour",
                COUNT,
                'sum(increase(saga_process_exits_total{process="shard"}[1h]))',
                Limit(1),
            ),
            Value(
                "longest recovery",
                SECONDS,
                f"max({chosen('saga_recovery_duration_seconds', _SHARD)})",
                Limit(30),
            ),
            Value("in flight", COUNT, summed(chosen("saga_active", _SHARD))),
            Value("journals", BYTES, summed(chosen("saga_journal_size_bytes", _SHARD))),
        ),
    ),
    (
        Graph(
            "How busy each shard is",
            "Share of its time that its loop does not wait for something to come; its disk counts.",
            SHARE,
            {_BY_SHARD: chosen("saga:event_loop_busy:ratio_rate1m", 'role="shard"', _SHARD)},
            Limit(0.8),
        ),
        Graph(
            "How long a commit takes",
            "One group commit of the journal, its sync included.",
            SECONDS,
            {
                f"{_BY_SHARD}, half": quantile(
                    0.5, "saga_journal_commit_duration_seconds", "shard", _SHARD
                ),
                f"{_BY_SHARD}, 99 of 100": chosen("saga:journal_commit_seconds:p99_5m", _SHARD),
            },
            Limit(0.1, "JournalSlow"),
        ),
        Graph(
            "Commits",
            "Each is one sync, whatever it holds.",
            EACH_SECOND,
            {_BY_SHARD: rate("saga_journal_commit_duration_seconds_count", "shard", _SHARD)},
        ),
        Graph(
            "Entries of a commit",
            "The mean; it grows with the load, for a commit takes what came meanwhile.",
            COUNT,
            {_BY_SHARD: mean("saga_journal_commit_entries", "shard", _SHARD)},
        ),
    ),
    (
        Graph(
            "In flight",
            "Checkouts that are not final; a shard admits 4 096 unless it is told otherwise.",
            COUNT,
            {f"{_BY_SHARD}, {{{{state}}}}": summed(chosen("saga_active", _SHARD), "shard, state")},
            stacked=True,
            hides_zeros=True,
        ),
        Graph(
            "Checkouts that end",
            "By shard and outcome.",
            EACH_SECOND,
            {
                f"{_BY_SHARD}, {{{{outcome}}}}": rate(
                    "saga_finished_total", "shard, outcome", _SHARD
                )
            },
            stacked=True,
        ),
        Graph(
            "Requests without an answer yet",
            "At the router, by the shard that they were forwarded to.",
            COUNT,
            {_BY_SHARD: summed(chosen("saga_router_shard_inflight", _SHARD), "shard")},
        ),
        Graph(
            "Epoch",
            "How often a shard was taken over, each start included.",
            COUNT,
            {_BY_SHARD: f"max by (shard) ({chosen('saga_shard_epoch', _SHARD)})"},
        ),
        Graph(
            "Slots",
            "Of 1024; each id belongs to one.",
            COUNT,
            {_BY_SHARD: f"max by (shard) ({chosen('saga_shard_slots', _SHARD)})"},
            stacked=True,
        ),
        Graph(
            "Recovery",
            "How long the process that runs read its journal before it served.",
            SECONDS,
            {_BY_SHARD: f"max by (shard) ({chosen('saga_recovery_duration_seconds', _SHARD)})"},
        ),
        Graph(
            "Checkouts found at recovery",
            "Not final when the process that runs started; they go on.",
            COUNT,
            {_BY_SHARD: f"max by (shard) ({chosen('saga_recovered_total', _SHARD)})"},
        ),
        Graph(
            "How long a turn of the loop takes",
            "99 of 100; after more than 0.5 s the clocks of its checkouts stand still.",
            SECONDS,
            {
                _BY_SHARD: quantile(
                    0.99, "saga_event_loop_lag_seconds", "shard", 'role="shard"', _SHARD
                )
            },
            Limit(0.5),
        ),
        Graph(
            "Journals",
            "The journal's files; a compaction keeps them bounded.",
            BYTES,
            {_BY_SHARD: summed(chosen("saga_journal_size_bytes", _SHARD), "shard")},
        ),
        Graph(
            "Entries written",
            "Facts that are on disk.",
            EACH_SECOND,
            {_BY_SHARD: rate("saga_journal_records_total", "shard", _SHARD)},
            stacked=True,
        ),
        Graph(
            "Requests refused, by cause",
            "Of those that a shard refused; the router's stand on the overview.",
            EACH_SECOND,
            {
                f"{_BY_SHARD}, {{{{cause}}}}": rate(
                    "saga_refused_total", "shard, cause", 'role="shard"', _SHARD
                )
            },
            hides_zeros=True,
        ),
        Graph(
            "What should never happen",
            "Put aside and counted: contradicting answers, wrong pools, unreadable frames.",
            EACH_SECOND,
            {
                f"{_BY_SHARD}, {{{{what}}}}": rate(
                    "saga_faults_total", "shard, what", 'role="shard"', _SHARD
                )
            },
            hides_zeros=True,
        ),
    ),
    links=(OVERVIEW, SERVICES),
    variable=_SHARDS,
)

_CREDIT_IN_USE: Final = (
    f"{summed(chosen('saga_pool_outstanding', _SERVICE), 'service')}"
    f" / ({summed(chosen('saga_pool_credit', _SERVICE), 'service')} > 0)"
)

_SERVICES_DASHBOARD: Final = Dashboard(
    SERVICES,
    "Sagacity: services",
    "Do workers keep up, what do they answer, what comes again.",
    Numbers(
        "Services",
        "What needs a person stands first.",
        (
            Value(
                "pools without a worker",
                COUNT,
                f"count(max by (service) ({chosen('saga_pool_workers', _SERVICE)}) == 0)"
                " or vector(0)",
                Limit(1),
            ),
            Value(
                "longest mean wait",
                SECONDS,
                f"max({chosen('saga:pool_wait_seconds:mean1m', _SERVICE)}) or vector(0)",
                Limit(0.5, "WorkersSaturated"),
            ),
            Value("credit in use", SHARE, f"max({_CREDIT_IN_USE}) or vector(0)", Limit(0.8)),
            Value(
                "workers ended in an hour",
                COUNT,
                'sum(increase(saga_process_exits_total{process=~"$service"}[1h]))',
                Limit(1),
            ),
            Value("commands that wait", COUNT, summed(chosen("saga_pool_waiting", _SERVICE))),
            Value("commands", EACH_SECOND, rate("saga_pool_commands_total", "", _SERVICE)),
        ),
    ),
    (
        Graph(
            "How busy each worker is",
            "Share of its time that it does not wait for something to come. Of an exclusive pool "
            "one works, the others stand by.",
            SHARE,
            {
                "{{service}} {{index}}": chosen(
                    "saga:event_loop_busy:ratio_rate1m", 'role="worker"', _SERVICE
                )
            },
            Limit(0.8),
        ),
        Graph(
            "Credit in use",
            "Commands that workers have, of those that they take; at 1 the next ones wait.",
            SHARE,
            {"{{service}}": _CREDIT_IN_USE},
            Limit(0.8),
        ),
        Graph(
            "How long a command waits",
            "At the shards for a worker with credit, then at the worker until its transaction.",
            SECONDS,
            {
                "{{service}}, at the shards, mean": chosen(
                    "saga:pool_wait_seconds:mean1m", _SERVICE
                ),
                "{{service}}, at the worker, 99 of 100": quantile(
                    0.99, "saga_worker_queue_wait_seconds", "service", _SERVICE
                ),
            },
            Limit(0.5, "WorkersSaturated"),
        ),
        Graph(
            "What workers answer",
            "Declined is a business no; failed is tried again; a refusal is no outcome.",
            EACH_SECOND,
            {
                "{{service}}, {{outcome}}": rate(
                    "saga_step_attempts_total", "service, outcome", 'role="worker"', _SERVICE
                )
            },
            hides_zeros=True,
        ),
    ),
    (
        Graph(
            "How long a step takes",
            "From the shard's command to its outcome, 99 of 100; an attempt is given 3 s.",
            SECONDS,
            {
                "{{step}}, {{direction}}": quantile(
                    0.99, "saga_step_duration_seconds", "step, direction"
                )
            },
            Limit(3),
        ),
        Graph(
            "Attempts that gave no success",
            "As the shards saw them end.",
            EACH_SECOND,
            {
                "{{step}}, {{direction}}, {{outcome}}": rate(
                    "saga_step_attempts_total",
                    "step, direction, outcome",
                    'role="shard"',
                    'outcome!="ok"',
                )
            },
            hides_zeros=True,
        ),
        Graph(
            "Commands given out again",
            "After an attempt that failed or timed out.",
            EACH_SECOND,
            {"{{step}}, {{direction}}": rate("saga_retries_total", "step, direction")},
            hides_zeros=True,
        ),
        Graph(
            "Duplicates absorbed",
            "What came again and had no second effect, by who noticed.",
            EACH_SECOND,
            {"{{role}}, {{where}}": rate("saga_duplicates_total", "role, where")},
            hides_zeros=True,
        ),
        Graph(
            "Commands that wait",
            "At the shards, for a worker with credit.",
            COUNT,
            {"{{service}}": summed(chosen("saga_pool_waiting", _SERVICE), "service")},
            stacked=True,
        ),
        Graph(
            "Commands at the workers",
            "Received and not answered, and how many are taken at most, by each shard; 0 while a "
            "database does not work, and of who stands by.",
            COUNT,
            {
                "{{service}}": summed(chosen("saga_worker_busy", _SERVICE), "service"),
                "{{service}}, at most": summed(chosen("saga_worker_capacity", _SERVICE), "service"),
            },
        ),
        Graph(
            "Workers, by state",
            "As the supervisor sees them.",
            COUNT,
            {
                "{{process}}, {{state}}": summed(
                    chosen("saga_processes", 'process=~"$service"'), "process, state"
                )
            },
            stacked=True,
            hides_zeros=True,
        ),
        Graph(
            "Commands given to workers",
            "By the shards.",
            EACH_SECOND,
            {"{{service}}": rate("saga_pool_commands_total", "service", _SERVICE)},
            stacked=True,
        ),
        Graph(
            "How long a turn of a worker takes",
            "99 of 100: a batch of commands, its transaction and its sync.",
            SECONDS,
            {
                "{{service}}": quantile(
                    0.99, "saga_event_loop_lag_seconds", "service", 'role="worker"', _SERVICE
                )
            },
        ),
    ),
    links=(OVERVIEW, SHARD),
    variable=_POOLS,
)

DASHBOARDS: Final = (_OVERVIEW, _SHARD_DASHBOARD, _SERVICES_DASHBOARD)
