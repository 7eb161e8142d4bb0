"""What can be configured: sections, keys, types, limits, defaults. Knows no file, no environment.

`ClusterConfig` is what all processes of a cluster must agree on (its directory stores the shards
and the sagas); the other sections are what one process may choose. A field's type is its limit; its
name ends in its unit.
`default.toml` states the same defaults for readers; a test compares the two.
"""

from typing import Annotated, Final

from msgspec import Meta, Struct, field

from sagacity.ids import SHARDS_MAX
from sagacity.wire import FRAME_ITEMS_MAX

_PLACE: Final = r"\A[A-Za-z_][A-Za-z0-9_.]{0,255}:[A-Za-z_][A-Za-z0-9_]*\Z"
_SERVICE: Final = r"\A[a-z][a-z0-9_]{0,31}\Z"
_TEXT: Final = r"\A[^\x00-\x1f\x7f\ud800-\udfff]{0,4096}\Z"

# What a fault says in place of a pattern.
MEANINGS: Final = {
    _PLACE: "module:name",
    _SERVICE: "a lower-case name of at most 32 characters",
    _TEXT: "a text of at most 4096 characters, none of them a control character",
}

Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]
Place = Annotated[str, Meta(pattern=_PLACE)]
Service = Annotated[str, Meta(pattern=_SERVICE)]
Text = Annotated[str, Meta(pattern=_TEXT)]
Port = Annotated[int, Meta(ge=0, le=65_535)]

# Roles of processes that are no workers; a worker's role is its service, which has none of these.
RESERVED_NAMES: Final = frozenset({"auditor", "router", "shard", "supervisor"})


class ClusterConfig(Struct, frozen=True, kw_only=True):
    """What all processes of a cluster must agree on.

    Args:
        shards: journals that the slots are spread over.
        sagas: definitions, each `module:name`.
        catalog: path of a catalog; empty for the packaged one.
    """

    shards: Annotated[int, Meta(ge=1, le=SHARDS_MAX)] = 2
    sagas: Annotated[tuple[Place, ...], Meta(min_length=1, max_length=64)] = (
        "services.checkout:checkout",
    )
    catalog: Text = ""


class ServicesConfig(Struct, frozen=True, kw_only=True):
    """Worker pools.

    Args:
        pools: service name -> `module:name` of its Service.
        workers: processes of each pool.
        credit: commands that a worker takes, per shard, before it has answered one.
    """

    pools: Annotated[dict[Service, Place], Meta(min_length=1, max_length=32)] = field(
        default_factory=lambda: {
            "inventory": "services.inventory:service",
            "payment": "services.payment:service",
            "shipping": "services.shipping:service",
        }
    )
    workers: Annotated[int, Meta(ge=1, le=64)] = 2
    credit: Annotated[int, Meta(ge=1, le=FRAME_ITEMS_MAX)] = 256


class SagaConfig(Struct, frozen=True, kw_only=True):
    """How patient sagas are, where their definition does not say.

    Args:
        deadline_ms: from the start until a saga turns back.
        attempts: of an action, before its saga turns back.
        attempt_timeout_ms: from the moment a worker has a command until the attempt counts.
        backoff_ms: bound of the wait before the second attempt; doubles with each.
        backoff_max_ms: the doubling ends here.
        stuck_after: attempts of a compensation after which its saga is marked STUCK.
    """

    deadline_ms: Milliseconds = 30_000
    attempts: Annotated[int, Meta(ge=1, le=1000)] = 5
    attempt_timeout_ms: Milliseconds = 3_000
    backoff_ms: Milliseconds = 50
    backoff_max_ms: Milliseconds = 5_000
    stuck_after: Annotated[int, Meta(ge=1, le=1000)] = 10


class ShardConfig(Struct, frozen=True, kw_only=True):
    """One shard.

    Args:
        inflight_max: sagas admitted and not finished.
        queue_age_max_ms: the longest wait for workers that a start is taken with.
        retry_per_success_permille: retries that a thousand successes of a service earn.
        retry_burst: retries that a service may save up.
        retry_per_second: retries that a service gets in any case.
        retention_ms: how long a finished saga's answer and history are kept, while the shard runs;
            24 hours at least.
        tail_bytes: of journal rows since the checkpoint; then they are taken apart.
    """

    inflight_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 4_096
    queue_age_max_ms: Milliseconds = 5_000
    retry_per_success_permille: Annotated[int, Meta(ge=0, le=1000)] = 100
    retry_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    retry_per_second: Annotated[int, Meta(ge=1, le=1_000_000)] = 10
    retention_ms: Annotated[int, Meta(ge=86_400_000, le=315_360_000_000)] = 604_800_000
    tail_bytes: Annotated[int, Meta(ge=4_096, le=1 << 30)] = 2_097_152


class RouterConfig(Struct, frozen=True, kw_only=True):
    """The router.

    Args:
        client_inflight_max: starts of one client that are not answered; as many cancels and reads.
        shard_inflight_max: the same of one shard.
    """

    client_inflight_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_024
    shard_inflight_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 8_192


class SupervisorConfig(Struct, frozen=True, kw_only=True):
    """The supervisor, and when it judges its children.

    Args:
        heartbeat_ms: between two signs of life of a process.
        worker_live_ms: a worker whose last sign is older is not live.
        worker_hung_ms: a worker, standby or not, that is silent for so long is killed.
        shard_silent_ms: the same for a shard, and for the router.
        restart_ms: before the second restart; the first comes at once, later ones double.
        restart_max_ms: the doubling ends here.
        quarantine_exits: exits in a row, without having served, after which there is no restart.
        quarantine_within_ms: an exit counts when it comes this soon after the start.
        drain_ms: how long what is in flight may take to finish after SIGTERM.
        books_every_ms: between two rounds of the continuous audit; 0: none. At most a minute, by
            which the alert BooksUnread tells a round that is missing.
        metrics_port: of `up`; 0 for any free one.
        data: directory of journals and databases.
    """

    heartbeat_ms: Milliseconds = 1_000
    worker_live_ms: Milliseconds = 2_500
    worker_hung_ms: Milliseconds = 10_000
    shard_silent_ms: Annotated[int, Meta(ge=2_000, le=86_400_000)] = 15_000
    restart_ms: Milliseconds = 100
    restart_max_ms: Milliseconds = 5_000
    quarantine_exits: Annotated[int, Meta(ge=1, le=1000)] = 8
    quarantine_within_ms: Milliseconds = 5_000
    drain_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 10_000
    books_every_ms: Annotated[int, Meta(ge=0, le=60_000)] = 10_000
    metrics_port: Port = 9_464
    data: Annotated[Text, Meta(min_length=1)] = "./sagacity-data"


class Config(Struct, frozen=True, kw_only=True):
    """The whole configuration of one process.

    Args:
        sources: for each key, such as `saga.attempts`, where its value came from.
    """

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    services: ServicesConfig = field(default_factory=ServicesConfig)
    saga: SagaConfig = field(default_factory=SagaConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    sources: dict[str, str] = field(default_factory=dict)


SECTIONS: Final[dict[str, type[Struct]]] = {
    "cluster": ClusterConfig,
    "services": ServicesConfig,
    "saga": SagaConfig,
    "shard": ShardConfig,
    "router": RouterConfig,
    "supervisor": SupervisorConfig,
}


def contradictions(config: Config) -> list[str]:
    """Give what no single key gets wrong, a sentence each."""
    ordered = [
        ("saga", "backoff_ms", "backoff_max_ms"),
        ("supervisor", "restart_ms", "restart_max_ms"),
        ("supervisor", "heartbeat_ms", "worker_live_ms"),
    ]
    found = []
    for name, low, high in ordered:
        section = getattr(config, name)
        least, most = getattr(section, low), getattr(section, high)
        if least > most:
            found.append(f"{name}.{low} = {least} is above {name}.{high} = {most}")
    beat = config.supervisor.heartbeat_ms
    for name in ("worker_hung_ms", "shard_silent_ms"):
        patience = getattr(config.supervisor, name)
        if patience <= beat:
            found.append(
                f"supervisor.{name} = {patience} is not above supervisor.heartbeat_ms = {beat}"
            )
    found.extend(
        f"services.pools: {name!r} is the name of another kind of process"
        for name in sorted(RESERVED_NAMES.intersection(config.services.pools))
    )
    return found
